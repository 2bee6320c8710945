# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The drift report: what it counts is what the feature extractor would read, and bad logs are refused."""

import json

import pandas as pd
import pytest
import torch

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.preparation.drift import feature_drift

ITEM, PRICE = 1, 2  # places in the schema


@pytest.fixture
def new_log(event_log):
    """A later log: 90 more events with 12 new items, and prices as none before."""
    log = event_log.head(90).copy()
    log["when"] += pd.Timedelta(days=400)
    log.loc[log.index[:30], "item"] = "kiwi"
    log.loc[log.index[30:40], "item"] = [f"new {number}" for number in range(10)]
    log.loc[log.index[40:42], "item"] = ""
    log.loc[log.index[50:60], "price"] = [1000.0] * 5 + [-5.0] * 5
    return log


def drift_of(report, feature):
    return next(drift for drift in report.features if drift.feature == feature)


def test_nothing_is_unknown_in_the_training_period(event_log, extractor):
    old = event_log[event_log["when"] < "2017-10-01"]
    report = feature_drift(old, extractor)
    assert [drift.feature for drift in report.features] == ["type", "items", "a.b", "aisle"]
    assert (report.events, report.left_out, report.not_read) == (len(old), 0, ["age"])
    assert report.first.startswith(str(old["when"].min())) and report.last.startswith(str(old["when"].max()))
    for drift in report.features:
        assert drift.unknown == drift.unknown_values == 0 and drift.addable == []
        assert drift.missing == old[drift.column].isna().sum()


def test_it_counts_what_the_feature_extractor_reads(new_log, extractor):
    report = feature_drift(new_log, extractor)
    place = extractor.feature_names.index("items")
    inputs = [
        extractor.pad([extractor.encode({"events": events})], max_events=1000)
        for _, events in new_log.groupby("who")  # one customer after the other, as a model would read them
    ]
    ids = torch.cat([each["input_ids"][0, 1:] for each in inputs])
    ids = ids[(ids[:, place] != 0) | (ids[:, 0] == extractor._encoding.ids["type"]["click"])]  # without ends of visit
    drift = drift_of(report, "items")
    assert drift.unknown == (ids[:, place] == 1).sum() == 42
    assert drift.unknown_share == 42 / 90 and drift.unknown_values == 12


def test_the_most_frequent_unknown_values_are_named_and_can_be_added(new_log, extractor, tiny_model):
    drift = drift_of(feature_drift(new_log, extractor), "items")
    assert drift.most_frequent_unknown == [("kiwi", 30), ("", 2), *((f"new {number}", 1) for number in range(8))]
    assert drift.addable == ["kiwi", *(f"new {number}" for number in range(8))]  # the empty text can't be
    tiny_model().resize_feature_vocabulary("items", drift.addable, extractor)
    assert drift_of(feature_drift(new_log, extractor), "items").unknown == 42 - 38


def test_numbers_outside_the_bins_are_counted_beside_what_training_had(new_log, extractor):
    edges = extractor.bins["a.b"]
    drift = drift_of(feature_drift(new_log, extractor), "a.b")
    assert drift.below == (new_log["price"] < edges[0]).sum() / 90
    assert drift.above == (new_log["price"] >= edges[-1]).sum() / 90
    assert drift.expected_outside == 1 / (len(edges) + 1) and drift.unknown == 0


def test_values_are_texts_as_in_preparation(extractor):
    """1, 1.0 and "1" are one value, and NaN is missing, whatever the column's type."""
    extractor.add_values("items", ["7"])
    for items in ([7, 8], [7.0, 8.0, None], ["7", "8"]):
        log = pd.DataFrame({"who": 1, "when": pd.Timestamp("2018-01-01"), "basket": 1, "action": "buy", "item": items})
        drift = drift_of(feature_drift(log.assign(price=1.0, aisle="aisle 0"), extractor), "items")
        assert drift.most_frequent_unknown == [("8", 1)] and drift.missing == len(items) - 2


def test_the_profile_is_read_when_it_is_given(new_log, extractor):
    ages = pd.DataFrame({"who": ["a", "b", "c", "d"], "age": ["young", "ancient", None, "ancient"]})
    report = feature_drift(new_log, extractor, ages)
    drift = drift_of(report, "age")
    assert (drift.rows, drift.missing, drift.unknown, report.not_read) == (4, 1, 2, [])
    assert drift.most_frequent_unknown == [("ancient", 2)]
    with pytest.raises(ValueError, match="profile table has no row.*leave `profile` out"):
        feature_drift(new_log, extractor, ages.head(0))
    with pytest.raises(ValueError, match="several rows for the customer 'a'"):
        feature_drift(new_log, extractor, pd.concat([ages, ages]))


BAD_LOGS = {
    "missing column": (
        lambda log: log.drop(columns="item"),
        "no column 'item'; it has.*The checkpoint reads it: rename",
    ),
    "renamed columns": (
        lambda log: log.rename(columns={"price": "prices", "who": "user"}),
        "no column 'who', nor 'price'.*add an empty one",
    ),
    "no rows": (lambda log: log.head(0), "0 rows and none.*give a log with at least one event"),
    "no customers": (lambda log: log.assign(who=None), "90 rows and none with a customer"),
    "reserved token type": (lambda log: log.assign(action="end_of_visit"), "'action' holds.*rename them in the log"),
    "number cannot be read": (lambda log: log.assign(price="dear"), "'price'.*dear.*must be a number"),
    "time is a number": (lambda log: log.assign(when=5), "'when'.*Convert numbers to timestamps"),
}


@pytest.mark.parametrize(("change", "message"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_bad_log_is_refused(new_log, extractor, change, message):
    with pytest.raises(ValueError, match=message):
        feature_drift(change(new_log), extractor)


def test_rows_without_customer_or_time_are_counted_and_left_out(new_log, extractor):
    new_log.loc[new_log.index[0], "who"] = None
    new_log.loc[new_log.index[1], "when"] = pd.NaT
    report = feature_drift(new_log, extractor)
    assert (report.events, report.left_out) == (88, 2) and drift_of(report, "items").unknown == 40


def test_an_extractor_without_tasks_or_profile_is_enough(new_log):
    plain = MCMFeatureExtractor(
        features=[{"name": "kind", "column": "action"}],
        vocabularies={"kind": ["history_start", "click"]},
        customer="who",
        time="when",
        token_type="action",
    )
    (drift,) = feature_drift(new_log[["who", "when", "action"]], plain).features
    assert drift.most_frequent_unknown == [("buy", (new_log["action"] == "buy").sum())]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_script_prints_a_table_and_writes_json(command, new_log, stored_extractor, tmp_path, suffix):
    path, report_file = tmp_path / f"new.{suffix}", tmp_path / "reports" / "drift.json"
    new_log.to_parquet(path) if suffix == "parquet" else new_log.to_csv(path, index=False)
    said = command("run_drift", "--model", stored_extractor, "--events", path, "--report_file", report_file)
    assert "resize_feature_vocabulary('items', ['kiwi', 'new 0'," in said
    assert "Not looked at without --profile: age" in said
    report = json.loads(report_file.read_text())
    items = next(entry for entry in report["features"] if entry["feature"] == "items")
    assert items["most_frequent_unknown"][0] == {"value": "kiwi", "count": 30} and report["events"] == 90
    line = next(line for line in said.splitlines() if line.startswith("items ")).split()
    assert line[:4] == ["items", "item", "90", f"{items['unknown_share']:.2%}"]


def test_the_script_says_what_is_wrong(command, new_log, stored_extractor, tmp_path):
    path = tmp_path / "new.parquet"
    new_log.drop(columns="item").to_parquet(path)
    for options, message in (
        (("--model", stored_extractor, "--events", path), "run_drift: The event table has no column 'item'; it"),
        (("--model", stored_extractor, "--events", tmp_path / "none.parquet"), "does not exist; check the path"),
        (("--model", tmp_path, "--events", path), "run_drift: "),
    ):
        said = command("run_drift", *options, fails=message)
        assert message in said and "Traceback" not in said
