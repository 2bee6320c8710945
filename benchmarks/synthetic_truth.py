# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the best ranking of a synthetic shop's next session is, from the law that its customers follow.

Sessions are drawn from that law, going on from what a customer did. A label's score is what it adds to the expected
NDCG: over the sessions that have it, the mean of one over the best DCG of so many labels. For items, of which a draw
meets few, probabilities are summed and not draws: at each step of a session that of each item, where it had not come
before.

Shapes: C customers, P sessions a customer, N steps of the longest session, V items, S subcategories, G categories.
"""

import numpy as np
from numpy.typing import NDArray

from synthetic import RECENT, ClickLog

MISSING = -1  # the place of an item that is not there
IDEAL_PLACES = 10  # of the list that a session is ranked against
AT_ONCE = 50  # customers whose sessions are drawn together


def session_gains(
    log: ClickLog,
    customers: NDArray[np.int64],
    moment: int,
    item_labels: NDArray[np.int64],
    sessions: int = 400,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes what each item and each category adds to the expected NDCG of a customer's next session.

    Ranking by it is best, except for the randomness of the P drawn sessions. Each customer needs an event before the
    moment, in seconds since 1970. Items of one label count once in a session. The gains of items have the shape
    `(C, V)`, those of categories `(C, G)`.
    """
    rng = np.random.default_rng(0)
    items, categories = [], []
    for start in range(0, len(customers), AT_ONCE):
        block = customers[start : start + AT_ONCE]
        recent, number = _recent(log, block, moment)
        owner = np.repeat(np.arange(len(block)), sessions)  # of each drawn session
        most = np.maximum(log.settings.max_events - number, 1)
        steps = np.minimum(rng.geometric(1 / log.settings.events_a_session, len(owner)), most[owner])
        windows, draws = _draw(log, block, recent, owner, steps, rng)
        items.append(_item_gains(log, block, windows, draws, owner, item_labels) / sessions)
        draw_categories = np.where(draws == MISSING, MISSING, log.category[log.subcategory[draws]])
        has = (draw_categories[..., None] == np.arange(log.settings.categories)).any(axis=1)
        gains = has / _best_dcg(has.sum(axis=1))[:, None]
        categories.append(gains.reshape(len(block), sessions, -1).mean(axis=1))
    return np.concatenate(items), np.concatenate(categories)


def _best_dcg(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The best DCG of a session of so many labels, at least one."""
    return np.cumsum(1 / np.log2(np.arange(IDEAL_PLACES) + 2.0))[labels.clip(1, IDEAL_PLACES) - 1]


def _recent(log: ClickLog, customers: NDArray[np.int64], moment: int) -> tuple[NDArray, NDArray]:
    """The last items before the moment, oldest first, of shape `(C, RECENT)`, and the number of all of them."""
    recent, number = np.full((len(customers), RECENT), MISSING), np.zeros(len(customers), np.int64)
    for row, customer in enumerate(customers):
        events = slice(log.first_event[customer], log.first_event[customer + 1])
        items = log.items[events][log.seconds[events] < moment]
        if not len(items):
            raise ValueError(f"Customer {customer} has no event before {moment}; ask for a later moment.")
        recent[row, max(RECENT - len(items), 0) :] = items[-RECENT:]
        number[row] = len(items)
    return recent, number


def _item_gains(
    log: ClickLog,
    customers: NDArray[np.int64],
    windows: list[NDArray[np.int64]],
    draws: NDArray[np.int64],
    owner: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The sum over drawn sessions of what each item adds to NDCG, of shape `(C, V)`; arguments as from [`_draw`]."""
    s = log.settings
    known = np.where(draws == MISSING, MISSING, labels[draws])
    distinct = (np.diff(np.sort(known, axis=1), axis=1, prepend=MISSING) != 0).sum(axis=1)  # missing ones come first
    by_subcategory = np.zeros((len(customers), s.subcategories))
    direct = np.zeros((len(customers), s.items))
    for step, window in enumerate(windows):
        at = np.flatnonzero(draws[:, step] != MISSING)
        window, row = window[at], owner[at]
        # An item that is new at this step takes the drawn one's place, which may have been no new one.
        others = distinct[at] - ((known[at] == known[at, step][:, None]).sum(axis=1) == 1)
        weight = 1 / _best_dcg(others + 1)
        last = log.subcategory[window[:, -1]]
        moves = [(s.stay_rate, last), (s.lead_rate, log.leads_to[last])] if step else []
        by_taste = 1 - sum(rate for rate, _ in moves)
        fresh = weight * (1 - s.return_rate)
        by_subcategory += np.bincount(row, fresh * by_taste, len(customers))[:, None] * log.tastes[customers]
        for rate, to in moves:
            np.add.at(by_subcategory, (row, to), fresh * rate)
        there = window != MISSING
        back = np.where(there, s.return_rate * (weight / there.sum(axis=1))[:, None], 0)
        np.add.at(direct, (np.repeat(row, RECENT), window.ravel()), back.ravel())  # missing ones add 0
        for before in range(step):  # what the session has had adds nothing again
            item = draws[at, before]
            first = (draws[at, :before] != item[:, None]).all(axis=1)
            subcategory = log.subcategory[item]
            chance = by_taste * log.tastes[customers[row], subcategory]
            for rate, to in moves:
                chance = chance + rate * (to == subcategory)
            again = fresh * chance * log.within[item] + (back * (window == item[:, None])).sum(axis=1)
            np.add.at(direct, (row, item), -again * first)
    return by_subcategory[:, log.subcategory] * log.within + direct


def _draw(
    log: ClickLog,
    customers: NDArray[np.int64],
    recent: NDArray[np.int64],
    owner: NDArray[np.int64],
    steps: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Sessions of the shop: before each step the last items, of shape `(C P, RECENT)`; and the items `(C P, N)`."""
    s = log.settings
    popularity = np.cumsum(log.within * log.shares[log.subcategory])
    tastes, window = log.tastes[customers].cumsum(axis=1), recent[owner]
    draws, windows = np.full((len(owner), int(steps.max())), MISSING), []
    for step in range(draws.shape[1]):
        windows.append(window)
        at = np.flatnonzero(steps > step)
        last = log.subcategory[window[at, -1]]
        luck = rng.random(len(at))
        by_taste = (tastes[owner[at]] < rng.random((len(at), 1))).sum(axis=1).clip(max=s.subcategories - 1)
        moved = np.where(luck < s.stay_rate, last, np.where(luck < s.stay_rate + s.lead_rate, log.leads_to[last], -1))
        choice = by_taste if step == 0 else np.where(moved < 0, by_taste, moved)
        end = popularity[np.searchsorted(log.subcategory, choice, "right") - 1]
        fresh = np.searchsorted(popularity, end - rng.random(len(at)) * log.shares[choice]).clip(max=s.items - 1)
        filled = (window[at] != MISSING).sum(axis=1)
        back = window[at, RECENT - 1 - rng.integers(filled)]
        draws[at, step] = np.where(rng.random(len(at)) < s.return_rate, back, fresh)
        window = window.copy()
        window[at] = np.concatenate([window[at, 1:], draws[at, step][:, None]], axis=1)
    return windows, draws
