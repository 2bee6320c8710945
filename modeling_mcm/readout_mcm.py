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
"""The readout: from hidden vectors to one score a label.

Shapes: B customers, U encoder units (events or visits), P prefixes, H hidden, V labels, L events, K half-lives.

`reference_readout` is equations 2 and 3 as the paper writes them. `attentional_readout` gives the same numbers and
never forms r_w: with z_{w,i} = e_w . h_i, equation 3 is s(w) = sum_i softmax_i(z_w)_i z_{w,i}. With `ends` it scores
every prefix of the sequence in one pass: under a causal encoder h_i knows events up to i only, so prefix t needs the
same sum over i <= t, and a running softmax gives it for all t. `RepeatMemory` adds what a softmax average can't hold:
how often, and how long ago, the customer met a label.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

# Elements of z (U * B * V) that one chunk of labels may hold: 64M are 256 MB in float32.
CHUNK_ELEMENTS = 2**26
# Span of z beyond which exp(z_i - m) nears the end of float32, exp(-87), and sums of its inverse the other end.
WIDEST = 60.0
# Numbers from which on a CPU adds whole rows faster than torch's cumsum adds columns.
LONG_ROW = 2048
# Labels of one piece where there are no gradients.
LABELS_AT_ONCE = 128
# As `ends` of a readout: every unit ends a prefix. Nothing has to be picked out then, forward or backward.
EVERY_UNIT = slice(None)


def reference_readout(hidden: torch.Tensor, label_embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Equations 2 and 3, term by term. For tests and readers: it holds r_w, of shape `(B, V, H)`.

    Args:
        hidden: h of shape `(B, U, H)`.
        label_embeddings: e of shape `(V, H)`.
        mask: boolean, of shape `(B, U)`, True where a unit is real.

    Returns:
        s of shape `(B, V)`.
    """
    scores = torch.einsum("vh,buh->bvu", label_embeddings, hidden)
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)  # a_{w,i}, exactly 0 on padding
    readout = torch.einsum("bvu,buh->bvh", weights, hidden)  # r_w
    return torch.einsum("bvh,vh->bv", readout, label_embeddings)  # s(w)


def attention_weights(hidden: torch.Tensor, label_embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """a_{w,i} of equation 2, of shape `(B, V, U)`: how much each unit speaks for each label; rows sum to 1."""
    scores = torch.einsum("vh,buh->bvu", label_embeddings, hidden)
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)


class MaskedReadout(torch.autograd.Function):
    """s(w) = sum_i a_i z_i with a = softmax of z over the real units; ds/dz_i = a_i (1 + z_i - s).

    Forward takes z of shape `(B, U, V)` and a mask of shape `(B, U)`, and gives s of shape `(B, V)`.
    """

    @staticmethod
    def forward(ctx, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        a = z.masked_fill(~mask[..., None], float("-inf")).softmax(1)
        s = (a * z).sum(1)
        ctx.save_for_backward(z, a, s)
        return s

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        z, a, s = ctx.saved_tensors
        return torch.addcmul(((1 - s) * gradient)[:, None], z, gradient[:, None]).mul_(a), None


class RunningReadout(torch.autograd.Function):
    """s_t(w) = sum_{i<=t} exp(z_i) z_i / sum_{i<=t} exp(z_i) for every t, along the first axis of z.

    Forward divides two running sums, of exp(z_i - m) z_i and of exp(z_i - m), m being the largest z of all. Backward:
    ds_t/dz_i = exp(z_i - m) / n_t (1 + z_i - s_t) with n_t = sum_{i<=t} exp(z_i - m), so with the running sums from
    the right G_i = sum_{t>=i} g_t / n_t and R_i = sum_{t>=i} g_t s_t / n_t the gradient is
    exp(z_i - m) ((1 + z_i) G_i - R_i).

    One m for all labels and prefixes holds while exp(z_i - m) stays within float32: where z spans more than
    `WIDEST`, [`WideRunningReadout`] takes more steps. Half precision is computed in float32.
    """

    @staticmethod
    def forward(ctx, z: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        given = z.dtype
        z, top = (value.float() if given.itemsize < 4 else value for value in (z, top))
        n = torch.sub(z, top).exp_()
        s, n = _running_sum(n * z), _running_sum(n)
        s.div_(n)
        ctx.save_for_backward(z, s, n, top)
        return s.to(given)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        z, s, n, top = ctx.saved_tensors
        g = gradient / n
        r = _running_sum(g * s, backwards=True)
        g = _running_sum(g, backwards=True)
        return torch.addcmul(g, g, z).sub_(r).mul_(torch.sub(z, top).exp_()).to(gradient.dtype), None


def _running_sum(x: torch.Tensor, backwards: bool = False) -> torch.Tensor:
    """Along the first axis, in place where that is faster."""
    if x.device.type != "cpu" or x[0].numel() < LONG_ROW:
        return x.flip(0).cumsum(0).flip(0) if backwards else x.cumsum(0)
    rows = x.unbind(0)[::-1] if backwards else x.unbind(0)  # a cumsum along another axis than the last is slow there
    for before, row in pairwise(rows):
        row.add_(before)
    return x


class WideRunningReadout(torch.autograd.Function):
    """As [`RunningReadout`], for any z.

    Forward keeps the running log-sum-exp c_t = log sum_{i<=t} exp(z_i) and moves the average by the new term's weight:
    s_t = s_{t-1} + exp(z_t - c_t) (z_t - s_{t-1}). Since c_t >= z_i for all i <= t, no exponent is ever positive.
    Backward is as there with exp(z_i - c_i) in the place of exp(z_i - m), and with sums from the right that fade:
    G_i = sum_{t>=i} g_t exp(c_i - c_t) and R_i = sum_{t>=i} g_t s_t exp(c_i - c_t).
    """

    @staticmethod
    def forward(ctx, z: torch.Tensor) -> torch.Tensor:
        s, c = torch.empty_like(z), torch.empty_like(z)
        s[0], c[0] = z[0], z[0]
        for t in range(1, z.shape[0]):
            torch.logaddexp(c[t - 1], z[t], out=c[t])
            torch.lerp(s[t - 1], z[t], (z[t] - c[t]).exp_(), out=s[t])
        ctx.save_for_backward(z, s, c)
        return s

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        z, s, c = ctx.saved_tensors
        out = torch.empty_like(z)
        last = z.shape[0] - 1
        g_sum, r_sum = torch.zeros_like(z[0]), torch.zeros_like(z[0])
        for i in range(last, -1, -1):
            if i < last:
                decay = (c[i] - c[i + 1]).exp_()
                g_sum, r_sum = g_sum.mul_(decay), r_sum.mul_(decay)
            g_sum, r_sum = g_sum.add_(gradient[i]), torch.addcmul(r_sum, gradient[i], s[i], out=r_sum)
            torch.mul(g_sum, z[i] + 1, out=out[i])
            out[i].sub_(r_sum).mul_((z[i] - c[i]).exp_())
        return out


def running_readout(z: torch.Tensor) -> torch.Tensor:
    """[`RunningReadout`] where z allows it, [`WideRunningReadout`] otherwise."""
    low, top = torch.aminmax(z.detach())
    return RunningReadout.apply(z, top) if top - low < WIDEST else WideRunningReadout.apply(z)


def _by_labels(read, vectors: torch.Tensor, elements: int) -> torch.Tensor:
    """Scores of all labels, some labels at a time; z has `elements` numbers a label.

    Without gradients every piece has as many labels as the others, the last filled up with zeros: a product of the
    same size gives the same bits, so a label's score at the end of the history does not depend on how many there are.
    """
    if torch.is_grad_enabled():
        size = max(1, CHUNK_ELEMENTS // elements)
        if size >= len(vectors):
            return read(vectors)
        return torch.cat([checkpoint(read, part, use_reentrant=False) for part in vectors.split(size)], dim=-1)
    if torch.compiler.is_exporting():
        return read(vectors)
    filled = F.pad(vectors, (0, 0, 0, -len(vectors) % LABELS_AT_ONCE))
    return torch.cat([read(part) for part in filled.split(LABELS_AT_ONCE)], dim=-1)[..., : len(vectors)]


def attentional_readout(
    hidden: torch.Tensor,
    label_embeddings: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor | slice | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equations 2 and 3 for the whole sequence, or for the prefixes that end at `ends`.

    z, of shape `(B, U, V)`, is held for some labels at a time: always without gradients, and where it would pass
    `CHUNK_ELEMENTS` with them; it is computed again in backward then.

    Args:
        hidden: h of shape `(B, U, H)`; padding on the right.
        label_embeddings: e of shape `(V, H)`.
        mask: boolean, of shape `(B, U)`, True where a unit is real.
        ends: last unit of each prefix, of shape `(B, P)`, or `EVERY_UNIT`, for which P = U. Only for causal encoders.
        scale: one factor on z.

    Returns:
        s of shape `(B, V)`, or `(B, P, V)` with `ends`.
    """

    def whole(vectors: torch.Tensor) -> torch.Tensor:
        return MaskedReadout.apply(torch.matmul(hidden, vectors.T), mask)

    def prefixes(vectors: torch.Tensor) -> torch.Tensor:
        s = running_readout(torch.matmul(hidden.transpose(0, 1), vectors.T))  # (U, B, V): a step is contiguous
        if isinstance(ends, slice):
            return s.transpose(0, 1)
        return s[ends, torch.arange(s.shape[1], device=s.device)[:, None]]

    vectors = label_embeddings if scale is None else label_embeddings * scale
    return _by_labels(whole if ends is None else prefixes, vectors, hidden.shape[0] * hidden.shape[1])


def last_readout(
    hidden: torch.Tensor,
    label_embeddings: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor | slice | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """BERT4Rec's readout: e_w . h_t with the last hidden vector. Arguments, shapes: as in [`attentional_readout`]."""
    vectors = hidden
    if not isinstance(ends, slice):
        last = mask.sum(1, keepdim=True) - 1 if ends is None else ends
        vectors = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
    scaled = label_embeddings if scale is None else label_embeddings * scale
    scores = _by_labels(lambda part: torch.matmul(vectors, part.T), scaled, hidden.shape[0] * vectors.shape[1])
    return scores[:, 0] if ends is None else scores


HABITS = 6  # what `RepeatMemory.habits` gives
READOUTS = {"attentional": attentional_readout, "last": last_readout}


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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The customer's distinct labels, and in which units they were met.

        Args:
            label_ids: of shape `(B, L)`; ids 0 and 1 do not count.
            event_units: the unit of each event, of shape `(B, L)`.
            event_embeddings: e_i of shape `(B, L, H)`.
            num_units: U.

        Returns:
            labels of shape `(B, S)`, 0 where a customer has fewer than S, and m of shape `(B, S, U)`.
        """
        batch = label_ids.shape[0]
        ordered, order = torch.where(label_ids > 1, label_ids, 0).sort(dim=1)
        is_next = (ordered != ordered.roll(1, 1)) & (torch.arange(ordered.shape[1], device=ordered.device) > 0)
        rank = is_next.cumsum(1)
        count = cast(int, rank.max().item()) + 1  # not int(...), which an export can't follow
        torch._check(count >= 1)  # so that an export knows it for a size
        labels = label_ids.new_zeros(batch, count).scatter(1, rank, ordered)
        cells = rank * num_units + event_units.gather(1, order)
        vote = torch.where(ordered > 1, self.vote(event_embeddings)[..., 0].exp().gather(1, order), 0.0)
        zeros = vote.new_zeros(batch, labels.shape[1] * num_units)
        sums = zeros.scatter_add(1, cells, vote)
        counts = zeros.scatter_add(1, cells, torch.ones_like(vote))
        return labels, (sums / counts.clamp(min=1)).view(batch, labels.shape[1], num_units)

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
        task: int,
        scores: torch.Tensor,
        decays: torch.Tensor,
        unit_times: torch.Tensor,
        unit_ends: torch.Tensor,
        labels: torch.Tensor,
        votes: torch.Tensor,
    ) -> torch.Tensor:
        """Adds the memory of one task.

        Args:
            task: its place.
            scores: of shape `(B, P, V)`; changed in place.
            decays: from `decays`, with the same `unit_times` and `unit_ends`.
            unit_times: days, of shape `(B, U)`.
            unit_ends: p of each prefix, of shape `(B, P)`.
            labels, votes: from `votes`.

        Returns:
            scores of shape `(B, P, V)`.
        """
        batch, units, prefixes, kernels = decays.shape
        counts = torch.bmm(votes.to(decays.dtype), decays.reshape(batch, units, -1))  # times are no half precision
        counts = counts.view(batch, -1, prefixes, kernels)  # n: (B, S, P, K)
        length = torch.log1p(unit_ends.to(counts.dtype))[:, None, :, None]
        gains = self.memory_gain[task] + self.label_gains[task](labels)[:, :, None] + self.memory_growth[task] * length
        rarity = self.label_rarity[task](labels)[:, :, None]  # (B, S, 1, 1)
        sensitivity = (self.log_sensitivity[task] + self.rarity_weight[task] * rarity).exp()
        terms = torch.log1p(counts * sensitivity)
        added = (terms * gains).sum(-1)  # (B, S, P)
        # CODEPATH: a network in mcm-base and mcm-tiny, none where `repeat_network_size` is 0.
        if len(self.network_in):
            habits = self.habits(unit_times, unit_ends, votes)
            length, rarity = length.expand_as(terms[..., :1]), rarity.expand_as(terms[..., :1])
            inputs = torch.cat([terms, habits.to(terms.dtype), length / 3, rarity / 2], -1)  # all about 1 in size
            first = self.network_in[task]
            drawn = self.network_out[task](first(inputs.to(self.log_half_life.dtype)).relu_())[..., 0]
            added = added + drawn * (habits[..., 0] > 0)
        index = labels[:, None].expand(-1, prefixes, -1)
        return scores.scatter_add_(2, index, added.transpose(1, 2).to(scores.dtype))
