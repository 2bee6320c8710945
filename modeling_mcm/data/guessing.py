# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Guesses the event schema of a data frame from the names and the contents of its columns.

The guess is an [`EventSchema`] like any other: `yaml.safe_dump(schema.to_dict())` is the file to edit.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import pandas as pd
from pandas.api import types

from modeling_mcm.data.schema import EventSchema
from modeling_mcm.events_mcm import TIME_PATTERN, check_columns, read_zone

logger = logging.getLogger(__name__)

# Words of column names by their meaning; the first word that a name has decides, and the first column. A name that
# has nothing else but words for ids goes before: `user_id` before `user_age`.
WORDS = {
    "customer": ("customer", "household", "user", "client", "member", "visitor", "shopper", "account", "who"),
    "time": ("timestamp", "datetime", "time", "date", "when", "day", "dt"),
    "visit": ("session", "visit", "basket", "order", "transaction", "invoice"),
    "token_type": ("event", "action", "activity", "behaviour", "behavior"),
}
IDS = ("id", "ids", "code", "number", "no", "key", "sku", "zip", "asin", "type")  # numbers so named are no quantities
LABEL_NAMES = (
    "item",
    "product",
    "article",
    "category",
    "brand",
    "track",
    "movie",
    "film",
    "book",
    "store",
    "page",
    "department",
    "manufacturer",
    "seller",
)
PAID = ("amount", "paid", "spend", "spent", "revenue", "sales", "total", "value")  # for all units of an event
PRICE, QUANTITY = ("price",), ("quantity", "qty", "units")
NUMBERS = (*PAID, *PRICE, *QUANTITY, "cost", "discount", "rating")
MOST_COLUMNS, MOST_KINDS, MOST_TASKS, ROWS_READ = 40, 30, 5, 200_000
FEW, MANY = 20, 1_000  # distinct numbers up to which they are names, and labels from which rare ones are left out
HELD_OUT, TESTED = 0.15, 0.07  # shares of the log's time after the validation cutoff and after the test cutoff
TIME_UNITS = ((1e8, "s"), (1e11, "ms"), (1e14, "us"), (1e17, "ns"))  # of times in numbers, by their least size


def guess_schema(events: pd.DataFrame, given: Mapping[str, Any] | None = None) -> EventSchema:
    """Guesses what the columns of an event log mean.

    Args:
        events (`pd.DataFrame`): The log, one row an event.
        given (`Mapping[str, Any]`, *optional*): Keys of the event schema that are known, such as `{"time": "day"}`.

    Returns:
        [`EventSchema`]: the guess. Numbers are numeric features, other columns are categorical ones, and the features
        of most labels are the tasks. The amount is a column that says what was paid, or a price times a quantity
        beside it; a price alone may be that of one unit, so it is none.

    Raises:
        ValueError: If no column says who the customer is or when an event was, a column has values of several types,
            or there are too many columns. The message names the column and the fix.
    """
    given = dict(given or {})
    _check_table(events)
    part = events.head(ROWS_READ)
    columns = {name: part[name] for name in part.columns}
    found: dict[str, Any] = {role: given[role] for role in WORDS if given.get(role) is not None}
    check_columns(list(columns), found.values(), "The table has")
    for role in WORDS:
        if role not in given and (role != "time" or given.get("order") is None):
            rest = {name: values for name, values in columns.items() if name not in found.values()}
            found[role] = _find_column(role, rest, columns.get(found.get("customer")))
    if found["customer"] is None:
        raise ValueError(
            f"No column of {list(columns)} is named like a customer: give schema={{'customer': 'COLUMN'}}."
        )
    if found.get("time") is None and given.get("order") is None:
        raise ValueError(
            f"No column of {list(columns)} is named like a time: give schema={{'time': 'COLUMN'}}, or "
            "schema={'order': 'rows'} if the rows of a customer are in order."
        )
    customers = events[found["customer"]].nunique()
    if customers < 2:
        raise ValueError(f"Column {found['customer']!r} has {customers} customer: give a log of several.")
    features, labels = _features(columns, found)
    amount = {} if "amount" in given else _find_amount(features)
    if "factor" in amount:
        features.append(amount)
        logger.warning(
            "What was paid for an event is read as %s x %s. If that is wrong, name the column that says it, as in "
            "schema={'amount': 'COLUMN'}, or give schema={'amount': None}.",
            amount["column"],
            amount["factor"],
        )
    schema: dict[str, Any] = {"name": "events", **{k: v for k, v in found.items() if v is not None}}
    tasks = sorted(labels, key=lambda name: -labels[name])[:MOST_TASKS]
    schema |= {
        "amount": amount.get("name"),
        "features": features,
        "tasks": tasks,
        "min_history": 1,
        "cutoffs": "leave_one_out",
    }
    if found.get("time") is not None:
        schema |= _cutoffs(_read_times(found["time"], events[found["time"]]))
    if not tasks and "tasks" not in given:
        raise ValueError(
            f"No column of {list(columns)} has labels to predict, such as items: give schema={{'tasks': ['COLUMN']}}, "
            "and make it text if it has numbers."
        )
    if "features" in given:
        del schema["amount"]  # the features that it is one of
    return EventSchema.from_dict(schema | given)


def _find_amount(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numeric feature that says what was paid: one of the features, a new one with a `factor`, or none."""
    numeric = {str(each["name"]): set(_words(each["name"])) for each in features if each.get("kind") == "numeric"}
    paid, prices, quantities = (
        [name for word in words for name, own in numeric.items() if word in own and not own & {"discount", "cost"}]
        for words in (PAID, PRICE, QUANTITY)
    )
    paid = [name for name in paid if name not in quantities]
    if paid:
        return {"name": paid[0]}
    if prices and quantities:
        return {"name": "amount", "kind": "numeric", "column": prices[0], "factor": quantities[0]}
    return {}


def _check_table(events: pd.DataFrame) -> None:
    """Raises `ValueError` if names or values of columns can't be those of a log."""
    names = list(events.columns)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"Column {wrong[0]!r} has no text as its name: rename it, as in events.rename(columns=...).")
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"The table has {len(names)} columns, from {names[0]!r} to {names[-1]!r}, and at most {MOST_COLUMNS} are "
            "guessed: choose some, as in events[['customer', 'time', ...]], or give a whole EventSchema."
        )
    for name in names:
        if types.infer_dtype(events[name], skipna=True) in ("mixed", "mixed-integer", "bytes"):
            kinds = sorted({type(value).__name__ for value in events[name].dropna().head(ROWS_READ)})
            raise ValueError(
                f"Column {name!r} has values that are neither all text nor all numbers ({', '.join(kinds)}): make "
                f"them so, as in events[{name!r}] = events[{name!r}].astype(str), or leave the column out."
            )


def _words(name: str) -> list[str]:
    """The words of a column's name: ["user", "id"] of user_id, UserID and userid."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return [word for part in parts for word in re.sub("(?<=[a-z]{3})(id|code)$", r" \1", part.lower()).split()]


def _find_column(role: str, columns: Mapping[str, pd.Series], customers: pd.Series | None) -> str | None:
    """The column that a role is guessed to have."""
    fitting = {name: values for name, values in columns.items() if _fits(role, values, customers)}
    if role == "time":
        dated = [name for name, values in columns.items() if types.is_datetime64_any_dtype(values)]
        fitting = {name: columns[name] for name in dated} or fitting
    for is_bare in (True, False):
        for word in WORDS[role]:
            for name in fitting:
                words = _words(name)
                if word in words and (not is_bare or set(words) <= {word, *IDS, *(WORDS[role])}):
                    return name
    return next(iter(fitting), None) if role == "time" and dated else None


def _fits(role: str, values: pd.Series, customers: pd.Series | None) -> bool:
    """Whether the values of a column can have a role."""
    if role == "time":
        return True  # what can't be read is told by name
    if types.is_datetime64_any_dtype(values):
        return False
    if role == "visit":  # of most events, and not the same few for everybody
        known = values.dropna()
        return customers is not None and len(known) > len(values) / 2 and known.nunique() >= customers.nunique()
    return role != "token_type" or values.nunique() <= MOST_KINDS


def _read_times(name: str, times: pd.Series) -> pd.Series:
    """The times of a column. Raises `ValueError` if preparation can't read them; the message says how to make some."""
    known = times.dropna()
    if not len(known):
        raise ValueError(f"Column {name!r} has no time: fill it, or give schema={{'time': 'COLUMN'}}.")
    fix = f"events[{name!r}] = pd.to_datetime(events[{name!r}]"
    if types.is_numeric_dtype(times):
        unit = next((unit for least, unit in reversed(TIME_UNITS) if known.abs().max() >= least), None)
        fix += f", unit={unit!r})" if unit and known.abs().max() < 1e20 else ".astype(str))"
        raise ValueError(f"Column {name!r} has numbers such as {known.iloc[0]}, expected times: write {fix}.")
    if types.is_datetime64_any_dtype(known):
        return known
    texts = known.drop_duplicates()
    if wrong := [value for value in texts if isinstance(value, str) and not re.match(TIME_PATTERN, value)]:
        raise ValueError(
            f"Column {name!r} has {wrong[0]!r}, expected times such as 2024-03-01 12:30: write {fix}, format=...)."
        )
    try:
        return pd.to_datetime(known, format="mixed")
    except (ValueError, TypeError) as error:
        raise ValueError(f"Column {name!r} has no times of one kind ({error}): write {fix}, utc=True).") from error


def _features(columns: Mapping[str, pd.Series], found: Mapping[str, Any]) -> tuple[list[dict], dict[str, int]]:
    """Features of the columns without another role, and the number of labels of those that can be tasks."""
    features: list[dict[str, Any]] = []
    labels = {}
    if found.get("token_type") is not None:
        features.append({"name": found["token_type"]})
    customers = columns[found["customer"]]
    for name, values in columns.items():
        number = values.nunique()
        if name in found.values() or number < 2 or types.is_datetime64_any_dtype(values):
            continue
        words, kind = set(_words(name)), types.infer_dtype(values, skipna=True)
        is_number = (types.is_numeric_dtype(values) and not types.is_bool_dtype(values)) or kind == "decimal"
        is_id = not is_number or bool(words & {*IDS, *LABEL_NAMES})
        if is_number and (words & set(NUMBERS) or not (is_id or number <= FEW)):
            features.append({"name": name, "kind": "numeric"})
        elif number <= max(FEW, len(values) / 2):  # else it is different in each event, such as a remark
            features.append({"name": name} | ({"min_count": 5} if number > MANY else {}))
            if is_id and (values.groupby(customers, observed=True).nunique() > 1).any():  # else it is the customer's
                labels[name] = number
    if found.get("time") is not None:
        derived = [name for name in ("weekday", "days_since_visit") if name not in columns]
        features += [{"name": name, "kind": name} for name in derived]
    return features, labels


def _cutoffs(times: pd.Series) -> dict[str, Any]:
    """Times that leave the last parts of a log's time for validation and test, and the time zone of the log."""
    zone = times.dt.tz
    if zone is not None:
        try:
            read_zone(str(zone))
        except ValueError:  # an offset
            zone, times = UTC, times.dt.tz_convert(UTC)
        times = times.dt.tz_localize(None)
    last, span = times.max(), times.max() - times.min()
    if not span:
        raise ValueError(f"Column {times.name!r} has one time only, {last}: give a log of several days.")
    unit = "D" if span > pd.Timedelta(days=30) else "s"
    shares = {"validation": HELD_OUT, "test": TESTED}
    cutoffs = {name: (last - share * span).floor(unit).to_pydatetime() for name, share in shares.items()}
    return {"cutoffs": cutoffs} | ({} if zone is None else {"time_zone": str(zone)})
