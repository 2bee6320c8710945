# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers as a person runs it: fit, evaluate, predict, on a small prepared data set."""

import importlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from choices import EXTENDED, TINY, from_data
from corner_shop import TEST
from folders import assert_same_weights, changed_weights
from in_process import call
from serving_client import as_requests, make_client, make_service
from sklearn.metrics import roc_auc_score

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForActionRecommendation, MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedManifest, load_prepared
from modeling_mcm.data.offers import OfferReader, load_offers
from modeling_mcm.evaluation.offers import score_offers
from modeling_mcm.page.app import SENDS, Page
from modeling_mcm.page.histories import Histories
from modeling_mcm.training.checkpoints import open_checkpoint


def read_json(path):
    return json.loads(path.read_text())


ITEMS = [f"item {number:02}" for number in (0, 3, 7, 20)]


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
    return ["--model", pretrained, "--data", prepared, "--offers", offers, "--no_progress", "True"]


@pytest.fixture(scope="module")
def tuned(options, tmp_path_factory):
    """Folder of a run."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    call("run_finetune", *options, "--output_dir", folder)
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


def test_a_run_learns_and_leaves_a_checkpoint(tuned, pretrained, prepared, offers):
    model, extractor = open_checkpoint(MCMForActionRecommendation, str(tuned))
    assert model.config.action_outcomes == ["conversion"]  # nobody looked at clicks
    facts = read_json(tuned / "finetuning.json")
    assert (facts["groups"], facts["offers"], facts["outcomes"]) == (68, 272, ["conversion"])
    assert changed_weights(pretrained, tuned) == set()
    test = load_offers(offers, ["conversion"]).of(["test"])
    scores = score_offers(model, OfferReader(load_prepared(prepared), test, extractor, model.config))[:, 0]
    assert roc_auc_score(test.table["conversion"], scores) > 0.8


def test_offers_that_are_not_read_are_made_up_for_by_weights(options, prepared, offers, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mcm.training.offers.MOST_REFUSED", 20)
    call("run_finetune", *options, "--output_dir", tmp_path / "run")
    table, facts = load_offers(offers).of(["train", "validation"]), read_json(tmp_path / "run" / "finetuning.json")
    assert facts["offers"] == table.table["conversion"].sum() + 20 < 0.8 * len(table.table)
    model, extractor = open_checkpoint(MCMForActionRecommendation, str(tmp_path / "run"))
    scores = score_offers(model, OfferReader(load_prepared(prepared), table, extractor, model.config))[:, 0]
    assert (1 / (1 + np.exp(-scores))).mean() == pytest.approx(table.table["conversion"].mean(), abs=0.06)


def test_the_example_fine_tunes_and_says_how_well(tuned, pretrained, prepared, offers, tmp_path, capsys):
    example = importlib.import_module("7_fine_tune_to_offers")
    example.main(pretrained, prepared, offers, tmp_path / "run")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("conversion: ")]
    metrics = dict(part.rsplit(" ", 1) for part in line.removeprefix("conversion: ").split(", "))
    assert (
        list(metrics) == ["average_precision", "roc_auc", "ndcg@10", "recall@10"] and float(metrics["ndcg@10"]) > 0.5
    )
    assert_same_weights(tmp_path / "run", tuned)


def test_a_finished_run_is_left_alone_and_another_one_refused(options, tuned, tmp_path, caplog):
    folder = shutil.copytree(tuned, tmp_path / "run")
    call("run_finetune", *options, "--output_dir", folder)
    assert "which is finished: nothing is left to train" in caplog.text
    with pytest.raises(SystemExit, match="trained otherwise.*this run has 30.*give another output_dir"):
        call("run_finetune", *options, "--output_dir", folder, "--max_events", 30)


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
    command("run_evaluate", "--model", pretrained, *options, fails="this needs an MCMForActionRecommendation")
    command("run_evaluate", "--model", tuned, *options[:2], fails="is an MCMForActionRecommendation")


def test_the_service_answers_offers_and_nothing_else(tuned, event_log, tmp_path):
    service = make_service(*open_checkpoint(MCMForActionRecommendation, str(tuned)), tmp_path / "state.db")
    client = make_client(service)
    assert client.post("/events", json={"events": as_requests(event_log, ["c03"])}).status_code == 200
    body = {"customers": ["c03", "nobody"], "actions": [{"action_id": "a", "item": ITEMS[0]}]}
    assert client.post("/offers", json=body).json()["unknown"] == ["nobody"]
    assert client.get("/customers/c03/scores").status_code == 501
    for bad in ({"colour": "red"}, {}, *({"item": ITEMS[0], "weight": weight} for weight in ("x", 0, -1))):
        wrong = client.post("/offers", json=body | {"actions": [{"action_id": "a", **bad}]})
        assert wrong.status_code == 422 and ([*bad] or ["no columns besides"])[-1] in wrong.json()["detail"]
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
        page = Page(Histories(*given, heads, str(actions)).wait())
        found = page.customers.set_index("customer").loc["c07"]
        for action, chance in zip(*wanted, strict=True):
            assert found[f"coupons: {action} conversion, %"] == pytest.approx(100 * chance, abs=0.006)
        monkeypatch.setattr("modeling_mcm.scoring.scorer.Scorer.score", None)  # the second start reads them
    sent = page.monday(SENDS, budget=34).set_index("customer").loc["c07"]
    assert sent["send"] == f"coupons: {wanted['conversion'][0]} conversion"
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--labels", "labels.csv"], "--model, --data and one of --offers and --labels are needed"),
        (["--train_splits", "tset"], "No splits ['tset']; choose from train, validation, test"),
        (["--train_splits", "test"], "when offers to evaluate on run already"),
        (["--label", "churned"], "--label is not read with --offers: leave it out"),
    ],
)
def test_wrong_options_are_refused(options, tmp_path, command, wrong, message):
    command("run_finetune", *options, "--output_dir", tmp_path / "run", *wrong, fails=message)
    assert not (tmp_path / "run").exists()
