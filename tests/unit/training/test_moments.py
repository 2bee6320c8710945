# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What trains the customer state: moments know what came before, targets what followed, nothing after the cutoff."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from choices import PAPER, TINY, from_data

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMModel
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER
from modeling_mcm.events_mcm import select_events
from modeling_mcm.training.fitting import describe_shop
from modeling_mcm.training.moments import (
    Moments,
    MomentSampler,
    _hazard_loss,
    train_state,
)

CUTOFF = pd.Timestamp("2017-10-01").timestamp()
DAY = 86_400
DAYS = [7, 30, 90]


def make_model(extractor, **changes):
    torch.manual_seed(0)
    choices = from_data(extractor) | TINY | PAPER | {"augmentation": "all_prefixes", "state_size": 12}
    return MCMModel(MCMConfig(**choices | {"summed_features": extractor.summed_features} | changes))


def read(folder):
    rows = load_prepared(str(folder))
    ends = np.asarray(rows["validation_end"])
    return PreparedRows(rows, np.flatnonzero(ends > 1), ends[ends > 1])


@pytest.fixture(scope="module")
def rows(prepared):
    return read(prepared)


@pytest.fixture(scope="module")
def trained(rows, stored_extractor):
    """A trained model and its losses; tests read it alone."""
    extractor = MCMFeatureExtractor.from_pretrained(str(stored_extractor))
    model = make_model(extractor)
    return model, train_state(model, extractor, rows, CUTOFF)


def test_what_followed_is_what_the_log_says(event_log, extractor, rows):
    """Visits, events and sums of a moment's next days, counted in the log by hand."""
    sampler = MomentSampler(make_model(extractor), extractor, CUTOFF, DAYS)
    row = rows[3]
    history = {name: value[: row["validation_end"]] for name, value in row.items() if isinstance(value, np.ndarray)}
    moments = np.array([pd.Timestamp(day).timestamp() for day in ("2017-02-01", "2017-06-15", "2017-09-20")])
    amounts, is_observed, next_visit, observed, _ = sampler._followed(history, moments, CUTOFF)
    log = event_log[(event_log["who"] == row["customer_id"]) & (event_log["when"] < pd.Timestamp("2017-10-01"))]
    seconds = log["when"].to_numpy("datetime64[s]").astype(np.int64)
    bought = (log["action"] == "buy").to_numpy()
    for place, moment in enumerate(moments):
        start = moment
        for horizon, days in enumerate((7, 30, 90)):
            end = moment + days * DAY
            within = (seconds > start) & (seconds <= end)
            assert amounts[place, horizon, 0] == log["basket"][within & bought].nunique()
            assert amounts[place, horizon, 1] == (within & bought).sum()
            np.testing.assert_allclose(amounts[place, horizon, 2], log["price"][within].sum(), rtol=1e-5)
            assert is_observed[place, horizon] == (end <= CUTOFF)
            start = end
        later = seconds[(seconds > moment) & bought]
        expected = (later.min() - moment) / DAY if len(later) else np.inf
        np.testing.assert_allclose(next_visit[place], expected, rtol=1e-5)
        np.testing.assert_allclose(observed[place], (CUTOFF - moment) / DAY, rtol=1e-5)


def test_the_first_numbers_of_a_trained_state_are_counts(extractor, rows, trained):
    """Days since the last event and the like, visits, sums and events; half of a small state at most."""
    model, number = copy.deepcopy(trained[0]), 6
    assert len(make_model(extractor, state_size=64).state.plain_counts) == 16
    moments = MomentSampler(model, extractor, CUTOFF, DAYS).draw([rows[0], rows[3]], 5)
    standardised = model.state.standardised(moments.counts)
    assert len(model.state.plain_counts) == number
    with torch.no_grad():
        state = model.state(moments.counts)
    torch.testing.assert_close(state[:, :number], standardised[:, model.state.plain_counts])
    torch.testing.assert_close(state[:, 0], standardised[:, model.state.num_few - 4])  # days since the last event
    in_training = model.state.train()(moments.counts)  # dropout leaves out other counts alone
    torch.testing.assert_close(in_training[:, :number], state[:, :number])
    assert not torch.allclose(in_training[:, number:], state[:, number:])


def test_nothing_after_the_cutoff_is_read(event_log, prepare_log, rows, extractor, trained):
    """Other and fewer events after the validation cutoff: the same counts, the same targets, the same trained state.

    Some visits of then are gone, and others come later.
    """
    changed = event_log.copy()
    late = changed["when"] >= pd.Timestamp("2017-10-01")
    changed.loc[late, "item"] = "item 03"
    changed.loc[late, "price"] = 1000.0
    changed = changed[~late | (np.arange(len(changed)) % 3 == 0)]
    others, model = read(prepare_log(changed)), make_model(extractor)
    first, second = (
        MomentSampler(make_model(extractor), extractor, CUTOFF, DAYS).draw(each.__getitems__([0, 1, 2]), 6)
        for each in (rows, others)
    )
    for name in vars(first):
        torch.testing.assert_close(getattr(first, name), getattr(second, name))
    train_state(model, extractor, others, CUTOFF)
    for name, value in trained[0].state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert late.any()


def test_what_comes_after_a_moment_changes_no_count_that_is_drawn_for_it(extractor, rows):
    """The same draws from a log whose events differ from the middle of the training period on."""
    extractor.max_events = 500
    middle = CUTOFF - 100 * DAY
    changed = []
    for row in rows.__getitems__([0, 1, 2]):
        later = row["times"] >= middle
        changed.append({k: np.where(later, 2, v) if k.startswith("feature_") else v for k, v in row.items()})
        changed[-1] |= {k: np.where(later, v + 9, v) for k, v in row.items() if k.startswith("value_")}
    samplers = [MomentSampler(make_model(extractor), extractor, CUTOFF, DAYS) for _ in range(2)]
    first, second = (
        sampler.draw(each, 16) for sampler, each in zip(samplers, (rows.__getitems__([0, 1, 2]), changed), strict=True)
    )
    earlier = first.observed > 100
    assert earlier.any() and not earlier.all()
    torch.testing.assert_close(first.counts[earlier], second.counts[earlier])
    assert not torch.allclose(first.counts[~earlier], second.counts[~earlier])


def test_training_lowers_the_losses_and_leaves_the_encoder(extractor, rows, trained, monkeypatch):
    model, losses = trained
    monkeypatch.setattr("modeling_mcm.training.moments.LEAST_STEPS", 1)
    monkeypatch.setattr("modeling_mcm.training.moments.PASSES", 0)
    short = make_model(extractor)
    encoder = {name: value.clone() for name, value in short.encoder.state_dict().items()}
    assert sum(losses.values()) < 0.9 * sum(train_state(short, extractor, rows, CUTOFF).values())
    for each in (model, short):
        for name, value in each.encoder.state_dict().items():
            torch.testing.assert_close(value, encoder[name])


def test_an_interval_that_training_did_not_see_the_end_of_has_no_loss():
    """Else visits in it would count, and their absence would not: probabilities would be too high."""
    counts = torch.zeros(3, 1)
    next_visit, observed = torch.tensor([3.5, math.inf, 3.5]), torch.tensor([4.0, 4.0, 5.0])
    moments = Moments(counts, counts, counts, next_visit, observed, counts)
    hazards = torch.zeros(3, 3, requires_grad=True)
    _hazard_loss(hazards, moments, [2.0, 3.0, 5.0]).backward()
    assert (hazards.grad != 0).tolist() == [[True, True, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize(("days", "horizons"), [(400, [7, 30, 90]), (130, [7, 30, 90]), (100, [7, 30]), (7, [])])
def test_a_horizon_needs_a_training_period_that_is_longer(extractor, days, horizons):
    sampler = MomentSampler(make_model(extractor), extractor, None, DAYS)
    times = np.array([0, days * DAY])
    assert sampler.observed_horizons([{"times": times, "validation_end": 2}] * 2) == horizons


def test_overlapping_visits_are_followed_in_the_order_of_time(extractor, rows):
    """Rows keep the events of a visit together; what followed does not depend on that."""
    sampler = MomentSampler(make_model(extractor), extractor, CUTOFF, DAYS)
    history = select_events(rows[3], slice(0, rows[3]["validation_end"]))
    moments = np.quantile(history["times"], [0.1, 0.5, 0.9])
    swapped = np.arange(len(history["times"]))
    swapped[2:8] = swapped[2:8][::-1]
    expected, found = (sampler._followed(each, moments, CUTOFF) for each in (history, select_events(history, swapped)))
    assert (np.diff(select_events(history, swapped)["times"]) < 0).any()
    for value, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_state(extractor, rows, trained, seed):
    model = make_model(extractor)
    train_state(model, extractor, rows, CUTOFF, seed)
    assert torch.equal(model.state.linear.weight, trained[0].state.linear.weight) == (seed == 0)


def test_no_more_steps_than_allowed(extractor, rows, monkeypatch):
    step, steps = torch.optim.AdamW.step, []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *inputs: steps.append(1) or step(*inputs))
    train_state(make_model(extractor), extractor, rows, CUTOFF, most=3)
    assert len(steps) == 3


def test_where_last_visits_are_held_out_each_customer_has_an_end(extractor, rows):
    """Without a cutoff for all, what is seen of a customer ends with the last training event."""
    sampler = MomentSampler(make_model(extractor), extractor, None, DAYS)
    moments = sampler.draw(rows.__getitems__([0, 1]), 8)
    assert (moments.observed >= 0).all()
    train_state(make_model(extractor), extractor, rows, None)


def test_a_log_without_prices_and_with_one_token_type(event_log, prepare_log):
    log = event_log.assign(action="buy").drop(columns="price")
    features = [{"name": "type", "column": "action"}, {"name": "items", "column": "item"}]
    folder = prepare_log(log, features=features, amount=None, tasks=["items"])
    extractor = MCMFeatureExtractor.from_pretrained(str(folder / FEATURE_EXTRACTOR_FOLDER))
    assert not extractor.summed_features and extractor.vocabularies["type"][0] == "buy"
    assert not {"view", "coupon"} & set(extractor.vocabularies["type"])
    model = make_model(extractor)
    train_state(model, extractor, read(folder), CUTOFF)
    describe_shop(model, extractor, read(folder), CUTOFF)
    assert model.customer_forecasts.names()[0] == "visits_7d"
