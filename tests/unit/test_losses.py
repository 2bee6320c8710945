# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The losses: of one task against plain loops, and of a whole model in training as in evaluation."""

import sys

import pytest
import torch
from four_histories import assert_close, four_histories, rows, visit_ends
from one_task import prefix_cross_entropy

from modeling_mcm import MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.losses_mcm import (
    LossInParts,
    Targets,
    WeightedCrossEntropy,
    group_customers,
    task_losses,
)


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
    shares = targets.shares(targets.weights, targets.customers, targets.tasks).double()
    losses = WeightedCrossEntropy.apply(scores, targets, shares)
    for task, (part, size) in enumerate(zip(scores.split([7, 40], 1), [7, 40], strict=True)):
        expected = 0.0
        for customer in range(2):  # the third has no target
            of = [(n, w) for n, w in enumerate(labels[customer, :, task].tolist()) if 2 <= w < size]
            total = sum(weights[customer, n].item() for n, _ in of)
            for n, w in of:
                surprise = -part.log_softmax(1)[rows[customer, n], w]
                expected = expected + weights[customer, n].item() / total * surprise / 3
        torch.testing.assert_close(losses[task], expected, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda scores: WeightedCrossEntropy.apply(scores, targets, shares), scores)


def test_tasks_together_equal_each_alone(two_tasks):
    scores, labels, rows, weights = two_tasks
    together = task_losses(scores, Targets.find(labels, rows, weights, [7, 40]))
    alone = [
        task_losses(part, Targets.find(labels[..., [task]], rows, weights, [part.shape[1]]))
        for task, part in enumerate(scores.split([7, 40], 1))
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    found = torch.autograd.grad(together.sum(), scores)[0]
    torch.testing.assert_close(found, torch.autograd.grad(torch.cat(alone).sum(), scores)[0])
    nothing = Targets.find(torch.full_like(labels, -100), rows, weights, [7, 40])
    assert task_losses(scores, nothing).tolist() == [0.0, 0.0]


@pytest.fixture
def asked():
    """Scores of 3 customers, 2 prefixes and 40 labels; the last customer has no target, some labels are none."""
    torch.manual_seed(0)
    scores = torch.randn(3, 2, 40, dtype=torch.float64)
    labels = torch.tensor([[5, 9, 1, 30, 7], [2, 39, -100, 0, 4], [0, 1, -100, -100, 1]])
    prefixes = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 0, 0]])
    weights = torch.tensor([[0.5, 0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 0.25, 0.25], [1.0, 1.0, 1.0, 1.0, 1.0]])
    return scores, labels, prefixes, weights


def test_loss_without_targets_is_0(asked):
    scores, labels, prefixes, weights = asked
    scores.requires_grad_()
    for nothing in (
        prefix_cross_entropy(scores, torch.full_like(labels, -100), prefixes, weights),
        prefix_cross_entropy(scores, labels, prefixes, 0 * weights),
    ):
        assert nothing.item() == 0
        assert not torch.autograd.grad(nothing, scores)[0].any()


def test_large_scores_stay_finite(asked):
    scores = (1e4 * asked[0]).bfloat16().requires_grad_()
    loss = prefix_cross_entropy(scores, *asked[1:])
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite() and gradient.isfinite().all()


def test_thousands_of_shares_add_up_in_half_precision():
    torch.manual_seed(0)
    scores, labels = torch.randn(64, 200), torch.randint(FIRST_LABEL, 200, (64, 100))
    rows = torch.arange(64)[:, None].expand(labels.shape)
    targets = Targets.find(labels[..., None], rows, None, [200])
    exact = task_losses(scores, targets)
    torch.testing.assert_close(task_losses(scores.bfloat16(), targets).float(), exact, rtol=1e-3, atol=0)


def quadratic(vectors, weight):
    """A `losses_of` of two tasks: a customer's squares, weighed."""
    return lambda part, cut: torch.stack([(cut**2 * weight).sum(), (cut * weight**3).sum()])


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[2], [0, 3], [1]]], ids=["whole", "parts"])
def test_loss_in_parts_has_the_gradients_of_the_sum(parts):
    torch.manual_seed(0)
    vectors = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight, frozen = (torch.randn(3, dtype=torch.float64, requires_grad=grad) for grad in (True, False))
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    losses_of = quadratic(vectors, weight)
    total, losses = LossInParts.apply(losses_of, parts, 1, vectors, weight, frozen, unused)
    each = sum(losses_of(part, vectors[part]) for part in parts)
    whole = each.sum()
    torch.testing.assert_close((total, losses), (whole, each.detach()))
    assert not losses.requires_grad
    found = torch.autograd.grad(0.25 * total, (vectors, weight, unused), allow_unused=True)
    wanted = torch.autograd.grad(0.25 * whole, (vectors, weight))
    torch.testing.assert_close(found[:2], wanted)
    assert found[2] is None


def test_small_gradients_survive_half_precision():
    vectors = torch.full((2, 3), 1e-4, dtype=torch.half, requires_grad=True)

    def losses_of(part, cut):
        return ((cut * 1e-3).half() * torch.tensor(1e-2, dtype=torch.half)).float().sum()[None]

    total, _ = LossInParts.apply(losses_of, [[0], [1]], 1, vectors)
    (scaled,) = torch.autograd.grad(total * 2.0**12, vectors)
    torch.testing.assert_close(scaled.float(), torch.full((2, 3), 1e-5 * 2.0**12), rtol=0.01, atol=0)


def test_customers_are_grouped_by_cost():
    costs = [7, 100, 3, 50, 4, 49, 1, 300]
    parts = group_customers(costs, 100)
    assert parts == [[6, 2, 4, 0], [5, 3], [1], [7]]  # one customer is a part however much it costs
    assert group_customers(costs, 1) == [[6], [2], [4], [0], [5], [3], [1], [7]]
    assert sorted(sum(group_customers(costs, 10**6), [])) == list(range(8))


@pytest.fixture
def inputs(extractor, event_log):
    return four_histories(extractor, event_log)


@pytest.fixture
def questions(inputs):
    """Two prefixes and up to three labels of each customer; ids under 2 are no targets."""
    label = torch.tensor([[2, 5, 3], [4, 1, -100], [-100, 0, 6], [-100, -100, -100]])
    return {
        "prefix_ends": torch.tensor([[0, 9], [0, 1], [3, 30], [0, 0]]),
        "label_prefixes": torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]),
        "labels": torch.stack([label, label.clamp(max=4), label.clamp(max=3)], dim=-1),
    }


def plain_loss(scores, labels, label_prefixes, weights=None):
    weights = torch.ones(labels.shape) if weights is None else weights
    customers = []
    for row in range(len(labels)):
        triples = zip(labels[row].tolist(), label_prefixes[row].tolist(), weights[row].tolist(), strict=True)
        terms = [
            (weight, -weight * scores[row, prefix].log_softmax(-1)[label])
            for label, prefix, weight in triples
            if label >= FIRST_LABEL
        ]
        customers.append(sum(loss for _, loss in terms) / sum(weight for weight, _ in terms) if terms else 0.0)
    return torch.as_tensor(sum(customers) / len(customers))


def test_loss_is_the_sum_over_tasks(tiny_model, inputs, questions):
    model = tiny_model(augmentation="all_prefixes")
    output = model(**inputs, **questions)
    assert list(output.logits) == ["items", "aisle", "type"]
    assert set(output.task_losses) == set(output.logits)
    for place, task in enumerate(output.logits):
        assert_close(
            output.task_losses[task],
            plain_loss(output.logits[task], questions["labels"][..., place], questions["label_prefixes"]),
        )
    assert_close(output.loss, sum(output.task_losses.values()))
    assert model(**inputs).loss is None and model(**inputs).task_losses is None


def test_training_step_leaves_padding_at_0(tiny_model, inputs, questions):
    model = tiny_model(extended=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    questions["prefix_ends"] = torch.tensor([visit_ends(inputs, row)[:1] * 2 for row in range(4)])
    model(**inputs, **questions).loss.backward()
    optimizer.step()
    for table in model.model.embeddings.events.feature_tables:
        assert not table.weight[0].any()


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_training_loss_equals_evaluation_loss(tiny_model, inputs, most, monkeypatch):
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ends = torch.stack([inputs["attention_mask"].sum(1) - 1, torch.zeros(4, dtype=torch.long)] * 2, dim=1)
    labels = torch.stack([torch.randint(2, size, (4, 3)) for size in model.config.label_sizes.values()], dim=-1)
    prefixes = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 3, 3], [2, 2, 2]])
    labels[2, 0], labels[1] = -100, -100  # prefixes that are asked for nothing
    batch = {**inputs, "prefix_ends": ends, "labels": labels, "label_prefixes": prefixes}
    asked = model.eval()(**batch)
    every = model.train()(**batch)
    assert_close((every.loss, every.task_losses), (asked.loss, asked.task_losses))
    assert every.logits is None
    found, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in (every.loss, asked.loss))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_customer_without_events_adds_no_loss(tiny_model, inputs, questions, most, monkeypatch):
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    inputs["attention_mask"][3], questions["labels"][3] = 0, -100
    questions["prefix_ends"] = torch.tensor([*(visit_ends(inputs, row)[:1] * 2 for row in range(3)), [0, 0]])
    others = model(**rows(inputs, 0, 1, 2), **rows(questions, 0, 1, 2)).loss.item()
    assert model(**inputs, **questions).loss.item() == pytest.approx(others * 3 / 4, rel=1e-5)


def test_frozen_model_gives_its_losses(tiny_model, inputs, questions):
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).requires_grad_(False)
    questions["prefix_ends"] = torch.tensor([[0, visit_ends(inputs, row)[-1]] for row in range(4)])
    found = model.train()(**inputs, **questions).loss
    assert not found.requires_grad
    assert found.item() == pytest.approx(model.eval()(**inputs, **questions).loss.item(), rel=1e-5)


@pytest.mark.parametrize("choices", [{}, {"readout": "last"}, {"augmentation": "all_prefixes"}, {"extended": True}])
def test_one_batch_is_overfitted(tiny_config, inputs, choices):
    torch.manual_seed(0)
    config = tiny_config(**choices, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, hidden_size=32)
    model = MCMForMultiTaskRecommendation(config)
    labels = torch.stack([torch.randint(2, size, (4, 2)) for size in config.label_sizes.values()], dim=-1)
    batch = {**inputs, "labels": labels[:, :1]}
    if config.augmentation == "all_prefixes":  # another answer after each of two prefixes, where a row has two
        ends = [(visit_ends(inputs, row)[-2:] * 2)[:2] for row in range(4)]
        labels[:, 1][torch.tensor([first == second for first, second in ends])] = -100
        places = torch.arange(2).expand(4, 2)
        batch |= {"labels": labels, "prefix_ends": torch.tensor(ends), "label_prefixes": places}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # A readout over all units still knows the answer of the prefix before: two in turn are hard to tell apart.
    assert losses[-1] < (0.03 if config.augmentation == "random_prefix" else 0.15 * losses[0])
