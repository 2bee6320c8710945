# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What trains the customer state: moments know what came before, targets what followed, nothing after the cutoff."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from choices import PAPER

from modeling_mcm import MCMConfig, MCMModel
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.training.moments import BATCH, FORECAST_MOMENTS, MomentSampler, _batches, _joined, train_state

CUTOFF = pd.Timestamp("2017-10-01").timestamp()
DAY = 86_400


def make_model(extractor, **changes):
    torch.manual_seed(0)
    values = {
        "features": extractor.feature_names,
        "vocabulary_sizes": extractor.vocabulary_sizes,
        "tasks": extractor.tasks,
        "summed_features": extractor.numeric_features,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    choices = PAPER | {"augmentation": "all_prefixes", "state_size": 12}
    return MCMModel(MCMConfig(**{**values, **choices, **changes}))


def read(folder):
    rows = load_prepared(str(folder))
    ends = np.asarray(rows["validation_end"])
    return PreparedRows(rows, np.flatnonzero(ends > 1), ends[ends > 1])


@pytest.fixture
def rows(prepared):
    return read(prepared)


def test_what_followed_is_what_the_log_says(event_log, extractor, rows):
    """Visits, events and sums of a moment's next days, counted in the log by hand."""
    sampler = MomentSampler(make_model(extractor), extractor, CUTOFF)
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


@pytest.mark.parametrize(("size", "number"), [(12, 6), (64, 16)])
def test_the_first_numbers_of_a_trained_state_are_counts(extractor, rows, size, number):
    """Days since the last event and the like, visits, sums and events; half of a small state at most."""
    model = make_model(extractor, state_size=size)
    train_state(model, extractor, rows, CUTOFF)
    moments = MomentSampler(model, extractor, CUTOFF).draw([rows[0], rows[3]], 5)
    standardised = model.state.standardised(moments.counts)
    assert len(model.state.plain_counts) == number
    with torch.no_grad():
        state = model.state(moments.counts)
    torch.testing.assert_close(state[:, :number], standardised[:, model.state.plain_counts])
    torch.testing.assert_close(state[:, 0], standardised[:, model.state.num_few - 4])  # days since the last event
    in_training = model.state.train()(moments.counts)  # dropout leaves out other counts alone
    torch.testing.assert_close(in_training[:, :number], state[:, :number])
    assert not torch.allclose(in_training[:, number:], state[:, number:])


def test_nothing_after_the_cutoff_is_read(event_log, prepare_log, prepared, extractor):
    """Other events after the validation cutoff: the same counts, the same targets, the same trained state."""
    changed = event_log.copy()
    late = changed["when"] >= pd.Timestamp("2017-10-01")
    changed.loc[late, "item"] = "item 03"
    changed.loc[late, "price"] = 1000.0
    found = []
    for folder in (prepared, prepare_log(changed)):
        customers, model = read(folder), make_model(extractor)
        moments = MomentSampler(model, extractor, CUTOFF).draw(customers.__getitems__([0, 1, 2]), 6)
        train_state(model, extractor, customers, CUTOFF)
        found.append((moments, model.state_dict()))
    for name in vars(found[0][0]):
        torch.testing.assert_close(getattr(found[0][0], name), getattr(found[1][0], name))
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value)
    assert late.any()


def test_a_moment_knows_no_later_event(extractor, rows):
    """The counts of a moment are those of the customer whose history ends there."""
    extractor.max_events = 500  # the whole history
    sampler = MomentSampler(make_model(extractor), extractor, CUTOFF)
    row = rows[5]
    end = int(np.searchsorted(row["times"], row["times"][row["validation_end"] // 2], "right"))
    now = float(row["times"][end - 1]) + 1
    short = {name: value[:end] if isinstance(value, np.ndarray) else value for name, value in row.items()}
    names = ("input_ids", "attention_mask", "visit_ids", "event_times", "event_values")
    found = []
    for history in (row, short):
        batch = extractor.pad([history])
        days = torch.tensor([[(now - float(row["times"][0])) / DAY]], dtype=torch.float32)
        found.append(sampler.state.counts(**{name: batch.get(name) for name in names}, now=days))
    torch.testing.assert_close(found[0], found[1])
    assert (row["times"][end:] > now).all()


def test_training_lowers_the_losses_and_learns_forecasts(extractor, rows, monkeypatch):
    model = make_model(extractor)
    encoder = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    losses = train_state(model, extractor, rows, CUTOFF)
    monkeypatch.setattr("modeling_mcm.training.moments.LEAST_STEPS", 1)
    monkeypatch.setattr("modeling_mcm.training.moments.PASSES", 0)
    assert sum(losses.values()) < 0.9 * sum(train_state(make_model(extractor), extractor, rows, CUTOFF).values())
    assert model.forecasts.is_trained
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, encoder[name])


def test_expected_amounts_are_right_on_average(extractor, rows):
    """Over the moments that the forecasts are fitted on, the mean forecast is the mean of what followed."""
    model = make_model(extractor)
    train_state(model, extractor, rows, CUTOFF)
    sampler, batches = MomentSampler(model, extractor, CUTOFF, seed=1), _batches(rows, BATCH, 1)
    number = math.ceil(len(rows) / BATCH)
    moments = _joined([sampler.draw(next(batches), FORECAST_MOMENTS, latest=True) for _ in range(number)])
    with torch.no_grad():
        expected = model.forecasts.log_amounts(model.state(moments.counts)).exp()
    seen = moments.is_observed[:, 0]
    torch.testing.assert_close(expected[seen, 0].mean(0), moments.amounts[seen, 0].mean(0), rtol=0.02, atol=0.0)


def test_the_same_seed_gives_the_same_state(extractor, rows):
    found = []
    for seed in (0, 0, 1):
        model = make_model(extractor)
        train_state(model, extractor, rows, CUTOFF, seed)
        found.append(model.state.direct.weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_horizon_longer_than_the_training_period_is_not_learned(extractor, rows):
    model = make_model(extractor, forecast_days=[7, 3650])
    train_state(model, extractor, rows, CUTOFF)
    assert model.config.forecast_days == [7]
    assert "visits_7d" in model.forecasts.names() and "visits_3650d" not in model.forecasts.names()


def test_a_training_period_shorter_than_every_horizon_leaves_a_state_without_forecasts(extractor, rows, tmp_path):
    model = make_model(extractor, forecast_days=[3650])
    train_state(model, extractor, rows, CUTOFF)
    assert model.forecasts is None
    model.save_pretrained(tmp_path)
    assert MCMModel.from_pretrained(tmp_path).forecasts is None


def test_where_last_visits_are_held_out_each_customer_has_an_end(extractor, rows):
    """Without a cutoff for all, what is seen of a customer ends with the last training event."""
    sampler = MomentSampler(make_model(extractor), extractor, None)
    moments = sampler.draw(rows.__getitems__([0, 1]), 8)
    assert (moments.observed >= 0).all()
    train_state(make_model(extractor), extractor, rows, None)


def test_a_log_without_prices_and_with_one_token_type(extractor, rows):
    model = make_model(extractor, summed_features=[])
    train_state(model, extractor, rows, CUTOFF)
    assert model.forecasts.names()[:2] == ["visits_7d", "events_7d"]
