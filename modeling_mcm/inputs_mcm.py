# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From rows of ids to model inputs: the window that is read, padding, the start row, the prediction time.

Shapes: B customers, L events of the longest input (start row included), J features in the order of `features`, N
numeric features of events.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .configuration_mcm import UNKNOWN_ID
from .events_mcm import SECONDS_PER_DAY, BoolArray, IntArray, run_starts

logger = logging.get_logger(__name__)

CUSTOMER = "customer_id"  # the column of rows and of predictions that names the customer
PER_EVENT = ("times", "visits", "feature_", "value_", "task_", "unseen_")  # columns with an entry per event


class InputLayout(NamedTuple):
    """Where the features of a row stand in a model input."""

    sizes: dict[str, int]  # by feature the number of its ids, in the order of the axis J
    profile: frozenset[str]  # names of the customer's features, which stand in the start row
    numeric: tuple[str, ...]  # names of the numeric features of events, in the order of the axis N
    start: tuple[int, int]  # index of the token type on the axis J, and its id in the start row
    closing: int  # token type of the event that closes a visit, -1 where none does
    targets: frozenset[int]  # token types of targets, with one of which a visit is closed


@dataclass(eq=False)
class Customers(Sequence[Mapping]):
    """Rows of customers, column by column: a column of events is one array, the events of one row after those of the
    row before. To select events copies none; a column is copied when it is read. As a sequence it gives dicts.

    Args:
        columns (`dict`): By name an array of shape `(events,)`, or a list with a value for each row.
        lengths (`np.ndarray` of shape `(rows,)`): Number of events of each row.
        events (`np.ndarray`, *optional*): Indices of the rows' events in the columns. Default: all events.
    """

    columns: dict
    lengths: IntArray
    events: IntArray | None = None

    @classmethod
    def of(cls, rows: Sequence[Mapping], names: Iterable[str] | None = None) -> "Customers":
        """Joins dicts that have the same columns, of which `names` are kept. Raises `ValueError` if a column of events
        does not have as many values as there are times, `KeyError` if a row lacks a column of the first one."""
        if isinstance(rows, cls):
            return rows
        columns: dict = {name: [row[name] for row in rows] for name in names or rows[0] if name in rows[0]}
        lengths = np.array([len(times) for times in columns["times"]])
        for name in columns:
            if name.startswith(PER_EVENT):
                columns[name] = np.concatenate(columns[name])
                if len(columns[name]) != lengths.sum():
                    found = f"Rows have {lengths.sum()} times but {len(columns[name])} values of {name!r}"
                    raise ValueError(f"{found}; give as many.")
        return cls(columns, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        end = self.starts[index] + self.lengths[index]
        events: Any = slice(self.starts[index], end)
        if self.events is not None:
            events = self.events[events]
        return {name: values[events if name.startswith(PER_EVENT) else index] for name, values in self.columns.items()}

    @cached_property
    def starts(self) -> IntArray:
        """Index of each row's first event among all events, `(rows,)`."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def row(self) -> IntArray:
        """Index of each event's row, `(events,)`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def places(self) -> IntArray:
        """Index of each event in its row, `(events,)`."""
        return np.arange(self.lengths.sum()) - np.repeat(self.starts, self.lengths)

    def column(self, name: str) -> Any:
        """A column of events, `(events,)`, or the list of the rows' values."""
        values = self.columns[name]
        if self.events is None or not name.startswith(PER_EVENT):
            return values
        return values.take(self.events)  # faster than values[self.events]

    def take(self, rows: IntArray) -> "Customers":
        """Selects rows by their indices, in this order."""
        lengths = self.lengths[rows]
        shifts = self.starts[rows] - (lengths.cumsum() - lengths)
        events = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
        columns = {
            name: values if name.startswith(PER_EVENT) else [values[row] for row in rows]
            for name, values in self.columns.items()
        }
        return Customers(columns, lengths, events if self.events is None else self.events[events])

    def select(self, events: NDArray) -> "Customers":
        """Selects events by a mask or by indices, in the order of the rows."""
        indices = np.flatnonzero(events) if events.dtype == bool else events
        lengths = np.bincount(self.row[indices], minlength=len(self))
        return Customers(self.columns, lengths, indices if self.events is None else self.events[indices])


def first_kept(events: int, window: int) -> int:
    """Index of the first event of a history that the model reads; `events` where the window is 0. The model reads at
    most `window` of the latest events. In longer histories the first event moves in steps of an eighth of the window,
    so at least seven eighths of the window are read."""
    step = max(1, window // 8)
    return max(0, -(-(events - window) // step) * step) if window else events


def pad_rows(
    rows: Sequence[Mapping],
    layout: InputLayout,
    window: int,
    mask_next: bool = False,
    as_of: Sequence[float] | NDArray | None = None,
    features: Collection[str] | None = None,
) -> dict:
    """Builds model inputs from rows, as numpy arrays; [`MCMFeatureExtractor.pad`] says what they are.

    Args:
        as_of (`Sequence[float]` of length B, *optional*): Time of each row at which the customer is scored, in
            seconds on the clock of `times`.
        features (`Collection[str]`, *optional*): Features that are filled, the token type always; ids of the others
            are 0, and their columns need not be there. Default: all.

    Returns:
        `dict`: `input_ids` int64 `(B, L, J)`, `attention_mask` int64 `(B, L)`, `visit_ids` int64
        `(B, L)` and `event_times` float32 `(B, L)` in days; with numeric features also `event_values` float32
        `(B, L, N)`; with `as_of` also `as_of` float32 `(B,)` in days.

    Raises:
        ValueError: If there are no rows or too small a window, a row lacks a column, ids do not fit the vocabularies,
            or `as_of` is not one finite number for each row.
    """
    extra = 1 + mask_next  # the start row and, with `mask_next`, the masked last event
    if window < extra or not len(rows):
        raise ValueError(f"Found {len(rows)} rows and max_events {window}; give at least 1 row and {extra} events.")
    token_index, start_id = layout.start
    filled = [*layout.sizes] if features is None else [*{[*layout.sizes][token_index], *features}]
    columns = {name: f"{'profile' if name in layout.profile else 'feature'}_{name}" for name in filled}
    numeric = [f"value_{name}" for name in layout.numeric if features is None or name in features]
    names = ["times", "visits", *columns.values(), *numeric]
    try:
        batch = Customers.of(rows, [*names, "customer_id"])
        batch = close_visits(batch, is_past(batch, as_of), layout)
        starts = np.array([first_kept(length, window - extra) for length in batch.lengths.tolist()])
        if starts.any():
            batch = batch.select(batch.places >= starts[batch.row])
        values = {name: batch.column(name) for name in names}
    except KeyError as error:
        raise ValueError(
            f"A row has no {error}; prepare the data with the schema of this checkpoint and this version."
        ) from None
    lengths, shape = batch.lengths, (len(batch), int(batch.lengths.max()) + extra)
    cells = batch.row * shape[1] + batch.places + 1  # flat indices of the events

    def fill(of_events: NDArray, dtype: type) -> NDArray:
        """Model inputs with the values of events at their places and 0 elsewhere."""
        filled = np.zeros((*shape, *of_events.shape[1:]), dtype)
        filled.reshape(-1, *of_events.shape[1:])[cells] = of_events
        return filled

    first_times, first_visits = (np.append(values[name], 0)[batch.starts] for name in ("times", "visits"))
    event_times = fill((values["times"] - first_times[batch.row]) / SECONDS_PER_DAY, np.float32)
    visit_ids = fill(values["visits"] - first_visits[batch.row] + 1, np.int64)
    attention_mask = (np.arange(shape[1]) < lengths[:, None] + extra).astype(np.int64)
    by_feature = np.zeros((len(layout.sizes), *shape), np.int64)  # who reads a feature reads what lies side by side
    input_ids = np.moveaxis(by_feature, 0, -1)
    for index, (feature, size) in enumerate(layout.sizes.items()):
        if feature not in columns:
            continue
        ids = np.asarray(values[columns[feature]])
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= size:
            mismatch = f"Feature {feature!r} has ids from {ids.min()} to {ids.max()}, this checkpoint has {size}"
            raise ValueError(f"{mismatch}; prepare the data with its feature extractor.")
        if feature in layout.profile:
            by_feature[index, :, 0] = ids
        else:
            by_feature[index].reshape(-1)[cells] = ids
    last = (np.arange(len(batch)), lengths + 1)
    input_ids[:, 0, token_index] = start_id
    if mask_next:
        input_ids[last] = [0 if feature in layout.profile else UNKNOWN_ID for feature in layout.sizes]
        event_times[last] = event_times[last[0], lengths]
        visit_ids[last] = visit_ids[last[0], lengths] + 1
    if (event_times[:, 1:] < event_times[:, :-1])[attention_mask[:, 1:] > 0].any():
        event_times = np.maximum.accumulate(event_times, axis=1) * attention_mask.astype(np.float32)
    inputs: dict = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= {"visit_ids": visit_ids, "event_times": event_times}
    if numeric:
        inputs["event_values"] = fill(np.stack([values[name] for name in numeric], axis=1), np.float32)
    if as_of is not None:
        waited = np.where(lengths > 0, np.asarray(as_of) - first_times, 0)
        inputs["as_of"] = (waited / SECONDS_PER_DAY).astype(np.float32)
    return inputs


def close_visits(batch: Customers, stays: BoolArray, layout: InputLayout) -> Customers:
    """Selects events, and gives each visit the end that it would have if there were no others. Preparation closes a
    visit at a cutoff that falls into it, which is no end where what follows is read; and where a visit's last events
    are left out, it ends before them.

    Args:
        stays (`np.ndarray` of shape `(events,)`): Which events are selected, those that close a visit aside.
    """
    token = f"feature_{list(layout.sizes)[layout.start[0]]}"
    kinds = batch.column(token)
    closes, index = kinds == layout.closing, np.arange(len(kinds))
    if not closes.any():
        return batch if stays.all() else batch.select(stays)
    visits = batch.column("visits")
    visit = np.cumsum(run_starts(batch.row, visits)) - 1
    last, has_end = np.full(visit[-1] + 1, -1), np.ones(visit[-1] + 1, bool)
    has_end[visit[~stays & ~closes]] = False  # unless there is a target before
    stays = stays & ~closes
    last[visit[stays]] = index[stays]  # of several the latest is kept
    has_end[visit[stays & np.isin(kinds, [*layout.targets])]] = True
    ends = np.flatnonzero(closes & has_end[visit] & (index > last[visit]))
    ends = ends[run_starts(visit[ends])]
    stays[ends] = True
    before = last[visit[ends]]  # -1 where the window holds nothing of the visit but its end
    moved = np.cumsum(stays)[ends[(before >= 0) & (ends - before > 1)]] - 1
    batch = batch.select(stays)
    if not len(moved):
        return batch
    columns = {name: batch.column(name) for name in batch.columns}
    for name in columns:
        if name == "times" or (name.startswith("feature_") and name != token):
            columns[name] = columns[name].copy()
            columns[name][moved] = np.where(columns[name][moved] != 0, columns[name][moved - 1], 0)
    return Customers(columns, batch.lengths)


def until(rows: Sequence[Mapping], as_of: Sequence[float] | NDArray, layout: InputLayout | None = None) -> Customers:
    """Leaves out the events that are later than the time of each row, see [`is_past`], and closes visits before them
    where a layout is given."""
    batch = Customers.of(rows)
    past = is_past(batch, as_of)
    return batch.select(past) if layout is None else close_visits(batch, past, layout)


def before(rows: Sequence[Mapping], times: Sequence[float] | NDArray, layout: InputLayout) -> Customers:
    """Leaves out the events from the time of each row on, and closes visits before it: that a visit went on, nobody
    knew."""
    batch = Customers.of(rows)
    return close_visits(batch, batch.column("times") < np.asarray(times)[batch.row], layout)


def is_past(batch: Customers, as_of: Sequence[float] | NDArray | None) -> BoolArray:
    """Says of each event whether it is not later than the time of its row, `(events,)`, and warns if one is. Raises
    `ValueError` if there is not one time per row, or a time is no finite number."""
    if as_of is None:
        return np.ones(len(batch.row), bool)
    if len(as_of) != len(batch):
        raise ValueError(f"Found {len(as_of)} times `as_of` of {len(batch)} rows; give one a row.")
    for index, time in enumerate(as_of):
        if not isinstance(time, Real) or not math.isfinite(time):
            customer = batch.columns.get("customer_id", [None] * len(batch))[index]
            name = "" if customer is None else f" (customer {customer!r})"
            raise ValueError(
                f"Row {index}{name}: `as_of` is {time!r}, expected a time in seconds since 1970-01-01; give one, "
                "or leave `as_of` out."
            )
    past = batch.column("times") <= np.asarray(as_of)[batch.row]
    if not past.all():
        logger.warning_once(
            "Some customers have events later than `as_of`, which are left out: the model reads histories up to "
            "`as_of`."
        )
    return past
