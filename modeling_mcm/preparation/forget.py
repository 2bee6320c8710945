# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers who ask to be forgotten are deleted from everywhere as one step: it is refused before anything changes, or
it is finished. Then every file is read again, to see whether any are left.

A plan reads all named places, and raises an error where something stands against the deletion. Then the log, the data
sets and the predictions are written, under locks. A file takes its place when it is whole, so a run that is killed
leaves each file or data set either as it was or finished. It may be killed between a log and its data set. So before
each file of the log is replaced, a note beside the data set says which digest replaces which. With the note, the same
command finishes when it is run again.

A symbolic link stays, and the file that it names is written. What was counted over customers is counted again:
`popularity.parquet`, and the manifest's `measures` and counts. Those of the log's rows (`rows`, `duplicates` and what
was dropped) stay those of the preparation.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_mcm.data.cases import count_cases
from modeling_mcm.data.dataset import (
    CUSTOMER,
    FEATURE_EXTRACTOR_FOLDER,
    MANIFEST_FILE,
    PAGE_FILE,
    PAGE_NOTE,
    POPULARITY_FILE,
    PreparedManifest,
    check_shard,
    check_shards,
    write_table,
)
from modeling_mcm.events_mcm import check_columns, to_text
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import LOCK_SUFFIX, atomic_folder, atomic_write, file_digest, write_json
from modeling_mcm.preparation.files import detect_kind
from modeling_mcm.processing_mcm import MCMFeatureExtractor

with needs("data"):
    from modeling_mcm.preparation.engine import link, open_engine
    from modeling_mcm.preparation.rows import (
        count_events,
        mark_targets,
        measure,
        popularity,
        shard_events,
        subtracted,
        write_shard,
    )
    from modeling_mcm.preparation.vocabulary import build_vocabularies


def _is_theirs(column: pa.ChunkedArray, customers: Collection[str]) -> pa.ChunkedArray:
    """Whether each row belongs to one of the customers; ids are compared as texts, as preparation writes them."""
    if pa.types.is_dictionary(column.type):  # such as a category of pandas
        column = column.cast(column.type.value_type)
    values = column.unique()
    matches = [to_text(value) in customers for value in values.to_pylist()]
    return pc.is_in(column, values.filter(pa.array(matches, pa.bool_())))


def _list_files(path: Path) -> list[Path]:
    """The files of a folder at any depth, or the file itself, each once and with symbolic links followed."""
    path = path.resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path.")
    if not path.is_dir():
        return [path]
    files, entered = set(), set()
    for folder, folders, names in os.walk(path, followlinks=True):
        entered.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if os.path.realpath(Path(folder, name)) not in entered]
        files |= {Path(folder, name).resolve() for name in names}
    return sorted(files)


def log_files(log: Path) -> list[Path]:
    """Lists the Parquet files of a log."""
    files = _list_files(log)
    kinds = {path: kind for path in files if (kind := detect_kind(path.name))}
    if texts := [path for path, kind in kinds.items() if kind != "parquet"]:
        raise ValueError(
            f"{texts[0]} is a text file, and customers are deleted from Parquet files alone: nothing was changed. "
            "Take them out of it yourself and leave it out here, or write the log as Parquet."
        )
    if not log.is_dir():
        return files
    return [path for path, kind in kinds.items() if kind == "parquet"]


def open_parquet(path: Path, column: str) -> pq.ParquetFile:
    """Opens a Parquet file that must have a column."""
    try:
        columns = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}); remove it or write it again.") from error
    fix = ""
    if any(part.startswith(f"{column}=") for part in path.parts):
        fix = f"The folders {column}=... name the customers: remove theirs yourself, and leave the log out here."
    check_columns(columns, [column], f"{path} has", fix)
    return pq.ParquetFile(path)


def forget_in_file(
    path: Path,
    customers: Collection[str],
    column: str = CUSTOMER,
    before_replacing: Callable[[Path], Any] | None = None,
) -> int:
    """Writes a Parquet file again without the rows of some customers, if any, and returns their number."""
    path = path.resolve()
    with open_parquet(path, column) as file:
        theirs = _is_theirs(file.read([column])[column], customers)
        if not (number := pc.sum(theirs).as_py() or 0):
            return 0
        left = file.read().filter(pc.invert(theirs))
        rows = file.metadata.row_group(0).num_rows
    with atomic_write(path) as partial:
        pq.write_table(left, partial, row_group_size=rows, compression="zstd")
        if before_replacing is not None:
            before_replacing(partial)
    return number


def find_rows(directory: Path, manifest: PreparedManifest, customers: Collection[str]) -> dict[str, pa.ChunkedArray]:
    """Finds the rows of customers in each shard of a data set, as a mask. Raises `ValueError` if a shard is a symbolic
    link, or no customer would be left."""
    theirs = {}
    for shard in manifest.shards:
        path = directory / shard["file"]
        if path.is_symlink():
            raise ValueError(
                f"{path} is a symbolic link to {path.resolve()}, which would keep the customers: put the file itself "
                "there. Nothing was changed."
            )
        theirs[path.name] = _is_theirs(pq.read_table(path, columns=[CUSTOMER])[CUSTOMER], customers)
    if all(pc.all(column).as_py() for column in theirs.values()):
        raise ValueError(f"Nobody would be left in {directory}: remove the folder instead. Nothing was changed.")
    return theirs


def forget_in_prepared(directory: Path, customers: Collection[str], digests: Mapping[str, str] | None = None) -> int:
    """Deletes customers from a prepared data set. Returns `int`: number of customers that were deleted. Raises
    `FileNotFoundError` if there is no such data set. Raises `ValueError` if a shard is damaged, or no customer would
    be left. Raises `OSError` if the disk is full or not writable; the data set then is as it was."""
    directory = directory.resolve()
    manifest = PreparedManifest.load(directory)
    check_shards(directory, manifest.shards, verify=True)
    theirs = find_rows(directory, manifest, customers)
    numbers = {name: pc.sum(column).as_py() for name, column in theirs.items()}
    forgotten = sum(numbers.values())
    source, new = copy.deepcopy(manifest.input), digests or {}
    for described in filter(None, source.values()):
        described["files"] = {name: new.get(digest, digest) for name, digest in described["files"].items()}
    if not forgotten and source == manifest.input:
        return 0
    shards, gone = [], []
    with atomic_folder(directory) as (target, scratch):
        for path in directory.iterdir():
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            elif path.name not in (MANIFEST_FILE, PAGE_FILE, PAGE_NOTE, *theirs):
                shutil.copy2(path, target / path.name)
        for shard in manifest.shards:
            path, number = directory / shard["file"], numbers[shard["file"]]
            if not number:
                link(path, target / path.name)
                shards.append(shard)
                continue
            table = pq.read_table(path)
            gone.append(table.filter(theirs[shard["file"]]))
            if number < shard["rows"]:
                shards.append(write_shard(table.filter(pc.invert(theirs[shard["file"]])), target / path.name))
        changed = replace(manifest, shards=shards, input=source)
        if forgotten:
            changed = _count_again(target, scratch, changed, pa.concat_tables(gone))
        changed.save(target)
    return forgotten


def _count_again(directory: Path, scratch: Path, manifest: PreparedManifest, gone: pa.Table) -> PreparedManifest:
    """Writes the popularity of the values among the customers who are left. Returns the manifest with their counts;
    `gone` are the rows of the others."""
    schema = manifest.event_schema
    extractor = MCMFeatureExtractor.from_pretrained(str(directory / FEATURE_EXTRACTOR_FOLDER))
    fitted = build_vocabularies(extractor, schema)
    with open_engine("duckdb", scratch) as connection:
        shards = [directory / shard["file"] for shard in manifest.shards]
        events = shard_events(connection, shards, schema)
        measures = measure(events, schema)
        table = popularity(mark_targets(events, fitted, schema), fitted, schema)
        pq.write_table(gone, scratch / "gone.parquet")
        fewer = count_events(shard_events(connection, [scratch / "gone.parquet"], schema), fitted, schema)
    write_table(directory / POPULARITY_FILE, table)
    fewer |= {"customers": len(gone), "forgotten": -len(gone), **count_cases(gone, schema)}
    return replace(manifest, counts=subtracted({"forgotten": 0} | manifest.counts, fewer), measures=measures)


def forget_in_cache(customers: Collection[str]) -> int:
    """Removes the Arrow copies of prepared data, in the cache of `datasets`, that hold one of the customers.
    `datasets` makes such a copy when a data set is loaded, and makes it again when it is needed. A copy that can't be
    read, such as that of a run that was killed, is removed too. Returns the number of folders that were removed."""
    folders = set()
    for path in Path(datasets.config.HF_DATASETS_CACHE).joinpath("parquet").rglob("*.arrow"):
        try:
            holds = any(_count(path, CUSTOMER, customers))
        except (OSError, pa.ArrowInvalid):
            holds = True
        if holds:
            folders.add(path.parent)
    for folder in folders:
        shutil.rmtree(folder)
    return len(folders)


def _columns(path: Path, column: str) -> Iterator[pa.ChunkedArray]:
    """The column of a Parquet or Arrow file in parts; no part if the file has no such column."""
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            if column in file.schema_arrow.names:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, [column])[column]
        return
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        if column in reader.schema.names:
            for batch in reader:
                yield pa.chunked_array([batch.column(column)])


def _count(path: Path, column: str, customers: Collection[str]) -> Iterator[int]:
    for part in _columns(path, column):
        yield pc.sum(_is_theirs(part, customers)).as_py() or 0


def find_customers(folder: Path, customers: Collection[str], column: str = CUSTOMER) -> dict[str, str]:
    """Looks for customers in every file of a folder, hidden ones too, and in what a killed run left beside it. Returns
    `dict[str, str]`: by path of a file what is wrong with it: it has rows of the customers, can't be read, was left by
    a killed run, or is a manifest whose number of customers is not that of the shards. Empty if the customers are
    forgotten. Raises `FileNotFoundError` if there is no such folder."""
    reasons: dict[str, str] = {}
    folder = folder.resolve()
    for pattern in ("partial", "replaced"):
        for path in folder.parent.glob(f".{folder.name}.*.{pattern}"):
            reasons[str(path)] = "left by a run that was killed, if none is running: remove it"
    if read_note(folder).is_file():
        reasons[str(read_note(folder))] = "a deletion was killed: run it again with its options, which finishes it"
    for path in _list_files(folder):
        if path.suffix == ".partial":
            reasons[str(path)] = "left by a run that was killed, if none is running: remove it"
        elif path.suffix.lower() in (".parquet", ".arrow"):
            try:
                rows = sum(_count(path, column, customers))
            except (OSError, pa.ArrowInvalid) as error:
                reasons[str(path)] = f"can't be read: {error}"
                continue
            if rows:
                reasons[str(path)] = f"{rows} rows of theirs"
        elif path.suffix not in (".json", ".jinja", LOCK_SUFFIX):
            reasons[str(path)] = "neither Parquet nor Arrow nor JSON: look into it yourself"
    if (folder / MANIFEST_FILE).is_file():
        manifest = PreparedManifest.load(folder)
        rows = sum(pq.read_metadata(folder / shard["file"]).num_rows for shard in manifest.shards)
        if rows != (number := manifest.counts["customers"]):
            reasons[str(folder / MANIFEST_FILE)] = f"says {number} customers, and there are {rows}"
    return reasons


@dataclass
class Places:
    """The places from which customers are deleted; paths without symbolic links."""

    data: list[Path]  # folders of prepared data sets
    predictions: list[Path]  # folders or files
    events: list[Path]  # files or folders that the data sets were made from: log and profile

    @classmethod
    def resolved(cls, data: Iterable[str], predictions: Iterable[str], events: Iterable[str]) -> Self:
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


def read_note(directory: Path) -> Path:
    """Path of the note in which a deletion says what it changed in the log and not yet in a data set."""
    return directory.with_name(f".{directory.name}.deletion.json")


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

    for directory in places.data:  # before the log changes
        find_rows(directory, PreparedManifest.load(directory), customers)
    is_resumed = any(note.digests for note in notes)
    for note in notes:
        note.add({})
    for log in places.events:
        numbers = []
        for path in log_files(log):

            def noted(partial: Path, old: str = file_digest(path)) -> None:
                for note in notes:
                    note.add({old: file_digest(partial)})

            numbers.append(forget_in_file(path, customers, column, noted))
        yield log, sum(numbers), sum(map(bool, numbers))
    # Digests of files that a killed run noted and did not replace.
    unchanged = {file_digest(path) for log in places.events for path in log_files(log)} if is_resumed else set()
    for directory, note in zip(places.data, notes, strict=True):
        digests = {old: new for old, new in note.digests.items() if old not in unchanged}
        yield directory, forget_in_prepared(directory, customers, digests), 0
