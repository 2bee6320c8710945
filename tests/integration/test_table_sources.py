# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Logs in tables of PostgreSQL, DuckDB and Delta Lake: the same data as from Parquet, and what is wrong is told."""

import tempfile
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import sqlalchemy
import yaml
from corner_shop import SCHEMA, make_profile
from deltalake import DeltaTable, write_deltalake
from in_process import call
from postgres_server import Postgres

from modeling_mcm import CustomerModel
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.sources import SourceTable


@pytest.fixture(scope="module")
def postgres():
    # Not pytest's folder, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="mcm-postgres-") as folder, Postgres(Path(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def log(event_log):
    return event_log.assign(when=pd.to_datetime(event_log["when"]).astype("datetime64[us]"))


@pytest.fixture(params=["postgresql", "duckdb", "delta"])
def sources(request, log, tmp_path):
    """A log and its profiles as tables of a kind."""
    tables, kind = {"events": log, "profile": make_profile(log)}, request.param
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        engine = sqlalchemy.create_engine(server.empty().replace("postgresql:", "postgresql+psycopg:"))
        for name, table in tables.items():
            table.sample(frac=1, random_state=0).to_sql(name, engine, index=False)
        engine.dispose()
        return {name: f"{server.url}#public.{name}" for name in tables}
    if kind == "duckdb":
        with duckdb.connect(tmp_path / "shop.duckdb") as connection:
            connection.sql("CREATE SCHEMA sales")
            for name, table in tables.items():
                connection.register("frame", table)
                connection.sql(f"CREATE TABLE sales.{name} AS SELECT * FROM frame ORDER BY random()")
        return {name: f"duckdb://{tmp_path}/shop.duckdb#sales.{name}" for name in tables}
    for name, table in tables.items():
        write_deltalake(tmp_path / name, table)
    fewer = DeltaTable(tmp_path / "events")
    fewer.delete("item = 'item 01'")  # its file stays in the folder
    write_deltalake(tmp_path / "events", log[log["item"] == "item 01"].reset_index(drop=True), mode="append")
    return {name: str(tmp_path / name) for name in tables}


def read_shards(folder):
    return [shard["sha256"] for shard in PreparedData(folder).manifest.shards]


def test_tables_are_read_as_files_are(sources, log, tmp_path):
    schema = EventSchema.from_dict(SCHEMA)
    log.to_parquet(tmp_path / "log.parquet")
    prepare(tmp_path / "log.parquet", schema, tmp_path / "wanted", profile=make_profile(log))
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(schema.to_dict()))
    options = ["--schema", tmp_path / "schema.yaml", "--output_dir", tmp_path / "data"]
    call("prepare_data", "--events", sources["events"], "--profile", sources["profile"], *options)
    assert read_shards(tmp_path / "data") == read_shards(tmp_path / "wanted")
    with pytest.raises(ValueError, match="order of their own"):
        features = [each for each in SCHEMA["features"] if each.get("kind") not in ("weekday", "days_since_visit")]
        rows = {"time": None, "order": "rows", "cutoffs": "leave_one_out", "features": features, "visit": None}
        schema = EventSchema.from_dict(SCHEMA | rows | {"profile": [], "amount": None})
        prepare(sources["events"], schema, tmp_path / "rows")


def test_a_table_is_never_taken_for_the_one_of_before(sources, log, tmp_path):
    schema, folder = EventSchema.from_dict(SCHEMA), tmp_path / "data"
    log.to_parquet(tmp_path / "log.parquet")
    prepare(tmp_path / "log.parquet", schema, folder, profile=sources["profile"])
    with pytest.raises(FileExistsError, match="another input made it"):
        prepare(tmp_path / "log.parquet", schema, folder, profile=sources["profile"], reuse=True)


def test_models_are_fitted_to_tables(sources, log):
    wanted, found = (CustomerModel.fit(events, learn=False) for events in (log, sources["events"]))
    order = wanted.customers
    pd.testing.assert_frame_equal(found.recommend(order), wanted.recommend(order), atol=1e-5)


def test_what_is_wrong_with_a_table_is_told(postgres, log, tmp_path):
    url, file = postgres.empty().replace("mcm@", "mcm:secret@"), tmp_path / "shop.duckdb"
    duckdb.connect(file).close()
    write_deltalake(tmp_path / "delta", log)
    wrong = {
        f"{url}#nothing": r"table 'nothing' of postgresql://127.0.0.1:\d+/postgres can't be opened \(nothing\)",
        url: "is a database: name a table of it, as in postgresql://...#events",
        "postgresql://mcm:secret@127.0.0.1:9/shop#events": "of postgresql://127.0.0.1:9/shop can't be opened",
        f"duckdb://{file}#nothing": "table 'nothing' of duckdb://.*shop.duckdb can't be opened",
        f"duckdb://{tmp_path}/none.duckdb#events": "none.duckdb can't be opened .*does not exist",
    }
    for source, message in wrong.items():
        with pytest.raises(ValueError, match=message) as error:
            SourceTable(source, "event")
        assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="is a table of Delta Lake, which is read from a disk and as the only source"):
        SourceTable([tmp_path / "delta", tmp_path / "delta"], "event")
    next((tmp_path / "delta" / "_delta_log").glob("*.json")).write_text("{")
    with pytest.raises(ValueError, match=r"table of Delta Lake .*delta can't be read"):
        SourceTable(tmp_path / "delta", "event")
