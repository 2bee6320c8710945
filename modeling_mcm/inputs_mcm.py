# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Histories of any number of customers in columns ([`Customers`]), and the model inputs that are made of them.

A data frame, a prepared data set and a customer whose events arrive one by one are all [`Customers`]. Raw events are
read and put in order by the same code, whether they come at once or in pieces.

Shapes: B customers, E events of all of them, V visits, L events of the longest input (start row included), J features
in the order of `features`, N numeric features of events.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .configuration_mcm import MISSING_ID, UNKNOWN_ID
from .encoding_mcm import Encoding
from .events_mcm import SECONDS_PER_DAY, BoolArray, Events, IntArray, number_groups, run_starts, to_iso
from .schema_mcm import ROWS

logger = logging.get_logger(__name__)

CUSTOMER = "customer_id"  # the column of rows and of predictions that names the customer
NO_CHANGE = 2**63 - 1  # after every event
PER_EVENT = ("times", "visits", "feature_", "value_", "task_", "unseen_")  # columns with an entry per event


class InputLayout(NamedTuple):
    """Where the features of a row stand in a model input."""

    sizes: dict[str, int]  # by feature the number of its ids, in the order of the axis J
    profile: frozenset[str]  # names of the customer's features, which stand in the start row
    numeric: tuple[str, ...]  # names of the numeric features of events, in the order of the axis N
    start: tuple[int, int]  # index of the token type on the axis J, and its id in the start row
    closing: int  # token type of the event that closes a visit, -1 where none does
    targets: frozenset[int]  # token types of targets, with one of which a visit is closed


class ReadEvents(NamedTuple):
    """What was read of the raw events of [`Customers`], in the order of their rows: what `add` needs of the past."""

    encoding: Encoding
    events: Events
    owners: IntArray  # (E,): index of each event's customer


@dataclass(eq=False)
class Customers(Sequence[Mapping]):
    """Histories of customers, column by column: a column of events is one array, the events of one customer after
    those of the customer before. No method changes one in place. To select events copies none; a column is copied when
    it is read. As a sequence it gives rows: dicts as `MCMFeatureExtractor.encode` returns them.

    Args:
        columns (`dict`): By name an array of shape `(E,)`, or a list with a value for each customer.
        lengths (`np.ndarray` of shape `(B,)`): Number of events of each customer.
        events (`np.ndarray`, *optional*): Indices of the customers' events in the columns. Default: all events.
        read ([`ReadEvents`], *optional*): What `add` adds to. Prepared data, and selections, have none.
        late (`np.ndarray` of shape `(B,)`, *optional*): Whether the last `add` put an event before the visit that was
            the customer's latest.
    """

    columns: dict
    lengths: IntArray
    events: IntArray | None = None
    read: ReadEvents | None = None
    late: BoolArray | None = None

    # -------------------------------------------------------------------------------------------------- raw events in

    @classmethod
    def encode(cls, extractor: Any, events: object) -> "Customers":
        """Encodes the raw events of any number of customers at once, without profiles.

        Args:
            extractor ([`MCMFeatureExtractor`]): Says what the columns mean, and which ids values have.
            events: A data frame, a dict of columns or a list of dicts, with the column of the customer.

        Returns:
            [`Customers`]: in the order of their first events in the table.

        Raises:
            ValueError: If a column is unknown, an event has no customer, no time or no value in any feature, or a
                value can't be read. The message names the column.
        """
        encoding = extractor._encoding
        names, read = encoding.reader.read_log(events)
        columns: dict = {"customer_id": [*names.values], "label_columns": [None] * len(names.values)}
        for feature in encoding.profile_features:
            columns[f"profile_{feature}"] = np.full(len(names.values), MISSING_ID, np.int32)
        return cls._encode(encoding, columns, read, names.codes)[0]

    @classmethod
    def encode_one(cls, extractor: Any, customer: Mapping) -> "Customers":
        """Encodes one customer, see `MCMFeatureExtractor.encode`."""
        encoding = extractor._encoding
        name, read, profile = encoding.reader.read_customer(customer)
        ids = encoding.encode_features(encoding.profile_features, profile)  # each (1,)
        columns = {"customer_id": [name], "label_columns": [customer.get("label_columns")]}
        columns |= {f"profile_{feature}": [*values] for feature, values in ids.items()}
        return cls._encode(encoding, columns, read, np.zeros(len(read.positions), np.int64))[0]

    @classmethod
    def _encode(
        cls, encoding: Encoding, columns: dict, events: Events, owners: IntArray
    ) -> tuple["Customers", IntArray, IntArray]:
        """Encodes events that were read, of the customers with the indices `owners`. Also gives the index in `events`
        of each encoded event, of the end of a visit that of its last event; and those without ends of visits."""
        kept = np.arange(len(owners))
        if encoding.schema.on_duplicate == "drop":
            kept = events.find_distinct(owners)
        rows, timeline = encoding.encode(events[kept], owners[kept])
        source = kept[timeline.indices]
        is_empty = ~np.any([rows[f"feature_{name}"] for name in encoding.event_features], axis=0)
        if is_empty.any():
            number = np.argmax(is_empty)
            name = columns["customer_id"][owners[source[number]]]
            when = "" if encoding.schema.order else f" at {to_iso(rows['times'][number])}"
            raise ValueError(f"customer {name!r}: the event{when} has no value in any feature; leave it out")
        read = source[~timeline.closes]
        lengths = np.bincount(owners[source], minlength=len(columns["customer_id"]))
        return cls(columns | rows, lengths, read=ReadEvents(encoding, events[read], owners[read])), source, read

    def add(self, events: object) -> "Customers":
        """These customers with further events, in any order; they may be older than present ones. The result is that
        of all events at once.

        Args:
            events: As for `encode`, or of a single customer as for `MCMFeatureExtractor.encode`.

        Raises:
            ValueError: As `encode`; or if an event is of none of these customers, or these are a selection.
        """
        if self.read is None:
            raise ValueError("Events are added to whole histories, as `encode` gives them, and not to a selection.")
        (encoding, old, old_owners), names = self.read, self.columns["customer_id"]
        if len(names) == 1:
            _, new, _ = encoding.reader.read_customer({"events": events, "customer_id": names[0]})
            owners = np.zeros(len(new.positions), np.int64)
        else:
            found, new = encoding.reader.read_log(events)
            places = {name: place for place, name in enumerate(names)}
            if strangers := [name for name in found.values if name not in places]:
                raise ValueError(
                    f"There is no customer {strangers[0]!r} to add events to: encode all customers together."
                )
            owners = found.map(places.__getitem__).expand(np.int64)
        if encoding.schema.order == ROWS:  # behind those that are there
            new = replace(new, positions=new.positions + old.positions.max(initial=-1) + 1)
        joined, owners, settled, first = old.join(new), np.append(old_owners, owners), 0, 0
        if len(names) == 1 and encoding.schema.order is None:
            settled, first = _find_settled(joined, len(old_owners))
        # Encoded again is what follows the settled visits, and the last of them, from which the next one counts days
        rest, old_owners = joined[first:].compact() if first else joined, old_owners[first:]
        added, source, read = self._encode(encoding, self.columns, rest, owners[first:])
        visits, latest = added.columns["visits"], np.full(len(self), -1)  # (B,): the visit that was the latest
        was_last = np.isin(source, np.cumsum(np.bincount(old_owners)) - 1)
        latest[added.row[was_last]] = visits[was_last]
        is_late = (source >= len(old_owners)) & (visits < latest[added.row])
        late = np.bincount(added.row[is_late], minlength=len(self)) > 0
        if first:
            added = self._extend(added, settled)
            kept = np.append(np.arange(first), first + read)
            added.read = ReadEvents(encoding, joined[kept], owners[kept])
        return replace(added, late=late)

    def _extend(self, rest: "Customers", settled: int) -> "Customers":
        """One customer's first visits, of which `settled` are as they were, with the rest, which begins with the last
        one of these."""
        end, start = np.searchsorted(self.columns["visits"], settled), np.searchsorted(rest.columns["visits"], 1)
        columns = rest.columns | {"visits": rest.columns["visits"] + np.int32(settled - 1)}
        for name in columns:
            if name.startswith(PER_EVENT):
                columns[name] = np.concatenate([self.columns[name][:end], columns[name][start:]])
        return Customers(columns, np.array([len(columns["times"])]))

    # --------------------------------------------------------------------------------------------------- selections

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
        return number_groups(self.lengths)[1]

    def column(self, name: str) -> Any:
        """A column of events, `(events,)`, or the list of the rows' values."""
        values = self.columns[name]
        if self.events is None or not name.startswith(PER_EVENT):
            return values
        return values.take(self.events)  # faster than values[self.events]

    def take(self, rows: IntArray) -> "Customers":
        """Selects rows by their indices, in this order."""
        lengths = self.lengths[rows]
        _, events = number_groups(lengths, self.starts[rows])
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

    def until(self, as_of: Sequence[float] | NDArray, layout: InputLayout) -> "Customers":
        """Leaves out the events that are later than the time of each customer, see [`is_past`], and closes visits
        before them."""
        return close_visits(self, is_past(self, as_of), layout)

    def before(self, times: Sequence[float] | NDArray, layout: InputLayout) -> "Customers":
        """Leaves out the events from the time of each customer on, and closes visits before it: that a visit went on,
        nobody knew."""
        return close_visits(self, self.column("times") < np.asarray(times)[self.row], layout)

    def known(self, sizes: Mapping[str, int]) -> "Customers":
        """The same events for a checkpoint that has so many ids of each feature: others are unknown to it."""
        columns = dict(self.columns)
        for feature, size in sizes.items():
            for name in {f"feature_{feature}", f"task_{feature}"} & columns.keys():
                ids = columns[name]
                if ids.max(initial=0) >= size:
                    columns[name] = np.where(ids < size, ids, UNKNOWN_ID).astype(ids.dtype)
        return replace(self, columns=columns, read=None)

    def readable(self, features: Collection[str]) -> "Customers":
        """Leaves out the events without a value in any of these features of events. A visit of which none is left is
        no visit, so the others are counted anew."""
        is_readable = np.any([self.column(f"feature_{name}") != MISSING_ID for name in features], axis=0)  # (E,)
        found = self.select(is_readable)
        opens = run_starts(found.row, found.column("visits"))
        number = np.cumsum(opens) - 1  # (E,) of each event's visit among those of all customers
        first = np.append(number, 0)[found.starts]  # (B,)
        columns = {name: found.column(name) for name in self.columns}
        columns["visits"] = (number - first[found.row]).astype(np.int32)
        for name in ("validation_end", "test_end"):  # ends of periods, counted in events
            if name in columns:
                is_within = is_readable & (self.places < np.asarray(columns[name])[self.row])
                columns[name] = np.bincount(self.row[is_within], minlength=len(self))
        return Customers(columns, found.lengths)


def _find_settled(events: Events, count: int) -> tuple[int, int]:
    """How many visits of a customer do not change by what was added to the first `count` events, which are in order;
    and where the last of them begins. A visit may change, and the number of those after it, from the first event on
    that is new or of the visit of a new one."""
    codes, positions = events.visits.codes, events.positions
    no_key = events.visits.values.index(None) if None in events.visits.values else -1
    alone = np.where(codes == no_key, positions, 0)  # without a key, the events of one time are a visit
    opens = np.flatnonzero(run_starts(codes[:count], alone[:count]))  # (visits,)
    changes = np.isin(codes, codes[count:]) & (codes != no_key)
    changes[count:] = True
    settled = int(np.searchsorted(positions[opens], positions[changes].min(initial=NO_CHANGE)))
    return settled, int(opens[settled - 1]) if settled else 0


def pad_rows(
    rows: Sequence[Mapping],
    layout: InputLayout,
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
        ValueError: If there are no rows, a row lacks a column, ids do not fit the vocabularies, or `as_of` is not one
            finite number for each row.
    """
    extra = 1 + mask_next  # the start row and, with `mask_next`, the masked last event
    if not len(rows):
        raise ValueError("There are no rows: give at least one.")
    token_index, start_id = layout.start
    filled = [*layout.sizes] if features is None else [*{[*layout.sizes][token_index], *features}]
    columns = {name: f"{'profile' if name in layout.profile else 'feature'}_{name}" for name in filled}
    numeric = [f"value_{name}" for name in layout.numeric if features is None or name in features]
    batch, values = select_read(rows, ["visits", *columns.values(), *numeric], layout, as_of)
    lengths, shape = batch.lengths, (len(batch), int(batch.lengths.max()) + extra)
    cells = batch.row * shape[1] + batch.places + 1  # flat indices of the events

    def fill(event_values: NDArray, dtype: type) -> NDArray:
        """Model inputs with the values of events at their places and 0 elsewhere."""
        filled = np.zeros((*shape, *event_values.shape[1:]), dtype)
        filled.reshape(-1, *event_values.shape[1:])[cells] = event_values
        return filled

    days, ends = measure_days(batch, as_of)
    event_times = fill(days, np.float32)
    first_visits = np.append(values["visits"], 0)[batch.starts]
    visit_ids = fill(values["visits"] - first_visits[batch.row] + 1, np.int64)
    attention_mask = (np.arange(shape[1]) < lengths[:, None] + extra).astype(np.int64)
    by_feature = np.zeros((len(layout.sizes), *shape), np.int64)  # who reads a feature reads what lies side by side
    input_ids = np.moveaxis(by_feature, 0, -1)
    for index, (feature, size) in enumerate(layout.sizes.items()):
        if feature not in columns:
            continue
        ids = check_ids(feature, values[columns[feature]], size)
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
    inputs: dict = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= {"visit_ids": visit_ids, "event_times": event_times}
    if numeric:
        inputs["event_values"] = fill(np.stack([values[name] for name in numeric], axis=1), np.float32)
    if as_of is not None:
        inputs["as_of"] = ends
    return inputs


def check_ids(feature: str, values: Any, size: int) -> NDArray:
    """The ids of a feature as an array. Raises `ValueError` if one is not below the number of ids."""
    ids = np.asarray(values)
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= size:
        mismatch = f"Feature {feature!r} has ids from {ids.min()} to {ids.max()}, this checkpoint has {size}"
        raise ValueError(f"{mismatch}; prepare the data with its feature extractor.")
    return ids


def select_read(
    rows: Sequence[Mapping],
    names: Sequence[str],
    layout: InputLayout,
    as_of: Sequence[float] | NDArray | None,
) -> tuple[Customers, dict]:
    """Selects the events until `as_of`, and gives some of their columns by name. Raises `ValueError` if a row lacks
    one."""
    try:
        batch = Customers.of(rows, ["times", *names, "customer_id"])
        batch = close_visits(batch, is_past(batch, as_of), layout)
        return batch, {name: batch.column(name) for name in names}
    except KeyError as error:
        raise ValueError(
            f"A row has no {error}; prepare the data with the schema of this checkpoint and this version."
        ) from None


def measure_days(batch: Customers, as_of: Sequence[float] | NDArray | None) -> tuple[NDArray, NDArray]:
    """Days from the first event of each customer to the latest event so far, `(E,)`, as visits may overlap, and to
    `as_of`, by default the last event, `(B,)`; 0 without events."""
    times = batch.column("times")
    first = np.append(times, 0)[batch.starts]  # (B,)
    seconds = np.maximum(times - first[batch.row], 0)  # (E,)
    apart = batch.row * (seconds.max(initial=0) + 1)  # so that no customer is compared with the one before
    seconds = np.maximum.accumulate(seconds + apart) - apart
    last = np.append(seconds, 0)[batch.starts + batch.lengths - 1]
    ends = last if as_of is None else np.asarray(as_of) - first
    days = (seconds / SECONDS_PER_DAY).astype(np.float32)
    return days, (np.where(batch.lengths > 0, ends, 0) / SECONDS_PER_DAY).astype(np.float32)


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
    opens = run_starts(batch.row, batch.column("visits"))
    if stays.all() and not np.any(closes[:-1] & ~opens[1:]):  # each visit has its end
        return batch
    if not closes.any():
        return batch.select(stays)
    visit = np.cumsum(opens) - 1
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
