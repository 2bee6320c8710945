# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether labels are as often in the next visit as their `chance` says: bins of a tenth, by MCM without encoder.

Every label of every test case is counted; the mean of the models that are there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from logs import Log
from methods.mcm import WITHOUT
from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.training.checkpoints import open_checkpoint

LOGS, BINS = ("complete_journey", "ta_feng"), 10


def count(data: PreparedData, folder: Path, tasks: tuple[str, ...], cutoff: str = "test") -> np.ndarray:
    """Number of labels in each bin, the sum of their chances, and how many came, of shape `(tasks, 3, BINS)`."""
    model, extractor = open_checkpoint(MCMForMultiTaskRecommendation, str(folder))
    cases = cases_at(data, cutoff)
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff=cutoff, as_of=cases.as_of)
    rows, result = PreparedRows(data.rows, cases.rows), np.zeros((len(tasks), 3, BINS))
    for chosen in logging.tqdm(batches_by_length(cases.history_end, 64), desc="Chances", unit="batch"):
        inputs = collator(rows.__getitems__(chosen.tolist()))
        inputs.pop("labels")
        with torch.inference_mode():
            logits = model(**inputs, tasks=tasks).logits
            chances = [model.chances(task, logits[task][:, FIRST_LABEL:].log_softmax(1)).numpy() for task in tasks]
        for sums, task, found in zip(result, tasks, chances, strict=True):
            comes = np.zeros_like(found, bool)
            for of_case, case in zip(comes, chosen, strict=True):
                labels = cases.targets[task][case]
                of_case[labels[labels >= FIRST_LABEL] - FIRST_LABEL] = True
            index = (found * BINS).astype(int).clip(max=BINS - 1).ravel()
            sums += [np.bincount(index, each, BINS) for each in (np.ones(len(index)), found.ravel(), comes.ravel())]
    return result


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, Any] | None:
    """A row for each bin and task of a log; None for other logs, and without a model."""
    folders = sorted((runs / log.name).glob(f"{WITHOUT.replace(' ', '_')}.*"))
    if log.name not in LOGS or not folders:
        return None
    sums = sum(count(data, folder, log.tasks) for folder in folders)
    rows = [
        {"task": task, "labels": int(number / len(folders)), "chance": chance / number, "came": came / number}
        for task, of_task in zip(log.tasks, sums, strict=True)
        for number, chance, came in of_task.T
        if number
    ]
    return {"log": log.name, "rows": rows}
