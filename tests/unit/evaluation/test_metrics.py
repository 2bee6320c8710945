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


@pytest.fixture(params=[None, 3], ids=["distinct scores", "tied scores"])
def scores(request):
    generator = np.random.default_rng(1)
    if request.param is None:
        return generator.permuted(np.tile(np.arange(LABELS, dtype=np.float64), (40, 1)), axis=1)
    return generator.integers(0, request.param, size=(40, LABELS)).astype(np.float64)


@pytest.fixture
def events():
    """Labels of each customer's next visit, one an event, so some occur twice."""
    generator = np.random.default_rng(2)
    return [generator.integers(2, LABELS, size=size) for size in generator.integers(1, 25, size=40)]


def padded(events):
    return distinct_targets(np.cumsum([0, *map(len, events)]), np.concatenate(events))


def metrics_of(scores, events, ks=(10,)):
    labels, counts = padded(events)
    return customer_metrics(*tie_ranks(scores, labels), counts, ks=ks)


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_ndcg_equals_scikit_learn_with_and_without_ties(scores, events, k):
    values = metrics_of(scores, events, (k,))
    for customer, labels in enumerate(events):
        truth = np.zeros((1, LABELS))
        truth[0, labels] = 1
        expected = ndcg_score(truth[:, 2:], scores[customer : customer + 1, 2:], k=k)
        assert values[f"next_visit_ndcg@{k}"][customer] == pytest.approx(expected)
        alone = [ndcg_score(np.eye(LABELS)[[label], 2:], scores[[customer], 2:], k=k) for label in labels]
        assert values[f"next_event_ndcg@{k}"][customer] == pytest.approx(np.mean(alone))


def ranking_metrics(order, targets, k):
    """The textbook definitions on one strict ranking."""
    places = [place for place, label in enumerate(order) if label in targets]
    inside = [place for place in places if place < k]
    ideal = sum(1 / np.log2(place + 2) for place in range(min(len(targets), k)))
    return {
        f"ndcg@{k}": sum(1 / np.log2(place + 2) for place in inside) / ideal,
        f"recall@{k}": len(inside) / len(targets),
    }


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("targets", [[3], [2, 5], [2, 3, 6], [2, 3, 4, 5, 6, 7], [1, 4], [1]])
@pytest.mark.parametrize("tied", [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [2, 1, 1, 1, 1, 0], [0, 0, 1, 2, 2, 2]])
def test_tied_metrics_are_the_mean_over_all_orders(tied, targets, k):
    every = itertools.permutations(range(6))
    orders = [sorted(range(6), key=lambda label: (-tied[label], order[label])) for order in every]
    drawn = [ranking_metrics([label + 2 for label in order], set(targets), k) for order in orders]
    values = metrics_of(np.array([[9, 9, *tied]], dtype=np.float64), [np.array(targets)], (k,))
    for name in drawn[0]:
        assert values[f"next_visit_{name}"][0] == pytest.approx(np.mean([draw[name] for draw in drawn])), name


@pytest.fixture
def logits():
    return torch.randint(0, 9, (12, LABELS), generator=torch.Generator().manual_seed(0)).float() / 8


@pytest.fixture
def labels():
    return torch.randint(0, LABELS, (12, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_elements", [1, 3 * LABELS, 2**24])
def test_ranks_equal_a_plain_count(logits, labels, dtype, max_elements):
    greater, ties = ranks_from_logits(logits.to(dtype), labels, max_elements)
    of_targets, known = logits.gather(1, labels)[..., None], labels >= 2
    ranked = logits[:, None, 2:]
    assert torch.equal(greater, (ranked > of_targets).sum(-1).where(known, UNREACHABLE))
    assert torch.equal(ties, (ranked == of_targets).sum(-1).where(known, 1))
    assert torch.equal(ranks_from_logits(logits.to(dtype), labels[:, 0], max_elements)[0], greater[:, 0])
    padding = torch.full_like(labels, -100)
    assert (ranks_from_logits(logits.to(dtype), padding)[0] == UNREACHABLE).all()


def test_infinite_scores_and_the_last_digits_are_ranked():
    greater, ties = tie_ranks([[0, 0, np.inf, -np.inf, -np.inf, 1, 1 + 1e-12]], [[2, 3, 5, 1, 0]])
    assert greater.tolist() == [[0, 3, 2, UNREACHABLE, UNREACHABLE]]
    assert ties.tolist() == [[1, 2, 1, 1, 1]]


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((2, 5)), np.zeros((3, 1), dtype=int), "shape"),
        (np.zeros((1, 5)), np.array([[5]]), "label id 5; expected ids from 0 to 4"),
        (np.array([[0, 0, np.nan]]), np.array([[2]]), "NaN"),
    ],
)
def test_ranks_refuse_bad_scores_and_targets(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        tie_ranks(scores, targets)


def expected_means(logits, labels):
    values = metrics_of(logits.numpy(), [row[row > 0] for row in labels.numpy()])
    return {name: float(np.nanmean(value)) for name, value in values.items()}


def test_evaluate_loads_the_module_offline_and_agrees(logits, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    module = Path(modeling_mcm.evaluation.__file__).parent / "modules" / "next_visit_metrics"
    metric = evaluate.load(str(module), cache_dir=str(tmp_path / "cache"))
    events = [np.unique(row[row > 0], return_counts=True) for row in labels.numpy()]
    for row, (targets, counts) in zip(logits.numpy(), events, strict=True):
        ranks = np.concatenate(tie_ranks(row[None], targets[None])).T
        metric.add(prediction=ranks.tolist(), reference=counts.tolist())
    assert metric.compute(k=10) == pytest.approx(expected_means(logits, labels))


@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k])
def test_metrics_refuse_an_empty_list_and_different_shapes(metric):
    one = np.ones((1, 1), dtype=int)
    with pytest.raises(ValueError, match="k = 0"):
        metric(one, one, one, 0)
    with pytest.raises(ValueError, match="one shape"):
        metric(one, one, np.ones((1, 2)), 1)


def test_interval_equals_scipy_and_repeats_with_the_seed():
    values = np.random.default_rng(5).beta(0.4, 1, size=400)
    interval = bootstrap_interval(np.append(values, np.nan), seed=1, resamples=4000)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0)
    spread = expected.standard_error
    assert (interval.mean, interval.customers) == (pytest.approx(values.mean()), 400)
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=spread / 5)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=spread / 5)
    assert interval == bootstrap_interval(values, seed=1, resamples=4000)
    assert interval != bootstrap_interval(values, seed=2, resamples=4000)


def test_paired_difference_cancels_what_customers_share():
    second = np.random.default_rng(6).random(300)
    first = second + 0.05
    found = paired_difference(np.append(first, np.nan), np.append(second, 0.3))
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.05))
    assert found.customers == 300


def test_intervals_refuse_unpaired_and_missing_values():
    with pytest.raises(ValueError, match="same customers, in the same order"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="None of 2 customers has a value"):
        bootstrap_interval([np.nan, np.nan])


def test_properties_of_lists_worked_out_by_hand():
    lists = np.array([[2, 3], [2, 5], [2, 0]])  # the last list has one label
    popularity = [0, 0, 8, 4, 2, 2]  # of ids 2 to 5: 1, 2, 3 and 3 bits
    offsets, seen = np.array([0, 1, 3, 3]), np.array([3, 2, 5])
    found = list_properties(lists, popularity, offsets, seen)
    assert found == {"coverage": 3 / 4, "popular": 3 / 5, "novelty": (3 * 1 + 2 + 3) / 5, "repeats": 3 / 5}
    assert np.isnan(list(list_properties(lists * 0, popularity, offsets, seen).values())).all()
