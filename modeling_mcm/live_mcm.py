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
"""A customer who is followed live: events come one by one, and every question is answered as if all were read at once.

    live = LiveCustomer(model, feature_extractor)
    live.add([{"time": "2017-03-01T18:30:00", "item": "milk"}])
    live.scores(tasks=["item"], k=5)

Whatever way events are cut into calls of `add`, the answers are those of the whole history; `remove` gives the answers
of a customer who never had the event. What the model has to remember of finished visits is in a `LiveState`, so that
an answer takes as long after a thousand visits as after ten; the last visit may still grow, and is read again. The
state is computed anew from the events where something has changed before the last visit, or where the history has
outgrown what the feature extractor lets the model read (`first_kept`).

Shapes: H hidden, V labels of a task.
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
from .live_state_mcm import LiveState, Reader, is_incremental
from .modeling_mcm import MCMForMultiTaskRecommendation
from .processing_mcm import ROWS, MCMFeatureExtractor, first_kept
from .state_mcm import MissingForecastsError

FORMAT, VERSION = "mcm-live", "2"
EVENTS = "events"  # the tensor of a stored state that holds the events, as compressed JSON
TIME_FIX = "give a datetime or ISO 8601 text such as 2017-03-01T18:30:00, or leave the event out"
STATE = "state."  # the names of the others open with it
# Of each model, for the weights that it has: the digest of these, and how live states read it.
_DIGESTS: WeakKeyDictionary[torch.nn.Module, tuple[Any, str]] = WeakKeyDictionary()
_READERS: WeakKeyDictionary[torch.nn.Module, tuple[Any, Reader]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Added:
    """What came of `LiveCustomer.add`.

    Attributes:
        events (`int`): how many were added.
        late (`bool`): whether some of them belong before or into an earlier visit than the last one. The state was
            computed anew from the customer's events then, which takes longer; the answers are the same.
    """

    events: int
    late: bool


@dataclass(order=True)
class _Visit:
    """A visit's raw events. Visits are in the order of the feature extractor: by start, those without a key first.

    Attributes:
        start: what puts its first event in order: seconds since 1970-01-01, or a place.
        key: of the visit, as text; empty without one.
        events: in the order in which they came.
        opening: the event at the start.
        end: events in a row of `encode` until the end of this visit, closing ones included; -1 until it was encoded.
    """

    start: int
    key: tuple[bool, str]
    events: list[dict[str, Any]] = field(compare=False)
    opening: dict[str, Any] = field(compare=False)
    end: int = field(default=-1, compare=False)


class LiveCustomer:
    """One customer's events and what a model says of them.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a trained model, in evaluation mode.
        feature_extractor ([`MCMFeatureExtractor`]): the one that was saved with the model.
        profile (`dict`, *optional*): the customer's profile, as for the feature extractor.
        customer_id (`str`, *optional*): what messages call the customer.

    Raises:
        ValueError: if model and feature extractor do not belong together, or the profile cannot be read.
    """

    _closed: LiveState | None  # after the finished visits, the first `_folded` ones
    _folded: int
    _tip: LiveState | None  # after all visits
    _ahead: tuple[int, dict[str, Any]] | None  # what `_unread` gives, encoded, and its first visit
    _start: int  # the first event that the model reads, its time and its visit
    _base: int
    _first_visit: int

    def __init__(
        self,
        model: MCMForMultiTaskRecommendation,
        feature_extractor: MCMFeatureExtractor,
        profile: Mapping[str, Any] | None = None,
        customer_id: str | None = None,
    ):
        found, expected = feature_extractor.vocabulary_sizes, model.config.vocabulary_sizes
        if feature_extractor.feature_names != model.config.features or found != expected:
            raise ValueError(
                f"The feature extractor's vocabularies have sizes {found}, the model's {expected}: take the feature "
                "extractor that was saved with this checkpoint."
            )
        self.model, self.feature_extractor = model, feature_extractor
        self.profile, self.customer_id = dict(profile or {}), customer_id
        self._reader = _reader(model) if is_incremental(model) and model.device.type == "cpu" else None
        self._start_row = feature_extractor.pad([self._encode([])])["input_ids"][0]
        self._visits: list[_Visit] = []
        self._by_key: dict[Any, _Visit] = {}
        self._arrived = 0
        self._last = -(2**63)  # the latest event, in seconds
        self._forget_state()

    # ------------------------------------------------------------------------------------------------ events in, out

    def add(self, events: Any, now: Any = None) -> Added:
        """Takes new events, in any order, also such as are older than those that are there.

        Args:
            events: one event, a list of events, a data frame or a dict of columns, as for the feature extractor.
            now (*optional*): the time of the call. No event may be later.

        Raises:
            ValueError: if an event has no time, lies after `now`, or cannot be read. Nothing has changed then.
        """
        added = self._read(events)
        self._check_past(added, now)
        first, row = self._folded - 1, self._encode([*self._unread(), *added])  # it raises where one can't be read
        late = self._insert(added)
        if not late and first >= 0:
            self._ahead = first, row
        return Added(len(added), late)

    def remove(self, event: Mapping[str, Any]) -> None:
        """Forgets one event: from here on every answer is that of a customer who never had it.

        Args:
            event (`dict`): the event as it was added. Of several equal ones the last is removed.

        Raises:
            ValueError: if the customer has no such event.
        """
        (wanted,) = self._read([event])
        self._encode([wanted])
        visit = self._by_key.get(self._placed(wanted)[0])
        if self.feature_extractor.order == ROWS:  # only equality says which one it is
            visit = next((each for each in reversed(self._visits) if wanted in each.events), None)
        if visit is None or wanted not in visit.events:
            raise ValueError(
                f"{self._name()} has no event {dict(event)!r}: give all columns of the event as they were added."
            )
        everything = self.events
        everything.remove(wanted)
        self._visits, self._by_key, self._arrived, self._last = [], {}, 0, -(2**63)
        self._forget_state()
        self._insert(everything)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events as they are kept, those of older visits first."""
        return [event for visit in self._visits for event in visit.events]

    # ---------------------------------------------------------------------------------------------------- questions

    def scores(
        self, now: Any = None, tasks: Sequence[str] | None = None, k: int = 10
    ) -> dict[str, list[dict[str, Any]]]:
        """The labels that the customer is likely to choose next.

        Args:
            now (*optional*): the time of the question; the last event's by default. What the repeat memory counts
                has faded until then. The model has learned from questions at the last event, and is measured on them.
            tasks (`Sequence[str]`, *optional*): names of tasks, all by default.
            k (`int`): labels of each task; at most all of them.

        Returns:
            For each task a list of `{"label": value, "score": probability among the task's labels}`, best first.

        Raises:
            ValueError: for an unknown task, `k` under 1, or a `now` before the last event.
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
        """The scores of all labels, for each task of shape `(V,)`, before the softmax that makes them probabilities.

        Args:
            now (*optional*): as for `scores`.
            tasks (`Sequence[str]`, *optional*): names of tasks, all by default.
        """
        moment = self._moment(now)
        if self._reader is not None:
            return self._state().logits(self._reader, tasks, self._days(moment))
        with torch.inference_mode():
            logits = self.model(**self._inputs(moment)).logits
        return {task: logits[task][0] for task in tasks or self.model.config.tasks}

    def embedding(self, now: Any = None) -> NDArray[np.float32]:
        """The customer embedding, of shape `(S,)`.

        Args:
            now (*optional*): as for `scores`.
        """
        moment = self._moment(now)
        if self._reader is not None:
            return self._state().embedding(self._reader, self._days(moment)).numpy().copy()
        with torch.inference_mode():
            return self.model.model(**self._inputs(moment)).pooler_output[0].float().cpu().numpy()

    def forecast(self, now: Any = None) -> dict[str, float]:
        """What is to be expected of the customer, as the pipeline `customer-forecast` says it.

        Args:
            now (*optional*): as for `scores`.

        Raises:
            MissingForecastsError: a `ValueError`, if the checkpoint has learned no forecasts.
        """
        moment, heads = self._moment(now), self.model.model.forecasts
        if heads is None or not heads.is_trained:
            raise MissingForecastsError(self.model.name_or_path)
        if self._reader is not None:
            found = self._state().forecast(self._reader, self._days(moment))
        else:
            with torch.inference_mode():
                found = cast(dict[str, torch.Tensor], self.model.model(**self._inputs(moment)).forecasts)
        return {name: value.item() for name, value in found.items()}

    def explain(self, task: str, label: Any = None, now: Any = None) -> Explanation:
        """Why a label has its score: what it is a sum of, and the share of every visit and event.

        Args:
            task (`str`): name of a task.
            label (*optional*): a value of the task; the best by default.
            now (*optional*): as for `scores`.

        Raises:
            ValueError: for an unknown task or label, or a `now` before the last event.
        """
        self._moment(now)
        customer = {"events": self.events, "profile": self.profile or None, "customer_id": self.customer_id}
        return explain(self.model, self.feature_extractor, customer, task, label, now)

    # -------------------------------------------------------------------------------------------------------- stored

    def to_bytes(self, caches: bool = True) -> bytes:
        """The state as a safetensors file in memory, with the digest of the checkpoint in its metadata.

        Args:
            caches (`bool`): Store what the model remembers too. Without, a state is as small as its events, and the
                first answer after `from_bytes` takes as long as reading the whole history.
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
        """The customer whose state `to_bytes` gave.

        Args:
            data (`bytes`): the stored state.
            model: of the checkpoint that the state was stored with.
            feature_extractor: of the same checkpoint.

        Raises:
            ValueError: if the bytes are damaged, or the state is of another checkpoint.
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
        """Events as dicts of plain values that JSON can hold; those that the feature extractor refuses are refused."""
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
        """What tells an event's visit from others, what puts the event in order, and its visit's key, if any."""
        extractor = self.feature_extractor
        if extractor.time is not None:
            moment = int(np.datetime64(event[extractor.time], "s").astype(np.int64))
        else:
            moment = self._arrived if extractor.order == ROWS else to_place(event[str(extractor.order)])
        key = to_text(event.get(extractor.visit)) if extractor.visit else None
        return (moment if key is None else (key,)), moment, key

    def _insert(self, events: Sequence[dict[str, Any]]) -> bool:
        """Puts events into their visits; returns whether a visit before the last one has changed."""
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
            elif moment < visit.start:  # it began earlier than it seemed
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

    # -------------------------------------------------------------------------------------------------- what is kept

    def _forget_state(self) -> None:
        self._closed = self._tip = self._ahead = None
        self._folded = self._start = self._base = self._first_visit = 0

    def _state(self) -> LiveState:
        """The state after the last event."""
        if self._tip is None and not (self._closed is not None and self._read_on()):
            self._read_all()
        return cast(LiveState, self._tip)

    def _read_on(self) -> bool:
        """Reads the visits that are not in the state; `False` where the history has to be cut elsewhere."""
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
        """The events of visits that are not in the state, after the opening of the visit before: it says how many days
        have passed."""
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
        """Notes where the visits from `first` on end in a row of all events; the first `skip` visits of `row` are
        others."""
        counts = np.bincount(row["visits"], minlength=skip + len(self._visits) - first)[skip:]
        counts[:1] += self._visits[first - 1].end if first else 0
        for visit, end in zip(self._visits[first:], counts.cumsum().tolist(), strict=True):
            visit.end = end

    def _extend(self, row: Mapping[str, Any], skip: int, first: int) -> None:
        """Reads a row's events from `skip` on, the last visit apart; its visits are counted from `first`."""
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
        """Raises where an event is later than `now`."""
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
        """Seconds since 1970-01-01 of the time of a question, which is not before the last event."""
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
        """A moment on the clock of the state."""
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
    """Hex digest of a model's weights and of what its feature extractor makes of events; computed once a model."""
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
    """A raw value as JSON holds it: text, numbers and booleans as they are, lists of them, the rest as text."""
    if type(value) is str:  # most are
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
