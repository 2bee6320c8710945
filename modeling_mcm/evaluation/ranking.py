# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From scores to metrics, in the same way for a model and for every baseline.

    ranks = TargetRanks(cases, "product_type")
    for indices, scores in batches:
        ranks.add(indices, scores)
    values = ranks.metrics(ks=(10,))   # for each metric one value a case

Shapes: B cases of a batch, N target labels of a case (right-padded), V labels with the ids 0 and 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.metrics import customer_metrics, distinct_targets, ranks_from_logits, set_metrics
from modeling_mcm.events_mcm import number_groups


class TargetRanks:
    """Collects the ranks of the targets of one task, and the lists of the `length` best labels, from batches of
    scores, which are not stored. `lists` `(cases, length)` holds 0 where no more labels are ranked."""

    def __init__(self, cases: EvaluationCases, task: str, length: int = 10):
        self.cases, self.task = cases, task
        self.lists = np.zeros((len(cases), length), np.int64)
        events = cases.targets[task]
        self.labels, self.counts = distinct_targets(events.offsets, events.labels)
        self.greater, self.ties = np.zeros_like(self.labels), np.ones_like(self.labels)

    def add(self, indices: NDArray[np.int64], scores: torch.Tensor) -> None:
        """Adds the scores `(B, V)` of the cases with these indices `(B,)`."""
        scores = self.masked(indices, scores)
        greater, ties = ranks_from_logits(scores, torch.from_numpy(self.labels[indices]))
        best = scores[:, FIRST_LABEL:].topk(min(self.lists.shape[1], scores.shape[1] - FIRST_LABEL))
        listed = (best.indices + FIRST_LABEL).where(best.values > -torch.inf, 0)
        self.lists[indices, : listed.shape[1]] = listed.cpu().numpy()
        self.greater[indices], self.ties[indices] = greater.cpu().numpy(), ties.cpu().numpy()

    def masked(self, indices: NDArray[np.int64], scores: torch.Tensor) -> torch.Tensor:
        """Scores `(B, V)` with minus infinity for labels that are not ranked; `scores` itself where all are."""
        seen = self.cases.seen.get(self.task)
        if seen is None:
            return scores
        row, index = number_groups(np.diff(seen.offsets)[indices], seen.offsets[indices])
        where = (torch.from_numpy(each).to(scores.device) for each in (row, seen.labels[index]))
        return scores.index_put([*where], scores.new_tensor(-torch.inf))

    def metrics(self, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """The metrics of [`customer_metrics`], or with a horizon those of [`set_metrics`], each of shape
        `(cases,)`."""
        if self.cases.horizon_days is not None:
            return set_metrics(self.greater, self.ties, self.counts > 0, ks, "horizon")
        return customer_metrics(self.greater, self.ties, self.counts, ks)
