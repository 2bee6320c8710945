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
"""Live customers: events arrive one by one, and results are the same as if the whole history were read at once.

    live = LiveCustomer(model, feature_extractor)
    live.add([{"time": "2017-03-01T18:30:00", "item": "milk"}])
    live.scores(tasks=["item"], k=5)

The results are those of the whole history, however the events are split into calls of `add`. After `remove` they are
those of a customer who never had the event. A `LiveState` holds what the model needs of finished visits, so that a
result takes as long after a thousand visits as after ten. The last visit may still grow, and is read again. The state
is computed again from all events where an event belongs before the last visit, or where the history becomes longer
than the model's input (`first_kept`).

Shapes: S size of the customer embedding, V labels of a task.
"""

import hashlib
import json
import zlib
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from .configuration_mcm import FIRST_LABEL
from .events_mcm import (
    SECONDS_PER_DAY,
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
from .explanations_mcm import Explanation, explain
from .inputs_mcm import first_kept
from .live_state_mcm import LiveState, Reader, is_incremental
from .modeling_mcm import MCMForMultiTaskRecommendation
from .processing_mcm import MCMFeatureExtractor
from .schema_mcm import ROWS
from .state_mcm import MissingForecastsError

FORMAT, VERSION = "mcm-live", "2"
EVENTS = "events"  # name of the tensor of a stored state that holds the events, as compressed JSON
TIME_FIX = "give a datetime or ISO 8601 text such as 2017-03-01T18:30:00, or leave the event out"
STATE = "state."  # prefix of the names of the other tensors of a stored state
# Caches by model: the digest of its weights, and its `Reader`; each with the versions of the weights.
_DIGESTS: WeakKeyDictionary[torch.nn.Module, tuple[Any, str]] = WeakKeyDictionary()
_READERS: WeakKeyDictionary[torch.nn.Module, tuple[Any, Reader]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Added:
    """Result of `LiveCustomer.add`.

    Attributes:
        events (`int`): number of events that were added.
        late (`bool`): whether some of them belong before the last visit. The state is then computed again from all
            events, which takes longer; the results are the same.
    """

    events: int
    late: bool


@dataclass(order=True)
class _Visit:
    """The raw events of a visit. Visits are ordered as in the feature extractor: by start, those without key first.

    Attributes:
        start: start of the visit: seconds since 1970-01-01, or the place of its first event for a log without times.
        key: whether the visit has a key, and the key as text (empty without one).
        events: the visit's events in the order in which they were added.
        opening: the visit's earliest event.
        end: number of events in an encoded row up to the end of this visit, end-of-visit events included; -1 if the
            visit has not been encoded.
    """

    start: int
    key: tuple[bool, str]
    events: list[dict[str, Any]] = field(compare=False)
    opening: dict[str, Any] = field(compare=False)
    end: int = field(default=-1, compare=False)


class LiveCustomer:
    """One customer whose events arrive one by one, with scores, embedding, forecasts and explanations at any moment.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a trained model, in evaluation mode.
        feature_extractor ([`MCMFeatureExtractor`]): feature extractor of the same checkpoint.
        profile (`dict`, *optional*): the customer's profile, as for the feature extractor.
        customer_id (`str`, *optional*): name of the customer in error messages.

    Raises:
        ValueError: if model and feature extractor do not belong together, or the profile can't be encoded.
    """

    _closed: LiveState | None  # state after the finished visits, which are the first `_folded` ones
    _folded: int
    _tip: LiveState | None  # state after all visits
    _ahead: tuple[int, dict[str, Any]] | None  # number of the first visit of `_unread()`, and its encoded row
    _start: int  # index of the first event that the model reads
    _base: int  # time of this event, in seconds since 1970-01-01
    _first_visit: int  # visit of this event

    def __init__(
        self,
        model: MCMForMultiTaskRecommendation,
        feature_extractor: MCMFeatureExtractor,
        profile: Mapping[str, Any] | None = None,
        customer_id: str | None = None,
    ):
        sizes, expected = feature_extractor.vocabulary_sizes, model.config.vocabulary_sizes
        if feature_extractor.feature_names != model.config.features or sizes != expected:
            raise ValueError(
                f"The feature extractor's vocabularies have sizes {sizes}, the model's {expected}: take the feature "
                "extractor that was saved with this checkpoint."
            )
        self.model, self.feature_extractor = model, feature_extractor
        self.profile, self.customer_id = dict(profile or {}), customer_id
        self._reader = _reader(model) if is_incremental(model) and model.device.type == "cpu" else None
        self._start_row = feature_extractor.pad([self._encode([])])["input_ids"][0]
        self._visits: list[_Visit] = []
        self._by_key: dict[Any, _Visit] = {}
        self._arrived = 0
        self._last = -(2**63)  # time of the latest event, in seconds since 1970-01-01
        self._forget_state()

    # ------------------------------------------------------------------------------------------------ events in, out

    def add(self, events: Any, now: Any = None) -> Added:
        """Adds events, in any order; they may be older than present ones.

        Args:
            events: one event (`dict`), a list of events, a data frame or a dict of columns, as for the feature
                extractor.
            now (*optional*): time of the call; no event may be later.

        Returns:
            [`Added`].

        Raises:
            ValueError: if an event has no time, is later than `now`, or can't be encoded. Nothing has changed then.
        """
        added = self._read(events)
        self._check_past(added, now)
        first, row = self._folded - 1, self._encode([*self._unread(), *added])  # raises before anything changes
        late = self._insert(added)
        if not late and first >= 0:
            self._ahead = first, row
        return Added(len(added), late)

    def remove(self, event: Mapping[str, Any]) -> None:
        """Removes one event. All later results are those of a customer who never had it.

        Args:
            event (`dict`): the event as it was added. Of several equal events the last one is removed.

        Raises:
            ValueError: if the customer has no such event.
        """
        (target,) = self._read([event])
        self._encode([target])
        visit = self._by_key.get(self._placed(target)[0])
        if self.feature_extractor.order == ROWS:  # events have no time or place, so they are compared
            visit = next((each for each in reversed(self._visits) if target in each.events), None)
        if visit is None or target not in visit.events:
            raise ValueError(
                f"{self._name()} has no event {dict(event)!r}: give all columns of the event as they were added."
            )
        everything = self.events
        everything.remove(target)
        self._visits, self._by_key, self._arrived, self._last = [], {}, 0, -(2**63)
        self._forget_state()
        self._insert(everything)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events as dicts of plain values, ordered by visit."""
        return [event for visit in self._visits for event in visit.events]

    # ---------------------------------------------------------------------------------------------------- questions

    def scores(
        self, now: Any = None, tasks: Sequence[str] | None = None, k: int = 10
    ) -> dict[str, list[dict[str, Any]]]:
        """The labels that are likely to come next, with their probabilities.

        Args:
            now (*optional*): moment of the scores: text, a datetime or a number of seconds. The counts of the repeat
                memory have faded until then. Default: the time of the last event, which training and evaluation use.
            tasks (`Sequence[str]`, *optional*): names of the tasks. Default: all tasks.
            k (`int`): number of labels of each task; at most all labels are returned.

        Returns:
            By task a list of `{"label": value, "score": probability among the task's labels}`, best first.

        Raises:
            ValueError: if a task is unknown, `k` is below 1, or `now` is before the last event.
        """
        known = self.model.config.tasks
        tasks = list(known if tasks is None else tasks)
        if wrong := [task for task in tasks if task not in known]:
            raise ValueError(f"No tasks {wrong}: this checkpoint predicts {known}.")
        if k < 1:
            raise ValueError(f"`k` is {k}; ask for at least 1 label.")
        logits = self.logits(now, tasks)
        result = {}
        for task in tasks:
            count = min(k, logits[task].shape[-1] - FIRST_LABEL)
            best = logits[task].float().softmax(-1).topk(count)
            labels = self.feature_extractor.decode_labels(task, best.indices.tolist())
            pairs = zip(labels, best.values.tolist(), strict=True)
            result[task] = [{"label": label, "score": score} for label, score in pairs]
        return result

    def logits(self, now: Any = None, tasks: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Scores of all labels, before the softmax that turns them into probabilities.

        Args:
            now (*optional*): moment of the scores: text, a datetime or a number of seconds. Default: the time of the
                last event.
            tasks (`Sequence[str]`, *optional*): names of the tasks. Default: all tasks.

        Returns:
            `dict[str, torch.FloatTensor]`: by task the scores, of shape `(V,)`.

        Raises:
            ValueError: if `now` is before the last event.
        """
        moment = self._moment(now)
        if self._reader is not None:
            return self._state().logits(self._reader, tasks, self._days(moment))
        with torch.inference_mode():
            logits = self.model(**self._inputs(moment)).logits
        return {task: logits[task][0] for task in tasks or self.model.config.tasks}

    def embedding(self, now: Any = None) -> NDArray[np.float32]:
        """The customer embedding.

        Args:
            now (*optional*): moment of the embedding: text, a datetime or a number of seconds. Default: the time of
                the last event.

        Returns:
            `np.ndarray` of shape `(S,)`, float32.

        Raises:
            ValueError: if `now` is before the last event.
        """
        moment = self._moment(now)
        if self._reader is not None:
            return self._state().embedding(self._reader, self._days(moment)).numpy().copy()
        with torch.inference_mode():
            return self.model.model(**self._inputs(moment)).pooler_output[0].float().cpu().numpy()

    def forecast(self, now: Any = None) -> dict[str, float]:
        """Forecasts of the customer's future.

        Args:
            now (*optional*): moment from which the forecasts count: text, a datetime or a number of seconds. Default:
                the time of the last event.

        Returns:
            `dict[str, float]`: the forecasts by name, as [`CustomerForecastPipeline`] returns them.

        Raises:
            MissingForecastsError: a `ValueError`, if the checkpoint has no trained forecasts.
            ValueError: if `now` is before the last event.
        """
        moment, heads = self._moment(now), self.model.model.forecasts
        if heads is None or not heads.is_trained:
            raise MissingForecastsError(self.model.name_or_path)
        if self._reader is not None:
            forecasts = self._state().forecast(self._reader, self._days(moment))
        else:
            with torch.inference_mode():
                forecasts = cast(dict[str, torch.Tensor], self.model.model(**self._inputs(moment)).forecasts)
        return {name: value.item() for name, value in forecasts.items()}

    def explain(self, task: str, label: Any = None, now: Any = None) -> Explanation:
        """Explains a label's score by parts, and by shares of visits and events.

        Args:
            task (`str`): name of the task.
            label (*optional*): the label, a value of the task's feature. Default: the label with the highest score.
            now (*optional*): moment of the score: text, a datetime or a number of seconds. Default: the time of the
                last event.

        Returns:
            [`~explanations_mcm.Explanation`].

        Raises:
            ValueError: if the task or the label is unknown, or `now` is before the last event.
        """
        self._moment(now)
        customer = {"events": self.events, "profile": self.profile or None, "customer_id": self.customer_id}
        return explain(self.model, self.feature_extractor, customer, task, label, now)

    # -------------------------------------------------------------------------------------------------------- stored

    def to_bytes(self, caches: bool = True) -> bytes:
        """Stores the customer as a safetensors file in memory, with the digest of the checkpoint in its metadata.

        Args:
            caches (`bool`): whether to store the [`~live_state_mcm.LiveState`] too. Without it the result contains the
                events alone, and the first result after `from_bytes` takes the time to read the whole history.
        """
        stored: dict[str, Any] = {"events": self.events, "profile": self.profile, "customer_id": self.customer_id}
        tensors = {}
        if caches and self._reader is not None:
            self._state()
            stored["state"] = [
                self._folded,
                self._start,
                self._base,
                self._first_visit,
                [visit.end for visit in self._visits],
            ]
            state = cast(LiveState, self._closed)
            tensors = {STATE + name: value for name, value in state.tensors(self._reader).items()}
        packed = zlib.compress(json.dumps(stored, separators=(",", ":"), allow_nan=False).encode())
        tensors[EVENTS] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        digest = checkpoint_digest(self.model, self.feature_extractor)
        metadata = {"format": FORMAT, "version": VERSION, "checkpoint": digest, "content": _content_digest(tensors)}
        return save(tensors, metadata)

    @classmethod
    def from_bytes(
        cls, data: bytes, model: MCMForMultiTaskRecommendation, feature_extractor: MCMFeatureExtractor
    ) -> "LiveCustomer":
        """Restores a customer that `to_bytes` stored.

        Args:
            data (`bytes`): result of `to_bytes`.
            model ([`MCMForMultiTaskRecommendation`]): model of the checkpoint with which the customer was stored.
            feature_extractor ([`MCMFeatureExtractor`]): feature extractor of the same checkpoint.

        Raises:
            ValueError: if the bytes are damaged, or the customer was stored with another checkpoint.
        """
        fix = "add the customer's events to a new LiveCustomer"
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            if metadata.get("format") != FORMAT or metadata.get("content") != _content_digest(tensors):
                raise ValueError("its content does not have the digest that was stored with it")
            stored = json.loads(zlib.decompress(tensors[EVENTS].numpy().tobytes()))
        except (SafetensorError, ValueError, KeyError, TypeError, zlib.error) as error:
            raise ValueError(f"A stored state of {len(data):,} bytes is cut or damaged ({error}): {fix}.") from error
        digest = checkpoint_digest(model, feature_extractor)
        if metadata.get("version") != VERSION or metadata.get("checkpoint") != digest:
            raise ValueError(
                f"A stored state is of the checkpoint {str(metadata.get('checkpoint'))[:12]} (format version "
                f"{metadata.get('version')}), this one is {digest[:12]} (version {VERSION}): {fix}."
            )
        live = cls(model, feature_extractor, stored["profile"], stored["customer_id"])
        live._insert(stored["events"])
        if "state" in stored and live._reader is not None:
            live._folded, live._start, live._base, live._first_visit, ends = stored["state"]
            for visit, end in zip(live._visits, ends, strict=True):
                visit.end = end
            state = {name.removeprefix(STATE): value for name, value in tensors.items() if name != EVENTS}
            live._closed = LiveState.of_tensors(state, live._reader)
        return live

    # ------------------------------------------------------------------------------------------------------- inside

    def _name(self) -> str:
        return "Customer without id" if self.customer_id is None else f"Customer {self.customer_id!r}"

    def _read(self, events: Any) -> list[dict[str, Any]]:
        """Converts events to dicts of plain values that JSON can hold; raises a `ValueError` for invalid ones."""
        extractor = self.feature_extractor
        with naming(self._name()):
            if isinstance(events, Mapping) and not any(_is_column(value) for value in events.values()):
                events = [events]
            columns, count = read_columns(events, extractor._known_columns)
        if count and extractor.time is not None and extractor.time not in columns:
            raise ValueError(f"{self._name()}: column {extractor.time!r}: found no time (None); {TIME_FIX}")
        plain = []
        for name, column in columns.items():
            with naming(f"{self._name()}: column {name!r}"):
                if name == extractor.time:
                    seconds = read_times(column, read_zone(extractor.time_zone))
                    plain.append(np.datetime_as_string(seconds.astype("datetime64[s]")).tolist())
                else:
                    plain.append([None if is_missing(value) else _plain(value) for value in as_list(column)])
        rows = zip(*plain, strict=True) if plain else [()] * count
        names = list(columns)
        return [{n: value for n, value in zip(names, row, strict=True) if value is not None} for row in rows]

    def _encode(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        customer = {"events": events, "profile": self.profile or None, "customer_id": self.customer_id}
        return self.feature_extractor.encode(customer)

    def _inputs(self, moment: float | None) -> dict[str, torch.Tensor]:
        row = self.feature_extractor.readable(self._encode(self.events), self.model.config.input_features)
        mask_next = self.model.config.augmentation == "masked_lm"
        inputs = self.feature_extractor.pad([row], mask_next=mask_next, now=None if moment is None else [moment])
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _placed(self, event: Mapping[str, Any]) -> tuple[Any, int, str | None]:
        """Identifier of an event's visit, position of the event (seconds or a place), and key of the visit, if any."""
        extractor = self.feature_extractor
        if extractor.time is not None:
            moment = int(np.datetime64(event[extractor.time], "s").astype(np.int64))
        else:
            moment = self._arrived if extractor.order == ROWS else to_place(event[str(extractor.order)])
        key = to_text(event.get(extractor.visit)) if extractor.visit else None
        return (moment if key is None else (key,)), moment, key

    def _insert(self, events: Sequence[dict[str, Any]]) -> bool:
        """Inserts events into their visits; returns whether a visit before the last one has changed."""
        before, opened = len(self._visits), self._visits[-1] if self._visits else None
        made: set[int] = set()
        late = touched = False
        for event in events:
            known_by, moment, key = self._placed(event)
            self._arrived, self._last = self._arrived + 1, max(self._last, moment)
            visit = self._by_key.get(known_by)
            is_old = visit is not None and id(visit) not in made
            if visit is None:
                visit = self._by_key[known_by] = _Visit(moment, (key is not None, key or ""), [], event)
                made.add(id(visit))
                insort(self._visits, visit)
            elif moment < visit.start:  # a new earliest event moves the visit
                self._visits.remove(visit)
                visit.start, visit.opening = moment, event
                insort(self._visits, visit)
                late |= is_old
            visit.events.append(event)
            touched |= visit is opened
            late |= opened is not None and visit is not opened and (is_old or visit < opened)
        if events:
            self._ahead = None
        if late:
            self._forget_state()
        elif touched:
            self._tip = None
        elif self._tip is not None and made:  # the last visit is finished as it was read
            self._closed, self._folded, self._tip = self._tip, before, None
        return late

    # --------------------------------------------------------------------------------------------------- live state

    def _forget_state(self) -> None:
        self._closed = self._tip = self._ahead = None
        self._folded = self._start = self._base = self._first_visit = 0

    def _state(self) -> LiveState:
        """The state after the last event."""
        if self._tip is None and not (self._closed is not None and self._read_on()):
            self._read_all()
        return cast(LiveState, self._tip)

    def _read_on(self) -> bool:
        """Reads the visits that are not in the state; returns False where the window of events has moved, so that the
        whole history must be read."""
        if not self._folded:
            return False
        first, row = self._ahead or (self._folded - 1, self._encode(self._unread()))
        self._count_rows(row, first + 1, 1)
        number, before = self._visits[-1].end, self._visits[-2].end if len(self._visits) > 1 else 0
        if self._start > before or first_kept(number, self.feature_extractor.max_events - 1) != self._start:
            return False
        self._extend(row, int(np.searchsorted(row["visits"], self._folded - first)), first)
        return True

    def _unread(self) -> list[dict[str, Any]]:
        """The events of visits that are not in the state, after the opening event of the visit before, from which the
        days since the last visit are computed."""
        if not self._folded:
            return []
        unread = [event for visit in self._visits[self._folded :] for event in visit.events]
        return [self._visits[self._folded - 1].opening, *unread]

    def _read_all(self) -> None:
        """Reads the whole history, as far as the model reads it."""
        row = self._encode(self.events)
        self._count_rows(row, 0, 0)
        number = len(row["times"])
        self._start = first_kept(number, self.feature_extractor.max_events - 1)
        self._base = int(row["times"][self._start]) if self._start < number else 0
        self._first_visit = int(row["visits"][self._start]) if self._start < number else 0
        nothing = torch.zeros(1)
        reader = cast(Reader, self._reader)
        self._closed = LiveState.empty(reader).extend(reader, self._start_row, nothing, nothing.long())
        self._folded = 0
        self._extend(row, self._start, 0)

    def _count_rows(self, row: Mapping[str, Any], first: int, skip: int) -> None:
        """Sets `end` of the visits from `first` on, from a row of their events; the first `skip` visits of `row` are
        earlier ones."""
        counts = np.bincount(row["visits"], minlength=skip + len(self._visits) - first)[skip:]
        counts[:1] += self._visits[first - 1].end if first else 0
        for visit, end in zip(self._visits[first:], counts.cumsum().tolist(), strict=True):
            visit.end = end

    def _extend(self, row: Mapping[str, Any], skip: int, first: int) -> None:
        """Reads the events of a row from `skip` on, the last visit separately. The row's visits count from `first`."""
        extractor = self.feature_extractor
        visits = row["visits"][skip:].astype(np.int64) + first
        times = row["times"][skip:] if extractor.order is None else visits * SECONDS_PER_DAY
        days = ((times - self._base) / SECONDS_PER_DAY).astype(np.float32)
        input_ids = np.zeros((len(visits), len(extractor.feature_names)), np.int64)
        for index, feature in enumerate(extractor.feature_names):
            if f"feature_{feature}" in row:
                input_ids[:, index] = row[f"feature_{feature}"][skip:]
        ids = torch.from_numpy(input_ids)
        values = np.zeros((len(visits), len(extractor.numeric_features)), np.float32)
        for index, feature in enumerate(extractor.numeric_features):
            values[:, index] = row[f"value_{feature}"][skip:]
        last = int(np.searchsorted(visits, len(self._visits) - 1))
        numbers = torch.from_numpy(visits - self._first_visit + 1)
        state = closed = cast(LiveState, self._closed)
        for part in (slice(0, last), slice(last, None)):
            closed = state
            if part.stop == 0:  # the last visit is the only one
                continue
            latest = np.maximum.accumulate(np.maximum(days[part], np.float32(state.time)))
            read = (ids[part], torch.from_numpy(latest), numbers[part], torch.from_numpy(values[part]))
            state = state.extend(cast(Reader, self._reader), *read)
        self._closed, self._folded = closed, max(len(self._visits) - 1, 0)
        self._tip = state

    def _check_past(self, events: Sequence[Mapping[str, Any]], now: Any) -> None:
        """Raises a `ValueError` if an event is later than `now`."""
        if now is None:
            return
        (moment,) = self.feature_extractor._read_now(now, 1)
        for event in events:
            time = np.datetime64(event[str(self.feature_extractor.time)], "s")
            if time.astype(np.int64) > moment:
                raise ValueError(
                    f"{self._name()} has an event at {time}, which is after now, {_iso(moment)}: check the event's "
                    "time and its time zone, or leave it out."
                )

    def _moment(self, now: Any) -> float | None:
        """Seconds since 1970-01-01 of the moment `now`; raises a `ValueError` if it is before the last event."""
        if now is None:
            return None
        (moment,) = self.feature_extractor._read_now(now, 1)
        if self._visits and moment < self._last:
            raise ValueError(
                f"now is {_iso(moment)}, and {self._name()} has an event at {_iso(self._last)}: the clock went back, "
                "or the event lies in the future. Ask at the last event or later."
            )
        return moment

    def _days(self, moment: float | None) -> float | None:
        """A moment in days on the clock of the state, from the first event that the model reads."""
        if moment is None or not self._visits:
            return None
        return float(np.float32((moment - self._base) / SECONDS_PER_DAY))


def _reader(model: MCMForMultiTaskRecommendation) -> Reader:
    versions = tuple((value.data_ptr(), value._version) for value in model.state_dict().values())
    known = _READERS.get(model)
    if known is None or known[0] != versions:
        known = _READERS[model] = (versions, Reader(model))
    return known[1]


def checkpoint_digest(model: MCMForMultiTaskRecommendation, feature_extractor: MCMFeatureExtractor) -> str:
    """Digest of a model's weights and of its feature extractor's settings; cached for each model.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): the model.
        feature_extractor ([`MCMFeatureExtractor`]): feature extractor of the same checkpoint.

    Returns:
        `str` of 64 hexadecimal digits.
    """
    weights = sorted(model.state_dict().items())
    versions = tuple((value.data_ptr(), value._version) for _, value in weights)
    known = _DIGESTS.get(model)
    if known is None or known[0] != versions:
        digest = hashlib.sha256()
        for name, value in weights:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        known = _DIGESTS[model] = (versions, digest.hexdigest())
    reads = feature_extractor.to_dict() | {
        "vocabularies": feature_extractor.vocabularies,
        "bins": feature_extractor.bins,
    }
    of_extractor = json.dumps(reads, sort_keys=True, default=str)
    return hashlib.sha256(f"{known[1]} {of_extractor}".encode()).hexdigest()


def _iso(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s"))


def _content_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


__all__ = ["Added", "LiveCustomer", "checkpoint_digest"]
