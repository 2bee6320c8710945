# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The work of the HTTP service, without HTTP: customers of a store that are kept up to date with it.

A customer in memory is a [`LiveHistory`] with the store's epoch and sequence that it was read as of. Before every
answer both are read from the store. If another service added events, they are added here, too; if it changed past
events, the customer is read anew. An answer therefore knows every event that any service has acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from modeling_mcm.candidates_mcm import CandidateSet
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.events_mcm import naming, to_text
from modeling_mcm.live.history import LiveHistory
from modeling_mcm.predictor_mcm import RANKING, Predictor
from modeling_mcm.serving.failures import EventConflict, StoreConflict, StoreFailure, UnknownCustomer
from modeling_mcm.serving.store import Change, EventStore, StoredCustomer, canonical
from modeling_mcm.serving.worker import WorkerProcess
from modeling_mcm.training.checkpoints import checkpoint_digest

TRIES = 8  # of a change that another service was faster than
LOCKS = 64
IN_MEMORY = 1024  # customers that are kept
MOST_CANDIDATE_SETS = 64  # of candidates that are kept
AHEAD = timedelta(seconds=60)  # by which the clock of a shop may be before that of the service
COUNTERS = "events_added", "events_known", "customers_late", "customers_read", "conflicts", "lock_wait_seconds"


@dataclass
class _CachedCustomer:
    """A customer in memory, as of which change."""

    history: LiveHistory
    stored: StoredCustomer


@dataclass(frozen=True)
class Batch:
    """What a question reads of some customers, as the store has them now.

    Attributes:
        customers (`list[dict]`): Of each customer `customer_id`, number of `events`, and `as_of`: the time of the
            question, or of the last event.
        rows (`list[dict]`): Their encoded events.
        as_of (`float`, *optional*): Time of the question in seconds since 1970-01-01.
        unknown (`list[str]`): Those without an event.
    """

    customers: list[Any]
    rows: list[dict[str, Any]]
    as_of: float | None
    unknown: list[str]


@dataclass(frozen=True)
class Incoming:
    """An event of a request: raw values by column of the log, and a profile that holds from then on.

    Sent again, an event has the same `event_id`, which is unique among the customer's events.
    """

    event_id: str
    customer_id: str
    event: Mapping[str, Any]
    profile: Mapping[str, Any] | None = None


class CustomerService:
    """Adds events to a store, and answers requests about its customers.

    Args:
        model ([`MCMForMultiTaskRecommendation`], [`MCMForCustomerPrediction`] or [`MCMForActionRecommendation`]): The
            model, in evaluation mode.
        extractor ([`MCMFeatureExtractor`]): The feature extractor of the same checkpoint.
        store ([`EventStore`]): A store of events of the log that the model was trained on.
        clock (`Callable`): Returns the current time with its zone.
        candidates (`str`, *optional*): File of a table of candidates, see [`CandidateSet`].

    Attributes:
        digest (`str`): Digest of the checkpoint.
        worker (`Callable`): Calls a slow function with the model, the feature extractor and its values: in the
            request's own thread, or in a [`WorkerProcess`] that is set here.
        trained_until (`int`, *optional*): Validation cutoff of the training, in seconds since 1970-01-01; totals are
            checked on what came after it.
    """

    def __init__(
        self,
        model: Any,
        extractor: Any,
        store: EventStore,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        candidates: str | None = None,
    ):
        self.model, self.extractor, self.store, self.clock = model, extractor, store, clock
        self.predictor, self.digest = Predictor(model, extractor), checkpoint_digest(model, extractor)
        self.worker: Callable[..., Any] = lambda function, *values: function(model, extractor, *values)
        self.trained_until: int | None = None
        self.counts: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self._cached: OrderedDict[str, _CachedCustomer] = OrderedDict()
        self._memory_lock = threading.Lock()
        self.candidates = candidates
        self._sets: dict[Any, tuple[Any, CandidateSet]] = {}
        if self.predictor.head == RANKING or candidates is not None:
            # a bad table stops the service before its first answer
            self.candidate_set(tuple(self.predictor.tasks()))
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def close(self) -> None:
        """Closes the store and the worker."""
        if isinstance(self.worker, WorkerProcess):
            self.worker.close()
        self.store.close()

    def check(self) -> None:
        """Raises `ServiceError` unless requests can be answered: the store, or the table of candidates, is gone."""
        self.store.check()
        if self.candidates is not None:
            self.candidate_set(tuple(self.model.config.tasks))

    # ---------------------------------------------------------------------------------------------------- events in

    def add(self, events: Sequence[Incoming]) -> Any:
        """Stores all events, or none of them. Events that were stored before change nothing.

        Returns:
            `dict`: How many events were `added` and how many were `known`; the `late` customers, of whom an event
            belongs before their last visit; and `customers` with their numbers of events.

        Raises:
            ValueError: If an event can't be read, has no time, or lies in the future; the message says which.
            EventConflict: If the event id is stored with other contents.
            StoreFailure: If the store can't be written; nothing was stored.
        """
        grouped: dict[str, list[Incoming]] = {}
        for event in events:
            grouped.setdefault(event.customer_id, []).append(self._without_customer(event))
        for _ in range(TRIES):
            with suppress(StoreConflict), self._alone(grouped):
                return self._add(grouped)
            self._count("conflicts")
        raise StoreConflict(f"{self.store.name} was changed by other services {TRIES} times meanwhile: try again.")

    def _add(self, grouped: Mapping[str, Sequence[Incoming]]) -> dict[str, Any]:
        answer: dict[str, Any] = {"added": 0, "known": 0, "late": [], "customers": {}}
        changes, cached_customers = [], {}
        try:
            for customer_id, events in grouped.items():
                new = self._new_events(customer_id, events)
                profile = next((dict(event.profile) for event in reversed(events) if event.profile is not None), None)
                cached = self._up_to_date(customer_id)
                before = cached.stored if cached else StoredCustomer()
                if cached is None or (profile is not None and profile != before.profile):
                    history = LiveHistory(self.extractor, profile, customer_id)
                    history.add(cached.history.events if cached else [])
                    cached = _CachedCustomer(history, before)
                else:
                    profile = None
                cached_customers[customer_id] = cached
                if new:
                    self._forget(customer_id)  # until the store has the events, memory must not
                    as_of = self.clock() + AHEAD if self.extractor.order is None else None
                    late = cached.history.add([dict(event.event) for event in new], as_of=as_of).late
                    answer["late"] += [customer_id] * late
                texts = [(event.event_id, canonical(dict(event.event))) for event in new]
                if new or profile is not None or not before.epoch:
                    changes.append(Change(customer_id, before, texts, profile))
                answer["added"] += len(new)
                answer["known"] += len(events) - len(new)
            for change, stored in zip(changes, self.store.append(changes) if changes else [], strict=True):
                cached_customers[change.customer_id].stored = stored
        except BaseException:
            for customer_id in grouped:
                self._forget(customer_id)
            raise
        for customer_id, cached in cached_customers.items():
            self._remember(customer_id, cached)
            answer["customers"][customer_id] = len(cached.history.events)
        self._count("events_added", answer["added"])
        self._count("events_known", answer["known"])
        self._count("customers_late", len(answer["late"]))
        return answer

    def _without_customer(self, event: Incoming) -> Incoming:
        """The event without the column of its customer, which may be there and must then say the same."""
        column = self.extractor.customer
        if column not in event.event:
            return event
        with naming(f"Event {event.event_id!r} of customer {event.customer_id!r}: column {column!r}"):
            if (owner := to_text(event.event[column])) not in (None, event.customer_id):
                raise ValueError(f"found customer {owner!r}; give an event one customer, or leave the column out")
        return replace(event, event={name: value for name, value in event.event.items() if name != column})

    def _new_events(self, customer_id: str, events: Sequence[Incoming]) -> list[Incoming]:
        """The events that are not stored yet, each once."""
        texts = self.store.known(customer_id, [event.event_id for event in events])
        new = []
        for event in events:
            name = f"Event {event.event_id!r} of customer {customer_id!r}"
            with naming(name):
                text = canonical(dict(event.event))
            if event.event_id not in texts:
                texts[event.event_id] = text
                new.append(event)
            elif texts[event.event_id] != text:
                raise EventConflict(
                    f"{name} is known with other contents, {texts[event.event_id][:120]}: give another event its own "
                    "id, or delete that one first."
                )
        return new

    # ---------------------------------------------------------------------------------------------------- questions

    def read(self, customer_ids: Sequence[str], as_of: Any = None) -> Batch:
        """Reads customers as the store has them now. Raises `ValueError` if `as_of` is before a customer's last
        event."""
        batch = Batch([], [], self.extractor.read_as_of(as_of), [])
        for customer_id in dict.fromkeys(customer_ids):
            with self._alone([customer_id]):
                cached = self._up_to_date(customer_id)
                if cached is None or not cached.history.visits:  # the events of a customer may all have been deleted
                    batch.unknown.append(customer_id)
                    continue
                history = cached.history
                history.read_as_of(as_of)
                batch.rows.append(history.row)
            facts = {"events": len(history.events), "as_of": as_of or history.last_time}
            batch.customers.append({"customer_id": customer_id} | facts)
        return batch

    def read_known(self, customer_ids: Sequence[str], as_of: Any = None) -> Batch:
        """The same; raises [`UnknownCustomer`] if one has no event."""
        batch = self.read(customer_ids, as_of)
        if batch.unknown:
            raise UnknownCustomer(
                f"No customer {batch.unknown[0]!r} is known: send an event with this customer_id to POST /events "
                "first."
            )
        return batch

    def candidate_set(
        self,
        tasks: tuple[str, ...],
        candidates: tuple[str, ...] = (),
        exclude: str | tuple[str, ...] | None = None,
        per_group: tuple[str, int] | None = None,
    ) -> CandidateSet:
        """The labels that may be answered: those of a request, or of the table of candidates as it is now. A set is
        kept for further requests until the table changes."""
        stamp = None
        if self.candidates is not None:
            try:
                facts = Path(self.candidates).stat()
            except OSError as error:
                raise StoreFailure(f"The table of candidates can't be read ({error}): put it back.") from error
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        key = (tasks, candidates, exclude, per_group)
        with self._memory_lock:
            kept = self._sets.get(key)
        if kept is None or kept[0] != stamp:
            table: Any = list(candidates) or (None if stamp is None else read_table_file(str(self.candidates)))
            excluded = list(exclude) if isinstance(exclude, tuple) else exclude
            kept = stamp, CandidateSet(self.model, self.extractor, tasks, table, excluded, per_group)
            with self._memory_lock:
                if len(self._sets) >= MOST_CANDIDATE_SETS:
                    self._sets.clear()
                self._sets[key] = kept
        return kept[1]

    def delete_customer(self, customer_id: str) -> int:
        """Deletes a customer's events and profile, and returns the number of events."""
        with self._alone([customer_id]):
            self._forget(customer_id)
            events = self.store.delete_customer(customer_id)
        if events < 0:
            raise UnknownCustomer(f"No customer {customer_id!r} is known, so there is nothing to delete.")
        return events

    def delete_event(self, customer_id: str, event_id: str) -> None:
        """Deletes one event. From then on all answers are those for a customer without the event."""
        with self._alone([customer_id]):
            self._forget(customer_id)
            if not self.store.delete_event(customer_id, event_id):
                raise UnknownCustomer(f"Customer {customer_id!r} has no event {event_id!r}: nothing was deleted.")

    # ------------------------------------------------------------------------------------------------------- memory

    def _up_to_date(self, customer_id: str) -> _CachedCustomer | None:
        """Brings a customer up to date with every stored event; `None` if the store does not have the customer."""
        with self._memory_lock:
            cached = self._cached.get(customer_id)
        stored, events = self.store.history(customer_id, cached.stored if cached else StoredCustomer())
        self._forget(customer_id)
        if not stored.epoch:
            return None
        if cached is None or cached.stored.epoch != stored.epoch:
            cached = _CachedCustomer(LiveHistory(self.extractor, stored.profile, customer_id), stored)
            self._count("customers_read")
        if events:
            cached.history.add(events)
        cached.stored = stored
        self._remember(customer_id, cached)
        return cached

    def _remember(self, customer_id: str, cached: _CachedCustomer) -> None:
        with self._memory_lock:
            self._cached[customer_id] = cached
            self._cached.move_to_end(customer_id)
            while len(self._cached) > IN_MEMORY:
                self._cached.popitem(last=False)

    def _forget(self, customer_id: str) -> None:
        with self._memory_lock:
            self._cached.pop(customer_id, None)

    @contextmanager
    def _alone(self, customer_ids: Any) -> Iterator[None]:
        """A context in which no other thread works on these customers."""
        with ExitStack() as stack:
            start = time.monotonic()
            for index in sorted({hash(customer_id) % LOCKS for customer_id in customer_ids}):
                stack.enter_context(self._locks[index])
            self._count("lock_wait_seconds", time.monotonic() - start)
            yield

    def _count(self, name: str, number: float = 1) -> None:
        with self._memory_lock:
            self.counts[name] += number
