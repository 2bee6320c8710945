# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM by its defaults: `mcm start`, which leaves the encoder out, and `mcm pretrain`."""

from functools import partial
from pathlib import Path

from logs import Log, Question, run_mcm
from methods import Answers, Method, evaluate
from modeling_mcm.data import PreparedData

WITHOUT, WITH = "MCM without encoder", "MCM"
COMMANDS = {WITHOUT: "start", WITH: "pretrain"}
TUNED = "when training ends and which tasks read the encoder, on validation cases"


def train(name: str, data: PreparedData, seed: int, folder: Path) -> Path:
    """The folder of a model, which is trained where it is missing."""
    if not (folder / "pretraining.json").is_file():
        options = {"seed": seed, "report_to": "none", "disable_tqdm": "true"}
        run_mcm(COMMANDS[name], data=data.folder, output_dir=folder, **options)
    return folder


def fit(name: str, log: Log, data: PreparedData, seed: int, folder: Path):
    """Trains on all tasks of the log."""
    model = train(name, data, seed, folder)

    def answer(question: Question) -> Answers:
        return evaluate(data.folder, model, log.tasks, question)["MCM"]

    return answer


METHODS = [
    Method(name, partial(fit, name), seeds=True, tuned=TUNED, packages=("torch", "transformers")) for name in COMMANDS
]
