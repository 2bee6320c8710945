# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Which labels a training step scores: all of a task's, or a sample of them where they are very many.

A sample has the labels that are certain, which the batch's customers met or which followed, and some of the others.
The others, in the order of their ids, are cut into as many strata as are drawn, and one of each is drawn. It stands
for the n labels of its stratum, so that with log n on its score (log-Q correction; Bengio & Senécal, 2008) the sum of
exponentials over the sample is on average exactly that over all labels. Strata, because ids follow how often a value
occurs: what is drawn is of every popularity. The logarithm of the sum is too small on average, the less so the more
are drawn; `benchmarks/sampling.py` measures by how much.

Shapes: B customers, H hidden, V labels of a task, S labels of a sample, K half-lives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .configuration_mcm import FIRST_LABEL


@dataclass
class TaskLabels:
    """What the scores of a task read of its labels, a row a label; of all of them, or of a sample.

    Args:
        vectors: e_w of shape `(V, H)`.
        bias: of shape `(V,)`, if the model has one.
        memory: gains `(V, K)` and rarity `(V, 1)` of the repeat memory, if the model has one.
        ids: of the rows of a sample, ascending, of shape `(S,)`; `None` where the rows are all labels.
        log_counts: log of how many labels each row stands for, of shape `(S,)`; `None` where each is itself alone.
    """

    vectors: torch.Tensor
    bias: torch.Tensor | None = None
    memory: tuple[torch.Tensor, torch.Tensor] | None = None
    ids: torch.Tensor | None = None
    log_counts: torch.Tensor | None = None

    @property
    def tables(self) -> list[torch.Tensor]:
        """All that has a row a label and may have a gradient."""
        return [self.vectors, *([] if self.bias is None else [self.bias]), *(self.memory or ())]

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of label ids; ids under 2 stay under 2. Every other id must be in the sample."""
        return ids if self.ids is None else torch.searchsorted(self.ids, ids.clamp(min=0))

    def sample(self, certain: torch.Tensor, number: int) -> "TaskLabels":
        """The certain labels and `number` of the others; all labels where there are no more than that.

        Draws come from torch's generator, as those of dropout do, so a resumed run draws what a plain one would have.

        Args:
            certain: ids in any order and shape; those under 2 do not count.
            number: of labels drawn, at least 1.
        """
        known = torch.cat([torch.arange(FIRST_LABEL, device=certain.device), certain.flatten().clamp(min=0)]).unique()
        others = len(self.vectors) - len(known)
        if others <= number:
            return self
        edges = torch.arange(number + 1, device=known.device) * others // number
        counts = edges.diff()
        drawn = edges[:-1] + (torch.rand(number, device=known.device) * counts).long()  # places among the others
        drawn += torch.searchsorted(known - torch.arange(len(known), device=known.device), drawn, right=True)
        ids, order = torch.cat([known, drawn]).sort()
        log_counts = torch.cat([counts.new_zeros(len(known), dtype=torch.float32), counts.float().log()])[order]

        def rows(table: torch.Tensor) -> torch.Tensor:
            return table.index_select(0, ids)

        bias = None if self.bias is None else rows(self.bias)
        memory = None if self.memory is None else (rows(self.memory[0]), rows(self.memory[1]))
        return TaskLabels(rows(self.vectors), bias, memory, ids, log_counts)


def places_of(scored: Sequence[TaskLabels], ids: torch.Tensor) -> torch.Tensor:
    """As [`TaskLabels.places`], for the labels of several tasks along the last axis."""
    parts = zip(scored, ids.unbind(-1), strict=True)
    return torch.stack([labels.places(of_task) for labels, of_task in parts], -1)


def joined_log_counts(scored: Sequence[TaskLabels]) -> torch.Tensor | None:
    """Those of several tasks side by side; `None` where no task's labels are a sample."""
    found = [(labels.log_counts, len(labels.vectors)) for labels in scored]
    if all(counts is None for counts, _ in found):
        return None
    zeros = scored[0].vectors.new_zeros
    return torch.cat([zeros(size) if counts is None else counts for counts, size in found])
