# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The losses: of one task against plain loops, and of a whole model in training as in evaluation."""

import sys

import pytest
import torch
from choices import STILL
from four_histories import assert_close

from modeling_mcm import MCMModel
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.losses_mcm import Targets, compute_in_parts, task_losses


@pytest.fixture
def two_tasks():
    """Scores of 4 rows, 7 labels and 40; labels of 3 customers, their rows and weights."""
    torch.manual_seed(0)
    labels = torch.stack([torch.randint(0, 7, (3, 6)), torch.randint(0, 40, (3, 6))], -1)
    labels[2] = -100
    rows = torch.tensor([[0, 0, 0, 2, 2, 2], [1, 1, 3, 3, 3, 3], [0] * 6])
    scores = torch.randn(4, 47, dtype=torch.float64, requires_grad=True)
    return scores, labels, rows, torch.rand(3, 6) + 0.1


def test_cross_entropy_and_its_gradient_match_loops(two_tasks):
    scores, labels, rows, weights = two_tasks
    targets = Targets.find(labels, rows, weights, [7, 40])
    losses = task_losses(scores, targets)
    for task, (part, size) in enumerate(zip(scores.split([7, 40], 1), [7, 40], strict=True)):
        expected = 0.0
        for customer in range(2):  # the third has no target
            of = [(n, w) for n, w in enumerate(labels[customer, :, task].tolist()) if 2 <= w < size]
            total = sum(weights[customer, n].item() for n, _ in of)
            for n, w in of:
                surprise = -part.log_softmax(1)[rows[customer, n], w]
                expected = expected + weights[customer, n].item() / total * surprise / 3
        torch.testing.assert_close(losses[task], expected, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda scores: task_losses(scores, targets), scores)


def test_without_targets_loss_and_gradient_are_0(two_tasks):
    scores, labels, rows, weights = two_tasks
    for nothing in ((torch.full_like(labels, -100), rows, weights), (labels, rows, 0 * weights)):
        losses = task_losses(scores, Targets.find(*nothing, [7, 40]))
        assert losses.tolist() == [0, 0] and not torch.autograd.grad(losses.sum(), scores)[0].any()


def test_thousands_of_shares_add_up_in_half_precision():
    torch.manual_seed(0)
    scores, labels = torch.randn(64, 200), torch.randint(FIRST_LABEL, 200, (64, 100))
    rows = torch.arange(64)[:, None].expand(labels.shape)
    targets = Targets.find(labels[..., None], rows, None, [200])
    exact = task_losses(scores, targets)
    torch.testing.assert_close(task_losses(scores.bfloat16(), targets).float(), exact, rtol=1e-3, atol=0)
    assert task_losses((1e4 * scores).bfloat16(), targets).isfinite().all()


def test_small_gradients_survive_half_precision():
    vectors = torch.full((2, 3), 1e-4, dtype=torch.half, requires_grad=True)

    def losses_of(part, cut):
        return ((cut * 1e-3).half() * torch.tensor(1e-2, dtype=torch.half)).float().sum()[None]

    total, _ = compute_in_parts(losses_of, [[0], [1]], vectors, [])
    (scaled,) = torch.autograd.grad(total * 2.0**12, vectors)
    torch.testing.assert_close(scaled.float(), torch.full((2, 3), 1e-5 * 2.0**12), rtol=0.01, atol=0)


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_training_loss_equals_evaluation_loss_in_whatever_parts(tiny_model, inputs, most, monkeypatch):
    model = tiny_model(extended=True, **STILL)
    ends = torch.stack([inputs["attention_mask"].sum(1) - 1, torch.zeros(4, dtype=torch.long)] * 2, dim=1)
    labels = torch.stack([torch.randint(2, size, (4, 3)) for size in model.config.label_sizes.values()], dim=-1)
    prefixes = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 3, 3], [2, 2, 2]])
    labels[2, 0], labels[1] = -100, -100  # prefixes that are asked for nothing
    batch = {**inputs, "prefix_ends": ends, "labels": labels, "label_prefixes": prefixes}
    asked = model.eval()(**batch)
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    every = model.train()(**batch)
    assert_close((every.loss, every.task_losses), (asked.loss, asked.task_losses))
    assert every.logits is None and list(asked.task_losses) == ["items", "aisle", "type"]
    assert_close(asked.loss, sum(asked.task_losses.values()))
    found, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in (every.loss, asked.loss))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_frozen_model_gives_its_losses(tiny_model, inputs):
    model = tiny_model(extended=True, **STILL).requires_grad_(False)
    labels = torch.full((4, 2, 3), 3)
    found = model.train()(**inputs, labels=labels).loss
    assert not found.requires_grad
    assert found.item() == pytest.approx(model.eval()(**inputs, labels=labels).loss.item(), rel=1e-5)
