# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of labels that too few customers have are in no published weight, and the others stay as they are."""

import shutil
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.data import load_prepared
from modeling_mcm.hub import customers_per_value, rare_values, shared_pairs, write_upload_folder

LEAST = 3
FIRST = "counted_memory.follower_tables."


@pytest.fixture(scope="module")
def data(event_log, prepare_log):
    """A data set of which followers are counted: one event a visit. Two customers alone have one of the items."""
    log = event_log.drop_duplicates(["who", "when"])
    theirs = log.loc[log["item"] == "item 05", "who"].unique()[:2]
    return prepare_log(log[(log["item"] != "item 05") | log["who"].isin(theirs)])


@pytest.fixture(scope="module")
def stored_extractor(data):
    return data / "feature_extractor"


@pytest.fixture
def checkpoint(data, extractor, tiny_model, tmp_path):
    """A checkpoint with the data set's followers, and related labels of every label."""
    model = tiny_model(follower_tasks=["items", "aisle"], related_tasks=["items"])
    followers = pq.read_table(data / "followers.parquet").to_pylist()
    for place, task in enumerate(extractor.tasks[:2]):
        table = model.counted_memory.follower_tables[str(place)]
        for label in range(len(table.totals)):
            of_label = [row for row in followers if (row["task"], row["label"]) == (task, label)]
            if of_label:
                table.followers[label, -len(of_label) :] = torch.tensor([row["follower"] for row in of_label]).int()
                table.counts[label, -len(of_label) :] = torch.tensor([row["weight"] for row in of_label]).float()
    for tables in (model.counted_memory.habit_tables, model.counted_memory.new_tables):
        size = len(tables["0"].weights)
        tables["0"].related[:, :size] = torch.arange(size).int()
        tables["0"].weights[:, 2:size] = torch.rand(size, size - 2) + 0.1
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def hidden_and_shared(data, extractor):
    hidden = rare_values(customers_per_value(load_prepared(data), extractor), extractor, LEAST)
    return hidden, shared_pairs(pq.read_table(data / "followers.parquet"), LEAST)


def weights_of(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def pairs_of(weights, place):
    """Label, follower and count of each pair of a table."""
    ids, counts = (weights[f"{FIRST}{place}.{name}"] for name in ("followers", "counts"))
    assert (ids.diff(dim=1) >= 0).all() and ((ids > 0) == (counts > 0)).all()
    return {(int(label), int(ids[label, k]), float(counts[label, k])) for label, k in (ids > 0).nonzero().tolist()}


@pytest.mark.parametrize("size", ["1GB", "20KB"], ids=["one file", "several files"])
def test_only_pairs_of_enough_customers_are_published(checkpoint, data, extractor, tmp_path, size):
    if size == "20KB":
        model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size=size)
    hidden, shared = hidden_and_shared(data, extractor)
    before = weights_of(checkpoint)
    found = write_upload_folder(checkpoint, tmp_path / "out", hidden, shared)
    after = weights_of(tmp_path / "out")
    rows = pq.read_table(data / "followers.parquet").to_pylist()
    number = 0
    for place, task in enumerate(extractor.tasks[:2]):
        of_task = [row for row in rows if row["task"] == task]
        kept = {(row["label"], row["follower"], float(row["weight"])) for row in of_task if row["customers"] >= LEAST}
        assert pairs_of(after, place) == kept != set() and len(pairs_of(before, place)) == len(of_task)
        assert {label for label, _, _ in kept}.isdisjoint(extractor.label_ids(task, hidden[task]).tolist())
        number += len(of_task) - len(kept)
    assert found.hidden_pairs.followers == number > 0
    rare = set(extractor.label_ids("items", hidden["items"]).tolist())
    assert rare and found.hidden_pairs.related > 0
    for kind in ("habit", "new"):
        names = [f"counted_memory.{kind}_tables.0.{name}" for name in ("related", "weights")]
        for label, k in product(range(len(before[names[0]])), range(before[names[0]].shape[1])):
            is_rare = label in rare or int(before[names[0]][label, k]) in rare
            expected = [0, 0] if is_rare and before[names[1]][label, k] else [before[name][label, k] for name in names]
            assert [after[name][label, k] for name in names] == expected
    others = [name for name in before if "_tables." not in name or "totals" in name]
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in others)
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "out")


def test_pairs_are_counted_by_customers_and_not_by_events(data, event_log):
    """By hand for one pair: what a single customer does over and over is a pair of one customer."""
    extractor = MCMFeatureExtractor.from_pretrained(str(data / "feature_extractor"))
    log = event_log.drop_duplicates(["who", "when"]).sort_values(["who", "when"])
    log = log[(log["when"] < "2017-10-01") & (log["action"] == "buy")]
    rows = pq.read_table(data / "followers.parquet").to_pylist()
    row = max((row for row in rows if row["task"] == "aisle"), key=lambda row: row["customers"])
    label, follower = extractor.decode_labels("aisle", [row["label"], row["follower"]])
    assert LEAST < row["customers"] <= sum({label, follower} <= set(part["aisle"]) for _, part in log.groupby("who"))


def test_without_the_customers_of_pairs_nothing_is_hidden_by_halves(checkpoint, data, extractor, tmp_path):
    hidden, _ = hidden_and_shared(data, extractor)
    with pytest.raises(ValueError, match=r"not known how many customers have each pair: give.*followers\.parquet"):
        write_upload_folder(checkpoint, tmp_path / "out", hidden)
    found = write_upload_folder(checkpoint, tmp_path / "all")
    assert found.hidden_pairs == (0, 0)
    assert (tmp_path / "all" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_the_script_says_how_many_pairs_it_hid(checkpoint, data, tmp_path, command):
    words = ["--model", checkpoint, "--repo_id", "org/x", "--min_customers", LEAST, "--dry_run"]
    said = command("push_to_hub", *words, "--data", data, "--output_dir", tmp_path / "out")
    customers = np.asarray(pq.read_table(data / "followers.parquet")["customers"])
    number = int((customers < LEAST).sum())
    assert f"{number:,} pairs of labels, and " in said and f"Of fewer than {LEAST} customers: " in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{number:,} pairs of labels that came together for fewer than {LEAST} customers are left out" in card
    shutil.copytree(data, tmp_path / "older")
    (tmp_path / "older" / "followers.parquet").unlink()
    options = [*words, "--data", tmp_path / "older", "--output_dir", tmp_path / "again"]
    command("push_to_hub", *options, fails="push_to_hub: The weights hold which labels came together")
