# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts over training customers, after an update and after a deletion, are those of the customers that are left."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from modeling_mcm.data import NO_CUTOFFS, EventSchema, PreparedData
from modeling_mcm.data.dataset import FOLLOWERS_FILE
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.forget import forget_in_prepared
from modeling_mcm.preparation.update import update

FEATURES = [{"name": "kind"}, {"name": "item"}, {"name": "group"}, {"name": "hour", "kind": "hour"}]
SCHEMA = {"customer": "user", "time": "at", "token_type": "kind", "features": FEATURES, "tasks": ["item", "group"]}
SCHEMA |= {"target_token_types": ["buy"], "cutoffs": {"validation": "2024-03-01", "test": "2024-04-01"}}
SCHEMA |= {"min_history": 2, "max_events": 20}
NO_TIMES = {"time": None, "order": "place", "cutoffs": "leave_one_out", "visit": "session", "features": FEATURES[:3]}
CHOICES = {
    "times": {},
    "closed visits": {"end_of_visit": "end_of_visit", "visit": "session"},
    "everything is a target": {"target_token_types": [], "tasks": ["item", "group", "kind"]},
    "places in visits": NO_TIMES,
    "nothing split": {"cutoffs": NO_CUTOFFS},
}


def make_log(customers=9, seed=0):
    """Mostly one event at a time, of few items, some of which one customer alone has; labels are missing at times."""
    generator = np.random.default_rng(seed)
    events = []
    for customer in range(customers):
        at = datetime(2024, 1, 1)
        for place in range(int(generator.integers(20, 45))):
            at += timedelta(hours=int(generator.choice([0, 40, 200])))
            item = f"item {generator.integers(7)}" if place % 9 else f"only {customer}"
            kind = "buy" if generator.random() < 0.8 else "view"
            item = item if generator.random() < 0.9 else None
            group = "abc"[int(generator.integers(3))] if generator.random() < 0.9 else None
            events.append((f"u{customer}", at, place, place // 2, kind, item, group))
    return pd.DataFrame(events, columns=["user", "at", "place", "session", "kind", "item", "group"])


def schema_with(**changes):
    return EventSchema.from_dict({**SCHEMA, **changes})


def counted(folder):
    """What is counted in a data set, with labels as values: measures, followers, popularity."""
    data = PreparedData(folder)
    pairs = set()
    if (folder / FOLLOWERS_FILE).is_file():
        for row in pq.read_table(folder / FOLLOWERS_FILE).to_pylist():
            values = data.extractor.decode_labels(row["task"], [row["label"], row["follower"]])
            pairs.add((row["task"], *values, row["weight"], row["customers"]))
    columns = ["feature", "value", "count", "target_count"]
    rows = pq.read_table(folder / "popularity.parquet", columns=columns).to_pylist()
    return data.manifest.measures, pairs, {tuple(row.values()) for row in rows}


@pytest.mark.parametrize("changes", CHOICES.values(), ids=CHOICES)
def test_after_an_update_they_are_those_of_a_full_preparation(tmp_path, changes):
    log, schema = make_log(), schema_with(**changes)
    late = (log["user"] == "u3") | (log["place"] > 25) | (np.random.default_rng(1).random(len(log)) < 0.1)
    (tmp_path / "log").mkdir()
    log[~late].to_parquet(tmp_path / "log" / "1.parquet")
    first = prepare(tmp_path / "log", schema, tmp_path / "data", rows_per_shard=4)
    log[late].to_parquet(tmp_path / "log" / "2.parquet")
    found = update(tmp_path / "data", tmp_path / "log").manifest
    extractor = PreparedData(tmp_path / "data").extractor
    prepare(tmp_path / "log", schema, tmp_path / "full", feature_extractor=extractor)
    measures, followers, _ = counted(tmp_path / "full")
    assert counted(tmp_path / "data") == counted(tmp_path / "full") and found.measures == measures
    is_split = schema.cutoffs != NO_CUTOFFS
    assert (len(followers) > 30) == (measures != first.measures) == bool(measures) == is_split


@pytest.mark.parametrize("changes", CHOICES.values(), ids=CHOICES)
def test_after_a_deletion_they_are_those_of_the_others(tmp_path, changes):
    log, schema = make_log(), schema_with(**changes)
    prepare(log, schema, tmp_path / "data", rows_per_shard=4)
    prepare(log[log["user"] != "u2"], schema, tmp_path / "others")
    before = counted(tmp_path / "data")
    assert forget_in_prepared(tmp_path / "data", {"u2"}) == 1
    assert counted(tmp_path / "data") == counted(tmp_path / "others") != before
    told = [value for row in [*before[1], *before[2]] for value in row]
    assert "only 2" in told
    assert "only 2" not in [value for part in counted(tmp_path / "data")[1:] for row in part for value in row]
