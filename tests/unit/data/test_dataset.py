# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The prepared data set as it is opened: its Arrow copy is that of these very shards."""

import os
import shutil
from pathlib import Path

import pytest
from folders import flipped_bits
from in_process import call

from modeling_mcm.data import PreparedData, load_prepared


def test_other_data_at_the_same_path_and_time_are_not_answered_from_the_copy(prepare_log, event_log, tmp_path):
    changed = event_log.assign(item=event_log["item"].iloc[::-1].to_numpy())
    folders = {"first": prepare_log(event_log), "second": prepare_log(changed)}
    found = {}
    for name, folder in folders.items():
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "data")
        for path in (tmp_path / "data").iterdir():
            os.utime(path, (1_000_000_000, 1_000_000_000))
        found[name] = load_prepared(tmp_path / "data")
    assert found["first"]["feature_items"][:] != found["second"]["feature_items"][:]
    assert len({rows.cache_files[0]["filename"] for rows in found.values()}) == 2


BESIDE_SHARDS = ["manifest.json", "feature_extractor/preprocessor_config.json"]
BESIDE_SHARDS += ["feature_extractor/vocabularies.json"]


@pytest.mark.parametrize("name", BESIDE_SHARDS)
def test_a_flipped_bit_beside_the_shards_is_found(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / "data")
    for _ in flipped_bits(tmp_path / "data" / name, 100):
        with pytest.raises(ValueError, match="prepare the data again"):
            PreparedData(tmp_path / "data")
    PreparedData(tmp_path / "data")


@pytest.mark.parametrize("change", [Path.unlink, lambda path: next(flipped_bits(path))], ids=["no shard", "a bit"])
def test_every_entrance_refuses_damaged_data(prepared, save, tmp_path, change):
    message = "is missing or not the file of the manifest: prepare the data again"
    folder, model = tmp_path / "data", save(extended=True)
    shutil.copytree(prepared, folder)
    path = sorted(folder.glob("customers-*"))[0]
    change(path)
    with pytest.raises(ValueError, match=message):
        PreparedData(folder).rows  # noqa: B018
    options = ["--data", folder, "--output_dir", tmp_path / "out"]
    known = ["--model", model, "--data", folder]
    for name, words in {
        "evaluate": known,
        "predict": [*known, *options[2:]],
        "pretrain": [*options, "--encoder", "none"],
    }.items():
        with pytest.raises(SystemExit, match=message):
            call(f"modeling_mcm.commands.{name}", *words)
    assert not list(tmp_path.glob("out/*.parquet"))
