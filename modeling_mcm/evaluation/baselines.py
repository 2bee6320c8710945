# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counting baselines on prepared rows, which a model has to beat to be worth its cost.

Each baseline is fitted on the training period, which are the events before the validation cutoff, also if it is
evaluated at the test cutoff. Scoring reads each customer's history up to the cutoff of the evaluation, and nothing
after it. `gbdt.py` has one more baseline; `comparison.py` has their names.
Scores are float32, of shape `(customers, V)`; the scores of the ids 0 (missing) and 1 (unknown) are 0. A very small
multiple of the popularity is added, which ranks labels with equal counts or none.

    baseline = VisitFrequency().fit(rows, "product_type", number_of_labels)
    scores = baseline.scores(rows, "test")

Shapes: B customers of a batch, M moments, V labels.
"""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import compute_offsets, select_rows
from modeling_mcm.evaluation.histories import TaskHistory, task_histories
from modeling_mcm.evaluation.metrics import distinct_targets, ndcg_at_k, tie_ranks
from modeling_mcm.events_mcm import run_starts

POPULARITY_SHARE = 1e-3  # weight of the most popular label beside one personal event
MAX_DENSE = 2**25  # elements of a dense block, 256 MiB in double precision
PAIRS_AT_ONCE = 2**24  # of labels that are multiplied out at a time


def label_sums(history: TaskHistory, weights: NDArray, number_of_labels: int) -> sp.csr_array:
    """Sums the weights of events `(events,)` by customer and label, in a sparse array of shape `(B, V)`."""
    shape = (len(history), number_of_labels)
    return sp.coo_array((np.asarray(weights, np.float64), (history.customer, history.label)), shape=shape).tocsr()


class Baseline:
    """What all baselines share: counts of the labels in the training period, and scores in batches. A subclass
    prepares in `_start`, counts more in `_observe`, computes from the counts in `_finish`, and scores in `_score`."""

    fallback = POPULARITY_SHARE  # weight of the most popular label

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events of a task before a cutoff, "validation" or "test". `number_of_labels` is V. Raises
        `ValueError` if cutoff or task is unknown, a label id is V or more, or there is nothing to count."""
        self.task, self.number_of_labels = task, number_of_labels
        self.popularity = np.zeros(number_of_labels)
        self._start(len(rows))
        for history in task_histories(rows, task, cutoff):
            largest = np.max(history.label, initial=0)
            if largest >= number_of_labels:
                raise ValueError(
                    f"Task {task!r} has the label id {largest}; expected ids below number_of_labels = "
                    f"{number_of_labels}. Take the number from the feature extractor of the same data set."
                )
            self.popularity += np.bincount(history.label, minlength=number_of_labels)
            self._observe(history)
        if not self.popularity.any():
            raise ValueError(
                f"Task {task!r} has no labelled event before the {cutoff} cutoff; expected a training period with "
                "events. Check the cutoff dates."
            )
        self._finish()
        return self

    def score_batches(self, rows: Any, cutoff: str, batch_size: int = 256) -> Iterator[NDArray[np.float32]]:
        """Yields the scores of batches of customers, of shape `(B, V)`, in the order of the rows. `cutoff` is where
        the histories end, "validation" or "test"."""
        if not hasattr(self, "popularity"):
            raise ValueError(
                f"This {type(self).__name__} is not fitted yet; call fit(rows, task, number_of_labels) first."
            )
        for history in task_histories(rows, self.task, cutoff, batch_size):
            scores = np.array(self._score(history), dtype=np.float64)
            scores += self.fallback * self.popularity / np.max(self.popularity)
            scores[:, :FIRST_LABEL] = 0.0
            yield scores.astype(np.float32)

    def scores(self, rows: Any, cutoff: str) -> NDArray[np.float32]:
        """Computes the scores of all rows at once, of shape `(customers, V)`; arguments as of [`score_batches`]."""
        batches = list(self.score_batches(rows, cutoff))
        return np.concatenate([np.zeros((0, self.number_of_labels), np.float32), *batches])

    def _start(self, customers: int) -> None:
        pass

    def _observe(self, history: TaskHistory) -> None:
        pass

    def _finish(self) -> None:
        pass

    def _score(self, history: TaskHistory) -> NDArray:  # (B, V)
        raise NotImplementedError


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

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff, and chooses `half_life`; arguments as of [`Baseline.fit`]."""
        super().fit(rows, task, number_of_labels, cutoff)
        indices = np.unique(np.linspace(0, len(rows) - 1, min(self.customers, len(rows))).round().astype(np.int64))
        sums = np.zeros(len(self.half_lives))
        for history in task_histories(select_rows(rows, indices), task, cutoff, batch_size=256):
            sums += self._last_visit_ndcg(history)
        self.half_life = self.half_lives[int(np.argmax(np.round(sums, 9)))]
        return self

    def _last_visit_ndcg(self, history: TaskHistory) -> list[float]:
        """Sums for each half-life the NDCG@10 of the customers' last visits. A customer with one visit adds 0."""
        last = history.visits_ago == 0
        offsets = compute_offsets(np.bincount(history.customer[last], minlength=len(history)))
        labels, counts = distinct_targets(offsets, history.label[last])
        before = history.before_last_visit()
        counts[np.bincount(before.customer, minlength=len(history)) == 0] = 0
        ndcg_sums = []
        for half_life in self.half_lives:
            scores = self._decayed(before, half_life) + self.fallback * self.popularity / np.max(self.popularity)
            ndcg_sums.append(float(np.nansum(ndcg_at_k(*tie_ranks(scores, labels), counts, k=10))))
        return ndcg_sums

    def _decayed(self, history: TaskHistory, half_life: float) -> NDArray:
        weights = 0.5 ** (history.visits_ago / half_life) * history.once_a_visit()
        return label_sums(history, weights, self.number_of_labels).toarray()

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

    def _start(self, customers: int) -> None:
        self._pool_parts: list[sp.csr_array] = []
        self._pool_ids: list[NDArray] = []
        self._rows_read, self._row_step = 0, max(1, -(-customers // self.pool))

    def _observe(self, history: TaskHistory) -> None:
        known = np.flatnonzero(np.bincount(history.customer, minlength=len(history)))
        known = known[(self._rows_read + known) % self._row_step == 0]
        self._rows_read += len(history)
        self._pool_parts.append(self._vectors(history)[known])
        self._pool_ids.append(history.customer_ids[known])

    def _finish(self) -> None:
        self._pool = sp.csr_array(sp.vstack(self._pool_parts))
        self._pool_directions = _unit_rows(self._pool)
        self._row_of_customer = {customer: index for index, customer in enumerate(np.concatenate(self._pool_ids))}

    def _vectors(self, history: TaskHistory) -> sp.csr_array:
        weights = self.decay**history.visits_ago
        first_of_visit = run_starts(history.customer, history.visits_ago)
        total = np.bincount(history.customer, weights * first_of_visit, minlength=len(history))
        weights *= history.once_a_visit() / total[history.customer]
        return label_sums(history, weights, self.number_of_labels)

    def _score(self, history: TaskHistory) -> NDArray:
        own = self._vectors(history)
        scores = self.alpha * own.toarray()
        directions = _unit_rows(own)
        at_once = max(1, MAX_DENSE // max(1, self._pool.shape[0]))
        for start in range(0, len(history), at_once):
            chunk = slice(start, start + at_once)
            similar = (directions[chunk] @ self._pool_directions.T).tocsr()
            weights = self._nearest(similar, history.customer_ids[chunk])
            scores[chunk] += (1 - self.alpha) * (weights @ self._pool).toarray()
        return scores

    def _nearest(self, similar: sp.csr_array, customer_ids: NDArray) -> sp.csr_array:
        """Weights that average the nearest members of the pool, of shape `(chunk, pool)`; 0 without a common label."""
        count = min(self.neighbours, similar.shape[1])
        rows, members = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for index, customer in enumerate(customer_ids):
            neighbours = slice(similar.indptr[index], similar.indptr[index + 1])
            member, value = similar.indices[neighbours], similar.data[neighbours]
            other = member != self._row_of_customer.get(customer, -1)
            member, value = member[other], value[other]
            if len(member) > count:
                member = member[np.argpartition(-value, count - 1)[:count]]
            members.append(member)
            rows.append(np.full(len(member), index))
        row, member = np.concatenate(rows), np.concatenate(members)
        return sp.coo_array((np.full(len(row), 1 / count), (row, member)), shape=similar.shape).tocsr()


def _unit_rows(vectors: sp.csr_array) -> sp.csr_array:
    lengths = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    return sp.csr_array(sp.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ vectors)


class Transitions(Baseline):
    """Scores labels by what followed the customer's latest labels in the training period, up to six moments later.

    A moment is the set of a customer's labels of one visit and time. `c(h, w)` sums the weights of the lags at which
    `w` followed `h`, and `count(h)` is the number of moments with `h`. A label's score is the sum over the labels `h`
    of the customer's last moments, the latest with `j = 0`, of
    `decay ** j * c(h, w) / (count(h) + 1) ** rarity`. The counts include the customer's own training period.

    Memory is limited: of a moment with very many labels only `moment_labels` are counted, chosen by a fixed random
    order, and when there are more than `max_pairs` pairs, the half with the smaller sums is dropped.
    """

    fallback = 1e-6  # below what one pair at the largest lag of a frequent label adds

    lag_weights = [1.0, 0.5, 0.33, 0.25, 0.2, 0.17]  # of a label one moment later, two moments later, and so on
    last_moments = 8  # of a history, that scores are computed from
    decay = 0.6  # from one moment to the one before it
    rarity = 0.3  # 0 lets frequent labels count fully, 1 gives each label the same weight
    moment_labels, max_pairs = 100, 2**26

    def _start(self, customers: int) -> None:
        self._together = sp.csr_array((self.number_of_labels, self.number_of_labels))
        self._count = np.zeros(self.number_of_labels)
        self._tie_break_rank = np.random.default_rng(0).permutation(self.number_of_labels)
        self._label_of_rank = np.argsort(self._tie_break_rank)

    def _moments(self, history: TaskHistory) -> tuple[sp.csr_array, NDArray[np.int64]]:
        """Labels of each moment, oldest first, as 0 or 1 of shape `(M, V)`, and the customer of each moment."""
        ordered = np.lexsort((history.time, -history.visits_ago, history.customer))
        customer, visit, time, label = (
            values[ordered] for values in (history.customer, history.visits_ago, history.time, history.label)
        )
        starts = run_starts(customer, visit, time)
        moment = np.cumsum(starts) - 1
        # A label of a moment once, in the fixed random order.
        pairs = np.unique(moment * self.number_of_labels + self._tie_break_rank[label])
        moment, rank = np.divmod(pairs, self.number_of_labels)
        is_first = np.arange(len(moment)) - np.searchsorted(moment, moment) < self.moment_labels
        label = self._label_of_rank[rank[is_first]]
        shape = (int(starts.sum()), self.number_of_labels)
        moments = sp.coo_array((np.ones(len(label)), (moment[is_first], label)), shape=shape).tocsr()
        return moments, customer[starts]

    def _observe(self, history: TaskHistory) -> None:
        if not len(history.label):
            return
        moments, customer = self._moments(history)
        self._count += moments.sum(axis=0)
        sizes = np.diff(moments.indptr)
        for lag, weight in enumerate(self.lag_weights, start=1):
            before = np.flatnonzero(customer[lag:] == customer[:-lag])
            part = np.cumsum(sizes[before] * sizes[before + lag]) // PAIRS_AT_ONCE
            for indices in np.split(before, np.flatnonzero(np.diff(part)) + 1):
                self._together += weight * (moments[indices].T @ moments[indices + lag])
                self._bound_pairs()

    def _bound_pairs(self) -> None:
        if self._together.nnz > self.max_pairs:
            pairs = self._together.tocoo()
            largest = np.argpartition(-pairs.data, self.max_pairs // 2)[: self.max_pairs // 2]
            largest_pairs = (pairs.data[largest], (pairs.row[largest], pairs.col[largest]))
            self._together = sp.coo_array(largest_pairs, shape=self._together.shape).tocsr()

    def _finish(self) -> None:
        self._transition = sp.diags_array((self._count + 1) ** -self.rarity) @ self._together

    def _score(self, history: TaskHistory) -> NDArray:
        if not len(history.label):
            return np.zeros((len(history), self.number_of_labels))
        moments, customer = self._moments(history)
        moments_of_customer = np.bincount(customer, minlength=len(history))
        ago = np.cumsum(moments_of_customer)[customer] - 1 - np.arange(len(customer))
        latest = np.flatnonzero(ago < self.last_moments)
        weights = (self.decay ** ago[latest], (customer[latest], latest))
        last = sp.coo_array(weights, shape=(len(history), len(customer))).tocsr() @ moments
        return (last @ self._transition).toarray()
