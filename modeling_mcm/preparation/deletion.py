# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The deletion of customers from everywhere as one step: it is refused before anything changes, or it is finished.

A plan reads all named places, and raises an error where something stands against the deletion. Then the log, the data
sets and the predictions are written, under locks. A run may be killed between a log and its data set. So before each
file of the log is replaced, a note beside the data set says which digest replaces which. With the note, the same
command finishes when it is run again, and an update knows the new files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_mcm.data.dataset import CUSTOMER, PreparedManifest, check_shard
from modeling_mcm.events_mcm import to_text
from modeling_mcm.files_mcm import file_digest, write_json
from modeling_mcm.preparation.changes import read_note
from modeling_mcm.preparation.forget import find_rows, forget_in_log, forget_in_prepared, log_files, open_parquet


@dataclass
class Places:
    """The places from which customers are deleted. Every path is one without symbolic links."""

    data: list[Path]  # folders of prepared data sets
    predictions: list[Path]  # folders or files
    events: list[Path]  # files or folders that the data sets were made from: log and profile

    @classmethod
    def resolved(cls, data: Iterable[str], predictions: Iterable[str], events: Iterable[str]) -> Places:
        """Makes the places from the paths that a person names, and follows their symbolic links."""
        return cls(*([Path(path).resolve() for path in paths] for paths in (data, predictions, events)))

    def all(self) -> list[Path]:
        """Lists all places."""
        return [*self.data, *self.predictions, *self.events]

    def customer_column(self) -> str:
        """Finds the log's column that holds customers, which the schema of the data sets names."""
        columns = sorted({PreparedManifest.load(folder).event_schema.customer for folder in self.data})
        if self.events and len(columns) > 1:
            raise ValueError(f"The data sets read the customers from the columns {', '.join(columns)}: one at a time.")
        return columns[0] if columns else CUSTOMER


@dataclass(frozen=True)
class Whereabouts:
    """In which form the ids of customers stand in the places."""

    there: set[str]  # ids that are in at least one place
    absent: dict[str, list[str]]  # ids that are in none, each with those that differ from it only in case or spaces

    def absent_lines(self, only_near: bool = False) -> list[str]:
        """Writes a line for each id that is in no place."""
        hints = {name: " or ".join(map(repr, near)) for name, near in self.absent.items() if near or not only_near}
        return [f"{name!r}{f'; is {hint} meant?' if hint else ''}" for name, hint in hints.items()]


def predictions_files(path: Path) -> list[Path]:
    """Finds the Parquet files of predictions."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path.")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no Parquet file.")
    return files


def look_for(ids: Collection[str], places: Places, column: str) -> Whereabouts:
    """Reads the ids of every place. It raises an error where something is wrong with a place, before anything changes.
    Spaces around an id count only where the customers' own ids have them."""
    exact: set[str] = set()
    near: dict[str, set[str]] = {_plain(name): set() for name in ids}
    for path, name in _list_columns(places, column):
        for value in _read_values(path, name):
            text = to_text(value)
            if text is not None and (plain := _plain(text)) in near:
                near[plain].add(text)
                exact.add(text)
    there, absent = set(), {}
    for name in ids:
        if match := next((spelling for spelling in (name, name.strip()) if spelling in exact), None):
            there.add(match)
        else:
            absent[name] = sorted(near[_plain(name)])
    return Whereabouts(there, absent)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _read_values(path: Path, column: str) -> Iterator[Any]:
    with open_parquet(path, column) as file:
        for group in range(file.num_row_groups):
            try:
                values = file.read_row_group(group, [column])[column].unique()
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} is damaged ({error}); remove it or write it again.") from error
            yield from values.to_pylist()


def _list_columns(places: Places, column: str) -> Iterator[tuple[Path, str]]:
    for directory in places.data:
        for shard in PreparedManifest.load(directory).shards:
            check_shard(directory / shard["file"], shard, verify=True)
            yield directory / shard["file"], CUSTOMER
    for folder in places.predictions:
        yield from ((path, CUSTOMER) for path in predictions_files(folder))
    for log in places.events:
        yield from ((path, column) for path in log_files(log))


class DeletionNote:
    """What a deletion notes beside a data set while the data set does not fit its log: the file `.NAME.deletion.json`.
    The note holds digests of files and the number of the process, and no ids of customers."""

    def __init__(self, directory: Path):
        self.directory, self.path = directory, read_note(directory)
        self.digests: dict[str, str] = {}  # by old digest of a file of the log its new digest

    def resume(self) -> bool:
        """Reads the note of a run that was killed, if there is one, and tidies what it left beside the data set.
        Returns whether there was a note."""
        if not self.path.is_file():
            return False
        note = json.loads(self.path.read_text(encoding="utf-8"))
        self.digests = note["files"]
        left = self.directory.with_name(f".{self.directory.name}.{note['process']}")
        replaced, partial = (left.with_name(f"{left.name}.{state}") for state in ("replaced", "partial"))
        if replaced.exists() and not self.directory.exists():
            replaced.rename(self.directory)
        for folder in (replaced, partial):
            shutil.rmtree(folder, ignore_errors=True)
        return True

    def add(self, digests: dict[str, str]) -> None:
        """Notes that files of the log are about to be replaced."""
        settled = {old: digests.get(new, new) for old, new in self.digests.items()}
        self.digests = settled | digests
        write_json(self.path, {"process": os.getpid(), "files": self.digests})

    def close(self) -> None:
        """Removes the note, when everything is deleted and the data set fits its log."""
        self.path.unlink(missing_ok=True)


def delete_from_log_and_data(
    customers: Collection[str], places: Places, column: str, notes: Sequence[DeletionNote]
) -> Iterator[tuple[Path, int, int]]:
    """Deletes customers from the log, then from the data sets made of it. Yields a place, the number of rows (of a
    log) or customers (of a data set) that were deleted, and the number of files of a log that changed."""

    def record(digests: dict[str, str]) -> None:
        for note in notes:
            note.add(digests)

    for directory in places.data:  # before the log changes
        find_rows(directory, PreparedManifest.load(directory), customers)
    is_resumed = any(note.digests for note in notes)
    record({})
    for log in places.events:
        rows, changed = forget_in_log(log, customers, column, record)
        yield log, rows, len(changed)
    # Digests of files that a killed run noted and did not replace.
    unchanged = {file_digest(path) for log in places.events for path in log_files(log)} if is_resumed else set()
    for directory, note in zip(places.data, notes, strict=True):
        digests = {old: new for old, new in note.digests.items() if old not in unchanged}
        yield directory, forget_in_prepared(directory, customers, digests), 0
