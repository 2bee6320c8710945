# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Forecasts of visits and spend as a user gets them, beside models that are fitted by maximum likelihood: BG/NBD of
visits, and Gamma-Gamma of the mean spend of a visit, times the visits of BG/NBD.

`CustomerModel.fit` gets the events before a cutoff and nothing else, and is asked at the cutoff about the days after
it. All methods see the same visits of the same customers, all of those who came before the cutoff: errors of means
(RMSE, MAE) and of MCM's medians (MAE), totals over the actual ones, and the share of customers whose number of visits
is in MCM's interval, ends included. An interval of 0 alone can't be narrower, although no visit may be likelier than
its level: of those who do not come it then counts the share that makes it its level, by the chance of no visit that is
told beside it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, hyp2f1

from logs import Log, RawLog, read_raw
from modeling_mcm import CustomerModel
from modeling_mcm.data import EventSchema, PreparedData

CUTOFFS = {  # and the horizons in days
    "cdnow": {"1997-10-01": (30, 90, 180, 273)},
    "ta_feng": {"2001-01-15": (7, 14, 30, 45)},
    "complete_journey": {"2017-07-01": (30, 90, 180)},
}


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


class GammaGamma:
    """Gamma-Gamma (Fader and Hardie, 2013), from each customer's number of visits and their mean spend."""

    def __init__(self, number: np.ndarray, mean: np.ndarray):
        x, z = number[mean > 0], mean[mean > 0]
        self.scale = z.mean()
        z = z / self.scale

        def loss(logs: np.ndarray) -> float:
            p, q, v = np.exp(logs)
            normal = gammaln(p * x + q) - gammaln(p * x) - gammaln(q) + q * np.log(v)
            return -np.mean(normal + (p * x - 1) * np.log(z) + p * x * np.log(x) - (p * x + q) * np.log(v + x * z))

        starts = ([0, 1, 1], [1, 1, 0], [2, 2, 2])
        limits = {"method": "L-BFGS-B", "bounds": [(-8, 8)] * 3}
        self.parameters = np.exp(min((minimize(loss, start, **limits) for start in starts), key=lambda o: o.fun).x)

    def expected(self, number: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Expected mean spend of a visit."""
        p, q, v = self.parameters
        return p * (v * self.scale + number * mean.clip(min=0)) / (p * number + q - 1)


def measure_errors(name: str, forecast: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """The errors of a forecast of each customer, and its total over the actual one."""
    errors = forecast - actual
    facts = {"RMSE": (errors**2).mean() ** 0.5, "MAE": np.abs(errors).mean(), "total": forecast.sum() / actual.sum()}
    return {f"{name} {fact}": float(value) for fact, value in facts.items()}


def judge(schema: EventSchema, raw: RawLog, cutoff: pd.Timestamp, horizons: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measures each horizon from a cutoff."""
    known = {key: value for key, value in schema.to_dict().items() if key not in ("profile", "cutoffs")}
    model = CustomerModel.fit(raw.events[raw.events[schema.time] < cutoff], known, disable_tqdm=True)
    days = raw.visits.assign(day=(raw.visits["time"] - cutoff) / pd.Timedelta(days=1))
    by_customer = days[days["day"] < 0].groupby("customer")
    past = by_customer["day"].agg(["count", "min", "max"]).assign(spend=by_customer["spend"].mean())
    told = model.forecast(past.index, days=horizons, as_of=cutoff)
    ends = [values.to_numpy(float) for values in (past["count"] - 1, past["max"] - past["min"], -past["min"])]
    spent = past["count"].to_numpy(float), past["spend"].to_numpy(float)
    other, mean_spend, rows = BGNBD(*ends), GammaGamma(*spent).expected(*spent), []
    for horizon in horizons:
        follows = (
            days[days["day"].between(0, horizon, inclusive="left")].groupby("customer")["spend"].agg(["size", "sum"])
        )
        visits, spend = follows.reindex(past.index, fill_value=0).to_numpy(float).T
        row: dict[str, Any] = {"window": round(-past["min"].min()), "horizon": horizon, "customers": len(past)}
        expected = other.expected(*ends, horizon)
        for quantity, column, actual, rival, values in (
            ("visits", "visits", visits, "BG/NBD", expected),
            ("spend", raw.spend, spend, "Gamma-Gamma", expected * mean_spend),
        ):
            row |= measure_errors(f"{quantity}: {rival}", values, actual)
            for name, end in (("MCM", ""), ("MCM's median", "_median")):
                row |= measure_errors(f"{quantity}: {name}", told[f"{column}_{horizon}d{end}"].to_numpy(), actual)
        absent = 1 - told[f"visit_probability_{horizon}d"]
        for level in (80, 95):
            low, high = (told[f"visits_{horizon}d_{end}{level}"] for end in ("low", "high"))
            share = (level / 100 / absent).clip(upper=1).where(high == 0, 1.0)
            row[f"in {level}%"] = float((share * ((low <= visits) & (visits <= high))).mean())
        rows.append(row)
    return rows


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, object] | None:
    """A row for each cutoff and horizon of a log; None for a log without any."""
    if log.name not in CUTOFFS:
        return None
    raw = read_raw(data)
    rows = [judge(data.schema, raw, pd.Timestamp(cutoff), days) for cutoff, days in CUTOFFS[log.name].items()]
    return {"log": log.name, "rows": sum(rows, [])}
