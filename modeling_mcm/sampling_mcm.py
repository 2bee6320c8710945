# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The labels that a training step scores: all labels of a task, or a sample if there are very many.

A sample contains all labels in the batch's histories and targets, and a random part of the other labels. The others,
in the order of their ids, are cut into strata, and one label of each stratum is drawn. It represents the n labels of
its stratum: with log n added to its score (log-Q correction; Bengio & Senécal, 2008) the expected sum of exponentials
over the sample equals the sum over all labels. As ids are ordered by frequency, strata make sure that frequent and
rare labels are drawn. The logarithm of the sum is biased downwards; the bias shrinks with the size of the sample.

Shapes: H hidden size, V labels of a task, S labels of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .configuration_mcm import FIRST_LABEL


@dataclass
class TaskLabels:
    """Embeddings and parameters of a task's labels, for all labels or for a sample (V is S then)."""

    vectors: torch.Tensor  # (V, H): embedding e_w of each label
    bias: torch.Tensor | None = None  # (V,): bias of each label; `None` if the model has none
    ids: torch.Tensor | None = None  # (S,): ids of the sampled labels, ascending; `None`: all labels
    # (S,): logarithm of the number of labels that each sampled label represents; `None`: all labels
    log_counts: torch.Tensor | None = None

    @property
    def tables(self) -> list[torch.Tensor]:
        """All tensors that have one row for each label; they may need a gradient."""
        return [self.vectors, *([] if self.bias is None else [self.bias])]

    def indices(self, ids: torch.Tensor) -> torch.Tensor:
        """Index of each label in the tensors of this object."""
        return ids if self.ids is None else torch.searchsorted(self.ids, ids.clamp(min=0))

    def sample(self, certain: torch.Tensor, number: int) -> "TaskLabels":
        """Draws a sample of labels: the ids `certain` (those below 2 are ignored) and `number` others, at least 1; all
        labels if there are no more than `number` others. It uses torch's global generator, as dropout does, so a
        resumed training draws the same samples."""
        base = torch.cat([torch.arange(FIRST_LABEL, device=certain.device), certain.flatten().clamp(min=0)]).unique()
        others = len(self.vectors) - len(base)
        if others <= number:
            return self
        edges = torch.arange(number + 1, device=base.device) * others // number
        counts = edges.diff()
        draws = edges[:-1] + (torch.rand(number, device=base.device) * counts).long()  # indices among the other labels
        draws += torch.searchsorted(base - torch.arange(len(base), device=base.device), draws, right=True)
        ids, order = torch.cat([base, draws]).sort()
        log_counts = torch.cat([counts.new_zeros(len(base), dtype=torch.float32), counts.float().log()])[order]

        def rows(table: torch.Tensor) -> torch.Tensor:
            return table.index_select(0, ids)

        bias = None if self.bias is None else rows(self.bias)
        return TaskLabels(rows(self.vectors), bias, ids, log_counts)


def indices_of(scored: Sequence[TaskLabels], ids: torch.Tensor) -> torch.Tensor:
    """[`TaskLabels.indices`] for several tasks, of shape `(..., T)`."""
    parts = zip(scored, ids.unbind(-1), strict=True)
    return torch.stack([labels.indices(of_task) for labels, of_task in parts], -1)


def joined_log_counts(scored: Sequence[TaskLabels]) -> torch.Tensor | None:
    """Concatenates the `log_counts` of several tasks."""
    of_tasks = [(labels.log_counts, len(labels.vectors)) for labels in scored]
    if all(counts is None for counts, _ in of_tasks):
        return None
    zeros = scored[0].vectors.new_zeros
    return torch.cat([zeros(size) if counts is None else counts for counts, size in of_tasks])
