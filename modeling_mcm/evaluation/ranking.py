# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From scores to metrics, in the same way for a model, for every baseline and in a Trainer.

    ranks = TargetRanks(cases, "product_type")
    for indices, scores in batches:
        ranks.add(indices, scores)
    values = ranks.metrics(ks=(10,))   # for each metric one value a case

Shapes: B cases of a batch, N target labels of a case (right-padded), V labels with the ids 0 and 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import IGNORED
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


class StreamingMetrics:
    """Computes metrics from ranks, for a Trainer with `batch_eval_metrics=True`. Between batches only metrics are
    stored, a few numbers for each customer."""

    def __init__(self) -> None:
        self._values: dict[str, list[NDArray]] = {}

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Adds a batch, and after the last one (`compute_result`) returns the means over customers, named
        `<task>_<metric>`. `predictions` holds for each task the ranks of [`ranks_from_logits`], and `label_ids`
        `(B, N)` the label ids, one for each event of the next visit; 0 or `IGNORED` is padding."""
        for task, (greater, ties) in prediction.predictions.items():
            arrays = (torch.as_tensor(array).cpu().numpy() for array in (greater, ties, prediction.label_ids[task]))
            for name, values in customer_metrics(*_distinct_ranks(*arrays)).items():
                self._values.setdefault(f"{task}_{name}", []).append(values)
        if not compute_result:
            return {}
        joined = {name: np.concatenate(values) for name, values in self._values.items()}
        self._values = {}
        return {name: float(np.nanmean(v)) for name, v in joined.items() if not np.isnan(v).all()}


def _distinct_ranks(greater: NDArray, ties: NDArray, labels: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Merges equal labels of a customer: the first one gets the number of all, and the others 0."""
    greater, ties, labels = (array.reshape(len(array), -1) for array in (greater, ties, labels))  # (B,) is (B, 1)
    order = np.argsort(labels, axis=1, kind="stable")
    greater, ties, labels = (np.take_along_axis(array, order, axis=1) for array in (greater, ties, labels))
    starts = np.ones_like(labels, dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    flat = np.flatnonzero(starts)
    counts = np.zeros(labels.size, dtype=np.int64)
    counts[flat] = np.diff(np.append(flat, labels.size))
    return greater, ties, np.where(np.isin(labels, (0, IGNORED)), 0, counts.reshape(labels.shape))
