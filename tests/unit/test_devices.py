# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A model that is not on the CPU answers as on it, from inputs of the CPU, at every question."""

import numpy as np
import pytest
import torch
from choices import EXTENDED, STATE, TINY, perturb
from corner_shop import find_customer
from fitted import fill_forecaster, fill_scorer
from other_device import other_device

from modeling_mcm import CustomerModel, MCMForActionRecommendation, MCMForCustomerPrediction
from modeling_mcm.action_inputs_mcm import EncodedActions
from modeling_mcm.candidates_mcm import CandidateSet
from modeling_mcm.live.similar import similar, together
from modeling_mcm.predictor_mcm import Predictor, Questions

TASK = "items"
CHOICES = EXTENDED | TINY | STATE | {"scorer": True, "kind_feature": "type", "attention_window": 3}
STOCK = {"item": ["item 01", "item 02", "item 03", "new"], "aisle": ["aisle 0", "aisle 1", "aisle 0", "aisle 0"]}
ACTIONS = [
    {"action_id": "a", "action": "buy", "item": "item 20"},
    {"action_id": "b", "action": "buy", "aisle": "aisle 2"},
]


@pytest.fixture(autouse=True)
def without_gradients(monkeypatch):
    """Inference mode takes no tensors that hold others: here it is `no_grad`."""
    for name in ("__enter__", "__exit__"):
        monkeypatch.setattr(torch.inference_mode, name, getattr(torch.no_grad, name))


@pytest.fixture
def rows(extractor, event_log):
    customers = [find_customer(event_log, who) | {"customer_id": who} for who in ("c03", "c04")]
    return [extractor.encode(customer) for customer in [*customers, {"events": [], "customer_id": "nobody"}]]


def on_both(model, answer):
    """What a function answers on the CPU, and on the other device."""
    expected = answer(model)
    with other_device() as device:
        found = answer(model.to(device))
        return found, expected


@pytest.mark.parametrize("reads", [False, True], ids=["counts", "encoder"])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"candidates": STOCK, "exclude": "seen", "per_group": ("aisle", 2)},
        {"exclude": {"who": ["c03"], "item": ["item 01"]}},
    ],
)
def test_rankings_embeddings_and_forecasts(tiny_config, tiny_model, extractor, rows, reads, chosen):
    model = fill_forecaster(fill_scorer(tiny_model(**CHOICES), reads))

    def answer(model):
        candidates = CandidateSet(model, extractor, [TASK], **chosen)
        asked = {"tasks": [TASK], "candidates": candidates, "embedding": True, "forecasts": True, "days": [7.0, 100.0]}
        asked["horizon_days"] = 30
        return Predictor(model, extractor).ask(rows, Questions(**asked))

    found, expected = on_both(model, answer)
    torch.testing.assert_close(found, expected)


def test_readouts_and_losses(tiny_model, inputs):
    model, labels = tiny_model(**CHOICES), torch.full((4, 2, 3), 2)

    def answer(model):
        batch = {name: value.to(model.device) for name, value in (inputs | {"labels": labels}).items()}
        loss = model(**batch).loss
        return [loss.detach().cpu(), *(each.scores.cpu() for each in model.readouts(inputs))]

    found, expected = on_both(model, answer)
    torch.testing.assert_close(found, expected)


def test_an_export_of_the_scorer_mixes_no_devices(tiny_model, extractor, rows, monkeypatch):
    model = fill_forecaster(fill_scorer(tiny_model(**CHOICES), True))

    def answer(model):
        asked = Questions(tasks=[TASK], horizon_days=30)
        before = Predictor(model, extractor).ask(rows, asked)  # what an export reads is of an earlier call
        with monkeypatch.context() as patch:
            patch.setattr("modeling_mcm.scorer_mcm.is_exporting", lambda: True)
            torch.testing.assert_close(Predictor(model, extractor).ask(rows, asked), before)
        return before

    torch.testing.assert_close(*on_both(model, answer))


def test_labels_that_are_alike_and_the_reasons_of_a_prediction(tiny_config, tiny_model, extractor, event_log):
    ranker = fill_scorer(tiny_model(**CHOICES))
    label = perturb(MCMForCustomerPrediction(tiny_config(**CHOICES | {"num_labels": 3})).eval())

    def find_alike(model):
        asked = ["item 03", "item 04"]
        return similar(model, extractor, TASK, "item 03"), together(model, extractor, TASK, asked)

    for model, ask in (
        (ranker, find_alike),
        (label, lambda model: CustomerModel(model, extractor, event_log).reasons("c03")),
    ):
        found, expected = on_both(model, ask)
        assert all(map(len, found)) and str(found) == str(expected)


def test_heads(tiny_config, extractor, rows):
    torch.manual_seed(0)
    offers = fill_scorer(perturb(MCMForActionRecommendation(tiny_config(**CHOICES)).eval()))
    actions = EncodedActions(extractor, offers.config, ACTIONS)
    label = perturb(MCMForCustomerPrediction(tiny_config(**CHOICES | {"num_labels": 2})).eval())
    as_of = float(np.median(rows[0]["times"]))
    for model, ask in (
        (offers, lambda model: Predictor(model, extractor).ask(rows, Questions(as_of, offers=actions))),
        (label, lambda model: Predictor(model, extractor).ask(rows, Questions(as_of, label=True))),
    ):
        found, expected = on_both(model, ask)
        torch.testing.assert_close(found, expected)
