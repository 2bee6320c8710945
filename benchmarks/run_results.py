#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs each method on each log and seed, and draws docs/results.md from what is there.

    python benchmarks/run_results.py                                        everything that is missing: days
    python benchmarks/run_results.py --logs toys --methods MCM --seeds 0    one row
    python benchmarks/run_results.py --methods none                         the page alone

A run leaves `LOG.METHOD.SEED.json` in docs/results, and is made again when that is removed. It holds for each question
and task the means, the NDCG@10 of every customer (`page.pack`), the digest of the prepared data, versions, seconds of
fitting, and what was tuned. Methods are in methods/, a file each; logs are in logs.py. Intervals resample customers;
those of differences resample them in pairs. The studies `chance`, `forecasts`, `labels`, `probe` and
`small_logs` have files of their own.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

import chance
import forecasts
import labels
import page
import probe
import small_logs
from logs import LOGS, Log, prepared
from methods import Method, find_methods
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation import bootstrap_interval

STUDIES = {"chance": chance, "forecasts": forecasts, "labels": labels, "probe": probe, "small_logs": small_logs}


@dataclass
class ResultOptions:
    """What is run, and where its files are."""

    logs: list[str] = HfArg(default_factory=list, help=f"Logs, any of {', '.join(LOGS)}; all by default.")
    methods: list[str] = HfArg(default_factory=list, help=f"Names, {' or '.join(STUDIES)}; all by default, or none.")
    seeds: list[int] = HfArg(default_factory=lambda: [0, 1, 2], help="Seeds of the methods that depend on them.")
    tasks: list[str] = HfArg(default_factory=list, help="Tasks of those that the page shows; all by default.")
    data: str = HfArg(default="data", help="Folder of the logs, a folder each.")
    runs: str = HfArg(default="runs/results", help="Folder of the trained models.")
    results: str = HfArg(default="docs/results", help="Folder of the results; the page is beside it.")


def digest(data: PreparedData) -> str:
    """A digest of the shards of prepared data."""
    return hashlib.sha256("".join(shard["sha256"] for shard in data.manifest.shards).encode()).hexdigest()[:16]


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The commit of the checkout and versions of packages; one of an environment of its own is named there."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    found = {"commit": git.stdout.strip()}
    for name in ("modeling-mcm", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "pinned in benchmarks/environments.py"
    return found


def run(log: Log, data: PreparedData, method: Method, seed: int, folder: Path) -> dict[str, object] | None:
    """Fits a method and asks it the questions of a log; None if it has no answer."""
    start, known = time.monotonic(), folder.is_dir()
    answer = method.fit(log, data, seed, folder)
    if answer is None:
        return None
    facts = {"log": log.name, "method": method.name, "seed": seed, "data": digest(data), "tuned": method.tuned}
    # A model that was there took longer, and what only counts is evaluated beside one
    facts["seconds"] = round(time.monotonic() - start, 1) if method.seeds and not known else None
    answers: dict[str, Any] = {question.name: {} for question in log.questions}
    for question in log.questions:
        for task, found in answer(question).items():
            means = {"ndcg@10": bootstrap_interval(found.ndcg), "recall@10": bootstrap_interval(found.recall)}
            means = {name: interval._asdict() for name, interval in means.items()}
            answers[question.name][task] = means | {"coverage": found.coverage, "values": page.pack(found.ndcg)}
    answers = {name: found for name, found in answers.items() if found}
    return facts | {"versions": versions(method.packages), "answers": answers}


def missing(log: Log, options: ResultOptions, methods: dict[str, Method]) -> Iterator[tuple[Path, str, int]]:
    """The files of a log that are not there, each with its method or study, and seed."""
    for name in options.methods or [*methods, *STUDIES]:
        if name in STUDIES:
            found = {Path(options.results, f"{log.name}.{name}.json"): 0}
        elif name in methods and log.tasks:
            seeds = options.seeds if methods[name].seeds else [0]
            found = {Path(options.results, f"{log.name}.{name.replace(' ', '_')}.{seed}.json"): seed for seed in seeds}
        else:
            continue
        yield from ((path, name, seed) for path, seed in found.items() if not path.is_file())


def main() -> None:
    """Reads the options, runs what is missing, and draws the page."""
    (options,) = HfArgumentParser(ResultOptions, description=__doc__).parse_args_into_dataclasses()
    methods = {method.name: method for method in find_methods()}
    tasks = dict.fromkeys(task for log in LOGS.values() for task in log.tasks)
    choices = (options.logs, LOGS), (options.methods, methods | STUDIES | {"none": None}), (options.tasks, tasks)
    for given, known in choices:
        if wrong := sorted({*given} - {*known}):
            raise SystemExit(f"No {', '.join(wrong)}; choose from {', '.join(known)}.")
    results, runs = Path(options.results), Path(options.runs)
    for log in (LOGS[name] for name in options.logs or LOGS):
        log = replace(log, tasks=tuple(task for task in log.tasks if task in (options.tasks or log.tasks)))
        for path, name, seed in missing(log, options, methods):
            try:
                data = prepared(log, options.data)
            except FileNotFoundError as error:  # a log that is not downloaded
                if options.logs:
                    raise SystemExit(str(error)) from error
                print(f"{log.name} is left out: {error}")
                break
            if name in STUDIES:
                found = STUDIES[name].measure(log, data, runs)
            else:
                found = run(log, data, methods[name], seed, runs / log.name / path.stem.partition(".")[2])
            if found is not None:
                results.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found), encoding="utf-8")
                page.draw(results)
    page.draw(results)


if __name__ == "__main__":
    main()
