# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics, computed from the ranks of the targets: one value for each customer, then means and intervals.

A ranking enters only through two numbers for each target label: how many labels score higher (`greater`) and how many
score the same, the target included (`ties`). Where labels are tied, every metric is its exact expectation under
uniformly random tie-breaking, so the order of the label ids never matters. Ids 0 (pad) and 1 (unknown) are never
ranked. Each distinct label that training has never seen, with a negative id of its own, is a target as others are: it
counts in the ideal DCG and in recall's denominator, and can't be hit.

Two targets are measured. The **next visit** is the set of the visit's distinct labels; its ideal DCG has
`min(set size, k)` labels. The **next event** is one event of that visit, chosen uniformly; its metrics are the exact
expectation over that choice, so a label that occurs twice has twice the weight. With a **horizon** of days, the target
is instead the set of the distinct labels of these days, with the metrics of the next visit.

Shapes: B customers, N distinct target labels of a customer (right-padded), V labels, ids 0 and 1 included.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from torch import Tensor

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import count_pairs
from modeling_mcm.events_mcm import pad_groups, run_starts

from .cases import EvaluationCases

CONFIDENCE, RESAMPLES = 0.95, 2000  # of bootstrap intervals
TAILS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
UNREACHABLE = int(np.iinfo(np.int32).max)  # `greater` of a target that no ranking can hold


@torch.no_grad()
def ranks_from_logits(logits: Tensor, labels: Tensor, max_elements: int = 2**24) -> tuple[Tensor, Tensor]:
    """Counts for each target label how many labels have a larger score and how many have the same.

    A chunk of rows is sorted and searched at a time, on the device of the logits, so that no array of shape
    `(B, N, V)` is needed.

    Args:
        logits (`Tensor`, shape `(B, V)`): Scores of the labels. Infinite scores are allowed.
        labels (`Tensor`, shape `(B, N)`): Label ids; ids up to 1, for unknown and for padding such as 0 or -100,
            get the result `UNREACHABLE`.
        max_elements (`int`): Number of logits that are sorted at a time.

    Returns:
        `tuple[Tensor, Tensor]`: `greater` and `ties`, int64, with the shape of `labels`.

    Raises:
        ValueError: If the shapes don't fit, a logit is NaN, or a label is no label id.
    """
    if logits.ndim != 2 or labels.ndim != 2 or len(labels) != len(logits):
        raise ValueError(
            f"Found scores of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; expected (B, V) "
            "and (B, N)."
        )
    if labels.numel() and labels.max() >= logits.shape[1]:
        raise ValueError(
            f"Found the label id {labels.max()}; expected ids from 0 to {logits.shape[1] - 1}, one score for each. "
            "Check that scores and targets are of the same task."
        )
    labels = labels.to(logits.device, torch.long)
    parts, rows = [], max(1, max_elements // max(1, logits.shape[1]))
    for scores, targets in zip(logits.split(rows), labels.split(rows), strict=True):
        if scores.element_size() < 4:
            scores = scores.float()  # exact, and what searchsorted takes everywhere
        if scores.isnan().any():
            raise ValueError("Scores hold NaN, which has no rank; expected numbers. Check the model or the loss.")
        values = scores.gather(1, targets.clamp(min=0))
        ordered = scores[:, FIRST_LABEL:].sort(dim=1).values.contiguous()
        below, not_above = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
        parts.append(torch.stack([ordered.shape[1] - not_above, not_above - below]))
    greater, ties = torch.cat(parts, 1)
    return greater.where(labels >= FIRST_LABEL, UNREACHABLE), ties.where(labels >= FIRST_LABEL, 1)


def tie_ranks(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray, NDArray]:
    """Does the same as [`ranks_from_logits`], for arrays of shape `(B, V)` and `(B, N)`."""
    greater, ties = ranks_from_logits(torch.as_tensor(np.asarray(scores)), torch.as_tensor(np.asarray(targets)))
    return greater.numpy(), ties.numpy()


def distinct_targets(customer: ArrayLike, labels: ArrayLike, number: int) -> tuple[NDArray, NDArray]:
    """Turns target labels, one for each event, into padded distinct labels and their numbers of events.

    Args:
        customer (array, shape `(events,)`): Index of each event's customer.
        labels (array, shape `(events,)`): Label ids, not 0.
        number (`int`): B.

    Returns:
        `tuple`: Labels and counts, int64 arrays of shape `(B, N)`, in ascending order of the label; 0 is padding in
        both.
    """
    owner, label, counts = count_pairs(np.asarray(customer), np.asarray(labels, dtype=np.int64))
    sizes = np.bincount(owner, minlength=number)
    return pad_groups(label, sizes), pad_groups(counts, sizes)


def ndcg_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray:
    """Computes the expected NDCG@k of each customer's targets, with binary gains.

    The ideal DCG is that of `min(number of targets, k)` labels. Of labels with equal scores every order is equally
    likely.

    Args:
        greater, ties (arrays, shape `(B, N)`): Numbers of labels with a larger and with the same score, from
            [`tie_ranks`].
        relevant (array, shape `(B, N)`): True, or a positive count, for a target, and false for padding. The targets
            of a customer must be distinct labels.

    Returns:
        `numpy.ndarray`, shape `(B,)`: The NDCG of each customer; NaN without a target.

    Raises:
        ValueError: If shapes differ or k is below 1.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains, number = _sum_gains(greater, ties, relevant, discounts)
    return ratio(gains, np.append(0.0, np.cumsum(discounts))[np.minimum(number, k)])


def recall_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray:
    """Computes the expected share of the targets among the first k labels. Arguments and result: see [`ndcg_at_k`]."""
    return ratio(*_sum_gains(greater, ties, relevant, np.ones(max(k, 0))))


LIST_METRICS = {"ndcg": ndcg_at_k, "recall": recall_at_k}


def customer_metrics(
    greater: ArrayLike, ties: ArrayLike, counts: ArrayLike, ks: Sequence[int] = (10,), target: str = "next_visit"
) -> dict[str, NDArray]:
    """Computes all metrics of a set of distinct labels, and of a next visit those of the next event, too: one value
    for each customer.

    Args:
        greater, ties (arrays, shape `(B, N)`): Numbers of labels with a larger and with the same score, from
            [`tie_ranks`].
        counts (array, shape `(B, N)`): Number of the target's events that have the label; 0 is padding.
        target (`str`): First part of the names, "next_visit" or "horizon".

    Returns:
        `dict[str, numpy.ndarray]`: Arrays of shape `(B,)` named as `next_visit_ndcg@10` or `next_event_recall@10`;
        NaN for a customer without targets.
    """
    greater, ties, counts = (np.asarray(array) for array in (greater, ties, counts))
    set_metrics, event_metrics = {}, {}
    for k in ks:
        for name, metric in LIST_METRICS.items():
            set_metrics[f"{target}_{name}@{k}"] = metric(greater, ties, counts > 0, k)
            if target == "next_visit":
                event_metrics[f"next_event_{name}@{k}"] = next_event(partial(metric, k=k), greater, ties, counts)
    return set_metrics | event_metrics


def list_properties(lists: NDArray, popularity: NDArray, seen: csr_array) -> dict[str, float]:
    """Computes what lists of labels are like, whatever their customers took.

    Args:
        lists (array, shape `(B, k)`): Label ids of each customer's list; 0 where a list is shorter.
        popularity (array, shape `(V,)`): Number of events of each label in the training period.
        seen (sparse array, shape `(B, V)`): How often each customer had each label before.

    Returns:
        `dict[str, float]`: `coverage`, the share of all labels that are in a list; and of the places of all lists
        `popular`, the share with a label of the most popular 1% (at least one label); `novelty`, the mean of
        -log2(share of the label in the events), in bits; `repeats`, the share with a label that the customer had.
    """
    counts = np.maximum(popularity[FIRST_LABEL:], 1)  # a label without an event counts as one
    customer, place = np.nonzero(lists >= FIRST_LABEL)
    listed = lists[customer, place] - FIRST_LABEL
    popular = np.argsort(-counts, kind="stable")[: -(-len(counts) // 100)]
    return {
        "coverage": len(np.unique(listed)) / len(counts),
        "popular": float(np.isin(listed, popular).mean()),
        "novelty": float(-np.log2(counts[listed] / counts.sum()).mean()),
        "repeats": float((seen[customer, listed + FIRST_LABEL] > 0).mean()),
    }


def next_event(metric: Callable[..., NDArray], greater: NDArray, ties: NDArray, counts: NDArray) -> NDArray:
    """Computes the expectation of a metric `(B,)` if the only target is one event of the visit, each with the same
    probability. `counts` `(B, N)` is the number of events with each label; 0 or less is padding. A customer without a
    target has NaN. The metric computes `(B,)` from `(greater, ties, relevant)`."""
    counts = np.maximum(counts, 0)
    alone = metric(greater.reshape(-1, 1), ties.reshape(-1, 1), counts.reshape(-1, 1) > 0).reshape(counts.shape)
    return ratio(np.where(counts > 0, alone * counts, 0.0).sum(axis=1), counts.sum(axis=1))


class TargetRanks:
    """From scores to metrics, in the same way for a model and for every baseline: collects the ranks of the targets of
    one task, and the lists of the `length` best labels, from batches of scores, which are not stored. `lists`
    `(cases, length)` holds 0 where no more labels are ranked.

        ranks = TargetRanks(cases, "product_type")
        for indices, scores in batches:
            ranks.add(indices, scores)
        values = ranks.metrics(ks=(10,))  # for each metric one value a case
    """

    def __init__(self, cases: EvaluationCases, task: str, length: int = 10):
        self.cases, self.task = cases, task
        self.lists = np.zeros((len(cases), length), np.int64)
        events = cases.targets[task]
        self.labels, self.counts = distinct_targets(events.case, events.labels, len(cases))
        self.greater, self.ties = np.zeros_like(self.labels), np.ones_like(self.labels)

    def add(self, indices: NDArray | slice, scores: Tensor) -> None:
        """Adds the scores `(B, V)` of the cases with these indices `(B,)`. Labels that are not ranked come last."""
        seen = self.cases.seen.get(self.task)
        if seen is not None:
            cells = (torch.from_numpy(index).long().to(scores.device) for index in seen[indices].nonzero())
            scores = scores.index_put(tuple(cells), scores.new_tensor(-torch.inf))
        greater, ties = ranks_from_logits(scores, torch.from_numpy(self.labels[indices]))
        best = scores[:, FIRST_LABEL:].topk(min(self.lists.shape[1], scores.shape[1] - FIRST_LABEL))
        listed = (best.indices + FIRST_LABEL).where(best.values > -torch.inf, 0)
        self.lists[indices, : listed.shape[1]] = listed.cpu().numpy()
        self.greater[indices], self.ties[indices] = greater.cpu().numpy(), ties.cpu().numpy()

    def metrics(self, ks: Sequence[int]) -> dict[str, NDArray]:
        """The metrics of [`customer_metrics`], each of shape `(cases,)`."""
        return customer_metrics(self.greater, self.ties, self.counts, ks, self.cases.target)


Ranks = dict[str, dict[str, TargetRanks]]  # by method and task


def measure(ranks: Ranks, ks: Sequence[int] = (10,)) -> pd.DataFrame:
    """The metrics of ranks: a row for each case, and a column for each method, task and metric."""
    return pd.DataFrame(
        {
            (method, task, metric): values
            for method, by_task in ranks.items()
            for task, task_ranks in by_task.items()
            for metric, values in task_ranks.metrics(ks).items()
        }
    )


class Interval(NamedTuple):
    """A mean over customers with its bootstrap interval."""

    mean: float
    low: float
    high: float
    customers: int


def bootstrap_interval(values: ArrayLike) -> Interval:
    """Computes the mean of one value for each customer, with its percentile bootstrap interval. A customer with NaN
    (no target) is left out; if none is left, a `ValueError` is raised."""
    values = np.asarray(values, dtype=np.float64)
    known = values[~np.isnan(values)]
    if not len(known):
        raise ValueError(
            f"None of {len(values)} customers has a value; expected at least one customer with a target. Check "
            "the cutoff dates and the task."
        )
    from scipy.stats import bootstrap  # takes half a second

    sample, at_once = known.repeat(2) if len(known) == 1 else known, max(1, 2**22 // len(known))  # 32 MiB of indices
    resampled = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=at_once,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    )
    low, high = resampled.confidence_interval
    return Interval(float(known.mean()), float(low), float(high), len(known))


def paired_difference(first: ArrayLike, second: ArrayLike) -> Interval:
    """Computes the interval of the mean of `first - second`, values of the same customers, of shape `(B,)`: customers
    are resampled in pairs. A customer with NaN in either is left out. A `ValueError` is raised if the shapes differ or
    no customer has both values."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"Found values of shapes {first.shape} and {second.shape}; expected one value for each of the same "
            "customers, in the same order. Align both by customer_id first."
        )
    return bootstrap_interval(first - second)


def weighted_ranking(positive: NDArray, scores: NDArray, weights: NDArray) -> dict[str, NDArray]:
    """Computes average precision and ROC AUC for many sample weights at once.

    The values are those of scikit-learn, which takes one vector of weights at a time and is far slower.

    Args:
        positive (`numpy.ndarray`, shape `(G,)`): Whether each group is of the positive class.
        scores (`numpy.ndarray`, shape `(G,)`): Scores of the groups; a larger one is likelier positive.
        weights (`numpy.ndarray`, shape `(S, G)`): Weight of each group in each resample.

    Returns:
        `dict[str, numpy.ndarray]`: `average_precision` and `roc_auc`, each of shape `(S,)`; NaN on a resample in which
        no group is positive, and the second also on one in which all are.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(run_starts(scores[order]))  # of equal scores
    hits, misses = (np.add.reduceat(weights[:, order] * side[order], starts, axis=1) for side in (positive, ~positive))
    positives, negatives = hits.cumsum(1), misses.cumsum(1)  # weights down to each score
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(positives > 0, positives / (positives + negatives), 0.0)
        average_precision = (hits * precision).sum(1) / positives[:, -1]
        roc_auc = (misses * (positives - hits / 2)).sum(1) / (positives[:, -1] * negatives[:, -1])
    return {"average_precision": average_precision, "roc_auc": roc_auc}


def mean_auc(labels: NDArray, scores: NDArray) -> float:
    """Computes the ROC AUC of classes; NaN if fewer than two classes occur. With two classes it is that of the second.
    With more it is the mean over the classes that occur, each against all others. `labels` are ids of classes, of
    shape `(N,)`, and `scores` of shape `(N, C)`; a larger one is likelier."""
    areas = []
    for label in range(scores.shape[1]) if scores.shape[1] > 2 else [1]:
        is_label = labels == label
        if 0 < is_label.sum() < len(labels):
            log_odds = scores[:, label] - np.logaddexp.reduce(np.delete(scores, label, axis=1), axis=1)
            areas.append(weighted_ranking(is_label, log_odds, np.ones((1, len(labels))))["roc_auc"][0])
    return float(np.mean(areas)) if areas else float("nan")


def rank_correlation(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Computes Spearman's rank correlation of two arrays of shape `(N,)`; NaN if all values of one are equal."""
    return float(pd.DataFrame({"label": labels, "predicted": predicted}).corr("spearman").iloc[0, 1])


def measure_labels(scores: ArrayLike, labels: ArrayLike, is_number: bool) -> dict[str, float]:
    """Metrics of scores `(N, C)` and labels `(N,)`: `auc` and `accuracy` of classes; `rank_correlation` and `mae`, the
    mean absolute error, of numbers."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if is_number:
        error = float(np.abs(scores[:, 0] - labels).mean())
        return {"rank_correlation": rank_correlation(labels, scores[:, 0]), "mae": error}
    return {"auc": mean_auc(labels, scores), "accuracy": float((scores.argmax(1) == labels).mean())}


def ratio(numerator: NDArray, denominator: NDArray) -> NDArray:
    """Divides; the result is NaN where the denominator is 0 or NaN."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _sum_gains(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, gains: NDArray) -> tuple[NDArray, NDArray]:
    """Sums the expected gains `(B,)` of each customer's targets, of which that of each place is given, `(k,)`; and
    counts the targets."""
    greater, ties, relevant = np.asarray(greater), np.asarray(ties), np.asarray(relevant) > 0
    if not (greater.shape == ties.shape == relevant.shape and greater.ndim == 2):
        raise ValueError(
            f"Found greater, ties and targets of shapes {greater.shape}, {ties.shape} and {relevant.shape}; expected "
            "one shape (customers, targets) for all three."
        )
    if not len(gains):
        raise ValueError("Found k = 0 or less; expected a list of at least one label.")
    # Padding may hold 0, or the -100 with which accelerate pads gathered batches.
    greater, ties = np.where(relevant, greater, len(gains)), np.where(relevant, ties, 1)
    sums = np.append(0.0, np.cumsum(gains))
    first, end = (sums[np.minimum(place, len(gains))] for place in (greater, greater + ties))
    return ((end - first) / ties).sum(axis=1), relevant.sum(axis=1)
