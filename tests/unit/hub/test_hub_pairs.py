# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of labels that too few customers have are in no published weight, and the others stay as they are."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.data import load_prepared
from modeling_mcm.hub import customers_per_value, rare_values, shared_pairs, write_upload_folder
from modeling_mcm.training.scorer_counts import LabelCounts, LabelEvents

LEAST = 5


@pytest.fixture(scope="module")
def data(event_log, prepare_log):
    """A data set in which two customers alone have one of the items."""
    theirs = event_log.loc[event_log["item"] == "item 05", "who"].unique()[:2]
    return prepare_log(event_log[(event_log["item"] != "item 05") | event_log["who"].isin(theirs)])


@pytest.fixture(scope="module")
def rows(data):
    return load_prepared(data)


@pytest.fixture(scope="module")
def stored_extractor(data):
    return data / "feature_extractor"


@pytest.fixture
def checkpoint(rows, extractor, tiny_config, tmp_path):
    """A checkpoint with the tables of the data set's labels."""
    model = MCMForMultiTaskRecommendation(tiny_config(scorer=True))
    for table, (task, size) in zip(model.scorer.tables, model.config.label_sizes.items(), strict=True):
        counts = LabelCounts(LabelEvents.read(rows, task, size), np.arange(len(rows)) % 5)
        table.load_state_dict(counts.make_tables().state_dict())
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def hidden_and_shared(rows, extractor, monkeypatch):
    monkeypatch.setattr("modeling_mcm.hub.privacy.LABELS_AT_ONCE", 7)  # in parts
    rare = rare_values(customers_per_value(rows, extractor), extractor, LEAST)
    return rare, shared_pairs(rows, extractor, LEAST)


def customers_of_pairs(rows, task):
    """The number of customers by pair of labels, counted one by one."""
    counts = Counter()
    for row in rows:
        counts.update(
            product({label for label in row[f"feature_{task}"][: row["validation_end"]] if label > 1}, repeat=2)
        )
    return counts


def weights_of(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("size", ["1GB", "20KB"], ids=["one file", "several files"])
def test_only_pairs_of_enough_customers_are_published(checkpoint, rows, extractor, hidden_and_shared, tmp_path, size):
    if size == "20KB":
        model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size=size)
    before, number, gone = weights_of(checkpoint), 0, set()
    found = write_upload_folder(checkpoint, tmp_path / "out", *hidden_and_shared)
    after = weights_of(tmp_path / "out")
    for place, task in enumerate(extractor.tasks):
        customers, prefix = customers_of_pairs(rows, task), f"scorer.tables.{place}."
        (old_ids, old), (ids, new) = (
            (weights[f"{prefix}neighbours"], weights[f"{prefix}weights"]) for weights in (before, after)
        )
        for kind, label in product(range(len(old)), range(old.shape[1])):
            listed = list(zip(old_ids[kind, label].tolist(), old[kind, label].tolist(), strict=True))
            kept = [pair for pair in listed if customers[label, pair[0]] >= LEAST]
            left = list(zip(ids[kind, label].tolist(), new[kind, label].tolist(), strict=True))
            assert left == kept + [(0, 0)] * (len(listed) - len(kept))  # and no gap tells of a pair
            removed = {pair for pair in listed if pair[1] and pair not in kept}
            number += len(removed)
            gone |= {(task, label, other) for other, _ in removed}
        is_rare = torch.tensor([customers[label, label] < LEAST for label in range(old.shape[1])])
        assert torch.equal(after[f"{prefix}counts"], before[f"{prefix}counts"].masked_fill(is_rare, 0))
    rare = set(extractor.label_ids("items", hidden_and_shared[0]["items"]).tolist())
    of_rare = {pair for pair in gone if pair[0] == "items" and rare & {*pair[1:]}}
    assert rare and of_rare and gone - of_rare  # two labels that many have may be a pair of one customer
    assert found == number
    others = [name for name in before if "scorer.tables" not in name or "totals" in name]
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in others)


def test_pairs_are_counted_by_customers_and_in_the_training_period(data, rows, event_log):
    """By hand from the log: what a single customer does over and over is a pair of one customer."""
    extractor = MCMFeatureExtractor.from_pretrained(str(data / "feature_extractor"))
    first, second = extractor.label_ids("aisle", ["aisle 0", "aisle 1"]).tolist()
    log = event_log[(event_log["when"] < "2017-10-01") & (event_log["item"] != "item 05")]
    both = sum({"aisle 0", "aisle 1"} <= set(part["aisle"]) for _, part in log.groupby("who"))
    assert LEAST < both < len(rows)
    for least, is_shared in ((both, True), (both + 1, False)):
        pairs = shared_pairs(rows, extractor, least)["aisle"].tolist()
        assert (first * 2**32 + second in pairs) == (second * 2**32 + first in pairs) == is_shared


def test_without_the_customers_of_pairs_nothing_is_hidden_by_halves(checkpoint, hidden_and_shared, tmp_path):
    with pytest.raises(ValueError, match=r"not known how many customers have each pair: give `shared`"):
        write_upload_folder(checkpoint, tmp_path / "out", hidden_and_shared[0])
    assert write_upload_folder(checkpoint, tmp_path / "all") == 0
    assert (tmp_path / "all" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_the_script_says_how_many_pairs_it_hid(checkpoint, data, hidden_and_shared, tmp_path, command):
    words = ["--model", checkpoint, "--repo_id", "org/x", "--min_customers", LEAST, "--dry_run", "--data", data]
    said = command("push_to_hub", *words, "--output_dir", tmp_path / "out")
    number = write_upload_folder(checkpoint, tmp_path / "again", *hidden_and_shared)
    assert number and f" values are hidden, and {number:,} weights of pairs of labels" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{number:,} weights of pairs of labels that fewer than {LEAST} customers have both of are left out" in card
