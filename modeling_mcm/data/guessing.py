# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a data frame as an event log: guesses what its columns mean from their names and contents.

    reader = FrameReader.guess(frame)
    print(reader)                  # five lines: customer, time, amount, labels, and what else is read
    log = reader.read(frame)       # with times as times, and the columns that the schema adds

The schema is an [`EventSchema`] like any other: `yaml.safe_dump(reader.schema.to_dict())` is the file to edit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types
from transformers.utils import logging

from modeling_mcm.events_mcm import (
    NO_RANK,
    NO_TIME,
    BadValues,
    BoolArray,
    EventReader,
    as_column,
    map_distinct,
    read_values,
    to_id,
    to_text,
)
from modeling_mcm.schema_mcm import TOKEN_TYPE, VISIT_DAY

from .guess_amount import Amount, compute_outflow, find_money, guess_amount, read_money
from .guess_columns import FEW, Log, find_features, find_roles, looks_like_time
from .guess_times import (
    NUMBERS,
    Clock,
    find_cutoffs,
    has_busy_days,
    leave_out_no_times,
    parse_times,
    read_clock,
)
from .schema import NO_CUTOFFS, EventSchema
from .tables import to_frame

logger = logging.get_logger(__name__)
READER_FILE = "frame.json"  # beside a checkpoint: how the columns of its frame were read
MOST_COLUMNS, MOST_TASKS = 40, 5
ROWS_READ, ROWS_OF_BLOCK = 200_000, 10_000  # of a longer log blocks from start to end say what columns are
OFTEN = 5  # times as many rows as the second customer: so many are rarely one person's
LEAST_TIMES = 3  # of visits, of which the last two can be held out


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
        money (`dict[str, str]`): Columns with amounts in text, such as "$2.78", and their decimal marks.
        lines (`list[str]`): What was guessed.
    """

    schema: EventSchema
    time_format: str | None = None
    paid: dict = field(default_factory=dict)
    money: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def read(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with times that are times, the column that is added, and without the rows that the schema's
        `on_null` and `on_bad_row` leave out."""
        schema, frame = self.schema, even_out(frame)
        added, time = {}, str(schema.time)
        if self.time_format and time in frame:
            added[time] = parse_times(frame[time], self.time_format)
        for name in {*self.money} & {*frame}:
            if types.infer_dtype(texts := frame[name]) == "string":
                numbers = read_money(texts, self.money[name])
                added[name] = texts.astype(object).where(numbers.isna(), numbers).infer_objects()
        frame = frame.assign(**added)
        if self.paid.get("amount") in frame and schema.amount not in frame:
            frame = frame.assign(**{str(schema.amount): compute_outflow(frame, **self.paid)})
        if "drop" not in (schema.on_null, schema.on_bad_row) or not {*schema.event_columns} <= {*frame}:
            return frame
        return frame[self._find_kept(frame)]

    def _find_kept(self, frame: pd.DataFrame) -> BoolArray:
        """Marks the rows that preparation keeps, of shape `(rows,)`."""
        schema, bad = self.schema, list[BadValues]()
        columns = {name: as_column(frame[name]) for name in schema.event_columns}
        ids = read_values(schema.customer, columns[schema.customer], to_id, bad)
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
        return parse_times(pd.Series([number]), self.time_format)[0] if self.time_format in NUMBERS else number

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
        texts, money = events, find_money(events)
        events = events.assign(**{name: read_money(events[name], mark) for name, mark in money.items()})
        some = _choose_rows(events)
        columns = dict(some.items())
        times = {name: values for name, values in columns.items() if looks_like_time(values)}
        roles = find_roles(columns, times, given)
        owners = _map(events[roles["customer"]], to_id)
        customers, unknown = owners.value_counts(), int(owners.isna().sum())
        if len(customers) < 2:
            raise ValueError(f"Column {roles['customer']!r} has {len(customers)} customer: give a log of several.")
        if unknown and "on_null" not in given:
            given["on_null"] = "drop"
        clock = Clock()
        if "time" in roles:
            written = events[roles["time"]]
            clock = read_clock(
                leave_out_no_times(written) if given.get("on_bad_row") == "drop" else written, given.get("time_zone")
            )
            if "visit" not in {**given, **roles} and has_busy_days(owners, clock.times):
                roles["visit"] = VISIT_DAY
        moments = clock.times[some.index] if "time" in roles else pd.Series(some.index, some.index)
        days = moments.dt.floor("D") if "time" in roles else None
        visits = days if roles.get("visit") == VISIT_DAY else columns.get(roles.get("visit", order))
        log = Log(columns[roles["customer"]], visits, moments if visits is None else visits, days)
        features, labels = find_features(columns, {*roles.values(), *times, order}, roles, log)
        if "amount" in given:
            amount = Amount(words=str(given["amount"]))
        else:
            item = columns.get(max(labels, key=labels.__getitem__, default=""))
            amount = guess_amount(columns, features, log, item, events)
        schema = {"name": "events", "min_history": 1, "cutoffs": "leave_one_out"} | clock.keys
        if amount.paid and "token_type" in roles and "target_token_types" not in given:  # a salary is no visit
            is_paid = compute_outflow(events, **amount.paid) > 0
            schema["target_token_types"] = sorted(
                _map(events[roles["token_type"]][is_paid], to_text).dropna().unique()
            )
        tasks = sorted(labels, key=lambda name: -labels[name])[:MOST_TASKS]
        schema["tasks"] = tasks or [roles.get("token_type") or TOKEN_TYPE]
        schema |= {"features": features + amount.added} | roles
        if "features" not in given:  # the amount is one of them
            schema["amount"] = amount.name
        schema |= {key: value for key, value in given.items() if key != "tasks" or value != []}
        if "cutoffs" not in given:
            is_counted = owners.notna()
            if targets := schema.get("target_token_types"):
                is_counted &= _map(events[roles["token_type"]], to_text).isin([*map(to_text, targets)])
            if "time" in roles:
                schema["cutoffs"] = find_cutoffs(clock.times[is_counted])
            elif log.moments.groupby(log.customers).nunique().max() < LEAST_TIMES:
                schema["cutoffs"] = NO_CUTOFFS
        built = EventSchema.from_dict(schema)
        reader = cls(built, clock.time_format, amount.paid, money)
        for name in [name for name in money if name in amount.words][:1]:
            row = texts[name].first_valid_index()
            amount = amount._replace(words=f"{amount.words} ({texts[name][row]!r} is {events[name][row]:.10g})")
        left = f"; {unknown:,} of {len(events):,} rows have none and are left out" if unknown else ""
        reader.lines = _describe(reader, list(columns), f"{len(customers):,} of them{left}", clock.words, amount.words)
        reader.lines += _ask_who(events[roles["customer"]], customers)
        return reader


def _choose_rows(events: pd.DataFrame) -> pd.DataFrame:
    """Blocks of a log's rows, in which visits are whole."""
    parts = max(1, math.ceil(len(events) / ROWS_READ))
    return events[np.arange(len(events)) // ROWS_OF_BLOCK % parts == 0]


def _map(column: pd.Series, function: Callable) -> pd.Series:
    """A column whose values are converted, each distinct one once."""
    return pd.Series(map_distinct(as_column(column), function, object), column.index)


def _ask_who(column: pd.Series, rows: pd.Series) -> list[str]:
    """A line that asks if a customer is one, whose number of rows says otherwise. `rows`: by id, the most first."""
    if len(rows) <= FEW or rows.iloc[0] < OFTEN * rows.iloc[1]:
        return []
    written = [value for value in column.unique().tolist() if to_id(value) == rows.index[0]]
    return [
        f"Is {rows.index[0]!r} one customer? {rows.iloc[0]:,} of {rows.sum():,} rows are read as such. If they are of "
        f"guests, leave them out: events = events[~events[{column.name!r}].isin({written})]."
    ]


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
    """The frame with types of pandas itself, and columns of numbers and texts, or of times and texts, as texts: 7 and
    "7" are one id. Raises `ValueError` if "007" stands beside 7, which may be the same id."""
    changed: dict[str, pd.Series] = {}
    if arrow := [name for name, kind in events.dtypes.items() if isinstance(kind, pd.ArrowDtype)]:
        plain = to_frame(pa.Table.from_pandas(events[arrow], preserve_index=False))
        events = events.assign(**dict(plain.set_axis(events.index).items()))
    for name in filter(lambda name: _is_mixed(events[name]), events):
        values = events[name].dropna().unique()
        known = {to_text(value) for value in values if not isinstance(value, str)}
        for text in values:
            if isinstance(text, str) and text.startswith("0") and text.lstrip("0") in known:
                raise ValueError(
                    f"Column {name!r} has the text {text!r} and the number {text.lstrip('0')}: if they are one, write "
                    f"events[{name!r}] = events[{name!r}].astype(str).str.lstrip('0')."
                )
        changed[name] = events[name].map(  # a time keeps its zone
            lambda value: str(value) if isinstance(value, datetime) else to_text(value), na_action="ignore"
        )
    return events.assign(**changed) if changed else events


def _is_mixed(values: pd.Series) -> bool:
    """Whether a column has numbers and texts, times and texts, or numbers of more than 64 bits."""
    kind = types.infer_dtype(values)
    if kind == "integer" and values.dtype == object:
        return bool((values.dropna().map(abs) >= 2**63).any())
    if kind not in ("mixed-integer", "mixed"):
        return False
    return all(issubclass(kind, str | Real | date) for kind in {type(value) for value in values.dropna()})


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
    some = _choose_rows(events)
    names = [name for name in names if some[name].nunique() > 1]  # others say nothing
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"The table has {len(names)} columns that vary, from {names[0]!r} to {names[-1]!r}, and at most "
            f"{MOST_COLUMNS} are guessed: choose some, as in events[['customer', 'time', ...]], or give a whole "
            "EventSchema."
        )
