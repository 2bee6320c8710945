# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counting baselines on prepared rows, which a model has to beat to be worth its cost.

Each baseline is fitted on the training period, which are the events before the validation cutoff, also if it is
evaluated at the test cutoff. Scoring reads each customer's history up to the cutoff of the evaluation, and nothing
after it. `comparison.py` has their names.
Scores are float32, of shape `(customers, V)`; the scores of the ids 0 (missing) and 1 (unknown) are 0. A very small
multiple of the popularity is added, which ranks labels with equal counts or none.

    baseline = VisitFrequency().fit(rows, "product_type", number_of_labels)
    for batch, scores in baseline.score_batches(rows, "test"):  # a slice of the rows, and scores of its customers
        ...

LightGBM's lambdarank on counts and recency is the baseline that a careful analyst would build; fitting it needs the
extra `gbdt`. There a case is a customer at the end of a visit, and the task is to rank the labels of the next visit.
Its candidates are the labels of the customer's history and the most popular others. Features are the numbers of a
history that `features_mcm` names, computed at the end of the last visit; and of the label among all customers, in the
periods of the training that were complete by then: share of visits and recent share, visits with it of a customer who
has any, how often the very next visit has it again, the mean gap in visits and days.

Shapes: B customers of a batch, M moments, V labels; C cases, N candidates of all cases together, F features.
"""

import logging
from collections.abc import Iterator
from typing import Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from datasets import Dataset
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import compute_offsets
from modeling_mcm.events_mcm import number_groups, run_starts
from modeling_mcm.extras import needs
from modeling_mcm.features_mcm import OF_CUSTOMERS, PERSONAL, describe_histories

from .cases import TaskHistory, VisitSets, count_transitions, read_history, read_moments, task_histories
from .metrics import distinct_targets, ndcg_at_k, ratio, tie_ranks

POPULARITY_SHARE = 1e-3  # weight of the most popular label beside one personal event
BATCH = 256  # customers whose scores are in memory at a time


class Baseline:
    """What all baselines share: counts of the labels in the training period, and scores in batches. A subclass learns
    more in `_fit`, and scores in `_score`."""

    fallback = POPULARITY_SHARE  # weight of the most popular label

    def fit(self, rows: Dataset, task: str, number_of_labels: int) -> Self:
        """Counts the events of a task before the validation cutoff. `number_of_labels` is V. Raises `ValueError` if
        the task is unknown, or there is nothing to count."""
        self.task, self.number_of_labels = task, number_of_labels
        history = read_history(rows, task)
        if not len(history.label):
            raise ValueError(
                f"Task {task!r} has no labelled event before the validation cutoff; expected a training period with "
                "events. Check the cutoff dates."
            )
        self.popularity = np.bincount(history.label, minlength=number_of_labels)
        self._popular = self.fallback * self.popularity / np.max(self.popularity)
        self._fit(rows, history)
        return self

    def score_batches(self, rows: Dataset, cutoff: str, batch_size: int = BATCH) -> Iterator[tuple[slice, NDArray]]:
        """Yields batches of rows, and the scores of their customers, of shape `(B, V)`. `cutoff` is where the
        histories end, "validation" or "test"."""
        for index, history in enumerate(task_histories(rows, self.task, cutoff, batch_size)):
            scores = self._score(history) + self._popular
            scores[:, :FIRST_LABEL] = 0.0
            yield slice(index * batch_size, (index + 1) * batch_size), scores.astype(np.float32)

    def _fit(self, rows: Dataset, history: TaskHistory) -> None:
        pass

    def _score(self, history: TaskHistory) -> NDArray:  # (B, V)
        raise NotImplementedError

    def _sum(self, history: TaskHistory, weights: NDArray) -> sp.csr_array:
        """Sums the weights of events `(events,)` by customer and label, in a sparse array of shape `(B, V)`."""
        entries = weights, (history.customer, history.label)
        return sp.csr_array(entries, shape=(len(history), self.number_of_labels))


class MostPopular(Baseline):
    """Gives every customer the labels with the most events in the training period."""

    fallback = 0.0

    def _score(self, history: TaskHistory) -> NDArray:
        return np.tile(self.popularity, (len(history), 1))


class VisitFrequency(Baseline):
    """Scores labels by the number of the customer's visits that have them, in which older visits have a smaller
    weight.

    A label counts once in a visit, however many events have it. `fit` chooses the half-life whose scores rank the
    labels of the last training visit best from the visits before it, by the mean NDCG@10 over customers. Like the
    counts, the choice uses nothing after the training period.
    """

    half_lives = [20.0, 5.0, 10.0, 40.0, 80.0]  # in visits; of equally good ones the first is chosen
    customers = 2000  # most, evenly spread, that the choice is made on

    def _fit(self, rows: Dataset, history: TaskHistory) -> None:
        indices = np.unique(np.linspace(0, len(rows) - 1, min(self.customers, len(rows))).round().astype(np.int64))
        chosen = task_histories(rows.select(indices), self.task, "validation", BATCH)
        sums = np.sum([self._last_visit_ndcg(batch) for batch in chosen], axis=0)
        self.half_life = self.half_lives[int(sums.round(9).argmax())]

    def _last_visit_ndcg(self, history: TaskHistory) -> list[float]:
        """Sums for each half-life the NDCG@10 of the customers' last visits. A customer with one visit adds 0."""
        last, earlier = history.select(history.visits_ago == 0), history.select(history.visits_ago > 0)
        labels, counts = distinct_targets(last.customer, last.label, len(history))
        counts[np.bincount(earlier.customer, minlength=len(history)) == 0] = 0
        ndcg_sums = []
        for half_life in self.half_lives:
            scores = self._decayed(earlier, half_life, 1) + self._popular
            ndcg_sums.append(float(np.nansum(ndcg_at_k(*tie_ranks(scores, labels), counts, k=10))))
        return ndcg_sums

    def _decayed(self, history: TaskHistory, half_life: float, latest: int = 0) -> NDArray:
        """Counts of which the visit that is `latest` visits ago has the weight 1."""
        weights = 0.5 ** ((history.visits_ago - latest) / half_life) * history.once_a_visit()
        return self._sum(history, weights).toarray()

    def _score(self, history: TaskHistory) -> NDArray:
        return self._decayed(history, self.half_life)


class NearestCustomers(Baseline):
    """Mixes a customer's own decayed frequencies with those of similar customers, in the manner of TIFU-KNN.

    The vector of a customer is the mean of the visits' label sets, where a visit `i` back has the weight `decay ** i`.
    (TIFU-KNN has groups of visits too, which changed nothing.) Neighbours are the training customers whose vectors
    have the largest cosine with the customer's, without the customer itself, and with their vectors of the training
    period.

    The half-life is 15 visits. The parameters were chosen on the Complete Journey by validation NDCG@10 of the
    next visit alone, as the mean over product type and category: one parameter after the other, twice, from half-lives
    of 5 to 80 visits, 25 to 400 neighbours and `alpha` of .3 to .9.
    """

    fallback = POPULARITY_SHARE**2  # these vectors are decayed and averaged: far smaller than counts

    neighbours = 200
    alpha = 0.7  # weight of the customer's own vector; the mean of the neighbours' has the rest
    decay = 0.955  # from one visit to the one before it
    pool = 50_000  # most customers, evenly spread, that neighbours are searched among

    def _fit(self, rows: Dataset, history: TaskHistory) -> None:
        known = np.unique(history.customer)
        known = known[known % max(1, -(-len(history) // self.pool)) == 0]
        self._pool, self._pool_ids = self._vectors(history)[known], pd.Index(history.customer_ids[known])
        self._pool_directions = _unit_rows(self._pool)

    def _vectors(self, history: TaskHistory) -> sp.csr_array:
        weights = self.decay**history.visits_ago
        first_of_visit = np.diff(history.visit, prepend=-1) > 0
        total = np.bincount(history.customer, weights * first_of_visit, minlength=len(history))
        return self._sum(history, weights * (history.once_a_visit() / total[history.customer]))

    def _score(self, history: TaskHistory) -> NDArray:
        own = self._vectors(history)
        similar = torch.from_numpy((_unit_rows(own) @ self._pool_directions.T).toarray())
        place = self._pool_ids.get_indexer(history.customer_ids)
        similar[np.flatnonzero(place >= 0), place[place >= 0]] = 0  # nobody is a neighbour of oneself
        nearest, members = similar.topk(min(self.neighbours, len(self._pool_ids)))
        weights = torch.zeros_like(similar).scatter_(1, members, nearest.sign() / members.shape[1])
        return self.alpha * own.toarray() + (1 - self.alpha) * (sp.csr_array(weights.numpy()) @ self._pool).toarray()


def _unit_rows(vectors: sp.csr_array) -> sp.csr_array:
    lengths = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    return sp.csr_array(sp.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ vectors)


class Transitions(Baseline):
    """Scores labels by what followed the customer's latest labels in the training period, up to six moments later.

    A moment is the set of a customer's labels of one visit and time. `c(h, w)` sums the weights of the lags at which
    `w` followed `h`, and `count(h)` is the number of moments with `h`. A label's score is the sum over the labels `h`
    of the customer's last moments, the latest with `j = 0`, of
    `decay ** j * c(h, w) / (count(h) + 1) ** rarity`. The counts include the customer's own training period.
    """

    fallback = 1e-6  # below what one pair at the largest lag of a frequent label adds

    lag_weights = [1.0, 0.5, 0.33, 0.25, 0.2, 0.17]  # of a label one moment later, two moments later, and so on
    last_moments = 8  # of a history, that scores are computed from
    decay = 0.6  # from one moment to the one before it
    rarity = 0.3  # 0 lets frequent labels count fully, 1 gives each label the same weight

    def _fit(self, rows: Dataset, history: TaskHistory) -> None:
        sets, customer = read_moments(history, self.number_of_labels)
        self._together = count_transitions(sets, customer, self.lag_weights)
        self._transition = sp.diags_array((sets.sum(axis=0) + 1) ** -self.rarity) @ self._together

    def _score(self, history: TaskHistory) -> NDArray:
        moments, customer = read_moments(history, self.number_of_labels)
        ago = np.cumsum(np.bincount(customer, minlength=len(history)))[customer] - 1 - np.arange(len(customer))
        latest = np.flatnonzero(ago < self.last_moments)
        weights = (self.decay ** ago[latest], (customer[latest], latest))
        last = sp.csr_array(weights, shape=(len(history), len(customer))) @ moments
        return (last @ self._transition).toarray()


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
        # By period and label everything before the period: see `VisitSets.count_occurrences`
        self.sums = np.cumsum(visits.count_occurrences(period + 1, self.periods + 1, number_of_labels), axis=1)

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


def find_candidates(
    visits: VisitSets, customer: NDArray, end: NDArray, statistics: LabelStatistics, popular: int
) -> tuple[NDArray, NDArray, pd.DataFrame]:
    """Finds the candidate labels of cases and computes their features, from visits before `end` alone.

    Args:
        customer (`numpy.ndarray`, shape `(C,)`): Index of each case's customer.
        end (`numpy.ndarray`, shape `(C,)`): Index of the visit after each case's history, which has at least one
            visit.
        popular (`int`): Number of the most popular labels that are candidates of every case.

    Returns:
        `tuple`: Index of each candidate's case `(N,)`, ascending; its label id `(N,)`; and its features `(N, F)`, NaN
        if one has no value.
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
    for name, values in zip(PERSONAL, seen.numbers, strict=True):
        columns[name] = np.append(values.numpy(), np.zeros(len(keys) - len(own_keys)))[order]
    columns |= {name: values.numpy()[case] for name, values in zip(OF_CUSTOMERS, seen.customers, strict=True)}
    columns |= statistics.features(as_of[case], label)
    return case, label, pd.DataFrame(columns, dtype=np.float32)


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
            case, label, features = find_candidates(visits, customer, end, self._statistics, self.popular)
            raw = np.asarray(self.booster.predict(features))
            worst = np.minimum.reduceat(raw, np.flatnonzero(run_starts(case)))
            # Above every other label.
            scores[customer[case], label] = 1 + raw - worst[case]
        return scores
