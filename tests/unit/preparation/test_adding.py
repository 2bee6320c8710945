# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A data set that days were added to is the data set of the whole log, and no event counts twice."""

import shutil

import numpy as np
import pandas as pd
import pytest
from synthetic_log import TEST, make_log, run, schema_with

from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import CUTOFFS
from modeling_mcm.data.dataset import END
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.refresh import add_events
from modeling_mcm.training.counting import Counts

DAYS = [pd.Timestamp("2024-05-24") + pd.Timedelta(days=day) for day in range(5)]


def make_days():
    """The log before five days, and the log of each day. The label 99 comes once a day from the second on, and 66 once
    a day after a single time before; 88 comes twice at once. Customers are new, and an event comes late."""
    log = make_log()
    seen = log.loc[log["at"] < TEST].iloc[:4].assign(item=[77.0, 77.0, 55.0, 66.0])  # the last two are too rare
    extra = [seen]
    for number, day in enumerate(DAYS):
        new = log.iloc[number * 7 : number * 7 + 4].assign(at=day + pd.Timedelta(hours=9), session=None, kind="buy")
        new["item"] = [99.0 if number else 77.0, 66.0, 88.0, float(number)]
        new["user"] = [number, 3, 3, 50 + number]
        extra += [new, new.iloc[2:3]] if number == 2 else [new.iloc[[0, 1, 3]]]
    log = pd.concat([log, *extra], ignore_index=True).sample(frac=1, random_state=1)
    parts = np.searchsorted(np.array(DAYS), log["at"].to_numpy(), side="right")
    first, *days = (log[parts == part] for part in range(len(DAYS) + 1))
    days[3] = pd.concat([days[3], days[1].head(1).assign(at=DAYS[1] - pd.Timedelta(hours=1))])  # of a day before
    return [first, *days]


PARTS = make_days()


def add(data, events, name, **options):
    """Adds events to a data set in a folder beside it."""
    scratch = data.folder.with_name(f"scratch-{name}")
    scratch.mkdir()
    add_events(data, events, data.folder.with_name(name), scratch, **options)
    return PreparedData(data.folder.with_name(name))


def grow(tmp_path, parts, schema, **options):
    """Prepares the first part, and adds the others one by one."""
    run(tmp_path, parts[0], schema, name="0", **options)
    data = PreparedData(tmp_path / "0")
    for number, part in enumerate(parts[1:], 1):
        data = add(data, part, str(number))
    return data


LISTS = [
    {"name": "type", "column": "item", "max_items": 2, "separator": "|", "min_count": 3},
    {"name": "a.b", "column": "group"},
]
RARE = {"name": "type", "column": "item", "min_count": 5}
CHANGES = {
    "dates": {},
    "no visits, equal events once": {"visit": None, "on_duplicate": "drop", "end_of_visit": None},
    "a limit of events": {"max_events": 8, "max_events_per_customer": 8},
    "rare labels": {
        "features": [
            {"name": "token_type", "column": "kind"},
            RARE,
            {"name": "same", "column": "item"},
            {"name": "a.b", "column": "group"},
        ]
    },
    "several labels of an event": {"features": [{"name": "token_type", "column": "kind"}, *LISTS]},
    "last visits": {"cutoffs": "leave_one_out"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_days_that_were_added_give_the_data_set_of_the_whole_log(tmp_path, changes, caplog):
    schema = schema_with(**changes)
    parts = PARTS
    if "separator" in str(changes):
        parts = [
            part.assign(item=part["item"].map(lambda item: f"{item:g}|{item // 2:g}", na_action="ignore"))
            for part in PARTS
        ]
    grown = grow(tmp_path, [parts[part] for part in (0, 2, 1, 3, 5, 4)], schema, rows_per_shard=5)
    assert caplog.text.count("lost the earliest of them") == len(parts) * (schema.max_events == 8)
    whole = pd.concat(parts)
    run(tmp_path, whole, schema, name="whole")
    natural = PreparedData(tmp_path / "whole")
    one, other = (data.at(END).extractor for data in (grown, natural))
    if not schema.leaves_one_out:  # where another day moves each customer's last visit
        assert one.known == other.known
        assert one.bins == other.bins
        for cutoff in CUTOFFS:
            known, expected = (data.at(cutoff).extractor for data in (grown, natural))
            assert known.vocabularies == expected.vocabularies
    for feature, values in other.vocabularies.items():
        more = {*one.vocabularies[feature]} - {*values}
        assert {*values} <= {*one.vocabularies[feature]} and bool(more) <= bool(schema.max_events == 8), feature
    before = PreparedData(tmp_path / "0", END).extractor.vocabularies
    assert {name: values[: len(before[name])] for name, values in one.vocabularies.items()} == before

    run(tmp_path, whole, schema, name="same", feature_extractor=one)
    same = PreparedData(tmp_path / "same")
    for until in (*CUTOFFS, END):
        assert grown.at(until).rows.to_list() == same.at(until).rows.to_list()
        assert grown.at(until).schema == natural.at(until).schema
    assert grown.manifest.counts == same.manifest.counts
    assert grown.manifest.measures == same.manifest.measures
    for name in ("events", "ends_of_visit", "first", "last", "test_cases", "rows", "duplicates"):
        assert grown.manifest.counts[name] == natural.manifest.counts[name], name


def test_new_values_are_in_the_order_in_which_the_whole_log_has_them(tmp_path):
    schema = schema_with(**CHANGES["rare labels"])
    grown = grow(tmp_path, PARTS[:3] + PARTS[4:], schema)
    run(tmp_path, pd.concat(PARTS[:3] + PARTS[4:]), schema, name="whole")
    whole = PreparedData(tmp_path / "whole")
    assert grown.at(END).extractor.vocabularies == whole.at(END).extractor.vocabularies
    for day in DAYS:
        seconds = int(day.timestamp())
        one, other = (data.at(seconds) for data in (grown, whole))
        assert one.known == other.known and one.rows.to_list() == other.rows.to_list()


def refused(data, events, match, **options):
    with pytest.raises(ValueError, match=match):
        add(data, events, f"refused-{len(list(data.folder.parent.iterdir()))}", **options)


ORDERS = {
    "times": {},
    "equal events count once": {"on_duplicate": "drop"},
    "numbers": {"order": "at"},
    "rows": {"order": "rows", "visit": None},
}
AGAIN = "new events are a part of the log already"


@pytest.mark.parametrize("changes", ORDERS.values(), ids=ORDERS)
def test_events_of_the_log_are_refused_whatever_their_form(tmp_path, changes, caplog):
    changes = changes | {"profile": []}
    if "order" in changes:
        features = [{"name": "token_type", "column": "kind"}, {"name": "type", "column": "item"}]
        changes |= {"time": None, "cutoffs": "leave_one_out", "features": features, "tasks": ["type"]}
    log, first, second, third, _ = (part.assign(at=part["at"].astype("int64")) for part in PARTS[:5])
    if "order" not in changes:
        log, first, second, third, _ = PARTS[:5]
    schema, file = schema_with(**changes), str(tmp_path / "first.parquet")
    first.to_parquet(file)
    prepare(log, schema, tmp_path / "0")
    data = add(add(PreparedData(tmp_path / "0"), file, "1"), second, "2")
    for events in (first, second, log, pd.concat([log, first])):
        refused(data, events, f"^{len(events):,} of {len(events):,} {AGAIN}, and would count twice: leave")
    refused(data, file, AGAIN)
    if changes.get("order") != "rows":
        refused(data, first.sample(frac=1, random_state=0).iloc[1:], AGAIN)  # a part, in another order
    window = pd.concat([first, second, third.iloc[:2]])  # more days than one, as an export of the last week
    caplog.clear()
    if schema.on_duplicate == "keep":
        refused(data, window, f"^{len(first) + len(second)} of {len(window)} {AGAIN}.* leave them out")
    else:
        added = add(data, window, "3").manifest.counts
        assert f"{AGAIN}: `on_duplicate: drop`" in caplog.text
        assert added["events"] == data.manifest.counts["events"] + 2


def test_a_few_events_may_be_equal_to_others(tmp_path, caplog):
    run(tmp_path, PARTS[0], schema_with())
    data, before = PreparedData(tmp_path / "out"), PARTS[0]["at"].max()
    equal = PARTS[0].nlargest(2, "at", keep="first")
    late = equal.assign(price=1.25)
    refused(data, pd.concat([PARTS[1], equal, late]), f"^2 of {len(PARTS[1]) + 4} {AGAIN}")
    grown = add(data, pd.concat([PARTS[1], equal, late, late.assign(at=before)]), "more")
    assert f"2 of {len(PARTS[1]) + 6} {AGAIN}: `on_duplicate: keep` decides" in caplog.text
    assert grown.manifest.counts["events"] == data.manifest.counts["events"] + len(PARTS[1]) + 6


def test_each_file_counts_once(tmp_path):
    paths = [tmp_path / folder / "events.parquet" for folder in "abc"]
    for path, part in zip(paths, PARTS[:3], strict=True):
        path.parent.mkdir()
        part.to_parquet(path)
    shutil.copy(paths[2], tmp_path / "c" / "copy.parquet")
    half = len(PARTS[0]) // 2
    for number, part in enumerate((PARTS[0].iloc[:half], PARTS[0].iloc[half:])):
        part.to_parquet(tmp_path / "a" / f"{number}.parquet")
    run(tmp_path, [tmp_path / "a" / "0.parquet", tmp_path / "a" / "1.parquet"], schema_with())
    data = PreparedData(tmp_path / "out")
    refused(data, str(tmp_path / "c"), "new files copy.parquet, events.parquet have the same bytes, and would count")
    grown = add(add(data, str(paths[1]), "1"), str(paths[2]), "2")
    files = grown.manifest.input["events"]["files"]
    assert sorted(files) == ["+1/events.parquet", "+2/events.parquet", "0/0.parquet", "1/1.parquet"]


def test_a_log_that_a_model_counted_more_of_is_refused(tmp_path):
    for name, changes in {"dates": {}, "visits": {"cutoffs": "leave_one_out"}}.items():
        folder = tmp_path / name
        folder.mkdir()
        data = grow(folder, PARTS[:3], schema_with(**changes))
        counted = [Counts(PreparedData(folder / each, END)).describe() for each in ("0", "2")]
        refused(PreparedData(folder / "0"), PARTS[3], "and the model counts .* would be lost", counted=counted[1])
        for facts in (*counted, {}):
            add(data, PARTS[3], f"after-{len(facts)}-{facts.get('events')}", counted=facts)
