# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the recipe chooses for logs of different kinds, and that it says why."""

import pytest

from modeling_mcm import MCMConfig
from modeling_mcm.training.encoder.recipe import MANY_LABELS, PATIENCE, PATIENT_STEPS, Recipe, recipe_for
from modeling_mcm.training.options import ModelOptions
from modeling_mcm.training.pretraining import WHEN, chosen_recipe, read_config

FEATURES = {"features": ["item"], "vocabulary_sizes": [502], "tasks": ["item"]}


def measures(targets, visits, one_visit=0):
    return {"customers": 100, "one_visit": one_visit, "visits": visits, "targets": targets}


BASKETS = measures(targets=9000, visits=1000)
REVIEWS = measures(targets=900, visits=900)
SESSIONS = measures(targets=900, visits=220, one_visit=80)


@pytest.mark.parametrize(
    ("log", "repeats", "unit", "half_life", "label_features"),
    [
        (BASKETS, True, "visit", 30, []),
        (BASKETS, False, "event", 0, ["item"]),
        (REVIEWS, True, "event", 0, ["item"]),
        (SESSIONS, True, "event", 0, ["item"]),
    ],
    ids=["baskets", "films", "reviews", "sessions"],
)
def test_a_kind_of_log_has_its_choices(log, repeats, unit, half_life, label_features):
    recipe = recipe_for(log, 9, ["item"], repeats)
    config = MCMConfig(**FEATURES | recipe.config)  # the choices fit together
    assert (config.encoder_unit, config.label_features) == (unit, label_features)
    assert recipe.training["target_half_life_days"] == half_life
    assert all(reason.endswith(".") for reason in recipe.reasons) and len(recipe.reasons) >= 2


def test_very_many_labels_are_sampled():
    assert recipe_for(REVIEWS, MANY_LABELS + 1).training["sampled_labels"]
    assert "sampled_labels" not in recipe_for(REVIEWS, MANY_LABELS).training


@pytest.mark.parametrize("number", [90, 900, 20_000])
def test_few_customers_train_as_many_steps_before_it_ends(number):
    found = measures(900, 900) | {"customers": number}
    training = recipe_for(found, 9).training
    steps = training["early_stopping_patience"] * number / training["per_device_train_batch_size"]
    assert training["early_stopping_patience"] >= PATIENCE and steps >= min(PATIENT_STEPS, 3 * 20_000 / 64)


def test_another_metric_of_the_best_epoch_leaves_the_rest_to_the_recipe(prepared):
    assert WHEN <= chosen_recipe(ModelOptions(data=prepared), {"metric_for_best_model"}).training.keys()


def test_data_without_measures_choose_nothing_and_say_so():
    recipe = recipe_for({}, 9)
    assert (recipe.config, recipe.training) == ({}, {}) and "prepare it again" in recipe.reasons[0]


@pytest.mark.parametrize("config", ["mcm-tiny", "mcm-base"])
def test_a_shipped_model_counts_what_the_config_chooses_but_the_profile(config, extractor):
    """The profile is no event, which only the feature extractor knows."""
    config = read_config(ModelOptions(data="data", config=config), extractor, Recipe())
    chosen = MCMConfig(features=config.features, vocabulary_sizes=config.vocabulary_sizes, tasks=config.tasks)
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    few, *others = chosen.counted_features
    assert config.counted_features == ({name: few[name] for name in few if name not in profile}, *others)
    assert profile & set(few)
