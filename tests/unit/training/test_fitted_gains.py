# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What counts are worth: the gains that training prefixes and validation cases give them."""

import json
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from choices import PAPER
from corner_shop import SCHEMA

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation
from modeling_mcm.counted_memory_mcm import LAG_WEIGHTS
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.modeling_mcm import PARTS
from modeling_mcm.preparation.counts import FOLLOWERS
from modeling_mcm.training.counts import NEW_RIDGE, fill_followers, fill_label_values, fill_related, training_labels
from modeling_mcm.training.gains import fit_followers, fit_scales

TASK = "item"


def chain(customers=80, length=12, labels=20, seed=0):
    """Label sequences in which most labels have one usual follower, and no label comes twice."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(customers):
        row = [int(draw.integers(labels))]
        while len(row) < length:
            usual = (row[-1] * 7 + 3) % labels
            free = [label for label in range(labels) if label not in row]
            row.append(usual if usual in free and draw.random() < 0.8 else int(draw.choice(free)))
        rows.append([label + 2 for label in row])
    return rows


def followers_table(rows):
    counts = Counter()
    for row in rows:
        for place, label in enumerate(row):
            for lag, weight in LAG_WEIGHTS.items():
                if 0 <= place + lag < len(row):
                    counts[label, row[place + lag]] += weight
    found = sorted((label, follower, weight) for (label, follower), weight in counts.items())
    columns = list(zip(*found, strict=True))
    named = {"task": [TASK] * len(found), "label": columns[0], "follower": columns[1], "weight": columns[2]}
    return pa.table(named | {"customers": [1] * len(found)}, FOLLOWERS)


def batches_of(rows, size=16):
    """Training batches of all prefixes, as the collator makes them."""
    for at in range(0, len(rows), size):
        ids = torch.tensor(rows[at : at + size])
        number, length = ids.shape
        every = torch.arange(length - 1).expand(number, -1)
        yield {
            "input_ids": torch.stack([torch.full_like(ids, 2), ids], -1),
            "visit_ids": torch.arange(length).expand(number, -1),
            "event_times": torch.arange(length).float().expand(number, -1),
            "prefix_ends": every,
            "label_prefixes": every,
            "labels": ids[:, 1:, None],
        }


@pytest.fixture
def chain_model():
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    choices = PAPER | {"augmentation": "all_prefixes", "readout": "last", "readout_bias": True}
    of_data = {"features": ["kind", TASK], "vocabulary_sizes": [3, 22], "tasks": [TASK], "follower_tasks": [TASK]}
    return MCMForMultiTaskRecommendation(MCMConfig(**shape | choices | of_data))


def test_followers_gain_what_they_are_worth_and_what_was_met_is_pushed_down(chain_model):
    rows = chain()
    popularity = pa.table({"feature": [TASK] * 20, "id": list(range(2, 22)), "count": [48] * 20})
    fill_followers(chain_model, followers_table(rows), popularity)
    losses = fit_followers(chain_model, batches_of(rows), {TASK: torch.full((22,), 48.0)})[TASK]
    assert losses["after"] < min(losses["before"], np.log(20)) - 0.2
    memory = chain_model.counted_memory
    assert memory.follower_gain[0] > 0.5 and memory.met_gain[0] < -2  # no label comes twice


def test_pairs_that_only_their_customer_has_are_worth_nothing(chain_model):
    """Every customer has labels of its own: with its own pairs each would be foretold, without them nothing can be."""
    rows = [[2 + 2 * customer, 3 + 2 * customer] for customer in range(10)]
    popularity = pa.table({"feature": [TASK] * 20, "id": list(range(2, 22)), "count": [1] * 20})
    fill_followers(chain_model, followers_table(rows), popularity)
    losses = fit_followers(chain_model, batches_of(rows), {TASK: torch.ones(22)})[TASK]
    assert losses["after"] > np.log(18) - 0.2  # at best each row's own two labels are told from the others


def test_related_labels_are_those_of_the_textbook(prepared, tiny_model):
    model = tiny_model(extended=True, related_tasks=["items"])
    rows = load_prepared(prepared)
    place = model.config.tasks.index("items")
    fill_related(model, training_labels(rows, model.config.tasks))
    sets = np.zeros((len(rows), model.config.label_sizes["items"]))
    for row, (labels, end) in enumerate(zip(rows["task_items"], rows["validation_end"], strict=True)):
        sets[row, [label for label in labels[:end] if label >= 2]] = 1
    gram = sets.T @ sets
    inverse = np.linalg.inv(gram + NEW_RIDGE * np.diag(gram)[2:].mean() * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    weights[:, :2] = 0
    table = model.counted_memory.new_tables[str(place)]
    found = torch.zeros(weights.shape).scatter_add(1, table.related.long(), table.weights.float())
    assert np.abs(found.numpy() - weights).max() < 1e-3
    assert np.abs(weights).max() > 0.01


def test_scales_make_validation_cases_likelier(prepared, tiny_model, extractor):
    model = tiny_model(extended=True, related_tasks=["items"])
    rows = load_prepared(prepared)
    fill_related(model, training_labels(rows, model.config.tasks))
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff="validation")
    cases = PreparedRows(rows, np.arange(len(rows)))

    def loss():
        batch = collator(cases.__getitems__(list(range(len(cases)))))
        labels, logits = batch.pop("labels"), model(**batch).logits["items"]
        wanted = labels[..., model.config.tasks.index("items")]
        return -logits.log_softmax(-1).gather(1, wanted.clamp(min=0))[wanted >= 2].mean().item()

    def batches():
        return (collator(cases.__getitems__([place])) for place in range(len(cases)))

    before, found = loss(), fit_scales(model, batches())
    assert loss() < before
    of_parts = set(found["items"]) - {"habit_gain", "new_gain", "new_offset"}
    assert {"readout", "bias"} <= of_parts <= set(PARTS)
    stored = model.score_scales[model.config.tasks.index("items")]
    assert {name: stored[PARTS.index(name)].item() for name in of_parts} == {
        name: found["items"][name] for name in of_parts
    }
    assert len({round(found["items"][name], 4) for name in of_parts}) > 1  # each has a scale of its own
    other = next(task for task in model.config.tasks if task != "items")
    assert set(found[other]) <= set(PARTS)
    assert fit_scales(model, batches()).keys() == found.keys()


def test_preparation_writes_followers_of_the_training_period_alone(event_log, prepare_log):
    """Events after the validation cutoff change neither the followers nor the measures."""
    log = event_log.drop_duplicates(["who", "when"])  # followers are counted where events come one by one
    cutoff = np.datetime64(SCHEMA["cutoffs"]["validation"])
    is_late = log["when"].to_numpy().astype("datetime64[s]") >= cutoff
    changed = log.copy()
    late_items = changed.loc[is_late, "item"].to_numpy()
    changed.loc[is_late, "item"] = late_items[::-1]
    folders = [prepare_log(each) for each in (log, changed)]
    first, second = (pq.read_table(folder / "followers.parquet") for folder in folders)
    assert first.equals(second) and first.num_rows > 30
    first, second = (json.loads((folder / "manifest.json").read_text())["measures"] for folder in folders)
    assert first == second and first["targets"] > 0


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
