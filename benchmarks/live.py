#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How long a live customer takes to add a visit and to score all tasks, by length of history, beside reading it all.

    python benchmarks/live.py --model runs/quickstart --report_file docs/live.md

Histories are made of random visits from the checkpoint's own vocabularies; nothing else depends on what they say. Of
the same visits, in one process: a `LiveCustomer` takes a visit and scores all tasks, again and again; and the
feature extractor and the model read the whole history for the same scores. Seconds are those that the process spent
computing, which on a quiet machine are those that one waits; other work on the machine does not count.
"""

from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from modeling_mcm import LiveCustomer, MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.evaluation.reports import markdown_table, replace_part
from modeling_mcm.option import option


@dataclass
class Options:
    """Which checkpoint is measured at which lengths of history."""

    model: str = option("runs/quickstart", "Checkpoint folder.")
    visits: list[int] = option([10, 100, 1000], "Lengths of the histories, in visits.")
    events: int = option(8, "Number of events of one visit.")
    runs: int = option(40, "Number of visits that are added after each of these lengths.")
    threads: int = option(1, "Number of torch's threads.")
    report_file: str | None = option(
        None, "Markdown file, in which the text between its two result lines is replaced."
    )


def random_visits(extractor: MCMFeatureExtractor, number: int, size: int) -> list[list[dict[str, Any]]]:
    """Draws visits, a few days apart, of events with random values, of which popular ones are more frequent."""
    generator = np.random.default_rng(0)
    token = extractor.token_type_feature
    values = {}
    for feature, words in extractor.vocabularies.items():
        column = extractor._encoding.columns.get(feature)
        if column is not None and feature in extractor._encoding.event_features:
            known = extractor.target_token_types if feature == token and extractor.target_token_types else words
            values[column] = known
    visits, time = [], np.datetime64("2015-01-01T10:00:00")
    for visit in range(number):
        time += np.timedelta64(int(generator.integers(1, 96)), "h")
        events = []
        for _ in range(size):
            event = {c: words[int(len(words) * generator.random() ** 3)] for c, words in values.items()}
            event |= {extractor.time: str(time)} | ({extractor.visit: str(visit)} if extractor.visit else {})
            event |= {
                extractor._encoding.columns[name]: float(generator.integers(1, 9))
                for name in extractor.numeric_features
            }
            events.append(event)
        visits.append(events)
    return visits


def measure(model: Any, extractor: MCMFeatureExtractor, options: Options) -> list[dict[str, float]]:
    """Measures each length of history: milliseconds, bytes and the largest difference from computing anew."""
    visits = random_visits(extractor, max(options.visits) + options.runs, options.events)
    figures = []
    for length in options.visits:
        live = LiveCustomer(model, extractor)
        live.add([event for visit in visits[:length] for event in visit])
        live.logits()
        added, scored = [], []
        for visit in visits[length : length + options.runs]:
            start = process_time()
            live.add(visit)
            live.embedding()
            middle = process_time()
            live_logits = live.logits()
            added.append(middle - start)
            scored.append(process_time() - middle)
        whole = []
        for _ in range(3):
            start = process_time()
            inputs = extractor({"events": live.events})
            with torch.inference_mode():
                logits = model(**inputs).logits
            whole.append(process_time() - start)
        errors = [float((live_logits[task][2:] - logits[task][0, 2:]).abs().max()) for task in live_logits]
        stored, events = live.to_bytes(), live.to_bytes(caches=False)
        figures.append(
            {
                "visits": length,
                "add": float(np.median(added)) * 1e3,
                "slowest": float(np.max(added)) * 1e3,
                "score": float(np.median(scored)) * 1e3,
                "whole": float(np.median(whole)) * 1e3,
                "bytes": len(stored),
                "events": len(events),
                "error": max(errors),
            }
        )
    return figures


def table(figures: list[dict[str, float]], options: Options) -> str:
    """Writes the text between the two result lines of the page."""
    lines = [
        f"Visits of {options.events} events, {options.threads} thread, milliseconds of computing; medians of "
        f"{options.runs} visits.",
        "",
    ]
    heading = ["visits before", "add a visit", "the slowest", "score all tasks", "both", "read it all", "times faster"]
    rows = [[*heading, "state, bytes", "events alone", "largest difference"]]
    for row in figures:
        both = row["add"] + row["score"]
        cells = [f"{row['visits']:,}", *(f"{row[name]:.1f}" for name in ("add", "slowest", "score")), f"{both:.1f}"]
        cells += [f"{row['whole']:.0f}", f"{row['whole'] / both:.0f}", f"{row['bytes']:,}", f"{row['events']:,}"]
        cells.append(f"{row['error']:.0e}")
        rows.append(cells)
    lines += markdown_table(rows)
    for name, words in (("add", "add a visit"), ("score", "score all tasks")):
        values = [row[name] for row in figures]
        lines += [
            "",
            f"To {words} takes {max(values) / min(values):.2f} times as long at the slowest length as at the fastest.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the table."""
    (options,) = parse_options(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    model = MCMForMultiTaskRecommendation.from_pretrained(options.model).eval()
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    text = table(measure(model, extractor, options), options)
    if options.report_file is None:
        print(text)
        return
    if not replace_part(Path(options.report_file), f"{text}\n"):
        raise SystemExit(f"{options.report_file} has no lines <!-- results --> and <!-- /results -->: add them.")


if __name__ == "__main__":
    main()
