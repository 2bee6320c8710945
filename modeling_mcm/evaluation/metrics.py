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
import torch
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import count_pairs
from modeling_mcm.events_mcm import number_groups, pad_groups

CONFIDENCE, RESAMPLES = 0.95, 2000  # of bootstrap intervals
UNREACHABLE = int(np.iinfo(np.int32).max)  # `greater` of a target that no ranking can hold

Metric = Callable[[NDArray, NDArray, NDArray], NDArray]


@torch.no_grad()
def ranks_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, max_elements: int = 2**24
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts for each target label how many labels have a larger score and how many have the same.

    A chunk of rows is sorted and searched at a time, on the device of the logits, so that no array of shape
    `(B, N, V)` is needed.

    Args:
        logits (`torch.Tensor`, shape `(B, V)`): Scores of the labels. Infinite scores are allowed.
        labels (`torch.Tensor`, shape `(B, N)` or `(B,)`): Label ids; ids up to 1, for unknown and for padding such as
            0 or -100, get the result `UNREACHABLE`.
        max_elements (`int`): Number of logits that are sorted at a time.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `greater` and `ties`, int64, with the shape and device of `labels`.

    Raises:
        ValueError: If the shapes don't fit, a logit is NaN, or a label is no label id.
    """
    if logits.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(logits):
        raise ValueError(
            f"Found scores of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; expected (B, V) "
            "and (B, N) or (B,)."
        )
    if labels.numel() and labels.max() >= logits.shape[1]:
        raise ValueError(
            f"Found the label id {labels.max()}; expected ids from 0 to {logits.shape[1] - 1}, one score for each. "
            "Check that scores and targets are of the same task."
        )
    greater, ties = torch.full_like(labels, UNREACHABLE, dtype=torch.long), torch.ones_like(labels, dtype=torch.long)
    rows = max(1, max_elements // max(1, logits.shape[1]))
    for start in range(0, len(logits), rows):
        chunk = logits[start : start + rows]
        if chunk.element_size() < 4:
            chunk = chunk.float()  # exact, and what searchsorted takes everywhere
        if chunk.isnan().any():
            raise ValueError("Scores hold NaN, which has no rank; expected numbers. Check the model or the loss.")
        targets = labels[start : start + rows].reshape(len(chunk), -1).to(chunk.device, torch.long)
        reachable = targets >= FIRST_LABEL
        values = chunk.gather(1, targets.clamp(min=0))
        ordered = chunk[:, FIRST_LABEL:].sort(dim=1).values.contiguous()
        below = torch.searchsorted(ordered, values)
        not_above = torch.searchsorted(ordered, values, right=True)
        shape = labels[start : start + rows].shape
        greater[start : start + rows] = (ordered.shape[1] - not_above).where(reachable, UNREACHABLE).view(shape)
        ties[start : start + rows] = (not_above - below).where(reachable, 1).view(shape)
    return greater, ties


def tie_ranks(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Does the same as [`ranks_from_logits`], for arrays of shape `(B, V)` and `(B, N)`."""
    greater, ties = ranks_from_logits(torch.as_tensor(np.asarray(scores)), torch.as_tensor(np.asarray(targets)))
    return greater.numpy(), ties.numpy()


def distinct_targets(offsets: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Turns target labels, one for each event, into padded distinct labels and their numbers of events.

    Args:
        offsets (array, shape `(B + 1,)`): Customer b has the events `labels[offsets[b]:offsets[b + 1]]`.
        labels (array, shape `(events,)`): Label ids, not 0.

    Returns:
        `tuple`: Labels and counts, int64 arrays of shape `(B, N)`, in ascending order of the label; 0 is padding in
        both.
    """
    offsets, labels = np.asarray(offsets), np.asarray(labels, dtype=np.int64)
    owner, label, counts = count_pairs(number_groups(np.diff(offsets))[0], labels)
    sizes = np.bincount(owner, minlength=len(offsets) - 1)
    return pad_groups(label, sizes), pad_groups(counts, sizes)


def ndcg_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
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
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    gains = (discounts[np.minimum(greater + ties, k)] - discounts[np.minimum(greater, k)]) / ties
    ideal = discounts[np.minimum(relevant.sum(axis=1), k)]
    return ratio((gains * relevant).sum(axis=1), ideal)


def recall_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Computes the expected share of the targets among the first k labels. Arguments and result: see [`ndcg_at_k`]."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    hits = (np.minimum(greater + ties, k) - np.minimum(greater, k)) / ties  # probability of each target
    return ratio((hits * relevant).sum(axis=1), relevant.sum(axis=1))


LIST_METRICS = {"ndcg": ndcg_at_k, "recall": recall_at_k}


def customer_metrics(
    greater: ArrayLike, ties: ArrayLike, counts: ArrayLike, ks: Sequence[int] = (10,)
) -> dict[str, NDArray[np.float64]]:
    """Computes all metrics of the next visit and of the next event, one value for each customer.

    Args:
        greater, ties (arrays, shape `(B, N)`): Numbers of labels with a larger and with the same score, from
            [`tie_ranks`].
        counts (array, shape `(B, N)`): Number of the next visit's events that have the label; 0 is padding.

    Returns:
        `dict[str, numpy.ndarray]`: Arrays of shape `(B,)` named as `next_visit_ndcg@10` or `next_event_recall@10`;
        NaN for a customer without targets.
    """
    greater, ties, counts = (np.asarray(array) for array in (greater, ties, counts))
    values = set_metrics(greater, ties, counts > 0, ks, "next_visit")
    for k in ks:
        for name, metric in LIST_METRICS.items():
            values[f"next_event_{name}@{k}"] = next_event(partial(metric, k=k), greater, ties, counts)
    return values


def set_metrics(
    greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, ks: Sequence[int], target: str
) -> dict[str, NDArray[np.float64]]:
    """Computes all metrics of a set of distinct labels, named as `horizon_ndcg@10`, one value for each customer. The
    arrays are those of [`ndcg_at_k`]; `target` is the first part of the names, "next_visit" or "horizon"."""
    return {
        f"{target}_{name}@{k}": metric(greater, ties, relevant, k) for k in ks for name, metric in LIST_METRICS.items()
    }


def list_properties(
    lists: NDArray[np.int64], popularity: ArrayLike, offsets: NDArray[np.int64], seen: NDArray[np.int64]
) -> dict[str, float]:
    """Computes what lists of labels are like, whatever their customers took.

    Args:
        lists (array, shape `(B, k)`): Label ids of each customer's list; 0 where a list is shorter.
        popularity (array, shape `(V,)`): Number of events of each label in the training period.
        offsets, seen (arrays, shapes `(B + 1,)` and `(labels,)`): Customer b had the distinct labels
            `seen[offsets[b]:offsets[b + 1]]` before.

    Returns:
        `dict[str, float]`: `coverage`, the share of all labels that are in a list; and of the places of all lists
        `popular`, the share with a label of the most popular 1% (at least one label); `novelty`, the mean of
        -log2(share of the label in the events), in bits; `repeats`, the share with a label that the customer had.
        NaN without a label to list.
    """
    counts = np.maximum(np.asarray(popularity, np.float64)[FIRST_LABEL:], 1)  # a label without an event counts as one
    labels = len(counts)
    if not labels or not (lists >= FIRST_LABEL).any():
        return dict.fromkeys(("coverage", "popular", "novelty", "repeats"), np.nan)
    customer, place = np.nonzero(lists >= FIRST_LABEL)
    listed = lists[customer, place] - FIRST_LABEL
    popular = np.argsort(-counts, kind="stable")[: -(-labels // 100)]
    had = number_groups(np.diff(offsets))[0] * labels + seen - FIRST_LABEL
    return {
        "coverage": len(np.unique(listed)) / labels,
        "popular": float(np.isin(listed, popular).mean()),
        "novelty": float(-np.log2(counts[listed] / counts.sum()).mean()),
        "repeats": float(np.isin(customer * labels + listed, had).mean()),
    }


def next_event(metric: Metric, greater: NDArray, ties: NDArray, counts: NDArray) -> NDArray[np.float64]:
    """Computes the expectation of a metric `(B,)` if the only target is one event of the visit, each with the same
    probability. `counts` `(B, N)` is the number of events with each label; 0 or less is padding. A customer without a
    target has NaN. The metric computes `(B,)` from `(greater, ties, relevant)`."""
    counts = np.maximum(counts, 0)
    alone = metric(greater.reshape(-1, 1), ties.reshape(-1, 1), counts.reshape(-1, 1) > 0).reshape(counts.shape)
    return ratio(np.where(counts > 0, alone * counts, 0.0).sum(axis=1), counts.sum(axis=1))


class Interval(NamedTuple):
    """A mean over customers with its bootstrap interval."""

    mean: float
    low: float
    high: float
    customers: int


def bootstrap_interval(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Computes the mean of one value for each customer, with its percentile bootstrap interval. A customer with NaN
    (no target) is left out; if none is left, a `ValueError` is raised."""
    values = np.asarray(values, dtype=np.float64)
    found = values[~np.isnan(values)]
    if not len(found):
        raise ValueError(
            f"None of {len(values)} customers has a value; expected at least one customer with a target. Check "
            "the cutoff dates and the task."
        )
    generator, means = np.random.default_rng(seed), []
    at_once = max(1, 2**22 // len(found))  # 32 MiB of indices
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start), len(found)
        means.append(found[generator.integers(len(found), size=size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(found.mean()), float(low), float(high), len(found))


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


def ratio(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """Divides; the result is NaN where the denominator is 0 or NaN."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _checked(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> tuple[NDArray, NDArray, NDArray]:
    greater, ties, relevant = np.asarray(greater), np.asarray(ties), np.asarray(relevant) > 0
    if not (greater.shape == ties.shape == relevant.shape and greater.ndim == 2):
        raise ValueError(
            f"Found greater, ties and targets of shapes {greater.shape}, {ties.shape} and {relevant.shape}; expected "
            "one shape (customers, targets) for all three."
        )
    if k < 1:
        raise ValueError(f"Found k = {k}; expected a list of at least one label.")
    # Padding may hold 0, or the -100 with which accelerate pads gathered batches.
    return np.where(relevant, greater, UNREACHABLE).astype(np.int64), np.where(relevant, ties, 1), relevant
