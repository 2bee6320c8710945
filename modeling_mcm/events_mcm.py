# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Raw events as users have them, read into columns, texts, numbers, seconds and visits.

A list of dicts, a data frame and a dict of columns are the same thing after `read_columns`. What a raw value means is
written here once: `to_text` for categorical values, `to_number` for numeric ones, `to_seconds` for times. Each refuses
what it does not know, with a message that its caller completes with the customer and the column (`naming`).
"""

import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

SECONDS_PER_DAY = 86_400
EPOCH = datetime(1970, 1, 1)
EXACT_FLOAT = 2**53  # below it every whole float is one integer
LARGEST_VALUE = float(np.finfo(np.float32).max)
NO_VISIT = -1
# A time as text: a day; the time of the day; a zone, as Z, UTC, GMT or an offset. Names of zones are not read, for an
# hour of autumn that happens twice has one name. SQL engines search with the same pattern, so it keeps to what their
# regular expressions share.
TIME_PATTERN = (
    r"(?i)^\s*([0-9]{4,6}[-/][0-9]{1,2}[-/][0-9]{1,2})"
    r"(?:[T ]\s*((?:[01]?[0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?)(?:[.,][0-9]*)?"
    r"\s*(Z|UTC|GMT|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9](?::?[0-5][0-9])?)?)?)?\s*$"
)
TIME_ADVICE = "ISO 8601 text such as 2017-10-01T12:30:00, and a zone as Z, UTC or an offset such as +02:00"
# Offsets of a zone are looked up within these years; before and after them those of their ends hold.
ZONE_YEARS = (1900, 2200)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Opens the message of a `ValueError` with the place where it happened."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_keys(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    """Raises a `ValueError` that names the unknown keys, the closest known one and all known ones."""
    if unknown := [key for key in given if key not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; {hint}Known are: {', '.join(known)}.")


def is_missing(value: Any) -> bool:
    """Whether a raw value counts as missing: None, NaN, NaT or a data frame's NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    differs = value != value  # of all values only NaN and NaT differ from themselves; an array answers with an array
    return isinstance(differs, bool | np.bool_) and bool(differs)


def to_text(value: Any) -> str | None:
    """The text that stands for a categorical value; None if it is missing.

    Text stays as it is, booleans become "true" and "false", whole numbers lose their decimals (1.0 and 1 are both
    "1"), other numbers are written as the shortest text that reads back to the same double, dates as they print.

    Raises:
        ValueError: if the value is anything else, such as a list.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real | Decimal):
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < EXACT_FLOAT else repr(number)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, date | UUID):
        return str(value)
    raise ValueError(f"found {value!r} ({type(value).__name__}), expected text, a number or a boolean; convert it")


def split_path(value: Any, separator: str, level: int) -> str | None:
    """The first `level` levels of a path such as "appliances.kitchen.kettle"; None where it has fewer.

    A path ends before its first empty level. `ValueError` for what `to_text` refuses.
    """
    text = to_text(value)
    parts = [] if text is None else text.split(separator)[:level]
    return separator.join(parts) if len(parts) == level and all(parts) else None


def split_values(value: Any, separator: str | None) -> set[str]:
    """The texts of an event's several values: of one text with separators, or of a list; empty ones are none.

    Raises:
        ValueError: if the value is a list where `separator` is given, or none where it is not, or holds what
            `to_text` refuses.
    """
    if separator is not None:
        text = to_text(value)
        return set() if text is None else set(text.split(separator)) - {""}
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        if is_missing(value):
            return set()
        raise ValueError(f"found {value!r} ({type(value).__name__}), expected a list of values; make it one")
    return {text for text in map(to_text, as_list(value)) if text}


def to_number(value: Any) -> float:
    """The double that stands for a numeric value, also one in text; NaN if missing. `ValueError` for the rest."""
    if is_missing(value):
        return math.nan
    if isinstance(value, Real | Decimal | np.bool_ | str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"found {value!r} ({type(value).__name__}), expected a number; convert it")


def to_values(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """Numbers as a model reads them: 0 where one is NaN, infinite or too large for float32, and never -0."""
    finite = np.abs(numbers) <= LARGEST_VALUE
    return np.where(finite, numbers, 0.0).astype(np.float32) + np.float32(0)


def zone_offset(seconds: int, zone: tzinfo) -> int:
    """Seconds that a zone is ahead of UTC at a moment, seconds since 1970-01-01 in UTC."""
    first, last = (datetime(year, 1, 1, tzinfo=UTC) for year in ZONE_YEARS)
    moment = EPOCH.replace(tzinfo=UTC) + timedelta(
        seconds=min(max(seconds, int(first.timestamp())), int(last.timestamp()) - 1)
    )
    return int((moment.astimezone(zone).utcoffset() or timedelta()).total_seconds())


def read_time_text(text: str) -> tuple[int, bool]:
    """Whole seconds since 1970-01-01 of a time as text, in UTC if it says a zone, and whether it does.

    Raises:
        ValueError: if the text is no such time (see `TIME_PATTERN`), or there is no such day.
    """
    found = re.match(TIME_PATTERN, text)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    day, clock, zone = found.groups()
    year, month, day_of_month = map(int, re.split("[-/]", day))
    hour, minute, second = map(int, f"{clock or '0:00'}:00".split(":")[:3])
    # A year may have five digits, which `datetime` does not take.
    moment = np.datetime64(f"{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}", "s")
    seconds = int(moment.astype(np.int64))
    if zone and zone[0] in "+-":
        parts = zone[1:].replace(":", "").ljust(6, "0")
        ahead = int(parts[:2]) * 3600 + int(parts[2:4]) * 60 + int(parts[4:])
        seconds -= ahead if zone[0] == "+" else -ahead
    return seconds, zone is not None


def to_seconds(value: Any, zone: tzinfo) -> int:
    """Whole seconds since 1970-01-01 of a time, converted to `zone` if it carries a time zone of its own.

    Raises:
        ValueError: if the value is missing, a number, or text that is no time.
    """
    fix = f"give a datetime or {TIME_ADVICE}"
    if is_missing(value):
        raise ValueError(f"found no time ({value!r}); {fix}, or leave the event out")
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[s]").astype(np.int64))
    if isinstance(value, str):
        try:
            seconds, has_zone = read_time_text(value)
        except ValueError:
            raise ValueError(f"found {value!r}, which is no time; {fix}") from None
        return seconds + zone_offset(seconds, zone) if has_zone else seconds
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"found {value!r} ({type(value).__name__}), expected a time; {fix}")
    elapsed = value - (EPOCH if value.tzinfo is None else EPOCH.replace(tzinfo=UTC))
    seconds = elapsed.days * SECONDS_PER_DAY + elapsed.seconds
    return seconds if value.tzinfo is None else seconds + zone_offset(seconds, zone)


def to_moment(value: Any, zone: tzinfo) -> float:
    """Seconds since 1970-01-01 of a moment: a number of seconds as it is, else `to_seconds`."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return float(value) if is_number else to_seconds(value, zone)


def to_place(value: Any) -> int:
    """The whole number that puts an event in order, also one in text; `ValueError` for the rest."""
    if isinstance(value, Integral) and not isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, str) and re.fullmatch("[+-]?[0-9]+", value):
        return int(value)
    raise ValueError(f"found {value!r} ({type(value).__name__}), expected a whole number; give each event its place")


def read_zone(name: str) -> tzinfo:
    """The time zone of an IANA name; raises `ValueError` if there is none."""
    if name == "UTC":  # the one zone that needs no time zone database
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"`time_zone` is {name!r}; give an IANA name such as Europe/Berlin.") from None


def map_distinct(values: Sequence[Any], function: Callable[[Any], Any], dtype: type) -> NDArray[Any]:
    """Applies `function` once to each distinct value. The type is part of the key, for True == 1 == 1.0 in Python."""
    values = as_list(values)
    keys = list(zip(map(type, values), values, strict=True))
    try:
        table = {key: function(key[1]) for key in set(keys)}
    except TypeError:  # an unhashable value, such as a list: the function says what is wrong with it
        return np.array([function(value) for value in values], dtype)
    return np.fromiter(map(table.__getitem__, keys), dtype, len(keys))


def as_column(values: Any) -> Any:
    """A flat array of numbers, booleans or times, or a list of Python values; a `ValueError` for the rest."""
    if hasattr(values, "to_numpy"):  # a data frame's column
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"found an array of shape {values.shape}, expected one value for each event")
        return values if values.dtype.kind in "iufbM" else as_list(values)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"found {values!r}, expected a list or array with one value for each event")
    return values


def as_list(column: Any) -> Any:
    """The values of an array as Python objects; a list stays as it is."""
    if not isinstance(column, np.ndarray):
        return column
    return list(column) if column.dtype.kind in "mM" else column.tolist()  # `tolist` makes plain integers of times


def read_columns(events: Any, known: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Columns of any accepted form of events and the number of events.

    Args:
        events: a list of dicts, a dict of columns, or a data frame (anything with `columns` and `to_numpy`).
        known: columns that may occur. Others are ignored with a warning in a data frame, an error elsewhere.

    Returns:
        The known columns that occur, and how many events there are.

    Raises:
        ValueError: if a key is unknown, or the events have another form or columns of different lengths.
    """
    columns: dict[str, Any]
    if hasattr(events, "columns") and hasattr(events, "to_numpy"):
        if ignored := [column for column in events.columns if column not in known]:
            absent = [column for column in known if column not in events.columns]
            found = f"Columns {ignored} of the events are not in the schema and are ignored"
            warnings.warn(f"{found}; of the schema's columns, {absent or 'none'} are absent.", stacklevel=2)
        columns = {column: events[column] for column in known if column in events.columns}
        count = len(events)
    elif isinstance(events, Mapping):
        check_keys(events, known, "columns of the events")
        columns = dict(events)
        count = max((len(values) for values in columns.values() if hasattr(values, "__len__")), default=0)
    elif isinstance(events, Sequence) and not isinstance(events, str):
        allowed = set(known)
        for number, event in enumerate(events):
            if not isinstance(event, Mapping):
                raise ValueError(f"event {number} is {event!r}, expected a dict of column and value")
            if not event.keys() <= allowed:
                check_keys(event, known, f"event {number}")
        occurring = set().union(*events)
        columns = {column: [event.get(column) for event in events] for column in known if column in occurring}
        count = len(events)
    else:
        raise ValueError(f"events are {type(events).__name__}, expected a list of dicts, DataFrame or dict of columns")
    for column, values in columns.items():
        with naming(f"column {column!r}"):
            columns[column] = as_column(values)
            if len(columns[column]) != count:
                raise ValueError(f"found {len(columns[column])} values, other columns have {count}; give one an event")
    return columns, count


def read_times(column: Any, zone: tzinfo) -> NDArray[np.int64]:
    """`to_seconds` of a column, of shape `(events,)`."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "M" and not np.isnat(column).any():
        return column.astype("datetime64[s]").astype(np.int64)
    return map_distinct(column, lambda value: to_seconds(value, zone), np.int64)


def rank_visits(column: Any) -> NDArray[np.int64]:
    """Rank of each event's visit key as text among the customer's, of shape `(events,)`; -1 where it is missing."""
    texts = [to_text(value) for value in as_list(column)]
    ranks = {text: rank for rank, text in enumerate(sorted({text for text in texts if text is not None}))}
    return np.array([NO_VISIT if text is None else ranks[text] for text in texts], np.int64)


class Timeline(NamedTuple):
    """The order of a customer's n events and where interactions that close a visit are inserted (m in all).

    Attributes:
        order: places of the events in the input, oldest first, of shape `(n,)`.
        ends: where, in the ordered events, the closing interactions come, as `numpy.insert` wants it: `(m - n,)`.
        times: seconds since 1970-01-01, of shape `(m,)`; a closing interaction has the time of its visit's last event.
        visits: visit of each, counted from 0, of shape `(m,)`.
        starts: seconds of each visit's first event, of shape `(visits,)`.
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    times: NDArray[np.int64]
    visits: NDArray[np.int32]
    starts: NDArray[np.int64]


def arrange(
    seconds: NDArray[np.int64],
    ranks: NDArray[np.int64],
    ties: Sequence[NDArray[Any]],
    is_target: NDArray[np.bool_],
    close_visits: bool,
    values: Sequence[NDArray[Any]] = (),
) -> Timeline:
    """Orders events by the start of their visit, visit, time, `ties` and `values`; the input's order never counts.

    Args:
        seconds: of shape `(n,)`.
        ranks: of the visit keys (see `rank_visits`), of shape `(n,)`.
        ties: values that order events of one visit and time, the most important first, each of shape `(n,)`.
        is_target: whether an event makes its visit a target visit, of shape `(n,)`.
        close_visits: whether target visits get a closing interaction.
        values: what orders events that are equal in all of that, the most important first, each of shape `(n,)`.
    """
    starts = seconds.copy()
    keyed = ranks != NO_VISIT
    earliest = np.full(int(np.max(ranks, initial=NO_VISIT)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, ranks[keyed], seconds[keyed])
    starts[keyed] = earliest[ranks[keyed]]

    order = np.lexsort((*reversed(values), is_target, *reversed(ties), seconds, ranks, starts))
    seconds, ranks, starts = (values[order] for values in (seconds, ranks, starts))
    opens_visit = np.ones(len(order), bool)
    opens_visit[1:] = (ranks[1:] != ranks[:-1]) | (starts[1:] != starts[:-1])
    first = np.flatnonzero(opens_visit)
    closed = first[:0]
    if close_visits and len(order):
        closed = np.flatnonzero(np.logical_or.reduceat(is_target[order], first))
    ends = np.append(first[1:], len(order))[closed]
    visits = np.insert(np.cumsum(opens_visit) - 1, ends, closed).astype(np.int32)
    return Timeline(order, ends, np.insert(seconds, ends, seconds[ends - 1]), visits, starts[first])
