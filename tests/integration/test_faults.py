# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What really goes wrong with data: kills, a full disk, damaged files, files that do not fit, wrong clocks."""

import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from corner_shop import SCHEMA, make_profile
from folders import content
from forked_runs import ROOT, kill_at

from modeling_mcm.data import EventSchema, PreparedManifest, load_prepared
from modeling_mcm.preparation import prepare
from synthetic import ShopSettings, make_click_log

CLICKS = ROOT / "configuration" / "schemas" / "clickstream.yaml"


def prepare_again(folder):
    schema = EventSchema.from_yaml(folder / "schema.yaml")
    return prepare(folder / "log", schema, folder / "data", rows_per_shard=10, overwrite=True)


@pytest.fixture
def shop(tmp_path):
    """A folder with a log of three files, and a data set of the first two."""
    log = make_click_log(40, ShopSettings(items=50, subcategories=10, categories=5)).events.sort_by("timestamp")
    (tmp_path / "log").mkdir()
    third = len(log) // 3
    for name, start in (("log/0", 0), ("log/1", third), ("tomorrow", 2 * third)):
        pq.write_table(log.slice(start, third if name != "tomorrow" else None), tmp_path / f"{name}.parquet")
    schema = EventSchema.from_yaml(CLICKS)
    changed = EventSchema.from_dict(schema.to_dict() | {"cutoffs": {"validation": "2024-01-15", "test": "2024-02-01"}})
    path = tmp_path / "schema.yaml"
    path.write_text(json.dumps(changed.to_dict()))  # JSON is YAML
    prepare(tmp_path / "log", changed, tmp_path / "data", rows_per_shard=10)
    return tmp_path


RENAME = "pathlib.Path.rename"


@pytest.mark.parametrize(("function", "moment"), [("pyarrow.parquet.write_table", 3), (RENAME, 2), (RENAME, 1)])
def test_a_killed_run_leaves_the_old_data_set_and_is_run_again(shop, function, moment):
    before = content(shop / "data")
    shutil.move(shop / "tomorrow.parquet", shop / "log")
    kill_at(moment, [function], prepare_again, shop)
    left = sorted(shop.glob(".data.*"))
    assert left
    if (function, moment) == (RENAME, 2):  # between the two renames
        next(path for path in left if path.suffix == ".partial").joinpath("replaced").rename(shop / "data")
    assert content(shop / "data") == before
    customers = PreparedManifest.load(shop / "data").counts["customers"]
    assert len(load_prepared(shop / "data")) == customers
    prepare_again(shop)
    assert content(shop / "data") != before


def test_a_full_disk_is_said_and_leaves_what_was_there(shop, small_disk):
    schema = EventSchema.from_yaml(shop / "schema.yaml")
    disk = small_disk("1m")
    data = disk / "data"
    prepare(shop / "log", schema, data)
    before = content(data)
    log = make_click_log(800).events
    others = [log.set_column(0, "user_id", pc.add(log["user_id"], 800 * copy)) for copy in range(60)]
    pq.write_table(pa.concat_tables(others), shop / "large.parquet")
    size = (shop / "large.parquet").stat().st_size
    # What meets the end of the disk is up to the machine: mostly the copy of the log, a shard, what DuckDB spills.
    for room, memory in (("1m", "1GB"), (size, "1GB"), (size, "60MB")):
        small_disk(room)
        with pytest.raises(OSError, match="no more memory or disk .*make room on its disk"):
            prepare(shop / "large.parquet", schema, data, overwrite=True, memory_limit=memory)
        assert content(data) == before and [path.name for path in disk.iterdir()] == ["data"]


def test_a_damaged_file_of_the_log_is_an_error(shop):
    path = sorted((shop / "log").glob("*"))[1]
    damaged = bytearray(path.read_bytes())
    damaged[100:2000] = bytes(1900)
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=f"{path.name} can't be read .*write it again"):
        prepare(shop / "log", EventSchema.from_yaml(shop / "schema.yaml"), shop / "other")
    assert not (shop / "other").exists()


def test_columns_that_are_not_read_may_change(event_log, tmp_path):
    (tmp_path / "log").mkdir()
    event_log[::2].assign(note=1, gone=2).to_parquet(tmp_path / "log" / "a.parquet")
    event_log[1::2].assign(note="x")[["note", *event_log.columns[::-1]]].to_parquet(tmp_path / "log" / "b.parquet")
    schema, profile = EventSchema.from_dict(SCHEMA), make_profile(event_log)
    sources = {"files": tmp_path / "log", "frame": event_log}
    files, frame = (prepare(source, schema, tmp_path / name, profile=profile) for name, source in sources.items())
    assert files.shards == frame.shards
