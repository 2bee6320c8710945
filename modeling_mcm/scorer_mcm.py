# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores from counts: numbers that say the same of any label in any shop, and a small network that reads them.

For each candidate label of each customer, [`candidate_features`] gives some fifty numbers: how often, how regularly
and how long ago the customer had the label (shares of steps, faded by steps and by time, and by kind of event), what
usually comes after the customer's latest labels (transitions, EASE, a ridge regression of personal rates), how popular
the label is, and the ranks of these numbers among the candidates. None of them is a parameter of a single label, so
the network ([`LabelScorer`]) is small. `modeling_mcm.training.scorer` fits it in seconds on prefixes of the log's own
customers. Labels that are no candidates get a floor by their popularity, so that all labels have a probability.

All tasks are computed at once: a row is a task of a customer, task after task.

Shapes: B customers, T tasks, R = T B rows, L events, E labelled events of all rows, V labels of a task, P pairs of a
row and a label of its history, N candidates of all rows, K stored neighbours of a label, F numbers of a candidate.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_mcm import FIRST_LABEL, MCMConfig

VISIT_HALF_LIVES, MOMENT_HALF_LIVES = (2.5, 5.0, 15.0, 40.0), (2.0, 8.0)
HABIT_VISITS = 15.0  # half-life, in visits, of the personal rates that the ridge regression smooths
GAPS_HALF_LIFE = 8.0  # half-life of shares by time, in median gaps of the log
KINDS = 3  # number of kinds of events, the most frequent ones, that have shares of their own
RECENT, RECENT_DECAY = 8, 0.6  # number of latest moments whose transitions are looked up, and their decay by moment
NEIGHBOURS = 200  # K
# Candidates of a customer: at most so many labels of the history, and the best by each kind of evidence.
MOST_SEEN, BEST = (
    120,
    (30, 15, 30, 15),
)  # by transitions, transitions from the latest moment, EASE and ridge regression
POPULAR, MOST_READ = 50, 30  # by popularity, and by the encoder's readout
# Numbers of a label of the customer's history; 0 for labels that are not in it.
PERSONAL = (
    "seen", "visits", "share_since_first", "since_visits", "since_moments", "since_days", "several", "overdue_visits",
    "overdue_days", "irregularity", "third", "in_last_visit",
    *(f"share_visits_{half_life:g}" for half_life in VISIT_HALF_LIVES),
    *(f"share_moments_{half_life:g}" for half_life in MOMENT_HALF_LIVES),
    "share_days", *(f"share_kind_{kind}" for kind in range(KINDS)), *(f"last_kind_{kind}" for kind in range(KINDS)),
)  # fmt: skip
RANKED = ("share_visits_5", "share_visits_15", "share_moments_8", "share_days")
# The personal numbers, four of the customer, two of transitions, ratios and ranks, and eight of the label.
COUNTED = len(PERSONAL) + 4 + 2 + (4 + len(RANKED)) + (6 + len(RANKED)) + 8
OF_READOUT = 2  # numbers of the encoder's readout: log-probability, and rank among the candidates
NUM_FEATURES = COUNTED + OF_READOUT  # F
MOST_DENSE = 4_000  # number of labels up to which EASE and the ridge regression are computed
HIDDEN = (64, 32)
DROPOUT = 0.1
FARTHEST = 4.0  # largest absolute value of a standardised number


class LabelHistory(NamedTuple):
    """The labelled events of some tasks of all customers of a batch, row after row.

    Attributes:
        row, label (`torch.LongTensor` of shape `(E,)`): the event's row and its label, at least 2.
        visits, moments (`torch.LongTensor` of shape `(E,)`): number of the row's visits, and of moments, with a
            labelled event after this one's. A moment is the events of one visit and time.
        days (`torch.FloatTensor` of shape `(E,)`): days from the event to the prediction time.
        kind (`torch.LongTensor` of shape `(E,)`): kind of the event, from 0; `KINDS` for all rare ones.
        size (`int`): R.
    """

    row: torch.Tensor
    label: torch.Tensor
    visits: torch.Tensor
    moments: torch.Tensor
    days: torch.Tensor
    kind: torch.Tensor
    size: int

    @classmethod
    def of_batch(
        cls,
        labels: torch.Tensor,
        visit_ids: torch.Tensor,
        event_times: torch.Tensor,
        kinds: torch.Tensor,
        now: torch.Tensor | None = None,
    ) -> "LabelHistory":
        """Reads the histories from model inputs.

        Args:
            labels (`torch.LongTensor` of shape `(B, L, T)`): label of each event in each task; below 2: none.
            visit_ids, kinds (`torch.LongTensor` of shape `(B, L)`): visit of each event, and its kind.
            event_times (`torch.FloatTensor` of shape `(B, L)`): days from the customer's first event to each event.
            now (`torch.FloatTensor` of shape `(B,)`, *optional*): prediction time on the same clock. Default: the time
                of the customer's last event.
        """
        labels = labels.permute(2, 0, 1)
        size = labels.shape[0] * labels.shape[1]
        row, event = (labels.flatten(0, 1) >= FIRST_LABEL).nonzero(as_tuple=True)
        customer = row % max(labels.shape[1], 1)
        visit, time = visit_ids[customer, event], event_times[customer, event]
        changes = row.new_ones(len(row), dtype=torch.bool)
        same = row[1:] == row[:-1]
        changes[1:] = ~same | (visit[1:] != visit[:-1])
        visits = changes.cumsum(0)
        changes[1:] |= time[1:] != time[:-1]
        moments = changes.cumsum(0)
        last = torch.searchsorted(row, torch.arange(size, device=row.device), right=True)[row] - 1
        if now is None:
            now = event_times.amax(1) if event_times.shape[1] else event_times.new_zeros(len(event_times))
        return cls(
            row,
            labels.flatten(0, 1)[row, event],
            visits[last] - visits,
            moments[last] - moments,
            (now[customer] - time).clamp(min=0),
            kinds[customer, event].clamp(max=KINDS),
            size,
        )

    def split(self, number: int) -> list["LabelHistory"]:
        """Splits the rows into as many equal parts, such as those of each task, whose rows count from 0."""
        size = self.size // number
        ends = torch.searchsorted(self.row, torch.arange(1, number + 1, device=self.row.device) * size).tolist()
        result = []
        for index, (start, end) in enumerate(pairwise([0, *ends])):
            part = {name: getattr(self, name)[start:end] for name in self._fields[:-1]}
            part["row"] = part["row"] - index * size
            result.append(self._replace(**part, size=size))
        return result


class LabelTables(nn.Module):
    """What is counted of a task's labels over the training customers. `modeling_mcm.training.scorer` fills it.

    Args:
        labels (`int`): V, the number of labels.

    Attributes:
        neighbours (`torch.IntTensor` of shape `(4, V, K)`): labels that go with each label, by four kinds of evidence:
            transitions in both directions, transitions forwards, EASE (Steck, WWW 2019), and a ridge
            regression of personal rates on themselves. Above `MOST_DENSE` labels only the first two.
        weights (`torch.HalfTensor` of shape `(4, V, K)`): weights of these pairs, 0 where there are fewer than K.
        counts (`torch.FloatTensor` of shape `(5, V)`): visits of the label, those of them that repeat it, that repeat
            it at the very next visit, and those in the latest part of the training period; and the sum of the gaps, in
            visits, of those that repeat it.
        totals (`torch.FloatTensor` of shape `(3,)`): number of visits of all customers, median gap of moments in days,
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
        for name, axis in (("neighbours", 1), ("weights", 1), ("counts", 1)):
            value = self.get_buffer(name)
            shape = list(value.shape)
            shape[axis] = number
            self.register_buffer(name, torch.cat([value, value.new_zeros(shape)], axis))

    def evidence(self, history: LabelHistory, seen: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        """What all customers say of each label, given a history: for each table a weighted sum of its rows, by
        transitions, by transitions from the latest moment, by EASE and by the ridge regression.

        Args:
            history ([`LabelHistory`]): the histories of this task.
            seen (`torch.LongTensor` of shape `(P,)`): pairs of a customer and a label of its history, customer x V +
                label, ascending.
            rates (`torch.FloatTensor` of shape `(P,)`): the personal rate of each pair.

        Returns:
            `torch.FloatTensor` of shape `(4, B, V)`.
        """
        labels, cells = self.counts.shape[1], history.size * self.counts.shape[1]
        recent = history.moments < RECENT
        pairs = (history.row[recent] * labels + history.label[recent]) * RECENT + history.moments[recent]
        pairs = pairs.unique()  # a label counts once a moment
        latest, ago = pairs // RECENT, pairs % RECENT
        # A row for each table and label whose neighbours are added up, with its weight.
        kinds = [latest, latest[ago == 0] + cells]
        weights = [(RECENT_DECAY ** ago.double()).float(), rates.new_ones(len(kinds[1]))]
        if len(self.neighbours) == 4:
            kinds += [seen + 2 * cells, seen + 3 * cells]
            weights += [torch.ones_like(rates), rates]
        keys, values = torch.cat(kinds), torch.cat(weights)
        table, label = keys // cells, keys % labels
        sums = values.new_zeros(4 * history.size).index_add(0, keys // labels, values)
        values = torch.where(table < 2, values / sums[keys // labels], values)  # transitions are averages
        products = self.weights[table, label].float().mul_(values[:, None])
        columns = self.neighbours[table, label].add_((keys - label).int()[:, None])  # int32, to move fewer bytes
        result = values.new_zeros(4 * cells).index_add_(0, columns.flatten(), products.flatten())
        result = result.view(4, history.size, labels).clamp_(min=0)
        result[..., :FIRST_LABEL] = 0
        return result


class Candidates(NamedTuple):
    """Candidate labels of all rows, and what is known of them.

    Attributes:
        row, label (`torch.LongTensor` of shape `(N,)`): ascending pairs.
        features (`torch.FloatTensor` of shape `(N, F)`): the numbers.
    """

    row: torch.Tensor
    label: torch.Tensor
    features: torch.Tensor


def _faded_shares(
    of: torch.Tensor, ago: torch.Tensor, half_lives: Sequence[float], possible: torch.Tensor
) -> torch.Tensor:
    """Share of each row's steps among the possible ones, `(rows, half-lives)`, newer steps weighing more.

    In double precision, so that equal shares are equal to the bit in every batch: their ranks are numbers, too.

    Args:
        of, ago (`torch.Tensor` of shape `(S,)`): row of each step, and number of the customer's steps after it.
        half_lives (`Sequence[float]`): half-lives in steps.
        possible (`torch.Tensor` of shape `(rows,)`): number of the customer's steps.
    """
    half_life = torch.tensor(half_lives, dtype=torch.float64, device=ago.device)
    faded = ago.new_zeros(len(possible), len(half_lives), dtype=torch.float64)
    faded = faded.index_add(0, of, torch.exp2(-ago[:, None] / half_life))
    sums = (1 - torch.exp2(-possible[:, None] / half_life)) / (1 - torch.exp2(-1 / half_life))
    return (faded / sums.clamp(min=1e-6)).float()


def _personal(
    history: LabelHistory, row: torch.Tensor, pair: torch.Tensor, gap: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of each label of each history, `(P, len(PERSONAL))`, and of each row, `(R, 4)`.

    Args:
        row (`torch.LongTensor` of shape `(P,)`): row of each pair.
        pair (`torch.LongTensor` of shape `(E,)`): pair of each event.
        gap (`torch.FloatTensor` of shape `(R,)`): median gap of the task's log.
    """
    size = len(row)
    lengths = torch.stack([history.visits.float(), history.moments.float(), history.days], 1)
    zeros = lengths.new_zeros(history.size, 3)
    largest = zeros.scatter_reduce(0, history.row[:, None].expand(-1, 3), lengths, "amax", include_self=False)
    silence = zeros[:, 0].scatter_reduce(0, history.row, history.days, "amin", include_self=False)
    visits, moments = largest[:, 0] + 1, largest[:, 1] + 1
    own_gap = ((largest[:, 2] - silence) / (moments - 1).clamp(min=1)).clamp(min=0.02 * gap)

    # Distinct visits (rows 0 to P) and moments (rows P to 2 P) with each pair, newest first.
    steps = torch.cat([history.visits, history.moments])
    base = int(steps.max()) + 1 if len(steps) else 1
    keys = (torch.cat([pair, pair + size]) * base + steps).unique()
    of, ago = keys // base, (keys % base).double()
    rows = torch.arange(2 * size, device=of.device)
    first = torch.searchsorted(of, rows)
    counts = torch.searchsorted(of, rows, right=True) - first
    newest, oldest = ago[first].float().view(2, size), ago[first + counts - 1].float().view(2, size)
    number, moments_of = counts.float().view(2, size)
    gaps = torch.where(of[1:] == of[:-1], ago[1:] - ago[:-1], 0).float()
    squares = gaps.new_zeros(2 * size).index_add(0, of[1:], gaps.square())[:size]
    possible = torch.cat([visits[row], moments[row]]).double()
    shares = _faded_shares(of, ago, (*VISIT_HALF_LIVES, *MOMENT_HALF_LIVES), possible)

    empty = shares.new_zeros(size)
    last_day = empty.scatter_reduce(0, pair, history.days, "amin", include_self=False)
    first_day = empty.scatter_reduce(0, pair, history.days, "amax", include_self=False)
    mean_gap, several = (oldest[0] - newest[0]) / (number - 1).clamp(min=1), number > 1
    day_gap = (first_day - last_day) / (moments_of - 1).clamp(min=1)
    deviation = (squares / (number - 1).clamp(min=1) - mean_gap**2).clamp(min=0).sqrt() / mean_gap.clamp(min=0.5)
    overdue = ((newest[0] + 1) / mean_gap.clamp(min=0.5)).log()
    overdue_days = (last_day / day_gap.clamp(min=0.02 * gap[row])).clamp(1e-3, 1e3).log()
    has_day_gap = (moments_of > 1) & (day_gap > 0)

    # Shares by days, and by kind of event: of the events with each pair, among those of the customer.
    of_kind = history.kind[:, None] == torch.arange(KINDS, device=pair.device)
    faded = torch.exp2(-history.moments.double() / MOMENT_HALF_LIVES[-1]).float()
    by_day = torch.exp2(-history.days.double() / (GAPS_HALF_LIFE * gap[history.row])).float()
    weights = torch.cat([by_day[:, None], faded[:, None] * of_kind, (of_kind & (history.moments == 0)[:, None])], 1)
    totals = weights.new_zeros(history.size, weights.shape[1]).index_add(0, history.row, weights)
    least = totals.new_tensor([1e-9, *[0.5] * KINDS, *[1e-9] * KINDS])
    kinds = weights.new_zeros(size, weights.shape[1]).index_add(0, pair, weights)
    has_last = kinds[:, 1 + KINDS :].clamp(max=1)
    kinds = (kinds / totals.clamp(min=least)[row])[:, : 1 + KINDS]

    columns = [
        torch.ones_like(empty),
        number.log1p(),
        number / (oldest[0] + 1),
        newest[0].log1p(),
        newest[1].log1p(),
        (last_day / own_gap[row]).log1p(),
        several.float(),
        torch.where(several, overdue, 0.0),
        torch.where(has_day_gap, overdue_days, 0.0),
        torch.where(number > 2, deviation, 0.0),
        (number > 2).float(),
        (newest[0] == 0).float(),
    ]
    of_visits, of_moments = shares[:size, : len(VISIT_HALF_LIVES)], shares[size:, len(VISIT_HALF_LIVES) :]
    seen, occurrences = zeros[:, :2].index_add(0, row, torch.stack([columns[0], number], 1)).unbind(1)
    of_rows = [
        (occurrences - seen + 0.5) / (occurrences + 1),  # share of repeats
        (occurrences / visits).log1p(),
        moments.log1p(),
        (silence / own_gap).log1p(),
    ]
    personal = torch.cat([torch.stack(columns, 1), of_visits, of_moments, kinds, has_last], 1)
    return personal, torch.stack(of_rows, 1)


def _ranks(row: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Rank from 1 of each value among those of its row and column, the largest first. `row` `(N,)` is ascending;
    `values` are `(N, columns)`."""
    start = torch.searchsorted(row, row)  # first value of the row
    position = torch.arange(len(row), device=row.device) - start
    _, size = row.unique_consecutive(return_counts=True)
    index = (position == 0).cumsum(0) - 1  # rows without a value are left out
    padded = values.new_full((len(size), values.shape[1], int(size.max()) if len(size) else 0), -torch.inf)
    padded[index, :, position] = values
    order = padded.argsort(dim=2, descending=True, stable=True)
    places = torch.arange(1, padded.shape[2] + 1, device=row.device).to(values.dtype).expand_as(padded)
    return torch.empty_like(padded).scatter_(2, order, places)[index, :, position]


def _relative(row: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Each value `(N, columns)` divided by the largest of its row and column."""
    largest = values.new_zeros(size, values.shape[1])
    largest = largest.scatter_reduce(0, row[:, None].expand_as(values), values, "amax")
    return values / largest.clamp(min=1e-9)[row]


@torch.no_grad()
def candidate_features(
    history: LabelHistory,
    tables: Sequence[LabelTables],
    readout: Sequence[torch.Tensor | None] | None = None,
    counts: Sequence[torch.Tensor] | None = None,
    visits: Sequence[torch.Tensor] | None = None,
) -> Candidates:
    """Chooses candidate labels of each row, and computes their numbers.

    Candidates are the labels of the history, and of the others the best by each kind of evidence and by popularity.

    Args:
        history ([`LabelHistory`]): the histories up to the prediction time.
        tables (`Sequence[LabelTables]`): counts of each task over all customers, or over those of other folds while
            the scorer is fitted.
        readout (`Sequence[torch.FloatTensor]`, *optional*): scores of the encoder's readout by task, of shape
            `(B, V)`; the best become candidates. `None`: there is no encoder, and its numbers are 0.
        counts (`Sequence[torch.FloatTensor]`, *optional*): `tables.counts` of each task as they were at each
            customer's prediction time, of shape `(B, 5, V)`. Default: at the end of the training period.
        visits (`Sequence[torch.FloatTensor]`, *optional*): number of visits of all customers until then, by task of
            shape `(B,)`.
    """
    size, most = history.size // len(tables), max(each.counts.shape[1] for each in tables)
    totals = torch.stack([each.totals for each in tables]).repeat_interleave(size, 0)  # (R, 3)
    has_times = totals[:, 2] > 0
    gap = torch.where(has_times, totals[:, 1], 1.0)
    history = history._replace(days=torch.where(has_times[history.row], history.days, history.moments.float()))
    pairs, pair = (history.row * most + history.label).unique(return_inverse=True)
    row_of_pair, label_of_pair = pairs // most, pairs % most
    personal, of_rows = _personal(history, row_of_pair, pair, gap)
    rates = personal[:, PERSONAL.index("share_visits_15")]
    strength = rates + personal[:, PERSONAL.index("share_moments_8")]
    is_strong = _ranks(row_of_pair, strength[:, None])[:, 0] <= MOST_SEEN
    starts = torch.searchsorted(pairs, torch.arange(len(tables) + 1, device=pairs.device) * size * most).tolist()

    parts: list[list[torch.Tensor]] = [[] for _ in range(5)]
    for index, (own, table) in enumerate(zip(history.split(len(tables)), tables, strict=True)):
        labels, part = table.counts.shape[1], slice(starts[index], starts[index + 1])
        seen = (row_of_pair[part] - index * size) * labels + label_of_pair[part]
        evidence = table.evidence(own, seen, rates[part])
        of_task = table.counts[None] if counts is None else counts[index]  # (1 or B, 5, V)
        of_readout = None if readout is None or readout[index] is None else readout[index]
        shares = None if of_readout is None else of_readout[:, FIRST_LABEL:].float().log_softmax(1)
        is_candidate = _choose(evidence, of_task[:, 0], shares, seen, is_strong[part])
        customer, label = is_candidate.nonzero(as_tuple=True)
        known = visits[index] if visits is not None else table.totals[:1]
        then = customer if len(of_task) > 1 else torch.zeros_like(customer)
        sums = of_task[:, [0, 3]].sum(2).clamp(min=1)
        of_labels = torch.cat([of_task[then, :, label], sums[then], known[then, None]], 1)
        x = evidence.new_zeros(len(label), OF_READOUT)
        if shares is not None:
            x[:, 0] = shares[customer, label - FIRST_LABEL]
            x[:, 1:] = _ranks(customer, x[:, :1]).log2()
        for column, values in zip(
            parts, (customer + index * size, label, evidence[:, customer, label].T, of_labels, x), strict=True
        ):
            column.append(values)
    row, label, found, of_labels, x = (torch.cat(column) for column in parts)

    cell = row * most + label
    place = torch.searchsorted(pairs, cell).clamp(max=max(len(pairs) - 1, 0))
    own_numbers = personal.new_zeros(len(cell), len(PERSONAL))
    was_seen = pairs[place] == cell if len(pairs) else torch.zeros_like(cell, dtype=torch.bool)
    own_numbers[was_seen] = personal[place[was_seen]]
    named = dict(zip(PERSONAL, own_numbers.unbind(1), strict=True))
    count, repeats, next_repeats, recent, gaps, occurrences, recent_occurrences, all_visits = of_labels.unbind(1)
    share, recent_share = count / occurrences, recent / recent_occurrences
    label_gap = (gaps + 1) / (repeats + 0.5)
    since = torch.where(was_seen, named["since_moments"], 1e6)
    shape = torch.stack([named[name] for name in RANKED], 1)
    numbers = [
        own_numbers,
        of_rows[row],
        (30 * found[:, :2]).log1p(),  # transitions
        _relative(row, torch.cat([found, shape], 1), history.size),
        _ranks(row, torch.cat([found, count[:, None], -since[:, None], shape], 1)).log2(),
        torch.stack(
            [
                ((found[:, 1] + 1e-4) / (share + 1e-4)).log(),  # lift of the latest transitions
                (30 * count / all_visits).log1p(),
                share.clamp(min=1e-7).log(),
                ((recent_share + 1e-4) / (share + 1e-4)).log(),  # trend
                (repeats + 0.5) / (count + 2),
                (next_repeats + 0.1) / (count + 2),
                label_gap.log1p(),
                torch.where(was_seen, (named["since_visits"].exp() / label_gap).log(), 0.0),  # overdue
            ],
            1,
        ),
    ]
    return Candidates(row, label, torch.cat([*numbers, x], 1))


def _choose(
    evidence: torch.Tensor,
    popularity: torch.Tensor,
    readout: torch.Tensor | None,
    seen: torch.Tensor,
    is_strong: torch.Tensor,
) -> torch.Tensor:
    """Chooses the candidates of a task, `(B, V)`, from evidence `(4, B, V)`, popularity `(1 or B, V)`, scores of the
    readout `(B, V - 2)`, the pairs that were seen `(P,)`, and whether they are among a history's strongest."""
    _, size, labels = evidence.shape
    result = torch.zeros(size, labels, dtype=torch.bool, device=evidence.device)
    result.view(-1)[seen] = True
    number = min(max(BEST), labels - FIRST_LABEL)
    best = evidence.masked_fill(result, 0.0).topk(number, 2)
    limits = torch.tensor(BEST, device=evidence.device)[:, None, None]
    is_best = (best.values > 0) & (torch.arange(number, device=evidence.device) < limits)
    result.view(-1)[seen] = is_strong
    for indices in torch.where(is_best, best.indices, 0):
        result.scatter_(1, indices, True)
    popular = popularity[:, FIRST_LABEL:].topk(min(POPULAR, labels - FIRST_LABEL), 1).indices + FIRST_LABEL
    result.scatter_(1, popular.expand(size, -1), True)
    if readout is not None:
        best_read = readout.topk(min(MOST_READ, labels - FIRST_LABEL), 1).indices + FIRST_LABEL
        result.scatter_(1, best_read, True)
    result[:, :FIRST_LABEL] = False
    return result


class LabelScorer(nn.Module):
    """Scores the labels of every task from counts and the encoder's readout:

        s(w) = exp(t) (a . z_w + MLP(z_w) + u . x_w) + b    for a candidate w
        s(w) = log share(w) + f                             for any other label

    z_w are the standardised numbers that are counted, and x_w log-probability and rank by the readout. The network is
    trained without x, on training prefixes, whose targets the encoder may know by heart. t, b, f and u are fitted for
    each task on validation cases, so that the softmax over all labels is calibrated.

    Args:
        label_sizes (`Sequence[int]`): number of labels V of each task.
    """

    def __init__(self, label_sizes: Sequence[int]):
        super().__init__()
        self.tables = nn.ModuleList(LabelTables(size) for size in label_sizes)
        self.mean, self.std = nn.Buffer(torch.zeros(COUNTED)), nn.Buffer(torch.ones(COUNTED))
        self.linear = nn.Linear(COUNTED, 1)
        self.task_vectors = nn.Embedding(len(label_sizes), HIDDEN[0])
        self.first, self.second = nn.Linear(COUNTED, HIDDEN[0]), nn.Linear(*HIDDEN)
        self.last = nn.Linear(HIDDEN[1], 1)
        # t, b, f and u of each task
        self.calibration = nn.Buffer(torch.zeros(len(label_sizes), 3 + OF_READOUT))
        self.chance = nn.Buffer(torch.zeros(len(label_sizes), 3))  # see `chances`
        self.fitted = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def tables_of(self, task: int) -> LabelTables:
        """What is counted of a task's labels."""
        return cast(LabelTables, self.tables[task])

    def reset_parameters(self) -> None:
        """Empties the buffers; weights start as transformers' linear layers do."""
        for name, value in self.named_buffers():
            init.constant_(value, float(name == "std" or name.endswith("totals")))
        init.zeros_(self.task_vectors.weight)

    def forward(self, task: int | torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Scores of candidates by the network, of shape `(...)`, from their numbers of shape `(..., F)`.

        Args:
            task (`int`, or `torch.LongTensor` of shape `(...)`): index of the task.
            features (`torch.FloatTensor` of shape `(..., F)`): numbers of the candidates.
        """
        z = ((features[..., :COUNTED] - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)
        hidden = F.gelu(self.first(z) + self.task_vectors.weight[task])
        hidden = F.gelu(self.second(F.dropout(hidden, DROPOUT, self.training)))
        return (self.last(hidden) + self.linear(z))[..., 0]

    def log_shares(self, task: int) -> torch.Tensor:
        """Logarithm of each label's share of the training period, of shape `(V,)`."""
        popularity = self.tables_of(task).counts[0] + 0.5
        return (popularity / popularity[FIRST_LABEL:].sum()).log()

    @staticmethod
    def calibrated(calibration: torch.Tensor, values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Scores of candidates on the scale of log probabilities.

        Args:
            calibration (`torch.FloatTensor` of shape `(3 + OF_READOUT,)` or `(N, 3 + OF_READOUT)`): t, b, f and u.
            values (`torch.FloatTensor` of shape `(N,)`): what `forward` gives.
            features (`torch.FloatTensor` of shape `(N, F)`): numbers of the candidates.
        """
        t, b, _, *u = calibration.unbind(-1)
        of_readout = sum(weight * x for weight, x in zip(u, features[:, COUNTED:].unbind(1), strict=True))
        return t.exp() * (values + of_readout) + b

    @staticmethod
    def chances(chance: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Chances that labels occur in the next visit, whose events have several labels: sigmoid(a + b log p + c p).

        Args:
            chance (`torch.FloatTensor` of shape `(3,)`): a, b and c of the task, fitted on validation cases.
            log_probabilities (`torch.FloatTensor` of shape `(...)`): log of the labels' probabilities p.
        """
        a, b, c = chance
        return torch.sigmoid(a + b * log_probabilities + c * log_probabilities.exp())

    def reads_readout(self, task: int | slice = slice(None)) -> bool:
        """Whether the scores of a task (default: of some task) depend on the encoder's readout."""
        return bool(self.calibration[task, 3:].any())

    def score(
        self, tasks: Sequence[int], history: LabelHistory, readout: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Scores of every label by task, each of shape `(B, V)`: log probabilities up to a constant.

        Args:
            tasks (`Sequence[int]`): indices of the tasks.
            history ([`LabelHistory`]): the histories of these tasks up to the prediction time.
            readout (`Sequence[torch.FloatTensor]`, *optional*): scores of the encoder's readout by task, `(B, V)`.
        """
        used = None  # the best labels of a readout without a weight are no candidates either
        if readout is not None:
            used = [each if self.reads_readout(task) else None for task, each in zip(tasks, readout, strict=True)]
        row, label, features = candidate_features(history, [self.tables_of(task) for task in tasks], used)
        size = history.size // len(tasks)
        own = torch.tensor(tasks, device=row.device)[row // max(size, 1)]
        values = self.calibrated(self.calibration[own], self(own, features), features)
        bounds = torch.searchsorted(row, torch.arange(len(tasks) + 1, device=row.device) * size).tolist()
        result = []
        for index, task in enumerate(tasks):
            scores = (self.log_shares(task) + self.calibration[task, 2]).expand(size, -1).clone()
            scores[:, :FIRST_LABEL] = torch.finfo(scores.dtype).min / 2
            part = slice(bounds[index], bounds[index + 1])
            scores[row[part] - index * size, label[part]] = values[part]
            result.append(scores)
        return result


def read_histories(
    config: MCMConfig, batch: Mapping[str, torch.Tensor], tasks: Sequence[str] | None = None
) -> LabelHistory:
    """Reads the histories of tasks from model inputs.

    Args:
        config ([`MCMConfig`]): config of the model.
        batch (`Mapping[str, torch.Tensor]`): model inputs by name, as the feature extractor gives them.
        tasks (`Sequence[str]`, *optional*): names of the tasks to read. Default: all tasks.
    """
    for name in ("visit_ids", "event_times"):
        if batch.get(name) is None:
            raise ValueError(f"The scorer needs `{name}`: MCMFeatureExtractor gives them.")
    ids = batch["input_ids"][:, 1:]  # the first row is the start row
    kinds = torch.zeros_like(ids[..., 0])
    if config.kind_feature is not None:  # values are numbered by their frequency
        kinds = (ids[..., config.features.index(config.kind_feature)] - FIRST_LABEL).clamp(min=0)
    labels = ids[..., [config.features.index(task) for task in (config.tasks if tasks is None else tasks)]]
    return LabelHistory.of_batch(
        labels, batch["visit_ids"][:, 1:], batch["event_times"][:, 1:], kinds, batch.get("now")
    )
