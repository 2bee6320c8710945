# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCMConfig: it survives a file, refuses choices that contradict each other, and makes models of the promised size."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation
from modeling_mcm.configuration_mcm import CHOICES

CONFIGURATION = Path(__file__).resolve().parents[2] / "configuration"
FEATURES = {"type": 5, "items": 9, "a.b": 4, "Age": 3}  # neither alphabetical nor the reverse


def make(**changes):
    values = {
        "features": list(FEATURES),
        "vocabulary_sizes": list(FEATURES.values()),
        "tasks": ["items", "a.b", "type"],
    }
    return MCMConfig(**(values | changes))


def test_a_save_keeps_names_and_their_order(tmp_path):
    config = make(
        trained_tasks=["type", "items"], repeat_half_lives_days=[7, 21.5], readout_scale=True, target="next_visit"
    )
    config.sampled_labels = 64
    config.save_pretrained(tmp_path)
    for loaded in (MCMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is MCMConfig
        assert list(zip(loaded.features, loaded.vocabulary_sizes, strict=True)) == list(FEATURES.items())
        assert loaded.sampled_labels == 64
        assert loaded.tasks == ["items", "a.b", "type"] and loaded.trained_tasks == ["type", "items"]
        saved, found = ({**c.to_dict(), "_name_or_path": ""} for c in (config, loaded))
        assert found == saved


def test_label_sizes_follow_the_order_of_the_tasks():
    assert list(make().label_sizes.items()) == [("items", 9), ("a.b", 4), ("type", 5)]


def test_the_defaults_are_the_papers_model():
    config = MCMConfig()
    assert (config.encoder_attention, config.encoder_unit, config.readout) == ("bidirectional", "event", "attentional")
    assert (config.augmentation, config.target) == ("random_prefix", "next_event")
    assert (config.num_hidden_layers, config.num_attention_heads, config.max_position_embeddings) == (3, 4, 300)
    assert config.tie_label_embeddings and config.embedding_layer_norm and config.sampled_labels is None
    assert not (config.readout_scale or config.readout_bias)
    assert not (config.repeat_half_lives_days or config.repeat_half_lives_units)
    assert config.tasks == ["product_line", "category", "subcategory", "brand"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": ["type", "type", "a.b", "Age"]}, "must be unique.*rename"),
        ({"vocabulary_sizes": [5, 9, 4]}, "3 entries for 4 features.*one size a feature"),
        ({"vocabulary_sizes": []}, "0 entries for 4 features.*one size a feature"),
        ({"vocabulary_sizes": [5, 9, 2, 3]}, r"\['a.b'\] have no value.*leave them out"),
        ({"tasks": ["items", "colour"]}, r"\['colour'\] are no features.*'Age'"),
        ({"trained_tasks": ["Age"]}, r"trained_tasks.*\['Age'\].*not among the tasks"),
        ({"input_features": ["items", "colour"]}, r"input_features.*\['colour'\].*not among the features"),
        ({"augmentation": "all_prefixes"}, "encoder_attention='causal'"),
        ({"augmentation": "masked_lm"}, "readout='last'"),
        ({"augmentation": "masked_lm", "readout": "last", "encoder_attention": "causal"}, "'bidirectional'"),
        ({"augmentation": "masked_lm", "readout": "last", "encoder_unit": "visit"}, "encoder_unit='event'"),
        ({"augmentation": "masked_lm", "readout": "last", "target": "next_visit"}, "target='next_event'"),
        ({"augmentation": "masked_lm", "readout": "last", "repeat_half_lives_days": [7.0]}, "no repeat memory"),
        ({"augmentation": "masked_lm", "readout": "last", "repeat_half_lives_units": [7.0]}, "no repeat memory"),
        ({"repeat_half_lives_days": [7.0, 0]}, "must be positive"),
        ({"repeat_half_lives_units": [-1]}, "must be positive"),
        ({"repeat_network_size": 4}, "part of the repeat memory, which is off: set"),
        ({"ranking_loss_weight": -1}, "must be 0 or more, got -1"),
        ({"sampled_labels": 0}, "at least 1, got 0: None scores all"),
        (
            {"augmentation": "all_prefixes", "encoder_attention": "causal", "encoder_unit": "visit"},
            "target='next_visit'",
        ),
        ({"hidden_size": 30}, r"hidden_size` \(30\).*num_attention_heads` \(4\)"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(changes, message):
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        make(**changes)


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_refused_with_the_known_ones(name):
    with pytest.raises(StrictDataclassError, match=f"(?s)`{name}` must be one of.*{CHOICES[name][0]}.*got 'colour'"):
        make(**{name: "colour"})


def test_a_wrong_type_is_refused():
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        make(hidden_size="64")


def parameters(folder, features):
    values = AutoConfig.from_pretrained(CONFIGURATION / folder).to_dict()
    values |= {"features": list(features), "vocabulary_sizes": list(features.values()), "tasks": list(features)}
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MCMForMultiTaskRecommendation(MCMConfig(**values)).parameters())


def test_base_has_about_10_million_parameters_with_30_thousand_values():
    features = {"token_type": 10, "product_line": 50, "category": 500, "subcategory": 4_000, "brand": 25_500}
    assert 29_000 < sum(features.values()) < 31_000
    assert 9_000_000 < parameters("mcm-base", features) < 12_000_000


def test_tiny_loads_and_is_smaller():
    features = {"token_type": 10, "category": 300}
    assert 0 < parameters("mcm-tiny", features) < parameters("mcm-base", features) / 3
