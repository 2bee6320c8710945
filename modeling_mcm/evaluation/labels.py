# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How well a label of customers is predicted: AUC and accuracy of classes, rank correlation of numbers.

Shapes: N labels, C classes, S resamples.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.evaluation.offers import weighted_ranking


def mean_auc(labels: ArrayLike, scores: ArrayLike, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """ROC AUC: of the second of two classes, or each class against the rest and the mean over those that occur.

    Args:
        labels: ids of classes, of shape `(N,)`.
        scores: of each class, larger is likelier, of shape `(N, C)`.
        weights (*optional*): how often each label counts, of shape `(S, N)`; once by default.

    Returns:
        Of shape `(S,)`; NaN where fewer than two classes occur.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    weights = np.ones((1, len(labels)), np.int64) if weights is None else weights
    if scores.shape[1] == 2:
        return weighted_ranking(labels == 1, scores[:, 1] - scores[:, 0], weights)["roc_auc"]
    log_sums = np.logaddexp.reduce(scores, axis=1, keepdims=True)
    chances = scores - log_sums
    present = [place for place in range(scores.shape[1]) if 0 < (labels == place).sum() < len(labels)]
    if not present:
        return np.full(len(weights), np.nan)
    found = [weighted_ranking(labels == place, chances[:, place], weights)["roc_auc"] for place in present]
    return np.mean(found, axis=0)


def rank_correlation(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Spearman's: the correlation of ranks, ties sharing theirs; NaN where all are alike."""
    first, second = (_ranks(np.asarray(values, np.float64)) for values in (labels, predicted))
    first, second = first - first.mean(), second - second.mean()
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / spread) if spread else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


class LabelMetrics:
    """`compute_metrics` of the Trainer: `auc` and `accuracy` of classes; `rank_correlation` and `mae`, the mean
    absolute error, of a number.

    Args:
        is_number: whether the label is a number.
    """

    def __init__(self, is_number: bool):
        self.is_number = is_number

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Metrics from the logits `(N, C)` and labels `(N,)` of a Trainer's evaluation."""
        logits: Any = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, np.float64)
        labels = np.asarray(prediction.label_ids)
        if self.is_number:
            error = float(np.abs(logits[:, 0] - labels).mean())
            return {"rank_correlation": rank_correlation(labels, logits[:, 0]), "mae": error}
        accuracy = float((logits.argmax(1) == labels).mean())
        return {"auc": float(mean_auc(labels, logits)[0]), "accuracy": accuracy}


__all__ = ["LabelMetrics", "mean_auc", "rank_correlation"]
