# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The work of the HTTP service, without HTTP: customers of a store that are kept up to date with it.

A customer in memory is a [`LiveCustomer`] with the store's epoch and sequence that it was computed from. Before every
answer both are read from the store. If another service added events, they are added here, too; if it changed past
events, the customer is computed anew. An answer therefore knows every event that any service has acknowledged.
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
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.live.explanations import check_head, has_head
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.serving.failures import EventConflict, StoreConflict, StoreFailure, UnknownCustomer
from modeling_mcm.serving.store import NOTHING, Change, EventStore, StoredCustomer, StoredState, canonical
from modeling_mcm.serving.worker import WorkerProcess

TRIES = 8  # of a change that another service was faster than
LOCKS = 64
MOST_CANDIDATE_SETS = 64  # of candidates that are kept
AHEAD = timedelta(seconds=60)  # by which the clock of a shop may be before that of the service
COUNTERS = (
    "events_added", "events_known", "customers_late", "states_read", "states_made", "states_damaged", "conflicts",
    "lock_wait_seconds",
)  # fmt: skip


@dataclass
class _CachedCustomer:
    """A customer in memory, as of which change, and the number of the latest event in its stored state."""

    live: LiveCustomer
    customer: StoredCustomer
    stored_sequence: int = NOTHING


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
        store ([`EventStore`]): A store that was opened with the digest of this checkpoint.
        in_memory (`int`): Largest number of customers to keep in memory.
        keep_every (`int`): Number of new events after which a customer's state is stored again. A reader adds later
            events to the stored state.
        clock (`Callable`): Returns the current time with its zone.
        candidates (`str`, *optional*): File of a table of candidates, see [`CandidateSet`].

    Attributes:
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
        in_memory: int = 1024,
        keep_every: int = 16,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        candidates: str | None = None,
    ):
        self.model, self.extractor, self.store, self.clock = model, extractor, store, clock
        self.in_memory, self.keep_every = in_memory, keep_every
        self.worker: Callable[..., Any] = lambda function, *values: function(model, extractor, *values)
        self.trained_until: int | None = None
        self.counts: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self._cached: OrderedDict[str, _CachedCustomer] = OrderedDict()
        self._memory_lock = threading.Lock()
        self.candidates = candidates
        self._sets: dict[Any, tuple[Any, CandidateSet]] = {}
        if has_head(model, MCMForMultiTaskRecommendation) or candidates is not None:
            check_head(model, MCMForMultiTaskRecommendation)
            self.candidate_set(tuple(model.config.tasks))  # a bad table stops the service before its first answer
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

    def add(self, events: Sequence[Incoming]) -> dict[str, Any]:
        """Stores all events, or none of them. Events that were stored before change nothing.

        Returns:
            `dict`: How many events were `added` and how many were `known`; the `late` customers, of whom an event
            belongs before the end of their last visit but one, so that their state was computed anew; and `customers`
            with their numbers of events.

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
                before = cached.customer if cached else StoredCustomer()
                if cached is None or (profile is not None and profile != before.profile):
                    live = LiveCustomer(self.model, self.extractor, profile, customer_id)
                    live.add(cached.live.events if cached else [])
                    cached = _CachedCustomer(live, before)
                else:
                    profile = None
                cached_customers[customer_id] = cached
                if new:
                    self._forget(customer_id)  # until the store has the events, memory must not
                    as_of = self.clock() + AHEAD if self.extractor.order is None else None
                    late = cached.live.add([dict(event.event) for event in new], as_of=as_of).late
                    answer["late"] += [customer_id] * late
                texts = [(event.event_id, canonical(dict(event.event))) for event in new]
                if new or profile is not None or not before.epoch:
                    number = before.sequence + len(new)
                    keep = number - cached.stored_sequence >= self.keep_every or profile is not None
                    state = cached.live.to_bytes() if keep else None
                    changes.append(Change(customer_id, before, texts, profile, state))
                answer["added"] += len(new)
                answer["known"] += len(events) - len(new)
            for change, customer in zip(changes, self.store.append(changes) if changes else [], strict=True):
                cached = cached_customers[change.customer_id]
                cached.customer = customer
                cached.stored_sequence = customer.sequence if change.state is not None else cached.stored_sequence
        except BaseException:
            for customer_id in grouped:
                self._forget(customer_id)
            raise
        for customer_id, cached in cached_customers.items():
            self._remember(customer_id, cached)
            answer["customers"][customer_id] = len(cached.live.events)
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

    @contextmanager
    def customer(self, customer_id: str) -> Iterator[LiveCustomer]:
        """Reads a customer as the store has it now, for one request; `UnknownCustomer` if it has no event."""
        with self._alone([customer_id]):
            cached = self._up_to_date(customer_id)
            if cached is None or not cached.live.events:  # those of a customer may all have been deleted
                raise UnknownCustomer(
                    f"No customer {customer_id!r} is known: send an event with this customer_id to POST /events first."
                )
            yield cached.live

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
        """Deletes a customer's events, state and profile, and returns the number of events."""
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
        if cached is not None and self.store.customer(customer_id) == cached.customer:
            self._remember(customer_id, cached)
            return cached
        before = cached.customer if cached else StoredCustomer()
        customer, state, events = self.store.history(customer_id, before.epoch, before.sequence)
        if not customer.epoch:
            self._forget(customer_id)
            return None
        if state is not None:
            cached = self._read_state(customer_id, state)
            if cached is None:  # damaged: the events are the truth
                customer, _, events = self.store.history(customer_id, with_state=False)
        elif cached is not None and cached.customer.epoch != customer.epoch:
            cached = None
        if cached is None:
            cached = _CachedCustomer(LiveCustomer(self.model, self.extractor, customer.profile, customer_id), customer)
            self._count("states_made")
        self._forget(customer_id)
        if events:
            cached.live.add(events)
        cached.customer = customer
        if customer.sequence - cached.stored_sequence >= self.keep_every:
            state = StoredState(customer.epoch, customer.sequence, cached.live.to_bytes())
            with suppress(StoreFailure):  # a full disk does not stop answers
                self.store.keep_state(customer_id, state)
                cached.stored_sequence = customer.sequence
        self._remember(customer_id, cached)
        return cached

    def _read_state(self, customer_id: str, state: StoredState) -> _CachedCustomer | None:
        try:
            live = LiveCustomer.from_bytes(state.state, self.model, self.extractor)
            if live.customer_id != customer_id:
                raise ValueError(f"The state is of customer {live.customer_id!r}.")
        except ValueError:
            self._count("states_damaged")
            return None
        self._count("states_read")
        return _CachedCustomer(live, StoredCustomer(), state.sequence)

    def _remember(self, customer_id: str, cached: _CachedCustomer) -> None:
        with self._memory_lock:
            self._cached[customer_id] = cached
            self._cached.move_to_end(customer_id)
            while len(self._cached) > self.in_memory:
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
