# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A synthetic shop: click logs whose true preferences are known, so that what a model finds can be checked.

`configuration/schemas/clickstream.yaml` reads the log as it is:

    log = make_click_log(customers=10_000)
    pyarrow.parquet.write_table(log.events, "log.parquet")

How the next item comes about: customers return to one of the items of their last events; else, within a session, they
stay in the subcategory of the last item, or go on to the subcategory that it leads to; else a subcategory is drawn by
taste, the softmax of log popularity plus a latent vector of the customer times one of the subcategory. Within its
subcategory an item is drawn by popularity, a Zipf law. Tastes and the subcategories' vectors are normal; subcategories
of one category are alike.

Shapes: B customers, E events of the longest history, S subcategories, V items.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

RECENT = 5  # events whose items a customer may return to
SESSION_SECONDS, EVENT_SECONDS = 3600, 70  # a session has less than an hour: at most this between two events
PURCHASE, WITH_COUPON = "purchase", "purchase_with_coupon"


@dataclass(frozen=True)
class ShopSettings:
    """Settings of a shop. Shares of `stay_rate` and `lead_rate` add up to 1 at most."""

    items: int = 12_000  # every item has a subcategory, and every subcategory a category
    subcategories: int = 400
    categories: int = 40
    popularity_exponent: float = 0.9  # of the items' Zipf distribution
    taste_size: int = 8  # of the latent vectors
    taste_strength: float = 1.5  # standard deviation of a customer's log preference among subcategories
    min_events: int = 5  # of a history; short ones are the most frequent (log-uniform)
    max_events: int = 50
    events_a_session: float = 4.0  # on average
    return_rate: float = 0.2  # share of the events that return to a recent item
    stay_rate: float = 0.3  # share of the other events within a session that stay in a subcategory
    lead_rate: float = 0.2  # share of the others that go to the subcategory that the present one leads to
    start: str = "2023-10-01"  # sessions begin between these times, in ISO 8601
    end: str = "2024-05-01"


@dataclass(frozen=True)
class ClickLog:
    """Events of a synthetic shop, with the true values that they were drawn from.

    `events` are sorted by user and time: user_id, timestamp, session_id, event_type, item_id, subcategory_id,
    category_id and price.
    """

    settings: ShopSettings
    events: pa.Table
    subcategory: NDArray[np.int64]  # (V,), of each item
    category: NDArray[np.int64]  # (S,), of each subcategory
    leads_to: NDArray[np.int64]  # (S,), the subcategory that each one leads to
    within: NDArray[np.float64]  # (V,), share of each item in its subcategory
    shares: NDArray[np.float64]  # (S,), shares of the subcategories for a customer without taste
    tastes: NDArray[np.float64]  # (B, S), shares of the subcategories for each customer; rows sum to 1
    items: NDArray[np.int64]  # (events,)
    seconds: NDArray[np.int64]  # (events,), since 1970
    first_event: NDArray[np.int64]  # (B + 1,), customer b has the events from b's to before b + 1's


def make_click_log(customers: int = 10_000, settings: ShopSettings | None = None, seed: int = 0) -> ClickLog:
    """Draws a shop and its customers' events. The same arguments give the same log."""
    s, rng = settings or ShopSettings(), np.random.default_rng(seed)
    # the catalogue, by subcategory: each has one item at least
    spread = rng.integers(s.subcategories, size=s.items - s.subcategories)
    subcategory = np.sort(np.concatenate([np.arange(s.subcategories), spread]))
    category = np.arange(s.subcategories) % s.categories
    weight = rng.permutation(np.arange(1, s.items + 1) ** -s.popularity_exponent)
    popularity = weight / weight.sum()
    shares = np.bincount(subcategory, popularity).astype(np.float64)
    leads_to = np.roll(np.arange(s.subcategories), 1)[rng.permutation(s.subcategories)]
    price = np.round(rng.lognormal(3.0, 0.8, s.subcategories)[subcategory] * rng.lognormal(0, 0.3, s.items), 2)
    # the customers
    shared = rng.normal(size=(s.categories, s.taste_size))
    own = rng.normal(size=(s.subcategories, s.taste_size))
    directions = (shared[category] + own) * s.taste_strength / np.sqrt(2 * s.taste_size)
    logits = np.log(shares) + rng.normal(size=(customers, s.taste_size)) @ directions.T
    tastes = np.exp(logits - logits.max(axis=1, keepdims=True))
    tastes /= tastes.sum(axis=1, keepdims=True)
    deals = rng.normal(size=customers)  # how much each customer likes deals
    ratio = (s.max_events + 1) / s.min_events
    length = np.minimum(s.min_events * ratio ** rng.random(customers), s.max_events).astype(np.int64)

    shape = (customers, int(np.max(length)))
    opens = rng.random(shape) < 1 / s.events_a_session
    opens[:, :1] = True
    session = opens.cumsum(axis=1) - 1
    item = np.zeros(shape, np.int64)
    returns, stays_or_leads = rng.random(shape) < s.return_rate, rng.random(shape)
    returns[:, :1] = False
    within, steps = popularity / shares[subcategory], np.cumsum(popularity)
    taste_steps, rows = tastes.cumsum(axis=1), np.arange(customers)
    for step in range(shape[1]):
        last = subcategory[item[:, max(step - 1, 0)]]
        inside = ~opens[:, step]
        stays = inside & (stays_or_leads[:, step] < s.stay_rate)
        leads = inside & ~stays & (stays_or_leads[:, step] < s.stay_rate + s.lead_rate)
        by_taste = (taste_steps < rng.random((customers, 1))).sum(axis=1).clip(max=s.subcategories - 1)
        choice = np.where(stays, last, np.where(leads, leads_to[last], by_taste))
        # Items lie by subcategory, so that a place within its stretch of the cumulated popularity is an item of it.
        point = steps[np.searchsorted(subcategory, choice, "right") - 1] - rng.random(customers) * shares[choice]
        fresh = np.searchsorted(steps, point).clip(max=s.items - 1)
        recent = item[:, max(step - RECENT, 0) : step]
        back = recent[rows, rng.integers(max(recent.shape[1], 1), size=customers)] if step else fresh
        item[:, step] = np.where(returns[:, step], back, fresh)

    # Sessions begin an hour apart at least, at as many moments as the history has sessions.
    span = express_seconds(s.end) - express_seconds(s.start) - shape[1] * SESSION_SECONDS
    begins = rng.integers(span, size=shape)
    begins[np.arange(shape[1]) > session[rows, length - 1][:, None]] = span
    begins = np.sort(begins, axis=1) + np.arange(shape[1]) * SESSION_SECONDS
    passed = np.where(opens, 0, rng.integers(5, EVENT_SECONDS, size=shape)).cumsum(axis=1)
    passed -= np.maximum.accumulate(np.where(opens, passed, 0), axis=1)
    seconds = express_seconds(s.start) + np.take_along_axis(begins, session, axis=1) + passed
    coupon = np.where(rng.random(shape) < expit(deals - 1.5)[:, None], WITH_COUPON, PURCHASE)
    # who returns to an item puts it into the cart or buys it
    kind = np.where(returns, np.where(rng.random(shape) < 0.5, coupon, "cart"), "click")

    real = np.arange(shape[1]) < length[:, None]
    user, items = np.repeat(rows, length), item[real]
    columns = {
        "user_id": user,
        "timestamp": pa.array(seconds[real]).cast(pa.timestamp("s")),
        "session_id": user * s.max_events + session[real],
        "event_type": kind[real],
        "item_id": list_names("item", items),
        "subcategory_id": list_names("subcategory", subcategory[items]),
        "category_id": list_names("category", category[subcategory[items]]),
        "price": price[items],
    }
    first_event: NDArray[np.int64] = np.concatenate([[0], length.cumsum()])
    catalogue = (subcategory, category, leads_to, within, shares)
    return ClickLog(s, pa.table(columns), *catalogue, tastes, items, seconds[real], first_event)


def list_names(kind: str, numbers: NDArray) -> NDArray:
    """Writes numbers as names, such as `item-7`."""
    return np.char.add(f"{kind}-", numbers.astype(str))


def express_seconds(moment: str) -> int:
    """The seconds from 1970 to a time in ISO 8601."""
    return int((datetime.fromisoformat(moment) - datetime(1970, 1, 1)).total_seconds())
