# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation: the same ids as the feature extractor, whole and ordered rows, no look into the future."""

from datetime import datetime, timedelta

import ibis
import numpy as np
import pandas as pd
from choices import from_data
from in_process import ROOT
from synthetic_log import (
    TEST,
    VALIDATION,
    load_extractor,
    make_log,
    make_profile,
    read_rows,
    run,
    schema_with,
)
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import EventSchema, PreparedData, PreparedManifest, load_prepared
from modeling_mcm.preparation import prepare
from modeling_mcm.training.labels import popularity


def test_rows_have_the_documented_order_and_ends(tmp_path):
    log = make_log()
    alone = log.index[log["session"].isna()]
    log.loc[alone[:6], "at"], log.loc[alone[6:12], "at"] = VALIDATION, TEST  # the first second of a period
    manifest = run(tmp_path, log)
    ends = 0
    for row in read_rows(tmp_path).values():
        times, visits, tokens = (np.array(row[key]) for key in ("times", "visits", "feature_token_type"))
        assert (np.diff(visits) >= 0).all() and (np.diff(visits) <= 1).all() and visits[0] == 0
        for cutoff, key in ((VALIDATION, "validation_end"), (TEST, "test_end")):
            before = times < (cutoff - datetime(1970, 1, 1)).total_seconds()
            assert before[: row[key]].all() and not before[row[key] :].any()
        is_end = tokens == tokens.max()
        assert np.array_equal(np.flatnonzero(is_end), [np.flatnonzero(visits == v)[-1] for v in visits[is_end]])
        assert not np.array(row["task_token_type"])[is_end].any()
        ends += is_end.sum()
    assert ends == manifest.counts["ends_of_visit"] > 0
    assert manifest.counts["events"] == len(log)


def test_popularity_counts_the_training_period(tmp_path):
    log = make_log()
    log.loc[:9, "at"] = VALIDATION
    run(tmp_path, log)
    data = PreparedData(tmp_path / "out")
    counts = popularity(data, MCMConfig(**from_data(data.extractor)))["a.b"].tolist()
    training = log[(log["at"] < VALIDATION) & (log["kind"] == "buy")].group.value_counts()
    found = dict(zip(data.extractor.vocabularies["a.b"], counts[FIRST_LABEL:], strict=True))
    assert found == training.reindex([*found], fill_value=0).to_dict() and counts[:FIRST_LABEL] == [0, 0]


def test_shards_are_bounded_and_load_as_one_data_set(tmp_path):
    logging.disable_progress_bar()  # which must not change anything
    manifest = run(tmp_path, rows_per_shard=5)
    logging.enable_progress_bar()
    assert [shard["rows"] for shard in manifest.shards] == [5, 5, 2]
    data = load_prepared(tmp_path / "out")
    assert data["customer_id"][:] == sorted(map(str, range(12)))
    assert PreparedManifest.load(tmp_path / "out") == manifest
    assert EventSchema.from_dict(manifest.schema) == schema_with()
    assert not list(tmp_path.glob(".*"))


def test_an_ibis_table_gives_the_same_rows_and_keeps_no_other(tmp_path):
    log = make_log().assign(session=lambda table: table.session.astype("Int64"))
    run(tmp_path, log, name="frame")
    log.to_parquet(tmp_path / "log.parquet")
    connection = ibis.duckdb.connect()
    connection.raw_sql(f"CREATE TABLE log AS SELECT * FROM read_parquet('{tmp_path / 'log.parquet'}')")
    run(tmp_path, connection.table("log"))
    assert read_rows(tmp_path) == read_rows(tmp_path, "frame")
    query = "SELECT table_name FROM information_schema.tables WHERE table_type <> 'VIEW'"
    assert connection.raw_sql(query).fetchall() == [("log",)]


def test_worked_example_of_the_documentation(tmp_path):
    text = (ROOT / "docs" / "event_schema.md").read_text()
    lines = [line for line in text[: text.index("With `clickstream.yaml`")].splitlines() if line.startswith("|")]
    header, _, *cells = [[cell.strip() or None for cell in line.strip("|").split("|")] for line in lines]
    ann = pd.DataFrame(cells, columns=header)
    others = pd.concat([ann.iloc[:2].assign(user_id=f"other {number}") for number in range(5)])
    last = ann.iloc[[3]].assign(user_id="last", timestamp="2024-04-02")
    schema = EventSchema.from_yaml(ROOT / "configuration" / "schemas" / "clickstream.yaml")
    run(tmp_path, pd.concat([ann, others, last]), schema)
    row = read_rows(tmp_path)["ann"]
    assert row["visits"] == [0, 0, 1, 2]
    assert (row["validation_end"], row["test_end"]) == (3, 4)
    assert row["feature_item"] == row["task_item"] == [2, 2, 0, 1]
    assert row["feature_days_since_visit"][:2] == [0, 0]
    assert min(row["feature_days_since_visit"][2:]) >= 2
    assert row["value_price"] == [59.0, 59.0, 0.0, 5.0]


def test_a_customer_of_unknown_values_is_kept(tmp_path):
    log = make_log()
    stranger = pd.DataFrame({"user": [500], "at": [TEST], "kind": ["odd"], "item": [1234.0], "group": ["zzz"]})
    run(tmp_path, pd.concat([log, stranger]))
    row = next(row for row in PreparedData(tmp_path / "out").rows if row["customer_id"] == "500")
    assert [row[f"feature_{name}"] for name in ("token_type", "type", "a.b", "Type")] == [[1], [1], [1], [0]]
    assert row["validation_end"] == row["test_end"] == 0


def test_profiles_of_no_customer_give_a_warning_with_both_ids(tmp_path, caplog, capfd):
    run(tmp_path)
    assert "profile" not in caplog.text
    people = make_profile().assign(user=lambda table: "household " + table["user"].astype(str))
    prepare(make_log(), schema_with(), tmp_path / "other", profile=people)
    assert "profiles have ids such as 'household 0', the events such as '0'. Write them alike." in caplog.text
    assert "Preparing" not in capfd.readouterr().err  # no bar where the output is no terminal


def test_days_between_visits_are_those_of_the_training_period(tmp_path):
    log = make_log()
    run(tmp_path, log)
    training = log[log["at"] < VALIDATION]
    visit = training["session"].astype(str).where(training["session"].notna(), training["at"].astype(str))
    starts = training.groupby(["user", visit])["at"].min().reset_index().sort_values(["user", "at"])
    days = starts.groupby("user")["at"].diff().dropna() / timedelta(days=1)
    edges = np.quantile(days, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(load_extractor(tmp_path).bins["days_since_visit"], edges)


def test_the_measures_are_those_of_a_loop(tmp_path):
    log = make_log()
    targets = log[(log["kind"] == "buy") & (log["at"] < VALIDATION)].dropna(subset=["item", "group"], how="all")
    own = targets["at"].astype(str).where(targets["session"].isna(), targets["session"].astype(str))
    targets = targets.assign(own=own)
    visits = targets.groupby("user")["own"].nunique()
    expected = {"customers": len(visits), "one_visit": int((visits == 1).sum()), "visits": int(visits.sum())}
    assert run(tmp_path, log).measures == expected | {"targets": len(targets)}
