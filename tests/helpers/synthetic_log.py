# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A small event log with everything that logs have, its schema, and what the tests of preparation do with it."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from modeling_mcm.data import EventSchema
from modeling_mcm.preparation import prepare

VALIDATION, TEST = datetime(2024, 3, 1), datetime(2024, 4, 1)
SCHEMA = {
    "name": "synthetic",
    "customer": "user",
    "time": "at",
    "visit": "session",
    "token_type": "kind",
    "features": [
        {"name": "token_type", "column": "kind"},
        {"name": "type", "column": "item", "min_count": 2},
        {"name": "a.b", "column": "group"},
        {"name": "Type", "column": "flag"},
        {"name": "price", "kind": "numeric", "bins": 5},
        {"name": "hour", "kind": "hour"},
        {"name": "weekday", "kind": "weekday"},
        {"name": "days_since_visit", "kind": "days_since_visit", "bins": 4},
    ],
    "profile": [{"name": "items", "column": "age"}, {"name": "income", "kind": "numeric", "bins": 3}],
    "tasks": ["type", "a.b", "token_type"],
    "target_token_types": ["buy"],
    "end_of_visit": "end_of_visit",
    "cutoffs": {"validation": VALIDATION.isoformat(), "test": TEST.isoformat()},
    "min_history": 3,
}


def make_log(seed=0, customers=12, visits=14):
    """A log in random order: visits of some events from January to May, some events without a visit, some gaps."""
    generator = np.random.default_rng(seed)
    events = []
    for customer in range(customers):
        for visit in range(visits):
            start = datetime(2024, 1, 1) + timedelta(seconds=int(generator.integers(0, 150 * 86400)))
            for _ in range(int(generator.integers(1, 5))):
                events.append(
                    {
                        "user": customer,
                        "at": start,
                        "session": visit if generator.random() < 0.8 else None,
                        "kind": ["view", "buy"][int(generator.integers(2))],
                        "item": float(generator.integers(12)) if generator.random() < 0.9 else None,
                        "group": "abc"[int(generator.integers(3))] if generator.random() < 0.9 else None,
                        "flag": bool(generator.integers(2)),
                        "price": round(float(generator.normal()), 2) if generator.random() < 0.8 else None,
                    }
                )
    return pd.DataFrame(events).sample(frac=1, random_state=seed).reset_index(drop=True)


def make_profile(customers=12):
    return pd.DataFrame(
        {"user": range(0, customers, 2), "age": ["old", "young", None] * (customers // 6), "income": 1.5}
    )


def schema_with(**changes):
    return EventSchema.from_dict({**SCHEMA, **changes})


def run(tmp_path, log=None, schema=None, name="out", **options):
    schema = schema or schema_with()
    log = make_log() if log is None else log
    profile = make_profile() if schema.profile else None
    return prepare(log, schema, tmp_path / name, profile=profile, **options)


def read_rows(tmp_path, name="out"):
    files = sorted((tmp_path / name).glob("customers-*.parquet"))
    return {row["customer_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def of_customer(log, customer):
    events = log[log.user == customer].drop(columns="user")
    return events.astype(object).where(events.notna(), None).to_dict("records")
