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

Shapes: B customers, U encoder units (events or visits), R real units of all customers, A of them that are asked, P
prefixes, H hidden, V labels.

`reference_readout` is equations 2 and 3 as the paper writes them. `attentional_readout` gives the same numbers and
never forms r_w: with z_{w,i} = e_w . h_i, equation 3 is s(w) = sum_i softmax_i(z_w)_i z_{w,i}. With `ends` it scores
every prefix of the sequence in one pass: under a causal encoder h_i knows events up to i only, so prefix t needs the
same sum over i <= t, and a running softmax gives it for all t.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Elements of z (U * B * V) that one chunk of labels may hold: 64M are 256 MB in float32.
CHUNK_ELEMENTS = 2**26
# Span of z beyond which exp(z_i - m) nears the end of float32, exp(-87), and sums of its inverse the other end.
WIDEST = 60.0
# Numbers from which on a CPU adds whole rows faster than torch's cumsum adds columns.
LONG_ROW = 2048
# Labels of one piece where there are no gradients.
LABELS_AT_ONCE = 128
# Where the attentional readout runs as Triton kernels, if they can (readout_triton_mcm.py): plain torch elsewhere.
FUSED_ON = "cuda"
# Share of the units from which on all are scored: picking those out that are asked costs as much as it saves.
NEARLY_ALL = 0.75


class PackedUnits(NamedTuple):
    """The real units of a batch, the first of all customers before the second of all, and no padding.

    As `ends` of a readout: the units that end a prefix, and all that came before them.

    Attributes:
        customers: of each unit, of shape `(R,)`; those with the longest history come first.
        units: place in its customer's history, of shape `(R,)`.
        sizes: how many customers have a first unit, a second and so on; they sum up to R.
        asked: places of the units that are scored, of shape `(A,)`; `None` for all of them.
        rows: where each unit's scores are, of shape `(B, U)`; -1 for those without.
    """

    customers: torch.Tensor
    units: torch.Tensor
    sizes: list[int]
    asked: torch.Tensor | None
    rows: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor, asked: torch.Tensor | None = None) -> "PackedUnits":
        """Packs the units of a boolean mask of shape `(B, U)`, padding on the right; scored are those of `asked`, of
        the same shape, or a few more."""
        longest_first = mask.sum(1).argsort(descending=True, stable=True)
        units, places = mask[longest_first].T.nonzero(as_tuple=True)
        customers = longest_first[places]
        wanted = None if asked is None else asked[customers, units].nonzero()[:, 0]
        if wanted is not None and len(wanted) >= NEARLY_ALL * len(units):
            wanted = None
        scored = (customers, units) if wanted is None else (customers[wanted], units[wanted])
        rows = torch.full(mask.shape, -1, device=mask.device)
        rows[scored] = torch.arange(len(scored[0]), device=mask.device)
        return cls(customers, units, [size for size in mask.sum(0).tolist() if size], wanted, rows)


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
    """s_t(w) = sum_{i<=t} exp(z_i) z_i / sum_{i<=t} exp(z_i) for every t that is asked.

    Forward takes z of packed units, `(R, V)`, its largest number, and the sizes and what is asked of [`PackedUnits`];
    it gives s of shape `(A, V)`. It divides two running sums, of exp(z_i - m) z_i and of exp(z_i - m), m being the
    largest z of all. Backward: ds_t/dz_i = exp(z_i - m) / n_t (1 + z_i - s_t) with n_t = sum_{i<=t} exp(z_i - m), so
    with the running sums from the right G_i = sum_{t>=i} g_t / n_t and R_i = sum_{t>=i} g_t s_t / n_t the gradient is
    exp(z_i - m) ((1 + z_i) G_i - R_i); g_t is 0 for what was not asked.

    One m for all labels and prefixes holds while exp(z_i - m) stays within float32: where z spans more than
    `WIDEST`, [`WideRunningReadout`] takes more steps. Half precision is computed in float32.
    """

    @staticmethod
    def forward(ctx, z, top, sizes, asked=None):
        given = z.dtype
        z, top = (value.float() if given.itemsize < 4 else value for value in (z, top))
        n = torch.sub(z, top).exp_()
        s, n = _running_sum(n * z, sizes), _running_sum(n, sizes)
        if asked is not None:
            s, n = s[asked], n[asked]
        s.div_(n)
        ctx.save_for_backward(z, s, n, top, asked)
        ctx.sizes = sizes
        return s.to(given)

    @staticmethod
    def backward(ctx, gradient):
        z, s, n, top, asked = ctx.saved_tensors
        g = gradient / n
        r = g * s
        if asked is not None:
            g, r = (torch.zeros_like(z).index_copy_(0, asked, value) for value in (g, r))
        r = _running_sum(r, ctx.sizes, backwards=True)
        g = _running_sum(g, ctx.sizes, backwards=True)
        return torch.addcmul(g, g, z).sub_(r).mul_(torch.sub(z, top).exp_()).to(gradient.dtype), None, None, None


def _running_sum(x: torch.Tensor, sizes: Sequence[int], backwards: bool = False) -> torch.Tensor:
    """Along each customer's units; x, of shape `(R, V)`, may be overwritten."""
    if x.device.type == "cpu" and x.numel() >= LONG_ROW * len(sizes):
        steps = x.split(list(sizes))
        if backwards:
            for after, step in pairwise(steps[::-1]):
                step[: len(after)].add_(after)
        else:  # a cumsum along another axis than the last is slow there
            for before, step in pairwise(steps):
                step.add_(before[: len(step)])
        return x
    customers = torch.arange(sizes[0], device=x.device)
    real = customers < torch.tensor(sizes, device=x.device)[:, None]
    padded = x.new_zeros(*real.shape, x.shape[1])
    padded[real] = x
    return (padded.flip(0).cumsum(0).flip(0) if backwards else padded.cumsum(0))[real]


class WideRunningReadout(torch.autograd.Function):
    """As [`RunningReadout`], for any z.

    Forward keeps the running log-sum-exp c_t = log sum_{i<=t} exp(z_i) and moves the average by the new term's weight:
    s_t = s_{t-1} + exp(z_t - c_t) (z_t - s_{t-1}). Since c_t >= z_i for all i <= t, no exponent is ever positive.
    Backward is as there with exp(z_i - c_i) in the place of exp(z_i - m), and with sums from the right that fade:
    G_i = sum_{t>=i} g_t exp(c_i - c_t) and R_i = sum_{t>=i} g_t s_t exp(c_i - c_t).
    """

    @staticmethod
    def forward(ctx, z: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        s, c = z.clone(), z.clone()
        steps = zip(*(x.split(list(sizes)) for x in (z, s, c)), strict=True)
        for (_, s_before, c_before), (z_t, s_t, c_t) in pairwise(steps):
            torch.logaddexp(c_before[: len(c_t)], z_t, out=c_t)
            torch.lerp(s_before[: len(s_t)], z_t, (z_t - c_t).exp_(), out=s_t)
        ctx.save_for_backward(z, s, c)
        ctx.sizes = sizes
        return s

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        z, s, c = ctx.saved_tensors
        g, r = gradient.clone(), gradient * s
        steps = list(zip(*(x.split(list(ctx.sizes)) for x in (g, r, c)), strict=True))
        for (g_after, r_after, c_after), (g_t, r_t, c_t) in pairwise(steps[::-1]):
            fade = (c_t[: len(c_after)] - c_after).exp_()
            g_t[: len(fade)].addcmul_(g_after, fade)
            r_t[: len(fade)].addcmul_(r_after, fade)
        return torch.addcmul(g, g, z).sub_(r).mul_((z - c).exp_()), None


def running_readout(z: torch.Tensor, sizes: Sequence[int], asked: torch.Tensor | None = None) -> torch.Tensor:
    """[`RunningReadout`] where z allows it, [`WideRunningReadout`] otherwise."""
    low, top = torch.aminmax(z.detach())
    if top - low < WIDEST:
        return RunningReadout.apply(z, top, sizes, asked)
    every = WideRunningReadout.apply(z.float() if z.dtype.itemsize < 4 else z, sizes).to(z.dtype)
    return every if asked is None else every[asked]


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
    ends: torch.Tensor | PackedUnits | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equations 2 and 3 for the whole sequence, or for the prefixes that end at `ends`.

    z, of shape `(B, U, V)`, is held for some labels at a time: always without gradients, and where it would pass
    `CHUNK_ELEMENTS` with them; it is computed again in backward then.

    Args:
        hidden: h of shape `(B, U, H)`; padding on the right.
        label_embeddings: e of shape `(V, H)`.
        mask: boolean, of shape `(B, U)`, True where a unit is real.
        ends: last unit of each prefix, of shape `(B, P)`, or the mask's units packed. Only for causal encoders.
        scale: one factor on z.

    Returns:
        s of shape `(B, V)`; `(B, P, V)` with `ends`, `(A, V)` with packed units.
    """
    vectors = label_embeddings if scale is None else label_embeddings * scale
    if hidden.device.type == FUSED_ON:
        from .readout_triton_mcm import can_fuse, fused_readout  # only here: it loads Triton

        if can_fuse(hidden, vectors):
            return fused_readout(hidden, vectors, mask, ends)
    units, width = hidden.shape[0] * hidden.shape[1], hidden.shape[1]

    def whole(vectors: torch.Tensor) -> torch.Tensor:
        return MaskedReadout.apply(torch.matmul(hidden, vectors.T), mask)

    if ends is None:
        return _by_labels(whole, vectors, units)
    if isinstance(ends, PackedUnits):
        packed, given = hidden[ends.customers, ends.units], (ends.sizes, ends.asked)
        return _by_labels(lambda part: running_readout(torch.matmul(packed, part.T), *given), vectors, len(packed))
    steps = hidden.transpose(0, 1).flatten(0, 1)
    customers = torch.arange(len(hidden), device=hidden.device)[:, None]

    def prefixes(vectors: torch.Tensor) -> torch.Tensor:
        return running_readout(torch.matmul(steps, vectors.T), [len(hidden)] * width)[ends * len(hidden) + customers]

    return _by_labels(prefixes, vectors, units)


def last_readout(
    hidden: torch.Tensor,
    label_embeddings: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor | PackedUnits | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """BERT4Rec's readout: e_w . h_t with the last hidden vector. Arguments, shapes: as in [`attentional_readout`]."""
    if isinstance(ends, PackedUnits):
        every = slice(None) if ends.asked is None else ends.asked
        vectors = hidden[ends.customers[every], ends.units[every]]
    else:
        last = mask.sum(1, keepdim=True) - 1 if ends is None else ends
        vectors = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
    scaled = label_embeddings if scale is None else label_embeddings * scale
    scores = _by_labels(lambda part: torch.matmul(vectors, part.T), scaled, math.prod(vectors.shape[:-1]))
    return scores[:, 0] if ends is None else scores


READOUTS = {"attentional": attentional_readout, "last": last_readout}
