# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Folders that are written whole or not at all, locks on folders, and digests of files: what commands need."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.utils import logging

from .files_mcm import LOCK_SUFFIX, REPLACED, flush, hold_part

logger = logging.get_logger(__name__)


class RunError(ValueError):
    """A run can't start. The message says why, and what to do."""


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """Context manager that writes a folder whole or not at all.

    When the block ends, the filled folder replaces `path`. After an error `path` is as it was. If `path` is a symbolic
    link, the folder that it points to is replaced.

    Yields:
        `tuple[Path, Path]`: an empty folder to fill, and a scratch folder, which is removed at the end.

    Raises `OSError` if a folder can't be made or renamed.
    """
    place = Path(path).resolve()
    with hold_part(place) as part:
        data, scratch, replaced = (part / name for name in ("data", "scratch", REPLACED))
        data.mkdir()
        scratch.mkdir()
        yield data, scratch
        for file in [*filter(Path.is_file, data.rglob("*")), data]:
            try:
                flush(file)
            except OSError as error:
                raise OSError(error.errno, f"{file} can't be written ({error.strerror}): make room.") from error
        try:
            if place.exists():
                place.rename(replaced)
            data.rename(place)
        finally:
            if replaced.exists() and not place.exists():
                replaced.rename(place)


@contextmanager
def locked(*paths: Path, wait: bool = True) -> Iterator[None]:
    """Context manager for changes of files or folders, which keeps out other processes that change the same. A lock
    ends with its process, however that ends, and forked processes do not keep it. The lock of a prepared data set,
    which is replaced as a folder, is beside it. Any other lock is inside its folder. Raises `OSError` if the file of a
    lock can't be made. Raises `filelock.Timeout` if another process holds a lock, and `wait` is false."""
    with ExitStack() as locks:
        for path in sorted({_find_lock(path) for path in paths}):  # one order for all, so that none waits forever
            if wait and path.exists():
                logger.info(f"Waiting until no other run changes what {path} locks.")
            locks.enter_context(FileLock(path, timeout=-1 if wait else 0))
            # Before the lock is released, so that a process that has the removed file open takes a new one
            locks.callback(path.unlink, missing_ok=True)
        yield


def _find_lock(path: Path) -> Path:
    if (path / "manifest.json").is_file() or not path.exists():
        return path.with_name(f".{path.name}{LOCK_SUFFIX}")
    return (path if path.is_dir() else path.parent) / f".changes{LOCK_SUFFIX}"


@contextmanager
def lock_output(folder: Path) -> Iterator[None]:
    """Context manager that makes an output folder, and keeps out other runs that write into it. Raises [`RunError`] if
    there is one, or the folder can't be written to."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, wait=False))
        except Timeout:
            words = "wait for its end, or give another output_dir."
            raise RunError(f"Another run writes into {folder}: {words}") from None
        except OSError as error:
            raise RunError(f"{folder} can't be written to ({error.strerror}): give another output_dir.") from error
        yield


def file_digest(path: str | Path) -> str:
    """SHA-256 digest of a file's bytes, which are read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
