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
from methods import TOP, Method, answer_with_lists, labelled_events
from modeling_mcm.data import PreparedData

NAMES = ("RecTools SASRec", "RecTools eSASRec", "RecTools BERT4Rec")


def history(data: PreparedData, task: str, seed: int) -> pd.DataFrame:
    """The labelled events before the test cutoff, oldest first: columns customer, time, item and part, 1 after the
    validation cutoff. Labels of one time are there once, in random order: a file sorts a basket by item, say."""
    events = labelled_events(data, task).query("part < 2")
    events = events.sample(frac=1, random_state=seed).sort_values("part", kind="stable")
    return events.drop_duplicates(["customer", "time", "item"]).sort_values(["customer", "time"], kind="stable")


def fit(name: str, log: Log, data: PreparedData, seed: int, folder: Path):
    """Trains a model of each task, where its lists are missing."""
    python, lists_of = install(RECTOOLS), {}
    for task in log.tasks:
        path = folder / task / "lists.parquet"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            events = path.with_name("events.parquet")
            history(data, task, seed).to_parquet(events, index=False)
            words = {"method": name, "events": str(events), "lists": str(path), "seed": seed}
            words["threads"] = torch.get_num_threads()
            subprocess.run([python, str(PEERS / "rectools_converged.py"), json.dumps(words)], check=True)
        lists_of[task] = pd.read_parquet(path).set_index("customer")

    def make_lists(cases, task):
        lists = np.zeros((len(cases), TOP), np.int64)
        known = lists_of[task]["new" if task in cases.seen else "items"].dropna()
        for row, customer in zip(lists, cases.customer_ids, strict=True):
            best = known.get(customer, [])
            row[: len(best)] = best
        return lists

    return answer_with_lists(data, log.tasks, make_lists)


METHODS = [
    Method(
        name, partial(fit, name), seeds=True, tuned="when training ends, on validation events", packages=("rectools",)
    )
    for name in NAMES
]
