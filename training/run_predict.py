#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores every customer: a folder of Parquet files with customer embeddings and the best labels of every task.

    python training/run_predict.py --model runs/mine --data data/prepared --output_dir scores
    python training/run_predict.py --model runs/mine --events log.parquet --output_dir scores      a raw log
    accelerate launch --multi_gpu --num_processes 2 training/run_predict.py ...        two processes, on CPUs too

One row a customer: `customer_id`, `embedding`, and for each task the labels, best first, with their probabilities
among the task's labels (`TASK`, `TASK_scores`). The whole history is read, the window's latest events of a long one.
A raw log is read with the checkpoint's vocabularies; `training/run_drift.py` counts what is unknown to them.

Files hold --rows_per_file customers each and appear when they are whole. Run again after an interruption it goes on
with the files that are missing, in any number of processes, and ends with the same bytes. Memory holds one file's
histories and one batch's scores, however many customers there are. `pandas.read_parquet(output_dir)` reads all files.
"""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.data import (
    NO_CUTOFFS,
    EventSchema,
    check_vocabularies,
    load_prepared,
    prepare,
    schema_of,
)
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.data.dataset import MANIFEST_FILE, sha256_of
from modeling_mcm.processing_mcm import FIRST_VALUE_ID

from arguments import parse_options
from checkpoints import read_checkpoint
from memory import keep_freed_memory
from run_pretrain import check_launch

IDENTITY_FILE, HISTORIES = "_predictions.json", "_histories"  # readers of a folder of Parquet pass over such names


@dataclass
class PredictionOptions:
    """Who is scored, by what, and what is kept."""

    model: str = field(metadata={"help": "Checkpoint folder, or name on the Hub."})
    output_dir: str = field(metadata={"help": "Folder for the Parquet files."})
    data: str | None = field(default=None, metadata={"help": "Folder of a prepared data set."})
    events: str | None = field(
        default=None,
        metadata={"help": "Raw log instead: a .parquet, .csv or .tsv file, or a folder of Parquets."},
    )
    profile: str | None = field(default=None, metadata={"help": "Profile table of the raw log."})
    schema: str | None = field(
        default=None,
        metadata={"help": "Event schema of the raw log, for its on_null and on_duplicate. Default: the checkpoint's."},
    )
    tasks: list[str] = field(default_factory=list, metadata={"help": "Tasks that are kept; all by default."})
    top_k: int = field(default=10, metadata={"help": "Labels a task that are kept; 0 for embeddings alone."})
    embeddings: bool = field(default=True, metadata={"help": "Keep customer embeddings."})
    batch_size: int = field(default=64, metadata={"help": "Customers a step."})
    rows_per_file: int = field(default=2048, metadata={"help": "Customers in one file."})
    memory_limit: str = field(default="1GB", metadata={"help": "Memory DuckDB may use on a raw log before it spills."})

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.events):
            raise ValueError("Give --data, a prepared data set, or --events, a raw log.")
        if self.data and (self.profile or self.schema):
            raise ValueError("--profile and --schema belong to --events; --data has both in it.")
        if self.top_k < 0 or self.batch_size < 1 or self.rows_per_file < 1:
            raise ValueError("--top_k must be at least 0, --batch_size and --rows_per_file at least 1.")
        if not self.top_k and not self.embeddings:
            raise ValueError("--top_k 0 without --embeddings leaves nothing to write.")
        if self.tasks and not self.top_k:
            raise ValueError("--tasks names what is ranked; --top_k 0 ranks nothing.")


def model_digest(model: torch.nn.Module) -> str:
    """Hex digest of names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        for part in plain_parts(value):
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_parts(value: Any) -> list[torch.Tensor]:
    """The tensors that a weight is made of: itself, or numbers and scales of a quantised one."""
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    return [part for name in value.__tensor_flatten__()[0] for part in plain_parts(getattr(value, name))]


def prepare_log(options: PredictionOptions, extractor: MCMFeatureExtractor) -> str:
    """Histories of a raw log, as the checkpoint reads them; kept until all are scored, so that a rerun has them."""
    schema = schema_of(extractor)
    if options.schema:
        schema = replace(EventSchema.from_yaml(options.schema), cutoffs=NO_CUTOFFS)
    folder = Path(options.output_dir, HISTORIES)
    prepare(
        str(options.events),
        schema,
        folder,
        profile=options.profile,
        feature_extractor=extractor,
        memory_limit=options.memory_limit,
        overwrite=True,
        reuse=True,
    )
    return str(folder)


class Scorer:
    """From prepared rows to the columns of the output.

    Args:
        model: with the multi-task head, or without where only embeddings are wanted.
        extractor: of the checkpoint.
        tasks: that are ranked.
        options: of the command.
    """

    def __init__(self, model: Any, extractor: MCMFeatureExtractor, tasks: list[str], options: PredictionOptions):
        self.model, self.tasks, self.options = model, tasks, options
        self.collator = MCMCollator(extractor, model.config, "predict")
        self.values = {task: pa.array([None, None, *extractor.vocabularies[task]], pa.string()) for task in tasks}

    def tops(self, task: str) -> int:
        """Labels of a task that are kept."""
        return min(self.options.top_k, len(self.values[task]) - FIRST_VALUE_ID)

    def score(self, rows: list[dict[str, Any]], tell: Any) -> pa.Table:
        """The output of some customers, in their order; customers of similar length share a batch."""
        number = len(rows)
        embeddings = np.zeros((number, self.model.config.hidden_size), np.float32)
        labels = {task: np.zeros((number, self.tops(task)), np.int64) for task in self.tasks}
        scores = {task: np.zeros((number, self.tops(task)), np.float32) for task in self.tasks}
        read = [row["visits"][1 - self.collator.max_events :] for row in rows]
        by_visit = self.model.config.encoder_unit == "visit"
        order = np.argsort([len(np.unique(each)) if by_visit else len(each) for each in read], kind="stable")
        for start in range(0, number, self.options.batch_size):
            batch = order[start : start + self.options.batch_size]
            inputs = self.collator([rows[place] for place in batch])
            if not self.tasks:
                inputs.pop("event_times", None)
            with torch.inference_mode():
                outputs = self.model(**{name: value.to(self.model.device) for name, value in inputs.items()})
                embeddings[batch] = outputs.pooler_output.float().cpu().numpy()
                for task in self.tasks:
                    logits = outputs.logits[task].float()
                    best = logits.topk(self.tops(task))
                    labels[task][batch] = best.indices.cpu().numpy()
                    scores[task][batch] = (best.values - logits.logsumexp(-1, keepdim=True)).exp().cpu().numpy()
            tell(len(batch))
        columns: dict[str, Any] = {"customer_id": pa.array([row["customer_id"] for row in rows], pa.string())}
        if self.options.embeddings:
            columns["embedding"] = _lists(pa.array(embeddings.reshape(-1)), number)
        for task in self.tasks:
            columns[task] = _lists(self.values[task].take(pa.array(labels[task].reshape(-1))), number)
            columns[f"{task}_scores"] = _lists(pa.array(scores[task].reshape(-1)), number)
        return pa.table(columns)


def _lists(values: pa.Array, number: int) -> pa.ListArray:
    offsets = np.linspace(0, len(values), number + 1).round().astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def is_whole(path: Path, rows: int) -> bool:
    """Whether a file of an earlier run can stay."""
    try:
        return pq.read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def check_folder(folder: Path) -> None:
    """Raises `ValueError` for a folder with something else in it than predictions or what a killed run left."""
    own = (HISTORIES, f".{HISTORIES}.", f".{IDENTITY_FILE}.")
    others = [path for path in folder.glob("*") if not path.name.startswith(own)] if folder.is_dir() else []
    if others and not (folder / IDENTITY_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no predictions: choose another --output_dir.")


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Says in the folder what its files are made of, or checks that those there are made of the same.

    Raises:
        ValueError: if another command made them.
    """
    path = folder / IDENTITY_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        found = found if isinstance(found, dict) else {}
        if changed := sorted(name for name in identity if found.get(name) != identity[name]):
            raise ValueError(
                f"{folder} holds predictions of another {', '.join(changed)}: choose another --output_dir, or remove "
                "that one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.partial"):  # of a run that was killed
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    partial = folder / f".{IDENTITY_FILE}.partial"
    partial.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def parts(folder: Path, customers: int, rows_per_file: int) -> Iterator[tuple[Path, range]]:
    """The files and the customers of each."""
    number = math.ceil(customers / rows_per_file)
    for place in range(number):
        kept = range(place * rows_per_file, min(customers, (place + 1) * rows_per_file))
        yield folder / f"customers-{place:05d}-of-{number:05d}.parquet", kept


def run(options: PredictionOptions) -> str:
    """Scores this process's share of the files that are missing; returns what to say."""
    state, folder = PartialState(cpu=not torch.cuda.is_available()), Path(options.output_dir)
    check_launch(state.num_processes)
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    config = MCMConfig.from_pretrained(options.model)
    if wrong := [task for task in options.tasks if task not in config.tasks]:
        raise ValueError(f"No tasks {wrong}; the checkpoint has {', '.join(config.tasks)}.")
    tasks = (options.tasks or list(config.tasks)) if options.top_k else []
    model = read_checkpoint(MCMForMultiTaskRecommendation if tasks else MCMModel, options.model).eval()
    check_folder(folder)
    with state.main_process_first():
        data = options.data or prepare_log(options, extractor)
        check_vocabularies(data, extractor)
        rows = load_prepared(data)
        kept: dict[str, Any] = {"tasks": tasks, "top_k": options.top_k, "embeddings": options.embeddings}
        kept |= {"batch_size": options.batch_size, "rows_per_file": options.rows_per_file}
        digests = {"model": model_digest(model), "data": sha256_of(Path(data) / MANIFEST_FILE)}
        if state.is_main_process:
            claim(folder, digests | {"options": kept, "customers": len(rows)})
    missing = [part for part in parts(folder, len(rows), options.rows_per_file) if not is_whole(part[0], len(part[1]))]
    state.wait_for_everyone()  # all have looked before one writes, so all divide the same list
    own = missing[state.process_index :: state.num_processes]
    scorer, read = Scorer(model.to(state.device), extractor, tasks, options), PreparedRows(rows)
    total = sum(len(kept) for _, kept in own)
    with tqdm(total=total, desc="Scoring", unit="customer", disable=not state.is_main_process) as bar:
        for path, kept_rows in own:
            table = scorer.score(read.__getitems__(list(kept_rows)), bar.update)
            partial = path.with_name(f".{path.name}.partial")
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
    state.wait_for_everyone()
    if state.is_main_process and options.events:
        shutil.rmtree(folder / HISTORIES)
    return f"{folder}: {len(rows):,} customers, {len(missing)} files written, the others were there"


def main() -> None:
    """Reads the options, scores and says what was written."""
    keep_freed_memory()
    (options,) = parse_options(PredictionOptions, description=__doc__)
    try:
        said = run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"run_predict: {error}")
    if PartialState().is_main_process:
        sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
