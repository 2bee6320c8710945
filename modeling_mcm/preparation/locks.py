# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One writer at a time: a file lock for each data set, log and folder of predictions that is changed in its place.

Without it two deletions at once would each write what the other one has just taken out. A lock ends with its process,
however that ends. Its file is empty, has a name that readers of folders pass over, and goes with the lock. Windows has
no such locks: there nothing keeps two writers apart.
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


def lock_file(path: Path) -> Path:
    """Where the lock of something lies: beside a data set, which is replaced as a folder; inside any other folder.

    Args:
        path (`Path`): The data set, a folder of files, or a file, whose lock is that of its folder.
    """
    if (path / MANIFEST_FILE).is_file() or not path.exists():
        return path.with_name(f".{path.name}{LOCK_SUFFIX}")
    return (path if path.is_dir() else path.parent) / INSIDE


def note_of(directory: Path) -> Path:
    """Where a deletion notes what it has changed in the log and not yet in a data set; see `deletion.py`."""
    return directory.with_name(f".{directory.name}.deletion.json")


@contextmanager
def locked(*paths: Path) -> Iterator[None]:
    """Holds the locks of some data sets, logs and predictions, and waits for whoever holds one of them.

    Args:
        paths (`Path`): Of what is changed, with all symbolic links resolved.

    Raises:
        OSError: The lock's file can't be made.
    """
    with ExitStack() as held:
        for path in sorted({lock_file(path) for path in paths}):  # in one order for all, so that nobody waits forever
            if os.name == "posix":
                held.enter_context(_held(path))
        yield


@contextmanager
def _held(path: Path) -> Iterator[None]:
    while True:
        with open(path, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning(f"Another run changes what {path} stands for; waiting for its end.")
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it took the file away, so what was waited for may be a file that nobody else finds.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
