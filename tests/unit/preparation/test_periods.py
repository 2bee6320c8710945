# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out instead of dates, and logs whose events have an order and no time."""

import json
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from synthetic_log import (
    SCHEMA,
    check_rows,
    check_same_training_period,
    load_extractor,
    make_log,
    make_profile,
    make_profiles,
    read_rows,
)

from modeling_mcm.data import NO_CUTOFFS, EventSchema, read_schema
from modeling_mcm.evaluation.cases import find_cases
from modeling_mcm.preparation import prepare
from modeling_mcm.processing_mcm import MCMFeatureExtractor

ROOT = Path(__file__).parents[3]
DAY = 86_400
LEFT_OUT = {"cutoffs": "leave_one_out"}
ORDERED = {
    "customer": "user",
    "order": "place",
    "features": [{"name": "item"}, {"name": "price", "kind": "numeric", "bins": 4}],
    "tasks": ["item"],
    "cutoffs": "leave_one_out",
    "min_history": 1,
}


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
    schema = EventSchema.from_dict({**SCHEMA, **LEFT_OUT})
    manifest = prepare(log, schema, tmp_path / "out", profile=profile, rows_per_shard=5)
    rows = check_rows(tmp_path, log, make_profiles(profile))
    for row in rows.values():
        check_ends(row, ["type", "a.b"])
    counts = manifest.counts
    ends = {name: sum(row[name] for row in rows.values()) for name in ("validation_end", "test_end")}
    assert 0 < ends["validation_end"] < ends["test_end"] < counts["events"] + counts["ends_of_visit"]
    table = pq.ParquetDataset(sorted((tmp_path / "out").glob("customers-*"))).read()
    for cutoff in ("validation", "test"):
        cases = find_cases(table, cutoff, schema.min_history)
        assert len(cases) == counts[f"{cutoff}_cases"] > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("end_of_visit", [None, "end"])
def test_a_log_without_times_has_an_order(tmp_path, seed, end_of_visit):
    log = make_ordered(seed)
    prepare(log, schema_with(end_of_visit=end_of_visit), tmp_path / "out")
    rows = check_rows(tmp_path, log)
    for customer, row in rows.items():
        check_ends(row, ["item"])
        events = log[log["user"] == int(customer)].sort_values("place")
        visits = np.array(row["visits"])
        np.testing.assert_array_equal(row["times"], visits * DAY)
        assert visits[-1] + 1 == events["place"].nunique()
        first = row["feature_price"][0]
        edges = load_extractor(tmp_path).bins["price"]
        of_first = events.loc[events["place"] == events["place"].min(), "price"]
        assert first in 2 + np.searchsorted(edges, of_first, side="right")
    assert rows["2"]["validation_end"] == 1 + bool(end_of_visit) and rows["1"]["test_end"] == len(rows["1"]["visits"])


def test_worked_example_of_the_documentation(tmp_path):
    text = (ROOT / "docs" / "event_schema.md").read_text()
    text = text[text.index("These are ann's events") : text.index("and `validation_end` is 2, `test_end` is 3")]
    log, expected = (tables_of(part) for part in text.split("With `films.yaml`"))
    prepare(log, EventSchema.from_yaml(ROOT / "configuration" / "schemas" / "films.yaml"), tmp_path / "out")
    row, vocabularies = read_rows(tmp_path)["ann"], load_extractor(tmp_path).vocabularies
    for _, column, *values in expected.itertuples():
        name = column.strip("`")
        labels = ["[missing]", "[unknown]", *vocabularies[name.removeprefix("feature_")]]
        assert [labels[label] for label in row[name]] == values, name
    assert (row["validation_end"], row["test_end"]) == (2, 3)


def tables_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return pd.DataFrame(cells, columns=header)


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
    assert "77" not in load_extractor(tmp_path, "b").vocabularies["item"]


def test_visits_of_a_log_without_times(tmp_path):
    log = make_ordered().assign(basket=lambda table: table["place"] // 5000)
    prepare(log, schema_with(visit="basket"), tmp_path / "out")
    for row in check_rows(tmp_path, log).values():
        check_ends(row, ["item"])


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
    prepare(log[::-1], schema_with(order="rows"), tmp_path / "reversed")
    assert read_rows(tmp_path, "reversed") != rows


def test_rows_without_an_order_are_refused(tmp_path):
    log = make_ordered()
    connection = ibis.duckdb.connect()
    log.to_parquet(tmp_path / "log.parquet")
    connection.raw_sql(f"CREATE TABLE log AS SELECT * FROM read_parquet('{tmp_path / 'log.parquet'}')")
    with pytest.raises(ValueError, match="`order: rows` needs files, a data frame.*name it as `order`"):
        prepare(connection.table("log"), schema_with(order="rows"), tmp_path / "out")


@pytest.mark.parametrize("order", ["place", "rows"])
def test_a_raw_log_is_read_by_a_checkpoint(tmp_path, order):
    log = make_ordered()
    prepare(log, schema_with(order=order), tmp_path / "out")
    extractor = load_extractor(tmp_path)
    schema = read_schema(extractor)
    assert (schema.order, schema.time, schema.cutoffs) == (order, None, NO_CUTOFFS)
    prepare(log.assign(place=log["place"] + 10**12), schema, tmp_path / "again", feature_extractor=extractor)
    again = read_rows(tmp_path, "again")
    for customer, row in read_rows(tmp_path).items():
        ends = dict.fromkeys(("validation_end", "test_end"), len(row["visits"]))
        assert again[customer] == row | ends
    timed = schema_with(order=None, time="at", cutoffs=SCHEMA["cutoffs"])
    with pytest.raises(ValueError, match="`order` is None in the schema"):
        prepare(make_log(), timed, tmp_path / "other", feature_extractor=extractor)


def test_the_latest_events_of_each_period_are_kept(tmp_path):
    log = make_ordered()
    schema = schema_with(max_events=4, max_events_per_customer=4)
    counts = prepare(log, schema, tmp_path / "out").counts
    prepare(log, schema_with(), tmp_path / "all")
    assert counts["dropped_excess"] > 0
    whole = read_rows(tmp_path, "all")
    # Prices tell the events of a customer apart. Ids do not: they are fitted on what is kept.
    place_of = dict(zip(log["price"].astype("float32"), log["place"], strict=True))
    for customer, row in read_rows(tmp_path).items():
        places, all_places = ([place_of[price] for price in each["value_price"]] for each in (row, whole[customer]))
        bounds = [[0, each["validation_end"], each["test_end"], len(each["times"])] for each in (whole[customer], row)]
        for (start, end), (first, last) in zip(*map(pairwise, bounds), strict=True):
            assert last - first == min(4, end - start)
            assert places[first:last] == all_places[end - (last - first) : end]


BAD_LOGS = {
    "no place": (lambda log: log.assign(place=pd.array([pd.NA, *log["place"][1:]], "Int64")), "'place' is null in 1"),
    "nothing to hold out": (lambda log: log[log["user"] < 2], "No customer has 3 visits.*set dates"),
}


@pytest.mark.parametrize(("change", "message"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_bad_log_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        prepare(change(make_ordered()), schema_with(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_places_may_be_text(tmp_path):
    log = make_ordered()
    prepare(log, schema_with(), tmp_path / "numbers")
    text = log.astype({"place": str})
    prepare(text, schema_with(), tmp_path / "out")
    assert check_rows(tmp_path, text) == read_rows(tmp_path, "numbers")


def test_raw_events_without_a_place_are_refused(tmp_path):
    prepare(make_ordered(), schema_with(), tmp_path / "out")
    extractor = load_extractor(tmp_path)
    for place in (None, 1.5, "1.5", True, "x"):
        with pytest.raises(ValueError, match="column 'place': found .*, expected a whole number"):
            extractor.encode({"events": [{"place": place, "item": 1}]})
    assert extractor.encode_actions({"item": [1]}).shape == (1, 3)
    with pytest.raises(ValueError, match="'h' has kind 'hour', which is computed from the time"):
        fitted = {"vocabularies": extractor.vocabularies, "bins": extractor.bins}
        features = [*extractor.features, {"name": "h", "kind": "hour"}]
        MCMFeatureExtractor(**extractor.to_dict() | fitted | {"features": features})


MISTAKES = {
    "neither": ({"order": None}, "no `time`.*`order`"),
    "both": ({"time": "at"}, "`time` and `order`.*keep one"),
    "dates": ({"cutoffs": SCHEMA["cutoffs"]}, "can't be dates; write `cutoffs: leave_one_out`"),
    "hours": ({"features": [{"name": "item"}, {"name": "h", "kind": "hour"}]}, "'h' has kind 'hour'.*remove"),
    "duplicates": ({"order": "rows", "on_duplicate": "drop"}, "rows at two places are two events"),
    "other cutoffs": ({"cutoffs": "leave_two_out"}, "'leave_two_out'.*leave_one_out"),
    "order is no text": ({"order": 1}, "`order` is 1"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_named_with_its_fix(change, message):
    with pytest.raises(ValueError, match=message):
        schema_with(**change)


def test_what_needs_a_date_says_so():
    schema = schema_with()
    assert EventSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    with pytest.raises(ValueError, match="split by `cutoffs: leave_one_out`.*prepare the log with dates"):
        schema.cutoff("validation")
    assert schema.scoring_time("validation") is None


def test_a_visit_over_a_cutoff_is_one_where_both_parts_are_read(tmp_path):
    generator, events = np.random.default_rng(0), []
    for customer in range(20):  # a visit a day, some of which go on after midnight
        for day in range(30):
            start = datetime(2024, 4, 1 if day < 15 else 2) + timedelta(
                days=day, hours=float(generator.uniform(14, 22))
            )
            for minutes in np.cumsum(generator.integers(1, 200, generator.integers(1, 5))).tolist():
                event = {"who": f"c{customer}", "when": start + timedelta(minutes=minutes), "basket": day}
                kind = {"action": ("view", "buy")[generator.integers(2)], "item": f"i{generator.integers(5)}"}
                events.append(event | kind)
    features = [{"name": "action"}, {"name": "item", "min_count": 2}, {"name": "hour", "kind": "hour"}]
    features += [{"name": "gap", "kind": "days_since_visit", "bins": 4}]
    cutoffs = {"validation": "2024-04-11", "test": "2024-04-24"}
    schema = {"customer": "who", "time": "when", "visit": "basket", "token_type": "action", "features": features}
    schema |= {"tasks": ["item"], "target_token_types": ["buy"], "end_of_visit": "close", "cutoffs": cutoffs}
    prepare(pa.Table.from_pylist(events), EventSchema.from_dict(schema), tmp_path / "data")
    rows, extractor, cut = read_rows(tmp_path, "data"), load_extractor(tmp_path, "data"), 0
    for customer, row in rows.items():
        own = [event for event in events if event["who"] == customer]
        row = {name: np.array(value) if isinstance(value, list) else value for name, value in row.items()}
        whole = extractor.encode({"events": own})
        for time, end in [
            (cutoffs["validation"], "validation_end"),
            (cutoffs["test"], "test_end"),
            ("2025-01-01", ""),
        ]:
            before = [event for event in own if event["when"] < datetime.fromisoformat(time)]
            part = {name: value[: row.get(end)] for name, value in row.items() if isinstance(value, np.ndarray)}
            expected, second = extractor({"events": before}), int(np.datetime64(time, "s").astype(int)) - 1
            at_time = [extractor.pad([each], as_of=[second]) for each in (row, whole)]
            for found in (extractor.pad([part]), *at_time):
                assert all(torch.equal(found[name], value) for name, value in expected.items()), (customer, time)
            cut += len(part["times"]) < len(row["times"]) and before[-1]["basket"] == own[len(before)]["basket"]
    assert cut > 5
