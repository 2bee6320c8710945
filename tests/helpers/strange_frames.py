# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Frames as people have them, whose columns are named and written as in no schema: a bank, a library, and a
shop of which only customer, date and amount are known."""

from typing import NamedTuple

import numpy as np
import pandas as pd

START = pd.Timestamp("2023-01-02")
MERCHANTS = {"GROCER": 25, "FUEL": 40, "CINEMA": 15, "CAFE": 5, "CLOTHES": 60, "PHARMACY": 12, "TRAVEL": 300}


def at(days):
    """The times of days since the start, with fractions."""
    return START + pd.to_timedelta(np.asarray(days), unit="D").floor("s")


class Bank(NamedTuple):
    """Card payments and salaries; and at some days who leaves in the 75 days after it."""

    payments: pd.DataFrame
    labels: pd.DataFrame


def make_bank(customers=60, days=420, seed=0):
    """Accounts with payments, which are negative, and a salary. Who leaves pays less and less in the 120 days before,
    and the salary of some goes elsewhere. Several payments of a day have times of their own."""
    random, parts, labels, day = np.random.default_rng(seed), [], [], np.arange(days)
    for customer in range(customers):
        name, share = f"DE{customer:04}", random.dirichlet(np.full(len(MERCHANTS), 0.4))
        leaves = random.uniform(120, days) if random.random() < 0.5 else np.inf
        left = np.clip((leaves - day) / 120, 0, 1)
        paid = np.repeat(day, random.poisson(random.gamma(3.0, 0.1) * left))
        shop = random.choice([*MERCHANTS], len(paid), p=share)
        price = pd.Series(shop).map(MERCHANTS) * random.lognormal(0, 0.5, len(paid))
        card = {"day": paid + random.uniform(0.3, 0.9, len(paid)), "kind": "card payment", "merchant": shop}
        parts.append(pd.DataFrame(card | {"amount": -price, "account": name}))
        if random.random() < 0.7:
            payday = day[random.integers(30) :: 30]
            payday = payday if random.random() < 0.6 else payday[left[payday] == 1]
            salary = {"day": payday[payday < leaves] + 0.4, "kind": "salary", "merchant": "EMPLOYER"}
            parts.append(pd.DataFrame(salary | {"amount": random.normal(2500, 400), "account": name}))
        known = np.arange(150, days - 60, 75)
        labels += [(name, at(moment), int(leaves < moment + 75)) for moment in known if paid.min() < moment < leaves]
    table = pd.concat(parts, ignore_index=True).round({"amount": 2})
    table["remark"] = [f"ref {row}" for row in range(len(table))]
    table.insert(0, "booked", at(table.pop("day")).strftime("%d.%m.%Y %H:%M:%S"))
    return Bank(table, pd.DataFrame(labels, columns=["customer", "as_of", "leaves"]))


def make_library(seed=0):
    """Loans of 50 readers: days written month first, and when each book is due, which nobody knows before the loan."""
    random, visits = np.random.default_rng(seed), 450
    day, reader = np.sort(random.integers(0, 365, visits)).repeat(2), random.permutation(visits).repeat(2) % 50
    shelf = np.where(random.random(2 * visits) < 0.8, reader % 4, random.integers(0, 4, 2 * visits))
    table = pd.DataFrame({"reader_no": reader + 1000})
    for name, later in (("loaned", 0), ("due", 28)):
        table[name] = at(day + later).strftime("%-m/%-d/%Y")
    table["book"] = [f"Book {number}" for number in 10 * shelf + random.integers(0, 10, 2 * visits)]
    return table.assign(shelf=[f"shelf {number}" for number in shelf])


def make_purchases(seed=0):
    """What CDNOW's frame has of 300 customers: customer, date (a number, such as 19970101), number and dollar value.
    Customers begin in the first 12 weeks, buy at random times at a rate of their own, and drop out after some
    purchase."""
    random, rows = np.random.default_rng(seed), []
    for customer in range(1, 301):
        rate, chance_of_leaving = random.gamma(0.9, 1 / 40), random.beta(1, 2)
        value, day = random.gamma(6, 6), random.uniform(0, 84)
        while day < 540:
            number = 1 + random.poisson(1)
            when = f"{pd.Timestamp('1997-01-01') + pd.Timedelta(days=int(day)):%Y%m%d}"
            rows.append((customer, int(when), number, round(number * value / 2 * random.lognormal(0, 0.3), 2)))
            day += random.exponential(1 / rate) if random.random() > chance_of_leaving else np.inf
    return pd.DataFrame(rows, columns=["customer", "date", "number", "dollar_value"])
