# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Offers out of nothing but purchases: "buy from a department that you never bought from".

    python examples/2_offers_from_purchases.py data/offers/raw/events.parquet data/new_departments
    python training/run_finetune.py --model runs/mine --data data/offers/prepared --offers data/new_departments

Every month each customer is offered every department that they have not bought from; converted is who did within 28
days. Writes the two tables of docs/fine_tuning.md.
"""

import sys
from pathlib import Path

import pandas as pd

STARTS = {"2017-05-01": "train", "2017-07-01": "train", "2017-09-01": "validation", "2017-11-01": "test"}
DAYS = 28


def new_department_offers(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Offers and actions, from events with `household_id`, `time` and `department`."""
    bought = events.dropna(subset="department")[["household_id", "time", "department"]]
    made = []
    for start, split in STARTS.items():
        day = pd.Timestamp(start)
        before, after = bought[bought["time"] < day], bought[bought["time"] >= day]
        after = after[after["time"] < day + pd.Timedelta(days=DAYS)]
        departments = pd.DataFrame({"department": sorted(before["department"].unique())})
        known, later = (frame[["household_id", "department"]].drop_duplicates() for frame in (before, after))
        offers = known[["household_id"]].drop_duplicates().merge(departments, how="cross")
        offers = (
            offers.merge(known, how="left", indicator="bought").query("bought == 'left_only'").drop(columns="bought")
        )
        offers = offers.merge(later, how="left", indicator="bought")
        offers["conversion"] = (offers.pop("bought") == "both").astype("int8")
        made.append(offers.assign(time=day, split=split))
    offers = pd.concat(made, ignore_index=True)
    offers = offers.rename(columns={"household_id": "customer_id", "department": "action_id"})
    actions = pd.DataFrame({"action_id": sorted(offers["action_id"].unique()), "token_type": "purchase"})
    return offers, actions.assign(department=actions["action_id"])


if __name__ == "__main__":
    source, target = sys.argv[1:]
    tables = new_department_offers(pd.read_parquet(source, columns=["household_id", "time", "department"]))
    Path(target).mkdir(parents=True, exist_ok=True)
    for name, table in zip(("offers", "actions"), tables, strict=True):
        table.to_parquet(Path(target) / f"{name}.parquet")
