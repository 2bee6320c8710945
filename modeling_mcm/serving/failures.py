# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The errors of the service. Each has the HTTP status of the answer, and a sentence as its message."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DISK_FULL, LOCK_TIMEOUT = "53100", "55P03"  # of PostgreSQL
SERIALIZATION, DEADLOCK = "40001", "40P01"


class ServiceError(RuntimeError):
    """An error that the service answers with an HTTP status and a message."""

    status = 500


class UnknownCustomer(ServiceError):
    """The store has no event of the customer."""

    status = 404


class EventConflict(ServiceError):
    """An event id was sent again with other contents."""

    status = 409


class Busy(ServiceError):
    """Too many requests of one kind are being answered."""

    status = 503


class StoreFailure(ServiceError):
    """The store can't be read or written at the moment. Nothing of the request was stored."""

    status = 503


class StoreFull(StoreFailure):
    """The store has no room for more events."""

    status = 507


class StoreMismatch(StoreFailure):
    """The store is of another log, another version or another program."""


class StoreConflict(StoreFailure):
    """Another process changed the same customer at the same time. The service tries again by itself."""


@contextmanager
def failure(store: str) -> Iterator[None]:
    """A context that turns every error of a database into a `StoreFailure`; the transaction was rolled back."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        original = getattr(error, "orig", error)
        raise _read_error(original, store, str(original)) from error


def damaged(store: str, words: str) -> StoreFailure:
    """What to say of a file that SQLite can't read."""
    return StoreFailure(
        f"{store} is damaged or no SQLite file ({words}): it was not touched. Copy it aside, then restore a backup, "
        "or read out what is left with `sqlite3 FILE .recover`."
    )


def _read_error(original: Any, store: str, words: str) -> StoreFailure:
    code, state = getattr(original, "sqlite_errorcode", 0) & 0xFF, getattr(original, "sqlstate", None)
    effect = "nothing of this request was kept, and what was acknowledged before is still there"
    if state in (SERIALIZATION, DEADLOCK):
        return StoreConflict(f"{store} was changed by another process meanwhile.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or state == LOCK_TIMEOUT:
        return StoreFailure(f"{store} is locked by another process ({words}): {effect}. Try again in a moment.")
    if code == sqlite3.SQLITE_FULL or state == DISK_FULL:
        return StoreFull(f"{store} has no room left ({words}): {effect}. Free space on its disk, then send it again.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(store, words)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return StoreFailure(f"{store} can't be written ({words}): check the path and the rights. Otherwise {effect}.")
    if code == sqlite3.SQLITE_IOERR:
        return StoreFailure(f"The disk of {store} does not answer ({words}): {effect}.")
    return StoreFailure(f"{store} can't be used now ({' '.join(words.split())}): {effect}.")
