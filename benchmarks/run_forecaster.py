# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Judges the shipped forecaster beside BG/NBD, which is fitted on each log by maximum likelihood.

    python benchmarks/run_forecaster.py --cdnow CDNOW_master.txt --tafeng events.parquet --journey events.parquet

A setting is a log, a window and a horizon in days. Both methods read the days of visits in the window, from the start
of the log, and forecast the visits of each customer in the horizon. A row is a setting: the ratio of the errors (RMSE)
and each total less the actual one; the share of customers in the intervals, and the same where whole numbers are
broken at random, which a calibrated distribution has at its level; and the share of amounts in theirs.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, hyp2f1

from modeling_mcm.forecaster_mcm import Distribution, VisitForecaster, shop_statistics
from modeling_mcm.training.forecaster import SHIPPED_WEIGHTS, load_weights, padded

SETTINGS = {
    "cdnow": [(273, 273), (182, 364)],
    "tafeng": [(75, 45), (60, 60), (40, 80)],
    "journey": [(302, 55), (180, 180), (120, 240)],
}


def read_cdnow(path: str) -> pd.DataFrame:
    """One row a day with a purchase: columns customer, day and spend. So do the other two."""
    log = pd.read_csv(path, sep=r"\s+", skiprows=1, names=["customer", "day", "number", "spend"], dtype=str)
    return _daily(log["customer"], pd.to_datetime(log["day"]), log["spend"].astype(float))


def read_tafeng(path: str) -> pd.DataFrame:
    log = pd.read_parquet(path, columns=["customer_id", "time", "price"])
    return _daily(log["customer_id"], log["time"], log["price"])


def read_journey(path: str) -> pd.DataFrame:
    log = pd.read_parquet(path, columns=["household_id", "time", "token_type", "price"])
    log = log[log["token_type"].str.startswith("purchase")]
    return _daily(log["household_id"], log["time"], log["price"])


def _daily(customer: pd.Series, time: pd.Series, spend: pd.Series) -> pd.DataFrame:
    day = (time.dt.normalize() - time.min().normalize()).dt.days
    log = pd.DataFrame({"customer": customer.astype("category").cat.codes, "day": day, "spend": spend})
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


def judge(name: str, log: pd.DataFrame, window: int, horizon: int, forecaster: VisitForecaster) -> dict[str, object]:
    """Measures one setting."""
    past = log[log["day"] < window]
    follows = log[(log["day"] >= window) & (log["day"] < window + horizon)]
    by_customer = past.groupby("customer")["day"].agg(["count", "min", "max"])
    actual = follows.groupby("customer")["day"].size().reindex(by_customer.index, fill_value=0).to_numpy()
    spent = follows.groupby("customer")["spend"].sum().reindex(by_customer.index, fill_value=0).to_numpy()
    repeats, last, age = (
        (values).to_numpy(float)
        for values in (
            by_customer["count"] - 1,
            by_customer["max"] - by_customer["min"],
            window - by_customer["min"],
        )
    )
    other = BGNBD(repeats, last, age).expected(repeats, last, age, horizon)
    customers = np.repeat(np.arange(len(by_customer)), by_customer["count"])
    visits = padded(customers, past["day"].to_numpy(), past["spend"].to_numpy(), len(by_customer))
    now = torch.full((len(by_customer),), float(window))
    forecaster.set_shop(window, shop_statistics(visits, now, window))
    with torch.no_grad():
        inputs = forecaster.inputs(visits, now, [horizon])
        spread = forecaster.distribution(inputs)
        of_amounts = forecaster.amounts(inputs, spread)
        spread = Distribution(*(value[:, 0] for value in spread))
        intervals, broken = spread.intervals().numpy(), _broken(spread, torch.tensor(actual)).numpy()
        scale = float(forecaster.amount_statistics[0, 0])
        spend, spend_intervals = (
            scale * each[:, 0, 0] for each in (of_amounts.log_expected.exp(), of_amounts.intervals())
        )
    expected = spread.expected.numpy()
    result = {"log": name, "window": window, "horizon": horizon, "customers": len(actual)}
    result["rmse ratio"] = np.sqrt(((expected - actual) ** 2).mean() / ((other - actual) ** 2).mean())
    result |= {"total": expected.sum() / actual.sum() - 1, "BG/NBD": other.sum() / actual.sum() - 1}
    for index, level in enumerate((80, 95)):
        low, high = intervals[:, index].T
        result[f"in {level}"] = ((low <= actual) & (actual <= high)).mean()
        result[f"broken {level}"] = (np.abs(broken - 0.5) <= level / 200).mean()
        low, high = spend_intervals[:, index].numpy().T
        result[f"spend in {level}"] = ((low <= spent + 1e-9) & (spent <= high + 1e-9)).mean()
    result["spend total"] = float(spend.sum()) / spent.sum() - 1
    return result


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


def main() -> None:
    """Prints a row for each setting of the logs that are given, and their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SETTINGS:
        parser.add_argument(f"--{name}", help="path of the log")
    parser.add_argument("--weights", default=str(SHIPPED_WEIGHTS), type=Path)
    options = parser.parse_args()
    forecaster = VisitForecaster()
    load_weights(forecaster, options.weights)
    readers = {"cdnow": read_cdnow, "tafeng": read_tafeng, "journey": read_journey}
    logs = {name: readers[name](path) for name in SETTINGS if (path := getattr(options, name))}
    rows = [judge(name, log, *days, forecaster) for name, log in logs.items() for days in SETTINGS[name]]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(table.select_dtypes("float").abs().mean().to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
