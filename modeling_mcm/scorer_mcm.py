# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores from counts alone: numbers that say the same of any label in any shop, and a small network that reads them.

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
MOST_SEEN, BEST = 120, {"transition": 30, "next": 15, "ease": 30, "ridge": 15}
POPULAR = 50
NUM_FEATURES = 55  # F
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
        neighbours (`torch.IntTensor` of shape `(4, V, K)`): labels that go with each label, for each kind of evidence
            in `BEST`: transitions in both directions, transitions forwards, EASE (Steck, WWW 2019), and a ridge
            regression of personal rates on themselves.
        weights (`torch.HalfTensor` of shape `(4, V, K)`): weights of these pairs, 0 where there are fewer than K.
        counts (`torch.FloatTensor` of shape `(4, V)`): visits of the label, those of them that repeat it, that repeat
            it at the very next visit, and those in the latest tenth of the training period.
        totals (`torch.FloatTensor` of shape `(3,)`): number of visits of all customers, median gap of moments in days,
            and whether times say anything (0: days are replaced by moments).
    """

    neighbours: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    totals: torch.Tensor

    def __init__(self, labels: int):
        super().__init__()
        width = min(labels, NEIGHBOURS)
        self.register_buffer("neighbours", torch.zeros(len(BEST), labels, width, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(len(BEST), labels, width, dtype=torch.float16))
        self.register_buffer("counts", torch.zeros(4, labels))
        self.register_buffer("totals", torch.ones(3))

    @torch.no_grad()
    def grow(self, number: int) -> None:
        """Appends new labels, of which nothing is known."""
        for name, axis in (("neighbours", 1), ("weights", 1), ("counts", 1)):
            value = self.get_buffer(name)
            shape = list(value.shape)
            shape[axis] = number
            self.register_buffer(name, torch.cat([value, value.new_zeros(shape)], axis))

    def evidence(self, history: LabelHistory, seen: torch.Tensor, rates: torch.Tensor) -> dict[str, torch.Tensor]:
        """What all customers say of each label, given a history: by kind of evidence a tensor of shape `(B, V)`.

        Args:
            history ([`LabelHistory`]): the histories.
            seen (`torch.LongTensor` of shape `(P,)`): pairs of a customer and a label of its history, customer x V +
                label, ascending.
            rates (`torch.FloatTensor` of shape `(P,)`): the personal rate of each pair.
        """
        labels = self.counts.shape[1]
        recent = history.moments < RECENT
        pairs = (history.customer[recent] * labels + history.label[recent]) * RECENT + history.moments[recent]
        pairs = pairs.unique()  # a label counts once a moment
        latest, ago = pairs // RECENT, pairs % RECENT
        decay = (RECENT_DECAY ** ago.double()).float()
        now = ago == 0
        ones = torch.ones(len(seen), device=seen.device)
        inputs = {"transition": (latest, decay), "next": (latest[now], decay[now])}
        inputs |= {"ease": (seen, ones), "ridge": (seen, rates)}
        shape, result = (history.size, labels), {}
        for index, (name, (keys, values)) in enumerate(inputs.items()):
            customer, label = keys // labels, keys % labels
            if name in ("transition", "next"):
                values = values / values.new_zeros(history.size).index_add(0, customer, values)[customer]
            cells = customer[:, None] * labels + self.neighbours[index][label]
            products = self.weights[index][label].float() * values[:, None]
            dense = values.new_zeros(history.size * labels).index_add_(0, cells.flatten(), products.flatten())
            result[name] = dense.view(shape).clamp_(min=0)
            result[name][:, :FIRST_LABEL] = 0
        return result


class Candidates(NamedTuple):
    """Candidate labels of all customers, and what is known of them.

    Attributes:
        customer, label (`torch.LongTensor` of shape `(N,)`): ascending pairs.
        features (`torch.FloatTensor` of shape `(N, F)`): the numbers, in the order of `NAMES`.
    """

    customer: torch.Tensor
    label: torch.Tensor
    features: torch.Tensor


def _steps(pair: torch.Tensor, step: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Distinct steps of each pair, newest first: their pair and step, and by pair number, newest, oldest step and the
    sum of the squared gaps."""
    base = step.max() + 1 if len(step) else 1
    keys = (pair * base + step).unique()
    of, at = keys // base, (keys % base).float()
    zeros = at.new_zeros(size)
    gaps, same = at[1:] - at[:-1], of[1:] == of[:-1]
    return (
        of,
        at,
        zeros.index_add(0, of, torch.ones_like(at)),
        zeros.scatter_reduce(0, of, at, "amin", include_self=False),
        zeros.scatter_reduce(0, of, at, "amax", include_self=False),
        zeros.index_add(0, of[1:], gaps**2 * same),
    )


def _faded_share(of: torch.Tensor, at: torch.Tensor, half_life: float, lengths: torch.Tensor) -> torch.Tensor:
    """Share of steps with the pair, newer ones weighing more; `lengths` is each pair's number of possible steps.

    In double precision, so that equal shares are equal to the bit in every batch: their ranks are numbers, too.
    """
    faded = at.new_zeros(len(lengths), dtype=torch.float64).index_add(0, of, torch.exp2(-at.double() / half_life))
    possible = (1 - torch.exp2(-lengths.double() / half_life)) / (1 - 2 ** (-1 / half_life))
    return (faded / possible.clamp(min=1e-6)).float()


def _personal(history: LabelHistory, pairs: torch.Tensor, pair: torch.Tensor, labels: int, gap: float):
    """Numbers of each label of each history `(P,)`, and numbers of each customer `(B,)`, by name."""
    customer, zeros = pairs // labels, history.days.new_zeros(len(pairs))
    of_customers = history.days.new_zeros(history.size)

    def extreme(values: torch.Tensor, how: str) -> torch.Tensor:
        return of_customers.scatter_reduce(0, history.customer, values.float(), how, include_self=False)

    visits, moments = extreme(history.visits, "amax") + 1, extreme(history.moments, "amax") + 1
    silence = extreme(history.days, "amin")
    own_gap = ((extreme(history.days, "amax") - silence) / (moments - 1).clamp(min=1)).clamp(min=0.02 * gap)
    of, at, number, newest, oldest, squares = _steps(pair, history.visits, len(pairs))
    of_moment, at_moment, met, newest_moment, *_ = _steps(pair, history.moments, len(pairs))
    last_day = zeros.scatter_reduce(0, pair, history.days, "amin", include_self=False)
    first_day = zeros.scatter_reduce(0, pair, history.days, "amax", include_self=False)
    mean_gap, several = (oldest - newest) / (number - 1).clamp(min=1), number > 1
    day_gap = (first_day - last_day) / (met - 1).clamp(min=1)
    spread = (squares / (number - 1).clamp(min=1) - mean_gap**2).clamp(min=0).sqrt() / mean_gap.clamp(min=0.5)
    overdue = ((newest + 1) / mean_gap.clamp(min=0.5)).log()
    overdue_days = (last_day / day_gap.clamp(min=0.02 * gap)).clamp(1e-3, 1e3).log()
    values = {"seen": zeros + 1, "visits": number.log1p()}
    for half_life in VISIT_HALF_LIVES:
        values[f"share_visits_{half_life:g}"] = _faded_share(of, at, half_life, visits[customer])
    for half_life in MOMENT_HALF_LIVES:
        values[f"share_moments_{half_life:g}"] = _faded_share(of_moment, at_moment, half_life, moments[customer])
    weights = torch.exp2(-history.days.double() / (GAPS_HALF_LIFE * gap)).float()
    totals = of_customers.index_add(0, history.customer, weights).clamp(min=1e-9)
    values |= {
        "share_days": zeros.index_add(0, pair, weights) / totals[customer],
        "share_since_first": number / (oldest + 1),
        "since_visits": newest.log1p(),
        "since_moments": newest_moment.log1p(),
        "since_days": (last_day / own_gap[customer]).log1p(),
        "several": several.float(),
        "overdue_visits": torch.where(several, overdue, 0.0),
        "overdue_days": torch.where((met > 1) & (day_gap > 0), overdue_days, 0.0),
        "regularity": torch.where(number > 2, spread, 0.0),
        "third": (number > 2).float(),
        "in_last_visit": (newest == 0).float(),
    }
    faded = torch.exp2(-history.moments.double() / MOMENT_HALF_LIVES[-1]).float()
    for kind in range(KINDS):
        of_kind = faded * (history.kind == kind)
        totals = of_customers.index_add(0, history.customer, of_kind).clamp(min=0.5)
        values[f"share_kind_{kind}"] = zeros.index_add(0, pair, of_kind) / totals[customer]
        is_last = ((history.kind == kind) & (history.moments == 0)).float()
        values[f"last_kind_{kind}"] = zeros.index_add(0, pair, is_last).clamp(max=1)
    seen, occurrences = of_customers.index_add(0, customer, zeros + 1), of_customers.index_add(0, customer, number)
    customers = {
        "customer_repeats": (occurrences - seen + 0.5) / (occurrences + 1),
        "customer_labels": (occurrences / visits).log1p(),
        "customer_moments": moments.log1p(),
        "customer_silence": (silence / own_gap).log1p(),
    }
    return values, customers


def _ranks(customer: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Rank from 1 of each value among those of its customer, the largest first. `customer` is ascending."""
    order = values.argsort(descending=True, stable=True)
    order = order[customer[order].argsort(stable=True)]
    rank = torch.empty_like(values)
    first = torch.searchsorted(customer, customer)
    rank[order] = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype) - first
    return rank


def _relative(customer: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Each value divided by the largest of its customer."""
    largest = values.new_zeros(size).scatter_reduce(0, customer, values, "amax")
    return values / largest.clamp(min=1e-9)[customer]


@torch.no_grad()
def candidate_features(history: LabelHistory, tables: LabelTables) -> Candidates:
    """Chooses candidate labels of each customer, and computes their numbers.

    Candidates are the labels of the history, and of the others the best by each kind of evidence and by popularity.

    Args:
        history ([`LabelHistory`]): the histories up to the prediction time.
        tables ([`LabelTables`]): counts over all customers, or over those of other folds while the scorer is fitted.
    """
    labels, size = tables.counts.shape[1], history.size
    visits_of_all, gap, has_times = tables.totals.tolist()
    if not has_times:
        history = history._replace(days=history.moments.float())
        gap = 1.0
    pairs, pair = (history.customer * labels + history.label).unique(return_inverse=True)
    personal, of_customers = _personal(history, pairs, pair, labels, gap)
    evidence = tables.evidence(history, pairs, personal[f"share_visits_{HABIT_VISITS:g}"])
    is_seen = torch.zeros(size * labels, dtype=torch.bool, device=pairs.device)
    is_seen[pairs] = True
    strength = personal[f"share_visits_{HABIT_VISITS:g}"] + personal[f"share_moments_{MOMENT_HALF_LIVES[-1]:g}"]
    is_candidate = torch.zeros_like(is_seen)
    is_candidate[pairs[_ranks(pairs // labels, strength) <= MOST_SEEN]] = True
    is_candidate, seen_labels = is_candidate.view(size, labels), is_seen.view(size, labels)
    for name, most in BEST.items():
        best = evidence[name].masked_fill(seen_labels, 0.0).topk(min(most, labels - FIRST_LABEL), 1)
        is_candidate.scatter_(1, best.indices, is_candidate.gather(1, best.indices) | (best.values > 0))
    popularity = tables.counts[0]
    popular = popularity[FIRST_LABEL:].topk(min(POPULAR, labels - FIRST_LABEL)).indices + FIRST_LABEL
    is_candidate[:, popular] = True
    customer, label = is_candidate.nonzero(as_tuple=True)
    index = torch.searchsorted(pairs, customer * labels + label).clamp(max=max(len(pairs) - 1, 0))
    was_seen = is_seen[customer * labels + label]

    def at_candidates(values: torch.Tensor) -> torch.Tensor:
        return torch.where(was_seen, values[index], 0.0) if len(values) else values.new_zeros(len(label))

    found = {name: at_candidates(values) for name, values in personal.items()}
    found |= {name: values[customer] for name, values in of_customers.items()}
    shares = popularity / popularity.sum().clamp(min=1)
    for name, values in evidence.items():
        at = values[customer, label]
        found |= {f"{name}_relative": _relative(customer, at, size), f"{name}_rank": _ranks(customer, at).log2()}
        if name in ("transition", "next"):
            found[name] = (30 * at).log1p()
    count, repeats, next_repeats, recent = tables.counts[:, label]
    recent_shares = tables.counts[3] / tables.counts[3].sum().clamp(min=1)
    found |= {
        "lift": ((evidence["next"][customer, label] + 1e-4) / (shares[label] + 1e-4)).log(),
        "popularity_rank": _ranks(customer, count).log2(),
        "popularity": (30 * count / visits_of_all).log1p(),
        "share": shares[label].clamp(min=1e-7).log(),
        "trend": ((recent_shares[label] + 1e-4) / (shares[label] + 1e-4)).log(),
        "repeated": (repeats + 0.5) / (count + 2),
        "repeated_next": (next_repeats + 0.1) / (count + 2),
        "since_rank": _ranks(customer, -torch.where(was_seen, found["since_moments"], 1e6)).log2(),
    }
    for name in ("share_visits_5", "share_visits_15", "share_moments_8", "share_days"):
        found |= {f"{name}_rank": _ranks(customer, found[name]).log2()}
        found |= {f"{name}_relative": _relative(customer, found[name], size)}
    return Candidates(customer, label, torch.stack(list(found.values()), 1))


class LabelScorer(nn.Module):
    """Scores the labels of every task from counts alone:

        s(w) = exp(t) (a . z_w + MLP(z_w)) + b    for a candidate w with the standardised numbers z_w
        s(w) = log share(w) + f                   for any other label

    t, b and f are fitted for each task, so that the softmax over all labels is calibrated.

    Args:
        label_sizes (`Sequence[int]`): number of labels V of each task.
    """

    def __init__(self, label_sizes: Sequence[int]):
        super().__init__()
        self.tables = nn.ModuleList(LabelTables(size) for size in label_sizes)
        self.mean, self.std = nn.Buffer(torch.zeros(NUM_FEATURES)), nn.Buffer(torch.ones(NUM_FEATURES))
        self.linear = nn.Linear(NUM_FEATURES, 1)
        self.task_vectors = nn.Embedding(len(label_sizes), HIDDEN[0])
        self.first, self.second = nn.Linear(NUM_FEATURES, HIDDEN[0]), nn.Linear(*HIDDEN)
        self.last = nn.Linear(HIDDEN[1], 1)
        # t, b and f of each task
        self.calibration = nn.Buffer(torch.zeros(len(label_sizes), 3))

    def tables_of(self, task: int) -> LabelTables:
        """What is counted of a task's labels."""
        return cast(LabelTables, self.tables[task])

    def reset_parameters(self) -> None:
        """Empties the buffers; weights start as transformers' linear layers do."""
        for name, value in self.named_buffers():
            init.constant_(value, float(name == "std" or name.endswith("totals")))
        init.zeros_(self.calibration)
        init.zeros_(self.task_vectors.weight)

    def forward(self, task: int, features: torch.Tensor) -> torch.Tensor:
        """Scores of candidates before calibration, of shape `(...)`, from their numbers of shape `(..., F)`.

        Args:
            task (`int`): index of the task.
            features (`torch.FloatTensor` of shape `(..., F)`): numbers of the candidates.
        """
        z = ((features - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)
        hidden = F.gelu(self.first(z) + self.task_vectors.weight[task])
        hidden = F.gelu(self.second(F.dropout(hidden, DROPOUT, self.training)))
        return (self.last(hidden) + self.linear(z))[..., 0]

    def spread(self, task: int, candidates: Candidates, values: torch.Tensor, size: int) -> torch.Tensor:
        """Log probabilities up to a constant of every label, of shape `(B, V)`.

        Args:
            task (`int`): index of the task.
            candidates ([`Candidates`]): the candidates.
            values (`torch.FloatTensor` of shape `(N,)`): their scores, as `forward` gives them.
            size (`int`): B.
        """
        scores = (self.log_shares(task) + self.calibration[task, 2]).expand(size, -1).clone()
        scores[:, :FIRST_LABEL] = torch.finfo(scores.dtype).min / 2
        scores[candidates.customer, candidates.label] = self.calibrated(self.calibration[task], values)
        return scores

    def log_shares(self, task: int) -> torch.Tensor:
        """Logarithm of each label's share of the training period, of shape `(V,)`."""
        popularity = self.tables_of(task).counts[0] + 0.5
        return (popularity / popularity[FIRST_LABEL:].sum()).log()

    @staticmethod
    def calibrated(calibration: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Scores of candidates on the scale of log probabilities, from t, b and f, and what `forward` gives."""
        return calibration[0].exp() * values + calibration[1]

    def score(self, task: int, history: LabelHistory) -> torch.Tensor:
        """Scores of every label of a task, of shape `(B, V)`.

        Args:
            task (`int`): index of the task.
            history ([`LabelHistory`]): the histories up to the prediction time.
        """
        candidates = candidate_features(history, self.tables_of(task))
        return self.spread(task, candidates, self(task, candidates.features), history.size)


def read_histories(config: MCMConfig, batch: Mapping[str, torch.Tensor]) -> list[LabelHistory]:
    """Reads the history of each task from model inputs.

    Args:
        config ([`MCMConfig`]): config of the model.
        batch (`Mapping[str, torch.Tensor]`): model inputs by name, as the feature extractor gives them.
    """
    ids = batch["input_ids"][:, 1:]  # the first row is the start row
    kinds = torch.zeros_like(ids[..., 0])
    if config.kind_feature is not None:  # values are numbered by their frequency
        kinds = (ids[..., config.features.index(config.kind_feature)] - FIRST_LABEL).clamp(min=0)
    visits, times = batch["visit_ids"][:, 1:], batch["event_times"][:, 1:]
    return [
        LabelHistory.of_batch(ids[..., config.features.index(task)], visits, times, kinds, batch.get("now"))
        for task in config.tasks
    ]
