# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A prepared data set on disk: its manifest, and its shards as a memory-mapped `datasets.Dataset`.

A folder is a data set if and only if it holds a manifest, which preparation writes last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.schema import EventSchema
from modeling_mcm.files_mcm import atomic_write, write_json
from modeling_mcm.processing_mcm import MCMFeatureExtractor

MANIFEST_FILE = "manifest.json"
CUSTOMER = "customer_id"  # the column of a row that says whose it is; of predictions too
FEATURE_EXTRACTOR_FOLDER = "feature_extractor"
POPULARITY_FILE = "popularity.parquet"
FOLLOWERS_FILE = "followers.parquet"
FORMAT_VERSION = 2  # 1 had no values of numeric features


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_table(path: str | Path, table: pa.Table, **options: Any) -> None:
    """Writes a Parquet file, which appears when it is whole; `options` are of `pyarrow.parquet.write_table`.

    Raises:
        OSError: naming the file, if its disk is full or it may not be written.
    """
    with atomic_write(path) as partial:
        pq.write_table(table, partial, **options)


@dataclass(frozen=True)
class PreparedManifest:
    """What a prepared data set says of itself.

    Args:
        schema (`dict`): The event schema, as `EventSchema.to_dict` gives it.
        input (`dict`): Per input (`events`, `profile`) its file names and digests, or null for a table in memory.
        options (`dict`): Options of preparation that shape the files.
        counts (`dict`): Rows read and dropped, events, customers, cases, unknown and missing values.
        seeds (`dict`): Random seeds; preparation draws no random number, so it is empty.
        versions (`dict`): Versions of the libraries that wrote it.
        shards (`list[dict]`): Per shard `file`, `rows`, `bytes`, `sha256`.
        measures (`dict`): What kind of log it is, as `counts.measure` says; empty where nothing is trained on it.
        format_version (`int`): Version of this layout.
    """

    schema: dict[str, Any]
    input: dict[str, Any]
    options: dict[str, Any]
    counts: dict[str, Any]
    seeds: dict[str, int]
    versions: dict[str, str]
    shards: list[dict[str, Any]]
    measures: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def event_schema(self) -> EventSchema:
        """The schema that the data set was prepared with."""
        return EventSchema.from_dict(self.schema)

    @classmethod
    def load(cls, directory: str | Path) -> PreparedManifest:
        """Reads `manifest.json`.

        Raises:
            FileNotFoundError: The folder holds no manifest, so it is no data set or an unfinished one.
            ValueError: The manifest is damaged or of another format.
        """
        path = Path(directory) / MANIFEST_FILE
        if not path.is_file():
            place = path.parent.resolve()
            left = sorted(place.parent.glob(f".{place.name}.*.replaced"))
            hint = f"a run was killed while it put a new one there: rename {left[-1]} to it" if left else ""
            raise FileNotFoundError(
                f"{directory} holds no {MANIFEST_FILE}, so it is not a (finished) prepared data set; "
                f"{hint or 'run training/prepare_data.py, or check the path'}."
            )
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            if given["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {given['format_version']} was found and {FORMAT_VERSION} is read")
            return cls(**given)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); prepare the data again.") from error

    def save(self, directory: str | Path) -> None:
        """Writes `manifest.json` in one step: another process sees the whole file or none."""
        write_json(Path(directory) / MANIFEST_FILE, asdict(self), ensure_ascii=False)


def check_shard(path: Path, expected: dict[str, Any], verify: bool) -> pa.Schema:
    """The columns of a shard, which is what its entry of the manifest says; `verify` reads every byte.

    Raises:
        ValueError: it is not.
    """
    advice = "the data set is damaged: prepare the data again."
    if not path.is_file():
        raise ValueError(f"{path} is missing, but the manifest lists it; {advice}")
    if path.stat().st_size != expected["bytes"]:
        raise ValueError(f"{path} has {path.stat().st_size} bytes and {expected['bytes']} were written; {advice}")
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is no whole Parquet file ({error}); {advice}") from error
    if metadata.num_rows != expected["rows"]:
        raise ValueError(f"{path} does not have the {expected['rows']} rows that the manifest lists; {advice}")
    if verify and sha256_of(path) != expected["sha256"]:
        raise ValueError(f"{path} does not have the digest that the manifest lists; {advice}")
    return metadata.schema.to_arrow_schema().remove_metadata()


def check_shards(directory: str | Path, shards: Sequence[dict[str, Any]], verify: bool = False) -> None:
    """Compares shards with the manifest (existence, bytes, rows, with `verify` digests) and with each other.

    Raises:
        ValueError: A shard is missing, differs from what the manifest lists, or has other columns than the first.
    """
    first: pa.Schema | None = None
    for shard in shards:
        path = Path(directory) / shard["file"]
        found = check_shard(path, shard, verify)
        first = found if first is None else first
        if not found.equals(first):
            names = sorted({field.name for field in set(found) ^ set(first)})
            column = names[0] if names else "their order"
            kinds = [str(each.field(column).type) if column in each.names else "absent" for each in (found, first)]
            raise ValueError(
                f"{path} and {shards[0]['file']} differ in column {column!r}: {kinds[0]} and {kinds[1]}. Shards of "
                "a data set have one schema; prepare all of them with the same one."
            )


def load_prepared(
    directory: str | Path,
    columns: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    verify: bool = False,
    shards: Sequence[int] | None = None,
) -> datasets.Dataset:
    """Opens the shards as one memory-mapped data set, one row a customer, in the order of `customer_id`.

    Args:
        directory (`str` or `Path`): Output folder of `prepare`.
        columns (`Sequence[str]`, *optional*): Only these columns.
        cache_dir (`str` or `Path`, *optional*): Where `datasets` keeps its Arrow copy; its usual cache if not given.
        verify (`bool`): Also compare the digests of the shards, which reads every byte.
        shards (`Sequence[int]`, *optional*): Only these, by their places in the manifest.

    Returns:
        `datasets.Dataset`: Columns customer_id, times (seconds since 1970), visits, feature_*, task_* and, of numeric
        features, value_* (lists with one entry an event), profile_*, validation_end, test_end (number of events before
        the cutoff).

    Raises:
        FileNotFoundError: No manifest.
        ValueError: A shard is missing, or differs from what the manifest lists or from the first in its columns.
    """
    directory = Path(directory)
    manifest = PreparedManifest.load(directory)
    opened = manifest.shards if shards is None else [manifest.shards[place] for place in shards]
    check_shards(directory, opened, verify)
    files = [str(directory / shard["file"]) for shard in opened]
    # `datasets` knows its copy by path and time; other data with the same ones must not be answered with that copy.
    digest = hashlib.sha256("".join(shard["sha256"] for shard in opened).encode()).hexdigest()
    kwargs: dict[str, Any] = {"config_name": f"prepared-{digest[:32]}"}
    kwargs |= {"columns": list(columns)} if columns is not None else {}
    try:
        return datasets.Dataset.from_parquet(files, cache_dir=str(cache_dir) if cache_dir else None, **kwargs)
    except datasets.exceptions.DatasetGenerationError:
        for shard in opened:  # it does not say which file it could not read
            check_shard(directory / shard["file"], shard, verify=True)
        raise


def check_vocabularies(directory: str | Path, extractor: MCMFeatureExtractor) -> None:
    """Raises `ValueError` where a checkpoint's ids would mean other values than the ids of a prepared data set."""
    data = MCMFeatureExtractor.from_pretrained(str(Path(directory) / FEATURE_EXTRACTOR_FOLDER))
    for what in ("feature_names", "tasks", "vocabularies", "bins"):
        ours, theirs = getattr(data, what), getattr(extractor, what)
        if ours != theirs:
            differing = (
                [name for name in ours if ours[name] != theirs.get(name)] if isinstance(ours, dict) else [ours, theirs]
            )
            raise ValueError(
                f"The {what} of the data set {directory} and of the checkpoint differ ({differing}): ids would mean "
                "other values. Evaluate on the data set that the checkpoint was trained on, or prepare the data anew "
                "with its feature extractor's vocabularies."
            )
