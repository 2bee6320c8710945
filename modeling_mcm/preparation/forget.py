# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers: their rows go from the files of the log and of predictions, and data sets are prepared again.

Everything is read before anything is changed, so that what stands against the deletion is said first. A file or data
set takes its place when it is whole, and the data sets come last. So a run that was killed is finished by the same
call. A symbolic link stays, and the file that it names is written.
"""

import itertools
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.dataset import (
    CUSTOMER,
    FEATURE_EXTRACTOR_FOLDER,
    MANIFEST_FILE,
    PAGE_FILE,
    PAGE_NOTE,
    POPULARITY_FILE,
    PreparedData,
)
from modeling_mcm.events_mcm import check_columns, to_text
from modeling_mcm.files_mcm import LOCK_SUFFIX, atomic_write, remove_abandoned, some
from modeling_mcm.preparation.prepare import prepare
from modeling_mcm.preparation.rows import read_distinct
from modeling_mcm.preparation.sources import describe, find_files

OF_DATA = {MANIFEST_FILE, FEATURE_EXTRACTOR_FOLDER, POPULARITY_FILE, PAGE_FILE, PAGE_NOTE}


def read_ids(path: Path, column: str) -> set[str | None]:
    """The ids in a Parquet or Arrow file as preparation writes them, none if the file has no such column."""
    if path.suffix.lower() == ".arrow":
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
    else:
        with pq.ParquetFile(path) as file:
            table = file.read([column])
    return {*map(to_text, table[column].unique().to_pylist())} if column in table.column_names else set()


def forget_in_file(path: Path, customers: Collection[str], column: str = CUSTOMER) -> int:
    """Writes a Parquet file again without the rows of some customers, if any, and returns their number."""
    table = pq.read_table(path, partitioning=None)
    check_columns(table.column_names, [column], f"{path} has")
    ids = read_distinct(table[column].combine_chunks())
    left = table.filter(ids.map(lambda value: to_text(value) not in customers).expand(np.bool_))
    if len(left) < len(table):
        rows = pq.read_metadata(path).row_group(0).num_rows
        with atomic_write(path) as partial:
            pq.write_table(left, partial, row_group_size=rows, compression="zstd")
    return len(table) - len(left)


def predictions_files(path: Path) -> list[Path]:
    """Finds the Parquet files of predictions."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no Parquet file.")
    return files


@dataclass
class Places:
    """Where customers are deleted: folders of data sets, the log and the profile that these are prepared from, and
    predictions."""

    data: list[Path]
    events: list[Path]
    profile: list[Path]  # none or one
    predictions: list[Path]

    def __post_init__(self) -> None:
        for place in (*self.events, *self.profile, *self.predictions):
            if not place.exists():
                raise FileNotFoundError(f"{place} does not exist; check the path.")
        for folder in self.data:
            remove_abandoned(folder)
        self.prepared = {folder: PreparedData(folder) for folder in self.data}
        for folder, prepared in self.prepared.items():
            self._check(folder, prepared)
        columns = sorted({prepared.schema.customer for prepared in self.prepared.values()})
        if len(columns) > 1:
            raise ValueError(f"The data sets read the customers from the columns {', '.join(columns)}: one at a time.")
        self.column = columns[0] if columns else CUSTOMER  # the log's column of customers

    def _check(self, folder: Path, prepared: PreparedData) -> None:
        """Raises `ValueError` if a data set can't be prepared again from the log, or more than itself would go."""
        if (
            others := {path.name for path in folder.iterdir()}
            - OF_DATA
            - {shard["file"] for shard in prepared.manifest.shards}
        ):
            raise ValueError(f"{folder} holds {some(sorted(others))}, which is no part of the data set: move it away.")
        for name, paths in {"events": self.events, "profile": self.profile}.items():
            if (source := prepared.manifest.input[name]) is None:
                continue
            files = sorted((describe([str(path) for path in paths]) or {"files": {}})["files"])
            if files != sorted(source["files"]):
                raise ValueError(
                    f"{folder} was prepared from {some(sorted(source['files']))}, and --{name} has "
                    f"{some(files) or 'nothing'}: give what it was prepared from, or prepare it again first."
                )

    def all(self) -> list[Path]:
        """Lists all places."""
        return [*self.events, *self.profile, *self.predictions, *self.data]

    def files(self) -> dict[Path, str]:
        """Finds every file that is to hold no customer, with the name of its column of customers. Raises `ValueError`
        for text files, which are not changed, and for Parquet files that are not whole or lack the column."""
        sources = [Path(path) for place in (*self.events, *self.profile) for path in _find_sources(place)]
        columns = dict.fromkeys(sources, self.column)
        columns |= {path: CUSTOMER for place in self.predictions for path in predictions_files(place)}
        for path, column in columns.items():
            try:
                names = pq.read_schema(path).names
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} is not a whole Parquet file ({error}); remove or write it again.") from error
            in_path = any(part.startswith(f"{column}=") for part in path.parts)
            fix = f"The folders {column}=... name the customers: remove theirs yourself." if in_path else ""
            check_columns(names, [column], f"{path} has", fix)
        for folder, prepared in self.prepared.items():
            prepared.check()
            columns |= {folder / shard["file"]: CUSTOMER for shard in prepared.manifest.shards}
        return columns

    def look_for(self, names: Collection[str]) -> set[str]:
        """Reads the ids of every file. Returns those of `names` that a file holds. Raises `ValueError` if a data set
        would have no customer left."""
        there = {*names} & {*itertools.chain(*(read_ids(*file) for file in self.files().items()))}
        for folder in self.data:
            if self.customers(folder) <= there:
                raise ValueError(f"Nobody would be left in {folder}: remove it instead. Nothing was changed.")
        return there

    def customers(self, folder: Path) -> set[str | None]:
        """The ids of the customers of a data set."""
        shards = self.prepared[folder].manifest.shards
        return {*itertools.chain(*(read_ids(folder / shard["file"], CUSTOMER) for shard in shards))}

    def delete_from_sources(self, customers: Collection[str]) -> dict[Path, int]:
        """Deletes customers from log and profile. Returns the number of rows deleted from each place."""
        return {
            place: sum(forget_in_file(Path(path), customers, self.column) for path in _find_sources(place))
            for place in (*self.events, *self.profile)
        }

    def prepare_again(self, customers: Collection[str], **options: Any) -> dict[Path, int]:
        """Prepares the data sets that hold one of the customers again, each with its own schema, vocabularies and
        bins, and `options` of [`prepare`]. Returns the number of customers that each data set holds."""
        for folder, prepared in self.prepared.items():
            if self.customers(folder) & {*customers}:
                rows_per_shard = prepared.manifest.options["rows_per_shard"]
                options |= {"profile": next(iter(self.profile), None), "feature_extractor": prepared.extractor}
                options |= {"rows_per_shard": rows_per_shard, "overwrite": True}
                prepare(self.events, prepared.schema, folder, **options)
        return {folder: PreparedData(folder).manifest.counts["customers"] for folder in self.data}


def _find_sources(place: Path) -> tuple[str, ...]:
    (files,) = find_files(place, "input")
    if files.kind != "parquet":
        raise ValueError(
            f"{files.paths[0]} is a text file, and customers are deleted from Parquet files alone: nothing was "
            "changed. Take them out of it yourself and prepare the data again, or write the log as Parquet."
        )
    return files.paths


def forget_in_cache(customers: Collection[str]) -> int:
    """Removes the Arrow copies of prepared data, in the cache of `datasets`, that hold one of the customers or can't
    be read; `datasets` makes them again when they are needed. Returns the number of folders that were removed."""
    root = Path(datasets.config.HF_DATASETS_CACHE, "parquet")
    folders = {path.parent for path in root.rglob("*.arrow") if _describe_rest(path, CUSTOMER, customers)}
    for folder in folders:
        shutil.rmtree(folder)
    return len(folders)


def _describe_rest(path: Path, column: str, customers: Collection[str]) -> str | None:
    """Says why a file may hold customers, if it may."""
    if path.suffix.lower() not in (".parquet", ".arrow"):
        is_known = path.suffix in (".json", ".jinja", LOCK_SUFFIX)
        return None if is_known else "neither Parquet nor Arrow nor JSON: look into it yourself"
    try:
        left = read_ids(path, column) & {*customers}
    except (OSError, pa.ArrowInvalid) as error:
        return f"can't be read: {error}"
    return f"{len(left)} of the customers" if left else None


def find_customers(place: Path, customers: Collection[str], column: str = CUSTOMER) -> dict[Path, str]:
    """Looks for customers in a file, or in every file of a folder, hidden ones too. Returns by path why it may hold
    them; empty if it is proven that they are gone."""
    walk: Any = os.walk(place, followlinks=True) if place.is_dir() else [(place.parent, [], [place.name])]
    paths = {Path(folder, name).resolve() for folder, _, names in walk for name in names}
    reasons = {path: _describe_rest(path, column, customers) for path in sorted(paths)}
    return {path: reason for path, reason in reasons.items() if reason}
