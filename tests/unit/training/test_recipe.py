# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the recipe chooses for logs of different kinds, and that it says why."""

import pytest

from modeling_mcm import MCMConfig
from modeling_mcm.training.options import ModelOptions
from modeling_mcm.training.pretraining import read_config
from modeling_mcm.training.recipe import MANY_LABELS, STATE_SIZE, Recipe, recipe_for

SIZES = {"item": 502}
FEATURES = {"features": ["item"], "vocabulary_sizes": [502], "tasks": ["item"]}


def measures(targets, moments, visits, repeats, labels=500, customers=100, one_visit=0):
    met = {"labels": labels, "met": visits, "repeats": round(repeats * visits)}
    whole = {"customers": customers, "one_visit": one_visit, "visits": visits, "moments": moments, "targets": targets}
    return whole | {"tasks": {"item": met}}


BASKETS = measures(targets=9000, moments=1000, visits=1000, repeats=0.6)
REVIEWS = measures(targets=900, moments=900, visits=900, repeats=0.0)
SESSIONS = measures(targets=900, moments=880, visits=220, repeats=0.4, one_visit=80)


@pytest.mark.parametrize(
    ("found", "unit", "target", "memory", "ranking", "followers", "related"),
    [
        (BASKETS, "visit", "next_visit", True, 1.0, [], ["item"]),
        (REVIEWS, "event", "next_event", False, 0.0, ["item"], []),
        (SESSIONS, "event", "next_event", True, 1.0, ["item"], []),
    ],
    ids=["baskets", "reviews", "sessions"],
)
def test_a_kind_of_log_has_its_choices(found, unit, target, memory, ranking, followers, related):
    recipe = recipe_for(found, SIZES)
    config = MCMConfig(**FEATURES | recipe.config)  # the choices fit together
    assert (config.encoder_unit, config.target) == (unit, target)
    assert config.repeat_memory == memory
    assert recipe.training["ranking_loss_weight"] == ranking
    assert (config.follower_tasks, config.related_tasks) == (followers, related)
    assert all(reason.endswith(".") for reason in recipe.reasons) and len(recipe.reasons) >= 4


def test_very_many_labels_are_sampled_only_where_nothing_repeats():
    sizes = {"item": MANY_LABELS + 1}
    assert recipe_for(measures(900, 900, 900, 0.0, labels=MANY_LABELS), sizes).training["sampled_labels"]
    assert "sampled_labels" not in recipe_for(measures(900, 900, 900, 0.9, labels=MANY_LABELS), sizes).training


def test_data_without_measures_choose_nothing_and_say_so():
    recipe = recipe_for({}, SIZES)
    assert (recipe.config, recipe.training) == ({}, {}) and "prepare it again" in recipe.reasons[0]


@pytest.mark.parametrize("config", ["mcm-tiny", "mcm-base"])
def test_a_shipped_model_counts_what_the_config_chooses_but_the_profile(config, extractor):
    """The profile is no event, which only the feature extractor knows."""
    config = read_config(ModelOptions(data="data", config=config), extractor, Recipe({"state_size": STATE_SIZE}))
    chosen = MCMConfig(features=config.features, vocabulary_sizes=config.vocabulary_sizes, tasks=config.tasks)
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    few, many = chosen.counted_features
    assert config.counted_features == ([name for name in few if name not in profile], many)
    assert profile & set(few)
