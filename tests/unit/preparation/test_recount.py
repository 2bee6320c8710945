# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts over training customers, after an update and after a deletion, are those of the customers that are left."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from modeling_mcm.data import NO_CUTOFFS, EventSchema, PreparedData
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
    """What is counted in a data set: measures, and popularity by value."""
    rows = pq.read_table(folder / "popularity.parquet", columns=["feature", "value", "count", "target_count"])
    return PreparedData(folder).manifest.measures, {tuple(row.values()) for row in rows.to_pylist()}


@pytest.mark.parametrize("order", [None, "place"], ids=["times", "places"])
def test_the_measures_are_those_of_a_loop(tmp_path, order):
    log, schema = make_log(), schema_with(**(CHOICES["closed visits"] if order is None else NO_TIMES))
    if order is None:
        targets = log[(log["at"] < "2024-03-01") & (log["kind"] == "buy")]
    else:  # the last two visits with a target are held out
        targets = log[log["kind"] == "buy"].dropna(subset=["item", "group"], how="all")
        last = targets.groupby("user")["session"].transform(lambda of_user: sorted(set(of_user))[-2])
        targets = targets[targets["session"] < last]
    targets = targets.dropna(subset=["item", "group"], how="all")
    visits = targets.groupby("user")["session"].nunique()
    moments = targets.groupby(["user", "session", *(["at"] if order is None else [])])
    expected = {"customers": len(visits), "one_visit": int((visits == 1).sum()), "visits": int(visits.sum())}
    expected |= {"moments": moments.ngroups, "targets": len(targets)}
    assert prepare(log, schema, tmp_path / "data").measures == expected
    assert expected["moments"] > expected["visits"] or order


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
    measures, _ = counted(tmp_path / "full")
    assert counted(tmp_path / "data") == counted(tmp_path / "full") and found.measures == measures
    assert (measures != first.measures) == bool(measures) == (schema.cutoffs != NO_CUTOFFS)


@pytest.mark.parametrize("changes", CHOICES.values(), ids=CHOICES)
def test_after_a_deletion_they_are_those_of_the_others(tmp_path, changes):
    log, schema = make_log(), schema_with(**changes)
    prepare(log, schema, tmp_path / "data", rows_per_shard=4)
    prepare(log[log["user"] != "u2"], schema, tmp_path / "others")
    before = counted(tmp_path / "data")
    assert forget_in_prepared(tmp_path / "data", {"u2"}) == 1
    assert counted(tmp_path / "data") == counted(tmp_path / "others") != before
    assert "only 2" in [value for _, value, *_ in before[1]]
    assert "only 2" not in [value for _, value, *_ in counted(tmp_path / "data")[1]]


@pytest.mark.parametrize("change", ["update", "forget"])
def test_what_was_computed_from_the_data_is_ignored_and_does_not_outlive_a_change(tmp_path, change):
    """The page's scores would be out of date."""
    (tmp_path / "log").mkdir()
    log, left = make_log(), tmp_path / "data" / "page.parquet"
    log[log["place"] < 25].to_parquet(tmp_path / "log" / "1.parquet")
    prepare(tmp_path / "log", schema_with(), tmp_path / "data")
    left.write_bytes(b"pairs")
    (tmp_path / "data" / "notes.parquet").write_bytes(b"a person's own")
    assert len(PreparedData(tmp_path / "data").rows) == 9 and left.is_file()
    if change == "update":
        log[log["place"] >= 25].to_parquet(tmp_path / "log" / "2.parquet")
        assert update(tmp_path / "data", tmp_path / "log").customers > 0
    else:
        assert forget_in_prepared(tmp_path / "data", {"u2"}) == 1
        assert (tmp_path / "data" / "notes.parquet").is_file()
    assert not left.exists()
