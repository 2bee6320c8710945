# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Frames as people have them, whose columns are named and written as in no schema: a bank, a game, a library, and a
shop of which only customer, date and amount are known."""

from typing import NamedTuple

import numpy as np
import pandas as pd

START = pd.Timestamp("2023-01-02")
MERCHANTS = {
    "GROCER": 25,
    "FUEL": 40,
    "CINEMA": 15,
    "CAFE": 5,
    "CLOTHES": 60,
    "PHARMACY": 12,
    "TRAVEL": 300,
    "BOOKS": 20,
}


class Bank(NamedTuple):
    """Card payments and salaries; and at some days who leaves in the 75 days after it."""

    payments: pd.DataFrame
    labels: pd.DataFrame


def make_bank(customers: int = 60, days: int = 420, seed: int = 0) -> Bank:
    """Accounts with payments, which are negative, and a salary. Who leaves pays less and less in the 120 days before,
    and the salary of some goes elsewhere. Several payments of a day have times of their own."""
    random, rows, labels, names = np.random.default_rng(seed), [], [], [*MERCHANTS]
    for customer in range(customers):
        rate, share = random.gamma(3.0, 0.1), random.dirichlet(np.full(len(names), 0.4))
        leaves = random.uniform(120, days) if random.random() < 0.5 else np.inf
        salary, payday = (random.normal(2500, 400), int(random.integers(0, 28))) if random.random() < 0.7 else (0, 0)
        paid, stays = [], random.random() < 0.6  # the salary, until the end
        for day in range(days):
            left = np.clip((leaves - day) / 120, 0, 1)
            if salary and day % 30 == payday and (left == 1 or stays):
                rows.append((customer, day, 9.0, "salary", "EMPLOYER", "", round(salary, 2)))
            for _ in range(random.poisson(rate * left * (1.6 if day % 7 > 4 else 0.8))):
                shop = names[random.choice(len(names), p=share)]
                amount = -round(MERCHANTS[shop] * random.lognormal(0, 0.5), 2)
                rows.append((customer, day, random.uniform(8, 22), "card payment", shop, f"ref {len(rows)}", amount))
                paid.append(day)
        for day in range(150, days - 60, 75):
            if paid and paid[0] < day < leaves:
                labels.append((f"DE{customer:04}", START + pd.Timedelta(days=day), int(leaves < day + 75)))
    table = pd.DataFrame(rows, columns=["account", "day", "hour", "kind", "merchant", "remark", "amount"])
    times = (
        START + pd.to_timedelta(table["day"], unit="D") + pd.to_timedelta((table["hour"] * 3600).astype(int), unit="s")
    )
    table["account"] = [f"DE{number:04}" for number in table["account"]]
    table.insert(1, "booked", times.dt.strftime("%d.%m.%Y %H:%M:%S"))
    labels = pd.DataFrame(labels, columns=["customer", "as_of", "leaves"])
    return Bank(table.drop(columns=["day", "hour"]), labels)


def make_game(players: int = 50, days: int = 120, seed: int = 0) -> pd.DataFrame:
    """Purchases in a game: times in milliseconds, prices without quantities, and refunds."""
    random, rows = np.random.default_rng(seed), []
    packs = {"gems": 4.99, "skin": 9.99, "season pass": 14.99, "boost": 0.99}
    for player in range(players):
        share = random.dirichlet(np.full(len(packs), 0.5))
        for _ in range(random.poisson(12) + 2):
            pack = [*packs][random.choice(len(packs), p=share)]
            kind = "refund" if random.random() < 0.05 else "purchase"
            rows.append((random.uniform(0, days), f"p-{player}", kind, pack, packs[pack], int(random.integers(1, 60))))
    table = pd.DataFrame(rows, columns=["ts", "PlayerId", "eventType", "pack", "paidUSD", "level"]).sort_values("ts")
    moments = START + pd.to_timedelta(table["ts"], unit="D")
    return table.assign(ts=moments.astype("datetime64[ms]").astype("int64")).reset_index(drop=True)


def make_library(readers: int = 50, days: int = 365, seed: int = 0) -> pd.DataFrame:
    """Loans of a library: days written month first, and when each book is due, which nobody knows before the loan."""
    random, rows = np.random.default_rng(seed), []
    books = [f"Book {number}" for number in range(40)]
    for reader in range(readers):
        shelf = random.integers(0, 4)
        for day in np.sort(random.choice(days, random.integers(4, 14), replace=False)):
            for book in random.choice(10, random.integers(1, 4), replace=False):
                loan = START + pd.Timedelta(days=int(day))
                number = int(book) + 10 * int(shelf if random.random() < 0.8 else random.integers(0, 4))
                due = loan + pd.Timedelta(days=28)
                rows.append(
                    (
                        loan,
                        reader + 1000,
                        f"{loan:%-m/%-d/%Y}",
                        f"{due:%-m/%-d/%Y}",
                        books[number],
                        f"shelf {number // 10}",
                    )
                )
    table = pd.DataFrame(rows, columns=["at", "reader_no", "loaned", "due", "book", "shelf"]).sort_values(
        "at", kind="stable"
    )
    return table.drop(columns="at").reset_index(drop=True)


def make_purchases(customers: int = 300, days: int = 540, seed: int = 0) -> pd.DataFrame:
    """What CDNOW's frame has: customer, date (a number, such as 19970101), number and dollar value. Customers begin in
    the first 12 weeks, buy at random times at a rate of their own, and drop out after some purchase."""
    random, rows = np.random.default_rng(seed), []
    for customer in range(customers):
        rate, chance_of_leaving = random.gamma(0.9, 1 / 40), random.beta(1, 2)
        value, day = random.gamma(6, 6), float(random.uniform(0, 84))
        while day < days:
            number = 1 + random.poisson(1)
            when = pd.Timestamp("1997-01-01") + pd.Timedelta(days=int(day))
            rows.append(
                (customer + 1, int(f"{when:%Y%m%d}"), number, round(number * value / 2 * random.lognormal(0, 0.3), 2))
            )
            day += random.exponential(1 / rate) if random.random() > chance_of_leaving else np.inf
    return pd.DataFrame(rows, columns=["customer", "date", "number", "dollar_value"])
