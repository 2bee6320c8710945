# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The part of a live customer's history that the model reads, and the states after it.

The last visit may still grow, so it is read again from the state before it. The model reads the latest events of a
long history (`first_kept`); where this window of events moves, the states are computed again from all events.

Shapes: L events, J features.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.inputs_mcm import first_kept
from modeling_mcm.live.history import LiveHistory
from modeling_mcm.live.state import LiveState
from modeling_mcm.live.weights import Reader


class LiveWindow:
    """The states of a customer, and how far they have read the history. After a removal `forget` must follow."""

    _finished: LiveState | None  # state after the finished visits, which are the first `_num_finished` ones
    _num_finished: int
    _current: LiveState | None  # state after all visits
    _encoded: tuple[int, dict[str, Any]] | None  # number of the first visit of `_unread()`, and its encoded row
    _first_event: int  # index of the first event that the model reads
    _first_time: int  # time of this event, in seconds since 1970-01-01
    _first_visit: int  # visit of this event

    def __init__(self, reader: Reader, history: LiveHistory, start_row: torch.Tensor):
        self.reader, self.history, self._start_row = reader, history, start_row
        self.forget()

    def forget(self) -> None:
        """Forgets the states, so that the next one is computed from all events."""
        self._finished = self._current = self._encoded = None
        self._num_finished = self._first_event = self._first_time = self._first_visit = 0

    def add(self, events: Sequence[dict[str, Any]]) -> bool:
        """Inserts events; whether the state must be computed again. If one can't be encoded, nothing changes."""
        row = self.history.encode([*self._unread(), *events])  # raises before anything changes
        first, before = self._num_finished - 1, len(self.history.visits)
        late, touched = self.history.insert(events)
        if events:
            self._encoded = None
        if late:
            self.forget()
        elif touched:
            self._current = None
        elif self._current is not None and events:  # the last visit is finished as it was read
            self._finished, self._num_finished, self._current = self._current, before, None
        if not late and first >= 0:
            self._encoded = first, row
        return late

    def state(self) -> LiveState:
        """The state after the last event."""
        if self._current is None and not (self._finished is not None and self._read_on()):
            self._read_all()
        return cast(LiveState, self._current)

    def days(self, seconds: float | None) -> float | None:
        """A time in days on the clock of the state, from the first event that the model reads."""
        if seconds is None or not self.history.visits:
            return None
        return float(np.float32((seconds - self._first_time) / SECONDS_PER_DAY))

    def stored(self) -> tuple[list[Any], dict[str, torch.Tensor]]:
        """What `restore` takes: numbers that JSON can hold, and the tensors of the state after the finished visits."""
        self.state()
        ends = [visit.end for visit in self.history.visits]
        numbers = [self._num_finished, self._first_event, self._first_time, self._first_visit, ends]
        return numbers, cast(LiveState, self._finished).tensors(self.reader)

    def restore(self, numbers: Sequence[Any], tensors: dict[str, Any]) -> None:
        """Restores the state of a history that was stored whole. Raises `ValueError` if it is of another one."""
        self._num_finished, self._first_event, self._first_time, self._first_visit, ends = numbers
        for visit, end in zip(self.history.visits, ends, strict=True):
            visit.end = end
        if not 0 <= self._num_finished < max(len(ends), 1) or sorted(ends) != ends:
            raise ValueError(f"its state has read {self._num_finished} of {len(ends)} visits")
        self._finished = LiveState.restored(self.reader, tensors)

    def _read_on(self) -> bool:
        """Reads visits that are not in the state; False where the window has moved, so that all must be read again."""
        if not self._num_finished:
            return False
        first, row = self._encoded or (self._num_finished - 1, self.history.encode(self._unread()))
        self._count_rows(row, first + 1, 1)
        visits, length = self.history.visits, self.history.feature_extractor.max_events - 1
        before = visits[-2].end if len(visits) > 1 else 0
        if self._first_event > before or first_kept(visits[-1].end, length) != self._first_event:
            return False
        self._extend(row, int(np.searchsorted(row["visits"], self._num_finished - first)), first)
        return True

    def _unread(self) -> list[dict[str, Any]]:
        """The events of visits that are not in the state, after the opening event of the visit before, from which the
        days since the last visit are computed."""
        if not self._num_finished:
            return []
        last, *unread = self.history.visits[self._num_finished - 1 :]
        return [last.opening, *(event for visit in unread for event in visit.events)]

    def _read_all(self) -> None:
        """Reads the whole history, as far as the model reads it."""
        row = self.history.encode(self.history.events)
        self._count_rows(row, 0, 0)
        number = len(row["times"])
        self._first_event = first_kept(number, self.history.feature_extractor.max_events - 1)
        self._first_time = int(row["times"][self._first_event]) if self._first_event < number else 0
        self._first_visit = int(row["visits"][self._first_event]) if self._first_event < number else 0
        nothing = torch.zeros(1)
        self._finished = LiveState.empty(self.reader).extend(self.reader, self._start_row, nothing, nothing.long())
        self._num_finished = 0
        self._extend(row, self._first_event, 0)

    def _count_rows(self, row: Mapping[str, Any], first: int, skip: int) -> None:
        """Sets `end` of the visits from `first` on, from a row of their events after `skip` earlier visits."""
        counts = np.bincount(row["visits"], minlength=skip + len(self.history.visits) - first)[skip:]
        counts[:1] += self.history.visits[first - 1].end if first else 0
        for visit, end in zip(self.history.visits[first:], counts.cumsum().tolist(), strict=True):
            visit.end = end

    def _extend(self, row: Mapping[str, Any], skip: int, first: int) -> None:
        """Reads the events of a row from `skip` on, the last visit separately. The row's visits count from `first`."""
        extractor = self.history.feature_extractor
        visits = row["visits"][skip:].astype(np.int64) + first
        times = row["times"][skip:] if extractor.order is None else visits * SECONDS_PER_DAY
        days = ((times - self._first_time) / SECONDS_PER_DAY).astype(np.float32)
        input_ids = np.zeros((len(visits), len(extractor.feature_names)), np.int64)
        for index, feature in enumerate(extractor.feature_names):
            if f"feature_{feature}" in row:
                input_ids[:, index] = row[f"feature_{feature}"][skip:]
        ids = torch.from_numpy(input_ids)
        values = np.zeros((len(visits), len(extractor.summed_features)), np.float32)
        for index, feature in enumerate(extractor.summed_features):
            values[:, index] = row[f"value_{feature}"][skip:]
        last = int(np.searchsorted(visits, len(self.history.visits) - 1))
        numbers = torch.from_numpy(visits - self._first_visit + 1)
        state = closed = cast(LiveState, self._finished)
        for part in (slice(0, last), slice(last, None)):
            closed = state
            latest = np.maximum.accumulate(np.maximum(days[part], state.event_times[-1].numpy()))
            part_inputs = (ids[part], torch.from_numpy(latest), numbers[part], torch.from_numpy(values[part]))
            state = state.extend(self.reader, *part_inputs)
        self._finished, self._num_finished = closed, max(len(self.history.visits) - 1, 0)
        self._current = state
