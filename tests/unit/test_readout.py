# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The readout: equations 2 and 3, and every prefix at once, each against plain loops."""

import pytest
import torch

from modeling_mcm import readout_mcm
from modeling_mcm.readout_mcm import (
    READOUTS,
    WIDEST,
    MaskedReadout,
    PackedUnits,
    RunningReadout,
    WideRunningReadout,
    attention_weights,
    attentional_readout,
    last_readout,
    reference_readout,
    running_readout,
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


def at_ends(readout, hidden, labels, mask, ends):
    """Scores after the prefixes that end at `ends`, of shape `(B, P, V)`."""
    units = PackedUnits.of(mask)
    return readout(hidden, labels, mask, units)[units.score_rows.gather(1, ends)]


def test_readout_is_equations_2_and_3(inputs):
    torch.testing.assert_close(attentional_readout(*inputs), reference_readout(*inputs), atol=1e-5, rtol=0)


def test_reference_is_the_paper_for_one_label(inputs):
    hidden, labels, mask = inputs
    h, e = hidden[1, :4], labels[7]
    a = torch.exp(h @ e) / torch.exp(h @ e).sum()
    torch.testing.assert_close(reference_readout(*inputs)[1, 7], (a[:, None] * h).sum(0) @ e, atol=1e-5, rtol=1e-5)


SIZES = [3, 3, 2, 1, 1]  # customers of 5, 3 and 2 units


@pytest.mark.parametrize("scored", [None, [1, 3, 8]], ids=["all", "some"])
@pytest.mark.parametrize("long_row", [1, 10**6], ids=["rows", "columns"])
def test_gradients_of_the_running_readout(long_row, scored, monkeypatch):
    monkeypatch.setattr(readout_mcm, "LONG_ROW", long_row)
    torch.manual_seed(0)
    z = (3 * torch.randn(10, 3, dtype=torch.float64)).requires_grad_()
    places = None if scored is None else torch.tensor(scored)
    assert torch.autograd.gradcheck(RunningReadout.apply, (z, z.detach().max(), SIZES, places))


def test_gradients_of_the_wide_running_readout():
    torch.manual_seed(0)
    z = (3 * torch.randn(10, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(WideRunningReadout.apply, (z, SIZES))


def test_units_are_packed_by_step():
    mask = torch.arange(5) < torch.tensor([2, 5, 0, 3])[:, None]
    units = PackedUnits.of(mask)
    assert units.sizes == SIZES
    assert units.customers.tolist() == [1, 3, 0, 1, 3, 0, 1, 3, 1, 1]
    assert units.units.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 4]
    places = torch.arange(20).view(4, 5)
    assert torch.equal(places[units.customers, units.units][units.score_rows][mask], places[mask])
    assert (units.score_rows[~mask] == -1).all() and units.scored is None


def test_only_units_that_end_a_prefix_are_scored():
    mask = torch.arange(5) < torch.tensor([2, 5, 0, 3])[:, None]
    scored = torch.zeros_like(mask)
    scored[[1, 1, 3], [1, 4, 0]] = True
    units = PackedUnits.of(mask, scored)
    assert units.sizes == SIZES and units.scored.tolist() == [1, 3, 9]  # of customers 3, 1, 1
    assert units.score_rows[[3, 1, 1], [0, 1, 4]].tolist() == [0, 1, 2] and units.score_rows.sum() == 3 - (20 - 3)
    assert PackedUnits.of(mask, mask).scored is None


@pytest.mark.parametrize("outlier", [0.0, 2 * WIDEST], ids=["narrow", "wide"])
def test_half_precision_is_summed_in_float32(outlier):
    torch.manual_seed(0)
    z = torch.randn(400, 50).bfloat16()
    z[7, 49] = outlier
    found = running_readout(z, [1] * 400)
    assert found.dtype == torch.bfloat16
    exact = z[..., :49].double()
    expected = torch.stack([(exact[: t + 1].softmax(0) * exact[: t + 1]).sum(0) for t in range(400)])
    # rounded once, at the end: three digits; sums of 400 terms in bfloat16 would be off by tenths
    torch.testing.assert_close(found[..., :49].double(), expected, atol=0.005, rtol=0.005)


def test_gradients_of_the_masked_readout():
    torch.manual_seed(0)
    z = (3 * torch.randn(2, 5, 3, dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert torch.autograd.gradcheck(MaskedReadout.apply, (z, mask))


@pytest.mark.parametrize("with_prefixes", [False, True])
def test_bfloat16_stays_near_float32(inputs, with_prefixes):
    hidden, labels, mask = inputs
    prefixes = PackedUnits.of(mask) if with_prefixes else None
    exact = attentional_readout(hidden, labels, mask, prefixes)
    rough = attentional_readout(hidden.bfloat16(), labels.bfloat16(), mask, prefixes)
    assert rough.dtype == torch.bfloat16
    # bfloat16 has 8 bits: z of size 10 is known to 0.04, and its exponential to 4%
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.03)


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_long_sequences_and_large_scores_are_exact(size):
    torch.manual_seed(0)
    steps = 2000
    z = (size * torch.empty(steps, 5).uniform_(-1, 1)).requires_grad_()
    s = running_readout(z, [1] * steps)
    assert s.grad_fn.name().startswith("Wide") == (size > WIDEST)
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
    plain = readout_mcm.running_readout
    monkeypatch.setattr(readout_mcm, "running_readout", lambda z, *units: seen.append(z.shape[-1]) or plain(z, *units))

    def run():
        seen.clear()
        scores = at_ends(attentional_readout, hidden, labels, mask, ends)
        return scores, list(seen), torch.autograd.grad(scores.square().sum(), (hidden, labels))

    whole, whole_parts, whole_gradients = run()
    monkeypatch.setattr(readout_mcm, "CHUNK_ELEMENTS", 4 * sum(LENGTHS))
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


def test_padding_has_weight_0(inputs):
    hidden, labels, mask = inputs
    weights = attention_weights(hidden, labels, mask)
    assert weights.shape == (BATCH, LABELS, UNITS)
    padding = ~mask[:, None].expand_as(weights)
    assert (weights[padding] == 0).all() and (weights[~padding] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, LABELS))
    # equation 3 from the weights
    z = torch.einsum("buh,vh->bvu", hidden, labels)
    torch.testing.assert_close((weights * z).sum(-1), reference_readout(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("readout", [reference_readout, attentional_readout, last_readout])
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
@pytest.mark.parametrize("size", [1.0, 60.0], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", READOUTS)
def test_prefixes_give_what_each_gives_alone(inputs, name, size, scored):
    hidden, embeddings, mask = inputs
    hidden, embeddings = (size * hidden).requires_grad_(), embeddings.requires_grad_()
    wanted = mask
    if scored is not None:
        wanted = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < scored)
    units = PackedUnits.of(mask, wanted)
    packed = READOUTS[name](hidden, embeddings, mask, units)
    assert packed.shape == (int(wanted.sum()), LABELS)
    packed = packed[units.score_rows[wanted]]
    heads = [mask & (torch.arange(UNITS) <= end) for end in range(UNITS)]
    alone = torch.stack([READOUTS[name](hidden, embeddings, head) for head in heads], 1)[wanted]
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(packed)
    gradients = (torch.autograd.grad((s * weight).sum(), (hidden, embeddings)) for s in (packed, alone))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-2 * size, rtol=1e-3)
