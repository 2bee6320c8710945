# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Raw events as users have them, read as texts, numbers and seconds, and put in order.

[`EventReader`] reads the columns of a log, or a customer, by a schema. The meaning of raw values is defined once:
`to_text` for categorical values, `to_id` for customers, `to_number` for numeric values, and `to_seconds` for times, as
whole seconds since 1970-01-01; the fraction of a second only orders events. They raise a `ValueError` for other
values, and the caller adds customer and column to the message (`naming`). [`arrange`] orders events and finds the
visits.
"""

import difflib
import functools
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from numbers import Integral, Real
from operator import itemgetter
from typing import Any, NamedTuple, Union
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .calendar_mcm import CLOSED, Known, read_day, write_day
from .schema_mcm import NUMERIC, FeatureSpec, LogSchema, read_zone

logger = logging.get_logger(__name__)
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Row = Mapping[str, Any]  # a customer's encoded events: arrays and ids by name, see `MCMFeatureExtractor.encode`
RawEvent = dict[str, Any]  # values by column of the log, as a person gives them; a profile too
Time = str | float | datetime | np.datetime64 | None  # as a person gives it, by default None; see `to_seconds`
Column = Union[Sequence, NDArray, "Distinct"]  # of raw values

FEW = 8  # values that are searched for one by one
EXACT_FLOAT = 2**53  # below it floats represent every integer exactly
LARGEST_TIME = 1e11  # seconds: what is larger are milliseconds
LARGEST_VALUE = float(np.finfo(np.float32).max)
NO_RANK = -1
NO_TIME = np.iinfo(np.int64).min  # what numpy makes of NaT
PERIODS = 3  # training, validation, test
SECONDS_PER_DAY = 86_400
EPOCH = datetime(1970, 1, 1)
# A time as text: a day, a time of the day, and a zone as Z, UTC, GMT or an offset. Names of zones are not accepted,
# because they are ambiguous in the hour that daylight saving time repeats.
TIME_PATTERN = (
    r"(?i)^\s*([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})"
    r"(?:[T ]\s*([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?(?:[.,]([0-9]*))?"
    r"\s*(Z|UTC|GMT|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9](?::?[0-5][0-9])?)?)?)?\s*$"
)
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]*)\.0+$"  # as tables write ids some of which are missing
TIME_ADVICE = "ISO 8601 text such as 2017-10-01T12:30:00, and a zone as Z, UTC or an offset such as +02:00"


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Context manager that puts a prefix before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_keys(values: Mapping, known: Sequence[str], where: str) -> None:
    """Checks that a mapping has known keys only. Raises `ValueError` if a key is unknown; the message names it, the
    most similar known key and all known keys."""
    if unknown := [key for key in values if key not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; {hint}Known are: {', '.join(known)}.")


def check_columns(columns: Sequence, wanted: Iterable[str], where: str, fix: str = "") -> None:
    """Checks that a table has columns. Raises `ValueError` if a column is absent; the message names it, all columns of
    the table and the most similar one."""
    if absent := [name for name in dict.fromkeys(wanted) if name not in columns]:
        names = [str(column) for column in columns]
        they = f"{'they' if where.endswith(' have') else 'it'} {where.rpartition(' ')[2]} {', '.join(names)}"
        close = difflib.get_close_matches(absent[0], names, n=1)
        hint = f": is {close[0]!r} meant?" if close else "."
        raise ValueError(f"{where} no column {' nor '.join(map(repr, absent))}; {they}{hint} {fix}".rstrip())


def is_missing(value: object) -> bool:
    """Whether a raw value is missing: None, NaN, NaT or a data frame's NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    if isinstance(value, Decimal):
        return value.is_nan()  # a signaling NaN can't be compared
    differs = value != value  # only NaN and NaT differ from themselves; arrays give an array
    return isinstance(differs, bool | np.bool_) and bool(differs)


def to_text(value: object) -> str | None:
    """Converts a categorical value to text; None if missing. A time with a zone is written in UTC. Raises
    `ValueError` for another type, such as a list."""
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, Real | Decimal) and not isinstance(value, np.timedelta64):
        number = int(value) if isinstance(value, Integral) else float(value)
        is_whole = isinstance(number, int) or (number.is_integer() and abs(number) < EXACT_FLOAT)
        return str(int(number)) if is_whole else repr(number)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, date | np.datetime64):  # as engines write times: without zeros at the end of a fraction
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        text = str(value).replace("T", " ")
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise ValueError(f"found {value!r} ({type(value).__name__}), expected text, a number or a boolean; convert it")


def to_id(value: object) -> str | None:
    """Converts a customer's id to text; None if it is missing or empty. 7, 7.0, "7" and "7.0" are one customer, and
    "007" another. Raises `ValueError` for another type, such as a list."""
    return re.sub(WHOLE_NUMBER, r"\1", to_text(value) or "") or None


def to_ids(column: object, function: Callable = to_id) -> list[str]:
    """Converts a column of ids, such as those of customers, to texts. Raises `ValueError` if one is missing or of
    another type."""
    texts = map_distinct(as_column(column), function, object).tolist()
    if missing := texts.count(None):
        raise ValueError(f"null in {missing} of {len(texts)} rows; fill them, or leave these rows out")
    return texts


def to_number(value: object) -> float:
    """Converts a number, also as text, to a float; NaN if missing. Raises `ValueError` if the value is no number, or
    an infinite one."""
    if is_missing(value):
        return math.nan
    if isinstance(value, Real | Decimal | np.bool_ | str) and not isinstance(value, np.timedelta64):
        try:
            if "_" not in str(value) and not math.isinf(number := float(value)):  # Python reads over "_"
                return number
        except (ValueError, OverflowError):  # an integer may be larger than every float
            pass
    raise ValueError(f"found {value!r:.80} ({type(value).__name__}), expected a number; convert it")


def to_values(numbers: FloatArray) -> NDArray:
    """Converts numbers to model inputs: float32, with 0 in place of NaN, infinity, too large numbers and -0."""
    return np.where(np.abs(numbers) <= LARGEST_VALUE, numbers, 0.0).astype(np.float32) + np.float32(0)


def to_place(value: object) -> int:
    """Converts an event's place in its customer's order to an integer. Raises `ValueError` if it is no whole
    number."""
    if isinstance(value, Integral | str) and re.fullmatch("[+-]?[0-9]{1,19}", str(value)):
        if abs(place := int(value)) < 2**63:
            return place
    raise ValueError(
        f"found {value!r:.80} ({type(value).__name__}), expected a whole number of 64 bits; give each event its place"
    )


@dataclass(frozen=True)
class Distinct:
    """A column as its distinct values and, for each event, the index of its value, of shape `(events,)`."""

    values: Sequence
    codes: IntArray

    @classmethod
    def of(cls, column: Column) -> "Distinct":
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

    @classmethod
    def missing(cls, count: int) -> "Distinct":
        """A column without any value."""
        return cls([None][:count], np.zeros(count, np.int64))

    def __getitem__(self, events: NDArray | slice) -> "Distinct":
        return Distinct(self.values, self.codes[events])

    def join(self, other: "Distinct") -> "Distinct":
        """The events of this column and then those of another one. No value of this column is there twice."""
        values = [*self.values]
        if len(other.values) < FEW:  # a search is faster than a table of all
            known: dict = {value: values.index(value) for value in other.values if value in values}
        else:
            known = dict(zip(values, range(len(values)), strict=True))
        added = [value for value in dict.fromkeys(other.values) if value not in known]
        known |= zip(added, range(len(values), len(values) + len(added)), strict=True)
        codes = np.array([known[value] for value in other.values], np.int64)[other.codes]
        return Distinct(values + added, np.concatenate([self.codes, codes]))

    def compact(self) -> "Distinct":
        """The same events without values that none of them has."""
        used, codes = np.unique(self.codes, return_inverse=True)
        return Distinct([self.values[code] for code in used.tolist()], codes)

    def map(self, function: Callable) -> "Distinct":
        """Applies a function to each distinct value. Several values may then be equal."""
        return Distinct(list(map(function, self.values)), self.codes)

    def expand(self, dtype: type) -> NDArray:
        """The values of all events, of shape `(events,)`."""
        return np.fromiter(self.values, dtype, len(self.values))[self.codes]

    def rank(self) -> IntArray:
        """Rank of each event's text among the texts, of shape `(events,)`; `NO_RANK` where there is none."""
        ranks = {text: rank for rank, text in enumerate(sorted({*self.values} - {None}))}
        return self.map(lambda text: ranks.get(text, NO_RANK)).expand(np.int64)


def map_distinct(values: Column, function: Callable, dtype: type) -> NDArray:
    """Applies a function to every value of a column, `(len(values),)`, only once for each distinct value."""
    return Distinct.of(values).map(function).expand(dtype)


def to_seconds(value: object, zone: tzinfo) -> int:
    """Converts a time to whole seconds since 1970-01-01; see [`to_moment`]."""
    return to_moment(value, zone)[0]


def to_moment(value: object, zone: tzinfo) -> tuple[int, int]:
    """Converts a time to whole seconds since 1970-01-01, and the nanoseconds after them. Raises `ValueError` if it is
    missing, a number or no time."""
    fix = f"give a datetime or {TIME_ADVICE}"
    if is_missing(value):
        raise ValueError(f"found no time ({value!r}); {fix}, or leave the event out")
    time, nanoseconds = value, 0
    try:
        if isinstance(time, str):
            time, nanoseconds = _read_time_text(time)
        if isinstance(time, datetime) and time.tzinfo is not None:
            time = time.astimezone(zone).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise ValueError(f"found {value!r}, which is no time; {fix}") from None
    if not isinstance(time, date | np.datetime64):
        raise ValueError(f"found {value!r} ({type(value).__name__}), expected a time; {fix}")
    if isinstance(time, datetime):
        nanoseconds += time.microsecond * 1000 + getattr(time, "nanosecond", 0)  # which times of pandas have
        return int(np.array(time, "datetime64[s]").astype(np.int64)), nanoseconds
    (seconds,), (nanoseconds,) = split_seconds(np.array([time], getattr(time, "dtype", "datetime64[D]")))
    return int(seconds), int(nanoseconds)


def split_seconds(times: NDArray) -> tuple[IntArray, IntArray]:
    """Whole seconds since 1970-01-01 of times of numpy, `NO_TIME` of NaT, and the nanoseconds after them."""
    seconds = times.astype("datetime64[s]")
    fractions = (times - seconds).astype("timedelta64[ns]").astype(np.int64)
    return seconds.astype(np.int64), np.where(np.isnat(times), 0, fractions)


def read_as_of(value: object, zone: tzinfo) -> float:
    """Converts a time to seconds since 1970-01-01. Raises `ValueError` if the value is no time."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return to_seconds(value, zone)
    if not abs(float(value)) < LARGEST_TIME:  # nor is NaN
        raise ValueError(f"found {value!r}, which is no time; give seconds since 1970-01-01, or a datetime")
    return float(value)


def to_iso(seconds: float, nanoseconds: int = 0) -> str:
    """A time as text, which [`to_moment`] reads as the same."""
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{np.datetime64(int(seconds), 's')}{fraction}"


def read_times(column: object, time_zone: str) -> IntArray:
    """Converts a column of times to whole seconds since 1970-01-01; see [`to_seconds`]. Raises
    `ValueError` if a value is no time."""
    times, zone = as_column(column), read_zone(time_zone)
    if isinstance(times, np.ndarray) and times.dtype.kind == "M" and not np.isnat(times).any():
        return split_seconds(times)[0]
    return map_distinct(times, lambda value: to_seconds(value, zone), np.int64)


def write_times(column: object, time_zone: str) -> list[str]:
    """The times of a column as texts without a zone, on the clock of the log, with their fractions of a second. Raises
    `ValueError` if a value is no time."""
    zone = read_zone(time_zone)
    return [to_iso(*to_moment(value, zone)) for value in as_list(as_column(column))]


def _read_time_text(text: str) -> tuple[datetime, int]:
    """The time of a text of the form `TIME_PATTERN`, without its fraction of a second, and that in nanoseconds."""
    match = re.match(TIME_PATTERN, text)
    if match is None:
        raise ValueError(f"{text!r} is no time")
    *numbers, fraction, zone = match.groups()
    time = datetime(*(int(number or 0) for number in numbers))  # type: ignore[arg-type]
    if zone is not None:
        time = datetime.fromisoformat(f"{time}{zone if zone[0] in '+-' else 'Z'}")
    return time, int((fraction or "").ljust(9, "0")[:9])


def as_column(values: Any) -> Any:
    """Converts a column to a flat array of numbers, booleans or times, or to a sequence of Python values. Raises
    `ValueError` if the values are no flat array or list."""
    if hasattr(values, "to_numpy"):  # a data frame's column
        if getattr(values, "hasnans", False) and not isinstance(getattr(values, "dtype", None), np.dtype):
            values = values.astype(object)  # whole numbers beside a missing one would become floats, and merge
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"found an array of shape {values.shape}, expected one value for each event")
        return values if values.dtype.kind in "iufbM" else as_list(values)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"found {values!r}, expected a list or array with one value for each event")
    return values


def as_list(column: Sequence | NDArray) -> Sequence:
    """Converts an array to a list of Python values; a list stays as it is."""
    if not isinstance(column, np.ndarray):
        return column
    return list(column) if column.dtype.kind in "mM" else column.tolist()  # `tolist` would turn times into integers


def read_table(table: Any) -> dict | None:
    """Columns of a data frame, an Arrow table, a dict of columns or a list of dicts; None for a list of labels. Raises
    `ValueError` if it is no list, or a column is no list."""
    if hasattr(table, "to_pydict"):
        return table.to_pydict()
    if hasattr(table, "columns") and hasattr(table, "to_numpy"):
        table = {str(name): table[name] for name in table.columns}
    if isinstance(table, Mapping):
        columns = {}
        for name, values in table.items():
            with naming(f"column {name!r}"):
                columns[str(name)] = as_column(values)
        if len({*map(len, columns.values())}) > 1:
            lengths = {name: len(values) for name, values in columns.items()}
            raise ValueError(f"found columns of different lengths, {lengths}; give one value of each a row")
        return columns
    rows = as_column(table)
    if not len(rows) or not all(isinstance(row, Mapping) for row in rows):
        return None
    return {str(name): [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def read_days(table: Any) -> Known:
    """What is known of days, of a table as [`~data.read_known`] takes it, but no file, with days as ISO text or times;
    what is known of days already stays. Raises `ValueError` as that does."""
    if isinstance(table, Mapping) and "name" not in table:
        return table
    columns, known = read_table(table) or {}, defaultdict[str, list](list)
    if "date" in columns:
        columns |= {"from": columns["date"], "to": columns["date"]}
    check_columns([*columns], ["from", "to", "name"], "`known` has", "Give `from` and `to`, or `date`; and `name`.")
    values = columns.get("value", [1.0] * len(columns["name"]))
    for number, row in enumerate(zip(columns["from"], columns["to"], columns["name"], values, strict=True), 1):
        with naming(f"`known`, row {number}"):
            first, last = (write_day(read_day(day)) for day in row[:2])
            name, value = to_text(row[2]), to_number(row[3])
            is_value = 0 <= value <= 1 if name == CLOSED else abs(value) <= LARGEST_VALUE
            if name is None or not first <= last or not is_value:
                raise ValueError(
                    f"found {[*map(str, row)]}; expected a first and a last day, a name and a number, of {CLOSED!r} "
                    "ones the share of the day, from 0 to 1"
                )
            known[name].append([first, last, value])
    return dict(known)


def read_columns(events: Any, known: Sequence[str]) -> tuple[dict, int]:
    """Reads events of any accepted form into columns.

    Args:
        events: a list of dicts, a dict of columns, or a data frame (anything with `columns` and `to_numpy`).
        known (`Sequence[str]`): Allowed columns. Other columns of a data frame are ignored with a warning; elsewhere
            they are an error.

    Returns:
        The known columns that occur, by name, and the number of events. A column that is asked for and does not occur
        has no value.

    Raises:
        ValueError: If a key is unknown, or the events have another form or columns of different lengths.
    """
    if hasattr(events, "columns") and hasattr(events, "to_numpy"):
        if ignored := [column for column in events.columns if column not in known]:
            absent = [column for column in known if column not in events.columns]
            notice = f"Columns {ignored} of the events are not in the schema and are ignored"
            warnings.warn(f"{notice}; of the schema's columns, {absent or 'none'} are absent.", stacklevel=2)
        events = events[[column for column in known if column in events.columns]]
    elif not isinstance(events, Mapping | Sequence) or isinstance(events, str):
        raise ValueError(f"events are {type(events).__name__}, expected a list of dicts, DataFrame or dict of columns")
    columns = read_table(events) if len(events) else {}
    if columns is None:
        number, event = next((number, event) for number, event in enumerate(events) if not isinstance(event, Mapping))
        raise ValueError(f"event {number} is {event!r}, expected a dict of column and value")
    check_keys(columns, known, "columns of the events")
    count = max(map(len, columns.values()), default=0) if isinstance(events, Mapping) else len(events)
    return defaultdict(lambda: Distinct.missing(count), columns), count


class BadValues(NamedTuple):
    """Values of a column that can't be read."""

    column: str
    rows: BoolArray  # (events,): where they are
    reason: str  # what is wrong with one of them


def read_values(name: str, column: Column, function: Callable, bad: list[BadValues] | None) -> Distinct:
    """Applies a function to the distinct values of a column, and finds the distinct results. Values for which it
    raises `ValueError` are missing, and noted in `bad`; without `bad` the error is raised with the column's name."""
    distinct = Distinct.of(column)
    reasons = {}
    codes: dict[object, int] = {}  # by result
    code_of = []
    for code, value in enumerate(distinct.values):
        try:
            result = function(value)
        except ValueError as error:
            if bad is None:
                raise ValueError(f"column {name!r}: {error}") from error
            result, reasons[code] = None, str(error)
        code_of.append(codes.setdefault(result, len(codes)))
    if bad is not None and reasons:
        bad.append(BadValues(name, np.isin(distinct.codes, [*reasons]), max(reasons.values())))
    return Distinct([*codes], np.array(code_of, np.int64)[distinct.codes])


def read_numbers(name: str, column: Column, bad: list[BadValues] | None) -> FloatArray:
    """Numbers of a column, NaN where one is missing, of shape `(events,)`; see [`read_values`]."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb" and not np.isinf(column).any():
        return column.astype(np.float64)
    return read_values(name, column, to_number, bad).expand(np.float64)


def value_reader(spec: FeatureSpec) -> Callable:
    """What a categorical feature reads of a value of its column: its text; the first levels of a path such as
    "appliances.kitchen.kettle", where an empty level ends it; or the distinct texts of several values, without empty
    ones. None if missing, or if a path has fewer levels. It raises `ValueError` if `to_text` can't convert a value,
    or a value is a list where texts have a separator, or is none where they have none."""

    def read_path(value: object) -> str | None:
        levels = (to_text(value) or "").split(spec.separator)[: spec.level]
        return str(spec.separator).join(levels) if len(levels) == spec.level and all(levels) else None

    def read_several(value: object) -> frozenset[str]:
        if spec.separator is not None:
            return frozenset((to_text(value) or "").split(spec.separator)) - {""}
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            if is_missing(value):
                return frozenset()
            raise ValueError(f"found {value!r} ({type(value).__name__}), expected a list of values; make it one")
        return frozenset(text for text in map(to_text, as_list(value)) if text)

    return read_path if spec.level is not None else to_text if spec.item is None else read_several


@dataclass
class Events:
    """Events as they were read, in any order, before they have ids."""

    positions: IntArray  # (events,): seconds since 1970-01-01, or the places of events without times
    fractions: IntArray  # (events,): nanoseconds after the second, which order the events of one second
    visits: Distinct  # keys of the visits as texts
    is_target: BoolArray  # (events,): whether the token type is that of a target
    # By feature what was read of its column: `Distinct` texts or sets of texts, or an array of numbers.
    values: dict

    def __getitem__(self, events: NDArray | slice) -> "Events":
        values = {feature: column[events] for feature, column in self.values.items()}
        return Events(
            self.positions[events], self.fractions[events], self.visits[events], self.is_target[events], values
        )

    def join(self, other: "Events") -> "Events":
        """These events and then others, of the same schema."""

        def join(first: Any, second: Any) -> Any:
            return np.append(first, second) if isinstance(first, np.ndarray) else first.join(second)

        names = "positions", "fractions", "visits", "is_target"
        values = {feature: join(column, other.values[feature]) for feature, column in self.values.items()}
        return Events(**{name: join(getattr(self, name), getattr(other, name)) for name in names}, values=values)

    def compact(self) -> "Events":
        """The same events, whose columns have no other values."""
        values = {name: each if isinstance(each, np.ndarray) else each.compact() for name, each in self.values.items()}
        return replace(self, visits=self.visits.compact(), values=values)

    def find_distinct(self, customers: IntArray) -> IntArray:
        """Indices of the events of customers `(events,)` that equal no earlier one in all that is read of them."""
        columns = [customers, self.positions, self.fractions, self.visits, *self.values.values()]
        keys = [
            np.unique(column, return_inverse=True)[1] if isinstance(column, np.ndarray) else column.codes
            for column in columns
        ]
        return np.sort(np.unique(np.stack(keys), axis=1, return_index=True)[1])


class EventReader:
    """Reads raw columns of a log, or the events and the profile of a customer, by a schema.

    Attributes:
        zone (`tzinfo`): Time zone of times that name none.
    """

    def __init__(self, schema: LogSchema):
        self.schema, self.zone = schema, read_zone(schema.time_zone)

    def read_customer(self, customer: Mapping) -> tuple[str | None, Events, dict]:
        """Reads a customer as a person gives one; see `MCMFeatureExtractor.encode`. Returns the id, the events and
        the values of the profile. Raises `ValueError` if a key is unknown, or a value can't be read."""
        check_keys(customer, ("events", "profile", "customer_id", "label_columns"), "keys of the customer")
        if customer.get("events") is None:
            raise ValueError("there is no `events`; give an empty list for a customer without history")
        columns, count = read_columns(customer["events"], self.schema.event_columns)
        name, given = self.schema.customer, customer.get("customer_id")
        with naming(f"column {name!r}"):
            ids = set(map(to_id, as_list(columns.get(name, []))))
            if (own := to_id(given)) is not None:  # which events without one have
                ids = ids - {None} | {own}
            if len(ids) > 1 or None in ids:
                first_ids = ", ".join(sorted(map(str, ids))[:5])
                raise ValueError(f"found the customers {first_ids}; give each customer a dict of its own")
        events = self._read_events(columns, count)
        profile = customer.get("profile") or {}
        if not isinstance(profile, Mapping):
            raise ValueError(f"the profile is {type(profile).__name__}, expected a dict of column and value")
        check_keys(profile, self.schema.profile_columns, "profile")
        with naming("profile"):
            values = self.read_features(self.schema.profile, read_columns([profile], [*profile])[0])
        return next(iter(ids), None), events, values

    def read_log(self, events: Any) -> tuple[Distinct, Events]:
        """Reads the events of several customers, see [`read_columns`]. Returns the customer of each event, and the
        events. Raises `ValueError` if a column is unknown, an event has no customer or no time, or a value can't be
        read."""
        name = self.schema.customer
        columns, count = read_columns(events, self.schema.event_columns)
        with naming(f"column {name!r}"):
            customers = Distinct.of(to_ids(columns[name]) if count else [])
        return customers, self._read_events(columns, count)

    def _read_events(self, columns: Mapping, count: int) -> Events:
        """Reads events of which every value has to be readable, and each has a time."""
        absent = [column for column in self.schema.needed_columns if column not in columns]
        events = self.read(columns, count)
        if absent and events.is_target.any():
            logger.warning_once(
                f"No event has the column {' or '.join(map(repr, absent))}: without the visit, events of one time are "
                "one visit, and without the amount, nothing was paid. Give the columns as in the log."
            )
        if (events.positions == NO_TIME).any():
            with naming(f"column {self.schema.order_column!r}"):
                self._to_position(None)
        return events

    def read(self, columns: Mapping, count: int, bad: list[BadValues] | None = None) -> Events:
        """Reads the columns of a log of `count` events. An event may have no time (`NO_TIME`). Values that can't be
        read are missing, and noted in `bad`; see [`read_values`]."""
        schema = self.schema
        visits, is_target = Distinct.missing(count), np.ones(count, bool)
        positions, fractions = np.arange(count), np.zeros(count, np.int64)
        if schema.token_type is not None:
            column = columns[schema.token_type]
            is_target = read_values(schema.token_type, column, self._is_target, bad).expand(np.bool_)
        if schema.order_column is not None:
            column = columns[schema.order_column]
            if isinstance(column, np.ndarray) and column.dtype.kind == "M":
                positions, fractions = split_seconds(column)
            else:
                read = read_values(schema.order_column, column, self._read_position, bad)
                read = read.map(lambda position: position or (NO_TIME, 0))
                positions, fractions = (read.map(itemgetter(part)).expand(np.int64) for part in (0, 1))
        if schema.visit_column:
            visits = read_values(schema.visit_column, columns[schema.visit_column], to_text, bad)
        elif schema.visit:  # a customer's day is a visit
            visits = Distinct.of(positions // SECONDS_PER_DAY).map(str)
        return Events(positions, fractions, visits, is_target, self.read_features(schema.features, columns, bad))

    def _to_position(self, value: object) -> tuple[int, int]:
        """The second and its fraction, or the place, of an event."""
        return (to_place(value), 0) if self.schema.order else to_moment(value, self.zone)

    def _read_position(self, value: object) -> tuple[int, int] | None:
        return None if is_missing(value) else self._to_position(value)

    def _is_target(self, value: object) -> bool:
        text, targets = to_text(value), self.schema.target_token_types
        if text in self.schema.reserved_token_types:
            raise ValueError(f"found {text!r}, which MCM adds itself; leave these events out or rename the token type")
        return not targets or text in targets

    def read_features(
        self, specs: Iterable[FeatureSpec], columns: Mapping, bad: list[BadValues] | None = None
    ) -> dict:
        """Reads the columns of features: numbers, NaN where one is missing, or texts or sets of texts. Features that
        share the values of a column are read once, under the name of the first."""
        values: dict = {}
        for spec in specs:
            if self.schema.sources.get(spec.name) != spec.name:
                continue
            if spec.kind == NUMERIC:
                numbers = [read_numbers(name, columns[name], bad) for name in spec.columns]
                with np.errstate(over="ignore", invalid="ignore"):
                    values[spec.name] = functools.reduce(np.multiply, numbers)
            else:
                values[spec.name] = read_values(str(spec.column), columns[str(spec.column)], value_reader(spec), bad)
        return values


def select_events(row: Mapping, events: NDArray | slice) -> dict:
    """Selects some events of a row."""
    return {name: value[events] if isinstance(value, np.ndarray) else value for name, value in row.items()}


def run_starts(*columns: NDArray) -> BoolArray:
    """Marks where a run of rows with equal values in all columns begins, in a mask of shape `(rows,)`."""
    starts = np.ones(len(columns[0]), dtype=bool)
    starts[1:] = functools.reduce(np.logical_or, [column[1:] != column[:-1] for column in columns])
    return starts


def number_groups(sizes: NDArray, first: int | NDArray = 0) -> tuple[IntArray, IntArray]:
    """Gives each entry of groups, which have these sizes and follow each other, its group, and its number in the
    group, which counts from `first`, a number or one for each group."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return group, np.arange(len(group)) - (np.cumsum(sizes) - sizes - first)[group]


def pad_groups(values: NDArray, sizes: NDArray, padding: float = 0) -> NDArray:
    """Values of groups, which follow each other, as an array with a row for each group, at least one column, and
    `padding` on its right."""
    padded = np.full((len(sizes), max(1, np.max(sizes, initial=0)), *values.shape[1:]), padding, values.dtype)
    padded[number_groups(sizes)] = values
    return padded
