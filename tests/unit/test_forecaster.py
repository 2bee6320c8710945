# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The forecaster: what it reads, that its distributions are calibrated on shops it never saw, and what is told."""

import numpy as np
import pytest
import torch
from run_pretrain_forecaster import compute_losses, draw_examples
from synthetic_shops import draw_shop

from modeling_mcm import MCMConfig, MCMModel
from modeling_mcm.forecaster_mcm import (
    LEVELS,
    AmountDistribution,
    CustomerForecasts,
    Distribution,
    VisitForecaster,
    Visits,
    median_days,
)
from modeling_mcm.training.forecaster import load_weights, pad_visits, set_shop

WINDOW, DAYS = 200.0, [30.0, 200.0, 400.0]


def make_visits(number=40, places=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    times = torch.rand(number, places, generator=draw).mul(WINDOW).sort(1).values
    is_visit = torch.rand(number, places, generator=draw) < torch.linspace(0.1, 1, number)[:, None]
    is_visit[:, -1] = True
    return Visits(times, is_visit, torch.rand(number, places, 2, generator=draw) * 20)


def read_as_of(visits, day=WINDOW):
    return torch.full((len(visits.times),), day)


@pytest.fixture(scope="module")
def forecaster():
    """The shipped one, in a shop; tests change nothing in it."""
    made = VisitForecaster(2)
    load_weights(made)
    set_synthetic_shop(made, 41)
    return made.eval()


def set_synthetic_shop(forecaster, seed):
    """Sets a synthetic shop whose window is stretched to `WINDOW`, with the same amount twice."""
    shop = draw_shop(np.random.default_rng(seed))
    past = shop.times < shop.window
    known, rows = np.unique(shop.customers[past], return_inverse=True)
    amounts = np.stack([shop.amounts[past]] * 2, 1)
    visits = pad_visits(rows, shop.times[past] * (WINDOW / shop.window), amounts, len(known))
    set_shop(forecaster, visits, read_as_of(visits), WINDOW)


def distributions(forecaster, visits, day=WINDOW, days=DAYS):
    with torch.no_grad():
        inputs = forecaster.inputs(visits, read_as_of(visits, day), days)
        spread = forecaster.distribution(inputs)
        return spread, forecaster.amounts(inputs, spread)


def assert_same(found, expected):
    for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_visits_after_the_moment_change_nothing(forecaster):
    visits = make_visits()
    later = torch.where(visits.times > 120, visits.times + 500, visits.times)
    more = torch.where((visits.times > 120)[..., None], visits.amounts + 99, visits.amounts)
    before = distributions(forecaster, visits, 120.0)
    assert_same(distributions(forecaster, visits._replace(times=later, amounts=more), 120.0), before)
    past = visits._replace(times=visits.times - 500 * (visits.times < 20))
    with pytest.raises(AssertionError):  # what came before does
        assert_same(distributions(forecaster, past, 120.0), before)


def test_order_and_empty_places_change_nothing(forecaster):
    visits = make_visits()
    order = torch.randperm(visits.times.shape[1], generator=torch.Generator().manual_seed(1))
    moved = Visits(*(torch.cat([value[:, order], value[:, :3]], 1) for value in visits))
    moved.is_visit[:, -3:] = False
    assert_same(distributions(forecaster, moved), distributions(forecaster, visits))


def test_a_distribution_is_one():
    grid = torch.tensor([[-2.0, 0.5, 2.0], [-1.0, 0.0, 3.0], [-3.0, 0.0, 1.0]])
    spread = Distribution(*grid)
    numbers = torch.arange(4000.0)[:, None]
    shares = spread.log_probability(numbers).exp()
    torch.testing.assert_close(shares.sum(0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close((shares * numbers).sum(0), spread.expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(1 - shares[0], spread.log_comes.exp(), rtol=1e-4, atol=1e-6)


def test_intervals_hold_what_they_say():
    """As near to the level as whole numbers come; those of 95% contain those of 80%."""
    draw = torch.Generator().manual_seed(0)
    spread = Distribution(*(torch.randn(3, 300, generator=draw) * torch.tensor([2.0, 1.0, 2.0])[:, None]))
    shares = spread.log_probability(torch.arange(3000.0)[:, None]).exp()
    cumulative = torch.cat([torch.zeros(1, 300), shares.cumsum(0)])
    median, *bounds = spread.quantiles().long().unbind(-1)
    bounds = torch.stack(bounds, -1).unflatten(1, (2, 2))
    assert (bounds[:, 0, 0] <= median).all() and (median <= bounds[:, 0, 1]).all()
    for index, level in enumerate(LEVELS):
        low, high = bounds[:, index].T
        inside = cumulative.gather(0, high[None] + 1) - cumulative.gather(0, low[None])
        likeliest = shares.gather(0, high[None]).maximum(shares.gather(0, high[None] + 1))
        coarse = spread.expected > 20  # numbers are taken together there
        assert (((inside - level / 100).abs() <= likeliest[0] + 0.01) | coarse).all()
        assert abs(inside[0, coarse].mean() - level / 100) < 0.03
    assert (bounds[:, 1, 0] <= bounds[:, 0, 0]).all() and (bounds[:, 1, 1] >= bounds[:, 0, 1]).all()


def test_an_interval_of_amounts_begins_at_0_where_no_visit_is_likely():
    comes = torch.tensor([0.05, 0.5, 1 - 1e-6]).log()
    bounds = AmountDistribution(torch.zeros(3), torch.zeros(3), torch.ones(3), comes).quantiles()[:, 1:3]
    assert bounds[0].tolist() == [0, 0] and bounds[1, 0] == 0 < bounds[2, 0]


def test_median_day():
    absent = torch.tensor([[0.5, 0.25, 0.1], [0.9, 0.7, 0.2], [1.0, 0.9, 0.8]])
    torch.testing.assert_close(median_days(absent, [1.0, 2.0, 12.0]), torch.tensor([1.0, 6.0, 12.0]))


def test_shops_it_never_saw_are_in_its_intervals(forecaster):
    """Over synthetic shops of another seed: coverage, totals, and less loss than rates alone have."""
    examples = draw_examples(60, seed=999)
    shipped, plain = VisitForecaster(), VisitForecaster()
    load_weights(shipped)
    plain.visit_network.range.load_state_dict(shipped.visit_network.range.state_dict())
    plain.amount_network.range.load_state_dict(shipped.amount_network.range.state_dict())
    with torch.no_grad():
        spread = shipped.distribution(examples)
        amounts = shipped.amounts(examples, spread)
        learned, rates = compute_losses(shipped, examples), compute_losses(plain, examples)
    some = spread.expected > 1  # of others, no visit is often likelier than the level
    for index, level in enumerate(LEVELS):
        ends = slice(1 + 2 * index, 3 + 2 * index)
        low, high = spread.quantiles()[some, ends].T
        inside = ((low <= examples.number[some]) & (examples.number[some] <= high)).float().mean()
        assert abs(inside - level / 100) < 0.05
        low, high = amounts.quantiles()[some, 0, ends].T
        inside = ((low <= examples.total[some]) & (examples.total[some] <= high)).float().mean()
        assert abs(inside - level / 100) < 0.06
    for name in ("visits", "mean visits", "mean amounts"):
        assert learned[name] < rates[name]


def test_inputs_outside_the_range_of_training_give_numbers():
    far = VisitForecaster(2)
    load_weights(far)
    visits = make_visits(3)
    set_shop(far, visits, read_as_of(visits), 1e6)
    assert all(value.isfinite().all() for part in distributions(far, visits, 1e9) for value in part)


def test_little_is_known_of_some_customers(forecaster):
    """No visit, one visit long ago, one now, visits without amounts, a visit before the window."""
    nothing = Visits(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4, 2))
    once = nothing._replace(is_visit=torch.tensor([[True, False, False, False]]))
    just_now = once._replace(times=torch.full((1, 4), WINDOW))
    often = Visits(torch.tensor([[10.0, 80, 130, 190]]), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, 2))
    expected = []
    for visits in (once, just_now, often, nothing):
        spread, amounts = distributions(forecaster, visits)
        assert all(value.isfinite().all() for value in (*spread, *amounts, spread.quantiles(), amounts.quantiles()))
        expected.append(spread.expected[0, 1])
    assert 0 < expected[0] < min(expected[1:])
    silent = distributions(forecaster, once, 10 * WINDOW)[0].expected
    assert (silent <= distributions(forecaster, once, 0.5 * WINDOW)[0].expected).all()
    with pytest.raises(ValueError, match="No customer has a visit in the training period"):
        set_shop(VisitForecaster(2), nothing, read_as_of(nothing), WINDOW)


# ------------------------------------------------------------------------------------------------------- in a model

FEATURES, SIZES = ["kind", "item"], [4, 30]


def make_model(**changes):
    torch.manual_seed(0)
    choices = {"features": FEATURES, "vocabulary_sizes": SIZES, "tasks": ["item"], "summed_features": ["kind"]}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    told = {"state_size": 8, "forecast_days": [7, 30, 180], "forecast_window": WINDOW}
    choices |= sizes | told | {"target_features": ["item"], "target_types": {"kind": [2]}}
    model = MCMModel(MCMConfig(**choices | changes)).eval()
    if model.forecaster is not None:
        load_weights(model.forecaster)
        visits = make_visits()
        set_shop(model.forecaster, visits, read_as_of(visits), WINDOW)
    return model


def make_inputs():
    ids = torch.tensor([[[2, 0], [2, 5], [2, 6], [3, 7], [2, 8]], [[2, 0], [2, 5], [3, 6], [0, 0], [0, 0]]])
    times = torch.tensor([[0.0, 0, 0, 20, 90], [0, 0, 1, 1, 1]])
    visits = torch.tensor([[0, 1, 1, 2, 3], [0, 1, 2, 2, 2]])
    values = torch.tensor([[0.0, 1, 2, 4, 8], [0, 1, 2, 0, 0]])[..., None]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "visit_ids": visits,
        "event_times": times,
        "event_values": values,
        "as_of": torch.tensor([100.0, 50.0]),
    }


def test_visits_with_targets_are_read():
    model, inputs = make_model(), make_inputs()
    is_event = inputs["attention_mask"].bool()
    is_event[:, 0] = False
    names = ("visit_ids", "event_times", "event_values")
    visits = model.forecaster.read(inputs["input_ids"], is_event, *(inputs[name] for name in names))
    assert visits.times[visits.is_visit].tolist() == [0, 90, 0]  # the visit of the third day has no target
    assert visits.amounts[visits.is_visit].tolist() == [[2, 3], [1, 8], [1, 1]]


def test_what_is_told():
    model = make_model()
    told = model(**make_inputs()).forecasts
    forecasts = model.customer_forecasts
    assert list(told) == forecasts.names() and len(set(told)) == len(told)
    for day in (7, 30, 180):
        assert (told[f"visit_probability_{day}d"] <= told[f"visits_{day}d"]).all()
        assert (told[f"visits_{day}d"] <= told[f"events_{day}d"]).all()
        for quantity in ("visits", "events", "kind"):
            bounds = [told[f"{quantity}_{day}d_{end}"] for end in ("low95", "low80", "median", "high80", "high95")]
            assert (torch.stack(bounds).diff(dim=0) >= 0).all() and (bounds[0] >= 0).all()
    assert ((told["days_to_next_visit"] > 0) & (told["days_to_next_visit"] <= 180)).all()
    longest = model(**make_inputs(), forecast_days=[400]).forecasts
    torch.testing.assert_close(told["alive_probability"], longest["visit_probability_400d"])
    assert (1 > told["alive_probability"]).all() and (told["alive_probability"] > told["visit_probability_180d"]).all()


def test_horizons_beyond_twice_the_window_are_not_told():
    model = make_model(forecast_days=[7, 400, 401])
    assert model.customer_forecasts.days == [7, 400]
    with pytest.raises(ValueError, match="No forecast for 401 days: this checkpoint tells those of up to 400 days"):
        model(**make_inputs(), forecast_days=[401])
    with pytest.raises(ValueError, match="No forecast for nan days"):
        model.select_forecasts([float("nan")])
    with pytest.raises(ValueError, match="`days` is empty"):
        model.select_forecasts([])
    nothing = make_model(forecast_window=0)
    assert nothing.forecaster is None and not nothing.customer_forecasts.are_trained
    assert nothing(**make_inputs()).forecasts is None


def test_no_more_is_expected_than_any_customer_did():
    """A customer whose 300 visits are of the last hours will not go on at that rate."""
    often = torch.linspace(0, WINDOW, 20)
    times = torch.stack([torch.linspace(0.999 * WINDOW, WINDOW, 300), torch.cat([often, often.new_zeros(280)])])
    is_visit = torch.stack([torch.ones(300), (torch.arange(300) < 20).float()]).bool()
    visits = Visits(times, is_visit, torch.ones(2, 300, 2) * torch.tensor([1.0, 5.0]))
    forecaster = VisitForecaster(2)
    load_weights(forecaster)
    set_shop(forecaster, visits, read_as_of(visits), WINDOW)
    config = MCMConfig(forecast_window=WINDOW, forecast_days=DAYS, features=FEATURES, vocabulary_sizes=SIZES)
    forecasts = CustomerForecasts(config, forecaster)
    forecasts.quantities += ["kind"]
    told = forecasts.compute(visits, read_as_of(visits))
    for days, windows in zip(DAYS, (1, 1, 2), strict=True):
        assert (told[f"visits_{days:g}d"] <= 300 * windows).all()
        assert (told[f"kind_{days:g}d"] <= told[f"visits_{days:g}d"] * 5 * (1 + 1e-6)).all()
    uncapped = forecaster.distribution(forecaster.inputs(visits, read_as_of(visits), [WINDOW])).expected
    assert uncapped[0, 0] > 600


def test_silence_seldom_raises_a_forecast():
    """In small shops of 30 customers and 60 days, after 35 days in which nobody was seen."""
    ratios = []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        numbers = np.maximum(draw.poisson(draw.lognormal(2, 0.8, 30)), 1)
        customers = np.repeat(np.arange(30), numbers)
        times = draw.uniform(np.repeat(draw.uniform(0, 15, 30), numbers), 60)
        visits = pad_visits(customers, times, np.ones(len(times)), 30)
        forecaster = VisitForecaster()
        load_weights(forecaster)
        set_shop(forecaster, visits, read_as_of(visits, 60.0), 60.0)
        config = MCMConfig(forecast_window=60.0, forecast_days=[30], features=FEATURES, vocabulary_sizes=SIZES)
        now, later = (
            CustomerForecasts(config, forecaster).compute(visits, read_as_of(visits, day)) for day in (60, 95)
        )
        ratios.append(later["visits_30d"] / now["visits_30d"])
    rises = (torch.cat(ratios) > 1.2).float().mean()
    assert rises < 0.1 and torch.cat(ratios).median() < 0.9


def test_other_horizons_on_request():
    """They do not change those of the config, and lie between them."""
    model, inputs = make_model(), make_inputs()
    usual, asked = model(**inputs).forecasts, model(**inputs, forecast_days=[3, 7, 30, 100, 180, 365]).forecasts
    for name in usual.keys() - {"days_to_next_visit"}:  # `alive_probability` too
        torch.testing.assert_close(asked[name], usual[name], rtol=1e-4, atol=1e-5)
    for name in ("visits", "events", "kind", "visit_probability"):
        horizons = torch.stack([asked[f"{name}_{day}d"] for day in (3, 7, 30, 100, 180, 365)])
        assert (horizons.diff(dim=0) >= 0).all() and (horizons[0] > 0).all()


def test_nothing_trains_the_network():
    model = make_model()
    assert not any(value.requires_grad for value in model.forecaster.parameters())
    assert model.train()(**make_inputs()).forecasts is None  # a step takes no longer


def test_visits_of_one_age_are_in_the_same_order_in_every_batch(forecaster):
    """After 30 years, visits that are a minute apart have one age in single precision."""
    visits = make_visits(30, 150)
    times = visits.times[:, ::5].repeat_interleave(5, 1)
    visits = visits._replace(times=times, is_visit=torch.ones_like(visits.is_visit))
    for row, length in enumerate(range(5, 155, 5)):
        visits.is_visit[row, length:] = False
    together = distributions(forecaster, visits)
    for row, length in enumerate(range(5, 155, 5)):
        alone = distributions(forecaster, Visits(*(value[row : row + 1, :length] for value in visits)))
        for one, all_rows in zip((*alone[0], *alone[1]), (*together[0], *together[1]), strict=True):
            torch.testing.assert_close(one[0], all_rows[row], rtol=1e-5, atol=1e-5)
