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
"""The repeat memory: how often, and how long ago, the customer met a label, which a softmax average can't hold.

Shapes: B customers, L events, U encoder units (events or visits), P prefixes, S labels that a customer met, V labels
of a task, T tasks, K half-lives.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import initialization as init

HABITS = 6  # what `RepeatMemory.habits` gives


class RepeatMemory(nn.Module):
    """How often the customer met a label, at several speeds of forgetting, as an addition to its score.

    Customers repeat themselves, and an average (equation 3) can't count. A label counts once a unit: once a visit, or
    once an event where events are the units. With m_{w,u} the mean vote of the events of unit u that have label w,

        n_{p,w,k} = sum over units u of prefix p of  m_{w,u} 2^(-age_k(p, u) / T_k)
        score(w) += sum_k  log(1 + n_{p,w,k} exp(b_k + f_k r_w)) (g_k + c_{w,k} + d_k log(1 + p))

    Kernel k forgets by days or by units, with half-life T_k. An event's vote is exp(vote . e_i), so that a purchase
    may count for more than a click. T and vote are shared by the tasks; sensitivity b, gain g, label gain c (which
    labels come back soon and which don't) and growth d (a long history is worth more trust) are a task's own. Work and
    memory grow with the labels that a customer met.

    Rarity r_w = -log(V share_w) makes one meeting with a rare label say more than one with a label that everybody
    meets. With f = 1 the term is the posterior of a rate: a label with the prior rate q_w, met n times in N units, has
    the rate (n + m q_w) / (N + m), whose logarithm is log(1 + n / (m q_w)) and a bias. f is learned.

    Counts that fade can't say that a purchase is due. With `network_size` hidden numbers a task has a network of one
    hidden layer beside them, whose output is added to the score of every label met: it reads the terms
    log(1 + n exp(b + f r)), how often and how long ago (see `habits`), log(1 + p) and r_w.

    Args:
        label_sizes: V of each task.
        hidden_size: H.
        half_lives_days, half_lives_units: where the T_k start.
        network_size: 0 for no network.
    """

    def __init__(
        self,
        label_sizes: Sequence[int],
        hidden_size: int,
        half_lives_days: Sequence[float],
        half_lives_units: Sequence[float],
        network_size: int = 0,
    ):
        super().__init__()
        self.half_lives, self.num_days = [*half_lives_days, *half_lives_units], len(half_lives_days)
        kernels = len(self.half_lives)
        self.log_half_life = nn.Parameter(torch.empty(kernels))
        self.vote = nn.Linear(hidden_size, 1)
        self.log_sensitivity = nn.Parameter(torch.empty(len(label_sizes), kernels))
        self.memory_gain = nn.Parameter(torch.empty(len(label_sizes), kernels))
        self.memory_growth = nn.Parameter(torch.empty(len(label_sizes), kernels))
        self.rarity_weight = nn.Parameter(torch.empty(len(label_sizes), kernels))
        self.label_rarity = nn.ModuleList(nn.Embedding(size, 1) for size in label_sizes)
        self.label_gains = nn.ModuleList(nn.Embedding(size, kernels) for size in label_sizes)
        tasks, inputs = len(label_sizes) if network_size else 0, kernels + HABITS + 2
        self.network_in = nn.ModuleList(nn.Linear(inputs, network_size) for _ in range(tasks))
        self.network_out = nn.ModuleList(nn.Linear(network_size, 1, bias=False) for _ in range(tasks))

    def reset_parameters(self):
        """Starts as a recency-weighted personal frequency: equal gains, no opinion on labels or events."""
        init.copy_(self.log_half_life, torch.tensor(self.half_lives, dtype=torch.float32).log())
        init.ones_(self.log_sensitivity)
        init.constant_(self.memory_gain, 1.2 / len(self.half_lives))
        init.zeros_(self.memory_growth)
        init.constant_(self.rarity_weight, 0.3)
        for layer in self.network_in:
            init.normal_(layer.weight, std=layer.in_features**-0.5)
            init.zeros_(layer.bias)
        for module in (self.vote, *self.label_gains, *self.label_rarity, *self.network_out):
            for parameter in module.parameters():
                init.zeros_(parameter)

    def decays(self, unit_times: torch.Tensor, unit_ends: torch.Tensor) -> torch.Tensor:
        """2^(-age / T) of each unit at each prefix, 0 for units after it.

        Args:
            unit_times: days, of shape `(B, U)`.
            unit_ends: last unit of each prefix, of shape `(B, P)`.

        Returns:
            Of shape `(B, U, P, K)`.
        """
        place = torch.arange(unit_times.shape[1], device=unit_times.device)[:, None]
        units = (unit_ends[:, None] - place).to(unit_times.dtype)  # (B, U, P)
        days = (unit_times.gather(1, unit_ends)[:, None] - unit_times[..., None]).clamp(min=0)
        rates = torch.exp(-self.log_half_life)
        ages = [days] * self.num_days + [units.clamp(min=0)] * (len(rates) - self.num_days)
        decay = torch.stack([torch.exp2(-age * rate) for age, rate in zip(ages, rates, strict=True)], dim=-1)
        return decay * (units >= 0)[..., None]

    def votes(
        self, label_ids: torch.Tensor, event_units: torch.Tensor, event_embeddings: torch.Tensor, num_units: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each task the customer's distinct labels, and in which units they were met.

        Args:
            label_ids: of all tasks, of shape `(B, L, T)`; ids 0 and 1 do not count.
            event_units: the unit of each event, of shape `(B, L)`.
            event_embeddings: e_i of shape `(B, L, H)`.
            num_units: U.

        Returns:
            labels of shape `(B, S)`, 0 where a customer has fewer than S, and m of shape `(B, S, U)`.
        """
        batch = label_ids.shape[0]
        ids = label_ids.permute(2, 0, 1)
        ordered, order = torch.where(ids > 1, ids, 0).sort(dim=2)  # (T, B, L)
        is_next = (ordered != ordered.roll(1, 2)) & (torch.arange(ordered.shape[2], device=ordered.device) > 0)
        rank = is_next.cumsum(2)
        cells = rank * num_units + event_units.expand_as(order).gather(2, order)
        vote = self.vote(event_embeddings)[..., 0].exp().expand(order.shape).gather(2, order)
        vote = torch.where(ordered > 1, vote, 0.0)
        result = []
        for task, most in enumerate(rank.amax((1, 2)).unbind()):
            count = cast(int, most.item()) + 1  # not int(...), which an export can't follow
            torch._check(count >= 1)  # so that an export knows it for a size
            labels = ids.new_zeros(batch, count).scatter(1, rank[task], ordered[task])
            zeros = vote.new_zeros(batch, count * num_units)
            sums = zeros.scatter_add(1, cells[task], vote[task])
            counts = zeros.scatter_add(1, cells[task], torch.ones_like(vote[task]))
            result.append((labels, (sums / counts.clamp(min=1)).view(batch, count, num_units)))
        return result

    @staticmethod
    def habits(unit_times: torch.Tensor, unit_ends: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        """How often, and how long ago, each label was met; nothing is learned here.

        Args:
            unit_times, unit_ends: as for `decays`.
            votes: from `votes`.

        Returns:
            Of shape `(B, S, P, 6)`, each as log(1 + x): the units with the label, the units since the first and since
            the last of them, the mean gap between two of them in units, the days since the first and since the last.
            Everything is 0 for a label that a prefix did not meet.
        """
        met, slots = votes > 0, votes.shape[1]
        place = torch.arange(votes.shape[2], device=votes.device)
        ends = unit_ends[:, None].expand(-1, slots, -1)
        number = met.cumsum(2, dtype=torch.int32).gather(2, ends)
        if unit_ends.shape[1] == 1:  # the same without a running maximum, which ONNX does not have
            last = torch.where(met & (place <= ends), place, -1).amax(2, keepdim=True).clamp(min=0)
        else:
            last = torch.where(met, place, -1).cummax(2).values.gather(2, ends).clamp(min=0)
        first = torch.where(met, place, votes.shape[2]).amin(2, keepdim=True).expand_as(last).minimum(last)
        times = unit_times[:, None].expand(-1, slots, -1)
        now = times.gather(2, ends)
        since_first, since_last = (ends - first).to(times.dtype), (ends - last).to(times.dtype)
        values = [
            number.to(times.dtype),
            since_first,
            since_last,
            (since_first - since_last) / (number - 1).clamp(min=1),
            now - times.gather(2, first),
            now - times.gather(2, last),
        ]
        return torch.stack(values, -1).clamp(min=0).log1p() * (number > 0)[..., None]

    def forward(
        self,
        tasks: Sequence[int],
        decays: torch.Tensor,
        unit_times: torch.Tensor,
        unit_ends: torch.Tensor,
        met: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """What the memory adds to the scores of the labels met; those of all tasks, S together, are counted at once.

        Args:
            tasks: their places.
            decays: from `decays`, with the same `unit_times` and `unit_ends`.
            unit_times: days, of shape `(B, U)`.
            unit_ends: p of each prefix, of shape `(B, P)`.
            met: labels and votes of each of these tasks, from `votes`.

        Returns:
            Of shape `(B, S, P)`, one task after the other.
        """
        batch, units, prefixes, kernels = decays.shape
        sizes = [labels.shape[1] for labels, _ in met]

        def of_slots(parameter: torch.Tensor) -> torch.Tensor:
            """A task's row for each of its labels, of shape `(S, 1, K)`."""
            return torch.cat([parameter[task].expand(size, 1, -1) for task, size in zip(tasks, sizes, strict=True)])

        def of_labels(tables: nn.ModuleList) -> torch.Tensor:
            """Each label's row of its task's table, of shape `(B, S, 1, ...)`."""
            return torch.cat([tables[task](labels) for task, (labels, _) in zip(tasks, met, strict=True)], 1)[
                :, :, None
            ]

        votes = torch.cat([votes for _, votes in met], 1)
        counts = torch.bmm(votes.to(decays.dtype), decays.reshape(batch, units, -1))  # times are no half precision
        counts = counts.view(batch, -1, prefixes, kernels)  # n: (B, S, P, K)
        length = torch.log1p(unit_ends.to(counts.dtype))[:, None, :, None]
        gains = of_slots(self.memory_gain) + of_labels(self.label_gains) + of_slots(self.memory_growth) * length
        rarity = of_labels(self.label_rarity)
        terms = torch.log1p(counts * (of_slots(self.log_sensitivity) + of_slots(self.rarity_weight) * rarity).exp())
        added = (terms * gains).sum(-1)  # (B, S, P)
        # CODEPATH: a network in mcm-base and mcm-tiny, none where `repeat_network_size` is 0.
        if len(self.network_in):
            habits = self.habits(unit_times, unit_ends, votes)
            length, rarity = length.expand_as(terms[..., :1]), rarity.expand_as(terms[..., :1])
            inputs = torch.cat([terms, habits.to(terms.dtype), length / 3, rarity / 2], -1)  # all about 1 in size
            drawn = []
            for task, of_task in zip(tasks, inputs.to(self.log_half_life.dtype).split(sizes, 1), strict=True):
                drawn.append(self.network_out[task](self.network_in[task](of_task).relu_())[..., 0])
            added = added + torch.cat(drawn, 1) * (habits[..., 0] > 0)
        return added
