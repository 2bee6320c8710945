#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM beside RecTools, RePlay and a plain BERT of transformers, on the same customers and the same histories.

    python benchmarks/compare.py

The peers are installed into environments of their own under build/peers (some gigabytes). Each reads one task's labels
as its items; MCM reads the same histories with all their features, trains all tasks and ranks that one. Runs
alternate: every method once, then every method again. Each trains in one process, without workers, from nothing.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from environments import PEERS, RECTOOLS, ROOT, install
from methods import FIRST_LABEL, labelled_events
from modeling_mcm.data import PreparedData

# A script in benchmarks/peers, and the packages of its own environment; without any it runs in this one.
METHODS = {
    "RecTools BERT4Rec": ("rectools_models", RECTOOLS),
    "RecTools SASRec": ("rectools_models", RECTOOLS),
    "RePlay SASRec": ("replay_sasrec", ["replay-rec[torch]==0.22.0", "pyarrow"]),
    "BERT of transformers": ("hf_bert", []),
    "MCM": ("mcm", []),
    "MCM without encoder": ("mcm", []),
}


@dataclass
class CompareOptions:
    """Which methods are compared, for how long, and on which data."""

    data: str = HfArg(default="data/complete_journey/prepared", help="Folder of a prepared data set.")
    task: str = HfArg(default="product_type", help="Task whose labels are the items that the other methods recommend.")
    methods: list[str] = HfArg(default_factory=lambda: [*METHODS], help="Methods to compare, the rows of the table.")
    rounds: int = HfArg(default=3, help="Number of runs of each method, whose median is printed.")
    seconds: float = HfArg(default=15.0, help="Seconds of training in each run.")
    length: int = HfArg(default=100, help="Number of each customer's latest events that are read.")
    batch_size: int = HfArg(default=32, help="Number of customers in one training step.")
    inference_batch_size: int = HfArg(default=256, help="Number of customers in one batch of inference.")
    hidden: int = HfArg(default=128, help="Width of the encoder: the length of its hidden vectors.")
    threads: int = HfArg(default_factory=torch.get_num_threads, help="Number of torch's threads.")
    results: str = HfArg(default="docs/results", help="Folder of the table, speed.json.")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"No methods {unknown}; there are {', '.join(METHODS)}.")


def write_sequences(data: PreparedData, task: str, length: int, path: Path) -> None:
    """Writes the last `length` + 1 items of every customer before the validation cutoff, with ids from 0."""
    events = labelled_events(data, task).query("part == 0")
    items = (events["item"] - FIRST_LABEL).groupby(events["customer"]).agg(list)
    pd.DataFrame({"items": [own[-length - 1 :] for own in items if len(own) > 1]}).to_parquet(path)


def run(name: str, options: CompareOptions, sequences: Path, items: int) -> dict[str, float]:
    """Runs a method once. Returns its figures."""
    script, packages = METHODS[name]
    task = {
        "method": name,
        "sequences": str(sequences),
        "items": items,
        "seconds": options.seconds,
        "batch_size": options.batch_size,
        "inference_batch_size": options.inference_batch_size,
        "length": options.length,
        "hidden": options.hidden,
        "threads": options.threads,
        "more": {"data": options.data, "task": options.task},
    }
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command = [install(packages), str(PEERS / f"{script}.py"), json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def result_table(runs: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Makes a table of medians, and of their ratios to the first method's."""
    rows = [["method", "training: sequences/s", "training: ratio to the first"]]
    rows[0] += ["inference: customers/s", "inference: ratio to the first"]
    middle = {name: {key: median(run[key] for run in runs[name]) for key in runs[name][0]} for name in runs}
    first = next(iter(middle.values()))
    for name, values in middle.items():
        rates = {
            key: ["-", "-"] if isnan(values[key]) else [f"{values[key]:,.0f}", f"{values[key] / first[key]:.2f}x"]
            for key in ("training", "inference")
        }
        rows.append([name, *rates["training"], *rates["inference"]])
    return rows


def compare(options: CompareOptions, scratch: Path) -> list[list[str]]:
    """Runs all methods and makes the table."""
    data = PreparedData(options.data)
    sequences = scratch / "sequences.parquet"
    write_sequences(data, options.task, options.length, sequences)
    items = len(data.extractor.vocabularies[options.task])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
    for _ in range(options.rounds):
        for name in options.methods:
            runs[name].append(run(name, options, sequences, items))
            print(name, runs[name][-1], flush=True)
    return result_table(runs)


def main() -> None:
    """Reads the options, compares, and writes the table."""
    (options,) = HfArgumentParser(CompareOptions, description=__doc__).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as scratch:
        table = compare(options, Path(scratch))
    caption = (
        f"Medians of {options.rounds} runs of {options.seconds:g} s; the latest {options.length} events, batches of "
        f"{options.batch_size} in training and {options.inference_batch_size} in inference, width {options.hidden}, "
        f"{options.threads} threads, torch {torch.__version__}."
    )
    print(f"\n{caption}\n\n{pd.DataFrame(table[1:], columns=table[0]).to_string(index=False)}")
    Path(options.results).mkdir(parents=True, exist_ok=True)
    Path(options.results, "speed.json").write_text(json.dumps({"caption": caption, "table": table}), encoding="utf-8")


if __name__ == "__main__":
    main()
