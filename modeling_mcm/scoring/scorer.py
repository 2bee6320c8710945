# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores all customers: prepared customers in, files of embeddings and best labels out, in this process or on Spark.

The customers are cut into parts, and each part makes one file. Whoever takes a part reads it, scores it batch by batch
and writes it. So the bytes of a file do not depend on how many processes share the work, and the scores of all
customers are never in memory together.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from modeling_mcm.candidates_mcm import SEEN
from modeling_mcm.checkpoint_mcm import damage
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import read_known
from modeling_mcm.data.cases import to_batch
from modeling_mcm.data.collator import batches_by_length, map_on_cores
from modeling_mcm.data.dataset import IDENTITY_FILE, PreparedManifest
from modeling_mcm.data.offers import load_actions
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.events_mcm import check_columns, to_ids
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import atomic_write, read_json, remove_abandoned, write_json
from modeling_mcm.folders import file_digest
from modeling_mcm.inputs_mcm import CUSTOMER, PER_EVENT, Customers
from modeling_mcm.modeling_mcm import MCMPreTrainedModel
from modeling_mcm.predictor_mcm import (
    CHANCES,
    EMBEDDING,
    LABEL_COLUMNS,
    PREDICTED,
    PREDICTING,
    RANKING,
    SCORES,
    Columns,
    Predictor,
    Questions,
    Rows,
)
from modeling_mcm.training.checkpoints import checkpoint_digest, find_head, open_checkpoint

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

HISTORIES = "_histories"  # readers of Parquet folders skip such names
SEAL, BLOCK = "mcm", 2**20  # key of a seal in the metadata of a file; bytes that are read at a time
FOOTER = 8  # bytes at the end of Parquet: the length of the metadata, and four letters
OFFERS_AT_ONCE = 4096  # offers in a batch of the model


@dataclass(frozen=True)
class ScoringJob:
    """What is scored, by which model, and what is written: all that a worker on another machine needs to know.

    Args:
        data (`str`): Folder of a prepared data set.
        tasks (`tuple[str]`): Names of the tasks whose labels are ranked, or of the outcomes by which an
            [`MCMForActionRecommendation`] ranks the actions; empty where nothing is ranked.
        top_k (`int`): Number of labels that are written for each task.
        rows_per_file (`int`): Number of customers in one file.
        forecasts (`tuple[str]`): Names of the forecasts that are written, a column each; see
            [`~forecaster_mcm.CustomerForecasts`].
        as_of (`int`, *optional*): Time for which customers are scored, in seconds since 1970-01-01. Default: each
            customer's last event.
        candidates, exclude (`str`, *optional*): Files of tables, see [`CandidateSet`]; `exclude` may be "seen".
        per_group (`str`, *optional*): Largest number of labels of each value of a feature, as "category=2".
        horizon_days (`float`, *optional*): 30: labels are ranked that come within 30 days, not in the next visit.
        forecast_days (`tuple[float]`, *optional*): Horizons of the forecasts. Default: those of the checkpoint.
        actions (`str`, *optional*): File of the table of actions that an [`MCMForActionRecommendation`] scores.
        label_columns (`str`, *optional*): File of a table of `customer_id` and the further columns that an
            [`MCMForCustomerPrediction`] was fine-tuned with.
        known (`str`, *optional*): File of a table of days, as [`read_known`] reads it.
        discount_rate (`float`, *optional*): Adds what forecasts are worth now, see [`Questions`].

    Raises:
        ValueError: If two columns of the files would have the same name.
    """

    model: str
    data: str
    output_dir: str
    tasks: tuple[str, ...]
    top_k: int
    embeddings: bool
    batch_size: int
    rows_per_file: int
    forecasts: tuple[str, ...] = ()
    as_of: int | None = None
    candidates: str | None = None
    exclude: str | None = None
    per_group: str | None = None
    horizon_days: float | None = None
    forecast_days: tuple[float, ...] | None = None
    actions: str | None = None
    label_columns: str | None = None
    known: str | None = None
    discount_rate: float | None = None
    later_counts: bool = False

    def __post_init__(self) -> None:
        columns = [CUSTOMER, EMBEDDING, *self.tasks, *self.forecasts]
        columns += [name + end for name in self.tasks for end in (SCORES, CHANCES)]
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise ValueError(
                f"The predictions would have two columns {twice[0]!r}: each task makes TASK, TASK{SCORES} and "
                f"TASK{CHANCES}, beside {CUSTOMER}, {EMBEDDING} and the forecasts. Give the feature another name in "
                "the event schema, or leave the task out (--tasks)."
            )

    def parts(self, customers: int) -> list[tuple[Path, range]]:
        """Divides a number of customers into files: for each its path, and the indices of its customers."""
        step = self.rows_per_file
        parts = [range(customers)[start : start + step] for start in range(0, customers, step)]
        name = "customers-{:05d}-of-{:05d}.parquet"
        return [(Path(self.output_dir, name.format(index, len(parts))), part) for index, part in enumerate(parts)]


def write_sealed(path: Path, table: pa.Table) -> None:
    """Writes a file of predictions whole or not at all, with a seal in its metadata, by which [`is_sealed`] knows it
    again."""
    with (
        atomic_write(path) as partial,
        open(partial, "wb") as file,
        pq.ParquetWriter(file, table.schema, compression="zstd") as out,
    ):
        out.write_table(table)
        file.flush()
        out.add_key_value_metadata({SEAL: _compute_seal(partial, file.tell(), path)})


def is_sealed(path: Path) -> bool:
    """Says whether a file of predictions is as [`write_sealed`] wrote it: not absent, cut, edited, or copied from
    another name or folder."""
    try:
        with pq.ParquetFile(path) as parquet:
            seal = (parquet.metadata.metadata or {}).get(SEAL.encode(), b"").decode()
        with open(path, "rb") as file:
            file.seek(-FOOTER, os.SEEK_END)
            end = file.tell() - int.from_bytes(file.read(4), "little")
        return seal == _compute_seal(path, end, path)
    except (OSError, ValueError):
        return False


def _compute_seal(path: Path, end: int, place: Path) -> str:
    """Digest of what the predictions of a folder are made of, of the name of one of its files, and of the values that
    the file at `path` holds: all its bytes up to the metadata at `end`."""
    identity = place.with_name(IDENTITY_FILE)
    digest = hashlib.sha256(identity.read_bytes() if identity.is_file() else b"")
    digest.update(place.name.encode())
    with open(path, "rb") as file:
        while block := file.read(min(BLOCK, end - file.tell())):
            digest.update(block)
    return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Raises `ValueError` if a folder holds anything but predictions, or what a run that was killed left there."""
    own = (HISTORIES, f".{HISTORIES}.", f".{IDENTITY_FILE}.", ".changes.")
    others = [path for path in folder.glob("*") if not path.name.startswith(own)] if folder.is_dir() else []
    if others and not (folder / IDENTITY_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no predictions: choose another --output_dir.")


def digest_tables(job: ScoringJob) -> list[str]:
    """Digests of the tables of a job. Raises `FileNotFoundError` if there is no such file."""
    tables = (job.candidates, job.exclude, job.actions, job.label_columns, job.known)
    return [file_digest(name) for name in tables if name is not None and name != SEEN]


def claim(job: ScoringJob, digests: Mapping[str, object], customers: int) -> None:
    """Writes into the folder of a job what its predictions are made of, or checks that its files are made of the same:
    of the `digests` of a model, of data and of tables, and of the job's options. Raises `ValueError` if the folder
    holds predictions that are made of something else. The message names what differs."""
    options = {name: value for name, value in asdict(job).items() if name not in ("model", "data", "output_dir")}
    identity = json.loads(json.dumps({**digests, "options": options, "customers": customers}))
    folder = Path(job.output_dir)
    path = folder / IDENTITY_FILE
    if path.is_file():
        earlier = {} if damage(path) else read_json(path)
        if changed := sorted(name for name in identity if earlier.get(name) != identity[name]):
            raise ValueError(
                f"{folder} holds predictions of another {', '.join(changed)}: choose another --output_dir, or remove "
                "that one."
            )
    remove_abandoned(folder)
    write_json(path, identity, indent=1)


class BatchScorer:
    """Computes the columns of the output from prepared rows: what a model with a head was trained to, or embeddings
    and forecasts. An [`MCMForCustomerPrediction`] gives a column `predicted_NAME` for each class or number."""

    def __init__(self, model: MCMPreTrainedModel, extractor: MCMFeatureExtractor, job: ScoringJob):
        self.model, self.extractor, self.job = model.eval(), extractor, job
        self.predictor, self.batch_size = Predictor(model, extractor), job.batch_size
        self.progress = bool  # is told how many customers were scored
        self.columns = {}
        if job.label_columns is not None:
            table = read_table_file(job.label_columns, [CUSTOMER])
            check_columns([*table], [CUSTOMER], f"{job.label_columns} has")
            self.columns = table.set_axis(to_ids(table.pop(CUSTOMER))).to_dict("index")
        self.asked = self.predictor.check(self._read_questions())
        self.actions: list[str] = []  # ids of the actions that are scored
        if self.asked.actions is not None:
            self.actions = [*self.asked.actions.action_ids]
            labels = {task: self.actions for task in job.tasks}
            self.batch_size = max(1, min(job.batch_size, OFFERS_AT_ONCE // len(self.actions)))
        else:
            labels = {task: self.asked.candidates.values(task) for task in job.tasks}  # type: ignore[union-attr]
        self.values = {task: pa.array([*[None] * FIRST_LABEL, *values]) for task, values in labels.items()}
        self.shards = PreparedManifest.load(job.data).shards

    def _read_questions(self) -> Questions:
        """What the job asks."""
        job, head = self.job, self.predictor.head
        if job.actions is not None:
            actions = load_actions(job.actions, self.extractor, self.model.config, job.as_of)
            return Questions(job.as_of, offers=actions)
        if head == PREDICTING:
            return Questions(job.as_of, label=True)
        return Questions(
            job.as_of,
            job.tasks,
            max(job.top_k, 1),
            candidates=job.candidates and read_table_file(job.candidates),
            exclude=job.exclude if job.exclude in (None, SEEN) else read_table_file(job.exclude),
            per_group=job.per_group,
            horizon_days=job.horizon_days,
            embedding=job.embeddings,
            forecasts=bool(job.forecasts),
            days=job.forecast_days,
            known=read_known(job.known),
            discount_rate=job.discount_rate,
            later_counts=job.later_counts,
        )

    def write(self, path: Path, indices: range) -> None:
        """Scores the customers with these indices in the data set, and writes their file whole or not at all. The
        errors are those of [`score`]; an `OSError` is raised if the file can't be written."""
        write_sealed(path, self.score(self.read(indices)))

    def read(self, indices: range, tasks: Sequence[str] | None = None) -> Rows:
        """Reads the rows of the customers with these indices, as `PreparedRows` gives them, with the columns of events
        that the answers need, and the labels of `tasks`, by default those of the job."""
        job, tables, start = self.job, [], 0
        parts, features = [EMBEDDING] * job.embeddings + [*job.forecasts], None
        if self.predictor.head == RANKING:
            features = self.predictor.find_features(job.tasks, job.horizon_days, parts)
        needed = {"times", "visits", *(f"task_{task}" for task in (job.tasks if tasks is None else tasks))}
        read = self.extractor.feature_names if features is None else (*features, self.extractor.token_type_feature)
        needed |= {f"{kind}_{name}" for name in read for kind in ("feature", "value")}
        columns = pq.read_schema(Path(job.data, self.shards[0]["file"])).names
        columns = [name for name in columns if name in needed or not name.startswith(PER_EVENT)]
        for shard in self.shards:
            first, end = max(indices.start - start, 0), indices.stop - start  # among the rows of the shard
            if first < min(end, shard["rows"]):
                tables.append(pq.read_table(Path(job.data, shard["file"]), columns=columns)[first:end])
            start += shard["rows"]
        return to_batch(pa.concat_tables(tables)).known(self.extractor.layout.sizes)  # the data may be newer

    def score(self, rows: Rows) -> pa.Table:
        """Scores some customers. Customers of similar length share a batch. Returns `pyarrow.Table`: one row per
        customer, in the order of `rows`: `customer_id`; optionally `embedding`, a list of float32; a float32 column
        per forecast; and by task its best labels, a list of text in
        the column `<task>`, with their probabilities, a list of float32 in `<task>_scores`, and the chances that they
        come in `<task>_chances`, if the checkpoint has them; outcomes rank the actions likewise.
        Raises `ValueError` if the model gives NaN or infinite numbers."""
        rows = Customers.of(rows)
        parts: list[Columns] = []
        batches = batches_by_length(rows.lengths, self.batch_size)
        for part in map_on_cores(lambda batch: self._ask(rows.take(batch)), batches, self.model.device):
            self.progress(len(batches[len(parts)]))
            parts.append(part)
        places = np.argsort(np.concatenate(batches))
        found = {name: torch.cat([part[name] for part in parts]).numpy()[places] for name in parts[0]}
        self._check_finite(rows, [values for name, values in found.items() if not name.endswith(CHANCES)])
        columns = {CUSTOMER: pa.array(rows.column(CUSTOMER), pa.string())}
        for name, values in found.items():
            columns[name] = pa.array(values if values.ndim == 1 else list(values))
        for task in self.job.tasks:
            is_label = found[task] > 0
            offsets = pa.array(np.append(0, is_label.sum(1).cumsum()).astype(np.int32))
            for name in {task, task + SCORES, task + CHANCES} & found.keys():
                entries = pa.array(found[name][is_label])
                entries = self.values[task].take(entries) if name == task else entries
                columns[name] = pa.ListArray.from_arrays(offsets, entries)
        return pa.table(columns)

    def _ask(self, rows: Rows) -> Columns:
        """What the job asks of some customers, by column."""
        job, rows = self.job, Customers.of(rows)
        if self.asked.label:
            rows = replace(
                rows, columns=rows.columns | {LABEL_COLUMNS: [*map(self.columns.get, rows.columns[CUSTOMER])]}
            )
        columns = self.predictor.ask(rows, self.asked)
        if self.asked.label:
            return {PREDICTED + name: values for name, values in columns.items()}
        if self.asked.actions is None:
            return columns
        ranked = {}
        for name, chances in columns.items():
            order = chances.sort(descending=True, stable=True)  # (B, K)
            ranked[name] = order.indices[:, : job.top_k] + FIRST_LABEL
            ranked[name + SCORES] = order.values[:, : job.top_k]
        return ranked

    def _check_finite(self, rows: Rows, outputs: Sequence[NDArray]) -> None:
        bad = ~np.all([np.isfinite(values.reshape(len(rows), -1)).all(axis=1) for values in outputs], axis=0)
        if bad.any():
            raise ValueError(
                f"{self.job.model} gives NaN or infinite numbers for {bad.sum()} of {len(rows)} customers, the first "
                f"{rows[int(bad.argmax())][CUSTOMER]!r}: its training has diverged, or its weights are damaged. Give "
                "an earlier checkpoint."
            )


def score_on_spark(session: "SparkSession", job: ScoringJob, digest: str, parts: Sequence[tuple[Path, range]]) -> None:
    """Scores parts on the workers of a Spark session, each part as one Spark task. The workers must reach the model,
    the data and the output folder by the same names as this process. An `OSError` is raised if a worker failed, reads
    a model of another digest, or writes to another disk than this process reads."""
    from modeling_mcm.preparation.engine import worker_errors

    if not parts:
        return
    write = functools.partial(_write_parts, job, digest, parts)
    with worker_errors():
        session.range(0, len(parts), 1, len(parts)).mapInArrow(write, "part long").toArrow()
    if absent := [path.name for path, _ in parts if not path.is_file()]:
        raise OSError(
            f"{absent[0]} was written by a worker and is not in {job.output_dir}: give an output folder on storage "
            "that all machines of the cluster share."
        )


@functools.lru_cache(1)
def _scorer(job: ScoringJob, digest: str) -> BatchScorer:
    """The scorer of a worker, which stays in memory for the worker's other parts."""
    model, extractor = open_checkpoint(find_head(job.model), job.model)
    if checkpoint_digest(model, extractor) != digest:
        raise ValueError(f"A worker finds another model at {job.model}: give a folder that all machines share.")
    return BatchScorer(model, extractor, job)


def _write_parts(
    job: ScoringJob, digest: str, parts: Sequence[tuple[Path, range]], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for index in batch.column(0).to_pylist():
            _scorer(job, digest).write(*parts[index])
        yield pa.RecordBatch.from_arrays([batch.column(0)], ["part"])
