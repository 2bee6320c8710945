# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers of a candidate label: what the customer's history, and all other customers, say of it.

[`FEATURES`] is the table of the numbers. They mean the same for any label in any shop. A function computes each group
of them, and gives its columns by name.

All tasks are computed at once: a row is a customer and a task, customer x T + task, and the labels of all tasks are
the columns of one matrix; a cell is customer x C + column. A moment is the events of one visit and time. Gaps are days
in median gaps between moments; a history's own gap is its mean one.

Shapes: B customers, T tasks, R = B T rows, L events, E labelled events of all rows, V labels of a task, C labels of
all tasks, P labels of all histories, N candidates of all rows.
"""

from functools import lru_cache
from math import log
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .configuration_mcm import FIRST_LABEL

VISIT_HALF_LIVES, MOMENT_HALF_LIVES, GAPS_HALF_LIFE = (2.5, 5.0, 15.0, 40.0), (2.0, 8.0), 8.0
KINDS = 3  # number of kinds of events, the most frequent ones, that have shares of their own
TIE = 2.0**-50  # relative distance that `break_ties` puts between equal numbers: below that of single precision
LEAST = 1e-30  # what `break_ties` makes of 0
LATEST = 5  # number of latest labelled events whose vectors are compared with a candidate's
RECENT, RECENT_DECAY = 8, 0.6  # number of latest moments whose transitions are looked up, and their decay by moment
# What all customers say of a label, given a history, in the order of `LabelTables`
EVIDENCE = ("transitions", "next_transitions", "ease", "rates", "attributes")
# Numbers of the history that are compared with those of the other candidates
COMPARED = ("share_visits_5", "share_visits_15", "share_moments_8", "share_days")
VISITS, MOMENTS, GAPS = 0, 1, 2  # units of how long ago an event was
FADING = (  # unit and half-life of the shares of a label
    *((VISITS, half_life) for half_life in VISIT_HALF_LIVES),
    *((MOMENTS, half_life) for half_life in MOMENT_HALF_LIVES),
    (GAPS, GAPS_HALF_LIFE),
)
FALLS = [log(0.5) / half_life for _, half_life in FADING]  # of the logarithms of the weights
SHARES = (
    *(f"share_{('visits', 'moments')[unit]}_{half_life:g}" for unit, half_life in FADING[:-1]),
    "share_days",
    *(f"share_kind_{kind}" for kind in range(KINDS)),
)

Columns = dict[str, Tensor]


class Feature(NamedTuple):
    """A number of a candidate label.

    Attributes:
        name, group (`str`): Its name, and the group of those that are computed together.
        unit (`str`): What the number is counted in, or how it fades.
        meaning (`str`): What it says, in a sentence.
    """

    name: str
    group: str
    unit: str
    meaning: str


# The numbers, in the order of the network's weights: name, group, unit and meaning. Those of frequency, recency, gaps
# and kinds are 0 for a label that is not in the history; a name of a share ends in its half-life.
TABLE = """
seen | frequency | 0 or 1 | The history has the label.
visits | frequency | log(1 + visits) | Number of visits with the label.
share_since_first | frequency | share | Share of visits with the label since the first such visit.
since_visits | recency | log(1 + visits) | Number of visits after the last one with the label.
since_moments | recency | log(1 + moments) | Number of moments after the last one with the label.
since_days | recency | log(1 + own gaps) | Time since the last event with the label.
several | frequency | 0 or 1 | At least two visits have the label.
overdue_visits | gaps | log ratio | Visits since the label, over the mean number between two visits with it.
overdue_days | gaps | log ratio | Time since the label, over the mean time between two moments with it.
irregularity | gaps | ratio | Standard deviation of the visits between two with the label, over the mean.
third | frequency | 0 or 1 | At least three visits have the label.
in_last_visit | recency | 0 or 1 | The last visit has the label.
share_visits_2.5 | frequency | share | Share of visits with the label; the name ends in the half-life.
share_visits_5 | frequency | share | Share of visits with the label; the name ends in the half-life.
share_visits_15 | frequency | share | Share of visits with the label; the name ends in the half-life.
share_visits_40 | frequency | share | Share of visits with the label; the name ends in the half-life.
share_moments_2 | frequency | share | Share of moments with the label; the name ends in the half-life.
share_moments_8 | frequency | share | Share of moments with the label; the name ends in the half-life.
share_days | frequency | share | Share of events with the label; half-life 8 gaps.
share_kind_0 | kinds | share | Share of events of this kind with the label; half-life 8 moments.
share_kind_1 | kinds | share | Share of events of this kind with the label; half-life 8 moments.
share_kind_2 | kinds | share | Share of events of this kind with the label; half-life 8 moments.
last_kind_0 | kinds | 0 or 1 | The label's last moment has it in an event of this kind.
last_kind_1 | kinds | 0 or 1 | The label's last moment has it in an event of this kind.
last_kind_2 | kinds | 0 or 1 | The label's last moment has it in an event of this kind.
customer_repeats | customer | share | Share of the visits of all labels that repeat the label.
customer_labels | customer | log(1 + labels) | Number of labels of a visit.
customer_moments | customer | log(1 + moments) | Number of moments of the history.
customer_since | customer | log(1 + own gaps) | Time since the customer's last event.
transitions | evidence | log(1 + 30 x) | Weight of the label beside those of the latest moments.
next_transitions | evidence | log(1 + 30 x) | Weight of the label after those of the last moment.
attributes | evidence | log(1 + 30 x) | Rarity of the attributes that the label shares with the latest moments.
transitions_ratio | comparison | ratio | The number, over the largest among the candidates.
next_transitions_ratio | comparison | ratio | The number, over the largest among the candidates.
ease_ratio | comparison | ratio | The number, over the largest among the candidates.
rates_ratio | comparison | ratio | The number, over the largest among the candidates.
attributes_ratio | comparison | ratio | The number, over the largest among the candidates.
share_visits_5_ratio | comparison | ratio | The number, over the largest among the candidates.
share_visits_15_ratio | comparison | ratio | The number, over the largest among the candidates.
share_moments_8_ratio | comparison | ratio | The number, over the largest among the candidates.
share_days_ratio | comparison | ratio | The number, over the largest among the candidates.
transitions_rank | comparison | log2 of the rank | Rank of the number among the candidates.
next_transitions_rank | comparison | log2 of the rank | Rank of the number among the candidates.
ease_rank | comparison | log2 of the rank | Rank of the number among the candidates.
rates_rank | comparison | log2 of the rank | Rank of the number among the candidates.
attributes_rank | comparison | log2 of the rank | Rank of the number among the candidates.
popularity_rank | comparison | log2 of the rank | Rank of the number among the candidates.
recency_rank | comparison | log2 of the rank | Rank of the number among the candidates.
share_visits_5_rank | comparison | log2 of the rank | Rank of the number among the candidates.
share_visits_15_rank | comparison | log2 of the rank | Rank of the number among the candidates.
share_moments_8_rank | comparison | log2 of the rank | Rank of the number among the candidates.
share_days_rank | comparison | log2 of the rank | Rank of the number among the candidates.
lift | popularity | log ratio | Weight after the labels of the last moment, over the label's share.
label_rate | popularity | log(1 + 30 x) | Share of all customers' visits that have the label.
label_share | popularity | log | Share of the label among those of all customers' visits.
trend | popularity | log ratio | This share in the latest part of the training period, over that in all.
label_repeats | popularity | share | Share of its visits that repeat the label.
label_next_repeats | popularity | share | Share of its visits that repeat it from the visit before.
label_gap | popularity | log(1 + visits) | Mean number of visits between two with the label.
label_overdue | popularity | log ratio | Visits since the label in the history, over this mean.
readout | readout | log | Probability of the label by the encoder's readout.
readout_rank | readout | log2 of the rank | Rank by it among the candidates.
cosine_last | readout | cosine | Of the encoder's vector of the label to that of the latest label.
cosine_latest | readout | cosine | The largest one above 0 to those of the latest 5.
"""
FEATURES = [Feature(*row.split(" | ")) for row in TABLE.strip().split("\n")]
NUM_FEATURES = len(FEATURES)  # F
COUNTED = sum(feature.group != "readout" for feature in FEATURES)
PLACES = {feature.name: place for place, feature in enumerate(FEATURES)}
# Names of the numbers that the history says of a label, the first ones; and of all labels, which follow them
OF_CUSTOMERS = [feature.name for feature in FEATURES if feature.group == "customer"]
PERSONAL = [feature.name for feature in FEATURES[: PLACES[OF_CUSTOMERS[0]]]]
LOGS = [EVIDENCE.index(feature.name) for feature in FEATURES if feature.group == "evidence"]


class LabelHistory(NamedTuple):
    """The labelled events of all customers of a batch, row after row, and oldest first.

    Attributes:
        row, label (`torch.LongTensor` of shape `(E,)`): The event's row, customer x T + task, and its label.
        ago (`torch.DoubleTensor` of shape `(3, E)`): Number of the row's visits, and of moments, with a labelled
            event after this one's, and days from the event to the time of the prediction.
        kind (`torch.LongTensor` of shape `(E,)`): Kind of the event, from 0; above `KINDS` are rare ones.
        is_new (`torch.BoolTensor` of shape `(B,)`): Whether the customer has no event yet, labelled or not.
    """

    row: Tensor
    label: Tensor
    ago: Tensor
    kind: Tensor
    is_new: Tensor

    @property
    def size(self) -> int:
        """B."""
        return self.is_new.shape[0]  # not len(...), which an export takes for a constant

    @classmethod
    def from_batch(
        cls,
        labels: Tensor,
        visit_ids: Tensor,
        event_times: Tensor,
        kinds: Tensor,
        as_of: Tensor | None = None,
    ) -> "LabelHistory":
        """Reads the histories from model inputs, up to the time of the prediction.

        Args:
            labels (`torch.LongTensor` of shape `(B, L, T)`): Label of each event in each task; below 2: none.
            visit_ids, kinds (`torch.LongTensor` of shape `(B, L)`): Visit of each event, 0 for padding, and its kind.
            event_times (`torch.FloatTensor` of shape `(B, L)`): Days from the customer's first event to each event,
                ascending.
            as_of (`torch.FloatTensor` of shape `(B,)`, *optional*): Time of the prediction on the same clock. Default:
                the time of the customer's last event.
        """
        tasks = labels.shape[2]
        if as_of is None:
            as_of = F.pad(event_times, (0, 1)).amax(1)
        is_past = event_times <= as_of[:, None]  # (B, L)
        by_row = (labels * is_past[..., None]).transpose(1, 2).flatten(0, 1)  # (R, L)
        row, event = (by_row >= FIRST_LABEL).nonzero(as_tuple=True)
        customer = row // tasks
        events = by_row[row, event], visit_ids[customer, event], event_times[customer, event], kinds[customer, event]
        return cls._count(row, *events, as_of[customer], ~(is_past & (visit_ids > 0)).any(1), tasks)

    @classmethod
    def from_events(
        cls, customer: Tensor, labels: Tensor, visits: Tensor, times: Tensor, kinds: Tensor, as_of: Tensor
    ) -> "LabelHistory":
        """Reads the histories from events one after the other, of customers `(E,)`, ascending, of whom each has a time
        of the prediction `(B,)`. The others are those of `from_batch`, without padding: labels `(T, E)`."""
        tasks = len(labels)
        task, event = (labels >= FIRST_LABEL).nonzero(as_tuple=True)
        row = customer.index_select(0, event) * tasks + task
        if len(as_of) > 1:
            row, order = row.sort(stable=True)
            task, event = task.index_select(0, order), event.index_select(0, order)
        visits, times, kinds = (values.index_select(0, event) for values in (visits, times, kinds))
        ends, is_new = as_of.index_select(0, row // tasks), torch.bincount(customer, minlength=len(as_of)) == 0
        return cls._count(row, labels[task, event], visits, times, kinds, ends, is_new, tasks)

    @classmethod
    def _count(
        cls,
        row: Tensor,
        label: Tensor,
        visit: Tensor,
        time: Tensor,
        kind: Tensor,
        as_of: Tensor,
        is_new: Tensor,
        tasks: int,
    ) -> "LabelHistory":
        """Counts how long ago the labelled events of rows were, all of shape `(E,)`, `is_new` `(B,)`."""
        time = time.double()
        # Counts of the changes of row and visit, and of these and time
        opens_visit = _changes(row) | _changes(visit)
        counts = torch.stack([opens_visit, opens_visit | _changes(time)]).cumsum(1)
        last = _find_last(row, is_new.shape[0] * tasks)
        ago = torch.cat([counts.index_select(1, last) - counts, (as_of.double() - time)[None]])
        return cls(row, label, ago, kind, is_new)

    def find_latest(self, tasks: int) -> Tensor:
        """The latest labels of each row, the last one first, `(R, LATEST)`; 0 where there are fewer."""
        rows = self.size * tasks
        place = _find_last(self.row, rows) - torch.arange(self.row.shape[0], device=self.row.device)  # from the last
        late = (place < LATEST).nonzero()[:, 0]
        latest = self.label.new_zeros(rows * LATEST)
        return latest.index_copy_(0, (self.row * LATEST + place)[late], self.label[late]).view(rows, LATEST)


def _find_last(row: Tensor, rows: int) -> Tensor:
    """The last event of the row of each event `(E,)`, of rows that ascend."""
    number = row.new_zeros(rows).index_add_(0, row, torch.ones_like(row))  # of events
    return (number.cumsum(0) - 1).index_select(0, row)


def _changes(values: Tensor) -> Tensor:
    """Says of each value `(E,)`, none below 0, whether it is another one than that before it."""
    return values != F.pad(values, (1, 0), value=-1)[:-1]


class SeenLabels(NamedTuple):
    """The labels of each history, and what it says of them.

    Attributes:
        cell, row (`torch.LongTensor` of shape `(P,)`): Ascending pairs.
        numbers (`torch.FloatTensor` of shape `(25, P)`): Those of `PERSONAL`.
        recent (`torch.FloatTensor` of shape `(P,)`): Sum of the decayed latest moments with the label.
        customers (`torch.FloatTensor` of shape `(4, R)`): The numbers of `OF_CUSTOMERS`.
    """

    cell: Tensor
    row: Tensor
    numbers: Tensor
    recent: Tensor
    customers: Tensor


class _Labels(NamedTuple):
    """The labels of all histories, and sums over their events."""

    row: Tensor  # (P,)
    newest: Tensor  # (3, P): how long ago the newest event was, in visits, moments, and median gaps of the log
    oldest: Tensor  # (3, P)
    faded: Tensor  # (S, P): faded visits, moments and events, in the order of `SHARES`
    number: Tensor  # (2, P): number of visits, and of moments
    squares: Tensor  # (P,): sum of the squared numbers of visits from one with the label to the next
    start: Tensor  # (3, R): how long ago the row's oldest event was
    since: Tensor  # (R,): gaps since the newest one
    own_gap: Tensor  # (R,): mean gap between moments, in median gaps of the log


def describe_histories(row: Tensor, cell: Tensor, kind: Tensor, ago: Tensor, size: int) -> SeenLabels:
    """Describes the labels of each history, from row, cell and kind `(E,)` of each event, and `ago` `(3, E)` with gaps
    for days. Sums are in double precision and in one order: equal shares are equal to the bit in every batch, and so
    are their ranks."""
    most = cell.shape[0] + 1  # more than any number of moments
    keys = (cell * most + ago[MOMENTS].long()).mul_(KINDS + 1).add_(kind.clamp(max=KINDS))
    keys, order = keys.sort()  # label after label, newest first, and equal events side by side
    chosen = _changes(keys).nonzero()[:, 0]  # one event for all that are equal
    equal = chosen.diff(append=chosen.new_full((1,), keys.shape[0]))
    order, cells = order.index_select(0, chosen), keys[chosen] // (most * (KINDS + 1))
    opens_label = _changes(cells)
    seen, first = opens_label.cumsum(0) - 1, opens_label.nonzero()[:, 0]
    ago, cell = ago.index_select(1, order), cells.index_select(0, first)
    row, newest = row.index_select(0, order.index_select(0, first)), ago.index_select(1, first)
    oldest = ago.index_select(1, _find_last(seen, cell.shape[0])[first])
    steps = ago[:GAPS].diff(dim=1, prepend=ago.new_zeros(GAPS, 1)).index_fill_(1, first, 0)
    opens = (steps > 0).double().index_fill_(1, first, 1)  # 1 for a label's newest event of a visit, and of a moment
    # All sums are one: a sum by index costs more for its events than for its rows
    is_newest = ago[MOMENTS] == ago[MOMENTS].index_select(0, first).index_select(0, seen)
    faded_events = _fade(ago, opens, is_newest, kind.index_select(0, order), equal)
    values = torch.cat([*faded_events, opens, steps[:1].square()])
    sums = values.new_zeros(len(values), cell.shape[0]).index_add_(1, seen, values)
    faded, last_kinds, recent, number, squares = sums.split([len(SHARES), KINDS, 1, 2, 1])
    start = ago.new_zeros(3, size).scatter_reduce(1, row.expand(3, -1), oldest, "amax")
    since = ago.new_zeros(size).scatter_reduce(0, row, newest[GAPS], "amin", include_self=False)
    own_gap = ((start[GAPS] - since) / start[MOMENTS].clamp(min=1)).clamp(min=0.02)
    labels = _Labels(row, newest, oldest, faded, number, squares[0], start, since, own_gap)
    shares, customers = _describe_shares(labels)
    columns = _describe_frequency(labels) | _describe_recency(labels) | _describe_gaps(labels) | shares
    columns |= {f"last_kind_{kind}": number for kind, number in enumerate((last_kinds > 0).double())}
    numbers = torch.stack([columns[name] for name in PERSONAL]).float()
    of_customers = torch.stack([customers[name] for name in OF_CUSTOMERS]).float()
    return SeenLabels(cell, row, numbers, recent[0].float(), of_customers)


def _fade(ago: Tensor, opens: Tensor, is_newest: Tensor, kind: Tensor, number: Tensor) -> list[Tensor]:
    """Weights of events, of which each stands for a number of equal ones, that fade with how long `ago` they were: of
    all `SHARES`; 1 for those of their label's newest moment, by kind; and of the latest moments."""
    units = [*(unit for unit, _ in FADING), MOMENTS]
    falls = ago.new_tensor([*FALLS, log(RECENT_DECAY)])[:, None]
    weights = ago.index_select(0, torch.tensor(units, device=ago.device)).mul_(falls).exp_()
    is_kind = kind == torch.arange(KINDS, device=kind.device)[:, None]
    visits, moments, days, latest = weights.split([len(VISIT_HALF_LIVES), len(MOMENT_HALF_LIVES), 1, 1])
    by_kind, in_newest = moments[-1:] * is_kind * number, is_kind * is_newest
    latest = latest * opens[MOMENTS] * (ago[MOMENTS] < RECENT)
    return [visits * opens[VISITS], moments * opens[MOMENTS], days * number, by_kind, in_newest, latest]


def _describe_shares(labels: _Labels) -> tuple[Columns, Columns]:
    """Which share of visits, moments and events a label has, lately and of each kind; and what the whole history says,
    by row."""
    events = labels.faded[len(FADING) - 1 :]  # of all, and of each kind
    sums = torch.cat([events, labels.number[:1], torch.ones_like(events[:1])])
    sums = sums.new_zeros(len(sums), labels.since.shape[0]).index_add_(1, labels.row, sums)
    # The largest possible sum, of a label that each visit or moment has, is a geometric series
    units = torch.tensor([unit for unit, _ in FADING[:-1]], device=sums.device)
    falls, longest = sums.new_tensor(FALLS[:-1])[:, None], labels.start.index_select(0, units) + 1
    largest = ((falls * longest).expm1() / falls.expm1()).clamp(min=1e-6)
    totals = torch.maximum(sums[:-2], sums.new_tensor([1e-9] + [0.5] * KINDS)[:, None])
    shares = labels.faded / torch.cat([largest, totals]).index_select(1, labels.row)
    (visits, moments, _), (occurrences, number) = labels.start + 1, sums[-2:]
    customers = {
        "customer_repeats": (occurrences - number + 0.5) / (occurrences + 1),
        "customer_labels": (occurrences / visits).log1p(),
        "customer_moments": moments.log1p(),
        "customer_since": (labels.since / labels.own_gap).log1p(),
    }
    return dict(zip(SHARES, shares, strict=True)), customers


def _describe_frequency(labels: _Labels) -> Columns:
    """How many visits have a label."""
    visits = labels.number[0]
    return {
        "seen": torch.ones_like(visits),
        "visits": visits.log1p(),
        "share_since_first": visits / (labels.oldest[VISITS] + 1),
        "several": (visits > 1).double(),
        "third": (visits > 2).double(),
    }


def _describe_recency(labels: _Labels) -> Columns:
    """How long ago a label was last there."""
    visits, moments, gaps = labels.newest
    return {
        "since_visits": visits.log1p(),
        "since_moments": moments.log1p(),
        "since_days": (gaps / labels.own_gap.index_select(0, labels.row)).log1p(),
        "in_last_visit": (visits == 0).double(),
    }


def _describe_gaps(labels: _Labels) -> Columns:
    """How regularly a label comes, and whether it is late."""
    visits = labels.number[0]
    mean_gaps = (labels.oldest - labels.newest)[::2] / (labels.number - 1).clamp(min=1)  # in visits, and in gaps
    floors = mean_gaps.clamp(min=0.02)
    ahead = mean_gaps.new_tensor([[1.0], [0.0]])  # the next visit is one more
    late = ((labels.newest[::2] + ahead) / floors).clamp(1e-3, 1e3).log() * (labels.number > 1) * (mean_gaps > 0)
    variance = labels.squares / (visits - 1).clamp(min=1) - mean_gaps[0].square()
    irregularity = variance.clamp(min=0).sqrt() / floors[0] * (visits > 2)
    return {"overdue_visits": late[0], "overdue_days": late[1], "irregularity": irregularity}


def describe_candidates(row: Tensor, place: Tensor, seen: SeenLabels, evidence: Tensor, popularity: Tensor) -> Tensor:
    """Computes the counted numbers `(COUNTED, N)` of candidates `(N,)` from the labels of the histories and the
    candidates' places among them, P where it is none; their evidence `(5, N)`; and what [`describe_popularity`] says
    of them `(8, N)`."""
    personal = F.pad(seen.numbers, (0, 1)).index_select(1, place)  # (25, N)
    histories = seen.customers.index_select(1, row)  # (4, N)
    share, gap, rate, *known = popularity
    ratios = [(evidence[1] + 1e-4) / (share + 1e-4), personal[PLACES["since_visits"]].exp() / gap]
    lift, overdue = torch.stack(ratios).log()
    popular = torch.stack([lift, rate, *known, overdue * personal[PLACES["seen"]]])  # (8, N)
    logs = (30 * evidence.index_select(0, torch.tensor(LOGS, device=row.device))).log1p()
    return torch.cat([personal, histories, logs, *_compare_candidates(row, personal, rate, evidence), popular])


def describe_popularity(counts: Tensor, totals: Tensor, visits: Tensor) -> Tensor:
    """What all customers say of labels by popularity `(8, N)`: share, mean gap, and label_rate to label_gap, from
    their counts `(5, N)`, the sums of rows 0 and 3 over the labels of the task `(2, N)`, and all visits `(N,)`."""
    count, repeats, next_repeats, _, gaps = counts
    share, recent_share = counts[::3] / totals  # (N,)
    gap = (gaps + 1) / (repeats + 0.5)
    label_share, trend = torch.stack([share.clamp(min=1e-7), (recent_share + 1e-4) / (share + 1e-4)]).log()
    rate, rates = (30 * count / visits).log1p(), [(repeats + 0.5) / (count + 2), (next_repeats + 0.1) / (count + 2)]
    return torch.stack([share, gap, rate, label_share, trend, *rates, gap.log1p()])


def _compare_candidates(row: Tensor, personal: Tensor, rate: Tensor, evidence: Tensor) -> list[Tensor]:
    """How a label compares with the other candidates of its row: ratios `(9, N)` and ranks `(11, N)`."""
    recency = (-personal[PLACES["since_moments"]]).exp() * personal[PLACES["seen"]]
    popularity = torch.stack([rate, recency])
    compared = personal.index_select(0, torch.tensor([PLACES[name] for name in COMPARED], device=row.device))
    values = torch.cat([evidence, popularity, compared])  # (11, N)
    ranks, largest = compare(row, values)
    ratios, others = values / largest.clamp(min=1e-9), len(EVIDENCE) + len(popularity)
    return [ratios[: len(EVIDENCE)], ratios[others:], ranks.log2()]


def break_ties(values: Tensor, largest: bool = True) -> Tensor:
    """Values `(..., C)` from 0 on in double precision, of which no two are equal: of equal ones the first column
    becomes the largest, or the smallest. They move by less than the distance between numbers in single precision, so
    what `topk` and `sort` find is the same in every batch and on every machine."""
    factors = _make_factors(values.shape[-1], -TIE if largest else TIE, values.device)
    return values.to(torch.double, copy=True).add_(LEAST).mul_(factors)


@lru_cache(16)
def _make_factors(number: int, step: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # also for calls that need gradients
        return torch.linspace(1, 1 + step * (number - 1), number, dtype=torch.double, device=device)


def compare(row: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Compares values `(k, N)` in single precision within their row; `row` `(N,)` is ascending. Returns ranks from 1,
    the largest first, and the largest value, both `(k, N)`. Of equal ones the first is ahead."""
    opens = _changes(row)
    first = opens.nonzero()[:, 0][opens.cumsum(0) - 1]  # (N,): where the row begins
    place = torch.arange(row.shape[0], device=row.device) - first  # (N,): of the candidate in its row
    ordered = _sort_rows(row, place, values)  # (k, N)
    ranks = torch.empty_like(values).scatter_(1, ordered, (place + 1).to(values).expand_as(values))
    return ranks, values.gather(1, ordered[:, first])


def _sort_rows(row: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """The candidates `(k, N)`, row after row, the largest values first, of rows and places in them `(N,)`."""
    if torch.compiler.is_exporting():  # of a graph without numpy
        ordered = values.argsort(dim=1, descending=True, stable=True)
        return ordered.gather(1, row[ordered].argsort(dim=1, stable=True))
    numbers, places = (index.numpy(force=True) for index in (row, place))
    rows, most = (index.max(initial=0) + 1 for index in (numbers, places))
    cells = numbers * most + places  # (N,): in a table with a line for each row
    # A sort that gives places takes five times as long as one of whole numbers: these hold the place in the lower half
    keys = np.full((len(values), rows, most), np.iinfo(np.int64).max)  # behind the last candidate the largest number
    keys.reshape(len(keys), -1)[:, cells] = (-_to_whole_numbers(values) << 32) + places
    keys.sort(axis=2)
    found = keys.reshape(len(keys), -1)[:, cells] & (2**32 - 1)  # (k, N): place of the candidate with each rank
    return torch.from_numpy(found + np.arange(len(numbers)) - places).to(row.device)


def _to_whole_numbers(values: Tensor) -> NDArray[np.int64]:
    """Whole numbers in the same order as numbers in single precision: their bits, which are in order from 0 on, and in
    the reverse one below 0, where all but the sign are turned round."""
    bits = values.float().contiguous().view(torch.int32).numpy(force=True)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)


def compare_vectors(vectors: Tensor, row: Tensor, label: Tensor, latest: Tensor) -> Tensor:
    """Cosines `(2, N)` of the vectors `(V, H)` of candidates, pairs of a row and a label `(N,)`, to those of the
    `latest` labels `(R, LATEST)` of their row: to the first one, and the largest one above 0; 0 without any."""
    is_read = label.new_zeros(len(vectors)).index_fill_(0, label, 1)
    units, ends = F.normalize(vectors[is_read > 0].float(), dim=1), F.normalize(vectors[latest].float(), dim=2)
    cosines = (ends @ units.T).masked_fill(latest[..., None] == 0, 0.0)  # (R, LATEST, labels of candidates)
    place = is_read.cumsum(0)[label] - 1
    return torch.stack([cosines[row, 0, place], cosines.amax(1).clamp(min=0)[row, place]])
