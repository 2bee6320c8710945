# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customer state: what it counts, that it knows nothing of the future, and that it grows with the vocabulary."""

import math
import sys

import pytest
import torch
from choices import PAPER, TINY
from scipy.sparse import csr_array

from modeling_mcm import MCMConfig, MCMModel
from modeling_mcm.training.state import find_components

FEATURES, SIZES = ["token_type", "item", "brand"], [4, 80, 10]


def make_config(**changes):
    values = TINY | {"features": FEATURES, "vocabulary_sizes": SIZES, "tasks": ["item", "brand"]}
    values |= {"summed_features": ["token_type"]}  # which feature is summed is the extractor's business
    choices = PAPER | {"augmentation": "all_prefixes", "state_size": 12}
    return MCMConfig(**{**values, **choices, **changes})


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = MCMModel(make_config()).eval()
    torch.nn.init.normal_(model.state.mean)
    torch.nn.init.normal_(model.state.directions)
    return model


def make_inputs(number=3, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(2, size, (number, length), generator=generator) for size in SIZES], -1)
    ids[:, 0] = torch.tensor([2, 0, 0])
    times = torch.rand(number, length, generator=generator).cumsum(1) * 10
    times[:, :2] = 0
    visits = torch.tensor([0, 1, 1, 2, 3, 3, 4]).expand(number, -1).contiguous()
    values = torch.rand(number, length, 1, generator=generator) * 5
    values[:, 0] = 0
    mask = torch.ones(number, length, dtype=torch.long)
    history = {"input_ids": ids, "attention_mask": mask, "visit_ids": visits}
    return history | {"event_times": times, "event_values": values}


def test_counts_match_a_loop(model):
    inputs, as_of = make_inputs(), torch.tensor([[9.0, 30.0]] * 3)
    counts = model.state.counts(**inputs, as_of=as_of)
    half_lives = [7.0, 30.0, 90.0, math.inf]
    for customer, moment in ((0, 0), (2, 1)):
        expected_events, expected_visits, expected_sums = [0.0] * 4, [0.0] * 4, [0.0] * 4
        expected_brand = [0.0] * 4
        seen = set()
        for event in range(1, 7):
            age = as_of[customer, moment] - inputs["event_times"][customer, event]
            if age < 0:
                continue
            visit = int(inputs["visit_ids"][customer, event])
            for k, half_life in enumerate(half_lives):
                weight = float(2 ** -(age / half_life))
                expected_events[k] += weight
                expected_visits[k] += weight if visit not in seen else 0
                expected_sums[k] += weight * float(inputs["event_values"][customer, event, 0])
                expected_brand[k] += weight * bool(inputs["input_ids"][customer, event, 2] == 5)
            seen.add(visit)
        expected = torch.tensor([*expected_events, *expected_visits, *expected_sums]).log1p()
        torch.testing.assert_close(counts[customer, moment, :12], expected)
        start = 12 + 4 * SIZES[0] + 4 * 5  # few: token type, then brand; the values of an id stand together
        torch.testing.assert_close(counts[customer, moment, start : start + 4], torch.tensor(expected_brand).log1p())


def test_customer_without_events_has_average_counts(model):
    average = model.state(model.state.mean[None])
    inputs = {name: value[:1, :1] for name, value in make_inputs().items()}
    torch.testing.assert_close(model(**inputs, as_of=torch.tensor([5.0])).pooler_output, average)
    inputs = {name: value[:1] for name, value in make_inputs().items()}
    torch.testing.assert_close(model(**inputs, as_of=torch.tensor([-5.0])).pooler_output, average)  # before any event


def test_silence_is_limited_to_the_longest_of_training(model):
    inputs = make_inputs()
    last = inputs["event_times"][:, -1]
    model.state.longest_silence.fill_(40.0)
    longest = model(**inputs, as_of=last + 40).pooler_output
    torch.testing.assert_close(model(**inputs, as_of=last + 4000).pooler_output, longest)
    assert not torch.allclose(model(**inputs, as_of=last + 39).pooler_output, longest)


def test_directions_are_scaled_by_variance():
    """The other numbers of a state are a rotation of principal components, of which the strong ones stay."""
    torch.manual_seed(0)
    state = MCMModel(make_config(state_size=18)).eval().state
    fixed = len(state.plain_counts) + state.components
    assert fixed == 15
    numbers = sum(state.blocks)
    stds = torch.tensor([3.0, 2.0, 1.0])
    axes = torch.linalg.qr(torch.randn(numbers, 3)).Q
    scale = torch.cat([torch.full((size,), size**-0.5) for size in state.blocks])
    z = torch.zeros(4000, len(state.mean))
    z[:, :numbers] = (torch.randn(4000, 3) * stds) @ axes.T / scale
    state.find_directions(z.clone())
    found = torch.linalg.svdvals(z @ state.directions[state.components :].T / 4000**0.5)
    variances = stds**2 / stds.square().mean()
    torch.testing.assert_close(found, variances.sqrt() * variances / (variances + 1), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("customers", [500, 60])  # more and fewer than values
@pytest.mark.parametrize("most", [80, 79])  # 79 leaves the items to the components alone
def test_the_state_holds_principal_components_of_the_counts_of_many_values(most, customers, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(sys.modules[MCMConfig.__module__], "MOST_COUNTED", most)
    state = MCMModel(make_config(state_size=18)).eval().state
    undecayed = torch.rand(customers, 3) @ torch.rand(3, 80)  # of rank three
    undecayed[:, 7] = 0.0  # of a value that nobody has
    find_components(state, csr_array(undecayed.numpy()))
    counts = torch.zeros(customers, len(state.mean))
    counts[:, state.undecayed] = undecayed
    plain = len(state.plain_counts)
    found = state(counts)[:, plain : plain + 3]
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.T @ found / len(found), torch.eye(3), atol=1e-3, rtol=0)
    z = state.standardised(counts)[:, state.undecayed]
    read = found @ (found.T @ z) / len(found)
    torch.testing.assert_close(read, z, atol=1e-2, rtol=0)  # the counts can be read from the components


def test_a_state_needs_times_and_values(model):
    for name in ("event_times", "event_values"):
        with pytest.raises(ValueError, match=name):
            model(**make_inputs() | {name: None})
