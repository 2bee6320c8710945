# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The repeat memory: counts how often, and how long ago, a customer met a label, which an average can't express.

Shapes: B customers, L events, U encoder units (events or visits), P prefixes of a customer, S distinct labels in a
customer's history ("labels met"), V labels of a task, T tasks, K half-lives (one kernel each), H hidden size.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_mcm import FIRST_LABEL

# Initial half-lives of the counts in days and in units, and hidden size of the network over regularity.
HALF_LIVES_DAYS, HALF_LIVES_UNITS, NETWORK_SIZE = (7.0, 30.0, 120.0), (2.0, 6.0, 20.0, 60.0), 16
HABITS = 6  # inputs of the network that say how often and how long ago a label was met: see `RepeatMemory.pair_scores`


class FadingCounts(torch.autograd.Function):
    """Fading counts n_u = f_u n_{u-1} + m_u: the previous unit's count, faded by the factor f_u, plus the votes m_u.
    One loop over the units takes work that grows linearly with their number; a sum for every prefix would grow with
    the square. Backward loops in reverse: a_u = g_u + f_{u+1} a_{u+1}, dm_u = sum_k a_u, df_u = sum_w a_u n_{u-1}."""

    @staticmethod
    def forward(ctx, votes, fades, customers, units, slots):
        """Computes the counts of N pairs of a prefix and a label; a pair must not occur twice.

        Args:
            votes (`torch.FloatTensor` of shape `(B, S, U)`): votes m of each label in each unit.
            fades (`torch.FloatTensor` of shape `(U, K, B)`): factors f from the unit before to each unit.
            customers (`torch.LongTensor` of shape `(N,)`): customer of each pair.
            units (`torch.LongTensor` of shape `(N,)`): last unit of the pair's prefix.
            slots (`torch.LongTensor` of shape `(N,)`): index of the pair's label among the S labels met.

        Returns:
            `torch.FloatTensor` of shape `(N, K)`.
        """
        m, f = votes.permute(2, 0, 1).contiguous(), fades[..., None]
        n = m.new_empty(*fades.shape, m.shape[2])  # labels last: the operations of a unit run along them
        n[0] = m[0]
        for before, unit in pairwise(range(len(n))):
            torch.addcmul(m[unit], n[before], f[unit], out=n[unit])
        ctx.save_for_backward(n, f, customers, units, slots)
        return n[units, :, customers, slots]

    @staticmethod
    def backward(ctx, gradient):
        """Computes the gradients of votes and fades from that of the counts."""
        n, f, customers, units, slots = ctx.saved_tensors
        a = torch.zeros_like(n)
        a[units, :, customers, slots] = gradient
        for after, unit in pairwise(range(len(n) - 1, -1, -1)):
            a[unit].addcmul_(a[after], f[after])
        of_fades = torch.zeros_like(f)
        of_fades[1:] = (a[1:, ..., None, :] @ n[:-1, ..., None])[..., 0]
        return a.sum(1).permute(1, 2, 0), of_fades[..., 0], None, None, None


class RepeatMemory(nn.Module):
    """Adds to each label's score how often the customer met the label, by counts with several half-lives.

    Customers repeat themselves, and an average (equation 3) can't count. A label is counted at most once in each unit.
    With m_{w,u} the mean vote of the events of unit u that have label w,

        n_{p,w,k} = sum over units u of prefix p of  m_{w,u} 2^(-age_k(p, u) / T_k)
        score(w) += sum_k  log(1 + n_{p,w,k} exp(b_k + f_k r_w)) (g_k + c_{w,k} + d_k log(1 + p))

    Kernel k fades with days or with units, with half-life T_k. An event's vote is exp(vote . e_i), so that a purchase
    may count for more than a click. All tasks share T and vote. Each task has its own sensitivity b, gain g, label
    gain c (some labels return sooner than others) and growth d (counts of a long history weigh more). Work and memory
    grow with the number of labels met.

    With the rarity r_w = -log(V share_w), a label that few customers meet gains more from one meeting than one that
    everybody meets. With f = 1 the term is the posterior of a rate: a label with the prior rate q_w, met n times in N
    units, has the rate (n + m q_w) / (N + m), whose logarithm is log(1 + n / (m q_w)) plus a bias. f is learned.

    Fading counts can't express that a purchase is due. So each task also has a network with one hidden layer of
    `network_size` units, whose output is added to the score of every label met. Its inputs are the terms
    log(1 + n exp(b + f r)), log(1 + p), r_w and, each as log(1 + x): the number of units with the label, the units
    since the first and since the last of them, the mean gap between two of them in units, the days since the first and
    since the last.
    """

    def __init__(
        self,
        label_sizes: Sequence[int],
        hidden_size: int,
        half_lives_days: Sequence[float] = HALF_LIVES_DAYS,
        half_lives_units: Sequence[float] = HALF_LIVES_UNITS,
        network_size: int = NETWORK_SIZE,
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
        """Initialises a recency-weighted frequency: equal gains, label gains of 0, and equal votes of all events."""
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

    def of_labels(self, task: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Parameters of a task's labels: gains c of shape `(V, K)` and rarities r of shape `(V, 1)`."""
        gains, rarity = cast(nn.Embedding, self.label_gains[task]), cast(nn.Embedding, self.label_rarity[task])
        return gains.weight, rarity.weight

    def shared_parameters(self) -> list[torch.Tensor]:
        """The parameters that do not belong to single labels."""
        of_labels = ("label_gains.", "label_rarity.")
        return [value for name, value in self.named_parameters() if not name.startswith(of_labels)]

    def fades(self, unit_times: torch.Tensor) -> torch.Tensor:
        """Fading factor 2^(-age / T) from the unit before to each unit; 1 for the first unit, of shape `(U, K, B)`."""
        days = F.pad(unit_times.diff(dim=1).clamp(min=0), (1, 0)).T
        units = torch.ones_like(days)
        units[0] = 0
        ages = [days] * self.num_days + [units] * (len(self.half_lives) - self.num_days)
        return torch.exp2(-torch.stack(ages, 1) * torch.exp(-self.log_half_life)[:, None])

    def decays(self, unit_times: torch.Tensor, unit_ends: torch.Tensor) -> torch.Tensor:
        """Fading factor 2^(-age / T) from each unit to each prefix end, `(B, U, P, K)`; 0 for units after the
        prefix."""
        index = torch.arange(unit_times.shape[1], device=unit_times.device)[:, None]
        units = (unit_ends[:, None] - index).to(unit_times.dtype)  # (B, U, P)
        days = (unit_times.gather(1, unit_ends)[:, None] - unit_times[..., None]).clamp(min=0)
        rates = torch.exp(-self.log_half_life)
        ages = [days] * self.num_days + [units.clamp(min=0)] * (len(rates) - self.num_days)
        decay = torch.stack([torch.exp2(-age * rate) for age, rate in zip(ages, rates, strict=True)], dim=-1)
        return decay * (units >= 0)[..., None]

    def votes(
        self, label_ids: torch.Tensor, event_units: torch.Tensor, event_embeddings: torch.Tensor, num_units: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The distinct labels of each customer, and their votes in each unit.

        Args:
            label_ids (`torch.LongTensor` of shape `(B, L, T)`): label of each event for each task; ids 0 and 1 are
                ignored.
            event_units (`torch.LongTensor` of shape `(B, L)`): index of each event's unit.
            event_embeddings (`torch.FloatTensor` of shape `(B, L, H)`): embedding e of each event.

        Returns:
            For each task the labels met, of shape `(B, S)`, padded with 0, and their votes m of shape `(B, S, U)`.
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
            count = cast(int, most.item()) + 1  # not int(...), which can't be exported
            torch._check(count >= 1)  # tells an export that it is a size
            labels = ids.new_zeros(batch, count).scatter(1, rank[task], ordered[task])
            zeros = vote.new_zeros(batch, count * num_units)
            sums = zeros.scatter_add(1, cells[task], vote[task])
            counts = zeros.scatter_add(1, cells[task], torch.ones_like(vote[task]))
            result.append((labels, (sums / counts.clamp(min=1)).view(batch, count, num_units)))
        return result

    @staticmethod
    def meetings(unit_ends: torch.Tensor, votes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each label and prefix, `(B, S, P)`: the number of units with the label, the first and the last of
        them."""
        met, slots = votes > 0, votes.shape[1]
        numbers = met.cumsum(2)  # number of units with the label, up to each unit
        index = torch.arange(votes.shape[2], device=votes.device).expand_as(numbers)
        shape = (*numbers.shape[:2], numbers.shape[2] + 1)
        # The unit of the first meeting stands at index 1, that of the second at 2, and so on.
        units = numbers.new_zeros(shape).scatter(2, torch.where(met, numbers, 0), index)
        number = numbers.gather(2, unit_ends[:, None].expand(-1, slots, -1))
        last = units.gather(2, number)
        return number, units[..., 1:2].expand_as(last), last

    def forward(
        self,
        tasks: Sequence[int],
        unit_times: torch.Tensor,
        unit_ends: torch.Tensor,
        met: Sequence[tuple[torch.Tensor, torch.Tensor]],
        prefix_mask: torch.Tensor | None = None,
        tables: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        waits: torch.Tensor | None = None,
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Computes the values that the memory adds to scores: one for each pair of a prefix and a label that it has.

        The labels of all tasks are computed together. At least half of the combinations of a label and a prefix come
        before the label's first unit; they are left out to save work.

        Args:
            unit_times (`torch.FloatTensor` of shape `(B, U)`): time of each unit, in days.
            unit_ends (`torch.LongTensor` of shape `(B, P)`): index of the last unit of each prefix.
            met (`Sequence[tuple]`): labels met and votes of each task, as `votes` returns them.
            prefix_mask (`torch.BoolTensor` of shape `(B, P)`, *optional*): True for prefixes that are scored. Default:
                all.
            tables (`Sequence[tuple]`, *optional*): label gains c `(V, K)` and rarities r `(V, 1)` of each task, where
                label ids are rows of a sample. Default: the parameters of all labels.
            waits (`torch.FloatTensor` of shape `(B, P)`, *optional*): days from the end of each prefix to the moment
                of the scores. Default: 0.

        Returns:
            For each task four tensors with one element for each pair: customer, prefix, label, and the value that is
            added to the score.
        """
        sizes = [labels.shape[1] for labels, _ in met]
        labels, votes = torch.cat([labels for labels, _ in met], 1), torch.cat([votes for _, votes in met], 1)
        (batch, slots), prefixes = labels.shape, unit_ends.shape[1]  # not len(...), which can't be exported
        meetings = self.meetings(unit_ends, votes)

        if torch.compiler.is_exporting():  # an exported graph can't depend on the number of pairs: use all
            every = (torch.arange(size, device=votes.device) for size in (slots, batch, prefixes))
            slot, customer, prefix = (index.flatten() for index in torch.meshgrid(*every, indexing="ij"))
            pairs = [size * batch * prefixes for size in sizes]
        else:
            is_met = meetings[0] > 0 if prefix_mask is None else (meetings[0] > 0) & prefix_mask[:, None]
            is_met &= (labels >= FIRST_LABEL)[..., None]
            slot, customer, prefix = is_met.transpose(0, 1).nonzero(as_tuple=True)  # task after task
            pairs = [part.sum().item() for part in is_met.sum((0, 2)).split(sizes)]
        cell = (customer * slots + slot) * prefixes + prefix
        label, end = labels[customer, slot], unit_ends[customer, prefix]
        number, first, last = (value.flatten()[cell] for value in meetings)
        votes = votes.to(unit_times.dtype)  # times are never in half precision
        # n, of shape (N, K). The loop over units is faster on a CPU with many prefixes; a GPU multiplies matrices.
        if prefix_mask is not None and votes.device.type == "cpu":
            counts = FadingCounts.apply(votes, self.fades(unit_times), customer, end, slot)
        else:
            decays = self.decays(unit_times, unit_ends)
            counts = torch.bmm(votes, decays.flatten(2)).view(-1, decays.shape[3])[cell]
        moment = unit_times[customer, end]
        if waits is not None:  # counts that fade with days fade until the moment of the scores
            wait, by_day = waits[customer, prefix], torch.arange(counts.shape[1], device=counts.device) < self.num_days
            faded = torch.exp2(-wait[:, None] * torch.exp(-self.log_half_life))
            counts, moment = counts * torch.where(by_day, faded, 1.0), moment + wait
        days = [moment - unit_times[customer, unit] for unit in (first, last)]
        tables = tables or [self.of_labels(task) for task in tasks]
        both = [F.embedding(ids, torch.cat(pair, 1)) for ids, pair in zip(label.split(pairs), tables, strict=True)]
        label_gains, rarity = torch.cat(both).split([counts.shape[1], 1], 1)
        added = self.pair_scores(tasks, pairs, counts, label_gains, rarity, end, (number, first, last), days)
        return list(zip(*(value.split(pairs) for value in (customer, prefix, label, added)), strict=True))

    def pair_scores(
        self,
        tasks: Sequence[int],
        pairs: Sequence[int],
        counts: torch.Tensor,
        label_gains: torch.Tensor,
        rarity: torch.Tensor,
        ends: torch.Tensor,
        meetings: Sequence[torch.Tensor],
        days: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Computes the values that the memory adds to the scores of N pairs of a prefix and a label that it has.

        Args:
            pairs (`Sequence[int]`): number of pairs of each task. The pairs come task after task.
            counts (`torch.FloatTensor` of shape `(N, K)`): fading counts n at the moment of the scores.
            label_gains (`torch.FloatTensor` of shape `(N, K)`): label gain c of each pair's label.
            rarity (`torch.FloatTensor` of shape `(N, 1)`): rarity r of each pair's label.
            ends (`torch.Tensor` of shape `(N,)`): index of the last unit of each prefix.
            meetings (`Sequence[torch.Tensor]`, three of shape `(N,)`): number of units of the prefix that have the
                label, index of the first of them, index of the last.
            days (`Sequence[torch.FloatTensor]`, two of shape `(N,)`): days from the first and from the last of these
                units to the moment of the scores.

        Returns:
            `torch.FloatTensor` of shape `(N,)`.
        """

        def of_task(parameter: torch.Tensor) -> torch.Tensor:
            """Row of a parameter for each pair, by the pair's task; of one task, a row that is broadcast."""
            if len(tasks) == 1:
                return parameter[tasks[0]]
            return torch.cat([parameter[task].expand(size, -1) for task, size in zip(tasks, pairs, strict=True)])

        length = torch.log1p(ends.to(counts.dtype))[:, None]
        gains = of_task(self.memory_gain) + label_gains + of_task(self.memory_growth) * length
        terms = torch.log1p(counts * (of_task(self.log_sensitivity) + of_task(self.rarity_weight) * rarity).exp())
        added = (terms * gains).sum(-1)
        if not len(self.network_in):  # `network_size` 0 has none
            return added
        number, first, last = meetings
        since_first, since_last = ends - first, ends - last
        gap = (since_first - since_last) / (number - 1).clamp(min=1)
        # Days are never in half precision, while counts can be.
        values = [value.to(days[0].dtype) for value in (number, since_first, since_last, gap, *days)]
        habits = torch.stack(values, -1).clamp(min=0).log1p()
        inputs = torch.cat([terms, habits.to(terms.dtype), length / 3, rarity / 2], -1)  # all about 1 in size
        outputs = []
        for task, part in zip(tasks, inputs.to(self.log_half_life.dtype).split(pairs), strict=True):
            outputs.append(self.network_out[task](self.network_in[task](part).relu_())[..., 0])
        return added + torch.cat(outputs) * (number > 0)
