# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a data frame as an event log: guesses what its columns mean from their names and contents.

    reader = FrameReader.guess(frame)
    print(reader)                  # five lines: customer, time, amount, labels, and what else is read
    log = reader.read(frame)       # with times as times, and the columns that the schema adds

The schema is an [`EventSchema`] like any other: `yaml.safe_dump(reader.schema.to_dict())` is the file to edit.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, timedelta, tzinfo
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types
from transformers.utils import logging

from modeling_mcm.events_mcm import (
    NO_RANK,
    NO_TIME,
    SECONDS_PER_DAY,
    TIME_PATTERN,
    BadValues,
    BoolArray,
    EventReader,
    IntArray,
    as_column,
    check_columns,
    read_values,
    read_zone,
    split_seconds,
    to_iso,
    to_moment,
    to_text,
)
from modeling_mcm.schema_mcm import TOKEN_TYPE, VISIT_DAY

from .schema import EventSchema

logger = logging.get_logger(__name__)
READER_FILE = "frame.json"  # beside a checkpoint: how the columns of its frame were read
# Words of column names by their meaning, the best first. What the values are goes before names where it says more.
WORDS = {
    "customer": (
        "customer cust household user client member visitor shopper account player subscriber guest patron borrower "
        "reader reviewer buyer donor patient subject card person email who"
    ).split(),
    "time": "timestamp datetime time date when day dt ts at on".split(),
    "visit": "session visit basket order transaction invoice hadm encounter receipt".split(),
    "token_type": "event action activity behaviour behavior kind token type operation".split(),
}
IDS = set("id ids code number no key sku zip asin type".split())  # numbers so named are no quantities
OWN = {*IDS, *WORDS["customer"]} - {"type", "zip"} | set("name unique pseudo anonymous hash uuid guid loyalty".split())
KINDS = {*WORDS["token_type"], *IDS, "name", "transaction", "trans", "user", "customer"}
NOT_EVENT_TIMES = set("due return returned birth birthday expiry expires until valid end updated modified".split())
LABELS = set(
    "item product article category brand track movie film book store page department manufacturer seller".split()
)
NO_LABELS = {*WORDS["customer"]} | set(  # who, and how it came about
    "status currency uom device platform browser channel payment mode method order ship shipping city state "
    "country".split()
)
PAID = "debit withdrawal amount paid spend spent revenue sales sum total value".split()  # of an event
WEAK = {"total", "value"}  # alone, they may be anything
PRICE, QUANTITY = ["price"], ["quantity", "qty", "units"]
NOT_PAID = set(
    "discount disc cost in credit deposit balance refunded points fee freight shipping tax taxes converted compare "
    "profit score".split()
)
NUMBERS = {*PAID, *PRICE, *QUANTITY, "rating", "count"} | NOT_PAID - {"in"}
# Words of what is no payment of the customer, of what is paid back, and of what speaks against both
UNPAID = set(
    "salary income credit deposit incoming in cr topup wage interest view click cart search wishlist browse failed "
    "canceled cancelled declined void".split()
)
PAID_BACK, PAYMENTS = set("refund refunded return returned chargeback reversal".split()), {"card", "payment"}
DIRECTIONS = {*WORDS["token_type"], "direction", "side", "transaction", "status"}  # words of columns that say so
BALANCE = {"balance", "account", "running", "saldo"}
SIGNS = {"without": 0, "minus": -1}
MOST_COLUMNS, MOST_KINDS, MOST_TASKS, ROWS_READ, MOST_ASKED = 40, 30, 5, 200_000, 3
FEW, MANY = 20, 1_000  # distinct numbers up to which they are names, and labels from which rare ones are left out
HELD_OUT = {"validation": 0.15, "test": 0.07}  # share of the log's time after each cutoff
TIME_UNITS = {"s": 1e8, "ms": 1e11, "us": 1e14, "ns": 1e17}  # of times in numbers, with their least size
COMPACT = {"%Y%m%d": (1e7, 1e8), "%y%m%d": (1e5, 1e6)}  # of days without separators, and the numbers that they are
DAYS = [f"%{a}{mark}%{b}{mark}%{year}" for mark in "/-" for a, b in ("dm", "md") for year in "Yy"]
DAYS += ["%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%m %d, %Y", "%Y%m%d"]
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
MONEY = r"[^\d-]{0,5}-?\d[\d.,]*[^\d-]{0,5}"  # "EUR 5", "1.234,56"
CLOCK = r"\d{1,2}:\d{2}(:\d{2})?"
SUFFIXES = "(?<=[a-z]{3})(id|code|key|name|time|date|uom)$"  # words that are written together with those before
Columns = Mapping[str, pd.Series]
OUTFLOW = "paid"  # a column that is added
SAME_DAY = 1.1  # events of a customer and day, on average, from which a day is a visit
USUAL = 0.999  # share of the events whose times are taken for right
VARIES = 0.02  # share of the visits with several events in which a label has several values, at least
NEARLY = 0.95  # share of the rows in which what is true of the log is true


@dataclass
class FrameReader:
    """How a data frame is read as a log.

    Attributes:
        schema (`EventSchema`): What the columns mean, also one that is added: `OUTFLOW`, what was paid, where an
            amount has a direction.
        time_format (`str`, *optional*): How the text of the times is written, as for `strptime`, or the unit of their
            numbers. Default: as the log's times are written.
        paid (`dict`): How `OUTFLOW` is computed, if it is: from the column `amount`, times that of `factor`, and by
            value of the column `direction` with a factor of `signs`. Without `direction` what is negative was paid,
            and the rest came in.
        lines (`list[str]`): What was guessed.
    """

    schema: EventSchema
    time_format: str | None = None
    paid: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def read(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with times that are times, the column that is added, and without the rows that the schema's
        `on_null` and `on_bad_row` leave out."""
        schema, frame = self.schema, even_out(frame)
        added, time = {}, str(schema.time)
        if self.time_format and time in frame:
            added[time] = _read_times(frame[time], self.time_format)
        if self.paid.get("amount") in frame and schema.amount not in frame:
            added[str(schema.amount)] = _compute_outflow(frame, **self.paid)
        frame = frame.assign(**added)
        if "drop" not in (schema.on_null, schema.on_bad_row) or not {*schema.event_columns} <= {*frame}:
            return frame
        return frame[self._find_kept(frame)]

    def _find_kept(self, frame: pd.DataFrame) -> BoolArray:
        """Marks the rows that preparation keeps, of shape `(rows,)`."""
        schema, bad = self.schema, list[BadValues]()
        columns = {name: as_column(frame[name]) for name in schema.event_columns}
        ids = read_values(schema.customer, columns[schema.customer], to_text, bad)
        positions = EventReader(schema).read(columns, len(frame), bad).positions
        is_bad = np.any([np.zeros(len(frame), bool), *(values.rows for values in bad)], axis=0)
        is_null = (ids.rank() == NO_RANK) | (positions == NO_TIME)
        is_left = np.where(is_bad, schema.on_bad_row == "drop", is_null & (schema.on_null == "drop"))
        if is_left.any():
            reasons = [f"; column {name!r} {reason}" for name, _, reason in bad]
            logger.warning(f"{is_left.sum():,} rows are left out, as the schema says{''.join(reasons)}.")
        return ~is_left

    def read_time(self, number: Any) -> Any:
        """A whole number as the log's times are read, if these are numbers too."""
        is_number = self.time_format in (*COMPACT, *TIME_UNITS)
        return _read_times(pd.Series([number]), self.time_format)[0] if is_number else number

    def to_dict(self) -> dict:
        """The reader as plain values for JSON."""
        return vars(self) | {"schema": self.schema.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "FrameReader":
        """The reader of what `to_dict` gave."""
        return cls(**{**values, "schema": EventSchema.from_dict(values["schema"])})

    @classmethod
    def guess(cls, events: pd.DataFrame, given: Mapping | None = None) -> "FrameReader":
        """Guesses what the columns of an event log mean.

        Args:
            events (`pd.DataFrame`): The log, one row an event.
            given (`Mapping`, *optional*): Keys of the schema that are known, such as `{"time": "day"}`.

        Returns:
            [`FrameReader`]: The reader. Numbers are numeric features, other columns are categorical ones, and the
            features of most labels are the tasks. What all events of a visit share, such as the device, is no label
            where something else differs in a visit. Without labels the token type is the only task. The amount is a
            column that says what was paid, or a price times a quantity beside it; a price alone may be that of one
            unit, so it is none.

        Raises:
            ValueError: If no column says who the customer is or when an event was, a time can be read in two ways, a
                column has values of several types, or there are too many columns. The message names the column and
                the fix.
        """
        given, order = dict(given or {}), str((given or {}).get("order"))
        _check_table(events)
        events = even_out(events).reset_index(drop=True)
        columns = dict(events.head(ROWS_READ).items())
        times = {name: values for name, values in columns.items() if _looks_like_time(values)}
        roles = _find_roles(columns, times, given)
        owner = events[roles["customer"]]
        customers, unknown = owner.nunique(), int(owner.isna().sum())
        if customers < 2:
            raise ValueError(f"Column {roles['customer']!r} has {customers} customer: give a log of several.")
        if unknown and "on_null" not in given:
            given["on_null"] = "drop"
        clock = Clock()
        if "time" in roles:
            if given.get("on_bad_row") == "drop":
                events = _leave_out_no_times(events, roles["time"])
            clock = _read_clock(events, roles["time"], given.get("time_zone"))
            known = clock.times.dropna()
            warn_of_late_event(events[roles["customer"]][known.index].tolist(), split_seconds(known.to_numpy())[0])
            if "visit" not in {**given, **roles} and _has_busy_days(events[roles["customer"]], clock.times):
                roles["visit"] = VISIT_DAY
        columns = dict(events.head(ROWS_READ).items())
        days = clock.times.dt.floor("D").head(ROWS_READ) if "time" in roles else None
        visits = days if roles.get("visit") == VISIT_DAY else columns.get(roles.get("visit", order))
        moments = clock.times.head(ROWS_READ) if "time" in roles else pd.Series(events.index).head(ROWS_READ)
        moments = moments if visits is None else visits
        log = Log(columns[roles["customer"]], visits, moments, days)
        features, labels = _features(columns, {*roles.values(), *times, order}, roles, log)
        if "amount" in given:
            amount = Amount(words=str(given["amount"]))
        else:
            item = columns.get(max(labels, key=labels.__getitem__, default=""))
            amount = _guess_amount(columns, features, log, item)
        schema = {"name": "events", "min_history": 1, "cutoffs": "leave_one_out"} | clock.keys
        if amount.paid and "token_type" in roles and "target_token_types" not in given:  # a salary is no visit
            is_paid = _compute_outflow(events, **amount.paid) > 0
            kinds = events[roles["token_type"]][is_paid].dropna().map(to_text)
            schema["target_token_types"] = sorted(kinds.unique())
        schema["tasks"] = sorted(labels, key=lambda name: -labels[name])[:MOST_TASKS]
        schema["tasks"] = schema["tasks"] or [roles.get("token_type") or TOKEN_TYPE]
        schema |= {"features": features + amount.added} | roles
        if "features" not in given:  # the amount is one of them
            schema["amount"] = amount.name
        schema |= {key: value for key, value in given.items() if key != "tasks" or value != []}
        built = EventSchema.from_dict(schema)
        reader = cls(built, clock.time_format, amount.paid)
        left = f"; {unknown:,} of {len(events):,} rows have none and are left out" if unknown else ""
        reader.lines = _describe(reader, list(columns), f"{customers:,} of them{left}", clock.words, amount.words)
        return reader


class Clock(NamedTuple):
    """What is guessed of the times."""

    times: pd.Series = pd.Series(dtype="datetime64[ns]")  # of each event, on the clock of the log
    time_format: str | None = None
    keys: dict = {}  # of the schema
    words: str = "in the order of the rows"


class Log(NamedTuple):
    """What is known of each event: the customer; the visit, if a column says it; else the time; and the day."""

    customers: pd.Series
    visits: pd.Series | None
    moments: pd.Series
    days: pd.Series | None


class Amount(NamedTuple):
    """What is guessed of the amount."""

    words: str
    name: str | None = None  # of the feature
    added: list[dict] = []  # features besides those of the columns
    paid: dict = {}  # see `FrameReader`


def _leave_out_no_times(events: pd.DataFrame, name: str) -> pd.DataFrame:
    """The events but those with a text that is no time, if most texts are times as a log has them."""
    bad: list[BadValues] = []
    read_values(name, as_column(events[name]), lambda value: isinstance(value, str) and to_moment(value, UTC), bad)
    return events[~bad[0].rows] if bad and bad[0].rows.mean() < 0.5 else events


def _read_clock(events: pd.DataFrame, name: str, time_zone: str | None) -> Clock:
    """Reads the times of a column, and cuts the log by them."""
    time_format = find_time_format(events[name])
    times = _read_times(events[name], time_format)
    first = events[name].dropna().iloc[0], times.dropna().iloc[0]
    how = "" if time_format is None else " ({} is {:%d %B %Y})".format(*first)
    keys: dict = {}
    if times.dt.tz is not None:
        keys["time_zone"] = time_zone or _name_zone(times.dt.tz)
        times = times.dt.tz_convert(read_zone(keys["time_zone"])).dt.tz_localize(None)
    words = f"{name!r}{how}, {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}"
    return Clock(times, time_format, keys | {"cutoffs": _find_cutoffs(times)}, words)


def _name_zone(zone: tzinfo) -> str:
    """The name of a time zone as a schema has it, or its fixed offset; +00:00 where there is neither."""
    try:
        read_zone(str(zone))
        return str(zone)
    except ValueError:
        offset = zone.utcoffset(None) or timedelta()
        return f"{'-' if offset < timedelta() else '+'}{abs(offset)!s:0>8}"[:6]


def _guess_amount(columns: Columns, features: Sequence[Mapping], log: Log, item: pd.Series | None) -> Amount:
    """Which feature says what was paid, and how it is computed. `item`: what was bought."""
    numeric = {str(each["name"]): columns[each["name"]] for each in features if each.get("kind") == "numeric"}
    name, factor = _find_amount(numeric, log, item)
    if not name:
        unsure = [name for name in numeric if _words(name) & {*PRICE, *WEAK} and not _words(name) & NOT_PAID]
        hint = f"; if {unsure[0]!r} does, give schema={{'amount': {unsure[0]!r}}}" if unsure else ""
        return Amount("none: " + (_find_text_amount(columns) or f"no column says what was paid{hint}"))
    words = f"{name!r} x {factor!r}" if factor else f"{name!r}"
    paid = _find_direction(columns, words, _multiply(columns, name, factor))
    if not paid and factor:
        return Amount(words, "amount", [{"name": "amount", "kind": "numeric", "column": name, "factor": factor}])
    if not paid:
        return Amount(words, name)
    out = OUTFLOW if OUTFLOW not in columns else f"{OUTFLOW}_out"
    direction, signs = paid.values()
    if direction is None:
        words = f"what is negative in {words}; what is positive came in and is not counted"
    else:
        kinds = [sorted(kind for kind in signs if signs[kind] == sign) for sign in SIGNS.values()]
        shown = [f"{word} {', '.join(each)}" for word, each in zip(SIGNS, kinds, strict=True) if each]
        words += f" by {direction!r}, {' and '.join(shown)}"
    return Amount(words, out, [{"name": out, "kind": "numeric"}], {"amount": name, "factor": factor, **paid})


def _find_text_amount(columns: Columns) -> str | None:
    """Says which column of text looks like an amount."""
    for name, values in columns.items():
        words, known = _words(name), values.dropna()
        if words & {*PAID, *PRICE} and not words & NOT_PAID and types.infer_dtype(known) == "string":
            if known.str.fullmatch(MONEY).all():
                return f"{name!r} is text such as {known.iloc[0]!r}: make it numbers to count it"
    return None


def _describe(reader: FrameReader, columns: Sequence[str], customers: str, when: str, amount: str) -> list[str]:
    """What was guessed, in five lines."""
    schema = reader.schema
    visit = {None: "events of one time are a visit", VISIT_DAY: "a customer's day is a visit"}
    ignored = [name for name in columns if name not in (*schema.event_columns, reader.paid.get("amount"))]
    ignored[FEW:] = [f"and {len(ignored) - FEW} more"] * (len(ignored) > FEW)
    labelled = (*schema.tasks, schema.amount)
    others = [spec.name for spec in schema.features if spec.column and spec.name not in labelled]
    labels = ", ".join(schema.tasks) if schema.has_labels else "none, so there is nothing to recommend"
    if targets := ", ".join(schema.target_token_types):
        labels += f"; visits are events of {targets}"
    return [
        f"Customer: {schema.customer!r}, {customers}",
        f"Time:     {when}; {visit.get(schema.visit, f'a visit is one {schema.visit!r}')}",
        f"Amount:   {amount}",
        f"Labels:   {labels}",
        f"Also:     {', '.join(others) or 'nothing'}" + (f"; not read: {', '.join(ignored)}" if ignored else ""),
    ]


def even_out(events: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns of numbers and texts as texts: 7 and "7" are one id. Raises `ValueError` if "007" stands
    beside 7, which may be the same id."""
    changed = {}
    for name in filter(lambda name: _is_mixed(events[name]), events):
        values = events[name].dropna().unique()
        known = {to_text(value) for value in values if not isinstance(value, str)}
        for text in values:
            if isinstance(text, str) and text.startswith("0") and text.lstrip("0") in known:
                raise ValueError(
                    f"Column {name!r} has the text {text!r} and the number {text.lstrip('0')}: if they are one, write "
                    f"events[{name!r}] = events[{name!r}].astype(str).str.lstrip('0')."
                )
        changed[name] = events[name].map(to_text)
    return events.assign(**changed) if changed else events


def _is_mixed(values: pd.Series) -> bool:
    """Whether a column has numbers and texts, or numbers of more than 64 bits."""
    kind = types.infer_dtype(values)
    if kind == "integer" and values.dtype == object:
        return bool((values.dropna().map(abs) >= 2**63).any())
    if kind not in ("mixed-integer", "mixed"):
        return False
    return all(issubclass(kind, str | Real) for kind in {type(value) for value in values.dropna()})


def _find_roles(columns: Columns, times: Columns, given: Mapping) -> dict:
    """The columns that have a role; `times` are those that look like times. Raises `ValueError` if there is none of
    the customer or the time, or several may be; the message asks."""
    roles = {role: given[role] for role in WORDS if given.get(role) is not None}
    check_columns(list(columns), roles.values(), "The table has")
    owners = [name for name, values in columns.items() if name not in times and _may_own(values)]
    if "time" not in given and given.get("order") is None:
        roles["time"] = _find_time(columns, times, owners)
    if "customer" not in given:
        when = columns.get(roles.get("time", str(given.get("order"))), pd.Series(dtype=object))
        roles["customer"] = _find_customer({name: columns[name] for name in owners}, when)
    for role in ("visit", "token_type"):
        rest = {name: values for name, values in columns.items() if name not in (*roles.values(), *times)}
        if role not in given and (name := _find_column(role, rest, columns[roles["customer"]])):
            roles[role] = name
    return roles


def _ask(role: str, names: Sequence[str], words: str = "") -> ValueError:
    """The error that asks which column has a role."""
    names = [*dict.fromkeys(names)] or ["COLUMN"]
    asked = " or ".join(map(repr, names[:MOST_ASKED]))
    return ValueError(f"{role}: {asked}? {words}Give schema={{{role!r}: {names[0]!r}}}.")


def _narrow(names: Sequence[str], *tests: Callable[[str, Sequence[str]], Any]) -> list[str]:
    """The names that pass each test, of a name and those that are left, which some of them pass."""
    left = list(names)
    for test in tests:
        left = [name for name in left if test(name, left)] or left
    return left


def _looks_like_time(values: pd.Series) -> bool:
    """Whether values are times by how they are written, and numbers by the column's name, too."""
    if is_time(values):
        return True
    if not _words(str(values.name)) & {*WORDS["time"]}:
        return False
    numbers = pd.to_numeric(values.dropna(), errors="coerce")
    return len(numbers) > 0 and _find_number_format(numbers) is not None


def _find_time(columns: Columns, times: Columns, owners: Sequence[str]) -> str:
    """The column of the event's time. Raises `ValueError` if there is none, or several may be it."""
    names = [name for name in times if not _words(name) & NOT_EVENT_TIMES]
    if not names:  # what can't be read is told by name
        named = {name: values for name, values in columns.items() if not _words(name) & NOT_EVENT_TIMES}
        dated = {name: values for name, values in named.items() if not _is_clock(values)}
        name = _find_column("time", dated) or _find_column("time", named)
        if (order := _find_order(columns, owners)) or not name:
            hint = f"as {order!r} counts each customer's visits" if order else "if a customer's rows are in order"
            raise ValueError(
                f"No column of {list(columns)} is a time: give schema={{'time': 'COLUMN'}}, or, {hint}, "
                f"schema={{'order': {order or 'rows'!r}}}."
            )
        return name
    if len(names) == 1:
        return names[0]
    read = {name: _read_some(times[name]) for name in names}
    nulls, sizes = ({name: getattr(read[name], key)() for name in names} for key in ("isna", "nunique"))
    people = [columns[name] for name in owners if _words(name) & {*WORDS["customer"]}]
    left = _narrow(
        names,
        lambda name, left: nulls[name].mean() <= min(nulls[other].mean() for other in left) + 1 - NEARLY,
        lambda name, left: not any(_determines(who, read[name]) for who in people),  # as a day of birth
        lambda name, left: _words(name) <= {*WORDS["time"]},
        lambda name, left: sizes[name] >= 0.9 * max(sizes[other] for other in left),  # no day beside a time
        lambda name, left: all((read[name] <= read[other])[~nulls[other]].mean() >= NEARLY for other in left),
    )
    if any(not read[left[0]].equals(read[name]) for name in left[1:]):
        raise _ask("time", left)
    return left[0]


def _is_clock(values: pd.Series) -> bool:
    """Whether numbers can be times of a day, such as 1631."""
    numbers = pd.to_numeric(values, errors="coerce").dropna()
    return bool(numbers.between(0, 2359).all() and (numbers % 100 < 60).all())


def _read_some(values: pd.Series) -> pd.Series:
    """The times of a column in nanoseconds, without zone; none if they can be read in several ways."""
    try:
        read = pd.to_datetime(_read_times(values, find_time_format(values)), utc=True)
    except ValueError:
        return pd.Series(pd.NaT, values.index)
    return read.dt.tz_localize(None)


def _determines(one: pd.Series, other: pd.Series) -> bool:
    """Whether nearly each value of a column that has several rows has one value of another."""
    counts = other.groupby(one, observed=True).agg(["size", "nunique"])
    counts = counts[counts["size"] > 1]
    return len(counts) > 0 and bool((counts["nunique"] <= 1).mean() >= 1 - VARIES)


def _find_order(columns: Columns, owners: Sequence[str]) -> str | None:
    """A column that counts 1, 2, 3, ... for each customer, if one is named so."""
    for who in (name for name in owners if _words(name) & {*WORDS["customer"]}):
        for name, values in columns.items():
            if types.is_integer_dtype(values) and name != who and values.nunique() > 2:
                sizes = values.groupby(columns[who], observed=True).agg(["nunique", "max", "min"])
                if ((sizes["max"] == sizes["nunique"]) & (sizes["min"] == 1)).mean() >= NEARLY:
                    return name
    return None


def _may_own(values: pd.Series) -> bool:
    """Whether the values can be ids of customers: they come again, and are no quantities."""
    known = values.dropna()
    is_whole = not types.is_float_dtype(values) or bool((known % 1 == 0).all())
    return (
        is_whole
        and not _words(str(values.name)) & NUMBERS
        and 1 <= known.nunique()
        and not types.is_bool_dtype(values)
    )


def _find_customer(columns: Columns, when: pd.Series) -> str:
    """The column of the customer. Raises `ValueError` if nothing says so, or several may be it."""
    words = {name: _words(name) for name in columns}
    named = [name for name in columns if words[name] & {*WORDS["customer"]} and words[name] <= OWN]
    nulls = {name: values.isna().mean() for name, values in columns.items()}
    left = _narrow(
        named,
        lambda name, left: nulls[name] <= 0.5,
        lambda name, left: _comes_back(columns[name], when),
        lambda name, left: words[name] <= {*IDS, *WORDS["customer"]},
        lambda name, left: nulls[name] <= min(nulls[other] for other in left) + 1 - NEARLY,
        lambda name, left: words[name] & IDS,
    )
    left.sort(key=lambda name: min(map(WORDS["customer"].index, words[name] & {*WORDS["customer"]})))
    best = next(iter(left), None)
    rivals = [name for name in left[1:] if not _is_nested(columns[left[0]], columns[name])]
    if rivals:
        raise _ask("customer", [left[0], *rivals])
    again = [name for name in columns if nulls[name] < 1 and _comes_back(columns[name], when)]
    if best and nulls[best] <= 0.5 and (best in again or not again):
        return best
    if not best and len(again) == 1 and words[again[0]] <= IDS:  # a bare `id` that comes again is no id of the row
        return again[0]
    again.sort(key=lambda name: (not words[name] & OWN, bool(words[name] & LABELS), -columns[name].nunique()))
    if not best:
        raise _ask("customer", again)
    found = f"is null in {nulls[best]:.0%} of the rows" if nulls[best] > 0.5 else "has another value at each time"
    raise _ask("customer", [best, *again], f"{best!r} {found}. ")


def _is_nested(one: pd.Series, other: pd.Series) -> bool:
    """Whether the customers of one column are groups of those of the other."""
    return _determines(one, other) or _determines(other, one)


def _comes_back(values: pd.Series, when: pd.Series) -> bool:
    """Whether some of the values come at several times."""
    rows = pd.DataFrame({"id": values, "when": when if len(when) else values.index})
    return bool(rows.dropna().drop_duplicates()["id"].duplicated().any())


def _find_amount(numeric: Columns, log: Log, item: pd.Series | None) -> tuple[str | None, str | None]:
    """The numeric column that says what was paid, if one does, and the one that multiplies it, if it is the price of
    one unit. Raises `ValueError` if several may be it."""
    words, numbers = {name: _words(name) for name in numeric}, {name: pd.to_numeric(numeric[name]) for name in numeric}
    money = [name for name in numeric if words[name] & {*PAID, *PRICE} and not words[name] & NOT_PAID]
    counts = [name for name in money if not words[name] & {*PRICE, *NO_LABELS, *IDS} and _is_count(numbers[name])]
    counts = counts if len(counts) < len(money) else []  # Ta-Feng's AMOUNT is that of units, beside a price
    units = [name for word in QUANTITY for name in numeric if word in words[name]] + counts
    paid = [name for name in money if words[name] & {*PAID} and name not in units]
    paid = [name for name in paid if not words[name] <= WEAK and not _is_total(numbers[name], log)]
    ranks = {name: min(map(PAID.index, words[name] & {*PAID})) for name in paid}
    paid = _narrow(
        paid,
        lambda name, left: numbers[name].notna().mean() >= 0.5,
        lambda name, left: words[name] <= {*PAID},
        lambda name, left: ranks[name] == min(ranks[other] for other in left),
    )
    if len(paid) > 1 and any(not numbers[paid[0]].equals(numbers[name]) for name in paid):
        raise _ask("amount", paid)
    prices = [name for name in paid or money if words[name] & {*PRICE}]
    if prices and units and not _is_of_line(numbers[prices[0]], numbers[units[0]], item):
        return prices[0], units[0]
    return next(iter(paid or prices * bool(units)), None), None


def _is_count(numbers: pd.Series) -> bool:
    """Whether numbers are those of units: whole and small."""
    return bool((numbers.dropna() % 1 == 0).all()) and numbers.median() <= 5


def _is_total(numbers: pd.Series, log: Log) -> bool:
    """Whether numbers are the same in all rows of a visit, nearly always: its total, which the rows must not add."""
    groups = numbers.groupby([log.customers, log.moments], observed=True).agg(["size", "count", "nunique"])
    groups = groups[(groups["size"] > 1) & (groups["count"] == groups["size"])]
    return len(groups) > 0 and (groups["nunique"] == 1).mean() >= NEARLY


def _is_of_line(price: pd.Series, units: pd.Series, item: pd.Series | None) -> bool:
    """Whether the price of an item grows with its units, so that it is that of all of them."""
    rows = np.log(pd.DataFrame({"price": price, "units": units}).where(lambda each: each > 0))
    rows = rows[rows.notna().all(axis=1)]
    rows -= rows.mean() if item is None else rows.groupby(item[rows.index], observed=True).transform("mean")
    return bool((rows["price"] * rows["units"]).sum() > 0.5 * (rows["units"] ** 2).sum())


def _find_direction(columns: Columns, name: str, amounts: pd.Series) -> dict:
    """Which of the amounts the customer paid, if not all: the negative ones where these are most, or those whose kind
    does not say that money came in. Raises `ValueError` if there is a balance, and nothing says which came in."""
    is_negative = (amounts < 0).sum() / max((amounts != 0).sum(), 1)
    if is_negative >= 0.5:
        return {"direction": None, "signs": {}}
    if is_negative:
        return {}
    for column, values in columns.items():
        if types.is_numeric_dtype(values) or not _words(column) & DIRECTIONS or values.nunique() > MOST_KINDS:
            continue
        words = {str(kind): _words(str(kind)) for kind in values.dropna().unique()}
        paid_back = 0 if "status" in _words(column) else -1  # what is refunded in the end was not paid
        signs = {kind: paid_back for kind, own in words.items() if own & PAID_BACK}
        signs |= {kind: 0 for kind, own in words.items() if own & UNPAID and not own & PAYMENTS}
        if 0 < len(signs) < len(words):
            return {"direction": column, "signs": signs}
    if any(_words(column) <= BALANCE for column in columns):
        raise ValueError(
            f"amount: beside a balance some of {name} may have come in, and nothing says which. Give "
            f"schema={{'amount': {name}}} if all was paid, or schema={{'amount': None}}."
        )
    return {}


def _multiply(columns: Columns | pd.DataFrame, amount: str, factor: str | None) -> pd.Series:
    """The numbers of a column, times those of another."""
    amounts = pd.to_numeric(columns[amount])
    return amounts * pd.to_numeric(columns[factor]) if factor else amounts


def _compute_outflow(
    frame: pd.DataFrame, amount: str, direction: str | None, signs: Mapping[str, int], factor: str | None = None
) -> pd.Series:
    """What was paid; the arguments are those of `FrameReader.paid`."""
    amounts = _multiply(frame, amount, factor)
    if direction is None:
        return (-amounts).clip(lower=0)
    return amounts * frame[direction].astype(str).map(signs).fillna(1)


def _check_table(events: pd.DataFrame) -> None:
    """Raises `ValueError` if names or values of columns can't be those of a log."""
    names = list(events.columns)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"Column {wrong[0]!r} has no text as its name: rename it, as in events.rename(columns=...).")
    for name in names:
        kind = types.infer_dtype(events[name])
        if kind in ("mixed", "mixed-integer", "bytes", "complex") and not _is_mixed(events[name]):
            kinds = sorted({type(value).__name__ for value in events[name].dropna().head(ROWS_READ)})
            raise ValueError(
                f"Column {name!r} has values that are neither text nor numbers ({', '.join(kinds)}): make "
                f"them so, as in events[{name!r}] = events[{name!r}].astype(str), or leave the column out."
            )
    names = [name for name in names if events[name].head(ROWS_READ).nunique() > 1]  # others say nothing
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"The table has {len(names)} columns that vary, from {names[0]!r} to {names[-1]!r}, and at most "
            f"{MOST_COLUMNS} are guessed: choose some, as in events[['customer', 'time', ...]], or give a whole "
            "EventSchema."
        )


def _words(name: str) -> set[str]:
    """The words of a column's name: "user" and "id" of user_id, UserID and userid."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return {word for part in parts for word in re.sub(SUFFIXES, r" \1", part.lower()).split()}


def _find_column(role: str, columns: Columns, customers: pd.Series | None = None) -> str | None:
    """The column that is named like a role, if its values can have it."""
    words = {name: _words(name) for name, values in columns.items() if _fits(role, values, customers)}
    for is_bare in (True, False):
        for word in WORDS[role]:
            for name, own in words.items() if is_bare or word not in IDS else ():
                if word in own and (not is_bare or own <= {word, *IDS, *WORDS[role]}):
                    return name
    return None


def _fits(role: str, values: pd.Series, customers: pd.Series | None) -> bool:
    """Whether the values of a column can have a role."""
    if role == "visit":  # of most events, not the same few for everybody, and not another one in each row
        known = values.dropna()
        is_usual = customers is not None and customers.nunique() <= known.nunique() < len(known)
        return is_usual and len(known) > len(values) / 2
    if role == "time":
        return True
    return _words(str(values.name)) <= KINDS and values.nunique() <= MOST_KINDS


def _read_times(values: pd.Series, time_format: str | None = None) -> pd.Series:
    """The times of a column: NaT where one is not written as the format says, and without a format as preparation
    reads them."""
    if types.is_datetime64_any_dtype(values):
        return values
    if time_format in TIME_UNITS:
        return pd.to_datetime(values, unit=time_format)
    if time_format is not None:
        texts = values.astype("Int64").astype("string") if types.is_numeric_dtype(values) else values
        return pd.to_datetime(texts, format=time_format, errors="coerce")
    try:
        return pd.to_datetime(values, format="mixed")
    except (ValueError, TypeError) as error:
        wrong = values[pd.to_datetime(values, format="mixed", errors="coerce", utc=True).isna() & values.notna()]
        if len(wrong):
            raise ValueError(
                f"Column {values.name!r} has {wrong.iloc[0]!r}, which is no time: correct it, or leave such rows out "
                "by schema={'on_bad_row': 'drop'}."
            ) from error
        fix = f"write events[{values.name!r}] = pd.to_datetime(events[{values.name!r}], utc=True)."
        raise ValueError(f"Column {values.name!r} has no times of one kind ({error}): {fix}") from error


def _read_texts(texts: pd.Series) -> dict[str, pd.Series]:
    """The times of texts by each format that reads all of them."""
    readings = {day + clock: texts for day in DAYS for clock in CLOCKS}
    for rows in (20, len(texts)):
        read = {each: _read_times(texts.head(rows), each) for each in readings}
        readings = {each: times for each, times in read.items() if times.notna().all()}
    return readings


def is_time(values: pd.Series) -> bool:
    """Whether a column has times, as such or as text."""
    known = values.dropna()
    kind = types.infer_dtype(known)
    if kind in ("date", "datetime", "datetime64"):
        return True
    if kind != "string" or not len(known):
        return False
    texts = known.drop_duplicates()
    return bool(texts.str.match(TIME_PATTERN).all() or {*_read_texts(texts)} - {*COMPACT})


def find_time_format(times: pd.Series) -> str | None:
    """How the times of a column are written; None if as those of a log are. Raises `ValueError` if they can't be read,
    or in two ways; the message says how to make some."""
    known, name = times.dropna().drop_duplicates(), times.name
    if not len(known):
        raise ValueError(f"Column {name!r} has no time: fill it, or give schema={{'time': 'COLUMN'}}.")
    if types.infer_dtype(known).startswith("timedelta"):
        raise ValueError(
            f"Column {name!r} has durations such as {known.iloc[0]}, expected times: add them to the time at which "
            f"they begin, as in events[{name!r}] = pd.Timestamp('2024-01-01') + events[{name!r}]."
        )
    fix = f"events[{name!r}] = pd.to_datetime(events[{name!r}]"
    if types.is_numeric_dtype(times):
        if form := _find_number_format(known):
            return form
        raise ValueError(
            f"Column {name!r} has numbers such as {known.iloc[0]}, expected times: add them to the time at which they "
            f"begin, as in events[{name!r}] = pd.Timestamp('2024-01-01') + pd.to_timedelta(events[{name!r}], 'D')."
        )
    if types.infer_dtype(known) != "string" or known.str.match(TIME_PATTERN).all():
        return None
    formats: dict[tuple, str] = {}  # by what is read
    for time_format, read in _read_texts(known).items():
        formats.setdefault(tuple(read), time_format)
    if not formats:
        wrong = next(value for value in known if not re.match(TIME_PATTERN, value))
        raise ValueError(
            f"Column {name!r} has {wrong!r}, expected times such as 2024-03-01 12:30: write {fix}, format=...)."
        )
    if len(formats) > 1:
        ways = " or ".join(f"{read[0]:%d %B %Y} (format={each!r})" for read, each in formats.items())
        raise ValueError(
            f"Column {name!r} has {known.iloc[0]!r}, which is {ways}, and no row says which: write {fix}, format=...)."
        )
    return next(iter(formats.values()))


def _find_number_format(numbers: pd.Series) -> str | None:
    """How times in numbers are written, if these are some: as days, or in a unit."""
    for form, (least, most) in COMPACT.items():
        if numbers.between(least, most, "left").all() and _read_times(numbers, form).notna().all():
            return form
    units = (unit for unit, least in TIME_UNITS.items() if numbers.between(least, 1000 * least, "left").all())
    return next(units, None)


def _has_busy_days(customers: pd.Series, times: pd.Series) -> bool:
    """Whether customers have several events at different times of one day, as in a bank, so that a day is a visit."""
    keys = pd.DataFrame({"customer": customers.to_numpy(), "time": times.to_numpy()}).dropna().drop_duplicates()
    return len(keys) >= SAME_DAY * len(keys.assign(time=keys["time"].dt.floor("D")).drop_duplicates())


def _varies(values: pd.Series, customers: pd.Series, visits: pd.Series) -> bool:
    """Whether visits with several events often have several values."""
    counts = values.groupby([customers, visits], observed=True).agg(["size", "nunique"])
    return bool((counts.loc[counts["size"] > 1, "nunique"] > 1).mean() >= VARIES)


def _features(columns: Columns, read: Set[str], roles: Mapping, log: Log) -> tuple[list[dict], dict[str, int]]:
    """Features of the columns but those that are read otherwise, and the number of labels of those that can be
    tasks."""
    features = []
    labels, varying = {}, {}
    if "token_type" in roles:
        features.append({"name": roles["token_type"]})
    customers, visits = log.customers, log.visits
    for name, values in columns.items():
        number, words = values.nunique(), _words(name)
        if name in read or number < 2:
            continue
        is_number = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
        is_counted = bool(words & NUMBERS and not words & {"id", "code"})
        is_counted |= name.lower().startswith("number")  # `number_of_cds` is no id
        kind, known = types.infer_dtype(values), values.dropna()
        is_number |= kind == "decimal"
        if kind == "string":  # 1.50 is no id
            is_number |= is_counted and bool(pd.to_numeric(known, errors="coerce").notna().all())
            is_number |= bool(known.str.fullmatch(r"-?\d+\.\d+").all())
        is_id = not is_number or bool(words & {*IDS, *LABELS, *WORDS["customer"]})
        if not is_number and known.astype(str).str.fullmatch(CLOCK).all():
            continue  # the time of the day, beside the date
        feature = {"name": name} if name != TOKEN_TYPE else {"name": f"{name}_column", "column": name}
        if is_number and (is_counted or not (is_id or number <= FEW)):
            features.append(feature | {"kind": "numeric"})
        elif not _is_own(values, log):
            features.append(feature | ({"min_count": 5} if number > MANY else {}))
            if is_id and not _is_no_label(values, log):
                labels[feature["name"]] = number
                if visits is not None and _varies(values, customers, visits):
                    varying[feature["name"]] = number
    kinds = columns.get(roles.get("token_type", ""))
    if varying or (visits is not None and kinds is not None and _varies(kinds, customers, visits)):
        labels = varying
    if rich := {name: number for name, number in labels.items() if number > 2 and not _words(name) & NO_LABELS}:
        labels = rich
    if "time" in roles:
        features += [{"name": name, "kind": name} for name in ("weekday", "days_since_visit") if name not in columns]
    return features, labels


def _is_own(values: pd.Series, log: Log) -> bool:
    """Whether the values, of which there are many, nearly all come at one moment, as a remark or the number of an
    order, or say again who the customer is."""
    number = values.nunique()
    if number > len(values) / 2 or number <= FEW:
        return number > FEW
    rows = pd.DataFrame({"value": values, "customer": log.customers, "moment": log.moments}).dropna().drop_duplicates()
    if not rows["value"].duplicated(keep=False).mean() > 1 - NEARLY:
        return True
    return _determines(values, log.customers) and _determines(log.customers, values)


def _is_no_label(values: pd.Series, log: Log) -> bool:
    """Whether a column says yes or no, is of the customer or of the day, or counts the lines of a visit."""
    if types.is_bool_dtype(values) or _determines(log.customers, values):
        return True
    if log.days is not None:
        shared = log.days[log.customers.groupby(log.days).transform("nunique") > 1]  # days of several customers
        if shared.nunique() >= FEW and _determines(shared, values):
            return True
    if log.visits is None or not types.is_integer_dtype(values):
        return False
    return bool((values.groupby([log.customers, log.visits]).rank() == values).mean() >= NEARLY)


def _find_cutoffs(times: pd.Series) -> dict:
    """Times that leave the last parts of a log's time for validation and test."""
    last, span = times.max(), times.max() - times.min()
    if not span:
        raise ValueError(f"Column {times.name!r} has one time only, {last}: give a log of several days.")
    unit = "D" if span > pd.Timedelta(days=30) else "s"
    return {name: (last - share * span).floor(unit).to_pydatetime() for name, share in HELD_OUT.items()}


def warn_of_late_event(ids: Sequence[str], times: IntArray) -> None:
    """Warns if the latest time, in seconds, lies far after nearly all others: answers then count from it."""
    order = np.argsort(times, kind="stable")
    usual = times[order[min(len(order) - 2, int(USUAL * (len(order) - 1)))]] if len(order) > 1 else times.max()
    first, last = times[order[[0, -1]]]
    if last - usual > max(usual - first, 30 * SECONDS_PER_DAY):
        logger.warning(
            f"Customer {ids[order[-1]]!r} has an event at {to_iso(last)}, long after those of the others, which end "
            f"about {to_iso(usual)}: answers count from the latest event. Correct it, leave it out, or give `as_of`."
        )
