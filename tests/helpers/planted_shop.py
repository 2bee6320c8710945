# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Visits of a made shop whose days are as busy as the test says."""

import numpy as np
import pandas as pd

START = pd.Timestamp("2021-03-10")


def day(number):
    """ISO text of a day of the shop."""
    return (START + pd.Timedelta(days=int(number))).date().isoformat()


def make_shop(effects, seed=0, customers=1500, rate=0.06):
    """A row for each visit, with customer, time and price, of days with some effects `(days,)`. Half of the
    customers are there from the first day and the others come in the first half of the time, and some leave."""
    draw, days, rows = np.random.default_rng(seed), len(effects), []
    arrival = np.floor(draw.uniform(-days / 2, days / 2, customers)).clip(0)
    end = arrival + draw.exponential(1250, customers)
    rates = draw.gamma(1.2, rate / 1.2, customers)
    for number, effect in enumerate(effects):
        comes = (draw.random(customers) < 1 - np.exp(-rates * effect)) | (arrival == number)
        who = np.flatnonzero(comes & (arrival <= number) & (number < end))
        rows.append(pd.DataFrame({"customer": who, "day": number}))
    visits = pd.concat(rows, ignore_index=True)
    times = START + pd.to_timedelta(visits["day"] + draw.uniform(0.35, 0.9, len(visits)), unit="D")
    names, prices = visits["customer"].map("c{:04}".format), draw.lognormal(3, 0.5, len(visits))
    items = np.where(draw.random(len(visits)) < 0.5, "tea", "nuts")
    return pd.DataFrame({"customer": names, "time": times, "item": items, "price": prices})
