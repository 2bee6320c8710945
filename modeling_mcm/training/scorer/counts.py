# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the labels of the training period, by fold of customers: what [`~scorer_mcm.LabelTables`] hold.

The counts over all customers would contain the targets of the scorer's own examples. So the customers are divided into
folds, and an example's features are computed from the counts of the other folds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.evaluation.cases import TaskHistory, VisitSets, count_transitions, read_moments
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.scorer_mcm import ATTRIBUTES, MOST_DENSE, RATE_HALF_LIFE, LabelTables

FOLDS = 5
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)  # weight of a transition by its lag in moments
BACKWARDS, SHRINKAGE = 0.25, 0.4  # weight of a transition's opposite, and exponent on a label's number of occurrences
EASE_RIDGE, RATES_RIDGE = 6.0, 1.0  # strengths in units of the mean diagonal
MOST_INVERTED = 2_000  # number of labels whose matrices are inverted, the most frequent ones
LEAST_VALUES = 100  # of a feature that is an attribute of labels
CUSTOMERS = 4096  # whose dense matrix of labels is multiplied at a time
PERIODS, LATE = 26, 4  # parts of the training period at whose ends labels are counted; the latest ones are recent


class LabelCounts:
    """Counts of a task's labels by fold of customers, from which tables without one fold are made.

    Args:
        history ([`TaskHistory`]): Events of the training period with a label.
        size (`int`): V, the number of labels.
        folds (`NDArray[int64]` of shape `(customers,)`): Fold of each customer.
        values (`Sequence[NDArray[int64]]`): Usual values `(V,)` of the features that labels determine.
        no_targets (`Sequence[int]`): Ids of labels that are never a target.
    """

    def __init__(
        self,
        history: TaskHistory,
        size: int,
        folds: NDArray,
        values: Sequence[NDArray] = (),
        no_targets: Sequence[int] = (),
    ):
        day, visits = history.time / SECONDS_PER_DAY, VisitSets.of(history)
        self.no_targets = no_targets
        self.size, self.start, self.part = size, day.min(), max(np.ptp(day), 1e-9) / PERIODS
        sets, customer = read_moments(history, size)
        gaps = np.diff(day[run_starts(history.moment)])[customer[1:] == customer[:-1]]
        self.has_times = bool(len(gaps) and (gaps > 0).mean() > 0.5)
        self.gap = float(np.median(gaps[gaps > 0])) if self.has_times else 1.0
        of_folds = [folds[customer] == fold for fold in range(FOLDS)]
        self.transitions = [count_transitions(sets[own], customer[own], LAG_WEIGHTS) for own in of_folds]
        # By fold until the end of each part of the period: the numbers of `LabelTables.counts` without the recent
        # ones, `(4, folds, PERIODS + 1, V)`, and of visits
        period = self.count_parts(visits.day).clip(max=PERIODS - 1) + 1
        group, shape = folds[visits.customer] * (PERIODS + 1) + period, (FOLDS, PERIODS + 1)
        counts = visits.count_occurrences(group, FOLDS * (PERIODS + 1), size)[:4]
        self.counts = np.stack(counts).astype(np.float32).reshape(4, *shape, size).cumsum(2)
        self.visits = np.bincount(group, minlength=FOLDS * (PERIODS + 1)).reshape(shape).cumsum(1)
        self.attributes, self.grams = _number(values, size), []
        if size <= MOST_DENSE:
            owner, number = visits.customer[visits.visit], np.diff(visits.first_visit)
            faded = 0.5 ** ((visits.first_visit[1:][owner] - 1 - visits.visit) / RATE_HALF_LIFE)
            possible = (1 - 0.5 ** (number / RATE_HALF_LIFE)) / (1 - 0.5 ** (1 / RATE_HALF_LIFE))
            # Personal rates: the share of a customer's visits with a label, of which older ones fade
            rates = csr_array((faded / possible[owner], (owner, visits.label)), shape=(len(folds), size))
            self.grams = [self._multiply(rates[folds == fold]) for fold in range(FOLDS)]

    def _multiply(self, rates: csr_array) -> torch.Tensor:
        """Gram matrices `(2, W, W)` of the customers' sets of labels and of their rates; W are the most frequent."""
        size = min(self.size, FIRST_LABEL + MOST_INVERTED)  # ids are in the order of frequency
        result = torch.zeros(2, size, size)
        for start in range(0, rates.shape[0], CUSTOMERS):
            dense = torch.from_numpy(rates[start : start + CUSTOMERS, :size].toarray()).float()
            for gram, values in zip(result, ((dense > 0).float(), dense), strict=True):
                gram.addmm_(values.T, values)
        return result

    def count_parts(self, day: NDArray) -> NDArray:
        """Number of parts of the training period that have ended at each day."""
        return np.floor((day - self.start) / self.part).astype(np.int64).clip(0, PERIODS)

    def find_part(self, day: NDArray, age: NDArray) -> NDArray:
        """Number of parts that had ended at some days `(B,)`, less those by which counts are old; all without days."""
        if not self.has_times or np.isnan(day).any():
            return np.full(len(age), PERIODS)
        return (self.count_parts(day) - age).clip(min=0)

    def read_parts(self, without: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads `LabelTables.counts` `(PERIODS + 1, 5, V)` and the number of visits `(PERIODS + 1,)` at the end of
        each part of the training period, from its start on, of all folds but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        seen, again, at_once, gap = self.counts[:, folds].sum(1)
        recent = seen - seen[(np.arange(PERIODS + 1) - LATE).clip(min=0)]
        visits = torch.from_numpy(self.visits[folds].sum(0).clip(min=1)).float()
        return torch.from_numpy(np.stack([seen, again, at_once, recent, gap], 1)), visits

    def make_tables(self, without: int | None = None) -> LabelTables:
        """Makes the tables of all folds, or of all but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        tables = LabelTables(self.size, self.no_targets)
        counts, visits = (values[-1] for values in self.read_parts(without))
        tables.counts.copy_(counts)
        tables.attributes.copy_(torch.from_numpy(self.attributes))
        tables.rarity.copy_(torch.from_numpy(measure_rarity(self.attributes)))
        tables.totals.copy_(torch.tensor([visits, self.gap, float(self.has_times), self.attributes.max(initial=0)]))
        occurrences = counts[0].numpy()
        pairs = csr_array(sum(self.transitions[fold] for fold in folds))
        _keep_largest(tables, 0, csr_array(pairs + BACKWARDS * pairs.T), (occurrences + 1) ** SHRINKAGE)
        _keep_largest(tables, 1, pairs, occurrences + 1)
        if self.grams:
            sets, rates = torch.stack([self.grams[fold] for fold in folds]).sum(0)
            identity, stored = torch.eye(len(sets)), min(tables.weights.shape[2], len(sets))
            for index, gram, ridge in ((2, sets, EASE_RIDGE), (3, rates, RATES_RIDGE)):
                strength = ridge * gram.diagonal()[FIRST_LABEL:].mean().clamp(min=1e-8)
                inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + strength * identity))
                matrix = identity - strength * inverse
                if index == 2:
                    matrix = (-inverse / inverse.diagonal()).fill_diagonal_(0)
                matrix[:, :FIRST_LABEL] = 0
                largest = matrix.abs().topk(stored, 1).indices
                tables.neighbours[index, : len(sets), :stored] = largest.int()
                tables.weights[index, : len(sets), :stored] = matrix.gather(1, largest).half()
        return tables


def measure_rarity(attributes: NDArray) -> NDArray:
    """`LabelTables.rarity` `(V, A)` of attributes `(V, A)`."""
    number = np.bincount(attributes.ravel())  # of labels with each value
    return np.log(len(attributes) / number.clip(min=1))[attributes] * (attributes > 0)


def _number(values: Sequence[NDArray], size: int) -> NDArray:
    """Attributes `(V, ATTRIBUTES)` of labels, from the usual values `(V,)` of features, the most values first. A
    feature has at least `LEAST_VALUES` of them, or it says little, and at most V / 2, or labels share none."""
    known = (np.append(0, np.where(of_feature >= FIRST_LABEL, of_feature, 0)) for of_feature in values)
    numbered = [np.unique(of_feature, return_inverse=True)[1][1:] for of_feature in known]  # 0: none
    numbered = sorted((each for each in numbered if LEAST_VALUES <= each.max() <= size / 2), key=np.max, reverse=True)
    attributes, start = np.zeros((size, ATTRIBUTES), np.int64), 0
    for column, numbers in enumerate(numbered[:ATTRIBUTES]):
        attributes[:, column] = np.where(numbers > 0, numbers + start, 0)
        start = attributes.max()
    return attributes


def _keep_largest(tables: LabelTables, index: int, pairs: csr_array, divisors: NDArray) -> None:
    """Fills a table with the largest weights of each label: those of the pairs `(V, V)` by the label's divisor."""
    pairs.sort_indices()
    most, starts = tables.weights.shape[2], pairs.indptr
    kept = np.ones(pairs.nnz, bool)
    for label in np.flatnonzero(np.diff(starts) > most):
        own = slice(starts[label], starts[label + 1])
        kept[own][np.argpartition(pairs.data[own], -most)[:-most]] = False
    first = np.repeat(np.arange(len(divisors)), np.diff(starts))[kept]
    cells = index, torch.from_numpy(first), torch.from_numpy(np.arange(len(first)) - np.searchsorted(first, first))
    tables.neighbours[cells] = torch.from_numpy(pairs.indices[kept]).int()
    tables.weights[cells] = torch.from_numpy(pairs.data[kept] / divisors[first]).half()
