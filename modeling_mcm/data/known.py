# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads what is known of days beforehand: campaigns, closed days, prices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_mcm.calendar_mcm import Known
from modeling_mcm.events_mcm import check_columns, naming, read_days

from .guess_times import find_time_format, parse_times
from .guessing import even_out
from .tables import read_table_file


def read_known(table: Any) -> Known | None:
    """Reads a table of what is known of days.

    Args:
        table: The name of a .parquet or .csv file, a data frame or a list of dicts, with the columns `from` and `to`,
            both included, or `date`; `name`; and `value`, by default 1. Days are written in one way in all rows, as
            the times of a log may be. Days without a row have the value 0, or where most days have one, as of prices,
            the median. What is named `closed` keeps everybody away, by its value a share of the day; effects of other
            names are learned. What this function gave, and None, stay as they are.

    Returns:
        `dict`: by name rows of first day, last day and value, as `MCMConfig.known` has them.

    Raises:
        ValueError: If a column is missing, or a row is wrong. The message names the row.
    """
    if table is None or (isinstance(table, Mapping) and "name" not in table):
        return table
    given = read_table_file(table, ["name"]) if isinstance(table, str | Path) else pd.DataFrame(table)
    columns = ["date"] if "date" in given else ["from", "to"]
    check_columns(list(given), [*columns, "name"], "`known` has", "Give `from` and `to`, or `date`; and `name`.")
    if not len(given):
        return {}
    written = pd.concat([given[name] for name in columns], ignore_index=True).rename(columns[0])
    with naming("`known`"):
        written = even_out(written.to_frame())[columns[0]]
        days = parse_times(written, find_time_format(written, "known"))
    ends = {"from": days[: len(given)], "to": days[-len(given) :]}
    for number, row in enumerate(zip(*ends.values(), strict=True)):
        if any(map(pd.isna, row)):
            found = given.iloc[number].to_dict()
            raise ValueError(
                f"`known`, row {number + 1}: found {found}, expected a first and a last day: fill it in, or leave the "
                "row out."
            )
    texts = {name: [f"{day:%Y-%m-%d}" for day in moments] for name, moments in ends.items()}
    return read_days(texts | {name: [*given[name]] for name in ("name", "value") if name in given})
