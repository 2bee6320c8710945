# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The output folder of an export: empty or an earlier export at first, and replaced when the export is complete."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modeling_mcm.files_mcm import atomic_folder, some, write_json

MARKER = "mcm_export.json"  # says that a folder is an export, of which format, and which files are its own


def _check_folder(folder: Path) -> None:
    """Raises `ValueError` unless a folder is new, empty or an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder as --output_dir.")
    try:
        own = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        own = []
    if others := sorted(path.name for path in folder.iterdir() if path.name not in (*own, MARKER)):
        raise ValueError(
            f"{folder} is not empty and holds more than an earlier export ({some(others)}): choose another "
            "--output_dir, or empty that one."
        )


def check_writable(path: Path) -> None:
    """Raises `OSError` if a file can't be written. It leaves no new file."""
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise OSError(f"{path} can't be written ({error.strerror}); choose another place for it.") from error
    if not existed:
        path.unlink()


@contextmanager
def export_folder(folder: Path, **facts: str) -> Iterator[Path]:
    """A context with an empty folder that replaces `folder` at the end, if no error is raised.

    Args:
        folder (`Path`): Folder of the export.
        facts (`str`): Facts of the export, which are written into the file that marks it.

    Raises:
        ValueError: If the folder holds something else than an export.
        OSError: If it can't be written.
    """
    _check_folder(folder)
    with ExitStack() as stack:
        try:
            written, _ = stack.enter_context(atomic_folder(folder))
        except OSError as error:
            raise OSError(f"{folder} can't be written ({error.strerror}); choose another --output_dir.") from error
        yield written
        write_json(written / MARKER, {**facts, "files": sorted(path.name for path in written.iterdir())}, indent=1)
