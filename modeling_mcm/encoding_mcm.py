# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The encoding of one customer's raw events, profile and actions as ids, by the values that training knew.

Preparation encodes whole tables by the same rules, with Ibis; tests compare the two.

Shapes: J features.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from .events_mcm import (
    EPOCH_WEEKDAY,
    NO_VISIT,
    SECONDS_PER_DAY,
    SECONDS_PER_HOUR,
    Timeline,
    arrange,
    as_list,
    check_keys,
    is_missing,
    map_distinct,
    naming,
    rank_visits,
    read_columns,
    read_times,
    read_zone,
    split_path,
    split_values,
    to_number,
    to_numbers,
    to_place,
    to_text,
    to_values,
)
from .schema_mcm import HOUR, NUMERIC, ONE_TOKEN_TYPE, ROWS, TOKEN_TYPE, WEEKDAY, LogSchema


class Encoding:
    """Raw values to ids. Id 0 means missing, 1 a value that was not seen in training; values and bins follow.

    Attributes:
        specs (`dict[str, FeatureSpec]`): The features by name.
        columns (`dict[str, str]`): By feature the column that it is read from; derived features have none.
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
        schema = self.schema
        positions = self._read_positions(columns, count)
        ranks = np.full(count, NO_VISIT)
        if schema.visit:
            with naming(f"column {schema.visit!r}"):
                ranks = rank_visits(columns[schema.visit])
        ids, values, is_target = {}, {}, np.ones(count, bool)
        if schema.token_type is None:
            ids[TOKEN_TYPE] = np.full(count, self.ids[TOKEN_TYPE][ONE_TOKEN_TYPE], np.int32)
        else:
            with naming(f"column {schema.token_type!r}"):
                is_target = map_distinct(columns[schema.token_type], self.is_target, np.bool_)
        for feature in self.event_features:
            if column := self.columns.get(feature):
                with naming(f"column {column!r}"):
                    if self.specs[feature].kind == NUMERIC:
                        numbers = self.read_numbers(feature, columns)
                        ids[feature], values[feature] = self._bin(feature, numbers), to_values(numbers)
                    else:
                        ids[feature] = self.feature_ids(feature, columns[column])
        if schema.on_duplicate == "drop":
            kept = self._first_of_equals(columns, positions, ranks)
            positions, ranks, is_target, count = positions[kept], ranks[kept], is_target[kept], len(kept)
            ids = {feature: column[kept] for feature, column in ids.items()}
            values = {feature: column[kept] for feature, column in values.items()}

        ties = (list(ids.values()), is_target, bool(schema.end_of_visit), list(values.values()))
        timeline = arrange(positions, ranks, *ties)
        order, ends = timeline.order, timeline.ends
        closing_id = self.ids[self.token_feature].get(schema.end_of_visit or "", MISSING_ID)
        times = timeline.times if schema.order is None else timeline.visits.astype(np.int64) * SECONDS_PER_DAY
        row: dict[str, NDArray[Any]] = {"times": times, "visits": timeline.visits}
        indices = np.insert(order, ends, 0)  # in the input, of each interaction but those that close a visit
        closes = np.insert(np.zeros(count, bool), ends, True)

        def in_order(values: NDArray[Any], closing: int = 0) -> NDArray[Any]:
            """A column in the order of the row; `closing` is what events that close a visit have."""
            ordered = values[indices]
            ordered[closes] = closing
            return ordered

        for feature in self.event_features:
            if feature in ids:
                added = closing_id if feature == self.token_feature else MISSING_ID
                row[f"feature_{feature}"] = in_order(ids[feature], added)
            else:
                row[f"feature_{feature}"] = self.derived_ids(feature, timeline)
        is_empty = ~np.any([row[f"feature_{feature}"] for feature in self.event_features], axis=0)
        if is_empty.any():
            raise ValueError(f"event {np.argmax(is_empty)} in order of time has no value in any feature; leave it out")
        for feature, of_events in values.items():
            row[f"value_{feature}"] = in_order(of_events)
        for task in schema.tasks:
            row[f"task_{task}"] = in_order(np.where(is_target, ids[task], MISSING_ID), MISSING_ID)
        return row

    def _first_of_equals(
        self, columns: Mapping[str, Any], positions: NDArray[np.int64], ranks: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Indices of the events without those that equal an earlier one in all that is read of them."""
        read = [
            map_distinct(columns[self.columns[feature]], self._reader(feature), object).tolist()
            for feature in self.event_features
            if feature in self.columns
        ]
        keys = [*zip(positions.tolist(), ranks.tolist(), *read, strict=True)]
        first = {key: len(keys) - 1 - index for index, key in enumerate(reversed(keys))}
        return np.sort(np.fromiter(first.values(), np.int64))

    def _read_positions(self, columns: Mapping[str, Any], count: int) -> NDArray[np.int64]:
        """What puts the events in order: seconds since 1970-01-01, or their places."""
        schema = self.schema
        if schema.order == ROWS:
            return np.arange(count)
        column = schema.time or str(schema.order)
        with naming(f"column {column!r}"):
            if schema.order is None:
                return read_times(columns[column], self.zone)
            return np.array([to_place(value) for value in as_list(columns[column])], np.int64)

    def derived_ids(self, feature: str, timeline: Timeline) -> NDArray[np.int32]:
        """Ids of a feature that is computed from the times of events, of shape `(events,)`."""
        if self.specs[feature].kind == HOUR:
            return (FIRST_VALUE_ID + timeline.times // SECONDS_PER_HOUR % 24).astype(np.int32)
        if self.specs[feature].kind == WEEKDAY:
            return (FIRST_VALUE_ID + (timeline.times // SECONDS_PER_DAY + EPOCH_WEEKDAY) % 7).astype(np.int32)
        days = np.diff(timeline.starts, prepend=0) / SECONDS_PER_DAY
        days[:1] = np.nan  # the first visit follows none
        return self._bin(feature, days)[timeline.visits]

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
        ids = {}
        for feature in self.profile_features:
            with naming(f"profile column {self.columns[feature]!r}"):
                ids[f"profile_{feature}"] = self.feature_ids(feature, [profile.get(self.columns[feature])])[0]
        return ids

    def actions(self, actions: Any) -> NDArray[np.int64]:
        """Encodes actions; see `MCMFeatureExtractor.encode_actions`."""
        schema = self.schema
        columns_of_features = [
            column
            for column in schema.event_columns
            if column not in (schema.customer, schema.time, schema.order, schema.visit)
        ]
        columns, count = read_columns(actions, columns_of_features)
        ids = np.zeros((count, len(self.feature_names)), np.int64)
        for index, feature in enumerate(self.feature_names):
            column = self.columns.get(feature)
            if feature in self.event_features and column in columns:
                with naming(f"column {column!r}"):
                    if self.specs[feature].kind == NUMERIC:
                        ids[:, index] = self._bin(feature, self.read_numbers(feature, columns))
                    else:
                        ids[:, index] = self.feature_ids(feature, columns[column])
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

    def read_numbers(self, feature: str, columns: Mapping[str, Any]) -> NDArray[np.float64]:
        """Numbers of a numeric feature, of shape `(count,)`, NaN where one is missing."""
        names = self.specs[feature].columns
        numbers = [to_numbers(columns[name]) if name in columns else np.array([np.nan]) for name in names]
        with np.errstate(over="ignore", invalid="ignore"):  # as in SQL
            return functools.reduce(np.multiply, numbers)

    def value_ids(self, feature: str, column: Any) -> NDArray[np.int32]:
        """Ids of values of a categorical feature, without splitting them into parts, of shape `(len(column),)`."""
        return map_distinct(column, lambda value: self._look_up_id(feature, to_text(value)), np.int32)

    def feature_ids(self, feature: str, column: Any) -> NDArray[np.int32]:
        """Ids of the values of a feature's column, of shape `(len(column),)`."""
        if self.specs[feature].kind == NUMERIC:
            return self._bin(feature, to_numbers(column))
        read, item = self._reader(feature), self.specs[feature].item
        if item is not None:
            return map_distinct(column, lambda value: self._id_of_item(feature, read(value), item), np.int32)
        return map_distinct(column, lambda value: self._look_up_id(feature, read(value)), np.int32)

    def _reader(self, feature: str) -> Callable[[Any], Any]:
        """What a feature reads of a value of its column: a number, a text or a set of texts; None if missing."""
        spec = self.specs[feature]
        if spec.kind == NUMERIC:
            return lambda value: None if np.isnan(number := to_number(value)) else number
        if spec.level is not None:
            return functools.partial(split_path, separator=str(spec.separator), level=spec.level)
        if spec.item is not None:
            return functools.partial(split_values, separator=spec.separator)
        return to_text

    def _look_up_id(self, feature: str, text: str | None) -> int:
        return MISSING_ID if text is None else self.ids[feature].get(text, UNKNOWN_ID)

    def _id_of_item(self, feature: str, texts: frozenset[str], item: int) -> int:
        """Id number `item`, from 1, among the ids of several values in ascending order, unknown values last."""
        ids = sorted(
            (self._look_up_id(feature, text) for text in texts), key=lambda label: (label == UNKNOWN_ID, label)
        )
        return ids[item - 1] if item <= len(ids) else MISSING_ID

    def _bin(self, feature: str, numbers: NDArray[np.float64]) -> NDArray[np.int32]:
        ids = FIRST_VALUE_ID + np.searchsorted(self._edges[feature], numbers, side="right")
        return np.where(np.isnan(numbers), MISSING_ID, ids).astype(np.int32)
