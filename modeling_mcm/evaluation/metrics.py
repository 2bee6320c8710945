# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics, computed from the ranks of the targets: one value for each customer, then means and intervals.

A ranking enters only through two numbers for each target label: how many labels score higher (`greater`) and how many
score the same, the target included (`ties`). Where labels are tied, every metric is its exact expectation under
uniformly random tie-breaking, so the order of the label ids never matters. Ids 0 (pad) and 1 (unknown) are never
ranked: an unknown target counts in the ideal DCG and in recall's denominator and can't be hit.

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
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL

CONFIDENCE, RESAMPLES = 0.95, 2000  # of bootstrap intervals
UNREACHABLE = int(np.iinfo(np.int32).max)  # `greater` of a target that no ranking can hold

Metric = Callable[[NDArray, NDArray, NDArray], NDArray]


def tie_ranks(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts for each target label how many labels have a larger score and how many have the same.

    Args:
        scores (array, shape `(V,)` or `(B, V)`): Scores of the labels, the same for all customers or for each.
            Infinite scores are allowed.
        targets (array, shape `(N,)` or `(B, N)`): Label ids; for the ids 0 (missing) and 1 (unknown) the result is
            `UNREACHABLE`.

    Returns:
        `tuple`: `greater` and `ties`, two int64 arrays of the shape of `targets`.

    Raises:
        ValueError: If the shapes don't fit, a score is NaN, or a target is no label id.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim not in (1, 2) or (scores.ndim == 2 and targets.shape[:-1] != scores.shape[:1]):
        raise ValueError(
            f"Scores of shape {scores.shape} don't fit targets of shape {targets.shape}; expected (V,) with any "
            "targets, or (B, V) with (B, N)."
        )
    if targets.size and not (0 <= targets.min() and targets.max() < scores.shape[-1]):
        raise ValueError(
            f"Targets run from {targets.min()} to {targets.max()}; expected label ids from 0 to "
            f"{scores.shape[-1] - 1}, one score for each. Check that scores and targets are of the same task."
        )
    if np.isnan(scores).any():
        raise ValueError("Scores hold NaN, which has no rank; expected numbers. Check the model or the loss.")
    reachable = targets >= FIRST_LABEL
    if scores.ndim == 1:
        below, not_above = _searched(scores, targets)
    else:
        positions = [_searched(row, row_targets) for row, row_targets in zip(scores, targets, strict=True)]
        below, not_above = np.array(positions, dtype=np.int64).reshape(-1, 2, targets.shape[1]).transpose(1, 0, 2)
    ranked = max(scores.shape[-1] - FIRST_LABEL, 0)
    return np.where(reachable, ranked - not_above, UNREACHABLE), np.where(reachable, not_above - below, 1)


def _searched(scores: NDArray, targets: NDArray) -> tuple[NDArray, NDArray]:
    ordered, values = np.sort(scores[FIRST_LABEL:]), scores[targets]
    return np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")


def distinct_targets(offsets: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Turns target labels, one for each event, into padded distinct labels and their numbers of events.

    Values that are not in the vocabulary all have the unknown id, so they count as one distinct label.

    Args:
        offsets (array, shape `(B + 1,)`): Customer b has the events `labels[offsets[b]:offsets[b + 1]]`.
        labels (array, shape `(events,)`): Label ids, at least 1.

    Returns:
        `tuple`: Labels and counts, int64 arrays of shape `(B, N)`, in ascending order of the label; 0 is padding in
        both.
    """
    offsets, labels = np.asarray(offsets), np.asarray(labels, dtype=np.int64)
    customers = len(offsets) - 1
    size = int(labels.max(initial=0)) + 1
    customer = np.repeat(np.arange(customers, dtype=np.int64), np.diff(offsets))
    pairs, pair_counts = np.unique(customer * size + labels, return_counts=True)
    owner, label = np.divmod(pairs, size)
    sizes = np.bincount(owner, minlength=customers)
    index = np.arange(len(pairs)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.zeros((customers, int(np.max(sizes, initial=0))), dtype=np.int64)
    counts = np.zeros_like(padded)
    padded[owner, index] = label
    counts[owner, index] = pair_counts
    return padded, counts


def ndcg_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Computes the expected NDCG@k of each customer's targets, with binary gains.

    The ideal DCG is that of `min(number of targets, k)` labels. Of labels with equal scores every order is equally
    likely.

    Args:
        greater (array, shape `(B, N)`): Number of labels with a larger score, from [`tie_ranks`].
        ties (array, shape `(B, N)`): Number of labels with the same score, from [`tie_ranks`].
        relevant (array, shape `(B, N)`): True, or a positive count, for a target, and false for padding. The targets
            of a customer must be distinct labels.
        k (`int`): Length of the ranked list, at least 1.

    Returns:
        `numpy.ndarray`, shape `(B,)`: The NDCG of each customer; NaN without a target.

    Raises:
        ValueError: If shapes differ, k is below 1, or a customer has more tied targets than labels with that score.
    """
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    gains = (discounts[np.minimum(greater + ties, k)] - discounts[np.minimum(greater, k)]) / ties
    ideal = discounts[np.minimum(relevant.sum(axis=1), k)]
    return ratio((gains * relevant).sum(axis=1), ideal)


def recall_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Computes the expected share of the targets among the first k labels. Arguments and result: see [`ndcg_at_k`]."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    return ratio((_hit_probability(greater, ties, k) * relevant).sum(axis=1), relevant.sum(axis=1))


def precision_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Computes the expected share of targets in the first k labels. Arguments and result: see [`ndcg_at_k`]."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    hits = (_hit_probability(greater, ties, k) * relevant).sum(axis=1)
    return np.where(relevant.any(axis=1), hits / k, np.nan)


def hit_rate_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Computes the probability of a target among the first k labels. Arguments and result: see [`ndcg_at_k`]."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    first, size, members = _first_tie_group(greater, ties, relevant)
    # Only the group of the best targets matters: a later one reaches the list only after this one is wholly in it.
    inside = np.clip(k - first, 0, size)
    miss = np.ones(len(first))
    for draw in range(min(k, int(inside.max(initial=0)))):
        left = np.maximum(size - draw, 1)
        miss *= np.where(draw < inside, np.maximum(left - members, 0) / left, 1.0)
    return np.where(relevant.any(axis=1), 1 - miss, np.nan)


def mean_reciprocal_rank(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike) -> NDArray[np.float64]:
    """Computes the expected reciprocal rank of the first target. Arguments and result: see [`ndcg_at_k`]."""
    greater, ties, relevant = _checked(greater, ties, relevant, 1)
    first, size, members = _first_tie_group(greater, ties, relevant)
    groups, inverse = np.unique(np.stack([first, size, members]), axis=1, return_inverse=True)
    expected = np.array([_expected_reciprocal_rank(*group) for group in groups.T.tolist()])
    values = expected[inverse.reshape(-1)] if len(first) else np.zeros(0)
    return np.where(relevant.any(axis=1), values, np.nan)


def customer_metrics(
    greater: ArrayLike, ties: ArrayLike, counts: ArrayLike, ks: Sequence[int] = (10,)
) -> dict[str, NDArray[np.float64]]:
    """Computes all metrics of the next visit and of the next event, one value for each customer.

    Args:
        greater (array, shape `(B, N)`): Number of labels with a larger score, from [`tie_ranks`].
        ties (array, shape `(B, N)`): Number of labels with the same score, from [`tie_ranks`].
        counts (array, shape `(B, N)`): Number of the next visit's events that have the label; 0 is padding.
        ks (sequence of `int`): Lengths of the ranked list.

    Returns:
        `dict[str, numpy.ndarray]`: Arrays of shape `(B,)` named as `next_visit_ndcg@10`, `next_event_recall@10` or
        `next_visit_mrr`; NaN for a customer without targets. `hr` is the hit rate. For the next event the hit rate
        equals the recall, so there is only one of them.
    """
    greater, ties, counts = (np.asarray(array) for array in (greater, ties, counts))
    values = set_metrics(greater, ties, counts > 0, ks, "next_visit")
    for k in ks:
        for name, metric in LIST_METRICS.items():
            values[f"next_event_{name}@{k}"] = next_event(partial(metric, k=k), greater, ties, counts)
    values["next_event_mrr"] = next_event(mean_reciprocal_rank, greater, ties, counts)
    return values


def set_metrics(
    greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, ks: Sequence[int], target: str
) -> dict[str, NDArray[np.float64]]:
    """Computes all metrics of a set of distinct target labels, one value for each customer.

    Args:
        greater (array, shape `(B, N)`): Number of labels with a larger score, from [`tie_ranks`].
        ties (array, shape `(B, N)`): Number of labels with the same score, from [`tie_ranks`].
        relevant (array, shape `(B, N)`): True, or a positive count, for a target, and false for padding.
        ks (sequence of `int`): Lengths of the ranked list.
        target (`str`): First part of the metrics' names: "next_visit" or "horizon".

    Returns:
        `dict[str, numpy.ndarray]`: Arrays of shape `(B,)` named as `horizon_ndcg@10`; NaN for a customer without
        targets.
    """
    values: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        for name, metric in LIST_METRICS.items():
            values[f"{target}_{name}@{k}"] = metric(greater, ties, relevant, k)
        values[f"{target}_hr@{k}"] = hit_rate_at_k(greater, ties, relevant, k)
    values[f"{target}_mrr"] = mean_reciprocal_rank(greater, ties, relevant)
    return values


LIST_METRICS = {"ndcg": ndcg_at_k, "recall": recall_at_k, "precision": precision_at_k}


def next_event(metric: Metric, greater: NDArray, ties: NDArray, counts: NDArray) -> NDArray[np.float64]:
    """Computes the expectation of a metric if the only target is one event of the visit, each with the same
    probability.

    Args:
        metric (callable): Computes from `(greater, ties, relevant)`, of shape `(customers, targets)`, an array of
            shape `(customers,)`.
        greater (array, shape `(B, N)`): Number of labels with a larger score, from [`tie_ranks`].
        ties (array, shape `(B, N)`): Number of labels with the same score, from [`tie_ranks`].
        counts (array, shape `(B, N)`): Number of events with the label; 0 or less is padding.

    Returns:
        `numpy.ndarray`, shape `(B,)`: The expected metric of each customer; NaN without a target.
    """
    counts = np.maximum(counts, 0)
    alone = metric(greater.reshape(-1, 1), ties.reshape(-1, 1), counts.reshape(-1, 1) > 0).reshape(counts.shape)
    return ratio(np.where(counts > 0, alone * counts, 0.0).sum(axis=1), counts.sum(axis=1))


class Interval(NamedTuple):
    """A mean over customers with its bootstrap interval."""

    mean: float
    low: float
    high: float
    customers: int


class PairedDifference(NamedTuple):
    """The mean difference of two methods on the same customers, absolute and relative to the second's mean."""

    absolute: Interval
    relative: Interval


def bootstrap_interval(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Computes the mean over customers with its percentile bootstrap interval.

    Args:
        values (array, shape `(B,)`): One value for each customer; NaN (no target) is left out.
        seed (`int`): Seed of the resamples.
        resamples (`int`): Number of resamples of the customers.

    Raises:
        ValueError: If no customer has a value.
    """
    matrix = _with_value(np.asarray(values, dtype=np.float64)[None])
    means = _resampled_means(matrix, seed, resamples)
    return _interval(matrix.mean(axis=1)[0], means[0], matrix.shape[1])


def paired_difference(first: ArrayLike, second: ArrayLike) -> PairedDifference:
    """Computes bootstrap intervals of `first - second` and of `first / second - 1`; customers are resampled in pairs.

    Args:
        first (array, shape `(B,)`): One value of the first method for each customer.
        second (array, shape `(B,)`): Values of the second method for the same customers in the same order. A customer
            with NaN in either is left out.

    Raises:
        ValueError: If the shapes differ or no customer has both values.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"Found values of shapes {first.shape} and {second.shape}; expected one value for each of the same "
            "customers, in the same order. Align both by customer_id first."
        )
    matrix = _with_value(np.stack([first, second]))
    mean_first, mean_second = matrix.mean(axis=1)
    means_first, means_second = _resampled_means(matrix)
    with np.errstate(divide="ignore", invalid="ignore"):  # a second of zero has no relative difference: inf or nan
        relative = np.divide(mean_first, mean_second) - 1, means_first / means_second - 1
    customers = matrix.shape[1]
    return PairedDifference(
        _interval(mean_first - mean_second, means_first - means_second, customers),
        _interval(*relative, customers),
    )


def average_relative_difference(firsts: ArrayLike, seconds: ArrayLike) -> Interval:
    """Computes the mean over tasks of `first / second - 1` with its bootstrap interval.

    A resample takes the same customers in all tasks.

    Args:
        firsts (array, shape `(tasks, B)`): Values of the first method for each task and customer.
        seconds (array, shape `(tasks, B)`): Values of the second method for the same tasks and customers. A customer
            with any NaN is left out.

    Raises:
        ValueError: If the shapes differ or no customer has all values.
    """
    firsts, seconds = np.asarray(firsts, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if firsts.shape != seconds.shape or firsts.ndim != 2:
        raise ValueError(
            f"Found values of shapes {firsts.shape} and {seconds.shape}; expected (tasks, customers) twice, the same "
            "of both in the same order. Align both by customer_id first."
        )
    matrix = _with_value(np.concatenate([firsts, seconds]))
    tasks, means, resampled = len(firsts), matrix.mean(axis=1), _resampled_means(matrix)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (means[:tasks] / means[tasks:] - 1).mean()
        return _interval(mean, (resampled[:tasks] / resampled[tasks:] - 1).mean(axis=0), matrix.shape[1])


def _checked(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> tuple[NDArray, NDArray, NDArray]:
    greater, ties, relevant = np.asarray(greater), np.asarray(ties), np.asarray(relevant) > 0
    if not (greater.shape == ties.shape == relevant.shape and greater.ndim == 2):
        raise ValueError(
            f"Found greater, ties and targets of shapes {greater.shape}, {ties.shape} and {relevant.shape}; expected "
            "one shape (customers, targets) for all three."
        )
    if k < 1:
        raise ValueError(f"Found k = {k}; expected a list of at least one label.")
    # Whatever stands on padding (0, or the -100 with which accelerate pads gathered batches) must do no harm.
    return np.where(relevant, greater, UNREACHABLE).astype(np.int64), np.where(relevant, ties, 1), relevant


def ratio(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """Divides; the result is NaN where the denominator is 0 or NaN."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _hit_probability(greater: NDArray, ties: NDArray, k: int) -> NDArray[np.float64]:
    return (np.minimum(greater + ties, k) - np.minimum(greater, k)) / ties


def _first_tie_group(greater: NDArray, ties: NDArray, relevant: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """For the best target of each customer: labels with a larger score, with the same score, and targets among the
    latter.
    """
    first = greater.min(axis=1, initial=UNREACHABLE)
    relevant_ties = relevant & (greater == first[:, None])
    size = np.where(relevant_ties, ties, 1).max(axis=1, initial=1)
    members = relevant_ties.sum(axis=1)
    reached = first < UNREACHABLE
    if (members > size)[reached].any():
        row = int(np.flatnonzero(reached & (members > size))[0])
        raise ValueError(
            f"Customer {row} has {members[row]} targets in a tie group of {size[row]} labels; expected distinct "
            "target labels. Use distinct_targets first."
        )
    return first, size, np.minimum(members, size)


def _expected_reciprocal_rank(first: int, size: int, members: int) -> float:
    """Expected 1 / rank of the first of `members` targets, in random order among `size` labels after `first`."""
    if first == UNREACHABLE:
        return 0.0
    draws = np.arange(size - members + 1)
    # Hypergeometric: P(no target among the first j) = prod_{i<j} (size - members - i) / (size - i).
    still_none = np.cumprod(np.concatenate([[1.0], (size - members - draws[:-1]) / (size - draws[:-1])]))
    return float(np.sum(still_none * members / (size - draws) / (first + 1 + draws)))


def _with_value(values: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = values[:, ~np.isnan(values).any(axis=0)]
    if not matrix.size:
        raise ValueError(
            f"None of {values.shape[1]} customers has a value; expected at least one customer with a target. Check "
            "the cutoff dates and the task."
        )
    return matrix


def _resampled_means(values: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of `values` (rows, B) over resampled customers, the same customers in every row: (rows, resamples)."""
    generator, customers = np.random.default_rng(seed), values.shape[1]
    at_once = max(1, 2**22 // customers)  # 32 MiB of indices
    chunks = []
    for start in range(0, resamples, at_once):
        sample = generator.integers(customers, size=(min(at_once, resamples - start), customers))
        chunks.append(
            np.stack([row.take(sample).mean(axis=-1) for row in values])
        )  # far faster than values[:, sample]
    return np.concatenate(chunks, axis=1)


def _interval(mean: float, means: NDArray[np.float64], customers: int) -> Interval:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(mean), float(low), float(high), customers)
