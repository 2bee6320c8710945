# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The store of the service: the customers' events, in a SQLite file or a PostgreSQL database.

A customer has an `epoch`, a random text that changes whenever past events or the profile change, and a `sequence`, the
number of its latest event. From both, a service that holds a customer in memory sees whether it is still right and
which events it lacks. Every change names the epoch and the sequence that it is based on, and is refused if another
service has changed them, so that several services may share a store.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_mcm.extras import needs
from modeling_mcm.serving.failures import StoreConflict, StoreFailure, StoreMismatch, damaged, failure

FORMAT = "2"  # of the tables below
APPLICATION = "modeling-mcm"
NO_EPOCH, NOTHING = "", 0  # of a customer who is not in the store
MAX_ID = 256
WRITING = "mcm_writing"  # a connection's option: SQLite takes the lock of writers at once


@dataclass(frozen=True)
class StoredCustomer:
    """What a store knows of a customer before the events are read; `sequence` is 0 without events."""

    epoch: str = NO_EPOCH
    sequence: int = NOTHING
    profile: dict[str, Any] | None = None


@dataclass(frozen=True)
class Change:
    """New events of one customer.

    `before` is the customer as it was read before the change, and `events` are ids and canonical JSON of the raw
    events in the order of arrival. A new epoch begins with a `profile`.
    """

    customer_id: str
    before: StoredCustomer
    events: Sequence[tuple[str, str]]
    profile: dict[str, Any] | None = None


def canonical(value: Any) -> str:
    """Writes JSON that is the same for equal values; `ValueError` if it has NaN or infinite numbers."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ValueError("holds NaN or infinity, which JSON does not have: leave the value out") from None


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, which another file at the same path does not have; `None` if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


class EventStore:
    """A SQLite file or a PostgreSQL database with the events of customers.

    Args:
        address (`str`): Path of a SQLite file, which is made if it does not exist, or URL of a database.
        log (`str`): What the events are of: name and columns of the log. Empty: not compared.
        timeout (`float`): Longest time, in seconds, to wait for a lock of another process.

    Raises:
        StoreMismatch: If the store has events of another log, or tables of another program, or the address is none of
            a SQLite file or a PostgreSQL database.
        StoreFailure: If the store is damaged, locked or full, or can't be reached; nothing was changed.
    """

    def __init__(self, address: str, log: str = "", timeout: float = 5.0):
        with needs("serve"):
            import sqlalchemy

        self.sql, self.log, self.timeout = sqlalchemy, log, timeout
        try:
            url = sqlalchemy.make_url(address if "://" in address else f"sqlite:///{address}")
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise StoreMismatch(f"--store is no address of a database ({error}): correct it.") from error
        self._file: tuple[Path, tuple[int, int] | None, bool] | None = None  # path, identity, whether it has a log
        self.name = address if "://" not in address else url.render_as_string(hide_password=True)
        self.is_sqlite = url.drivername == "sqlite"
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        elif not self.is_sqlite or url.database in (None, "", ":memory:") or url.database.startswith("file:"):
            raise StoreMismatch(
                f"--store is {self.name!r}: expected the path of a SQLite file, or postgresql://user@host/database."
            )
        elif not Path(url.database).absolute().parent.is_dir():
            raise StoreMismatch(f"The folder of {self.name} is not there: make it, or give another --store.")
        else:
            with contextlib.suppress(OSError):  # it is its owner's alone, as are the files that SQLite adds
                os.close(os.open(url.database, os.O_CREAT | os.O_EXCL, 0o600))
        waits = {"timeout": timeout} if self.is_sqlite else {"connect_timeout": max(2, round(timeout))}
        self.engine = sqlalchemy.create_engine(url, connect_args=waits, pool_pre_ping=not self.is_sqlite)
        if self.is_sqlite:
            sqlalchemy.event.listen(self.engine, "connect", self._open_sqlite)
            sqlalchemy.event.listen(self.engine, "begin", self._begin_sqlite)
        self._declare()
        try:
            self._claim()
            if self.is_sqlite:  # a log in which readers and a writer do not stop each other
                path, has_log = Path(str(url.database)).absolute(), self._sqlite("journal_mode=WAL") == [("wal",)]
                self._file = path, identity(path), has_log
        except BaseException:
            self.engine.dispose()
            raise

    def _declare(self) -> None:
        sql, tables = self.sql, self.sql.MetaData()
        name, text, number, table = sql.String(MAX_ID), sql.Text, sql.BigInteger, sql.Table

        def column(title: str, kind: Any) -> Any:
            return sql.Column(title, kind, nullable=False)

        def key(title: str, kind: Any = name) -> Any:
            return sql.Column(title, kind, primary_key=True, autoincrement=False)

        self.about = table("mcm_store", tables, key("name"), sql.Column("value", text))
        of_customer = column("epoch", name), column("sequence", number), column("profile", text)
        self.customers = table("mcm_customers", tables, key("customer_id"), *of_customer)
        of_event = column("event_id", name), column("event", text), sql.UniqueConstraint("customer_id", "event_id")
        self.events = table("mcm_events", tables, key("customer_id"), key("sequence", number), *of_event)
        self.tables = tables

    def _open_sqlite(self, connection: Any, record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy says BEGIN itself, below
        for setting in ("synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}").fetchall()

    def _begin_sqlite(self, connection: Any) -> None:
        # A reader that becomes a writer later is refused at once where another wrote between; so writers say it first.
        writing = connection.get_execution_options().get(WRITING)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    def _reading(self) -> contextlib.AbstractContextManager[Any]:
        """A transaction that sees one moment of the store."""
        return self._transaction({} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"})

    def _writing(self) -> contextlib.AbstractContextManager[Any]:
        """A transaction that is kept as a whole, on the disk, or not at all."""
        return self._transaction({WRITING: True})

    @contextlib.contextmanager
    def _transaction(self, options: dict[str, Any]) -> Iterator[Any]:
        with failure(self.name), self.engine.connect().execution_options(**options) as connection, connection.begin():
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(self.timeout * 1000)}")
            try:
                yield connection
            finally:
                self._check_file()

    def _check_file(self) -> None:
        """Raises `StoreFailure` if the SQLite file is no longer at its path: its connections go on without it."""
        if self._file is not None:
            path, opened, has_log = self._file
            if identity(path) != opened or (has_log and identity(path.with_name(f"{path.name}-wal")) is None):
                raise StoreFailure(
                    f"{self.name}, or the -wal file beside it, was removed or replaced while this service ran, and "
                    "nothing of this request was kept: put it back as it was, or start the service again."
                )

    def _claim(self) -> None:
        """Makes the tables, or checks that those there hold events of this log."""
        with self._writing() as connection:
            if self.is_sqlite:
                verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if verdict != "ok":
                    raise damaged(self.name, verdict)
            else:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7061)")  # one makes the tables
            present = set(self.sql.inspect(connection).get_table_names())
            if present and self.about.name not in present and self.is_sqlite:
                raise StoreMismatch(
                    f"{self.name} is a database of something else (tables {', '.join(sorted(present)[:3])}): give "
                    "another --store. Nothing was changed."
                )
            self.tables.create_all(connection)
            rows = connection.execute(self.sql.select(self.about)).all()
            about = dict(rows) or {"application": APPLICATION, "format": FORMAT}
            if self.log and about.setdefault("log", self.log) != self.log:
                raise StoreMismatch(
                    f"{self.name} has events of the log {about['log']}, and this checkpoint reads {self.log}: give a "
                    "checkpoint of that log, or another --store. Nothing was changed."
                )
            if about.get("format") != FORMAT:
                raise StoreMismatch(
                    f"{self.name} has format {about.get('format')}, and this version reads {FORMAT}: use the version "
                    "that wrote it. Nothing was changed."
                )
            connection.execute(self.about.delete())
            connection.execute(self.about.insert(), [{"name": key, "value": value} for key, value in about.items()])

    def _sqlite(self, pragma: str) -> list[Any]:
        """Makes a setting of a SQLite file outside of transactions, and returns what SQLite says."""
        with failure(self.name), contextlib.closing(self.engine.raw_connection()) as connection:
            return connection.execute(f"PRAGMA {pragma}").fetchall()

    def close(self) -> None:
        """Closes the connections; SQLite then moves its write-ahead log into the file."""
        self.engine.dispose()

    def check(self) -> None:
        """Raises `StoreFailure` unless the store can be read."""
        self.count()

    def _customer(self, connection: Any, customer_id: str) -> StoredCustomer:
        where = self.customers.c.customer_id == customer_id
        row = connection.execute(self.sql.select(self.customers).where(where)).one_or_none()
        return StoredCustomer() if row is None else StoredCustomer(row.epoch, row.sequence, json.loads(row.profile))

    def customer(self, customer_id: str) -> StoredCustomer:
        """Reads what the store knows of a customer; the epoch is "" if the customer is unknown."""
        with self._reading() as connection:
            return self._customer(connection, customer_id)

    def count(self) -> int:
        """Counts the customers in the store."""
        with self._reading() as connection:
            return connection.execute(self.sql.select(self.sql.func.count()).select_from(self.customers)).scalar()

    def history(self, customer_id: str, known: StoredCustomer) -> tuple[StoredCustomer, list[dict[str, Any]]]:
        """Reads a customer, and the events that one who knows the customer lacks, in the order of arrival: all events
        where past ones have changed since."""
        with self._reading() as connection:
            customer = self._customer(connection, customer_id)
            after = known.sequence if known.epoch == customer.epoch else NOTHING
            later = (self.events.c.customer_id == customer_id) & (self.events.c.sequence > after)
            statement = self.sql.select(self.events.c.event).where(later).order_by(self.events.c.sequence)
            return customer, [json.loads(text) for text in connection.execute(statement).scalars()]

    def known(self, customer_id: str, event_ids: Sequence[str]) -> dict[str, str]:
        """Reads the canonical JSON of those events that are stored, by event id."""
        condition = (self.events.c.customer_id == customer_id) & self.events.c.event_id.in_(event_ids)
        with self._reading() as connection:
            rows = connection.execute(self.sql.select(self.events.c.event_id, self.events.c.event).where(condition))
            return {row.event_id: row.event for row in rows}

    def append(self, changes: Sequence[Change]) -> list[StoredCustomer]:
        """Stores the events of all changes, or none of them, and returns the customers as they are then.

        Raises:
            StoreConflict: If another service changed one of the customers since `before`; read again and try again.
            StoreFailure: If the store can't be written; nothing was stored.
        """
        with self._writing() as connection:
            return [self._append(connection, change) for change in changes]

    def _append(self, connection: Any, change: Change) -> StoredCustomer:
        before, profile = change.before, change.before.profile or {}
        epoch, sequence = before.epoch, before.sequence + len(change.events)
        if epoch == NO_EPOCH or change.profile is not None:
            epoch, profile = secrets.token_hex(8), profile if change.profile is None else change.profile
        values = {"epoch": epoch, "sequence": sequence, "profile": canonical(profile)}
        try:
            if before.epoch == NO_EPOCH:
                connection.execute(self.customers.insert(), {"customer_id": change.customer_id, **values})
            else:
                where = self.customers.c.customer_id == change.customer_id
                where &= (self.customers.c.epoch == before.epoch) & (self.customers.c.sequence == before.sequence)
                if connection.execute(self.customers.update().where(where), values).rowcount != 1:
                    raise StoreConflict(f"Customer {change.customer_id!r} was changed meanwhile.")
            if change.events:
                numbered = enumerate(change.events, before.sequence + 1)
                rows = [{"sequence": number, "event_id": name, "event": text} for number, (name, text) in numbered]
                rows = [{"customer_id": change.customer_id, **row} for row in rows]
                connection.execute(self.events.insert(), rows)
        except self.sql.exc.IntegrityError as error:
            raise StoreConflict(f"Customer {change.customer_id!r} was changed meanwhile.") from error
        return StoredCustomer(epoch, sequence, profile)

    def delete_customer(self, customer_id: str) -> int:
        """Deletes a customer's events and profile. Returns the number of events; -1 without such a customer."""
        with self._writing() as connection:
            events, deleted = (
                connection.execute(table.delete().where(table.c.customer_id == customer_id)).rowcount
                for table in (self.events, self.customers)
            )
        self._forget_log()
        return events if deleted else -1

    def delete_event(self, customer_id: str, event_id: str) -> bool:
        """Deletes one event. Returns whether there was such an event."""
        with self._writing() as connection:
            where = (self.events.c.customer_id == customer_id) & (self.events.c.event_id == event_id)
            deleted = connection.execute(self.events.delete().where(where)).rowcount
            if deleted:
                changed = self.customers.update().where(self.customers.c.customer_id == customer_id)
                connection.execute(changed, {"epoch": secrets.token_hex(8)})
        self._forget_log()
        return bool(deleted)

    def _forget_log(self) -> None:
        """Empties SQLite's write-ahead log, which still has deleted data, unless a reader uses it."""
        with contextlib.suppress(StoreFailure):
            if self.is_sqlite:
                self._sqlite("wal_checkpoint(TRUNCATE)")
