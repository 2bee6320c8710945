# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Turns raw actions into the model inputs of `MCMForActionRecommendation`.

An action is an event that has not happened yet, so it has the columns of the event log. An action that covers several
kinds of events (any of twenty products) has several rows, each with a weight.

Shapes: V actions, R rows of all actions, J features; B customers, L events, K offers of the customer with the most; in
a batch: U distinct actions, S rows of these, M matches (events that did what an action asks for).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .configuration_mcm import MISSING_ID, UNKNOWN_ID, MCMConfig
from .events_mcm import SECONDS_PER_DAY, naming, to_ids, to_number
from .processing_mcm import MCMFeatureExtractor

NOT_OFFERED = -1


class ActionMatcher:
    """Finds matches: events that have all values of an action row. The token type is ignored, because a purchase
    without the coupon is a purchase too. A row that has only a token type (watch a video) matches events of that type.
    A value that was never seen in training matches nothing. `ids` `(R, J)` are the feature ids of the rows of all
    actions, `token` is the index of the token type among the features."""

    def __init__(self, ids: NDArray[np.int64], token: int):
        present = ids != MISSING_ID
        present[:, token] = ~np.delete(present, token, axis=1).any(1)
        # Each row is hashed to one number (mod 2^64), so that equal rows have equal numbers.
        self.digits = np.random.default_rng(0).integers(1, 2**63, ids.shape[1], dtype=np.uint64)
        self.kinds, detect_kind = np.unique(present, axis=0, return_inverse=True)
        self.detect_kind = np.where((present & (ids == UNKNOWN_ID)).any(1), -1, detect_kind.reshape(-1))
        self.numbers = ((ids * present).astype(np.uint64) * self.digits).sum(1)

    def __call__(self, events: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """Finds all matches of the feature ids `(E, J)` of E events with the action rows `(S,)`, indices into the R
        rows. Returns for each match the index into `events` and the index into `rows`."""
        matches: list[tuple[NDArray, NDArray]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for kind in np.unique(self.detect_kind[rows]):
            if kind < 0:
                continue
            same_kind = np.flatnonzero(self.detect_kind[rows] == kind)
            order = same_kind[np.argsort(self.numbers[rows[same_kind]], kind="stable")]
            sought, numbers = self.numbers[rows[order]], (events * self.kinds[kind]).astype(np.uint64) @ self.digits
            first, last = np.searchsorted(sought, numbers, "left"), np.searchsorted(sought, numbers, "right")
            count = last - first
            inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            matches.append((np.repeat(np.arange(len(events)), count), order[np.repeat(first, count) + inside]))
        return np.concatenate([pair[0] for pair in matches]), np.concatenate([pair[1] for pair in matches])


class EncodedActions:
    """Actions encoded as feature ids; it makes the model inputs for the actions that a batch is offered.

    Args:
        action_ids (`Sequence[str]` of length V): Name of each action; versions of one action may share a name.
        columns (`Mapping[str, Any]`): Raw values of each row, by column of the event log; each of length R.
        row_offsets (`np.ndarray` of shape `(V + 1,)`): Action v has the rows `row_offsets[v]` to
            `row_offsets[v + 1] - 1`.
        weights (`np.ndarray` of shape `(R,)`): Weight of each row in its action.

    Raises:
        ValueError: If there are no rows or columns, a column is unknown, a value can't be encoded, or a weight is not
            positive.
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
        names = extractor.feature_names
        if not columns or not len(weights):
            raise ValueError(f"Found {len(weights)} actions with columns {[*columns]}; give columns of the event log.")
        if len(wrong := np.flatnonzero(~((weights > 0) & (weights < np.inf)))):
            action = np.searchsorted(row_offsets, wrong[0], side="right") - 1
            raise ValueError(
                f"Action {action_ids[action]!r} has the weight {weights[wrong[0]]}; give a number above 0, or leave "
                "`weight` out."
            )
        self.extractor, self.config = extractor, config
        self.action_ids, self.row_offsets, self.weights = action_ids, row_offsets, weights
        with naming("The actions"):
            self.ids = extractor.encode_actions(columns)
        self.matcher = ActionMatcher(self.ids, names.index(extractor.token_type_feature))
        input_indices = [names.index(name) for name in config.input_features or names]
        self.has_value = (self.ids[:, input_indices] != MISSING_ID).any(1)

    def check(self, offered: NDArray[np.int64]) -> None:
        """Checks that every offered action has a value, because it has no embedding otherwise. Raises `ValueError` if
        an action has no value in any feature; the message names it."""
        values = np.add.reduceat(self.has_value.astype(np.int64), self.row_offsets[:-1])
        if len(wrong := offered[values[offered] == 0]):
            raise ValueError(
                f"Action {self.action_ids[wrong[0]]!r} has no value in any feature; add some to the actions."
            )

    def batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        offered: NDArray[np.int64],
        times: Sequence[float | None],
        max_events: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Makes the model inputs of histories, rows of `MCMFeatureExtractor.encode` or of a prepared data set, which
        are offered the actions `offered` `(B, K)` at these times, in seconds on the clock of the rows; `None` is right
        after the last event."""
        readable = [self.extractor.readable(row, self.config.input_features) for row in rows]
        batch = dict(self.extractor.pad(readable, max_events))
        arrays = self.inputs(batch["input_ids"].numpy(), offered)
        # The latest event is not the end of a row where visits overlap.
        waited = [
            0.0 if time is None or not len(row["times"]) else (time - row["times"].max()) / SECONDS_PER_DAY
            for row, time in zip(rows, times, strict=True)
        ]
        arrays["days_to_offers"] = np.array(waited, np.float32)
        return batch | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def inputs(self, input_ids: NDArray[np.int64], offered: NDArray[np.int64]) -> dict[str, NDArray]:
        """Makes the model inputs for the offers of a batch, see `MCMForActionRecommendation.forward`. Reads the
        feature ids `(B, L, J)` of the histories and the offered actions `(B, K)`, negative where a customer has fewer
        offers. Returns `action_input_ids` `(S, J)`, `action_rows` and `action_weights` `(S,)`, `action_matches`
        `(M, 3)` and `offered_actions` `(B, K)`, whose values are indices of the batch's distinct actions."""
        distinct = np.unique(offered[offered >= 0])
        among = np.where(offered >= 0, np.searchsorted(distinct, offered), NOT_OFFERED)
        starts, ends = self.row_offsets[distinct], self.row_offsets[distinct + 1]
        rows = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        owners = np.repeat(np.arange(len(distinct)), ends - starts)
        has_value = self.has_value[rows]
        rows, owners = rows[has_value], owners[has_value]
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
        """Customer, event and action of each match with an action that the customer is offered, of shape `(M, 3)`."""
        batch, length, features = input_ids.shape
        events, matched = self.matcher(input_ids.reshape(-1, features), rows)
        customers, positions = np.divmod(events, length)
        is_offered = np.zeros((batch, count + 1), bool)
        is_offered[np.arange(batch)[:, None], offered] = True  # NOT_OFFERED, -1, is the last column
        is_match = is_offered[customers, owners[matched]] & (positions > 0)  # index 0 is the start row
        # An event that matches several rows of an action counts once.
        keys = np.unique((customers[is_match] * length + positions[is_match]) * count + owners[matched[is_match]])
        return np.stack([keys // count // length, keys // count % length, keys % count], axis=1)


def features_of_actions(extractor: MCMFeatureExtractor, columns: Mapping[str, Any]) -> list[str]:
    """Features of events that at least one action has a value of."""
    with naming("The actions"):
        has_value = (extractor.encode_actions(columns) != MISSING_ID).any(0)
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    has_values = zip(extractor.feature_names, has_value, strict=True)
    return [name for name, is_read in has_values if is_read and name not in profile]


def encode_actions(extractor: MCMFeatureExtractor, config: MCMConfig, actions: Any) -> EncodedActions:
    """Reads raw actions, as [`read_actions`] does, and encodes them. Raises `ValueError` if one has no value."""
    names, columns, offsets, weights = read_actions(actions)
    encoded = EncodedActions(extractor, config, names, columns, offsets, weights)
    encoded.check(np.arange(len(names)))
    return encoded


def read_actions(actions: Any) -> tuple[list[str], dict[str, list[Any]], NDArray[np.int64], NDArray[np.float64]]:
    """Reads raw actions into the arguments of [`EncodedActions`]. Each is a dict with `action_id`, optionally `weight`
    (1 by default) and columns of the event log; rows with the same `action_id` are one action. Raises `ValueError` if
    there are no actions, or a row is no dict or has no `action_id`."""
    if not isinstance(actions, Sequence) or isinstance(actions, str) or not len(actions):
        raise ValueError(
            f"Found actions {actions!r}; expected a list of dicts with `action_id` and columns of the log."
        )
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for index, row in enumerate(actions):
        if not isinstance(row, Mapping) or row.get("action_id") is None:
            raise ValueError(f"Action {index} is {row!r}; expected a dict with `action_id` and columns of the log.")
        rows.setdefault(to_ids([row["action_id"]])[0], []).append(row)
    ordered = [row for of_action in rows.values() for row in of_action]
    names = dict.fromkeys(name for row in ordered for name in row if name not in ("action_id", "weight"))
    offsets = np.concatenate([[0], np.cumsum([len(of_action) for of_action in rows.values()])])
    with naming("`weight` of the actions"):
        weights = np.array([to_number(row.get("weight", 1.0)) for row in ordered], np.float64)
    return list(rows), {name: [row.get(name) for row in ordered] for name in names}, offsets, weights
