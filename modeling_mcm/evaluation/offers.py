# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and metrics of offers: who responds, and which they take.

**Who responds** ranks all groups by one score each: average precision and ROC AUC of "takes any of its offers".
**Which offer** ranks the offers of each group that takes one: NDCG@k and recall@k, the mean over such groups, ties in
expectation. Groups are pooled, for most campaigns have too few takers for a figure of their own. Intervals resample
customers, each with all groups: a metric is computed on the data (first) and on every resample, so that a difference
of two methods is one of pairs.

Shapes: G groups, N offers, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers.utils import logging

from modeling_mcm.evaluation.metrics import Interval, ndcg_at_k, recall_at_k


@dataclass(frozen=True)
class OfferTruth:
    """What came of the offers that are evaluated.

    Attributes:
        customer_ids: of shape `(G,)`.
        offsets: of shape `(G + 1,)`; group g has the offers `offsets[g]` to `offsets[g + 1]`.
        taken: 1 or 0, of shape `(N,)`; NaN where the outcome was not observed: such an offer is not evaluated.
    """

    customer_ids: NDArray
    offsets: NDArray[np.int64]
    taken: NDArray[np.float32]

    @classmethod
    def of(cls, offers: Any, groups: ArrayLike, outcome: str) -> "OfferTruth":
        """One outcome of some groups of an `Offers`, in their order."""
        groups = np.asarray(groups)
        sizes = np.diff(offers.offsets)[groups]
        taken = offers.outcomes[outcome][offers.places(groups)]
        return cls(offers.customer_ids[groups], np.concatenate([[0], np.cumsum(sizes)]), taken)

    @property
    def responds(self) -> NDArray[np.bool_]:
        """Whether a group takes any of its offers, of shape `(G,)`."""
        return np.add.reduceat(np.nan_to_num(self.taken), self.offsets[:-1]) > 0


def which_offer(truth: OfferTruth, scores: ArrayLike, ks: Sequence[int] = (10,)) -> dict[str, NDArray[np.float64]]:
    """`ndcg@k` and `recall@k` of each group, of shape `(G,)`; NaN for a group that takes nothing.

    Args:
        truth: of the offers.
        scores: of shape `(N,)`, larger is likelier.
        ks: lengths of the list.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != truth.taken.shape or np.isnan(scores).any():
        raise ValueError(
            f"Found scores of shape {scores.shape}, NaN or not; expected a number for each of the offers."
        )
    groups = len(truth.customer_ids)
    longest = int(np.nan_to_num(np.add.reduceat(np.nan_to_num(truth.taken), truth.offsets[:-1])).max(initial=1))
    greater, ties = np.zeros((groups, longest), np.int64), np.ones((groups, longest), np.int64)
    relevant = np.zeros((groups, longest), bool)
    for group in np.flatnonzero(truth.responds).tolist():
        part = slice(truth.offsets[group], truth.offsets[group + 1])
        observed = ~np.isnan(truth.taken[part])
        ordered, targets = np.sort(scores[part][observed]), scores[part][truth.taken[part] == 1]
        above = len(ordered) - np.searchsorted(ordered, targets, side="right")
        greater[group, : len(targets)] = above
        ties[group, : len(targets)] = len(ordered) - above - np.searchsorted(ordered, targets, side="left")
        relevant[group, : len(targets)] = True
    metrics = {"ndcg": ndcg_at_k, "recall": recall_at_k}
    return {f"{name}@{k}": metric(greater, ties, relevant, k) for k in ks for name, metric in metrics.items()}


def expected_takes(offsets: NDArray[np.int64], scores: ArrayLike) -> NDArray[np.float64]:
    """How many of its offers a group is expected to take, from log-odds or log-probabilities of each; `(G,)`."""
    chances = np.exp(-np.logaddexp(0, -np.asarray(scores, np.float64)))
    return np.add.reduceat(chances, np.asarray(offsets)[:-1])


def score_offers(
    model: Any, collator: Any, groups: Any, batch_size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores of the offers of some groups, in their order.

    Args:
        model: a `MCMForActionRecommendation`.
        collator: the groups' `OfferCollator`.
        groups: an `OfferGroups`.
        batch_size: groups a step.

    Returns:
        Log-odds of each outcome `(N, O)`, and MCM's own scores, the sum over tasks of `preferences`, `(N,)`.
    """
    model.eval()
    order = np.argsort(groups.costs(collator.max_events), kind="stable")  # less padding
    logits: list[Any] = [None] * len(groups)
    own: list[Any] = [None] * len(groups)
    for start in logging.tqdm(range(0, len(groups), batch_size), desc="Scoring offers", unit="batch"):
        places = order[start : start + batch_size].tolist()
        inputs = collator(groups.__getitems__(places))
        del inputs["labels"]
        offered = (inputs["offered_actions"] >= 0).numpy()
        with torch.inference_mode():
            outputs = model(**{name: value.to(model.device) for name, value in inputs.items()})
        found, expected = outputs.logits.float().cpu().numpy(), outputs.preferences.float().sum(-1).cpu().numpy()
        for row, place in enumerate(places):
            logits[place], own[place] = found[row][offered[row]], expected[row][offered[row]]
    return np.concatenate(logits), np.concatenate(own)


class OfferMetrics:
    """`compute_metrics` of the Trainer: `conversion_average_precision`, `conversion_ndcg@10` ... of each outcome.

    Args:
        outcomes: names, in the order of the model's.
        k: length of the list.
    """

    def __init__(self, outcomes: Sequence[str], k: int = 10):
        self.outcomes, self.k = list(outcomes), k

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Metrics from logits and labels `(G, K, O)`; of the outcomes that some groups have and some have not."""
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        groups, offers = labels.shape[:2]
        result: dict[str, float] = {}
        for place, outcome in enumerate(self.outcomes):
            taken = np.where(labels[..., place] < 0, np.nan, labels[..., place]).reshape(-1)
            truth = OfferTruth(np.arange(groups), np.arange(groups + 1) * offers, taken.astype(np.float32))
            if not truth.responds.any() or truth.responds.all():
                continue
            scores = logits[..., place].reshape(-1)
            once = np.ones((1, groups), np.int64)
            found = offer_metrics(truth, scores, expected_takes(truth.offsets, scores), once, self.k)
            result |= {f"{outcome}_{name}": float(values[0]) for name, values in found.items()}
        return result


def resample_customers(
    customer_ids: Sequence[str] | NDArray, resamples: int = 2000, seed: int = 0
) -> NDArray[np.int64]:
    """How often each group counts: once in the first row, then in each resample of the customers; `(1 + S, G)`."""
    generator = np.random.default_rng(seed)
    customers, owner = np.unique(np.asarray(customer_ids, dtype=str), return_inverse=True)
    shares = np.full(len(customers), 1 / len(customers))
    counts = generator.multinomial(len(customers), shares, size=resamples)
    return np.concatenate([np.ones((1, len(owner)), np.int64), counts[:, owner]])


def offer_metrics(
    truth: OfferTruth, scores: ArrayLike, group_scores: ArrayLike, weights: NDArray[np.int64], k: int = 10
) -> dict[str, NDArray[np.float64]]:
    """All metrics on the data and on every resample, each of shape `(1 + S,)`; NaN on a resample that has no group
    that takes an offer, or no other.

    Args:
        truth: of the offers.
        scores: of each offer, of shape `(N,)`.
        group_scores: that any offer of the group is taken, of shape `(G,)`.
        weights: of `resample_customers`.
        k: length of the list.

    Raises:
        ValueError: if no group or every group takes an offer.
    """
    responds, group_scores = truth.responds, np.asarray(group_scores, np.float64)
    if responds.all() or not responds.any():
        raise ValueError(
            f"{int(responds.sum())} of {len(responds)} groups take an offer; expected some that do and some that "
            "don't. Evaluate on more offers."
        )
    taking = weights[:, responds].sum(1)
    result = weighted_ranking(responds, group_scores, weights)
    for name, values in which_offer(truth, scores, (k,)).items():
        total = weights[:, responds] @ values[responds]
        result[name] = np.divide(total, taking, out=np.full(len(weights), np.nan), where=taking > 0)
    return result


def weighted_ranking(
    positive: NDArray[np.bool_], scores: NDArray, weights: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """`average_precision` and `roc_auc` of scikit-learn for many sample weights at once; thousands of times faster.

    Args:
        positive: of shape `(G,)`.
        scores: of shape `(G,)`.
        weights: of shape `(S, G)`.

    Returns:
        Of shape `(S,)`; NaN where one class has no weight.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # of equal scores
    hits, misses = (
        np.add.reduceat(weights[:, order] * chosen[order], starts, axis=1) for chosen in (positive, ~positive)
    )
    found, missed = hits.cumsum(1), misses.cumsum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(found > 0, found / (found + missed), 0.0)
        average_precision = (hits * precision).sum(1) / found[:, -1]
        roc_auc = (misses * (found - hits / 2)).sum(1) / (found[:, -1] * missed[:, -1])
    told = (found[:, -1] > 0) & (missed[:, -1] > 0)
    return {
        "average_precision": np.where(told, average_precision, np.nan),
        "roc_auc": np.where(told, roc_auc, np.nan),
    }


def interval(values: ArrayLike, customers: int, confidence: float = 0.95) -> Interval:
    """A metric of `offer_metrics`, or a difference of two, with its percentile interval."""
    values = np.asarray(values)
    low, high = np.nanquantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values[0]), float(low), float(high), customers)
