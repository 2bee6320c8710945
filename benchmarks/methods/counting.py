# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines of `mcm evaluate`, beside MCM without encoder: four that count, and LightGBM on counts."""

from functools import partial
from pathlib import Path

from logs import Log, Question
from methods import Answers, Method, evaluate
from methods.mcm import WITHOUT, train
from modeling_mcm.data import PreparedData

COUNTING = {
    "popularity": "most_popular",
    "visit frequency": "visit_frequency",
    "neighbours": "nearest_customers",
    "transitions": "transitions",
}
TREES = {"LightGBM": "lightgbm"}
OF_REPEATS = ("visit frequency", "LightGBM")  # of what a customer never had they know nothing
TUNED = {"visit frequency": "the half-life, on training data", "LightGBM": "the number of trees, on training data"}


def fit(name: str, log: Log, data: PreparedData, seed: int, folder: Path):
    """Finds the model beside which the baselines are evaluated."""
    if name in OF_REPEATS and log.questions[0].only_new:
        return None
    model = train(WITHOUT, data, 0, folder.with_name(f"{WITHOUT.replace(' ', '_')}.0"))
    group = COUNTING if name in COUNTING else TREES

    def answer(question: Question) -> Answers:
        if name == "visit frequency" and question.only_new:
            return {}
        return evaluate(data.folder, model, log.tasks, question, *group.values())[group[name]]

    return answer


METHODS = [
    Method(
        name,
        partial(fit, name),
        tuned=TUNED.get(name, "nothing"),
        packages=("numpy", *(["lightgbm"] * (name in TREES))),
    )
    for name in COUNTING | TREES
]
