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
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from environments import PEERS, RECTOOLS, ROOT, install
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.histories import task_histories
from modeling_mcm.evaluation.reports import text_table
from modeling_mcm.files_mcm import write_json
from modeling_mcm.option import option

# A script in benchmarks/peers, and the packages of its own environment; without any it runs in this one.
METHODS = {
    "RecTools BERT4Rec": ("rectools_models", RECTOOLS),
    "RecTools SASRec": ("rectools_models", RECTOOLS),
    "RePlay SASRec": ("replay_sasrec", ["replay-rec[torch]==0.22.0", "pyarrow"]),
    "BERT of transformers": ("hf_bert", []),
    "MCM": ("mcm", []),
}


@dataclass
class CompareOptions:
    """Which methods are compared, for how long, and on which data."""

    data: str = option("data/complete_journey/prepared", "Folder of a prepared data set.")
    task: str = option("product_type", "Task whose labels are the items that the other methods recommend.")
    methods: list[str] = option(list(METHODS), "Methods to compare, the rows of the table.")
    rounds: int = option(3, "Number of runs of each method, whose median is printed.")
    seconds: float = option(15.0, "Seconds of training in each run.")
    length: int = option(100, "Number of each customer's latest events that are read.")
    batch_size: int = option(32, "Number of customers in one training step.")
    inference_batch_size: int = option(256, "Number of customers in one batch of inference.")
    hidden: int = option(128, "Width of the encoder: the length of its hidden vectors.")
    threads: int = option(help="Number of torch's threads.", factory=torch.get_num_threads)
    results: str = option("docs/results", "Folder of the table, speed.json.")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"No methods {unknown}; there are {', '.join(METHODS)}.")


def write_sequences(rows: Any, task: str, length: int, path: Path) -> None:
    """Writes the last `length` + 1 items of every customer before the validation cutoff, with ids from 0."""
    items: list[np.ndarray] = []
    for history in task_histories(rows, task, "validation"):
        counts = np.bincount(history.customer, minlength=len(history))
        labels_by_customer = np.split(history.label - FIRST_LABEL, np.cumsum(counts)[:-1])
        items += [labels[-length - 1 :] for labels in labels_by_customer if len(labels) > 1]
    pq.write_table(pa.table({"items": pa.array(items, pa.list_(pa.int64()))}), path)


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
    rows = [["method", "training: sequences/s", "training: ratio to the first", "targets/s"]]
    rows[0] += ["inference: customers/s", "inference: ratio to the first"]
    middle = {name: {key: median(run[key] for run in runs[name]) for key in runs[name][0]} for name in runs}
    first = next(iter(middle.values()))
    for name, values in middle.items():
        rates = {key: [f"{values[key]:,.0f}", f"{values[key] / first[key]:.2f}x"] for key in ("training", "inference")}
        targets = f"{values['targets']:,.0f}" if "targets" in values else "-"
        rows.append([name, *rates["training"], targets, *rates["inference"]])
    return rows


def compare(options: CompareOptions, scratch: Path) -> list[list[str]]:
    """Runs all methods and makes the table."""
    rows = PreparedData(options.data).rows
    sequences = scratch / "sequences.parquet"
    write_sequences(rows, options.task, options.length, sequences)
    labels = 1 + max(int(np.max(row, initial=0)) for row in rows.with_format("numpy")[f"task_{options.task}"])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
    for _ in range(options.rounds):
        for name in options.methods:
            runs[name].append(run(name, options, sequences, labels - FIRST_LABEL))
            print(name, runs[name][-1], flush=True)
    return result_table(runs)


def main() -> None:
    """Reads the options, compares, and writes the table."""
    (options,) = parse_options(CompareOptions, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        table = compare(options, Path(scratch))
    caption = (
        f"Medians of {options.rounds} runs of {options.seconds:g} s; the latest {options.length} events, batches of "
        f"{options.batch_size} in training and {options.inference_batch_size} in inference, width {options.hidden}, "
        f"{options.threads} threads, torch {torch.__version__}."
    )
    print(f"\n{caption}\n\n{text_table(table)}")
    Path(options.results).mkdir(parents=True, exist_ok=True)
    write_json(Path(options.results, "speed.json"), {"caption": caption, "table": table})


if __name__ == "__main__":
    main()
