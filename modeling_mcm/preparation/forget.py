# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers who ask to be forgotten: deleting them from one kind of file at a time, and looking whether any are left.

`deletion.py` makes all of it one step. A file takes its place when it is whole, so a run that is killed leaves each
file or data set either as it was or finished. A symbolic link stays, and the file that it names is written. What was
counted over customers is counted again: `popularity.parquet`, and the manifest's `measures` and counts. Those of the
log's rows (`rows`, `duplicates` and what was dropped) stay those of the preparation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    POPULARITY_FILE,
    PreparedManifest,
    check_shards,
    write_table,
)
from modeling_mcm.events_mcm import check_columns, to_text
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import LOCK_SUFFIX, atomic_folder, atomic_write, file_digest
from modeling_mcm.preparation.changes import read_note
from modeling_mcm.preparation.files import detect_kind
from modeling_mcm.processing_mcm import MCMFeatureExtractor

with needs("data"):
    from modeling_mcm.preparation.engine import link, open_engine
    from modeling_mcm.preparation.rows import (
        combined,
        count_events,
        mark_targets,
        measure,
        popularity,
        shard_events,
        write_shard,
    )
    from modeling_mcm.preparation.vocabulary import build_vocabularies

FOLLOWERS_FILE = "followers.parquet"  # of earlier versions: pairs of customers' labels, which nothing reads any more


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


def forget_in_log(
    log: Path, customers: Collection[str], column: str, record: Callable[[dict[str, str]], Any] | None = None
) -> tuple[int, dict[str, str]]:
    """Deletes customers from a Parquet file, or from a folder of such files at any depth. Returns the number of rows
    that were deleted; and by old digest of a changed file its new digest."""
    rows, digests = 0, {}
    for path in log_files(log):
        old = file_digest(path)

        def changed(partial: Path, old: str = old) -> None:
            digests[old] = file_digest(partial)
            if record is not None:
                record({old: digests[old]})

        rows += forget_in_file(path, customers, column, changed)
    return rows, digests


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
    source = {name: _with_digests(files, digests or {}) for name, files in manifest.input.items()}
    if not forgotten and source == manifest.input:
        return 0
    shards, gone = [], []
    with atomic_folder(directory) as (target, scratch):
        for path in directory.iterdir():
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            elif path.name not in (MANIFEST_FILE, FOLLOWERS_FILE, PAGE_FILE, *theirs):
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
    return replace(manifest, counts=combined({"forgotten": 0} | manifest.counts, fewer, {}), measures=measures)


def _with_digests(described: dict[str, Any] | None, digests: Mapping[str, str]) -> dict[str, Any] | None:
    if not described:
        return described
    files = {name: digests.get(digest, digest) for name, digest in described["files"].items()}
    return described | {"files": files}


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
