# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What labels decide: their usual values of other features."""

import datasets
import pyarrow as pa
import torch

from modeling_mcm.data import load_prepared
from modeling_mcm.training.fitting import fill_label_values


def with_one_aisle_later(rows):
    """The rows, whose events from the validation cutoff on are all of one aisle."""
    table = rows.with_format("arrow")[:]
    place = table.column_names.index("feature_aisle")
    changed = [
        [*aisles[:end], *[2] * (len(aisles) - end)]
        for aisles, end in zip(table["feature_aisle"].to_pylist(), table["validation_end"].to_pylist(), strict=True)
    ]
    return datasets.Dataset(table.set_column(place, "feature_aisle", pa.array(changed, pa.list_(pa.int32()))))


def test_nothing_after_the_cutoff_changes_what_labels_decide(prepared, tiny_model):
    rows, found = load_prepared(prepared), []
    for each in (rows, with_one_aisle_later(rows)):
        model = tiny_model(extended=True, label_features=["aisle", "type"])
        decided = fill_label_values(model, each)
        found.append((decided, [model.label_values(place).tolist() for place in range(len(model.config.tasks))]))
    assert found[0] == found[1]


def test_labels_decide_the_features_that_never_change_with_them(prepared, tiny_model):
    model = tiny_model(extended=True, label_features=["aisle", "type"])
    rows = load_prepared(prepared)
    decided = fill_label_values(model, rows)
    place = model.config.tasks.index("items")
    assert "aisle" in decided["items"] and "aisle" not in decided["aisle"]  # an item has one aisle in the log
    usual = {}
    for row in rows:
        for label, aisle in zip(row["task_items"][: row["validation_end"]], row["feature_aisle"], strict=False):
            if label >= 2 and aisle >= 2:
                usual[label] = aisle
    found = model.label_values(place)[:, 0]
    assert {label: int(found[label]) for label in usual} == usual and found[:2].tolist() == [0, 0]
    tables = dict(zip(model.config.features, model.model.embeddings.events.feature_tables, strict=True))
    label, vectors = next(iter(usual)), model.label_embeddings("items")
    others = [
        tables[name].weight[int(model.label_values(place)[label, k])] for k, name in enumerate(["aisle", "type"])
    ]
    known = [vector for k, vector in enumerate(others) if model.label_values(place)[label, k] > 0]
    wanted = (tables["items"].weight[label] + sum(known)) / (1 + len(known))
    torch.testing.assert_close(vectors[label], wanted)
