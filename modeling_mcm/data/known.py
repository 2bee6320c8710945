# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A table of what is known of days beforehand: campaigns, prices, closed days."""

from pathlib import Path
from typing import Any

import pandas as pd

from modeling_mcm.calendar_mcm import CLOSED
from modeling_mcm.events_mcm import check_columns, naming

from .guess_times import find_time_format, parse_times
from .guessing import even_out
from .tables import read_table_file


def read_known(table: Any) -> dict[str, list]:
    """Reads a table of days.

    Args:
        table: The name of a .parquet or .csv file, a data frame or a list of dicts, with the columns `from` and `to`,
            both included, or `date`; `name`; and `value`, by default 1. Days are written in one way in all rows, as
            the times of a log may be. Days without a row have the value 0. What is named `closed` keeps everybody
            away, by its value a share of the day; effects of other names are learned.

    Returns:
        `dict`: by name rows of first day, last day and value, as `MCMConfig.known` has them.

    Raises:
        ValueError: If a column is missing, or a row is wrong. The message names the row.
    """
    given = read_table_file(table, ["name"]) if isinstance(table, str | Path) else pd.DataFrame(table)
    columns = ["date"] if "date" in given else ["from", "to"]
    check_columns(list(given), [*columns, "name"], "`known` has", "Give `from` and `to`, or `date`; and `name`.")
    if not len(given):
        return {}
    written = pd.concat([given[name] for name in columns], ignore_index=True).rename(columns[0])
    with naming("`known`"):
        written = even_out(written.to_frame())[columns[0]]
        days = parse_times(written, find_time_format(written, "known"))
    values = given["value"] if "value" in given else [1.0] * len(given)
    rows = zip(days[: len(given)], days[-len(given) :], given["name"], values, strict=True)
    known: dict[str, list] = {}
    for number, (first, last, name, value) in enumerate(rows, 1):
        with naming(f"`known`, row {number}"):
            if not first <= last or pd.isna(name) or not abs(float(value)) < float("inf"):
                raise ValueError(
                    f"found {given.iloc[number - 1].to_dict()}; expected a first and a last day, a name and a number: "
                    "fill it in, or leave the row out"
                )
            if name == CLOSED and not 0 <= float(value) <= 1:
                raise ValueError(f"found {CLOSED!r} {value}; expected a share of the day, from 0 to 1")
            known.setdefault(str(name), []).append([f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}", float(value)])
    return known
