# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The best ranking of a synthetic shop's next session has the NDCG that it expects of itself."""

from dataclasses import replace

import numpy as np
import pytest

from synthetic import ClickLog, ShopSettings, make_click_log
from synthetic_truth import session_gains

SMALL = ShopSettings(items=300, subcategories=30, categories=6)
MOMENT = "2024-02-01"
SECONDS = int(np.datetime64(MOMENT, "s").astype(int))


def asked_of(log: ClickLog) -> tuple[np.ndarray, list[np.ndarray]]:
    """Customers with events before the moment and a session that begins after it, and the items of that session."""
    session, customers, items = log.events["session_id"].to_numpy(), [], []
    for customer, (start, stop) in enumerate(zip(log.first_event[:-1], log.first_event[1:], strict=True)):
        first = start + int((log.seconds[start:stop] < SECONDS).sum())
        if start < first < stop and session[first] != session[first - 1]:
            customers.append(customer)
            items.append(log.items[first:stop][session[first:stop] == session[first]])
    return np.array(customers), items


def test_sessions_of_one_event_gain_their_probability() -> None:
    log = make_click_log(200, replace(SMALL, events_a_session=1), seed=1)
    customers, _ = asked_of(log)
    items, _ = session_gains(log, customers, SECONDS, np.arange(300), sessions=2)
    np.testing.assert_allclose(items, log.first_item_probabilities(customers, MOMENT))


@pytest.mark.parametrize("kind", ["items", "categories"])
def test_the_ranking_has_the_ndcg_that_it_expects(kind) -> None:
    log = make_click_log(3000, SMALL, seed=3)
    customers, items = asked_of(log)
    gains = session_gains(log, customers, SECONDS, np.arange(300), sessions=200)[kind == "categories"]
    of_item = np.arange(300) if kind == "items" else log.category[log.subcategory]
    discounts = 1 / np.log2(np.arange(10) + 2.0)[: gains.shape[1]]
    best = np.argsort(-gains, axis=1)[:, :10]
    expected = (np.take_along_axis(gains, best, 1) * discounts).sum(1)
    happened = np.zeros(len(customers))
    for row, found in enumerate(items):
        wanted = np.unique(of_item[found])
        happened[row] = (np.isin(best[row], wanted) * discounts).sum() / discounts[: len(wanted)].sum()
    error = (happened - expected).std() / np.sqrt(len(customers))
    assert len(customers) > 1000
    assert abs(happened.mean() - expected.mean()) < 4 * error
