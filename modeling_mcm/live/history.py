# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The history of a live customer: its raw events by visit, in whichever order they arrive."""

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from modeling_mcm.events_mcm import (
    as_list,
    is_missing,
    naming,
    read_columns,
    read_times,
    read_zone,
    to_number,
    to_place,
    to_text,
)
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import ROWS

TIME_FIX = "give a datetime or ISO 8601 text such as 2017-03-01T18:30:00, or leave the event out"
BEFORE_ALL = -(2**63)  # before every time


@dataclass(order=True)
class Visit:
    """The raw events of a visit. Visits are ordered as in the feature extractor: by start, those without key first."""

    start: int  # start of the visit: seconds since 1970-01-01, or the place of its first event for a log without times
    key: tuple[bool, str]  # whether the visit has a key, and the key as text (empty without one)
    events: list[dict[str, Any]] = field(compare=False)  # the visit's events in the order in which they were added
    opening: dict[str, Any] = field(compare=False)  # the visit's earliest event
    # number of events in an encoded row up to the end of this visit, end-of-visit events included; -1 if the visit has
    # not been encoded
    end: int = field(default=-1, compare=False)


class Insertion(NamedTuple):
    """What an insertion of events changed."""

    late: bool  # whether a visit before the last one has changed, or has been added
    touched: bool  # whether the last visit has changed


class LiveHistory:
    """A customer's profile and raw events by visit. Events may arrive in any order.

    Attributes:
        visits (`list[Visit]`): The visits, ordered.
        latest (`int`): Time of the latest event, in seconds since 1970-01-01; in a log without times its place.
    """

    def __init__(self, feature_extractor: MCMFeatureExtractor, profile: dict[str, Any], customer_id: str | None):
        self.feature_extractor, self.profile, self.customer_id = feature_extractor, profile, customer_id
        self.visits: list[Visit] = []
        self.latest = BEFORE_ALL
        self._by_key: dict[Any, Visit] = {}
        self._arrived = 0

    @property
    def name(self) -> str:
        """The customer in error messages."""
        return "Customer without id" if self.customer_id is None else f"Customer {self.customer_id!r}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events as dicts of plain values, ordered by visit."""
        return [event for visit in self.visits for event in visit.events]

    def customer(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """The customer with some events, as the feature extractor reads customers."""
        return {"events": events, "profile": self.profile or None, "customer_id": self.customer_id}

    def encode(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Encodes the customer with some events as a row. Raises `ValueError` if an event can't be encoded."""
        return self.feature_extractor.encode(self.customer(events))

    def read(self, events: Any) -> list[dict[str, Any]]:
        """Converts events to dicts of plain values that JSON can hold, without inserting them. Raises `ValueError` if
        an event has no time, or a value that can't be read."""
        extractor = self.feature_extractor
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

    def insert(self, events: Sequence[dict[str, Any]]) -> Insertion:
        """Inserts events, a result of `read`, into their visits."""
        last_visit = self.visits[-1] if self.visits else None
        new_visits: set[int] = set()
        late = touched = False
        for event in events:
            known_by, position, key = self._placed(event)
            self._arrived, self.latest = self._arrived + 1, max(self.latest, position)
            visit = self._by_key.get(known_by)
            is_old = visit is not None and id(visit) not in new_visits
            if visit is None:
                visit = self._by_key[known_by] = Visit(position, (key is not None, key or ""), [], event)
                new_visits.add(id(visit))
                insort(self.visits, visit)
            elif position < visit.start:  # a new earliest event moves the visit
                self.visits.remove(visit)
                visit.start, visit.opening = position, event
                insort(self.visits, visit)
                late |= is_old
            visit.events.append(event)
            touched |= visit is last_visit
            late |= last_visit is not None and visit is not last_visit and (is_old or visit < last_visit)
        return Insertion(late, touched)

    def remove(self, event: dict[str, Any]) -> bool:
        """Removes one event, and leaves the history of a customer who never had it."""
        visit = self._by_key.get(self._placed(event)[0])
        if self.feature_extractor.order == ROWS:  # events have no time or place, so they are compared
            visit = next((each for each in reversed(self.visits) if event in each.events), None)
        if visit is None or event not in visit.events:
            return False
        events = self.events
        del events[len(events) - 1 - events[::-1].index(event)]
        self.visits, self._by_key, self._arrived, self.latest = [], {}, 0, BEFORE_ALL
        self.insert(events)
        return True

    def _placed(self, event: Mapping[str, Any]) -> tuple[Any, int, str | None]:
        """Identifier of an event's visit, position of the event (seconds or a place), and key of the visit, if any."""
        extractor = self.feature_extractor
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
