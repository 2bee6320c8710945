# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The readout: equations 2 and 3, and every prefix at once, each against plain loops."""

import pytest
import torch

from modeling_mcm import readout_mcm
from modeling_mcm.readout_mcm import (
    READOUTS,
    PrefixEnds,
    RunningReadout,
    attentional_readout,
    last_readout,
)

BATCH, UNITS, HIDDEN, LABELS = 3, 9, 8, 11
LENGTHS = [9, 4, 1]


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    mask = torch.arange(UNITS) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(BATCH, UNITS, HIDDEN), torch.randn(LABELS, HIDDEN), mask


@pytest.fixture
def ends():
    return torch.tensor([[0, 3, 8, 8], [3, 0, 2, 1], [0, 0, 0, 0]])


def reference_readout(hidden, labels, mask):
    """Equations 2 and 3, label by label: the units weighed by a softmax of their products with the label."""
    scores = torch.zeros(len(hidden), len(labels))
    for row, units in enumerate(hidden):
        h = units[mask[row]]
        for label, e in enumerate(labels):
            a = torch.exp(h @ e) / torch.exp(h @ e).sum()
            scores[row, label] = (a[:, None] * h).sum(0) @ e
    return scores


def at_ends(readout, hidden, labels, mask, ends):
    """Scores after the prefixes that end at `ends`, of shape `(B, P, V)`."""
    customers = torch.arange(len(ends))[:, None].expand_as(ends)
    return readout(hidden, labels, mask, PrefixEnds(customers.flatten(), ends.flatten())).unflatten(0, ends.shape)


def test_readout_is_equations_2_and_3(inputs):
    torch.testing.assert_close(attentional_readout(*inputs), reference_readout(*inputs), atol=1e-5, rtol=1e-5)


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    hidden, mask = torch.randn(1, 400, 8).bfloat16(), torch.ones(1, 400, dtype=torch.bool)
    labels, ends = torch.randn(50, 8).bfloat16(), torch.arange(400)[None]
    found = at_ends(attentional_readout, hidden, labels, mask, ends)[0]
    assert found.dtype == torch.bfloat16
    z = (hidden[0] @ labels.T).double()
    expected = torch.stack([(z[: t + 1].softmax(0) * z[: t + 1]).sum(0) for t in range(400)])
    # rounded once, at the end: three digits; sums of 400 terms in bfloat16 would be off by tenths
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.005)


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_long_sequences_and_large_scores_are_exact(size):
    torch.manual_seed(0)
    steps = 2000
    z = (size * torch.empty(steps, 5).uniform_(-1, 1)).requires_grad_()
    s = RunningReadout.apply(z)
    (gradient,) = torch.autograd.grad(s.sum(), z)
    assert s.isfinite().all() and gradient.isfinite().all()
    exact = z.detach().double()
    for t in (0, 1, 999, steps - 1):
        expected = (exact[: t + 1].softmax(0) * exact[: t + 1]).sum(0)
        torch.testing.assert_close(s[t].detach().double(), expected, atol=1e-3 * size, rtol=1e-3)
    # a common shift of all z of a label shifts s by as much, so the gradients of a column sum to the number of steps
    torch.testing.assert_close(gradient.sum(0), torch.full((5,), float(steps)), atol=0, rtol=1e-2)


@pytest.mark.parametrize("readout", [attentional_readout, last_readout])
def test_padding_values_are_ignored(inputs, readout):
    hidden, labels, mask = inputs
    changed = torch.where(mask[..., None], hidden, 1e6)
    assert torch.equal(readout(changed, labels, mask), readout(hidden, labels, mask))


def test_the_last_readout_is_the_last_hidden_vector(inputs, ends):
    hidden, labels, mask = inputs
    expected = torch.stack([hidden[row, length - 1] for row, length in enumerate(LENGTHS)]) @ labels.T
    torch.testing.assert_close(last_readout(hidden, labels, mask), expected)
    expected = torch.stack([hidden[row, ends[row]] for row in range(BATCH)]) @ labels.T
    torch.testing.assert_close(at_ends(last_readout, hidden, labels, mask, ends), expected)


@pytest.mark.parametrize("scored", [None, 0.3], ids=["all", "some"])
@pytest.mark.parametrize("size", [1.0, 60.0])
@pytest.mark.parametrize("name", READOUTS)
def test_prefixes_give_what_each_gives_alone(inputs, name, size, scored, monkeypatch):
    hidden, embeddings, mask = inputs
    hidden, embeddings = (size * hidden).requires_grad_(), embeddings.requires_grad_()
    wanted = mask
    if scored is not None:
        wanted = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < scored)
    ends = PrefixEnds(*wanted.nonzero(as_tuple=True))
    together = READOUTS[name](hidden, embeddings, mask, ends)
    monkeypatch.setattr(readout_mcm, "AT_ONCE", 4)
    whole = READOUTS[name](hidden, embeddings, mask)
    with torch.no_grad():  # one customer at a time
        torch.testing.assert_close(READOUTS[name](hidden, embeddings, mask), whole.detach())
    assert together.shape == (int(wanted.sum()), LABELS)
    heads = [mask & (torch.arange(UNITS) <= end) for end in range(UNITS)]
    alone = torch.stack([READOUTS[name](hidden, embeddings, head) for head in heads], 1)[wanted]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(together)
    gradients = (torch.autograd.grad((s * weight).sum(), (hidden, embeddings)) for s in (together, alone))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-2 * size, rtol=1e-3)
