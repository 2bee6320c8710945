# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The counted memory: adds counts over all training customers to a label's score. They are counted once.

The tables say which labels followed which labels, and which labels occur together. They are counted over the training
customers and are not trained; only their gains are learned, by `modeling_mcm.training.gains`.

Shapes: B customers, L events, R scored prefixes of all customers, V labels of a task, A latest labels of a customer,
K followers of a label. A follower of a label is a label that came soon after it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from transformers import initialization as init

from .configuration_mcm import FIRST_LABEL

FOLLOWERS = 50  # K: number of followers that are stored for each label, the most frequent ones
RELATED = 200  # number of related labels that are stored for each label, those with the largest weights
HABIT_VISITS = 15.0  # half-life of a customer's habits, in visits with a label of the task
# Added inside the logarithms of related labels: to the smoothed rate of a habit, and to the weights of a new label.
LEAST_RATE, LEAST_WEIGHT = 0.003, 0.01
# Initial gains. Those of followers fit most logs; those of related labels are 0 until they are learned.
FOLLOWER_GAINS = {"follower_gain": 2.2, "follower_sensitivity": 2.4, "follower_rarity": 0.35, "position_decay": 0.4}
FOLLOWER_GAINS |= {"log_rate": -6.0, "met_gain": 0.0}
GAINS = FOLLOWER_GAINS | {"habit_gain": 0.0, "new_gain": 0.0, "new_offset": 0.0}
NEVER = -1e4  # masks scores in log-sum-exps; it fits half precision
TIE_SHARE = 0.01  # factor on the other parts for labels not met: it ranks those without related labels
LATEST = 8  # A: number of a customer's latest labels whose followers are looked up
# Weight of a pair by its lag, the number of moments from the label to its follower, in units of 1 / LAG_UNIT. Pairs
# that are further apart have no weight. Labels that came before also go with a label, and weigh a quarter. The weights
# are whole numbers, so that a customer's own pairs can be subtracted exactly.
LAG_UNIT = 240
LAG_WEIGHTS = {1: 240, 2: 120, 3: 80, 4: 60, 5: 48, 6: 40} | {-1: 60, -2: 30, -3: 20, -4: 15, -5: 12, -6: 10}
SHRINKAGE = 0.4  # exponent on a label's number of occurrences: followers of rare labels weigh more


class Histories(NamedTuple):
    """The histories of the scored prefixes of a batch."""

    # (B, L): number of each event's moment. Events of one visit and time share a moment, because their order has no
    # meaning
    moments: torch.Tensor
    times: torch.Tensor  # (B, L): days from the customer's first event to each event
    customers: torch.Tensor  # (R,): customer of each prefix
    ends: torch.Tensor  # (R,): index of the last event of each prefix

    @classmethod
    def of(
        cls, times: torch.Tensor, visit_ids: torch.Tensor, customers: torch.Tensor, ends: torch.Tensor
    ) -> "Histories":
        """Computes the moments of events from their times and visits."""
        changes = _differs_from_before(times) | _differs_from_before(visit_ids)
        return cls(changes.cumsum(1), times, customers, ends)


class Followers(NamedTuple):
    """Followers of the latest labels of each prefix, from a [`FollowerTable`]."""

    labels: torch.Tensor  # (R, A, K): label ids of the followers
    # (R, A, K): weighted number of pairs, divided by a power of the latest label's number of occurrences; 0 where a
    # prefix has fewer labels, or a label fewer followers
    counts: torch.Tensor
    ages: torch.Tensor  # (R, A): days from the latest label's event to the end of the prefix


class FollowerTable(nn.Module):
    """The K most frequent followers of every label of a task.

    Attributes:
        followers (`torch.IntTensor` of shape `(V, K)`): label ids of each label's followers, ascending; 0 where there
            are fewer than K.
        counts (`torch.FloatTensor` of shape `(V, K)`): sum of `LAG_WEIGHTS` over the training pairs.
        totals (`torch.FloatTensor` of shape `(V,)`): number of training events with the label.
    """

    followers: torch.Tensor
    counts: torch.Tensor
    totals: torch.Tensor

    def __init__(self, labels: int):
        super().__init__()
        self.register_buffer("followers", torch.zeros(labels, FOLLOWERS, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(labels, FOLLOWERS))
        self.register_buffer("totals", torch.zeros(labels))

    @torch.no_grad()
    def look_up(self, labels: torch.Tensor, histories: Histories, without_own: bool) -> Followers:
        """Looks up the followers of the A latest labels of each prefix."""
        customers, ends = histories.customers[:, None], histories.ends[:, None]
        is_label = labels >= FIRST_LABEL
        number = is_label.cumsum(1)
        ranks = number[customers, ends] - 1 - torch.arange(LATEST, device=labels.device)  # (R, A), among known events
        exists = ranks >= 0
        indices = _label_indices(is_label, number)[customers, ranks.clamp(min=0)]
        latest = torch.where(exists, labels[customers, indices], 0)
        ages = histories.times[customers, ends] - histories.times[customers, indices]
        followers, counts, totals = self.followers[latest].long(), self.counts[latest], self.totals[latest]
        if without_own:
            own, own_totals = self._own_pairs(labels, histories.moments)
            counts = counts - own[customers, indices]
            totals = totals - own_totals[customers, indices]
        shrunk = (totals.clamp(min=0) + 1) ** -SHRINKAGE * exists / LAG_UNIT
        return Followers(followers, counts * shrunk[..., None], ages.clamp(min=0))

    def _own_pairs(self, labels: torch.Tensor, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of the table's counts that comes from a customer's own pairs, for the label of each event."""
        furthest = max(LAG_WEIGHTS) + 1
        weights = [LAG_WEIGHTS.get(lag, 0) for lag in range(-furthest, furthest + 1)]
        lag = (moments[:, None] - moments[..., None]).clamp(-furthest, furthest)
        weight = torch.tensor(weights, dtype=torch.float32, device=labels.device)[lag + furthest]
        is_pair = labels >= FIRST_LABEL
        is_pair = is_pair[..., None] & is_pair[:, None]
        same = (labels[..., None] == labels[:, None]).float()
        pairs = same @ (weight * is_pair)  # weight of the pairs of each event's label with each event
        followers, counts = self.followers[labels.clamp(min=0)], self.counts[labels.clamp(min=0)]
        keys = labels.int()[:, None].expand(*labels.shape, -1).contiguous()
        index = torch.searchsorted(followers, keys).clamp(max=FOLLOWERS - 1)
        in_table = followers.gather(2, index) == keys  # pairs that are not in the table are not in its counts
        own = torch.zeros(followers.shape, device=labels.device).scatter_add(2, index, pairs * in_table * is_pair)
        # A full row has only the most frequent followers. A follower that is among them only because of this customer
        # is removed whole: the rest of its count would reveal that the customer has it.
        only_by_own = (own > 0) & (counts - own < counts.amin(-1, keepdim=True))
        return torch.where(only_by_own, counts, own.minimum(counts)), same.sum(-1)


def _label_indices(is_label: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Indices of each customer's known events in ascending order, of shape `(B, L)`, padded with 0."""
    event = torch.arange(is_label.shape[1], device=is_label.device).expand_as(is_label)
    at = torch.where(is_label, number - 1, is_label.shape[1])
    padded = event.new_zeros(is_label.shape[0], is_label.shape[1] + 1).scatter(1, at, event)
    return padded[:, :-1]


class RelatedTable(nn.Module):
    """Sparse weight matrix of a linear model from the labels that a customer met to a score for every label.

    Attributes:
        related (`torch.IntTensor` of shape `(V, RELATED)`): label ids of each label's related labels.
        weights (`torch.HalfTensor` of shape `(V, RELATED)`): weight from the label to each related label, positive or
            negative; 0 where there are fewer.
    """

    related: torch.Tensor
    weights: torch.Tensor

    def __init__(self, labels: int):
        super().__init__()
        self.register_buffer("related", torch.zeros(labels, RELATED, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(labels, RELATED, dtype=torch.float16))

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiplies inputs `(R, V)` with the weight matrix, and clips the result `(R, V)` at 0."""
        if torch.compiler.is_exporting():  # an exported graph can't depend on the number of labels met
            size = self.weights.shape[0]
            whole = torch.zeros(size, size, device=inputs.device).scatter_add(
                1, self.related.long(), self.weights.float()
            )
            return (inputs @ whole).clamp(min=0)
        rows, labels = inputs.nonzero(as_tuple=True)
        cells = rows[:, None] * inputs.shape[1] + self.related[labels]
        values = self.weights[labels].float() * inputs[rows, labels][:, None]
        total = inputs.new_zeros(inputs.numel()).index_add_(0, cells.flatten(), values.flatten())
        return total.view(inputs.shape).clamp_(min=0)


class CountedMemory(nn.Module):
    """Adds to a customer's scores what counts over all training customers say of the customer's labels.

    **Followers.** A label w that is a follower of the customer's latest labels gets

        g log(1 + n(w) exp(b + f r_w)),    n(w) = sum_{j < 8} d^j exp(-age_j / T) c(h_j, w) / (count(h_j) + 1)^.4

    where h_j is the customer's j-th latest label, c(h, w) the weighted number of training pairs of h and w, and r_w
    the rarity of w, as in the repeat memory. Without a repeat memory, labels met also get `met_gain`. These gains are
    learned before the encoder is trained, by a loss of their own on counts without the customer's own pairs. Trained
    together with an encoder that memorises the training customers, they would become negative.

    **Habits and new labels.** The other parts of the scores decide how likely the next label is one that the customer
    met. Among the labels met, `habit_gain` log(x S + .003) is added to the other parts. x is the share of visits with
    each label, where newer visits weigh more, and S is a ridge regression of such rates on themselves, which smooths
    the customer's habits by those of all customers. Labels not met are ranked by `new_gain` log(1 + m B / .01) alone,
    where m marks the labels met and B is EASE (Steck, WWW 2019), a ridge regression of each label on all others.
    `new_offset` is added for all labels not met. These gains are learned on validation cases at the end of training.
    """

    habit_gain: torch.Tensor
    new_gain: torch.Tensor
    new_offset: torch.Tensor
    met_gain: torch.Tensor

    def __init__(self, label_sizes: Sequence[int], followers: Sequence[bool], related: Sequence[bool]):
        super().__init__()

        def tables(kind: type[nn.Module], has_table: Sequence[bool]) -> nn.ModuleDict:
            """One table for each task that has one, by the task's index."""
            sizes = enumerate(label_sizes)
            return nn.ModuleDict({str(index): kind(size) for index, size in sizes if has_table[index]})

        self.follower_tables = tables(FollowerTable, followers)
        self.habit_tables, self.new_tables = tables(RelatedTable, related), tables(RelatedTable, related)

        for name in GAINS:
            self.register_buffer(name, torch.zeros(len(label_sizes)))
        for index, size in enumerate(label_sizes):
            self.register_buffer(f"label_rarity_{index}", torch.zeros(size))

    def label_rarity(self, task: int) -> torch.Tensor:
        """Rarities r of a task's labels, of shape `(V,)`. `task` (`int`) is the index of the task."""
        return self.get_buffer(f"label_rarity_{task}")

    def reset_parameters(self):
        """Empties the tables and sets the gains to their initial values."""
        for name, value in self.named_buffers():
            init.constant_(value, GAINS.get(name, 0))

    @torch.no_grad()
    def grow(self, task: int, number: int) -> None:
        """Appends new labels to a task, without followers and related labels; each is as rare as the rarest label."""
        rarity = self.label_rarity(task)
        rarest = rarity[FIRST_LABEL:].max().expand(number)
        self.register_buffer(f"label_rarity_{task}", torch.cat([rarity, rarest]))
        for tables in (self.follower_tables, self.habit_tables, self.new_tables):
            if str(task) in tables:
                for name, table in list(tables[str(task)].named_buffers()):
                    rows = table.new_zeros(number, *table.shape[1:])
                    tables[str(task)].register_buffer(name, torch.cat([table, rows]))

    def has_followers(self, task: int) -> bool:
        """Whether a task has followers. `task` (`int`) is the index of the task."""
        return str(task) in self.follower_tables

    def has_related(self, task: int) -> bool:
        """Whether a task has related labels. `task` (`int`) is the index of the task."""
        return str(task) in self.habit_tables

    @staticmethod
    def position_weights(gains: Mapping[str, torch.Tensor], ages: torch.Tensor) -> torch.Tensor:
        """Weight d^j exp(-age_j / T) of each of a prefix's latest labels, of shape `(R, A)`."""
        decay = torch.sigmoid(gains["position_decay"]) ** torch.arange(LATEST, device=ages.device)
        return decay * torch.exp(-gains["log_rate"].exp() * ages)

    @staticmethod
    def added(gains: Mapping[str, torch.Tensor], counts: torch.Tensor, rarity: torch.Tensor) -> torch.Tensor:
        """Value that followers add to scores: g log(1 + n exp(b + f r))."""
        sensitivity = gains["follower_sensitivity"] + gains["follower_rarity"] * rarity
        return gains["follower_gain"] * torch.log1p(counts * sensitivity.exp())

    def gains(self, task: int) -> dict[str, torch.Tensor]:
        """Gains of a task's followers, by name. `task` (`int`) is the index of the task."""
        return {name: self.get_buffer(name)[task] for name in FOLLOWER_GAINS}

    @torch.no_grad()
    def followers(
        self,
        task: int,
        labels: torch.Tensor,
        histories: Histories,
        sample: torch.Tensor | None = None,
        without_own: bool = False,
    ) -> torch.Tensor:
        """Values that followers add to the scores of a task.

        Args:
            labels (`torch.LongTensor` of shape `(B, L)`): label id of each event.
            sample (`torch.LongTensor` of shape `(V,)`, *optional*): ids of the scored labels, ascending, where labels
                are sampled. Default: all labels.
            without_own (`bool`): whether to subtract the customer's own pairs from the counts, as training needs.

        Returns:
            `torch.FloatTensor` of shape `(R, V)`.
        """
        rarity, gains = self.label_rarity(task), self.gains(task)
        table = cast(FollowerTable, self.follower_tables[str(task)])
        followers = table.look_up(labels, histories, without_own)
        counts = (followers.counts * self.position_weights(gains, followers.ages)[..., None]).flatten(1)
        ids = indices = followers.labels.flatten(1)
        size = len(rarity)
        if sample is not None:  # labels outside of the sample get index 0, which is no label
            size = len(sample)
            indices = torch.searchsorted(sample, ids).clamp(max=size - 1)
            indices = torch.where(sample[indices] == ids, indices, 0)
        n = rarity.new_zeros(ids.shape[0], size).scatter_add_(1, indices, counts)
        gained = self.added(gains, n.gather(1, indices), rarity[ids])
        return n.zero_().scatter_(1, indices, gained)

    @torch.no_grad()
    def met(self, task: int, labels: torch.Tensor, histories: Histories) -> torch.Tensor:
        """Whether each label occurs in a prefix, of shape `(R, V)`."""
        seen = torch.arange(labels.shape[1], device=labels.device) <= histories.ends[:, None]
        ids = torch.where(seen, labels[histories.customers].clamp(min=0), 0)
        met = torch.zeros(ids.shape[0], len(self.label_rarity(task)), dtype=torch.bool, device=ids.device)
        met = met.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))
        return met & (torch.arange(met.shape[1], device=met.device) >= FIRST_LABEL)

    @torch.no_grad()
    def rates(self, task: int, labels: torch.Tensor, visits: torch.Tensor, histories: Histories) -> torch.Tensor:
        """Share of a prefix's visits that have each label, where newer visits weigh more, of shape `(R, V)`."""
        size = len(self.label_rarity(task))
        is_label = labels >= FIRST_LABEL
        number = (_first_of_group(torch.where(is_label, visits, -1)) & is_label).cumsum(1)  # visits with a label
        once = _first_of_group(torch.where(is_label, visits * size + labels, -1)) & is_label
        customers, ends = histories.customers, histories.ends
        total = number[customers, ends][:, None]
        seen = once[customers] & (torch.arange(labels.shape[1], device=labels.device) <= ends[:, None])
        decay = 2.0 ** (-1 / HABIT_VISITS)
        weights = torch.where(seen, decay ** (total - number[customers]).clamp(min=0).float(), 0.0)
        weights = weights * (1 - decay) / (1 - decay ** total.clamp(min=1).float())
        return weights.new_zeros(ends.shape[0], size).scatter_add(1, labels[customers].clamp(min=0), weights)

    @staticmethod
    def joined(
        scores: torch.Tensor,
        parts: Mapping[str, torch.Tensor],
        habit_gain: torch.Tensor,
        new_gain: torch.Tensor,
        new_offset: torch.Tensor,
    ) -> torch.Tensor:
        """Adds habits and new labels to the scores `(..., V)` of a task with related labels; ids 0 and 1 are
        undefined. `parts` are `met`, `habits` and `new`, of the same shape; `new_offset` is added to labels not
        met."""
        real = torch.arange(scores.shape[-1], device=scores.device) >= FIRST_LABEL
        met, unmet = parts["met"] & real, ~parts["met"] & real

        def total(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
            return torch.where(among, values, NEVER).logsumexp(-1, keepdim=True)

        met_scores = scores + habit_gain * parts["habits"]
        new = scores * TIE_SHARE + new_gain * parts["new"]
        met_scores = met_scores - total(met_scores, met) + total(scores, met)
        new = new - total(new, unmet) + total(scores, unmet) + new_offset
        return torch.where(met, met_scores, new)

    def habits(self, task: int, rates: torch.Tensor) -> torch.Tensor:
        """Habits: log(x S + .003), of shape `(R, V)`."""
        return (self.habit_tables[str(task)](rates) + LEAST_RATE).log()

    def new(self, task: int, met: torch.Tensor) -> torch.Tensor:
        """Support of labels not met: log(1 + m B / .01), of shape `(R, V)`."""
        return torch.log1p(self.new_tables[str(task)](met.float()) / LEAST_WEIGHT)


def _differs_from_before(values: torch.Tensor) -> torch.Tensor:
    """Whether an element of `(B, L)` differs from the one before it; False for the first."""
    return (values != values.roll(1, 1)) & (torch.arange(values.shape[1], device=values.device) > 0)


def _first_of_group(keys: torch.Tensor) -> torch.Tensor:
    """Whether an element of `(B, L)` is the first one of its customer with its key."""
    ordered, order = keys.sort(dim=1, stable=True)
    is_first = _differs_from_before(ordered) | (torch.arange(ordered.shape[1], device=ordered.device) == 0)
    return torch.zeros_like(is_first).scatter(1, order, is_first)
