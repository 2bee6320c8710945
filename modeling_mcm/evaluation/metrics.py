# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics from the ranks of the targets: one value a customer first, the mean and its interval last.

A ranking enters only through two numbers for each target label: how many labels score higher (`greater`) and how many
score the same, the target included (`ties`). Where labels are tied, every metric is its exact expectation under
uniformly random tie-breaking, so the order of the label ids never matters. Ids 0 (pad) and 1 (unknown) are never
ranked: an unknown target counts in the ideal DCG and in recall's denominator and can't be hit.

Two targets are measured. The **next visit** is the set of the visit's distinct labels; its ideal DCG has
`min(set size, k)` labels. The **next event** is one event of that visit, chosen uniformly; its metrics are the exact
expectation over that choice, so a label that occurs twice weighs twice. Where a **horizon** of days is asked for
instead, its target is the set of the distinct labels of these days, measured as the next visit's set is.

Shapes: B customers, N distinct target labels of a customer (right-padded), V labels, ids 0 and 1 included.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL

UNREACHABLE = int(np.iinfo(np.int32).max)  # `greater` of a target that no ranking can hold

Metric = Callable[[NDArray, NDArray, NDArray], NDArray]


def tie_ranks(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts the labels above and beside each target label.

    Args:
        scores: of shape `(V,)`, one ranking for all customers, or `(B, V)`. Infinite scores are allowed, NaN is not.
        targets: label ids, of shape `(N,)` or `(B, N)`; ids 0 (pad) and 1 (unknown) get `UNREACHABLE`.

    Returns:
        `greater` and `ties`, both int64 with the shape of `targets`.

    Raises:
        ValueError: if the shapes don't fit, a score is NaN, or a target is not a label id.
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
        found = [_searched(row, row_targets) for row, row_targets in zip(scores, targets, strict=True)]
        below, not_above = np.array(found, dtype=np.int64).reshape(-1, 2, targets.shape[1]).transpose(1, 0, 2)
    ranked = max(scores.shape[-1] - FIRST_LABEL, 0)
    return np.where(reachable, ranked - not_above, UNREACHABLE), np.where(reachable, not_above - below, 1)


def _searched(scores: NDArray, targets: NDArray) -> tuple[NDArray, NDArray]:
    ordered, values = np.sort(scores[FIRST_LABEL:]), scores[targets]
    return np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")


def distinct_targets(offsets: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Turns ragged target labels, one for each event, into padded distinct labels and how often each occurs.

    Values that were never seen in training all have the unknown id, so they count as one distinct label.

    Args:
        offsets: of shape `(B + 1,)`; customer b's events are `labels[offsets[b]:offsets[b + 1]]`.
        labels: label ids, at least 1, of shape `(events,)`.

    Returns:
        Labels and counts of shape `(B, N)`, int64, in ascending order of the label; 0 is padding in both.
    """
    offsets, labels = np.asarray(offsets), np.asarray(labels, dtype=np.int64)
    customers = len(offsets) - 1
    size = int(labels.max(initial=0)) + 1
    customer = np.repeat(np.arange(customers, dtype=np.int64), np.diff(offsets))
    pairs, pair_counts = np.unique(customer * size + labels, return_counts=True)
    owner, label = np.divmod(pairs, size)
    sizes = np.bincount(owner, minlength=customers)
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.zeros((customers, int(np.max(sizes, initial=0))), dtype=np.int64)
    counts = np.zeros_like(padded)
    padded[owner, place] = label
    counts[owner, place] = pair_counts
    return padded, counts


def ndcg_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Expected NDCG@k of each customer's set of targets, binary gains, ideal DCG over `min(set size, k)` labels.

    Args:
        greater: of shape `(B, N)`, from `tie_ranks`.
        ties: of shape `(B, N)`, from `tie_ranks`.
        relevant: of shape `(B, N)`, true (or a positive count) where there is a target, false on padding. A
            customer's targets are distinct labels.
        k: length of the list, at least 1.

    Returns:
        Of shape `(B,)`, NaN for a customer without targets.

    Raises:
        ValueError: if shapes differ, k is below 1 or a customer has more tied targets than the tie group has labels.
    """
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    gains = (discounts[np.minimum(greater + ties, k)] - discounts[np.minimum(greater, k)]) / ties
    ideal = discounts[np.minimum(relevant.sum(axis=1), k)]
    return _ratio((gains * relevant).sum(axis=1), ideal)


def recall_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Expected share of the targets that stand among the first k; arguments and result as in `ndcg_at_k`."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    return _ratio((_hit_probability(greater, ties, k) * relevant).sum(axis=1), relevant.sum(axis=1))


def precision_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Expected share of the first k that are targets; arguments and result as in `ndcg_at_k`."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    hits = (_hit_probability(greater, ties, k) * relevant).sum(axis=1)
    return np.where(relevant.any(axis=1), hits / k, np.nan)


def hit_rate_at_k(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability that at least one target stands among the first k; arguments and result as in `ndcg_at_k`."""
    greater, ties, relevant = _checked(greater, ties, relevant, k)
    first, size, members = _first_tie_group(greater, ties, relevant)
    # Only the group of the best targets matters: a later one reaches the list only after this one is wholly in it.
    inside = np.clip(k - first, 0, size)
    miss = np.ones(len(first))
    for drawn in range(min(k, int(inside.max(initial=0)))):
        left = np.maximum(size - drawn, 1)
        miss *= np.where(drawn < inside, np.maximum(left - members, 0) / left, 1.0)
    return np.where(relevant.any(axis=1), 1 - miss, np.nan)


def mean_reciprocal_rank(greater: ArrayLike, ties: ArrayLike, relevant: ArrayLike) -> NDArray[np.float64]:
    """Expected reciprocal rank of the first target, over all labels; arguments and result as in `ndcg_at_k`."""
    greater, ties, relevant = _checked(greater, ties, relevant, 1)
    first, size, members = _first_tie_group(greater, ties, relevant)
    groups, inverse = np.unique(np.stack([first, size, members]), axis=1, return_inverse=True)
    expected = np.array([_expected_reciprocal_rank(*group) for group in groups.T.tolist()])
    values = expected[inverse.reshape(-1)] if len(first) else np.zeros(0)
    return np.where(relevant.any(axis=1), values, np.nan)


def customer_metrics(
    greater: ArrayLike, ties: ArrayLike, counts: ArrayLike, ks: Sequence[int] = (10,)
) -> dict[str, NDArray[np.float64]]:
    """All metrics of both targets, one value a customer.

    Args:
        greater: of shape `(B, N)`, from `tie_ranks`.
        ties: of shape `(B, N)`, from `tie_ranks`.
        counts: of shape `(B, N)`: how many of the next visit's events have the label; 0 is padding.
        ks: lengths of the list.

    Returns:
        `next_visit_ndcg@10`, `next_event_recall@10`, `next_visit_mrr` ... -> array of shape `(B,)`, NaN for a customer
        without targets. `hr` is the hit rate; for the next event it is the recall, so it is given once.
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
    """All metrics of a set of distinct labels, one value a customer.

    Args:
        greater: of shape `(B, N)`, from `tie_ranks`.
        ties: of shape `(B, N)`, from `tie_ranks`.
        relevant: of shape `(B, N)`, true (or a positive count) where there is a target.
        ks: lengths of the list.
        target: what the set is, the first part of the metrics' names: "next_visit" or "horizon".

    Returns:
        `horizon_ndcg@10`, `horizon_mrr` ... -> array of shape `(B,)`, NaN for a customer without targets.
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
    """Expectation of a metric when the only target is one uniformly chosen event of the visit.

    Args:
        metric: `(greater, ties, relevant)` of shape `(customers, targets)` -> `(customers,)`.
        greater: of shape `(B, N)`, from `tie_ranks`.
        ties: of shape `(B, N)`, from `tie_ranks`.
        counts: of shape `(B, N)`: events with that label; at most 0 is padding.

    Returns:
        Of shape `(B,)`, NaN for a customer without targets.
    """
    counts = np.maximum(counts, 0)
    alone = metric(greater.reshape(-1, 1), ties.reshape(-1, 1), counts.reshape(-1, 1) > 0).reshape(counts.shape)
    return _ratio(np.where(counts > 0, alone * counts, 0.0).sum(axis=1), counts.sum(axis=1))


class Interval(NamedTuple):
    """A mean over customers with its bootstrap interval."""

    mean: float
    low: float
    high: float
    customers: int


class PairedDifference(NamedTuple):
    """First minus second on the same customers: absolute, and relative to the second's mean."""

    absolute: Interval
    relative: Interval


def bootstrap_interval(values: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap of the mean, customers resampled.

    Args:
        values: of shape `(B,)`, one a customer; NaN (no target) is left out.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap samples.
        confidence: mass of the interval.

    Raises:
        ValueError: if no customer has a value.
    """
    kept = _with_value(np.asarray(values, dtype=np.float64)[None])
    return _interval(kept.mean(axis=1)[0], _resampled_means(kept, seed, resamples)[0], confidence, kept.shape[1])


def paired_difference(
    first: ArrayLike, second: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> PairedDifference:
    """Bootstrap of `first - second` and of `first / second - 1`, customers resampled in pairs.

    Args:
        first: of shape `(B,)`, one value a customer.
        second: of shape `(B,)`, the same customers in the same order; who lacks a value in either is left out.
        seed: of the resampling.
        resamples: number of bootstrap samples.
        confidence: mass of the intervals.

    Raises:
        ValueError: if the shapes differ or no customer has both values.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"Found values of shapes {first.shape} and {second.shape}; expected one value for each of the same "
            "customers, in the same order. Align both by customer_id first."
        )
    kept = _with_value(np.stack([first, second]))
    (mean_first, mean_second), (means_first, means_second) = kept.mean(axis=1), _resampled_means(kept, seed, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):  # a second of zero has no relative difference: inf or nan
        relative = np.divide(mean_first, mean_second) - 1, means_first / means_second - 1
    customers = kept.shape[1]
    return PairedDifference(
        _interval(mean_first - mean_second, means_first - means_second, confidence, customers),
        _interval(*relative, confidence, customers),
    )


def average_relative_difference(
    firsts: ArrayLike, seconds: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Bootstrap of the mean over tasks of `first / second - 1`, customers resampled together in all tasks.

    Args:
        firsts: of shape `(tasks, B)`, one value a customer and task.
        seconds: of shape `(tasks, B)`, the same customers and tasks in the same order; who lacks any value is left
            out.
        seed: of the resampling.
        resamples: number of bootstrap samples.
        confidence: mass of the interval.

    Raises:
        ValueError: if the shapes differ or no customer has all values.
    """
    firsts, seconds = np.asarray(firsts, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if firsts.shape != seconds.shape or firsts.ndim != 2:
        raise ValueError(
            f"Found values of shapes {firsts.shape} and {seconds.shape}; expected (tasks, customers) twice, the same "
            "of both in the same order. Align both by customer_id first."
        )
    kept = _with_value(np.concatenate([firsts, seconds]))
    tasks, means, resampled = len(firsts), kept.mean(axis=1), _resampled_means(kept, seed, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (means[:tasks] / means[tasks:] - 1).mean()
        return _interval(mean, (resampled[:tasks] / resampled[tasks:] - 1).mean(axis=0), confidence, kept.shape[1])


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


def _ratio(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _hit_probability(greater: NDArray, ties: NDArray, k: int) -> NDArray[np.float64]:
    return (np.minimum(greater + ties, k) - np.minimum(greater, k)) / ties


def _first_tie_group(greater: NDArray, ties: NDArray, relevant: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The tie group of each customer's best target: labels above it, its size, its targets; all of shape `(B,)`."""
    first = greater.min(axis=1, initial=UNREACHABLE)
    chosen = relevant & (greater == first[:, None])
    size = np.where(chosen, ties, 1).max(axis=1, initial=1)
    members = chosen.sum(axis=1)
    reached = first < UNREACHABLE
    if (members > size)[reached].any():
        row = int(np.flatnonzero(reached & (members > size))[0])
        raise ValueError(
            f"Customer {row} has {members[row]} targets in a tie group of {size[row]} labels; expected distinct "
            "target labels. Use distinct_targets first."
        )
    return first, size, np.minimum(members, size)


def _expected_reciprocal_rank(first: int, size: int, members: int) -> float:
    """Mean of 1 / rank of the first of `members` targets shuffled among `size` labels that follow `first` others."""
    if first == UNREACHABLE:
        return 0.0
    drawn = np.arange(size - members + 1)
    # Hypergeometric: P(no target among the first j) = prod_{i<j} (size - members - i) / (size - i).
    still_none = np.cumprod(np.concatenate([[1.0], (size - members - drawn[:-1]) / (size - drawn[:-1])]))
    return float(np.sum(still_none * members / (size - drawn) / (first + 1 + drawn)))


def _with_value(values: NDArray[np.float64]) -> NDArray[np.float64]:
    kept = values[:, ~np.isnan(values).any(axis=0)]
    if not kept.size:
        raise ValueError(
            f"None of {values.shape[1]} customers has a value; expected at least one customer with a target. Check "
            "the cutoff dates and the task."
        )
    return kept


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `values` (rows, B) over resampled customers, the same customers in every row: (rows, resamples)."""
    generator, customers = np.random.default_rng(seed), values.shape[1]
    at_once = max(1, 2**22 // customers)  # 32 MiB of indices
    chunks = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(customers, size=(min(at_once, resamples - start), customers))
        chunks.append(np.stack([row.take(drawn).mean(axis=-1) for row in values]))  # far faster than values[:, drawn]
    return np.concatenate(chunks, axis=1)


def _interval(mean: float, means: NDArray[np.float64], confidence: float, customers: int) -> Interval:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(mean), float(low), float(high), customers)
