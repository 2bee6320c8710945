# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Bad schemas, options, files and logs are refused, limits hold, and a kill leaves nothing that looks whole."""

import errno
import os
import re
import sys

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import content
from synthetic_log import (
    SCHEMA,
    TEST,
    VALIDATION,
    check_same_training_period,
    make_log,
    make_profile,
    read_rows,
    run,
    schema_with,
)

from modeling_mcm.data import FeatureSpec, PreparedManifest, load_prepared
from modeling_mcm.preparation import prepare, tables
from modeling_mcm.preparation.demos import build_complete_journey
from modeling_mcm.preparation.rows import write_shard
from modeling_mcm.preparation.tables import fit_bins, fit_values


@pytest.mark.parametrize("size", ["lots", "4", "", "180%", "1KB"])
def test_a_size_that_duckdb_does_not_take_is_refused(tmp_path, size):
    message = "no more mem" if size == "1KB" else f"`memory_limit` is '{size}'; give a size"
    with pytest.raises((ValueError, OSError), match=message):
        run(tmp_path, memory_limit=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [0, -1, 2.5, True, 10**30, "many"])
def test_rows_of_a_shard_are_a_whole_number_within_limits(tmp_path, rows):
    with pytest.raises(ValueError, match="`rows_per_shard` is .*; give a whole number of at least 1"):
        prepare(make_log(), schema_with(profile=[]), tmp_path / "out", rows_per_shard=rows)


def with_more(path, *names):
    """The log in a Parquet file that has the column of the item under more names."""
    table = pa.Table.from_pandas(make_log(), preserve_index=False)
    for name in names:
        table = table.append_column(name, table["item"])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


COLUMNS = {
    "a file": (lambda folder: with_more(folder / "a.parquet", "item"), "a.parquet has 2 columns 'item'"),
    "its path": (lambda folder: with_more(folder / "log/group=a/a.parquet").parents[1], "has 2 columns 'group'"),
    "a frame": (lambda folder: pd.concat([make_log(), make_log()[["item"]]], axis=1), "table has 2 columns 'item'"),
}


@pytest.mark.parametrize(("make", "message"), COLUMNS.values(), ids=COLUMNS)
def test_two_columns_of_one_name_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, make(tmp_path))
    assert not (tmp_path / "out").exists()


def test_other_columns_may_have_one_name_and_case_tells_names_apart(tmp_path):
    log = with_more(tmp_path / "log.parquet", "note", "note", "ITEM")
    run(tmp_path, log)
    run(tmp_path, name="frame")
    assert read_rows(tmp_path) == read_rows(tmp_path, "frame")


def bot(number, seed=0):
    """Events of one customer, all of a month at the same second."""
    log = make_log(seed=seed, customers=1, visits=number)
    return log.assign(user=99, at=log["at"].dt.to_period("M").dt.to_timestamp())


def test_a_bot_is_cut_to_its_latest_events_of_each_period(tmp_path, caplog):
    log = pd.concat([make_log(), bot(200)]).sample(frac=1, random_state=1)
    schema = schema_with(max_events=30, max_events_per_customer=30)
    manifest = run(tmp_path, log, schema, name="a")
    row = read_rows(tmp_path, "a")["99"]
    times = np.array(row["times"])[np.array(row["feature_token_type"]) != max(row["feature_token_type"])]
    at = (bot(200)["at"] - pd.Timestamp(0)) // pd.Timedelta(seconds=1)
    cutoffs = [(cutoff - pd.Timestamp(0)) // pd.Timedelta(seconds=1) for cutoff in (VALIDATION, TEST)]
    periods = np.digitize(at, cutoffs)
    whole = [at[periods == period].sort_values() for period in range(3)]
    kept = [times.tail(30) for times in whole]
    assert sorted(times) == sorted(pd.concat(kept))
    assert manifest.counts["customers_with_excess"] == 1
    number, lost = max(map(len, whole)), manifest.counts["dropped_excess"]
    assert f"30 events in a period and lost the earliest of them, {lost} in all: '99' ({number})." in caplog.text
    assert "raise `max_events_per_customer` in the schema" in caplog.text
    assert manifest.counts["dropped_excess"] == len(log) - manifest.counts["events"] == len(bot(200)) - 90 > 0

    # The cut does not depend on what comes later.
    later = bot(200, seed=1)
    run(tmp_path, pd.concat([log, later[later["at"] >= VALIDATION]]), schema, name="b")
    check_same_training_period(tmp_path)
    assert row["test_end"] > row["validation_end"] > 30


def test_bots_with_the_most_events_are_named(tmp_path, caplog):
    bots = [bot(200).iloc[[0] * number].assign(user=number, at=VALIDATION) for number in range(41, 46)]
    run(tmp_path, pd.concat([make_log(), *bots]), schema_with(max_events=30, max_events_per_customer=40))
    said = "5 customers have more than 40 events in a period and lost the earliest of them, 15 in all"
    assert f"{said}: '45' (45), '44' (44), '43' (43)." in caplog.text


def test_only_the_most_frequent_values_are_kept(tmp_path, monkeypatch):
    """Values as frequent as each other stay or go together."""
    column = ibis.memtable(pa.table({"value": [*"aaabbbcdde", None, None, None, None]})).value
    kept = {most: fit_values(column, FeatureSpec("x", max_values=most)) for most in (2, 3, 4, 9)}
    with pytest.raises(ValueError, match="More than `max_values: 1` values of feature 'x' have 3 events each"):
        fit_values(column, FeatureSpec("x", max_values=1))
    assert kept == {2: ["a", "b"], 3: [*"abd"], 4: [*"abd"], 9: [*"abdce"]}
    assert fit_values(column, FeatureSpec("x", min_count=3, max_values=4)) == [*"ab"]
    monkeypatch.setattr(tables, "MOST_VALUES", 3)
    with pytest.raises(ValueError, match="'type' has more than 3 values .min_count: 2.; set `max_values`"):
        run(tmp_path, name="many")


@pytest.mark.parametrize("bins", [2, 5, 33])
def test_edges_are_quantiles(bins):
    generator = np.random.default_rng(0)
    levels = np.arange(1, bins) / bins
    for values in (generator.normal(size=1001), generator.integers(0, 9, 500), np.round(generator.random(77), 1), [3]):
        column = ibis.memtable(pa.table({"value": pa.array([*map(float, values), None, np.inf, -np.inf])})).value
        edges = fit_bins(column, bins)
        np.testing.assert_allclose(edges, np.unique(np.quantile(values, levels).round(12)), rtol=1e-9, atol=1e-9)
    assert fit_bins(ibis.memtable(pa.table({"value": pa.array([None, np.inf])})).value, bins) == []


def test_rows_without_customer_or_time_are_an_error_or_dropped(tmp_path):
    log = make_log()
    log["user"] = log.user.astype("Int64")
    log.loc[0, "user"] = pd.NA
    log.loc[1, "at"] = pd.NaT
    with pytest.raises(ValueError, match="'user' is null in 1 of .*on_null: drop"):
        run(tmp_path, log)
    with pytest.raises(ValueError, match="'at' is null in 1 of"):
        run(tmp_path, log.drop(index=0))
    assert not list(tmp_path.iterdir())
    manifest = run(tmp_path, log, schema_with(on_null="drop"))
    assert manifest.counts["dropped_null"] == 2 and manifest.counts["events"] == len(log) - 2


def test_duplicates_are_counted_and_dropped_only_when_asked(tmp_path):
    log = make_log().drop_duplicates()
    twice = pd.concat([log, log.head(7)])
    kept = run(tmp_path, twice, name="kept").counts
    dropped = run(tmp_path, twice, schema_with(on_duplicate="drop"), name="dropped").counts
    assert (kept["duplicates"], kept["events"]) == (7, len(log) + 7)
    assert (dropped["dropped_duplicates"], dropped["events"]) == (7, len(log))


BAD_LOGS = {
    "missing column": (lambda log: log.drop(columns="item").assign(itm=1), "no column 'item'.*'itm'"),
    "no rows": (lambda log: log.head(0), "empty"),
    "time cannot be read": (lambda log: log.assign(at=["gestern", *log["at"].astype(str)[1:]]), "1 values.*gestern"),
    "labels are durations": (
        lambda log: log.assign(item=log["at"] - log["at"].min()),
        "Column 'item' has .* such as: found datetime.timedelta.*expected text, a number or a boolean",
    ),
    "no target": (lambda log: log.assign(kind="view"), "target_token_types.*buy.*'kind'"),
    "reserved token type": (lambda log: log.assign(kind=["end_of_visit", *log.kind[1:]]), "end_of_visit.*rename"),
    "nothing to train on": (lambda log: log[log["at"] >= VALIDATION], "No target event is before.*the log runs from"),
    "nothing to validate on": (
        lambda log: log[~log["at"].between(VALIDATION, TEST)],
        "No event is between.*give other",
    ),
    "nothing to test on": (lambda log: log[log["at"] < TEST], "on or after test"),
}


@pytest.mark.parametrize(("change", "message"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_bad_log_is_refused_and_leaves_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, change(make_log()))
    assert not list(tmp_path.iterdir())


def test_an_event_without_any_value_is_refused(tmp_path):
    schema = schema_with(features=SCHEMA["features"][:4])
    log = make_log().astype({"flag": object})
    log.loc[3, ["kind", "item", "group", "flag"]] = None
    with pytest.raises(ValueError, match="1 events have no value in any feature"):
        run(tmp_path, log, schema)


def test_bad_profile_is_refused(tmp_path):
    profile = make_profile()
    for table, message in (
        (None, "go together: give both"),
        (pd.concat([profile, profile.head(1)]), "several rows for the customer '0'"),
        (profile.drop(columns="age"), "profile table has no column 'age'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(make_log(), schema_with(), tmp_path / "out", profile=table)


def test_what_a_lost_worker_left_is_not_in_the_data_set(tmp_path, monkeypatch):
    def after_another(table, path):
        path.with_name(f".{path.name}.0123456789ab.partial").mkdir()
        return write_shard(table, path)

    monkeypatch.setattr(sys.modules[prepare.__module__], "write_shard", after_another)
    run(tmp_path)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_folder_without_manifest_is_no_data_set(tmp_path):
    run(tmp_path)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="not a .finished. prepared data set"):
        load_prepared(tmp_path / "out")
    with pytest.raises(FileExistsError, match="is no prepared data set"):
        run(tmp_path, overwrite=True)


def test_existing_data_set_is_reused_or_replaced_only_when_asked(tmp_path):
    log, other, profile = (tmp_path / f"{name}.parquet" for name in ("log", "other", "profile"))
    make_log().to_parquet(log)
    make_log(seed=1).to_parquet(other)
    make_profile().to_parquet(profile)
    out = tmp_path / "out"
    manifest = prepare(log, schema_with(), out, profile=profile)
    modified = (out / "manifest.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="overwrite"):
        prepare(log, schema_with(), out, profile=profile)
    assert prepare(log, schema_with(), out, profile=profile, reuse=True) == manifest
    for source, changes, reason in ((other, {}, "another input"), (log, {"max_events": 9}, "schema")):
        with pytest.raises(FileExistsError, match=reason):
            prepare(source, schema_with(**changes), out, profile=profile, reuse=True)
    assert (out / "manifest.json").stat().st_mtime_ns == modified
    replaced = prepare(other, schema_with(), out, profile=profile, reuse=True, overwrite=True)
    assert PreparedManifest.load(out) == replaced != manifest


def test_demo_log_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"modeling-mcm\[demo\]"):
        build_complete_journey(tmp_path)


def prepare_shop(folder, log):
    prepare(log, schema_with(), folder, profile=make_profile(), rows_per_shard=5, overwrite=True)


def test_a_disk_that_fills_up_at_any_file_leaves_all_as_it_was(tmp_path, monkeypatch):
    prepare_shop(tmp_path / "data", make_log())
    before, sync, room = content(tmp_path), os.fsync, []

    def fsync(file):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room.pop()
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for files in range(100):
            room[:] = [None] * files
            try:
                prepare_shop(tmp_path / "data", make_log(seed=1))
                break
            except OSError as error:
                assert re.search(r"\S+ can't be written \(No space left on device\)", str(error))
            assert content(tmp_path) == before
    assert files >= 5 and content(tmp_path) != before
