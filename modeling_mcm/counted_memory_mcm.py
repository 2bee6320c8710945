# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The counted memory: what all customers did, counted once, as an addition to a label's score.

The tables say which labels followed which values, and which labels go together. They are counted over the training
customers and are no parameters; only how much they are worth is learned, by `modeling_mcm.counting`.

Shapes: B customers, L events, R rows of scores (prefixes), V labels of a task, A latest labels of a customer, K
followers of a label.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from transformers import initialization as init

from .configuration_mcm import FIRST_LABEL

FOLLOWERS = 50  # K: followers of a label that are kept, the most frequent
RELATED = 200  # related labels of a label that are kept, those with the largest weights
HABIT_VISITS = 15.0  # half-life, in visits with a label, of a customer's habits
# Where the logarithms of related labels start: a habit's smoothed rate, and a new label's sum of weights.
LEAST_RATE, LEAST_WEIGHT = 0.003, 0.01
# Of followers, where they start on most logs, and of related labels, which are off until they are learned.
FOLLOWER_GAINS = {"follower_gain": 2.2, "follower_sensitivity": 2.4, "follower_rarity": 0.35, "position_decay": 0.4}
FOLLOWER_GAINS |= {"log_rate": -6.0, "met_gain": 0.0}
GAINS = FOLLOWER_GAINS | {"habit_gain": 0.0, "new_gain": 0.0, "new_offset": 0.0}
NEVER = -1e4  # a score that no label has, in half precision too
TIE_SHARE = 0.01  # of the other parts, so that new labels without a related label are ranked by them
LATEST = 8  # A: labels whose followers are looked up, the customer's latest
# Weight of a pair by the number of moments from its label to its follower, in parts of 240; what is further apart does
# not count. What came before counts a quarter, for it goes with the label too. Whole numbers, so that a customer's own
# pairs can be taken off to the last bit.
LAG_UNIT = 240
LAG_WEIGHTS = {1: 240, 2: 120, 3: 80, 4: 60, 5: 48, 6: 40} | {-1: 60, -2: 30, -3: 20, -4: 15, -5: 12, -6: 10}
SHRINKAGE = 0.4  # exponent on how often a label occurs: a rare label's few followers count for more


class Histories(NamedTuple):
    """The events that the rows of scores look back on.

    Attributes:
        moments (`torch.LongTensor` of shape `(B, L)`): number of the event's moment. Events of one visit and time
            share a moment, for their order says nothing.
        times (`torch.FloatTensor` of shape `(B, L)`): days since the customer's first event.
        customers (`torch.LongTensor` of shape `(R,)`): the customer of each row.
        ends (`torch.LongTensor` of shape `(R,)`): the last event that each row may see.
    """

    moments: torch.Tensor
    times: torch.Tensor
    customers: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(
        cls, times: torch.Tensor, visit_ids: torch.Tensor, customers: torch.Tensor, ends: torch.Tensor
    ) -> "Histories":
        """Finds the moments of events from their times and visits, both of shape `(B, L)`."""
        changes = _differs_from_before(times) | _differs_from_before(visit_ids)
        return cls(changes.cumsum(1), times, customers, ends)


class Followers(NamedTuple):
    """Which labels followed the latest labels of each row, and how often, as the table says.

    Attributes:
        labels (`torch.LongTensor` of shape `(R, A, K)`): ids.
        counts (`torch.FloatTensor` of shape `(R, A, K)`): weighted number of pairs, shrunk by how often the earlier
            label occurs; 0 where a row has no such label or follower.
        ages (`torch.FloatTensor` of shape `(R, A)`): days between the earlier label's event and the row's last event.
    """

    labels: torch.Tensor
    counts: torch.Tensor
    ages: torch.Tensor


class FollowerTable(nn.Module):
    """The K most frequent followers of every label of a task.

    Args:
        labels (`int`): V.

    Attributes:
        followers (`torch.IntTensor` of shape `(V, K)`): label ids, ascending in a row; 0 where there are fewer.
        counts (`torch.FloatTensor` of shape `(V, K)`): sum of the pairs' `LAG_WEIGHTS`.
        totals (`torch.FloatTensor` of shape `(V,)`): in how many training events the label occurs.
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
        """Followers of the A latest labels of each row.

        Args:
            labels (`torch.LongTensor` of shape `(B, L)`): ids of the events' labels.
            histories: the events' moments, and the rows.
            without_own (`bool`): Take the pairs of the customer itself out of the counts. In training they are in the
                table, and with them what the customer did next.
        """
        customers, ends = histories.customers[:, None], histories.ends[:, None]
        known = labels >= FIRST_LABEL
        number = known.cumsum(1)
        wanted = number[customers, ends] - 1 - torch.arange(LATEST, device=labels.device)  # (R, A)
        exists = wanted >= 0
        places = _places(known, number)[customers, wanted.clamp(min=0)]
        latest = torch.where(exists, labels[customers, places], 0)
        ages = histories.times[customers, ends] - histories.times[customers, places]
        found, counts, totals = self.followers[latest].long(), self.counts[latest], self.totals[latest]
        if without_own:
            own, own_totals = self._own_pairs(labels, histories.moments)
            counts = counts - own[customers, places]
            totals = totals - own_totals[customers, places]
        shrunk = (totals.clamp(min=0) + 1) ** -SHRINKAGE * exists / LAG_UNIT
        return Followers(found, counts * shrunk[..., None], ages.clamp(min=0))

    def _own_pairs(self, labels: torch.Tensor, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a customer's own pairs add to the table's row of each event's label.

        Returns:
            Of shape `(B, L, K)`, at most what the table says; and how often the customer has the label, of shape
            `(B, L)`.
        """
        furthest = max(LAG_WEIGHTS) + 1
        weights = [LAG_WEIGHTS.get(lag, 0) for lag in range(-furthest, furthest + 1)]
        lag = (moments[:, None] - moments[..., None]).clamp(-furthest, furthest)
        weight = torch.tensor(weights, dtype=torch.float32, device=labels.device)[lag + furthest]
        known = labels >= FIRST_LABEL
        known = known[..., None] & known[:, None]
        same = (labels[..., None] == labels[:, None]).float()
        pairs = same @ (weight * known)  # of each event's label and each other event's
        found, counts = self.followers[labels.clamp(min=0)], self.counts[labels.clamp(min=0)]
        wanted = labels.int()[:, None].expand(*labels.shape, -1).contiguous()
        place = torch.searchsorted(found, wanted).clamp(max=FOLLOWERS - 1)
        there = found.gather(2, place) == wanted  # a pair that is not in the table is not in the counts
        own = torch.zeros(found.shape, device=labels.device).scatter_add(2, place, pairs * there * known)
        # A full row has only its most frequent followers. One that would not be there without this customer is taken
        # out whole: what is left of its count would tell that the customer has it.
        only_by_own = (own > 0) & (counts - own < counts.amin(-1, keepdim=True))
        return torch.where(only_by_own, counts, own.minimum(counts)), same.sum(-1)


def _places(known: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Place of each row's first known event, its second and so on, of shape `(B, L)`; 0 behind the last."""
    event = torch.arange(known.shape[1], device=known.device).expand_as(known)
    at = torch.where(known, number - 1, known.shape[1])
    padded = event.new_zeros(known.shape[0], known.shape[1] + 1).scatter(1, at, event)
    return padded[:, :-1]


class RelatedTable(nn.Module):
    """The weights of a linear model from the labels of a customer to a score for every label.

    Args:
        labels (`int`): V.

    Attributes:
        related (`torch.IntTensor` of shape `(V, RELATED)`): of each label, the labels that it speaks for or against.
        weights (`torch.HalfTensor` of shape `(V, RELATED)`): how much; 0 where there are fewer.
    """

    related: torch.Tensor
    weights: torch.Tensor

    def __init__(self, labels: int):
        super().__init__()
        self.register_buffer("related", torch.zeros(labels, RELATED, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(labels, RELATED, dtype=torch.float16))

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of shape `(R, V)` times the weights; what is below 0 becomes 0."""
        if torch.compiler.is_exporting():  # the number of labels met is data, which a graph does not follow
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
    """What all customers did, as an addition to the scores of a customer's labels.

    **Followers.** A label w that followed the customer's latest labels gets

        g log(1 + n(w) exp(b + f r_w)),    n(w) = sum_{j < 8} d^j exp(-age_j / T) c(h_j, w) / (count(h_j) + 1)^.4

    with h_j the customer's j-th latest label, c(h, w) the weighted number of training pairs of h and w, and r_w the
    rarity of w, as in the repeat memory. Without a repeat memory, a label that was met gets `met_gain` as well. These
    gains are learned by a loss of their own, on counts without the customer's own pairs, before the encoder is
    trained. Beside an encoder that knows the training customers by heart they would turn negative.

    **Habits and new labels.** The other parts of the scores say how likely it is that a label comes that the customer
    has met. Which one of these it is they say together with `habit_gain` log(x S + .003), where x is how often each
    label was met a visit, newer visits weighing more, and S a ridge regression of such rates on themselves: what the
    customer does, seen through what all do. Which new label it is says `new_gain` log(1 + m B / .01) alone, where m
    marks the labels met and B is EASE (Steck, WWW 2019), a ridge regression of each label on all others;
    `new_offset` moves all new labels. These gains are learned on validation cases at the end of training.

    Args:
        label_sizes: V of each task.
        followers: for each task whether it has followers.
        related: for each task whether it has related labels.
    """

    habit_gain: torch.Tensor
    new_gain: torch.Tensor
    new_offset: torch.Tensor
    met_gain: torch.Tensor

    def __init__(self, label_sizes: Sequence[int], followers: Sequence[bool], related: Sequence[bool]):
        super().__init__()

        def tables(kind: type[nn.Module], wanted: Sequence[bool]) -> nn.ModuleDict:
            """By the place of the task."""
            sizes = enumerate(label_sizes)
            return nn.ModuleDict({str(place): kind(size) for place, size in sizes if wanted[place]})

        self.follower_tables = tables(FollowerTable, followers)
        self.habit_tables, self.new_tables = tables(RelatedTable, related), tables(RelatedTable, related)

        for name in GAINS:
            self.register_buffer(name, torch.zeros(len(label_sizes)))
        for place, size in enumerate(label_sizes):
            self.register_buffer(f"label_rarity_{place}", torch.zeros(size))

    def label_rarity(self, task: int) -> torch.Tensor:
        """r of a task's labels, of shape `(V,)`."""
        return self.get_buffer(f"label_rarity_{task}")

    def reset_parameters(self):
        """Empty tables, and gains as they start."""
        for name, value in self.named_buffers():
            init.constant_(value, GAINS.get(name, 0))

    @torch.no_grad()
    def grow(self, task: int, number: int) -> None:
        """Gives a task as many new labels: without followers or related labels, and as rare as its rarest label.

        Args:
            task (`int`): its place.
            number (`int`): of new labels, after those that are there.
        """
        rarity = self.label_rarity(task)
        rarest = rarity[FIRST_LABEL:].max().expand(number)
        self.register_buffer(f"label_rarity_{task}", torch.cat([rarity, rarest]))
        for tables in (self.follower_tables, self.habit_tables, self.new_tables):
            if str(task) in tables:
                for name, table in list(tables[str(task)].named_buffers()):
                    rows = table.new_zeros(number, *table.shape[1:])
                    tables[str(task)].register_buffer(name, torch.cat([table, rows]))

    def has_followers(self, task: int) -> bool:
        """Whether a task, by its place, has followers."""
        return str(task) in self.follower_tables

    def has_related(self, task: int) -> bool:
        """Whether a task, by its place, has related labels."""
        return str(task) in self.habit_tables

    @staticmethod
    def position_weights(gains: Mapping[str, torch.Tensor], ages: torch.Tensor) -> torch.Tensor:
        """d^j exp(-age_j / T) of each row's latest labels, of shape `(R, A)`.

        Args:
            gains: those of the task, by the names of `FOLLOWER_GAINS`; d = sigmoid(`position_decay`).
            ages: days, of shape `(R, A)`.
        """
        decay = torch.sigmoid(gains["position_decay"]) ** torch.arange(LATEST, device=ages.device)
        return decay * torch.exp(-gains["log_rate"].exp() * ages)

    @staticmethod
    def added(gains: Mapping[str, torch.Tensor], counts: torch.Tensor, rarity: torch.Tensor) -> torch.Tensor:
        """g log(1 + n exp(b + f r)) of counts n and rarities r of one shape.

        Args:
            gains: those of the task, by the names of `FOLLOWER_GAINS`.
            counts: n.
            rarity: r.
        """
        sensitivity = gains["follower_sensitivity"] + gains["follower_rarity"] * rarity
        return gains["follower_gain"] * torch.log1p(counts * sensitivity.exp())

    def gains(self, task: int) -> dict[str, torch.Tensor]:
        """The gains of a task's followers, by name."""
        return {name: self.get_buffer(name)[task] for name in FOLLOWER_GAINS}

    @torch.no_grad()
    def followers(
        self,
        task: int,
        labels: torch.Tensor,
        histories: Histories,
        rows: torch.Tensor | None = None,
        without_own: bool = False,
    ) -> torch.Tensor:
        """What followers add to the scores of a task, of shape `(R, V)`.

        Args:
            task (`int`): its place.
            labels (`torch.LongTensor` of shape `(B, L)`): ids of the events' labels.
            histories: the rows, and the moments of events.
            rows (`torch.LongTensor` of shape `(V,)`, *optional*): ids of the labels that are scored, ascending, where
                these are a sample.
            without_own (`bool`): as for [`FollowerTable.look_up`].
        """
        rarity, gains = self.label_rarity(task), self.gains(task)
        found = cast(FollowerTable, self.follower_tables[str(task)]).look_up(labels, histories, without_own)
        counts = (found.counts * self.position_weights(gains, found.ages)[..., None]).flatten(1)
        ids = places = found.labels.flatten(1)
        if rows is not None:  # those that are not in the sample go to the first place, which is no label
            places = torch.searchsorted(rows, ids).clamp(max=len(rows) - 1)
            places = torch.where(rows[places] == ids, places, 0)
        n = rarity.new_zeros(ids.shape[0], len(rarity) if rows is None else len(rows)).scatter_add_(1, places, counts)
        gained = self.added(gains, n.gather(1, places), rarity[ids])
        return n.zero_().scatter_(1, places, gained)

    @torch.no_grad()
    def met(self, task: int, labels: torch.Tensor, histories: Histories) -> torch.Tensor:
        """Which labels each row has met, boolean of shape `(R, V)`.

        Args:
            task (`int`): its place.
            labels (`torch.LongTensor` of shape `(B, L)`): ids of the events' labels.
            histories: the rows.
        """
        seen = torch.arange(labels.shape[1], device=labels.device) <= histories.ends[:, None]
        ids = torch.where(seen, labels[histories.customers].clamp(min=0), 0)
        met = torch.zeros(ids.shape[0], len(self.label_rarity(task)), dtype=torch.bool, device=ids.device)
        met = met.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))
        return met & (torch.arange(met.shape[1], device=met.device) >= FIRST_LABEL)

    @torch.no_grad()
    def rates(self, task: int, labels: torch.Tensor, visits: torch.Tensor, histories: Histories) -> torch.Tensor:
        """In what share of its visits each row met a label, newer visits weighing more, of shape `(R, V)`.

        Args:
            task (`int`): its place.
            labels (`torch.LongTensor` of shape `(B, L)`): ids of the events' labels.
            visits (`torch.LongTensor` of shape `(B, L)`): of the events, ascending.
            histories: the rows.
        """
        size = len(self.label_rarity(task))
        known = labels >= FIRST_LABEL
        number = (_first_of_group(torch.where(known, visits, -1)) & known).cumsum(1)  # of visits with a label so far
        once = _first_of_group(torch.where(known, visits * size + labels, -1)) & known
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
        """Log-probabilities of a task with related labels, of shape `(..., V)`; those of ids 0 and 1 mean nothing.

        Args:
            scores: what the other parts say, of shape `(..., V)`.
            parts: `met`, `habits` and `new`, of the same shape.
            habit_gain, new_gain, new_offset: scalars.
        """
        real = torch.arange(scores.shape[-1], device=scores.device) >= FIRST_LABEL
        met, unmet = parts["met"] & real, ~parts["met"] & real

        def total(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
            return torch.where(among, values, NEVER).logsumexp(-1, keepdim=True)

        known = scores + habit_gain * parts["habits"]
        new = scores * TIE_SHARE + new_gain * parts["new"]
        known = known - total(known, met) + total(scores, met)
        new = new - total(new, unmet) + total(scores, unmet) + new_offset
        return torch.where(met, known, new)

    def habits(self, task: int, rates: torch.Tensor) -> torch.Tensor:
        """log(x S + .003) of rates x, of shape `(R, V)`."""
        return (self.habit_tables[str(task)](rates) + LEAST_RATE).log()

    def new(self, task: int, met: torch.Tensor) -> torch.Tensor:
        """log(1 + m B / .01) of the labels met m, of shape `(R, V)`."""
        return torch.log1p(self.new_tables[str(task)](met.float()) / LEAST_WEIGHT)


def _differs_from_before(values: torch.Tensor) -> torch.Tensor:
    """Whether an element of `(B, L)` is another than the one before it, which the first has not."""
    return (values != values.roll(1, 1)) & (torch.arange(values.shape[1], device=values.device) > 0)


def _first_of_group(keys: torch.Tensor) -> torch.Tensor:
    """Whether an element of `(B, L)` is the first of its row with its key."""
    ordered, order = keys.sort(dim=1, stable=True)
    is_first = _differs_from_before(ordered) | (torch.arange(ordered.shape[1], device=ordered.device) == 0)
    return torch.zeros_like(is_first).scatter(1, order, is_first)
