# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training by its defaults: what the data decide is said, kept, and can be overridden."""

import json
import re
from functools import partial

import forked_runs
import pytest
from choices import pretraining_options
from folders import logged, weights

from modeling_mcm.scorer_mcm import NEXT_VISIT


@pytest.fixture(scope="module")
def options(prepared):
    """A function that gives the options of a short run by the recipe."""

    return partial(pretraining_options, prepared, recipe="auto", num_train_epochs=2)


@pytest.fixture(scope="module")
def chosen(options, tmp_path_factory):
    """The folder of a run by the recipe, and what it said; patience alone does not say when a run is evaluated."""
    folder = tmp_path_factory.mktemp("chosen")
    said = forked_runs.pretrain(options(folder / "run", early_stopping_patience=7), folder / "log")
    return folder / "run", said


def test_what_the_data_decide_is_said_and_kept(chosen):
    folder, said = chosen
    facts = json.loads((folder / "pretraining.json").read_text())
    assert json.loads((folder / "run.json").read_text())["options"]["eval_strategy"] == "epoch"
    assert len(facts["recipe"]) >= 2 and all(reason in said for reason in facts["recipe"])
    config = json.loads((folder / "config.json").read_text())
    assert config["scorer"] and config["kind_feature"] == "type"
    assert set(facts["validation"]) >= {"MCM", "most_popular", "visit_frequency", "nearest_customers", "transitions"}
    assert weights(folder)["scorer.fitted"]
    for task, used in zip(config["tasks"], weights(folder)["scorer.reads"][:, NEXT_VISIT], strict=True):
        words = (
            rf"The encoder adds [-+]0\.\d+ \(standard error 0\.\d+\) to the NDCG@10 of {task} on validation, so it is "
        )
        assert re.search(words + ("used" if used else "not used"), said)
    entries = [entry for entry in logged(folder) if "eval_loss" in entry]
    assert [entry["epoch"] for entry in entries] == [1, 2]


def test_an_option_wins_over_the_recipe(options, tmp_path):
    words = options(tmp_path / "run", "readout=last", max_steps=2, learning_rate=0.003)
    forked_runs.pretrain(words, tmp_path / "log")
    facts = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["readout"] == "last"
    assert facts["learning_rate"] == 0.003 and facts["steps"] == 2
    assert facts["validation"] == {}  # who says how long says when it is evaluated, too


def test_without_an_encoder_counts_are_fitted_and_scored(prepared, tmp_path):
    words = ["--data", prepared, "--encoder", "none", "--output_dir", tmp_path / "run", "--report_to", "none"]
    said = forked_runs.pretrain([*words, "--disable_tqdm", "true"], tmp_path / "log")
    assert "scores come from counts alone" in said and "The encoder adds" not in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["scorer"], config["kind_feature"], config["num_hidden_layers"]) == (True, "type", 0)
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["model.safetensors"]
    found = json.loads((tmp_path / "run" / "pretraining.json").read_text())["validation"]
    assert found["MCM"]["items"] > found["most_popular"]["items"]
    assert "nothing is left to train" in forked_runs.pretrain(words, tmp_path / "log again")
