# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What keeps a large log within bounds: customers of too many events, vocabularies of too many values, bins."""

import json
from datetime import timedelta

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from synthetic_log import SCHEMA, TEST, VALIDATION, load_extractor, make_log, make_profile, read_rows, run, schema_with

from modeling_mcm.data import EventSchema, FeatureSpec
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation import vocabulary as vocabulary_module
from modeling_mcm.preparation.vocabulary import fit_bins, fit_values


def bot(number, seed=0):
    """Events of one customer, all of a month at the same second."""
    log = make_log(seed=seed, customers=1, visits=number)
    return log.assign(user=99, at=log["at"].dt.to_period("M").dt.to_timestamp())


def test_a_bot_is_cut_to_its_latest_events_of_each_period(tmp_path):
    log = pd.concat([make_log(), bot(200)])
    schema = schema_with(max_events=30, max_events_per_customer=30)
    manifest = run(tmp_path, log, schema)
    row = read_rows(tmp_path)["99"]
    times = np.array(row["times"])[np.array(row["feature_token_type"]) != max(row["feature_token_type"])]
    at = (bot(200)["at"] - pd.Timestamp(0)) // pd.Timedelta(seconds=1)
    cutoffs = [(cutoff - pd.Timestamp(0)) // pd.Timedelta(seconds=1) for cutoff in (VALIDATION, TEST)]
    periods = np.digitize(at, cutoffs)
    kept = [at[periods == period].sort_values().tail(30) for period in range(3)]
    assert sorted(times) == sorted(pd.concat(kept))
    assert manifest.counts["customers_with_excess"] == 1
    assert manifest.counts["dropped_excess"] == len(bot(200)) - 90 > 0
    assert manifest.counts["events"] == len(log) - manifest.counts["dropped_excess"]


def test_the_cut_depends_neither_on_the_order_nor_on_what_comes_later(tmp_path):
    log = pd.concat([make_log(), bot(200)])
    schema = schema_with(max_events=30, max_events_per_customer=30)
    run(tmp_path, log, schema, name="a")
    run(tmp_path, log.sample(frac=1, random_state=1), schema, name="b")
    assert read_rows(tmp_path, "a") == read_rows(tmp_path, "b")
    later = bot(200, seed=1)
    run(tmp_path, pd.concat([log, later[later["at"] >= VALIDATION]]), schema, name="c")
    before, after = (read_rows(tmp_path, name)["99"] for name in "ac")
    end = before["validation_end"]
    assert after["validation_end"] == end > 30 and after["test_end"] > end
    for name, values in before.items():
        if isinstance(values, list):
            assert after[name][:end] == values[:end], name


def test_a_window_of_events_is_always_left():
    with pytest.raises(ValueError, match="`max_events_per_customer` is 29; give a whole number of at least 30"):
        schema_with(max_events=30, max_events_per_customer=29)


def test_only_the_most_frequent_values_are_kept(tmp_path):
    features = [{**spec, "max_values": 3} if spec["name"] == "type" else spec for spec in SCHEMA["features"]]
    run(tmp_path, schema=schema_with(features=features))
    vocabularies = load_extractor(tmp_path).vocabularies
    assert 1 <= len(vocabularies["type"]) <= 3
    ids = [value for row in read_rows(tmp_path).values() for value in row["feature_type"]]
    assert set(ids) == set(range(2 + len(vocabularies["type"])))


def test_values_as_frequent_as_each_other_stay_or_go_together():
    column = ibis.memtable(pa.table({"value": [*"aaabbbcdde", None, None, None, None]})).value
    kept = {most: fit_values(column, FeatureSpec("x", max_values=most)) for most in (1, 2, 3, 4, 5, 9)}
    assert kept == {1: [], 2: ["a", "b"], 3: [*"abd"], 4: [*"abd"], 5: [*"abdce"], 9: [*"abdce"]}
    assert fit_values(column, FeatureSpec("x", min_count=2)) == [*"abd"]
    assert fit_values(column, FeatureSpec("x", min_count=3, max_values=4)) == [*"ab"]


def test_more_values_than_a_process_should_hold_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary_module, "MOST_VALUES", 3)
    with pytest.raises(ValueError, match="'type' has more than 3 values .min_count: 2.; set `max_values`"):
        run(tmp_path)


@pytest.mark.parametrize("value", [0, "many"])
def test_limits_are_whole_numbers(value):
    features = [*SCHEMA["features"][:1], {"name": "type", "column": "item", "max_values": value}]
    with pytest.raises(ValueError, match=f"Entry 1 .*max_values` is {value!r}"):
        schema_with(features=features, tasks=["type"])
    with pytest.raises(ValueError, match="`max_values` is for categorical features"):
        schema_with(features=[*SCHEMA["features"], {"name": "x", "kind": "numeric", "max_values": 3}])
    with pytest.raises(ValueError, match="without other keys for the token type"):
        schema_with(features=[{**SCHEMA["features"][0], "max_values": 3}, *SCHEMA["features"][1:]])


@pytest.mark.parametrize("bins", [2, 5, 33])
def test_edges_are_quantiles(bins):
    generator = np.random.default_rng(0)
    levels = np.arange(1, bins) / bins
    for values in (generator.normal(size=1001), generator.integers(0, 9, 500), np.round(generator.random(77), 1), [3]):
        column = ibis.memtable(pa.table({"value": pa.array([*map(float, values), None, np.inf, -np.inf])})).value
        edges = fit_bins(column, bins)
        np.testing.assert_allclose(edges, np.unique(np.quantile(values, levels).round(12)), rtol=1e-9, atol=1e-9)
    assert fit_bins(ibis.memtable(pa.table({"value": pa.array([None, np.inf])})).value, bins) == []


def test_a_data_set_from_before_a_key_of_the_schema_is_still_reused(tmp_path):
    paths = [tmp_path / "log.parquet", tmp_path / "profile.parquet"]
    make_log().to_parquet(paths[0])
    make_profile().to_parquet(paths[1])
    options = {"profile": paths[1], "reuse": True}
    prepare(paths[0], schema_with(), tmp_path / "out", **options)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["schema"]["max_events_per_customer"], manifest["schema"]["features"][1]["max_values"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert prepare(paths[0], schema_with(), tmp_path / "out", **options).event_schema == schema_with()
    later = EventSchema.from_dict(SCHEMA | {"cutoffs": {"validation": VALIDATION, "test": TEST + timedelta(days=1)}})
    with pytest.raises(FileExistsError, match="another schema made it"):
        prepare(paths[0], later, tmp_path / "out", **options)
