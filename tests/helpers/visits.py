# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared rows of customers whose visits are written down as days and labels, for the tests of evaluation."""

import numpy as np
import pyarrow as pa

from modeling_mcm.data.cases import IGNORED
from modeling_mcm.evaluation.cases import Horizon
from modeling_mcm.events_mcm import SECONDS_PER_DAY

VALIDATION, TEST = 100, 200  # days
LABELS = 12
UNSEEN = IGNORED - 1  # id of the unknown label
CUTOFFS = {"validation": VALIDATION, "test": TEST}

Visit = tuple[int, list[int]]  # day, labels of its events


def prepared_rows(customers: dict[str, list[Visit]]) -> pa.Table:
    days = [[day for day, labels in visits for _ in labels] for visits in customers.values()]
    places = [[place for place, visit in enumerate(visits) for _ in visit[1]] for visits in customers.values()]
    labels = [[label for visit in visits for label in visit[1]] for visits in customers.values()]
    return pa.table(
        {
            "customer_id": pa.array(customers, pa.string()),
            "times": pa.array([[day * SECONDS_PER_DAY for day in row] for row in days], pa.list_(pa.int64())),
            "visits": pa.array(places, pa.list_(pa.int32())),
            "task_brand": pa.array(labels, pa.list_(pa.int32())),
            "unseen_brand": pa.array([[0] * len(row) for row in labels], pa.list_(pa.int32())),
            "validation_end": pa.array([sum(day < VALIDATION for day in row) for row in days], pa.int32()),
            "test_end": pa.array([sum(day < TEST for day in row) for row in days], pa.int32()),
        }
    )


def random_customers(seed: int, number: int = 30, fewest: int = 1, most: int = 30) -> dict[str, list[Visit]]:
    """Random visits, with missing (0) and unknown (1) labels, before, between and after the cutoffs."""
    generator = np.random.default_rng(seed)
    return {
        f"customer {place}": [
            (int(day), generator.integers(0, LABELS, size=generator.integers(1, 6)).tolist())
            for day in np.unique(generator.integers(0, 300, size=generator.integers(fewest, most)))
        ]
        for place in range(number)
    }


def horizon(days: float, cutoff: str) -> Horizon:
    """From a cutoff of the logs of `prepared_rows`, whose days count from 1970."""
    return Horizon(days, CUTOFFS[cutoff] * SECONDS_PER_DAY)
