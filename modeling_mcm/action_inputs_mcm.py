# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Turns raw actions into the model inputs of `MCMForActionRecommendation`.

An action is an event that has not happened yet, so it has the columns of the event log. An action that covers several
kinds of events (any of twenty products) has several rows, each with a weight. Rows with a later time replace them: an
action then has several versions.

Shapes: V versions of actions, R rows of all versions, J features; B customers, L events, K offers of the customer with
the most; in a batch: U distinct actions, S rows of these, M matches (events that did what an action asks for).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .configuration_mcm import MISSING_ID, UNKNOWN_ID, MCMConfig
from .events_mcm import (
    Distinct,
    check_columns,
    naming,
    number_groups,
    read_table,
    read_times,
    read_zone,
    run_starts,
    to_ids,
    to_numbers,
)
from .processing_mcm import MCMFeatureExtractor

NOT_OFFERED = -1
ALWAYS = np.iinfo(np.int64).min  # time from which on an action without a time holds


class RawActions(NamedTuple):
    """A table of actions: versions in the order of the actions, those of one action in the order of their times."""

    action_ids: NDArray  # (V,): id of each version's action
    times: NDArray[np.int64]  # (V,): from which on the version holds, in seconds since 1970-01-01
    offsets: NDArray[np.int64]  # (V + 1,): version v has the rows `offsets[v]` to `offsets[v + 1] - 1`
    weights: NDArray[np.float64]  # (R,): weight of each row
    columns: dict[str, list[Any]]  # length R: by column of the event log the raw values

    def find(self, names: NDArray, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Finds the version of each action `(N,)` that holds at a time `(N,)`: the latest that does not begin later.
        Raises `ValueError` if there is none."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.action_ids), 1)}
        moments = np.unique(np.append(self.times, times))

        def rank(names: NDArray, times: NDArray[np.int64]) -> NDArray[np.int64]:
            places = np.array([numbers.get(name, 0) for name in names], np.int64)
            return places * len(moments) + np.searchsorted(moments, times)

        found = np.searchsorted(rank(self.action_ids, self.times), rank(names, times), "right")
        if len(wrong := np.flatnonzero(np.array([None, *self.action_ids], object)[found] != names)):
            raise ValueError(
                f"Action {names[wrong[0]]!r}, offered on {write_day(times[wrong[0]])}, has no row in the actions that "
                "holds then; add one with its features."
            )
        return found - 1


def write_day(seconds: int) -> str:
    """The day of a time, as text."""
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))


def read_actions(actions: Any, time_zone: str) -> RawActions:
    """Reads actions, a table or a list of dicts: `action_id`, columns of the event log, `weight` (1 where it is
    missing) and `time` (default: always). Rows with the same `action_id` and time are one version. Raises `ValueError`
    if there are no actions, or a column is missing or holds a wrong value."""
    with naming("The actions"):
        table = None if isinstance(actions, str) else read_table(actions)
        if not table or not len(next(iter(table.values()))):
            raise ValueError(f"found {actions!r}, expected a list of dicts with `action_id` and columns of the log")
        check_columns([*table], ["action_id"], "The actions have")
        with naming("column 'action_id'"):
            ids = np.array(to_ids(table["action_id"]), object)
        with naming("column 'weight'"):
            weights = to_numbers(table.get("weight", [None] * len(ids)))
            weights[np.isnan(weights)] = 1.0
        with naming("column 'time'"):
            zone = read_zone(time_zone)
            times = read_times(table["time"], zone) if "time" in table else np.full(len(ids), ALWAYS)
    if len(wrong := np.flatnonzero(~((weights > 0) & (weights < np.inf)))):
        raise ValueError(
            f"Action {ids[wrong[0]]!r} has the weight {weights[wrong[0]]}; give a number above 0, or leave it out."
        )
    order = np.lexsort((times, Distinct.of(ids).codes))
    ids, times = ids[order], times[order]
    starts = np.flatnonzero(run_starts(ids, times))
    names = [name for name in table if name not in ("action_id", "time", "weight")]
    columns = {name: [table[name][row] for row in order] for name in names}
    return RawActions(ids[starts], times[starts], np.append(starts, len(ids)), weights[order], columns)


def find_matches(events: NDArray[np.int64], rows: NDArray[np.int64], token: int) -> tuple[NDArray, NDArray]:
    """Finds matches: events that have all values of an action row. The token type is ignored, because a purchase
    without the coupon is a purchase too. A row that has only a token type (watch a video) matches events of that type.
    A value that was never seen in training matches nothing.

    Args:
        events (`np.ndarray` of shape `(E, J)`): Feature ids of E events.
        rows (`np.ndarray` of shape `(S, J)`): Feature ids of action rows.
        token (`int`): Index of the token type among the features.

    Returns:
        Indices of the event and of the row of each match.
    """
    present = rows != MISSING_ID
    present[:, token] = ~np.delete(present, token, axis=1).any(1)
    known = ~(present & (rows == UNKNOWN_ID)).any(1)
    matches: list[tuple[NDArray, NDArray]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for kind in np.unique(present, axis=0):
        same_kind = np.flatnonzero(known & (present == kind).all(1))
        both = np.concatenate([events, rows[same_kind]])[:, kind]
        codes = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        of_events, of_rows = codes[: len(events)], codes[len(events) :]
        order = np.argsort(of_rows, kind="stable")
        first, last = (np.searchsorted(of_rows[order], of_events, side) for side in ("left", "right"))
        event, place = number_groups(last - first, first)
        matches.append((event, same_kind[order[place]]))
    matched_events, matched_rows = (np.concatenate(part) for part in zip(*matches, strict=True))
    return matched_events, matched_rows


class EncodedActions:
    """Actions encoded as feature ids; it makes the model inputs for the actions that a batch is offered.

    Args:
        as_of (`float`, *optional*): Time of offers that name no versions, in seconds since 1970-01-01. Default: the
            latest version of each action is offered.

    Attributes:
        offered (`np.ndarray` of shape `(K,)`): Version of each action that holds at `as_of`.
        action_ids (`np.ndarray` of shape `(K,)`): Their ids.
        features (`list[str]`): Features of events that at least one action has a value of.

    Raises:
        ValueError: If a column is unknown, a value can't be encoded, or an action has no value in any feature, because
            it has no embedding then.
    """

    def __init__(
        self, extractor: MCMFeatureExtractor, config: MCMConfig, actions: RawActions, as_of: float | None = None
    ):
        self.extractor, self.config, self.offsets, self.weights = extractor, config, actions.offsets, actions.weights
        if not actions.columns:
            raise ValueError("The actions have no columns besides their ids; give columns of the event log.")
        with naming("The actions"):
            self.ids = extractor.encode_actions(actions.columns)
        names, encoding = extractor.feature_names, extractor._encoding
        self.token = names.index(extractor.token_type_feature)
        self.features = [name for name in encoding.event_features if self.ids[:, names.index(name)].any()]
        read = [names.index(name) for name in config.input_features or names]
        self.has_value: Any = self.ids[:, read].any(1)  # (R,)
        values = np.add.reduceat(self.has_value.astype(np.int64), self.offsets[:-1])
        if not values.all():
            name = actions.action_ids[values.argmin()]
            raise ValueError(f"Action {name!r} has no value in any feature; add some to the actions.")
        self.action_ids = np.array([*dict.fromkeys(actions.action_ids)], object)
        times = np.full(len(self.action_ids), np.iinfo(np.int64).max if as_of is None else int(as_of))
        self.offered = actions.find(self.action_ids, times)

    def batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        offered: NDArray[np.int64],
        as_of: Sequence[float] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Makes the model inputs of histories, rows of `MCMFeatureExtractor.encode` or of a prepared data set, which
        are offered the actions `offered` `(B, K)` at these times, in seconds on the clock of the rows; by default
        right after the last event."""
        readable = [self.extractor.readable(row, self.config.input_features) for row in rows]
        batch = dict(self.extractor.pad(readable, as_of=as_of))
        arrays = self.inputs(batch["input_ids"].numpy(), offered)
        return batch | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def inputs(self, input_ids: NDArray[np.int64], offered: NDArray[np.int64]) -> dict[str, NDArray]:
        """Makes the model inputs for the offers of a batch, see `MCMForActionRecommendation.forward`. Reads the
        feature ids `(B, L, J)` of the histories and the offered actions `(B, K)`, negative where a customer has fewer
        offers. Returns `action_input_ids` `(S, J)`, `action_rows` and `action_weights` `(S,)`, `action_matches`
        `(M, 3)` and `offered_actions` `(B, K)`, whose values are indices of the batch's distinct actions."""
        distinct = np.unique(offered[offered >= 0])
        among = np.where(offered >= 0, np.searchsorted(distinct, offered), NOT_OFFERED)
        owners, rows = number_groups(np.diff(self.offsets)[distinct], self.offsets[distinct])
        owners, rows = owners[self.has_value[rows]], rows[self.has_value[rows]]
        total = np.bincount(owners, self.weights[rows], minlength=len(distinct))
        batch, length, features = input_ids.shape
        events, matched = find_matches(input_ids.reshape(-1, features), self.ids[rows], self.token)
        customers, positions, actions = events // length, events % length, owners[matched]
        is_offered = np.zeros((batch, len(distinct) + 1), bool)
        is_offered[np.arange(batch)[:, None], among] = True  # NOT_OFFERED, -1, is the last column
        matches = np.stack([customers, positions, actions], 1)
        matches = matches[is_offered[customers, actions] & (positions > 0)]  # index 0 is the start row
        return {
            "action_input_ids": self.ids[rows],
            "action_rows": owners,
            "action_weights": (self.weights[rows] / total[owners]).astype(np.float32),
            "action_matches": np.unique(matches, axis=0),  # an event that matches several rows counts once
            "offered_actions": among,
        }


def encode_actions(
    extractor: MCMFeatureExtractor, config: MCMConfig, actions: Any, as_of: float | None = None
) -> EncodedActions:
    """Reads actions, as [`read_actions`] does, and encodes them."""
    return EncodedActions(extractor, config, read_actions(actions, extractor.time_zone), as_of)
