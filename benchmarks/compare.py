#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM beside RecTools, RePlay and a plain BERT of transformers, on the same customers and the same histories.

    python benchmarks/compare.py --reference_seconds 0 --report_file benchmarks/compare.md          speed
    python benchmarks/compare.py --rounds 0 --report_file benchmarks/time_to_accuracy.md            accuracy

The peers are installed into environments of their own under build/peers (some gigabytes). Each reads one task's labels
as its items; MCM reads the same histories with all their features and trains and ranks all tasks. Runs alternate:
every method once, then every method again. For the time to a given accuracy the peer named by --reference trains for
--reference_seconds, and MCM is trained for longer and longer until it ranks as well, each time from nothing. Without
further options both are done.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from measuring import show
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import EvaluationCases, cases_at
from modeling_mcm.evaluation.histories import task_histories
from modeling_mcm.evaluation.metrics import bootstrap_interval, customer_metrics, distinct_targets, tie_ranks
from modeling_mcm.evaluation.reports import with_half_interval
from modeling_mcm.files_mcm import write_json
from modeling_mcm.option import option

ROOT = Path(__file__).resolve().parents[1]
PEERS, ENVIRONMENTS = ROOT / "benchmarks" / "peers", ROOT / "build" / "peers"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        script (`str`): Name of a script in benchmarks/peers, without .py.
        packages (`tuple[str]`): Packages that its own environment needs; empty if it runs in this environment.
        more (`dict`): Options that only this script reads.
    """

    script: str
    packages: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


EVENTS_AS_UNITS = ["encoder_unit=event"]
EVENTS_AS_UNITS += ["max_position_embeddings=300", "attention_window=null"]
PAPER = ["augmentation=all_prefixes"]
PAPER_OBJECTIVE = {"ranking_loss_weight": 0, "target_half_life_days": 0}  # equation 4 alone, all times alike
METHODS = {
    "RecTools BERT4Rec": Method("rectools_models", ("rectools[torch]==0.19.0", "pyarrow==20.0.0")),
    "RecTools SASRec": Method("rectools_models", ("rectools[torch]==0.19.0", "pyarrow==20.0.0")),
    "RePlay SASRec": Method("replay_sasrec", ("replay-rec[torch]==0.22.0", "pyarrow")),
    "BERT of transformers": Method("hf_bert"),
    "MCM": Method("mcm", more={"config": "configuration/mcm-tiny"}),
    "MCM, every event a unit": Method("mcm", more={"config": "configuration/mcm-tiny", "overrides": EVENTS_AS_UNITS}),
    "MCM as in the paper, random prefix": Method(
        "mcm", more={"config": "configuration/ablations/mcm-final", "options": PAPER_OBJECTIVE}
    ),
    "MCM as in the paper, all prefixes": Method(
        "mcm", more={"config": "configuration/ablations/mcm-final", "overrides": PAPER, "options": PAPER_OBJECTIVE}
    ),
}


@dataclass
class CompareOptions:
    """Which methods are compared, for how long, and on which data."""

    data: str = option("data/complete_journey/prepared", "Folder of a prepared data set.")
    task: str = option("product_type", "Task whose labels are the items that the other methods recommend.")
    methods: list[str] = option(list(METHODS), "Methods to compare, the rows of the table.")
    rounds: int = option(
        3, "Number of runs of each method, whose median is printed; 0 to leave the comparison of speed out."
    )
    seconds: float = option(20.0, "Seconds of training in each run.")
    length: int = option(100, "Number of each customer's latest events that are read.")
    batch_size: int = option(32, "Number of customers in one training step.")
    inference_batch_size: int = option(256, "Number of customers in one batch of inference.")
    hidden: int = option(128, "Width of the encoder: the length of its hidden vectors.")
    threads: int = option(help="Number of torch's threads.", factory=torch.get_num_threads)
    reference: str = option("RecTools BERT4Rec", "Method whose accuracy MCM has to reach.")
    reference_seconds: float = option(
        420.0, "Seconds of training of that method; 0 to leave the comparison of accuracy out."
    )
    steps_up: list[float] = option([5.0, 15.0, 30.0, 60.0], "Seconds that MCM is given, one by one.")
    report_file: str | None = option(None, "Markdown file to write the tables to.")

    def __post_init__(self) -> None:
        if unknown := [name for name in [*self.methods, self.reference] if name not in METHODS]:
            raise ValueError(f"No methods {unknown}; there are {', '.join(METHODS)}.")


def install(method: Method, folder: Path) -> str:
    """Makes the environment of a method if it does not exist, and returns the path of its Python."""
    if not method.packages:
        return sys.executable
    python = folder / method.script / "bin" / "python"
    done = folder / method.script / "installed.json"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != list(method.packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / method.script)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *method.packages], check=True)
        write_json(done, method.packages)
    return str(python)


def write_sequences(rows: Any, task: str, length: int, path: Path) -> None:
    """Writes the last `length` + 1 items of every customer before the validation cutoff, with ids from 0."""
    customers: list[str] = []
    items: list[np.ndarray] = []
    for history in task_histories(rows, task, "validation"):
        counts = np.bincount(history.customer, minlength=len(history))
        labels_by_customer = np.split(history.label - FIRST_LABEL, np.cumsum(counts)[:-1])
        indices = [index for index, labels in enumerate(labels_by_customer) if len(labels) > 1]
        customers += [history.customer_ids[index] for index in indices]
        items += [labels_by_customer[index][-length - 1 :] for index in indices]
    pq.write_table(pa.table({"customer": customers, "items": pa.array(items, pa.list_(pa.int64()))}), path)


def run(name: str, seconds: float, options: CompareOptions, sequences: Path, items: int) -> dict[str, float]:
    """Runs a method once. Returns its figures; its recommendations are in recommended.parquet beside the sequences."""
    method = METHODS[name]
    task = {
        "method": name,
        "sequences": str(sequences),
        "items": items,
        "seconds": seconds,
        "recommend_to": str(sequences.with_name("recommended.parquet")),
        "batch_size": options.batch_size,
        "inference_batch_size": options.inference_batch_size,
        "length": options.length,
        "hidden": options.hidden,
        "threads": options.threads,
        "more": {"data": options.data, "task": options.task, **method.more},
    }
    python = install(method, ENVIRONMENTS)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command = [python, str(PEERS / f"{method.script}.py"), json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def accuracy(path: Path, cases: EvaluationCases, task: str, labels: int) -> str:
    """Computes next-visit NDCG@10 of recommended lists on the validation cases, with half of its interval; 0 without a
    list.
    """
    table = pq.read_table(path)
    lists = dict(zip(table["customer"].to_pylist(), table["items"].to_pylist(), strict=True))
    scores = np.zeros((len(cases), labels), np.float32)
    for row, customer in zip(scores, cases.customer_ids, strict=True):
        best = np.asarray(lists.get(customer, []), int)
        row[best + FIRST_LABEL] = np.arange(len(best), 0, -1)
    targets, counts = distinct_targets(cases.targets[task].offsets, cases.targets[task].labels)
    greater, ties = tie_ranks(scores, targets)
    outside = np.take_along_axis(scores, targets, 1) == 0  # not recommended: out of every list, each at its own place
    greater = np.where(outside, labels + np.arange(targets.shape[1]), greater)
    values = customer_metrics(greater, np.where(outside, 1, ties), counts)["next_visit_ndcg@10"]
    return with_half_interval(bootstrap_interval(values))


def speed_table(runs_by_method: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Makes a table of medians, their ratios to the first method's, and the share of the time that is the floor's
    (floor.py).
    """
    rows = [["method", "training: sequences/s", "ratio to the first", "floor", "targets/s"]]
    rows[0] += ["inference: customers/s", "ratio to the first", "floor"]
    if not all(runs_by_method.values()):
        return rows
    middle = {
        name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in runs_by_method.items()
    }
    first = next(iter(middle.values()))
    for name, values in middle.items():
        training, inference = (
            [f"{values[key]:,.0f}", f"{values[key] / first[key]:.2f}x", _text(values, f"{key}_of_floor", ".0%")]
            for key in ("training", "inference")
        )
        rows.append([name, *training, _text(values, "targets", ",.0f"), *inference])
    return rows


def _text(values: dict[str, float], key: str, form: str) -> str:
    return format(values[key], form) if key in values else "-"


def compare(options: CompareOptions, scratch: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Runs all methods and makes both tables, of speed and of accuracy."""
    data = PreparedData(options.data)
    rows, cases = data.rows, cases_at(data, "validation")
    sequences = scratch / "sequences.parquet"
    write_sequences(rows, options.task, options.length, sequences)
    labels = 1 + max(int(np.max(row, initial=0)) for row in rows.with_format("numpy")[f"task_{options.task}"])
    arguments = (options, sequences, labels - FIRST_LABEL)

    runs_by_method: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
    for _ in range(options.rounds):
        for name, runs in runs_by_method.items():
            runs.append(run(name, options.seconds, *arguments))
            print(name, runs[-1], flush=True)
    reached = [["method", "seconds of training", f"next-visit NDCG@10 of {options.task}, validation"]]
    if options.reference_seconds:
        run(options.reference, options.reference_seconds, *arguments)
        recommended = sequences.with_name("recommended.parquet")
        goal = accuracy(recommended, cases, options.task, labels)
        reached.append([options.reference, f"{options.reference_seconds:g}", goal])
        for seconds in options.steps_up:
            run("MCM", seconds, *arguments)
            reached.append(["MCM", f"{seconds:g}", accuracy(recommended, cases, options.task, labels)])
            print(reached[-1], flush=True)
            if float(reached[-1][2].split()[0]) >= float(goal.split()[0]):
                break
    return speed_table(runs_by_method), reached


def main() -> None:
    """Reads the options, compares, prints and writes the tables."""
    (options,) = parse_options(CompareOptions, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        speed, reached = compare(options, Path(scratch))
    shape = (
        f"the latest {options.length} events, batches of {options.batch_size} in training and "
        f"{options.inference_batch_size} in inference, width {options.hidden}, {options.threads} threads, torch "
        f"{torch.__version__}."
    )
    for table, caption in (
        (speed, f"Medians of {options.rounds} runs of {options.seconds:g} s; {shape}"),
        (reached, f"From nothing, seconds of preparing and starting not counted; {shape}"),
    ):
        if len(table) > 1:
            show(table, caption, options.report_file)


if __name__ == "__main__":
    main()
