# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out instead of dates, and logs whose events have an order and no time."""

from datetime import datetime

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from synthetic_log import (
    SCHEMA,
    TEST,
    VALIDATION,
    check_rows,
    check_same_training_period,
    find_customer,
    load_extractor,
    make_log,
    make_profile,
    make_profiles,
    read_rows,
)

from modeling_mcm.data import NO_CUTOFFS, EventSchema, PreparedData, load_prepared, read_schema
from modeling_mcm.evaluation.cases import find_cases
from modeling_mcm.preparation import prepare

DAY = 86_400
ORDERED = yaml.safe_load("""
customer: user
order: place
features: [{name: item}, {name: price, kind: numeric, bins: 4}]
tasks: [item]
cutoffs: leave_one_out
min_history: 1
""")


def schema_with(**changes):
    return EventSchema.from_dict({**ORDERED, **changes})


def make_ordered(seed=0, customers=10):
    """Purchases in random order of the rows; some share their place, some customers have one or two events."""
    generator = np.random.default_rng(seed)
    events = []
    for customer in range(customers):
        number = customer + 1 if customer < 3 else int(generator.integers(4, 30))
        places = np.cumsum(generator.integers(3, size=number)) if customer >= 3 else np.arange(number)
        for place in places * 1000 - 5:
            item = float(generator.integers(9)) if customer < 3 or generator.random() < 0.8 else None
            price = float(generator.normal())
            events.append({"user": customer, "place": int(place), "item": item, "price": price})
    return pd.DataFrame(events).sample(frac=1, random_state=seed).reset_index(drop=True)


def check_ends(row, tasks):
    """The last visit with a label is the test, the one before the validation; whole visits."""
    has_label = np.any([row[f"task_{task}"] for task in tasks], axis=0)
    visits = np.array(row["visits"])
    target_visits = np.unique(visits[has_label])
    if len(target_visits) < 3:
        assert row["validation_end"] == row["test_end"] == len(visits)
        return
    starts = [np.flatnonzero(visits == visit)[0] for visit in target_visits[-2:]]
    assert [row["validation_end"], row["test_end"]] == starts


@pytest.mark.parametrize("seed", range(3))
def test_the_last_visits_of_a_log_with_times_are_held_out(tmp_path, seed):
    log, profile = make_log(seed=seed), make_profile()
    log["at"] += pd.to_timedelta(np.random.default_rng(seed).integers(0, 400_000, len(log)), unit="s")  # they overlap
    short = log["user"].isin([3, 5]) & (log["session"] != 1)
    log = log[~short]
    schema = EventSchema.from_dict(SCHEMA | {"cutoffs": "leave_one_out"})
    manifest = prepare(log, schema, tmp_path / "out", profile=profile, rows_per_shard=5)
    rows = check_rows(tmp_path, log, make_profiles(profile))
    for row in rows.values():
        check_ends(row, ["type", "a.b"])
    counts = manifest.counts
    ends = {name: sum(row[name] for row in rows.values()) for name in ("validation_end", "test_end")}
    assert 0 < ends["validation_end"] < ends["test_end"] < counts["events"] + counts["ends_of_visit"]
    stored = load_prepared(tmp_path / "out")
    for cutoff in ("validation", "test"):
        cases = find_cases(stored, cutoff, schema.min_history)
        assert len(cases) == counts[f"{cutoff}_cases"] > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("end_of_visit", [None, "end"])
def test_a_log_without_times_has_an_order(tmp_path, seed, end_of_visit):
    log = make_ordered(seed).astype({"place": str} if seed == 2 else {})
    prepare(log, schema_with(end_of_visit=end_of_visit), tmp_path / "out")
    rows = check_rows(tmp_path, log)
    for customer, row in rows.items():
        check_ends(row, ["item"])
        events = log[log["user"] == int(customer)].astype({"place": int}).sort_values("place")
        visits = np.array(row["visits"])
        np.testing.assert_array_equal(row["times"], visits * DAY)
        assert visits[-1] + 1 == events["place"].nunique()
        of_first = events.loc[events["place"] == events["place"].min(), "price"]
        assert row["value_price"][0] in of_first.astype("float32").tolist()
    assert rows["2"]["validation_end"] == 1 + bool(end_of_visit) and rows["1"]["test_end"] == len(rows["1"]["visits"])


def test_nothing_fitted_depends_on_what_is_held_out(tmp_path):
    log = make_ordered()
    changed = log.copy()
    for user, events in log.groupby("user"):
        labelled = np.unique(events.loc[events["item"].notna(), "place"])
        if len(labelled) >= 3:
            held = (log["user"] == user) & (log["place"] >= labelled[-2])
            changed.loc[held & log["item"].notna(), "item"] = 77.0
            changed.loc[held, "price"] = 1e6
    assert (changed["item"] == 77).sum() > 10
    for name, table in (("a", log), ("b", changed)):
        prepare(table, schema_with(), tmp_path / name)
    check_same_training_period(tmp_path)
    assert "77" in load_extractor(tmp_path, "b").vocabularies["item"]
    assert "77" not in PreparedData(tmp_path / "b").extractor.vocabularies["item"]


@pytest.mark.parametrize("form", ["frame", "arrow", "parquet", "csv"])
def test_the_order_of_the_rows(tmp_path, form):
    log = make_ordered().drop(columns="place").astype({"item": "Int64"})
    source = pa.Table.from_pandas(log) if form == "arrow" else log
    if form in ("parquet", "csv"):
        source = tmp_path / f"log.{form}"
        getattr(log, f"to_{form}")(source, index=False)
    prepare(source, schema_with(order="rows"), tmp_path / "out")
    rows = check_rows(tmp_path, log)
    for customer, row in rows.items():
        number = (log["user"] == int(customer)).sum()
        assert row["visits"] == list(range(number)) and row["times"] == [DAY * place for place in range(number)]


def test_rows_without_an_order_are_refused(tmp_path):
    make_ordered().to_parquet(tmp_path / "log.parquet")
    table = ibis.duckdb.connect().read_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="`order: rows` needs files, a data frame.*name it as `order`"):
        prepare(table, schema_with(order="rows"), tmp_path / "out")


def test_a_log_with_times_is_not_read_by_a_checkpoint_of_an_order(tmp_path):
    prepare(make_ordered(), schema_with(), tmp_path / "out")
    extractor = load_extractor(tmp_path)
    assert read_schema(extractor).cutoffs == NO_CUTOFFS
    timed = schema_with(order=None, time="at", cutoffs=SCHEMA["cutoffs"])
    with pytest.raises(ValueError, match="`order` is None in the schema"):
        prepare(make_log(), timed, tmp_path / "other", feature_extractor=extractor)


BAD_LOGS = {
    "no place": (lambda log: log.assign(place=pd.array([pd.NA, *log["place"][1:]], "Int64")), "'place' is null in 1"),
    "nothing to hold out": (lambda log: log[log["user"] < 2], "No customer has 3 visits.*set dates"),
}


@pytest.mark.parametrize(("change", "message"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_bad_log_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        prepare(change(make_ordered()), schema_with(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_raw_events_without_a_place_are_refused(tmp_path):
    prepare(make_ordered(), schema_with(), tmp_path / "out")
    extractor = load_extractor(tmp_path)
    for place in (None, 1.5, "1.5", True, "x"):
        with pytest.raises(ValueError, match="column 'place': found .*, expected a whole number"):
            extractor.encode({"events": [{"place": place, "item": 1}]})


def test_a_visit_over_a_cutoff_is_one_where_both_parts_are_read(tmp_path):
    log, cut = make_log(), 0
    log["at"] += pd.to_timedelta(np.random.default_rng(0).integers(0, 400_000, len(log)), unit="s")
    log["session"] = log["at"].dt.dayofyear // 9  # visits of days, one after the other
    prepare(log, EventSchema.from_dict(SCHEMA | {"profile": []}), tmp_path / "data")
    extractor = load_extractor(tmp_path, "data")
    for customer, row in read_rows(tmp_path, "data").items():
        own = log[log["user"] == int(customer)]
        row = {name: np.array(value) if isinstance(value, list) else value for name, value in row.items()}
        whole = extractor.encode({"events": find_customer(log, int(customer))})
        for time, end in ((VALIDATION, "validation_end"), (TEST, "test_end"), (datetime(2025, 1, 1), "")):
            before = find_customer(own[own["at"] < time], int(customer))
            part = {name: value[: row.get(end)] for name, value in row.items() if isinstance(value, np.ndarray)}
            expected, second = extractor({"events": before}), int(np.datetime64(time, "s").astype(int)) - 1
            at_time = [extractor.pad([each], as_of=[second]) for each in (row, whole)]
            for found in (extractor.pad([part]), *at_time):
                assert all(torch.equal(found[name], value) for name, value in expected.items()), (customer, time)
            cut += own.groupby("session")["at"].agg(lambda times, time=time: times.min() < time <= times.max()).sum()
    assert cut > 5
