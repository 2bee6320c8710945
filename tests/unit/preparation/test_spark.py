# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation on Spark: to the byte what DuckDB writes, from every form of a log."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from synthetic_log import SCHEMA, TEST, make_log, make_profile, read_log, run, schema_with, write_months

from modeling_mcm.data import EventSchema
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.engine import each_shard, open_engine

FITTED = ("feature_extractor/vocabularies.json", "feature_extractor/preprocessor_config.json")


def awkward_log():
    """What logs have: gaps, duplicates, ties, fractions as categories, odd names, unknown values, visits and none."""
    log = make_log()
    log["price"] = log["price"].mask(log.index % 17 == 0, 1e300).mask(log.index % 23 == 0, -0.0)
    log["price"] = log["price"].mask(log.index % 29 == 0, -1e39).mask(log.index % 31 == 0, -1e-60)
    log["item"] = log["item"].mask(log.index % 11 == 0, 0.1).mask(log.index % 13 == 0, 1e-7)
    log["group"] = log["group"].mask(log.index % 7 == 0, "\uff5e").mask(log.index % 19 == 0, '\U0001f600, \u00e9 \\ "')
    names = {0: "\uff5e", 1: "\U0001f600", 2: "B", 3: "a"}  # another order in UTF-16
    log["user"] = log["user"].map(lambda user: names.get(user, str(user)))
    tied = log.assign(at=log["at"].dt.normalize()).head(60)
    log["at"] += pd.to_timedelta(np.random.default_rng(0).integers(0, 10**6, len(log)), unit="us")  # which orders
    late = log.head(9).assign(user="late", at=TEST + timedelta(days=1), item=1234.5, group="never seen")
    lost = [log.head(2).assign(user=None), log.head(1).assign(at=pd.NaT)]
    return pd.concat([log, log.head(12), tied, late, *lost], ignore_index=True)


def check_same_bytes(folder, events, profile, schema):
    """DuckDB and Spark write the same data set; gives its manifest."""
    options = {"profile": profile, "rows_per_shard": 5}
    duckdb, spark = (prepare(events, schema, folder / name, engine=name, **options) for name in ("duckdb", "spark"))
    assert spark.versions.pop("pyspark") and spark == replace(duckdb, log=[])  # only DuckDB keeps what it read
    for name in (*FITTED, *(shard["file"] for shard in duckdb.shards)):
        assert (folder / "spark" / name).read_bytes() == (folder / "duckdb" / name).read_bytes(), name
    return duckdb


@pytest.fixture
def connection(spark, tmp_path):
    """An Ibis connection to Spark, with the settings of preparation."""
    with open_engine("spark", tmp_path) as connection:
        yield connection


@pytest.mark.slow
def test_spark_writes_what_duckdb_writes(spark, tmp_path):
    awkward_log().astype({"at": "datetime64[us]"}).to_parquet(tmp_path / "log.parquet")
    profile = make_profile()[:3].assign(user=["\uff5e", "B", "5"])
    profile.to_parquet(tmp_path / "profile.parquet")
    features = [spec | ({"max_values": 4} if spec["name"] == "a.b" else {}) for spec in SCHEMA["features"]]
    choices = {"on_null": "drop", "on_duplicate": "drop", "max_events": 20, "max_events_per_customer": 20}
    schema = schema_with(features=features, **choices)
    made = check_same_bytes(tmp_path, tmp_path / "log.parquet", tmp_path / "profile.parquet", schema)
    assert min(made.counts[name] for name in ("dropped_null", "dropped_duplicates", "dropped_excess")) > 0
    assert len(made.shards) == 3
    assert not spark.catalog.listTables() and spark.conf.get("spark.sql.caseSensitive") == "false"


@pytest.mark.slow
def test_parts_of_columns_and_order_are_read_alike(spark, tmp_path):
    log = awkward_log()[["user", "item", "group"]].dropna(subset=["user"]).reset_index(drop=True)
    log["place"] = log.index // 2
    log["path"] = [("a.b.c", "a", "b..c", ".", None, "\uff5e.[x]+\\d")[place % 6] for place in log.index]
    genres = [("x^|y", "y^|new^|", "", None, "^|z^|x", '\uff5e"^|\\')[place % 6] for place in log.index]
    log["genres"], log["tags"] = genres, [None if text is None else [*text.split("^|"), None] for text in genres]
    log.to_parquet(tmp_path / "log.parquet")
    features = [{"name": "item"}, {"name": "genres", "max_items": 2, "min_count": 20, "separator": "^|"}]
    features += [{"name": "tags", "max_items": 2}, {"name": "path", "separator": ".", "levels": ["top", "middle"]}]
    schema = {"customer": "user", "order": "place", "features": features, "cutoffs": "leave_one_out"}
    schema = EventSchema.from_dict(schema | {"tasks": ["item", "genres", "middle"]})
    assert check_same_bytes(tmp_path, tmp_path / "log.parquet", None, schema).counts["test_cases"] > 5
    with pytest.raises(ValueError, match="the rows of a table of a database or of Spark have no order"):
        prepare(tmp_path / "log.parquet", replace(schema, order="rows"), tmp_path / "rows", engine="spark")


def test_partitions_lists_and_frames_are_read(connection, tmp_path):
    log = make_log()
    write_months(log, tmp_path / "log" / "year=2024")
    (tmp_path / "log" / "_SUCCESS").touch()
    more = make_log(seed=1).assign(year="2025", month="01")
    more.to_parquet(tmp_path / "more.parquet")
    expected = pd.concat([log.assign(year="2024", month=log["at"].dt.strftime("%m")), more])
    sources = [tmp_path / "log", f"file://{tmp_path}/more.parquet"]
    schema = schema_with(features=[*schema_with().to_dict()["features"], {"name": "year"}, {"name": "month"}])
    found = read_log(sources, schema, tmp_path, connection)[0]
    assert found == read_log(sources, schema, tmp_path)[0] == read_log(expected, schema, tmp_path, connection)[0]


def test_what_spark_cannot_read_is_named(connection, tmp_path):
    with pytest.raises(ValueError, match="Spark can't read the event file memory://log .*No FileSystem for scheme"):
        read_log("memory://log", schema_with(), tmp_path, connection)
    make_log().astype({"at": "datetime64[ns]"}).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="log.parquet .*NANOS.* write times in microseconds"):
        read_log(tmp_path / "log.parquet", schema_with(), tmp_path, connection)


def test_the_error_of_a_worker_is_raised(connection):
    def fail(group, rows):
        raise OSError(28, f"No space left on device for group {group}")

    table = connection.create_view("few", ibis.memtable({"shard": [0, 1], "value": [1, 2]}))
    with pytest.raises(OSError, match="Spark failed: OSError: .Errno 28. No space left on device"):
        list(each_shard(table, 2, fail))


def test_a_session_that_runs_keeps_its_master(spark, tmp_path):
    options = {"spark.master": "local[2]", "spark.sql.maxPlanStringLength": "9"}
    with open_engine("spark", tmp_path, spark_config=options):
        pass
    assert spark.conf.get("spark.sql.maxPlanStringLength") != "9"
    with pytest.raises(ValueError, match="A Spark session runs already, and spark.master can't be changed"):
        with open_engine("spark", tmp_path, spark_config={"spark.master": "local[9]"}):
            pass


def test_spark_without_java_says_what_is_missing(tmp_path):
    pytest.importorskip("pyspark", reason="Spark not installed")
    code = "from modeling_mcm.preparation.engine import spark_session as s; s({}).__enter__()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "JAVA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert "OSError: Spark did not start" in done.stderr and "JAVA_HOME: Java 17" in done.stderr


def test_spark_s_options_belong_to_spark(tmp_path):
    with pytest.raises(ValueError, match="Spark's options are given .spark.master. and the engine is 'duckdb'"):
        run(tmp_path, spark_config={"spark.master": "local[2]"})
    with pytest.raises(ValueError, match="'duckdb', 'spark' or an Ibis connection"):
        run(tmp_path, engine="sparc")
