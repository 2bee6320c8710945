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

from dataclasses import dataclass
from types import ModuleType
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import compute_offsets
from modeling_mcm.evaluation.baselines import Baseline
from modeling_mcm.evaluation.histories import TaskHistory
from modeling_mcm.evaluation.metrics import ratio
from modeling_mcm.events_mcm import SECONDS_PER_DAY, number_groups, run_starts
from modeling_mcm.extras import needs
from modeling_mcm.features_mcm import describe_histories

logger = logging.get_logger(__name__)
FEW_CASES = 500  # below which the trees have too little to learn from
PERIOD_DAYS, MAX_PERIODS, RECENT_PERIODS = 7, 52, 4
SECONDS_TO_FIT = 40.0  # of one core of 2024, for the most cases that are trained on
SECONDS_A_SCORE = 4e-8  # of a label of a case, its rank and its place in the label statistics included


class NothingToLearnError(ValueError):
    """No customer has two visits, so there is no next visit to learn from."""


def expected_seconds(cases: int, number_of_labels: int) -> float:
    """Estimates how many seconds fitting and scoring take, by measurements on two data sets."""
    return SECONDS_TO_FIT + SECONDS_A_SCORE * cases * number_of_labels


@dataclass(frozen=True)
class VisitSets:
    """The label sets of the visits of some customers, in flat arrays and oldest first. A row is one label of one
    visit."""

    # (customers + 1,): Customer c has the visits from `first_visit[c]` to before `first_visit[c + 1]`
    first_visit: NDArray[np.int64]
    day: NDArray[np.float64]  # (visits,): end of each visit, in days since 1970
    # (visits + 1,): Visit v has the rows from `first_row[v]` to before `first_row[v + 1]`
    first_row: NDArray[np.int64]
    visit: NDArray[np.int64]  # (rows,): index of each row's visit
    label: NDArray[np.int64]  # (rows,): label id of each row

    @classmethod
    def of(cls, history: TaskHistory) -> Self:
        """Makes the label sets of visits from labelled events."""
        visits = np.zeros(len(history), np.int64)
        np.maximum.at(visits, history.customer, history.visits_ago + 1)
        first_visit = compute_offsets(visits)
        visit = first_visit[history.customer + 1] - 1 - history.visits_ago
        day = np.full(first_visit[-1], -np.inf)
        np.maximum.at(day, visit, history.time / SECONDS_PER_DAY)
        once = history.once_a_visit()
        visit, label = visit[once], history.label[once]
        return cls(first_visit, day, compute_offsets(np.bincount(visit, minlength=len(day))), visit, label)

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Joins the customers of several parts, in their order."""
        day, label = (np.concatenate([getattr(part, name) for part in parts]) for name in ("day", "label"))
        first_visit = compute_offsets(np.concatenate([np.diff(part.first_visit) for part in parts]))
        first_row = compute_offsets(np.concatenate([np.diff(part.first_row) for part in parts]))
        return cls(first_visit, day, first_row, number_groups(np.diff(first_row))[0], label)


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
        # Rows of one customer and label come together, oldest first, so the gap to the time before is a difference.
        customer = np.searchsorted(visits.first_visit, visits.visit, side="right") - 1
        order = np.lexsort((visits.visit, visits.label, customer))
        customer, label, visit = customer[order], visits.label[order], visits.visit[order]
        again = ~run_starts(customer, label)
        gap_visits = np.diff(visit, prepend=0) * again
        gap_days = np.diff(visits.day[visit], prepend=0) * again

        def known_by(weights: NDArray) -> NDArray[np.float64]:
            """Sums by period and label of everything before each period, of shape `(periods + 1, V)`."""
            shape = (self.periods + 1, number_of_labels)
            cells = sp.coo_array((weights.astype(np.float64), (period[visit] + 1, label)), shape=shape)
            return np.cumsum(cells.toarray(), axis=0)

        self.seen = known_by(np.ones(len(order)))
        self.again = known_by(again)
        self.at_once = known_by(again & (gap_visits == 1))
        self.gap_visits, self.gap_days = known_by(gap_visits), known_by(gap_days)

    def complete_periods(self, day: NDArray) -> NDArray[np.int64]:
        return np.clip((day - self.start) // self.days, 0, self.periods).astype(np.int64)

    def popular(self, day: NDArray, number: int) -> NDArray[np.int64]:
        """Finds the most popular labels before times in days since 1970, as ids of shape `(len(day), number)`."""
        periods, period_index = np.unique(self.complete_periods(day), return_inverse=True)
        seen = self.seen[periods, FIRST_LABEL:]
        return FIRST_LABEL + np.argsort(-seen, axis=1, kind="stable")[period_index, :number]

    def features(self, day: NDArray, label: NDArray) -> dict[str, NDArray]:
        """Computes features of labels `(N,)` at times `(N,)`, in days since 1970."""
        as_of = self.complete_periods(day)
        before = np.maximum(as_of - RECENT_PERIODS, 0)
        seen, again = self.seen[as_of, label], self.again[as_of, label]
        return {
            "label_share": seen / np.maximum(self.visits[as_of], 1),
            "label_recent_share": (seen - self.seen[before, label])
            / np.maximum(self.visits[as_of] - self.visits[before], 1),
            "label_visits_a_customer": seen / np.maximum(seen - again, 1),
            "label_met_at_once": self.at_once[as_of, label] / np.maximum(seen, 1),
            "label_gap_visits": ratio(self.gap_visits[as_of, label], again),
            "label_gap_days": ratio(self.gap_days[as_of, label], again),
        }


@dataclass(frozen=True)
class Candidates:
    """The candidate labels of all cases; those of one case stand together."""

    case: NDArray[np.int64]  # (N,): index of each candidate's case, ascending
    label: NDArray[np.int64]  # (N,): label id of each candidate
    features: NDArray[np.float32]  # (N, F): features in float32; NaN if a feature has no value
    names: list[str]  # names of the features


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
    start, as_of = visits.first_visit[customer], visits.day[end - 1]
    size = statistics.seen.shape[1]
    case, row = number_groups(visits.first_row[end] - visits.first_row[start], visits.first_row[start])
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
    features = np.stack([values.astype(np.float32) for values in columns.values()], axis=1)
    return Candidates(case, label, features, list(columns))


class LightGBMRanker(Baseline):
    """LightGBM with the objective lambdarank, which ranks the candidate labels of a visit.

    It is trained to rank first the candidates that the next visit has. The training cases are randomly drawn visits of
    the training period, each with the history before it. Labels that are no candidates of a customer are ranked last,
    by popularity. All visits of the training period are in memory while it is fitted.
    """

    fallback = 1e-6  # orders what is no candidate, far below every candidate

    visits_a_customer, max_cases = 8, 20_000  # most training cases of one customer, and of all
    popular = 50  # most popular labels, which are candidates of every case
    trees, leaves, min_rows = 80, 31, 100

    def _start(self, customers: int) -> None:
        self._lightgbm = _import_lightgbm()
        self._parts: list[VisitSets] = []

    def _observe(self, history: TaskHistory) -> None:
        self._parts.append(VisitSets.of(history))

    def _finish(self) -> None:
        visits = VisitSets.joined(self._parts)
        del self._parts
        self._statistics = LabelStatistics(visits, self.number_of_labels)
        customer, target = self._training_cases(visits)
        candidates = find_candidates(visits, customer, target, self._statistics, self.popular)
        case, row = number_groups(np.diff(visits.first_row)[target], visits.first_row[target])
        size = self.number_of_labels
        relevant = np.isin(candidates.case * size + candidates.label, case * size + visits.label[row])
        parameters = {
            "objective": "lambdarank",
            "learning_rate": 0.1,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_rows,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 10.0,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        if (found := len(np.unique(candidates.case[relevant]))) < FEW_CASES:
            logger.warning(
                f"LightGBM learns task {self.task!r} from {found} visits whose labels are among its candidates, fewer "
                f"than {FEW_CASES}: it may be no better than popularity, so compare with another baseline."
            )
        sizes, labels = np.bincount(candidates.case, minlength=len(target)), relevant.astype(np.int8)
        given = {"group": sizes, "feature_name": candidates.names, "params": parameters}
        data = self._lightgbm.Dataset(candidates.features, labels, **given)
        self.booster = self._lightgbm.train(parameters, data, self.trees)

    def _training_cases(self, visits: VisitSets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Customers and target visits of the training cases, in order. A customer's first visit is none."""
        customer = number_groups(np.diff(visits.first_visit))[0]
        later = np.flatnonzero(np.arange(len(visits.day)) > visits.first_visit[customer])
        if not len(later):
            raise NothingToLearnError(
                f"No customer has two visits with a label of task {self.task!r} in the training period; LightGBM "
                "learns the next visit from the visits before it. Check the cutoff dates and the visit column."
            )
        generator = np.random.default_rng(0)
        sample = generator.permutation(later)
        sample = sample[np.argsort(customer[sample], kind="stable")]  # by customer, in random order within one
        rank = np.arange(len(sample)) - np.searchsorted(customer[sample], customer[sample])
        sample = sample[rank < self.visits_a_customer]
        target = np.sort(generator.permutation(sample)[: self.max_cases])
        return customer[target], target

    def _score(self, history: TaskHistory) -> NDArray:
        scores = np.zeros((len(history), self.number_of_labels))
        visits = VisitSets.of(history)
        customer = np.flatnonzero(np.diff(visits.first_visit))
        if len(customer):
            end = visits.first_visit[customer + 1]
            candidates = find_candidates(visits, customer, end, self._statistics, self.popular)
            raw = self.booster.predict(candidates.features)
            worst = np.minimum.reduceat(raw, np.flatnonzero(run_starts(candidates.case)))
            # Above every other label.
            scores[customer[candidates.case], candidates.label] = 1 + raw - worst[candidates.case]
        return scores


def _import_lightgbm() -> ModuleType:
    with needs("gbdt"):
        import lightgbm
    return lightgbm
