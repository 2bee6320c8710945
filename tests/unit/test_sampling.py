# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Samples of labels: what is drawn, that the estimate is right on average, and that a step holds no more than it."""

import pytest
import torch
from choices import EXTENDED, PAPER, STILL, perturb
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.losses_mcm import TaskLabels

LABELS, CERTAIN = 60, torch.tensor([[9, 1, 0, 41], [-100, 9, 30, 59]])


@pytest.fixture
def labels():
    """All labels of a task, with vectors that name them."""
    return TaskLabels(torch.arange(LABELS)[:, None].double(), torch.arange(LABELS))


def test_sample_has_the_certain_labels(labels):
    sample = labels.sample(CERTAIN, 10)
    ids, counts = sample.ids.tolist(), sample.log_counts.exp()
    assert ids == sorted(set(ids)) and ids[:FIRST_LABEL] == [0, 1]
    assert {9, 30, 41, 59} < set(ids) and len(ids) == FIRST_LABEL + 4 + 10
    certain = torch.isin(sample.ids, torch.tensor([0, 1, 9, 30, 41, 59]))
    assert (counts[certain] == 1).all() and counts[~certain].sum().item() == pytest.approx(LABELS - FIRST_LABEL - 4)
    assert sample.vectors[:, 0].tolist() == sample.bias.tolist() == ids
    assert sample.ids[sample.indices(CERTAIN)[CERTAIN >= FIRST_LABEL]].tolist() == [9, 41, 9, 30, 59]
    assert labels.sample(CERTAIN, 54) is labels  # so few are not sampled


# --------------------------------------------------------------------------------------------------------- the model


def make(items=200, extended=True, sampled_labels=0, **changes):
    """A model without dropout whose every parameter has a say."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    data = {"features": ["token_type", "item"], "vocabulary_sizes": [5, items], "tasks": ["item", "token_type"]}
    config = MCMConfig(**data | shape | (EXTENDED if extended else PAPER) | STILL | changes)
    model = MCMForMultiTaskRecommendation(config).train()
    model.sampled_labels = sampled_labels
    return perturb(model)


def make_batch(items=200):
    """Four customers, six visits of one event each, and a label after every visit."""
    torch.manual_seed(1)
    grid = (4, 6)
    ids, label = torch.randint(2, items, grid), torch.randint(2, items, grid)
    label[0, 1], label[3] = 1, -100
    history = {
        "input_ids": torch.stack([torch.randint(2, 5, grid), ids], -1),
        "attention_mask": torch.ones(grid).long(),
    }
    places = torch.arange(6).expand(grid)
    history |= {"visit_ids": places, "event_times": 3.0 * places, "prefix_ends": places, "label_prefixes": places}
    return history | {"labels": torch.stack([label, label.clamp(max=4)], -1)}


def step(model, batch):
    """The losses, and the gradients by name, of one pass."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output.task_losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_sampled_losses_are_right_on_average():
    batch = make_batch()
    expected, gradients = step(make(), batch)
    model = make(sampled_labels=32)
    steps = [step(model, batch) for _ in range(60)]
    losses = torch.stack([losses["item"] for losses, _ in steps])
    assert losses.std() > 1e-3 and abs(losses.mean() - expected["item"]) < 0.03 * expected["item"]
    for name, gradient in gradients.items():
        mean = torch.stack([found[name] for _, found in steps]).mean(0)
        assert (mean - gradient).norm() < 0.2 * gradient.norm() + 1e-6, name
    assert all(losses["token_type"] == expected["token_type"] for losses, _ in steps)  # few labels: scored whole


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that are made, forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(value.shape) for value in tree_leaves(result) if isinstance(value, torch.Tensor)}
        return result


def test_million_labels_are_never_scored_at_once():
    """Among what a step makes only gradients of tables have a million rows; nothing else is larger than the sample."""
    many = 1_000_000
    batch = make_batch(many)
    model = make(many, sampled_labels=512)
    with Shapes() as shapes:
        losses, _ = step(model, batch)
    assert losses["item"].isfinite()
    tables = {tuple(parameter.shape) for parameter in model.parameters() if len(parameter) == many}
    assert len(tables) == 2
    sampled = FIRST_LABEL + 48 + 512
    assert max(torch.Size(shape).numel() for shape in shapes.seen - tables) <= sampled * 32  # vectors; scores: 4 * 6
