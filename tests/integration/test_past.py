# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is told about a time of the past knows nothing of what came after it. Two shops are equal until a time; then
one of them falls, has other prices and other labels. What is told of that time is the same, to the last digit."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from modeling_mcm import CustomerModel
from modeling_mcm.data import PreparedData
from modeling_mcm.data.dataset import END
from modeling_mcm.evaluation.watch import _Log
from modeling_mcm.page.histories import Histories
from modeling_mcm.past import forecast_total, watch
from modeling_mcm.predictor_mcm import LaterCountsError, Predictor, Questions
from modeling_mcm.training.counting import Counts

START, CUTOFF, TIME, LAST = (pd.Timestamp(day) for day in ("2024-01-01", "2024-04-20", "2024-05-10", "2024-06-20"))
SCHEMA = {"customer": "customer", "time": "time", "amount": "amount", "tasks": ["item"]}
SCHEMA |= {"cutoffs": {"validation": str(CUTOFF.date()), "test": str(TIME.date())}}


def make_log(changed: bool, customers: int = 60) -> pd.DataFrame:
    """Visits of a shop by day; after `TIME` those of the changed one are few, dear, and of new labels."""
    draw, rows = np.random.default_rng(0), []
    for customer in range(customers):
        rate = draw.uniform(0.05, 0.4)
        for day in range((LAST - START).days + 1):
            came, later, number = draw.random(), draw.random(), draw.integers(1, 4)
            items, prices = draw.integers(0, 15, number), draw.uniform(2, 9, number)
            time = START + pd.Timedelta(days=day, hours=12)
            is_after = time > TIME
            if came > rate or (changed and is_after and later < 0.6):
                continue
            for item, price in zip(items, prices, strict=True):
                name = f"new {item}" if changed and is_after else f"old {item}"
                rows.append((f"c{customer:02}", time, name, price * (3 if changed and is_after else 1)))
    last = ("c00", LAST + pd.Timedelta(hours=23), "old 1", 5.0)  # both end at one time
    return pd.DataFrame([*rows, last], columns=["customer", "time", "item", "amount"])


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["shipped", "learned"])
def shops(request, tmp_path_factory):
    made = []
    for changed in (False, True):
        folder = tmp_path_factory.mktemp("shop") / "fit"
        log = make_log(changed)
        model = CustomerModel.fit(log, SCHEMA, folder=folder, learn=request.param, disable_tqdm=True)
        made.append(SimpleNamespace(model=model, folder=folder, data=PreparedData(folder / "data")))
    return made


AS_OF = TIME - pd.Timedelta(hours=1)
TOLD = {
    "recommend": lambda shop: shop.model.recommend(as_of=AS_OF, k=8),
    "recommend within a month": lambda shop: shop.model.recommend(as_of=AS_OF, k=8, horizon_days=30),
    "forecast": lambda shop: shop.model.forecast(as_of=AS_OF, days=[7, 30]),
    "embed": lambda shop: shop.model.embed(as_of=AS_OF),
    "explain": lambda shop: pd.Series(vars(shop.model.explain("c03", as_of=AS_OF))).drop("visits"),
    "at": lambda shop: shop.model.at(AS_OF).recommend(["c01", "c02"], k=3),
    "table, what changed": lambda shop: shop.model.at(AS_OF).table(since_days=7),
    "totals": lambda shop: pd.DataFrame(
        [total[:2] for total in forecast_total(shop.model.model, shop.data, "amount", 10).past if total[0] <= AS_OF]
    ),
    "page": lambda shop: open_page(shop).wait().scored.map(repr),  # NaN in lists is equal to itself
}


def open_page(shop) -> Histories:
    parts = shop.model.model, shop.model.feature_extractor
    return Histories(*parts, str(shop.folder / "data"), str(shop.folder / "events.parquet"))


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_of_a_time_is_the_same_whatever_came_after_it(shops, name):
    as_it_was, changed = (TOLD[name](shop) for shop in shops)
    assert len(as_it_was)
    if isinstance(as_it_was, pd.DataFrame):
        pd.testing.assert_frame_equal(as_it_was, changed, check_exact=True)
    else:
        pd.testing.assert_series_equal(as_it_was, changed, check_exact=True)


def test_what_is_judged_is_the_same_whatever_came_after_the_cutoff(shops):
    (before, _), (changed, _) = (
        Counts.of(shop.data, "test").give(shop.model.model, shop.model.feature_extractor) for shop in shops
    )
    weights, others = before.state_dict(), changed.state_dict()
    assert weights.keys() == others.keys()
    read = [name for name in weights if "embeddings" not in name]  # of an encoder that is not there
    assert [name for name in read if not weights[name].equal(others[name])] == []
    assert not shops[0].model.model.scorer.tables[0].counts.equal(weights["scorer.tables.0.counts"])


@pytest.mark.slow
def test_what_is_said_of_watched_days_is_the_same_whatever_came_after_them(shops, monkeypatch):
    said: dict = {}

    def ask(self, predictor, customers, day, **questions):
        answers = real(self, predictor, customers, day, **questions)
        if (self.start + day + 1) * 86400 <= TIME.timestamp() and "forecasts" in questions:
            said.setdefault(self.start + day, []).append(answers["visit_probability_1d"].tolist())
        return answers

    real = _Log._ask
    monkeypatch.setattr(_Log, "_ask", ask)
    for shop in shops:
        watch(shop.model.model, shop.model.feature_extractor, shop.data.at(END), int(LAST.timestamp()) - 10 * 86400)
    assert len(said) > 1
    assert all(before == changed for before, changed in said.values())


def test_counts_of_later_events_answer_only_who_asks_for_them(shops):
    model = shops[0].model
    predictor = Predictor(model.model, model.feature_extractor)
    with pytest.raises(LaterCountsError, match=r"CustomerModel\.at"):
        predictor.check(Questions(TIME.timestamp(), forecasts=True))
    assert predictor.check(Questions(TIME.timestamp(), forecasts=True, later_counts=True)).forecasts
    assert predictor.check(Questions(float(model._seconds(None)), forecasts=True)).forecasts
