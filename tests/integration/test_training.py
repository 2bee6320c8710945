# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training as a person runs it: one process and two, what comes after a cutoff, and what the data decide.

Golden losses: `pytest tests/integration/test_training.py --update-golden` writes tests/fixtures/golden_loss.json anew.
"""

import json
import re

import forked_runs
import numpy as np
import pandas as pd
import pytest
import torch
from choices import EXTENDED, NO_DROPOUT, pretraining_options
from folders import assert_same_weights, logged, losses, read_json, weights
from in_process import ROOT

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.scorer_mcm import NEXT_VISIT
from modeling_mcm.training.labels import popularity

GOLDEN = ROOT / "tests" / "fixtures" / "golden_loss.json"
STEPS = 20
# Every choice that goes beyond the paper; not one of configuration/, so that tuning those moves no golden loss.
CHOICES = {"model_type": "mcm", **EXTENDED, "event_dropout_prob": 0.1}


@pytest.fixture(scope="module")
def options(prepared, tmp_path_factory):
    """A function that gives the options of a run with these choices."""
    config = tmp_path_factory.mktemp("config")
    (config / "config.json").write_text(json.dumps(CHOICES))
    chosen = {"config": config, "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 7}
    chosen |= {"eval_strategy": "epoch", "save_strategy": "steps", "save_total_limit": 5, "ema_decay": 0.9}
    return lambda folder, *overrides, **more: pretraining_options(prepared, folder, *overrides, **chosen | more)


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    """The folder of a run of 20 steps, uninterrupted."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    forked_runs.pretrain(options(folder, max_steps=STEPS), folder.parent / "log")
    return folder


def test_a_run_leaves_a_checkpoint_with_its_feature_extractor_and_facts(trained, prepared):
    model = MCMForMultiTaskRecommendation.from_pretrained(trained)
    extractor, stored = MCMFeatureExtractor.from_pretrained(str(trained)), PreparedData(prepared).extractor
    assert extractor.to_dict() == stored.to_dict() and extractor.vocabularies == stored.vocabularies
    assert model.config.features == extractor.feature_names and model.config.hidden_size == 16
    assert model.config.max_events == stored.max_events == 40
    assert model.config.augmentation == "all_prefixes"  # of the chosen config, and nothing of a recipe
    assert model.scorer is None
    facts = read_json(trained / "pretraining.json")
    assert (facts["steps"], facts["data"]) == (STEPS, "corner_shop")
    assert facts["command"].startswith("run_pretrain.py") and facts["versions"]["torch"] == torch.__version__


def test_20_steps_give_the_golden_losses(trained, request):
    found = losses(trained)
    assert list(found) == list(range(1, STEPS + 1))
    if request.config.getoption("update_golden"):
        GOLDEN.write_text(json.dumps({"losses": list(found.values())}, indent=1) + "\n")
    assert list(found.values()) == pytest.approx(read_json(GOLDEN)["losses"], rel=1e-3)
    assert np.mean(list(found.values())[-5:]) < np.mean(list(found.values())[:5])


def test_the_loss_is_the_sum_of_those_of_the_tasks_and_falls_in_evaluation(trained):
    table = pd.DataFrame(logged(trained))
    of_tasks = table[[f"loss_{task}" for task in ("items", "aisle", "type")]].sum(axis=1, skipna=False)
    np.testing.assert_allclose(of_tasks.dropna(), table["loss"].dropna(), rtol=1e-3)
    evaluated = table["eval_loss"].dropna()
    assert len(evaluated) > 1 and evaluated.iloc[-1] < evaluated.iloc[0]


@pytest.mark.parametrize("way, batch", [("two processes", 4), ("accumulation", 12)])
def test_batches_in_parts_give_the_losses_of_whole_ones(options, tmp_path, way, batch):
    """Also at the end of an epoch, where of 34 customers two are left, or ten, in unequal parts or for one process."""

    def chosen(name, size, **more):
        never = {"save_strategy": "no", "eval_strategy": "no", "max_steps": 10, "per_device_train_batch_size": size}
        return options(tmp_path / name, *NO_DROPOUT, **never | more), tmp_path / f"log of {name}"

    forked_runs.pretrain(*chosen("whole", batch))
    if way == "accumulation":
        forked_runs.pretrain(*chosen("parts", batch // 2, gradient_accumulation_steps=2))
    else:
        forked_runs.run_two(*chosen("parts", batch // 2))
    logs = [[entry for entry in logged(tmp_path / name) if "loss" in entry] for name in ("whole", "parts")]
    assert len(logs[0]) == 10
    for alone, together in zip(*logs, strict=True):
        for name in ("loss", *(f"loss_{task}" for task in ("items", "aisle", "type")), "grad_norm"):
            assert together[name] == pytest.approx(alone[name], abs=1e-6, rel=1e-6), name
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", tolerance=5e-6)


def test_an_evaluation_needs_cases(options, prepare_log, event_log, tmp_path, command):
    early = event_log["when"] < "2017-10-01"
    newcomer = event_log[~early].assign(who="c99", basket="99")
    words = [*options(tmp_path / "run"), "--data", prepare_log(pd.concat([event_log[early], newcomer]))]
    command("run_pretrain", *words, fails="No evaluation case at the validation cutoff among 35 customers")


def changed_after(log, cutoff):
    """The same log before a cutoff; after it events are changed, deleted and added."""
    before, after = log[log["when"] < cutoff], log[log["when"] >= cutoff]
    generator = np.random.default_rng(1)
    kept = after[generator.random(len(after)) < 0.5].copy()
    kept["item"] = generator.permutation(kept["item"])
    kept.loc[kept.index[::3], ["item", "aisle", "price"]] = ["new item", "new aisle", 1e6]
    kept.loc[kept.index[::4], "action"] = "new action"
    last = before.groupby("who").tail(1)
    same_basket = last.assign(when=pd.Timestamp(cutoff) + pd.Timedelta(hours=3), item="item 00", price=-1e6)
    newcomer = same_basket.head(1).assign(who="c99", basket="99")
    return pd.concat([newcomer, kept, same_basket, before]).sample(frac=1, random_state=0)


@pytest.mark.parametrize("cutoff, date", [("validation", "2017-10-01"), ("test", "2017-11-01")])
def test_what_happens_after_a_cutoff_changes_nothing_before_it(
    cutoff, date, event_log, prepared, prepare_log, tiny_model, tiny_config
):
    data = [PreparedData(folder) for folder in (prepared, prepare_log(changed_after(event_log, date)))]
    assert data[0].extractor.vocabularies == data[1].extractor.vocabularies
    for of_task in zip(*(popularity(each, tiny_config()).values() for each in data), strict=True):
        assert torch.equal(*of_task)
    customers = data[0].rows["customer_id"][:]
    assert data[1].rows["customer_id"][:] == [*customers, "c99"]
    batches = [PreparedRows(each.rows).__getitems__(list(range(len(customers)))) for each in data]
    assert any(len(a["times"]) != len(b["times"]) for a, b in zip(*batches, strict=True))

    def collate(config, mode, **options):
        pairs = zip(data, batches, strict=True)
        return [MCMCollator(each.extractor, config, mode, **options)(batch) for each, batch in pairs]

    for config in (tiny_config(extended=True), tiny_config(), tiny_config(augmentation="masked_lm", readout="last")):
        made = collate(config, "train")
        assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    for model in (tiny_model(extended=True), tiny_model()):
        inputs = collate(model.config, "evaluate", cutoff=cutoff)
        labels = [made.pop("labels") for made in inputs]
        assert labels[0].shape != labels[1].shape or not torch.equal(*labels)  # the future did change
        with torch.no_grad():
            scores = [model(**made).logits for made in inputs]
        assert all(torch.equal(scores[0][task], scores[1][task]) for task in scores[0])


# By the recipe

RECIPE = {"recipe": "auto", "num_train_epochs": 2}


@pytest.fixture(scope="module")
def chosen(prepared, tmp_path_factory):
    """The folder of a run by the recipe, and what it said; patience alone does not say when a run is evaluated."""
    folder = tmp_path_factory.mktemp("chosen")
    said = forked_runs.pretrain(
        pretraining_options(prepared, folder / "run", **RECIPE, early_stopping_patience=7), folder / "log"
    )
    return folder / "run", said


def test_what_the_data_decide_is_said_and_kept(chosen):
    folder, said = chosen
    facts = read_json(folder / "pretraining.json")
    assert read_json(folder / "run.json")["options"]["eval_strategy"] == "epoch"
    assert len(facts["recipe"]) >= 2 and all(reason in said for reason in facts["recipe"])
    config = read_json(folder / "config.json")
    assert config["scorer"] and config["kind_feature"] == "type"
    assert set(facts["validation"]) >= {"MCM", "most_popular", "visit_frequency", "nearest_customers", "transitions"}
    assert weights(folder)["scorer.fitted"]
    for task, used in zip(config["tasks"], weights(folder)["scorer.reads"][:, NEXT_VISIT], strict=True):
        words = (
            rf"The encoder adds [-+]0\.\d+ \(standard error 0\.\d+\) to the NDCG@10 of {task} on \d+ validation "
            "cases, so it is "
        )
        assert re.search(words + ("used" if used else "not used"), said)
    entries = [entry for entry in logged(folder) if "eval_loss" in entry]
    assert [entry["epoch"] for entry in entries] == [1, 2]


def test_an_option_wins_over_the_recipe(prepared, tmp_path):
    options = RECIPE | {"max_steps": 2, "learning_rate": 0.003}
    words = pretraining_options(prepared, tmp_path / "run", "readout=last", **options)
    forked_runs.pretrain(words, tmp_path / "log")
    facts, run = (read_json(tmp_path / "run" / name) for name in ("pretraining.json", "run.json"))
    assert read_json(tmp_path / "run" / "config.json")["readout"] == "last"
    assert run["options"]["learning_rate"] == 0.003 and facts["steps"] == 2
    assert facts["validation"] == {}  # who says how long says when it is evaluated, too


def test_without_an_encoder_counts_are_fitted_and_scored(prepared, tmp_path):
    words = ["--data", prepared, "--encoder", "none", "--output_dir", tmp_path / "run", "--report_to", "none"]
    said = forked_runs.pretrain([*words, "--disable_tqdm", "true"], tmp_path / "log")
    assert "options of its training read: scores come from counts alone" in said and "The encoder adds" not in said
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["scorer"], config["kind_feature"], config["num_hidden_layers"]) == (True, "type", 0)
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["model.safetensors"]
    found = read_json(tmp_path / "run" / "pretraining.json")["validation"]
    assert found["MCM"]["items"] > found["most_popular"]["items"]
    assert "nothing is left to train" in forked_runs.pretrain(words, tmp_path / "log again")
