# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""New values of a feature in a trained model: what may not change, how they start, and what is refused."""

import pytest
import torch

from modeling_mcm import MCMForActionRecommendation
from modeling_mcm.configuration_mcm import FIRST_LABEL

CHOICES = {
    "paper": {},
    "extended": {"extended": True},
    "last": {"readout": "last"},
    "label features": {"extended": True, "label_features": ["aisle"]},
}
NEW = ["kiwi", "plum", "fig"]


@pytest.fixture
def customers(event_log):
    return [
        {"events": event_log[event_log["who"] == who].head(count).to_dict("list")}
        for who, count in [("c00", 14), ("c01", 1), ("c02", 30)]
    ]


def with_value(customers, feature_column, value):
    """The same customers, the first one's last event having another value."""
    changed = {name: list(column) for name, column in customers[0]["events"].items()}
    changed[feature_column][-1] = value
    return [{"events": changed}, *customers[1:]]


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("feature", ["items", "type"])
@pytest.mark.parametrize("new", [NEW, [f"new {number}" for number in range(300)]], ids=["few", "many"])
@torch.no_grad()
def test_old_weights_and_scores_keep_their_bits(tiny_model, extractor, customers, feature, choices, new):
    model = tiny_model(**choices)
    before, state = model(**extractor(customers)), {k: v.clone() for k, v in model.state_dict().items()}
    sizes = dict(model.config.label_sizes)
    model.resize_feature_vocabulary(feature, new, extractor)
    after = model(**extractor(customers))
    grown = 0
    for name, value in model.state_dict().items():
        grown += value.shape != state[name].shape
        assert torch.equal(value[: len(state[name])] if value.dim() else value, state[name]), name
    assert grown >= 1
    assert torch.equal(after.pooler_output, before.pooler_output)
    for task, logits in before.logits.items():
        assert torch.equal(after.logits[task][:, : sizes[task]], logits), task
        assert after.logits[task].shape[1] == sizes[task] + (len(new) if task == feature else 0)
        assert after.logits[task].isfinite().all()


@torch.no_grad()
def test_state_keeps_the_features_it_counts(tiny_model, extractor):
    model = tiny_model(extended=True, state_size=8)
    counted = model.config.counted_features
    model.resize_feature_vocabulary("items", [f"new {number}" for number in range(300)], extractor)
    assert "items" in counted["state_features"] and model.config.counted_features == counted
    assert model.model.state.directions.shape[1] == len(model.model.state.mean)


@torch.no_grad()
def test_model_config_and_extractor_have_new_values(tiny_model, extractor):
    model = tiny_model(extended=True)
    old = extractor.vocabulary_sizes
    model.resize_feature_vocabulary("items", NEW, extractor)
    place = model.config.features.index("items")
    assert extractor.vocabularies["items"][-3:] == NEW
    assert model.config.vocabulary_sizes == extractor.vocabulary_sizes
    assert extractor.label_ids("items", ["plum", "never seen"]).tolist() == [old[place] + 1, 1]


@pytest.mark.parametrize("choices", [CHOICES["extended"], CHOICES["label features"]])
@torch.no_grad()
def test_a_new_value_is_read_as_the_unknown_one_was(tiny_model, extractor, customers, choices):
    model = tiny_model(**choices)
    column = next(f.get("column") or f["name"] for f in extractor.features if f["name"] == "items")
    history = with_value(customers, column, "plum")
    before = model(**extractor(history))
    model.resize_feature_vocabulary("items", NEW, extractor)
    inputs = extractor(history)
    assert (inputs["input_ids"][0, :, model.config.features.index("items")] > 1).any()
    after = model(**inputs)
    torch.testing.assert_close(after.pooler_output, before.pooler_output, rtol=1e-5, atol=1e-5)
    size = before.logits["items"].shape[1]
    torch.testing.assert_close(after.logits["items"][:, :size], before.logits["items"], rtol=1e-5, atol=1e-5)


def test_new_labels_start_as_the_rarest(tiny_model, extractor):
    model = tiny_model(extended=True)
    size = model.config.label_sizes["items"]
    model.resize_feature_vocabulary("items", NEW, extractor)
    bias = model.readout_bias[0]
    assert bias[size:].tolist() == [bias[FIRST_LABEL:size].min().item()] * 3
    read = model.model.embeddings.events.feature_tables[model.config.features.index("items")].weight
    assert torch.equal(read[size:], read[1].expand(3, -1)) and read[1].any()


@pytest.mark.parametrize(
    "feature, values, message",
    [
        ("colour", NEW, "Found feature 'colour', expected one of"),
        ("items", "kiwi", "must be a list of texts"),
        ("items", ["kiwi", ""], "must be a list of texts"),
        ("items", ["item 01"], r"\['item 01'\] already, or they are given twice"),
        ("items", ["kiwi", "kiwi"], r"\['kiwi'\] already, or they are given twice"),
    ],
)
def test_bad_values_change_nothing(tiny_model, extractor, feature, values, message):
    model, vocabularies = tiny_model(extended=True), {k: list(v) for k, v in extractor.vocabularies.items()}
    sizes = list(model.config.vocabulary_sizes)
    with pytest.raises(ValueError, match=message):
        model.resize_feature_vocabulary(feature, values, extractor)
    assert extractor.vocabularies == vocabularies and model.config.vocabulary_sizes == sizes


def test_extractor_of_another_checkpoint_is_refused(tiny_model, extractor):
    model = tiny_model()
    extractor.add_values("items", ["kiwi"])
    with pytest.raises(ValueError, match="has the features and sizes .* take both from one and the same save"):
        model.resize_feature_vocabulary("items", NEW, extractor)
    assert extractor.vocabularies["items"][-1] == "kiwi"


def test_head_for_offers_refuses_its_history_feature(tiny_config, extractor):
    model = MCMForActionRecommendation(tiny_config(extended=True, action_history_feature="type"))
    model.resize_feature_vocabulary("items", NEW, extractor)
    with pytest.raises(ValueError, match="'type' is the `action_history_feature`.*fine-tune it again"):
        model.resize_feature_vocabulary("type", NEW, extractor)
    assert model.config.vocabulary_sizes == extractor.vocabulary_sizes
