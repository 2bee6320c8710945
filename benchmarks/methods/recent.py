# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What was popular lately: counts of the latest days of the training period, the same for every customer."""

from pathlib import Path

import numpy as np

from logs import Log
from methods import Method, Ranker
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.baselines import MostPopular
from modeling_mcm.evaluation.cases import cases_at, unseen_only
from modeling_mcm.evaluation.comparison import evaluate_baseline
from modeling_mcm.events_mcm import SECONDS_PER_DAY

DAYS = (3, 7, 14, 30, 90)  # of which the best on validation are taken


class RecentlyPopular(MostPopular):
    """Labels by their events in the latest days before the end of the training period."""

    def __init__(self, days: int):
        self.days = days

    def _start(self, customers: int) -> None:
        self._parts: list[np.ndarray] = []

    def _observe(self, history) -> None:
        self._parts.append(np.stack([history.time, history.label]))

    def _finish(self) -> None:
        time, label = np.concatenate(self._parts, axis=1)
        is_recent = time > time.max() - self.days * SECONDS_PER_DAY
        self.popularity = np.bincount(label[is_recent], minlength=self.number_of_labels).astype(float)


def fit(log: Log, data: PreparedData, seed: int, folder: Path) -> Ranker | None:
    """Counts each task in the days that rank the validation cases of the main question best; None without times."""
    if data.schema.scoring_time("validation") is None:
        return None
    question = log.questions[0]
    validation = cases_at(data, "validation", horizon_days=question.horizon_days)
    if question.only_new:
        validation = unseen_only(data.rows, validation)
    best = {}
    for task in log.tasks:
        size = len(data.extractor.vocabularies[task]) + FIRST_LABEL
        each = [RecentlyPopular(days).fit(data.rows, task, size) for days in DAYS]
        found = [evaluate_baseline(one, data.rows, validation)["next_visit_ndcg@10"] for one in each]
        best[task] = each[int(np.argmax([np.nanmean(values) for values in found]))]

    def rank(cases):
        lists = {}
        return {task: evaluate_baseline(one, data.rows, cases, (10,), lists) for task, one in best.items()}, lists

    return rank


METHODS = [Method("recent popularity", fit, tuned="the number of days, on validation cases")]
