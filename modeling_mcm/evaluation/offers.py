# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and metrics of offers: who responds, and which offers they take.

**Who responds** ranks all groups by one score each: average precision and ROC AUC of "takes any of its offers".
**Which offer** ranks the offers of each group that takes one: NDCG@k and recall@k, as the mean over such groups; equal
scores count as their expected rank. The groups of all campaigns are evaluated together, because most campaigns have
too few responses for metrics of their own. Intervals come from resamples of the customers, each with all of its
groups. A metric is computed on the data and on every resample, so that two methods can be compared in pairs.

Shapes: G groups, N offers, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.offers import OfferReader
from modeling_mcm.evaluation.metrics import CONFIDENCE, RESAMPLES, Interval, ndcg_at_k, ratio, recall_at_k, tie_ranks
from modeling_mcm.events_mcm import pad_groups, run_starts


@dataclass(frozen=True)
class OfferTruth:
    """One outcome of the offers that are evaluated."""

    offsets: NDArray[np.int64]  # (G + 1,): Group g has the offers from `offsets[g]` to before `offsets[g + 1]`
    # (N,): 1 for an offer that was taken and 0 for one that was not. NaN if the outcome was not observed; such an
    # offer is not evaluated
    taken: NDArray[np.float32]

    @property
    def responds(self) -> NDArray[np.bool_]:
        """Whether a group takes any of its offers, of shape `(G,)`."""
        return np.add.reduceat(np.nan_to_num(self.taken), self.offsets[:-1]) > 0


def which_offer(truth: OfferTruth, scores: ArrayLike, k: int = 10) -> dict[str, NDArray[np.float64]]:
    """Computes `ndcg@k` and `recall@k` of each group, of shape `(G,)`; NaN for a group that takes nothing. Raises
    `ValueError` if `scores` are not `(N,)`, one for each offer, larger where it is likelier."""
    scores = np.asarray(scores, np.float64)
    if scores.shape != truth.taken.shape or np.isnan(scores).any():
        raise ValueError(f"Found scores of shape {scores.shape}, NaN or not; expected a number for each offer.")
    sizes = np.diff(truth.offsets)
    # Offers stand for the labels of a task, whose ids begin with FIRST_LABEL.
    ranked = pad_groups(np.where(np.isnan(truth.taken), -np.inf, scores), sizes, -np.inf)
    before = (0, 0), (FIRST_LABEL, 0)
    ranked, taken = np.pad(ranked, before), np.pad(pad_groups(truth.taken == 1, sizes), before)
    greater, ties = tie_ranks(ranked, taken * np.arange(taken.shape[1]))
    return {f"ndcg@{k}": ndcg_at_k(greater, ties, taken, k), f"recall@{k}": recall_at_k(greater, ties, taken, k)}


def expected_takes(offsets: NDArray[np.int64], scores: ArrayLike) -> NDArray[np.float64]:
    """Computes how many of its offers each group is expected to take, of shape `(G,)`, from the log-odds of each offer
    `(N,)` and from where the offers of each group begin `(G + 1,)`."""
    chances = np.exp(-np.logaddexp(0, -np.asarray(scores, np.float64)))
    return np.add.reduceat(chances, np.asarray(offsets)[:-1])


@torch.inference_mode()
def score_offers(model: Any, reader: OfferReader, batch_size: int = 32) -> NDArray[np.float32]:
    """Scores offers with an `MCMForActionRecommendation`: the log-odds of each outcome, and last the scores without
    the head, which are sums over tasks of the model's `preferences`, of shape `(N, outcomes + 1)`."""
    scores = np.zeros((len(reader.offers.table), len(model.config.action_outcomes) + 1), np.float32)
    for rows, inputs in reader.batches(batch_size):
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        outputs = model(**inputs)
        both = torch.cat([outputs.logits, outputs.preferences.sum(-1, keepdim=True)], -1)
        scores[rows] = both[inputs["offered_actions"] >= 0].float().cpu()
    return scores


def resample_customers(customer_ids: Sequence[str] | NDArray, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Draws S resamples of the customers (of each group `customer_ids`), each with all of its groups. Returns how
    often each group counts, of shape `(1 + S, G)`; the first row stands for the data themselves."""
    generator = np.random.default_rng(0)
    customers, owner = np.unique(np.asarray(customer_ids, dtype=str), return_inverse=True)
    shares = np.full(len(customers), 1 / len(customers))
    counts = generator.multinomial(len(customers), shares, size=resamples)
    return np.concatenate([np.ones((1, len(owner)), np.int64), counts[:, owner]])


def offer_metrics(
    truth: OfferTruth, scores: ArrayLike, weights: NDArray[np.int64], k: int = 10
) -> dict[str, NDArray[np.float64]]:
    """Computes all metrics on the data and on every resample.

    Args:
        scores (array, shape `(N,)`): Score of each offer, as log-odds.
        weights (`numpy.ndarray`, shape `(1 + S, G)`): How often each group counts, from [`resample_customers`].

    Returns:
        `dict[str, numpy.ndarray]`: `average_precision`, `roc_auc`, `ndcg@k` and `recall@k`, each of shape `(1 + S,)`.
        A value is NaN on a resample in which no group or every group takes an offer.

    Raises:
        ValueError: If no group or every group of the data takes an offer.
    """
    responds = truth.responds
    if responds.all() or not responds.any():
        raise ValueError(
            f"{int(responds.sum())} of {len(responds)} groups take an offer; expected some that do and some that "
            "don't. Evaluate on more offers."
        )
    result = weighted_ranking(responds, expected_takes(truth.offsets, scores), weights)
    taking = weights[:, responds]
    for name, values in which_offer(truth, scores, k).items():
        result[name] = ratio(taking @ values[responds], taking.sum(1))
    return result


def weighted_ranking(
    positive: NDArray[np.bool_], scores: NDArray, weights: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Computes average precision and ROC AUC for many sample weights at once.

    The values are those of scikit-learn, which takes one vector of weights at a time and is far slower.

    Args:
        positive (`numpy.ndarray`, shape `(G,)`): Whether each group is of the positive class.
        scores (`numpy.ndarray`, shape `(G,)`): Scores of the groups; a larger one is likelier positive.
        weights (`numpy.ndarray`, shape `(S, G)`): Weight of each group in each resample.

    Returns:
        `dict[str, numpy.ndarray]`: `average_precision` and `roc_auc`, each of shape `(S,)`; NaN on a resample in which
        one class has no weight.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(run_starts(scores[order]))  # of equal scores
    hits, misses = (np.add.reduceat(weights[:, order] * side[order], starts, axis=1) for side in (positive, ~positive))
    positives, negatives = hits.cumsum(1), misses.cumsum(1)  # weights down to each score
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(positives > 0, positives / (positives + negatives), 0.0)
        average_precision = (hits * precision).sum(1) / positives[:, -1]
        roc_auc = (misses * (positives - hits / 2)).sum(1) / (positives[:, -1] * negatives[:, -1])
    has_both = (positives[:, -1] > 0) & (negatives[:, -1] > 0)
    metrics = {"average_precision": average_precision, "roc_auc": roc_auc}
    return {name: np.where(has_both, values, np.nan) for name, values in metrics.items()}


def interval(values: ArrayLike, customers: int) -> Interval:
    """Computes the percentile interval of a metric, or of a difference of two methods, from its values on the data and
    on each resample, of shape `(1 + S,)`."""
    values = np.asarray(values)
    low, high = np.nanquantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values[0]), float(low), float(high), customers)
