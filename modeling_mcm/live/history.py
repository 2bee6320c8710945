# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The history of a live customer: raw events by visit, in whichever order they arrive, and their encoded row."""

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modeling_mcm.events_mcm import (
    SECONDS_PER_DAY,
    as_list,
    is_missing,
    naming,
    read_columns,
    read_times,
    read_zone,
    select_events,
    to_number,
    to_place,
    to_text,
)
from modeling_mcm.inputs_mcm import PER_EVENT
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import ROWS

TIME_FIX = "give a datetime or ISO 8601 text such as 2017-03-01T18:30:00, or leave the event out"
BEFORE_ALL = -(2**63)  # before every time


@dataclass(frozen=True)
class Added:
    """Result of `LiveCustomer.add`.

    Attributes:
        events (`int`): Number of events that were added.
        late (`bool`): Whether some of them belong before the last visit.
    """

    events: int
    late: bool


@dataclass(order=True)
class Visit:
    """The raw events of a visit. Visits are ordered as in the feature extractor: by start, those without key first."""

    start: int  # start of the visit: seconds since 1970-01-01, or the place of its first event for a log without times
    key: tuple[bool, str]  # whether the visit has a key, and the key as text (empty without one)
    events: list[dict[str, Any]] = field(compare=False)  # in the order in which they were added
    opening: dict[str, Any] = field(compare=False)  # the earliest event


class LiveHistory:
    """A customer's profile and raw events by visit. Events may arrive in any order.

    The last visit may still grow. The visits before it are encoded once, and again where an event comes late.

    Attributes:
        visits (`list[Visit]`): The visits, ordered.
        latest (`int`): Time of the latest event, in seconds since 1970-01-01; in a log without times its place.
    """

    def __init__(self, feature_extractor: MCMFeatureExtractor, profile: Mapping[str, Any] | None, customer_id: Any):
        self.extractor, self.profile, self.customer_id = feature_extractor, dict(profile or {}), to_text(customer_id)
        self._clear()
        self.row  # noqa: B018  raises if the profile can't be encoded

    def _clear(self) -> None:
        self.visits: list[Visit] = []
        self.latest = BEFORE_ALL
        self._by_key: dict[Any, Visit] = {}
        self._arrived = 0
        self._row: dict[str, Any] | None = None  # of all visits
        self._finished: tuple[int, dict[str, Any]] = 0, {}  # number of the visits that are encoded, and their row

    @property
    def name(self) -> str:
        """The customer in error messages."""
        return "Customer without id" if self.customer_id is None else f"Customer {self.customer_id!r}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events as dicts of plain values, ordered by visit."""
        return [event for visit in self.visits for event in visit.events]

    @property
    def last_time(self) -> str | None:
        """Time of the latest event in ISO 8601; None without one, or in a log without times."""
        return None if self.extractor.time is None or not self.visits else _iso(self.latest)

    def add(self, events: Any, as_of: Any = None) -> Added:
        """Adds events; see [`LiveCustomer.add`]."""
        added = self._read(events)
        row = self._encode([*self._unfinished(), *added])  # raises before anything changes
        if as_of is not None:
            self._check_past(added, as_of)
        is_late = self._insert(added)
        if not is_late:
            self._row = self._join(row)
        return Added(len(added), is_late)

    def remove(self, event: Mapping[str, Any]) -> None:
        """Removes one event, and leaves the history of a customer who never had it; see [`LiveCustomer.remove`]."""
        (target,) = self._read([event])
        self._encode([target])
        visit = self._by_key.get(self._placed(target)[0])
        if self.extractor.order == ROWS:  # events have no time or place, so they are compared
            visit = next((each for each in reversed(self.visits) if target in each.events), None)
        if visit is None or target not in visit.events:
            raise ValueError(
                f"{self.name} has no event {dict(event)!r}: give all columns of the event as they were added."
            )
        events = self.events
        del events[len(events) - 1 - events[::-1].index(target)]
        self._clear()
        self._insert(events)

    def read_as_of(self, as_of: Any) -> float | None:
        """Seconds since 1970-01-01 of `as_of`; raises a `ValueError` if it is before the last event."""
        if as_of is None:
            return None
        (seconds,) = self.extractor._read_as_of(as_of, 1)
        if self.visits and seconds < self.latest:
            raise ValueError(
                f"`as_of` is {_iso(seconds)}, and {self.name} has an event at {_iso(self.latest)}: the clock went "
                "back, or the event lies in the future. Ask at the last event or later."
            )
        return seconds

    @property
    def row(self) -> dict[str, Any]:
        """All events, encoded as `MCMFeatureExtractor.encode` does. Its arrays never change."""
        if self._row is None:
            self._row = self._join(self._encode(self._unfinished()))
        return self._row

    def _unfinished(self) -> list[dict[str, Any]]:
        """The events of visits that are not encoded, after the opening event of the visit before, from which the days
        since the last visit are counted."""
        number, _ = self._finished
        before = [self.visits[number - 1].opening] if number else []
        return [*before, *(event for visit in self.visits[number:] for event in visit.events)]

    def _join(self, row: dict[str, Any]) -> dict[str, Any]:
        """Joins the row of the finished visits and that of `_unfinished`; then all visits but the last are
        finished."""
        number, finished = self._finished
        if number:
            start = np.searchsorted(row["visits"], 1)
            row["visits"] = row["visits"] + np.int32(number - 1)
            if self.extractor.order is not None:
                row["times"] = row["times"] + (number - 1) * SECONDS_PER_DAY
            names = [name for name in row if name.startswith(PER_EVENT)]
            row |= {name: np.concatenate([finished[name], row[name][start:]]) for name in names}
        number = max(len(self.visits) - 1, 0)
        self._finished = number, select_events(row, slice(np.searchsorted(row["visits"], number)))
        return row

    def _encode(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        return self.extractor.encode(
            {"events": events, "profile": self.profile or None, "customer_id": self.customer_id}
        )

    def _read(self, events: Any) -> list[dict[str, Any]]:
        """Converts events to dicts of plain values that JSON can hold. Raises `ValueError` if an event has no time, or
        a value that can't be read."""
        extractor = self.extractor
        with naming(self.name):
            if isinstance(events, Mapping) and not (events and all(map(_is_column, events.values()))):  # one event
                events = [events]
            columns, count = read_columns(events, extractor._known_columns)
        if count and extractor.time is not None and extractor.time not in columns:
            raise ValueError(f"{self.name}: column {extractor.time!r}: found no time (None); {TIME_FIX}")
        plain = []
        for name, column in columns.items():
            with naming(f"{self.name}: column {name!r}"):
                if name == extractor.time:
                    seconds = read_times(column, read_zone(extractor.time_zone))
                    plain.append(np.datetime_as_string(seconds.astype("datetime64[s]")).tolist())
                else:
                    plain.append([None if is_missing(value) else _plain(value) for value in as_list(column)])
        rows = zip(*plain, strict=True) if plain else [()] * count
        names = list(columns)
        return [{n: value for n, value in zip(names, row, strict=True) if value is not None} for row in rows]

    def _check_past(self, events: Sequence[Mapping[str, Any]], as_of: Any) -> None:
        """Raises a `ValueError` if an event is later than `as_of`."""
        (seconds,) = self.extractor._read_as_of(as_of, 1)
        for event in events:
            time = self._placed(event)[1]
            if time > seconds:
                raise ValueError(
                    f"{self.name} has an event at {_iso(time)}, which is after now, {_iso(seconds)}: check the "
                    "event's time and its time zone, or leave it out."
                )

    def _insert(self, events: Sequence[dict[str, Any]]) -> bool:
        """Inserts events into their visits; whether one belongs before the visit that was the last one."""
        last = (self.visits[-1].start, self.visits[-1].key) if self.visits else None
        is_late = False
        for event in events:
            known_by, position, key = self._placed(event)
            self._arrived, self.latest = self._arrived + 1, max(self.latest, position)
            visit = self._by_key.get(known_by)
            if visit is None:
                visit = self._by_key[known_by] = Visit(position, (key is not None, key or ""), [], event)
                insort(self.visits, visit)
            elif position < visit.start:  # a new earliest event moves the visit
                self.visits.remove(visit)
                visit.start, visit.opening = position, event
                insort(self.visits, visit)
            visit.events.append(event)
            is_late |= last is not None and (visit.start, visit.key) < last
        self._row = None
        if is_late:
            self._finished = 0, {}
        return is_late

    def _placed(self, event: Mapping[str, Any]) -> tuple[Any, int, str | None]:
        """Identifier of an event's visit, position of the event (seconds or a place), and key of the visit, if any."""
        extractor = self.extractor
        if extractor.time is not None:
            position = int(np.datetime64(event[extractor.time], "s").astype(np.int64))
        else:
            position = self._arrived if extractor.order == ROWS else to_place(event[str(extractor.order)])
        key = to_text(event.get(extractor.visit)) if extractor.visit else None
        return (position if key is None else (key,)), position, key


def _plain(value: Any) -> Any:
    """Converts a raw value for JSON: text, numbers, booleans and lists of them stay, other values become text."""
    if type(value) is str:  # the most frequent case
        return value
    if isinstance(value, np.generic) and value.dtype.kind not in "mM":
        value = value.item()
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in as_list(value)]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)  # JSON has no infinity; as text it is read as the same number
    if isinstance(value, str | int | float | bool):
        return value
    try:
        return to_text(value)
    except ValueError:
        return to_number(value)


def _is_column(value: Any) -> bool:
    return hasattr(value, "to_numpy") or isinstance(value, np.ndarray | list | tuple)


def _iso(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s"))
