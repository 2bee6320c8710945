# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The encoding of raw events, profiles and actions as ids, by the values that training knew.

It has two steps. `read` gives raw values their meaning: texts, numbers, seconds. `encode` puts the events in order and
gives them ids, for one customer or for many. Between the two, preparation checks, splits and groups the events of a
log, and fits what the ids mean.

Shapes: J features.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from .events_mcm import (
    EPOCH_WEEKDAY,
    NO_RANK,
    NO_TIME,
    SECONDS_PER_DAY,
    SECONDS_PER_HOUR,
    Distinct,
    Timeline,
    arrange,
    as_list,
    check_keys,
    is_missing,
    map_distinct,
    naming,
    read_columns,
    read_zone,
    split_path,
    split_values,
    to_number,
    to_numbers,
    to_place,
    to_seconds,
    to_text,
    to_values,
)
from .schema_mcm import HOUR, NUMERIC, ONE_TOKEN_TYPE, ROWS, TOKEN_TYPE, WEEKDAY, LogSchema, raw_indices


class BadValues(NamedTuple):
    """Values of a column that can't be read."""

    column: str
    rows: NDArray[np.bool_]  # (events,): where they are
    reason: str  # what is wrong with one of them


@dataclass
class Events:
    """Events as they were read, in any order, before they have ids."""

    positions: NDArray[np.int64]  # (events,): seconds since 1970-01-01, or the places of events without times
    visits: Distinct | None  # keys of the visits as texts; None where the log has none
    is_target: NDArray[np.bool_]  # (events,): whether the token type is that of a target
    # By feature what was read of its column: `Distinct` texts or sets of texts, or an array of numbers.
    values: dict[str, Any]

    def rank_visits(self) -> NDArray[np.int64]:
        """Rank of the key of each event's visit, of shape `(events,)`; `NO_RANK` where it has none."""
        return np.full(len(self.positions), NO_RANK) if self.visits is None else self.visits.rank()

    def without_duplicates(self) -> "Events":
        """Leaves out the events that equal an earlier one in all that is read of them."""
        keys = [self.positions] if self.visits is None else [self.positions, self.visits.number()]
        for column in self.values.values():
            is_number = isinstance(column, np.ndarray)
            keys.append(np.unique(column, return_inverse=True)[1] if is_number else column.number())
        kept = np.sort(np.unique(np.stack(keys), axis=1, return_index=True)[1])

        def some(column: Any) -> Any:
            return column[kept] if isinstance(column, np.ndarray) else Distinct(column.values, column.codes[kept])

        values = {feature: some(column) for feature, column in self.values.items()}
        visits = None if self.visits is None else some(self.visits)
        return Events(self.positions[kept], visits, self.is_target[kept], values)


class Encoding:
    """Raw values to ids. Id 0 means missing, 1 a value that was not seen in training; values and bins follow.

    Attributes:
        specs (`dict[str, FeatureSpec]`): The features by name.
        columns (`dict[str, str]`): By feature the column that it is read from; derived features have none.
        sources (`dict[str, str]`): By feature with a column the feature under whose name its values are read.
        ids (`dict[str, dict[str, int]]`): By categorical feature the id of each value.
        zone (`tzinfo`, *optional*): Time zone of times that name none.
        event_features, profile_features (`list[str]`): Names of the features of events, and of those of the profile.
        token_feature (`str`): Name of the feature that holds the token type.
    """

    def __init__(
        self,
        schema: LogSchema,
        feature_names: Sequence[str],
        vocabularies: Mapping[str, Sequence[str]],
        bins: Mapping[str, Sequence[float]],
    ):
        self.schema, self.feature_names, self.zone = schema, feature_names, read_zone(schema.time_zone)
        self.specs = {spec.name: spec for spec in (*schema.features, *schema.profile)}
        self.columns = {name: spec.column for name, spec in self.specs.items() if spec.column}
        self.sources = {
            spec.name: specs[index].name
            for specs in (schema.features, schema.profile)
            for spec, index in zip(specs, raw_indices(specs), strict=True)
            if spec.column
        }
        self.event_features = [spec.name for spec in schema.features]
        self.profile_features = [spec.name for spec in schema.profile]
        self.token_feature, self.reserved_token_types = schema.token_feature.name, schema.reserved_token_types
        self._known_profile = schema.profile_columns
        self.ids = {
            feature: {value: FIRST_VALUE_ID + i for i, value in enumerate(values)}
            for feature, values in vocabularies.items()
        }
        self._edges = {feature: np.array(edges, np.float64) for feature, edges in bins.items()}

    def events(self, columns: Mapping[str, Any], count: int) -> dict[str, NDArray[Any]]:
        """Encodes the events of one customer, in any order, as the columns `times`, `visits`, `feature_<name>`,
        `value_<name>` and `task_<name>` of a row, oldest event first, end-of-visit events included; see
        `MCMFeatureExtractor.encode`. Raises `ValueError` if a value can't be encoded; the message names the column."""
        events = self.read(columns, count)
        if self.schema.on_duplicate == "drop":
            events = events.without_duplicates()
        row, _ = self.encode(events)
        is_empty = ~np.any([row[f"feature_{feature}"] for feature in self.event_features], axis=0)
        if is_empty.any():
            raise ValueError(f"event {np.argmax(is_empty)} in order of time has no value in any feature; leave it out")
        return row

    def read(self, columns: Mapping[str, Any], count: int, bad: list[BadValues] | None = None) -> "Events":
        """Reads raw values as texts, numbers and seconds. Raises `ValueError` if a value can't be read; with `bad`,
        such values are noted there and read as missing, and an event may have no time (`NO_TIME`)."""
        schema = self.schema
        visits, is_target = None, np.ones(count, bool)
        if schema.visit:
            visits = self.read_values(schema.visit, columns[schema.visit], to_text, bad)
        if schema.token_type is not None:
            token = columns[schema.token_type]
            is_target = self.read_values(schema.token_type, token, self.is_target, bad).expand(np.bool_)
        positions = self._read_positions(columns, count, bad)
        return Events(positions, visits, is_target, self.read_features(self.event_features, columns, bad))

    def read_features(
        self, features: Sequence[str], columns: Mapping[str, Any], bad: list[BadValues] | None = None
    ) -> dict[str, Any]:
        """Reads the raw columns of features: numbers, NaN where one is missing, or texts or sets of texts. Features
        that share the values of a column are read once, under the name of the first."""
        values: dict[str, Any] = {}
        for feature in features:
            spec = self.specs[feature]
            if spec.column is None or self.sources[feature] in values:
                continue
            feature = self.sources[feature]
            if spec.kind == NUMERIC:
                values[feature] = self._read_numbers(spec.columns, columns, bad)
            else:
                values[feature] = self.read_values(spec.column, columns[spec.column], self._reader(feature), bad)
        return values

    def read_values(
        self, name: str, column: Any, function: Callable[[Any], Any], bad: list[BadValues] | None = None
    ) -> Distinct:
        """Applies a function to the distinct values of a column; see `read`."""
        distinct = Distinct.of(column)
        if bad is None:
            with naming(f"column {name!r}"):
                return distinct.map(function)
        reasons: dict[int, str] = {}
        values = []
        for code, value in enumerate(distinct.values):
            try:
                values.append(function(value))
            except ValueError as error:
                values.append(None)
                reasons[code] = str(error)
        if reasons:
            bad.append(BadValues(name, np.isin(distinct.codes, [*reasons]), max(reasons.values())))
        return Distinct(values, distinct.codes)

    def _read_numbers(
        self, names: Sequence[str], columns: Mapping[str, Any], bad: list[BadValues] | None
    ) -> NDArray[np.float64]:
        """Numbers of a numeric feature, the product of its columns, of shape `(count,)`, NaN where one is missing."""
        numbers = []
        for name in names:
            column = columns.get(name, [None])
            if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
                numbers.append(column.astype(np.float64))
            else:
                read = self.read_values(name, column, to_number, bad)
                numbers.append(read.map(lambda number: np.nan if number is None else number).expand(np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            return functools.reduce(np.multiply, numbers)

    def _read_positions(
        self, columns: Mapping[str, Any], count: int, bad: list[BadValues] | None
    ) -> NDArray[np.int64]:
        """What puts the events in order: seconds since 1970-01-01, or their places."""
        schema = self.schema
        if schema.order == ROWS:
            return np.arange(count)
        name = schema.order_column or ""
        column = columns[name]
        if (
            isinstance(column, np.ndarray)
            and column.dtype.kind == "M"
            and not (bad is None and np.isnat(column).any())
        ):
            return column.astype("datetime64[s]").astype(np.int64)
        read = to_place if schema.order else functools.partial(to_seconds, zone=self.zone)
        if bad is None:
            return self.read_values(name, column, read).expand(np.int64)
        found = self.read_values(name, column, lambda value: NO_TIME if is_missing(value) else read(value), bad)
        return found.map(lambda position: NO_TIME if position is None else position).expand(np.int64)

    def encode(
        self,
        events: "Events",
        customers: NDArray[np.int64] | None = None,
        periods: NDArray[np.int64] | None = None,
    ) -> tuple[dict[str, NDArray[Any]], Timeline]:
        """Encodes the events of one customer or, with `customers` and `periods`, of many, in any order.

        Args:
            customers, periods (`np.ndarray` of shape `(events,)`, *optional*): Number of each event's customer, and
                its period; see [`arrange`].

        Returns:
            The columns of rows, see `MCMFeatureExtractor.encode`, one customer's events after the other's, with
            `unseen_<task>` added for many customers: of a target's label that training has not seen, a checksum of its
            text; and how the events were arranged.
        """
        schema, count, nothing = self.schema, len(events.positions), np.zeros(len(events.positions), np.int64)
        ids, values, unseen = {}, {}, {}
        for feature in self.event_features:
            if self.specs[feature].is_constant:
                ids[feature] = np.full(count, self.ids[TOKEN_TYPE][ONE_TOKEN_TYPE], np.int32)
            elif feature in self.sources:
                column = events.values[self.sources[feature]]
                ids[feature] = self.encode_values(feature, column)
                if isinstance(column, np.ndarray):
                    values[feature] = to_values(column)
        ties = [*ids.values(), events.is_target, *values.values()]
        for task in schema.tasks if customers is not None else ():
            sums = nothing  # the one token type of a log without token types is never unseen
            if task in self.sources:
                texts = events.values[self.sources[task]].map(_one_text)
                ties.append(texts.rank())
                sums = texts.map(lambda text: zlib.crc32(text.encode()) >> 1).expand(np.int64)
            is_unseen = (ids[task] == UNKNOWN_ID) & events.is_target
            unseen[task] = np.where(is_unseen, sums, 0).astype(np.int32)
        ranks = events.rank_visits()
        customers, periods = (nothing if each is None else each for each in (customers, periods))
        closing = bool(schema.end_of_visit)
        timeline = arrange(events.positions, ranks, ties, events.is_target, closing, customers, periods)

        def in_order(values: NDArray[Any], closing: int = 0) -> NDArray[Any]:
            """A column in the order of the row; `closing` is what events that close a visit have."""
            ordered = values[timeline.indices]
            ordered[timeline.closes] = closing
            return ordered

        times = events.positions[timeline.indices]
        if schema.order is not None:
            times = timeline.visits.astype(np.int64) * SECONDS_PER_DAY
        row: dict[str, NDArray[Any]] = {"times": times, "visits": timeline.visits}
        closing_id = self.ids[self.token_feature].get(schema.end_of_visit or "", MISSING_ID)
        for feature in self.event_features:
            if feature in ids:
                added = closing_id if feature == self.token_feature else MISSING_ID
                row[f"feature_{feature}"] = in_order(ids[feature], added)
            else:
                row[f"feature_{feature}"] = self.derived_ids(feature, times, timeline.days)
        for feature, of_events in values.items():
            row[f"value_{feature}"] = in_order(of_events)
        for task in schema.tasks:
            row[f"task_{task}"] = in_order(np.where(events.is_target, ids[task], MISSING_ID), MISSING_ID)
        row |= {f"unseen_{task}": in_order(of_task) for task, of_task in unseen.items()}
        return row, timeline

    def derived_ids(self, feature: str, times: NDArray[np.int64], days: NDArray[np.float64]) -> NDArray[np.int32]:
        """Ids of a feature that is computed from the time of each event and the days since the visit before, of shape
        `(events,)`."""
        if self.specs[feature].kind == HOUR:
            return (FIRST_VALUE_ID + times // SECONDS_PER_HOUR % 24).astype(np.int32)
        if self.specs[feature].kind == WEEKDAY:
            return (FIRST_VALUE_ID + (times // SECONDS_PER_DAY + EPOCH_WEEKDAY) % 7).astype(np.int32)
        return self._bin(feature, days)

    def is_target(self, value: Any) -> bool:
        """Whether events of a token type are targets. Raises `ValueError` if the token type is reserved."""
        text = to_text(value)
        if text in self.reserved_token_types:
            raise ValueError(f"found {text!r}, which MCM adds itself; leave these events out or rename the token type")
        return not self.schema.target_token_types or text in self.schema.target_token_types

    def profile(self, profile: Mapping[str, Any] | None) -> dict[str, np.int32]:
        """Encodes a profile. Raises `ValueError` if a column is unknown, or a value can't be encoded."""
        profile = {} if profile is None else profile
        if not isinstance(profile, Mapping):
            raise ValueError(f"the profile is {type(profile).__name__}, expected a dict of column and value")
        check_keys(profile, self._known_profile, "profile")
        with naming("profile"):
            columns = {column: [profile.get(column)] for column in self._known_profile}
            read = self.read_features(self.profile_features, columns)
        return {f"profile_{name}": ids[0] for name, ids in self.encode_features(self.profile_features, read).items()}

    def actions(self, actions: Any) -> NDArray[np.int64]:
        """Encodes actions; see `MCMFeatureExtractor.encode_actions`."""
        schema = self.schema
        columns_of_features = [
            column
            for column in schema.event_columns
            if column not in (schema.customer, schema.time, schema.order, schema.visit)
        ]
        columns, count = read_columns(actions, columns_of_features)
        occurring = [feature for feature in self.event_features if self.columns.get(feature) in columns]
        read = self.encode_features(occurring, self.read_features(occurring, columns))
        ids = np.zeros((count, len(self.feature_names)), np.int64)
        for index, feature in enumerate(self.feature_names):
            if feature in read:
                ids[:, index] = read[feature]
            elif schema.token_type is None and feature == TOKEN_TYPE:
                ids[:, index] = self.ids[TOKEN_TYPE][ONE_TOKEN_TYPE]
        return ids

    def customer_id(self, given: Any, column: Any) -> str | None:
        """The id as text. Raises `ValueError` if the events carry the id of another customer."""
        with naming(f"column {self.schema.customer!r}"):
            ids = set(map(to_text, [*as_list(column), *([] if is_missing(given) else [given])]))
            if len(ids) > 1 or None in ids:
                first_ids = ", ".join(sorted(map(str, ids))[:5])
                raise ValueError(f"found the customers {first_ids}; give each customer a dict of its own")
        return next(iter(ids), None)

    def value_ids(self, feature: str, column: Any) -> NDArray[np.int32]:
        """Ids of values of a categorical feature, without splitting them into parts, of shape `(len(column),)`."""
        return map_distinct(column, lambda value: self._look_up_id(feature, to_text(value)), np.int32)

    def feature_ids(self, feature: str, column: Any) -> NDArray[np.int32]:
        """Ids of the values of a feature's column, of shape `(len(column),)`."""
        if self.specs[feature].kind == NUMERIC:
            return self._bin(feature, to_numbers(column))
        return self.encode_values(feature, Distinct.of(column).map(self._reader(feature)))

    def encode_features(self, features: Iterable[str], values: Mapping[str, Any]) -> dict[str, NDArray[np.int32]]:
        """Ids of features of what `read_features` gave, each of shape `(count,)`."""
        return {feature: self.encode_values(feature, values[self.sources[feature]]) for feature in features}

    def encode_values(self, feature: str, values: Any) -> NDArray[np.int32]:
        """Ids of a feature of what was read of its column, of shape `(events,)`."""
        if isinstance(values, np.ndarray):
            return self._bin(feature, values)
        item = self.specs[feature].item
        if item is not None:
            return values.map(lambda texts: self._id_of_item(feature, texts or (), item)).expand(np.int32)
        return values.map(lambda text: self._look_up_id(feature, text)).expand(np.int32)

    def has_value(self, feature: str, values: Distinct) -> NDArray[np.bool_]:
        """Whether each event has a value of a categorical feature, of shape `(events,)`."""
        item = self.specs[feature].item
        return values.map(lambda value: value is not None and len(value) >= (item or 0)).expand(np.bool_)

    def _reader(self, feature: str) -> Callable[[Any], Any]:
        """What a categorical feature reads of a value of its column: a text or a set of texts; None if missing."""
        spec = self.specs[feature]
        if spec.level is not None:
            return functools.partial(split_path, separator=str(spec.separator), level=spec.level)
        if spec.item is not None:
            return functools.partial(split_values, separator=spec.separator)
        return to_text

    def _look_up_id(self, feature: str, text: str | None) -> int:
        return MISSING_ID if text is None else self.ids[feature].get(text, UNKNOWN_ID)

    def _id_of_item(self, feature: str, texts: Iterable[str], item: int) -> int:
        """Id number `item`, from 1, among the ids of several values in ascending order, unknown values last."""
        ids = sorted(
            (self._look_up_id(feature, text) for text in texts), key=lambda label: (label == UNKNOWN_ID, label)
        )
        return ids[item - 1] if item <= len(ids) else MISSING_ID

    def _bin(self, feature: str, numbers: NDArray[np.float64]) -> NDArray[np.int32]:
        ids = FIRST_VALUE_ID + np.searchsorted(self._edges[feature], numbers, side="right")
        return np.where(np.isnan(numbers), MISSING_ID, ids).astype(np.int32)


def _one_text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(sorted(value or ()))
