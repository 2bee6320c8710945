# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The study of forecasts: what MCM is given, and the models beside it."""

import numpy as np
import pandas as pd
import pytest

import forecasts
import page
from logs import RawLog
from modeling_mcm.data import EventSchema


def test_gamma_gamma_finds_how_customers_spend():
    draw, p, q, v = np.random.default_rng(0), 6.0, 4.0, 15.0
    number = draw.integers(1, 6, 20_000).astype(float)
    scale = draw.gamma(q, 1 / v, len(number))
    mean = draw.gamma(p * number) / (number * scale)
    model, true = forecasts.GammaGamma(number, mean), p / scale
    expected = model.expected(number, mean)
    np.testing.assert_allclose(model.parameters * [1, 1, model.scale], [p, q, v], rtol=0.2)
    assert expected.mean() == pytest.approx(true.mean(), rel=0.02)
    assert ((expected - true) ** 2).mean() < 0.8 * ((mean - true) ** 2).mean()


def test_forecasts_are_made_of_the_past_alone(monkeypatch):
    """The one that knows what follows has no error, and MCM gets no event after the cutoff and no cutoffs."""
    draw, cutoff = np.random.default_rng(0), pd.Timestamp("2024-03-01")
    events = pd.DataFrame({"who": draw.integers(0, 40, 600).astype(str), "paid": draw.uniform(1, 9, 600)})
    events["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 90, 600), "D")
    by_visit = events.groupby(["who", "day"])["paid"].sum().reset_index()
    raw = RawLog(events, by_visit.set_axis(["customer", "time", "spend"], axis=1), "paid")
    keys = {"name": "log", "customer": "who", "time": "day", "token_type": "what"}
    keys |= {"features": [{"name": "what"}, {"name": "paid", "kind": "numeric"}]}
    keys |= {"tasks": ["what"], "amount": "paid", "cutoffs": {"validation": "2024-02-01", "test": "2024-03-01"}}

    class Oracle:
        def forecast(self, customers, days, as_of):
            assert as_of == cutoff
            found = {}
            for horizon in days:
                later = raw.visits[raw.visits["time"].between(cutoff, cutoff + pd.Timedelta(days=horizon), "left")]
                sums = later.groupby("customer")["spend"].agg(["size", "sum"]).reindex(customers, fill_value=0)
                for end in ("", "_median", *(f"_{side}{level}" for side in ("low", "high") for level in (80, 95))):
                    found |= {f"visits_{horizon}d{end}": sums["size"], f"paid_{horizon}d{end}": sums["sum"]}
                found[f"visit_probability_{horizon}d"] = (sums["size"] > 0) * 0.5
            return pd.DataFrame(found)

    def fit(given, schema, **_):
        assert given["day"].max() < cutoff and "cutoffs" not in schema and len(given) > 300
        return Oracle()

    monkeypatch.setattr(forecasts.CustomerModel, "fit", fit)
    rows = forecasts.judge(EventSchema.from_dict(keys), raw, cutoff, (7, 30))
    for row in rows:
        for quantity, other in (("visits", "BG/NBD"), ("spend", "Gamma-Gamma")):
            for name in ("MCM", "MCM's median"):
                facts = [row[f"{quantity}: {name} {fact}"] for fact in ("RMSE", "MAE", "total")]
                assert facts == pytest.approx([0, 0, 1])
            assert row[f"{quantity}: {other} MAE"] > 0
    table = page.forecast_table({"cdnow.forecasts": {"rows": rows}}, "spend", "Gamma-Gamma")
    assert [row[3] for row in table[1:]] == ["**0**", "**0**"] and len({len(row) for row in table}) == 1
