# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of a whole model: equation 4 and what stands beside it, in training as in evaluation; test_losses.py has
the losses of one task."""

import sys

import pytest
import torch
from four_histories import assert_close, four_histories, rows, visit_ends
from one_task import prefix_cross_entropy, prefix_ranking_loss

from modeling_mcm import MCMForMultiTaskRecommendation, MCMModel, readout_mcm
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.losses_mcm import Objective


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


def test_equation_4_against_a_plain_loop(questions):
    torch.manual_seed(0)
    scores, labels = torch.randn(4, 2, 8), questions["labels"][..., 0]
    found = prefix_cross_entropy(scores, labels, questions["label_prefixes"])
    assert_close(found, plain_loss(scores, labels, questions["label_prefixes"]))
    assert_close(prefix_cross_entropy(scores, labels), plain_loss(scores, labels, torch.zeros_like(labels)))
    weights = 0.5 + torch.rand(labels.shape)
    weighted = prefix_cross_entropy(scores, labels, questions["label_prefixes"], weights)
    assert abs(weighted - found) > 1e-4
    assert_close(weighted, plain_loss(scores, labels, questions["label_prefixes"], weights))
    alike = prefix_cross_entropy(scores, labels, questions["label_prefixes"], torch.full(labels.shape, 0.2))
    assert_close(alike, found)
    assert prefix_cross_entropy(scores, labels, label_weights=torch.zeros(labels.shape)).item() == 0
    assert prefix_cross_entropy(scores, torch.full_like(labels, -100)).item() == 0


def test_the_ranking_loss_stands_beside_equation_4(tiny_model, inputs, questions):
    plain = tiny_model(augmentation="all_prefixes")(**inputs, **questions)
    model = tiny_model(augmentation="all_prefixes")
    model.objective = Objective(ranking_loss_weight=0.5)
    ranked = model(**inputs, **questions)
    for place, (task, loss) in enumerate(plain.task_losses.items()):
        ranking = prefix_ranking_loss(plain.logits[task], questions["labels"][..., place], questions["label_prefixes"])
        assert ranking > 0.1
        assert_close(ranked.task_losses[task], loss + 0.5 * ranking)


def test_the_loss_is_the_sum_over_the_tasks(tiny_model, inputs, questions):
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


def test_a_step_leaves_padding_at_0(tiny_model, inputs, questions):
    model = tiny_model(extended=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    questions["prefix_ends"] = torch.tensor([visit_ends(inputs, row)[:1] * 2 for row in range(4)])
    model(**inputs, **questions).loss.backward()
    optimizer.step()
    for table in model.model.embeddings.events.feature_tables:
        assert not table.weight[0].any()


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["what is asked", "every unit"])
@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_training_scores_units_and_gets_the_loss_of_the_asked_ones(tiny_model, inputs, most, share, monkeypatch):
    monkeypatch.setattr(readout_mcm, "NEARLY_ALL", 1.01 - share)
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ends = torch.stack([inputs["attention_mask"].sum(1) - 1, torch.zeros(4, dtype=torch.long)] * 2, dim=1)
    labels = torch.stack([torch.randint(2, size, (4, 3)) for size in model.config.label_sizes.values()], dim=-1)
    prefixes = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 3, 3], [2, 2, 2]])
    labels[2, 0], labels[1] = -100, -100  # prefixes that are asked for nothing
    batch = {**inputs, "prefix_ends": ends, "labels": labels, "label_prefixes": prefixes}
    asked = model.eval()(**batch)
    seen, losses = [], model._losses_side_by_side
    monkeypatch.setattr(model, "_losses_side_by_side", lambda *given: seen.append(len(given[0])) or losses(*given))
    every = model.train()(**batch)
    assert_close((every.loss, every.task_losses), (asked.loss, asked.task_losses))
    assert every.logits is None and seen == ([1] * 4 if most == 1 else [4])
    found, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in (every.loss, asked.loss))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_a_customer_without_an_event_counts_and_adds_nothing(tiny_model, inputs, questions, most, monkeypatch):
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    inputs["attention_mask"][3], questions["labels"][3] = 0, -100
    questions["prefix_ends"] = torch.tensor([*(visit_ends(inputs, row)[:1] * 2 for row in range(3)), [0, 0]])
    others = model(**rows(inputs, 0, 1, 2), **rows(questions, 0, 1, 2)).loss.item()
    assert model(**inputs, **questions).loss.item() == pytest.approx(others * 3 / 4, rel=1e-5)


def test_a_frozen_model_gives_its_losses_in_training(tiny_model, inputs, questions):
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).requires_grad_(False)
    questions["prefix_ends"] = torch.tensor([[0, visit_ends(inputs, row)[-1]] for row in range(4)])
    found = model.train()(**inputs, **questions).loss
    assert not found.requires_grad
    assert found.item() == pytest.approx(model.eval()(**inputs, **questions).loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "choices", [{}, {"readout": "last"}, {"augmentation": "all_prefixes", "repeat_memory": True}, {"extended": True}]
)
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
    # The repeat memory lifts what a customer met, whatever is asked: with it, chance is unlearned more slowly.
    assert losses[-1] < (0.03 if model.repeat_memory is None else 0.1 * losses[0])
