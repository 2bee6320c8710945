# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Raw events as users have them, converted to columns, texts, numbers and visits.

`read_columns` turns a list of dicts, a data frame or a dict of columns into columns. The meaning of raw values is
defined once: `to_text` for categorical values, `to_ids` for those that name something, `to_number` for numeric values,
and `to_seconds` for times, as whole seconds since 1970-01-01. They raise a `ValueError` for other values, and the
caller adds customer and column to the message (`naming`).
"""

import difflib
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

EXACT_FLOAT = 2**53  # below it floats represent every integer exactly
LARGEST_VALUE = float(np.finfo(np.float32).max)
NO_RANK = -1
NO_TIME = np.iinfo(np.int64).min  # what numpy makes of NaT
PERIODS = 3  # training, validation, test
SECONDS_PER_DAY, SECONDS_PER_HOUR = 86_400, 3600
EPOCH = datetime(1970, 1, 1)
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
# A time as text: a day, a time of the day, and a zone as Z, UTC, GMT or an offset. Names of zones are not accepted,
# because they are ambiguous in the hour that daylight saving time repeats. SQL engines use the same pattern, so it
# has only syntax that all their regular expressions share.
TIME_PATTERN = (
    r"(?i)^\s*([0-9]{4,6}[-/][0-9]{1,2}[-/][0-9]{1,2})"
    r"(?:[T ]\s*((?:[01]?[0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?)(?:[.,][0-9]*)?"
    r"\s*(Z|UTC|GMT|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9](?::?[0-5][0-9])?)?)?)?\s*$"
)
TIME_ADVICE = "ISO 8601 text such as 2017-10-01T12:30:00, and a zone as Z, UTC or an offset such as +02:00"
# Offsets of a zone are looked up within these years; earlier and later times get the first and the last offset.
ZONE_YEARS = (1900, 2200)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Context manager that puts a prefix before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_keys(values: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    """Checks that a mapping has known keys only. Raises `ValueError` if a key is unknown; the message names it, the
    most similar known key and all known keys."""
    if unknown := [key for key in values if key not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; {hint}Known are: {', '.join(known)}.")


def check_columns(columns: Sequence[Any], wanted: Iterable[str], where: str, fix: str = "") -> None:
    """Checks that a table has columns. Raises `ValueError` if a column is absent; the message names it, all columns of
    the table and the most similar one."""
    if absent := [name for name in dict.fromkeys(wanted) if name not in columns]:
        names = [str(column) for column in columns]
        nor = f", nor {', '.join(map(repr, absent[1:]))}" if absent[1:] else ""
        they = f"{'they' if where.endswith(' have') else 'it'} {where.rpartition(' ')[2]} {', '.join(names)}"
        close = difflib.get_close_matches(absent[0], names, n=1)
        hint = f": is {close[0]!r} meant?" if close else "."
        raise ValueError(f"{where} no column {absent[0]!r}{nor}; {they}{hint} {fix}".rstrip())


def is_missing(value: Any) -> bool:
    """Whether a raw value is missing: None, NaN, NaT or a data frame's NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    differs = value != value  # only NaN and NaT differ from themselves; arrays give an array
    return isinstance(differs, bool | np.bool_) and bool(differs)


def to_text(value: Any) -> str | None:
    """Converts a categorical value to text; None if missing. A time with a zone is written in UTC. Raises
    `ValueError` for another type, such as a list."""
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
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, date | np.datetime64):  # as engines write times: without zeros at the end of a fraction
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        text = str(value).replace("T", " ")
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise ValueError(f"found {value!r} ({type(value).__name__}), expected text, a number or a boolean; convert it")


def to_ids(column: Any) -> list[str]:
    """Converts a column of ids, such as those of customers, to texts: 7, 7.0 and "7" are one customer. Raises
    `ValueError` if one is missing or of another type."""
    texts = map_distinct(as_column(column), to_text, object).tolist()
    if missing := texts.count(None):
        raise ValueError(f"null in {missing} of {len(texts)} rows; fill them, or leave these rows out")
    return texts


def split_path(value: Any, separator: str, level: int) -> str | None:
    """The first levels of a path such as "appliances.kitchen.kettle"; None if it has fewer. An empty level ends it.
    Raises `ValueError` if `to_text` can't convert the value."""
    text = to_text(value)
    parts = [] if text is None else text.split(separator)[:level]
    return separator.join(parts) if len(parts) == level and all(parts) else None


def split_values(value: Any, separator: str | None) -> frozenset[str]:
    """The distinct texts of a value that holds several values; empty texts are left out. Raises `ValueError` if a list
    has a separator, no list has none, or `to_text` can't convert a value."""
    if separator is not None:
        text = to_text(value)
        return frozenset() if text is None else frozenset(text.split(separator)) - {""}
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        if is_missing(value):
            return frozenset()
        raise ValueError(f"found {value!r} ({type(value).__name__}), expected a list of values; make it one")
    return frozenset(text for text in map(to_text, as_list(value)) if text)


def to_number(value: Any) -> float:
    """Converts a number, also as text, to a float; NaN if missing. Raises `ValueError` if the value is no number."""
    if is_missing(value):
        return math.nan
    if isinstance(value, Real | Decimal | np.bool_ | str):
        try:
            return float(value)
        except (ValueError, OverflowError):  # an integer may be larger than every float
            pass
    raise ValueError(f"found {value!r:.80} ({type(value).__name__}), expected a number; convert it")


def to_numbers(column: Any) -> NDArray[np.float64]:
    """`to_number` of a column, of shape `(events,)`."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
        return column.astype(np.float64)
    return map_distinct(column, to_number, np.float64)


def to_values(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """Converts numbers to model inputs: float32, with 0 in place of NaN, infinity, too large numbers and -0."""
    finite = np.abs(numbers) <= LARGEST_VALUE
    return np.where(finite, numbers, 0.0).astype(np.float32) + np.float32(0)


def to_place(value: Any) -> int:
    """Converts an event's place in its customer's order to an integer. Raises `ValueError` if it is no whole
    number."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if is_integer or (isinstance(value, str) and re.fullmatch("[+-]?[0-9]{1,19}", value)):
        if abs(place := int(value)) < 2**63:
            return place
    raise ValueError(
        f"found {value!r:.80} ({type(value).__name__}), expected a whole number of 64 bits; give each event its place"
    )


@dataclass(frozen=True)
class Distinct:
    """A column as its distinct values and, for each event, the index of its value, of shape `(events,)`."""

    values: list[Any]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, column: Any) -> "Distinct":
        """Finds the distinct values of a column, in the order of their first events."""
        if isinstance(column, Distinct):
            return column
        values = as_list(column)
        keys = list(zip(map(type, values), values, strict=True))  # with the type: True == 1 == 1.0 in Python
        try:
            codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
        except TypeError:  # an unhashable value, such as a list
            return cls(values, np.arange(len(values)))
        return cls([value for _, value in codes], np.fromiter(map(codes.__getitem__, keys), np.int64, len(keys)))

    def map(self, function: Callable[[Any], Any]) -> "Distinct":
        """Applies a function to each distinct value."""
        return Distinct(list(map(function, self.values)), self.codes)

    def expand(self, dtype: type) -> NDArray[Any]:
        """The values of all events, of shape `(events,)`."""
        return np.fromiter(self.values, dtype, len(self.values))[self.codes]

    def number(self) -> NDArray[np.int64]:
        """Numbers the values, so that events have one number if their values are equal, of shape `(events,)`."""
        numbers: dict[Any, int] = {}
        return Distinct([numbers.setdefault(value, len(numbers)) for value in self.values], self.codes).expand(
            np.int64
        )

    def rank(self) -> NDArray[np.int64]:
        """Rank of each event's text among the texts, of shape `(events,)`; `NO_RANK` where there is none."""
        ranks: dict[Any, int] = {text: rank for rank, text in enumerate(sorted({*self.values} - {None}))}
        return self.map(lambda text: ranks.get(text, NO_RANK)).expand(np.int64)


def map_distinct(values: Sequence[Any], function: Callable[[Any], Any], dtype: type) -> NDArray[Any]:
    """Applies a function to every value of a column, `(len(values),)`, only once for each distinct value."""
    return Distinct.of(values).map(function).expand(dtype)


def to_seconds(value: Any, zone: tzinfo) -> int:
    """Converts a time to whole seconds since 1970-01-01. Raises `ValueError` if it is missing, a number or no time."""
    fix = f"give a datetime or {TIME_ADVICE}"
    if is_missing(value):
        raise ValueError(f"found no time ({value!r}); {fix}, or leave the event out")
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[s]").astype(np.int64))
    if isinstance(value, str):
        try:
            seconds, has_zone = _read_time_text(value)
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


def read_as_of(value: Any, zone: tzinfo) -> float:
    """Converts a time to seconds since 1970-01-01. Raises `ValueError` if the value is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return to_seconds(value, zone)
    if not abs(float(value)) < EXACT_FLOAT:  # nor is NaN
        raise ValueError(f"found {value!r}, which is no time; give seconds since 1970-01-01, or a datetime")
    return float(value)


def read_times(column: Any, zone: tzinfo) -> NDArray[np.int64]:
    """Converts a column of times to whole seconds since 1970-01-01; see [`to_seconds`]. Raises
    `ValueError` if a value is no time."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "M" and not np.isnat(column).any():
        return column.astype("datetime64[s]").astype(np.int64)
    return map_distinct(column, lambda value: to_seconds(value, zone), np.int64)


def _read_time_text(text: str) -> tuple[int, bool]:
    """Whole seconds since 1970-01-01 of a text of the form `TIME_PATTERN`, and whether it has a zone."""
    match = re.match(TIME_PATTERN, text)
    if match is None:
        raise ValueError(f"{text!r} is no time")
    day, clock, zone = match.groups()
    year, month, day_of_month = map(int, re.split("[-/]", day))
    hour, minute, second = map(int, f"{clock or '0:00'}:00".split(":")[:3])
    # A year may have five digits, which `datetime` does not take.
    local = np.datetime64(f"{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}", "s")
    seconds = int(local.astype(np.int64))
    if zone and zone[0] in "+-":
        parts = zone[1:].replace(":", "").ljust(6, "0")
        ahead = int(parts[:2]) * 3600 + int(parts[2:4]) * 60 + int(parts[4:])
        seconds -= ahead if zone[0] == "+" else -ahead
    return seconds, zone is not None


def read_zone(name: str) -> tzinfo:
    """Finds a time zone. Raises `ValueError` if there is no such time zone."""
    if name == "UTC":  # the one zone that needs no time zone database
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"`time_zone` is {name!r}; give an IANA name such as Europe/Berlin.") from None


def zone_offset(seconds: int, zone: tzinfo) -> int:
    """Number of seconds that a time zone is ahead of UTC."""
    first, last = (datetime(year, 1, 1, tzinfo=UTC) for year in ZONE_YEARS)
    local = EPOCH.replace(tzinfo=UTC) + timedelta(
        seconds=min(max(seconds, int(first.timestamp())), int(last.timestamp()) - 1)
    )
    return int((local.astimezone(zone).utcoffset() or timedelta()).total_seconds())


def to_local(seconds: NDArray[np.int64], zone: tzinfo) -> NDArray[np.int64]:
    """Converts moments, seconds since 1970-01-01 in UTC, to what the clocks of a time zone show."""
    hours, places = np.unique(seconds // SECONDS_PER_HOUR, return_inverse=True)
    first = hours * SECONDS_PER_HOUR
    offsets, at_end = (
        np.array([zone_offset(second, zone) for second in ends.tolist()], np.int64)
        for ends in (first, first + SECONDS_PER_HOUR - 1)
    )
    local = seconds + offsets[places]
    for place in np.flatnonzero((offsets != at_end)[places]):  # the clocks change within the hour
        local[place] = seconds[place] + zone_offset(int(seconds[place]), zone)
    return local


def as_column(values: Any) -> Any:
    """Converts a column to a flat array of numbers, booleans or times, or to a sequence of Python values. Raises
    `ValueError` if the values are no flat array or list."""
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
    """Converts an array to a list of Python values; a list stays as it is."""
    if not isinstance(column, np.ndarray):
        return column
    return list(column) if column.dtype.kind in "mM" else column.tolist()  # `tolist` would turn times into integers


def read_table(table: Any) -> dict[str, Sequence[Any]] | None:
    """Columns of a data frame, an Arrow table, a dict of columns or a list of dicts; None for a list of labels."""
    if hasattr(table, "to_pydict"):
        return table.to_pydict()
    if hasattr(table, "columns") and hasattr(table, "to_numpy"):
        return {str(name): as_column(table[name]) for name in table.columns}
    if isinstance(table, Mapping):
        columns = {str(name): as_column(values) for name, values in table.items()}
        if len({*map(len, columns.values())}) > 1:
            lengths = {name: len(values) for name, values in columns.items()}
            raise ValueError(f"found columns of different lengths, {lengths}; give one value of each a row")
        return columns
    values = as_column(table)
    if len(values) and all(isinstance(row, Mapping) for row in values):
        names = dict.fromkeys(name for row in values for name in row)
        return {str(name): [row.get(name) for row in values] for name in names}
    return None


def read_columns(events: Any, known: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Reads events of any accepted form into columns.

    Args:
        events: a list of dicts, a dict of columns, or a data frame (anything with `columns` and `to_numpy`).
        known (`Sequence[str]`): Allowed columns. Other columns of a data frame are ignored with a warning; elsewhere
            they are an error.

    Returns:
        The known columns that occur, by name, and the number of events.

    Raises:
        ValueError: If a key is unknown, or the events have another form or columns of different lengths.
    """
    columns: dict[str, Any]
    if hasattr(events, "columns") and hasattr(events, "to_numpy"):
        if ignored := [column for column in events.columns if column not in known]:
            absent = [column for column in known if column not in events.columns]
            notice = f"Columns {ignored} of the events are not in the schema and are ignored"
            warnings.warn(f"{notice}; of the schema's columns, {absent or 'none'} are absent.", stacklevel=2)
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


def select_events(row: Mapping[str, Any], events: NDArray[Any] | slice) -> dict[str, Any]:
    """Selects some events of a row."""
    return {name: value[events] if isinstance(value, np.ndarray) else value for name, value in row.items()}


def events_before(row: Mapping[str, Any], time: float) -> dict[str, Any]:
    """Leaves out the events from a time on."""
    return select_events(row, row["times"] < time)


class Timeline(NamedTuple):
    """Order and visits of the n events of some customers and of the inserted end-of-visit events, m events in all."""

    # (m,): index in the input of each event; an end-of-visit event has that of its visit's last event
    indices: NDArray[np.int64]
    closes: NDArray[np.bool_]  # (m,): whether the event is an end-of-visit event
    visits: NDArray[np.int32]  # (m,): visit of each event, counted from 0 for each customer
    days: NDArray[np.float64]  # (m,): days between the starts of the visit before and of this one, NaN in the first


def days_between(starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Days from the start of the visit before to that of each visit, NaN for the first one, of shape `(visits,)`."""
    days = np.diff(starts, prepend=0) / SECONDS_PER_DAY
    days[:1] = np.nan
    return days


def arrange(
    seconds: NDArray[np.int64],
    ranks: NDArray[np.int64],
    ties: Sequence[NDArray[Any]],
    is_target: NDArray[np.bool_],
    close_visits: bool,
    customers: NDArray[np.int64],
    periods: NDArray[np.int64],
) -> Timeline:
    """Orders events by customer, period, start of the visit, visit, time and `ties`, and finds the visits.

    The order of the input has no effect. A visit that reaches over the end of a period has a part before and one
    after, so that what lies before never depends on what comes after. Both have one number, unless another visit lies
    between; then they count as two.

    Args:
        seconds (`np.ndarray` of shape `(n,)`): Time of each event in seconds since 1970-01-01.
        ranks (`np.ndarray` of shape `(n,)`): Rank of each event's visit key, `NO_RANK` where the events of one time
            are a visit.
        ties (`Sequence[np.ndarray]`, each of shape `(n,)`): Columns that order events of one visit and time, the most
            important first.
        is_target (`np.ndarray` of shape `(n,)`): Whether an event can be a target.
        close_visits (`bool`): Whether to insert an end-of-visit event after each visit with a target, and after each
            of its parts.
        customers, periods (`np.ndarray` of shape `(n,)`): Customer of each event, and its period, 0 to 2.
    """
    parts, starts = customers * PERIODS + periods, seconds.copy()
    keyed = ranks != NO_RANK
    distinct, places = np.unique(parts[keyed] * (np.max(ranks, initial=0) + 1) + ranks[keyed], return_inverse=True)
    earliest = np.full(len(distinct), np.iinfo(np.int64).max)
    np.minimum.at(earliest, places, seconds[keyed])
    starts[keyed] = earliest[places]

    order = np.lexsort((*reversed(ties), seconds, ranks, starts, parts))
    customers, parts, starts, ranks = (values[order] for values in (customers, parts, starts, ranks))
    first = np.flatnonzero(run_starts(parts, starts, ranks))  # of each part of a visit
    goes_on = (ranks[first] != NO_RANK) & ~run_starts(ranks[first], customers[first])
    visit = np.cumsum(~goes_on) - 1
    days = days_between(starts[first][~goes_on])
    opens_customer = run_starts(customers[first])
    days[visit[opens_customer]] = np.nan
    numbers = visit - np.maximum.accumulate(np.where(opens_customer, visit, 0))
    closed = first[:0]
    if close_visits and len(order):
        has_target = np.logical_or.reduceat(is_target[order], first)
        for _ in range(1, PERIODS):  # a target of an earlier part
            has_target[1:] |= goes_on[1:] & has_target[:-1]
        closed = np.flatnonzero(has_target)
    of_event = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
    ends = np.append(first[1:], len(order))[closed]
    indices, closes = np.insert(order, ends, order[ends - 1]), np.insert(np.zeros(len(order), bool), ends, True)
    of_event = np.insert(of_event, ends, closed)
    return Timeline(indices, closes, numbers[of_event].astype(np.int32), days[visit[of_event]])


def run_starts(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Marks where a run of rows with equal values in all columns begins, in a mask of shape `(rows,)`."""
    starts = np.ones(len(columns[0]), dtype=bool)
    starts[1:] = functools.reduce(np.logical_or, [column[1:] != column[:-1] for column in columns])
    return starts


def number_groups(sizes: NDArray[Any], first: Any = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Gives each entry of groups, which have these sizes and follow each other, its group, and its number in the
    group, which counts from `first`, a number or one for each group."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return group, np.arange(len(group)) - (np.cumsum(sizes) - sizes - first)[group]


def pad_groups(values: NDArray[Any], sizes: NDArray[Any], padding: Any = 0) -> NDArray[Any]:
    """Values of groups, which follow each other, as an array with a row for each group, at least one column, and
    `padding` on its right."""
    padded = np.full((len(sizes), max(1, np.max(sizes, initial=0)), *values.shape[1:]), padding, values.dtype)
    padded[number_groups(sizes)] = values
    return padded
