# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers as a person runs it: train, resume, low rank, evaluate, on a small prepared data set."""

import importlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from choices import EXTENDED, TINY, from_data
from corner_shop import TEST, find_customer
from folders import assert_same_weights, changed_weights, weights
from in_process import call
from serving_client import as_requests, make_client, make_service
from transformers import pipeline

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForActionRecommendation, MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedManifest
from modeling_mcm.page.app import Page
from modeling_mcm.page.histories import Histories
from modeling_mcm.training.checkpoints import open_checkpoint

ITEMS = [f"item {number:02}" for number in (0, 3, 7, 20)]
QUICK = ["--per_device_train_batch_size", 8, "--report_to", "none", "--disable_tqdm", "True", "--learning_rate", 0.01]

STEPS = ["--max_steps", 24, "--logging_steps", 1, "--eval_strategy", "steps", "--eval_steps", 12]
STEPS += ["--save_strategy", "steps", "--save_steps", 10, "--save_total_limit", 5]


@pytest.fixture(scope="module")
def offers(event_log, tmp_path_factory):
    """Folder of offers: four items each, taken by customers who bought them before; trained before November."""
    generator, rows = np.random.default_rng(0), []
    bought = event_log[event_log["action"] == "buy"].groupby("who")["item"].agg(set)
    for who in sorted(event_log["who"].unique()):
        for split, when in (("train", "2017-10-05"), ("validation", "2017-10-20"), ("test", "2017-11-05")):
            for item in ITEMS:
                taken = float(item in bought[who] and generator.random() < 0.9)
                rows.append((who, pd.Timestamp(when), item, None, taken, split))
    columns = ["customer_id", "time", "action_id", "click", "conversion", "split"]
    folder = tmp_path_factory.mktemp("offers")
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "offers.parquet")
    actions = pd.DataFrame({"action_id": ITEMS, "action": "buy", "item": ITEMS})
    actions.to_parquet(folder / "actions.parquet")
    return folder


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    """Folder of a checkpoint as pre-training leaves it."""
    folder = tmp_path_factory.mktemp("pretrained")
    extractor = MCMFeatureExtractor.from_pretrained(str(prepared / "feature_extractor"))
    config = MCMConfig(**from_data(extractor) | TINY | EXTENDED)
    torch.manual_seed(0)
    MCMForMultiTaskRecommendation(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(pretrained, prepared, offers):
    return ["--model", pretrained, "--data", prepared, "--offers", offers, *QUICK]


@pytest.fixture(scope="module")
def tuned(options, tmp_path_factory):
    """Folder of a run of 24 steps, uninterrupted."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    call("run_finetune", *options, "--output_dir", folder, *STEPS)
    return folder


def test_the_cutoffs_of_a_schema_can_be_moved(prepared, event_log, tmp_path, command):
    schema = PreparedManifest.load(prepared).event_schema.to_dict() | {"profile": []}
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(schema, default=str))))
    event_log.to_parquet(tmp_path / "log.parquet")
    options = ["--events", tmp_path / "log.parquet", "--schema", tmp_path / "schema.yaml"]
    call("prepare_data", *options, "--output_dir", tmp_path / "data", "--cutoffs", "2017-09-01", "2017-09-15")
    moved_to = PreparedManifest.load(tmp_path / "data").event_schema.cutoffs
    assert {name: f"{day:%m-%d}" for name, day in moved_to.items()} == {"validation": "09-01", "test": "09-15"}
    other = [*options, "--output_dir", tmp_path / "other"]
    command("prepare_data", *other, "--cutoffs", "2017-09-01", fails="--cutoffs has 1 dates; give two")


def test_a_run_learns_and_leaves_a_checkpoint(tuned):
    history = json.loads((tuned / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 24 and np.mean(losses[-6:]) < np.mean(losses[:6])
    found = [entry for entry in history if "eval_conversion_ndcg@10" in entry]
    assert len(found) == 2 and all(0 < entry["eval_conversion_average_precision"] <= 1 for entry in found)
    model = MCMForActionRecommendation.from_pretrained(tuned)
    assert model.config.action_outcomes == ["conversion"]  # nobody looked at clicks
    assert MCMFeatureExtractor.from_pretrained(str(tuned)).feature_names == model.config.features
    facts = json.loads((tuned / "finetuning.json").read_text())
    assert (facts["steps"], facts["groups"], facts["outcomes"]) == (24, 68, ["conversion"])


def test_the_example_fine_tunes_with_the_plain_trainer(pretrained, prepared, offers, tmp_path, capsys):
    example = importlib.import_module("7_fine_tune_to_offers")
    example.main(pretrained, prepared, offers, tmp_path / "run", 4)
    said = capsys.readouterr().out
    metrics = json.loads(said[said.index("{\n") :])
    assert 0 < metrics["eval_conversion_ndcg@10"] <= 1
    assert changed_weights(pretrained, tmp_path / "run") == set()
    added = weights(tmp_path / "run").keys() - weights(pretrained).keys()
    assert added and all(name.startswith("action_head.") for name in added)


def test_a_killed_run_goes_on_and_ends_the_same(options, tuned, tmp_path):
    whole, killed = tuned, tmp_path / "killed"
    shutil.copytree(whole / "checkpoint-10", killed / "checkpoint-10")
    shutil.copy(whole / "run.json", killed)
    call("run_finetune", *options, "--output_dir", killed, *STEPS)
    assert_same_weights(killed, whole, tolerance=2e-6)


def test_evaluation_prints_and_writes_a_table(tuned, pretrained, prepared, offers, tmp_path, command):
    options = ["--data", prepared, "--offers", offers]
    written = ["--output_file", tmp_path / "numbers.json", "--report_file", tmp_path / "table.md"]
    said = command("run_evaluate", "--model", tuned, *options, *written)
    assert "34 test groups of offers of corner_shop, 34 customers" in said
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert list(numbers) == ["conversion: MCM without fine-tuning", "conversion: MCM fine-tuned"]
    for metrics in numbers.values():
        assert set(metrics) == {"average_precision", "roc_auc", "ndcg@10", "recall@10"}
        assert all(0 <= m["low"] <= m["mean"] <= m["high"] <= 1 for m in metrics.values())
    assert "| conversion: MCM fine-tuned | " in (tmp_path / "table.md").read_text()
    assert "MCM fine-tuned" not in command("run_evaluate", "--model", pretrained, *options)  # the zero-shot baseline
    command("run_evaluate", "--model", tuned, *options[:2], fails="is an MCMForActionRecommendation")


def test_all_customers_are_scored_from_the_end_of_the_log(tuned, prepared, offers, event_log, tmp_path, command):
    words = ["--model", tuned, "--data", prepared, "--output_dir", tmp_path / "out"]
    command("run_predict", *words, "--actions", offers / "actions.parquet")
    found = pd.read_parquet(tmp_path / "out").set_index("customer_id")
    assert list(found.columns) == ["conversion", "conversion_scores"] and len(found) == 34
    actions = pd.read_parquet(offers / "actions.parquet").to_dict("records")
    end = event_log["when"].max() + pd.Timedelta(seconds=1)
    answer = pipeline("action-scores", model=str(tuned))(find_customer(event_log, "c07"), actions=actions, time=end)
    wanted = {offer["action_id"]: offer["conversion"] for offer in answer}
    assert dict(zip(*found.loc["c07"], strict=True)) == pytest.approx(wanted, abs=1e-5)
    assert (np.diff(np.stack(found["conversion_scores"])) <= 0).all()


def test_the_service_answers_offers_and_nothing_else(tuned, event_log, tmp_path):
    service = make_service(*open_checkpoint(MCMForActionRecommendation, str(tuned)), tmp_path / "state.db")
    client = make_client(service)
    assert client.post("/events", json={"events": as_requests(event_log, ["c03"])}).status_code == 200
    body = {"customers": ["c03", "nobody"], "actions": [{"action_id": "a", "item": ITEMS[0]}]}
    assert client.post("/offers", json=body).json()["unknown"] == ["nobody"]
    assert client.get("/customers/c03/scores").status_code == 501
    wrong = client.post("/offers", json=body | {"actions": [{"action_id": "a", "colour": "red"}]})
    assert wrong.status_code == 422 and "colour" in wrong.json()["detail"]
    service.close()


def test_the_page_lists_who_takes_which_offer(
    tuned, pretrained, prepared, offers, event_log, tmp_path, command, monkeypatch
):
    data, actions = shutil.copytree(prepared, tmp_path / "data"), offers / "actions.parquet"
    event_log.to_parquet(tmp_path / "log.parquet")
    words = ["--model", tuned, "--data", data, "--actions", actions, "--as_of", TEST]
    command("run_predict", *words, "--output_dir", tmp_path / "out")
    wanted = pd.read_parquet(tmp_path / "out").set_index("customer_id").loc["c07"]
    base = open_checkpoint(MCMForMultiTaskRecommendation, str(pretrained))
    given = [*base, str(data), str(tmp_path / "log.parquet"), None]
    heads = {"coupons": open_checkpoint(MCMForActionRecommendation, str(tuned))}
    for _ in range(2):
        page = Page(Histories(*given, heads, str(actions)))
        found = page.customers.set_index("customer").loc["c07"]
        for action, chance in zip(*wanted, strict=True):
            assert found[f"coupons: {action} conversion, %"] == pytest.approx(100 * chance, abs=0.006)
        monkeypatch.setattr("modeling_mcm.scoring.scorer.Scorer.score", None)  # the second start reads them
    with pytest.raises(ValueError, match="is an MCMForActionRecommendation: name the table of the actions"):
        Histories(*given, heads)
    many = pd.DataFrame({"action_id": [f"item {n:02}" for n in range(13)]})
    many.assign(action="buy", item=many["action_id"]).to_csv(tmp_path / "many.csv", index=False)
    with pytest.raises(ValueError, match="has 13 actions with 1 outcomes each, and the list has room for 12"):
        Histories(*given, heads, str(tmp_path / "many.csv"))


def test_a_checkpoint_and_options_that_do_not_fit_are_named(tuned, pretrained, prepared, offers, tmp_path, command):
    words = ["--data", prepared, "--output_dir", tmp_path / "out"]
    said = "is an MCMForActionRecommendation: name the table of the actions that it scores with --actions"
    command("run_predict", "--model", tuned, *words, fails=said)
    actions = ["--actions", offers / "actions.parquet"]
    said = "is an MCMForMultiTaskRecommendation: it scores no offers"
    command("run_predict", "--model", pretrained, *words, *actions, fails=said)
    command("run_predict", "--model", tuned, *words, *actions, "--tasks", "items", fails="ranks no tasks")
    later = pd.read_parquet(offers / "actions.parquet").assign(time=pd.Timestamp("2018-01-01"))
    later.to_parquet(tmp_path / "later.parquet")
    late = ["--actions", tmp_path / "later.parquet", "--as_of", "2017-11-05"]
    command("run_predict", "--model", tuned, *words, *late, fails="has no row in the actions that holds then")


def test_what_is_trained_can_be_chosen(options, pretrained, tmp_path):
    short = ["--max_steps", 4, "--save_strategy", "no"]
    call("run_finetune", *options, *short, "--output_dir", tmp_path / "frozen", "--freeze_encoder")
    assert changed_weights(pretrained, tmp_path / "frozen") == set()
    assert weights(pretrained).keys() < weights(tmp_path / "frozen").keys()
    call("run_finetune", *options, *short, "--output_dir", tmp_path / "fewer", "--max_events", 30)
    assert MCMFeatureExtractor.from_pretrained(str(tmp_path / "fewer")).max_events == 30


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--labels", "labels.csv"], "--model, --data and one of --offers and --labels are needed"),
        (["--train_splits", "tset"], "No splits ['tset']; choose from train, validation, test"),
    ],
)
def test_wrong_options_are_refused(options, tmp_path, command, wrong, message):
    command("run_finetune", *options, "--output_dir", tmp_path / "run", *wrong, fails=message)
    assert not (tmp_path / "run").exists()
