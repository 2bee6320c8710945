# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A small event log with everything that logs have, its schema, and what the tests of preparation do with it."""

from datetime import datetime, timedelta

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.engine import open_engine
from modeling_mcm.preparation.tables import open_rows

VALIDATION, TEST = datetime(2024, 3, 1), datetime(2024, 4, 1)
SCHEMA = yaml.safe_load("""
name: synthetic
customer: user
time: at
visit: session
token_type: kind
features:
- {name: token_type, column: kind}
- {name: type, column: item, min_count: 2}
- {name: a.b, column: group}
- {name: Type, column: flag}
- {name: price, kind: numeric, bins: 5}
- {name: hour, kind: hour}
- {name: weekday, kind: weekday}
- {name: days_since_visit, kind: days_since_visit, bins: 4}
profile:
- {name: items, column: age}
- {name: income, kind: numeric, bins: 3}
tasks: [type, a.b, token_type]
target_token_types: [buy]
end_of_visit: end_of_visit
min_history: 3
""")
SCHEMA["cutoffs"] = {"validation": VALIDATION.isoformat(), "test": TEST.isoformat()}


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


def write_months(log, folder):
    """The log in folders by month; the column of the month is in the folders' names alone."""
    for month, part in log.groupby(log["at"].dt.month):
        with fsspec.open(f"{folder}/month={month:02}/part.parquet", "wb", auto_mkdir=True) as file:
            part.to_parquet(file, index=False)


def schema_with(**changes):
    return EventSchema.from_dict({**SCHEMA, **changes})


def run(tmp_path, log=None, schema=None, name="out", **options):
    schema = schema or schema_with()
    log = make_log() if log is None else log
    profile = make_profile() if schema.profile else None
    return prepare(log, schema, tmp_path / name, profile=profile, **options)


def prepare_items(folder, rows, columns, **schema):
    """Prepares events, whose task is the item, in a new folder; gives the data set."""
    schema = {"customer": "user", "tasks": ["item"], "min_history": 1} | schema
    prepare(pd.DataFrame(rows, columns=columns), EventSchema.from_dict(schema), folder / "data")
    return PreparedData(folder / "data")


def read_log(source, schema, folder, engine="duckdb"):
    """The events that preparation reads of a log, in an order of their own, and how many rows were left out."""
    with open_engine(engine, folder) as opened:
        table, dropped = open_rows(source, opened, schema, folder)
        events = table.to_pyarrow()
    return events.sort_by([(name, "ascending") for name in events.column_names]), dropped


def read_rows(tmp_path, name="out"):
    files = sorted((tmp_path / name).glob("customers-*.parquet"))
    return {row["customer_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def find_customer(log, customer):
    return records(log[log.user == customer].drop(columns="user"))


def records(table):
    """The rows of a table as Python values by column, None where one is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def make_profiles(table):
    """The profiles of a table by customer, as the feature extractor takes them."""
    return {str(row.pop("user")): row for row in records(table)}


def load_extractor(tmp_path, name="out"):
    return MCMFeatureExtractor.from_pretrained(tmp_path / name / "feature_extractor")


def check_rows(tmp_path, log, profiles=None, name="out"):
    """The rows of a data set are those of its feature extractor; gives them."""
    extractor, rows = load_extractor(tmp_path, name), read_rows(tmp_path, name)
    for customer, row in rows.items():
        known = {"events": find_customer(log, int(customer)), "profile": (profiles or {}).get(customer)}
        encoded = extractor.encode({"customer_id": customer, **known})
        del encoded["label_columns"]  # of a person's question, not of a log
        assert set(encoded) == {name for name in row if not name.startswith("unseen_")} - {
            "validation_end",
            "test_end",
        }
        np.testing.assert_equal({name: row[name] for name in encoded}, encoded, err_msg=customer)
    return rows


def check_same_training_period(tmp_path):
    """What was fitted and counted, and all rows up to the validation cutoff, are the same in the data sets a and b."""
    one, other = (PreparedData(tmp_path / name) for name in "ab")
    assert one.extractor.values_digest == other.extractor.values_digest
    assert one.extractor.to_dict() == other.extractor.to_dict()
    rows, others = ({row["customer_id"]: row for row in data.rows} for data in (one, other))
    for customer, row in rows.items():
        end = row["validation_end"]
        assert others[customer]["validation_end"] == end
        for column, value in row.items():
            if isinstance(value, list):
                assert others[customer][column][:end] == value[:end], column
            elif column.startswith("profile_"):
                assert others[customer][column] == value
