# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The encoding of raw events, profiles and actions as ids, by the values that training knew.

[`EventReader`] gives raw values their meaning: texts, numbers, seconds. `encode` puts the events in order and gives
them ids, for one customer or for many. Between the two, preparation checks, splits and groups the events of a log, and
fits what the ids mean.

Shapes: J features.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .configuration_mcm import FIRST_VALUE_ID, MISSING_ID, MOST_IDS, UNKNOWN_ID
from .events_mcm import (
    NO_RANK,
    PERIODS,
    SECONDS_PER_DAY,
    BoolArray,
    Column,
    Distinct,
    EventReader,
    Events,
    FloatArray,
    IntArray,
    map_distinct,
    run_starts,
    to_number,
    to_values,
    value_reader,
)
from .schema_mcm import HOUR, NUMERIC, ONE_TOKEN_TYPE, TOKEN_TYPE, WEEKDAY, LogSchema

# By kind of a feature that the clock gives: seconds of a value, the value of 1970-01-01 (a Thursday; Monday is 0), and
# the number of values
CALENDAR = {HOUR: (3600, 0, 24), WEEKDAY: (SECONDS_PER_DAY, 3, 7)}


def write_text(value: str | Iterable[str] | None) -> str | None:
    """One text of a value, or of several in any order."""
    return value if value is None or isinstance(value, str) else "\n".join(sorted(value))


class Timeline(NamedTuple):
    """Order and visits of the n events of some customers and of the inserted end-of-visit events, m events in all."""

    # (m,): index in the input of each event; an end-of-visit event has that of its visit's last event
    indices: IntArray
    closes: BoolArray  # (m,): whether the event is an end-of-visit event
    visits: NDArray  # (m,): visit of each event, counted from 0 for each customer
    days: FloatArray  # (m,): days between the starts of the visit before and of this one, NaN in the first


def days_between(starts: IntArray) -> FloatArray:
    """Days from the start of the visit before to that of each visit, NaN for the first one, of shape `(visits,)`."""
    days = np.diff(starts, prepend=0) / SECONDS_PER_DAY
    days[:1] = np.nan
    return days


def arrange(
    seconds: IntArray,
    ranks: IntArray,
    ties: Sequence[NDArray],
    is_target: BoolArray,
    close_visits: bool,
    customers: IntArray,
    periods: IntArray,
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
    part = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))  # (n,): of each event
    ends = np.append(first[1:], len(order))[closed]
    indices, closes = np.insert(order, ends, order[ends - 1]), np.insert(np.zeros(len(order), bool), ends, True)
    part = np.insert(part, ends, closed)  # (m,)
    return Timeline(indices, closes, numbers[part].astype(np.int32), days[visit[part]])


class Encoding:
    """Raw values to ids. Id 0 means missing, 1 a value that was not seen in training; values and bins follow.

    Attributes:
        reader (`EventReader`): What reads raw values.
        specs (`dict[str, FeatureSpec]`): The features by name.
        sources (`dict[str, str]`): By feature with a column the feature under whose name its values are read.
        ids (`dict[str, dict]`): By categorical feature the id of each value, and of None.
        event_features, profile_features (`list[str]`): Names of the features of events, and of those of the profile.
        token_feature (`str`): Name of the feature that holds the token type.
    """

    def __init__(self, schema: LogSchema, vocabularies: Mapping, bins: Mapping):
        self.schema, self.reader, self.specs, self.sources = schema, EventReader(schema), schema.specs, schema.sources
        self.event_features = [spec.name for spec in schema.features]
        self.profile_features = [spec.name for spec in schema.profile]
        self.token_feature = schema.token_feature.name
        self.ids = {
            feature: {value: FIRST_VALUE_ID + i for i, value in enumerate(values)} | {None: MISSING_ID}
            for feature, values in vocabularies.items()
        }
        self._edges = {feature: np.array(edges, np.float64) for feature, edges in bins.items()}

    def encode(
        self,
        events: Events,
        customers: IntArray,
        periods: IntArray | None = None,
        known: Mapping[str, int] | None = None,
    ) -> tuple[dict, Timeline]:
        """Encodes the events of customers, in any order.

        Args:
            customers (`np.ndarray` of shape `(events,)`): Number of each event's customer.
            periods (`np.ndarray` of shape `(events,)`, *optional*): Its period; see [`arrange`].
            known (`Mapping`, *optional*): By feature the number of ids that training has seen, if it is not all.

        Returns:
            The columns of rows, see `MCMFeatureExtractor.encode`, one customer's events after the other's, with
            `unseen_<task>` added where there are periods: of a target's label that training has not seen, a checksum
            of its text; and how the events were arranged.
        """
        schema, count, nothing = self.schema, len(events.positions), np.zeros(len(events.positions), np.int64)
        ids, values, unseen, known = {}, {}, {}, known or {}
        texts = dict[str, Distinct]()  # which order equal events: ids differ from one vocabulary to the next
        for feature in self.event_features:
            if self.specs[feature].is_constant:
                ids[feature] = np.full(count, self.ids[TOKEN_TYPE][ONE_TOKEN_TYPE], np.int32)
            elif feature in self.sources:
                column = events.values[self.sources[feature]]
                ids[feature] = self.encode_values(feature, column)
                if isinstance(column, np.ndarray):
                    values[feature] = to_values(column)
                elif self.sources[feature] == feature:
                    texts[feature] = column.map(write_text)
        ranks = (column.rank() for column in texts.values())
        ties: list[NDArray] = [events.fractions, *ranks, events.is_target, *values.values()]
        for task in schema.tasks if periods is not None else ():
            sums = nothing  # the one token type of a log without token types is never unseen
            if task in self.sources:
                column = texts[self.sources[task]]
                sums = column.map(lambda text: zlib.crc32((text or "").encode()) >> 1).expand(np.int64)
            is_unseen = (ids[task] == UNKNOWN_ID) | (ids[task] >= known.get(task, MOST_IDS))
            unseen[task] = np.where(is_unseen & events.is_target, sums, 0).astype(np.int32)
        closing, periods = bool(schema.end_of_visit), nothing if periods is None else periods
        timeline = arrange(events.positions, events.visits.rank(), ties, events.is_target, closing, customers, periods)

        def in_order(values: NDArray, closing: int = 0) -> NDArray:
            """A column in the order of the row; `closing` is what events that close a visit have."""
            ordered = values[timeline.indices]
            ordered[timeline.closes] = closing
            return ordered

        times = events.positions[timeline.indices]
        if schema.order is not None:
            times = timeline.visits.astype(np.int64) * SECONDS_PER_DAY
        row = {"times": times, "visits": timeline.visits}
        closing_id = self.ids[self.token_feature][schema.end_of_visit]
        for feature in self.event_features:
            if feature in ids:
                added = closing_id if feature == self.token_feature else MISSING_ID
                row[f"feature_{feature}"] = in_order(ids[feature], added)
            else:
                row[f"feature_{feature}"] = self.derived_ids(feature, times, timeline.days)
        for feature, numbers in values.items():
            row[f"value_{feature}"] = in_order(numbers)
        for task in schema.tasks:
            row[f"task_{task}"] = in_order(np.where(events.is_target, ids[task], MISSING_ID), MISSING_ID)
        row |= {f"unseen_{task}": in_order(sums) for task, sums in unseen.items()}
        return row, timeline

    def derived_ids(self, feature: str, times: IntArray, days: FloatArray) -> NDArray:
        """Ids of a feature that is computed from the time of each event and the days since the visit before, of shape
        `(events,)`."""
        if (kind := self.specs[feature].kind) not in CALENDAR:
            return self._bin(feature, days)
        unit, first, size = CALENDAR[kind]
        return (FIRST_VALUE_ID + (times // unit + first) % size).astype(np.int32)

    def feature_ids(self, feature: str, column: Column) -> NDArray:
        """Ids of the values of a feature's column, of shape `(len(column),)`."""
        if self.specs[feature].kind == NUMERIC:
            return self._bin(feature, map_distinct(column, to_number, np.float64))
        return self.encode_values(feature, Distinct.of(column).map(value_reader(self.specs[feature])))

    def encode_features(self, features: Iterable[str], values: Mapping) -> dict:
        """Ids of features of what `read_features` gave, each of shape `(count,)`."""
        return {feature: self.encode_values(feature, values[self.sources[feature]]) for feature in features}

    def encode_values(self, feature: str, values: Distinct | FloatArray) -> NDArray:
        """Ids of a feature of what was read of its column, of shape `(events,)`."""
        if isinstance(values, np.ndarray):
            return self._bin(feature, values)
        ids, item = self.ids[feature], self.specs[feature].item
        if item is None:
            return values.map(lambda text: ids.get(text, UNKNOWN_ID)).expand(np.int32)

        def find(texts: Iterable[str] | None) -> int:
            """Id number `item` among those of several values in ascending order, unknown values last."""
            ranked = sorted((text not in ids, ids.get(text, UNKNOWN_ID)) for text in texts or ())
            return ranked[item - 1][1] if item <= len(ranked) else MISSING_ID

        return values.map(find).expand(np.int32)

    def _bin(self, feature: str, numbers: FloatArray) -> NDArray:
        ids = FIRST_VALUE_ID + np.searchsorted(self._edges[feature], numbers, side="right")
        return np.where(np.isnan(numbers), MISSING_ID, ids).astype(np.int32)
