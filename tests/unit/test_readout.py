# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The readout: equations 2 and 3, every prefix at once, and the repeat memory, each against plain loops."""

from itertools import product

import pytest
import torch

from modeling_mcm import readout_mcm
from modeling_mcm.readout_mcm import (
    EVERY_UNIT,
    READOUTS,
    WIDEST,
    MaskedReadout,
    RepeatMemory,
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


def prefix_mask(ends, column):
    return torch.arange(UNITS) <= ends[:, column, None]


def test_the_readout_is_equations_2_and_3(inputs):
    torch.testing.assert_close(attentional_readout(*inputs), reference_readout(*inputs), atol=1e-5, rtol=0)


def test_the_reference_is_the_paper_written_for_one_label(inputs):
    hidden, labels, mask = inputs
    h, e = hidden[1, :4], labels[7]
    a = torch.exp(h @ e) / torch.exp(h @ e).sum()
    torch.testing.assert_close(reference_readout(*inputs)[1, 7], (a[:, None] * h).sum(0) @ e, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_all_prefixes_equal_each_prefix_alone(inputs, ends, dtype, tolerance):
    hidden, labels, mask = (t if t.dtype == torch.bool else t.to(dtype) for t in inputs)
    together = attentional_readout(hidden, labels, mask, ends)
    assert together.shape == (BATCH, ends.shape[1], LABELS)
    for column in range(ends.shape[1]):
        alone = reference_readout(hidden, labels, prefix_mask(ends, column))
        torch.testing.assert_close(together[:, column], alone, atol=tolerance, rtol=tolerance)


def test_a_prefix_knows_nothing_of_later_units(inputs, ends):
    hidden, labels, mask = inputs
    hidden.requires_grad_()
    attentional_readout(hidden, labels, mask, ends)[0, 1].sum().backward()  # ends at unit 3
    assert hidden.grad[0, :4].abs().min() > 0
    assert not hidden.grad[0, 4:].any() and not hidden.grad[1:].any()


@pytest.mark.parametrize("long_row", [1, 10**6], ids=["rows", "columns"])
@pytest.mark.parametrize("running", [RunningReadout, WideRunningReadout])
def test_gradients_of_the_running_readout(running, long_row, monkeypatch):
    monkeypatch.setattr(readout_mcm, "LONG_ROW", long_row)
    torch.manual_seed(0)
    z = (3 * torch.randn(6, 2, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(running.apply, (z, z.detach().max()) if running is RunningReadout else (z,))


def test_gradients_of_the_masked_readout():
    torch.manual_seed(0)
    z = (3 * torch.randn(2, 5, 3, dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert torch.autograd.gradcheck(MaskedReadout.apply, (z, mask))


@pytest.mark.parametrize("size", [3.0, 0.49 * WIDEST])
def test_both_running_readouts_give_the_same(size):
    torch.manual_seed(0)
    z = (size * torch.empty(400, 1, 3000).uniform_(-1, 1)).requires_grad_()
    weight = torch.randn(400, 1, 3000)
    scores = [RunningReadout.apply(z, z.detach().max()), WideRunningReadout.apply(z)]
    gradients = [torch.autograd.grad((s * weight).sum(), z)[0] for s in scores]
    for found, expected in (scores, gradients):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    exact = z.detach().double()
    torch.testing.assert_close(scores[0][-1].double(), (exact.softmax(0) * exact).sum(0), atol=1e-4, rtol=1e-5)


def test_gradients_of_all_prefixes_equal_those_of_each_prefix_alone(inputs, ends):
    hidden, labels, mask = (t if t.dtype == torch.bool else t.double().requires_grad_() for t in inputs)
    weight = torch.randn(BATCH, ends.shape[1], LABELS, dtype=torch.float64)
    together = torch.autograd.grad((attentional_readout(hidden, labels, mask, ends) * weight).sum(), (hidden, labels))
    alone = sum(
        (reference_readout(hidden, labels, prefix_mask(ends, column)) * weight[:, column]).sum()
        for column in range(ends.shape[1])
    )
    for found, expected in zip(together, torch.autograd.grad(alone, (hidden, labels)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("with_ends", [False, True])
def test_bfloat16_stays_near_float32(inputs, ends, with_ends):
    hidden, labels, mask = inputs
    exact = attentional_readout(hidden, labels, mask, ends if with_ends else None)
    rough = attentional_readout(hidden.bfloat16(), labels.bfloat16(), mask, ends if with_ends else None)
    assert rough.dtype == torch.bfloat16
    # bfloat16 has 8 bits: z of size 10 is known to 0.04, and its exponential to 4%
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.03)


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_long_sequences_and_huge_scores_stay_finite_and_right(size):
    torch.manual_seed(0)
    steps = 2000
    z = (size * torch.empty(steps, 1, 5).uniform_(-1, 1)).requires_grad_()
    s = running_readout(z)
    assert s.grad_fn.name().startswith("Wide") == (size > WIDEST)
    (gradient,) = torch.autograd.grad(s.sum(), z)
    assert s.isfinite().all() and gradient.isfinite().all()
    exact = z.detach().double()
    for t in (0, 1, 999, steps - 1):
        expected = (exact[: t + 1].softmax(0) * exact[: t + 1]).sum(0)
        torch.testing.assert_close(s[t].detach().double(), expected, atol=1e-3 * size, rtol=1e-3)
    # a common shift of all z of a label shifts s by as much, so the gradients of a column sum to the number of steps
    torch.testing.assert_close(gradient.sum(0), torch.full((1, 5), float(steps)), atol=0, rtol=1e-2)


def test_chunks_of_labels_change_nothing(inputs, ends, monkeypatch):
    hidden, labels, mask = (t if t.dtype == torch.bool else t.requires_grad_() for t in inputs)
    scale = torch.tensor(0.7, requires_grad=True)
    seen = []
    plain = readout_mcm.running_readout
    monkeypatch.setattr(readout_mcm, "running_readout", lambda z: seen.append(z.shape[-1]) or plain(z))

    def run():
        seen.clear()
        scores = attentional_readout(hidden, labels, mask, ends, scale)
        return scores, list(seen), torch.autograd.grad(scores.square().sum(), (hidden, labels, scale))

    whole, whole_parts, whole_gradients = run()
    monkeypatch.setattr(readout_mcm, "CHUNK_ELEMENTS", 4 * BATCH * UNITS)
    chunked, parts, gradients = run()
    assert whole_parts == [LABELS] and parts == [4, 4, 3]
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    for found, expected in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("readout", [attentional_readout, last_readout])
@torch.no_grad()
def test_without_gradients_a_score_is_the_same_bits_however_many_labels_there_are(readout):
    torch.manual_seed(0)
    hidden, labels = torch.randn(3, 9, 24), torch.randn(700, 24)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    every = readout(hidden, labels, mask)
    for count in (5, 127, 128, 129, 300):
        assert torch.equal(readout(hidden, labels[:count], mask), every[:, :count]), count
    with torch.enable_grad():
        exact = readout(hidden.double().requires_grad_(), labels.double(), mask)
    torch.testing.assert_close(every.double(), exact.detach(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize("readout", [attentional_readout, last_readout])
def test_the_scale_multiplies_z(inputs, ends, readout, with_ends):
    hidden, labels, mask = inputs
    chosen = ends if with_ends else None
    scaled = readout(hidden, labels, mask, chosen, torch.tensor(0.5))
    torch.testing.assert_close(scaled, readout(hidden, 0.5 * labels, mask, chosen), atol=1e-5, rtol=1e-5)


def test_padding_has_a_weight_of_exactly_0(inputs):
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
def test_what_stands_on_padding_changes_no_bit(inputs, readout):
    hidden, labels, mask = inputs
    changed = torch.where(mask[..., None], hidden, 1e6)
    assert torch.equal(readout(changed, labels, mask), readout(hidden, labels, mask))


def test_the_last_readout_is_the_last_hidden_vector(inputs, ends):
    hidden, labels, mask = inputs
    expected = torch.stack([hidden[row, length - 1] for row, length in enumerate(LENGTHS)]) @ labels.T
    torch.testing.assert_close(last_readout(hidden, labels, mask), expected)
    expected = torch.stack([hidden[row, ends[row]] for row in range(BATCH)]) @ labels.T
    torch.testing.assert_close(last_readout(hidden, labels, mask, ends), expected)


# ------------------------------------------------------------------------------------------------------ repeat memory


TASKS = [LABELS, 4]


@pytest.fixture
def memory():
    torch.manual_seed(1)
    memory = RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0])
    memory.reset_parameters()
    with torch.no_grad():  # every term of the formula must count
        for parameter in memory.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return memory


@pytest.fixture
def history():
    """Labels, the units that they are met in, vectors of the events; days of the units, last units of the prefixes."""
    torch.manual_seed(2)
    label_ids = torch.tensor([[2, 5, 5, 1, 0, 2, 10, 5], [1, 0, 7, 7, 0, 0, 0, 0], [0] * 8])
    event_units = torch.tensor([[0, 1, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 0, 0, 0, 0], [0] * 8])
    unit_times = torch.tensor([[0, 1, 8, 20], [0, 2, 4, 4], [0, 0, 0, 0]]).float()
    unit_ends = torch.tensor([[3, 1, 0], [3, 2, 1], [0, 0, 0]])
    return label_ids, event_units, torch.randn(BATCH, 8, HIDDEN), unit_times, unit_ends


def plain_counts(memory, label_ids, event_units, embeddings, unit_times, unit_ends):
    """n of the docstring for every label, of shape (B, P, V, K), one unit at a time."""
    result = torch.zeros(BATCH, unit_ends.shape[1], LABELS, len(memory.half_lives))
    half_lives = memory.log_half_life.exp()
    for b, p in product(range(BATCH), range(unit_ends.shape[1])):
        end = int(unit_ends[b, p])
        for w, u in product(range(2, LABELS), range(end + 1)):
            votes = [
                torch.exp(memory.vote.weight[0] @ e + memory.vote.bias[0])
                for e, label, unit in zip(embeddings[b], label_ids[b], event_units[b], strict=True)
                if label == w and unit == u
            ]
            if votes:
                ages = [unit_times[b, end] - unit_times[b, u]] * 2 + [torch.tensor(float(end - u))]
                result[b, p, w] += sum(votes) / len(votes) * 2 ** (-torch.stack(ages) / half_lives)
    return result


@torch.no_grad()
def added(memory, task, history):
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    scores = torch.randn(BATCH, unit_ends.shape[1], TASKS[task])
    met = memory.votes(label_ids, event_units, embeddings, unit_times.shape[1])
    decays = memory.decays(unit_times, unit_ends)
    return memory(task, scores.clone(), decays, unit_times, unit_ends, *met) - scores


@torch.no_grad()
def test_a_memory_counts_as_a_plain_loop_does(memory, history):
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    labels, votes = memory.votes(label_ids, event_units, embeddings, 4)
    for b in range(BATCH):
        known = [label for label in labels[b].tolist() if label]
        assert sorted(known) == sorted({label for label in label_ids[b].tolist() if label > 1})
    counts = torch.einsum("bsu,bupk->bpsk", votes, memory.decays(unit_times, unit_ends))
    expected = plain_counts(memory, *history)
    found = torch.zeros_like(expected)
    for b, slot in product(range(BATCH), range(labels.shape[1])):
        found[b, :, labels[b, slot]] += counts[b, :, slot]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected[0, 0, 5] > 0).all() and not expected[2].any()


def sensitivity(memory, task):
    """exp(b_k + f_k r_w), of shape (V, K)."""
    return torch.exp(memory.log_sensitivity[task] + memory.rarity_weight[task] * memory.label_rarity[task].weight)


@torch.no_grad()
def test_a_memory_adds_what_its_docstring_says(memory, history):
    n = plain_counts(memory, *history)
    growth = memory.memory_growth[0] * torch.log(1 + history[-1])[:, :, None, None]
    gains = memory.memory_gain[0] + memory.label_gains[0].weight + growth
    expected = (torch.log(1 + n * sensitivity(memory, 0)) * gains).sum(-1)
    torch.testing.assert_close(added(memory, 0, history), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_each_task_has_a_memory_of_its_own(memory, history):
    history = (history[0].clamp(max=3), *history[1:])
    n = plain_counts(memory, *history)[:, :, :4]
    growth = memory.memory_growth[1] * torch.log(1 + history[-1])[:, :, None, None]
    gains = memory.memory_gain[1] + memory.label_gains[1].weight + growth
    expected = (torch.log(1 + n * sensitivity(memory, 1)) * gains).sum(-1)
    torch.testing.assert_close(added(memory, 1, history), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(added(memory, 0, history)[..., :4], expected, atol=1e-2)


def plain_habits(labels, units, days, end):
    """log(1 + x) of what `habits` says, for each label that a prefix met: {label: six numbers}."""
    result = {}
    for w in {label for label, unit in zip(labels, units, strict=True) if label > 1 and unit <= end}:
        met = sorted({unit for label, unit in zip(labels, units, strict=True) if label == w and unit <= end})
        gap = (met[-1] - met[0]) / (len(met) - 1) if len(met) > 1 else 0.0
        ages = [end - met[0], end - met[-1], gap, days[end] - days[met[0]], days[end] - days[met[-1]]]
        result[w] = torch.tensor([len(met), *ages]).log1p()
    return result


@torch.no_grad()
def test_habits_say_how_often_and_how_long_ago(memory, history):
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    labels, votes = memory.votes(label_ids, event_units, embeddings, 4)
    found = memory.habits(unit_times, unit_ends, votes)
    seen = 0
    for b, p in product(range(BATCH), range(unit_ends.shape[1])):
        expected = plain_habits(label_ids[b].tolist(), event_units[b].tolist(), unit_times[b], int(unit_ends[b, p]))
        for slot, label in enumerate(labels[b].tolist()):
            torch.testing.assert_close(found[b, slot, p], expected.get(label, torch.zeros(6)))
            seen += label in expected
    assert seen == 8  # label 5 of three units among them, with a gap


@pytest.mark.parametrize("task", [0, 1])
@torch.no_grad()
def test_the_network_adds_what_it_makes_of_terms_and_habits(history, task):
    history = (history[0].clamp(max=TASKS[task] - 1), *history[1:])
    torch.manual_seed(1)
    memory = RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0], network_size=5)
    memory.reset_parameters()
    for parameter in memory.parameters():
        parameter += 0.5 * torch.randn_like(parameter)
    with_network = added(memory, task, history)
    n = plain_counts(memory, *history)[:, :, : TASKS[task]]
    terms = torch.log(1 + n * sensitivity(memory, task))
    first, second = memory.network_in[task], memory.network_out[task]
    memory.network_in = torch.nn.ModuleList()
    expected = added(memory, task, history)
    for b, p in product(range(BATCH), range(3)):
        end = int(history[-1][b, p])
        habits = plain_habits(history[0][b].tolist(), history[1][b].tolist(), history[3][b], end)
        for w, of_label in habits.items():
            rarity = memory.label_rarity[task].weight[w] / 2
            x = torch.cat([terms[b, p, w], of_label, torch.log(torch.tensor([1.0 + end])) / 3, rarity])
            expected[b, p, w] += second(first(x).relu())[0]
    torch.testing.assert_close(with_network, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_fresh_network_is_silent(history):
    torch.manual_seed(0)
    plain, fresh = (RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0], network_size=size) for size in (0, 5))
    for memory in (plain, fresh):
        memory.reset_parameters()
    assert fresh.network_in[0].weight.std() > 0.1
    torch.testing.assert_close(added(fresh, 0, history), added(plain, 0, history))


def test_a_fresh_memory_is_a_recency_weighted_frequency(history):
    memory = RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0])
    memory.reset_parameters()
    n = plain_counts(memory, *history)[0, 0, 5]  # label 5: units 1 and 3 of days 1 and 20, seen from unit 3
    days, units = ([1 + 2 ** (-age / half_life) for half_life in of] for age, of in ((19, (2, 30)), (2, (3,))))
    torch.testing.assert_close(n, torch.tensor([*days, *units]))
    found = added(memory, 0, history)[0, 0]
    assert found[5] > found[2] > found[10] > 0  # twice, the later time today; twice; once
    torch.testing.assert_close(found[[3, 4, 6, 7, 8, 9]], torch.zeros(6))


# ---------------------------------------------------------------------------------------------------------- every unit


@pytest.mark.parametrize("name", READOUTS)
def test_every_unit_is_what_all_ends_give(name):
    torch.manual_seed(0)
    hidden, embeddings = torch.randn(2, 5, 8), torch.randn(6, 8)
    mask, ends, scale = torch.ones(2, 5, dtype=torch.bool), torch.arange(5).expand(2, 5), torch.tensor(0.7)
    every = READOUTS[name](hidden, embeddings, mask, EVERY_UNIT, scale)
    torch.testing.assert_close(every, READOUTS[name](hidden, embeddings, mask, ends, scale))
