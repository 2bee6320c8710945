# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes files whole or not at all, and JSON with them.

A file that is written in place is cut if the disk is full or the process is killed, and its earlier content is lost.
So a part, a temporary folder in the same place, is filled, flushed to the disk and renamed. A process locks its parts
while it lives. What a killed process left is a part without a lock, which the next one removes.
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

LOCK_SUFFIX, PART_SUFFIX = ".lock", ".partial"  # of hidden files and folders, which readers of folders skip
PART_NAME = re.compile(rf"\.(.+)\.[0-9a-f]{{12}}{re.escape(PART_SUFFIX)}")
REPLACED = "replaced"  # what a part sets aside until it is in its place
SHOWN = 3  # number of names that a message shows
# Errors that are due to the target's disk or folder. Other errors may come from reading a source.
PLACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextmanager
def hold_part(place: Path) -> Iterator[Path]:
    """Context manager that makes an empty folder beside a place, to be filled and renamed, and removes it at its end.
    The folder above is made if there is none, and what killed processes left beside the place is removed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place.parent, place.name)
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}{PART_SUFFIX}")
    lock = part.with_suffix(LOCK_SUFFIX)
    try:
        with FileLock(lock):
            part.mkdir()  # when the lock is held, so that no other process sees it without
            try:
                yield part
            finally:
                shutil.rmtree(part, ignore_errors=True)
    finally:
        lock.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes the parts in a folder that no process holds, of all places or of the one with a name, and puts back what
    they had set aside."""
    for part in [*folder.glob(f".*{PART_SUFFIX}")]:
        match = PART_NAME.fullmatch(part.name)
        if match is None or name not in (None, match[1]):
            continue
        lock, place = part.with_suffix(LOCK_SUFFIX), folder / match[1]
        try:
            with FileLock(lock, timeout=0):
                if (part / REPLACED).exists() and not place.exists():
                    (part / REPLACED).rename(place)
                shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)
        except OSError:  # another process holds it, or it is of another user
            continue


def flush(path: Path) -> None:
    """Has a file or folder written to the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Context manager that writes a file whole or not at all.

    It yields the path of a temporary file in the same folder, which is made if there is none. When the block ends,
    the temporary file is flushed to the disk and renamed to `path`. After an error the earlier file is unchanged and
    the temporary file is removed. If `path` is a symbolic link, the file that it points to is written. An existing
    file keeps its permissions. Raises `OSError` if the disk is full or the file may not be written; the message names
    the path.
    """
    place = Path(os.path.realpath(path))
    with name_place(path), hold_part(place) as part:
        yield part / place.name
        if place.exists():
            shutil.copymode(place, part / place.name)
        flush(part / place.name)
        os.replace(part / place.name, place)


@contextmanager
def name_place(path: str | Path) -> Iterator[None]:
    """Context manager around what writes to a place: its errors of the disk or the folder say so, and name it."""
    try:
        yield
    except OSError as error:
        if error.errno in PLACE_ERRORS:
            before = "what was there before is as it was" if Path(path).exists() else "nothing is left of it"
            raise OSError(
                error.errno, f"{path} can't be written ({error.strerror}), and {before}: make room, or choose another"
            ) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see [`atomic_write`]."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: object, indent: int | None = 2, **options: Any) -> None:
    """Writes a JSON file, whole or not at all, with options of `json.dumps`; see [`atomic_write`]."""
    write_text(path, json.dumps(values, indent=indent, **options) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file in UTF-8. Raises `ValueError` if it holds no JSON, or is nested too deeply."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def some(names: list[str]) -> str:
    """The first three names as text, with "..." if there are more."""
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
