# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the labels of the training period, by fold of customers: what [`~scorer_mcm.LabelTables`] hold.

The counts over all customers would contain the targets of the scorer's own examples. So the customers are divided into
folds, and an example's features are computed from the counts of the other folds.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import arrow_batches, compute_offsets, flat_values, list_lengths, run_starts
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.scorer_mcm import MOST_DENSE, RATE_HALF_LIFE, LabelTables

FOLDS = 5
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)  # weight of a transition by its lag in moments
BACKWARDS, SHRINKAGE = 0.25, 0.4  # weight of a transition's opposite, and exponent on a label's number of occurrences
EASE_RIDGE, RATES_RIDGE = 6.0, 1.0  # strengths in units of the mean diagonal
MOST_FREQUENT = 2_000  # number of labels whose matrices are inverted, the most frequent ones
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
            lengths = list_lengths(table, "visits")
            row = np.repeat(np.arange(len(table)), lengths)
            index = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            label = flat_values(table, f"feature_{task}").astype(np.int64)
            kept = (index < flat_values(table, "validation_end")[row]) & (label >= FIRST_LABEL)
            times, visits = flat_values(table, "times")[kept], flat_values(table, "visits")[kept]
            parts.append((row[kept] + first, label[kept], visits, times / SECONDS_PER_DAY))
            first += len(table)
        customer, label, visit, day = (np.concatenate(part) for part in zip(*parts, strict=True))
        visits, moments = run_starts(customer, visit), run_starts(customer, visit, day)
        return cls(customer, label, np.cumsum(visits) - 1, np.cumsum(moments) - 1, day, size)


def _expand(starts: NDArray, stops: NDArray) -> tuple[NDArray, NDArray]:
    """Index of the range, and element, of every element of some ranges."""
    lengths = stops - starts
    which = np.repeat(np.arange(len(starts)), lengths)
    return which, np.arange(len(which)) - compute_offsets(lengths)[which] + starts[which]


class LabelCounts:
    """Counts of a task's labels by fold of customers, from which tables without one fold are made.

    Args:
        events ([`LabelEvents`]): Events of the training period.
        folds (`NDArray[int64]` of shape `(customers,)`): Fold of each customer.
    """

    def __init__(self, events: LabelEvents, folds: NDArray[np.int64]):
        self.size = events.size
        self.transitions = [self._count_transitions(events, folds == fold) for fold in range(FOLDS)]
        self.start, self.part = events.day.min(), max(np.ptp(events.day), 1e-9) / PERIODS
        self.counts, self.visits, rates = self._count_occurrences(events, folds)
        self.grams = [self._multiply(rates, folds == fold) for fold in range(FOLDS)] if self.size <= MOST_DENSE else []
        same = events.customer[1:] == events.customer[:-1]
        between = same & (events.moment[1:] != events.moment[:-1])
        gaps = np.diff(events.day)[between]
        self.has_times = bool(len(gaps) and (gaps > 0).mean() > 0.5)
        self.gap = float(np.median(gaps[gaps > 0])) if self.has_times else 1.0

    def _count_transitions(self, events: LabelEvents, in_fold: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
        """Pairs (label x V + next label), ascending, and their weights."""
        kept = in_fold[events.customer]
        cells = np.unique(events.moment[kept] * self.size + events.label[kept])  # a label counts once a moment
        moment, label = cells // self.size, cells % self.size
        numbers, starts = np.unique(moment, return_index=True)
        starts = np.append(starts, len(moment))
        customer_of_moment = np.zeros(events.moment[-1] + 1, np.int64)
        customer_of_moment[events.moment] = events.customer
        customer, keys, weights = customer_of_moment[numbers], [], []
        for lag, weight in enumerate(LAG_WEIGHTS, 1):
            before = np.flatnonzero(customer[lag:] == customer[:-lag])
            which, first = _expand(starts[before], starts[before + 1])
            after = before[which] + lag
            which, second = _expand(starts[after], starts[after + 1])
            pairs, number = np.unique(label[first][which] * self.size + label[second], return_counts=True)
            keys.append(pairs)
            weights.append(number * weight)
        return _sum_by_key(np.concatenate(keys), np.concatenate(weights))

    def _count_occurrences(self, events: LabelEvents, folds: NDArray) -> tuple[NDArray, NDArray, tuple[NDArray, ...]]:
        """Counts by fold until the end of each part of the period, `(folds, PERIODS + 1, 4, V)`: those of
        `LabelTables.counts` without the recent ones; such numbers of visits; and personal rates."""
        cells = np.unique(events.visit * self.size + events.label)
        visit, label = cells // self.size, cells % self.size
        customer_of_visit, period = np.zeros((2, events.visit[-1] + 1), np.int64)
        customer_of_visit[events.visit], period[events.visit] = (
            events.customer,
            self.count_parts(events.day).clip(max=PERIODS - 1),
        )
        order = np.lexsort((visit, label, customer_of_visit[visit]))
        customer, label, visit = customer_of_visit[visit][order], label[order], visit[order]
        again, gap = ~run_starts(customer, label), np.diff(visit, prepend=-2)
        counts = np.zeros((FOLDS, PERIODS + 1, 4, self.size), np.float32)
        for index, weights in enumerate((1, again, again & (gap == 1), again * gap)):
            np.add.at(counts[:, :, index], (folds[customer], period[visit] + 1, label), weights)
        visits = np.zeros((FOLDS, PERIODS + 1), np.float32)
        np.add.at(visits, (folds[customer_of_visit], period + 1), 1)
        number = np.bincount(customer_of_visit)
        latest = np.cumsum(number) - 1
        faded = 0.5 ** ((latest[customer] - visit) / RATE_HALF_LIFE)
        possible = (1 - 0.5 ** (number / RATE_HALF_LIFE)) / (1 - 0.5 ** (1 / RATE_HALF_LIFE))
        keys, sums = _sum_by_key(customer * self.size + label, faded)
        return (
            counts.cumsum(1),
            visits.cumsum(1),
            (keys // self.size, keys % self.size, sums / possible[keys // self.size]),
        )

    def _multiply(self, rates: tuple[NDArray, ...], in_fold: NDArray[np.bool_]) -> torch.Tensor:
        """Gram matrices `(2, W, W)` of the customers' sets of labels and of their rates; W are the most frequent."""
        size = min(self.size, FIRST_LABEL + MOST_FREQUENT)  # ids are in the order of frequency
        kept = in_fold[rates[0]] & (rates[1] < size)
        row = np.unique(rates[0][kept], return_inverse=True)[1]
        indices = torch.from_numpy(np.stack([row, rates[1][kept]]))
        result = torch.zeros(2, size, size)
        for start in range(0, int(row[-1]) + 1 if len(row) else 0, CUSTOMERS):
            part = (indices[0] >= start) & (indices[0] < start + CUSTOMERS)
            owner, label = indices[0, part] - start, indices[1, part]
            for gram, values in zip(result, (np.ones(len(row)), rates[2][kept]), strict=True):
                dense = torch.zeros(int(owner[-1]) + 1, size)
                dense[owner, label] = torch.from_numpy(values).float()[part]
                gram.addmm_(dense.T, dense)
        return result

    def count_parts(self, day: NDArray) -> NDArray[np.int64]:
        """Number of parts of the training period that have ended at each day."""
        return np.floor((day - self.start) / self.part).astype(np.int64).clip(0, PERIODS)

    def read_at(self, part: int, without: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads `LabelTables.counts` `(5, V)` and the number of visits at the end of so many parts of the training
        period, of all folds but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        counts, visits = self.counts[folds, part].sum(0), float(self.visits[folds, part].sum())
        recent = counts[0] - self.counts[folds, max(part - LATE, 0), 0].sum(0)
        return torch.from_numpy(np.stack([*counts[:3], recent, counts[3]])), torch.tensor(max(visits, 1.0))

    def make_tables(self, without: int | None = None) -> LabelTables:
        """Makes the tables of all folds, or of all but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        tables, size = LabelTables(self.size), self.size
        counts, visits = self.read_at(PERIODS, without)
        tables.counts.copy_(counts)
        tables.totals.copy_(torch.tensor([visits, self.gap, float(self.has_times)]))
        occurrences = counts[0].numpy()
        pairs, weights = _sum_by_key(
            *(np.concatenate(part) for part in zip(*(self.transitions[f] for f in folds), strict=True))
        )
        first, second = pairs // size, pairs % size
        _keep_largest(tables, 1, first, second, weights / (occurrences[first] + 1))
        pairs, weights = _sum_by_key(
            np.concatenate([pairs, second * size + first]), np.concatenate([weights, BACKWARDS * weights])
        )
        first, second = pairs // size, pairs % size
        _keep_largest(tables, 0, first, second, weights / (occurrences[first] + 1) ** SHRINKAGE)
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


def _sum_by_key(keys: NDArray[np.int64], weights: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Distinct keys, ascending, and the sum of the weights of each."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse, weights, len(distinct))


def _keep_largest(tables: LabelTables, index: int, first: NDArray, second: NDArray, weights: NDArray) -> None:
    """Fills a table with the largest weights of each label; `first` is ascending."""
    most, starts = tables.weights.shape[2], np.searchsorted(first, np.arange(tables.weights.shape[1] + 1))
    kept = np.ones(len(first), bool)
    for label in np.flatnonzero(np.diff(starts) > most):
        own = slice(starts[label], starts[label + 1])
        kept[own][np.argpartition(weights[own], -most)[:-most]] = False
    first, second, weights = first[kept], second[kept], weights[kept]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    cells = index, torch.from_numpy(first), torch.from_numpy(rank)
    tables.neighbours[cells] = torch.from_numpy(second).int()
    tables.weights[cells] = torch.from_numpy(weights).half()
