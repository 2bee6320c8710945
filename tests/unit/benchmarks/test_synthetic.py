# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The best ranking of a synthetic shop is as good as it says."""

import numpy as np

from synthetic import ShopSettings, make_click_log
from synthetic_truth import session_gains

SMALL = ShopSettings(items=300, subcategories=30, categories=6)
MOMENT = "2024-02-01"
SECONDS = int(np.datetime64(MOMENT, "s").astype(int))


def asked_of(log):
    """Customers with events before the moment and a session that begins after it, and that session's first event."""
    session, found = log.events["session_id"].to_numpy(), []
    for customer, (start, stop) in enumerate(zip(log.first_event[:-1], log.first_event[1:], strict=True)):
        first = start + int((log.seconds[start:stop] < SECONDS).sum())
        if start < first < stop and session[first] != session[first - 1]:
            found.append((customer, first))
    return np.array(found).T


def test_the_ranking_has_the_ndcg_that_it_expects():
    log = make_click_log(3000, SMALL, seed=3)
    customers, first = asked_of(log)
    assert len(customers) > 1000
    session = log.events["session_id"].to_numpy()
    visits = [log.items[session == session[event]] for event in first]
    of_kind = np.arange(300), log.category[log.subcategory]  # items, categories
    for gains, label in zip(session_gains(log, customers, SECONDS, of_kind[0], sessions=200), of_kind, strict=True):
        discounts = 1 / np.log2(np.arange(10) + 2.0)[: gains.shape[1]]
        best = np.argsort(-gains, axis=1)[:, :10]
        promised = (np.take_along_axis(gains, best, 1) * discounts).sum(1)
        wanted = [np.unique(label[items]) for items in visits]
        happened = np.array(
            [
                (np.isin(row, labels) * discounts).sum() / discounts[: len(labels)].sum()
                for row, labels in zip(best, wanted, strict=True)
            ]
        )
        error = (happened - promised).std() / np.sqrt(len(customers))
        assert abs(happened.mean() - promised.mean()) < 4 * error
