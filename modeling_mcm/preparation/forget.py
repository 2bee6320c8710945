# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers: their rows go from the files of the log and of predictions, and data sets are prepared again.

Everything is read before anything is changed, so that what stands against the deletion is said first. A file or data
set takes its place when it is whole, and the data sets come last. So a run that was killed is finished by the same
call. A symbolic link stays, and the file that it names is written.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.dataset import (
    END,
    FEATURE_EXTRACTOR_FOLDER,
    FORGOTTEN,
    IDENTITY_FILE,
    LOG,
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
from .sources import detect_kind, find_files


class Places:
    """Where customers are deleted.

    Args:
        data, events, profile, predictions (`Sequence[Path]`): Folders of data sets; the log and the profile that they
            are prepared from, Parquet files or folders of them; and predictions, in the same forms.

    Attributes:
        files (`dict[Path, str]`): By Parquet file of the log, the profile and the predictions its column of customers.
        sources (`dict[str, list[Path]]`): Those of the log, "events", and of the profile.

    Raises:
        OSError: If there is no such file or data set.
        ValueError: If a file is no whole Parquet file or lacks the column of customers, or a data set is damaged.
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
        self.sources = {
            name: [Path(path) for place in places for files in find_files(place, "input") for path in files.paths]
            for name, places in {"events": events, "profile": profile}.items()
        }
        paths = [*itertools.chain(*self.sources.values())]
        if others := [path for path in paths if detect_kind(path.name) != "parquet"]:
            raise ValueError(
                f"{others[0]} is a text file, and customers are deleted from Parquet files alone: nothing was "
                "changed. Take them out of it yourself and prepare the data again, or write the log as Parquet."
            )
        self.files = {path: columns[0] for path in paths}
        for place in predictions:
            self.files |= dict.fromkeys(sorted(place.glob("*.parquet")) if place.is_dir() else [place], CUSTOMER)
        for path, column in self.files.items():
            try:
                check_columns(pq.read_schema(path).names, [column], f"{path} has")
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} is not a whole Parquet file ({error}); remove or write it again.") from error
        self.places, self.columns = [*data, *events, *profile, *predictions], [*{CUSTOMER, *columns}]
        for prepared in self.data.values():
            prepared.check()

    def look_for(self, names: Collection[str]) -> set[str]:
        """Reads the ids of every file. Returns those of `names` that a file holds. Raises `ValueError` if a data set
        would have no customer left, or was not prepared from the log: events of others would get lost."""
        for folder, prepared in self.data.items():
            if self._customers(folder) <= {*names}:
                raise ValueError(f"Nobody would be left in {folder}: remove it instead. Nothing was changed.")
            for name, given in self.sources.items():
                needed = (prepared.manifest.input[name] or {"files": {}})["files"]
                if kept := [*(folder / LOG).glob(f"{name}*.parquet")]:  # which a data set of Spark has not
                    counts = count_ids(kept, CUSTOMER), count_ids(given, prepared.schema.customer)
                    is_same = {customer for customer, _ in counts[0].items() ^ counts[1].items()} <= {*names}
                else:
                    is_same = not needed or {Path(each).name for each in needed} == {path.name for path in given}
                if not is_same:
                    raise ValueError(
                        f"{folder} was prepared from {some(sorted(needed)) or 'a table'}, and --{name} has "
                        f"{some(sorted(path.name for path in given)) or 'nothing'}, with other rows: give all that it "
                        "was prepared from, and no more, or prepare it again. Nothing was changed."
                    )
        return {*names} & set().union(
            *map(self._customers, self.data), *(count_ids([path], column) for path, column in self.files.items())
        )

    def _customers(self, folder: Path) -> set[str]:
        return {*count_ids(folder.glob("customers-*.parquet"), CUSTOMER)}

    def forget(self, customers: Collection[str], **options: Any) -> dict[Path, int]:
        """Deletes customers, and prepares the data sets that hold one of them again, each with its own schema,
        vocabularies and bins, and `options` of [`prepare`]. Returns the number of rows deleted from each file."""
        rows = {path: forget_in_file(path, customers, column) for path, column in self.files.items()}
        for folder, prepared in self.data.items():
            if gone := self._customers(folder) & {*customers}:
                made = prepare(
                    self.events,
                    prepared.schema,
                    folder,
                    self.profile[0] if prepared.schema.profile else None,
                    prepared.at(END).extractor,
                    rows_per_shard=prepared.manifest.options["rows_per_shard"],
                    overwrite=True,
                    **options,
                )
                number = prepared.manifest.counts.get(FORGOTTEN, 0) + len(gone)
                replace(made, counts=made.counts | {FORGOTTEN: number}).save(folder)
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
                ids = count_ids([path], *self.columns) if kind == ".parquet" else read_texts(path)
                if left := {*names}.intersection(ids):
                    reasons[path] = f"{len(left)} of the customers"
            except (OSError, ValueError) as error:
                reasons[path] = f"can't be read: {error}"
        for folder, prepared in self.data.items():
            if left := {*names} & known_customers(prepared.at(END).extractor):
                reasons[folder / FEATURE_EXTRACTOR_FOLDER] = f"{len(left)} of the customers are values of a feature"
        return reasons


def count_ids(paths: Iterable[Path], *columns: str) -> Counter[str]:
    """Counts the rows of each id in those of some columns that Parquet files have."""
    counts = Counter[str]()
    for path in paths:
        with pq.ParquetFile(path) as file:
            ids = file.read(columns).columns
        for each in itertools.chain(*(column.drop_null().value_counts().to_pylist() for column in ids)):
            counts[str(to_id(each["values"]))] += each["counts"]
    return counts


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
