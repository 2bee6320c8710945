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

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .configuration_mcm import FIRST_LABEL

VISIT_HALF_LIVES, MOMENT_HALF_LIVES, GAPS_HALF_LIFE = (2.5, 5.0, 15.0, 40.0), (2.0, 8.0), 8.0
KINDS = 3  # number of kinds of events, the most frequent ones, that have shares of their own
TIE = 2.0**-50  # relative distance that `break_ties` puts between equal numbers: below that of single precision
RECENT, RECENT_DECAY = 8, 0.6  # number of latest moments whose transitions are looked up, and their decay by moment
# What all customers say of a label, given a history, in the order of `LabelTables`
EVIDENCE = {
    "transitions": "Weight of the label beside those of the latest moments",
    "next_transitions": "Weight of the label after those of the last moment",
    "ease": "EASE of the label, from those of the history",
    "rates": "Personal rate of the label, by a ridge regression on those of the history",
}
# Numbers of the history that are compared with those of the other candidates
COMPARED = ("share_visits_5", "share_visits_15", "share_moments_8", "share_days")

Columns = dict[str, torch.Tensor]


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


# The numbers, in the order of the network's weights. Those of frequency, recency, gaps and kinds are 0 for a label
# that is not in the history.
FEATURES = (
    Feature("seen", "frequency", "0 or 1", "The history has the label."),
    Feature("visits", "frequency", "log(1 + visits)", "Number of visits with the label."),
    Feature("share_since_first", "frequency", "share", "Share of visits with the label since the first such visit."),
    Feature("since_visits", "recency", "log(1 + visits)", "Number of visits after the last one with the label."),
    Feature("since_moments", "recency", "log(1 + moments)", "Number of moments after the last one with the label."),
    Feature("since_days", "recency", "log(1 + own gaps)", "Time since the last event with the label."),
    Feature("several", "frequency", "0 or 1", "At least two visits have the label."),
    Feature(
        "overdue_visits",
        "gaps",
        "log ratio",
        "Visits since the label, over the mean number between two visits with it.",
    ),
    Feature(
        "overdue_days", "gaps", "log ratio", "Time since the label, over the mean time between two moments with it."
    ),
    Feature(
        "irregularity", "gaps", "ratio", "Standard deviation of the visits between two with the label, over the mean."
    ),
    Feature("third", "frequency", "0 or 1", "At least three visits have the label."),
    Feature("in_last_visit", "recency", "0 or 1", "The last visit has the label."),
    *(
        Feature(f"share_visits_{life:g}", "frequency", f"half-life {life:g} visits", "Share of visits with the label.")
        for life in VISIT_HALF_LIVES
    ),
    *(
        Feature(
            f"share_moments_{life:g}", "frequency", f"half-life {life:g} moments", "Share of moments with the label."
        )
        for life in MOMENT_HALF_LIVES
    ),
    Feature("share_days", "frequency", f"half-life {GAPS_HALF_LIFE:g} gaps", "Share of events with the label."),
    *(
        Feature(
            f"share_kind_{kind}",
            "kinds",
            f"half-life {MOMENT_HALF_LIVES[-1]:g} moments",
            f"Share of events of kind {kind} with it.",
        )
        for kind in range(KINDS)
    ),
    *(
        Feature(f"last_kind_{kind}", "kinds", "0 or 1", f"The last moment has the label in an event of kind {kind}.")
        for kind in range(KINDS)
    ),
    Feature("customer_repeats", "customer", "share", "Share of the visits of all labels that repeat the label."),
    Feature("customer_labels", "customer", "log(1 + labels)", "Number of labels of a visit."),
    Feature("customer_moments", "customer", "log(1 + moments)", "Number of moments of the history."),
    Feature("customer_since", "customer", "log(1 + own gaps)", "Time since the customer's last event."),
    *(Feature(name, "evidence", "log(1 + 30 x)", f"{what}.") for name, what in [*EVIDENCE.items()][:2]),
    *(
        Feature(f"{name}_ratio", "comparison", "ratio", f"{what}, over the largest among the candidates.")
        for name, what in (EVIDENCE | {name: f"`{name}`" for name in COMPARED}).items()
    ),
    *(
        Feature(f"{name}_rank", "comparison", "log2 of the rank", f"Rank among the candidates by {name}.")
        for name in (*EVIDENCE, "popularity", "recency", *COMPARED)
    ),
    Feature("lift", "popularity", "log ratio", "Weight after the labels of the last moment, over the label's share."),
    Feature("label_rate", "popularity", "log(1 + 30 x)", "Share of all customers' visits that have the label."),
    Feature("label_share", "popularity", "log", "Share of the label among those of all customers' visits."),
    Feature(
        "trend", "popularity", "log ratio", "This share in the latest part of the training period, over that in all."
    ),
    Feature("label_repeats", "popularity", "share", "Share of its visits that repeat the label."),
    Feature("label_next_repeats", "popularity", "share", "Share of its visits that repeat it from the visit before."),
    Feature("label_gap", "popularity", "log(1 + visits)", "Mean number of visits between two with the label."),
    Feature("label_overdue", "popularity", "log ratio", "Visits since the label in the history, over this mean."),
    Feature("readout", "readout", "log", "Probability of the label by the encoder's readout."),
    Feature("readout_rank", "readout", "log2 of the rank", "Rank by it among the candidates."),
)
NUM_FEATURES = len(FEATURES)  # F
COUNTED = sum(feature.group != "readout" for feature in FEATURES)
PLACES = {feature.name: place for place, feature in enumerate(FEATURES)}


class LabelHistory(NamedTuple):
    """The labelled events of all customers of a batch, row after row, and oldest first.

    Attributes:
        row, label (`torch.LongTensor` of shape `(E,)`): The event's row, customer x T + task, and its label.
        ago (`torch.DoubleTensor` of shape `(3, E)`): Number of the row's visits, and of moments, with a labelled
            event after this one's, and days from the event to the time of the prediction.
        kind (`torch.LongTensor` of shape `(E,)`): Kind of the event, from 0; above `KINDS` are rare ones.
        size (`int`): B.
    """

    row: torch.Tensor
    label: torch.Tensor
    ago: torch.Tensor
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
        ago = torch.cat([counts[:, last] - counts, days[None]])
        return cls(row, by_row[row, event], ago, kinds.take(at), size)


class SeenLabels(NamedTuple):
    """The labels of each history, and what it says of them.

    Attributes:
        cell, row (`torch.LongTensor` of shape `(P,)`): Ascending pairs.
        columns (`dict[str, torch.FloatTensor]`): The numbers of the groups frequency, recency, gaps and kinds,
            each `(P,)`.
        recent (`torch.FloatTensor` of shape `(P,)`): Sum of the decayed latest moments with the label.
        customers (`dict[str, torch.FloatTensor]`): The numbers of the group "customer", each `(R,)`.
    """

    cell: torch.Tensor
    row: torch.Tensor
    columns: Columns
    recent: torch.Tensor
    customers: Columns


class _Events(NamedTuple):
    """The events of all histories, label after label, and newest first."""

    seen: torch.Tensor  # (E,): index of P
    kind: torch.Tensor  # (E,)
    ago: torch.Tensor  # (3, E), in visits, moments, and median gaps of the log
    opens: torch.Tensor  # (2, E): 1 for the label's newest event of a visit, and of a moment
    between: torch.Tensor  # (E,): number of visits to the next one with the label
    row: torch.Tensor  # (P,)
    newest: torch.Tensor  # (3, P): `ago` of the newest event
    oldest: torch.Tensor  # (3, P)
    number: torch.Tensor  # (2, P): number of visits, and of moments
    start: torch.Tensor  # (3, R): `ago` of the row's oldest event
    since: torch.Tensor  # (R,): gaps since the newest one
    own_gap: torch.Tensor  # (R,): mean gap between moments, in median gaps of the log


def describe_histories(
    row: torch.Tensor, cell: torch.Tensor, kind: torch.Tensor, ago: torch.Tensor, size: int
) -> SeenLabels:
    """Describes the labels of each history, from row, cell and kind `(E,)` of each event, and `ago` `(3, E)` with gaps
    for days. Sums are in double precision and in one order: equal shares are equal to the bit in every batch, and so
    are their ranks."""
    most = max(len(cell), 1)  # more than any number of moments
    keys, order = (cell * most + ago[1].long()).sort()
    cell, seen, lengths = (keys // most).unique_consecutive(return_inverse=True, return_counts=True)
    ago, last = ago[:, order], lengths.cumsum(0)
    first = last - lengths
    row, newest, oldest = row[order[first]], ago[:, first], ago[:, last - 1]
    steps = ago[:2].diff(dim=1, prepend=ago.new_zeros(2, 1))
    steps[:, first] = 0
    opens = (steps > 0).double()
    opens[:, first] = 1
    number = _sum(seen, opens, len(cell))
    start = ago.new_zeros(3, size).scatter_reduce(1, row.expand(3, -1), oldest, "amax")
    since = ago.new_zeros(size).scatter_reduce(0, row, newest[2], "amin", include_self=False)
    own_gap = ((start[2] - since) / start[1].clamp(min=1)).clamp(min=0.02)
    events = _Events(seen, kind[order], ago, opens, steps[0], row, newest, oldest, number, start, since, own_gap)
    columns = _describe_frequency(events) | _describe_recency(events) | _describe_gaps(events)
    columns |= _describe_kinds(events)
    decayed = _fade(ago[1], -1 / math.log2(RECENT_DECAY)) * opens[1] * (ago[1] < RECENT)
    recent = _sum(seen, decayed, len(cell))[0].float()
    return SeenLabels(cell, row, _to_floats(columns), recent, _to_floats(_describe_customers(events)))


def _fade(ago: torch.Tensor, *half_lives: float) -> torch.Tensor:
    """Weights `(k, E)` of what was so long ago `(E,)`, by half-life."""
    return torch.exp2(ago.new_tensor([[-1 / half_life] for half_life in half_lives]) * ago)


def _sum(index: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Sums of values `(k, E)` by an index `(E,)`, of shape `(k, size)`."""
    return values.new_zeros(len(values), size).index_add_(1, index, values)


def _to_floats(columns: Columns) -> Columns:
    return dict(zip(columns, torch.stack([*columns.values()]).float(), strict=True))


def _describe_frequency(events: _Events) -> Columns:
    """How many visits and moments have a label, and which share of them."""
    visits = events.number[0]
    columns = {
        "seen": torch.ones_like(visits),
        "visits": visits.log1p(),
        "share_since_first": visits / (events.oldest[0] + 1),
        "several": visits > 1,
        "third": visits > 2,
    }
    for index, (unit, half_lives) in enumerate((("visits", VISIT_HALF_LIVES), ("moments", MOMENT_HALF_LIVES))):
        shares = _sum(events.seen, _fade(events.ago[index], *half_lives) * events.opens[index], len(visits))
        # The largest possible sum, of a label that each visit or moment has: a geometric series
        first = shares.new_tensor([[1 - 0.5 ** (1 / half_life)] for half_life in half_lives])
        largest = ((1 - _fade(events.start[index] + 1, *half_lives)) / first).clamp(min=1e-6)
        columns |= zip((f"share_{unit}_{each:g}" for each in half_lives), shares / largest[:, events.row], strict=True)
    shares = _sum(events.seen, _fade(events.ago[2], GAPS_HALF_LIFE), len(visits))
    columns["share_days"] = (shares / _sum(events.row, shares, len(events.since)).clamp(min=1e-9)[:, events.row])[0]
    return columns


def _describe_recency(events: _Events) -> Columns:
    """How long ago a label was last there."""
    visits, moments, gaps = events.newest
    return {
        "since_visits": visits.log1p(),
        "since_moments": moments.log1p(),
        "since_days": (gaps / events.own_gap[events.row]).log1p(),
        "in_last_visit": visits == 0,
    }


def _describe_gaps(events: _Events) -> Columns:
    """How regularly a label comes, and whether it is late."""
    visits = events.number[0]
    mean_gaps = (events.oldest - events.newest)[::2] / (events.number - 1).clamp(min=1)  # in visits, and in gaps
    floors = mean_gaps.clamp(min=0.02)
    ahead = mean_gaps.new_tensor([[1.0], [0.0]])  # the next visit is one more
    late = ((events.newest[::2] + ahead) / floors).clamp(1e-3, 1e3).log() * (events.number > 1) * (mean_gaps > 0)
    (squares,) = _sum(events.seen, events.between.square()[None], len(visits))
    variance = squares / (visits - 1).clamp(min=1) - mean_gaps[0].square()
    irregularity = variance.clamp(min=0).sqrt() / floors[0] * (visits > 2)
    return {"overdue_visits": late[0], "overdue_days": late[1], "irregularity": irregularity}


def _describe_kinds(events: _Events) -> Columns:
    """Which share of the latest events of each frequent kind have a label."""
    is_kind = events.kind == torch.arange(KINDS, device=events.kind.device)[:, None]
    faded, in_last = _fade(events.ago[1], MOMENT_HALF_LIVES[-1]) * is_kind, is_kind * (events.ago[1] == 0)
    shares, last = _sum(events.seen, torch.cat([faded, in_last]), len(events.row)).split(KINDS)
    shares = shares / _sum(events.row, shares, len(events.since)).clamp(min=0.5)[:, events.row]
    names = [f"{name}_kind_{kind}" for name in ("share", "last") for kind in range(KINDS)]
    return dict(zip(names, [*shares, *last.clamp(max=1)], strict=True))


def _describe_customers(events: _Events) -> Columns:
    """What the whole history says, by row."""
    visits, rows = events.number[0], len(events.since)
    labels, occurrences = _sum(events.row, torch.stack([torch.ones_like(visits), visits]), rows)
    return {
        "customer_repeats": (occurrences - labels + 0.5) / (occurrences + 1),
        "customer_labels": (occurrences / (events.start[0] + 1)).log1p(),
        "customer_moments": (events.start[1] + 1).log1p(),
        "customer_since": (events.since / events.own_gap).log1p(),
    }


def describe_candidates(
    row: torch.Tensor,
    cell: torch.Tensor,
    seen: SeenLabels,
    evidence: torch.Tensor,
    counts: Sequence[torch.Tensor],
    visits: torch.Tensor,
) -> Columns:
    """Computes the counted numbers of candidates `(N,)` from the labels of the histories, the candidates' evidence
    `(4, N)`, counts `(1 or B, 5, V)` by task, and the number of visits of all customers `(1 or B, T)`."""
    place = torch.searchsorted(seen.cell, cell)
    place = torch.where(F.pad(seen.cell, (0, 1), value=-1)[place] == cell, place, len(seen.cell))
    personal = F.pad(torch.stack([*seen.columns.values()]), (0, 1))[:, place]
    columns = dict(zip(seen.columns, personal, strict=True))
    columns |= {name: values[row] for name, values in seen.customers.items()}
    columns |= zip(EVIDENCE, (30 * evidence[:2]).log1p(), strict=False)
    columns |= _describe_popularity(row, cell, counts, visits, columns, evidence[1])
    return columns | _compare_candidates(row, columns, evidence)


def _describe_popularity(
    row: torch.Tensor,
    cell: torch.Tensor,
    counts: Sequence[torch.Tensor],
    visits: torch.Tensor,
    personal: Columns,
    next_transitions: torch.Tensor,
) -> Columns:
    """How popular the labels are, and whether one is late by what all customers do."""
    tasks, of_labels = len(counts), torch.cat(list(counts), 2)  # (1 or B, 5, C)
    of_tasks = torch.stack([each[:, [0, 3]].sum(2).clamp(min=1) for each in counts], 1)  # (1 or B, T, 2)
    then, task = row // tasks % len(of_labels), row % tasks
    count, repeats, next_repeats, recent, gaps = of_labels[then, :, cell % of_labels.shape[2]].T
    share, recent_share = torch.stack([count, recent]) / of_tasks[then, task].T
    gap = (gaps + 1) / (repeats + 0.5)
    return {
        "lift": ((next_transitions + 1e-4) / (share + 1e-4)).log(),
        "label_rate": (30 * count / visits[then, task]).log1p(),
        "label_share": share.clamp(min=1e-7).log(),
        "trend": ((recent_share + 1e-4) / (share + 1e-4)).log(),
        "label_repeats": (repeats + 0.5) / (count + 2),
        "label_next_repeats": (next_repeats + 0.1) / (count + 2),
        "label_gap": gap.log1p(),
        "label_overdue": (personal["since_visits"].exp() / gap).log() * personal["seen"],
    }


def _compare_candidates(row: torch.Tensor, columns: Columns, evidence: torch.Tensor) -> Columns:
    """How a label compares with the other candidates of its row."""
    values = torch.cat([evidence, torch.stack([columns[name] for name in COMPARED])])
    recency = torch.where(columns["seen"] > 0, -columns["since_moments"], -1e6)
    ranks, largest = compare(row, torch.cat([values, columns["label_rate"][None], recency[None]]))
    ratios, names = values / largest[: len(values)].clamp(min=1e-9), (*EVIDENCE, *COMPARED)
    result = dict(zip((f"{name}_ratio" for name in names), ratios, strict=True))
    return result | dict(
        zip((f"{name}_rank" for name in (*names, "popularity", "recency")), ranks.log2(), strict=True)
    )


def break_ties(values: torch.Tensor, largest: bool = True) -> torch.Tensor:
    """Values `(..., C)` from 0 on in double precision, of which no two are equal: of equal ones the first column
    becomes the largest, or the smallest. They move by less than the distance between numbers in single precision, so
    what `topk` and `sort` find is the same in every batch and on every machine."""
    places = torch.arange(values.shape[-1], dtype=torch.double, device=values.device)
    return values.to(torch.double, copy=True).add_(1e-30).mul_(1 + places * (-TIE if largest else TIE))


def compare(row: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compares values `(k, N)` within their row; `row` `(N,)` is ascending. Returns ranks from 1, the largest first,
    and the largest value, both `(k, N)`."""
    _, index, size = row.unique_consecutive(return_inverse=True, return_counts=True)
    most = int(size.max()) if len(size) else 1
    place = index * most + torch.arange(len(row), device=row.device) - (size.cumsum(0) - size)[index]
    padded = values.new_full((len(values), len(size), most), -torch.inf)
    padded.flatten(1)[:, place] = values
    order = padded.argsort(dim=2, descending=True, stable=True)
    ranks = torch.arange(1, most + 1, device=row.device).to(values.dtype).expand_as(padded)
    ranks = torch.empty_like(padded).scatter_(2, order, ranks)
    return ranks.flatten(1)[:, place], padded.amax(2)[:, index]
