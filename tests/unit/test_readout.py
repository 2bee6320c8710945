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


def test_gradients_of_the_running_readout():
    torch.manual_seed(0)
    z = (3 * torch.randn(5, 3, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(RunningReadout.apply, (z,))


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


def test_chunking_labels_does_not_change_scores(inputs, ends, monkeypatch):
    hidden, labels, mask = (t if t.dtype == torch.bool else t.requires_grad_() for t in inputs)
    seen = []
    plain = RunningReadout.apply
    monkeypatch.setattr(RunningReadout, "apply", lambda z: seen.append(z.shape[-1]) or plain(z))

    def run():
        seen.clear()
        scores = at_ends(attentional_readout, hidden, labels, mask, ends)
        return scores, list(seen), torch.autograd.grad(scores.square().sum(), (hidden, labels))

    whole, whole_parts, whole_gradients = run()
    monkeypatch.setattr(readout_mcm, "CHUNK_ELEMENTS", 4 * BATCH * UNITS)
    chunked, parts, gradients = run()
    assert whole_parts == [LABELS] and parts == [4, 4, 3]
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    for found, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("readout", [attentional_readout, last_readout])
@torch.no_grad()
def test_number_of_labels_does_not_change_bits(readout):
    torch.manual_seed(0)
    hidden, labels = torch.randn(3, 9, 24), torch.randn(700, 24)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    every = readout(hidden, labels, mask)
    for count in (5, 127, 128, 129, 300):
        assert torch.equal(readout(hidden, labels[:count], mask), every[:, :count]), count
    with torch.enable_grad():
        exact = readout(hidden.double().requires_grad_(), labels.double(), mask)
    torch.testing.assert_close(every.double(), exact.detach(), atol=1e-4, rtol=1e-5)


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
def test_prefixes_give_what_each_gives_alone(inputs, name, size, scored):
    hidden, embeddings, mask = inputs
    hidden, embeddings = (size * hidden).requires_grad_(), embeddings.requires_grad_()
    wanted = mask
    if scored is not None:
        wanted = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < scored)
    together = READOUTS[name](hidden, embeddings, mask, PrefixEnds(*wanted.nonzero(as_tuple=True)))
    assert together.shape == (int(wanted.sum()), LABELS)
    heads = [mask & (torch.arange(UNITS) <= end) for end in range(UNITS)]
    alone = torch.stack([READOUTS[name](hidden, embeddings, head) for head in heads], 1)[wanted]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(together)
    gradients = (torch.autograd.grad((s * weight).sum(), (hidden, embeddings)) for s in (together, alone))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-2 * size, rtol=1e-3)
