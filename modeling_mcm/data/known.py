# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A table of what is known of days beforehand: campaigns, prices, closed days."""

from pathlib import Path
from typing import Any

from modeling_mcm.calendar_mcm import Known
from modeling_mcm.events_mcm import read_days

from .tables import read_table_file


def read_known(table: Any) -> Known | None:
    """Reads a table of days; without one nothing is known, None.

    Args:
        table: The name of a .parquet or .csv file, a data frame or a list of dicts, with the columns `from` and `to`,
            both included, or `date`; `name`; and `value`, by default 1. Days without a row have the value 0, or where
            most days have one, as of prices, the median. What is named `closed` keeps everybody away, by its value a
            share of the day; effects of other names are learned.

    Returns:
        `dict`: by name rows of first day, last day and value, as `MCMConfig.known` has them.

    Raises:
        ValueError: If a column is missing, or a row is wrong. The message names the row.
    """
    table = read_table_file(table) if isinstance(table, str | Path) else table
    return None if table is None else read_days(table)
