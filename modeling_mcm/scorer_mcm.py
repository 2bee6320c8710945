# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores from counts: numbers that say the same of any label in any shop, and a small network that reads them.

For each candidate label of each customer, [`candidate_features`] gives some fifty numbers: how often, how regularly
and how long ago the customer had the label (shares of steps, faded by steps and by time, and by kind of event), what
usually comes after the customer's latest labels (transitions, EASE, a ridge regression of personal rates), how popular
the label is, and the ranks of these numbers among the candidates. None of them is a parameter of a single label, so
the network ([`LabelScorer`]) is small. `modeling_mcm.training.scorer` fits it in seconds on prefixes of the log's own
customers. Labels that are no candidates get a floor by their popularity, so that all labels have a probability.

Shapes: B customers, L events, E labelled events of all customers, V labels of a task, P pairs of a customer and a
label of its history, N candidates of all customers, K stored neighbours of a label, F numbers of a candidate.
"""

from collections.abc import Mapping, Sequence
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
    """The labelled events of one task, of all customers of a batch, customer after customer.

    Attributes:
        customer, label (`torch.LongTensor` of shape `(E,)`): the event's customer and its label, at least 2.
        visits, moments (`torch.LongTensor` of shape `(E,)`): number of the customer's visits, and of moments, with a
            labelled event after this one's. A moment is the events of one visit and time.
        days (`torch.FloatTensor` of shape `(E,)`): days from the event to the prediction time.
        kind (`torch.LongTensor` of shape `(E,)`): kind of the event, from 0; `KINDS` for all rare ones.
        size (`int`): B.
    """

    customer: torch.Tensor
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
            labels, visit_ids, kinds (`torch.LongTensor` of shape `(B, L)`): label of each event (below 2: none), its
                visit and its kind.
            event_times (`torch.FloatTensor` of shape `(B, L)`): days from the customer's first event to each event.
            now (`torch.FloatTensor` of shape `(B,)`, *optional*): prediction time on the same clock. Default: the time
                of the customer's last event.
        """
        customer, event = (labels >= FIRST_LABEL).nonzero(as_tuple=True)
        visit, time = visit_ids[customer, event], event_times[customer, event]
        size = len(labels)
        changes = customer.new_ones(len(customer), dtype=torch.bool)
        same = customer[1:] == customer[:-1]
        changes[1:] = ~same | (visit[1:] != visit[:-1])
        visits = changes.cumsum(0)
        changes[1:] |= time[1:] != time[:-1]
        moments = changes.cumsum(0)
        last = torch.searchsorted(customer, torch.arange(size, device=customer.device), right=True)[customer] - 1
        if now is None:
            now = event_times.amax(1) if event_times.shape[1] else event_times.new_zeros(size)
        return cls(
            customer,
            labels[customer, event],
            visits[last] - visits,
            moments[last] - moments,
            (now[customer] - time).clamp(min=0),
            kinds[customer, event].clamp(max=KINDS),
            size,
        )


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
            history ([`LabelHistory`]): the histories.
            seen (`torch.LongTensor` of shape `(P,)`): pairs of a customer and a label of its history, customer x V +
                label, ascending.
            rates (`torch.FloatTensor` of shape `(P,)`): the personal rate of each pair.

        Returns:
            `torch.FloatTensor` of shape `(4, B, V)`.
        """
        labels, cells = self.counts.shape[1], history.size * self.counts.shape[1]
        recent = history.moments < RECENT
        pairs = (history.customer[recent] * labels + history.label[recent]) * RECENT + history.moments[recent]
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
        products = self.weights[table, label].float() * values[:, None]
        columns = (keys - label)[:, None] + self.neighbours[table, label]
        result = values.new_zeros(4 * cells).index_add_(0, columns.flatten(), products.flatten())
        result = result.view(4, history.size, labels).clamp_(min=0)
        result[..., :FIRST_LABEL] = 0
        return result


class Candidates(NamedTuple):
    """Candidate labels of all customers, and what is known of them.

    Attributes:
        customer, label (`torch.LongTensor` of shape `(N,)`): ascending pairs.
        features (`torch.FloatTensor` of shape `(N, F)`): the numbers.
    """

    customer: torch.Tensor
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
    history: LabelHistory, pairs: torch.Tensor, pair: torch.Tensor, labels: int, gap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of each label of each history, `(P, len(PERSONAL))`, and of each customer, `(B, 4)`."""
    customer, size = pairs // labels, len(pairs)
    lengths = torch.stack([history.visits.float(), history.moments.float(), history.days], 1)
    zeros = lengths.new_zeros(history.size, 3)
    largest = zeros.scatter_reduce(0, history.customer[:, None].expand(-1, 3), lengths, "amax", include_self=False)
    silence = zeros[:, 0].scatter_reduce(0, history.customer, history.days, "amin", include_self=False)
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
    possible = torch.cat([visits[customer], moments[customer]]).double()
    shares = _faded_shares(of, ago, (*VISIT_HALF_LIVES, *MOMENT_HALF_LIVES), possible)

    empty = shares.new_zeros(size)
    last_day = empty.scatter_reduce(0, pair, history.days, "amin", include_self=False)
    first_day = empty.scatter_reduce(0, pair, history.days, "amax", include_self=False)
    mean_gap, several = (oldest[0] - newest[0]) / (number - 1).clamp(min=1), number > 1
    day_gap = (first_day - last_day) / (moments_of - 1).clamp(min=1)
    deviation = (squares / (number - 1).clamp(min=1) - mean_gap**2).clamp(min=0).sqrt() / mean_gap.clamp(min=0.5)
    overdue = ((newest[0] + 1) / mean_gap.clamp(min=0.5)).log()
    overdue_days = (last_day / day_gap.clamp(min=0.02 * gap)).clamp(1e-3, 1e3).log()
    has_day_gap = (moments_of > 1) & (day_gap > 0)

    # Shares by days, and by kind of event: of the events with each pair, among those of the customer.
    of_kind = history.kind[:, None] == torch.arange(KINDS, device=pair.device)
    faded = torch.exp2(-history.moments.double() / MOMENT_HALF_LIVES[-1]).float()
    by_day = torch.exp2(-history.days.double() / (GAPS_HALF_LIFE * gap)).float()
    weights = torch.cat([by_day[:, None], faded[:, None] * of_kind, (of_kind & (history.moments == 0)[:, None])], 1)
    totals = weights.new_zeros(history.size, weights.shape[1]).index_add(0, history.customer, weights)
    least = totals.new_tensor([1e-9, *[0.5] * KINDS, *[1e-9] * KINDS])
    kinds = weights.new_zeros(size, weights.shape[1]).index_add(0, pair, weights)
    has_last = kinds[:, 1 + KINDS :].clamp(max=1)
    kinds = (kinds / totals.clamp(min=least)[customer])[:, : 1 + KINDS]

    columns = [
        torch.ones_like(empty),
        number.log1p(),
        number / (oldest[0] + 1),
        newest[0].log1p(),
        newest[1].log1p(),
        (last_day / own_gap[customer]).log1p(),
        several.float(),
        torch.where(several, overdue, 0.0),
        torch.where(has_day_gap, overdue_days, 0.0),
        torch.where(number > 2, deviation, 0.0),
        (number > 2).float(),
        (newest[0] == 0).float(),
    ]
    of_visits, of_moments = shares[:size, : len(VISIT_HALF_LIVES)], shares[size:, len(VISIT_HALF_LIVES) :]
    seen, occurrences = zeros[:, :2].index_add(0, customer, torch.stack([columns[0], number], 1)).unbind(1)
    of_customers = [
        (occurrences - seen + 0.5) / (occurrences + 1),  # share of repeats
        (occurrences / visits).log1p(),
        moments.log1p(),
        (silence / own_gap).log1p(),
    ]
    personal = torch.cat([torch.stack(columns, 1), of_visits, of_moments, kinds, has_last], 1)
    return personal, torch.stack(of_customers, 1)


def _ranks(customer: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Rank from 1 of each value among those of its customer and column, the largest first. `customer` `(N,)` is
    ascending; `values` are `(N, columns)`."""
    order = values.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, customer[order].argsort(dim=0, stable=True))
    place = torch.arange(1, len(values) + 1, device=values.device) - torch.searchsorted(customer, customer)
    return torch.empty_like(values).scatter_(0, order, place[:, None].to(values.dtype).expand_as(values))


def _relative(customer: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Each value `(N, columns)` divided by the largest of its customer and column."""
    largest = values.new_zeros(size, values.shape[1])
    largest = largest.scatter_reduce(0, customer[:, None].expand_as(values), values, "amax")
    return values / largest.clamp(min=1e-9)[customer]


@torch.no_grad()
def candidate_features(
    history: LabelHistory,
    tables: LabelTables,
    readout: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
    visits: torch.Tensor | None = None,
) -> Candidates:
    """Chooses candidate labels of each customer, and computes their numbers.

    Candidates are the labels of the history, and of the others the best by each kind of evidence and by popularity.

    Args:
        history ([`LabelHistory`]): the histories up to the prediction time.
        tables ([`LabelTables`]): counts over all customers, or over those of other folds while the scorer is fitted.
        readout (`torch.FloatTensor` of shape `(B, V)`, *optional*): scores of the encoder's readout; the best become
            candidates. Default: there is no encoder, and its numbers are 0.
        counts (`torch.FloatTensor` of shape `(B, 5, V)`, *optional*): `tables.counts` as they were at each customer's
            prediction time. Default: at the end of the training period.
        visits (`torch.FloatTensor` of shape `(B,)`, *optional*): number of visits of all customers until then.
    """
    labels, size = tables.counts.shape[1], history.size
    _, gap, has_times = tables.totals.tolist()
    counts = tables.counts[None] if counts is None else counts
    visits = tables.totals[:1] if visits is None else visits
    if not has_times:
        history = history._replace(days=history.moments.float())
        gap = 1.0
    pairs, pair = (history.customer * labels + history.label).unique(return_inverse=True)
    personal, of_customers = _personal(history, pairs, pair, labels, gap)
    rates = personal[:, PERSONAL.index("share_visits_15")]
    evidence = tables.evidence(history, pairs, rates)

    is_seen = torch.zeros(size * labels, dtype=torch.bool, device=pairs.device)
    is_seen[pairs] = True
    strength = rates + personal[:, PERSONAL.index("share_moments_8")]
    is_candidate = torch.zeros_like(is_seen)
    is_candidate[pairs[_ranks(pairs // labels, strength[:, None])[:, 0] <= MOST_SEEN]] = True
    is_candidate = is_candidate.view(size, labels)
    best = evidence.masked_fill(is_seen.view(size, labels), 0.0).topk(min(max(BEST), labels - FIRST_LABEL), 2)
    place = torch.arange(best.values.shape[2], device=pairs.device)
    kind, row, column = ((best.values > 0) & (place < torch.tensor(BEST, device=pairs.device)[:, None, None])).nonzero(
        as_tuple=True
    )
    is_candidate[row, best.indices[kind, row, column]] = True
    popular = counts[:, 0, FIRST_LABEL:].topk(min(POPULAR, labels - FIRST_LABEL), 1).indices + FIRST_LABEL
    is_candidate.scatter_(1, popular.expand(size, -1), True)

    if readout is not None:
        readout = readout[:, FIRST_LABEL:].float().log_softmax(1)
        best_read = readout.topk(min(MOST_READ, labels - FIRST_LABEL), 1).indices + FIRST_LABEL
        is_candidate.scatter_(1, best_read, True)

    customer, label = is_candidate.nonzero(as_tuple=True)
    cell = customer * labels + label
    was_seen = is_seen[cell]
    own = personal.new_zeros(len(label), len(PERSONAL))
    own[was_seen] = personal[torch.searchsorted(pairs, cell[was_seen])]
    named = dict(zip(PERSONAL, own.unbind(1), strict=True))
    found = evidence[:, customer, label].T  # (N, 4)
    of_row = customer if len(counts) > 1 else torch.zeros_like(customer)
    count, repeats, next_repeats, recent, gaps = counts[of_row, :, label].T
    sums = counts.sum(2).clamp(min=1)[of_row].T
    share, recent_share = count / sums[0], recent / sums[3]
    label_gap = (gaps + 1) / (repeats + 0.5)
    since = torch.where(was_seen, named["since_moments"], 1e6)
    shape = torch.stack([named[name] for name in RANKED], 1)
    ranked = torch.cat([found, count[:, None], -since[:, None], shape], 1)
    numbers = [
        own,
        of_customers[customer],
        (30 * found[:, :2]).log1p(),  # transitions
        _relative(customer, torch.cat([found, shape], 1), size),
        _ranks(customer, ranked).log2(),
        torch.stack(
            [
                ((found[:, 1] + 1e-4) / (share + 1e-4)).log(),  # lift of the latest transitions
                (30 * count / visits[of_row]).log1p(),
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
    of_readout = own.new_zeros(len(label), OF_READOUT)
    if readout is not None:
        of_readout[:, 0] = readout[customer, label - FIRST_LABEL]
        of_readout[:, 1:] = _ranks(customer, of_readout[:, :1]).log2()
    return Candidates(customer, label, torch.cat([*numbers, of_readout], 1))


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
        self.fitted = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def tables_of(self, task: int) -> LabelTables:
        """What is counted of a task's labels."""
        return cast(LabelTables, self.tables[task])

    def reset_parameters(self) -> None:
        """Empties the buffers; weights start as transformers' linear layers do."""
        for name, value in self.named_buffers():
            init.constant_(value, float(name == "std" or name.endswith("totals")))
        init.zeros_(self.task_vectors.weight)

    def forward(self, task: int, features: torch.Tensor) -> torch.Tensor:
        """Scores of candidates by the network, of shape `(...)`, from their numbers of shape `(..., F)`.

        Args:
            task (`int`): index of the task.
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
            calibration (`torch.FloatTensor` of shape `(3 + OF_READOUT,)`): t, b, f and u.
            values (`torch.FloatTensor` of shape `(N,)`): what `forward` gives.
            features (`torch.FloatTensor` of shape `(N, F)`): numbers of the candidates.
        """
        return calibration[0].exp() * (values + features[:, COUNTED:] @ calibration[3:]) + calibration[1]

    def reads_readout(self, task: int | slice = slice(None)) -> bool:
        """Whether the scores of a task (default: of some task) depend on the encoder's readout."""
        return bool(self.calibration[task, 3:].any())

    def score(self, task: int, history: LabelHistory, readout: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of every label of a task, of shape `(B, V)`: log probabilities up to a constant.

        Args:
            task (`int`): index of the task.
            history ([`LabelHistory`]): the histories up to the prediction time.
            readout (`torch.FloatTensor` of shape `(B, V)`, *optional*): scores of the encoder's readout.
        """
        if readout is not None and not self.reads_readout(task):
            readout = None  # its best labels are no candidates either
        customer, label, features = candidate_features(history, self.tables_of(task), readout)
        scores = (self.log_shares(task) + self.calibration[task, 2]).expand(history.size, -1).clone()
        scores[:, :FIRST_LABEL] = torch.finfo(scores.dtype).min / 2
        scores[customer, label] = self.calibrated(self.calibration[task], self(task, features), features)
        return scores


def read_histories(
    config: MCMConfig, batch: Mapping[str, torch.Tensor], tasks: Sequence[str] | None = None
) -> list[LabelHistory]:
    """Reads the history of each task from model inputs.

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
    visits, times = batch["visit_ids"][:, 1:], batch["event_times"][:, 1:]
    return [
        LabelHistory.of_batch(ids[..., config.features.index(task)], visits, times, kinds, batch.get("now"))
        for task in (config.tasks if tasks is None else tasks)
    ]
