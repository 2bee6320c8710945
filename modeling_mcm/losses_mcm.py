# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of a batch: one number for each task, from the scores of prefixes and their targets.

Equation 4, the cross-entropy of the targets, is averaged over a customer's targets first, and over the customers
last. All tasks are computed together: the score matrix has one row for each prefix, and the labels of all tasks as
columns.

Shapes: B customers, R scored prefixes of all customers, T tasks, V labels of a task or of all tasks, S labels of a
sample, M targets of all customers and tasks, H hidden size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from .configuration_mcm import FIRST_LABEL

SCALE = 2.0**12  # factor on losses, so that gradients in float16 are not rounded to 0; a scaler acts too late


@dataclass
class TaskLabels:
    """The labels of a task that a training step scores: all, or a sample if there are very many (V is S then).

    A sample has all labels in the batch's histories and targets, and a random part of the others. The others, in the
    order of their ids, are cut into strata, and one label of each stratum is drawn. It represents the n labels of its
    stratum: with log n added to its score (log-Q correction; Bengio & Senécal, 2008) the expected sum of exponentials
    over the sample equals the sum over all labels. As ids are ordered by frequency, strata make sure that frequent and
    rare labels are drawn. The logarithm of the sum is biased downwards; the bias shrinks with the size of the sample.
    """

    vectors: Tensor  # (V, H): embedding e_w of each label
    bias: Tensor | None = None  # (V,): bias of each label; `None` if the model has none
    ids: Tensor | None = None  # (S,): ids of the sampled labels, ascending; `None`: all labels
    # (S,): logarithm of the number of labels that each sampled label represents; `None`: all labels
    log_counts: Tensor | None = None

    @property
    def tables(self) -> list[Tensor]:
        """All tensors that have one row for each label; they may need a gradient."""
        return [self.vectors, *([] if self.bias is None else [self.bias])]

    def indices(self, ids: Tensor) -> Tensor:
        """Index of each label in the tensors of this object."""
        return ids if self.ids is None else torch.searchsorted(self.ids, ids.clamp(min=0))

    def sample(self, certain: Tensor, number: int) -> "TaskLabels":
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
        bias = None if self.bias is None else self.bias.index_select(0, ids)
        return TaskLabels(self.vectors.index_select(0, ids), bias, ids, log_counts)


class Targets(NamedTuple):
    """The targets of a batch as flat lists, one element for each target of any customer and task."""

    columns: Tensor  # (M,): column of the target's label in the score matrix
    rows: Tensor  # (M,): row of the prefix that the target followed, in the score matrix
    tasks: Tensor  # (M,): index of the target's task
    shares: Tensor  # (M,): share of the task's loss, a mean over each customer's targets, and then over customers
    sizes: Sequence[int]  # number of labels of each task

    @classmethod
    def find(cls, labels: Tensor, rows: Tensor, weights: Tensor | None, sizes: Sequence[int]) -> "Targets":
        """Collects the targets of a batch; N is the number of targets of the customer with the most."""
        is_target = labels >= FIRST_LABEL
        if weights is not None:
            is_target = is_target & (weights > 0)[..., None]
        customers, at, tasks = is_target.nonzero(as_tuple=True)
        starts = torch.tensor([0, *sizes[:-1]], device=labels.device).cumsum(0)  # columns of the tasks' first labels
        columns = labels[customers, at, tasks] + starts[tasks]
        # In float32: thousands of shares that are added up in half precision would stand still
        shares = torch.ones_like(tasks, dtype=torch.float32) if weights is None else weights[customers, at].float()
        pairs = customers * len(sizes) + tasks
        totals = shares.new_zeros(len(labels) * len(sizes)).index_add(0, pairs, shares)
        return cls(columns, rows[customers, at], tasks, shares / (totals[pairs] * len(labels)), sizes)


def task_losses(scores: Tensor, targets: Targets, log_counts: Iterable[Tensor | None] = repeat(None)) -> Tensor:
    """Loss of each task by equation 4.

    Args:
        scores (`torch.FloatTensor` of shape `(R, V)`): Scores s, the labels of all tasks as columns.
        targets ([`Targets`]): Targets of the batch.
        log_counts (iterable of `torch.FloatTensor`, *optional*): By task the logarithm of the number of labels that
            each column represents, where labels are sampled; 0 for targets. Default: all labels are scored.

    Returns:
        `torch.FloatTensor` of shape `(T,)`, in float32 or more; 0 for a task without targets.
    """
    parts = zip(scores.split(targets.sizes, 1), log_counts, strict=False)
    sums = [(part if counts is None else part + counts).logsumexp(-1) for part, counts in parts]
    surprise = torch.stack(sums, 1)[targets.rows, targets.tasks] - scores[targets.rows, targets.columns]
    losses = targets.shares * surprise
    return losses.new_zeros(len(targets.sizes)).index_add(0, targets.tasks, losses)


def compute_in_parts(
    compute: Callable[[list[int], Tensor], Tensor],
    parts: Sequence[list[int]],
    hidden: Tensor,
    tables: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Computes the losses of a batch for one group of customers after the other, to save memory.

    The scores of all labels at all prefixes, `(B, P, V)`, and the tensors that their gradients need are the largest
    of a training step by far. The total loss is a sum over customers. So the gradients of one group are computed right
    after its losses, and only one group's scores are in memory. The result is linear in vectors and tables, with these
    gradients; nothing is computed twice.

    Args:
        compute (`Callable`): Returns the share of some customers in the task losses, from their indices in the batch
            and their vectors.
        parts (`Sequence[list[int]]`): The groups.
        hidden (`torch.FloatTensor` of shape `(B, ...)`): Vectors of the customers.
        tables (`Sequence[torch.FloatTensor]`): What `compute` reads beside them.

    Returns:
        `tuple`: the total loss, and the task losses `(T,)` without gradient.
    """
    vectors = hidden.detach().requires_grad_(hidden.requires_grad)  # without what they were computed from
    is_source = [value.requires_grad and torch.is_grad_enabled() for value in (hidden, *tables)]
    sources, read = ([*compress((each, *tables), is_source)] for each in (hidden, vectors))
    gradients = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in sources]
    losses = []
    for part in parts:
        share = compute(part, vectors[part])
        losses.append(share.detach())
        if sources:
            added = torch.autograd.grad(share.float().sum() * SCALE, read, materialize_grads=True)
            for gradient, part_gradient in zip(gradients, added, strict=True):
                gradient.add_(part_gradient, alpha=1 / SCALE)
    total = torch.stack(losses).sum()
    for source, gradient in zip(sources, gradients, strict=True):
        product = source.to(gradient.dtype).flatten().dot(gradient.flatten())
        total = total + (product - product.detach())
    return total, torch.stack(losses).sum(0)


def group_customers(costs: Sequence[int], most: int) -> list[list[int]]:
    """Groups customers of similar cost."""
    parts: list[list[int]] = [[]]
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if parts[-1] and (len(parts[-1]) + 1) * costs[index] > most:
            parts.append([])
        parts[-1].append(index)
    return parts
