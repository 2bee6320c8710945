# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines of `mcm evaluate`: four that count, and LightGBM on counts."""

from functools import partial
from pathlib import Path

from logs import Log
from methods import Method, Ranker
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.comparison import BASELINES, evaluate_baseline

NAMES = {
    "popularity": "most_popular",
    "visit frequency": "visit_frequency",
    "neighbours": "nearest_customers",
    "transitions": "transitions",
    "LightGBM": "lightgbm",
}
OF_REPEATS = (
    "visit_frequency",
    "lightgbm",
)  # where no label is ranked that the customer has seen, they have nothing to say
TUNED = {"visit_frequency": "the half-life, on training data", "lightgbm": "the number of trees, on training data"}


def fit(name: str, log: Log, data: PreparedData, seed: int, folder: Path) -> Ranker | None:
    """Fits a baseline to each task."""
    if name in OF_REPEATS and log.questions[0].only_new:
        return None
    sizes = {task: len(data.extractor.vocabularies[task]) + FIRST_LABEL for task in log.tasks}
    fitted = {task: BASELINES[name]().fit(data.rows, task, size) for task, size in sizes.items()}

    def rank(cases):
        lists = {}
        if name == "visit_frequency" and cases.seen:
            return {}, lists
        return {task: evaluate_baseline(each, data.rows, cases, (10,), lists) for task, each in fitted.items()}, lists

    return rank


METHODS = [
    Method(
        title,
        partial(fit, name),
        tuned=TUNED.get(name, "nothing"),
        packages=("numpy", *(["lightgbm"] * (name == "lightgbm"))),
    )
    for title, name in NAMES.items()
]
