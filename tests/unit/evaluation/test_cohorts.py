# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Newcomers of weeks to come."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from modeling_mcm.evaluation import cohorts
from modeling_mcm.evaluation.cohorts import expect_newcomers, forecast_cohorts

END, DAY = 200 * 86_400, 86_400


@pytest.mark.parametrize("mean", [3, 30, 300])
@pytest.mark.parametrize("spread", [0, 0.3])
def test_intervals_hold_what_they_say(mean, spread):
    generator, held, ratios = np.random.default_rng(mean), [], []
    for _ in range(40):
        levels = mean * np.exp(generator.normal(0, spread, 34) - spread**2 / 2)
        counts = generator.poisson(levels)
        expected, low, high = expect_newcomers(counts[:30], 4).to_numpy().T
        held.append((low <= counts[30:]) & (counts[30:] <= high))
        ratios.append(expected.mean() / mean)
    assert 0.7 < np.mean(held) < 0.95
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


def test_who_is_seen_for_the_first_time_becomes_rare():
    weeks = np.arange(1, 29)
    counts = np.random.default_rng(0).poisson(2000 / weeks)
    expected = expect_newcomers(counts[:24], 4)["newcomers"]
    np.testing.assert_allclose(expected, 2000 / weeks[24:], rtol=0.1)  # the mean of the last 4 weeks is 15% more


def test_a_shop_without_newcomers_expects_none():
    found = expect_newcomers(np.zeros(20), 3).to_numpy()
    assert (found[:, 0] < 0.2).all() and (found[:, 1] == 0).all() and (found[:, 2] <= 1).all()


@pytest.fixture
def steady(monkeypatch):
    """A shop with three newcomers on each of its last 60 days, each of whom comes once a day and pays 2; and what is
    asked of it."""
    first = np.repeat(np.arange(140, 200), 3)
    row = np.repeat(np.arange(len(first)), 200 - first)
    times = np.concatenate([np.arange(day, 200) for day in first]) * DAY + DAY // 2
    batch = SimpleNamespace(row=row, columns={"customer_id": [f"c{each}" for each in range(len(first))]})
    batch.column = lambda name: times
    monkeypatch.setattr(cohorts, "sum_visits", lambda batch, _, name: np.full(len(times), 2.0 - (name == "visits")))

    def ask(days=40.0, weeks=3, rate=0.0):
        def forecast(customers, days):
            worth = ((1 + rate) ** (-(np.arange(0, days[0], 0.01) + 0.005) / 365.25)).sum() / 100
            columns = {f"{name}_{days[0]:g}d_discounted": each * worth for name, each in (("visits", 1), ("spent", 2))}
            return pd.DataFrame(columns, pd.Index(customers, name="customer"))

        return forecast_cohorts(batch, None, ["visits", "spent"], END, days, weeks, rate, forecast)

    return ask


@pytest.mark.parametrize("days", [6.5, 13.5, 20.5, 41.5, 55.5])
@pytest.mark.parametrize("rate", [0.0, 0.5, -0.3])
def test_in_a_steady_shop_all_newcomers_are_worth_the_same(steady, days, rate):
    """Whichever part of the days has been, and whichever is to come: of each week, and of those that have not come."""
    table = steady(days, rate=rate)
    worth = ((1 + rate) ** (-np.arange(days) / 365.25)).sum()  # of a visit at the first time and on each day after it
    for name, each in (("visits", 1), ("spent", 2)):
        np.testing.assert_allclose(table[f"{name}_{days:g}d"] / table["newcomers"], each * worth, rtol=0.03)


def test_what_has_been_of_each_week_adds_up_and_newcomers_are_counted_once(steady):
    table, past = steady(), slice(None, -3)
    weeks = 8  # whole ones of 60 days
    assert len(table) == weeks + 3 and table["newcomers"].iloc[past].sum() == 3 * 7 * weeks
    ages = 200 - np.arange(200 - 7 * weeks, 200)
    assert table["visits"].iloc[past].sum() == 3 * ages.clip(max=41).sum()  # the first visit, and those of 40 days
    assert (table["spent"] == 2 * table["visits"]).iloc[past].all()


def test_what_comes_later_is_worth_less_and_with_a_rate_below_0_more(steady):
    tables = [steady(rate=rate) for rate in (-0.2, 0.0, 0.1, 0.5, 3.0)]
    for name in ("visits_40d", "spent_40d"):
        assert (np.diff([table[name] for table in tables], axis=0) < 0).all()


@pytest.mark.parametrize("weeks", [-1, 1.5, "2", None, float("nan")])
def test_weeks_that_are_no_number_of_weeks_are_refused(steady, weeks):
    assert len(steady(weeks=0)) == 8
    with pytest.raises(ValueError, match="`weeks` is .*: give the number of weeks to come, 0 or more"):
        steady(weeks=weeks)
