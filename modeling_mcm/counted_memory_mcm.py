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

Shapes: B customers, L events, R rows of scores (prefixes), V labels of a task, S sources (features whose values have
followers), A latest values of a source, K followers of a value.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

FIRST_LABEL = 2  # ids 0 (missing) and 1 (unknown) have no followers
FOLLOWERS = 50  # K: followers of a value that are kept, the most frequent
RELATED = 100  # related labels of a label that are kept, those with the largest weights
HABIT_VISITS = 15.0  # half-life, in visits with a label, of a customer's habits
# Where the logarithms of related labels start: a habit's smoothed rate, and a new label's sum of weights.
LEAST_RATE, LEAST_WEIGHT = 0.003, 0.01
FOLLOWER_GAINS = ("follower_gain", "follower_sensitivity", "follower_rarity", "position_decay", "log_rate")
TASK_GAINS = ("met_gain", "habit_gain", "new_gain", "new_offset")
TIE_SHARE = 0.01  # of the other parts, so that new labels without a related label are ranked by them
LATEST = 8  # A: values of a source that are looked up, the customer's latest
# Weight of a pair by the number of moments between its two events; what is further apart does not count.
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)
SHRINKAGE = 0.3  # exponent on how often a value occurs: a rare value's few followers count for more


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
        changes = (times.diff(dim=1) != 0) | (visit_ids.diff(dim=1) != 0)
        return cls(F.pad(changes.cumsum(1), (1, 0)), times, customers, ends)


class Followers(NamedTuple):
    """Which labels followed the latest values of each row, and how often, as the tables say.

    Attributes:
        labels (`torch.LongTensor` of shape `(R, A, K + L)`): ids; the last L take a customer's own pairs off again.
        counts (`torch.FloatTensor` of shape `(R, A, K + L)`): weighted number of customers' pairs, shrunk by how often
            the value occurs; negative in the last L. 0 where a row has no such value or follower.
        ages (`torch.FloatTensor` of shape `(R, A)`): days between the value's event and the row's last event.
    """

    labels: torch.Tensor
    counts: torch.Tensor
    ages: torch.Tensor


class FollowerTable(nn.Module):
    """The K most frequent followers of every value of a source, among the labels of a task.

    Args:
        values (`int`): number of ids of the source.

    Attributes:
        followers (`torch.IntTensor` of shape `(values, K)`): label ids, ascending in a row; 0 where there are fewer.
        counts (`torch.FloatTensor` of shape `(values, K)`): sum of the lag weights of the pairs.
        totals (`torch.FloatTensor` of shape `(values,)`): in how many training events the value occurs.
    """

    followers: torch.Tensor
    counts: torch.Tensor
    totals: torch.Tensor

    def __init__(self, values: int):
        super().__init__()
        self.register_buffer("followers", torch.zeros(values, FOLLOWERS, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(values, FOLLOWERS))
        self.register_buffer("totals", torch.zeros(values))

    @torch.no_grad()
    def look_up(
        self, values: torch.Tensor, labels: torch.Tensor, histories: Histories, without_own: bool
    ) -> Followers:
        """Followers of the A latest values of each row.

        Args:
            values (`torch.LongTensor` of shape `(B, L)`): the source's ids of all events.
            labels (`torch.LongTensor` of shape `(B, L)`): the task's label ids of all events.
            histories: the events' moments, and the rows.
            without_own: take the pairs of the customer itself out of the counts. In training they are in the tables,
                and with them what the customer did next.
        """
        customers, ends = histories.customers[:, None], histories.ends[:, None]
        known = values >= FIRST_LABEL
        number = known.cumsum(1)
        of_number = _places(known, number)
        wanted = number[customers, ends] - 1 - torch.arange(LATEST, device=values.device)  # (R, A)
        exists = wanted >= 0
        places = of_number[customers, wanted.clamp(min=0)]
        sources = torch.where(exists, values[customers, places], 0)
        ages = histories.times[customers, ends] - histories.times[customers, places]
        found, counts = self.followers[sources].long(), self.counts[sources]
        totals = self.totals[sources]
        if without_own:
            own, own_totals = self._own_pairs(values, labels, histories.moments)
            totals = totals - own_totals[customers, places]
            taken = -own[customers, places]  # (R, A, L)
            found = torch.cat([found, labels[histories.customers][:, None].expand_as(taken)], -1)
            counts = torch.cat([counts, taken], -1)
        shrunk = (totals.clamp(min=0) + 1) ** -SHRINKAGE * exists
        return Followers(found.clamp(min=0), counts * shrunk[..., None], ages.clamp(min=0))

    def _own_pairs(
        self, values: torch.Tensor, labels: torch.Tensor, moments: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a customer's own pairs add to the table's counts.

        Returns:
            Of each event's value and each event's label, of shape `(B, L, L)`, 0 on all but the first event of a
            label; and how often the customer has the value, of shape `(B, L)`.
        """
        lag = moments[:, None] - moments[..., None]
        weights = torch.tensor([0.0, *LAG_WEIGHTS, 0.0], device=values.device)
        weight = weights[lag.clamp(0, len(LAG_WEIGHTS) + 1)]
        known = (values >= FIRST_LABEL)[..., None] & (labels >= FIRST_LABEL)[:, None]
        same_value = (values[..., None] == values[:, None]).float()
        same_label = (labels[..., None] == labels[:, None]).float()
        pairs = same_value @ (weight * known) @ same_label
        is_first = same_label.tril(-1).sum(-1) == 0
        pairs = pairs * known * is_first[:, None]
        found = self.followers[values.clamp(min=0)]  # a pair that is not in the table is not in the counts
        place = torch.searchsorted(found, labels.int()[:, None].expand(*values.shape, -1).contiguous())
        place = place.clamp(max=FOLLOWERS - 1)
        there = found.gather(2, place) == labels[:, None]
        counted = self.counts[values.clamp(min=0)].gather(2, place) * there
        return torch.minimum(pairs, counted), same_value.sum(-1)


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
        weights (`torch.FloatTensor` of shape `(V, RELATED)`): how much; 0 where there are fewer.
    """

    related: torch.Tensor
    weights: torch.Tensor

    def __init__(self, labels: int):
        super().__init__()
        self.register_buffer("related", torch.zeros(labels, RELATED, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(labels, RELATED))

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of shape `(R, V)` times the weights; what is below 0 becomes 0."""
        if torch.compiler.is_exporting():  # the number of labels met is data, which a graph does not follow
            size = self.weights.shape[0]
            whole = torch.zeros(size, size, device=inputs.device).scatter_add(1, self.related.long(), self.weights)
            return (inputs @ whole).clamp(min=0)
        rows, labels = inputs.nonzero(as_tuple=True)
        cells = rows[:, None] * inputs.shape[1] + self.related[labels]
        values = self.weights[labels] * inputs[rows, labels][:, None]
        total = inputs.new_zeros(inputs.numel()).index_add_(0, cells.flatten(), values.flatten())
        return total.view(inputs.shape).clamp_(min=0)


class CountedMemory(nn.Module):
    """What all customers did, as an addition to the scores of a customer's labels.

    **Followers.** A label w that followed the customer's latest values of a source s gets

        sum_s g_s log(1 + n_s(w) exp(b_s + f_s r_w)),
        n_s(w) = sum_{j < 8} d_s^j exp(-age_j / T_s) c_s(h_j, w) / (count(h_j) + 1)^.3

    with h_j the customer's j-th latest value of s, c_s(h, w) the weighted number of training pairs of h and w, and r_w
    the rarity of w, as in the repeat memory. A label that was met gets `met_gain` as well. These gains are learned by
    a loss of their own, on counts without the customer's own pairs, before the encoder is trained. Beside an encoder
    that knows the training customers by heart they would turn negative.

    **Habits and new labels.** Of a task with related labels, a label that the customer has met gets
    `habit_gain` log(x S + .003), where x is how often each label was met a visit, newer visits weighing more, and S a
    ridge regression of such rates on themselves: what the customer does, seen through what all do. A label that the
    customer has not met is scored by `new_offset` + `new_gain` log(1 + m B / .01) alone, where m marks the labels met
    and B is EASE (Steck, WWW 2019), a ridge regression of each label on all others. These gains are learned on
    validation cases at the end of training.

    Args:
        label_sizes: V of each task.
        sources: for each task the numbers of ids of its sources.
        related: for each task whether it has related labels.
    """

    follower_gain: torch.Tensor
    follower_sensitivity: torch.Tensor
    follower_rarity: torch.Tensor
    position_decay: torch.Tensor
    log_rate: torch.Tensor
    met_gain: torch.Tensor
    habit_gain: torch.Tensor
    new_gain: torch.Tensor
    new_offset: torch.Tensor

    def __init__(self, label_sizes: Sequence[int], sources: Sequence[Sequence[int]], related: Sequence[bool]):
        super().__init__()
        tasks, most = len(label_sizes), max(map(len, sources))
        self.follower_tables = nn.ModuleList(nn.ModuleList(map(FollowerTable, of_task)) for of_task in sources)
        tables = [[RelatedTable(size)] if wanted else [] for size, wanted in zip(label_sizes, related, strict=True)]
        self.habit_tables = nn.ModuleList(map(nn.ModuleList, tables))
        tables = [[RelatedTable(size)] if wanted else [] for size, wanted in zip(label_sizes, related, strict=True)]
        self.new_tables = nn.ModuleList(map(nn.ModuleList, tables))

        for name in FOLLOWER_GAINS:
            self.register_buffer(name, torch.zeros(tasks, most))
        for name in TASK_GAINS:
            self.register_buffer(name, torch.zeros(tasks))
        for place, size in enumerate(label_sizes):
            self.register_buffer(f"label_rarity_{place}", torch.zeros(size))

    def label_rarity(self, task: int) -> torch.Tensor:
        """r of a task's labels, of shape `(V,)`."""
        return self.get_buffer(f"label_rarity_{task}")

    def reset_parameters(self):
        """Starts where many logs end: a label's own followers count most, nearer ones more. Related labels are off."""
        init.constant_(self.follower_gain, 0.3)
        init.zeros_(self.follower_sensitivity)
        if self.follower_gain.shape[1]:
            init.constant_(self.follower_gain[:, 0], 2.2)
            init.constant_(self.follower_sensitivity[:, 0], 2.4)
        init.constant_(self.follower_rarity, 0.35)
        init.constant_(self.position_decay, 0.4)
        init.constant_(self.log_rate, -6.0)
        for name in TASK_GAINS:
            init.zeros_(self.get_buffer(name))
        for name, table in self.named_buffers():
            if name.startswith("label_rarity_") or "_tables." in name:
                init.zeros_(table)

    def has_followers(self, task: int) -> bool:
        """Whether followers are counted for a task."""
        return len(cast(nn.ModuleList, self.follower_tables[task])) > 0

    def has_related(self, task: int) -> bool:
        """Whether a task has related labels."""
        return len(cast(nn.ModuleList, self.habit_tables[task])) > 0

    def position_weights(self, task: int, source: int, ages: torch.Tensor) -> torch.Tensor:
        """d^j exp(-age_j / T) of each row's latest values, of shape `(R, A)`."""
        places = torch.arange(LATEST, device=ages.device)
        decay = torch.sigmoid(self.position_decay[task, source]) ** places
        return decay * torch.exp(-self.log_rate[task, source].exp() * ages)

    def added_by(self, task: int, source: int, counts: torch.Tensor, rarity: torch.Tensor) -> torch.Tensor:
        """g log(1 + n exp(b + f r)) of counts n and rarities r of one shape."""
        sensitivity = self.follower_sensitivity[task, source] + self.follower_rarity[task, source] * rarity
        return self.follower_gain[task, source] * torch.log1p(counts * sensitivity.exp())

    @torch.no_grad()
    def followers(
        self,
        task: int,
        sources: Sequence[torch.Tensor],
        labels: torch.Tensor,
        histories: Histories,
        rows: torch.Tensor | None = None,
        number: int | None = None,
        without_own: bool = False,
    ) -> torch.Tensor:
        """What followers add to the scores of a task.

        Args:
            task (`int`): its place.
            sources: ids of the events' values of each source, of shape `(B, L)`.
            labels (`torch.LongTensor` of shape `(B, L)`): ids of the events' labels.
            histories: the rows, and the moments of events.
            rows (`torch.LongTensor` of shape `(number,)`, *optional*): ids of the labels that are scored, ascending,
                where these are a sample.
            number (`int`, *optional*): how many labels are scored; all by default.
            without_own (`bool`): as for [`FollowerTable.look_up`].

        Returns:
            Of shape `(R, number)`.
        """
        rarity = self.label_rarity(task)
        number = len(rarity) if number is None else number
        added = rarity.new_zeros(len(histories.ends), number)
        tables = cast(nn.ModuleList, self.follower_tables[task])
        for source, (table, values) in enumerate(zip(tables, sources, strict=True)):
            found = cast(FollowerTable, table).look_up(values, labels, histories, without_own)
            weights = self.position_weights(task, source, found.ages)
            counts = (found.counts * weights[..., None]).flatten(1)
            places = found.labels
            if rows is not None:  # those that are not in the sample go to the first place, which is no label
                places = torch.searchsorted(rows, found.labels).clamp(max=number - 1)
                places = torch.where(rows[places] == found.labels, places, 0)
            n = torch.zeros_like(added).scatter_add(1, places.flatten(1), counts).clamp(min=0)
            kept, ids = places[..., :FOLLOWERS].flatten(1), found.labels[..., :FOLLOWERS].flatten(1)
            gained = self.added_by(task, source, n.gather(1, kept), rarity[ids])
            added = added + torch.zeros_like(added).scatter(1, kept, gained)
        return added

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
        met = torch.zeros(len(ids), len(self.label_rarity(task)), dtype=torch.bool, device=ids.device)
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
        return weights.new_zeros(len(ends), size).scatter_add(1, labels[customers].clamp(min=0), weights)

    def habits(self, task: int, rates: torch.Tensor) -> torch.Tensor:
        """log(x S + .003) of rates x, of shape `(R, V)`."""
        return (cast(nn.ModuleList, self.habit_tables[task])[0](rates) + LEAST_RATE).log()

    def new(self, task: int, met: torch.Tensor) -> torch.Tensor:
        """log(1 + m B / .01) of the labels met m, of shape `(R, V)`."""
        return torch.log1p(cast(nn.ModuleList, self.new_tables[task])[0](met.float()) / LEAST_WEIGHT)


def _first_of_group(keys: torch.Tensor) -> torch.Tensor:
    """Whether an element of `(B, L)` is the first of its row with its key."""
    ordered, order = keys.sort(dim=1, stable=True)
    is_first = torch.cat([torch.ones_like(ordered[:, :1], dtype=torch.bool), ordered.diff(dim=1) != 0], 1)
    return torch.zeros_like(is_first).scatter(1, order, is_first)
