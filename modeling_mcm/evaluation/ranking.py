# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From scores to metrics, one way for a model and for every baseline: mask, rank, forget the scores.

    ranks = TargetRanks(cases, "product_type")
    for places, scores in batches:
        ranks.add(places, scores)
    values = ranks.metrics(ks=(10,))   # metric -> one value a case

Shapes: B cases of a batch, V labels, ids 0 (pad) and 1 (unknown) included.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.metrics import customer_metrics, distinct_targets, set_metrics
from modeling_mcm.evaluation.streaming import ranks_from_logits


def mask_met(scores: torch.Tensor, cases: EvaluationCases, task: str, places: NDArray[np.int64]) -> torch.Tensor:
    """The scores with minus infinity for labels that are not ranked; the scores themselves where everything is.

    Args:
        scores: of shape `(B, V)`; they stay as they are.
        cases: `met` says what is not ranked.
        task: of the scores.
        places: of the scored cases among all, of shape `(B,)`.
    """
    if cases.met is None:
        return scores
    met = cases.met[task]
    counts = np.diff(met.offsets)[places]
    row = np.repeat(np.arange(len(places)), counts)
    first = np.repeat(met.offsets[places] - (np.cumsum(counts) - counts), counts)
    label = met.labels[first + np.arange(len(row))]
    masked = scores.clone()
    masked[torch.from_numpy(row).to(scores.device), torch.from_numpy(label).to(scores.device)] = -torch.inf
    return masked


class TargetRanks:
    """Ranks of all cases' targets in one task; scores come a batch at a time and are not kept.

    Args:
        cases: what is asked and what is not ranked.
        task: name of the task.
    """

    def __init__(self, cases: EvaluationCases, task: str):
        self.cases, self.task = cases, task
        events = cases.targets[task]
        self.labels, self.counts = distinct_targets(events.offsets, events.labels)
        self.greater, self.ties = np.zeros_like(self.labels), np.ones_like(self.labels)

    def add(self, places: NDArray[np.int64], scores: torch.Tensor) -> torch.Tensor:
        """Takes the scores of some cases in, of shape `(B, V)`, and returns them masked."""
        masked = mask_met(scores, self.cases, self.task, places)
        greater, ties = ranks_from_logits(masked, torch.from_numpy(self.labels[places]))
        self.greater[places], self.ties[places] = greater.cpu().numpy(), ties.cpu().numpy()
        return masked

    def metrics(self, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """As `customer_metrics`, or with a horizon as `set_metrics` of "horizon"; arrays of shape `(cases,)`."""
        if self.cases.horizon_days is not None:
            return set_metrics(self.greater, self.ties, self.counts > 0, ks, "horizon")
        return customer_metrics(self.greater, self.ties, self.counts, ks)
