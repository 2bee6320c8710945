# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The store of the service: the customers' events, in a SQLite file or a PostgreSQL database.

A customer has an `epoch`, a random text that changes whenever past events or the profile change, and events with
ascending `sequence`s. From both, a service that holds a customer in memory sees whether it is still right and which
events it lacks. A writer locks its customers first, so that several services may share a store.
"""

import contextlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modeling_mcm.events_mcm import RawEvent
from modeling_mcm.extras import needs

with needs("serve"):
    import sqlalchemy as sql

FORMAT = "3"  # of the tables
MAX_ID = 256
PROBE = "\x1f"  # a customer whom no request can name
WRITING = "mcm_writing"  # a connection's option: SQLite takes the lock of writers at once
OWN = "mcm_store", "mcm_customers", "mcm_events"
TABLES = """
CREATE TABLE IF NOT EXISTS mcm_store (name VARCHAR(256) PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS mcm_customers (
    customer_id VARCHAR(256) PRIMARY KEY, epoch VARCHAR(256) NOT NULL, profile TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS mcm_events (
    customer_id VARCHAR(256) NOT NULL, sequence BIGINT NOT NULL, event_id VARCHAR(256) NOT NULL, event TEXT NOT NULL,
    PRIMARY KEY (customer_id, sequence), UNIQUE (customer_id, event_id))
"""
# The longest time that a transaction of PostgreSQL waits for a lock; and what it acknowledges is on the disk, whatever
# the server's default is
SETTINGS = """
SELECT set_config('lock_timeout', :timeout, true),
    set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)
"""
# Makes or finds a customer, whom nobody else changes until the transaction ends
LOCK = """
INSERT INTO mcm_customers (customer_id, epoch, profile) VALUES (:customer_id, :epoch, '{}')
ON CONFLICT (customer_id) DO UPDATE SET customer_id = excluded.customer_id RETURNING epoch, profile
"""

KEPT = "nothing of this request was kept, and what was acknowledged before is still there"
# What errors mean, by SQLite's codes and PostgreSQL's states; and the status of the answer
MEANINGS = (
    (
        {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, "55P03"},
        "is locked by another process",
        f"{KEPT}. Try again in a moment",
        503,
    ),
    (
        {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, "53100"},
        "has no room left",
        f"{KEPT}. Free space on its disk, then send it again",
        507,
    ),
    (
        {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB},
        "is damaged or no SQLite file",
        "it was not touched. Copy it aside, then restore a backup, or read out what is left with `sqlite3 FILE "
        ".recover`",
        503,
    ),
    (
        {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, "25006", "42501"},
        "can't be written",
        f"check the path and the rights. Otherwise {KEPT}",
        503,
    ),
)


class ServiceError(RuntimeError):
    """An error that the service answers with an HTTP status and a message. By default nothing of the request was
    stored, and it may be tried again (503)."""

    def __init__(self, message: str, status: int = 503):
        super().__init__(message)
        self.status = status


def canonical(value: object) -> str:
    """Writes JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class Transaction:
    """Reads and changes customers, all in one snapshot of the store; kept as a whole, on the disk, or not at all."""

    def __init__(self, connection: sql.Connection):
        self.connection = connection

    def run(self, statement: str, *rows: Mapping[str, object]) -> sql.CursorResult:
        """Executes SQL with the values of a row, or once for each of several rows."""
        text = sql.text(statement)
        if "IN :" in statement:
            text = text.bindparams(sql.bindparam("event_ids", expanding=True))
        return self.connection.execute(text, rows[0] if len(rows) == 1 else list(rows) or None)

    def customer(self, customer_id: str, locked: bool = False) -> tuple[str, RawEvent] | None:
        """Reads epoch and profile of a customer, None if there is none. A customer that is to be changed must be
        locked, and is made if there is none."""
        statement = LOCK if locked else "SELECT epoch, profile FROM mcm_customers WHERE customer_id = :customer_id"
        values = {"customer_id": customer_id} | ({"epoch": secrets.token_hex(8)} if locked else {})
        row = self.run(statement, values).one_or_none()
        return row and (row.epoch, json.loads(row.profile))

    def events(self, customer_id: str, first: int) -> Sequence[sql.Row]:
        """Reads `sequence`, `event_id` and `event` of a customer's events from a sequence on, in the order of
        arrival."""
        statement = (
            "SELECT sequence, event_id, event FROM mcm_events WHERE customer_id = :customer_id "
            "AND sequence >= :first ORDER BY sequence"
        )
        return self.run(statement, {"customer_id": customer_id, "first": first}).all()

    def known(self, customer_id: str, event_ids: Sequence[str]) -> dict[str, str]:
        """Reads the canonical JSON of those events that are stored, by event id."""
        statement = (
            "SELECT event_id, event FROM mcm_events WHERE customer_id = :customer_id AND event_id IN :event_ids"
        )
        return dict(map(tuple, self.run(statement, {"customer_id": customer_id, "event_ids": list(event_ids)})))

    def append(self, customer_id: str, after: int, events: Mapping[str, RawEvent]) -> None:
        """Stores new events by id, after a sequence, of a locked customer."""
        rows = [
            {"customer_id": customer_id, "sequence": number, "event_id": event_id, "event": canonical(event)}
            for number, (event_id, event) in enumerate(events.items(), after + 1)
        ]
        self.run("INSERT INTO mcm_events VALUES (:customer_id, :sequence, :event_id, :event)", *rows)

    def set_profile(self, customer_id: str, profile: RawEvent) -> str:
        """Replaces the profile of a locked customer, and returns the new epoch."""
        values = {"customer_id": customer_id, "profile": canonical(profile), "epoch": secrets.token_hex(8)}
        self.run(
            "UPDATE mcm_customers SET epoch = :epoch, profile = :profile WHERE customer_id = :customer_id", values
        )
        return values["epoch"]


class EventStore:
    """A SQLite file or a PostgreSQL database with the events of customers.

    Args:
        address (`str`): Path of a SQLite file, which is made if it does not exist, or URL of a database.
        log (`str`): What the events are of: name and columns of the log. Empty: not compared.
        timeout (`float`): Longest time, in seconds, to wait for a lock of another process.

    Raises:
        ServiceError: If the store has events of another log, or tables of another program, or the address is none of
            a SQLite file or a PostgreSQL database; if it is damaged, locked or full, or can't be reached. Nothing was
            changed.
    """

    def __init__(self, address: str, log: str = "", timeout: float = 5.0):
        self.log, self.timeout, self._turn = log, timeout, threading.Lock()
        try:
            url = sql.make_url(address if "://" in address else f"sqlite:///{address}")
        except (sql.exc.ArgumentError, ValueError) as error:
            raise ServiceError(f"--store is no address of a database ({error}): correct it.") from error
        self._file = None  # path, identity, whether it has a log
        self.name = address if "://" not in address else url.render_as_string(hide_password=True)
        self.is_sqlite, options = url.drivername == "sqlite", {}
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
            options = {"connect_args": {"connect_timeout": max(2, round(timeout))}, "pool_pre_ping": True}
        elif not self.is_sqlite or url.database in (None, "", ":memory:") or url.database.startswith("file:"):
            raise ServiceError(
                f"--store is {self.name!r}: expected the path of a SQLite file, or postgresql://user@host/database."
            )
        elif not Path(url.database).absolute().parent.is_dir():
            raise ServiceError(f"The folder of {self.name} is not there: make it, or give another --store.")
        else:
            # SQLAlchemy says BEGIN itself, below
            options = {"connect_args": {"timeout": timeout, "isolation_level": None}}
            with contextlib.suppress(OSError):  # it is its owner's alone, as are the files that SQLite adds
                os.close(os.open(url.database, os.O_CREAT | os.O_EXCL, 0o600))
        self.engine = sql.create_engine(url, **options)
        if self.is_sqlite:
            sql.event.listen(self.engine, "connect", self._open_sqlite)
            sql.event.listen(self.engine, "begin", self._begin_sqlite)
        try:
            self._claim()
            if self.is_sqlite:
                # With a log readers and a writer do not stop each other; a full disk has no room for one.
                with contextlib.suppress(ServiceError):
                    self._sqlite("journal_mode=WAL")
                self.count()  # opens the log, which no other service can then remove
                path = Path(str(url.database)).absolute()
                self._file = path, _identity(path), _identity(_log_path(path)) is not None
        except BaseException:
            self.engine.dispose()
            raise

    def _open_sqlite(self, connection: sqlite3.Connection, record: object) -> None:
        for setting in ("synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}").fetchall()

    def _begin_sqlite(self, connection: sql.Connection) -> None:
        # A reader that becomes a writer later is refused at once where another wrote between; so writers say it first.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITING) else "BEGIN")

    @contextlib.contextmanager
    def transaction(self, writing: bool = False) -> Iterator[Transaction]:
        """A transaction that ends with the context. Raises [`ServiceError`] for every error of the database, after
        which nothing of the transaction is kept."""
        options: dict[str, object] = {WRITING: writing}
        if not self.is_sqlite and not writing:  # SQLite's readers see one snapshot anyway
            options["isolation_level"] = "REPEATABLE READ"
        with (
            self._take_turn(writing),
            self._failure(),
            self.engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            store = Transaction(connection)
            if not self.is_sqlite:
                store.run(SETTINGS, {"timeout": f"{round(self.timeout * 1000)}ms"})
            try:
                yield store
            finally:
                self._check_file()

    @contextlib.contextmanager
    def _take_turn(self, writing: bool) -> Iterator[None]:
        """Has SQLite's writers of this process wait for each other: at a lock of the file SQLite sleeps and tries
        again, for seconds if it is unlucky."""
        is_waiting = writing and self.is_sqlite
        if is_waiting and not self._turn.acquire(timeout=self.timeout):
            raise _explain({sqlite3.SQLITE_BUSY}, self.name, "another request writes")
        try:
            yield
        finally:
            if is_waiting:
                self._turn.release()

    @contextlib.contextmanager
    def _failure(self) -> Iterator[None]:
        try:
            yield
        except (sql.exc.DBAPIError, sqlite3.Error) as error:
            cause = getattr(error, "orig", error)
            code = getattr(cause, "sqlite_errorcode", 0)
            codes = {code, code & 0xFF, getattr(cause, "sqlstate", None)}
            raise _explain(codes, self.name, " ".join(str(cause).split())) from error

    def _check_file(self) -> None:
        """Raises `ServiceError` if the SQLite file is no longer at its path: its connections go on without it."""
        if self._file is not None:
            path, opened, has_log = self._file
            if _identity(path) != opened or (has_log and _identity(_log_path(path)) is None):
                raise ServiceError(
                    f"{self.name}, or the -wal file beside it, was removed or replaced while this service ran, and "
                    "nothing of this request was kept: put it back as it was, or start the service again."
                )

    def _claim(self) -> None:
        """Makes the tables, or checks that those there hold events of this log."""
        with self.transaction(writing=True) as store:
            if self.is_sqlite:
                if (verdict := store.run("PRAGMA quick_check(1)").scalar_one()) != "ok":
                    raise _explain({sqlite3.SQLITE_CORRUPT}, self.name, verdict)
            else:
                store.run("SELECT pg_advisory_xact_lock(7061)")  # one makes the tables
            inspector = sql.inspect(store.connection)
            own = [name for name in OWN if inspector.has_table(name)]  # tables and views
            present = {*own, *inspector.get_table_names()} if self.is_sqlite else own
            if present and "mcm_store" not in present:
                raise ServiceError(
                    f"{self.name} is a database of something else (tables {', '.join(sorted(present)[:3])}): give "
                    "another --store. Nothing was changed."
                )
            for statement in TABLES.split(";"):
                store.run(statement)
            stored = dict(map(tuple, store.run("SELECT name, value FROM mcm_store")))
            about = stored.copy() or {"format": FORMAT}
            if self.log and about.setdefault("log", self.log) != self.log:
                raise ServiceError(
                    f"{self.name} has events of the log {about['log']}, and this checkpoint reads {self.log}: give a "
                    "checkpoint of that log, or another --store. Nothing was changed."
                )
            if about.get("format") != FORMAT:
                raise ServiceError(
                    f"{self.name} has format {about.get('format')}, and this version reads {FORMAT}: use the version "
                    "that wrote it. Nothing was changed."
                )
            # Nothing is written anew: a store that is known can be opened on a full disk.
            if values := [{"name": name, "value": about[name]} for name in about.keys() - stored.keys()]:
                store.run("INSERT INTO mcm_store VALUES (:name, :value)", *values)

    def _sqlite(self, *pragmas: str) -> None:
        """Makes settings of a SQLite file outside of transactions."""
        with self._failure(), contextlib.closing(self.engine.raw_connection()) as connection:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}").fetchall()

    def close(self) -> None:
        """Closes the connections. The last service moves SQLite's write-ahead log into the file, which can then be
        opened on a full disk: a log needs room beside it."""
        self.engine.dispose()
        if self._file is not None and _identity(self._file[0]) == self._file[1]:
            with contextlib.suppress(ServiceError):  # another service has it open
                self._sqlite("busy_timeout=0", "journal_mode=DELETE")
            self.engine.dispose()

    def check(self) -> None:
        """Raises [`ServiceError`] unless events can be read and written. Nothing is kept of what this tries."""
        with self.transaction(writing=True) as store:
            store.customer(PROBE, locked=True)
            store.append(PROBE, 0, {PROBE: {}})
            store.connection.rollback()

    def count(self) -> int:
        """Counts the customers in the store."""
        with self.transaction() as store:
            return store.run("SELECT COUNT(*) FROM mcm_customers").scalar_one()

    def delete_customer(self, customer_id: str) -> int:
        """Deletes a customer's events and profile, and returns the number of events. From then on all answers are
        those for a customer who never came; 404 without such a customer."""
        values = {"customer_id": customer_id}
        with self.transaction(writing=True) as store:
            if not store.run("DELETE FROM mcm_customers WHERE customer_id = :customer_id", values).rowcount:
                raise ServiceError(f"No customer {customer_id!r} is known, so there is nothing to delete.", 404)
            events = store.run("DELETE FROM mcm_events WHERE customer_id = :customer_id", values).rowcount
        self._forget_log()
        return events

    def delete_event(self, customer_id: str, event_id: str) -> None:
        """Deletes one event; from then on all answers are those for a customer without the event."""
        values = {"customer_id": customer_id, "event_id": event_id, "epoch": secrets.token_hex(8)}
        with self.transaction(writing=True) as store:
            store.run("UPDATE mcm_customers SET epoch = :epoch WHERE customer_id = :customer_id", values)
            where = "customer_id = :customer_id AND event_id = :event_id"
            if not store.run(f"DELETE FROM mcm_events WHERE {where}", values).rowcount:
                raise ServiceError(f"Customer {customer_id!r} has no event {event_id!r}: nothing was deleted.", 404)
        self._forget_log()

    def _forget_log(self) -> None:
        """Empties SQLite's write-ahead log, which still has deleted data, unless a reader uses it."""
        with contextlib.suppress(ServiceError):
            if self.is_sqlite:
                self._sqlite("wal_checkpoint(TRUNCATE)")


def _log_path(path: Path) -> Path:
    """SQLite's write-ahead log of a file."""
    return path.with_name(f"{path.name}-wal")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, which another file at the same path does not have; `None` if there is none."""
    with contextlib.suppress(OSError):
        facts = path.stat()
        return facts.st_dev, facts.st_ino
    return None


def _explain(codes: set, store: str, words: str) -> ServiceError:
    """What an error of a database means to a client."""
    for known, what, advice, status in MEANINGS:
        if codes & known:
            return ServiceError(f"{store} {what} ({words}): {advice}.", status)
    return ServiceError(f"{store} can't be used now ({words}): {KEPT}.")
