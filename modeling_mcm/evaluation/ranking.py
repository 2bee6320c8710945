# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From scores to metrics, in the same way for a model and for every baseline.

    ranks = TargetRanks(cases, "product_type")
    for indices, scores in batches:
        ranks.add(indices, scores)
    values = ranks.metrics(ks=(10,))   # for each metric one value a case

Shapes: B cases of a batch, V labels with the ids 0 (missing) and 1 (unknown).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.metrics import customer_metrics, distinct_targets, set_metrics
from modeling_mcm.evaluation.streaming import ranks_from_logits


def mask_met(scores: torch.Tensor, cases: EvaluationCases, task: str, indices: NDArray[np.int64]) -> torch.Tensor:
    """Sets the scores of labels that are not ranked to minus infinity.

    Args:
        scores (`torch.Tensor`, shape `(B, V)`): Scores of the labels; they are not changed in place.
        cases (`EvaluationCases`): All cases, with the labels that are not ranked (`met`).
        task (`str`): Name of the task.
        indices (`numpy.ndarray`, shape `(B,)`): Indices of the scored cases among all.

    Returns:
        `torch.Tensor`, shape `(B, V)`: The masked scores; `scores` themselves if all labels are ranked.
    """
    if cases.met is None:
        return scores
    met = cases.met[task]
    counts = np.diff(met.offsets)[indices]
    row = np.repeat(np.arange(len(indices)), counts)
    first = np.repeat(met.offsets[indices] - (np.cumsum(counts) - counts), counts)
    label = met.labels[first + np.arange(len(row))]
    masked = scores.clone()
    masked[torch.from_numpy(row).to(scores.device), torch.from_numpy(label).to(scores.device)] = -torch.inf
    return masked


class TargetRanks:
    """Collects the ranks of the targets of one task from batches of scores, which are not stored.

    Args:
        cases (`EvaluationCases`): The cases with their targets, and the labels that are not ranked.
        task (`str`): Name of the task.
    """

    def __init__(self, cases: EvaluationCases, task: str):
        self.cases, self.task = cases, task
        events = cases.targets[task]
        self.labels, self.counts = distinct_targets(events.offsets, events.labels)
        self.greater, self.ties = np.zeros_like(self.labels), np.ones_like(self.labels)

    def add(self, indices: NDArray[np.int64], scores: torch.Tensor) -> torch.Tensor:
        """Adds the scores of some cases.

        Args:
            indices (`numpy.ndarray`, shape `(B,)`): Indices of the cases.
            scores (`torch.Tensor`, shape `(B, V)`): Scores of the labels.

        Returns:
            `torch.Tensor`, shape `(B, V)`: The scores, with minus infinity for labels that are not ranked.
        """
        masked = mask_met(scores, self.cases, self.task, indices)
        greater, ties = ranks_from_logits(masked, torch.from_numpy(self.labels[indices]))
        self.greater[indices], self.ties[indices] = greater.cpu().numpy(), ties.cpu().numpy()
        return masked

    def metrics(self, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Computes the metrics of all cases.

        Args:
            ks (sequence of `int`): Lengths of the ranked list.

        Returns:
            `dict[str, numpy.ndarray]`: The metrics of [`customer_metrics`], or with a horizon those of
            [`set_metrics`], each of shape `(cases,)`.
        """
        if self.cases.horizon_days is not None:
            return set_metrics(self.greater, self.ties, self.counts > 0, ks, "horizon")
        return customer_metrics(self.greater, self.ties, self.counts, ks)
