# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The best ranking of the synthetic shop, whose customers' law is known. It knows each customer's taste, which the log
does not tell, so no model reaches it."""

from pathlib import Path

import numpy as np
import torch

from logs import SHOP_CUSTOMERS, Log
from methods import Method, Ranker
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.ranking import TargetRanks
from synthetic import make_click_log
from synthetic_truth import session_gains

BEST = "best possible"


def fit(log: Log, data: PreparedData, seed: int, folder: Path) -> Ranker | None:
    """Draws the log again, whose customers it knows."""
    if log.name != "synthetic_shop":
        return None
    shop, vocabularies = make_click_log(customers=SHOP_CUSTOMERS), data.extractor.vocabularies

    def rank(cases):
        labels, values, lists = {}, {}, {}
        for task, number in {"item": shop.settings.items, "category": shop.settings.categories}.items():
            ids = {value: index for index, value in enumerate(vocabularies[task], FIRST_LABEL)}
            labels[task] = np.array([ids.get(f"{task}-{label}", FIRST_LABEL - 1) for label in range(number)])
        customers = np.array(cases.customer_ids).astype(int)
        gains_by_task = session_gains(shop, customers, data.schema.cutoff_seconds("test"), labels["item"])
        for (task, task_labels), gains in zip(labels.items(), gains_by_task, strict=True):
            scores = np.full((len(cases), len(vocabularies[task]) + FIRST_LABEL), -np.inf)
            known = task_labels >= FIRST_LABEL
            scores[:, task_labels[known]] = gains[:, known]
            ranks = TargetRanks(cases, task)
            ranks.add(np.arange(len(cases)), torch.from_numpy(scores))
            values[task], lists[task] = ranks.metrics((10,)), ranks.lists
        return values, lists

    return rank


METHODS = [Method(BEST, fit)]
