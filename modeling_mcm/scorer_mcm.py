# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores from counts: a small network that reads the numbers of candidate labels.

[`candidate_features`] chooses candidate labels of each customer, and computes the numbers of `features_mcm.py`. None
of them is a parameter of a single label, so the network ([`LabelScorer`]) is small; `training/scorer.py` fits it
on prefixes of the log's own customers.

All tasks are computed at once: a row is a customer and a task, customer x T + task, and the labels of all tasks are
the columns of one matrix. The network answers two questions: what comes in the next visit, and within a month?

Shapes: B customers, T tasks, Q questions, R = B T rows, L events, E labelled events of all rows, V labels of a task, C
labels of all tasks, P pairs of a row and a label of its history, N candidates of all rows, K stored neighbours of a
label, F numbers of a candidate.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting
from transformers import initialization as init

from .configuration_mcm import FIRST_LABEL, MCMConfig
from .features_mcm import (
    COUNTED,
    EVIDENCE,
    FEATURES,
    LEAST,
    NUM_FEATURES,
    PLACES,
    LabelHistory,
    SeenLabels,
    break_ties,
    compare,
    compare_vectors,
    describe_candidates,
    describe_histories,
    describe_popularity,
)
from .state_mcm import Exact

RATE_HALF_LIFE = 15.0  # in visits, of the personal rates that the ridge regression smooths
NEIGHBOURS = 200  # K
# Candidates of a customer: all labels of the history, and the best of the others by transitions, transitions from the
# latest moment, EASE, ridge regression and attributes; by popularity, and by the recent one; and by the encoder's
# readout.
BEST, POPULAR, MOST_READ = (30, 15, 30, 15, 30), (50, 30), 30
ATTRIBUTES = 4  # largest number of features that are attributes of a task's labels
NEXT_VISIT, WITHIN = 0, 1  # questions Q: which labels come in the next visit, and which within `HORIZON_DAYS`
QUESTIONS, HORIZON_DAYS = 2, 30.0
ROWS_AT_ONCE = 2_000  # of the tables that are added up: what they hold stays in the processor's cache
MOST_DENSE = 4_000  # number of labels up to which EASE and the ridge regression are computed
MOST_KEPT = 16  # selections of tasks of which `LabelScorer.read_columns` is kept
HIDDEN = (64, 32)
DROPOUT = 0.1
LEAST_RISE = 0.05  # see `LabelScorer.chances`
FARTHEST = 4.0  # largest absolute value of a standardised feature
# The mix of rates whose logarithm a score starts from, before anything is fitted. The first two are the weights of
# nearest customers, in whose place are all; the others tell labels apart that are equally popular.
MIX = {
    "share_visits_15": 0.7,
    "label_rate": 0.3,
    "transitions": 0.012,
    "next_transitions": 0.012,
    "rates_ratio": 0.02,
}


class LabelTables(nn.Module):
    """What is counted of a task's labels over the training customers. `modeling_mcm.training.scorer` fills it.

    Args:
        labels (`int`): V, the number of labels.
        no_targets (`Sequence[int]`): Ids of those that are never a target.

    Attributes:
        neighbours (`torch.IntTensor` of shape `(4, V, K)`): Labels that go with each label, by four kinds of evidence:
            transitions in both directions, transitions forwards, EASE (Steck, WWW 2019), and a ridge
            regression of personal rates on themselves. Above `MOST_DENSE` labels only the first two.
        weights (`torch.HalfTensor` of shape `(4, V, K)`): Weights of these pairs, 0 where there are fewer than K.
        counts (`torch.FloatTensor` of shape `(5, V)`): Visits of the label, those of them that repeat it, that repeat
            it at the very next visit, and those in the latest part of the training period; and the sum of the gaps, in
            visits, of those that repeat it.
        attributes (`torch.IntTensor` of shape `(V, ATTRIBUTES)`): Values of the features that a label determines,
            such as its category, those of all features numbered from 1 on; 0: none.
        rarity (`torch.FloatTensor` of shape `(V, ATTRIBUTES)`): Log of the number of labels, over that of the labels
            with this value; 0: none.
        first (`torch.FloatTensor` of shape `(V,)`): Log of the label's share in customers' first visits.
        totals (`torch.FloatTensor` of shape `(4,)`): Number of visits of all customers, median gap of moments in days,
            whether times say anything (0: days are replaced by moments), and number of values of attributes.
    """

    neighbours: Tensor
    weights: Tensor
    counts: Tensor
    attributes: Tensor
    rarity: Tensor
    first: Tensor
    totals: Tensor

    def __init__(self, labels: int, no_targets: Sequence[int] = ()):
        super().__init__()
        self.no_labels = [*range(FIRST_LABEL), *no_targets]
        shape = (4 if labels <= MOST_DENSE else 2, labels, min(labels, NEIGHBOURS))
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("counts", torch.zeros(5, labels))
        self.register_buffer("attributes", torch.zeros(labels, ATTRIBUTES, dtype=torch.int32))
        self.register_buffer("rarity", torch.zeros(labels, ATTRIBUTES))
        self.register_buffer("first", torch.zeros(labels))
        self.register_buffer("totals", torch.ones(4))

    def add_neighbours(self, label: Tensor, factor: Tensor, start: Tensor, sums: Tensor) -> None:
        """Adds to `sums` `(kinds, B, C)` what goes with labels by each kind of evidence: to each neighbour of a label
        the weight of the pair, times the `factor` of the label. `label`, `factor` and `start` are `(M,)`; a label is
        one of the V of a kind, kind after kind, and a start is where the labels of kind, customer and task begin among
        all numbers of `sums`."""
        whole = is_exporting()  # a graph, which has no loops
        start = start.int() if not whole and sums.numel() < 2**31 else start  # moves fewer bytes
        parts = ((each,) if whole else each.split(ROWS_AT_ONCE) for each in (label, factor, start))
        for labels, factors, starts in zip(*parts, strict=True):  # (m,)
            added = self.weights.flatten(0, 1).index_select(0, labels).float().mul_(factors[:, None])  # (m, K)
            neighbours = self.neighbours.flatten(0, 1).index_select(0, labels)  # (m, K)
            cells = neighbours.to(starts.dtype).add_(starts[:, None])  # (m, K), into all numbers
            sums.view(-1).index_add_(0, cells.view(-1), added.view(-1))


class Readout(NamedTuple):
    """What the encoder says of the labels of a task.

    Attributes:
        scores (`torch.FloatTensor` of shape `(B, V)`): Scores of its readout.
        vectors (`torch.FloatTensor` of shape `(V, H)`): Vectors of the labels.
    """

    scores: Tensor
    vectors: Tensor


class Candidates(NamedTuple):
    """Candidate labels of all rows, and what is known of them.

    Attributes:
        row, label, cell (`torch.LongTensor` of shape `(N,)`): Ascending pairs, and their flat indices in `(B, C)`.
        features (`torch.FloatTensor` of shape `(N, F)`): Their features.
    """

    row: Tensor
    label: Tensor
    cell: Tensor
    features: Tensor


@torch.no_grad()
def candidate_features(
    history: LabelHistory,
    tables: Sequence[LabelTables],
    readout: Sequence[Readout | None] | None = None,
    counts: Sequence[Tensor] | None = None,
    visits: Sequence[Tensor] | None = None,
    columns: "LabelColumns | None" = None,
) -> Candidates:
    """Chooses candidate labels of each row, and computes their features.

    Candidates are the labels of the history, and of the others the best by each kind of evidence and by popularity.

    Args:
        history ([`LabelHistory`]): The histories up to the time of the prediction.
        tables (`Sequence[LabelTables]`): Counts of each task over all customers, or over those of other folds while
            the scorer is fitted.
        readout (`Sequence[Readout]`, *optional*): What the encoder says, by task; its best become candidates. `None`:
            there is no encoder, and its features are 0.
        counts (`Sequence[torch.FloatTensor]`, *optional*): `tables.counts` of each task as they were at the time of
            each customer's prediction, of shape `(B, 5, V)`. Default: at the end of the training period.
        visits (`Sequence[torch.FloatTensor]`, *optional*): Number of visits of all customers until then, by task of
            shape `(B,)`.
        columns ([`LabelColumns`], *optional*): What was read of the tables.
    """
    columns = columns or LabelColumns.read(tables)
    seen = _describe_seen(history, columns)
    evidence = _sum_evidence(history.size, seen, tables, columns)  # (5, B, C)
    log_p = None if readout is None else _read_out(readout, evidence[0], columns)  # (B, C)
    is_candidate = _choose(evidence, seen, counts, log_p, columns)  # (B, C)
    cell = is_candidate.view(-1).nonzero()[:, 0]  # (N,), ascending
    customer, column = cell // columns.number, cell % columns.number  # (N,)
    task = columns.tasks.index_select(0, column)  # (N,)
    row, label = customer * len(tables) + task, column - columns.starts[task]  # (N,)
    if counts is None or visits is None:
        popularity = columns.popularity.index_select(1, column)  # (8, N)
    else:
        then, sums = torch.cat(list(counts), 2), _sum_counts(counts)  # (B, 5, C), (B, 2, T)
        known = torch.stack(list(visits), 1)[customer, task]  # (N,)
        popularity = describe_popularity(then[customer, :, column].T, sums[customer, :, task].T, known)
    seen_places = torch.arange(seen.cell.shape[0], dtype=torch.int32, device=cell.device)  # (P,)
    places = seen_places.new_full((is_candidate.numel(),), seen.cell.shape[0]).index_copy_(0, seen.cell, seen_places)
    numbers = describe_candidates(row, places[cell], seen, evidence.flatten(1).index_select(1, cell), popularity)
    read = numbers.new_zeros(NUM_FEATURES - COUNTED, cell.shape[0])
    if readout is not None and log_p is not None:
        latest = history.find_latest(len(tables))  # (R, LATEST)
        read = _describe_readout(readout, log_p.view(-1)[cell], latest, row, label)
    return Candidates(row, label, cell, torch.cat([numbers, read]).T)


def _read_out(readout: Sequence[Readout | None], like: Tensor, columns: "LabelColumns") -> Tensor | None:
    """Log probabilities of the labels by the readout, `(B, C)` like another tensor, minus infinity in tasks where it
    is not read; None where it is read in none."""
    if all(task_readout is None for task_readout in readout):
        return None
    log_p = torch.full_like(like, -torch.inf)
    for part, task_readout in zip(columns.parts, readout, strict=True):
        if task_readout is not None:
            scores = task_readout.scores[:, FIRST_LABEL:].float()
            log_p[:, part.start + FIRST_LABEL : part.stop] = scores.log_softmax(1)
    return log_p


def _describe_readout(
    readout: Sequence[Readout | None], log_p: Tensor, latest: Tensor, row: Tensor, label: Tensor
) -> Tensor:
    """The numbers of the readout `(4, N)` of candidates `(N,)`, from their log probabilities `(N,)` and the latest
    labels of each row `(R, LATEST)`; 0 in tasks where it is not read."""
    ranks = compare(row, log_p.exp()[None])[0][0]  # (N,)
    numbers = log_p.new_zeros(NUM_FEATURES - COUNTED, row.shape[0])
    customer, task = row // len(readout), row % len(readout)
    for index, task_readout in enumerate(readout):
        if task_readout is not None:
            own = (task == index).nonzero()[:, 0]  # candidates of the task
            latest_of_task = latest[index :: len(readout)]  # (B, LATEST)
            cosines = compare_vectors(task_readout.vectors, customer[own], label[own], latest_of_task)  # (2, own)
            numbers.index_copy_(1, own, torch.stack([log_p[own], ranks[own].log2(), *cosines]))
    return numbers


@dataclass(eq=False)
class LabelColumns:
    """The labels of some tasks side by side, and what their tables say of them whatever the history is."""

    tables: Sequence[LabelTables]
    number: int  # C
    parts: list[slice]  # of each task
    starts: Tensor  # (T,)
    tasks: Tensor  # (C,): of each column
    no_labels: Tensor  # columns of the ids that are no labels
    totals: Tensor  # (T, 4): of the tables

    @classmethod
    def read(cls, tables: Sequence[LabelTables]) -> "LabelColumns":
        ends = [0, *accumulate(table.counts.shape[1] for table in tables)]
        totals = torch.stack([table.totals for table in tables])
        starts = torch.tensor(ends[:-1], device=totals.device)
        columns = torch.arange(ends[-1], device=totals.device)
        tasks = torch.searchsorted(starts, columns, right=True) - 1
        no_labels = [start + label for start, table in zip(ends, tables, strict=False) for label in table.no_labels]
        parts, out = [slice(*pair) for pair in pairwise(ends)], torch.tensor(no_labels, device=totals.device)
        return cls(tables, ends[-1], parts, starts, tasks, out, totals)

    @cached_property
    def log_shares(self) -> Tensor:
        """Logs of the labels' shares up to a constant, `(C,)`; minus infinity of ids that are no labels."""
        visits = torch.cat([table.counts[0] for table in self.tables])
        return (visits + 0.5).log().index_fill_(0, self.no_labels, -torch.inf)

    @cached_property
    def first(self) -> Tensor:
        """Scores of the labels for customers without a history, `(C,)`."""
        first = torch.cat([table.first for table in self.tables])
        return first.index_fill_(0, self.no_labels, torch.finfo(first.dtype).min / 2)

    @cached_property
    def popularity(self) -> Tensor:
        """What [`describe_popularity`] says of each label at the end of the training period, `(8, C)`."""
        counts = [table.counts[None] for table in self.tables]
        sums = _sum_counts(counts)[0].index_select(1, self.tasks)  # (2, C)
        return describe_popularity(torch.cat(counts, 2)[0], sums, self.totals[:, 0].index_select(0, self.tasks))

    @cached_property
    def popular(self) -> Tensor:
        """The labels that are candidates by their popularity then, `(1, C)`."""
        return choose_popular([table.counts[None] for table in self.tables], self.parts)

    @cached_property
    def attributes(self) -> tuple[int, Tensor, Tensor]:
        """Number of values of attributes, those of the tasks side by side, each with one for none; the values of each
        label `(C, A)`; and their rarity `(C, A)`."""
        numbers = [int(number) + 1 for number in self.totals[:, 3].tolist()]  # of values by task
        starts = accumulate(numbers, initial=0)
        values = torch.cat([table.attributes + start for table, start in zip(self.tables, starts, strict=False)])
        return sum(numbers), values, torch.cat([table.rarity for table in self.tables])

    def find_cells(self, row: Tensor, label: Tensor) -> Tensor:
        """Flat indices in `(B, C)` of rows and labels `(N,)`."""
        tasks = len(self.parts)
        return (row // tasks).mul_(self.number).add_(self.starts.index_select(0, row % tasks)).add_(label)

    def other_shares(self, cell: Tensor, rows: int) -> Tensor:
        """Log shares `(rows, C)` of the labels that are no candidates, less the largest of each row and task; minus
        infinity for candidates, which are flat indices `(N,)`."""
        shares = self.log_shares.repeat(rows, 1)
        shares.view(-1).index_fill_(0, cell, -torch.inf)
        largest = torch.stack([shares[:, part].amax(1) for part in self.parts], 1).nan_to_num_(neginf=0.0)
        return shares.sub_(largest.index_select(1, self.tasks))


def _sum_counts(counts: Sequence[Tensor]) -> Tensor:
    """Sums `(1 or B, 2, T)` over the labels of each task of rows 0 and 3 of counts, each `(1 or B, 5, V)`."""
    return torch.stack([task_counts[:, ::3].sum(2) for task_counts in counts], 2).clamp(min=1)


def _describe_seen(history: LabelHistory, columns: LabelColumns) -> SeenLabels:
    """Describes the labels of each history. Without times, days are moments."""
    tasks, totals = len(columns.parts), columns.totals
    _, gap, has_times, _ = totals.index_select(0, history.row % tasks).unbind(1)
    visits, moments, days = history.ago
    ago = torch.stack([visits, moments, torch.where(has_times > 0, days / gap, moments)])
    cell = columns.find_cells(history.row, history.label)
    return describe_histories(history.row, cell, history.kind, ago, history.size * tasks)


def _sum_evidence(size: int, seen: SeenLabels, tables: Sequence[LabelTables], columns: LabelColumns) -> Tensor:
    """What all customers say of each label, given the histories, `(5, B, C)`: by kind of evidence the sum of the
    tables' rows of the labels of the history, and how rare the attributes are that it shares with them."""
    evidence = seen.recent.new_zeros(len(EVIDENCE), size, columns.number)
    factors = _weigh_seen(seen)  # (4, P)
    torch._check(seen.cell.shape[0] < 2**31)  # or exports would find that 4 P may be too large
    column, task = seen.cell % columns.number, seen.row % len(tables)  # (P,)
    label = column - columns.starts.index_select(0, task)  # (P,)
    start = seen.cell - label  # (P,): where the labels of the customer and task begin in (B, C)
    for index, table in enumerate(tables):
        kinds, labels, _ = table.neighbours.shape
        factor = factors[:kinds] * (task == index)  # (kinds, P)
        kind, read = factor.nonzero(as_tuple=True)  # (M,): which of the P labels by each kind
        starts = start.index_select(0, read) + kind * evidence[0].numel()
        table.add_neighbours(label.index_select(0, read) + kind * labels, factor[kind, read], starts, evidence)
    _add_attributes(seen, factors[0], columns, evidence[-1])
    return evidence.clamp_(min=0)


def _weigh_seen(seen: SeenLabels) -> Tensor:
    """How much each label of a history counts in the sums of evidence, `(4, P)`: transitions are averages over the
    latest moments, or over the labels of the last one; EASE is a sum over all, and ridge regression is of rates."""
    rates, is_last = seen.numbers[PLACES["share_visits_15"]], (seen.numbers[PLACES["since_moments"]] == 0).float()
    latest = torch.stack([seen.recent, is_last])  # (2, P)
    sums = latest.new_zeros(2, seen.customers.shape[1]).index_add_(1, seen.row, latest)  # (2, R)
    averages = latest / sums.index_select(1, seen.row)
    return torch.cat([averages, torch.ones_like(rates)[None], rates[None]])


def _add_attributes(seen: SeenLabels, recency: Tensor, columns: LabelColumns, sums: Tensor) -> None:
    """Adds to `sums` `(B, C)` how rare the attributes are that each label shares with the latest ones of the history,
    whose weights are `recency` `(P,)`. Values of the tasks are numbered side by side; 0 is none in each task."""
    number, values, rarity = columns.attributes
    if number == len(columns.parts):
        return
    customer, column = seen.cell // columns.number, seen.cell % columns.number  # (P,)
    weights = rarity.index_select(0, column) * recency[:, None]  # (P, A)
    shared = sums.new_zeros(sums.shape[0], number)  # by customer and value
    cells = customer[:, None] * number + values.index_select(0, column)  # (P, A)
    shared.view(-1).index_add_(0, cells.view(-1), weights.view(-1))
    for attribute in values.T:  # (C,), one after the other: (B, C, A) would be the largest tensor
        sums += shared.index_select(1, attribute)


def _choose(
    evidence: Tensor,
    seen: SeenLabels,
    counts: Sequence[Tensor] | None,
    log_p: Tensor | None,
    columns: LabelColumns,
) -> Tensor:
    """Chooses candidates `(B, C)` from evidence `(5, B, C)`, the labels of the histories, counts `(B, 5, V)` by task,
    if they are not those of the tables, and log probabilities by the readout `(B, C)`, minus infinity where it is not
    read. Of equal labels the first are chosen."""
    chosen = columns.popular if counts is None else choose_popular(counts, columns.parts)
    chosen = chosen.expand_as(evidence[0]).clone()  # (B, C)
    for values, most in zip(evidence, BEST, strict=True):  # one kind after the other: a copy of all is large
        ranked = break_ties(values)
        ranked.view(-1).index_fill_(0, seen.cell, 0)  # they are candidates anyway
        chosen |= find_best(ranked, most, 2 * LEAST, columns.parts)
    if log_p is not None:
        chosen |= find_best(break_ties(log_p.exp()), MOST_READ, 2 * LEAST, columns.parts)
    chosen.view(-1).index_fill_(0, seen.cell, True)
    return chosen.index_fill_(1, columns.no_labels, False)


def choose_popular(counts: Sequence[Tensor], parts: Sequence[slice]) -> Tensor:
    """Chooses by counts `(1 or B, 5, V)` of each task the labels that most visits have, `(1 or B, C)`."""
    # Visits of each label in the whole period, and in its latest part: rows 0 and 3 of `LabelTables.counts`
    visits = torch.cat([task_counts[:, ::3].transpose(0, 1) for task_counts in counts], 2)  # (2, 1 or B, C)
    every, recent = (
        find_best(break_ties(values), most, 0.0, parts) for values, most in zip(visits, POPULAR, strict=True)
    )
    return every | recent


def find_best(values: Tensor, most: int, least: float, parts: Sequence[slice]) -> Tensor:
    """Marks by customer and task the labels with the largest `most` of `values` `(1 or B, C)`, of which no two are
    equal; none of less than `least`."""
    device = values.device
    if not is_exporting():  # on the CPU numpy's `partition` is faster than `topk`
        values = values.cpu()
    best = torch.zeros_like(values, dtype=torch.bool)
    for part in parts:
        labels = slice(part.start + FIRST_LABEL, part.stop)
        own, number = values[:, labels], min(most, labels.stop - labels.start)
        if is_exporting():
            lowest = own.topk(number).values[:, -1:]  # (1 or B, 1)
        else:
            lowest = torch.from_numpy(np.partition(own.numpy(), -number)[:, -number, None])
        best[:, labels] = own >= lowest.clamp(min=least)
    return best.to(device)


class ScoreNetwork(nn.Module):
    """Scores candidates from their numbers: log m_w + a . z_w + MLP(z_w), where m_w is a fixed mix of rates (`MIX`),
    and z_w are the standardised numbers. It starts at log m_w, and adds what the log's own examples tell.

    Args:
        tasks (`int`): Number of tasks, each of which has a vector.
        numbers (`int`): How many of `FEATURES` it reads, the first ones.
        networks (`int`): Number of networks side by side in its hidden layers, whose scores it averages.
    """

    def __init__(self, tasks: int, numbers: int, networks: int = 1):
        super().__init__()
        self.mean, self.std = nn.Buffer(torch.zeros(numbers)), nn.Buffer(torch.ones(numbers))
        self.linear = nn.Linear(numbers, QUESTIONS)
        first, second = (networks * size for size in HIDDEN)
        self.task_vectors = nn.Embedding(tasks, first)
        self.first, self.second = nn.Linear(numbers, first), nn.Linear(first, second)
        self.last = nn.Linear(second, QUESTIONS)

    def forward(self, task: int | Tensor, features: Tensor, is_left_out: Tensor | None = None) -> Tensor:
        """Scores of candidates, of shape `(..., Q)`, from the indices of their tasks, `(...)` or one for all, and
        their numbers, `(..., F)`. In the place of those that are left out it reads their means."""
        numbers = len(self.mean)
        if is_left_out is not None:
            features = torch.where(is_left_out, F.pad(self.mean, (0, NUM_FEATURES - numbers)), features)
        z = torch.addcmul(-self.mean / self.std, features[..., :numbers], 1 / self.std).clamp_(-FARTHEST, FARTHEST)
        hidden = F.gelu(self.first(z).add_(self.task_vectors.weight[task]))
        if self.training:  # one draw for all rows: fast
            hidden = hidden * F.dropout(torch.ones_like(self.first.bias), DROPOUT)
        hidden = F.gelu(self.second(hidden))
        return self.last(hidden) + self.linear(z) + self.log_mix(features)[..., None]

    @staticmethod
    def log_mix(features: Tensor) -> Tensor:
        """Logarithm of the mix of rates `MIX` of candidates, of shape `(...)`, from their numbers `(..., F)`."""
        numbers = features[..., [PLACES[name] for name in MIX]]
        is_log = [FEATURES[PLACES[name]].unit == "log(1 + 30 x)" for name in MIX]
        rates = torch.where(torch.tensor(is_log, device=numbers.device), numbers.expm1() / 30, numbers)
        return ((rates * rates.new_tensor([*MIX.values()])).sum(-1) + 1e-9).log()


class LabelScorer(Exact):
    """Scores the labels of every task from counts and the encoder's readout:

        s(w) = exp(t) n(w)            for a candidate w
        s(w) = log share(w) + f       for any other label

    Customers without any event yet teach no network. Their scores are the log shares of labels in first visits.
    n is a [`ScoreNetwork`] that reads counts alone, or, for the tasks and questions that gain by it, one that reads
    the numbers of the readout, too. It is fitted on visits that were held out of the encoder's training. t is fitted
    for each task and question on validation cases, so that the softmax over all labels is calibrated. f is of each
    customer: the most popular of the other labels has the mean score of the candidates that the customer has not
    had, so that a label that is a candidate no longer does not fall far.

    Args:
        label_sizes (`Sequence[int]`): Number of labels V of each task.
        no_targets (`Sequence[Sequence[int]]`): By task the ids of labels that are never a target.
        has_encoder (`bool`): Whether there is a readout to read.
        networks (`int`): Number of networks of counts whose scores are averaged.
    """

    def __init__(
        self,
        label_sizes: Sequence[int],
        no_targets: Sequence[Sequence[int]],
        has_encoder: bool,
        networks: int = 1,
    ):
        super().__init__()
        self.tables = nn.ModuleList(LabelTables(*each) for each in zip(label_sizes, no_targets, strict=True))
        self.of_counts = ScoreNetwork(len(label_sizes), COUNTED, networks)
        self.of_readout = ScoreNetwork(len(label_sizes), NUM_FEATURES) if has_encoder else None
        self.reads = nn.Buffer(torch.zeros(len(label_sizes), QUESTIONS, dtype=torch.bool))  # what uses `of_readout`
        self.calibration = nn.Buffer(torch.zeros(len(label_sizes), QUESTIONS))  # t
        self.chance = nn.Buffer(torch.zeros(len(label_sizes), QUESTIONS, 3))  # see `chances`
        self.fitted = nn.Buffer(torch.zeros((), dtype=torch.bool))
        self._columns: dict[tuple[int, ...], tuple[list, list, LabelColumns]] = {}  # see `read_columns`
        self._settings: Any = None  # see `read_settings`

    def get_tables(self, task: int) -> LabelTables:
        """What is counted of a task's labels."""
        return cast(LabelTables, self.tables[task])

    def read_settings(self) -> tuple[bool, list[list[bool]]]:
        """Whether it is fitted, and `reads`; in an export, which knows no number, as in the call before it. Raises
        `ValueError` if there was none."""
        if not is_exporting():
            self._settings = bool(self.fitted), self.reads.tolist()
        if self._settings is None:
            raise ValueError("An export reads no counts: call the model once, with the same tasks, before it.")
        return self._settings

    def read_columns(self, tasks: tuple[int, ...]) -> LabelColumns:
        """What the tables of tasks say whatever the history is, which is read again when one of them has changed."""
        tables = [self.get_tables(task) for task in tasks]
        buffers = [values for table in tables for values in table.buffers(recurse=False)]
        versions = [0 if values.is_inference() else values._version for values in buffers]
        kept = self._columns.get(tasks)
        is_same = is_exporting() or (kept and kept[1] == versions and all(map(operator.is_, kept[0], buffers)))
        if kept is None or not is_same:  # in an export it is constant
            with torch.inference_mode(False), torch.no_grad():  # a later call may need gradients
                columns = LabelColumns.read(tables)
                for name in ("log_shares", "first", "popularity", "popular", "attributes"):
                    getattr(columns, name)
            kept = buffers, versions, columns
            self._columns = {**(self._columns if len(self._columns) < MOST_KEPT else {}), tasks: kept}
        return kept[2]

    def get_network(self, task: int, question: int) -> ScoreNetwork:
        """The network that scores a task's labels for a question."""
        return cast(ScoreNetwork, self.of_readout) if self.reads[task, question] else self.of_counts

    def reset_parameters(self) -> None:
        """Empties the buffers; weights start as transformers' linear layers do."""
        for name, value in self.named_buffers():
            init.constant_(value, float(name.endswith(("std", "totals"))))
        for network in filter(None, (self.of_counts, self.of_readout)):
            init.zeros_(network.task_vectors.weight)

    @staticmethod
    def average_unseen(row: Tensor, values: Tensor, features: Tensor, rows: int) -> Tensor:
        """Mean score `(rows,)` of each row's candidates that are not in its history; where there are none, the lowest
        score of a candidate."""
        unseen = (features[:, PLACES["seen"]] == 0).to(values.dtype)
        lowest = values.new_zeros(rows).scatter_reduce(0, row, values, "amin", include_self=False)
        total, number = values.new_zeros(2, rows).index_add_(1, row, torch.stack([values * unseen, unseen]))
        return torch.where(number > 0, total / number.clamp(min=1), lowest)

    @staticmethod
    def chances(chance: Sequence[Tensor] | Tensor, log_probabilities: Tensor) -> Tensor:
        """Chances that labels come, of which there are several: sigmoid(a + b log p + c p). Beyond its largest value
        the argument rises by `LEAST_RISE` log p, so that no two labels tie.

        Args:
            chance (`torch.FloatTensor` of shape `(3, ...)`): A, b and c of task and question, fitted on validation
                cases.
            log_probabilities (`torch.FloatTensor` of shape `(...)`): Log of the labels' probabilities p.
        """
        a, b, c = chance
        limit = torch.where((c < 0) & (b > 0), -b / c.clamp(max=-1e-9), 1.0).log()  # beyond it, the chance would fall
        log_p = torch.minimum(log_probabilities, limit)
        return torch.sigmoid(a + b * log_p + c * log_p.exp() + LEAST_RISE * (log_probabilities - log_p))

    def score(
        self,
        tasks: Sequence[int],
        history: LabelHistory,
        readout: Sequence[Readout | None] | None = None,
        question: int = NEXT_VISIT,
        left_out: Sequence[str] = (),
    ) -> list[Tensor]:
        """Scores of every label by task, each of shape `(B, V)`: log probabilities up to a constant.

        Args:
            tasks (`Sequence[int]`): Indices of the tasks.
            history ([`LabelHistory`]): The histories of these tasks up to the prediction time.
            readout (`Sequence[Readout]`, *optional*): What the encoder says, by task; None where the network reads
                counts alone.
            question (`int`): `NEXT_VISIT` or `WITHIN`.
            left_out (`Sequence[str]`): By customer, a group of numbers in whose place the network reads their means.
        """
        columns = self.read_columns(tuple(tasks))
        row, _, cell, features = candidate_features(history, columns.tables, readout, columns=columns)
        task = torch.tensor(tasks, device=row.device)[row % len(tasks)]  # (N,)
        is_left_out = None
        if left_out:
            groups = [[feature.group == group for feature in FEATURES] for group in left_out]
            is_left_out = torch.tensor(groups, device=row.device)[row // len(tasks)]  # (N, F)
        reads = [False] * len(tasks) if readout is None else [each is not None for each in readout]
        if len({*reads}) == 1:
            network = cast(ScoreNetwork, self.of_readout if reads[0] else self.of_counts)
            values = network(task, features, is_left_out)[:, question]  # (N,)
        else:
            is_read = torch.tensor(reads, device=row.device)[row % len(tasks)]  # (N,)
            values = self.score_candidates(task, features, is_read, is_left_out)[:, question]  # (N,)
        values = values * self.calibration[:, question].exp().index_select(0, task)
        scores = columns.other_shares(cell, history.size)  # (B, C)
        average = self.average_unseen(row, values, features, history.size * len(tasks))  # (R,)
        scores += average.view(-1, len(tasks)).index_select(1, columns.tasks)
        scores.index_fill_(1, columns.no_labels, torch.finfo(scores.dtype).min / 2)
        scores.view(-1).index_copy_(0, cell, values)
        scores = torch.where(history.is_new[:, None], columns.first, scores)
        return [scores[:, part] for part in columns.parts]

    def score_candidates(self, task: Tensor, features: Tensor, is_read: Tensor, is_left_out: Tensor | None) -> Tensor:
        """Scores `(N, Q)` of candidates of tasks `(N,)` by the network that reads the readout, where `is_read` `(N,)`,
        and elsewhere by the one that reads counts alone; `features` and `is_left_out` are `(N, F)`."""
        scores = features.new_zeros(task.shape[0], QUESTIONS)
        for network, chosen in ((self.of_counts, ~is_read), (cast(ScoreNetwork, self.of_readout), is_read)):
            own = chosen.nonzero()[:, 0]
            scores[own] = network(task[own], features[own], None if is_left_out is None else is_left_out[own])
        return scores


def check_horizon(days: float | None, scorer: LabelScorer | None) -> None:
    """Raises `ValueError` unless labels that come within some days are ranked, by a fitted scorer where there is one;
    `None` is the next visit."""
    if days is not None and (days != HORIZON_DAYS or scorer is None):
        raise ValueError(
            f"`horizon_days` is {days!r}: labels are ranked for {HORIZON_DAYS:g} days by a checkpoint with fitted "
            "counts, or else for the next visit: leave it out."
        )


def read_histories(config: MCMConfig, batch: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> LabelHistory:
    """Reads the histories of tasks from model inputs.

    Args:
        batch (`Mapping[str, torch.Tensor]`): Model inputs by name, as the feature extractor gives them.
        tasks (`Sequence[str]`, *optional*): Names of the tasks to read. Default: all tasks.
    """
    for name in ("visit_ids", "event_times"):
        if batch.get(name) is None:
            raise ValueError(f"The scorer needs `{name}`: MCMFeatureExtractor gives them.")
    ids = batch["input_ids"] * (batch["visit_ids"] > 0)[..., None]  # the start row is no event
    kinds = torch.zeros_like(ids[..., 0])
    if config.kind_feature is not None:  # values are numbered by their frequency
        kinds = (ids[..., config.features.index(config.kind_feature)] - FIRST_LABEL).clamp(min=0)
    labels = ids[..., [config.features.index(task) for task in (config.tasks if tasks is None else tasks)]]
    return LabelHistory.from_batch(labels, batch["visit_ids"], batch["event_times"], kinds, batch.get("as_of"))
