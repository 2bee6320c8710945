# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a predicted label of customers: AUC and accuracy of classes, rank correlation and error of numbers.

Shapes: N labels, C classes.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .metrics import weighted_ranking


def mean_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Computes the ROC AUC of classes; NaN if fewer than two classes occur. With two classes it is that of the second.
    With more it is the mean over the classes that occur, each against all others. `labels` are ids of classes, of
    shape `(N,)`, and `scores` of shape `(N, C)`; a larger one is likelier."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
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
