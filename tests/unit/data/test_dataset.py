# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The prepared data set as it is opened: its Arrow copy is that of these very shards."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_mcm.data import PreparedData, PreparedManifest, load_prepared
from modeling_mcm.evaluation.cases import cases_at, find_cases


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


def test_prepared_data_have_what_is_read_by_hand(prepared, extractor):
    data, rows = PreparedData(prepared), load_prepared(prepared)
    manifest = PreparedManifest.load(prepared)
    assert (data.manifest, data.schema) == (manifest, manifest.event_schema)
    assert data.extractor.to_dict() == extractor.to_dict()
    assert data.rows.to_list() == rows.to_list() and data.rows is data.rows
    part = rows.select(range(10))
    for chosen, min_history in ((rows, None), (part, None), (part, 5)):
        cases = cases_at(data, "test", chosen, min_history)
        assert cases.customer_ids == find_cases(chosen, "test", min_history or 3, "type").customer_ids
    assert cases_at(data, "test").customer_ids == find_cases(rows, "test", 3, "type").customer_ids
    assert cases_at(data, "test").moment == data.schema.cutoff_seconds("test")


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no manifest.json, so it is not a \(finished\) prepared"):
        PreparedData(tmp_path / "absent")
