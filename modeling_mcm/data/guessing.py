# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Guesses the event schema of a data frame from the names and the contents of its columns.

The guess is an [`EventSchema`] like any other: `yaml.safe_dump(schema.to_dict())` is the file to edit.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.api import types

from modeling_mcm.data.schema import EventSchema

# Words of column names by their meaning; the first word that a name has decides, and the first column.
WORDS = {
    "customer": ("customer", "household", "user", "client", "member", "visitor", "shopper", "account", "who"),
    "time": ("timestamp", "datetime", "time", "date", "when", "day"),
    "visit": ("session", "visit", "basket", "order", "transaction", "invoice"),
    "token_type": ("event_type", "token_type", "event", "action", "activity", "behaviour", "behavior"),
}
IDS = ("id", "code", "number", "no", "sku", "zip")  # numbers with such a name are names, not amounts
MOST_COLUMNS, MOST_KINDS, MOST_TASKS, ROWS_READ = 40, 30, 5, 200_000
FEW, MANY = 20, 1_000  # distinct numbers up to which they are names, and labels from which rare ones are left out
HELD_OUT, TESTED = 0.15, 0.07  # shares of the log's time after the validation cutoff and after the test cutoff


def guess_schema(events: pd.DataFrame, given: Mapping[str, Any] | None = None) -> EventSchema:
    """Guesses what the columns of an event log mean.

    Args:
        events (`pd.DataFrame`): the log, one row an event.
        given (`Mapping[str, Any]`, *optional*): keys of the event schema that are known, such as `{"time": "day"}`.

    Returns:
        [`EventSchema`]: the guess. Numbers are amounts, other columns are categorical features, and the features of
        most labels are the tasks.

    Raises:
        ValueError: if no column says who the customer is or when an event was, a column has values of several types,
            or there are too many columns. The message names the column and the fix.
    """
    given = dict(given or {})
    if len(events.columns) > MOST_COLUMNS:
        raise ValueError(
            f"The table has {len(events.columns)} columns, from {events.columns[0]!r} to {events.columns[-1]!r}, and "
            f"at most {MOST_COLUMNS} are guessed: choose some, as in events[['customer', 'time', ...]], or give a "
            "schema."
        )
    part = events.head(ROWS_READ)
    columns = {str(name): part[name] for name in part.columns}
    for name, values in columns.items():
        if types.infer_dtype(values, skipna=True) in ("mixed", "mixed-integer"):
            kinds = sorted({type(value).__name__ for value in values.dropna().head(1000)})
            raise ValueError(
                f"Column {name!r} has values of several types ({', '.join(kinds)}): make them one, as in "
                f"events[{name!r}] = events[{name!r}].astype(str)."
            )
    found: dict[str, Any] = {}
    for role in WORDS:
        found[role] = given.get(role) or _column_of(
            role, {k: v for k, v in columns.items() if k not in found.values()}
        )
    if found["customer"] is None:
        raise ValueError(f"No column of {list(columns)} is named like a customer: give customer='COLUMN'.")
    if found["time"] is None and given.get("order") is None:
        raise ValueError(
            f"No column of {list(columns)} holds times: give time='COLUMN', or order='rows' if the rows of a customer "
            "are in order."
        )
    customers = columns[found["customer"]]
    if customers.nunique() < 2:
        raise ValueError(f"Column {found['customer']!r} has {customers.nunique()} customer: give a log of several.")
    features, labels = _features(columns, found)
    schema: dict[str, Any] = {"name": "events", **{k: v for k, v in found.items() if v is not None}}
    tasks = sorted(labels, key=lambda name: -labels[name])[:MOST_TASKS]
    schema |= {"features": features, "tasks": tasks, "min_history": 1, "cutoffs": "leave_one_out"}
    if found["time"] is not None:
        schema["cutoffs"] = _cutoffs(columns[found["time"]])
    if not tasks and "tasks" not in given:
        raise ValueError(f"No column of {list(columns)} has labels to predict, such as items: give tasks=['COLUMN'].")
    return EventSchema.from_dict(schema | given)


def _column_of(role: str, columns: Mapping[str, pd.Series]) -> str | None:
    """The column that a role is guessed to have."""
    if role == "time":
        dated = [name for name, values in columns.items() if types.is_datetime64_any_dtype(values)]
        if dated:
            return dated[0]
    for word in WORDS[role]:
        for name, values in columns.items():
            if word in name.lower() and _fits(role, values):
                return name
    return None


def _fits(role: str, values: pd.Series) -> bool:
    """Whether the values of a column can have a role."""
    if role == "time":
        texts = values.dropna().head(1000)
        return not types.is_numeric_dtype(values) and pd.to_datetime(texts, errors="coerce").notna().all()
    return role != "token_type" or values.nunique() <= MOST_KINDS


def _features(columns: Mapping[str, pd.Series], found: Mapping[str, Any]) -> tuple[list[dict], dict[str, int]]:
    """Features of the columns without another role, and the number of labels of those that can be tasks."""
    features: list[dict[str, Any]] = []
    labels = {}
    if found["token_type"] is not None:
        features.append({"name": found["token_type"]})
    customers = columns[found["customer"]]
    for name, values in columns.items():
        number = values.nunique()
        if name in found.values() or number < 2 or types.is_datetime64_any_dtype(values):
            continue
        is_name = not types.is_numeric_dtype(values) or types.is_bool_dtype(values)
        is_name |= any(word in name.lower().split("_") for word in IDS) or number <= FEW
        if not is_name:
            features.append({"name": name, "kind": "numeric"})
        elif number <= max(FEW, len(values) / 2):  # else it is different in each event, such as a remark
            features.append({"name": name} | ({"min_count": 5} if number > MANY else {}))
            if (values.groupby(customers).nunique() > 1).any():  # else it is the customer's
                labels[name] = number
    if found["time"] is not None:
        features += [{"name": "weekday", "kind": "weekday"}, {"name": "days_since_visit", "kind": "days_since_visit"}]
    return features, labels


def _cutoffs(times: pd.Series) -> dict[str, Any]:
    """Moments that leave the last parts of a log's time for validation and test."""
    moments = pd.to_datetime(times.dropna())
    moments = moments.dt.tz_localize(None) if moments.dt.tz is not None else moments
    last, span = moments.max(), moments.max() - moments.min()
    unit = "D" if span > pd.Timedelta(days=30) else "s"
    shares = {"validation": HELD_OUT, "test": TESTED}
    return {name: (last - share * span).floor(unit).to_pydatetime() for name, share in shares.items()}
