# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The forecaster: what it reads, that its distributions are calibrated on shops it never saw, and what is told."""

import numpy as np
import pytest
import torch
from run_pretrain_forecaster import compute_losses, draw_examples, pad_visits
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
from modeling_mcm.training.forecaster.shop import load_weights, set_shop

WINDOW, DAYS = 200.0, [30.0, 200.0, 400.0]
FEATURES = {"features": ["kind", "item"], "vocabulary_sizes": [4, 30], "tasks": ["item"], "summed_features": ["kind"]}


def make_visits(number=40, places=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    times = torch.rand(number, places, generator=draw).mul(WINDOW).sort(1).values
    is_visit = torch.rand(number, places, generator=draw) < torch.linspace(0.1, 1, number)[:, None]
    is_visit[:, -1] = True
    return Visits(times, is_visit, torch.rand(number, places, 2, generator=draw) * 20)


def read_as_of(visits, day=WINDOW):
    return torch.full((len(visits.times),), day)


def make_forecaster(visits, window=WINDOW):
    """The shipped one, in a shop with these visits."""
    made = VisitForecaster(visits.amounts.shape[-1])
    load_weights(made)
    set_shop(made, visits, read_as_of(visits, window), window)
    return made.eval()


@pytest.fixture(scope="module")
def forecaster():
    """In a synthetic shop whose window is stretched to `WINDOW`, with the same amount twice; tests change nothing."""
    shop = draw_shop(np.random.default_rng(41))
    past = shop.times < shop.window
    known, rows = np.unique(shop.customers[past], return_inverse=True)
    amounts = np.stack([shop.amounts[past]] * 2, 1)
    return make_forecaster(pad_visits(rows, shop.times[past] * (WINDOW / shop.window), amounts, len(known)))


def test_the_most_of_a_shop_is_that_of_several_customers_and_no_limit_for_who_had_more():
    visits = make_visits()
    visits.is_visit[:, :9] = False  # but for one customer, who comes and buys as nobody else does
    visits.is_visit[7] = True
    visits.amounts[7] *= 50
    made = make_forecaster(visits)
    visits.amounts[7] *= 50
    again = make_forecaster(visits)
    assert torch.equal(made.most, again.most) and (made.most <= torch.tensor([3, 20, 20])).all()
    config = MCMConfig(**FEATURES, state_size=8, forecast_window=WINDOW)
    found = CustomerForecasts(config, again, [WINDOW]).compute(visits, read_as_of(visits))
    most, expected = again.most[0], found[f"visits_{WINDOW:g}d"].sort().values
    assert expected[-2] <= most < 1.5 * most < expected[-1] == found[f"visits_{WINDOW:g}d"][7]


def distributions(forecaster, visits, day=WINDOW, days=DAYS):
    with torch.no_grad():
        inputs = forecaster.inputs(visits, read_as_of(visits, day), days)
        spread = forecaster.distribution(inputs)
        return *spread, *forecaster.amounts(inputs, spread)


def test_order_and_empty_places_change_nothing(forecaster):
    visits = make_visits()
    order = torch.randperm(visits.times.shape[1], generator=torch.Generator().manual_seed(1))
    moved = Visits(*(torch.cat([value[:, order], value[:, :3]], 1) for value in visits))
    moved.is_visit[:, -3:] = False
    found, expected = (distributions(forecaster, each) for each in (moved, visits))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_visits_of_one_age_are_in_the_same_order_in_every_batch(forecaster):
    """After 30 years, visits that are a minute apart have one age in single precision."""
    visits, lengths = make_visits(30, 150), torch.arange(5, 155, 5)
    times = visits.times[:, ::5].repeat_interleave(5, 1)
    visits = visits._replace(times=times, is_visit=torch.arange(150) < lengths[:, None])
    together = distributions(forecaster, visits)
    for row, length in enumerate(lengths.tolist()):
        alone = distributions(forecaster, Visits(*(value[row : row + 1, :length] for value in visits)))
        torch.testing.assert_close(alone, tuple(value[row : row + 1] for value in together), rtol=1e-5, atol=1e-5)


def test_a_distribution_is_one():
    spread = Distribution(*torch.tensor([[-2.0, 0.5, 2.0], [-1.0, 0.0, 3.0], [-3.0, 0.0, 1.0]]))
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
    median, *ends = spread.quantiles().long().unbind(-1)
    for (low, high), level in zip((ends[:2], ends[2:]), LEVELS, strict=True):
        assert (low <= median).all() and (median <= high).all()
        inside = cumulative.gather(0, high[None] + 1) - cumulative.gather(0, low[None])
        likeliest = shares.gather(0, high[None]).maximum(shares.gather(0, high[None] + 1))
        coarse = spread.expected > 20  # numbers are taken together there
        assert (((inside - level / 100).abs() <= likeliest[0] + 0.01) | coarse).all()
        assert abs(inside[0, coarse].mean() - level / 100) < 0.03
    assert (ends[2] <= ends[0]).all() and (ends[3] >= ends[1]).all()


def test_an_interval_of_amounts_begins_at_0_where_no_visit_is_likely():
    comes = torch.tensor([0.05, 0.5, 1 - 1e-6]).log()
    bounds = AmountDistribution(torch.zeros(3), torch.zeros(3), torch.ones(3), comes).quantiles()[:, 1:3]
    assert bounds[0].tolist() == [0, 0] and bounds[1, 0] == 0 < bounds[2, 0]


def test_median_day():
    absent = torch.tensor([[0.5, 0.25, 0.1], [0.9, 0.7, 0.2], [1.0, 0.9, 0.8]])
    torch.testing.assert_close(median_days(absent, [1.0, 2.0, 12.0]), torch.tensor([1.0, 6.0, 12.0]))


def test_shops_it_never_saw_are_in_its_intervals():
    """Over synthetic shops of another seed: coverage, totals, and less loss than rates alone have."""
    examples = draw_examples(60, seed=999)
    shipped, plain = VisitForecaster(), VisitForecaster()
    load_weights(shipped)
    for name in ("visit_network", "amount_network"):
        getattr(plain, name).range.load_state_dict(getattr(shipped, name).range.state_dict())
    with torch.no_grad():
        spread = shipped.distribution(examples)
        amounts = shipped.amounts(examples, spread).quantiles()[:, 0]
        learned, rates = compute_losses(shipped, examples), compute_losses(plain, examples)
    some = spread.expected > 1  # of others, no visit is often likelier than the level
    for quantiles, came, error in ((spread.quantiles(), examples.number, 0.05), (amounts, examples.total, 0.06)):
        for place, level in enumerate(LEVELS):
            low, high = quantiles[some, 1 + 2 * place : 3 + 2 * place].T
            assert abs(((low <= came[some]) & (came[some] <= high)).float().mean() - level / 100) < error
    for name in ("visits", "mean visits", "mean amounts"):
        assert learned[name] < rates[name]


def test_inputs_outside_the_range_of_training_give_numbers():
    visits = make_visits(3)
    assert all(value.isfinite().all() for value in distributions(make_forecaster(visits, 1e6), visits, 1e9))


def test_little_is_known_of_some_customers(forecaster):
    """No visit, one visit long ago, one now, visits without amounts, a visit before the window."""
    nothing = Visits(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4, 2))
    once = nothing._replace(is_visit=torch.tensor([[True, False, False, False]]))
    just_now = once._replace(times=torch.full((1, 4), WINDOW))
    often = Visits(torch.tensor([[10.0, 80, 130, 190]]), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, 2))

    def expect(visits, day=WINDOW):
        found = distributions(forecaster, visits, day)
        spread = Distribution(*found[:3])
        assert all(value.isfinite().all() for value in (*found, spread.quantiles()))
        assert AmountDistribution(*found[3:]).quantiles().isfinite().all()
        return spread.expected[0]

    long_ago, *others = (expect(visits)[1] for visits in (once, just_now, often, nothing))
    assert 0 < long_ago < min(others)
    assert (expect(once, 10 * WINDOW) <= expect(once, 0.5 * WINDOW)).all()
    with pytest.raises(ValueError, match="No customer has a visit in the training period"):
        make_forecaster(nothing)


# ------------------------------------------------------------------------------------------------------- in a model


def make_model(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    told = {"state_size": 8, "forecast_days": [7, 30, 180], "forecast_window": WINDOW}
    told |= {"target_features": ["item"], "target_types": {"kind": [2]}}
    model = MCMModel(MCMConfig(**FEATURES | sizes | told | changes)).eval()
    torch.nn.init.normal_(model.state.directions)
    if model.forecaster is not None:
        model.forecaster.load_state_dict(make_forecaster(make_visits()).state_dict())
    return model


def make_inputs():
    ids = torch.tensor([[[2, 0], [2, 5], [2, 6], [3, 7], [2, 8]], [[2, 0], [2, 5], [3, 6], [0, 0], [0, 0]]])
    values = torch.tensor([[0.0, 1, 2, 4, 8], [0, 1, 2, 0, 0]])[..., None]
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).any(-1).long(),
        "visit_ids": torch.tensor([[0, 1, 1, 2, 3], [0, 1, 2, 2, 2]]),
        "event_times": torch.tensor([[0.0, 0, 0, 20, 90], [0, 0, 1, 1, 1]]),
        "event_values": values,
        "as_of": torch.tensor([100.0, 50.0]),
    }


def test_visits_with_targets_are_read():
    visits = make_model().forecaster.read(*list(make_inputs().values())[:-1])
    assert visits.times[visits.is_visit].tolist() == [0, 90, 0]  # the visit of the third day has no target
    assert visits.amounts[visits.is_visit].tolist() == [[2, 3], [1, 8], [1, 1]]


def test_what_is_told():
    model, inputs = make_model(), make_inputs()
    told = model(**inputs).forecasts
    assert list(told) == model.customer_forecasts.names() and len(set(told)) == len(told)
    for day in (7, 30, 180):
        assert (told[f"visit_probability_{day}d"] <= told[f"visits_{day}d"]).all()
        assert (told[f"visits_{day}d"] <= told[f"events_{day}d"]).all()
        for quantity in ("visits", "events", "kind"):
            bounds = [told[f"{quantity}_{day}d_{end}"] for end in ("low95", "low80", "median", "high80", "high95")]
            assert (torch.stack(bounds).diff(dim=0) >= 0).all() and (bounds[0] >= 0).all()
    assert ((told["days_to_next_visit"] > 0) & (told["days_to_next_visit"] <= 400)).all()
    longest = model(**inputs, forecast_days=[400]).forecasts
    torch.testing.assert_close(told["alive_probability"], longest["visit_probability_400d"])
    assert (1 > told["alive_probability"]).all() and (told["alive_probability"] > told["visit_probability_180d"]).all()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_falls_with_the_horizon_whichever_others_are_asked(seed):
    """Means, ends of intervals and probabilities, of customers of a synthetic shop; most falls are close to twice the
    window, where a fall is of several visits."""
    draw, shop = np.random.default_rng(seed), draw_shop(np.random.default_rng(seed))
    window = float(draw.choice([45, 180, 270, 700]))
    known, rows = np.unique(shop.customers[shop.times < shop.window], return_inverse=True)
    past, chosen = shop.times < shop.window, rows < 200
    amounts = np.stack([shop.amounts[past]] * 2, 1)[chosen]
    visits = pad_visits(rows[chosen], shop.times[past][chosen] * window / shop.window, amounts, min(len(known), 200))
    config = MCMConfig(forecast_window=window, forecast_days=[7, 30, 90], **FEATURES)
    forecaster, as_of = make_forecaster(visits, window), read_as_of(visits, window * 1.2)
    days = sorted({*(2 * window * draw.random(6)).tolist(), 7.0, 0.9 * 2 * window, 0.95 * 2 * window, 2 * window})

    def ask(days):
        with torch.no_grad():
            return CustomerForecasts(config, forecaster, days).compute(visits, as_of)

    together, before = ask(days), {}
    for day in days:
        suffix = f"_{day:g}d"
        for name, values in ask([day]).items():
            if suffix not in name:
                torch.testing.assert_close(values, together[name], rtol=1e-5, atol=1e-6)
                continue
            torch.testing.assert_close(values, together[name], rtol=1e-5, atol=1e-6)
            quantity = name.replace(suffix, "")
            assert (values >= before.get(quantity, values) * (1 - 1e-5) - 1e-6).all(), name
            before[quantity] = values
    assert (together["alive_probability"] >= before["visit_probability"] - 1e-6).all()


def test_horizons_beyond_twice_the_window_are_not_told():
    model = make_model(forecast_days=[7, 400, 401])
    assert model.customer_forecasts.days == [7, 400]
    for days, message in (
        ([401], "No forecast for 401 days: this checkpoint tells those of up to 400 days"),
        ([float("nan")], "No forecast for nan days"),
        ([], "`days` is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**make_inputs(), forecast_days=days)
    nothing = make_model(forecast_window=0)
    assert nothing.forecaster is None and not nothing.customer_forecasts.are_trained
    assert nothing(**make_inputs()).forecasts is None


def test_nothing_trains_the_network():
    model = make_model()
    assert not any(value.requires_grad for value in model.forecaster.parameters())
    assert model.train()(**make_inputs()).forecasts is None  # a step takes no longer


def tell(visits, day, days, window=WINDOW):
    """The forecasts at a day in a shop with these visits."""
    config = MCMConfig(forecast_window=window, forecast_days=days, **FEATURES)
    return CustomerForecasts(config, make_forecaster(visits, window)).compute(visits, read_as_of(visits, day))


def test_returns_are_taken_from_the_amounts():
    visits = make_visits(400)
    is_return = torch.rand(visits.times.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    visits = visits._replace(amounts=torch.where(is_return[..., None], -1, 1) * visits.amounts)
    with torch.no_grad():
        told, amounts = tell(visits, WINDOW, [30]), visits.amounts[visits.is_visit]
    mean = (told["kind_30d"].sum() / told["visits_30d"].sum()).item()
    assert mean == pytest.approx(amounts[:, 1].mean().item(), rel=0.1)


def test_a_single_large_purchase_says_less_than_as_much_in_all():
    """Two customers came equally often and paid the same sum, the one evenly and the other almost all at once."""
    often = torch.linspace(0, WINDOW, 10)
    amounts = torch.rand(60, 10, 2, generator=torch.Generator().manual_seed(0)) * 20
    amounts[0], amounts[1], amounts[1, 4] = 40.0, 4.0, 364.0
    visits = Visits(often.expand(60, 10), torch.ones(60, 10, dtype=torch.bool), amounts)
    evenly, at_once, *others = tell(visits, WINDOW, [30])["kind_30d"].tolist()
    assert max(others) < at_once < 0.8 * evenly


def make_amounts(visits, draw):
    """Log-normal amounts of some visits, as `Visits`."""
    amounts = torch.from_numpy(draw.lognormal(3, 0.7, visits.amounts.shape)).float()
    return visits._replace(amounts=amounts)


@pytest.mark.parametrize("amount", [1e5, 1e9, 1e30, -1e5, -1e30])
@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_amount_changes_little(amount, seed):
    """One row of hundreds: neither the others' forecasts nor those of its customer follow it."""
    draw = np.random.default_rng(seed)
    visits = make_amounts(make_visits(200), draw)
    before = tell(visits, WINDOW, [30])["kind_30d"]
    row = int(draw.integers(100, 200))
    visits.amounts[row, -1, 1] = amount
    after = tell(visits, WINDOW, [30])["kind_30d"]
    others = torch.arange(200) != row
    torch.testing.assert_close(after[others], before[others], rtol=0.05, atol=1e-3)
    assert 0.3 * before[row] < after[row] < 3 * before[row]


@pytest.mark.parametrize("seed", range(5))
def test_who_pays_much_more_than_others_is_believed(seed, monkeypatch):
    """Wholesalers, and donors whose gifts have a heavy tail: nothing of what they paid is taken for a mistake."""
    draw, visits = np.random.default_rng(seed), make_visits(200)
    tail = torch.from_numpy(draw.pareto(1.5, visits.amounts.shape) + 1).float()
    wholesale = make_amounts(visits, draw)
    wholesale.amounts[-1, -4:, 1] *= 3000
    shops = visits._replace(amounts=tail), wholesale
    found = [tell(each, WINDOW, [30]) for each in shops]
    monkeypatch.setattr("modeling_mcm.forecaster_mcm.BROKEN", np.inf)
    for each, told in zip(shops, found, strict=True):
        unlimited = tell(each, WINDOW, [30])
        assert all(torch.equal(told[name], unlimited[name]) for name in told)
    assert found[1]["kind_30d"][-1] > 10 * found[1]["kind_30d"][:-1].max()


def test_no_more_is_expected_than_any_customer_did():
    """A customer whose 300 visits are of the last hours will not go on at that rate."""
    often = torch.linspace(0, WINDOW, 20)
    times = torch.stack([torch.linspace(0.999 * WINDOW, WINDOW, 300), torch.cat([often, often.new_zeros(280)])])
    is_visit = torch.arange(300) < torch.tensor([[300], [20]])
    visits = Visits(times, is_visit, torch.ones(2, 300, 2) * torch.tensor([1.0, 5.0]))
    told = tell(visits, WINDOW, DAYS)
    for days, windows in zip(DAYS, (1, 1, 2), strict=True):
        assert (told[f"visits_{days:g}d"] <= 300 * windows).all()
        assert (told[f"kind_{days:g}d"] <= told[f"visits_{days:g}d"] * 5 * (1 + 1e-6)).all()
    uncapped = Distribution(*distributions(make_forecaster(visits), visits, days=[WINDOW])[:3]).expected
    assert uncapped[0, 0] > 600


@pytest.mark.parametrize("silence", [20, 35, 300])
@pytest.mark.parametrize(("visits", "spread"), [(7.4, 0.8), (4, 0.3)])
def test_silence_seldom_raises_a_forecast(visits, spread, silence):
    """In small shops of 30 customers and 60 days, after some days in which nobody was seen: less is expected of most,
    and more of a few, whose next visit was not due before. After 60 days no visit is in the window but the last."""
    ratios = []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        numbers = np.maximum(draw.poisson(draw.lognormal(np.log(visits), spread, 30)), 2)
        times = draw.uniform(np.repeat(draw.uniform(0, 15, 30), numbers), 60)
        shop = pad_visits(np.repeat(np.arange(30), numbers), times, np.ones((len(times), 2)), 30)
        now, later = (tell(shop, day, [30], 60.0)["visits_30d"] for day in (60.0, 60.0 + silence))
        ratios.append(later / now)
    assert (torch.cat(ratios) > 1.2).float().mean() < 0.1 and torch.cat(ratios).median() < 0.95


def test_visits_of_shops_with_a_known_law_are_worth_what_comes():
    """BG/NBD: rates are Gamma, and after each repeat a customer leaves with a Beta chance. What comes within twice the
    window, discounted by 15% a year."""
    generator, number, window = np.random.default_rng(0), 1500, 365.0
    for shape, scale, leaves, stays in ((1.0, 15, 0.6, 6.0), (1.5, 60, 0.3, 3.0)):
        rates, chances = generator.gamma(shape, 1 / scale, (number, 1)), generator.beta(leaves, stays, (number, 1))
        gaps = generator.exponential(1 / rates, (number, 400))
        times = generator.uniform(0, 200, (number, 1)) + np.pad(gaps, ((0, 0), (1, 0))).cumsum(1)
        left = np.pad(generator.random((number, 400)) < chances, ((0, 0), (2, 0)))[:, :401].cumsum(1)
        times = np.where(left > 0, np.inf, times)
        past = torch.from_numpy(times < window)
        past = past[:, : past.sum(1).max()]
        visits = Visits(
            torch.from_numpy(np.where(past, times[:, : past.shape[1]], 0)).float(), past, past[..., None].float()
        )
        as_of, forecaster = torch.full((number,), window), VisitForecaster()
        load_weights(forecaster)
        set_shop(forecaster, visits, as_of, window)
        config = MCMConfig(forecast_window=window)
        forecasts = CustomerForecasts(config, forecaster, [90.0, 730.0])
        with torch.no_grad():
            told = CustomerForecasts(config, forecaster, forecasts.steps()).compute(visits, as_of)
        value = forecasts.discount(told, 0.15)["visits_730d_discounted"].sum().item()
        ahead = times[(times >= window) & (times < 3 * window)] - window
        assert value == pytest.approx((1.15 ** (-ahead / 365.2425)).sum(), rel=0.12)
        assert told["visits_90d"].sum().item() == pytest.approx((ahead < 90).sum(), rel=0.08)
