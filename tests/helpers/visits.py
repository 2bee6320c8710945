# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared rows of customers whose visits are written down as days and labels, for the tests of evaluation."""

import datasets
import numpy as np

from modeling_mcm.data.cases import IGNORED
from modeling_mcm.events_mcm import SECONDS_PER_DAY

VALIDATION, TEST = 100, 200  # days
LABELS = 12
UNSEEN = IGNORED - 1  # id of the unknown label
CUTOFFS = {"validation": VALIDATION, "test": TEST}


def event_rows(customers, *tasks):
    """Prepared rows of customers from events (day, visit, label of each task)."""
    every, names = customers.values(), ["times", "visits", *(f"task_{task}" for task in tasks)]
    columns = {name: [[event[place] for event in events] for events in every] for place, name in enumerate(names)}
    columns["times"] = [[day * SECONDS_PER_DAY for day in days] for days in columns["times"]]
    columns |= {f"unseen_{task}": [[0] * len(events) for events in every] for task in tasks}
    for name, end in CUTOFFS.items():
        columns[f"{name}_end"] = [sum(event[0] < end for event in events) for events in every]
    return datasets.Dataset.from_dict({"customer_id": [*customers]} | columns)


def prepared_rows(customers):
    """Prepared rows of customers from their visits."""
    return event_rows(
        {
            name: [(day, visit, label) for visit, (day, labels) in enumerate(visits) for label in labels]
            for name, visits in customers.items()
        },
        "brand",
    )


def random_customers(seed, number=30, fewest=1, most=30):
    """Random visits, with missing (0) and unknown (1) labels, before, between and after the cutoffs."""
    generator = np.random.default_rng(seed)
    return {
        f"customer {place}": [
            (int(day), generator.integers(0, LABELS, size=generator.integers(1, 6)).tolist())
            for day in np.unique(generator.integers(0, 300, size=generator.integers(fewest, most)))
        ]
        for place in range(number)
    }


def horizon(days, cutoff):
    """From a cutoff of the logs of `prepared_rows`, whose days count from 1970."""
    return days, CUTOFFS[cutoff] * SECONDS_PER_DAY
