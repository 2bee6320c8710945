# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One writer at a time: a file lock for each data set, log and folder of predictions that is changed in its place.

Without a lock, two deletions at the same time would each write back what the other one has just deleted. A lock ends
with its process, however the process ends. The file of a lock is empty, has a name that readers of folders skip, and
is removed with the lock. Windows has no such locks, so nothing keeps two writers apart there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transformers.utils import logging

from modeling_mcm.data.dataset import MANIFEST_FILE

if os.name == "posix":
    import fcntl

logger = logging.get_logger(__name__)
LOCK_SUFFIX = ".lock"
INSIDE = f".changes{LOCK_SUFFIX}"


def _lock_file(path: Path) -> Path:
    """Path of the lock: beside a data set, which is replaced as a folder, and inside the folder of anything else."""
    if (path / MANIFEST_FILE).is_file() or not path.exists():
        return path.with_name(f".{path.name}{LOCK_SUFFIX}")
    return (path if path.is_dir() else path.parent) / INSIDE


def note_of(directory: Path) -> Path:
    """Finds the path of the note in which a deletion says what it changed in the log and not yet in a data set.

    Args:
        directory (`Path`): folder of the data set.
    """
    return directory.with_name(f".{directory.name}.deletion.json")


@contextmanager
def locked(*paths: Path) -> Iterator[None]:
    """Holds the locks of some data sets, logs and predictions, and waits for other processes that hold one of them.

    Args:
        paths (`Path`): what is changed, with all symbolic links resolved.

    Raises:
        OSError: if the file of a lock can't be made.
    """
    with ExitStack() as locks:
        for path in sorted(
            {_lock_file(path) for path in paths}
        ):  # all processes use this order, so none waits forever
            if os.name == "posix":
                locks.enter_context(_one_lock(path))
        yield


@contextmanager
def _one_lock(path: Path) -> Iterator[None]:
    while True:
        with open(path, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning(f"Another run changes what {path} stands for; waiting for its end.")
                fcntl.flock(file, fcntl.LOCK_EX)
            # The process that held the lock removed its file, so no other process may find this open file.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
