# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A table of what is known of days beforehand: campaigns, prices, closed days."""

from pathlib import Path
from typing import Any

import pandas as pd

from modeling_mcm.calendar_mcm import CLOSED
from modeling_mcm.events_mcm import check_columns, naming

from .tables import read_table_file


def read_known(table: Any) -> dict[str, list]:
    """Reads a table of days.

    Args:
        table: The name of a .parquet or .csv file, a data frame or a list of dicts, with the columns `from` and `to`,
            both included, or `date`; `name`; and `value`, by default 1. Days without a row have the value 0. What is
            named `closed` keeps everybody away, by its value a share of the day; effects of other names are learned.

    Returns:
        `dict`: by name rows of first day, last day and value, as `MCMConfig.known` has them.

    Raises:
        ValueError: If a column is missing, or a row is wrong. The message names the row.
    """
    given = read_table_file(table) if isinstance(table, str | Path) else pd.DataFrame(table)
    frame = given.assign(**{"from": given["date"], "to": given["date"]}) if "date" in given else given
    check_columns(list(frame), ["from", "to", "name"], "`known` has", "Give `from` and `to`, or `date`; and `name`.")
    values = frame["value"] if "value" in frame else [1.0] * len(frame)
    known: dict[str, list] = {}
    for number, row in enumerate(zip(frame["from"], frame["to"], frame["name"], values, strict=True), 1):
        with naming(f"`known`, row {number}"):
            first, last = (pd.Timestamp(day).date().isoformat() for day in row[:2])
            name, value = str(row[2]), float(row[3])
            if not first <= last or pd.isna(row[2]) or not abs(value) < float("inf"):
                raise ValueError(f"found {[*map(str, row)]}; expected a first and a last day, a name and a number")
            if name == CLOSED and not 0 <= value <= 1:
                raise ValueError(f"found {CLOSED!r} {value:g}; expected a share of the day, from 0 to 1")
            known.setdefault(name, []).append([first, last, value])
    return known
