# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to labels of customers as a person runs it: a table, a command, a checkpoint that answers."""

import importlib
import json
import shutil
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from choices import PAPER, TINY, from_data
from corner_shop import TEST
from folders import changed_weights, content
from in_process import call
from serving_client import as_requests, make_client, make_service
from transformers import pipeline

from modeling_mcm import MCMConfig, MCMForCustomerPrediction, MCMForMultiTaskRecommendation
from modeling_mcm.commands import app
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.page.app import Page
from modeling_mcm.training.labels import LabelOptions, read_labels
from modeling_mcm.training.state import fit_state

finetune = partial(call, "run_finetune")
QUICK = ["--no_progress", "True"]


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    """Folder of a checkpoint with a state that was trained for a few steps."""
    folder = tmp_path_factory.mktemp("pretrained")
    data = PreparedData(prepared)
    rows, extractor = data.rows, data.extractor
    config = MCMConfig(
        **from_data(extractor),
        **TINY | PAPER | {"augmentation": "all_prefixes", "state_size": 12},
        state_features=["type", "items", "aisle"],
        summed_features=extractor.summed_features,
        forecast_days=[7.0],
    )
    torch.manual_seed(0)
    model = MCMForMultiTaskRecommendation(config)
    fit_state(model.model, extractor, PreparedRows(rows, lengths=rows["validation_end"]), None)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tables(event_log, tmp_path_factory):
    """Folder of labels at one moment: who buys an item of aisle 0, how much was paid, and a favourite aisle."""
    folder, as_of = tmp_path_factory.mktemp("labels"), pd.Timestamp("2017-10-05")
    before = event_log[(event_log["when"] < as_of) & (event_log["action"] == "buy")]
    found = before.groupby("who").agg(
        likes=("aisle", lambda aisles: (aisles == "aisle 0").mean()),
        spent=("price", "sum"),
        aisle=("aisle", lambda aisles: aisles.mode()[0]),
    )
    found["likes"] = found["likes"] > found["likes"].median()
    table = found.reset_index().assign(day=as_of)
    table.to_parquet(folder / "labels.parquet")
    table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def options(pretrained, prepared, tables):
    columns = ["--customer_column", "who", "--time_column", "day"]
    return ["--model", pretrained, "--data", prepared, "--labels", tables / "labels.parquet", *columns, *QUICK]


@pytest.fixture(scope="module")
def tuned(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    finetune(*options, "--label", "likes", "--output_dir", folder)
    return folder


def test_all_customers_are_predicted_at_the_end_of_the_log(tuned, prepared, event_log, tmp_path, command):
    words = ["--model", tuned, "--output_dir", tmp_path / "out", "--data", prepared]
    command("run_predict", *words)
    found = pd.read_parquet(tmp_path / "out").set_index("customer_id")
    assert list(found.columns) == ["predicted_false", "predicted_true"]
    events, end = event_log[event_log["who"] == "c03"], event_log["when"].max() + pd.Timedelta(seconds=1)
    wanted = pipeline("customer-prediction", model=str(tuned))({"events": events}, as_of=end)
    assert found.loc["c03"].tolist() == pytest.approx([wanted["false"], wanted["true"]], abs=1e-5)
    command("run_predict", *words, "--tasks", "aisle", fails="ranks no tasks")


def test_the_command_shows_a_page_with_the_label_of_all_customers(
    tuned, pretrained, prepared, event_log, tmp_path, command, monkeypatch
):
    pytest.importorskip("gradio", reason="Gradio not installed")
    data = shutil.copytree(prepared, tmp_path / "data")
    event_log.to_parquet(tmp_path / "log.parquet")
    pages = []
    monkeypatch.setattr(app, "build_page", pages.append)
    monkeypatch.setattr(app, "launch_page", lambda *_, **__: sys.exit("shown"))
    words = ["--data", data, "--events", tmp_path / "log.parquet"]
    command("modeling_mcm.commands.app", "--model", pretrained, *words, "--tuned", tuned, fails="shown")
    command("run_predict", "--model", tuned, "--data", data, "--as_of", TEST, "--output_dir", tmp_path / "out")
    wanted = 100 * pd.read_parquet(tmp_path / "out").set_index("customer_id")["predicted_true"]
    found = Page(pages[0].wait()).find("", "run, %", None, None, True).set_index("customer")["run, %"]
    assert found.is_monotonic_decreasing and found.to_dict() == pytest.approx(wanted.to_dict(), abs=0.006)
    said = command("modeling_mcm.commands.app", "--model", tuned, *words, fails="is an MCMForCustomerPrediction")
    assert "`mcm app --tuned`; this needs an MCMForMultiTaskRecommendation" in said
    twice = ["--tuned", tuned, tuned]
    command(
        "modeling_mcm.commands.app", "--model", pretrained, *words, *twice, fails="Two folders of --tuned have one"
    )


def test_the_service_predicts_a_label_and_nothing_else(tuned, prepared, event_log, tmp_path):
    pytest.importorskip("fastapi", reason="FastAPI not installed")
    model, extractor = MCMForCustomerPrediction.from_pretrained(tuned).eval(), PreparedData(prepared).extractor
    service = make_service(model, extractor, tmp_path / "state.db")
    client = make_client(service)
    assert client.post("/events", json={"events": as_requests(event_log, ["c03"])}).status_code == 200
    assert client.get("/customers/c03/prediction").status_code == 200
    for question in ("scores", "explain?task=aisle", "forecast"):
        assert client.get(f"/customers/c03/{question}").status_code == 501
    service.close()


def test_a_command_learns_a_label_and_leaves_what_was_found_on_other_customers(tuned, event_log, tables):
    facts = json.loads((tuned / "finetuning.json").read_text())
    assert (facts["label"], facts["kind"], facts["classes"]) == ("likes", "binary", ["false", "true"])
    assert facts["labels"] + facts["validation"]["labels"] == 34 and facts["validation"]["labels"] == 7
    assert facts["left_out"] == 0 and 0 <= facts["validation"]["auc"] <= 1
    assert 0 <= facts["yardsticks"]["days since the last event"] <= 1
    assert facts["validation"]["loss"] < 1.1 * np.log(2)  # not far above what holds for everybody, of seven customers
    predict = pipeline("customer-prediction", model=str(tuned))
    table = pd.read_parquet(tables / "labels.parquet")
    customers = [{"events": event_log[event_log["who"] == who].to_dict("list")} for who in table["who"]]
    chances = np.array([found["true"] for found in predict(customers, as_of="2017-10-05", batch_size=8)])
    assert chances[table["likes"]].mean() > chances[~table["likes"]].mean() + 0.005


def test_classes_and_numbers_are_learned_from_csv_too(options, tables, tmp_path):
    given = [*options, "--labels", tables / "labels.csv"]
    finetune(*given, "--label", "spent", "--output_dir", tmp_path / "spent")
    facts = json.loads((tmp_path / "spent" / "finetuning.json").read_text())
    assert facts["kind"] == "number" and {"rank_correlation", "mae"} <= set(facts["validation"])
    config = MCMConfig.from_pretrained(tmp_path / "spent")
    assert config.problem_type == "regression"
    found = pipeline("customer-prediction", model=str(tmp_path / "spent"))({"events": []}, as_of="2017-10-05")
    assert isinstance(found, float)
    finetune(*given, "--label", "aisle", "--validation_share", 0, "--output_dir", tmp_path / "aisle")
    facts = json.loads((tmp_path / "aisle" / "finetuning.json").read_text())
    assert facts["kind"] == "classes" and facts["labels"] == 34 and facts["validation"] == {"labels": 0}


def test_the_head_alone_is_fitted(pretrained, tuned):
    assert changed_weights(pretrained, tuned) == set()


def test_a_folder_of_another_run_is_refused_and_a_finished_run_is_left_alone(options, tables, tuned, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(tuned, folder)
    given = [*options, "--output_dir", folder]
    before = content(folder)
    for other, message in [
        (["--label", "spent"], "label likes and this run has spent"),
        (["--label", "likes", "--validation_share", 0.5], "validation_share 0.2 and this run has 0.5"),
        (["--label", "likes", "--labels", tables / "labels.csv"], "other labels"),
    ]:
        with pytest.raises(SystemExit, match=f"trained otherwise.*{message}.*give another output_dir"):
            finetune(*given, *other)
    finetune(*given, "--label", "likes")
    assert "which is finished: nothing is left to train" in caplog.text
    assert content(folder) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--offers", "offers"], "one of --offers and --labels are needed"),
        (["--outcomes", "click"], "--outcomes is not read with --labels: leave it out"),
        (["--validation_share", 0.001], "of 34 customers holds none out to evaluate on"),
    ],
)
def test_wrong_options_are_refused(options, tmp_path, command, wrong, message):
    command("run_finetune", *options, "--label", "likes", "--output_dir", tmp_path / "run", *wrong, fails=message)
    assert not (tmp_path / "run").exists()


def test_the_example_learns_churn_and_kids(event_log, pretrained, prepared, tmp_path, capsys):
    raw = event_log.rename(columns={"who": "household_id", "when": "time"}).assign(token_type="purchase")
    raw[["household_id", "time", "token_type"]].to_parquet(tmp_path / "events.parquet")
    known = sorted(event_log["who"].unique())
    kids = [None if place % 10 == 0 else str(place % 3) for place in range(len(known))]
    pd.DataFrame({"household_id": known, "kids_count": kids}).to_parquet(tmp_path / "profile.parquet")
    example = importlib.import_module("9_any_label")
    example.main(str(pretrained), prepared, tmp_path, tmp_path / "run")
    said = capsys.readouterr().out
    for name in ("churn", "kids"):
        assert f"{name}: AUC 0." in said or f"{name}: AUC 1." in said
        assert MCMForCustomerPrediction.from_pretrained(tmp_path / "run" / name).config.num_labels == 2
    assert "'true': " in said


def test_labels_need_a_log_with_times(prepare_log, event_log, tmp_path):
    ordered = event_log.assign(place=np.arange(len(event_log))).drop(columns="when")
    changes = {"time": None, "order": "place", "cutoffs": "leave_one_out"}
    features = [{"name": "type", "column": "action"}, {"name": "items", "column": "item"}]
    data = prepare_log(ordered, **changes, features=features, amount=None, tasks=["items"])
    with pytest.raises(ValueError, match="has no times but `order`"):
        read_labels(PreparedData(data), LabelOptions(labels=str(tmp_path / "labels.csv")))
