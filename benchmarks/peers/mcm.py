# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM, through training/run_pretrain.py and what training/run_predict.py scores with; it reads the prepared data set.

All tasks are trained, and the one is ranked that the others know.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.scoring import BatchScorer, ScoringJob, keep_freed_memory

from protocol import Task, run

TRAINING = Path(__file__).resolve().parents[2] / "training"
FIRST_STEPS = 20  # of a short training, which says how many steps the seconds are worth


WITHOUT_ENCODER = "MCM without encoder"


def train(task: Task, steps: int, folder: Path) -> dict[str, Any]:
    """Trains for so many steps, and returns the facts of the run."""
    options = {
        "data": task.more["data"],
        "config": "configuration/mcm-tiny",
        "recipe": "none",
        "max_events": task.length + 1,  # the encoder reads as many as the peers
        "max_steps": steps,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": task.learning_rate,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "dataloader_num_workers": 0,  # no process beside it, as with the peers
        "output_dir": folder,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    flags += ["--config_overrides", f"hidden_size={task.hidden}", f"num_hidden_layers={task.layers}"]
    flags += [f"num_attention_heads={task.heads}", f"intermediate_size={4 * task.hidden}"]
    if task.method == WITHOUT_ENCODER:
        choices = {name: str(options[name]) for name in ("data", "output_dir", "report_to", "disable_tqdm")}
        flags = ["--encoder", "none", *(word for name, value in choices.items() for word in (f"--{name}", value))]
    done = subprocess.run([sys.executable, str(TRAINING / "run_pretrain.py"), *flags], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))


def method(task: Task) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        first = train(task, FIRST_STEPS, Path(folder, "first"))
        if task.method == WITHOUT_ENCODER:  # its counts are no steps
            model = MCMForMultiTaskRecommendation.from_pretrained(Path(folder, "first")).eval()
            return {"training": math.nan, **predict(task, model)}
        steps = max(round(task.seconds * FIRST_STEPS / first["seconds"]), 1)
        facts = train(task, steps, Path(folder, "whole"))
        model = MCMForMultiTaskRecommendation.from_pretrained(Path(folder, "whole")).eval()
    model.scorer.reads.fill_(True)  # as where the encoder pays: after so short a training it is refused
    steps = math.ceil(facts["customers"] / task.batch_size)  # of an epoch; its last batch is smaller
    training = facts["steps"] / steps * facts["customers"] / facts["seconds"]
    return {"training": training, **predict(task, model)}


def before_validation(row: Mapping, length: int) -> dict:
    """The history that the peers are given too: of their latest events they read so many, and counts as many here."""
    end = row["validation_end"]
    read = slice(max(end - length, 0), end)
    return {name: value[read] if isinstance(value, np.ndarray) else value for name, value in row.items()}


def predict(task: Task, model: MCMForMultiTaskRecommendation) -> dict[str, float]:
    """Customers a second, from prepared rows to the best labels of the task."""
    extractor = PreparedData(task.more["data"]).extractor
    job = ScoringJob(
        model="",
        data=task.more["data"],
        output_dir="",
        tasks=(task.more["task"],),
        top_k=task.top,
        embeddings=False,
        batch_size=task.inference_batch_size,
        rows_per_file=1,
    )
    scorer = BatchScorer(model, extractor, job)
    keep_freed_memory()  # as `mcm predict` does
    start = time.perf_counter()
    rows = [before_validation(row, task.length) for row in scorer.read(range(sys.maxsize))]
    scorer.score(rows)
    return {"inference": len(rows) / (time.perf_counter() - start)}


if __name__ == "__main__":
    run(method)
