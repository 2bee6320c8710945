# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for labels of customers: what it learns, what it leaves alone, and that it goes from folder to folder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corner_shop import find_customer
from other_device import other_device
from scipy.sparse import csr_array
from sklearn import linear_model
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from transformers import AutoModelForSequenceClassification, pipeline

from modeling_mcm import (
    MCMForActionRecommendation,
    MCMForCustomerPrediction,
    MCMForMultiTaskRecommendation,
    MCMModel,
)
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.heads.customer import PENALTIES, SCALES, HeadInputs, fit_head, predict


@pytest.fixture
def make_model(tiny_config, extractor):
    """A function that makes a tiny model with a state, in evaluation mode."""

    def make(model_class=MCMForCustomerPrediction, **changes):
        torch.manual_seed(0)
        known = {"state_size": 12, "summed_features": extractor.summed_features, "forecast_days": [7.0]}
        return model_class(tiny_config(extended=True, **known | changes)).eval()

    return make


@pytest.fixture
def inputs(extractor, event_log):
    """Four customers and moments, as the feature extractor gives them."""
    rows = [extractor.encode(find_customer(event_log, f"c0{place}")) for place in range(4)]
    return dict(extractor.pad(rows, as_of=[row["times"][-1] + 86_400 * 5 for row in rows]))


def fit(model, inputs, labels):
    """Fits the head to four customers."""
    with torch.no_grad():
        states = model.model(**inputs, parts=("embedding",)).pooler_output
        counts = model(**inputs).label_counts
    return fit_head(model, HeadInputs(states, csr_array(counts)), torch.tensor(labels), np.arange(4) % 2)


def make_inputs(states, model, counts=None):
    """Inputs of a head, without labels unless counts are given."""
    shape = len(states), model.prediction_head.labels.in_features
    return HeadInputs(states, csr_array(shape if counts is None else counts))


@pytest.mark.parametrize("number", [1, 2])
def test_the_head_is_a_penalised_linear_model_of_state_and_labels(make_model, number, monkeypatch):
    monkeypatch.setattr("modeling_mcm.training.heads.customer.SCALES", SCALES[:1])
    generator, model = torch.Generator().manual_seed(0), make_model(num_labels=number)
    states = torch.randn(200, 12, generator=generator) * 3 + 1
    size = model.prediction_head.labels.in_features
    counts = torch.rand(200, size, generator=generator) * (torch.rand(200, size, generator=generator) < 0.2)
    counts = F.normalize(counts)
    signal = states @ torch.randn(12, generator=generator) + 9 * (counts[:, 3] > 0)
    signal = signal + 40 * torch.randn(200, generator=generator)
    labels = 1000 * signal if number == 1 else (signal > signal.mean()).long()
    (shares,) = fit_head(model, make_inputs(states, model, counts), labels, np.arange(200) % 5)
    assert shares.max() < 0.95  # of several penalties
    starts = [name.partition("_")[0] for name in model.model.state.names]
    assert {"direction", "visits"} <= {*starts}
    factors = SCALES[0][0]
    scales = torch.tensor([factors.get(f"{start}_", factors[""]) for start in starts])
    z = torch.cat([scales * (states - states.mean(0)) / states.std(0), counts], 1).numpy()
    found = model.prediction_head(states, counts).detach()
    if number == 1:
        learners, known = [linear_model.Ridge(penalty) for penalty in PENALTIES], (z, labels.numpy())
        left = [cross_val_predict(each, *known, cv=PredefinedSplit(np.arange(200) % 5)) for each in learners]
        errors = np.mean((known[1] - left) ** 2, axis=1)
        likelihood = (errors / errors.min()) ** -100
        assert shares == pytest.approx(likelihood / likelihood.sum(), abs=0.01)
        fits = [each.fit(*known).predict(z) for each in learners]
        expected = torch.tensor(shares @ fits, dtype=torch.float)
        assert torch.allclose(found[:, 0], expected, rtol=1e-3, atol=5.0)
    else:  # two rows of weights share what one would have: half of it each, at half the penalty
        learners = [linear_model.LogisticRegression(C=1 / penalty).fit(z, labels.numpy()) for penalty in PENALTIES]
        expected = torch.tensor(shares @ [each.decision_function(z) for each in learners], dtype=torch.float)
        assert torch.allclose(found[:, 1] - found[:, 0], expected, atol=3e-2)
    assert torch.allclose(
        predict(model, make_inputs(states, model, counts)), found, atol=0.01 if number == 1 else 1e-4
    )


def test_plain_counts_that_decide_are_hardly_shrunk(make_model, monkeypatch):
    generator, model = torch.Generator().manual_seed(0), make_model(num_labels=2)
    states, losses = torch.randn(400, 12, generator=generator), []
    assert model.model.state.names[2] == "days_since_last_in_gaps"
    labels = (states[:, 2] + torch.randn(400, generator=generator) / 3 > 0).long()
    for scales in (SCALES[:1], SCALES):
        monkeypatch.setattr("modeling_mcm.training.heads.customer.SCALES", scales)
        fit_head(model, make_inputs(states[:100], model), labels[:100], np.arange(100) % 5)
        losses.append(model.compute_loss(predict(model, make_inputs(states[100:], model)), labels[100:]).item())
    assert losses[1] < 0.9 * losses[0]


def test_where_nothing_can_be_learned_all_predictions_are_alike(make_model):
    torch.manual_seed(0)
    model = make_model(num_labels=2)
    inputs = make_inputs(torch.randn(1000, 12), model)
    fit_head(model, inputs, torch.randint(2, (1000,)), np.arange(1000) % 5)
    assert predict(model, inputs).diff().std() < 0.1


def test_the_encoder_does_not_run(make_model, inputs, monkeypatch):
    model = make_model(num_labels=2)

    def refuse(*args, **kwargs):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(model.model.encoder, "forward", refuse)
    assert model(**inputs).logits.shape == (4, 2)
    with pytest.raises(TypeError, match="label_colums"):  # a slip of the pen is no input
        model(**inputs, label_colums=torch.zeros(4, 1))


def test_a_head_is_fitted_and_asked_on_another_device(make_model, inputs, monkeypatch):
    """The states, the head, its terms and predictions are those on the CPU."""
    for name, value in (("PENALTIES", (1.0,)), ("SCALES", SCALES[:1])):
        monkeypatch.setattr(f"modeling_mcm.training.heads.customer.{name}", value)
    answers = {}
    with other_device() as device:
        for place in ("cpu", device):
            model = make_model(num_labels=2).to(place)
            moved = {name: value.to(place) for name, value in inputs.items()}
            with torch.no_grad():
                outputs = model(**moved)
            read = HeadInputs(outputs.numbers.cpu(), csr_array(outputs.label_counts.cpu().numpy()))
            fit_head(model, read, torch.tensor([0, 1, 0, 1]), np.arange(4) % 2)
            terms, scores = model.terms(**moved)
            answers[str(place)] = [predict(model, read), terms.cpu(), scores.cpu()]
    on_cpu, on_device = answers.values()
    torch.testing.assert_close(on_device, on_cpu)
    torch.testing.assert_close(on_cpu[0], on_cpu[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_size": 0}, "has no customer state"),
        ({"problem_type": "multi_label_classification"}, "Several labels of a customer are several models"),
        (
            {"problem_type": "regression", "num_labels": 2},
            "'regression' with 2 labels; expected 'regression' with 1",
        ),
    ],
)
def test_bad_configs_are_refused(make_model, changes, message):
    with pytest.raises(Exception, match=message):
        make_model(**changes)


@pytest.fixture
def tuned(make_model, extractor, inputs, tmp_path):
    """Folder of a fine-tuned checkpoint of two classes, and its model."""
    names = {"id2label": {0: "stays", 1: "leaves"}, "label2id": {"stays": 0, "leaves": 1}}
    make_model(MCMForMultiTaskRecommendation).save_pretrained(tmp_path / "pretrained")
    new = ("prediction_head.",)
    model = read_checkpoint(MCMForCustomerPrediction, str(tmp_path / "pretrained"), new, **names)
    fit(model, inputs, [0, 1, 0, 1])
    model.save_pretrained(tmp_path / "tuned")
    extractor.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned", model


def test_checkpoint_loads_by_every_class(tuned, inputs):
    folder, model = tuned
    again = [each.from_pretrained(folder) for each in (MCMForCustomerPrediction, AutoModelForSequenceClassification)]
    again.append(read_checkpoint(MCMForCustomerPrediction, str(folder)))
    for each in again:
        assert type(each) is MCMForCustomerPrediction and each.config.id2label == {0: "stays", 1: "leaves"}
        assert torch.equal(each.eval()(**inputs).logits, model(**inputs).logits)
    base = read_checkpoint(MCMModel, str(folder)).eval()
    assert torch.allclose(base(**inputs).pooler_output, model(**inputs).pooler_output, atol=1e-6)


def test_auto_class_chooses_between_two_heads(make_model, tmp_path):
    make_model(MCMForActionRecommendation).save_pretrained(tmp_path / "offers")
    make_model(MCMForMultiTaskRecommendation).save_pretrained(tmp_path / "pretrained")
    for folder in ("offers", "pretrained"):
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert type(found) is MCMForActionRecommendation


def test_pipeline_gives_probabilities_and_ignores_events_after_now(tuned, event_log, extractor, monkeypatch):
    folder, _ = tuned
    predict = pipeline("customer-prediction", model=str(folder))
    events = event_log[event_log["who"] == "c00"].assign(basket="1")  # a visit that goes on after now
    whole = {"events": events}
    found = predict(whole, as_of="2018-01-01")
    assert set(found) == {"stays", "leaves"} and sum(found.values()) == pytest.approx(1)
    at = events["when"].iloc[len(events) // 2]
    cut = {"events": events[events["when"] < at]}
    assert predict(whole, as_of=at) == pytest.approx(predict(cut, as_of=at)) != pytest.approx(predict(whole))
    read = Customers.of([extractor.encode(whole)]).before([extractor.read_as_of(at)], extractor.layout)
    np.testing.assert_equal(read[0], extractor.encode(cut))
    with pytest.raises(ValueError, match="customer-prediction has `as_of`"):
        predict(whole, time=at)
    said: list = []
    monkeypatch.setattr("modeling_mcm.predictor_mcm.logger.warning_once", said.append)
    predict(whole, as_of=events["when"].iloc[0])
    assert len(said) == 1 and "no event until" in said[0]


def test_pipeline_refuses_an_untrained_head(make_model, extractor, tmp_path):
    for part in (make_model(), extractor):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no trained head for customer-prediction: chances would be made up"):
        pipeline("customer-prediction", model=str(tmp_path))


def test_the_head_reads_how_long_each_kind_of_event_is_ago(make_model, extractor, event_log):
    model = make_model(kind_feature="type")
    for name in ("c01", "c03"):
        customer, kinds = find_customer(event_log, name), extractor.vocabularies["type"]
        row = extractor.encode(customer)
        row = {key: value[-9:] if np.ndim(value) else value for key, value in row.items()}  # fewer than are read
        as_of = int(row["times"][-1]) + 86_400 * 5
        found = model(**extractor.pad([row], as_of=[as_of])).numbers[0, -model.num_kinds :]
        ids, first = row["feature_type"], row["times"].min()
        last = [row["times"][ids == number].max(initial=first) for number in range(2 + len(kinds))]
        wanted = torch.from_numpy(np.log1p((as_of - np.array(last)) / 86_400)).float()
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert len(found.unique()) > 1
