# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The best ranking of the synthetic shop, whose customers' law is known. It knows each customer's taste, which the log
does not tell, so no model reaches it."""

from pathlib import Path

import numpy as np

from logs import SHOP_CUSTOMERS, Log
from methods import FIRST_LABEL, TOP, Method, answer_with_lists
from modeling_mcm.data import PreparedData
from synthetic import make_click_log
from synthetic_truth import session_gains

BEST = "best possible"


def fit(log: Log, data: PreparedData, seed: int, folder: Path):
    """Draws the log again, whose customers it knows."""
    if log.name != "synthetic_shop":
        return None
    shop, labels = make_click_log(customers=SHOP_CUSTOMERS), {}
    for task, number in {"item": shop.settings.items, "category": shop.settings.categories}.items():
        ids = {value: index for index, value in enumerate(data.extractor.vocabularies[task], FIRST_LABEL)}
        labels[task] = np.array([ids.get(f"{task}-{label}", FIRST_LABEL - 1) for label in range(number)])

    def make_lists(cases, task):
        customers = np.array(cases.customer_ids).astype(int)
        gains = dict(zip(labels, session_gains(shop, customers, cases.as_of, labels["item"]), strict=True))[task]
        known = labels[task] >= FIRST_LABEL
        return labels[task][known][np.argsort(-gains[:, known], axis=1)[:, :TOP]]

    return answer_with_lists(data, log.tasks, make_lists)


METHODS = [Method(BEST, fit)]
