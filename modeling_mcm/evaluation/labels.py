# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a predicted label of customers: AUC and accuracy of classes, rank correlation and error of numbers.

Shapes: N labels, C classes, S resamples.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from modeling_mcm.evaluation.offers import weighted_ranking


def mean_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Computes the ROC AUC of classes; NaN if fewer than two classes occur. With two classes it is that of the second.
    With more it is the mean over the classes that occur, each against all others. `labels` are ids of classes, of
    shape `(N,)`, and `scores` of shape `(N, C)`; a larger one is likelier."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    once = np.ones((1, len(labels)), np.int64)
    if scores.shape[1] == 2:
        return float(weighted_ranking(labels == 1, scores[:, 1] - scores[:, 0], once)["roc_auc"][0])
    chances = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    present = [label for label in range(scores.shape[1]) if 0 < (labels == label).sum() < len(labels)]
    if not present:
        return float("nan")
    areas = [weighted_ranking(labels == label, chances[:, label], once)["roc_auc"] for label in present]
    return float(np.mean(areas))


def rank_correlation(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Computes Spearman's rank correlation of two arrays of shape `(N,)`; NaN if all values of one are equal."""
    return float(pd.DataFrame({"label": labels, "predicted": predicted}).corr("spearman").iloc[0, 1])


class LabelMetrics:
    """Computes the metrics of an evaluation by the Trainer (`compute_metrics`). They are `auc` and `accuracy` if the
    label is a class, and `rank_correlation` and `mae`, the mean absolute error, if it is a number."""

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
        return {"auc": mean_auc(labels, logits), "accuracy": accuracy}
