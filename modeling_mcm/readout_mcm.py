# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The readout: computes one score for each label from the hidden vectors.

Shapes: B customers, U encoder units (events or visits), R real units of all customers, A scored units among them, P
prefixes of a customer, H hidden size, V labels. In [`ScoredRows`] R is the number of rows of the score matrix, and E
that of scored prefixes of the customer with the most.

`reference_readout` computes equations 2 and 3 as the paper writes them. `attentional_readout` computes the same
numbers without r_w: with z_{w,i} = e_w . h_i, equation 3 is s(w) = sum_i softmax_i(z_w)_i z_{w,i}. With `prefixes` it
scores every prefix of the sequence in one pass: under a causal encoder h_i depends on events up to i only, so prefix t
needs the same sum over i <= t, and a running softmax computes it for all t.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Elements of z (U * B * V) that one chunk of labels may hold: 64M are 256 MB in float32.
CHUNK_ELEMENTS = 2**26
# Largest range of z (maximum - minimum) for one common maximum m: beyond it exp(z_i - m) comes near the smallest
# float32, exp(-87), and sums of its inverse come near the largest.
WIDEST = 60.0
# Row length from which a CPU adds whole rows faster than torch's cumsum adds columns.
LONG_ROW = 2048
# Labels that are scored at once without gradients.
LABELS_AT_ONCE = 128
# Share of scored units from which all units are scored: selecting units costs as much as it saves then.
NEARLY_ALL = 0.75


class PackedUnits(NamedTuple):
    """The real units of a batch without padding: the first units of all customers, then all second units, and so on.
    Each scored unit ends a prefix, and the units before it are the rest of the prefix."""

    customers: torch.Tensor  # (R,): customer of each unit; customers with more units come first
    units: torch.Tensor  # (R,): index of each unit in its customer's history
    sizes: list[int]  # number of customers with a first unit, with a second unit, and so on; the sum is R
    scored: torch.Tensor | None  # (A,): indices of the scored units; `None`: all are scored
    score_rows: torch.Tensor  # (B, U): row of each unit in the score matrix; -1 for units that are not scored

    @classmethod
    def of(cls, mask: torch.Tensor, prefix_mask: torch.Tensor | None = None) -> "PackedUnits":
        """Packs the real units of a batch, True in `mask` `(B, U)`, with padding on the right. `prefix_mask` `(B, U)`
        is True where a unit is scored (default: all); where nearly all are, all units are scored."""
        longest_first = mask.sum(1).argsort(descending=True, stable=True)
        units, indices = mask[longest_first].T.nonzero(as_tuple=True)
        customers = longest_first[indices]
        scored = None if prefix_mask is None else prefix_mask[customers, units].nonzero()[:, 0]
        if scored is not None and len(scored) >= NEARLY_ALL * len(units):
            scored = None
        cells = (customers, units) if scored is None else (customers[scored], units[scored])
        score_rows = torch.full(mask.shape, -1, device=mask.device)
        score_rows[cells] = torch.arange(len(cells[0]), device=mask.device)
        return cls(customers, units, [size for size in mask.sum(0).tolist() if size], scored, score_rows)


class ScoredRows(NamedTuple):
    """The rows of a batch's score matrix: one row for each scored prefix."""

    customers: torch.Tensor  # (R,): customer of each row
    last_events: torch.Tensor  # (R,): index of the last event of each row's prefix
    ends: torch.Tensor  # (B, E): index of the last unit of each scored prefix, by customer
    is_row: torch.Tensor | None  # (B, E): whether an element of `ends` is real or padding; `None`: all are real
    # (B, U): row of the prefix that ends at each unit; without meaning where no scored prefix ends
    of_units: torch.Tensor
    mask: torch.Tensor  # (B, U): units that the readout reads
    # the units without padding where prefixes are scored; `None` where only the whole histories are
    packed: PackedUnits | None

    @classmethod
    def of_histories(cls, batch: Mapping[str, Any], event_units: torch.Tensor) -> "ScoredRows":
        """One row for each customer: the whole history is scored."""
        last_events = batch["attention_mask"].sum(1) - 1
        customers = torch.arange(last_events.shape[0], device=last_events.device)
        ends = event_units.gather(1, last_events[:, None])
        mask = batch["unit_mask"]
        return cls(customers, last_events, ends, None, customers[:, None].expand_as(mask), mask, None)

    @classmethod
    def of_prefixes(cls, batch: Mapping[str, Any], event_units: torch.Tensor, is_end: torch.Tensor) -> "ScoredRows":
        """One row for each prefix that ends at a unit of `is_end`; it reads the events up to the prefix's end.

        Args:
            batch (`dict`): `attention_mask` of shape `(B, L)` and `unit_mask` of shape `(B, U)`.
            event_units (`torch.LongTensor` of shape `(B, L)`): index of each event's unit.
            is_end (`torch.BoolTensor` of shape `(B, U)`): True where a scored prefix ends.
        """
        mask = batch["unit_mask"].clone()
        mask[:, 0] = True  # an empty history needs a row for the look-ups below; its scores are not used
        packed = PackedUnits.of(mask, is_end)
        scored = slice(None) if packed.scored is None else packed.scored
        customers, units = packed.customers[scored], packed.units[scored]
        event = torch.arange(event_units.shape[1], device=event_units.device).expand_as(event_units)
        event = event * batch["attention_mask"]
        last_events = torch.zeros_like(mask).long().scatter_reduce(1, event_units, event, "amax")
        most = int(is_end.sum(1).max())
        ends = (~is_end).byte().argsort(dim=1, stable=True)[:, :most]  # ascending for each customer
        return cls(
            customers, last_events[customers, units], ends, is_end.gather(1, ends), packed.score_rows, mask, packed
        )


def reference_readout(hidden: torch.Tensor, label_embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Equations 2 and 3, term by term, for tests and readers. It needs memory for r_w, of shape `(B, V, H)`."""
    scores = torch.einsum("vh,buh->bvu", label_embeddings, hidden)
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)  # a_{w,i}, exactly 0 on padding
    readout = torch.einsum("bvu,buh->bvh", weights, hidden)  # r_w
    return torch.einsum("bvh,vh->bv", readout, label_embeddings)  # s(w)


def attention_weights(hidden: torch.Tensor, label_embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention weights a_{w,i} of equation 2, of shape `(B, V, U)`: the weight of each unit in a label's score."""
    scores = torch.einsum("vh,buh->bvu", label_embeddings, hidden)
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)


class MaskedReadout(torch.autograd.Function):
    """s(w) = sum_i a_i z_i with a = softmax of z over the real units; ds/dz_i = a_i (1 + z_i - s)."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes scores s of shape `(B, V)` from z of shape `(B, U, V)` and a boolean mask of shape `(B, U)`."""
        a = z.masked_fill(~mask[..., None], float("-inf")).softmax(1)
        s = (a * z).sum(1)
        ctx.save_for_backward(z, a, s)
        return s

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Computes the gradient of z from that of s."""
        z, a, s = ctx.saved_tensors
        return torch.addcmul(((1 - s) * gradient)[:, None], z, gradient[:, None]).mul_(a), None


class RunningReadout(torch.autograd.Function):
    """s_t(w) = sum_{i<=t} exp(z_i) z_i / sum_{i<=t} exp(z_i) for every scored unit t.

    Forward divides two running sums, of exp(z_i - m) z_i and of exp(z_i - m), where m is the maximum of all z.
    Backward: ds_t/dz_i = exp(z_i - m) / n_t (1 + z_i - s_t) with n_t = sum_{i<=t} exp(z_i - m). With the running sums
    from the right G_i = sum_{t>=i} g_t / n_t and R_i = sum_{t>=i} g_t s_t / n_t, the gradient of z_i is
    exp(z_i - m) ((1 + z_i) G_i - R_i). g_t, the gradient of s_t, is 0 for units that are not scored.

    One m for all labels and prefixes works while exp(z_i - m) stays within float32. Where the range of z is larger
    than `WIDEST`, [`WideRunningReadout`] is used, which takes more steps. Half precision is computed in float32.
    """

    @staticmethod
    def forward(ctx, z, top, sizes, scored=None):
        """Scores `(A, V)` of the scored units from z `(R, V)`, its maximum `top`, and `sizes`, `scored` of
        [`PackedUnits`]."""
        dtype = z.dtype
        z, top = (value.float() if dtype.itemsize < 4 else value for value in (z, top))
        n = torch.sub(z, top).exp_()
        s, n = _running_sum(n * z, sizes), _running_sum(n, sizes)
        if scored is not None:
            s, n = s[scored], n[scored]
        s.div_(n)
        ctx.save_for_backward(z, s, n, top, scored)
        ctx.sizes = sizes
        return s.to(dtype)

    @staticmethod
    def backward(ctx, gradient):
        """Computes the gradient of z, of shape `(R, V)`, from that of s, of shape `(A, V)`."""
        z, s, n, top, scored = ctx.saved_tensors
        g = gradient / n
        r = g * s
        if scored is not None:
            g, r = (torch.zeros_like(z).index_copy_(0, scored, value) for value in (g, r))
        r = _running_sum(r, ctx.sizes, backwards=True)
        g = _running_sum(g, ctx.sizes, backwards=True)
        return torch.addcmul(g, g, z).sub_(r).mul_(torch.sub(z, top).exp_()).to(gradient.dtype), None, None, None


def _running_sum(x: torch.Tensor, sizes: Sequence[int], backwards: bool = False) -> torch.Tensor:
    """Running sum over each customer's units, from the first unit or, if `backwards`, from the last."""
    if x.device.type == "cpu" and x.numel() >= LONG_ROW * len(sizes):
        steps = x.split(list(sizes))
        if backwards:
            for after, step in pairwise(steps[::-1]):
                step[: len(after)].add_(after)
        else:  # on a CPU cumsum is slow along every axis but the last
            for before, step in pairwise(steps):
                step.add_(before[: len(step)])
        return x
    customers = torch.arange(sizes[0], device=x.device)
    real = customers < torch.tensor(sizes, device=x.device)[:, None]
    padded = x.new_zeros(*real.shape, x.shape[1])
    padded[real] = x
    return (padded.flip(0).cumsum(0).flip(0) if backwards else padded.cumsum(0))[real]


class WideRunningReadout(torch.autograd.Function):
    """As [`RunningReadout`], for z of any range. Forward keeps the running log-sum-exp c_t = log sum_{i<=t} exp(z_i)
    and moves the average by the new term's weight: s_t = s_{t-1} + exp(z_t - c_t) (z_t - s_{t-1}). Since c_t >= z_i
    for all i <= t, no exponent is ever positive. Backward has exp(z_i - c_i) in the place of exp(z_i - m), and fading
    sums from the right: G_i = sum_{t>=i} g_t exp(c_i - c_t) and R_i = sum_{t>=i} g_t s_t exp(c_i - c_t)."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Computes the scores of all units, of shape `(R, V)`, from z of this shape and `sizes` of [`PackedUnits`]."""
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
        """Computes the gradient of z from that of s."""
        z, s, c = ctx.saved_tensors
        g, r = gradient.clone(), gradient * s
        steps = list(zip(*(x.split(list(ctx.sizes)) for x in (g, r, c)), strict=True))
        for (g_after, r_after, c_after), (g_t, r_t, c_t) in pairwise(steps[::-1]):
            fade = (c_t[: len(c_after)] - c_after).exp_()
            g_t[: len(fade)].addcmul_(g_after, fade)
            r_t[: len(fade)].addcmul_(r_after, fade)
        return torch.addcmul(g, g, z).sub_(r).mul_((z - c).exp_()), None


def running_readout(z: torch.Tensor, sizes: Sequence[int], scored: torch.Tensor | None = None) -> torch.Tensor:
    """Scores `(A, V)` of packed units from z `(R, V)`, and `sizes` and `scored` of [`PackedUnits`]: [`RunningReadout`]
    where the range of z allows it, else [`WideRunningReadout`]."""
    low, top = torch.aminmax(z.detach())
    if top - low < WIDEST:
        return RunningReadout.apply(z, top, sizes, scored)
    scores = WideRunningReadout.apply(z.float() if z.dtype.itemsize < 4 else z, sizes).to(z.dtype)
    return scores if scored is None else scores[scored]


def _by_labels(readout, vectors: torch.Tensor, elements: int) -> torch.Tensor:
    """Scores of all labels, computed for some labels at a time."""
    if torch.is_grad_enabled():
        size = max(1, CHUNK_ELEMENTS // elements)
        if size >= len(vectors):
            return readout(vectors)
        return torch.cat([checkpoint(readout, part, use_reentrant=False) for part in vectors.split(size)], dim=-1)
    filled = F.pad(vectors, (0, 0, 0, -len(vectors) % LABELS_AT_ONCE))
    return torch.cat([readout(part) for part in filled.split(LABELS_AT_ONCE)], dim=-1)[..., : len(vectors)]


def attentional_readout(
    hidden: torch.Tensor, label_embeddings: torch.Tensor, mask: torch.Tensor, prefixes: PackedUnits | None = None
) -> torch.Tensor:
    """Scores by equations 2 and 3 after the whole sequence, or after prefixes of it.

    z, of shape `(B, U, V)`, is held for some labels at a time: always without gradients, and with gradients where it
    would have more than `CHUNK_ELEMENTS` elements. In that case backward computes it again.

    Args:
        hidden (`torch.FloatTensor` of shape `(B, U, H)`): hidden vector h of each unit; padding is on the right.
        label_embeddings (`torch.FloatTensor` of shape `(V, H)`): embedding e of each label.
        mask (`torch.BoolTensor` of shape `(B, U)`): True where a unit is real.
        prefixes ([`PackedUnits`], *optional*): packed units of `mask`, where prefixes are scored. Only for causal
            encoders. Default: the whole sequence.

    Returns:
        `torch.FloatTensor`: scores s of shape `(B, V)`; `(A, V)` with prefixes.
    """
    if prefixes is None:

        def whole(vectors: torch.Tensor) -> torch.Tensor:
            return MaskedReadout.apply(torch.matmul(hidden, vectors.T), mask)

        return _by_labels(whole, label_embeddings, mask.numel())
    packed = hidden[prefixes.customers, prefixes.units]

    def scored(vectors: torch.Tensor) -> torch.Tensor:
        return running_readout(torch.matmul(packed, vectors.T), prefixes.sizes, prefixes.scored)

    return _by_labels(scored, label_embeddings, len(packed))


def last_readout(
    hidden: torch.Tensor, label_embeddings: torch.Tensor, mask: torch.Tensor, prefixes: PackedUnits | None = None
) -> torch.Tensor:
    """Scores by BERT4Rec's readout, e_w . h_t with the last hidden vector h_t; see [`attentional_readout`]."""
    if prefixes is None:
        vectors = hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(1) - 1]
    else:
        scored = slice(None) if prefixes.scored is None else prefixes.scored
        vectors = hidden[prefixes.customers[scored], prefixes.units[scored]]
    return _by_labels(lambda part: torch.matmul(vectors, part.T), label_embeddings, vectors.shape[0])


READOUTS = {"attentional": attentional_readout, "last": last_readout}
