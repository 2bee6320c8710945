# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The work of the HTTP service, without HTTP: customers of a store that are kept up to date with it.

A customer in memory is a [`LiveHistory`] with the store's epoch and last event that it was read as of. Before every
answer both are read from the store. If another service added events, they are added here, too; if it changed past
events, or the store has lost some, the customer is read anew. An answer therefore knows every event that any service
has acknowledged, and none that the store does not have.

Whoever works on a customer takes the history out of memory, and puts it back when the store has what it has. A second
request for the same customer meanwhile reads the store.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch

from modeling_mcm.candidates_mcm import CandidateSet
from modeling_mcm.configuration_mcm import UNKNOWN_ID
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.events_mcm import RawEvent, Row
from modeling_mcm.extras import needs
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import MissingForecastsError
from modeling_mcm.live.customer import Heads, LiveHistory
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import (
    RANKING,
    CheckedQuestions,
    Columns,
    MissingHeadError,
    Predictor,
    Questions,
)
from modeling_mcm.training.checkpoints import checkpoint_digest, open_checkpoint

from .answers import Added, Customer
from .store import MAX_ID, EventStore, ServiceError, Transaction, canonical

with needs("serve"):
    from pydantic import AfterValidator, BaseModel, Field

IN_MEMORY = 1024  # customers that are kept
MOST_CANDIDATE_SETS = 64  # of candidates that are kept
MOST_WAITING = 4  # calls at a time, with the one that is computed; each holds a thread of the service
LOWEST_PRIORITY = 19
AHEAD = timedelta(seconds=60)  # by which the clock of a shop may be before that of the service


@dataclass
class StoredCustomer:
    """A customer in memory, and what the store had of it: its epoch, and sequence and id of the last event."""

    history: LiveHistory
    epoch: str
    sequence: int = 0
    event_id: str = ""


@contextlib.contextmanager
def reading_request() -> Iterator[None]:
    """Reads something of a request: a `ValueError` within is the client's, and becomes a [`ServiceError`] with the
    status 422. Any other one is a fault of the service (500), but for what the checkpoint does not have (501)."""
    try:
        yield
    except (MissingForecastsError, MissingHeadError):
        raise
    except ValueError as error:
        raise ServiceError(str(error), 422) from error


class Batch(NamedTuple):
    """What a question reads of some customers, as the store has them now.

    Attributes:
        customers (`list[dict]`): Of each customer `customer_id`, number of `events`, and `as_of`: the time of the
            question, or of the last event.
        rows (`list[dict]`): Their encoded events.
        as_of (`float`, *optional*): Time of the question in seconds since 1970-01-01.
        unknown (`list[str]`): Those without an event.
    """

    customers: list[Customer]
    rows: list[Row]
    as_of: float | None
    unknown: list[str]


def check_json(values: RawEvent) -> RawEvent:
    """Raises `ValueError` if values are no JSON: NaN, infinity, or half a character such as "\\ud800"."""
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error}): correct the value or leave it out") from None
    return values


Raw = Annotated[RawEvent, AfterValidator(check_json)]
Identity = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f]+$", examples=["7"])]


class Incoming(BaseModel, extra="forbid", frozen=True):
    """An event of a request: raw values by column of the log, and a profile that holds from then on.

    Sent again, an event has the same `event_id`, which is unique among the customer's events, and changes nothing; nor
    does a profile beside it.
    """

    event_id: Identity
    customer_id: Identity
    event: Raw = Field(description="Values by column of the log.")
    profile: Raw | None = None


class WorkerProcess:
    """A process that computes slow answers with the lowest priority. It ends when this object is closed or no longer
    used, and when the service ends, however that ends.

    Args:
        folder (`str`): Checkpoint, which the process opens itself.
        digest (`str`): Digest of the checkpoint that the service has opened from this folder.
    """

    def __init__(self, folder: str, digest: str):
        self._checkpoint = folder, digest
        self._free = threading.Semaphore(MOST_WAITING)
        self._lock = threading.Lock()
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        ended, self._alive = context.Pipe(duplex=False)  # nobody writes: the process reads its end
        pool = ProcessPoolExecutor(1, context, _open, (ended, *self._checkpoint, torch.get_num_threads()))
        pool.submit(os.getpid)  # starts the process now, so that the first call need not wait for it
        return pool

    def __call__(self, function: Callable[..., Any], *values: object) -> Any:
        """Calls a function with the model, the feature extractor and these values, which the process receives as
        pickles. Raises [`ServiceError`] if too many others wait, or the process is lost."""
        if not self._free.acquire(blocking=False):
            raise ServiceError(
                f"{MOST_WAITING} explanations or totals are being computed: try again in a moment, one after another."
            )
        pool = self._pool
        try:
            return pool.submit(_call, function, values).result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = self._start() if self._pool is pool else self._pool
            raise ServiceError(
                "The process of explanations and totals stopped, and starts again; the service's log says why."
            ) from error
        finally:
            self._free.release()

    def close(self) -> None:
        """Stops the process, also in what it computes."""
        for process in [*self._pool._processes.values()]:  # from Python 3.14 on `kill_workers`
            process.kill()
        self._pool.shutdown(cancel_futures=True)


_checkpoint: tuple = ()  # model and feature extractor of this process


def _open(ended: Connection, folder: str, digest: str, threads: int) -> None:
    """What the process does first."""
    global _checkpoint
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the service stops this process itself
    threading.Thread(target=_end_with_service, args=(ended,), daemon=True).start()
    os.nice(LOWEST_PRIORITY)
    torch.set_num_threads(threads)
    _checkpoint = open_checkpoint(MCMForMultiTaskRecommendation, folder)
    if checkpoint_digest(*_checkpoint) != digest:
        raise ValueError(f"{folder} holds another checkpoint than the service has opened from it.")


def _end_with_service(ended: Connection) -> None:
    ended.poll(None)  # until the other end is closed
    os._exit(1)


def _call(function: Callable[..., Any], values: tuple) -> Any:
    return function(*_checkpoint, *values)


class CustomerService:
    """Adds events to a store, and answers requests about its customers by one model, which never changes: a service
    for another one is made beside it, and a request is answered by the one that it began with.

    Args:
        model ([`MCMForMultiTaskRecommendation`], [`MCMForCustomerPrediction`] or [`MCMForActionRecommendation`]): The
            model, in evaluation mode.
        extractor ([`MCMFeatureExtractor`]): The feature extractor of the same checkpoint.
        store ([`EventStore`]): A store of events of the log that the model was trained on.
        clock (`Callable`): Returns the current time with its zone.
        candidates (`str`, *optional*): File of a table of candidates, see [`CandidateSet`].
        data (`str`, *optional*): Folder of the prepared log of the training. Totals are checked on what came after its
            validation cutoff, each by the counts of its time.
        folder (`str`, *optional*): The checkpoint's folder. With it a [`WorkerProcess`] computes what is slow, if the
            model ranks labels; by default the request's own thread does.

    Attributes:
        digest (`str`): Digest of the checkpoint.
        worker (`Callable`): Calls a slow function with the model, the feature extractor and its values.
    """

    def __init__(
        self,
        model: Heads,
        extractor: MCMFeatureExtractor,
        store: EventStore,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        candidates: str | None = None,
        data: str | None = None,
        folder: str | None = None,
    ):
        self.model: Any = model  # of any head
        self.extractor, self.predictor = extractor, Predictor(model, extractor)
        self.digest = checkpoint_digest(model, extractor)
        self.store, self.clock, self.candidates, self.data = store, clock, candidates, data
        self._customers: dict[str, StoredCustomer] = {}  # the one that was used last is the last
        self._deletions = 0
        self._memory_lock = threading.Lock()

        # It reads no `self`, so that a service that is no longer used is freed at once
        @functools.lru_cache(MOST_CANDIDATE_SETS)
        def make_set(stamp: object, tasks: tuple[str, ...], chosen: object = None, *others: Any) -> CandidateSet:
            table = chosen or (None if candidates is None else read_table_file(candidates))
            return CandidateSet(model, extractor, tasks, table, *others)

        self._sets = make_set
        is_ranking = self.predictor.head == RANKING
        if is_ranking or candidates is not None:
            # a bad table stops the service before its first answer
            self.candidate_set(tuple(self.predictor.tasks()))
        self.worker: Callable[..., Any] = lambda function, *values: function(model, extractor, *values)
        if folder is not None and is_ranking:
            self.worker = WorkerProcess(folder, self.digest)

    def with_checkpoint(self, folder: str) -> "CustomerService":
        """The service of the checkpoint that is in a folder now, on the same store; this one if it is the same. Raises
        `ValueError` if it is of another kind or log, and [`CheckpointError`] if it can't be read."""
        model, extractor = open_checkpoint(type(self.model), folder)
        if extractor.schema != self.extractor.schema:
            raise ValueError(f"{folder} reads other columns than the service's checkpoint: start the service again.")
        if checkpoint_digest(model, extractor) == self.digest:
            return self
        own = folder if isinstance(self.worker, WorkerProcess) else None
        return CustomerService(model, extractor, self.store, self.clock, self.candidates, self.data, own)

    def close(self) -> None:
        """Closes the store and the worker."""
        if isinstance(self.worker, WorkerProcess):
            self.worker.close()
        self.store.close()

    def check(self) -> None:
        """Raises `ServiceError` unless requests can be answered: the store can't be read or written, or the table of
        candidates is gone."""
        self.store.check()
        if self.candidates is not None:
            self.candidate_set(tuple(self.model.config.tasks))

    # ---------------------------------------------------------------------------------------------------- events in

    def add(self, events: Sequence[Incoming]) -> Added:
        """Stores all events, or none of them. Events that were stored before change nothing.

        Returns:
            `dict`: How many events were `added` and how many were `known`; the `late` customers, of whom an event
            belongs before their last visit; `customers` with their numbers of events; and by column the
            `unknown_values`, which training has not seen.

        Raises:
            ServiceError: If an event can't be read, has no time, or lies in the future (422; the message says which);
                if an event id is stored with other contents (409), or the store can't be written.
        """
        grouped: dict[str, list[Incoming]] = {}
        for event in events:
            grouped.setdefault(event.customer_id, []).append(event)
        added: list[RawEvent] = []
        profiles: list[RawEvent] = []
        late, customers, deletions = [], {}, self._deletions
        with self.store.transaction(writing=True) as store:
            for customer_id in sorted(grouped):  # in one order, so that services do not wait for each other
                customer = customers[customer_id] = self._read_customer(store, customer_id, locked=True)
                if not (new := self._new_events(store, customer_id, grouped[customer_id])):
                    continue
                with reading_request():
                    profile = self._set_profile(customer, [*new.values()])
                    as_of = self.clock() + AHEAD if self.extractor.order is None else None
                    late += [customer_id] * customer.history.add([event.event for event in new.values()], as_of)
                if profile is not None:
                    customer.epoch = store.set_profile(customer_id, profile)
                    profiles.append(profile)
                store.append(customer_id, customer.sequence, {name: event.event for name, event in new.items()})
                customer.sequence, customer.event_id = customer.sequence + len(new), [*new][-1]
                added += [event.event for event in new.values()]
            with reading_request():  # before anything is kept
                unknown_values = self.unknown_values(added, profiles)
        self._keep(customers, deletions)
        return {
            "added": len(added),
            "known": len(events) - len(added),
            "late": late,
            "customers": {name: len(customer.history.events) for name, customer in customers.items()},
            "unknown_values": unknown_values,
        }

    def _set_profile(self, customer: StoredCustomer, events: Sequence[Incoming]) -> RawEvent | None:
        """Gives a customer the last profile beside some events; returns it if it is another one."""
        past = customer.history
        profile = next((event.profile for event in reversed(events) if event.profile is not None), past.profile)
        if profile == past.profile:
            return None
        customer.history = LiveHistory(self.extractor, profile, past.customer_id)
        customer.history.add(past.events)
        return profile

    def _new_events(self, store: Transaction, customer_id: str, events: Sequence[Incoming]) -> dict[str, Incoming]:
        """The events that are not stored yet, by id."""
        texts = store.known(customer_id, [event.event_id for event in events])
        new: dict[str, Incoming] = {}
        for event in events:
            text = canonical(event.event)
            if event.event_id not in texts:
                texts[event.event_id], new[event.event_id] = text, event
            elif texts[event.event_id] != text:
                raise ServiceError(
                    f"Event {event.event_id!r} of customer {customer_id!r} is known with other contents, "
                    f"{texts[event.event_id][:120]}: give another event its own id, or delete that one first.",
                    409,
                )
        return new

    def delete(self, customer_id: str, event_id: str | None = None) -> int:
        """Deletes one event, or by default a customer's events and profile, from the store and from memory; returns
        the number of events. Raises [`ServiceError`] (404) if there is no such event or customer."""
        try:
            if event_id is None:
                return self.store.delete_customer(customer_id)
            self.store.delete_event(customer_id, event_id)
            return 1
        finally:
            with self._memory_lock:
                self._deletions += 1
                self._customers.pop(customer_id, None)

    def unknown_values(self, events: Sequence[RawEvent], profiles: Sequence[RawEvent] = ()) -> dict[str, list[str]]:
        """By column the values that training has not seen, as the model reads them: one for all."""
        encoding = self.extractor._encoding
        unknown: dict[str, dict[str, None]] = {}
        for feature in self.extractor.vocabularies:
            column = str(encoding.specs[feature].column)
            rows = events if feature in encoding.event_features else profiles
            values = [row[column] for row in rows if row.get(column) is not None]
            for value, index in zip(values, encoding.feature_ids(feature, values), strict=True):
                if index == UNKNOWN_ID:
                    unknown.setdefault(column, {})[str(value)] = None
        return {column: [*values] for column, values in unknown.items()}

    # ---------------------------------------------------------------------------------------------------- questions

    def read(self, customer_ids: Sequence[str], as_of: str | None = None, may_be_unknown: bool = False) -> Batch:
        """Reads customers as the store has them now. Raises `ServiceError` if one has no event (404), or an event
        after `as_of` (422)."""
        with reading_request():
            batch = Batch([], [], self.extractor.read_as_of(as_of), [])
        customers, deletions = {}, self._deletions
        with self.store.transaction() as store:
            for customer_id in dict.fromkeys(customer_ids):
                customer = self._read_customer(store, customer_id)
                if customer is None or not customer.history.events:  # all events may have been deleted
                    batch.unknown.append(customer_id)
                    continue
                history = customer.history
                with reading_request():
                    history.read_as_of(as_of)
                batch.rows.append(history.row)
                answered = as_of or history.last_time
                batch.customers.append({"customer_id": customer_id, "events": len(history.events), "as_of": answered})
                customers[customer_id] = customer
        self._keep(customers, deletions)
        if batch.unknown and not may_be_unknown:
            words = "send an event with this customer_id to POST /v1/events first"
            raise ServiceError(f"No customer {batch.unknown[0]!r} is known: {words}.", 404)
        return batch

    def ask(self, batch: Batch, asked: Questions) -> tuple[Columns, CheckedQuestions]:
        """Answers questions about customers at the time of the batch. Raises `ServiceError` (422) for wrong ones."""
        with reading_request():
            questions = self.predictor.check(replace(asked, as_of=batch.as_of, later_counts=True))
        if self.predictor.knows_later(batch.as_of) and not questions.label and questions.actions is None:
            for customer in batch.customers:
                customer["warning"] = f"The counts hold events until {self.model.config.counted['until']}."
        return self.predictor.ask(batch.rows, questions) if batch.rows else {}, questions

    def candidate_set(self, *asked: Any) -> CandidateSet:
        """The labels that may be answered: those of a request, or of the table of candidates as it is now. A set is
        kept for further requests until the table changes. `asked` are tasks, and if a request says so candidates,
        labels to exclude and a limit, as [`CandidateSet`] takes them."""
        stamp = None
        if self.candidates is not None:
            try:
                facts = Path(self.candidates).stat()
            except OSError as error:
                raise ServiceError(f"The table of candidates can't be read ({error}): put it back.") from error
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return self._sets(stamp, *asked)

    # ------------------------------------------------------------------------------------------------------- memory

    def _read_customer(self, store: Transaction, customer_id: str, locked: bool = False) -> Any:
        """Takes a customer out of memory, with every stored event; `None` if the store does not have the customer."""
        with self._memory_lock:
            customer = self._customers.pop(customer_id, None)
        try:
            stored = store.customer(customer_id, locked)
            if stored is None:
                return None
            epoch, profile = stored
            rows: Sequence[Any] = []
            if customer is not None and customer.epoch == epoch:
                rows = store.events(customer_id, customer.sequence)
            if customer is None or not rows or rows[0].event_id != customer.event_id:
                # it is new here, or past events were changed, or the store has lost the last one that it had
                customer = StoredCustomer(LiveHistory(self.extractor, profile, customer_id), epoch)
                rows = [None, *store.events(customer_id, 0)]
            if new := rows[1:]:
                customer.history.add([json.loads(row.event) for row in new])
                customer.sequence, customer.event_id = new[-1].sequence, new[-1].event_id
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ServiceError(
                f"{self.store.name} has an event or a profile of customer {customer_id!r} that can't be read "
                f"({error}): restore a backup, or delete the customer and send the events again."
            ) from error
        return customer

    def _keep(self, customers: Mapping[str, StoredCustomer], deletions: int) -> None:
        """Puts customers into memory, unless something was deleted since the store was asked for them."""
        with self._memory_lock:
            if self._deletions == deletions:
                self._customers |= customers
            while len(self._customers) > IN_MEMORY:
                del self._customers[next(iter(self._customers))]
