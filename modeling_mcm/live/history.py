# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The history of a live customer: raw events by visit, in whichever order they arrive, and their encoded row."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from modeling_mcm.events_mcm import (
    SECONDS_PER_DAY,
    RawEvent,
    Time,
    as_list,
    is_missing,
    naming,
    read_columns,
    read_times,
    to_iso,
    to_place,
    to_text,
)
from modeling_mcm.inputs_mcm import PER_EVENT
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import ROWS

BEFORE_ALL = -(2**63)  # before every time
COLUMNS = np.ndarray, list, tuple
PLACE = attrgetter("start", "key")  # of a visit among the others


@dataclass
class Visit:
    """The raw events of a visit. Visits are ordered as in the feature extractor: by start, those without key first."""

    start: int  # start of the visit: seconds since 1970-01-01, or the place of its first event for a log without times
    key: tuple[bool, str]  # whether the visit has a key, and the key as text (empty without one)
    events: list[RawEvent]  # in the order in which they were added


class LiveHistory:
    """A customer's profile and raw events by visit. Events may arrive in any order.

    The last visit may still grow. The visits before it are encoded once, and again where an event comes late.

    Attributes:
        visits (`list[Visit]`): The visits, ordered.
        latest (`int`): Time of the latest event, in seconds since 1970-01-01; in a log without times its place.
        row (`dict`): All events, encoded as `MCMFeatureExtractor.encode` does. Its arrays never change.
    """

    def __init__(self, feature_extractor: MCMFeatureExtractor, profile: Mapping | None, customer_id: object):
        self.feature_extractor, self.profile = feature_extractor, dict(profile or {})
        self.customer_id = to_text(customer_id)
        self._start([])  # raises if the profile can't be encoded

    def _start(self, events: Sequence[RawEvent]) -> None:
        """Begins with these events."""
        self.visits: list[Visit] = []
        self.latest = BEFORE_ALL
        self._by_key: dict[Hashable, Visit] = {}
        self._arrived = 0
        self._insert(events)
        self.row = self._encode(self.events)

    @property
    def name(self) -> str:
        """The customer in error messages."""
        return "Customer without id" if self.customer_id is None else f"Customer {self.customer_id!r}"

    @property
    def events(self) -> list[RawEvent]:
        """All events as dicts of plain values, ordered by visit."""
        return [event for visit in self.visits for event in visit.events]

    @property
    def last_time(self) -> str | None:
        """Time of the latest event in ISO 8601; None without one, or in a log without times."""
        return None if self.feature_extractor.time is None or not self.visits else to_iso(self.latest)

    def add(self, events: object, as_of: Time = None) -> bool:
        """Adds events, in any order; they may be older than present ones. Returns whether some of them belong before
        the last visit.

        Args:
            events: one event (`dict`), a list of events, a data frame or a dict of columns, as for the feature
                extractor.
            as_of (*optional*): Time of the call; no event may be later.

        Raises:
            ValueError: If an event has no time, is later than `as_of`, or can't be encoded. Nothing has changed then.
        """
        added = self._read(events)
        # From the visit before the last one the days since the last visit are counted
        unfinished = [event for visit in self.visits[-2:] for event in visit.events]
        row = self._encode([*unfinished, *added])  # raises before anything changes
        now = self.feature_extractor.read_as_of(as_of)
        for event in added:
            if now is not None and (time := self._place(event)[1]) > now:
                raise ValueError(
                    f"{self.name} has an event at {to_iso(time)}, which is after now, {to_iso(now)}: check the "
                    "event's time and its time zone, or leave it out."
                )
        finished = max(len(self.visits) - 1, 0)
        is_late = self._insert(added)
        self.row = self._encode(self.events) if is_late else self._join(finished, row)
        return is_late

    def remove(self, event: Mapping) -> None:
        """Removes one event as it was added, of several equal ones the last. All later results are those of a customer
        who never had it. Raises `ValueError` if the customer has no such event."""
        (target,), events = self._read([event]), self.events
        if target not in events:
            raise ValueError(
                f"{self.name} has no event {dict(event)!r}: give all columns of the event as they were added."
            )
        del events[len(events) - 1 - events[::-1].index(target)]
        self._start(events)

    def read_as_of(self, as_of: Time) -> float | None:
        """Seconds since 1970-01-01 of `as_of`; raises a `ValueError` if it is before the last event."""
        seconds = self.feature_extractor.read_as_of(as_of)
        if seconds is not None and seconds < self.latest:
            raise ValueError(
                f"`as_of` is {to_iso(seconds)}, and {self.name} has an event at {to_iso(self.latest)}: the clock went "
                "back, or the event lies in the future. Ask at the last event or later."
            )
        return seconds

    def _join(self, finished: int, row: dict) -> dict:
        """Joins the present row's finished visits and a row that begins with the last one of these."""
        if finished:
            end, start = np.searchsorted(self.row["visits"], finished), np.searchsorted(row["visits"], 1)
            row["visits"] += np.int32(finished - 1)
            if self.feature_extractor.order is not None:
                row["times"] += (finished - 1) * SECONDS_PER_DAY
            for name in row:
                if name.startswith(PER_EVENT):
                    row[name] = np.concatenate([self.row[name][:end], row[name][start:]])
        return row

    def _encode(self, events: list[RawEvent]) -> dict:
        return self.feature_extractor.encode(
            {"events": events, "profile": self.profile, "customer_id": self.customer_id}
        )

    def _read(self, events: object) -> list[RawEvent]:
        """Converts events to dicts of plain values that JSON can hold. Raises `ValueError` if an event has no time, or
        a value that can't be read."""
        extractor = self.feature_extractor
        with naming(self.name):
            if isinstance(events, Mapping):  # one event, or columns
                kinds = {hasattr(value, "to_numpy") or isinstance(value, COLUMNS) for value in events.values()}
                events = events if kinds == {True} else [events]
            columns, count = read_columns(events, extractor._encoding.schema.event_columns)
        plain = {}
        for name, column in columns.items():
            with naming(f"{self.name}: column {name!r}"):
                if name == extractor.time:
                    seconds = read_times(column, extractor.time_zone)
                    plain[name] = np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()
                else:
                    plain[name] = list(map(_to_plain, as_list(column)))
        return [
            {name: values[place] for name, values in plain.items() if values[place] is not None}
            for place in range(count)
        ]

    def _insert(self, events: Sequence[RawEvent]) -> bool:
        """Inserts events into their visits; whether one belongs before the visit that was the last one."""
        last = PLACE(self.visits[-1]) if self.visits else (BEFORE_ALL,)
        is_late = False
        for event in events:
            identifier, position, key = self._place(event)
            self._arrived, self.latest = self._arrived + 1, max(self.latest, position)
            visit = self._by_key.get(identifier)
            if visit is None:
                visit = self._by_key[identifier] = Visit(position, (key is not None, key or ""), [])
                self.visits.append(visit)
            visit.start = min(visit.start, position)
            visit.events.append(event)
            is_late |= PLACE(visit) < last
        self.visits.sort(key=PLACE)
        return is_late

    def _place(self, event: Mapping) -> tuple[Hashable, int, str | None]:
        """Identifier of an event's visit, position of the event (seconds or a place), and key of the visit, if any."""
        extractor = self.feature_extractor
        if extractor.time is not None:
            position = int(np.datetime64(event[extractor.time], "s").astype(np.int64))
        else:
            position = self._arrived if extractor.order == ROWS else to_place(event[str(extractor.order)])
        key = to_text(event.get(extractor.visit)) if extractor.visit else None
        return (position if key is None else (key,)), position, key


def _to_plain(value: object) -> object:
    """Converts a raw value for JSON: text, numbers, booleans and lists of them stay, other values become text."""
    if isinstance(value, COLUMNS):
        return [_to_plain(each) for each in as_list(value)]
    if is_missing(value):
        return None
    if isinstance(value, np.generic) and value.dtype.kind not in "mM":
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)  # JSON has no infinity; as text it is read as the same number
    return value if isinstance(value, str | int | float) else to_text(value)
