# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and chances of two models; embeddings, forecasts, a label and offers of one: the same as before a change.

`pytest tests/integration/test_golden_scores.py --update-golden` writes tests/fixtures/golden_scores.json anew. A
pipeline is asked: test_entrances.py says that every entrance gives the same.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from answers import flatten
from corner_shop import make_log
from fitted import fill_scorer
from folders import read_json
from transformers import pipeline
from tutorial import DUMMY

from modeling_mcm import (
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForCustomerPrediction,
    MCMForMultiTaskRecommendation,
)

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden_scores.json"
ACTIONS = [
    {"action_id": action_id, "token_type": "purchase", "product_category": category, "department": department}
    for action_id, category, department in [("eggs", "EGGS", None), ("meat", None, "MEAT"), ("meat", "COFFEE", None)]
]
SCORES = {"top_k": 2}  # best labels of a task in the file
MONTH = SCORES | {"as_of": "2018-02-01", "horizon_days": 30.0}
CASES = {  # a model, a pipeline, and the options of its call
    "trained, next visit": ("trained", "preference-scores", SCORES),
    "trained, within a month": ("trained", "preference-scores", MONTH),
    "drawn, next visit": ("drawn", "preference-scores", SCORES),
    "drawn, within a month": ("drawn", "preference-scores", MONTH),
    "embedding": ("few customers", "customer-embedding", {}),
    "forecasts": ("few customers", "customer-forecast", {}),
    "label": ("label", "customer-prediction", {}),
    "offers": ("offers", "action-scores", {"actions": ACTIONS}),
}


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
def shop(case, request):
    """The model of a case, its feature extractor, and the events of its customers by name."""
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
    return model.eval(), extractor, dict(list(log.groupby(extractor.customer)))


@pytest.mark.parametrize("case", CASES)
def test_answers_are_golden(shop, case, request):
    model, extractor, histories = shop
    _, what, options = CASES[case]
    ask = pipeline(what, model=model, feature_extractor=extractor)
    found = ask([{"events": events} for events in histories.values()], **{"as_of": "2018-01-15"} | options)
    answers = dict(zip(histories, map(flatten, found), strict=True))
    stored = read_json(GOLDEN)
    if request.config.getoption("update_golden"):
        stored[case] = {
            customer: {name: round(float(value), 6) for name, value in answer.items() if not isinstance(value, str)}
            for customer, answer in answers.items()
        }
        GOLDEN.write_text(json.dumps(stored).replace("}, ", "},\n") + "\n")
    assert list(stored[case]) == list(answers) and len(answers) == (50 if what == "preference-scores" else 5)
    tolerance = 1e-4 if what in ("customer-embedding", "customer-forecast") else 0
    for customer, expected in stored[case].items():
        found = {name: answers[customer][name] for name in expected}
        assert found == pytest.approx(expected, abs=1e-5, rel=tolerance)
