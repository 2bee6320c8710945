# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""LightGBM lambdarank on counts and recency, the baseline that a careful analyst would build. Needs the extra `gbdt`.

A case is a customer at the end of a visit, when the next visit is asked for; its candidates are the labels that the
customer met so far and the most popular others. Everything is measured at that moment, the end of the last visit:

- of the label in the customer's history: visits with it; its share of the visits, decayed at several half-lives in
  visits; visits and days since the last time; its share of the visits since the first time; the mean gap in visits
  and days, and how overdue it is: the visits since the last time over that gap;
- of the label among all customers, in the periods of the training that were complete at that moment: share of
  visits and recent share, visits with it of a customer who has any, how often it is met again in the very next
  visit, the mean gap in visits and days;
- of the customer: visits, days between visits, labels a visit.

Windows of visits and days, ranks and decay by days were tried as features too and changed nothing.

Shapes: C cases, N candidates of all cases together, F features, V labels.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.evaluation.baselines import Baseline, scipy_sparse
from modeling_mcm.evaluation.histories import TaskHistory
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.extras import needs

HALF_LIVES_VISITS = (5, 10, 20, 40, 80)
PERIOD_DAYS, MAX_PERIODS, RECENT_PERIODS = 7, 52, 4
POPULARITY_WEIGHT = 1e-6  # orders what is no candidate, far below every candidate
COUNTED = ("visits", "share")  # features that begin so are 0 for a label that the customer never met, others NaN


SECONDS_TO_FIT = 40.0  # of one core of 2024, for the most cases that are trained on
SECONDS_A_SCORE = 4e-8  # of a label of a case, its rank and its place in the label statistics included


class NothingToLearnError(ValueError):
    """No customer has two visits, so there is no next visit to learn from."""


def expected_seconds(cases: int, number_of_labels: int) -> float:
    """About how long fitting and scoring take: measured on two data sets, to tell seconds from hours."""
    return SECONDS_TO_FIT + SECONDS_A_SCORE * cases * number_of_labels


@dataclass(frozen=True)
class VisitSets:
    """The label sets of the visits of some customers, oldest first; a row is a label of a visit.

    Attributes:
        first_visit: of shape `(customers + 1,)`; customer c has the visits `first_visit[c]` to `first_visit[c + 1]`.
        day: end of each visit in days since the epoch, of shape `(visits,)`.
        first_row: of shape `(visits + 1,)`; visit v has the rows `first_row[v]` to `first_row[v + 1]`.
        visit, label: of shape `(rows,)`.
    """

    first_visit: NDArray[np.int64]
    day: NDArray[np.float64]
    first_row: NDArray[np.int64]
    visit: NDArray[np.int64]
    label: NDArray[np.int64]

    @classmethod
    def of(cls, history: TaskHistory) -> Self:
        """From labelled events."""
        visits = np.zeros(len(history), np.int64)
        np.maximum.at(visits, history.customer, history.visits_ago + 1)
        first_visit = _offsets(visits)
        visit = first_visit[history.customer + 1] - 1 - history.visits_ago
        day = np.full(first_visit[-1], -np.inf)
        np.maximum.at(day, visit, history.time / SECONDS_PER_DAY)
        once = history.once_a_visit()
        visit, label = visit[once], history.label[once]
        return cls(first_visit, day, _offsets(np.bincount(visit, minlength=len(day))), visit, label)

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """The customers of all parts, in their order."""
        day, label = (np.concatenate([getattr(part, name) for part in parts]) for name in ("day", "label"))
        first_visit = _offsets(np.concatenate([np.diff(part.first_visit) for part in parts]))
        first_row = _offsets(np.concatenate([np.diff(part.first_row) for part in parts]))
        return cls(first_visit, day, first_row, np.repeat(np.arange(len(day)), np.diff(first_row)), label)


class LabelStatistics:
    """What is known of each label from all customers, as of the end of each period of the training time.

    Args:
        visits: of the training period.
        number_of_labels: V; five arrays of up to 53 x V numbers are kept.
    """

    def __init__(self, visits: VisitSets, number_of_labels: int):
        self.start = np.min(visits.day)
        span = np.max(visits.day) - self.start
        self.days = max(PERIOD_DAYS, span / MAX_PERIODS)
        self.periods = int(span // self.days) + 1
        period = self.complete_periods(visits.day)
        self.visits = _offsets(np.bincount(period, minlength=self.periods))
        # Rows of one customer and label come together, oldest first, so the gap to the time before is a difference.
        customer = np.searchsorted(visits.first_visit, visits.visit, side="right") - 1
        order = np.lexsort((visits.visit, visits.label, customer))
        customer, label, visit = customer[order], visits.label[order], visits.visit[order]
        again = ~_starts(customer, label)
        gap_visits = np.diff(visit, prepend=0) * again
        gap_days = np.diff(visits.day[visit], prepend=0) * again

        sp = scipy_sparse()

        def known_by(weights: NDArray) -> NDArray[np.float64]:
            """Sums by period and label, up to and without each period: of shape `(periods + 1, V)`."""
            shape = (self.periods + 1, number_of_labels)
            cells = sp.coo_array((weights.astype(np.float64), (period[visit] + 1, label)), shape=shape)
            return np.cumsum(cells.toarray(), axis=0)

        self.met = known_by(np.ones(len(order)))
        self.again = known_by(again)
        self.at_once = known_by(again & (gap_visits == 1))
        self.gap_visits, self.gap_days = known_by(gap_visits), known_by(gap_days)

    def complete_periods(self, day: NDArray) -> NDArray[np.int64]:
        """How many periods were complete at a time."""
        return np.clip((day - self.start) // self.days, 0, self.periods).astype(np.int64)

    def popular(self, day: NDArray, number: int) -> NDArray[np.int64]:
        """The labels met most often before a time, of shape `(len(day), number)`; less for a smaller vocabulary."""
        periods, place = np.unique(self.complete_periods(day), return_inverse=True)
        met = self.met[periods, FIRST_LABEL:]
        return FIRST_LABEL + np.argsort(-met, axis=1, kind="stable")[place, :number]

    def features(self, day: NDArray, label: NDArray) -> dict[str, NDArray]:
        """Of labels at times, both of shape `(N,)`."""
        now = self.complete_periods(day)
        before = np.maximum(now - RECENT_PERIODS, 0)
        met, again = self.met[now, label], self.again[now, label]
        return {
            "label_share": met / np.maximum(self.visits[now], 1),
            "label_recent_share": (met - self.met[before, label])
            / np.maximum(self.visits[now] - self.visits[before], 1),
            "label_visits_a_customer": met / np.maximum(met - again, 1),
            "label_met_at_once": self.at_once[now, label] / np.maximum(met, 1),
            "label_gap_visits": _ratio(self.gap_visits[now, label], again),
            "label_gap_days": _ratio(self.gap_days[now, label], again),
        }


@dataclass(frozen=True)
class Candidates:
    """Candidates of all cases, those of one case together.

    Attributes:
        case: ascending, of shape `(N,)`.
        label: of shape `(N,)`.
        features: float32, of shape `(N, F)`; NaN where something was never measured.
        names: of the features.
    """

    case: NDArray[np.int64]
    label: NDArray[np.int64]
    features: NDArray[np.float32]
    names: list[str]


def find_candidates(
    visits: VisitSets, customer: NDArray, end: NDArray, statistics: LabelStatistics, popular: int
) -> Candidates:
    """The candidates of cases and their features, from nothing but the visits before `end`.

    Args:
        visits: of the customers.
        customer: of each case, of shape `(C,)`.
        end: the visit after the history, of shape `(C,)`; at least one visit is before it.
        statistics: of the training period.
        popular: how many of the most popular labels are candidates too.
    """
    start, now = visits.first_visit[customer], visits.day[end - 1]
    own_case, own_label, own = _history_features(visits, start, end)
    size = statistics.met.shape[1]
    own_keys = own_case * size + own_label
    keys = np.arange(len(end))[:, None] * size + statistics.popular(now, popular)
    keys = np.concatenate([own_keys, keys[~np.isin(keys, own_keys)]])
    order = np.argsort(keys)
    case, label = np.divmod(keys[order], size)
    columns = {}
    for name, values in own.items():
        padded = np.full(len(keys), 0.0 if name.startswith(COUNTED) else np.nan)
        padded[: len(values)] = values
        columns[name] = padded[order]
    columns |= {name: values[case] for name, values in _customer_features(visits, start, end).items()}
    columns |= statistics.features(now[case], label)
    features = np.stack([values.astype(np.float32) for values in columns.values()], axis=1)
    return Candidates(case, label, features, list(columns))


def _history_features(
    visits: VisitSets, start: NDArray, end: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray]]:
    """Case, label and features of each label that a case's history has."""
    case, row = _expanded(visits.first_row[start], visits.first_row[end])
    order = np.lexsort((row, visits.label[row], case))
    case, row = case[order], row[order]
    label = visits.label[row]
    first = np.flatnonzero(_starts(case, label))
    last = np.append(first[1:], len(row)) - 1
    ago = (end[case] - 1 - visits.visit[row]).astype(np.float64)
    days = visits.day[end[case] - 1] - visits.day[visits.visit[row]]
    length = (end - start)[case[first]]
    met = last - first + 1
    gap_visits = _ratio(ago[first] - ago[last], met - 1)
    features: dict[str, NDArray] = {"visits": met}
    for half_life in HALF_LIVES_VISITS:
        everything = (1 - 0.5 ** (length / half_life)) / (1 - 0.5 ** (1 / half_life))
        features[f"share_decayed_{half_life}_visits"] = np.add.reduceat(0.5 ** (ago / half_life), first) / everything
    features |= {
        "share_since_first": met / (ago[first] + 1),
        "since_visits": ago[last],
        "since_days": days[last],
        "gap_visits": gap_visits,
        "gap_days": _ratio(days[first] - days[last], met - 1),
        "overdue": _ratio(ago[last] + 1, gap_visits),
    }
    return case[first], label[first], features


def _customer_features(visits: VisitSets, start: NDArray, end: NDArray) -> dict[str, NDArray]:
    return {
        "customer_visits": end - start,
        "customer_gap_days": _ratio(visits.day[end - 1] - visits.day[start], end - start - 1),
        "customer_labels_a_visit": (visits.first_row[end] - visits.first_row[start]) / (end - start),
    }


class LightGBMRanker(Baseline):
    """LightGBM lambdarank over the candidates of a visit, trained on which of them the next visit has.

    The training cases are visits of the training period, drawn with the seed, each with the history before it. Labels
    that are no candidates of a customer are ranked below, by popularity. The training period's visits stay in memory
    while it is fitted.

    Args:
        visits_a_customer: training cases of a customer, at most.
        max_cases: training cases, at most.
        popular: how many of the most popular labels are candidates.
        trees: of LightGBM.
        learning_rate: of LightGBM.
        leaves: `num_leaves` of LightGBM.
        min_rows: `min_data_in_leaf` of LightGBM.
        seed: of the draw, and of LightGBM.
    """

    def __init__(
        self,
        visits_a_customer: int = 8,
        max_cases: int = 20_000,
        popular: int = 50,
        trees: int = 80,
        learning_rate: float = 0.1,
        leaves: int = 31,
        min_rows: int = 100,
        seed: int = 0,
    ):
        self.visits_a_customer, self.max_cases, self.popular = visits_a_customer, max_cases, popular
        self.trees, self.learning_rate, self.leaves, self.min_rows = trees, learning_rate, leaves, min_rows
        self.seed = seed

    def identity(self) -> dict[str, Any]:
        """As `Baseline.identity`, with the version of LightGBM, which decides the trees."""
        return super().identity() | {"lightgbm": _import_lightgbm().__version__}

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """As `Baseline.fit`.

        Raises:
            ImportError: if LightGBM is not installed.
            ValueError: as `Baseline.fit`.
            NothingToLearnError: a ValueError too, if no customer has two visits to learn from.
        """
        self._lightgbm = _import_lightgbm()
        self._parts: list[VisitSets] = []
        return super().fit(rows, task, number_of_labels, cutoff)

    def _observe(self, history: TaskHistory) -> None:
        self._parts.append(VisitSets.of(history))

    def _finish(self) -> None:
        visits = VisitSets.joined(self._parts)
        del self._parts
        self._statistics = LabelStatistics(visits, self.number_of_labels)
        customer, target = self._training_cases(visits)
        found = find_candidates(visits, customer, target, self._statistics, self.popular)
        case, row = _expanded(visits.first_row[target], visits.first_row[target + 1])
        size = self.number_of_labels
        relevant = np.isin(found.case * size + found.label, case * size + visits.label[row])
        parameters = {
            "objective": "lambdarank",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_rows,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 10.0,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        candidates = np.bincount(found.case, minlength=len(target))
        data = self._lightgbm.Dataset(
            found.features, relevant.astype(np.int8), group=candidates, feature_name=found.names, params=parameters
        )
        self.booster = self._lightgbm.train(parameters, data, self.trees)

    def _training_cases(self, visits: VisitSets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Customers and the visits asked for, in order: any but a customer's first."""
        customer = np.repeat(np.arange(len(visits.first_visit) - 1), np.diff(visits.first_visit))
        later = np.flatnonzero(np.arange(len(visits.day)) > visits.first_visit[customer])
        if not len(later):
            raise NothingToLearnError(
                f"No customer has two visits with a label of task {self.task!r} in the training period; LightGBM "
                "learns the next visit from the visits before it. Check the cutoff dates and the visit column."
            )
        generator = np.random.default_rng(self.seed)
        drawn = generator.permutation(later)
        drawn = drawn[np.argsort(customer[drawn], kind="stable")]  # by customer, in random order within one
        place = np.arange(len(drawn)) - np.searchsorted(customer[drawn], customer[drawn])
        drawn = drawn[place < self.visits_a_customer]
        target = np.sort(generator.permutation(drawn)[: self.max_cases])
        return customer[target], target

    def _score(self, history: TaskHistory) -> NDArray:
        scores = np.zeros((len(history), self.number_of_labels))
        visits = VisitSets.of(history)
        customer = np.flatnonzero(np.diff(visits.first_visit))
        if len(customer):
            end = visits.first_visit[customer + 1]
            found = find_candidates(visits, customer, end, self._statistics, self.popular)
            raw = self.booster.predict(found.features)
            worst = np.minimum.reduceat(raw, np.flatnonzero(_starts(found.case, found.case)))
            scores[customer[found.case], found.label] = 1 + raw - worst[found.case]  # above every other label
        return scores

    def _fallback(self) -> float:
        return POPULARITY_WEIGHT


def _import_lightgbm() -> ModuleType:
    with needs("gbdt"):
        import lightgbm
    return lightgbm


def _offsets(counts: NDArray) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _starts(case: NDArray, label: NDArray) -> NDArray[np.bool_]:
    """True where a run of equal pairs begins."""
    return np.append(True, (case[1:] != case[:-1]) | (label[1:] != label[:-1]))


def _expanded(start: NDArray, end: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The place of each range [start, end), and every number of it."""
    counts = end - start
    place = np.repeat(np.arange(len(start)), counts)
    return place, np.arange(len(place)) - _offsets(counts)[place] + start[place]


def _ratio(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """NaN where the denominator is 0 or NaN."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
