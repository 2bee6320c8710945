# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""SASRec, eSASRec and BERT4Rec of RecTools by its defaults, one model for each task, in an environment of their own.

Sessions are as long as 95% of the histories, at most 100; training ends after five epochs, at least 200 steps,
without a higher NDCG@10 of each customer's first event after the validation cutoff, and the best epoch counts.
"""

import json
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from environments import PEERS, RECTOOLS, install
from logs import Log
from methods import Method, Ranker
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.histories import task_histories
from modeling_mcm.evaluation.ranking import TargetRanks

AT_ONCE = 256  # cases whose scores are in memory
NAMES = ("RecTools SASRec", "RecTools eSASRec", "RecTools BERT4Rec")


def history(data: PreparedData, task: str, seed: int) -> pd.DataFrame:
    """The labelled events before the test cutoff, oldest first: columns customer, time, item and part, 1 after the
    validation cutoff. Labels of one time are there once, in random order: a file sorts a basket by item, say."""
    parts = []
    for cutoff in ("validation", "test"):
        for one in task_histories(data.rows, task, cutoff):
            columns = {"customer": one.customer_ids[one.customer], "time": one.time, "item": one.label}
            parts.append(pd.DataFrame(columns).assign(part=np.int8(cutoff == "test")))
    events = pd.concat(parts).sample(frac=1, random_state=seed).sort_values("part", kind="stable")
    return events.drop_duplicates(["customer", "time", "item"]).sort_values(["customer", "time"], kind="stable")


def compute_scores(lists: pd.Series, customers: list[str], labels: int) -> torch.Tensor:
    """Scores `(B, V)` that rank the lists of customers as they are; what is in no list has minus infinity."""
    scores = torch.full((len(customers), labels), -torch.inf)
    for row, best in zip(scores, (lists.get(customer) for customer in customers), strict=True):
        if best is not None:
            row[torch.as_tensor(np.array(best))] = torch.arange(len(best), 0, -1, dtype=row.dtype)
    return scores


def fit(name: str, log: Log, data: PreparedData, seed: int, folder: Path) -> Ranker:
    """Trains a model of each task, where its lists are missing."""
    python, lists_of = install(RECTOOLS), {}
    for task in log.tasks:
        path = folder / task / "lists.parquet"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            events = path.with_name("events.parquet")
            history(data, task, seed).to_parquet(events, index=False)
            words = {
                "method": name,
                "events": str(events),
                "lists": str(path),
                "seed": seed,
                "threads": torch.get_num_threads(),
            }
            subprocess.run([python, str(PEERS / "rectools_converged.py"), json.dumps(words)], check=True)
        lists_of[task] = pd.read_parquet(path).set_index("customer")

    def rank(cases):
        values, lists = {}, {}
        for task in cases.targets:
            ranks = TargetRanks(cases, task)
            size = len(data.extractor.vocabularies[task]) + FIRST_LABEL
            for start in range(0, len(cases), AT_ONCE):
                chosen = np.arange(start, min(start + AT_ONCE, len(cases)))
                ids = [cases.customer_ids[index] for index in chosen]
                ranks.add(chosen, compute_scores(lists_of[task]["items" if not cases.seen else "new"], ids, size))
            values[task], lists[task] = ranks.metrics((10,)), ranks.lists
        return values, lists

    return rank


METHODS = [
    Method(
        name, partial(fit, name), seeds=True, tuned="when training ends, on validation events", packages=("rectools",)
    )
    for name in NAMES
]
