# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers who ask to be forgotten: out of prepared data, of predictions and of the log, and a look whether they are.

What is written takes its place when it is whole, so a killed run leaves a file or a data set as it was, or done.
Counts of the manifest besides `customers`, and `popularity.parquet`, stay those of the preparation: sums over many.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_mcm.data.dataset import MANIFEST_FILE, PreparedManifest, check_shard, sha256_of
from modeling_mcm.events_mcm import to_text
from modeling_mcm.extras import needs

with needs("data"):
    from modeling_mcm.data.engine import link, replacing
    from modeling_mcm.data.rows import write_shard

CUSTOMER = "customer_id"


def _is_theirs(column: pa.ChunkedArray, customers: Collection[str]) -> pa.ChunkedArray:
    """Of each row whether it is of one of the customers; their numbers and texts are those of preparation."""
    values = column.unique()
    kept = [to_text(value) in customers for value in values.to_pylist()]
    return pc.is_in(column, values.filter(pa.array(kept, pa.bool_())))


def forget_in_file(path: Path, customers: Collection[str], column: str = CUSTOMER) -> int:
    """Writes a Parquet file anew without the rows of some customers, if it has any; returns how many.

    Raises:
        ValueError: It has no such column, or is no whole Parquet file.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}); remove it or write it again.") from error
    with file:
        if column not in file.schema_arrow.names:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}.")
        theirs = _is_theirs(file.read([column])[column], customers)
        if not (number := pc.sum(theirs).as_py() or 0):
            return 0
        partial = path.with_name(f".{path.name}.partial")
        sizes = {"row_group_size": file.metadata.row_group(0).num_rows, "compression": "zstd"}
        pq.write_table(file.read().filter(pc.invert(theirs)), partial, **sizes)
    partial.replace(path)
    return number


def forget_in_log(log: Path, customers: Collection[str], column: str) -> tuple[int, dict[str, str]]:
    """Takes customers out of a Parquet file or a folder of them, at any depth.

    Returns:
        How many rows they had, and the digests of changed files, old to new.
    """
    rows, digests = 0, {}
    for path in sorted(log.rglob("*.parquet")) if log.is_dir() else [log]:
        old = sha256_of(path)
        if number := forget_in_file(path, customers, column):
            rows += number
            digests[old] = sha256_of(path)
    return rows, digests


def forget_in_prepared(directory: Path, customers: Collection[str], digests: Mapping[str, str] | None = None) -> int:
    """Takes customers out of a prepared data set; returns how many were in it.

    Args:
        directory: Of the data set.
        customers: Their ids.
        digests: Of files of the log that changed with it, old to new, so that a later update knows them.

    Raises:
        ValueError: A shard is damaged, or nobody would be left.
    """
    manifest = PreparedManifest.load(directory)
    forgotten, shards = 0, []
    with replacing(directory) as (target, _):
        for path in directory.iterdir():
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            elif path.name != MANIFEST_FILE and path.name not in {shard["file"] for shard in manifest.shards}:
                shutil.copy2(path, target / path.name)
        for shard in manifest.shards:
            path = directory / shard["file"]
            check_shard(path, shard, verify=True)
            theirs = _is_theirs(pq.read_table(path, columns=[CUSTOMER])[CUSTOMER], customers)
            number = pc.sum(theirs).as_py() or 0
            forgotten += number
            if not number:
                link(path, target / path.name)
                shards.append(shard)
            elif number < shard["rows"]:
                shards.append(write_shard(pq.read_table(path).filter(pc.invert(theirs)), target / path.name))
        if not shards:
            raise ValueError(f"Nobody would be left in {directory}: remove the folder instead.")
        counts = manifest.counts | {"customers": manifest.counts["customers"] - forgotten}
        counts["forgotten"] = manifest.counts.get("forgotten", 0) + forgotten
        source = {name: _with_digests(files, digests or {}) for name, files in manifest.input.items()}
        replace(manifest, shards=shards, counts=counts, input=source).save(target)
    return forgotten


def _with_digests(described: dict[str, Any] | None, digests: Mapping[str, str]) -> dict[str, Any] | None:
    if not described:
        return described
    files = {name: digests.get(digest, digest) for name, digest in described["files"].items()}
    return described | {"files": files}


def forget_in_cache(customers: Collection[str], cache: Path | None = None) -> int:
    """Removes the Arrow copies of prepared data that hold one of the customers; returns how many folders.

    `datasets` makes a copy when a data set is loaded, and makes it again when it is needed. A copy that can't be read,
    as of a run that was killed, is removed too.
    """
    folders = set()
    for path in (cache or Path(datasets.config.HF_DATASETS_CACHE)).joinpath("parquet").rglob("*.arrow"):
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
    """The column of a Parquet or Arrow file in parts, nothing if it has none."""
    if path.suffix == ".parquet":
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
    """Reads every file of a folder, hidden ones too, and what a killed run left beside it.

    Returns:
        What speaks against it that they are forgotten, by file: rows of theirs, files that can't be read, leftovers,
        and a manifest whose number of customers is not that of the shards.
    """
    found: dict[str, str] = {}
    beside = [*folder.parent.glob(f".{folder.name}.*.partial"), *folder.parent.glob(f".{folder.name}.*.replaced")]
    for path in beside:
        found[str(path)] = "left by a run that was killed, if none is running: remove it"
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if path.suffix == ".partial":
            found[str(path)] = "left by a run that was killed, if none is running: remove it"
        elif path.suffix in (".parquet", ".arrow"):
            try:
                rows = sum(_count(path, column, customers))
            except (OSError, pa.ArrowInvalid) as error:
                found[str(path)] = f"can't be read: {error}"
                continue
            if rows:
                found[str(path)] = f"{rows} rows of theirs"
        elif path.is_file() and path.suffix not in (".json", ".jinja"):
            found[str(path)] = "neither Parquet nor Arrow nor JSON: look into it yourself"
    if (folder / MANIFEST_FILE).is_file():
        manifest = PreparedManifest.load(folder)
        rows = sum(pq.read_metadata(folder / shard["file"]).num_rows for shard in manifest.shards)
        if rows != manifest.counts["customers"]:
            found[str(folder / MANIFEST_FILE)] = f"says {manifest.counts['customers']} customers, and there are {rows}"
    return found
