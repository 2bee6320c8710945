# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers and to labels as a person runs it: fit, evaluate, predict, and the page and the service."""

import importlib
import json
import shutil
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from choices import EXTENDED, TINY, from_data
from corner_shop import TEST, find_customer
from folders import changed_weights, content, read_json
from in_process import call
from serving_client import as_requests, make_client, make_service
from sklearn.metrics import roc_auc_score
from synthetic_log import prepare_items
from transformers import pipeline

from modeling_mcm import (
    CustomerModel,
    LiveCustomer,
    MCMConfig,
    MCMForActionRecommendation,
    MCMForCustomerPrediction,
    MCMForMultiTaskRecommendation,
)
from modeling_mcm.commands import app
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.offers import OfferReader, load_offers
from modeling_mcm.evaluation.offers import score_offers
from modeling_mcm.page.views import SENDS, Filters, PageContent
from modeling_mcm.training.checkpoints import find_head, open_checkpoint
from modeling_mcm.training.heads.customer import LabelOptions, read_labels
from modeling_mcm.training.state import fit_state

finetune = partial(call, "run_finetune")
ITEMS = [f"item {number:02}" for number in (0, 3, 7, 20)]


def read_facts(folder):
    return read_json(folder / "finetuning.json")


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
    pd.DataFrame({"action_id": ITEMS, "action": "buy", "item": ITEMS}).to_parquet(folder / "actions.parquet")
    return folder


@pytest.fixture(scope="module")
def labels(event_log, tmp_path_factory):
    """Labels at one moment: who buys an item of aisle 0, how much was paid, and a favourite aisle."""
    path, as_of = tmp_path_factory.mktemp("labels") / "labels.csv", pd.Timestamp("2017-10-05")
    before = event_log[(event_log["when"] < as_of) & (event_log["action"] == "buy")].groupby("who")
    table = before.agg(spent=("price", "sum"), aisle=("aisle", lambda aisles: aisles.mode()[0]))
    likes = before["aisle"].agg(lambda aisles: (aisles == "aisle 0").mean())
    table.assign(likes=likes > likes.median(), day=as_of).to_csv(path)
    return path


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    """Folder of a checkpoint with a state, as pre-training leaves it."""
    folder, data = tmp_path_factory.mktemp("pretrained"), PreparedData(prepared)
    rows, extractor = data.rows, data.extractor
    choices = from_data(extractor) | TINY | EXTENDED | {"state_size": 12, "forecast_days": [7.0]}
    choices |= {"state_features": ["type", "items", "aisle"], "summed_features": extractor.summed_features}
    torch.manual_seed(0)
    model = MCMForMultiTaskRecommendation(MCMConfig(**choices))
    fit_state(model.model, extractor, PreparedRows(rows, lengths=rows["validation_end"]), None)
    for part in (model, extractor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(pretrained, prepared, offers, labels):
    """The options of a run of each kind."""
    words = ["--model", pretrained, "--data", prepared]
    columns = ["--customer_column", "who", "--time_column", "day"]
    return {
        "offers": [*words, "--offers", offers],
        "likes": [*words, "--labels", labels, *columns, "--label", "likes"],
    }


@pytest.fixture(scope="module")
def tuned(options, tmp_path_factory):
    """Folders of a run of each kind."""
    folder = tmp_path_factory.mktemp("tuned")
    for kind, words in options.items():
        finetune(*words, "--output_dir", folder / kind)
    return {kind: folder / kind for kind in options}


@pytest.fixture
def predict(command, prepared, tmp_path):
    """A function that gives what the command predicts for all customers."""

    def run(folder, *words):
        command("run_predict", "--model", folder, "--data", prepared, "--output_dir", tmp_path / folder.name, *words)
        return pd.read_parquet(tmp_path / folder.name).set_index("customer_id")

    return run


def test_a_run_to_offers_learns_and_leaves_a_checkpoint(tuned, pretrained, prepared, offers):
    model, extractor = open_checkpoint(MCMForActionRecommendation, str(tuned["offers"]))
    assert model.config.action_outcomes == ["conversion"]  # nobody looked at clicks
    facts = read_facts(tuned["offers"])
    assert (facts["groups"], facts["offers"], facts["outcomes"]) == (68, 272, ["conversion"])
    test = load_offers(offers, ["conversion"]).of(["test"])
    scores = score_offers(model, OfferReader(PreparedData(prepared).rows, test, extractor, model.config))[:, 0]
    assert roc_auc_score(test.table["conversion"], scores) > 0.8
    # The head was fitted to the state as it was counted at the cutoff
    state = {f"model.state.{name}" for name in ("mean", "std", "directions", "longest_silence")}
    assert all(changed_weights(pretrained, folder) <= state for folder in tuned.values())


def test_offers_that_are_not_read_are_made_up_for_by_weights(options, prepared, offers, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mcm.training.heads.offers.MOST_REFUSED", 20)
    finetune(*options["offers"], "--output_dir", tmp_path / "run")
    table = load_offers(offers).of(["train", "validation"])
    assert read_facts(tmp_path / "run")["offers"] == table.table["conversion"].sum() + 20 < 0.8 * len(table.table)
    model, extractor = open_checkpoint(MCMForActionRecommendation, str(tmp_path / "run"))
    scores = score_offers(model, OfferReader(PreparedData(prepared).rows, table, extractor, model.config))[:, 0]
    assert (1 / (1 + np.exp(-scores))).mean() == pytest.approx(table.table["conversion"].mean(), abs=0.06)


def test_offers_beside_those_to_evaluate_on_or_after_the_log_are_not_trained_on(options, offers, tmp_path, command):
    shutil.copytree(offers, tmp_path / "turned")
    path, table = tmp_path / "turned" / "offers.parquet", pd.read_parquet(offers / "offers.parquet")
    words = [*options["offers"], "--output_dir", tmp_path / "run", "--offers", tmp_path / "turned"]
    for changed, message in (
        (table.replace({"split": {"train": "test", "test": "train"}}), "when offers to evaluate on run already"),
        (
            table.assign(split="train", time=table["time"] + pd.Timedelta("400D")),
            "that the log does not reach: it ends",
        ),
    ):
        changed.to_parquet(path)
        command("run_finetune", *words, fails=message)
        assert not [*(tmp_path / "run").glob("*")]


def test_evaluation_of_offers_prints_and_writes_a_table(
    tuned, pretrained, prepared, offers, tmp_path, command, capsys
):
    words = ["--model", tuned["offers"], "--data", prepared]
    written = ["--output_file", tmp_path / "numbers.json", "--report_file", tmp_path / "table.md"]
    said = command("run_evaluate", *words, "--offers", offers, *written)
    assert "34 test groups of offers of corner_shop, 34 customers" in said
    numbers = read_json(tmp_path / "numbers.json")["results"]
    assert list(numbers) == ["MCM without fine-tuning", "MCM fine-tuned"]
    for metrics in (by_outcome["conversion"] for by_outcome in numbers.values()):
        assert set(metrics) == {"average_precision", "roc_auc", "ndcg@10", "recall@10"}
        assert all(0 <= m["low"] <= m["mean"] <= m["high"] <= 1 for m in metrics.values())
    assert "| conversion: MCM fine-tuned | " in (tmp_path / "table.md").read_text()
    command("run_evaluate", *words, fails="is an MCMForActionRecommendation")
    importlib.import_module("7_fine_tune_to_offers").main(pretrained, prepared, offers, tmp_path / "run")
    means = [f"{name} {metric['mean']:.3f}" for name, metric in metrics.items()]
    assert f"conversion: {', '.join(means)}\n" in capsys.readouterr().out


def test_a_label_is_learned_and_what_was_found_on_other_customers_is_kept(tuned, event_log, labels):
    facts = read_facts(tuned["likes"])
    assert (facts["label"], facts["kind"], facts["classes"]) == ("likes", "classes", ["false", "true"])
    assert facts["labels"] + facts["validation"]["labels"] == 34 and facts["validation"]["labels"] == 7
    assert facts["left_out"] == 0 and 0 <= facts["validation"]["auc"] <= 1
    assert 0 <= facts["yardstick"]["auc"] <= 1 and facts["yardstick"].keys() <= facts["validation"].keys()
    assert facts["validation"]["loss"] < 1.1 * np.log(2)  # not far above what holds for everybody, of seven customers
    table, ask = pd.read_csv(labels), pipeline("customer-prediction", model=str(tuned["likes"]))
    customers = [find_customer(event_log, who) for who in table["who"]]
    chances = np.array([found["true"] for found in ask(customers, as_of="2017-10-05", batch_size=8)])
    assert chances[table["likes"]].mean() > chances[~table["likes"]].mean() + 0.005


def test_numbers_and_classes_are_learned_too(options, tmp_path):
    finetune(*options["likes"], "--label", "spent", "--output_dir", tmp_path / "spent")
    facts = read_facts(tmp_path / "spent")
    assert facts["kind"] == "number" and {"rank_correlation", "mae"} <= set(facts["validation"])
    assert MCMConfig.from_pretrained(tmp_path / "spent").problem_type == "regression"
    found = pipeline("customer-prediction", model=str(tmp_path / "spent"))({"events": []}, as_of="2017-10-05")
    assert isinstance(found, float)
    words = ["--label", "aisle", "--validation_share", 0, "--output_dir", tmp_path / "aisle"]
    finetune(*options["likes"], *words)
    facts = read_facts(tmp_path / "aisle")
    assert facts["kind"] == "classes" and facts["labels"] == 34 and facts["validation"] == {"labels": 0}


# The kind of a run and its options, in which words in capitals stand for paths; then what is said.
OTHERWISE = """
offers --seed 30 -> this run has 30
likes --label spent -> label likes and this run has spent
likes --validation_share 0.5 -> validation_share 0.2 and this run has 0.5
likes --labels OTHER -> other labels
likes --model SHORT -> other pre-trained model
""".strip().splitlines()


def test_a_folder_of_another_run_is_refused_and_a_finished_run_is_left_alone(
    options, labels, tuned, pretrained, tmp_path, command, caplog
):
    given = {"OTHER": tmp_path / "other.csv", "SHORT": shutil.copytree(pretrained, tmp_path / "short")}
    pd.read_csv(labels)[::-1].to_csv(given["OTHER"], index=False)
    settings = given["SHORT"] / "preprocessor_config.json"
    settings.write_text(json.dumps(read_json(settings) | {"max_events": 9}))
    before = {kind: content(folder) for kind, folder in tuned.items()}
    for line in OTHERWISE:
        asked, message = line.split(" -> ")
        kind, *words = [given.get(word, word) for word in asked.split()]
        said = command("run_finetune", *options[kind], "--output_dir", tuned[kind], *words, fails="trained otherwise")
        assert message in said and "give another output_dir" in said
    for kind, words in options.items():
        finetune(*words, "--output_dir", tuned[kind])
        assert "which is finished: nothing is left to train" in caplog.messages[-1]
    assert {kind: content(folder) for kind, folder in tuned.items()} == before


def test_further_columns_of_the_table_are_read_in_prediction(tuned, predict, event_log, labels, tmp_path):
    table = pd.read_csv(labels).rename(columns={"who": "customer_id"})[["customer_id", "spent", "aisle"]]
    table[:20].to_csv(tmp_path / "columns.csv", index=False)
    found, end = predict(tuned["likes"], "--label_columns", tmp_path / "columns.csv"), event_log["when"].max()
    assert list(found.columns) == ["predicted_false", "predicted_true"]
    ask = pipeline("customer-prediction", model=str(tuned["likes"]))
    for place, columns in ((3, table.iloc[3, 1:].to_dict()), (30, None)):  # of the last no column is known
        who = table["customer_id"][place]
        customer = find_customer(event_log, who) | {"label_columns": columns}
        wanted = ask([customer, customer | {"label_columns": {}}], as_of=end + pd.Timedelta(seconds=1), batch_size=2)
        assert found.loc[who].tolist() == pytest.approx([*wanted[0].values()], abs=1e-5)
        assert (wanted[0] == pytest.approx(wanted[1], abs=1e-6)) == (columns is None)
        live = LiveCustomer(ask.model, ask.feature_extractor, customer.get("profile"))
        live.add(customer["events"])
        assert live.predict(end + pd.Timedelta(seconds=1), columns) == pytest.approx(wanted[0], abs=1e-5)


def test_a_checkpoint_that_knows_profiles_is_fine_tuned_in_python(pretrained, event_log):
    model = CustomerModel.load(pretrained, event_log)
    table = pd.DataFrame({"customer": model.customers, "label": np.arange(len(model.customers)) % 2})
    assert len(model.finetune(table, validation_share=0).predict()) == len(table)


def test_a_checkpoint_and_options_that_do_not_fit_are_named(tuned, prepared, offers, tmp_path, command):
    words, actions = ["--data", prepared, "--output_dir", tmp_path / "out"], offers / "actions.parquet"
    for kind, more, said in (
        ("offers", [], "name the table of the actions that it scores with --actions"),
        ("offers", ["--actions", actions, "--tasks", "items"], "ranks no tasks"),
        ("likes", ["--label_columns", actions, "--output_dir", tmp_path / "own"], "has no column 'customer_id'"),
    ):
        command("run_predict", "--model", tuned[kind], *words, *more, fails=said)


def test_the_page_lists_a_label_and_offers_of_all_customers(
    tuned, pretrained, prepared, offers, raw, predict, tmp_path, command, monkeypatch
):
    pytest.importorskip("gradio", reason="Gradio not installed")
    actions, shown = ["--actions", offers / "actions.parquet"], []
    data, log = shutil.copytree(prepared, tmp_path / "data"), raw / "events.parquet"
    words = ["--data", data, "--events", log, "--model"]
    monkeypatch.setattr(app, "build_page", shown.append)
    monkeypatch.setattr(app, "launch_page", lambda *_, **__: sys.exit("shown"))
    show = partial(command, "modeling_mcm.commands.app", *words)
    show(pretrained, "--tuned", *tuned.values(), *actions, fails="shown")
    page = PageContent(shown[0].wait())
    likes, taken = predict(tuned["likes"], "--as_of", TEST), predict(tuned["offers"], "--as_of", TEST, *actions)
    found = page.answer(Filters(column="likes, %", falls=True)).table.set_index("customer")
    assert found["likes, %"].is_monotonic_decreasing
    assert found["likes, %"].to_dict() == pytest.approx((100 * likes["predicted_true"]).to_dict(), abs=0.006)
    for action, chance in zip(*taken.loc["c07"], strict=True):
        assert found.loc["c07", f"offers: {action} conversion, %"] == pytest.approx(100 * chance, abs=0.006)
    sent = page.answer(Filters(SENDS)).table.set_index("customer").loc["c07"]
    assert sent["send"] == f"offers: {taken.loc['c07', 'conversion'][0]} conversion"
    monkeypatch.setattr("modeling_mcm.scoring.scorer.BatchScorer.score", None)  # the second start reads them
    show(pretrained, "--tuned", *tuned.values(), *actions, fails="shown")
    pd.testing.assert_frame_equal(PageContent(shown[1].wait()).customers, page.customers)
    said = show(tuned["likes"], fails="is an MCMForCustomerPrediction")
    assert "`mcm app --tuned`; this needs an MCMForMultiTaskRecommendation" in said
    show(pretrained, "--tuned", tuned["likes"], tuned["likes"], fails="Two folders of --tuned have one")
    show(pretrained, "--tuned", tuned["offers"], fails="name the table of the actions")
    many = pd.DataFrame({"action_id": [f"item {n:02}" for n in range(13)]})
    many.assign(action="buy", item=many["action_id"]).to_csv(tmp_path / "many.csv", index=False)
    said = "has 13 actions with 1 outcomes each, and the list has room for 12"
    show(pretrained, "--tuned", tuned["offers"], "--actions", tmp_path / "many.csv", fails=said)


def test_the_service_answers_what_a_head_is_for_and_nothing_else(tuned, event_log, tmp_path):
    pytest.importorskip("fastapi", reason="FastAPI not installed")
    for kind, folder in tuned.items():
        service = make_service(*open_checkpoint(find_head(str(folder)), str(folder)), tmp_path / f"{kind}.db")
        client = make_client(service)
        assert client.post("/events", json={"events": as_requests(event_log, ["c03"])}).status_code == 200
        for question in ("scores", "explain?task=aisle", "forecast"):
            assert client.get(f"/customers/c03/{question}").status_code == 501
        if kind == "offers":
            body = {"customers": ["c03", "nobody"], "actions": [{"action_id": "a", "item": "itm 01"}]}
            answer = client.post("/offers", json=body).json()
            assert (answer["unknown"], answer["unknown_values"]) == (["nobody"], {"item": ["itm 01"]})
            for bad in (
                {"colour": "red"},
                {"action": "end_of_visit"},
                {},
                *({"item": ITEMS[0], "weight": weight} for weight in ("x", 0, -1)),
            ):
                wrong = client.post("/offers", json=body | {"actions": [{"action_id": "a", **bad}]})
                assert wrong.status_code == 422 and ([*bad] or ["no columns besides"])[-1] in wrong.json()["detail"]
        service.close()


def test_the_example_learns_churn_and_kids(event_log, pretrained, prepared, tmp_path, capsys):
    raw = event_log.rename(columns={"who": "household_id", "when": "time"}).assign(token_type="purchase")
    raw[["household_id", "time", "token_type"]].to_parquet(tmp_path / "events.parquet")
    known = sorted(event_log["who"].unique())
    kids = [None if place % 10 == 0 else str(place % 3) for place in range(len(known))]
    pd.DataFrame({"household_id": known, "kids_count": kids}).to_parquet(tmp_path / "profile.parquet")
    importlib.import_module("9_any_label").main(str(pretrained), prepared, tmp_path, tmp_path / "run")
    said = capsys.readouterr().out
    for name in ("churn", "kids"):
        assert f"{name}: AUC " in said
        assert MCMForCustomerPrediction.from_pretrained(tmp_path / "run" / name).config.num_labels == 2
    assert "'true': " in said


def test_labels_of_a_log_without_times_are_of_whole_histories(tmp_path):
    rows, schema = [(who, item) for who in "ab" for item in range(4)], {"order": "rows", "cutoffs": "leave_one_out"}
    data = prepare_items(tmp_path, rows, ["user", "item"], features=[{"name": "item"}], **schema)
    (tmp_path / "labels.csv").write_text("customer_id,label\na,1\nb,0\n")
    customers = read_labels(data, LabelOptions(labels=str(tmp_path / "labels.csv")))
    histories = customers.histories(np.array([0, 1]), data.extractor.layout)
    assert [*histories.lengths] == [4, 4]
