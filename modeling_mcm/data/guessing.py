# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a data frame as an event log: guesses what its columns mean from their names and contents.

    reader = FrameReader.guess(frame)
    print(reader)                  # five lines: customer, time, amount, labels, and what else is read
    log = reader.read(frame)       # with times as times, and the columns that the schema adds

The schema is an [`EventSchema`] like any other: `yaml.safe_dump(reader.schema.to_dict())` is the file to edit.
"""

import re
from collections.abc import Mapping, Sequence
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
# Words of column names by their meaning; the first word that a name has decides, and the first column. A name that
# has nothing else but words for ids goes before: `user_id` before `user_age`.
WORDS = {
    "customer": (
        "customer cust household user client member visitor shopper account player subscriber guest patron borrower "
        "reader buyer donor card person who"
    ).split(),
    "time": "timestamp datetime time date when day dt ts at on".split(),
    "visit": "session visit basket order transaction invoice".split(),
    "token_type": "event action activity behaviour behavior kind token type".split(),
}
IDS = set("id ids code number no key sku zip asin type".split())  # numbers so named are no quantities
NOT_EVENT_TIMES = set("due return returned birth birthday expiry expires until valid end".split())
LABELS = set(
    "item product article category brand track movie film book store page department manufacturer seller".split()
)
PAID = "debit withdrawal amount paid spend spent revenue sales total value".split()  # of an event
PRICE, QUANTITY = ["price"], ["quantity", "qty", "units"]
NOT_PAID = set("discount cost in credit deposit balance".split())
NUMBERS = {*PAID, *PRICE, *QUANTITY, "rating", "count"} | NOT_PAID - {"in"}
# Words of what is no payment of the customer, of what is paid back, and of what speaks against both
UNPAID = set(
    "salary income credit deposit incoming in cr topup wage interest view click cart search wishlist browse".split()
)
PAID_BACK, PAYMENTS = set("refund refunded return returned chargeback reversal".split()), {"card", "payment"}
DIRECTIONS = {*WORDS["token_type"], "direction", "side", "transaction"}  # words of columns that say so
SIGNS = {"without": 0, "minus": -1}
NEEDED = {"customer": "", "time": ", or schema={'order': 'rows'} if a customer's rows are in order"}
MOST_COLUMNS, MOST_KINDS, MOST_TASKS, ROWS_READ = 40, 30, 5, 200_000
FEW, MANY = 20, 1_000  # distinct numbers up to which they are names, and labels from which rare ones are left out
HELD_OUT = {"validation": 0.15, "test": 0.07}  # share of the log's time after each cutoff
TIME_UNITS = {"s": 1e8, "ms": 1e11, "us": 1e14, "ns": 1e17}  # of times in numbers, with their least size
COMPACT = "%Y%m%d"  # of days without separators
DAYS = [f"%{a}{mark}%{b}{mark}%{year}" for mark in "/-" for a, b in ("dm", "md") for year in "Yy"]
DAYS += ["%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", COMPACT]
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
MONEY = r"[^\d-]{0,5}-?\d[\d.,]*[^\d-]{0,5}"  # "EUR 5", "1.234,56"
CLOCK = r"\d{1,2}:\d{2}(:\d{2})?"
Columns = Mapping[str, pd.Series]
OUTFLOW = "paid"  # a column that is added
SAME_DAY = 1.1  # events of a customer and day, on average, from which a day is a visit
USUAL = 0.999  # share of the events whose times are taken for right
VARIES = 0.02  # share of the visits with several events in which a label has several values, at least


@dataclass
class FrameReader:
    """How a data frame is read as a log.

    Attributes:
        schema (`EventSchema`): What the columns mean, also one that is added: `OUTFLOW`, what was paid, where an
            amount has a direction.
        time_format (`str`, *optional*): How the text of the times is written, as for `strptime`, or the unit of their
            numbers. Default: as the log's times are written.
        paid (`dict`): How `OUTFLOW` is computed, if it is: from the column `amount`, and by value of the column
            `direction` with a factor of `signs`. Without `direction` what is negative was paid, and the rest came in.
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
        is_number = self.time_format in (COMPACT, *TIME_UNITS)
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
        given = dict(given or {})
        _check_table(events)
        events = even_out(events)
        roles = _find_roles(dict(events.head(ROWS_READ).items()), given)
        customers = events[roles["customer"]].nunique()
        if customers < 2:
            raise ValueError(f"Column {roles['customer']!r} has {customers} customer: give a log of several.")
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
        visits = columns.get(roles.get("visit", ""))
        if roles.get("visit") == VISIT_DAY:
            visits = clock.times.dt.floor("D").head(ROWS_READ)
        features, labels = _features(columns, roles, visits)
        amount = Amount(words=str(given["amount"])) if "amount" in given else _guess_amount(columns, features)
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
        reader.lines = _describe(reader, list(columns), customers, clock.words, amount.words)
        return reader


class Clock(NamedTuple):
    """What is guessed of the times."""

    times: pd.Series = pd.Series(dtype="datetime64[ns]")  # of each event, on the clock of the log
    time_format: str | None = None
    keys: dict = {}  # of the schema
    words: str = "in the order of the rows"


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


def _guess_amount(columns: Columns, features: Sequence[Mapping]) -> Amount:
    """Which feature says what was paid, and how it is computed."""
    found = _find_amount(features)
    if not found:
        return Amount("none: " + (_find_text_amount(columns) or "no column says what was paid"))
    if "factor" in found:
        return Amount(f"{found['column']!r} x {found['factor']!r}", found["name"], [found])
    paid = _find_direction(columns, found["name"])
    if not paid:
        return Amount(f"{found['name']!r}", found["name"])
    name = OUTFLOW if OUTFLOW not in columns else f"{OUTFLOW}_out"
    amount, direction, signs = paid.values()
    words = f"what is negative in {amount!r}; what is positive came in and is not counted"
    if direction is not None:
        kinds = [[kind for kind in signs if signs[kind] == sign] for sign in SIGNS.values()]
        shown = [f"{word} {', '.join(each)}" for word, each in zip(SIGNS, kinds, strict=True) if each]
        words = f"{amount!r} by {direction!r}, {' and '.join(shown)}"
    return Amount(words, name, [{"name": name, "kind": "numeric"}], paid)


def _find_text_amount(columns: Columns) -> str | None:
    """Says of a column of text that looks like an amount how it becomes one of numbers."""
    for name, values in columns.items():
        words, known = _words(name), values.dropna()
        if not words & {*PAID, *PRICE} or words & NOT_PAID or types.infer_dtype(known) != "string":
            continue
        if len(known) and known.str.fullmatch(MONEY).all():
            is_comma = known.str.contains(r",\d{1,2}\D*$").any()  # else a comma divides thousands
            to_point = ".str.replace('.', '').str.replace(',', '.')" if is_comma else ".str.replace(',', '')"
            code = f"events[{name!r}].str.extract(r'(-?\\d[\\d.,]*)')[0]{to_point}"
            fix = f"events[{name!r}] = {code}.astype(float)"
            return f"{name!r} is text such as {known.iloc[0]!r}. To count it, write {fix}"
    return None


def _describe(reader: FrameReader, columns: Sequence[str], customers: int, when: str, amount: str) -> list[str]:
    """What was guessed, in five lines."""
    schema = reader.schema
    visit = {None: "events of one time are a visit", VISIT_DAY: "a customer's day is a visit"}
    ignored = ", ".join(name for name in columns if name not in (*schema.event_columns, reader.paid.get("amount")))
    labelled = (*schema.tasks, schema.amount)
    others = [spec.name for spec in schema.features if spec.column and spec.name not in labelled]
    labels = ", ".join(schema.tasks) if schema.has_labels else "none, so there is nothing to recommend"
    if targets := ", ".join(schema.target_token_types):
        labels += f"; visits are events of {targets}"
    return [
        f"Customer: {schema.customer!r}, {customers:,} of them",
        f"Time:     {when}; {visit.get(schema.visit, f'a visit is one {schema.visit!r}')}",
        f"Amount:   {amount}",
        f"Labels:   {labels}",
        f"Also:     {', '.join(others) or 'nothing'}" + (f"; not read: {ignored}" if ignored else ""),
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


def _find_roles(columns: Columns, given: Mapping) -> dict:
    """The columns that have a role. Raises `ValueError` if there is none of the customer or the time."""
    roles = {role: given[role] for role in WORDS if given.get(role) is not None}
    check_columns(list(columns), roles.values(), "The table has")
    for role in WORDS:
        if role == "time" and given.get("order") is not None:
            continue
        if role not in given:
            rest = {name: values for name, values in columns.items() if name not in roles.values()}
            if name := _find_column(role, rest, columns.get(roles.get("customer", ""))):
                roles[role] = name
        if role in NEEDED and role not in roles:
            raise ValueError(
                f"No column of {list(columns)} is named like a {role}: give schema={{{role!r}: 'COLUMN'}}"
                f"{NEEDED[role]}."
            )
    return roles


def _find_amount(features: Sequence[Mapping]) -> dict:
    """The numeric feature that says what was paid: one of the features, a new one with a `factor`, or none."""
    numeric = {str(each["name"]): _words(each["name"]) for each in features if each.get("kind") == "numeric"}
    paid, prices, quantities = (
        [name for word in words for name, own in numeric.items() if word in own and not own & NOT_PAID]
        for words in (PAID, PRICE, QUANTITY)
    )
    paid = [name for name in paid if name not in quantities]
    if paid:
        return {"name": paid[0]}
    if prices and quantities:
        return {"name": "amount", "kind": "numeric", "column": prices[0], "factor": quantities[0]}
    return {}


def _find_direction(columns: Columns, amount: str) -> dict:
    """Which of the amounts the customer paid, if not all: the negative ones where these are most, or those whose kind
    does not say that money came in."""
    amounts = pd.to_numeric(columns[amount])
    is_negative = (amounts < 0).sum() / max((amounts != 0).sum(), 1)
    if is_negative >= 0.5:
        return {"amount": amount, "direction": None, "signs": {}}
    for name, values in columns.items():
        if is_negative or types.is_numeric_dtype(values) or not _words(name) & DIRECTIONS:
            continue
        kinds = [*values.dropna().unique()]
        words = {str(kind): _words(str(kind)) for kind in kinds}
        signs = {kind: -1 for kind, own in words.items() if own & PAID_BACK}
        signs |= {kind: 0 for kind, own in words.items() if own & UNPAID and not own & PAYMENTS}
        if len(kinds) <= MOST_KINDS and 0 < len(signs) < len(kinds):
            return {"amount": amount, "direction": name, "signs": signs}
    return {}


def _compute_outflow(frame: pd.DataFrame, amount: str, direction: str | None, signs: Mapping[str, int]) -> pd.Series:
    """What was paid; the arguments are those of `FrameReader.paid`."""
    amounts = pd.to_numeric(frame[amount])
    if direction is None:
        return (-amounts).clip(lower=0)
    return amounts * frame[direction].astype(str).map(signs).fillna(1)


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
        kind = types.infer_dtype(events[name])
        if kind in ("mixed", "mixed-integer", "bytes", "complex") and not _is_mixed(events[name]):
            kinds = sorted({type(value).__name__ for value in events[name].dropna().head(ROWS_READ)})
            raise ValueError(
                f"Column {name!r} has values that are neither text nor numbers ({', '.join(kinds)}): make "
                f"them so, as in events[{name!r}] = events[{name!r}].astype(str), or leave the column out."
            )


def _words(name: str) -> set[str]:
    """The words of a column's name: "user" and "id" of user_id, UserID and userid."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return {word for part in parts for word in re.sub("(?<=[a-z]{3})(id|code)$", r" \1", part.lower()).split()}


def _find_column(role: str, columns: Columns, customers: pd.Series | None) -> str | None:
    """The column that a role is guessed to have."""
    fitting = {name: values for name, values in columns.items() if _fits(role, values, customers)}
    dated = [name for name in fitting if role == "time" and is_time(fitting[name])]
    names = dated or [*fitting]
    if role == "customer":  # `card_number` before `card_type`
        names.sort(key=lambda name: -fitting[name].nunique())
    for is_bare in (True, False):
        for word in WORDS[role]:
            for name in names if is_bare or word not in IDS else ():
                words = _words(name)
                if word in words and (not is_bare or words <= {word, *IDS, *WORDS[role]}):
                    return name
    if role == "customer":  # a bare `id` that comes again is no id of the row
        dated = [name for name in names if _words(name) <= IDS and fitting[name].duplicated().any()]
    return next(iter(dated), None)


def _fits(role: str, values: pd.Series, customers: pd.Series | None) -> bool:
    """Whether the values of a column can have a role."""
    words = _words(str(values.name))
    if role == "time":  # what can't be read is told by name
        return not words & NOT_EVENT_TIMES
    if is_time(values) or (role == "customer" and words & NUMBERS):
        return False
    if role == "visit":  # of most events, not the same few for everybody, and not another one in each row
        known = values.dropna()
        is_usual = customers is not None and customers.nunique() <= known.nunique() < len(known)
        return is_usual and len(known) > len(values) / 2
    return role != "token_type" or values.nunique() <= MOST_KINDS


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
    return bool(texts.str.match(TIME_PATTERN).all() or {*_read_texts(texts)} - {COMPACT})


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
        if known.between(1e7, 1e8).all() and _read_times(known, COMPACT).notna().all():
            return COMPACT
        for unit, least in TIME_UNITS.items():
            if known.between(least, 1000 * least, inclusive="left").all():
                return unit
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


def _has_busy_days(customers: pd.Series, times: pd.Series) -> bool:
    """Whether customers have several events at different times of one day, as in a bank, so that a day is a visit."""
    keys = pd.DataFrame({"customer": customers.to_numpy(), "time": times.to_numpy()}).dropna().drop_duplicates()
    return len(keys) >= SAME_DAY * len(keys.assign(time=keys["time"].dt.floor("D")).drop_duplicates())


def _varies(values: pd.Series, customers: pd.Series, visits: pd.Series) -> bool:
    """Whether visits with several events often have several values."""
    counts = values.groupby([customers, visits], observed=True).agg(["size", "nunique"])
    return bool((counts.loc[counts["size"] > 1, "nunique"] > 1).mean() >= VARIES)


def _features(columns: Columns, roles: Mapping, visits: pd.Series | None) -> tuple[list[dict], dict[str, int]]:
    """Features of the columns without another role, and the number of labels of those that can be tasks. `visits`:
    the visit of each event, if it is known."""
    features = []
    labels, varying = {}, {}
    if "token_type" in roles:
        features.append({"name": roles["token_type"]})
    customers = columns[roles["customer"]]
    for name, values in columns.items():
        number, words = values.nunique(), _words(name)
        if name in roles.values() or number < 2 or is_time(values):
            continue
        is_number = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
        is_counted = bool(words & NUMBERS) or name.lower().startswith("number")  # `number_of_cds` is no id
        kind, known = types.infer_dtype(values), values.dropna()
        is_number |= kind == "decimal"
        if kind == "string":  # 1.50 is no id
            is_number |= is_counted and bool(pd.to_numeric(known, errors="coerce").notna().all())
            is_number |= bool(known.str.fullmatch(r"-?\d+\.\d+").all())
        is_id = not is_number or bool(words & (IDS | LABELS))
        if not is_number and known.astype(str).str.fullmatch(CLOCK).all():
            continue  # the time of the day, beside the date
        feature = {"name": name} if name != TOKEN_TYPE else {"name": f"{name}_column", "column": name}
        if is_number and (is_counted or not (is_id or number <= FEW)):
            features.append(feature | {"kind": "numeric"})
        elif number <= max(FEW, len(values) / 2):  # else it is different in each event, such as a remark
            features.append(feature | ({"min_count": 5} if number > MANY else {}))
            if is_id and (values.groupby(customers, observed=True).nunique() > 1).any():  # else it is the customer's
                labels[feature["name"]] = number
                if visits is not None and _varies(values, customers, visits):
                    varying[feature["name"]] = number
    kinds = columns.get(roles.get("token_type", ""))
    if varying or (visits is not None and kinds is not None and _varies(kinds, customers, visits)):
        labels = varying
    if "time" in roles:
        features += [{"name": name, "kind": name} for name in ("weekday", "days_since_visit") if name not in columns]
    return features, labels


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
