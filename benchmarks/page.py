#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens the page in a real browser that reaches this machine alone, and keeps pictures of it and how long it took.

    python benchmarks/page.py --model runs/quickstart --data data/complete_journey/prepared \
        --events data/complete_journey/raw/events.parquet --profile data/complete_journey/raw/profile.parquet \
        --pictures docs/pictures --report_file docs/page.md

Needs playwright and a Chrome, such as the chromium of Debian. Seconds are from the request to the first label that can
be chosen, in a new browser; those of a choice are from the key to the explanation on the page.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from measuring import show
from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.option import option
from modeling_mcm.page.app import build_page, launch_page
from modeling_mcm.page.histories import Histories

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOOKS = {"page": (1280, "light"), "page_dark": (1280, "dark"), "page_narrow": (390, "light")}
LABEL = "#expectations button"


@dataclass
class Options:
    """What is shown, and where pictures go."""

    model: str = option(help="Checkpoint folder.")
    data: str = option(help="Folder of the prepared data set.")
    events: str = option(help="Parquet file of the raw log.")
    profile: str | None = option(None, "Parquet file of the raw profiles.")
    runs: int = option(5, "Number of runs of each measurement, whose median is reported.")
    pictures: str | None = option(None, "Folder to write pictures to, as PNG files.")
    report_file: str | None = option(None, "Markdown file to write the table to.")


@contextmanager
def opened(browser: Any, address: str, width: int, scheme: str) -> Iterator[tuple[Any, float, list[str]]]:
    """The page, the seconds until it could be used, and what it asked of other machines."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    others: list[str] = []

    def refuse_others(route: Any) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        others.append(route.request.url)
        return route.abort()

    context.route("**/*", refuse_others)
    page = context.new_page()
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(LABEL)
    yield page, time.perf_counter() - start, others
    context.close()


def choose(page: Any, index: int) -> float:
    """Seconds from choosing a label to its explanation."""
    button = page.locator(LABEL).nth(index)
    label = button.get_attribute("data-label")
    start = time.perf_counter()
    button.press("Enter")
    page.wait_for_function(
        "label => document.querySelector('#why h3').innerText.startsWith('Why ' + label)", arg=label
    )
    return time.perf_counter() - start


def main() -> None:
    """Shows the page, walks over it and writes what was seen."""
    from playwright.sync_api import sync_playwright

    (options,) = parse_options(Options, description=__doc__)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit("page: there is no Chrome; install Debian's chromium.")
    torch.set_num_threads(1)
    model = MCMForMultiTaskRecommendation.from_pretrained(options.model).eval()
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    histories = Histories(model, extractor, options.data, options.events, options.profile, options.model)
    blocks = build_page(histories)
    _, address, _ = launch_page(blocks, server_name="127.0.0.1", waits=False)
    loads, choices, requests = [], [], 0
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(options.runs):
            with opened(browser, address, 1280, "light") as (page, seconds, others):
                loads.append(seconds)
                choices += [choose(page, index) for index in (1, 7)]
                requests += len(others)
        for name, (width, scheme) in LOOKS.items():
            with opened(browser, address, width, scheme) as (page, _, others):
                requests += len(others)
                choose(page, 8)
                page.wait_for_timeout(500)
                if options.pictures:
                    picture = Path(options.pictures, f"{name}.png")
                    page.screenshot(path=picture, full_page=width > 400, scale="css")
        browser.close()
    blocks.close()
    table = [["what", "seconds, median", "slowest"]]
    for what, seconds in (("open the page", loads), ("choose a label", choices)):
        table.append([what, f"{median(seconds):.2f}", f"{max(seconds):.2f}"])
    caption = f"{len(loads)} times each or more; requests to other machines: {requests}."
    show(table, caption, options.report_file)


if __name__ == "__main__":
    main()
