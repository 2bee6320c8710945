# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers by the week of their first visit, and those who are not there yet.

Shapes: W weeks of the log, H weeks to come.
"""

from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modeling_mcm.calendar_mcm import WEEK, YEAR
from modeling_mcm.events_mcm import EPOCH, SECONDS_PER_DAY
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.inputs_mcm import Customers

from .totals import sum_visits

NEWEST = 4  # weeks whose newcomers say what the next ones are worth, and the fewest of a log
LEAST, ITERATIONS = 0.1, 20  # newcomers of a week
KEPT = 0.9  # share of its weight that a week keeps a week later
NEWCOMERS = {"newcomers": 0.0, "newcomers_low80": -1.2816, "newcomers_high80": 1.2816}  # normal deviates


def expect_newcomers(counts: NDArray, weeks: int) -> pd.DataFrame:
    """Expected newcomers of weeks to come, and the ends of an interval that holds 80% of such weeks, a row each, from
    those of each week of a log, `(W,)`.

    A Poisson regression on the logarithm of the week's number: a log that begins in the life of a shop sees regulars
    for the first time ever more rarely. Earlier weeks weigh less.
    """
    past, to_come = np.split(np.log(np.arange(1, len(counts) + weeks + 1) / len(counts)), [len(counts)])  # (W,), (H,)
    kept, mean = KEPT ** np.arange(len(counts))[::-1], counts + 0.5  # (W,)
    for _ in range(ITERATIONS):  # of weighted least squares
        values = np.log(mean) + (counts + LEAST - mean) / mean
        line, covariance = np.polyfit(past, values, 1, w=np.sqrt(kept * mean), cov="unscaled")
        mean = np.exp(np.polyval(line, past))
    spread = max(kept @ ((counts - mean) ** 2 / mean.clip(0.5)) / (kept.sum() - 2), 1.0)
    x, expected = np.vander(to_come, 2), np.exp(np.polyval(line, to_come))  # (H, 2), (H,)
    std = np.sqrt(spread * ((x @ covariance * x).sum(1) + 1 / expected.clip(0.5)))
    ends = expected[:, None] * np.exp(np.outer(std, [*NEWCOMERS.values()]))  # (H, 3)
    ends[:, 1:] = ends[:, 1:].round()
    return pd.DataFrame(ends, columns=[*NEWCOMERS])


def forecast_cohorts(
    batch: Customers,
    extractor: MCMFeatureExtractor,
    quantities: Sequence[str],
    end: float,
    days: float,
    weeks: int,
    rate: float,
    forecast: Callable[..., pd.DataFrame],
) -> pd.DataFrame:
    """The table of [`CustomerModel.cohorts`], whose `forecast` is asked for discounted values from `end` on."""
    if not isinstance(weeks, Integral) or weeks < 0:
        raise ValueError(f"`weeks` is {weeks!r}: give the number of weeks to come, 0 or more.")
    visits = pd.DataFrame({name: sum_visits(batch, extractor, name) for name in quantities})
    visits["ago"] = (end - batch.column("times")) / SECONDS_PER_DAY
    visits["customer"] = np.array(batch.columns["customer_id"], object)[batch.row]
    visits = visits[(visits["visits"] > 0) & (visits["ago"] >= 0)]
    first = visits.groupby("customer")["ago"].transform("max")
    week, age = (first // WEEK).astype(int), first - visits["ago"]
    if (number := int(week.max())) < NEWEST:
        raise ValueError(f"The log has {number} whole weeks until then, expected {NEWEST} or more.")
    cohorts, places = visits["customer"].groupby(week), range(number - 1, -1, -1)
    counts = cohorts.nunique().reindex(places, fill_value=0)
    worth = (1 + rate) ** (-age / YEAR) * (age <= days)
    so_far = visits[[*quantities]].mul(worth, axis=0).groupby(week).sum().reindex(places, fill_value=0.0)
    expected = so_far.add_suffix(f"_{days:g}d")
    for place, customers in cohorts:
        rest = days - WEEK * (place + 0.5)
        if place < number and rest > 0:
            told = forecast(customers.unique(), [rest])[[f"{name}_{rest:g}d_discounted" for name in quantities]]
            expected.loc[place] += told.to_numpy().sum(0) * (1 + rate) ** ((rest - days) / YEAR)
    to_come = expect_newcomers(counts.to_numpy(), weeks)
    each = expected[-NEWEST:].sum() / counts[-NEWEST:].sum()
    to_come[expected.columns] = np.outer(to_come["newcomers"], each)
    table = pd.concat([counts.rename("newcomers").to_frame().join([so_far, expected]), to_come])
    starts = end - WEEK * SECONDS_PER_DAY * np.arange(number, -weeks, -1)
    return table.set_index(pd.Timestamp(EPOCH) + pd.to_timedelta(starts, "s").rename("week"))
