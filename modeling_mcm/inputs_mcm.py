# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From rows of ids to model inputs: the window that is read, padding, the start row, the moment of the prediction.

Shapes: B customers, L events of the longest input (start row included), J features in the order of `features`, N
numeric features of events.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .configuration_mcm import MISSING_ID, UNKNOWN_ID
from .times_mcm import SECONDS_PER_DAY

logger = logging.get_logger(__name__)

EVENT_COLUMNS = ("times", "visits", "feature_", "value_", "task_")  # columns with an entry per event


class InputLayout(NamedTuple):
    """Where the features of a row stand in a model input."""

    sizes: dict[str, int]  # by feature the number of its ids, in the order of the axis J
    profile: frozenset[str]  # names of the customer's features, which stand in the start row
    numeric: tuple[str, ...]  # names of the numeric features of events, in the order of the axis N
    start: tuple[int, int]  # index of the token type on the axis J, and its id in the start row


def first_kept(events: int, window: int) -> int:
    """Index of the first event of a history that the model reads; `events` where the window is 0. The model reads at
    most `window` of the latest events. In longer histories the first event moves in steps of an eighth of the window,
    so at least seven eighths of the window are read. Between two steps the state of a live customer ([`LiveCustomer`])
    stays valid; at a step the whole history is read again."""
    step = max(1, window // 8)
    return max(0, -(-(events - window) // step) * step) if window else events


def pad_rows(
    rows: Sequence[Mapping[str, Any]],
    layout: InputLayout,
    window: int,
    mask_next: bool = False,
    now: Sequence[float] | NDArray[Any] | None = None,
) -> dict[str, NDArray[Any]]:
    """Builds model inputs from rows, as numpy arrays; [`MCMFeatureExtractor.pad`] says what they are.

    Args:
        now (`Sequence[float]` of length B, *optional*): moment of each row for which the customer is scored, in
            seconds on the clock of `times`.

    Returns:
        `dict[str, NDArray]`: `input_ids` int64 `(B, L, J)`, `attention_mask` int64 `(B, L)`, `visit_ids` int64
        `(B, L)` and `event_times` float32 `(B, L)` in days; with numeric features also `event_values` float32
        `(B, L, N)`; with `now` also `now` float32 `(B,)` in days.

    Raises:
        ValueError: if there are no rows or too small a window, a row lacks a column, ids do not fit the vocabularies,
            or `now` is not one finite number for each row.
    """
    if now is not None:
        now = now.tolist() if hasattr(now, "tolist") else now
        rows = until(rows, now)
    extra = 1 + mask_next  # the start row and, with `mask_next`, the masked last event
    if window < extra or not len(rows):
        raise ValueError(f"Found {len(rows)} rows and max_events {window}; give at least 1 row and {extra} events.")
    counts = np.array([len(row["times"]) for row in rows])
    starts = [first_kept(count, window - extra) for count in counts.tolist()]
    lengths, windows = counts - starts, [slice(start, None) for start in starts]
    position = np.arange(int(lengths.max()) + extra)
    attention_mask = (position < lengths[:, None] + extra).astype(np.int64)
    cells = np.flatnonzero((position > 0) & (position <= lengths[:, None]))  # flat indices of the events

    def join(key: str, since_first: bool = False) -> NDArray[Any]:
        parts = [row[key][part] for row, part in zip(rows, windows, strict=True)]
        joined = np.concatenate([part - part[:1] for part in parts] if since_first else parts)
        if len(joined) != len(cells):
            raise ValueError(f"Rows have {len(cells)} times but {len(joined)} values of {key!r}; give as many.")
        return joined

    input_ids = np.zeros((*attention_mask.shape, len(layout.sizes)), np.int64)
    event_times, visit_ids = np.zeros(attention_mask.shape, np.float32), np.zeros(attention_mask.shape, np.int64)
    event_values = np.zeros((*attention_mask.shape, len(layout.numeric)), np.float32)
    last = (np.arange(len(rows)), lengths + 1)
    try:
        event_times.reshape(-1)[cells] = join("times", since_first=True) / SECONDS_PER_DAY
        visit_ids.reshape(-1)[cells] = join("visits", since_first=True) + 1
        for index, feature in enumerate(layout.numeric):
            event_values.reshape(-1, event_values.shape[-1])[cells, index] = join(f"value_{feature}")
        for index, (feature, size) in enumerate(layout.sizes.items()):
            if feature in layout.profile:
                ids = input_ids[:, 0, index] = np.array([row[f"profile_{feature}"] for row in rows])
            else:
                ids = input_ids.reshape(-1, len(layout.sizes))[cells, index] = join(f"feature_{feature}")
                if mask_next:
                    input_ids[(*last, index)] = UNKNOWN_ID
            if ids.size and (ids.min() < 0 or ids.max() >= size):
                mismatch = f"Feature {feature!r} has ids from {ids.min()} to {ids.max()}, this checkpoint has {size}"
                raise ValueError(f"{mismatch}; prepare the data with its feature extractor.")
    except KeyError as error:
        fix = "prepare the data with the schema of this checkpoint"
        if str(error.args[0]).startswith("value_"):
            fix = "it was prepared before values of numeric features were kept: prepare the data again"
        raise ValueError(f"A row has no {error}; {fix}.") from None
    token_index, start_id = layout.start
    input_ids[:, 0, token_index] = start_id
    if mask_next:
        event_times[last] = event_times[last[0], lengths]
        visit_ids[last] = visit_ids[last[0], lengths] + 1
    event_times = np.maximum.accumulate(event_times, axis=1) * attention_mask.astype(np.float32)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= {"visit_ids": visit_ids, "event_times": event_times}
    if layout.numeric:
        inputs["event_values"] = event_values
    if now is not None:
        firsts = (row["times"][part][:1] for row, part in zip(rows, windows, strict=True))
        days = [float((moment - first).sum()) / SECONDS_PER_DAY for moment, first in zip(now, firsts, strict=True)]
        inputs["now"] = np.array(days, np.float32)
    return inputs


def readable(row: Mapping[str, Any], features: Sequence[str]) -> dict[str, Any]:
    """Leaves out the events in which all of some event features are missing; see [`MCMFeatureExtractor.readable`]."""
    keep = np.any([row[f"feature_{feature}"] != MISSING_ID for feature in features], axis=0)
    ends = {name: int(keep[: row[name]].sum()) for name in ("validation_end", "test_end") if name in row}
    return _picked(row, keep) | ends


def _picked(row: Mapping[str, Any], keep: NDArray[np.bool_]) -> dict[str, Any]:
    """A row with only the events where `keep` is true."""
    return {name: value[keep] if name.startswith(EVENT_COLUMNS) else value for name, value in row.items()}


def until(rows: Sequence[Mapping[str, Any]], now: Sequence[float]) -> list[Mapping[str, Any]]:
    """Leaves out the events that are later than a moment of each row, with a warning. Raises `ValueError` if there is
    not one moment per row, or a moment is no finite number."""
    if len(now) != len(rows):
        raise ValueError(f"Found {len(now)} moments `now` of {len(rows)} rows; give one a row.")
    past_rows: list[Mapping[str, Any]] = []
    late = False
    for index, (row, moment) in enumerate(zip(rows, now, strict=True)):
        if not isinstance(moment, Real) or not math.isfinite(moment):
            name = "" if row.get("customer_id") is None else f" (customer {row['customer_id']!r})"
            raise ValueError(
                f"Row {index}{name}: `now` is {moment!r}, expected a moment in seconds since 1970-01-01; give one, or "
                "leave `now` out."
            )
        stays = row["times"] <= moment
        if not stays.all():
            late = True
            row = _picked(row, stays)
        past_rows.append(row)
    if late:
        logger.warning_once(
            "Some customers have events later than `now`, which are left out: the model reads histories up to `now`."
        )
    return past_rows
