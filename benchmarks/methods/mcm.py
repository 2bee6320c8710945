# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM by its defaults: `mcm start`, which leaves the encoder out, and `mcm pretrain`."""

import subprocess
import sys
from functools import partial
from pathlib import Path

from logs import Log
from methods import Method, Ranker
from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.model import model_values
from modeling_mcm.training.checkpoints import open_checkpoint

WITHOUT, WITH = "MCM without encoder", "MCM"
TUNED = "when training ends and what the encoder weighs, on validation cases"


def checkpoint(data: PreparedData, seed: int, folder: Path, *more: str) -> str:
    """The folder of a model, which is trained where it is missing."""
    if not (folder / "pretraining.json").is_file():
        options = {
            "data": data.folder,
            "output_dir": folder,
            "seed": seed,
            "report_to": "none",
            "disable_tqdm": "true",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "modeling_mcm.commands.pretrain", *words, *more], check=True)
    return str(folder)


def fit(more: tuple[str, ...], log: Log, data: PreparedData, seed: int, folder: Path) -> Ranker:
    """Trains on all tasks of the log."""
    model, extractor = open_checkpoint(MCMForMultiTaskRecommendation, checkpoint(data, seed, folder, *more))

    def rank(cases):
        lists = {}
        return model_values(model, extractor, data.rows, cases, [*cases.targets], (10,), 64, lists), lists

    return rank


METHODS = [
    Method(name, partial(fit, more), seeds=True, tuned=TUNED, packages=("torch", "transformers"))
    for name, more in ((WITHOUT, ("--encoder", "none")), (WITH, ()))
]
