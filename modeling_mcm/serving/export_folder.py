# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The output folder of an export: empty or an earlier export at first, and written when the export is complete."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_mcm.files_mcm import write_json

MARKER = "mcm_export.json"  # says that a folder is an export, of which format, and which files are its own
PARTIAL = ".export.partial"


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
    if others := sorted(path.name for path in folder.iterdir() if path.name not in (*own, MARKER, PARTIAL)):
        raise ValueError(
            f"{folder} is not empty and holds more than an earlier export ({', '.join(others[:3])}"
            f"{' ...' if len(others) > 3 else ''}): choose another --output_dir, or empty that one."
        )


def check_writable(path: Path) -> None:
    """Checks that a file can be written, without leaving a new file.

    Args:
        path (`Path`): The file.

    Raises:
        OSError: If it can't be written.
    """
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
    """A context with an empty folder inside of `folder`, whose files are moved into `folder` if no error is raised.

    Args:
        folder (`Path`): Folder of the export, which is made if it does not exist.
        facts (`dict[str, Any]`): Facts of the export, which are written into the file that marks it.

    Raises:
        ValueError: If the folder holds something else than an export.
        OSError: If it can't be written.
    """
    _check_folder(folder)
    existed, partial = folder.exists(), folder / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise OSError(f"{folder} can't be written ({error.strerror}); choose another --output_dir.") from error
    try:
        yield partial
        earlier = {path.name for path in folder.iterdir()} - {PARTIAL, MARKER}
        files = sorted(path.name for path in partial.iterdir())
        _mark(folder, facts, [*files, *earlier])  # a run that is killed now leaves a folder that is its own
        for name in files:
            (partial / name).replace(folder / name)
        for name in earlier.difference(files):
            (folder / name).unlink()
        _mark(folder, facts, files)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def _mark(folder: Path, facts: dict[str, str], names: list[str]) -> None:
    write_json(folder / MARKER, {**facts, "files": sorted(set(names))}, indent=1)
