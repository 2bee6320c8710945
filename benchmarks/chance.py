# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether labels are as often in the next visit as their `chance` says: bins of a tenth, by `mcm predict`.

The best 50 labels of each test case by MCM without encoder are counted; the mean of the models that are there.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from logs import Log, run_mcm
from methods import FIRST_LABEL
from methods.mcm import WITHOUT
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation import comparison_cases

LOGS, BINS, TOP = ("complete_journey", "ta_feng"), 10, 50


def count(data: PreparedData, model: Path, tasks: tuple[str, ...]) -> np.ndarray:
    """Number of labels in each bin, the sum of their chances, and how many came, of shape `(tasks, 3, BINS)`."""
    cases, result = comparison_cases(data, "test"), np.zeros((len(tasks), 3, BINS))
    before = pd.Timestamp(cases.as_of - 1, unit="s")  # an event at the cutoff is one of those to come
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--no_embeddings", "--no_forecasts"]
        run_mcm(
            "predict", *flags, model=model, data=data.folder, output_dir=folder, tasks=tasks, top_k=TOP, as_of=before
        )
        found = pd.read_parquet(folder).set_index("customer_id").loc[cases.customer_ids]
    for sums, task in zip(result, tasks, strict=True):
        names = dict(enumerate(data.extractor.vocabularies[task], FIRST_LABEL))
        came = [{names.get(label) for label in cases.targets[task].of(case)} for case in range(len(cases))]
        came = np.concatenate([[label in own for label in best] for own, best in zip(came, found[task], strict=True)])
        chances = np.concatenate(found[f"{task}_chances"].to_numpy())
        index = (chances * BINS).astype(int).clip(max=BINS - 1)
        sums += [np.bincount(index, each, BINS) for each in (np.ones(len(index)), chances, came)]
    return result


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, object] | None:
    """A row for each bin and task of a log; None for other logs, and without a model."""
    folders = sorted((runs / log.name).glob(f"{WITHOUT.replace(' ', '_')}.*"))
    if log.name not in LOGS or not folders:
        return None
    sums = sum(count(data, folder, log.tasks) for folder in folders)
    rows = [
        {"task": task, "labels": int(number / len(folders)), "chance": chance / number, "came": came / number}
        for task, task_sums in zip(log.tasks, sums, strict=True)
        for number, chance, came in task_sums.T
        if number
    ]
    return {"log": log.name, "rows": rows}
