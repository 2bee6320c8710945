# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Judges the shipped forecaster beside BG/NBD, which is fitted on each log by maximum likelihood.

A setting is a log, a window and a horizon in days. Both methods read the days of visits in the window, from the start
of the log, and forecast the visits of each customer in the horizon: the errors (RMSE) and each total over the actual
one; and the share of customers in the forecaster's intervals, with whole numbers broken at random, which a calibrated
distribution has at its level.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, hyp2f1

from logs import Log
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import arrow_batches, flat_values, list_lengths
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.forecaster_mcm import Distribution, VisitForecaster
from modeling_mcm.training.forecaster import SHIPPED_WEIGHTS, load_weights, pad_visits, set_shop

SETTINGS = {
    "cdnow": [(273, 273), (182, 364)],
    "ta_feng": [(75, 45), (60, 60), (40, 80)],
    "complete_journey": [(302, 55), (180, 180), (120, 240)],
}
AMOUNTS = {"cdnow": "dollar_value"}  # where it is not the price


def daily(data: PreparedData, amount: str) -> pd.DataFrame:
    """One row a day with a labelled event: columns customer, day from the log's first, and spend."""
    tasks = [f"task_{task}" for task in data.schema.tasks if task != data.extractor.token_type_feature]
    parts, first = [], 0
    for table in arrow_batches(data.rows, ["times", f"value_{amount}", *tasks]):
        chosen = np.any([flat_values(table, task) > 0 for task in tasks], axis=0)
        customer = first + np.repeat(np.arange(len(table)), list_lengths(table, "times"))
        days = flat_values(table, "times") // SECONDS_PER_DAY
        spend = flat_values(table, f"value_{amount}")
        parts.append(pd.DataFrame({"customer": customer, "day": days, "spend": spend})[chosen])
        first += len(table)
    log = pd.concat(parts)
    log["day"] -= log["day"].min()
    return log.groupby(["customer", "day"], as_index=False)["spend"].sum()


class BGNBD:
    """BG/NBD (Fader, Hardie and Lee, 2005), from each customer's repeats, and days to the last and since the first."""

    def __init__(self, repeats: np.ndarray, last: np.ndarray, age: np.ndarray):
        self.scale = age.max() / 10
        rows, weights = np.unique(np.stack([repeats, last / self.scale, age / self.scale]), axis=1, return_counts=True)
        x, tx, t = rows

        def loss(logs: np.ndarray) -> float:
            r, alpha, a, b = np.exp(logs)
            common = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + betaln(a, b + x) - betaln(a, b)
            left = np.log(a / (b + np.maximum(x, 1) - 1)) - (r + x) * np.log(alpha + tx)
            alive = -(r + x) * np.log(alpha + t)
            return -np.average(common + np.logaddexp(alive, np.where(x > 0, left, -np.inf)), weights=weights)

        starts = ([0, 0, 0, 0], [-1, 1, -1, 1], [0.5, 0, -2, 2])
        limits = {"method": "L-BFGS-B", "bounds": [(-8, 8)] * 4}
        self.parameters = np.exp(min((minimize(loss, start, **limits) for start in starts), key=lambda o: o.fun).x)

    def expected(self, repeats: np.ndarray, last: np.ndarray, age: np.ndarray, days: float) -> np.ndarray:
        """Expected visits within so many days."""
        (r, alpha, a, b), x = self.parameters, repeats
        a = a if abs(a - 1) > 1e-4 else 1.0001
        tx, t, h = last / self.scale, age / self.scale, days / self.scale
        series = hyp2f1(r + x, b + x, a + b + x - 1, h / (alpha + t + h))
        grows = 1 - np.exp((r + x) * (np.log(alpha + t) - np.log(alpha + t + h))) * series
        odds = a / (b + np.maximum(x, 1) - 1) * np.exp((r + x) * (np.log(alpha + t) - np.log(alpha + tx)))
        return (a + b + x - 1) / (a - 1) * grows / (1 + np.where(x > 0, odds, 0))


def judge(log: pd.DataFrame, window: int, horizon: int, forecaster: VisitForecaster) -> dict[str, float]:
    """Measures one setting."""
    past = log[log["day"] < window]
    follows = log[(log["day"] >= window) & (log["day"] < window + horizon)]
    by_customer = past.groupby("customer")["day"].agg(["count", "min", "max"])
    actual = follows.groupby("customer")["day"].size().reindex(by_customer.index, fill_value=0).to_numpy()
    ends = (by_customer["count"] - 1, by_customer["max"] - by_customer["min"], window - by_customer["min"])
    repeats, last, age = (values.to_numpy(float) for values in ends)
    other = BGNBD(repeats, last, age).expected(repeats, last, age, horizon)
    customers = np.repeat(np.arange(len(by_customer)), by_customer["count"])
    visits = pad_visits(customers, past["day"].to_numpy(), past["spend"].to_numpy(), len(by_customer))
    as_of = torch.full((len(by_customer),), float(window))
    set_shop(forecaster, visits, as_of, window)
    with torch.no_grad():
        spread = forecaster.distribution(forecaster.inputs(visits, as_of, [horizon]))
        spread = Distribution(*(value[:, 0] for value in spread))
        broken = _broken(spread, torch.tensor(actual)).numpy()
    result: dict[str, float] = {"window": window, "horizon": horizon, "customers": len(actual)}
    for name, expected in (("MCM", spread.expected.numpy()), ("BG/NBD", other)):
        result[f"{name} RMSE"] = float(np.sqrt(((expected - actual) ** 2).mean()))
        result[f"{name} total"] = float(expected.sum() / actual.sum())
    return result | {f"in {level}%": float((np.abs(broken - 0.5) <= level / 200).mean()) for level in (80, 95)}


def _broken(spread: Distribution, actual: torch.Tensor) -> torch.Tensor:
    """Probability of fewer visits than came, plus a random part of that of as many."""
    numbers = torch.arange(int(actual.max()) + 1)
    parts = []
    for start in range(0, len(actual), 1000):
        part = slice(start, start + 1000)
        shares = Distribution(*(value[part, None] for value in spread)).log_probability(numbers).exp()
        parts.append((shares * (numbers < actual[part, None])).sum(1))
    share = torch.rand(len(actual), generator=torch.Generator().manual_seed(0))
    return torch.cat(parts) + share * spread.log_probability(actual).exp()


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, Any] | None:
    """A row for each setting of a log; None for a log without any."""
    if log.name not in SETTINGS:
        return None
    forecaster = VisitForecaster()
    load_weights(forecaster, SHIPPED_WEIGHTS)
    visits = daily(data, AMOUNTS.get(log.name, "price"))
    return {"log": log.name, "rows": [judge(visits, *days, forecaster) for days in SETTINGS[log.name]]}
