# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The calendar: planted seasons, campaigns and closed weeks are found, and nothing where there is nothing."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from planted_shop import START, day, make_shop

from modeling_mcm import MCMConfig
from modeling_mcm.calendar_mcm import LEAST_DAYS, MOST_DAYS, Calendar, join_known
from modeling_mcm.data import read_known
from modeling_mcm.forecaster_mcm import CustomerForecasts, VisitForecaster, Visits
from modeling_mcm.training.forecaster.describe import count_days
from modeling_mcm.training.forecaster.shop import load_weights, set_shop

FIRST = (START - pd.Timestamp(0)).days
WEEK = np.array([1, 1, 1.6, 0.5, 1, 1, 0.9])  # from a Wednesday on


class Shop:
    """The visits of a log before a day, and forecasts from then on."""

    def __init__(self, log, number, known=None, reads_calendar=True):
        moments = (log["time"] - pd.Timestamp(0)) / pd.Timedelta(days=1)
        self.end, self.reads_calendar = float(FIRST + number), reads_calendar
        past = (moments < self.end).to_numpy()
        names, row = np.unique(log["customer"][past], return_inverse=True)
        self.coming = moments[~past & log["customer"].isin(names)]
        place = pd.Series(row).groupby(row).cumcount().to_numpy()
        times = torch.zeros(len(names), place.max() + 1, dtype=torch.float64)
        times[row, place] = torch.tensor(moments[past].to_numpy())
        is_visit = torch.zeros(times.shape, dtype=torch.bool)
        is_visit[row, place] = True
        amounts = is_visit[..., None].float()
        self.visits, window = Visits(times, is_visit, amounts), self.end - float(times[is_visit].min())
        self.config = MCMConfig(state_size=8, forecast_window=window, known=known or {})
        self.forecaster = VisitForecaster(1)
        load_weights(self.forecaster)
        self.as_of = torch.full((len(names),), self.end, dtype=torch.float64)
        if reads_calendar:
            self.forecaster.calendar = count_days(self.visits, self.end - window, self.end)
        bent = self.forecaster.calendar.bend(times, self.as_of, [1.0], window, self.config.known)[0]
        set_shop(self.forecaster, Visits(bent.float(), is_visit, amounts), torch.zeros(len(names)), window)

    def forecast(self, days, known=None, before=0.0):
        """Forecasts at the end, or so many days before it."""
        with torch.no_grad():
            as_of = self.as_of - before
            visits = self.visits._replace(times=(self.visits.times - as_of[:, None]).float())
            read = [as_of] if self.reads_calendar else []
            forecasts = CustomerForecasts(self.config, self.forecaster, [float(days)])
            return forecasts.compute(visits, torch.zeros(len(as_of)), *read, known=known)

    def error(self, days):
        """Of the total of visits, as a share."""
        came = int((self.coming < self.end + days).sum())
        return float(self.forecast(days)[f"visits_{days}d"].sum()) / came - 1


def season(days):
    return np.exp(0.5 * np.sin(2 * np.pi * np.arange(days) / 365.25))


def campaigns(days, starts, effect):
    effects = np.resize(WEEK, days)
    for start in starts:
        effects[start : start + 10] *= effect
    return effects


STARTS = (40, 100, 170, 235, 305)
CLOSED = [{"date": day(305 + number), "name": "closed", "value": 1} for number in range(10)]


def read_campaigns(name="campaign"):
    rows = [{"from": day(start), "to": day(start + 9), "name": name, "value": 1} for start in STARTS]
    return read_known([*rows, {"from": day(400), "to": day(400), "name": name, "value": 0}])


@pytest.mark.parametrize(
    ("effects", "known", "number", "days"),
    [
        (season(900), None, 560, 60),
        (season(900), None, 800, 30),
        (campaigns(360, STARTS, 2.2), read_campaigns(), 300, 14),
        (campaigns(360, STARTS, 0.0), read_campaigns("holiday"), 300, 30),
        (campaigns(360, STARTS[-1:], 0.0), read_known(CLOSED), 300, 30),
    ],
    ids=["a season after 18 months", "a season in its third year", "campaigns", "learned to be closed", "closed once"],
)
def test_a_planted_calendar_is_expected(effects, known, number, days):
    log = make_shop(effects)
    told, blind = Shop(log, number, known), Shop(log, number, reads_calendar=False)
    assert abs(told.error(days)) < 0.05 < 0.18 < abs(blind.error(days))


def test_weekdays_are_expected():
    log = make_shop(np.resize(WEEK, 250), seed=2)
    shop, blind = (Shop(log, 220, reads_calendar=reads) for reads in (True, False))
    effects = shop.forecaster.calendar.find_effects(220, {}).weights[:7]
    wanted = np.log(np.roll(WEEK, 2))  # from Monday on
    np.testing.assert_allclose(effects - effects.mean(), wanted - wanted.mean(), atol=0.12)
    days = [float(shop.forecast(1, before=each)["visits_1d"].sum()) for each in range(7, 0, -1)]
    evenly = [float(blind.forecast(1, before=each)["visits_1d"].sum()) for each in range(7, 0, -1)]
    assert max(days) > 2 * min(days) and max(evenly) < 1.5 * min(evenly)


def test_how_busy_the_days_to_come_are_is_told():
    effects = campaigns(360, STARTS, 2.2)
    shop = Shop(make_shop(effects), 300, read_campaigns())
    forecasts = CustomerForecasts(shop.config, shop.forecaster, [7.0, 14.0])
    window = int(shop.config.forecast_window)
    wanted = [effects[300 : 300 + days].mean() / effects[300 - window : 300].mean() for days in (7, 14)]
    assert forecasts.find_busy(FIRST + 300.0) == pytest.approx(wanted, rel=0.08)
    quiet = CustomerForecasts(shop.config, Shop(make_shop(effects), 300, reads_calendar=False).forecaster, [7.0])
    assert quiet.find_busy(FIRST + 300.0) == pytest.approx([1.0])


def test_in_a_shop_of_even_days_nothing_changes():
    log = make_shop(np.ones(400), seed=1)
    read, blind = (Shop(log, 380, reads_calendar=reads).forecast(30) for reads in (True, False))
    for name, values in blind.items():
        torch.testing.assert_close(read[name], values, rtol=1e-4, atol=1e-4)


def test_days_after_a_forecast_change_nothing():
    log = make_shop(np.resize(WEEK, 300))
    shop, changed = Shop(log, 300), Shop(log, 300)
    counts = changed.forecaster.calendar.counts
    changed.forecaster.calendar = Calendar(FIRST, len(counts))
    changed.forecaster.calendar.counts.copy_(counts)[-40:, 0] *= torch.tensor([9.0, 1.0]).repeat(20)
    for before, is_same in ((40, True), (0, False)):
        found = [each.forecast(2, before=before)["visits_2d"].sum() for each in (shop, changed)]
        assert (found[0] == found[1]) == is_same


def test_horizons_rise_on_closed_days_too_and_intervals_widen():
    log = make_shop(campaigns(360, STARTS, 2.2))
    shop = Shop(log, 300, read_campaigns())
    told = [shop.forecast(days)[f"visits_{days}d"] for days in (1, 3, 7, 11, 19)]
    assert all((after >= before - 1e-6).all() for before, after in pairwise(told))
    closed = join_known(shop.config.known, {"closed": [[day(300), day(309), 1.0]]})
    assert (shop.forecast(10, closed)["visits_10d"] < 0.02).all()
    as_of, window = shop.as_of[:1], shop.config.forecast_window
    errors = shop.forecaster.calendar.bend(as_of[:, None], as_of, [10.0, 60.0], window, shop.config.known)[2]
    assert 0 < errors.min() and errors[0, 0] > errors[0, 1]  # most of the first days are of a campaign


@pytest.fixture
def said(monkeypatch):
    """What the calendar and the forecasts warn of."""
    said = []
    for part in ("calendar_mcm", "forecaster_mcm"):
        monkeypatch.setattr(f"modeling_mcm.{part}.logger.warning_once", said.append)
    return said


def test_days_after_the_known_ones_are_ordinary_and_that_is_told_once(said):
    log = make_shop(campaigns(320, STARTS[:4], 2.2), customers=300)
    known = {"campaign": read_campaigns()["campaign"][:4]}
    shop = Shop(log, 300, known)
    told = shop.forecast(14)
    assert len({*said}) == 1 and f"'campaign' is known until {day(244)}: " in said[0] and "`refresh`" in said[0]
    said.clear()
    more = join_known(known, {"campaign": [[day(300), day(313), 0]]})
    quiet = shop.forecast(14, more)
    assert not said and all(torch.equal(quiet[name], told[name]) for name in told)
    busy = join_known(known, {"campaign": [[day(300), day(313), 1]]})
    assert shop.forecast(14, busy)["visits_14d"].sum() > 1.5 * told["visits_14d"].sum()


def make_prices(days, noise=0.0, reduced=16.0):
    """Prices of each day: 20 on most, less on a week of each month."""
    prices = 20 + noise * np.random.default_rng(3).normal(size=days)
    for start in range(5, days, 30):
        prices[start : start + 7] = reduced
    return prices


def read_prices(prices, unit=1.0, more=0.0, days=None):
    days = range(len(prices)) if days is None else days
    return {"price": [[day(each), day(each), float(unit * prices[each] + more)] for each in days]}


PRICES = make_prices(360)
PRICED = np.resize(WEEK, 360) * (PRICES / 20) ** -3  # a week at 16 has nearly twice the visits


@pytest.mark.parametrize("unit", [1e-2, 1e2, 1e3])
def test_a_flag_of_any_height_says_the_same(unit):
    log = make_shop(campaigns(360, STARTS, 2.2), customers=500)
    known = read_campaigns()
    higher = {"campaign": [[first, last, unit * value] for first, last, value in known["campaign"]]}
    told, found = (Shop(log, 300, each).forecast(14) for each in (known, higher))
    assert all(torch.equal(found[name], told[name]) for name in told)


@pytest.mark.parametrize("noise", [0, 0.3])
def test_prices_of_any_unit_and_above_any_amount_say_the_same(noise):
    log, prices = make_shop(PRICED, customers=800), make_prices(360, noise)
    shop = Shop(log, 304, read_prices(prices))
    told = shop.forecast(7)
    assert abs(shop.error(7)) < 0.06
    low = Shop(log, 304, read_prices(np.where(np.arange(360) < 304, prices, 20))).forecast(7)
    assert told["visits_7d"].sum() > 1.4 * low["visits_7d"].sum()
    for change in ({"unit": 1e-2}, {"unit": 1e2}, {"unit": 1e3}, {"more": 50}, {"more": -100}, {"more": 1e5}):
        found = Shop(log, 304, read_prices(prices, **change)).forecast(7)
        for name in told:
            torch.testing.assert_close(found[name], told[name], rtol=1e-4, atol=1e-5)


def test_days_without_a_price_have_the_usual_one():
    log, shown = make_shop(PRICED, customers=800), np.flatnonzero(np.random.default_rng(0).random(360) < 0.9)
    told = Shop(log, 304, read_prices(PRICES)).forecast(7)["visits_7d"].sum()
    gaps = Shop(
        log, 304, read_prices(PRICES, days=[*filter(lambda each: PRICES[each] < 20 or each in shown, range(360))])
    )
    assert float(gaps.forecast(7)["visits_7d"].sum()) == pytest.approx(float(told), rel=1e-3)
    some = Shop(log, 304, read_prices(PRICES, days=[*shown, *range(304, 320)])).forecast(7)["visits_7d"].sum()
    assert float(some) == pytest.approx(float(told), rel=0.05)


def test_a_value_that_was_not_learned_is_the_nearest_that_was(said):
    log, prices = make_shop(PRICED, customers=800), PRICES.copy()
    wanted = Shop(log, 304, read_prices(prices)).forecast(7)
    prices[304:312] = [700, 7, -7e9, 1e30, 0.1, 2, 3, 4]
    shop = Shop(log, 304, read_prices(prices))
    found = shop.forecast(7)
    assert any("`known` has 700 of 'price', and effects were learned of values from 16 to 20" in each for each in said)
    assert all(value.isfinite().all() for value in found.values())
    shop.config.known = read_prices(np.clip(prices, 16, 20))
    clipped = shop.forecast(7)
    assert all(torch.equal(clipped[name], found[name]) for name in wanted)


def test_what_does_not_settle_has_no_effect_and_is_told(monkeypatch, said):
    log = make_shop(np.resize(WEEK, 250), customers=300)
    monkeypatch.setattr("modeling_mcm.calendar_mcm.ITERATIONS", 3)
    told, blind = (Shop(log, 220, reads_calendar=reads).forecast(7) for reads in (True, False))
    assert len({*said}) == 1 and "did not settle in 3 steps" in said[0]
    torch.testing.assert_close(told["visits_7d"], blind["visits_7d"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_known_gives_numbers(seed):
    """Days that are next to each other, of any size, or all the same, in shops of any size."""
    draw = np.random.default_rng(seed)
    days = int(draw.integers(60, 420))
    effects = draw.lognormal(0, draw.choice([0.0, 0.5, 2.0]), days) * (draw.random(days) > draw.choice([0, 0.3]))
    known = {
        name: [[day(first), day(first + draw.integers(0, 30)), float(draw.normal() * 10.0 ** draw.integers(-9, 9))]
               for first in draw.integers(0, days, draw.integers(1, 40))]
        for name in ("a", "b", "c", "closed")[: draw.integers(1, 5)]
    }  # fmt: skip
    known["closed"] = [[first, last, min(abs(value), 1)] for first, last, value in known.get("closed", ())]
    shop = Shop(make_shop(effects, seed=seed, customers=200), days - 20, known)
    assert all(value.isfinite().all() for value in shop.forecast(14).values())


def test_a_short_log_has_no_effects_and_a_long_one_is_read_at_its_end():
    days = torch.arange(0, 3000.0, dtype=torch.float64)[None] + 0.5
    visits = Visits(days, torch.ones_like(days, dtype=torch.bool), torch.ones(*days.shape, 1))
    assert len(count_days(visits, 0.0, 3000.0).counts) == MOST_DAYS
    calendar = count_days(visits, 0.0, LEAST_DAYS - 1.0)
    assert calendar.counts[:, 1].tolist() == [0] + [1] * (LEAST_DAYS - 2)
    for each in (calendar, Calendar()):
        assert len(each.find_effects(len(each.counts), {}).weights) == 0


def test_days_are_read_as_text_dates_and_times_of_any_zone():
    days = pd.Series(pd.date_range("2021-03-28", periods=3))
    local = days.dt.tz_localize("Asia/Tokyo")
    for form in (days, days.dt.date, days.dt.strftime("%Y-%m-%d"), local, [*local], days.to_numpy()):
        known = read_known({"date": form, "name": ["a"] * 3})
        assert known == {"a": [[f"2021-03-{day}", f"2021-03-{day}", 1.0] for day in (28, 29, 30)]} == read_known(known)
    assert read_known(None) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"from": "2021-01-01", "name": "a"}], "no column 'to'"),
        ([{"date": "2021-13-01", "name": "a"}], "row 1"),
        ([{"from": "2021-01-02", "to": "2021-01-01", "name": "a"}], "row 1: found"),
        ([{"date": "2021-01-01", "name": "a", "value": float("nan")}], "expected a first and a last day"),
        ([{"date": "2021-01-01", "name": "closed", "value": 2}], "from 0 to 1"),
        ([{"date": "2021-01-01", "name": "closed", "value": -0.5}], "from 0 to 1"),
        ([{"date": "2021-01-01", "name": "a", "value": "much"}], "row 1: found 'much' .str., expected a number"),
        (
            [{"date": day, "name": "a"} for day in ("2021-01-01", None)],
            "row 2: .* a first and a last day",
        ),
        ([], "no column 'from'"),
    ],
)
def test_wrong_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        read_known(rows)
