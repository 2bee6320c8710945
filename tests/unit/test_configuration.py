# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCMConfig: it refuses choices that contradict each other, and says what a customer state counts."""

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError

from modeling_mcm import MCMConfig
from modeling_mcm.configuration_mcm import MOST_FREQUENT, MOST_TASTES
from modeling_mcm.training.encoder.recipe import recipe_for
from modeling_mcm.training.options import ModelOptions

FEATURES = {"type": 5, "items": 9, "a.b": 4, "Age": 3}  # neither alphabetical nor the reverse
DATA = {"features": list(FEATURES), "vocabulary_sizes": list(FEATURES.values()), "tasks": ["items", "a.b", "type"]}


def make(**changes):
    return MCMConfig(**(DATA | changes))


def test_defaults_are_the_recipe_for_visits():
    measures = {"customers": 100, "one_visit": 0, "visits": 1000, "targets": 9000}
    recipe = recipe_for(measures, 9)
    assert {name: getattr(MCMConfig(), name) for name in recipe.config} == recipe.config
    shipped = {name: getattr(ModelOptions, name) for name in ("target_half_life_days", "sampled_labels")}
    assert {name: recipe.training.get(name, value) for name, value in shipped.items()} == shipped
    assert (MCMConfig().encoder_attention, MCMConfig().target) == ("causal", "next_visit")
    assert MCMConfig().tasks == ["product_line", "category", "subcategory", "brand"]


# What is chosen, and what is said of it
CONTRADICTIONS = r"""
{features: [type, type, a.b, Age]}               -> must be unique.*rename
{vocabulary_sizes: [5, 9, 4]}                    -> 3 entries for 4 features.*one size a feature
{vocabulary_sizes: [5, 9, 2, 3]}                 -> {'a.b': 2}.*leave out features that have no value
{tasks: [items, colour]}                         -> `tasks` names \['colour'\].*'Age'
{kind_feature: colour}                           -> `kind_feature` names \['colour'\], which
{input_features: [items, colour]}                -> input_features.*\['colour'\].*not among the features
{augmentation: random_prefix}                    -> `attention_window` is 64.*augmentation='all_prefixes'
{attention_window: 0}                            -> `attention_window` is 0: expected 1 to
{vocabulary_sizes: [5, 9, 4, 1000000000000]}     -> {'Age': 1000000000000}: expected 3
{event_dropout_prob: .nan}                       -> `event_dropout_prob` is nan: expected 0 to 0.999
{augmentation: masked_lm, attention_window: null, encoder_unit: event, readout: attentional} -> readout='last'
{augmentation: masked_lm, attention_window: null, encoder_unit: visit, readout: last} -> encoder_unit='event'
{max_position_embeddings: -1}                    -> `max_position_embeddings` is -1: expected 0 to
{action_outcomes: []}                            -> at least one outcome
{hidden_size: 30}                                -> hidden_size` \(30\).*num_attention_heads` \(4\)
{state_size: -1}                                 -> `state_size` is -1: expected 0 to 65,536
{forecast_days: [0]}                             -> `forecast_days` must be positive numbers of days, got \[0\]
{summed_features: [nope]}                        -> `summed_features` names \['nope'\], which are not among
{encoder_unit: colour}                           -> 'encoder_unit' expected one of .*, got colour
{readout: colour}                                -> 'readout' expected one of .*, got colour
{augmentation: colour}                           -> 'augmentation' expected one of .*, got colour
""".strip().splitlines()


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_contradictions_are_refused(line):
    changes, message = line.split(" -> ")
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        make(**yaml.safe_load(changes))


@pytest.mark.parametrize("name", ["target_half_life_days", "sampled_labels"])
def test_bad_objective_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        ModelOptions(data="", **{name: -1})


@pytest.mark.parametrize(
    ("sizes", "chosen", "frequent"),
    [
        ({"maker": 3719, "type": 2163, "category": 300}, ["type", "category"], {"maker": MOST_FREQUENT}),
        ({"item": MOST_TASTES + 1}, ["item"], {}),  # the smallest is counted in any case,
        ({"item": 2**14 + 1}, [], {"item": MOST_FREQUENT}),  # unless there are too many to count at all
        ({"item": 3000, "brand": 1000}, ["item", "brand"], {}),
        ({"item": 3000, "aisle": 64}, ["item"], {}),  # so few are counted at every half-life
    ],
)
def test_state_counts_the_smallest_tasks(sizes, chosen, frequent):
    config = MCMConfig(features=list(sizes), vocabulary_sizes=list(sizes.values()))
    few = {name: size for name, size in sizes.items() if size <= 64}
    assert config.counted_features == (few, {name: sizes[name] for name in chosen}, frequent)
