# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Baselines that count which label follows which: from visit to visit, and over several steps for single items.

Both are fitted and scored like the baselines of `baselines.py`. The counts include the customer's own training period.

Shapes: B customers, M moments of a batch, V labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.evaluation.baselines import Baseline, label_sums, scipy_sparse
from modeling_mcm.evaluation.histories import TaskHistory, offsets_of, run_starts

if TYPE_CHECKING:
    import scipy.sparse as sp

LAG_WEIGHTS = (1.0, 0.5, 0.33, 0.25, 0.2, 0.17)
PAIRS_AT_ONCE = 2**24  # of labels that are multiplied out at a time


class Markov(Baseline):
    """Scores the labels of the next visit by the labels of the last: the mean of P(b in the next visit | a in the
    last).
    """

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff and the transitions; the arguments are those of [`Baseline.fit`]."""
        self._together = scipy_sparse().csr_array((number_of_labels, number_of_labels))
        self._before = np.zeros(number_of_labels)
        return super().fit(rows, task, number_of_labels, cutoff)

    def _observe(self, history: TaskHistory) -> None:
        # One sparse row a visit, the latest of a customer first, so the visit before v is the row after it.
        last_visit = np.zeros(len(history), dtype=np.int64)
        np.maximum.at(last_visit, history.customer, history.visits_ago)
        first_row = offsets_of(last_visit + 1)
        visit = first_row[history.customer] + history.visits_ago
        shape = (int(first_row[-1]), self.number_of_labels)
        visits = scipy_sparse().coo_array((np.ones(len(visit)), (visit, history.label)), shape=shape).tocsr()
        visits.data[:] = 1.0
        has_before = np.ones(shape[0], dtype=bool)
        has_before[first_row[1:] - 1] = False
        after = np.flatnonzero(has_before)
        self._together += visits[after + 1].T @ visits[after]
        self._before += visits[after + 1].sum(axis=0)

    def _finish(self) -> None:
        self._transition = scipy_sparse().diags_array(1 / np.maximum(self._before, 1)) @ self._together

    def _score(self, history: TaskHistory) -> NDArray:
        last = label_sums(history, (history.visits_ago == 0) & history.once_a_visit(), self.number_of_labels)
        return (last @ self._transition).toarray() / np.maximum(last.sum(axis=1), 1)[:, None]


class Transitions(Baseline):
    """Scores labels by what followed the customer's latest labels in the training period, up to six moments later.

    A moment is the set of a customer's labels of one visit and time. `c(h, w)` sums the weights of the lags at which
    `w` followed `h`, and `count(h)` is the number of moments with `h`. A label's score is the sum over the labels `h`
    of the customer's last moments, the latest with `j = 0`, of
    `decay ** j * c(h, w) / (count(h) + 1) ** rarity`.

    Memory is limited: of a moment with very many labels only `moment_labels` are counted, chosen by a fixed random
    order, and when there are more than `max_pairs` pairs, the half with the smaller sums is dropped.

    Args:
        lag_weights (sequence of `float`): Weights of a label one moment later, two moments later, and so on.
        last_moments (`int`): Number of the history's latest moments that scores are computed from.
        decay (`float`): Weight of a moment relative to the one after it.
        rarity (`float`): Exponent; 0 lets frequent labels count fully, 1 gives each label the same weight.
        moment_labels (`int`): Largest number of labels that are counted of one moment.
        max_pairs (`int`): Largest number of pairs of labels that are stored.
    """

    def __init__(
        self,
        lag_weights: tuple[float, ...] = LAG_WEIGHTS,
        last_moments: int = 8,
        decay: float = 0.6,
        rarity: float = 0.3,
        moment_labels: int = 100,
        max_pairs: int = 2**26,
    ):
        self.lag_weights, self.last_moments, self.decay, self.rarity = lag_weights, last_moments, decay, rarity
        self.moment_labels, self.max_pairs = moment_labels, max_pairs

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff and the transitions; the arguments are those of [`Baseline.fit`]."""
        self._together = scipy_sparse().csr_array((number_of_labels, number_of_labels))
        self._count = np.zeros(number_of_labels)
        self._lot = np.random.default_rng(0).permutation(number_of_labels)
        self._label_of_lot = np.argsort(self._lot)
        return super().fit(rows, task, number_of_labels, cutoff)

    def _moments(self, history: TaskHistory, ordered: NDArray) -> tuple[sp.csr_array, NDArray[np.int64]]:
        """Labels of each moment, oldest first, as 0 or 1 of shape `(M, V)`, and the customer of each moment."""
        customer, visit, time, label = (
            values[ordered] for values in (history.customer, history.visits_ago, history.time, history.label)
        )
        starts = run_starts(customer, visit, time)
        moment = np.cumsum(starts) - 1
        pairs = np.unique(
            moment * self.number_of_labels + self._lot[label]
        )  # a label of a moment once, in lot's order
        moment, lot = np.divmod(pairs, self.number_of_labels)
        rank = np.arange(len(moment)) - np.searchsorted(moment, moment)
        is_first = rank < self.moment_labels
        label = self._label_of_lot[lot[is_first]]
        shape = (int(starts.sum()), self.number_of_labels)
        moments = scipy_sparse().coo_array((np.ones(len(label)), (moment[is_first], label)), shape=shape).tocsr()
        return moments, customer[starts]

    def _observe(self, history: TaskHistory) -> None:
        if not len(history.label):
            return
        ordered = np.lexsort((history.time, -history.visits_ago, history.customer))
        moments, customer = self._moments(history, ordered)
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
            self._together = scipy_sparse().coo_array(largest_pairs, shape=self._together.shape).tocsr()

    def _finish(self) -> None:
        self._transition = scipy_sparse().diags_array((self._count + 1) ** -self.rarity) @ self._together

    def _score(self, history: TaskHistory) -> NDArray:
        sp = scipy_sparse()
        if not len(history.label):
            return np.zeros((len(history), self.number_of_labels))
        ordered = np.lexsort((history.time, -history.visits_ago, history.customer))
        moments, customer = self._moments(history, ordered)
        moments_of_customer = np.bincount(customer, minlength=len(history))
        ago = np.cumsum(moments_of_customer)[customer] - 1 - np.arange(len(customer))
        latest = np.flatnonzero(ago < self.last_moments)
        weights = (self.decay ** ago[latest], (customer[latest], latest))
        last = sp.coo_array(weights, shape=(len(history), len(customer))).tocsr() @ moments
        return (last @ self._transition).toarray()

    def _fallback(self) -> float:
        return 1e-6  # below what one pair at the largest lag of a frequent label adds
