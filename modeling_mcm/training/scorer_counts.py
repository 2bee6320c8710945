# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the labels of the training period, by fold of customers: what [`~scorer_mcm.LabelTables`] hold.

The counts over all customers would contain the targets of the scorer's own examples. So the customers are divided into
folds, and an example's features are computed from the counts of the other folds.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import arrow_batches, flat_values, locate_events
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.scorer_mcm import MOST_DENSE, RATE_HALF_LIFE, LabelTables

FOLDS = 5
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)  # weight of a transition by its lag in moments
BACKWARDS, SHRINKAGE = 0.25, 0.4  # weight of a transition's opposite, and exponent on a label's number of occurrences
EASE_RIDGE, RATES_RIDGE = 6.0, 1.0  # strengths in units of the mean diagonal
MOST_INVERTED = 2_000  # number of labels whose matrices are inverted, the most frequent ones
CUSTOMERS = 4096  # whose dense matrix of labels is multiplied at a time
PERIODS, LATE = 26, 4  # parts of the training period at whose ends labels are counted; the latest ones are recent


class LabelEvents(NamedTuple):
    """The labelled events of a task in the training period, customer after customer, in flat arrays.

    Attributes:
        customer, label, visit, moment (`NDArray[int64]` of shape `(E,)`): Visits and moments are numbered over all
            customers.
        day (`NDArray[float64]` of shape `(E,)`): Time of the event, in days.
        size (`int`): Number of labels.
    """

    customer: NDArray[np.int64]
    label: NDArray[np.int64]
    visit: NDArray[np.int64]
    moment: NDArray[np.int64]
    day: NDArray[np.float64]
    size: int

    @classmethod
    def read(cls, rows: Any, task: str, size: int) -> "LabelEvents":
        """Reads the events of prepared rows before the validation cutoff."""
        parts, first = [], 0
        for table in arrow_batches(rows, ["times", "visits", "validation_end", f"feature_{task}"]):
            row, index = locate_events(table)
            label = flat_values(table, f"feature_{task}").astype(np.int64)
            kept = (index < flat_values(table, "validation_end")[row]) & (label >= FIRST_LABEL)
            times, visits = flat_values(table, "times")[kept], flat_values(table, "visits")[kept]
            parts.append((row[kept] + first, label[kept], visits, times / SECONDS_PER_DAY))
            first += len(table)
        customer, label, visit, day = (np.concatenate(part) for part in zip(*parts, strict=True))
        visits, moments = run_starts(customer, visit), run_starts(customer, visit, day)
        return cls(customer, label, np.cumsum(visits) - 1, np.cumsum(moments) - 1, day, size)


class LabelCounts:
    """Counts of a task's labels by fold of customers, from which tables without one fold are made.

    Args:
        events ([`LabelEvents`]): Events of the training period.
        folds (`NDArray[int64]` of shape `(customers,)`): Fold of each customer.
    """

    def __init__(self, events: LabelEvents, folds: NDArray[np.int64]):
        self.size = events.size
        self.start, self.part = events.day.min(), max(np.ptp(events.day), 1e-9) / PERIODS
        self.transitions = self._count_transitions(events, folds)
        self.counts, self.visits, rates = self._count_occurrences(events, folds)
        self.grams = [self._multiply(rates[folds == fold]) for fold in range(FOLDS)] if self.size <= MOST_DENSE else []
        same = events.customer[1:] == events.customer[:-1]
        between = same & (events.moment[1:] != events.moment[:-1])
        gaps = np.diff(events.day)[between]
        self.has_times = bool(len(gaps) and (gaps > 0).mean() > 0.5)
        self.gap = float(np.median(gaps[gaps > 0])) if self.has_times else 1.0

    def _count_transitions(self, events: LabelEvents, folds: NDArray[np.int64]) -> list[csr_array]:
        """Weights of pairs of a label and one of the next moments, `(V, V)`, by fold."""
        moments = _read_sets(events.moment, events.label, self.size)
        customer = np.zeros(moments.shape[0], np.int64)
        customer[events.moment] = events.customer
        result = []
        for fold in range(FOLDS):
            own = folds[customer] == fold
            sets, owner = moments[own], customer[own]
            lags = range(1, min(len(LAG_WEIGHTS), len(owner) - 1) + 1)
            same = [weight * (owner[lag:] == owner[:-lag]) for lag, weight in zip(lags, LAG_WEIGHTS, strict=False)]
            shape = len(owner), len(owner)
            next_sets = diags_array(same, offsets=lags, shape=shape, format="csr") @ sets if same else sets * 0
            result.append(csr_array(sets.T @ next_sets))
        return result

    def _count_occurrences(self, events: LabelEvents, folds: NDArray) -> tuple[NDArray, NDArray, csr_array]:
        """Counts by fold until the end of each part of the period, `(4, folds, PERIODS + 1, V)`: those of
        `LabelTables.counts` without the recent ones; such numbers of visits; and personal rates `(customers, V)`."""
        visits = _read_sets(events.visit, events.label, self.size).tocsc()
        visit, label = visits.indices, np.repeat(np.arange(self.size), np.diff(visits.indptr))
        customer_of_visit, period = np.zeros((2, visits.shape[0]), np.int64)
        customer_of_visit[events.visit] = events.customer
        period[events.visit] = self.count_parts(events.day).clip(max=PERIODS - 1)
        fold, customer = folds[customer_of_visit], customer_of_visit[visit]
        again, gap = ~run_starts(customer, label), np.diff(visit, prepend=-2)
        shape = FOLDS, PERIODS + 1, self.size
        counts, cells = np.zeros((4, math.prod(shape)), np.float32), (fold[visit], period[visit] + 1, label)
        for values, weights in zip(counts, (again >= 0, again, again & (gap == 1), again * gap), strict=True):
            np.add.at(values, np.ravel_multi_index(cells, shape), weights.astype(np.float32))
        number_of_visits = np.zeros(shape[:2], np.float32)
        np.add.at(number_of_visits, (fold, period + 1), 1)
        number = np.bincount(customer_of_visit)
        faded = 0.5 ** ((np.cumsum(number)[customer] - 1 - visit) / RATE_HALF_LIFE)
        possible = (1 - 0.5 ** (number / RATE_HALF_LIFE)) / (1 - 0.5 ** (1 / RATE_HALF_LIFE))
        rates = csr_array((faded / possible[customer], (customer, label)), shape=(len(folds), self.size))
        return counts.reshape(4, *shape).cumsum(2), number_of_visits.cumsum(1), rates

    def _multiply(self, rates: csr_array) -> torch.Tensor:
        """Gram matrices `(2, W, W)` of the customers' sets of labels and of their rates; W are the most frequent."""
        size = min(self.size, FIRST_LABEL + MOST_INVERTED)  # ids are in the order of frequency
        result = torch.zeros(2, size, size)
        for start in range(0, rates.shape[0], CUSTOMERS):
            dense = torch.from_numpy(rates[start : start + CUSTOMERS, :size].toarray()).float()
            for gram, values in zip(result, ((dense > 0).float(), dense), strict=True):
                gram.addmm_(values.T, values)
        return result

    def count_parts(self, day: NDArray) -> NDArray[np.int64]:
        """Number of parts of the training period that have ended at each day."""
        return np.floor((day - self.start) / self.part).astype(np.int64).clip(0, PERIODS)

    def read_at(self, part: int, without: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads `LabelTables.counts` `(5, V)` and the number of visits at the end of so many parts of the training
        period, of all folds but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        counts, visits = self.counts[:, folds, part].sum(1), float(self.visits[folds, part].sum())
        recent = counts[0] - self.counts[0, folds, max(part - LATE, 0)].sum(0)
        return torch.from_numpy(np.stack([*counts[:3], recent, counts[3]])), torch.tensor(max(visits, 1.0))

    def make_tables(self, without: int | None = None) -> LabelTables:
        """Makes the tables of all folds, or of all but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        tables = LabelTables(self.size)
        counts, visits = self.read_at(PERIODS, without)
        tables.counts.copy_(counts)
        tables.totals.copy_(torch.tensor([visits, self.gap, float(self.has_times)]))
        occurrences = counts[0].numpy()
        pairs = csr_array(sum(self.transitions[fold] for fold in folds))
        _keep_largest(tables, 0, pairs + BACKWARDS * pairs.T, (occurrences + 1) ** SHRINKAGE)
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


def _read_sets(group: NDArray[np.int64], label: NDArray[np.int64], size: int) -> csr_array:
    """The distinct labels of groups of events, as ones in an array of shape `(groups, V)`."""
    sets = csr_array((np.ones(len(label)), (group, label)), shape=(int(group[-1]) + 1, size))
    sets.data[:] = 1
    return sets


def _keep_largest(tables: LabelTables, index: int, pairs: csr_array, divisors: NDArray) -> None:
    """Fills a table with the largest weights of each label: those of the pairs `(V, V)` by the label's divisor."""
    pairs = csr_array(pairs)
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
