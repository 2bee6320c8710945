# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Turns raw actions into the model inputs of `MCMForActionRecommendation`.

An action is an event that has not happened yet, so it has the columns of the event log. An action that covers several
kinds of events (any of twenty products) has several rows. Rows with a later time replace them: an action then has
several versions.

Shapes: V versions of actions, R rows of all versions, J features; B customers, L events, K offers of the customer with
the most; in a batch: U distinct actions, S rows of these, M matches (events that did what an action asks for).
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .configuration_mcm import MISSING_ID, UNKNOWN_ID, MCMConfig
from .events_mcm import (
    Distinct,
    Row,
    check_columns,
    naming,
    number_groups,
    read_table,
    read_times,
    run_starts,
    to_ids,
    to_iso,
)
from .feature_extraction_mcm import MCMFeatureExtractor

NOT_OFFERED = -1
ALWAYS = np.iinfo(np.int64).min  # time from which on an action without a time holds


class RawActions(NamedTuple):
    """A table of actions: versions in the order of the actions, those of one action in the order of their times."""

    action_ids: NDArray  # (V,): id of each version's action
    times: NDArray  # (V,): from which on the version holds, in seconds since 1970-01-01
    offsets: NDArray  # (V + 1,): version v has the rows `offsets[v]` to `offsets[v + 1] - 1`
    columns: dict[str, list]  # length R: by column of the event log the raw values

    def find(self, names: NDArray, times: NDArray) -> NDArray:
        """Finds the version of each action `(N,)` that holds at a time `(N,)`: the latest that does not begin later.
        Raises `ValueError` if there is none."""
        versions: dict[str, list[int]] = {}
        for version, name in enumerate(self.action_ids):
            versions.setdefault(name, []).append(version)
        found = []
        for name, time in zip(names, times, strict=True):
            own = versions.get(name, [])
            place = bisect_right(own, time, key=self.times.__getitem__)
            if not place:
                raise ValueError(
                    f"Action {name!r}, offered on {write_day(time)}, has no row in the actions that holds then; add "
                    "one with its features."
                )
            found.append(own[place - 1])
        return np.array(found)


def write_day(seconds: int) -> str:
    """The day of a time, as text."""
    return to_iso(seconds)[:10]


def read_actions(actions: object, time_zone: str) -> RawActions:
    """Reads actions, a table or a list of dicts: `action_id`, columns of the event log, and `time` (default: always).
    Rows with the same `action_id` and time are one version. Raises `ValueError` if there are no actions, or a column
    is missing or holds a wrong value."""
    with naming("The actions"):
        table = None if isinstance(actions, str) else read_table(actions)
        if not table or not len(next(iter(table.values()))):
            found = repr(actions) if table is None else "no rows"
            raise ValueError(f"found {found}, expected a table or a list of dicts: `action_id` and columns of the log")
        check_columns([*table], ["action_id"], "The actions have")
        with naming("column 'action_id'"):
            ids = np.array(to_ids(table.pop("action_id")), object)
        times = np.full(len(ids), ALWAYS)
        if "time" in table:
            with naming("column 'time'"):
                times = read_times(table.pop("time"), time_zone)
    order = np.lexsort((times, Distinct.of(ids).codes))
    ids, times = ids[order], times[order]
    starts = np.flatnonzero(run_starts(ids, times))
    columns = {name: [values[row] for row in order] for name, values in table.items()}
    return RawActions(ids[starts], times[starts], np.append(starts, len(ids)), columns)


def find_matches(events: NDArray, rows: NDArray, token: int) -> NDArray:
    """Finds matches: events that have all values of an action row. The token type is ignored, because a purchase
    without the coupon is a purchase too. A row that has only a token type (watch a video) matches events of that type.
    A value that was never seen in training matches nothing.

    Args:
        events (`np.ndarray` of shape `(E, J)`): Feature ids of E events.
        rows (`np.ndarray` of shape `(S, J)`): Feature ids of action rows.
        token (`int`): Index of the token type among the features.

    Returns:
        Indices of the event and of the row of each match, of shape `(2, M)`.
    """
    present = rows != MISSING_ID
    present[:, token] = ~np.delete(present, token, axis=1).any(1)
    known = ~(present & (rows == UNKNOWN_ID)).any(1)
    matches = [np.zeros((2, 0), np.int64)]
    for kind in np.unique(present, axis=0):
        same_kind = np.flatnonzero(known & (present == kind).all(1))
        both = np.concatenate([events, rows[same_kind]])[:, kind]
        codes = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        event_codes, row_codes = codes[: len(events)], codes[len(events) :]
        order = np.argsort(row_codes, kind="stable")
        first, last = (np.searchsorted(row_codes[order], event_codes, side) for side in ("left", "right"))
        event, place = number_groups(last - first, first)
        matches.append(np.stack([event, same_kind[order[place]]]))
    return np.concatenate(matches, 1)


class EncodedActions:
    """Actions encoded as feature ids; it makes the model inputs for the actions that a batch is offered.

    Args:
        actions ([`RawActions`]): The actions, or what [`read_actions`] reads.
        as_of (`float`, *optional*): Time of offers that name no versions, in seconds since 1970-01-01. Default: the
            latest version of each action is offered.

    Attributes:
        offered (`np.ndarray` of shape `(K,)`): Version of each action that holds at `as_of`.
        action_ids (`np.ndarray` of shape `(K,)`): Their ids.

    Raises:
        ValueError: If a column is unknown, a value can't be encoded, or a row of an action has no value in any
            feature, because every event would be what it asks for.
    """

    def __init__(self, extractor: MCMFeatureExtractor, config: MCMConfig, actions: object, as_of: float | None = None):
        if not isinstance(actions, RawActions):
            actions = read_actions(actions, extractor.time_zone)
        self.extractor, self.config, self.offsets = extractor, config, actions.offsets
        if not actions.columns:
            raise ValueError("The actions have no columns besides their ids; give columns of the event log.")
        with naming("The actions"):
            self.ids = extractor.encode_actions(actions.columns)
        self.token = extractor.feature_names.index(extractor.token_type_feature)
        if len(empty := np.flatnonzero(~self.ids.any(1))):
            name = actions.action_ids[np.searchsorted(self.offsets, empty[0], "right") - 1]
            raise ValueError(f"Action {name!r} has a row without a value in any feature; add some, or leave it out.")
        self.action_ids = np.array([*dict.fromkeys(actions.action_ids)], object)
        times = np.full(len(self.action_ids), np.iinfo(np.int64).max if as_of is None else int(as_of))
        self.offered = actions.find(self.action_ids, times)

    def batch(
        self,
        rows: Sequence[Row],
        offered: NDArray,
        as_of: Sequence[float] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Makes the model inputs of histories, rows of `MCMFeatureExtractor.encode` or of a prepared data set, which
        are offered the actions `offered` `(B, K)`, negative where a customer has fewer offers, at these times, in
        seconds on the clock of the rows; by default right after the last event. See
        `MCMForActionRecommendation.forward`; actions are numbered from 0 among those that the batch is offered."""
        readable = [self.extractor.readable(row, self.config.input_features) for row in rows]
        batch = dict(self.extractor.pad(readable, as_of=as_of))
        histories = batch["input_ids"].numpy()
        distinct = np.unique(offered[offered >= 0])
        among = np.where(offered >= 0, np.searchsorted(distinct, offered), NOT_OFFERED)
        owners, places = number_groups(np.diff(self.offsets)[distinct], self.offsets[distinct])
        ids = self.ids[places]
        events, matched = find_matches(histories.reshape(-1, histories.shape[-1]), ids, self.token)
        customers, positions, actions = *np.divmod(events, histories.shape[1]), owners[matched]
        as_asked = histories[customers, positions, self.token] == ids[matched, self.token]
        is_offered = np.zeros((len(rows), len(distinct) + 1), bool)
        is_offered[np.arange(len(rows))[:, None], among] = True  # NOT_OFFERED, -1, is the last column
        matches = np.stack([customers, positions, actions, as_asked], 1)
        matches = matches[is_offered[customers, actions] & (positions > 0)]  # index 0 is the start row
        # An event that matches several rows counts once: as asked, if it is that for one of them.
        matches = np.unique(matches, axis=0)[::-1]
        matches = matches[run_starts(*matches[:, :3].T)]
        arrays = {"action_input_ids": ids, "action_rows": owners, "action_matches": matches, "offered_actions": among}
        return batch | {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
