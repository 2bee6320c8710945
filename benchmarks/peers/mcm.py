# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM, through training/run_pretrain.py and what training/run_predict.py scores with; it reads the prepared data set.

All tasks are trained and all are ranked; the items that are written are those of one.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import PreparedRows, unit_counts
from modeling_mcm.scoring import Scorer, ScoringJob

from protocol import Task, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from floor import Shape, floor
from modeling_mcm.training.memory import keep_freed_memory

TRAINING = Path(__file__).resolve().parents[2] / "training"


def method(task: Task) -> dict[str, float]:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"hidden_size={task.hidden}", f"num_hidden_layers={task.layers}"]
        sizes += [f"num_attention_heads={task.heads}", f"intermediate_size={4 * task.hidden}"]
        options = {
            "data": task.more["data"],
            "config": task.more["config"],
            "recipe": "none",
            "max_events": task.length + 1,
            "max_seconds": task.seconds,
            "num_train_epochs": 10**4,
            "per_device_train_batch_size": task.batch_size,
            "learning_rate": task.learning_rate,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": "true",
            "dataloader_num_workers": 0,  # no process beside it, as with the peers
            "output_dir": folder,
            **task.more.get("options", {}),
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        flags += ["--config_overrides", *sizes, *task.more.get("overrides", []), *task.more.get("flags", [])]
        command = [sys.executable, str(TRAINING / "run_pretrain.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        facts = json.loads(Path(folder, "pretraining.json").read_text(encoding="utf-8"))
        model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()
    steps = math.ceil(facts["customers"] / task.batch_size)  # of an epoch; its last batch is smaller
    training = facts["steps"] / steps * facts["customers"] / facts["seconds"]
    result = {"training": training, "targets": facts["targets"] / facts["seconds"], **predict(task, model)}
    least = fewest_seconds(task, model)
    return result | {f"{name}_of_floor": seconds * result[name] for name, seconds in least.items()}


def fewest_seconds(task: Task, model: MCMForMultiTaskRecommendation) -> dict[str, float]:
    """The floor of training and of inference, a customer."""
    rows, config = PreparedData(task.more["data"]).rows, model.config
    ends = np.asarray(rows["validation_end"])
    shape = Shape(
        label_sizes=list(config.label_sizes.values()),
        features=len(config.features),
        batch_size=task.batch_size,
        events=round(np.minimum(ends + 1, task.length + 1).mean()),
        units=round(unit_counts(rows, ends, config, task.length + 1).mean()),
    )
    least = floor(shape, config.to_dict())
    training = least["training step"]["floor_ms"] / task.batch_size
    return {"training": training / 1e3, "inference": least["scoring a customer"]["floor_ms"] / 1e3}


def before_validation(row: dict[str, Any]) -> dict[str, Any]:
    """The history that the peers are given too."""
    end = row["validation_end"]
    return {name: value[:end] if isinstance(value, np.ndarray) else value for name, value in row.items()}


def predict(task: Task, model: MCMForMultiTaskRecommendation) -> dict[str, float]:
    """Customers a second, from prepared rows to the best labels of every task."""
    data = PreparedData(task.more["data"])
    extractor = data.extractor
    extractor.max_events = task.length + 1
    job = ScoringJob(
        model="",
        data=task.more["data"],
        output_dir="",
        tasks=tuple(model.config.tasks),
        top_k=task.top,
        embeddings=False,
        batch_size=task.inference_batch_size,
        rows_per_file=1,
    )
    scorer = Scorer(model, extractor, job)
    rows, customers = PreparedRows(data.rows), set(task.read()[0])
    start = time.perf_counter()
    scores = scorer.score([before_validation(row) for row in rows.__getitems__(range(len(rows)))])
    inference = len(rows) / (time.perf_counter() - start)
    names = {name: index for index, name in enumerate(extractor.vocabularies[task.more["task"]])}
    lists = zip(scores["customer_id"].to_pylist(), scores[task.more["task"]].to_pylist(), strict=True)
    best = {customer: [names[name] for name in labels] for customer, labels in lists if customer in customers}
    task.write(list(best), np.array(list(best.values())))
    return {"inference": inference}


if __name__ == "__main__":
    run(method)
