# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""LightGBM lambdarank on counts and recency, the baseline that a careful analyst would build. Needs the extra `gbdt`.

A case is a customer at the end of a visit, and the task is to rank the labels of the next visit. Its candidates are
the labels of the customer's history and the most popular others. Features are the numbers of a history that
`features_mcm` names, computed at the end of the last visit; and of the label among all customers, in the periods of
the training that were complete by then: share of visits and recent share, visits with it of a customer who has any,
how often the very next visit has it again, the mean gap in visits and days.

Shapes: C cases, N candidates of all cases together, F features, V labels.
"""

import logging
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import compute_offsets
from modeling_mcm.events_mcm import number_groups, run_starts
from modeling_mcm.extras import needs
from modeling_mcm.features_mcm import describe_histories

from .baselines import Baseline
from .histories import TaskHistory, VisitSets
from .metrics import ratio

logger = logging.getLogger(__name__)
PERIOD_DAYS, MAX_PERIODS, RECENT_PERIODS = 7, 52, 4
PARAMETERS = {
    "objective": "lambdarank",
    "learning_rate": 0.1,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
    "num_threads": 1,  # tasks share the cores
}


class LabelStatistics:
    """Statistics of each label over all customers, as they were at the end of each period of the training time. Five
    arrays of up to 53 x V numbers are held in memory."""

    def __init__(self, visits: VisitSets, number_of_labels: int):
        self.start = np.min(visits.day)
        span = np.max(visits.day) - self.start
        self.days = max(PERIOD_DAYS, span / MAX_PERIODS)
        self.periods = int(span // self.days) + 1
        period = self.complete_periods(visits.day)
        self.visits = compute_offsets(np.bincount(period, minlength=self.periods))
        sums = visits.count_occurrences(period + 1, self.periods + 1, number_of_labels)
        # By period and label everything before the period: see `VisitSets.count_occurrences`
        self.sums = np.cumsum(sums, axis=1)

    def complete_periods(self, day: NDArray) -> NDArray:
        return np.clip((day - self.start) // self.days, 0, self.periods).astype(np.int64)

    def popular(self, day: NDArray, number: int) -> NDArray:
        """Finds the most popular labels before times in days since 1970, as ids of shape `(len(day), number)`."""
        periods, period_index = np.unique(self.complete_periods(day), return_inverse=True)
        seen = self.sums[0, periods, FIRST_LABEL:]
        return FIRST_LABEL + np.argsort(-seen, axis=1, kind="stable")[period_index, :number]

    def features(self, day: NDArray, label: NDArray) -> dict[str, NDArray]:
        """Computes features of labels `(N,)` at times `(N,)`, in days since 1970."""
        as_of = self.complete_periods(day)
        before = np.maximum(as_of - RECENT_PERIODS, 0)
        seen, again, at_once, gap_visits, gap_days = self.sums[:, as_of, label]
        visits, recent = self.visits[as_of], seen - self.sums[0, before, label]
        return {
            "label_share": seen / np.maximum(visits, 1),
            "label_recent_share": recent / np.maximum(visits - self.visits[before], 1),
            "label_visits_a_customer": seen / np.maximum(seen - again, 1),
            "label_met_at_once": at_once / np.maximum(seen, 1),
            "label_gap_visits": ratio(gap_visits, again),
            "label_gap_days": ratio(gap_days, again),
        }


class Candidates(NamedTuple):
    """The candidate labels of all cases; those of one case stand together. Ids are int64."""

    case: NDArray  # (N,): index of each candidate's case, ascending
    label: NDArray  # (N,): label id of each candidate
    features: pd.DataFrame  # (N, F): features in float32; NaN if a feature has no value


def find_candidates(
    visits: VisitSets, customer: NDArray, end: NDArray, statistics: LabelStatistics, popular: int
) -> Candidates:
    """Finds the candidate labels of cases and computes their features, from visits before `end` alone.

    Args:
        customer (`numpy.ndarray`, shape `(C,)`): Index of each case's customer.
        end (`numpy.ndarray`, shape `(C,)`): Index of the visit after each case's history, which has at least one
            visit.
        popular (`int`): Number of the most popular labels that are candidates of every case.
    """
    as_of, size, first_row = visits.day[end - 1], statistics.sums.shape[2], visits.first_row
    start = first_row[visits.first_visit[customer]]
    case, row = number_groups(first_row[end] - start, start)
    # A visit is a moment, and days stand for gaps
    ago = np.stack([end[case] - 1 - visits.visit[row]] * 2 + [as_of[case] - visits.day[visits.visit[row]]])
    cells = torch.from_numpy(case * size + visits.label[row])
    kind = torch.zeros_like(cells)
    seen = describe_histories(torch.from_numpy(case), cells, kind, torch.from_numpy(ago), len(end))
    own_keys = seen.cell.numpy()
    keys = np.arange(len(end))[:, None] * size + statistics.popular(as_of, popular)
    keys = np.concatenate([own_keys, keys[~np.isin(keys, own_keys)]])
    order = np.argsort(keys)
    case, label = np.divmod(keys[order], size)
    columns = {}
    for name, values in seen.columns.items():
        columns[name] = np.append(values.numpy(), np.zeros(len(keys) - len(own_keys)))[order]
    columns |= {name: values.numpy()[case] for name, values in seen.customers.items()}
    columns |= statistics.features(as_of[case], label)
    return Candidates(case, label, pd.DataFrame(columns, dtype=np.float32))


class LightGBMRanker(Baseline):
    """LightGBM with the objective lambdarank, which ranks the candidate labels of a visit.

    It is trained to rank first the candidates that the next visit has. The training cases are randomly drawn visits of
    the training period, each with the history before it. Labels that are no candidates of a customer are ranked last,
    by popularity, and so are all labels where no customer has two visits. All visits of the training period are in
    memory while it is fitted.
    """

    fallback = 1e-6  # orders what is no candidate, far below every candidate

    visits_a_customer, max_cases = 8, 20_000  # most training cases of one customer, and of all
    popular = 50  # most popular labels, which are candidates of every case
    trees, leaves, min_rows = 80, 31, 100

    def _fit(self, rows: Dataset, history: TaskHistory) -> None:
        with needs("gbdt"):
            import lightgbm
        visits, size = VisitSets.of(history), self.number_of_labels
        self._statistics = LabelStatistics(visits, size)
        customer = visits.customer
        later = np.flatnonzero(np.arange(len(visits.day)) > visits.first_visit[customer])
        if not len(later):
            logger.warning(
                f"No customer has two visits with a label of task {self.task!r} in the training period, so LightGBM "
                "has nothing to learn, and ranks by popularity. Check the cutoff dates and the visit column."
            )
            return
        generator = np.random.default_rng(0)
        sample = generator.permutation(later)
        sample = sample[np.argsort(customer[sample], kind="stable")]  # by customer, in random order within one
        rank = np.arange(len(sample)) - np.searchsorted(customer[sample], customer[sample])
        sample = sample[rank < self.visits_a_customer]
        target = np.sort(generator.permutation(sample)[: self.max_cases])
        case, label, features = find_candidates(visits, customer[target], target, self._statistics, self.popular)
        owner, row = number_groups(np.bincount(visits.visit)[target], visits.first_row[target])
        relevant = np.isin(case * size + label, owner * size + visits.label[row])
        parameters = PARAMETERS | {"num_leaves": self.leaves, "min_data_in_leaf": self.min_rows}
        sizes = np.bincount(case, minlength=len(target))
        data = lightgbm.Dataset(features, relevant.astype(np.int8), group=sizes, params=parameters)
        self.booster = lightgbm.train(parameters, data, self.trees)

    def _score(self, history: TaskHistory) -> NDArray:
        scores, visits = np.zeros((len(history), self.number_of_labels)), VisitSets.of(history)
        customer = np.flatnonzero(np.diff(visits.first_visit))
        if len(customer) and hasattr(self, "booster"):
            end = visits.first_visit[customer + 1]
            candidates = find_candidates(visits, customer, end, self._statistics, self.popular)
            raw = np.asarray(self.booster.predict(candidates.features))
            worst = np.minimum.reduceat(raw, np.flatnonzero(run_starts(candidates.case)))
            # Above every other label.
            scores[customer[candidates.case], candidates.label] = 1 + raw - worst[candidates.case]
        return scores
