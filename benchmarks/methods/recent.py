# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What was popular lately: counts of the latest days of the training period, the same for every customer."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logs import Log
from methods import TOP, Method, answer_with_lists, judge, labelled_events, select_cases
from modeling_mcm.data import PreparedData

DAYS = (3, 7, 14, 30, 90)  # of which the best on validation are taken
SECONDS_PER_DAY = 86_400


def rank(events, days: int) -> NDArray[np.int64]:
    """Labels by their events in the latest days before the validation cutoff, the most frequent first."""
    past = events[events["part"] == 0]
    return past["item"][past["time"] > past["time"].max() - days * SECONDS_PER_DAY].value_counts().index.to_numpy()


def take(ranking: NDArray[np.int64], cases, task: str) -> NDArray[np.int64]:
    """The first ten labels for each case, of those that it may have."""
    lists = np.zeros((len(cases), TOP), np.int64)
    for index, row in enumerate(lists):
        seen = cases.seen[task][[index]].indices if task in cases.seen else []
        first = ranking[: TOP + len(seen)]
        first = first[~np.isin(first, seen)][:TOP]
        row[: len(first)] = first
    return lists


def fit(log: Log, data: PreparedData, seed: int, folder: Path):
    """Counts each task in the days that rank the validation cases of the main question best; None without times."""
    if data.schema.scoring_time("validation") is None:
        return None
    validation, best = select_cases(data, log.questions[0], "validation"), {}
    for task in log.tasks:
        events = labelled_events(data, task)
        rankings = [rank(events, days) for days in DAYS]
        found = [judge(data, validation, task, take(one, validation, task)).ndcg for one in rankings]
        best[task] = rankings[int(np.argmax([np.nanmean(values) for values in found]))]
    return answer_with_lists(data, log.tasks, lambda cases, task: take(best[task], cases, task))


METHODS = [Method("recent popularity", fit, tuned="the number of days, on validation cases")]
