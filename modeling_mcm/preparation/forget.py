# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers: their rows go from the files of the log and of predictions, and data sets are prepared again.

Everything is read before anything is changed, so that what stands against the deletion is said first. A file or data
set takes its place when it is whole, and the data sets come last. So a run that was killed is finished by the same
call. A symbolic link stays, and the file that it names is written.
"""

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.dataset import (
    END,
    FEATURE_EXTRACTOR_FOLDER,
    IDENTITY_FILE,
    MANIFEST_FILE,
    PAGE_NOTE,
    ROWS_COPY,
    PreparedData,
    write_table,
)
from modeling_mcm.events_mcm import check_columns, to_id
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import LOCK_SUFFIX, read_json, remove_abandoned, some
from modeling_mcm.inputs_mcm import CUSTOMER

from .prepare import prepare
from .rows import read_distinct
from .sources import describe, find_files


class Places:
    """Where customers are deleted.

    Args:
        data, events, profile, predictions (`Sequence[Path]`): Folders of data sets; the log and the profile that they
            are prepared from, Parquet files or folders of them; and predictions, in the same forms.

    Attributes:
        files (`dict[Path, str]`): By Parquet file of the log, the profile and the predictions its column of customers.

    Raises:
        OSError: If there is no such file or data set.
        ValueError: If a file is no whole Parquet file or lacks the column of customers, or a data set is damaged, or
            can't be prepared again from the log.
    """

    def __init__(
        self, data: Sequence[Path], events: Sequence[Path], profile: Sequence[Path], predictions: Sequence[Path]
    ):
        self.events, self.profile, self.predictions = events, profile, predictions
        for folder in (*data, ROWS_COPY):  # what killed runs left, such as the copy of a data set
            remove_abandoned(folder.parent, folder.name)
        self.data = {folder: PreparedData(folder) for folder in data}
        columns = sorted({prepared.schema.customer for prepared in self.data.values()})
        if len(columns) > 1:
            raise ValueError(f"The data sets read the customers from the columns {', '.join(columns)}: one at a time.")
        sources = [files for place in (*events, *profile) for files in find_files(place, "input")]
        if others := [files.paths[0] for files in sources if files.kind != "parquet"]:
            raise ValueError(
                f"{others[0]} is a text file, and customers are deleted from Parquet files alone: nothing was "
                "changed. Take them out of it yourself and prepare the data again, or write the log as Parquet."
            )
        self.files = {Path(path): columns[0] for files in sources for path in files.paths}
        for place in predictions:
            self.files |= dict.fromkeys(sorted(place.glob("*.parquet")) if place.is_dir() else [place], CUSTOMER)
        for path, column in self.files.items():
            try:
                check_columns(pq.read_schema(path).names, [column], f"{path} has")
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} is not a whole Parquet file ({error}); remove or write it again.") from error
        self.places, self.columns = [*data, *events, *profile, *predictions], [*{CUSTOMER, *columns}]
        for folder, prepared in self.data.items():
            prepared.check()
            for name, paths in {"events": events, "profile": profile}.items():
                needed = (prepared.manifest.input[name] or {"files": {}})["files"]
                files = (describe([*paths]) or {"files": {}})["files"]
                # A data set that was refreshed numbers its sources otherwise
                if needed and {Path(name).name for name in needed} != {Path(name).name for name in files}:
                    raise ValueError(
                        f"{folder} was prepared from {some(sorted(needed))}, and --{name} has "
                        f"{some(sorted(files)) or 'nothing'}: give what it was prepared from, or prepare it again."
                    )

    def look_for(self, names: Collection[str]) -> set[str]:
        """Reads the ids of every file. Returns those of `names` that a file holds. Raises `ValueError` if a data set
        would have no customer left."""
        for folder in self.data:
            if self._customers(folder) <= {*names}:
                raise ValueError(f"Nobody would be left in {folder}: remove it instead. Nothing was changed.")
        return {*names} & set().union(
            *map(self._customers, self.data), *itertools.starmap(read_ids, self.files.items())
        )

    def _customers(self, folder: Path) -> set[str]:
        return set().union(*(read_ids(path, CUSTOMER) for path in folder.glob("customers-*.parquet")))

    def forget(self, customers: Collection[str], **options: Any) -> dict[Path, int]:
        """Deletes customers, and prepares the data sets that hold one of them again, each with its own schema,
        vocabularies and bins, and `options` of [`prepare`]. Returns the number of rows deleted from each file."""
        rows = {path: forget_in_file(path, customers, column) for path, column in self.files.items()}
        for folder, prepared in self.data.items():
            if self._customers(folder) & {*customers}:
                prepare(
                    self.events,
                    prepared.schema,
                    folder,
                    self.profile[0] if prepared.schema.profile else None,
                    prepared.at(END).extractor,
                    rows_per_shard=prepared.manifest.options["rows_per_shard"],
                    overwrite=True,
                    **options,
                )
        return rows

    def find(self, names: Collection[str]) -> dict[Path, str]:
        """Looks for customers in every file of every place, hidden ones too. Returns by path why it may hold them;
        empty if it is proven that they are gone. In JSON files any text or number counts. Those that MCM writes hold
        counts, settings and values of features, of which only features that read the customers hold customers."""
        reasons = {}
        own = {path for folder in self.data for path in folder.glob(f"{FEATURE_EXTRACTOR_FOLDER}/*.json")}
        own |= {folder / name for folder in self.data for name in (MANIFEST_FILE, PAGE_NOTE)}
        own |= {folder / IDENTITY_FILE for folder in self.predictions}
        for path in sorted(path for place in self.places for path in (place, *place.rglob("*")) if path.is_file()):
            kind = path.suffix.lower()
            if path in own or (kind == LOCK_SUFFIX and not path.stat().st_size):
                continue
            if kind not in (".parquet", ".json"):
                reasons[path] = "neither Parquet nor JSON: look into it yourself"
                continue
            try:
                ids = read_ids(path, *self.columns) if kind == ".parquet" else read_texts(path)
                if left := ids & {*names}:
                    reasons[path] = f"{len(left)} of the customers"
            except (OSError, ValueError) as error:
                reasons[path] = f"can't be read: {error}"
        for folder, prepared in self.data.items():
            if left := {*names} & known_customers(prepared.at(END).extractor):
                reasons[folder / FEATURE_EXTRACTOR_FOLDER] = f"{len(left)} of the customers are values of a feature"
        return reasons


def read_ids(path: Path, *columns: str) -> set[str]:
    """The ids in those of some columns that a Parquet file has."""
    with pq.ParquetFile(path) as file:
        read = file.read(columns).columns
    return {text for ids in read for text in map(to_id, ids.unique().to_pylist()) if text is not None}


def read_texts(path: Path) -> set[str]:
    """Every text and number of a JSON file, keys among them. Raises `ValueError` if it is damaged."""
    texts, waiting = set[str](), [read_json(path)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += [*value, *(value.values() if isinstance(value, dict) else ())]
        elif (text := to_id(value)) is not None:
            texts.add(text)
    return texts


def known_customers(extractor: MCMFeatureExtractor) -> set[str]:
    """The values of the features that read the column of customers."""
    customer = extractor.schema.customer
    specs = [spec for spec in extractor.schema.specs.values() if customer in spec.columns]
    return {str(to_id(value)) for spec in specs for value in extractor.vocabularies.get(spec.name, ())}


def forget_in_file(path: Path, customers: Collection[str], column: str) -> int:
    """Writes a Parquet file again without the rows of some customers, if any, and returns their number."""
    table = pq.read_table(path, partitioning=None)
    ids = read_distinct(table[column].combine_chunks())
    left = table.filter(ids.map(lambda value: to_id(value) not in customers).expand(np.bool_))
    if len(left) < len(table):
        write_table(path, left, compression="zstd")
    return len(table) - len(left)
