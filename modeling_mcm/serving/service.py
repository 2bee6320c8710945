# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers of a store, followed live: what the HTTP service does, without HTTP.

A customer in memory is a [`LiveCustomer`] with the epoch and the sequence of the store that it was made from. Before
every answer the store is asked for both; where another service added events they are read and added, and where it
changed the past the customer is made anew. An answer therefore knows every event that any service acknowledged.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from modeling_mcm.events_mcm import naming, to_text
from modeling_mcm.live_mcm import LiveCustomer
from modeling_mcm.serving.failures import EventConflict, StoreConflict, StoreFailure, UnknownCustomer
from modeling_mcm.serving.store import NOTHING, Change, EventStore, StoredCustomer, StoredState, canonical

TRIES = 8  # of a change that another service was faster than
LOCKS = 64
AHEAD = timedelta(seconds=60)  # by which the clock of a shop may be before that of the service


@dataclass
class _Followed:
    """A customer in memory, as of which event of the store, and as of which event its state is stored."""

    live: LiveCustomer
    customer: StoredCustomer
    kept: int = NOTHING


@dataclass(frozen=True)
class Incoming:
    """An event as a request brings it.

    Args:
        event_id (`str`): The same event has the same id, however often it is sent.
        customer_id (`str`): Whose event.
        event (`dict`): Raw values by column of the event log.
        profile (`dict`, *optional*): The customer's profile from here on.
    """

    event_id: str
    customer_id: str
    event: Mapping[str, Any]
    profile: Mapping[str, Any] | None = None


class CustomerService:
    """Adds events to a store and answers questions of its customers.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): In evaluation mode.
        extractor ([`MCMFeatureExtractor`]): Of the same checkpoint.
        store ([`EventStore`]): With the digest of this checkpoint.
        in_memory (`int`): Customers that are kept in memory.
        keep_every (`int`): Events after which a customer's state is stored again. Those since are added to it when it
            is read.
        clock (`Callable`): Gives the time with its zone.
    """

    def __init__(
        self,
        model: Any,
        extractor: Any,
        store: EventStore,
        in_memory: int = 1024,
        keep_every: int = 16,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self.model, self.extractor, self.store, self.clock = model, extractor, store, clock
        self.in_memory, self.keep_every = in_memory, keep_every
        self.counts: Counter[str] = Counter()
        self._followed: OrderedDict[str, _Followed] = OrderedDict()
        self._memory_lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    # ---------------------------------------------------------------------------------------------------- events in

    def add(self, events: Sequence[Incoming]) -> dict[str, Any]:
        """Keeps all events, or none of them. What was sent before is known by its id and does no harm.

        Returns:
            How many were `added`, how many were `known`, the `late` ones' customers (an event belongs before the end
            of their last visit but one: their state was computed anew), and `customers` with their number of events.

        Raises:
            ValueError: An event can't be read, has no time, or lies in the future; the message says which.
            EventConflict: An event id is known with other contents.
            StoreFailure: Nothing was kept.
        """
        grouped: dict[str, list[Incoming]] = {}
        for event in events:
            grouped.setdefault(event.customer_id, []).append(self._without_customer(event))
        for left in reversed(range(TRIES)):
            try:
                with self._alone(grouped):
                    return self._add(grouped)
            except StoreConflict:
                self._count("conflicts")
                if not left:
                    raise
        raise StoreFailure("No try is left.")

    def _add(self, grouped: Mapping[str, Sequence[Incoming]]) -> dict[str, Any]:
        answer: dict[str, Any] = {"added": 0, "known": 0, "late": [], "customers": {}}
        changes, followed = [], {}
        try:
            for customer_id, events in grouped.items():
                new = self._new_events(customer_id, events)
                profile = next((dict(each.profile) for each in reversed(events) if each.profile is not None), None)
                found = self._follow(customer_id)
                before = found.customer if found else StoredCustomer()
                if found is None or (profile is not None and profile != before.profile):
                    found = self._start(customer_id, found, profile)
                else:
                    profile = None
                followed[customer_id] = found
                if new:
                    self._forget(customer_id)  # until the store has the events, memory must not
                    late = found.live.add([dict(each.event) for each in new], now=self.clock() + AHEAD).late
                    answer["late"] += [customer_id] * late
                texts = [(each.event_id, canonical(dict(each.event))) for each in new]
                if new or profile is not None or not before.epoch:
                    number = before.sequence + len(new)
                    keep = number - found.kept >= self.keep_every or profile is not None
                    state = found.live.to_bytes() if keep else None
                    changes.append(Change(customer_id, before, texts, profile, state))
                answer["added"] += len(new)
                answer["known"] += len(events) - len(new)
            for change, customer in zip(changes, self.store.append(changes) if changes else [], strict=True):
                found = followed[change.customer_id]
                found.customer = customer
                found.kept = customer.sequence if change.state is not None else found.kept
        except BaseException:
            for customer_id in grouped:
                self._forget(customer_id)
            raise
        for customer_id, found in followed.items():
            self._remember(customer_id, found)
            answer["customers"][customer_id] = len(found.live.events)
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
            if (named := to_text(event.event[column])) not in (None, event.customer_id):
                raise ValueError(f"found customer {named!r}; give an event one customer, or leave the column out")
        return replace(event, event={name: value for name, value in event.event.items() if name != column})

    def _start(self, customer_id: str, found: _Followed | None, profile: dict[str, Any] | None) -> _Followed:
        """A new customer, or one with another profile."""
        live = LiveCustomer(self.model, self.extractor, profile, customer_id)
        if found is not None and found.live.events:
            live.add(found.live.events)
        return _Followed(live, found.customer if found else StoredCustomer())

    def _new_events(self, customer_id: str, events: Sequence[Incoming]) -> list[Incoming]:
        """The events that are not stored yet, each once."""
        texts = self.store.known(customer_id, [each.event_id for each in events])
        new = []
        for each in events:
            with naming(f"Event {each.event_id!r} of customer {customer_id!r}"):
                text = canonical(dict(each.event))
            if each.event_id not in texts:
                texts[each.event_id] = text
                new.append(each)
            elif texts[each.event_id] != text:
                raise EventConflict(
                    f"Event {each.event_id!r} of customer {customer_id!r} is known with other contents, "
                    f"{_short(texts[each.event_id])}: give another event its own id, or delete that one first."
                )
        return new

    # ---------------------------------------------------------------------------------------------------- questions

    @contextmanager
    def customer(self, customer_id: str) -> Iterator[LiveCustomer]:
        """A customer as the store has it now, for one question.

        Raises:
            UnknownCustomer: No event of the customer is stored.
        """
        with self._alone([customer_id]):
            found = self._follow(customer_id)
            if found is None:
                raise UnknownCustomer(
                    f"No customer {customer_id!r} is known: send an event with this customer_id to POST /events first."
                )
            yield found.live

    def delete_customer(self, customer_id: str) -> int:
        """Deletes events, state and profile; gives how many events that were."""
        with self._alone([customer_id]):
            self._forget(customer_id)
            events = self.store.delete_customer(customer_id)
        if events < 0:
            raise UnknownCustomer(f"No customer {customer_id!r} is known, so there is nothing to delete.")
        return events

    def delete_event(self, customer_id: str, event_id: str) -> None:
        """Deletes one event: from here on every answer is that of a customer who never had it."""
        with self._alone([customer_id]):
            self._forget(customer_id)
            if not self.store.delete_event(customer_id, event_id):
                raise UnknownCustomer(f"Customer {customer_id!r} has no event {event_id!r}: nothing was deleted.")

    # ------------------------------------------------------------------------------------------------------- memory

    def _follow(self, customer_id: str) -> _Followed | None:
        """The customer with every stored event; None for one that is not in the store."""
        with self._memory_lock:
            found = self._followed.get(customer_id)
        if found is not None and self.store.customer(customer_id) == found.customer:
            self._remember(customer_id, found)
            return found
        before = found.customer if found else StoredCustomer()
        customer, state, events = self.store.history(customer_id, before.epoch, before.sequence)
        if not customer.epoch:
            self._forget(customer_id)
            return None
        if state is not None:
            found = self._read_state(customer_id, state)
            if found is None:  # damaged: the events are the truth
                customer, _, events = self.store.history(customer_id, with_state=False)
        elif found is not None and found.customer.epoch != customer.epoch:
            found = None
        if found is None:
            found = _Followed(LiveCustomer(self.model, self.extractor, customer.profile, customer_id), customer)
            self._count("states_made")
        self._forget(customer_id)
        if events:
            found.live.add(events)
        found.customer = customer
        if customer.sequence - found.kept >= self.keep_every:
            state = StoredState(customer.epoch, customer.sequence, found.live.to_bytes())
            with suppress(StoreFailure):  # a full disk does not stop answers
                self.store.keep_state(customer_id, state)
                found.kept = customer.sequence
        self._remember(customer_id, found)
        return found

    def _read_state(self, customer_id: str, state: StoredState) -> _Followed | None:
        try:
            live = LiveCustomer.from_bytes(state.state, self.model, self.extractor)
        except ValueError:
            self._count("states_damaged")
            return None
        self._count("states_read")
        return _Followed(live, StoredCustomer(), state.sequence)

    def _remember(self, customer_id: str, found: _Followed) -> None:
        with self._memory_lock:
            self._followed[customer_id] = found
            self._followed.move_to_end(customer_id)
            while len(self._followed) > self.in_memory:
                self._followed.popitem(last=False)

    def _forget(self, customer_id: str) -> None:
        with self._memory_lock:
            self._followed.pop(customer_id, None)

    @contextmanager
    def _alone(self, customer_ids: Any) -> Iterator[None]:
        """No other thread works on these customers meanwhile."""
        with ExitStack() as stack:
            for place in sorted({hash(each) % LOCKS for each in customer_ids}):
                stack.enter_context(self._locks[place])
            yield

    def _count(self, name: str, number: int = 1) -> None:
        with self._memory_lock:
            self.counts[name] += number

    @property
    def remembered(self) -> int:
        """Customers in memory."""
        return len(self._followed)


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}..."
