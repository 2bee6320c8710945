# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A bank's log that is made up: card payments and salaries of accounts, and which of them leave after a day.

Who leaves pays less and less in the 120 days before, and the salary of some goes elsewhere.
"""

from pathlib import Path

import numpy as np
import pandas as pd

CUSTOMERS, DAYS, ASKED, SOON = 4000, 360, 240, 75  # the day of the label, and days in which those who leave are gone
START = pd.Timestamp("2023-01-01")
MERCHANTS = np.array(["GROCER", "FUEL", "CINEMA", "CAFE", "CLOTHES", "PHARMACY", "TRAVEL"])
PRICES = np.array([25, 40, 15, 5, 60, 12, 300])


def make_bank(folder: Path) -> None:
    """Writes events.parquet, and labels.parquet with who leaves of those who are there on the day of the label."""
    random, parts, labels, day = np.random.default_rng(0), [], [], np.arange(DAYS)
    for number in range(CUSTOMERS):
        leaves = random.uniform(120, 2 * DAYS) if random.random() < 0.7 else np.inf
        left = np.clip((leaves - day) / 120, 0, 1)
        paid = np.repeat(day, random.poisson(random.gamma(3.0, 0.1) * left))
        shop = random.choice(len(MERCHANTS), len(paid), p=random.dirichlet(np.full(len(MERCHANTS), 0.4)))
        price = PRICES[shop] * random.lognormal(0, 0.5, len(paid))
        payday = day[random.integers(30) :: 30][: 0 if random.random() < 0.3 else None]
        payday = payday[left[payday] > (0 if random.random() < 0.6 else 0.99)]
        card = {"day": paid + random.uniform(0.3, 0.9, len(paid)), "kind": "payment", "merchant": MERCHANTS[shop]}
        card["amount"] = price
        salary = {"day": payday + 0.4, "kind": "salary", "merchant": None, "amount": random.normal(2500, 400)}
        parts += [pd.DataFrame(events | {"account": f"{number:04}"}) for events in (card, salary)]
        if len(paid) and paid.min() < ASKED < leaves:
            labels.append((f"{number:04}", leaves < ASKED + SOON))
    log = pd.concat(parts, ignore_index=True)
    log.insert(0, "time", START + pd.to_timedelta(log.pop("day"), unit="D").dt.floor("s"))
    log.to_parquet(folder / "events.parquet", index=False)
    pd.DataFrame(labels, columns=["account", "leaves"]).to_parquet(folder / "labels.parquet", index=False)
