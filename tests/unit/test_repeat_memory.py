# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The repeat memory against plain loops over what a customer met."""

from itertools import product

import pytest
import torch

from modeling_mcm.repeat_memory_mcm import RepeatMemory

BATCH, HIDDEN, LABELS = 3, 8, 11
TASKS = [LABELS, 4]
WAITS = torch.tensor([[3.0, 0.0, 40.0], [1.0, 2.0, 0.5], [7.0, 7.0, 7.0]])


@torch.no_grad()
def make_memory(network_size=0):
    torch.manual_seed(1)
    memory = RepeatMemory(TASKS, HIDDEN, [2.0, 30.0], [3.0], network_size=network_size)
    memory.reset_parameters()
    for parameter in memory.parameters():  # every term of the formula must count
        parameter += 0.5 * torch.randn_like(parameter)
    return memory


@pytest.fixture
def history():
    """Labels, the units that they are met in, vectors of the events; days of the units, last units of the prefixes."""
    torch.manual_seed(2)
    label_ids = torch.tensor([[2, 5, 5, 1, 0, 2, 10, 5], [1, 0, 7, 7, 0, 0, 0, 0], [0] * 8])
    event_units = torch.tensor([[0, 1, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 0, 0, 0, 0], [0] * 8])
    unit_times = torch.tensor([[0, 1, 8, 20], [0, 2, 4, 4], [0, 0, 0, 0]]).float()
    return (
        label_ids,
        event_units,
        torch.randn(BATCH, 8, HIDDEN),
        unit_times,
        torch.tensor([[3, 1, 0], [3, 2, 1], [0] * 3]),
    )


def plain_memory(memory, task, history, waits):
    """What is added to the score of every label, of shape (B, P, V), a label and a unit at a time."""
    label_ids, event_units, embeddings, unit_times, unit_ends = history
    half_lives, rarities = memory.log_half_life.exp(), memory.label_rarity[task].weight
    result = torch.zeros(BATCH, unit_ends.shape[1], TASKS[task])
    for b, p in product(range(BATCH), range(unit_ends.shape[1])):
        end = int(unit_ends[b, p])
        days, now = unit_times[b], unit_times[b, end] + waits[b, p]
        length = torch.log(torch.tensor(1.0 + end))
        for w in {label for label in label_ids[b].clamp(max=TASKS[task] - 1).tolist() if label >= 2}:
            events = [
                i for i in range(8) if label_ids[b, i].clamp(max=TASKS[task] - 1) == w and event_units[b, i] <= end
            ]
            met = sorted({int(event_units[b, i]) for i in events})
            if not met:
                continue
            n = torch.zeros(3)
            for u in met:
                votes = [(memory.vote(embeddings[b, i])).exp() for i in events if event_units[b, i] == u]
                ages = torch.stack([now - days[u], now - days[u], torch.tensor(float(end - u))])
                n += sum(votes) / len(votes) * 2 ** (-ages / half_lives)
            terms = torch.log(
                1 + n * torch.exp(memory.log_sensitivity[task] + memory.rarity_weight[task] * rarities[w])
            )
            gains = memory.memory_gain[task] + memory.label_gains[task].weight[w] + memory.memory_growth[task] * length
            result[b, p, w] = (terms * gains).sum()
            if len(memory.network_in):
                gap = (met[-1] - met[0]) / max(len(met) - 1, 1)
                habits = [len(met), end - met[0], end - met[-1], gap, now - days[met[0]], now - days[met[-1]]]
                x = torch.cat([terms, torch.tensor(habits).log1p(), length[None] / 3, rarities[w] / 2])
                result[b, p, w] += memory.network_out[task](memory.network_in[task](x).relu())[0]
    return result


@pytest.mark.parametrize("waits", [torch.zeros(3, 3), WAITS], ids=["at the last unit", "later"])
@pytest.mark.parametrize("network_size", [0, 5])
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("prefixes", [3, 1])  # one prefix has a way of its own
@torch.no_grad()
def test_memory_matches_a_loop(history, task, network_size, waits, prefixes):
    memory, waits = make_memory(network_size), waits[:, :prefixes]
    label_ids, event_units, embeddings, unit_times, unit_ends = history = (*history[:-1], history[-1][:, :prefixes])
    ids = torch.stack([label_ids.clamp(max=size - 1) for size in TASKS], -1)  # each task has labels, of its own size
    met = memory.votes(ids, event_units, embeddings, unit_times.shape[1])
    given = None if not waits.any() else waits
    rows, places, labels, values = memory(range(len(TASKS)), unit_times, unit_ends, met, waits=given)[task]
    found = torch.zeros(BATCH, prefixes, TASKS[task])
    found[rows, places, labels] = values
    expected = plain_memory(memory, task, history, waits)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.count_nonzero() == len(values) > 0 and not found[2].any()  # a pair comes once


def test_loop_over_units_equals_sum_over_prefixes(history):
    memory, (label_ids, event_units, embeddings, unit_times, _) = make_memory(), history
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
    some = memory([0], unit_times, ends, met, ends % 2 == 0)[0]  # scores of some prefixes alone
    torch.testing.assert_close(some[3], found[0][3][found[0][1] % 2 == 0])
