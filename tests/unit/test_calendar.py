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
from modeling_mcm.forecaster_mcm import CustomerForecasts, UnknownDaysError, VisitForecaster, Visits
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


def test_what_is_not_known_of_the_horizon_is_told():
    log = make_shop(campaigns(320, STARTS[:4], 2.2), customers=300)
    known = {"campaign": read_campaigns()["campaign"][:4]}
    shop = Shop(log, 300, known)
    with pytest.raises(UnknownDaysError, match=f"'campaign' is known until {day(244)}.* until {day(313)}.*value 0"):
        shop.forecast(14)
    more = join_known(known, {"campaign": [[day(300), day(313), 0]]})
    assert shop.forecast(14, more)["visits_14d"].sum() > 0


def test_a_short_log_has_no_effects_and_a_long_one_is_read_at_its_end():
    days = torch.arange(0, 3000.0, dtype=torch.float64)[None] + 0.5
    visits = Visits(days, torch.ones_like(days, dtype=torch.bool), torch.ones(*days.shape, 1))
    assert len(count_days(visits, 0.0, 3000.0).counts) == MOST_DAYS
    calendar = count_days(visits, 0.0, LEAST_DAYS - 1.0)
    assert calendar.counts[:, 1].tolist() == [0] + [1] * (LEAST_DAYS - 2)
    assert calendar.find_effects(len(calendar.counts), {}) is None
    assert Calendar().find_effects(0, {}) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"from": "2021-01-01", "name": "a"}], "no column 'to'"),
        ([{"date": "2021-13-01", "name": "a"}], "row 1"),
        ([{"from": "2021-01-02", "to": "2021-01-01", "name": "a"}], "row 1: found"),
        ([{"date": "2021-01-01", "name": "a", "value": float("nan")}], "expected a first and a last day"),
        ([{"date": "2021-01-01", "name": "closed", "value": 2}], "from 0 to 1"),
    ],
)
def test_wrong_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        read_known(rows)
