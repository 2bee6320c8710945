# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A synthetic shop is what its settings say, its truth is in its log, and its best ranking is as good as it says."""

import numpy as np
import pytest

from synthetic import ClickLog, ShopSettings, make_click_log
from synthetic_truth import session_gains

SMALL = ShopSettings(items=300, subcategories=30, categories=6)
MOMENT = "2024-02-01"
SECONDS = int(np.datetime64(MOMENT, "s").astype(int))


@pytest.fixture(scope="module")
def log() -> ClickLog:
    return make_click_log(2000, SMALL, seed=3)


def asked_of(log: ClickLog) -> tuple[np.ndarray, np.ndarray]:
    """Customers with events before the moment and a session that begins after it, and that session's first event."""
    session, found = log.events["session_id"].to_numpy(), []
    for customer, (start, stop) in enumerate(zip(log.first_event[:-1], log.first_event[1:], strict=True)):
        first = start + int((log.seconds[start:stop] < SECONDS).sum())
        if start < first < stop and session[first] != session[first - 1]:
            found.append((customer, first))
    return tuple(np.array(found).T)


def test_the_seed_gives_the_log(log: ClickLog) -> None:
    assert make_click_log(2000, SMALL, seed=3).events.equals(log.events)
    assert not make_click_log(2000, SMALL, seed=4).events.equals(log.events)


@pytest.mark.parametrize("kind", ["items", "categories"])
def test_the_ranking_has_the_ndcg_that_it_expects(kind) -> None:
    log = make_click_log(3000, SMALL, seed=3)
    customers, first = asked_of(log)
    session = log.events["session_id"].to_numpy()
    gains = session_gains(log, customers, SECONDS, np.arange(300), sessions=200)[kind == "categories"]
    of_item = np.arange(300) if kind == "items" else log.category[log.subcategory]
    discounts = 1 / np.log2(np.arange(10) + 2.0)[: gains.shape[1]]
    best = np.argsort(-gains, axis=1)[:, :10]
    promised = (np.take_along_axis(gains, best, 1) * discounts).sum(1)
    happened = np.zeros(len(customers))
    for row, event in enumerate(first):
        wanted = np.unique(of_item[log.items[session == session[event]]])
        happened[row] = (np.isin(best[row], wanted) * discounts).sum() / discounts[: len(wanted)].sum()
    error = (happened - promised).std() / np.sqrt(len(customers))
    assert len(customers) > 1000
    assert abs(happened.mean() - promised.mean()) < 4 * error
