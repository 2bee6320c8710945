# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The prepared data set as it is opened: its Arrow copy is that of these very shards."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data import load_prepared


def test_other_data_at_the_same_path_and_time_are_not_answered_from_the_copy(prepare_log, event_log, tmp_path):
    changed = event_log.assign(item=event_log["item"].iloc[::-1].to_numpy())
    folders = {"first": prepare_log(event_log), "second": prepare_log(changed)}
    found = {}
    for name, folder in folders.items():
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "data")
        for path in (tmp_path / "data").iterdir():
            os.utime(path, (1_000_000_000, 1_000_000_000))
        found[name] = load_prepared(tmp_path / "data", cache_dir=tmp_path / "cache")["feature_items"][:]
        rows = [pq.read_table(path) for path in sorted(folder.glob("customers*"))]
        assert found[name] == pa.concat_tables(rows)["feature_items"].to_pylist()
    assert found["first"] != found["second"]
    copies = {path.parent for path in (tmp_path / "cache").rglob("*.arrow")}
    assert load_prepared(tmp_path / "data", cache_dir=tmp_path / "cache")["feature_items"][:] == found["second"]
    assert {path.parent for path in (tmp_path / "cache").rglob("*.arrow")} == copies and len(copies) == 2
