# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the labels of the training period, by fold of customers: what [`~scorer_mcm.LabelTables`] hold.

The counts over all customers would contain the targets of the scorer's own examples. So the customers are divided into
folds, and an example's features are computed from the counts of the other folds.

Shapes: C customers, G folds, P ends of parts of the training period (its start included), V labels of a task, W most
frequent labels whose matrices are inverted, K stored neighbours of a label.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.evaluation.cases import (
    TaskHistory,
    VisitSets,
    count_transitions,
    read_history,
    read_moments,
    tasks_without_repeats,
)
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.scorer_mcm import ATTRIBUTES, MOST_DENSE, RATE_HALF_LIFE, LabelTables
from modeling_mcm.training.labels import categorical_features, find_usual_values

FOLDS = 5
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)  # weight of a transition by its lag in moments
BACKWARDS, SHRINKAGE = 0.25, 0.4  # weight of a transition's opposite, and exponent on a label's number of occurrences
EASE_RIDGE, RATES_RIDGE = 6.0, 1.0  # strengths in units of the mean diagonal
PRIORS = 10.0 ** np.arange(1, 9)  # numbers of labels as which all visits may weigh beside the first ones
MOST_INVERTED = 2_000  # number of labels whose matrices are inverted, the most frequent ones
LEAST_VALUES = 100  # of a feature that is an attribute of labels
CUSTOMERS = 4096  # whose dense matrix of labels is multiplied at a time
PERIODS, LATE = 26, 4  # parts of the training period at whose ends labels are counted; the latest ones are recent


class ShopNumbers(NamedTuple):
    """What a task's counts say of the shop, in a number each; logarithms are natural.

    Attributes:
        customers, labels (`float`): Log of 1 + the number of customers, and of labels that were seen.
        visits, visits_vary (`float`): Log of the mean number of a customer's visits, and how this log varies.
        one_visit (`float`): Share of the customers with one visit.
        basket, moments (`float`): Log of the mean number of labels of a visit, and of its moments.
        repeats, repeats_at_once (`float`): Share of the labels of later visits that repeat one, and which share of
            these repeat it from the visit before.
        gap_visits (`float`): Log of the mean number of visits until a label is repeated.
        most_popular, entropy (`float`): Share of the ten most frequent labels, and entropy of the shares, over the
            largest possible one.
        trend (`float`): Share of the visits' labels that lately differ from before.
        has_times, gap_days (`float`): Whether times say anything; log of the median gap in days.
        followed (`float`): Share of the transitions that go to the likeliest label after each one.
        attributes (`float`): Share of the labels with an attribute.
    """

    customers: float
    labels: float
    visits: float
    visits_vary: float
    one_visit: float
    basket: float
    moments: float
    repeats: float
    repeats_at_once: float
    gap_visits: float
    most_popular: float
    entropy: float
    trend: float
    has_times: float
    gap_days: float
    followed: float
    attributes: float


class LabelCounts:
    """Counts of a task's labels by fold of customers, from which tables without one fold are made.

    Args:
        history ([`TaskHistory`]): Events of the training period with a label.
        size (`int`): V, the number of labels.
        folds (`NDArray[int64]` of shape `(C,)`): Fold of each customer.
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
        self.size, self.no_targets = size, no_targets
        self.start, self.part = day.min(), max(np.ptp(day), 1e-9) / PERIODS
        sets, customer = read_moments(history, size)  # (moments, V), (moments,)
        self.gap, self.has_times = measure_gaps(day[run_starts(history.moment)], customer)
        moments = [np.flatnonzero(folds[customer] == fold) for fold in range(FOLDS)]  # G of (moments,)
        self.transitions = [count_transitions(sets[chosen], customer[chosen], LAG_WEIGHTS) for chosen in moments]
        period = self.count_parts(visits.day).clip(max=PERIODS - 1) + 1  # (visits,), from 1
        self.counts, self.visits = count_periods(visits, folds[visits.customer], period, size)
        self.first = predict_first(visits, size)
        self.attributes, self.grams = number_attributes(values, size), list[Tensor]()
        self.made: dict[int | None, LabelTables] = {}
        if size <= MOST_DENSE:
            rates = compute_rates(visits, size)  # (C, V)
            self.grams = [multiply_labels(rates[folds == fold]) for fold in range(FOLDS)]
        self.shop = self.measure_shop(visits, len(customer))

    def measure_shop(self, visits: VisitSets, moments: int) -> ShopNumbers:
        """Measures the shop by its visits with a label, and the number of its moments."""
        number = np.diff(visits.first_visit)  # (C,): visits
        number, opens = number[number > 0], visits.first_visit[:-1][number > 0]
        seen, again, at_once, gap = self.counts[:, :, -1].sum(1)  # each (V,)
        recent = self.read_parts()[0][-1, 3].numpy()
        total, repeats = seen.sum(), again.sum()
        shares, lately = seen[seen > 0] / total, recent[seen > 0] / max(recent.sum(), 1)
        follows = csr_array(sum(self.transitions))  # (V, V)
        likeliest = follows.max(axis=1).sum() if follows.nnz else 0.0
        return ShopNumbers(
            customers=np.log1p(len(number)),
            labels=np.log1p(len(shares)),
            visits=np.log(number.mean()),
            visits_vary=np.log(number).std(),
            one_visit=(number == 1).mean(),
            basket=np.log(total / number.sum()),
            moments=np.log(moments / number.sum()),
            repeats=repeats / max(total - np.diff(visits.first_row)[opens].sum(), 1),
            repeats_at_once=at_once.sum() / max(repeats, 1),
            gap_visits=np.log(gap.sum() / repeats) if repeats else 0.0,
            most_popular=np.sort(shares)[-10:].sum(),
            entropy=-(shares * np.log(shares)).sum() / np.log(max(len(shares), 2)),
            trend=np.abs(lately - shares).sum() / 2 if self.has_times else 0.0,
            has_times=float(self.has_times),
            gap_days=np.log(max(self.gap, 1e-3)) if self.has_times else 0.0,
            followed=likeliest / max(follows.sum(), 1e-9),
            attributes=float((self.attributes > 0).any(1).mean()),
        )

    def count_parts(self, day: NDArray) -> NDArray:
        """Number of parts of the training period that have ended at each day."""
        return np.floor((day - self.start) / self.part).astype(np.int64).clip(0, PERIODS)

    def find_part(self, day: NDArray, age: NDArray) -> NDArray:
        """Number of parts that had ended at some days `(B,)`, less those by which counts are old; all without days."""
        if not self.has_times or np.isnan(day).any():
            return np.full(len(age), PERIODS)
        return (self.count_parts(day) - age).clip(min=0)

    def read_parts(self, without: int | None = None) -> tuple[Tensor, Tensor]:
        """Reads `LabelTables.counts` `(P, 5, V)` and the number of visits `(P,)` at the end of each part of the
        training period, from its start on, of all folds but one."""
        folds = [fold for fold in range(FOLDS) if fold != without]
        seen, again, at_once, gap = self.counts[:, folds].sum(1)  # each (P, V)
        recent = seen - seen[(np.arange(PERIODS + 1) - LATE).clip(min=0)]
        visits = torch.from_numpy(self.visits[folds].sum(0).clip(min=1)).float()
        return torch.from_numpy(np.stack([seen, again, at_once, recent, gap], 1)), visits

    def make_tables(self, without: int | None = None) -> LabelTables:
        """Makes the tables of all folds, or of all but one, on the CPU."""
        if without in self.made:
            return self.made[without]
        folds = [fold for fold in range(FOLDS) if fold != without]
        tables = LabelTables(self.size, self.no_targets)
        counts, visits = (values[-1] for values in self.read_parts(without))  # (5, V), ()
        tables.counts.copy_(counts)
        tables.first.copy_(torch.from_numpy(self.first))
        tables.attributes.copy_(torch.from_numpy(self.attributes))
        tables.rarity.copy_(torch.from_numpy(measure_rarity(self.attributes)))
        tables.totals.copy_(torch.tensor([visits, self.gap, float(self.has_times), self.attributes.max(initial=0)]))
        occurrences = counts[0].numpy()  # (V,)
        forwards = csr_array(sum(self.transitions[fold] for fold in folds))  # (V, V)
        both = csr_array(forwards + BACKWARDS * forwards.T)
        store_pairs(tables, 0, both, (occurrences + 1) ** SHRINKAGE)
        store_pairs(tables, 1, forwards, occurrences + 1)
        if self.grams:
            sets, rates = torch.zeros_like(self.grams[0])  # each (W, W)
            for fold in folds:
                sets += self.grams[fold][0]
                rates += self.grams[fold][1]
            store_matrix(tables, 2, regress_labels(sets))
            store_matrix(tables, 3, smooth_rates(rates))
        return tables

    def make_all_tables(self) -> "LabelCounts":
        """Makes the tables of all folds and of all but each, and drops what they are made of, which is larger."""
        self.made = {fold: self.make_tables(fold) for fold in (None, *range(FOLDS))}
        self.transitions, self.grams = [], []
        return self


def measure_gaps(day: NDArray, customer: NDArray) -> tuple[float, bool]:
    """Median gap in days between the moments `(moments,)` of a customer, and whether times say anything."""
    gaps = np.diff(day)[customer[1:] == customer[:-1]]
    has_times = bool(len(gaps) and (gaps > 0).mean() > 0.5)
    return float(np.median(gaps[gaps > 0])) if has_times else 1.0, has_times


def count_periods(visits: VisitSets, fold: NDArray, period: NDArray, size: int) -> tuple[NDArray, NDArray]:
    """The numbers of `LabelTables.counts` without the recent ones, `(4, G, P, V)`, and of visits, `(G, P)`, by fold
    until the end of each part of the period, from the fold and the period `(visits,)` of each visit."""
    group, shape = fold * (PERIODS + 1) + period, (FOLDS, PERIODS + 1)  # (visits,): a fold and a period
    counts = np.stack(visits.count_occurrences(group, FOLDS * (PERIODS + 1), size)[:4])  # (4, G P, V)
    number = np.bincount(group, minlength=FOLDS * (PERIODS + 1))  # (G P,)
    return counts.astype(np.float32).reshape(4, *shape, size).cumsum(2), number.reshape(shape).cumsum(1)


def predict_first(visits: VisitSets, size: int) -> NDArray:
    """Log shares `(V,)` of labels in the first visits of customers, smoothed towards those in all visits, as strongly
    as predicts the first visits of each fold from the others best."""
    customer = visits.customer[visits.visit]  # (rows,)
    is_first = visits.visit == visits.first_visit[customer]
    cell = customer % FOLDS * size + visits.label  # folds of its own: the log may be counted in one
    every, first = (np.bincount(cell[rows], minlength=FOLDS * size).reshape(FOLDS, size) for rows in (..., is_first))

    def smooth(every: NDArray, first: NDArray, prior: float) -> NDArray:  # each (..., V)
        popular = (every + 0.5) / (every + 0.5).sum(-1, keepdims=True)
        smoothed = first + prior * popular
        return np.log(smoothed / smoothed.sum(-1, keepdims=True))

    every_fold, first_fold = every.sum(0), first.sum(0)  # (V,)
    others = every_fold - every, first_fold - first  # (G, V): counts of all folds but each
    prior = max(PRIORS, key=lambda prior: (first * smooth(*others, prior)).sum())
    return smooth(every_fold, first_fold, prior)


def compute_rates(visits: VisitSets, size: int) -> csr_array:
    """Personal rates `(C, V)`: the share of a customer's visits with a label, of which older ones fade."""
    owner, number = visits.customer[visits.visit], np.diff(visits.first_visit)  # (rows,), (C,)
    ago = visits.first_visit[1:][owner] - 1 - visits.visit  # (rows,): visits after this one
    possible = (1 - 0.5 ** (number / RATE_HALF_LIFE)) / (1 - 0.5 ** (1 / RATE_HALF_LIFE))  # (C,): of every visit
    rates = 0.5 ** (ago / RATE_HALF_LIFE) / possible[owner]  # (rows,)
    return csr_array((rates, (owner, visits.label)), shape=(len(number), size))


def multiply_labels(rates: csr_array) -> Tensor:
    """Gram matrices `(2, W, W)` of the sets of labels of some customers, and of their rates, `(customers, V)`."""
    size = min(rates.shape[1], FIRST_LABEL + MOST_INVERTED)  # W: ids are in the order of frequency
    result = torch.zeros(2, size, size)
    for start in range(0, rates.shape[0], CUSTOMERS):
        dense = torch.from_numpy(rates[start : start + CUSTOMERS, :size].toarray()).float()  # (customers, W)
        for gram, values in zip(result, ((dense > 0).float(), dense), strict=True):
            gram.addmm_(values.T, values)
    return result


def invert(gram: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Inverse of a Gram matrix `(W, W)` with a ridge, in units of its mean diagonal, and the strength of that `()`."""
    strength = ridge * gram.diagonal()[FIRST_LABEL:].mean().clamp(min=1e-8)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram + strength * torch.eye(len(gram)))), strength


def regress_labels(sets: Tensor) -> Tensor:
    """EASE (Steck, WWW 2019): weights `(W, W)` of a regression of each label on the others, from the labels' sets."""
    inverse, _ = invert(sets, EASE_RIDGE)
    return (-inverse / inverse.diagonal()).fill_diagonal_(0)


def smooth_rates(rates: Tensor) -> Tensor:
    """Weights `(W, W)` of a ridge regression of personal rates on themselves."""
    inverse, strength = invert(rates, RATES_RIDGE)
    return torch.eye(len(rates)) - strength * inverse


def measure_rarity(attributes: NDArray) -> NDArray:
    """`LabelTables.rarity` `(V, A)` of attributes `(V, A)`."""
    number = np.bincount(attributes.ravel())  # of labels with each value
    return np.log(len(attributes) / number.clip(min=1))[attributes] * (attributes > 0)


def number_attributes(values: Sequence[NDArray], size: int) -> NDArray:
    """Attributes `(V, ATTRIBUTES)` of labels, from the usual values `(V,)` of features, the most values first. A
    feature has at least `LEAST_VALUES` of them, or it says little, and at most V / 2, or labels share none."""
    known = (np.append(0, np.where(usual >= FIRST_LABEL, usual, 0)) for usual in values)
    numbered = [np.unique(usual, return_inverse=True)[1][1:] for usual in known]  # 0: none
    numbered = [numbers for numbers in numbered if LEAST_VALUES <= numbers.max() <= size / 2]
    attributes, start = np.zeros((size, ATTRIBUTES), np.int64), 0
    for column, numbers in enumerate(sorted(numbered, key=np.max, reverse=True)[:ATTRIBUTES]):
        attributes[:, column] = np.where(numbers > 0, numbers + start, 0)
        start = attributes.max()
    return attributes


def store_pairs(tables: LabelTables, kind: int, pairs: csr_array, divisors: NDArray) -> None:
    """Stores the K largest weights of each label: those of the pairs `(V, V)` by the label's divisor `(V,)`."""
    pairs.sort_indices()
    most, starts = tables.weights.shape[2], pairs.indptr
    kept = np.ones(pairs.nnz, bool)
    for label in np.flatnonzero(np.diff(starts) > most):
        row = slice(starts[label], starts[label + 1])
        kept[row][np.argpartition(pairs.data[row], -most)[:-most]] = False
    first = np.repeat(np.arange(len(divisors)), np.diff(starts))[kept]  # (kept,): label of each pair
    place = np.arange(len(first)) - np.searchsorted(first, first)  # (kept,): index among those of the label
    cells = kind, torch.from_numpy(first), torch.from_numpy(place)
    tables.neighbours[cells] = torch.from_numpy(pairs.indices[kept]).int()
    tables.weights[cells] = torch.from_numpy(pairs.data[kept] / divisors[first]).half()


def store_matrix(tables: LabelTables, kind: int, matrix: Tensor) -> None:
    """Stores the K weights of each label that are the largest by their absolute value, of a matrix `(W, W)`."""
    matrix[:, :FIRST_LABEL] = 0
    rows, most = len(matrix), min(tables.weights.shape[2], len(matrix))
    largest = matrix.abs().topk(most, 1).indices  # (W, K)
    tables.neighbours[kind, :rows, :most] = largest.int()
    tables.weights[kind, :rows, :most] = matrix.gather(1, largest).half()


class CountedLog(NamedTuple):
    """A log from which features are computed.

    Attributes:
        rows ([`PreparedRows`]), collator ([`MCMCollator`]): The customers, and what makes model inputs of them.
        folds (`NDArray[int64]` of shape `(C,)`): Fold of each customer.
        counts (`list[LabelCounts]`): Counts of each task.
        without_repeats (`list[int]`): Indices of the tasks in which customers don't have a label again.
    """

    rows: PreparedRows
    collator: MCMCollator
    folds: NDArray
    counts: list[LabelCounts]
    without_repeats: list[int]


def count_labels(data: PreparedData, config: MCMConfig, folds: NDArray) -> Iterator[LabelCounts]:
    """Counts the labels of each task in the training period, by folds of the customers `(C,)`."""
    sizes = dict(zip(config.features, config.vocabulary_sizes, strict=True))
    features = [name for name in categorical_features(data.extractor) if sizes[name] >= FIRST_LABEL + LEAST_VALUES]
    for (task, size), no_targets in zip(config.label_sizes.items(), config.no_targets, strict=True):
        usual = find_usual_values(data.rows, config, task, features if size > 2 * LEAST_VALUES else [])
        history = read_history(data.rows, task, kind="feature")
        yield LabelCounts(history, size, folds, [*usual.values()], no_targets)


def count_log(data: PreparedData, config: MCMConfig, seed: int = 0, by_fold: bool = True) -> CountedLog:
    """Counts the labels of each task in the training period, by folds that the seed draws. Examples of training need
    the tables `by_fold`."""
    folds = np.random.default_rng(seed).integers(0, FOLDS, len(data.rows))
    counts = [counts.make_all_tables() if by_fold else counts for counts in count_labels(data, config, folds)]
    collator = MCMCollator(data.extractor, config, "evaluate", cutoff="validation")
    without_repeats = [config.tasks.index(task) for task in tasks_without_repeats(data.rows, config.tasks)]
    return CountedLog(PreparedRows(data.rows), collator, folds, counts, without_repeats)
