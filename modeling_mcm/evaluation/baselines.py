# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counting baselines on prepared rows, which a model has to beat to be worth its cost.

Each baseline is fitted on the training period, which are the events before the validation cutoff, also if it is
evaluated at the test cutoff. Scoring reads each customer's history up to the cutoff of the evaluation, and nothing
after it. `transitions.py` and `gbdt.py` have more baselines; `counting.py` has their names and a cache. They need
SciPy (the extra `evaluation`). Scores are float32, of shape `(customers, V)`; the scores of the ids 0 (missing) and 1
(unknown) are 0. The personal baselines add a very small multiple of the popularity, which ranks labels with equal
counts or none.

    baseline = PersonalFrequency().fit(rows, "product_type", number_of_labels)
    values = evaluate_baseline(baseline, rows, find_cases(rows, "test"))   # for each metric one value a customer
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.histories import TaskHistory, select_rows, task_histories
from modeling_mcm.evaluation.metrics import distinct_targets, ndcg_at_k, tie_ranks
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.extras import needs
from modeling_mcm.times_mcm import SECONDS_PER_DAY

if TYPE_CHECKING:
    import scipy.sparse as sp

POPULARITY_SHARE = 1e-3  # weight of the most popular label beside one personal event
MAX_DENSE = 2**25  # elements of a dense block, 256 MiB in double precision


def scipy_sparse() -> ModuleType:
    """Imports SciPy's sparse arrays when they are needed, because SciPy belongs to an extra.

    Raises:
        ImportError: If SciPy is not installed; the message names the extra.
    """
    with needs("evaluation"):
        import scipy.sparse
    return scipy.sparse


def label_sums(history: TaskHistory, weights: NDArray, number_of_labels: int) -> sp.csr_array:
    """Sums the weights of events by customer and label.

    Args:
        history (`TaskHistory`): The events of B customers.
        weights (`numpy.ndarray`, shape `(events,)`): Weight of each event.
        number_of_labels (`int`): Number V of labels, with the ids for missing and unknown.

    Returns:
        A sparse array of SciPy, of shape `(B, V)`.
    """
    sp = scipy_sparse()
    shape = (len(history), number_of_labels)
    return sp.coo_array((np.asarray(weights, np.float64), (history.customer, history.label)), shape=shape).tocsr()


class Baseline(ABC):
    """What all baselines share: counts of the labels in the training period, and scores in batches.

    A subclass counts more in `_observe`, computes what it needs from the counts in `_finish`, and scores in `_score`.
    It must raise `VERSION` when its scores change, so that stored metrics of the earlier version are not used.
    """

    VERSION = 1

    def identity(self) -> dict[str, Any]:
        """What the scores depend on besides the data: class, version and arguments of the baseline."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"class": type(self).__name__, "version": self.VERSION, **arguments}

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff.

        Args:
            rows (`datasets.Dataset` or `pyarrow.Table`): The prepared rows.
            task (`str`): Name of the task.
            number_of_labels (`int`): Number V of labels, with the ids for missing and unknown.
            cutoff (`str`): The cutoff at which the training period ends, "validation" or "test".

        Returns:
            The baseline itself.

        Raises:
            ValueError: If the cutoff or the task is unknown, a label id is V or more, or there is nothing to count.
        """
        self.task, self.number_of_labels = task, number_of_labels
        self.popularity = np.zeros(number_of_labels)
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
        """Yields the scores of batches of customers, of shape `(batch, V)`, in the order of the rows.

        Args:
            rows (`datasets.Dataset` or `pyarrow.Table`): The prepared rows.
            cutoff (`str`): The cutoff at which the histories end, "validation" or "test".
            batch_size (`int`): Number of customers in one batch.
        """
        if not hasattr(self, "popularity"):
            raise ValueError(
                f"This {type(self).__name__} is not fitted yet; call fit(rows, task, number_of_labels) first."
            )
        for history in task_histories(rows, self.task, cutoff, batch_size):
            scores = np.array(self._score(history), dtype=np.float64)
            scores += self._fallback() * self.popularity / np.max(self.popularity)
            scores[:, :FIRST_LABEL] = 0.0
            yield scores.astype(np.float32)

    def scores(self, rows: Any, cutoff: str) -> NDArray[np.float32]:
        """Computes the scores of all rows at once, of shape `(customers, V)`.

        Args:
            rows (`datasets.Dataset` or `pyarrow.Table`): The prepared rows.
            cutoff (`str`): The cutoff at which the histories end, "validation" or "test".
        """
        batches = list(self.score_batches(rows, cutoff))
        return np.concatenate([np.zeros((0, self.number_of_labels), np.float32), *batches])

    def _observe(self, history: TaskHistory) -> None:  # noqa: B027  not every baseline counts
        """Counts a batch of training histories."""

    def _finish(self) -> None:  # noqa: B027  nor does each finish
        """Computes from the counts what scoring needs."""

    @abstractmethod
    def _score(self, history: TaskHistory) -> NDArray:
        """Scores the labels for customers with these histories, in an array of shape `(customers, V)`."""

    def _fallback(self) -> float:
        return POPULARITY_SHARE


class MostPopular(Baseline):
    """Gives every customer the labels with the most events in the training period."""

    def _score(self, history: TaskHistory) -> NDArray:
        return np.tile(self.popularity, (len(history), 1))

    def _fallback(self) -> float:
        return 0.0


class RecentPopular(MostPopular):
    """Gives every customer the labels with the most events in the last days of the training period.

    Args:
        days (`float`): Number of days before the last event of the training period.
    """

    def __init__(self, days: float = 28.0):
        self.days = days

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff; the arguments are those of [`Baseline.fit`]."""
        histories = task_histories(rows, task, cutoff)
        self._latest = max((int(np.max(history.time)) for history in histories if history.time.size), default=0)
        self._recent = np.zeros(number_of_labels)
        return super().fit(rows, task, number_of_labels, cutoff)

    def _observe(self, history: TaskHistory) -> None:
        recent = history.label[history.time > self._latest - self.days * SECONDS_PER_DAY]
        self._recent += np.bincount(recent, minlength=self.number_of_labels)

    def _score(self, history: TaskHistory) -> NDArray:
        return np.tile(self._recent, (len(history), 1))

    def _fallback(self) -> float:
        return POPULARITY_SHARE


class PersonalFrequency(Baseline):
    """Scores labels by the customer's own counts.

    Args:
        last_events (`int`, *optional*): Number of the latest labelled events to count.
    """

    def __init__(self, last_events: int = 300):
        self.last_events = last_events

    def _score(self, history: TaskHistory) -> NDArray:
        return label_sums(history, history.events_ago < self.last_events, self.number_of_labels).toarray()


class RecencyWeightedFrequency(Baseline):
    """Scores labels by the customer's own counts, in which older events have a smaller weight.

    Args:
        half_life (`float`): Age, in `unit`, at which the weight of an event is one half.
        unit (`str`): "days" or "visits".
    """

    def __init__(self, half_life: float = 90.0, unit: str = "days"):
        if unit not in ("days", "visits") or not half_life > 0:
            raise ValueError(
                f"Found half_life {half_life!r} in {unit!r}; expected a positive number of 'days' or 'visits'."
            )
        self.half_life, self.unit = half_life, unit

    def _score(self, history: TaskHistory) -> NDArray:
        age = history.days_ago if self.unit == "days" else history.visits_ago
        return label_sums(history, 0.5 ** (age / self.half_life), self.number_of_labels).toarray()


class VisitFrequency(Baseline):
    """Scores labels by the number of the customer's visits that have them, in which older visits have a smaller
    weight.

    A label counts once in a visit, however many events have it. The half-life is chosen when the baseline is fitted:
    the one whose scores rank the labels of the last training visit best from the visits before it, by the mean NDCG@10
    over customers. So the choice, like the counts, uses nothing after the training period.

    Args:
        half_lives (sequence of `float`): Half-lives to choose from, in visits. Of equally good ones the first is
            chosen.
        customers (`int`): Largest number of customers, evenly spread, that the choice is made on.
    """

    def __init__(self, half_lives: Sequence[float] = (20.0, 5.0, 10.0, 40.0, 80.0), customers: int = 2000):
        if not half_lives or not all(0 < half_life < np.inf for half_life in half_lives) or customers < 1:
            raise ValueError(
                f"Found half_lives {half_lives!r} and {customers} customers; expected positive numbers of visits and "
                f"at "
                "least one customer."
            )
        self.half_lives, self.customers = tuple(half_lives), customers

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff and chooses `half_life`; the arguments are those of [`Baseline.fit`]."""
        super().fit(rows, task, number_of_labels, cutoff)
        self.half_life = self.half_lives[0]
        if len(self.half_lives) > 1:
            indices = np.unique(np.linspace(0, len(rows) - 1, min(self.customers, len(rows))).round().astype(np.int64))
            sums = np.zeros(len(self.half_lives))
            for history in task_histories(select_rows(rows, indices), task, cutoff, batch_size=256):
                sums += self._last_visit_ndcg(history)
            self.half_life = self.half_lives[int(np.argmax(np.round(sums, 9)))]
        return self

    def _last_visit_ndcg(self, history: TaskHistory) -> list[float]:
        """Sums for each half-life the NDCG@10 of the customers' last visits. A customer with one visit adds 0."""
        last = history.visits_ago == 0
        offsets = np.concatenate([[0], np.cumsum(np.bincount(history.customer[last], minlength=len(history)))])
        labels, counts = distinct_targets(offsets, history.label[last])
        before = history.before_last_visit()
        counts[np.bincount(before.customer, minlength=len(history)) == 0] = 0
        ndcg_sums = []
        for half_life in self.half_lives:
            scores = self._decayed(before, half_life) + POPULARITY_SHARE * self.popularity / np.max(self.popularity)
            ndcg_sums.append(float(np.nansum(ndcg_at_k(*tie_ranks(scores, labels), counts, k=10))))
        return ndcg_sums

    def _decayed(self, history: TaskHistory, half_life: float) -> NDArray:
        weights = 0.5 ** (history.visits_ago / half_life) * history.once_a_visit()
        return label_sums(history, weights, self.number_of_labels).toarray()

    def _score(self, history: TaskHistory) -> NDArray:
        return self._decayed(history, self.half_life)


class NearestHouseholds(Baseline):
    """Mixes a customer's own decayed frequencies with those of similar customers, in the manner of TIFU-KNN.

    A customer's visits, latest first, fall into groups of `group_visits`. The weight of a visit `i` back within its
    group is `within_decay ** i`, divided by the number of visits in the group, times `group_decay ** g` for a group
    `g` back. The vector of a customer is the mean of the visits' label sets with these weights. (TIFU-KNN divides by
    the number of groups instead, so that for a long history the neighbours would outweigh it.) Neighbours are the
    training customers whose vectors have the largest cosine with the customer's, without the customer itself, and with
    their vectors of the training period.

    The defaults are a half-life of 15 visits in groups of one. They were chosen on the Complete Journey by validation
    NDCG@10 of the next visit alone, as the mean over product type and category: one parameter after the other, twice,
    from half-lives of 5 to 80 visits, 25 to 400 neighbours, `alpha` of .3 to .9 and groups of 1, 3 and 7.

    Args:
        neighbours (`int`): Number of neighbours.
        alpha (`float`): Weight of the customer's own vector; the mean of the neighbours' has the weight `1 - alpha`.
        group_visits (`int`): Number of visits in a group.
        within_decay (`float`): Decay from one visit to the one before it in the same group, at most 1.
        group_decay (`float`): Decay from one group to the one before it, at most 1.
        pool (`int`): Largest number of customers, evenly spread, that neighbours are searched among.
    """

    def __init__(
        self,
        neighbours: int = 200,
        alpha: float = 0.7,
        group_visits: int = 1,
        within_decay: float = 1.0,
        group_decay: float = 0.955,
        pool: int = 50_000,
    ):
        self.neighbours, self.alpha = neighbours, alpha
        self.group_visits, self.within_decay, self.group_decay = group_visits, within_decay, group_decay
        self.pool = pool

    def fit(self, rows: Any, task: str, number_of_labels: int, cutoff: str = "validation") -> Self:
        """Counts the events before a cutoff and stores the vectors of neighbours; the arguments are those of
        [`Baseline.fit`].
        """
        self._pool_parts: list[sp.csr_array] = []
        self._pool_ids: list[NDArray] = []
        self._rows_read, self._row_step = 0, max(1, -(-len(rows) // self.pool))
        return super().fit(rows, task, number_of_labels, cutoff)

    def _observe(self, history: TaskHistory) -> None:
        known = np.flatnonzero(np.bincount(history.customer, minlength=len(history)))
        known = known[(self._rows_read + known) % self._row_step == 0]
        self._rows_read += len(history)
        self._pool_parts.append(self._vectors(history)[known])
        self._pool_ids.append(history.customer_ids[known])

    def _finish(self) -> None:
        sp = scipy_sparse()
        self._pool = sp.csr_array(sp.vstack(self._pool_parts))
        self._pool_directions = _unit_rows(self._pool)
        self._row_of_customer = {customer: index for index, customer in enumerate(np.concatenate(self._pool_ids))}

    def _vectors(self, history: TaskHistory) -> sp.csr_array:
        group, within = np.divmod(history.visits_ago, self.group_visits)
        visits = np.zeros(len(history), dtype=np.int64)
        np.maximum.at(visits, history.customer, history.visits_ago + 1)
        in_group = np.minimum(visits[history.customer] - group * self.group_visits, self.group_visits)
        weights = self.within_decay**within / in_group * self.group_decay**group
        total = np.bincount(history.customer, weights * history.first_of_visit(), minlength=len(history))
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
        """Weights that average the nearest members of the pool, of shape `(chunk, pool)`; all 0 without a common
        label.
        """
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
        return scipy_sparse().coo_array((np.full(len(row), 1 / count), (row, member)), shape=similar.shape).tocsr()

    def _fallback(self) -> float:
        return POPULARITY_SHARE**2  # these vectors are decayed and averaged: far smaller than counts


def _unit_rows(vectors: sp.csr_array) -> sp.csr_array:
    sp = scipy_sparse()
    lengths = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    return sp.csr_array(sp.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ vectors)


def evaluate_baseline(
    baseline: Baseline, rows: Any, cases: EvaluationCases, ks: Sequence[int] = (10,)
) -> dict[str, NDArray[np.float64]]:
    """Computes the metrics of a fitted baseline. Only one batch of scores is in memory at a time.

    Args:
        baseline (`Baseline`): A fitted baseline.
        rows (`datasets.Dataset` or `pyarrow.Table`): The prepared rows that the cases are of.
        cases (`EvaluationCases`): The cases, from [`find_cases`] or [`unmet_only`].
        ks (sequence of `int`): Lengths of the ranked list.

    Returns:
        `dict[str, numpy.ndarray]`: The metrics of [`TargetRanks.metrics`], each of shape `(cases,)`.
    """
    ranks = TargetRanks(cases, baseline.task)
    start = 0
    for scores in baseline.score_batches(select_rows(rows, cases.rows), cases.cutoff):
        ranks.add(np.arange(start, start + len(scores)), torch.from_numpy(scores))
        start += len(scores)
    return ranks.metrics(ks)
