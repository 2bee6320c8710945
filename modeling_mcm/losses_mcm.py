# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of a batch: one number for each task, from the scores of prefixes and their targets.

Equation 4 is the cross-entropy of the targets; the ranking loss is the NDCG that a wrong order of the best labels
loses. Both are averaged over a customer's targets or prefixes first, and over the customers last. All tasks are
computed together: the score matrix has one row for each prefix, and the labels of all tasks as columns.

Shapes: B customers, R scored prefixes of all customers, T tasks, V labels of all tasks, M targets of all customers
and tasks, G rankings (pairs of a prefix and a task with a target).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .configuration_mcm import FIRST_LABEL

# Positions of a ranking whose order the ranking loss trains (k, more than are ever shown), and labels sampled below.
RANKED_PLACES, SAMPLED_BELOW = 30, 64
HALF_SCALE = 2.0**12  # factor on losses in float16, so that their gradients are not rounded to 0
GOLDEN_RATIO = 0.6180339887498949  # the fractions of its multiples fill (0, 1) evenly


@dataclass(frozen=True)
class Objective:
    """Settings of the pre-training loss. The config chooses prefixes and targets; these are not saved with the model.

    Attributes:
        ranking_loss_weight (`float`): weight of the ranking loss beside equation 4; 0: no ranking loss.
        target_half_life_days (`float`): age of a target, in days before the customer's latest one, at which it weighs
            half as much; 0: all targets weigh the same.
        sampled_labels (`int`): number of labels of a task that are sampled in a training step; 0: all are scored.
        mask_probability (`float`): share of the events that are masked with `augmentation="masked_lm"`.

    Raises:
        ValueError: if a setting is negative or infinite, or `mask_probability` is above 1.
    """

    ranking_loss_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the ranking loss, which is added to the cross-entropy of equation 4. It measures the "
            "NDCG that is lost by a wrong order of the best labels. 0, as in the paper, means no ranking loss."
        },
    )
    target_half_life_days: float = field(
        default=30.0,
        metadata={
            "help": "Age of a target, in days before the customer's latest target, at which it weighs half as much in "
            "the loss; targets of four times this age are left out. Older tastes and seasons then have less effect. "
            "With 0 all targets have the same weight. Only for augmentation=all_prefixes."
        },
    )
    sampled_labels: int = field(
        default=0,
        metadata={
            "help": "Number of labels of a task that a training step samples and scores, beside the labels in the "
            "batch's histories and targets; the loss corrects for the sampling. For tasks with very many labels. "
            "With 0 all labels are scored."
        },
    )
    mask_probability: float = field(
        default=0.2, metadata={"help": "Share of the events that augmentation=masked_lm masks (BERT4Rec)."}
    )

    def __post_init__(self):
        for name in ("ranking_loss_weight", "target_half_life_days", "sampled_labels"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}: 0 is none.")
        if not 0 <= self.mask_probability <= 1:
            raise ValueError(f"`mask_probability` must be from 0 to 1, got {self.mask_probability}: it is a share.")


class Targets(NamedTuple):
    """The targets of a batch as flat lists, one element for each target of any customer and task."""

    columns: torch.Tensor  # (M,): column of the target's label in the score matrix
    rows: torch.Tensor  # (M,): row of the prefix that the target followed, in the score matrix
    tasks: torch.Tensor  # (M,): index of the target's task
    customers: torch.Tensor  # (M,): index of the target's customer
    weights: torch.Tensor  # (M,): weight of the target among its customer's targets
    sizes: Sequence[int]  # number of labels of each task
    batch: int  # B, the number of customers

    @classmethod
    def find(
        cls, labels: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor | None, sizes: Sequence[int]
    ) -> "Targets":
        """Collects the targets of a batch; N is the number of targets of the customer with the most."""
        is_target = labels >= FIRST_LABEL
        if weights is not None:
            is_target = is_target & (weights > 0)[..., None]
        customers, at, tasks = is_target.nonzero(as_tuple=True)
        columns = labels[customers, at, tasks] + _starts(sizes, labels.device)[tasks]
        shares = torch.ones_like(tasks, dtype=torch.float32) if weights is None else weights[customers, at].float()
        return cls(columns, rows[customers, at], tasks, customers, shares, sizes, len(labels))

    def shares(self, weights: torch.Tensor, customers: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        """Weights of a mean over each customer's elements, and then over customers: weight / (sum of the weights of
        the same customer and task) / B, of shape `(n,)`."""
        pair = customers * len(self.sizes) + tasks
        return weights / (_total(weights, pair, self.batch * len(self.sizes))[pair] * self.batch)


def _starts(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Column of each task's first label."""
    return torch.tensor([0, *sizes[:-1]], device=device).cumsum(0)


def _total(values: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
    """Sums of the values that have the same index, of shape `(length,)`."""
    return values.new_zeros(length).index_add(0, index, values)


class WeightedCrossEntropy(torch.autograd.Function):
    """For each task the weighted sum of -log softmax(s)_label over targets, and selected scores for the ranking loss.
    One function for both saves memory: forward stores s and its log-sum-exp, and backward writes the gradient of s
    once. It starts from softmax(s) times the weight of each prefix, and then subtracts the targets' weights and adds
    the gradients of the selected scores in place."""

    @staticmethod
    def forward(ctx, scores, targets, weights, cells, log_counts=None):
        """Computes the losses, of shape `(T,)`."""
        logits = scores if log_counts is None else scores + log_counts
        partition = torch.stack([part.logsumexp(-1) for part in logits.split(targets.sizes, 1)], 1).to(scores.dtype)
        ctx.save_for_backward(scores, partition, weights, cells, log_counts)
        ctx.targets = targets
        losses = weights * (partition[targets.rows, targets.tasks] - scores[targets.rows, targets.columns])
        return _total(losses, targets.tasks, len(targets.sizes)), scores.flatten()[cells]

    @staticmethod
    def backward(ctx, gradient, of_selected):
        """Computes the gradient of the scores from those of the losses and of the selected scores."""
        scores, partition, weights, cells, log_counts = ctx.saved_tensors
        targets = ctx.targets
        weights = weights * gradient[targets.tasks]
        of_row = torch.zeros_like(partition).index_put_((targets.rows, targets.tasks), weights, accumulate=True)
        out = torch.empty_like(scores)
        for index, (part, result) in enumerate(zip(*(x.split(targets.sizes, 1) for x in (scores, out)), strict=True)):
            torch.sub(part, partition[:, index, None], out=result)
            if log_counts is not None:
                result.add_(log_counts.split(targets.sizes)[index])
            result.exp_().mul_(of_row[:, index, None])
        flat = out.view(-1)
        flat.scatter_add_(0, targets.rows * scores.shape[1] + targets.columns, -weights)
        flat.scatter_add_(0, cells, of_selected)
        return out, None, None, None, None


class RankingPairs:
    """LambdaRank (Burges, 2010) on the first k positions of the ranking of each prefix and task.

    A target label w and a label v that is no target of prefix p cost

        log(1 + exp(s(v) - s(w))) |D(w) - D(v)| / ideal(p),    D(w) = 1 / log2(1 + min(rank of w, k + 1)),

    where |D(w) - D(v)| / ideal(p) is the change of NDCG if the two swapped positions, and ideal(p) is the DCG of the
    best order. Two labels below position k cost nothing. The costs of a prefix are summed and multiplied by
    log2(1 + g) / g, where g is the sum of the absolute gradients of its pairs. This limits the weight of a prefix
    whose ranking is all wrong.

    v runs over the k best labels, and below them over every (V / `sampled`)th label, which represents V / `sampled`
    labels. Without these samples, labels that were pushed below position k would rise again unseen. The first
    sampled label is a function of the targets, so no random numbers are used and every process computes the same.
    Where the scored labels are themselves a sample, v is counted as the number of labels that it represents, in its
    pairs and in the ranks below it.

    Args:
        scores (`torch.FloatTensor` of shape `(R, V)`): scores without gradient; they are not stored.
        targets ([`Targets`]): targets of the batch; a prefix has the mean weight of its targets.
        log_counts (`torch.FloatTensor` of shape `(V,)`, *optional*): logarithm of the number of labels that each
            column represents. Default: all labels are scored.
        places (`int`): k, the number of ranking positions.
        sampled (`int`): number of labels that are sampled below position k.

    Attributes:
        cells (`torch.LongTensor`): indices into the flattened score matrix of the labels v of all rankings and of the
            targets; [`RankingPairs.losses`] needs the scores at these indices.
    """

    def __init__(
        self,
        scores: torch.Tensor,
        targets: Targets,
        log_counts: torch.Tensor | None = None,
        places: int = RANKED_PLACES,
        sampled: int = SAMPLED_BELOW,
    ):
        self.targets, tasks, device = targets, len(targets.sizes), scores.device
        rankings, group, count = (targets.rows * tasks + targets.tasks).unique(return_inverse=True, return_counts=True)
        row, task = rankings // tasks, rankings % tasks
        customer = torch.zeros_like(rankings).scatter(0, group, targets.customers)
        self.group = group
        self.weight = targets.shares(_total(targets.weights, group, len(rankings)) / count, customer, task)

        starts = _starts(targets.sizes, device)
        ids = targets.columns - starts[targets.tasks]
        offset = (_total(ids, group, len(rankings)).double() * GOLDEN_RATIO).frac()[:, None]
        best = scores.new_zeros(len(rankings), places, dtype=torch.long)
        spread = best.new_zeros(len(rankings), sampled)
        self.lowest = torch.zeros(len(rankings), 1, device=device)  # score of position k
        share = scores.new_zeros(tasks, places + sampled, dtype=torch.float32)  # number of labels that each represents
        most = best.new_zeros(tasks)  # k, or fewer labels where the task has no more
        for index, (start, size) in enumerate(zip(starts.tolist(), targets.sizes, strict=True)):
            candidates = size - FIRST_LABEL
            k, m = min(places, candidates), min(sampled, candidates)
            of_task = (task == index).nonzero()[:, 0]
            top = scores[:, start + FIRST_LABEL : start + size].topk(k)
            best[of_task, :k] = top.indices[row[of_task]]
            self.lowest[of_task] = top.values[row[of_task], k - 1 :].float()
            positions = ((torch.arange(m, device=device) + offset[of_task]) * (candidates / m)).long()
            spread[of_task, :m] = positions.clamp(max=candidates - 1)
            share[index, :k], share[index, places : places + m] = 1.0, candidates / m
            most[index] = k
        others = torch.cat([best, spread], 1) + starts[task, None] + FIRST_LABEL  # v, (G, places + sampled)
        self.others = others.shape
        width = scores.shape[1]
        cells, followed = row[:, None] * width + others, targets.rows * width + targets.columns
        self.cells = torch.cat([cells.flatten(), followed])

        has_followed = torch.zeros(scores.numel(), dtype=torch.bool, device=device)
        has_followed[followed] = True
        counts = torch.ones_like(cells, dtype=torch.float32) if log_counts is None else log_counts.exp()[others]
        self.share = share[task] * counts * ~has_followed[cells]
        above = counts[:, :places].cumsum(1) - counts[:, :places]  # number of labels above each of the k best
        above = F.pad(above, (0, sampled + 1), value=places).minimum(most[task, None])  # for samples below them, k
        discount = 1 / torch.log2(2 + above)  # D of v; the last column is D of any label below position k
        met = others[:, :places].index_select(0, group) == targets.columns[:, None]
        met &= torch.arange(places, device=device) < most[targets.tasks, None]
        at = torch.where(met.any(1), met.int().argmax(1), -1)
        best_order = 1 / torch.log2(torch.arange(2, places + 2, device=device))
        self.ideal = best_order.cumsum(0)[torch.minimum(count, most[task]) - 1]
        self.differences = (discount[group, at][:, None] - discount[:, :-1].index_select(0, group)).abs_()
        self.places, self.task = places, task

    def losses(self, selected: torch.Tensor) -> torch.Tensor:
        """Computes the ranking loss of each task `(T,)` from the scores at the indices `cells`, with gradient."""
        rankings, group = len(self.weight), self.group
        number = self.others.numel()
        other_scores, label_scores = selected[:number].view(self.others), selected[number:]
        share = self.share.clone()
        share[:, self.places :] *= other_scores.detach()[:, self.places :] < self.lowest
        gain = self.differences * (share / self.ideal[:, None]).index_select(0, group)
        lead = other_scores.index_select(0, group) - label_scores[:, None]  # (M, places + sampled)
        cost = _total((F.softplus(lead) * gain).sum(1), group, rankings)
        size_of_gradient = 2 * _total((lead.detach().sigmoid() * gain).sum(1), group, rankings)
        damped = cost * torch.log2(1 + size_of_gradient) / size_of_gradient.clamp(min=1e-6)
        return _total(self.weight * damped, self.task, len(self.targets.sizes))


def task_losses(
    scores: torch.Tensor, targets: Targets, ranking_weight: float = 0.0, log_counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of each task: equation 4 plus `ranking_weight` times the ranking loss.

    Args:
        scores (`torch.FloatTensor` of shape `(R, V)`): scores s, the labels of all tasks as columns.
        ranking_weight (`float`): weight of the ranking loss; 0: equation 4 alone.
        log_counts (`torch.FloatTensor` of shape `(V,)`, *optional*): logarithm of the number of labels that each
            column represents, where labels are sampled; 0 for targets. Default: all labels are scored.

    Returns:
        `torch.FloatTensor` of shape `(T,)`; 0 for a task without targets.
    """
    pairs = RankingPairs(scores.detach(), targets, log_counts) if ranking_weight and len(targets.rows) else None
    cells = targets.rows[:0] if pairs is None else pairs.cells
    shares = targets.shares(targets.weights, targets.customers, targets.tasks).to(scores.dtype)
    losses, selected = WeightedCrossEntropy.apply(scores, targets, shares, cells, log_counts)
    return losses if pairs is None else losses + ranking_weight * pairs.losses(selected.float())


class LossInParts(torch.autograd.Function):
    """The losses of a batch, computed for one group of customers after the other to save memory.

    The scores of all labels at all prefixes, `(B, P, V)`, and the tensors that their gradients need are the largest
    of a training step by far. The total loss is a sum over customers. So the gradients of one group can be computed in
    the forward pass, right after its losses, and only one group's scores are in memory. Backward multiplies the stored
    gradients by that of the total loss; nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, losses_of, parts, number, *inputs):
        """Computes losses and gradients, group by group. Returns the total loss, and the task losses `(T,)` without
        gradient. `losses_of(part, *vectors)` returns the share of a group of customers in the task losses; `parts` are
        the groups, as indices into the batch. The first `number` of `inputs` are vectors with the customers as first
        axis, the others are the parameters that `losses_of` reads."""
        vectors, parameters = inputs[:number], inputs[number:]
        gradients, losses = [None] * len(inputs), []
        device = inputs[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
        scale = HALF_SCALE if dtype == torch.half else 1  # a gradient scaler acts too late, in backward
        for part in parts:
            with torch.enable_grad():
                cut = [value[part].detach().requires_grad_(value.requires_grad) for value in vectors]
                variables = [(index, value) for index, value in enumerate((*cut, *parameters)) if value.requires_grad]
                losses.append(losses_of(part, *cut))
                part_gradients = [None] * len(variables)
                if losses[-1].requires_grad:
                    total = losses[-1].float().sum() * scale
                    part_gradients = torch.autograd.grad(total, [value for _, value in variables], allow_unused=True)
            losses[-1] = losses[-1].detach()
            for (index, _), gradient in zip(variables, part_gradients, strict=True):
                if gradient is None:  # a task without targets: its parameters keep the gradient None
                    continue
                gradient = gradient if scale == 1 else gradient.float() / scale
                if index < number:
                    if gradients[index] is None:
                        gradients[index] = torch.zeros_like(inputs[index], dtype=gradient.dtype)
                    gradients[index][part] = gradient
                else:  # not in place: gradients of two parameters may share their memory
                    gradients[index] = gradient if gradients[index] is None else gradients[index] + gradient
        ctx.save_for_backward(*gradients)
        losses = torch.stack(losses).sum(0)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, gradient, _):
        """Multiplies the stored gradients by that of the total loss."""
        gradients = [value for value in ctx.saved_tensors if value is not None]
        scaled = iter(torch._foreach_mul(gradients, gradient))
        return None, None, None, *(None if value is None else next(scaled) for value in ctx.saved_tensors)


def customers_in_parts(costs: Sequence[int], most: int) -> list[list[int]]:
    """Groups customers of similar cost."""
    parts: list[list[int]] = [[]]
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if parts[-1] and (len(parts[-1]) + 1) * costs[index] > most:
            parts.append([])
        parts[-1].append(index)
    return parts
