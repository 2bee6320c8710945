# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores from counts: features that mean the same for any label in any shop, and a small network that reads them.

For each candidate label of each customer, [`candidate_features`] computes some fifty numbers: how often, how regularly
and how long ago the customer had the label, what usually comes after the customer's latest labels (transitions, EASE,
a ridge regression of personal rates), how popular the label is, and the ranks of these numbers among the candidates.
None of them is a parameter of a single label, so the network ([`LabelScorer`]) is small; `training/scorer.py` fits it
in seconds on prefixes of the log's own customers.

All tasks are computed at once: a row is a customer and a task, customer x T + task, and the labels of all tasks are
the columns of one matrix. The network answers two questions: what comes in the next visit, and within a month?

Shapes: B customers, T tasks, Q questions, R = B T rows, L events, E labelled events of all rows, V labels of a task, C
labels of all tasks, P pairs of a row and a label of its history, N candidates of all rows, K stored neighbours of a
label, F features.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_mcm import FIRST_LABEL, MCMConfig

VISIT_HALF_LIVES, MOMENT_HALF_LIVES = (2.5, 5.0, 15.0, 40.0), (2.0, 8.0)
RATE_HALF_LIFE = 15.0  # in visits, of the personal rates that the ridge regression smooths
GAPS_HALF_LIFE = 8.0  # half-life of shares by time, in median gaps of the log
KINDS = 3  # number of kinds of events, the most frequent ones, that have shares of their own
RECENT, RECENT_DECAY = 8, 0.6  # number of latest moments whose transitions are looked up, and their decay by moment
NEIGHBOURS = 200  # K
# Candidates of a customer: at most so many labels of the history, and the best of the others by transitions,
# transitions from the latest moment, EASE and ridge regression; by popularity, and by the recent one; and by the
# encoder's readout.
MOST_SEEN, BEST, POPULAR, MOST_READ = 120, (30, 15, 30, 15), (50, 30), 30
# Features of a label of the customer's history; 0 for labels that are not in it.
PERSONAL = (
    "seen", "visits", "share_since_first", "since_visits", "since_moments", "since_days", "several", "overdue_visits",
    "overdue_days", "irregularity", "third", "in_last_visit",
    *(f"share_visits_{half_life:g}" for half_life in VISIT_HALF_LIVES),
    *(f"share_moments_{half_life:g}" for half_life in MOMENT_HALF_LIVES),
    "share_days", *(f"share_kind_{kind}" for kind in range(KINDS)), *(f"last_kind_{kind}" for kind in range(KINDS)),
)  # fmt: skip
RANKED = [PERSONAL.index(name) for name in ("share_visits_5", "share_visits_15", "share_moments_8", "share_days")]
# The personal features, four of the customer, two of transitions, ratios and ranks, and eight of the label.
COUNTED = len(PERSONAL) + 4 + 2 + (4 + len(RANKED)) + (6 + len(RANKED)) + 8
NEXT_VISIT, WITHIN = 0, 1  # questions Q: which labels come in the next visit, and which within `HORIZON_DAYS`
QUESTIONS, HORIZON_DAYS = 2, 30.0
OF_READOUT = 2  # features of the encoder's readout: log-probability, and rank among the candidates
NUM_FEATURES = COUNTED + OF_READOUT  # F
MOST_DENSE = 4_000  # number of labels up to which EASE and the ridge regression are computed
HIDDEN = (64, 32)
DROPOUT = 0.1
LEAST_RISE = 0.05  # see `LabelScorer.chances`
FARTHEST = 4.0  # largest absolute value of a standardised feature
# Decays of an event by its visits, moments and median gaps ago, as exponents of 2: columns are the half-lives and
# `RECENT_DECAY`. Those of visits and moments count an event if it is the first of its visit or moment.
DECAYS = torch.zeros(3, len(VISIT_HALF_LIVES) + len(MOMENT_HALF_LIVES) + 2, dtype=torch.float64)
DECAYS[0, : len(VISIT_HALF_LIVES)] = -1 / torch.tensor(VISIT_HALF_LIVES, dtype=torch.float64)
DECAYS[1, len(VISIT_HALF_LIVES) : -2] = -1 / torch.tensor(MOMENT_HALF_LIVES, dtype=torch.float64)
DECAYS[2, -2], DECAYS[1, -1] = -1 / GAPS_HALF_LIFE, math.log2(RECENT_DECAY)


class LabelHistory(NamedTuple):
    """The labelled events of all customers of a batch, row after row, and oldest first.

    Attributes:
        row, label (`torch.LongTensor` of shape `(E,)`): The event's row, customer x T + task, and its label.
        steps (`torch.DoubleTensor` of shape `(E, 3)`): Number of the row's visits, and of moments, with a labelled
            event after this one's, and days from the event to the time of the prediction. A moment is the events of
            one visit and time.
        kind (`torch.LongTensor` of shape `(E,)`): Kind of the event, from 0; above `KINDS` are rare ones.
        size (`int`): B.
    """

    row: torch.Tensor
    label: torch.Tensor
    steps: torch.Tensor
    kind: torch.Tensor
    size: int

    @classmethod
    def from_batch(
        cls,
        labels: torch.Tensor,
        visit_ids: torch.Tensor,
        event_times: torch.Tensor,
        kinds: torch.Tensor,
        as_of: torch.Tensor | None = None,
    ) -> "LabelHistory":
        """Reads the histories from model inputs.

        Args:
            labels (`torch.LongTensor` of shape `(B, L, T)`): Label of each event in each task; below 2: none.
            visit_ids, kinds (`torch.LongTensor` of shape `(B, L)`): Visit of each event, and its kind.
            event_times (`torch.FloatTensor` of shape `(B, L)`): Days from the customer's first event to each event,
                ascending.
            as_of (`torch.FloatTensor` of shape `(B,)`, *optional*): Time of the prediction on the same clock. Default:
                the time of the customer's last event.
        """
        size, length, tasks = labels.shape
        by_row = labels.transpose(1, 2).flatten(0, 1)  # (R, L)
        row, event = (by_row >= FIRST_LABEL).nonzero(as_tuple=True)
        at = row // tasks * length + event
        times = event_times.double()
        # Counts of the changes of row, visit and time, from the last event backwards
        steps = torch.stack([row.double(), visit_ids.take(at).double(), times.take(at)])
        changes = (steps.diff(dim=1) != 0).cumsum(0)[1:] > 0
        counts = F.pad(changes, (1, 0)).cumsum(1)
        last = torch.searchsorted(row, row, right=True) - 1
        if as_of is None:
            as_of = event_times.amax(1) if length else event_times.new_zeros(size)
        days = (as_of.double()[row // tasks] - steps[2]).clamp(min=0)
        steps = torch.cat([counts[:, last] - counts, days[None]]).T
        return cls(row, by_row[row, event], steps, kinds.take(at), size)


class LabelTables(nn.Module):
    """What is counted of a task's labels over the training customers. `modeling_mcm.training.scorer` fills it.

    Args:
        labels (`int`): V, the number of labels.

    Attributes:
        neighbours (`torch.IntTensor` of shape `(4, V, K)`): Labels that go with each label, by four kinds of evidence:
            transitions in both directions, transitions forwards, EASE (Steck, WWW 2019), and a ridge
            regression of personal rates on themselves. Above `MOST_DENSE` labels only the first two.
        weights (`torch.HalfTensor` of shape `(4, V, K)`): Weights of these pairs, 0 where there are fewer than K.
        counts (`torch.FloatTensor` of shape `(5, V)`): Visits of the label, those of them that repeat it, that repeat
            it at the very next visit, and those in the latest part of the training period; and the sum of the gaps, in
            visits, of those that repeat it.
        totals (`torch.FloatTensor` of shape `(3,)`): Number of visits of all customers, median gap of moments in days,
            and whether times say anything (0: days are replaced by moments).
    """

    neighbours: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    totals: torch.Tensor

    def __init__(self, labels: int):
        super().__init__()
        shape = (4 if labels <= MOST_DENSE else 2, labels, min(labels, NEIGHBOURS))
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("counts", torch.zeros(5, labels))
        self.register_buffer("totals", torch.ones(3))

    @torch.no_grad()
    def grow(self, number: int) -> None:
        """Appends new labels, of which nothing is known."""
        for name in ("neighbours", "weights", "counts"):
            value = self.get_buffer(name)
            new = value.new_zeros(len(value), number, *value.shape[2:])
            self.register_buffer(name, torch.cat([value, new], 1))

    def sum_neighbours(
        self, customer: torch.Tensor, label: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Adds up the tables' rows of the labels `(P,)` of customers `(P,)` by the weights `(4, P)` into `out`
        `(4, B, V)`."""
        (_, size, labels), kinds = out.shape, len(self.neighbours)
        kind, pair = weights[:kinds].nonzero(as_tuple=True)
        rows, offsets = kind * labels + label[pair], (kind * size + customer[pair]) * labels
        values = self.weights.flatten(0, 1).index_select(0, rows).float().mul_(weights[kind, pair, None])
        columns = self.neighbours.flatten(0, 1).index_select(0, rows)
        columns += offsets.int()[:, None]  # 32 bits, to move fewer bytes
        sums = torch.bincount(columns.flatten(), values.flatten(), kinds * size * labels)
        out[:kinds] = sums.view(kinds, size, labels).clamp(min=0)


class Candidates(NamedTuple):
    """Candidate labels of all rows, and what is known of them.

    Attributes:
        row, label (`torch.LongTensor` of shape `(N,)`): Ascending pairs.
        features (`torch.FloatTensor` of shape `(N, F)`): Their features.
    """

    row: torch.Tensor
    label: torch.Tensor
    features: torch.Tensor


class _Pairs(NamedTuple):
    """The labels of each history."""

    cell: torch.Tensor  # (P,): customer x C + column, ascending
    row: torch.Tensor  # (P,)
    features: torch.Tensor  # (P, len(PERSONAL))
    recent: torch.Tensor  # (P,): sum of the decayed latest moments with the label
    of_rows: torch.Tensor  # (R, 4): features of the customers


def _describe_pairs(
    row: torch.Tensor, cell: torch.Tensor, kind: torch.Tensor, steps: torch.Tensor, size: int
) -> _Pairs:
    """Computes the personal features from each event's row, cell, kind `(E,)` and steps `(E, 3)`, with median gaps as
    days. Sums are in double precision and in one order: equal shares are equal to the bit in every batch, and so are
    their ranks."""
    # Events by pair, newest first
    most = max(len(cell), 1)  # more than any number of steps
    keys, order = (cell * most + steps[:, 1].long()).sort()
    cells, pair, lengths = (keys // most).unique_consecutive(return_inverse=True, return_counts=True)
    steps, is_kind = steps[order], kind[order, None] == torch.arange(KINDS, device=cell.device)
    gaps = (2 * most * pair[:, None] + steps[:, :2]).diff(dim=0, prepend=steps.new_full((1, 2), -most))
    is_new = (gaps > 0).double()  # whether the event is the pair's first one of a visit, and of a moment
    gap = gaps[:, :1] * (gaps[:, :1] < most)  # visits since the pair's visit before

    # Sums over each pair's events
    decays = DECAYS.to(cell.device)
    decayed = torch.exp2(steps @ decays)
    weights = torch.addmm((decays[2] < 0).double(), is_new, (decays[:2] < 0).double()) * decayed
    weights[:, -1] *= steps[:, 1] < RECENT
    by_kind = decayed[:, -3:-2] * is_kind, is_kind * (steps[:, 1:2] == 0)
    values = torch.cat([weights, is_new, gap.square(), *by_kind], 1)
    sums = values.new_zeros(len(cells), values.shape[1]).index_add_(0, pair, values)
    shares, recent, numbers, squares, kinds = sums.split([decays.shape[1] - 1, 1, 2, 1, 2 * KINDS], 1)

    # The first and the last event of each pair, and of each row
    last = lengths.cumsum(0)
    first = last - lengths
    newest, oldest, row = steps[first], steps[last - 1], row[order[first]]  # (P, 3)
    start = steps.new_zeros(size, 3).scatter_reduce(0, row[:, None].expand(-1, 3), oldest, "amax")
    elapsed = steps.new_zeros(size).scatter_reduce(0, row, newest[:, 2], "amin", include_self=False)
    own_gap = ((start[:, 2] - elapsed) / start[:, 1].clamp(min=1)).clamp(min=0.02)  # of all moments
    values = torch.cat([torch.ones_like(recent), numbers[:, :1], shares[:, -1:], kinds[:, :KINDS]], 1)
    totals = steps.new_zeros(size, 3 + KINDS).index_add_(0, row, values)

    # Visits and times between the pair's own visits and moments, (P, 2)
    repeats = (numbers - 1).clamp(min=1)
    mean_gaps = (oldest - newest)[:, ::2] / repeats
    floors = mean_gaps.maximum(steps.new_tensor([0.5, 0.02]))
    limits = steps.new_tensor([[0.0, 1e-3], [torch.inf, 1e3]])
    overdue = ((newest[:, ::2] + steps.new_tensor([1.0, 0.0])) / floors).clamp(*limits).log()
    variance = squares / repeats[:, :1] - mean_gaps[:, :1].square()
    irregularity = variance.clamp(min=0).sqrt() / floors[:, :1]
    several, third = numbers > 1, numbers[:, :1] > 2

    # Shares of what was possible
    full = 1 - torch.exp2((start + 1) @ decays[:, :-2])
    possible = (full / (1 - torch.exp2(decays[:2, :-2].sum(0)))).clamp(min=1e-6)
    least = steps.new_tensor([1e-9, *[0.5] * KINDS])
    possible = torch.cat([possible, totals[:, 2:].clamp(min=least)], 1)[row]
    logs = torch.cat([numbers[:, :1], newest[:, :2], newest[:, 2:] / own_gap[row, None]], 1).log1p()
    columns = [
        torch.ones_like(recent),
        logs[:, :1],
        numbers[:, :1] / (oldest[:, :1] + 1),
        logs[:, 1:],
        several[:, :1],
        overdue * (several & (mean_gaps > 0)),
        irregularity * third,
        third,
        newest[:, :1] == 0,
        torch.cat([shares, kinds[:, :KINDS]], 1) / possible,
        kinds[:, KINDS:].clamp(max=1),
    ]
    seen, occurrences = totals[:, 0], totals[:, 1]
    of_rows = [
        (occurrences - seen + 0.5) / (occurrences + 1),  # share of repeats
        (occurrences / (start[:, 0] + 1)).log1p(),
        (start[:, 1] + 1).log1p(),
        (elapsed / own_gap).log1p(),
    ]
    return _Pairs(cells, row, torch.cat(columns, 1).float(), recent[:, 0].float(), torch.stack(of_rows, 1).float())


def _compare(row: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compares values `(N, columns)` within their row and column; `row` `(N,)` is ascending. Returns ranks from 1, the
    largest first, and the largest value, both `(N, columns)`."""
    _, index, size = row.unique_consecutive(return_inverse=True, return_counts=True)
    position = torch.arange(len(row), device=row.device) - (size.cumsum(0) - size)[index]
    padded = values.new_full((len(size), values.shape[1], int(size.max()) if len(size) else 0), -torch.inf)
    padded[index, :, position] = values
    order = padded.argsort(dim=2, descending=True, stable=True)
    ranks = torch.arange(1, padded.shape[2] + 1, device=row.device).to(values.dtype).expand_as(padded)
    ranks = torch.empty_like(padded).scatter_(2, order, ranks)
    return ranks[index, :, position], padded.gather(2, order[..., :1])[..., 0][index]


@torch.no_grad()
def candidate_features(
    history: LabelHistory,
    tables: Sequence[LabelTables],
    readout: Sequence[torch.Tensor | None] | None = None,
    counts: Sequence[torch.Tensor] | None = None,
    visits: Sequence[torch.Tensor] | None = None,
) -> Candidates:
    """Chooses candidate labels of each row, and computes their features.

    Candidates are the labels of the history, and of the others the best by each kind of evidence and by popularity.

    Args:
        history ([`LabelHistory`]): The histories up to the time of the prediction.
        tables (`Sequence[LabelTables]`): Counts of each task over all customers, or over those of other folds while
            the scorer is fitted.
        readout (`Sequence[torch.FloatTensor]`, *optional*): Scores of the encoder's readout by task, of shape
            `(B, V)`; the best become candidates. `None`: there is no encoder, and its features are 0.
        counts (`Sequence[torch.FloatTensor]`, *optional*): `tables.counts` of each task as they were at the time of
            each customer's prediction, of shape `(B, 5, V)`. Default: at the end of the training period.
        visits (`Sequence[torch.FloatTensor]`, *optional*): Number of visits of all customers until then, by task of
            shape `(B,)`.
    """
    columns = _Columns.read(tables)
    pairs = _read_pairs(history, columns)
    evidence = _sum_evidence(history.size, pairs, tables, columns)
    counts = [table.counts[None] for table in tables] if counts is None else counts  # of shape (1 or B, 5, V)
    is_read = [False] * len(tables) if readout is None else [scores is not None for scores in readout]
    shares = evidence.new_zeros(history.size, columns.number)
    for part, scores in zip(columns.parts, readout or [], strict=False):
        if scores is not None:
            shares[:, part.start + FIRST_LABEL : part.stop] = scores[:, FIRST_LABEL:].float().log_softmax(1)
    cell = _choose(evidence, pairs, counts, shares, columns, is_read).view(-1).nonzero()[:, 0]
    task = torch.bucketize(cell % columns.number, columns.starts[1:], right=True)
    row = cell // columns.number * len(tables) + task
    of_readout = evidence.new_zeros(len(cell), OF_READOUT)
    if any(is_read):
        of_readout[:, 0] = shares.view(-1)[cell]
        of_readout[:, 1:] = _compare(row, of_readout[:, :1])[0].log2()
        of_readout *= torch.tensor(is_read, device=row.device)[task, None]
    known = columns.totals[None, :, 0] if visits is None else torch.stack(list(visits), 1)  # (1 or B, T)
    counted = _describe_candidates(row, cell, pairs, evidence.view(4, -1)[:, cell].T, counts, known)
    return Candidates(row, cell % columns.number - columns.starts[task], torch.cat([counted, of_readout], 1))


class _Columns(NamedTuple):
    """The labels of all tasks side by side."""

    number: int  # C
    parts: list[slice]  # of each task
    starts: torch.Tensor  # (T,)
    totals: torch.Tensor  # (T, 3): of the tables

    @classmethod
    def read(cls, tables: Sequence[LabelTables]) -> "_Columns":
        ends = list(accumulate(table.counts.shape[1] for table in tables))
        parts = [slice(start, end) for start, end in pairwise([0, *ends])]
        totals = torch.stack([table.totals for table in tables])
        return cls(ends[-1], parts, torch.tensor([0, *ends[:-1]], device=totals.device), totals)


def _read_pairs(history: LabelHistory, columns: _Columns) -> _Pairs:
    """Describes the labels of each history. Without times, days are moments."""
    tasks, totals = len(columns.parts), columns.totals
    customer, task = history.row // tasks, history.row % tasks
    days = torch.where(totals[:, 2] > 0, history.steps[:, 2:] / totals[:, 1], history.steps[:, 1:2])  # (E, T), in gaps
    steps = torch.cat([history.steps[:, :2], days.gather(1, task[:, None])], 1)
    cell = customer * columns.number + columns.starts[task] + history.label
    return _describe_pairs(history.row, cell, history.kind, steps, history.size * tasks)


def _sum_evidence(size: int, pairs: _Pairs, tables: Sequence[LabelTables], columns: _Columns) -> torch.Tensor:
    """What all customers say of each label, given the histories, `(4, B, C)`: weighted sums of the tables' rows."""
    rates, since = (pairs.features[:, PERSONAL.index(name)] for name in ("share_visits_15", "since_moments"))
    averages = torch.stack([pairs.recent, (since == 0).float()])  # transitions are averages over the latest labels
    sums = averages.new_zeros(2, len(pairs.of_rows)).index_add_(1, pairs.row, averages)
    weights = torch.cat([averages / sums[:, pairs.row], torch.ones_like(rates)[None], rates[None]])  # (4, P)
    evidence = rates.new_zeros(4, size, columns.number)
    customer, task = pairs.row // len(tables), pairs.row % len(tables)
    label = pairs.cell % columns.number - columns.starts[task]
    for index, (table, part) in enumerate(zip(tables, columns.parts, strict=True)):
        own = (task == index).nonzero()[:, 0]
        table.sum_neighbours(customer[own], label[own], weights[:, own], evidence[..., part])
    return evidence


def _describe_candidates(
    row: torch.Tensor,
    cell: torch.Tensor,
    pairs: _Pairs,
    evidence: torch.Tensor,
    counts: Sequence[torch.Tensor],
    visits: torch.Tensor,
) -> torch.Tensor:
    """Computes the counted features `(N, COUNTED)` of candidates from their evidence `(N, 4)`, counts `(1 or B, 5, V)`
    by task, and the number of visits of all customers `(1 or B, T)`."""
    tasks = len(counts)
    place = torch.searchsorted(pairs.cell, cell).clamp(max=max(len(pairs.cell) - 1, 0))
    was_seen = pairs.cell[place] == cell if len(pairs.cell) else torch.zeros_like(cell, dtype=torch.bool)
    personal = F.pad(pairs.features, (0, 0, 0, 1))[torch.where(was_seen, place, len(pairs.cell))]
    since_visits, since_moments = (personal[:, PERSONAL.index(f"since_{unit}")] for unit in ("visits", "moments"))

    # Counts of the label, and of all labels of its task
    of_tasks = torch.stack([each[:, [0, 3]].sum(2).clamp(min=1) for each in counts], 1)  # (1 or B, T, 2)
    of_tasks = torch.cat([of_tasks, visits[..., None]], 2)
    of_labels = torch.cat(list(counts), 2).transpose(1, 2)  # (1 or B, C, 5)
    then = row // tasks % len(of_labels)
    occurrences, recent_occurrences, all_visits = of_tasks[then, row % tasks].unbind(1)
    count, repeats, next_repeats, recent, gaps = of_labels[then, cell % of_labels.shape[1]].unbind(1)
    share, recent_share, label_gap = count / occurrences, recent / recent_occurrences, (gaps + 1) / (repeats + 0.5)

    since = torch.where(was_seen, since_moments, 1e6)
    compared = torch.cat([evidence, personal[:, RANKED], count[:, None], -since[:, None]], 1)
    ranks, largest = _compare(row, compared)
    both = 4 + len(RANKED)  # evidence and personal shares
    of_label = [
        ((evidence[:, 1] + 1e-4) / (share + 1e-4)).log(),  # lift of the latest transitions
        (30 * count / all_visits).log1p(),
        share.clamp(min=1e-7).log(),
        ((recent_share + 1e-4) / (share + 1e-4)).log(),  # trend
        (repeats + 0.5) / (count + 2),
        (next_repeats + 0.1) / (count + 2),
        label_gap.log1p(),
        torch.where(was_seen, (since_visits.exp() / label_gap).log(), 0.0),  # overdue
    ]
    features = [
        personal,
        pairs.of_rows[row],
        (30 * evidence[:, :2]).log1p(),  # transitions
        compared[:, :both] / largest[:, :both].clamp(min=1e-9),
        torch.cat([ranks[:, :4], ranks[:, both:], ranks[:, 4:both]], 1).log2(),
        torch.stack(of_label, 1),
    ]
    return torch.cat(features, 1)


def _choose(
    evidence: torch.Tensor,
    pairs: _Pairs,
    counts: Sequence[torch.Tensor],
    shares: torch.Tensor,
    columns: _Columns,
    is_read: Sequence[bool],
) -> torch.Tensor:
    """Chooses candidates `(B, C)` from evidence `(4, B, C)`, the labels of the histories, counts `(1 or B, 5, V)` by
    task, and, where it is read, log-probabilities by the readout `(B, C)`."""
    result = torch.zeros_like(evidence[0], dtype=torch.bool)
    result.view(-1)[pairs.cell] = True
    unseen = evidence.masked_fill(result, 0.0)
    if len(pairs.row) > MOST_SEEN and torch.bincount(pairs.row).max() > MOST_SEEN:
        strength = sum(pairs.features[:, PERSONAL.index(name)] for name in ("share_visits_15", "share_moments_8"))
        result.view(-1)[pairs.cell] = _compare(pairs.row, cast(torch.Tensor, strength)[:, None])[0][:, 0] <= MOST_SEEN
    limits = torch.tensor(BEST, device=evidence.device)[:, None, None]
    chosen: list[torch.Tensor] = []
    for part, of_task, reads in zip(columns.parts, counts, is_read, strict=True):
        first = part.start + FIRST_LABEL
        number = part.stop - first
        best = unseen[..., part].topk(min(max(BEST), number), 2)
        is_best = (best.values > 0) & (torch.arange(best.values.shape[2], device=evidence.device) < limits)
        chosen += torch.where(is_best, best.indices + part.start, 0).unbind()
        for of_labels, most in zip(of_task[:, [0, 3], FIRST_LABEL:].unbind(1), POPULAR, strict=True):
            popular = of_labels.topk(min(most, number), 1).indices + first
            chosen.append(popular.expand(len(result), -1))
        if reads:
            chosen.append(shares[:, first : part.stop].topk(min(MOST_READ, number), 1).indices + first)
    result.scatter_(1, torch.cat(chosen, 1), True)
    result[:, 0] = False
    return result


class LabelScorer(nn.Module):
    """Scores the labels of every task from counts and the encoder's readout:

        s(w) = exp(t) (a . z_w + MLP(z_w) + u . x_w) + b    for a candidate w
        s(w) = log share(w) + f                             for any other label

    z_w are the standardised numbers that are counted, and x_w log-probability and rank by the readout. The network is
    trained without x, on training prefixes, whose targets the encoder may know by heart. t, b, f and u are fitted for
    each task and question on validation cases, so that the softmax over all labels is calibrated. For a customer whose
    unseen candidates score less on average than the most popular label would by the second line, f is smaller.

    Args:
        label_sizes (`Sequence[int]`): Number of labels V of each task.
    """

    def __init__(self, label_sizes: Sequence[int]):
        super().__init__()
        self.tables = nn.ModuleList(LabelTables(size) for size in label_sizes)
        self.mean, self.std = nn.Buffer(torch.zeros(COUNTED)), nn.Buffer(torch.ones(COUNTED))
        self.linear = nn.Linear(COUNTED, QUESTIONS)
        self.task_vectors = nn.Embedding(len(label_sizes), HIDDEN[0])
        self.first, self.second = nn.Linear(COUNTED, HIDDEN[0]), nn.Linear(*HIDDEN)
        self.last = nn.Linear(HIDDEN[1], QUESTIONS)
        self.calibration = nn.Buffer(torch.zeros(len(label_sizes), QUESTIONS, 3 + OF_READOUT))  # t, b, f and u
        self.chance = nn.Buffer(torch.zeros(len(label_sizes), QUESTIONS, 3))  # see `chances`
        self.fitted = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def get_tables(self, task: int) -> LabelTables:
        """What is counted of a task's labels."""
        return cast(LabelTables, self.tables[task])

    def reset_parameters(self) -> None:
        """Empties the buffers; weights start as transformers' linear layers do."""
        for name, value in self.named_buffers():
            init.constant_(value, float(name == "std" or name.endswith("totals")))
        init.zeros_(self.task_vectors.weight)

    def forward(self, task: int | torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Scores of candidates by the network, of shape `(..., Q)`, from the indices of their tasks, `(...)` or one
        for all, and their numbers, `(..., F)`."""
        z = ((features[..., :COUNTED] - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)
        hidden = F.gelu(self.first(z) + self.task_vectors.weight[task])
        kept = F.dropout(torch.ones_like(self.first.bias), DROPOUT, self.training)  # one draw for all rows: fast
        hidden = F.gelu(self.second(hidden * kept))
        return self.last(hidden) + self.linear(z)

    def log_shares(self, task: int) -> torch.Tensor:
        """Logarithm of each label's share of the training period, of shape `(V,)`."""
        popularity = self.get_tables(task).counts[0] + 0.5
        return (popularity / popularity[FIRST_LABEL:].sum()).log()

    @staticmethod
    def calibrated(calibration: torch.Tensor, values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Scores of candidates on the scale of log probabilities.

        Args:
            calibration (`torch.FloatTensor` of shape `(3 + OF_READOUT,)` or `(N, 3 + OF_READOUT)`): T, b, f and u.
            values (`torch.FloatTensor` of shape `(N,)`): What `forward` gives.
            features (`torch.FloatTensor` of shape `(N, F)`): Numbers of the candidates.
        """
        t, b, _, *u = calibration.unbind(-1)
        of_readout = sum(weight * x for weight, x in zip(u, features[:, COUNTED:].unbind(1), strict=True))
        return t.exp() * (values + of_readout) + b

    @staticmethod
    def average_unseen(row: torch.Tensor, values: torch.Tensor, features: torch.Tensor, rows: int) -> torch.Tensor:
        """Mean score `(rows,)` of each row's candidates that are not in its history, infinite where there are none:
        that of the most popular label that is no candidate is at most as large."""
        unseen = features[:, PERSONAL.index("seen")] == 0
        result = values.new_full((rows,), torch.inf)
        return result.scatter_reduce(0, row[unseen], values[unseen], "mean", include_self=False)

    @staticmethod
    def chances(chance: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Chances that labels come, of which there are several: sigmoid(a + b log p + c p). Beyond its largest value
        the argument rises by `LEAST_RISE` log p, so that no two labels tie.

        Args:
            chance (`torch.FloatTensor` of shape `(3,)`): A, b and c of task and question, fitted on validation cases.
            log_probabilities (`torch.FloatTensor` of shape `(...)`): Log of the labels' probabilities p.
        """
        a, b, c = chance
        log_p = log_probabilities.clamp(max=(-b / c).log() if c < 0 < b else 0.0)  # beyond it, the chance would fall
        return torch.sigmoid(a + b * log_p + c * log_p.exp() + LEAST_RISE * (log_probabilities - log_p))

    def reads_readout(self, task: int | slice = slice(None), question: int | slice = slice(None)) -> bool:
        """Whether the scores of a task and question (default: of any) depend on the encoder's readout."""
        return bool(self.calibration[task, question, 3:].any())

    def score(
        self,
        tasks: Sequence[int],
        history: LabelHistory,
        readout: Sequence[torch.Tensor] | None = None,
        question: int = NEXT_VISIT,
    ) -> list[torch.Tensor]:
        """Scores of every label by task, each of shape `(B, V)`: log probabilities up to a constant.

        Args:
            tasks (`Sequence[int]`): Indices of the tasks.
            history ([`LabelHistory`]): The histories of these tasks up to the prediction time.
            readout (`Sequence[torch.FloatTensor]`, *optional*): Scores of the encoder's readout by task, `(B, V)`.
            question (`int`): `NEXT_VISIT` or `WITHIN`.
        """
        # The best labels of a readout without a weight are no candidates either
        reads = [self.reads_readout(task, question) for task in tasks]
        used = None if readout is None else [s if is_read else None for s, is_read in zip(readout, reads, strict=True)]
        tables = [self.get_tables(task) for task in tasks]
        row, label, features = candidate_features(history, tables, used)
        own = torch.tensor(tasks, device=row.device)[row % len(tasks)]
        calibration = self.calibration[:, question]
        values = self.calibrated(calibration[own], self(own, features)[:, question], features)
        highest = self.average_unseen(row, values, features, history.size * len(tasks))
        scores = []
        for index, task in enumerate(tasks):
            log_shares = self.log_shares(task)
            floor = log_shares + calibration[task, 2].minimum(highest[index :: len(tasks), None] - log_shares.max())
            floor[:, :FIRST_LABEL] = torch.finfo(floor.dtype).min / 2
            own = row % len(tasks) == index
            floor[row[own] // len(tasks), label[own]] = values[own]
            scores.append(floor)
        return scores


def read_histories(
    config: MCMConfig, batch: Mapping[str, torch.Tensor], tasks: Sequence[str] | None = None
) -> LabelHistory:
    """Reads the histories of tasks from model inputs.

    Args:
        batch (`Mapping[str, torch.Tensor]`): Model inputs by name, as the feature extractor gives them.
        tasks (`Sequence[str]`, *optional*): Names of the tasks to read. Default: all tasks.
    """
    for name in ("visit_ids", "event_times"):
        if batch.get(name) is None:
            raise ValueError(f"The scorer needs `{name}`: MCMFeatureExtractor gives them.")
    ids = batch["input_ids"][:, 1:]  # the first row is the start row
    kinds = torch.zeros_like(ids[..., 0])
    if config.kind_feature is not None:  # values are numbered by their frequency
        kinds = (ids[..., config.features.index(config.kind_feature)] - FIRST_LABEL).clamp(min=0)
    labels = ids[..., [config.features.index(task) for task in (config.tasks if tasks is None else tasks)]]
    return LabelHistory.from_batch(
        labels, batch["visit_ids"][:, 1:], batch["event_times"][:, 1:], kinds, batch.get("as_of")
    )
