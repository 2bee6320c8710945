# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A prepared data set on disk: its manifest, and its shards as a memory-mapped `datasets.Dataset`.

A folder is a data set if and only if it holds a manifest, which preparation writes last.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_mcm.configuration_mcm import UNKNOWN_ID
from modeling_mcm.events_mcm import EPOCH
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import atomic_write, hold_part, read_json, write_json
from modeling_mcm.folders import file_digest
from modeling_mcm.inputs_mcm import CUSTOMER

from .cases import CUTOFFS, ENDS, from_batch, to_batch
from .schema import LEAVE_ONE_OUT, NO_CUTOFFS, EventSchema

MANIFEST_FILE = "manifest.json"
FEATURE_EXTRACTOR_FOLDER = "feature_extractor"
IDENTITY_FILE = "_predictions.json"  # in a folder of predictions: what they are made of
LOG, LOG_PROFILE = "log", "profile.parquet"  # folder of the log as it was read, and its table of profiles
PAGE_FILE = "page.parquet"  # scores of all customers, which `mcm app` stores
PAGE_NOTE = "page.json"  # what they were made of, and the digest of their file
ROWS_COPY = Path(datasets.config.HF_DATASETS_CACHE, "mcm-rows")
BATCH = 1024  # rows
END = "end"  # of the log, beside the cutoffs
FORGOTTEN = "forgotten"  # of the counts: number of customers who were deleted since a model counted them
CONTENT = "digest"  # key of the manifest's own digest
FORMAT_VERSION = 4  # version 3 ended its vocabularies at the validation cutoff


def describe_file(path: Path, rows: int) -> dict:
    """The entry of a Parquet file in a manifest."""
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_table(path: str | Path, table: pa.Table, **options: Any) -> None:
    """Writes a Parquet file whole or not at all; an `OSError` of a full or read-only disk names the file."""
    with atomic_write(path) as partial:
        pq.write_table(table, partial, **options)


@dataclass(frozen=True)
class PreparedManifest:
    """What a prepared data set says of itself: the content of its `manifest.json`.

    Args:
        schema (`dict`): Event schema, as `EventSchema.to_dict` gives it.
        input (`dict`): By input (`events`, `profile`) its name and the digests of its files, or None for a table in
            memory.
        options (`dict`): Options of preparation that change the written files.
        counts (`dict`): Numbers of rows read and dropped, events, customers, cases, and unknown and missing values.
        seeds (`dict`): Random seeds. Preparation draws no random number, so it is empty.
        versions (`dict`): Versions of Python and of the libraries that wrote the data set, by name.
        log (`list[dict]`): The same as `shards` of the files in the folder `LOG`, which hold the log as it was read:
            what `mcm refresh` adds to. Empty on Spark, or where it was not kept.
        shards (`list[dict]`): One dict per shard, with its `file` name, its number of `rows` and `bytes`, and its
            digest `sha256`.
        measures (`dict`): What kind of log it is, as `counts.measure` returns it. Empty where no model is trained on
            the data set.
        format_version (`int`): Version of the data set's format.
        files (`dict[str, str]`): By path in the folder the SHA-256 digests of the other files, which `save` finds.
    """

    schema: dict
    input: dict
    options: dict
    counts: dict
    versions: dict[str, str]
    shards: list[dict]
    log: list[dict] = field(default_factory=list)
    measures: dict = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: str | Path) -> "PreparedManifest":
        """Reads `manifest.json`, and compares the digests of what is beside the shards. Raises `FileNotFoundError` if
        the folder holds no manifest, so that it is no data set or an unfinished one. Raises `ValueError` if the
        manifest has another format version, or one of these files is damaged."""
        path = Path(directory) / MANIFEST_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{directory} holds no {MANIFEST_FILE}, so it is not a (finished) prepared data set; run mcm prepare, "
                "or check the path."
            )
        try:
            content = read_json(path)
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {content['format_version']} was found and {FORMAT_VERSION} is read")
            if content.pop(CONTENT) != _content_digest(content):
                raise ValueError("it does not have the digest that was written with it: it was damaged or edited")
            manifest = cls(**content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error}); prepare the data again.") from error
        check_digests(path.parent, manifest.files)
        return manifest

    def save(self, directory: str | Path) -> "PreparedManifest":
        """Writes `manifest.json` in one step, and returns it with the digests of the other files. Raises `OSError` if
        the file can't be written."""
        folder = Path(directory)
        paths = sorted(folder.glob(f"{FEATURE_EXTRACTOR_FOLDER}/*.json"))
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
        saved = replace(self, files=self.files | digests)
        content = json.loads(json.dumps(asdict(saved)))
        write_json(folder / MANIFEST_FILE, content | {CONTENT: _content_digest(content)}, ensure_ascii=False)
        return saved


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises `ValueError` if a file is not there, or does not have its digest."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise ValueError(f"{path} is missing or not the file of the manifest: prepare the data again.")


def _content_digest(content: Mapping) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_prepared(directory: str | Path) -> datasets.Dataset:
    """Opens the shards as one memory-mapped data set with one row per customer, in the order of `customer_id`, after
    [`PreparedData.check`].

    Returns:
        `datasets.Dataset`: one row per customer. `customer_id` is text. The lists `times` (seconds since 1970-01-01),
        `visits`, `feature_<name>`, `task_<name>`, `unseen_<task>` and, of numeric features, `value_<name>` have one
        entry per event. `profile_<name>` is an id. `validation_end` and `test_end` are the numbers of events before
        each cutoff.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        ValueError: If a shard is missing, or is not the one that the manifest lists.
    """
    return PreparedData(directory).rows


class PreparedData:
    """A prepared data set, a folder that `prepare` wrote, as it was known at a time. Its manifest is read at once
    (errors as in [`PreparedManifest.load`]), everything else when it is first used; `rows` are checked first.

    Args:
        until (`str` or `int`): End of the period that a model learns or counts: "validation" or "test", the cutoffs;
            `END`, that of the log; or a time in seconds since 1970-01-01, before which events are read and no others.
            Values that are new after it are unknown, and it is the validation cutoff of the rows and of the schema.
        left_out (collection of `str`): Ids of customers whose rows are not read.
    """

    def __init__(self, folder: str | Path, until: str | int = CUTOFFS[0], left_out: Collection[str] = ()):
        self.folder, self.manifest = Path(folder), PreparedManifest.load(folder)
        self.until, self.left_out = until, frozenset(left_out)

    def at(self, until: str | int, left_out: Collection[str] = ()) -> "PreparedData":
        """The same data set, as it was known at another time, without some customers."""
        same = until == self.until and self.left_out.issuperset(left_out)
        return self if same else PreparedData(self.folder, until, self.left_out.union(left_out))

    @cached_property
    def known(self) -> dict[str, int]:
        """By feature the number of ids that were known, where there are more."""
        if EventSchema.from_dict(self.manifest.schema).cutoffs == NO_CUTOFFS and self.until == END:
            return {}
        if isinstance(self.until, str):
            return self._extractor.known.get(self.until, {})
        return {
            feature: size + self._count_known(feature, size, self.until)
            for feature, size in self._extractor.known.get(CUTOFFS[0], {}).items()
        }

    def _count_known(self, feature: str, first: int, until: int) -> int:
        """How many ids of a feature from `first` on were known at a time. Later ids are in the order in which values
        became frequent enough, so these are the first ones."""
        layout, column = self._extractor.layout, f"feature_{feature}"
        token = f"feature_{self._extractor.token_type_feature}"
        counts = np.zeros(layout.sizes[feature] - first, np.int64)
        for shard in self.manifest.shards:
            rows = to_batch(pq.read_table(self.folder / shard["file"], columns=["times", token, column]))
            is_past = (rows.column("times") < until) & (rows.column(token) != layout.closing)
            ids = rows.column(column)[is_past]
            counts += np.bincount(ids[ids >= first] - first, minlength=len(counts))
        least = self._extractor.schema.specs[feature].min_count
        return int(np.append(counts < least, True).argmax())

    @cached_property
    def schema(self) -> EventSchema:
        """[`EventSchema`]: the event schema that it was prepared with."""
        schema = EventSchema.from_dict(self.manifest.schema)
        if not isinstance(self.until, str):
            return replace(schema, cutoffs=dict.fromkeys(CUTOFFS, EPOCH + timedelta(seconds=self.until)))
        if self.until == CUTOFFS[0] or isinstance(schema.cutoffs, str):
            return schema
        if schema.cutoffs == NO_CUTOFFS and self.until != END:
            return schema
        if schema.order is not None:
            return replace(schema, cutoffs=LEAVE_ONE_OUT)
        last = EPOCH + timedelta(seconds=self.manifest.counts["last"] + 1)
        return replace(schema, cutoffs=dict.fromkeys(CUTOFFS, schema.cutoffs.get(self.until, last)))

    @cached_property
    def extractor(self) -> MCMFeatureExtractor:
        """[`MCMFeatureExtractor`]: the feature extractor with its vocabularies and bins."""
        return self._extractor.until(self.known) if self.known else self._extractor

    @cached_property
    def _extractor(self) -> MCMFeatureExtractor:
        return MCMFeatureExtractor.from_pretrained(self.folder / FEATURE_EXTRACTOR_FOLDER)

    @cached_property
    def rows(self) -> datasets.Dataset:
        """`datasets.Dataset`: all rows, as [`load_prepared`] opens them."""
        self.check()
        # Parquet can't be mapped into memory, so an Arrow copy is, which goes when the rows or this process do.
        # Workers that start meanwhile open it by its name. What a killed process leaves, the next one removes.
        with ExitStack() as stack:
            part = stack.enter_context(hold_part(ROWS_COPY))
            schema = pq.read_schema(self.folder / self.manifest.shards[0]["file"])
            with pa.OSFile(str(part / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as out:
                for shard in self.manifest.shards:
                    for batch in pq.ParquetFile(self.folder / shard["file"]).iter_batches(BATCH):
                        out.write_batch(self._cut(batch))
            rows = datasets.Dataset.from_file(str(part / "rows.arrow"))
            weakref.finalize(rows, _close, stack.pop_all(), os.getpid())
            return rows

    def _cut(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows as they were known."""
        if self.left_out:
            is_left_out = pc.is_in(batch[CUSTOMER], pa.array(sorted(self.left_out), pa.string()))
            batch = batch.filter(pc.invert(is_left_out))
        if not isinstance(self.until, str):
            rows = to_batch(pa.Table.from_batches([batch]))
            batch = from_batch(rows.before([self.until] * len(rows), self._extractor.layout), batch.schema)
        return cut_columns(batch, self.until if isinstance(self.until, str) else END, self.known)

    def check(self) -> None:
        """Reads every byte of the shards. Raises `ValueError` if a shard is not the one that the manifest lists."""
        check_digests(self.folder, {shard["file"]: shard["sha256"] for shard in self.manifest.shards})


def cut_columns(batch: pa.RecordBatch, until: str, known: Mapping[str, int]) -> pa.RecordBatch:
    """Columns of rows as they were known: later values are unknown, and `until` is the validation cutoff; at the end
    of the log it is the test cutoff, too."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for feature, size in known.items():
        for name in {f"feature_{feature}", f"task_{feature}"} & columns.keys():
            ids = columns[name].values
            ids = pc.if_else(pc.less(ids, size), ids, pa.scalar(UNKNOWN_ID, ids.type))
            columns[name] = pa.ListArray.from_arrays(columns[name].offsets, ids, columns[name].type)
    if until != CUTOFFS[0]:
        end = pc.list_value_length(columns["times"]) if until == END else columns[ENDS[1]]
        columns |= {ENDS[0]: end.cast(pa.int32()), ENDS[1]: end.cast(pa.int32())}
    return pa.record_batch([*columns.values()], schema=batch.schema)


def _close(stack: ExitStack, process: int) -> None:
    if os.getpid() == process:  # and not a forked worker
        stack.close()


def check_vocabularies(directory: str | Path, extractor: MCMFeatureExtractor) -> None:
    """Checks that the ids of a checkpoint mean the same values as the ids of a prepared data set; one of them may know
    more of the latest values. Raises `ValueError` if features, tasks, vocabularies or bins differ."""
    data = PreparedData(directory, END).extractor
    for what in ("feature_names", "tasks", "vocabularies", "bins"):
        ours, theirs = getattr(data, what), getattr(extractor, what)
        if what == "vocabularies" and ours.keys() == theirs.keys():
            sizes = {name: min(len(ours[name]), len(theirs[name])) for name in ours}
            ours, theirs = ({name: values[name][:size] for name, size in sizes.items()} for values in (ours, theirs))
        if ours != theirs:
            raise ValueError(
                f"The {what} of the data set {directory} and of the checkpoint differ: ids would mean other values. "
                "Evaluate on the data set that the checkpoint was trained on, or prepare the data anew "
                "with its feature extractor's vocabularies."
            )
