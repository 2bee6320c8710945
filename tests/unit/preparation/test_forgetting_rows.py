# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared data without some customers are those of the others; and data that change are whole at every moment."""

import errno
import os
import re
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from folders import content
from synthetic_log import SCHEMA, make_log, make_profile, schema_with

from modeling_mcm.data import NO_CUTOFFS, PreparedManifest
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.forget import forget_in_prepared

FEW = {"max_events": 6, "max_events_per_customer": 6}
CHOICES = [{}, {"visit": None, "end_of_visit": None, "on_duplicate": "drop"} | FEW]
CHOICES += [{"tasks": ["token_type"], "target_token_types": []}, {"cutoffs": NO_CUTOFFS}]
PLACES = {"time": None, "order": "place", "cutoffs": "leave_one_out", "features": SCHEMA["features"][:5]}
CHOICES += [{"cutoffs": "leave_one_out"}, PLACES]


@pytest.mark.parametrize("choices", CHOICES)
def test_after_a_deletion_the_counts_are_those_of_the_others(tmp_path, choices):
    log, schema = make_log(), schema_with(**choices)
    log = log.assign(place=log["at"].rank(method="dense").astype(int))
    log.loc[log["user"] == 2, "group"] = "of one alone"
    for name, part in (("data", log), ("others", log[log["user"] != 2])):
        prepare(part, schema, tmp_path / name, profile=make_profile(), rows_per_shard=4)
    before = PreparedManifest.load(tmp_path / "data")
    assert forget_in_prepared(tmp_path / "data", {"2"}) == 1
    tables = [pq.read_table(tmp_path / name / "popularity.parquet").to_pylist() for name in ("data", "others")]
    by_value = [{(row["feature"], row["value"]): row["target_count"] for row in table} for table in tables]
    assert by_value[0] == by_value[1] and "of one alone" not in {value for _, value in by_value[0]}
    after, expected = (PreparedManifest.load(tmp_path / name) for name in ("data", "others"))
    assert after.measures == expected.measures != before.measures or schema.cutoffs == NO_CUTOFFS


def prepare_shop(folder, log):
    prepare(log, schema_with(), folder, profile=make_profile(), rows_per_shard=5, overwrite=True)


CHANGES = {
    "prepare": lambda folder: prepare_shop(folder, make_log(seed=1)),
    "forget": lambda folder: forget_in_prepared(folder, {"1", "4"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_scores_of_the_page_do_not_outlive_a_change(tmp_path, change):
    prepare_shop(tmp_path / "data", make_log())
    for name in ("page.parquet", "notes.parquet"):
        (tmp_path / "data" / name).write_bytes(b"of before")
    CHANGES[change](tmp_path / "data")
    assert not (tmp_path / "data" / "page.parquet").exists()
    assert (tmp_path / "data" / "notes.parquet").exists() == (change == "forget")


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_fills_up_leaves_all_as_it_was_and_names_the_file(tmp_path, monkeypatch, change):
    prepare_shop(tmp_path / "data", make_log())
    before, sync, named, room = content(tmp_path), os.fsync, [], []

    def fsync(file):
        if not room:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:  # a new file: others are linked, and written
                os.ftruncate(file, status.st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        room.pop()
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for files in range(100):
            room[:] = [None] * files
            try:
                CHANGES[change](tmp_path / "data")
                break
            except OSError as error:
                path = re.search(r"(\S+) can't be written \(No space left on device\)", str(error))[1]
                named.append(Path(path).name)
            assert content(tmp_path) == before
    assert len(named) >= 5 and {"manifest.json", "popularity.parquet"} <= {*named}
    assert any(name.endswith(".parquet") and name[0] in "c0123456789" for name in named)  # a shard
    assert content(tmp_path) != before
