# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A shop whose customers go on as they are, each with a rate and favourites, in a rhythm of weekdays; and what may go
wrong in its log from a day on."""

import numpy as np
import pandas as pd

FIRST_DAY, DAYS = pd.Timestamp("2024-01-01"), 100
WEEKDAYS = np.array([1, 0.9, 0.9, 1, 1.2, 1.5, 0.5])


def make_shop(seed=0, days=DAYS, customers=600, items=60):
    """Events of some days, in order."""
    generator = np.random.default_rng(seed)
    popularity, events = generator.dirichlet(np.full(items, 0.5)), []
    usual = WEEKDAYS[np.arange(days) % 7] * np.exp(generator.normal(0, 0.1, days))  # some days are better for all
    for customer in range(customers):
        favourites = generator.choice(items, 5, p=popularity)
        rate = generator.gamma(1, 0.25)
        first = generator.integers(0, days) if generator.random() < 0.3 else 0
        for day in np.flatnonzero((generator.random(days) < rate * usual) & (np.arange(days) >= first)):
            time, number = day * 86400 + int(generator.integers(8 * 3600, 20 * 3600)), generator.integers(1, 4)
            bought = np.where(
                generator.random(number) < 0.7,
                generator.choice(favourites, number),
                generator.choice(items, number, p=popularity),
            )
            paid_by = generator.choice(["card", "cash"], p=[0.6, 0.4])
            events += [
                (f"c{customer}", time, f"{customer}-{day}", f"item {item}", paid_by, generator.gamma(2, 5))
                for item in bought
            ]
    log = pd.DataFrame(events, columns=["customer", "time", "basket", "item", "paid_by", "price"])
    log = log.sort_values("time", kind="stable", ignore_index=True)
    return log.assign(time=FIRST_DAY + pd.to_timedelta(log["time"], unit="s"), price=log["price"].round(2))


def _draw(log, share):
    return np.random.default_rng(0).random(len(log)) < share


DRIFTS = {
    "a new item sells": (lambda log: log.assign(item=log["item"].mask(_draw(log, 0.07), "a hit")), "item: unknown"),
    "a column is empty": (lambda log: log.assign(paid_by=None), "paid_by: missing"),
    "a column is unknown": (lambda log: log.assign(paid_by="n/a"), "paid_by: unknown"),
    "a price is in cents": (lambda log: log.assign(price=log["price"] * 100), "price: "),
    "half of the visits are lost": (lambda log: log[log["basket"].map(hash_half)], "customers"),
    "customers are mixed up": (
        lambda log: log.assign(customer=log["customer"].map(lambda name: f"c{(int(name[1:]) + 7) % 600}")),
        "item",
    ),
}


def hash_half(basket):
    """Whether a basket is in one half of all."""
    return sum(map(ord, basket)) % 2 == 0
