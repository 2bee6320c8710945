# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and chances of two models; embeddings, forecasts, a label and offers of one: the same through every
entrance, and the same as before a change.

`pytest tests/integration/test_golden_scores.py --update-golden` writes golden_scores.json and golden_customers.json in
tests/fixtures anew, from the forward pass.
"""

import json
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from corner_shop import make_log
from fitted import fill_scorer
from in_process import call
from serving_client import make_client, make_service
from transformers import pipeline
from tutorial import DUMMY

from modeling_mcm import (
    CustomerModel,
    LiveCustomer,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForCustomerPrediction,
    MCMForMultiTaskRecommendation,
)
from modeling_mcm.action_inputs_mcm import encode_actions

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden_scores.json"
STORED = 2  # number of best labels of a task in the file
QUESTIONS = {"next visit": {"as_of": "2018-01-15"}, "within a month": {"as_of": "2018-02-01", "horizon_days": 30.0}}


def make_small_shop_log(extractor):
    """Histories of 50 customers of the dummy checkpoint's shop, of 1 to 30 visits, some of them on one day."""
    generator, events = np.random.default_rng(0), []
    products = np.array(extractor.vocabularies["product_category"])
    for customer in range(50):
        days = np.sort(generator.integers(0, 330, 1 + customer * 3 % 30))
        for visit, day in enumerate(days):
            for product in generator.choice(products[: 3 + customer % 10], generator.integers(1, 4)):
                events.append((f"c{customer:02}", pd.Timestamp("2017-02-01") + pd.Timedelta(days=day), visit, product))
    log = pd.DataFrame(events, columns=["household_id", "time", "basket_id", "product_category"])
    departments = np.array(extractor.vocabularies["department"])[log["product_category"].map(hash_text) % 4]
    return log.assign(token_type="purchase", department=departments, amount=1 + np.arange(len(log)) % 7 / 2)


def hash_text(text):
    return zlib.crc32(text.encode())


@torch.no_grad()
def draw_by_name(part, std=0.3):
    """Draws weights of which none depends on those of other parts."""
    for name, parameter in part.named_parameters():
        parameter.normal_(0, std, generator=torch.Generator().manual_seed(hash_text(name)))


@pytest.fixture(params=["trained, as stored", "weights drawn by name"])
def shop(request, tmp_path):
    """Name of a model, its folder, and a log of 50 customers."""
    if request.param == "trained, as stored":
        return request.param, DUMMY, make_small_shop_log(MCMFeatureExtractor.from_pretrained(str(DUMMY)))
    make_model, extractor = (request.getfixturevalue(name) for name in ("tiny_model", "extractor"))
    model = fill_scorer(make_model(extended=True, scorer=True, kind_feature="type"))
    draw_by_name(model)
    with torch.no_grad():
        for table in model.model.embeddings.events.feature_tables:
            table.weight[0] = 0  # padding
        model.scorer.chance.copy_(torch.tensor([0.5, 0.9, -0.2]))
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "model")
    return request.param, tmp_path / "model", make_log(customers=50, seed=1)


def load(folder):
    return (each.from_pretrained(str(folder)) for each in (MCMForMultiTaskRecommendation, MCMFeatureExtractor))


def write(path, answers):
    """Writes a line for each customer."""
    path.write_text(json.dumps(answers).replace("}}, ", "}},\n") + "\n")


# Each entrance gives {customer: {task: {label: (score, chance)}}} of at least the best labels.


def ask_forward(folder, log, customers, _, as_of=None, horizon_days=None):
    model, extractor = load(folder)
    inputs = extractor([{"events": events} for _, events in customers], as_of=as_of and [as_of] * len(customers))
    with torch.no_grad():
        logits = model.eval()(**inputs, horizon_days=horizon_days).logits
    result = {name: {} for name, _ in customers}
    for task, scores in logits.items():
        chances = model.chances(task, scores.double().log_softmax(1), horizon_days)
        scores[:, extractor.own_ids(task)] = -torch.inf  # they get no share of the scores
        for answer, row, chance in zip(result.values(), scores.softmax(1), chances, strict=True):
            best = row.topk(STORED).indices
            values = zip(row[best].tolist(), chance[best].tolist(), strict=True)
            answer[task] = dict(zip(extractor.decode_labels(task, best.tolist()), values, strict=True))
    return result


def ask_pipeline(folder, log, customers, _, **question):
    given = [{"events": events} for _, events in customers]
    answers = pipeline("preference-scores", model=str(folder))(given, batch_size=16, **question)
    return {name: read(answer) for (name, _), answer in zip(customers, answers, strict=True)}


def ask_live_customers(folder, log, customers, _, **question):
    model, extractor = load(folder)
    result = {}
    for name, events in customers[::5]:
        live = LiveCustomer(model.eval(), extractor)
        live.add(events)
        result[name] = read(live.scores(**question))
    return result


def read(answer):
    return {task: {each["label"]: (each["score"], each["chance"]) for each in best} for task, best in answer.items()}


def ask_customer_model(folder, log, customers, _, **question):
    result = {}
    for row in CustomerModel.load(folder, log).recommend(**question).itertuples():
        result.setdefault(row.customer, {}).setdefault(row.task, {})[row.label] = row.score, row.chance
    return result


def predict(folder, log, customers, place, *options):
    """Rows of predictions by the command, by customer."""
    log.to_parquet(place / "log.parquet")
    nothing = pd.DataFrame({log.columns[0]: [name for name, _ in customers], "age": pd.NA}, dtype="string")
    nothing.to_parquet(place / "profile.parquet")
    options = [*options, "--events", place / "log.parquet", "--profile", place / "profile.parquet"]
    call("run_predict", "--model", folder, "--output_dir", place / "predictions", *options)
    return pd.read_parquet(place / "predictions").to_dict("records")


def ask_predict(folder, log, customers, place, **question):
    options = [word for name, value in question.items() for word in (f"--{name}", value)]
    options += ["--embeddings", "false", "--forecasts", "false"]
    result = {}
    for row in predict(folder, log, customers, place, *options):
        tasks = [name.removesuffix("_scores") for name in row if name.endswith("_scores")]
        result[row["customer_id"]] = {
            task: dict(zip(row[task], zip(row[f"{task}_scores"], row[f"{task}_chances"], strict=True), strict=True))
            for task in tasks
        }
    return result


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("ask", [ask_forward, ask_pipeline, ask_live_customers, ask_customer_model, ask_predict])
def test_scores_and_chances_are_golden(shop, ask, question, tmp_path, request):
    name, folder, log = shop
    customer = MCMFeatureExtractor.from_pretrained(str(folder)).customer
    found = ask(folder, log, list(log.groupby(customer)), tmp_path, **QUESTIONS[question])
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("update_golden") and ask is ask_forward:
        kept = {
            customer: {
                task: {label: [round(value, 6) for value in values] for label, values in best.items()}
                for task, best in answer.items()
            }
            for customer, answer in found.items()
        }
        stored.setdefault(name, {})[question] = kept
        write(GOLDEN, stored)
    expected = stored[name][question]
    assert len(found) >= 10 and len(expected) == 50
    for customer, answer in found.items():
        assert answer.keys() == expected[customer].keys()
        for task, best in expected[customer].items():
            for label, values in best.items():
                assert answer[task][label] == pytest.approx(values, abs=1e-5), (customer, task, label)


# Each entrance gives {customer: (embedding, forecasts by name)}.


def tell_by_forward(folder, log, customers, _, as_of):
    model, extractor = load(folder)
    with torch.no_grad():
        found = model.eval()(
            **extractor([{"events": events} for _, events in customers], as_of=[as_of] * len(customers))
        )
    forecasts = {name: values.tolist() for name, values in found.forecasts.items()}
    rows = [dict(zip(forecasts, row, strict=True)) for row in zip(*forecasts.values(), strict=True)]
    return {name: answer for (name, _), *answer in zip(customers, found.pooler_output.tolist(), rows, strict=True)}


def tell_by_pipelines(folder, log, customers, _, as_of):
    given = [{"events": events} for _, events in customers]
    kinds = ("customer-embedding", "customer-forecast")
    answers = [pipeline(kind, model=str(folder))(given, batch_size=16, as_of=as_of) for kind in kinds]
    return {name: answer for (name, _), *answer in zip(customers, *answers, strict=True)}


def tell_by_live_customers(folder, log, customers, _, as_of):
    result = {}
    for name, events in customers:
        live = LiveCustomer(*load(folder))
        live.add(events)
        result[name] = live.embedding(as_of), live.forecast(as_of)
    return result


def tell_by_customer_model(folder, log, customers, _, as_of):
    model = CustomerModel.load(folder, log)
    rows = model.embed(as_of=as_of).to_numpy(), model.forecast(as_of=as_of).to_dict("records")
    return {name: answer for (name, _), *answer in zip(customers, *rows, strict=True)}


def tell_by_predict(folder, log, customers, place, as_of):
    rows = predict(folder, log, customers, place, "--as_of", as_of)
    return {row["customer_id"]: (row["embedding"], row) for row in rows}


TELL = [tell_by_forward, tell_by_pipelines, tell_by_live_customers, tell_by_customer_model, tell_by_predict]


@pytest.mark.parametrize("tell", TELL)
def test_embeddings_and_forecasts_are_golden(tell, tmp_path, request):
    log = make_small_shop_log(MCMFeatureExtractor.from_pretrained(str(DUMMY)))
    log = log[log["household_id"].str.endswith("7")]
    found = tell(DUMMY, log, list(log.groupby("household_id")), tmp_path, "2018-01-15")
    path = GOLDEN.with_name("golden_customers.json")
    if request.config.getoption("update_golden") and tell is tell_by_forward:
        kept = {
            name: {
                "embedding": [round(value, 6) for value in embedding],
                "forecasts": {name: round(value, 6) for name, value in forecasts.items()},
            }
            for name, (embedding, forecasts) in found.items()
        }
        write(path, kept)
    expected = json.loads(path.read_text())
    assert found.keys() == expected.keys() and len(found) == 5
    for name, (embedding, forecasts) in found.items():
        assert list(np.ravel(embedding)) == pytest.approx(expected[name]["embedding"], abs=2e-5)
        given = {key: forecasts[key] for key in expected[name]["forecasts"]}
        assert given == pytest.approx(expected[name]["forecasts"], rel=1e-4, abs=1e-5)


# Each entrance gives {customer: {name: probability}} of a head: of the classes of a label, or of outcomes of offers.

AS_OF = "2018-01-15"
HEADS = {
    "label": (MCMForCustomerPrediction, "prediction_head", {"id2label": {0: "stays", 1: "leaves"}}),
    "offers": (MCMForActionRecommendation, "action_head", {}),
}
ACTIONS = [
    {"action_id": action_id, "token_type": "purchase", "product_category": category, "department": department}
    for action_id, category, department in [("eggs", "EGGS", None), ("meat", None, "MEAT"), ("meat", "COFFEE", None)]
]


def infer_by_forward(model, folder, extractor, customers, log, place):
    rows = [extractor.encode({"events": events}) for _, events in customers]
    times = [pd.Timestamp(AS_OF).timestamp()] * len(rows)
    if isinstance(model, MCMForCustomerPrediction):
        values, names = model(**extractor.pad(rows, as_of=times)).logits.softmax(1), [*model.config.id2label.values()]
    else:
        actions = encode_actions(extractor, model.config, ACTIONS)
        offered = np.tile(np.arange(len(actions.action_ids)), (len(rows), 1))
        values = model(**actions.batch(rows, offered, times)).logits.sigmoid().flatten(1)
        names = [f"{action} {outcome}" for action in actions.action_ids for outcome in model.config.action_outcomes]
    answers = zip(customers, values.tolist(), strict=True)
    return {name: dict(zip(names, row, strict=True)) for (name, _), row in answers}


def infer_by_pipeline(model, folder, extractor, customers, log, place):
    given = [{"events": events} for _, events in customers]
    if isinstance(model, MCMForCustomerPrediction):
        answers = pipeline("customer-prediction", model=folder)(given, batch_size=3, as_of=AS_OF)
    else:
        answers = pipeline("action-scores", model=folder)(given, batch_size=3, actions=ACTIONS, time=AS_OF)
    return {name: name_outcomes(answer) for (name, _), answer in zip(customers, answers, strict=True)}


def name_outcomes(answer):
    """The answer of a label as it is, that of offers by names of action and outcome."""
    if isinstance(answer, dict):
        return answer
    return {f"{offer['action_id']} {name}": p for offer in answer for name, p in offer.items() if name != "action_id"}


def infer_by_live_customers(model, folder, extractor, customers, log, place):
    result = {}
    for name, events in customers:
        live = LiveCustomer(model, extractor)
        live.add(events)
        is_label = isinstance(model, MCMForCustomerPrediction)
        result[name] = name_outcomes(live.predict(AS_OF) if is_label else live.offers(ACTIONS, AS_OF))
    return result


def infer_by_predict(model, folder, extractor, customers, log, place):
    options = ["--as_of", AS_OF]
    if isinstance(model, MCMForActionRecommendation):
        pd.DataFrame(ACTIONS).to_parquet(place / "actions.parquet")
        options += ["--actions", place / "actions.parquet"]
    result = {}
    for row in predict(folder, log, customers, place, *options):
        result[row["customer_id"]] = {
            name.removeprefix("predicted_"): p for name, p in row.items() if name.startswith("predicted_")
        } | {
            f"{action} {outcome}": p
            for outcome in model.config.action_outcomes
            if outcome in row
            for action, p in zip(row[outcome], row[f"{outcome}_scores"], strict=True)
        }
    return result


def infer_by_service(model, folder, extractor, customers, log, place):
    pytest.importorskip("fastapi", reason="FastAPI not installed")
    service = make_service(model, extractor, place / "state.db", clock=lambda: datetime(2018, 2, 1, tzinfo=UTC))
    client, columns = make_client(service), [name for name in log if name != extractor.customer]
    events = json.loads(log[columns].astype({"time": str}).to_json(orient="records"))
    requests = [
        {"event_id": str(number), "customer_id": name, "event": event}
        for number, (name, event) in enumerate(zip(log[extractor.customer], events, strict=True))
    ]
    assert client.post("/events", json={"events": requests}).status_code == 200
    names, asked = [name for name, _ in customers], {"as_of": AS_OF}
    if isinstance(model, MCMForCustomerPrediction):
        answers = {name: client.get(f"/customers/{name}/prediction", params=asked).json() for name in names}
        answers = {name: answer["prediction"] for name, answer in answers.items()}
    else:
        answer = client.post("/offers", json={"customers": names, "actions": ACTIONS}, params=asked).json()
        answers = {each["customer_id"]: name_outcomes(each["offers"]) for each in answer["customers"]}
    service.close()
    return answers


INFER = [infer_by_forward, infer_by_pipeline, infer_by_live_customers, infer_by_predict, infer_by_service]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("infer", INFER)
def test_a_label_and_offers_are_golden(head, infer, tmp_path, request):
    model_class, drawn, options = HEADS[head]
    model = model_class.from_pretrained(str(DUMMY), **options).eval()
    extractor = MCMFeatureExtractor.from_pretrained(str(DUMMY))
    draw_by_name(getattr(model, drawn), std=0.1)
    if head == "label":
        model.prediction_head.rarity.fill_(1.0)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "model")
    log = make_small_shop_log(extractor)
    log = log[log["household_id"].str.endswith("7")]
    customers = list(log.groupby("household_id"))
    with torch.no_grad():
        answers = infer(model, str(tmp_path / "model"), extractor, customers, log, tmp_path)
    path = GOLDEN.with_name("golden_customers.json")
    stored = json.loads(path.read_text())
    if request.config.getoption("update_golden") and infer is infer_by_forward:
        for name, answer in answers.items():
            stored[name][head] = {key: round(p, 6) for key, p in answer.items()}
        write(path, stored)
    assert answers.keys() == stored.keys()
    for name, answer in answers.items():
        assert answer == pytest.approx(stored[name][head], abs=1e-5)
    assert all(0.001 < p < 0.999 for answer in answers.values() for p in answer.values())
