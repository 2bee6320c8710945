# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics agree with independent libraries, and with every possible way of breaking ties."""

import itertools
from pathlib import Path

import evaluate
import numpy as np
import pytest
import scipy.stats
import torch
from scipy.sparse import csr_array
from sklearn.metrics import ndcg_score

import modeling_mcm.evaluation
from modeling_mcm.evaluation import (
    bootstrap_interval,
    customer_metrics,
    distinct_targets,
    ndcg_at_k,
    paired_difference,
    recall_at_k,
    tie_ranks,
)
from modeling_mcm.evaluation.metrics import UNREACHABLE, list_properties, ranks_from_logits

LABELS = 32  # ids 2 .. 31 are ranked


@pytest.fixture
def events():
    """Labels of each customer's next visit, one an event, so some occur twice."""
    generator = np.random.default_rng(2)
    return [generator.integers(2, LABELS, size=size) for size in generator.integers(1, 25, size=40)]


def metrics_of(scores, events, k=10):
    owner = np.repeat(np.arange(len(events)), [*map(len, events)])
    labels, counts = distinct_targets(owner, np.concatenate(events), len(events))
    return customer_metrics(*tie_ranks(scores, labels), counts, ks=(k,))


@pytest.mark.parametrize("k", [1, 3, 10, 100])
@pytest.mark.parametrize("highest", [10**6, 3], ids=["distinct scores", "tied scores"])
def test_ndcg_equals_scikit_learn_with_and_without_ties(events, highest, k):
    scores = np.random.default_rng(1).integers(0, highest, (40, LABELS)).astype(np.float64)
    values = metrics_of(scores, events, k)
    for customer, labels in enumerate(events):
        of_customer = scores[[customer], 2:]
        truth = np.isin(np.arange(2, LABELS), labels)[None]
        assert values[f"next_visit_ndcg@{k}"][customer] == pytest.approx(ndcg_score(truth, of_customer, k=k))
        alone = [ndcg_score(np.eye(LABELS)[[label], 2:], of_customer, k=k) for label in labels]
        assert values[f"next_event_ndcg@{k}"][customer] == pytest.approx(np.mean(alone))


def ranking_metrics(order, targets, k):
    """The textbook definitions on one strict ranking."""
    places = [place for place, label in enumerate(order[:k]) if label in targets]
    ideal = sum(1 / np.log2(place + 2) for place in range(min(len(targets), k)))
    return sum(1 / np.log2(place + 2) for place in places) / ideal, len(places) / len(targets)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("targets", [[3], [2, 3, 6], [2, 3, 4, 5, 6, 7], [1, 4]])
@pytest.mark.parametrize("tied", [[0, 0, 0, 0, 0, 0], [2, 1, 1, 1, 1, 0]])
def test_tied_metrics_are_the_mean_over_all_orders(tied, targets, k):
    every = itertools.permutations(range(6))
    orders = [sorted(range(6), key=lambda label: (-tied[label], order[label])) for order in every]
    drawn = [ranking_metrics([label + 2 for label in order], targets, k) for order in orders]
    values = metrics_of(np.array([[9.0, 9, *tied]]), [np.array(targets)], k)
    found = values[f"next_visit_ndcg@{k}"][0], values[f"next_visit_recall@{k}"][0]
    assert found == pytest.approx(np.mean(drawn, axis=0))


@pytest.fixture
def logits():
    return torch.randint(0, 9, (12, LABELS), generator=torch.Generator().manual_seed(0)).float() / 8


@pytest.fixture
def labels():
    return torch.randint(0, LABELS, (12, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_elements", [1, 3 * LABELS, 2**24])
def test_ranks_equal_a_plain_count(logits, labels, dtype, max_elements):
    labels[:, -1] = -100  # padding
    greater, ties = ranks_from_logits(logits.to(dtype), labels, max_elements)
    of_targets, known = logits.gather(1, labels.clamp(min=0))[..., None], labels >= 2
    ranked = logits[:, None, 2:]
    assert torch.equal(greater, (ranked > of_targets).sum(-1).where(known, UNREACHABLE))
    assert torch.equal(ties, (ranked == of_targets).sum(-1).where(known, 1))


def test_infinite_scores_and_the_last_digits_are_ranked():
    greater, ties = tie_ranks([[0, 0, np.inf, -np.inf, -np.inf, 1, 1 + 1e-12]], [[2, 3, 5, 1, 0]])
    assert greater.tolist() == [[0, 3, 2, UNREACHABLE, UNREACHABLE]]
    assert ties.tolist() == [[1, 2, 1, 1, 1]]


ONE = np.ones((1, 1), dtype=int)
WRONG = {
    "shape": lambda: tie_ranks(np.zeros((2, 5)), np.zeros((3, 1), dtype=int)),
    "label id 5; expected ids from 0 to 4": lambda: tie_ranks(np.zeros((1, 5)), 5 * ONE),
    "NaN": lambda: tie_ranks([[0, 0, np.nan]], 2 * ONE),
    "k = 0": lambda: recall_at_k(ONE, ONE, ONE, 0),
    "one shape": lambda: ndcg_at_k(ONE, ONE, np.ones((1, 2)), 1),
    "same customers, in the same order": lambda: paired_difference(np.zeros(3), np.zeros(4)),
    "None of 2 customers has a value": lambda: bootstrap_interval([np.nan, np.nan]),
}


@pytest.mark.parametrize(("message", "call"), WRONG.items(), ids=WRONG)
def test_what_has_no_metric_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_evaluate_loads_the_module_offline_and_agrees(logits, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    module = Path(modeling_mcm.evaluation.__file__).parent / "modules" / "next_visit_metrics"
    metric = evaluate.load(str(module), cache_dir=str(tmp_path / "cache"))
    events = [row[row > 0] for row in labels.numpy()]
    for row, of_visit in zip(logits.numpy(), events, strict=True):
        targets, counts = np.unique(of_visit, return_counts=True)
        ranks = np.concatenate(tie_ranks(row[None], targets[None])).T
        metric.add(prediction=ranks.tolist(), reference=counts.tolist())
    expected = {name: np.nanmean(values) for name, values in metrics_of(logits.numpy(), events).items()}
    assert metric.compute(k=10) == pytest.approx(expected)
    with pytest.raises(ValueError, match="cannot reshape array of size 3"):
        metric.compute(predictions=[[[0, 1]]], references=[[1, 1, 1]])


def test_an_interval_is_of_the_customers_with_a_value():
    values = np.random.default_rng(5).beta(0.4, 1, size=400)
    interval = bootstrap_interval(np.append(values, np.nan))
    assert interval == bootstrap_interval(values)
    assert (interval.mean, interval.customers) == (pytest.approx(values.mean()), 400)
    half = 1.96 * scipy.stats.sem(values)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)
    assert bootstrap_interval([0.5, np.nan]) == (0.5, 0.5, 0.5, 1)


def test_paired_difference_cancels_what_customers_share():
    second = np.random.default_rng(6).random(300)
    found = paired_difference(np.append(second + 0.05, np.nan), np.append(second, 0.3))
    assert (found.low, found.high, found.customers) == (pytest.approx(0.05), pytest.approx(0.05), 300)


def test_properties_of_lists_worked_out_by_hand():
    lists = np.array([[2, 3], [2, 5], [2, 0]])  # the last list has one label
    popularity = [0, 0, 8, 4, 2, 2]  # of ids 2 to 5: 1, 2, 3 and 3 bits
    seen = csr_array((np.ones(3), ([0, 1, 1], [3, 2, 5])), shape=(3, 6))
    found = list_properties(lists, popularity, seen)
    assert found == {"coverage": 3 / 4, "popular": 3 / 5, "novelty": (3 * 1 + 2 + 3) / 5, "repeats": 3 / 5}
