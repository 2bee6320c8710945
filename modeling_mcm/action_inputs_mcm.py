# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From raw actions to what `MCMForActionRecommendation` reads of them.

An action is an interaction not yet taken, so it has the columns of the event log; one that covers several kinds of
interactions (any of twenty products) has several rows, each with its share.

Shapes: V actions, R rows of all actions, J features; B customers, L events, K offers of the customer with the most; of
a batch: U distinct actions, S their rows, M events that did what an action asks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .configuration_mcm import MISSING_ID, UNKNOWN_ID, MCMConfig
from .events_mcm import naming
from .processing_mcm import MCMFeatureExtractor

NOT_OFFERED = -1


class ActionMatcher:
    """Finds the events that did what an action asks: those with all the values that one of its rows has.

    The token type does not count, for a purchase without the coupon is a purchase too; a row with nothing but a token
    type (watch a video) asks for just that. A value that was never seen in training matches nothing.

    Args:
        ids: of the rows of all actions, of shape `(R, J)`.
        token: place of the token type among the features.
    """

    def __init__(self, ids: NDArray[np.int64], token: int):
        present = ids != MISSING_ID
        present[:, token] = ~np.delete(present, token, axis=1).any(1)
        # A value of a column is a place in one large number, so rows are equal where the numbers are (mod 2^64).
        self.digits = np.random.default_rng(0).integers(1, 2**63, ids.shape[1], dtype=np.uint64)
        self.kinds, kind_of = np.unique(present, axis=0, return_inverse=True)
        self.kind_of = np.where((present & (ids == UNKNOWN_ID)).any(1), -1, kind_of.reshape(-1))
        self.numbers = ((ids * present).astype(np.uint64) * self.digits).sum(1)

    def __call__(self, events: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """Places of events `(E, J)` and of `rows`, one pair a match."""
        found: list[tuple[NDArray, NDArray]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for kind in np.unique(self.kind_of[rows]):
            if kind < 0:
                continue
            chosen = np.flatnonzero(self.kind_of[rows] == kind)
            order = chosen[np.argsort(self.numbers[rows[chosen]], kind="stable")]
            sought, numbers = self.numbers[rows[order]], (events * self.kinds[kind]).astype(np.uint64) @ self.digits
            first, last = np.searchsorted(sought, numbers, "left"), np.searchsorted(sought, numbers, "right")
            count = last - first
            inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            found.append((np.repeat(np.arange(len(events)), count), order[np.repeat(first, count) + inside]))
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


class EncodedActions:
    """Actions as ids, and the model's inputs for those that a batch of customers is offered.

    Args:
        extractor: of the checkpoint.
        config: of the model; `input_features` is read.
        action_ids: of shape `(V,)`; several versions of one action may share its id.
        columns: column of the event log -> raw values, of shape `(R,)`.
        row_offsets: of shape `(V + 1,)`; action v has the rows `row_offsets[v]` to `row_offsets[v + 1]`.
        weights: share of each row in its action, of shape `(R,)`.

    Raises:
        ValueError: for a column or a value that the extractor does not know what to do with, or an extractor that is
            not the model's.
    """

    def __init__(
        self,
        extractor: MCMFeatureExtractor,
        config: MCMConfig,
        action_ids: Sequence[str] | NDArray,
        columns: Mapping[str, Any],
        row_offsets: NDArray[np.int64],
        weights: NDArray[np.float64],
    ):
        names, sizes = extractor.feature_names, extractor.vocabulary_sizes
        if (names, sizes) != (config.features, config.vocabulary_sizes):
            raise ValueError(
                f"The feature extractor has the features {dict(zip(names, sizes, strict=True))}, the checkpoint "
                f"{dict(zip(config.features, config.vocabulary_sizes, strict=True))}: they are of different schemas. "
                "Load both from one checkpoint."
            )
        self.config, self.action_ids, self.row_offsets, self.weights = config, action_ids, row_offsets, weights
        with naming("The actions"):
            self.ids = extractor.encode_actions(columns)
        self.matcher = ActionMatcher(self.ids, names.index(extractor.token_type_feature))
        read = [names.index(name) for name in config.input_features or names]
        self.has_value = (self.ids[:, read] != MISSING_ID).any(1)

    def check(self, offered: NDArray[np.int64]) -> None:
        """Raises `ValueError` for an offered action that has no value in any feature, and so no embedding."""
        values = np.add.reduceat(self.has_value.astype(np.int64), self.row_offsets[:-1])
        if len(wrong := offered[values[offered] == 0]):
            raise ValueError(
                f"Action {self.action_ids[wrong[0]]!r} has no value in any feature; add some to the actions."
            )

    def inputs(self, input_ids: NDArray[np.int64], offered: NDArray[np.int64]) -> dict[str, NDArray]:
        """What the model reads beside the histories.

        Args:
            input_ids: of the histories, of shape `(B, L, J)`.
            offered: places of actions, of shape `(B, K)`; negative where a customer is offered fewer.

        Returns:
            `action_input_ids` `(S, J)`, `action_rows` and `action_weights` `(S,)`, `action_matches` `(M, 3)` and
            `offered_actions` `(B, K)`, which counts the distinct actions.
        """
        distinct = np.unique(offered[offered >= 0])
        among = np.where(offered >= 0, np.searchsorted(distinct, offered), NOT_OFFERED)
        starts, ends = self.row_offsets[distinct], self.row_offsets[distinct + 1]
        rows = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        owners = np.repeat(np.arange(len(distinct)), ends - starts)
        kept = self.has_value[rows]
        rows, owners = rows[kept], owners[kept]
        total = np.bincount(owners, self.weights[rows], minlength=len(distinct))
        return {
            "action_input_ids": self.ids[rows],
            "action_rows": owners,
            "action_weights": (self.weights[rows] / total[owners]).astype(np.float32),
            "action_matches": self._matches(input_ids, rows, owners, among, len(distinct)),
            "offered_actions": among,
        }

    def _matches(
        self, input_ids: NDArray, rows: NDArray, owners: NDArray, offered: NDArray, count: int
    ) -> NDArray[np.int64]:
        """Customer, event and action of each match of an event with an action that the customer is offered."""
        batch, length, features = input_ids.shape
        events, matched = self.matcher(input_ids.reshape(-1, features), rows)
        customers, places = np.divmod(events, length)
        is_offered = np.zeros((batch, count + 1), bool)
        is_offered[np.arange(batch)[:, None], offered] = True  # NOT_OFFERED falls on the last column
        kept = is_offered[customers, owners[matched]] & (places > 0)  # place 0 is the start row
        # an event may match several rows of an action, and counts once
        keys = np.unique((customers[kept] * length + places[kept]) * count + owners[matched[kept]])
        return np.stack([keys // count // length, keys // count % length, keys % count], axis=1)


def features_of_actions(extractor: MCMFeatureExtractor, columns: Mapping[str, Any]) -> list[str]:
    """The features of events that some action has a value of; `columns` as in `EncodedActions`."""
    with naming("The actions"):
        has_value = (extractor.encode_actions(columns) != MISSING_ID).any(0)
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    return [
        name for name, found in zip(extractor.feature_names, has_value, strict=True) if found and name not in profile
    ]


def read_actions(actions: Any) -> tuple[list[str], dict[str, list[Any]], NDArray[np.int64], NDArray[np.float64]]:
    """Raw actions as a person writes them, for `EncodedActions`.

    Args:
        actions: list of dicts, one a row: `action_id`, optionally `weight`, and columns of the event log. Rows of one
            `action_id` are one action.

    Returns:
        Action ids in the order in which they first occur, columns, row offsets and weights.

    Raises:
        ValueError: if there are none, or a row is no dict or has no `action_id`.
    """
    if not isinstance(actions, Sequence) or isinstance(actions, str) or not len(actions):
        raise ValueError(
            f"Found actions {actions!r}; expected a list of dicts with `action_id` and columns of the log."
        )
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for place, row in enumerate(actions):
        if not isinstance(row, Mapping) or row.get("action_id") is None:
            raise ValueError(f"Action {place} is {row!r}; expected a dict with `action_id` and columns of the log.")
        rows.setdefault(str(row["action_id"]), []).append(row)
    ordered = [row for of_action in rows.values() for row in of_action]
    names = dict.fromkeys(name for row in ordered for name in row if name not in ("action_id", "weight"))
    offsets = np.concatenate([[0], np.cumsum([len(of_action) for of_action in rows.values()])])
    weights = np.array([row.get("weight", 1.0) for row in ordered], np.float64)
    return list(rows), {name: [row.get(name) for row in ordered] for name in names}, offsets, weights


__all__ = ["EncodedActions", "features_of_actions", "read_actions"]
