# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The readout: computes one score for each label from the hidden vectors.

Shapes: B customers, U encoder units (events or visits), R scored prefixes of all customers, H hidden size, V labels.

With z_{w,i} = e_w . h_i, equations 2 and 3 of the paper are r_w = sum_i softmax_i(z_w)_i h_i and s(w) = e_w . r_w.
`attentional_readout` computes the same without r_w: s(w) = sum_i softmax_i(z_w)_i z_{w,i}. It scores all prefixes of a
sequence in one pass: under a causal encoder h_i depends on events up to i only, so prefix t needs the same sum over
i <= t, and a running softmax computes it for all t.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**18  # scores of units that are held at once without gradients: they stay in the processor's cache
PADDED = -1e4  # z of padding: its weight is 0, in half precision too


class PrefixEnds(NamedTuple):
    """The prefixes that are scored."""

    customers: Tensor  # (R,): customer of each prefix
    units: Tensor  # (R,): last unit of each prefix


def find_prefixes(is_target: Tensor, ends: Tensor | None, units: int) -> tuple[Tensor, PrefixEnds | None]:
    """The prefixes that targets `(B, N)` follow, each once, and the index of each target's, of shape `(B, N)`, from
    the prefixes' last units `(B, N)`, which are less than `units`. `None`: each target follows the whole history."""
    customers = torch.arange(len(is_target), device=is_target.device)[:, None].expand_as(is_target)
    if ends is None:
        return customers, None
    cells = customers * units + ends
    scored = cells[is_target].unique()
    return torch.searchsorted(scored, cells), PrefixEnds(scored // units, scored % units)


class RunningReadout(torch.autograd.Function):
    """s_t(w) = sum_{i<=t} exp(z_i) z_i / sum_{i<=t} exp(z_i) for every unit t.

    Forward keeps the running log-sum-exp c_t = log sum_{i<=t} exp(z_i) and moves the average by the new term's weight:
    s_t = s_{t-1} + exp(z_t - c_t) (z_t - s_{t-1}). Since c_t >= z_i for all i <= t, no exponent is ever positive.
    Backward: ds_t/dz_i = exp(z_i - c_t) (1 + z_i - s_t). With g_t, the gradient of s_t, and the decayed sums from the
    right G_i = sum_{t>=i} g_t exp(c_i - c_t) and R_i = sum_{t>=i} g_t s_t exp(c_i - c_t), the gradient of z_i is
    exp(z_i - c_i) ((1 + z_i) G_i - R_i).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Computes the scores of all prefixes, of shape `(U, B, V)`, from z of this shape."""
        s, c = z.clone(), z.clone()
        for t in range(1, len(z)):
            torch.logaddexp(c[t - 1], z[t], out=c[t])
            torch.lerp(s[t - 1], z[t], (z[t] - c[t]).exp_(), out=s[t])
        ctx.save_for_backward(z, s, c)
        return s

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Computes the gradient of z from that of s."""
        z, s, c = ctx.saved_tensors
        g, r = gradient.clone(), gradient * s
        for t in range(len(z) - 1, 0, -1):
            decay = (c[t - 1] - c[t]).exp_()
            g[t - 1].addcmul_(g[t], decay)
            r[t - 1].addcmul_(r[t], decay)
        return torch.addcmul(g, g, z).sub_(r).mul_((z - c).exp_())


def attentional_readout(
    hidden: Tensor, label_embeddings: Tensor, mask: Tensor, ends: PrefixEnds | None = None
) -> Tensor:
    """Scores by equations 2 and 3 after the whole sequence, or after prefixes of it.

    Args:
        hidden (`torch.FloatTensor` of shape `(B, U, H)`): Hidden vector h of each unit; padding is on the right.
        label_embeddings (`torch.FloatTensor` of shape `(V, H)`): Embedding e of each label.
        mask (`torch.BoolTensor` of shape `(B, U)`): True where a unit is real.
        ends ([`PrefixEnds`], *optional*): Prefixes to score. Only for causal encoders. Default: the whole sequence.

    Returns:
        `torch.FloatTensor`: scores s of shape `(B, V)`; `(R, V)` with `ends`.
    """
    units, labels = hidden.shape[1], len(label_embeddings)
    # Of one product: `matmul` of the batch would make a product for each unit of a single customer
    if ends is not None:
        z = (hidden.transpose(0, 1).flatten(0, 1) @ label_embeddings.T).unflatten(0, (units, -1))  # (U, B, V)
        return RunningReadout.apply(z.float() if z.dtype.itemsize < 4 else z)[ends.units, ends.customers].to(z.dtype)
    hidden = hidden.masked_fill(~mask[..., None], 0.0)
    away = torch.where(mask[..., None], 0.0, PADDED).to(hidden.dtype)

    def score(hidden: Tensor, away: Tensor) -> Tensor:
        z = (hidden.flatten(0, 1) @ label_embeddings.T).unflatten(0, (-1, units)) + away  # (B, U, V)
        return (z.softmax(1) * z).sum(1)

    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return score(hidden, away)
    customers = max(1, AT_ONCE // (units * labels))
    return torch.cat([score(*part) for part in zip(hidden.split(customers), away.split(customers), strict=True)])


def last_readout(hidden: Tensor, label_embeddings: Tensor, mask: Tensor, ends: PrefixEnds | None = None) -> Tensor:
    """Scores by BERT4Rec's readout, e_w . h_t with the last hidden vector h_t; see [`attentional_readout`]."""
    if ends is None:
        ends = PrefixEnds(torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1)
    return hidden[ends.customers, ends.units] @ label_embeddings.T


READOUTS = {"attentional": attentional_readout, "last": last_readout}
