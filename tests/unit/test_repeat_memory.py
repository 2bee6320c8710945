# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The repeat memory against plain loops over what a customer met."""

from itertools import product

import pytest
import torch

from modeling_mcm.repeat_memory_mcm import RepeatMemory

BATCH, UNITS, HIDDEN, LABELS = 3, 9, 8, 11

TASKS = [LABELS, 4]


@pytest.fixture
def memory():
    torch.manual_seed(1)
    memory = RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0], network_size=0)
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
def added(memory, task, history, waits=None):
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    ids = torch.stack([label_ids.clamp(max=size - 1) for size in TASKS], -1)  # each task has labels, of its own size
    met = memory.votes(ids, event_units, embeddings, unit_times.shape[1])
    customers, prefixes, labels, values = memory(range(len(TASKS)), unit_times, unit_ends, met, waits=waits)[task]
    found = torch.zeros(BATCH, unit_ends.shape[1], TASKS[task])
    found[customers, prefixes, labels] = values  # a pair comes once
    assert found.count_nonzero() <= len(values)
    return found


@torch.no_grad()
def test_counts_match_a_loop(memory, history):
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    ((labels, votes),) = memory.votes(label_ids[..., None], event_units, embeddings, 4)
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


@pytest.mark.parametrize("task", [0, 1])
@torch.no_grad()
def test_memory_adds_its_formula(memory, history, task):
    history = (history[0].clamp(max=TASKS[task] - 1), *history[1:])
    n = plain_counts(memory, *history)[:, :, : TASKS[task]]
    growth = memory.memory_growth[task] * torch.log(1 + history[-1])[:, :, None, None]
    gains = memory.memory_gain[task] + memory.label_gains[task].weight + growth
    expected = (torch.log(1 + n * sensitivity(memory, task)) * gains).sum(-1)
    torch.testing.assert_close(added(memory, task, history), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_counts_fade_until_now(memory, history):
    """What fades by days has faded on, as if a unit without labels had come then; what fades by units has not."""
    *events, unit_times, unit_ends = history
    waits = torch.tensor([[3.0, 0.0, 40.0], [1.0, 2.0, 0.5], [7.0, 7.0, 7.0]])
    later = torch.exp2(-waits[..., None] / memory.log_half_life.exp()[:2])
    n = plain_counts(memory, *history)
    n[..., :2] *= later[:, :, None]
    gains = memory.memory_gain[0] + memory.label_gains[0].weight
    gains = gains + memory.memory_growth[0] * torch.log(1 + unit_ends)[:, :, None, None]
    expected = (torch.log(1 + n * sensitivity(memory, 0)) * gains).sum(-1)
    torch.testing.assert_close(added(memory, 0, history, waits), expected, atol=1e-5, rtol=1e-4)
    nothing = torch.zeros_like(waits)
    assert torch.equal(added(memory, 0, history, nothing), added(memory, 0, history))


@torch.no_grad()
def test_network_reads_the_time_since_a_label_at_now(history):
    torch.manual_seed(1)
    memory = RepeatMemory(TASKS, HIDDEN, [2.0], [3.0], network_size=4)
    memory.reset_parameters()
    memory.log_half_life[0] = 50  # counts do not fade by days: what differs is what the network reads
    memory.network_out[0].weight.normal_()
    *events, unit_times, unit_ends = history
    shifted = (*events, unit_times + 5 * torch.arange(4).eq(3), unit_ends)  # the last unit comes 5 days later
    ends = torch.full_like(unit_ends, 3)
    waits = torch.full(ends.shape, 5.0)
    met = torch.tensor([2, 10])  # by customer 0 in unit 2, so that both ask 5 days later
    found = added(memory, 0, (*events, unit_times, ends), waits)[0][:, met]
    torch.testing.assert_close(found, added(memory, 0, (*shifted[:3], shifted[3], ends))[0][:, met])
    assert not torch.allclose(found, added(memory, 0, (*events, unit_times, ends))[0][:, met])


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
def test_pairs_are_labels_of_each_prefix(memory, history):
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    met = memory.votes(label_ids[..., None], event_units, embeddings, 4)
    prefix_mask = torch.tensor([[True, False, True]] * BATCH)
    for wanted, kept in ((None, torch.ones_like(prefix_mask)), (prefix_mask, prefix_mask)):
        ((customers, prefixes, labels, _),) = memory([0], unit_times, unit_ends, met, wanted)
        found = list(zip(customers.tolist(), prefixes.tolist(), labels.tolist(), strict=True))
        expected = {
            (b, p, label)
            for b, p in product(range(BATCH), range(unit_ends.shape[1]))
            for label, unit in zip(label_ids[b].tolist(), event_units[b].tolist(), strict=True)
            if label > 1 and unit <= unit_ends[b, p] and kept[b, p]
        }
        assert len(found) == len(set(found)) and set(found) == expected


def test_loop_over_units_equals_sum_over_prefixes(memory, history):
    label_ids, event_units, embeddings, unit_times, _ = history
    ends = torch.arange(4).expand(BATCH, 4)
    found = []
    for prefix_mask in (torch.ones_like(ends).bool(), None):  # with a mask the units are looped over
        met = memory.votes(label_ids[..., None], event_units, embeddings, 4)
        (customers, prefixes, labels, values), *_ = memory([0], unit_times, ends, met, prefix_mask)
        weights = torch.cos(torch.arange(len(values)))
        gradients = torch.autograd.grad((values * weights).sum(), [memory.log_half_life, *memory.vote.parameters()])
        found.append((customers, prefixes, labels, values, *gradients))
    for walked, summed in zip(*found, strict=True):
        torch.testing.assert_close(walked, summed, atol=1e-5, rtol=1e-5)
    assert found[0][4].all()


@torch.no_grad()
def test_meetings_match_loops(memory, history):
    label_ids, event_units, embeddings, _, unit_ends = history
    ((labels, votes),) = memory.votes(label_ids[..., None], event_units, embeddings, 4)
    for ends in (unit_ends, unit_ends[:, :1]):  # one prefix has a way of its own
        number, first, last = memory.meetings(ends, votes)
        for b, slot, p in product(range(BATCH), range(labels.shape[1]), range(ends.shape[1])):
            units = [u for i, u in zip(label_ids[b], event_units[b], strict=True) if i == labels[b, slot] and i > 1]
            units = sorted({int(unit) for unit in units if unit <= ends[b, p]})
            assert number[b, slot, p] == len(units)
            assert not units or [first[b, slot, p], last[b, slot, p]] == [units[0], units[-1]]


@pytest.mark.parametrize("task", [0, 1])
@torch.no_grad()
def test_network_adds_its_output(history, task):
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
def test_fresh_network_adds_nothing(history):
    torch.manual_seed(0)
    plain, fresh = (RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0], network_size=size) for size in (0, 5))
    for memory in (plain, fresh):
        memory.reset_parameters()
    assert fresh.network_in[0].weight.std() > 0.1
    torch.testing.assert_close(added(fresh, 0, history), added(plain, 0, history))


def test_fresh_memory_is_recency_weighted_frequency(history):
    memory = RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0], network_size=0)
    memory.reset_parameters()
    n = plain_counts(memory, *history)[0, 0, 5]  # label 5: units 1 and 3 of days 1 and 20, seen from unit 3
    days, units = ([1 + 2 ** (-age / half_life) for half_life in of] for age, of in ((19, (2, 30)), (2, (3,))))
    torch.testing.assert_close(n, torch.tensor([*days, *units]))
    found = added(memory, 0, history)[0, 0]
    assert found[5] > found[2] > found[10] > 0  # twice, the later time today; twice; once
    torch.testing.assert_close(found[[3, 4, 6, 7, 8, 9]], torch.zeros(6))
