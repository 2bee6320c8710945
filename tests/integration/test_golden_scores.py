# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and chances of two models; embeddings, forecasts, a label and offers of one: the same through every
entrance, and the same as before a change.

`pytest tests/integration/test_golden_scores.py --update-golden` writes tests/fixtures/golden_scores.json anew, from
the forward pass.
"""

import json
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from answers import flatten
from corner_shop import make_log
from fitted import fill_scorer
from folders import read_json
from in_process import call
from serving_client import as_requests, make_client, make_service
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
from modeling_mcm.action_inputs_mcm import EncodedActions

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden_scores.json"
STORED = 2  # number of best labels of a task in the file
AS_OF = "2018-01-15"
MONTH = {"as_of": "2018-02-01", "horizon_days": 30.0}
CASES = {  # a model, what is asked, and the options of the question
    "trained, next visit": ("trained", "scores", {}),
    "trained, within a month": ("trained", "scores", MONTH),
    "drawn, next visit": ("drawn", "scores", {}),
    "drawn, within a month": ("drawn", "scores", MONTH),
    "embedding": ("few customers", "embedding", {}),
    "forecasts": ("few customers", "forecast", {}),
    "label": ("label", "prediction", {}),
    "offers": ("offers", "offers", {}),
}
ACTIONS = [
    {"action_id": action_id, "token_type": "purchase", "product_category": category, "department": department}
    for action_id, category, department in [("eggs", "EGGS", None), ("meat", None, "MEAT"), ("meat", "COFFEE", None)]
]


class Shop(NamedTuple):
    """A model with its feature extractor, a place that has their folder, and a log of customers."""

    model: torch.nn.Module
    extractor: MCMFeatureExtractor
    place: Path
    log: pd.DataFrame

    @property
    def folder(self):
        return str(self.place / "model")

    @property
    def histories(self):
        """The events of each customer, by name."""
        return dict(list(self.log.groupby(self.extractor.customer)))


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


@pytest.fixture
def shop(case, request, tmp_path):
    """The model of a case with its customers."""
    name, extractor = CASES[case][0], MCMFeatureExtractor.from_pretrained(str(DUMMY))
    log = make_small_shop_log(extractor)
    if name == "drawn":
        make_model, extractor = (request.getfixturevalue(name) for name in ("tiny_model", "extractor"))
        model, log = fill_scorer(make_model(extended=True, scorer=True, kind_feature="type")), make_log(50, seed=1)
        draw_by_name(model)
        with torch.no_grad():
            for table in model.model.embeddings.events.feature_tables:
                table.weight[0] = 0  # padding
            model.scorer.chance.copy_(torch.tensor([0.5, 0.9, -0.2]))
    elif name == "label":
        model = MCMForCustomerPrediction.from_pretrained(str(DUMMY), id2label={0: "stays", 1: "leaves"})
        draw_by_name(model.prediction_head, std=0.1)
    elif name == "offers":
        model = MCMForActionRecommendation.from_pretrained(str(DUMMY))
        draw_by_name(model.action_head, std=0.1)
    else:
        model = MCMForMultiTaskRecommendation.from_pretrained(str(DUMMY))
    if name not in ("trained", "drawn"):
        log = log[log["household_id"].str.endswith("7")]
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "model")
    return Shop(model.eval(), extractor, tmp_path, log)


# Each entrance gives an answer for each customer.


def ask_forward(shop, what, as_of, **options):
    model, extractor = shop.model, shop.extractor
    rows = [extractor.encode({"events": events}) for events in shop.histories.values()]
    times = [pd.Timestamp(as_of).timestamp()] * len(rows)
    if what == "offers":
        actions = EncodedActions(extractor, model.config, ACTIONS)
        offered = np.tile(np.arange(len(actions.action_ids)), (len(rows), 1))
        chances = model(**actions.batch(rows, offered, times)).logits.sigmoid()
        tables = (pd.DataFrame(row, actions.action_ids, model.config.action_outcomes) for row in chances.tolist())
        return [table.to_dict("index") for table in tables]
    output = model(**extractor.pad(rows, as_of=times), **options)
    if what == "embedding":
        return output.pooler_output.tolist()
    if what == "forecast":
        return pd.DataFrame({name: values.tolist() for name, values in output.forecasts.items()}).to_dict("records")
    if what == "prediction":
        return pd.DataFrame(output.logits.softmax(1), columns=model.config.id2label.values()).to_dict("records")
    answers = [{} for _ in rows]
    for task, scores in output.logits.items():
        chances = model.chances(task, scores.double().log_softmax(1), options.get("horizon_days"))
        if output.forecasts and "horizon_days" in options:
            chances *= output.forecasts["visit_probability_30d"][:, None]
        scores[:, extractor.own_ids(task)] = -torch.inf  # they get no share of the scores
        for answer, row, chance in zip(answers, scores.softmax(1), chances, strict=True):
            best = row.topk(STORED).indices
            labels = extractor.decode_labels(task, best.tolist())
            answer[task] = pd.DataFrame({"score": row[best], "chance": chance[best]}, labels).to_dict("index")
    return answers


PIPELINES = {
    "scores": "preference-scores",
    "embedding": "customer-embedding",
    "forecast": "customer-forecast",
    "prediction": "customer-prediction",
    "offers": "action-scores",
}


def ask_pipeline(shop, what, as_of, **options):
    given = [{"events": events} for events in shop.histories.values()]
    options |= {"as_of": as_of} | ({"actions": ACTIONS} if what == "offers" else {})
    return pipeline(PIPELINES[what], model=shop.folder)(given, batch_size=16, **options)


def ask_live_customers(shop, what, as_of, **options):
    for events in shop.histories.values():
        live = LiveCustomer(shop.model, shop.extractor)
        live.add(events)
        if what == "offers":
            yield live.offers(ACTIONS, as_of)
        else:
            yield getattr(live, {"prediction": "predict"}.get(what, what))(as_of, **options)


def ask_customer_model(shop, what, as_of, **options):
    model = CustomerModel.load(shop.folder, shop.log)
    if what == "scores":
        tables = model.recommend(as_of=as_of, **options).groupby("customer")
        return [{task: part.to_dict("records") for task, part in table.groupby("task")} for _, table in tables]
    if what == "embedding":
        return model.embed(as_of=as_of).to_numpy()
    return getattr(model, {"prediction": "predict"}.get(what, what))(as_of=as_of).to_dict("records")


def ask_predict(shop, what, as_of, **options):
    names, place = [*shop.histories], shop.place
    shop.log.to_parquet(place / "log.parquet")
    nothing = pd.DataFrame({shop.extractor.customer: names, "age": pd.NA}, dtype="string")
    nothing.to_parquet(place / "profile.parquet")
    options |= {"events": place / "log.parquet", "profile": place / "profile.parquet", "as_of": as_of}
    if what == "offers":
        pd.DataFrame(ACTIONS).to_parquet(place / "actions.parquet")
        options["actions"] = place / "actions.parquet"
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    call("run_predict", "--model", shop.folder, "--output_dir", place / "predictions", *words)
    for row in pd.read_parquet(place / "predictions").set_index("customer_id").loc[names].to_dict("records"):
        ranked = [name.removesuffix("_scores") for name in row if name.endswith("_scores")]
        if what == "embedding":
            yield row["embedding"]
        elif what == "offers":
            yield {
                f"{each}/{name}": p
                for name in ranked
                for each, p in zip(row[name], row[f"{name}_scores"], strict=True)
            }
        else:
            answer = {name.removeprefix("predicted_"): value for name, value in row.items()}
            for task in ranked:
                for kind in ("score", "chance"):
                    answer |= {
                        f"{task}/{each}/{kind}": p for each, p in zip(row[task], row[f"{task}_{kind}s"], strict=True)
                    }
            yield answer


def ask_service(shop, what, **options):
    pytest.importorskip("fastapi", reason="FastAPI not installed")
    clock = {"clock": lambda: datetime(2018, 2, 2, tzinfo=UTC)}
    service = make_service(shop.model, shop.extractor, shop.place / "state.db", **clock)
    client, names = make_client(service), [*shop.histories]
    events = as_requests(shop.log, customer=shop.extractor.customer, time=shop.extractor.time)
    for start in range(0, len(events), 1000):
        assert client.post("/events", json={"events": events[start : start + 1000]}).status_code == 200
    if what == "offers":
        found = client.post("/offers", json={"customers": names, "actions": ACTIONS}, params=options).json()
        answers = [answer["offers"] for answer in found["customers"]]
    else:
        found = [client.get(f"/customers/{name}/{what}", params=options).json() for name in names]
        answers = [answer["tasks" if what == "scores" else what] for answer in found]
    service.close()
    return answers


ENTRANCES = [ask_forward, ask_pipeline, ask_live_customers, ask_customer_model, ask_predict, ask_service]


@torch.no_grad()
@pytest.mark.parametrize("ask", ENTRANCES)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_golden(shop, case, ask, request):
    _, what, options = CASES[case]
    if what == "offers" and ask is ask_customer_model:
        return  # which has no offers
    answers = [flatten(answer) for answer in ask(shop, what, **{"as_of": AS_OF} | options)]
    stored = read_json(GOLDEN)
    if request.config.getoption("update_golden") and ask is ask_forward:
        rounded = [{name: round(value, 6) for name, value in answer.items()} for answer in answers]
        stored[case] = dict(zip(shop.histories, rounded, strict=True))
        GOLDEN.write_text(json.dumps(stored).replace("}, ", "},\n") + "\n")
    assert len(answers) == (50 if what == "scores" else 5)
    assert list(stored[case]) == [*shop.histories]
    for answer, expected in zip(answers, stored[case].values(), strict=True):
        found = {name: answer[name] for name in expected}
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-4 if what in ("embedding", "forecast") else 0)
