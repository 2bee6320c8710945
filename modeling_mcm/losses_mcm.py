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
"""The losses: from the scores of prefixes and the labels that followed them to one number a task.

Equation 4 is what a label's probability costs; the ranking loss is what the order of the best labels costs in NDCG.
Both are a mean over a customer's labels or prefixes first, and over the customers last. All tasks are taken together:
their labels stand side by side in a row of scores, one row a prefix, and every gradient is written in one pass.

Shapes: B customers, R prefixes of all customers, T tasks, V labels of all tasks, M labels that followed, G rankings
that are asked for: pairs of a prefix and a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .configuration_mcm import FIRST_LABEL

# Places of a ranking whose order the ranking loss asks for, more than are ever shown, and labels sampled below them.
RANKED_PLACES, SAMPLED_BELOW = 30, 64
HALF_SCALE = 2.0**12  # of losses whose gradients float16 would round to 0
GOLDEN_RATIO = 0.6180339887498949  # the fractions of its multiples fill (0, 1) evenly


@dataclass(frozen=True)
class Objective:
    """What pre-training minimises, beside the config's choice of prefixes and targets; the model does not save it."""

    ranking_loss_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the ranking loss, what the order of the best labels costs in NDCG, beside equation 4; "
            "0 (the paper): none."
        },
    )
    target_half_life_days: float = field(
        default=30.0,
        metadata={
            "help": "What a customer did this many days before their latest target weighs half as much in the loss, "
            "and is left out after four times as many, so that tastes and seasons that have passed don't outvote the "
            "present; 0: all the same. Only for augmentation=all_prefixes."
        },
    )
    sampled_labels: int = field(
        default=0,
        metadata={
            "help": "Labels of a task that a training step scores beside those that the batch's customers met or that "
            "followed, a corrected sample of the others: for tasks of very many labels; 0: all labels are scored."
        },
    )
    mask_probability: float = field(
        default=0.2, metadata={"help": "Share of the events that augmentation=masked_lm hides (BERT4Rec)."}
    )

    def __post_init__(self):
        for name in ("ranking_loss_weight", "target_half_life_days", "sampled_labels"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}: 0 is none.")
        if not 0 <= self.mask_probability <= 1:
            raise ValueError(f"`mask_probability` must be from 0 to 1, got {self.mask_probability}: it is a share.")


class Targets(NamedTuple):
    """The labels that followed, flat: those that count, of all customers and tasks.

    Attributes:
        columns: where the label stands in a row of scores, of shape `(M,)`.
        rows: the row of the prefix that it followed, of shape `(M,)`.
        tasks: its task, of shape `(M,)`.
        customers: of shape `(M,)`.
        weights: of the label beside the customer's others, of shape `(M,)`.
        sizes: V of each task.
        batch: B.
    """

    columns: torch.Tensor
    rows: torch.Tensor
    tasks: torch.Tensor
    customers: torch.Tensor
    weights: torch.Tensor
    sizes: Sequence[int]
    batch: int

    @classmethod
    def find(
        cls, labels: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor | None, sizes: Sequence[int]
    ) -> "Targets":
        """Labels of shape `(B, N, T)` (ids under 2 are no targets), their rows and weights of shape `(B, N)`."""
        counted = labels >= FIRST_LABEL
        if weights is not None:
            counted = counted & (weights > 0)[..., None]
        customers, at, tasks = counted.nonzero(as_tuple=True)
        columns = labels[customers, at, tasks] + _starts(sizes, labels.device)[tasks]
        found = torch.ones_like(tasks, dtype=torch.float32) if weights is None else weights[customers, at].float()
        return cls(columns, rows[customers, at], tasks, customers, found, sizes, len(labels))

    def shares(self, weights: torch.Tensor, customers: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        """Weights over their sum for the same customer and task, and over B."""
        pair = customers * len(self.sizes) + tasks
        return weights / (_total(weights, pair, self.batch * len(self.sizes))[pair] * self.batch)


def _starts(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """The first column of each task."""
    return torch.tensor([0, *sizes[:-1]], device=device).cumsum(0)


def _total(values: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
    return values.new_zeros(length).index_add(0, index, values)


class LabelSurprise(torch.autograd.Function):
    """For each task the weighted sum of -log softmax(s)_label, and scores picked out for the ranking loss.

    Forward keeps s and its log-sum-exp; backward writes softmax(s) times the weight of a prefix once, and takes the
    labels' weights off and the gradients of picked scores in, in place.
    """

    @staticmethod
    def forward(ctx, scores, targets, weights, cells, log_counts=None):
        """Scores `(R, V)`, weights `(M,)`, cells: places in the flat scores, what is added to scores in the partition
        functions `(V,)`. Returns `(T,)`, and the picked scores."""
        counted = scores if log_counts is None else scores + log_counts
        partition = torch.stack([part.logsumexp(-1) for part in counted.split(targets.sizes, 1)], 1).to(scores.dtype)
        ctx.save_for_backward(scores, partition, weights, cells, log_counts)
        ctx.targets = targets
        surprise = weights * (partition[targets.rows, targets.tasks] - scores[targets.rows, targets.columns])
        return _total(surprise, targets.tasks, len(targets.sizes)), scores.flatten()[cells]

    @staticmethod
    def backward(ctx, gradient, of_picked):
        scores, partition, weights, cells, log_counts = ctx.saved_tensors
        targets = ctx.targets
        weights = weights * gradient[targets.tasks]
        of_row = torch.zeros_like(partition).index_put_((targets.rows, targets.tasks), weights, accumulate=True)
        out = torch.empty_like(scores)
        for place, (part, written) in enumerate(zip(*(x.split(targets.sizes, 1) for x in (scores, out)), strict=True)):
            torch.sub(part, partition[:, place, None], out=written)
            if log_counts is not None:
                written.add_(log_counts.split(targets.sizes)[place])
            written.exp_().mul_(of_row[:, place, None])
        flat = out.view(-1)
        flat.scatter_add_(0, targets.rows * scores.shape[1] + targets.columns, -weights)
        flat.scatter_add_(0, cells, of_picked)
        return out, None, None, None, None


class RankingPairs:
    """LambdaRank (Burges, 2010) over the first places of each prefix's ranking, of every task.

    A label w that followed prefix p, and a label v that did not, cost

        log(1 + exp(s(v) - s(w))) |D(w) - D(v)| / ideal(p),    D(w) = 1 / log2(1 + min(rank of w, k + 1)),

    what NDCG would gain if the two changed places; ideal(p) is the DCG of the best order, and two labels below place k
    cost nothing. The pairs of a prefix are summed and weighed by log2(1 + g) / g, g being the sum of the sizes of
    their gradients, so that a prefix whose ranking is all wrong does not outvote the others.

    v is each of the k best, and below them every (V / `sampled`)th label, which stands for as many. Without those
    the ranking breaks: what is pushed below place k is never held there. The first of them depends on the labels
    that followed alone, so nothing is drawn and any number of processes asks the same. Where the labels are a sample
    already, v stands for as many labels, in its pairs and in the rank of what is below it.

    Args:
        scores: of shape `(R, V)`; nothing is kept of them.
        targets: a prefix weighs as much as its labels do on average.
        log_counts: as for [`task_losses`].
        places: k.
        sampled: labels that stand for those below place k.

    Attributes:
        cells: places in the flat scores, of the labels v of all rankings and of the labels that followed.
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
        asked, group, count = (targets.rows * tasks + targets.tasks).unique(return_inverse=True, return_counts=True)
        row, task = asked // tasks, asked % tasks
        customer = torch.zeros_like(asked).scatter(0, group, targets.customers)
        self.group = group
        self.weight = targets.shares(_total(targets.weights, group, len(asked)) / count, customer, task)

        starts = _starts(targets.sizes, device)
        ids = targets.columns - starts[targets.tasks]
        offset = (_total(ids, group, len(asked)).double() * GOLDEN_RATIO).frac()[:, None]
        best = scores.new_zeros(len(asked), places, dtype=torch.long)
        spread = best.new_zeros(len(asked), sampled)
        self.lowest = torch.zeros(len(asked), 1, device=device)  # score of place k
        share = scores.new_zeros(tasks, places + sampled, dtype=torch.float32)  # for how many labels each stands
        most = best.new_zeros(tasks)  # k, or fewer labels where the task has no more
        for place, (start, size) in enumerate(zip(starts.tolist(), targets.sizes, strict=True)):
            candidates = size - FIRST_LABEL
            k, m = min(places, candidates), min(sampled, candidates)
            of_task = (task == place).nonzero()[:, 0]
            top = scores[:, start + FIRST_LABEL : start + size].topk(k)
            best[of_task, :k] = top.indices[row[of_task]]
            self.lowest[of_task] = top.values[row[of_task], k - 1 :].float()
            drawn = ((torch.arange(m, device=device) + offset[of_task]) * (candidates / m)).long()
            spread[of_task, :m] = drawn.clamp(max=candidates - 1)
            share[place, :k], share[place, places : places + m] = 1.0, candidates / m
            most[place] = k
        others = torch.cat([best, spread], 1) + starts[task, None] + FIRST_LABEL  # v, (G, places + sampled)
        self.others = others.shape
        width = scores.shape[1]
        cells, followed = row[:, None] * width + others, targets.rows * width + targets.columns
        self.cells = torch.cat([cells.flatten(), followed])

        has_followed = torch.zeros(scores.numel(), dtype=torch.bool, device=device)
        has_followed[followed] = True
        counts = torch.ones_like(cells, dtype=torch.float32) if log_counts is None else log_counts.exp()[others]
        self.share = share[task] * counts * ~has_followed[cells]
        above = counts[:, :places].cumsum(1) - counts[:, :places]  # how many labels are above each of the best
        above = F.pad(above, (0, sampled + 1), value=places).minimum(most[task, None])  # below those, always k
        discount = 1 / torch.log2(2 + above)  # D of v; in the last column that of any label below place k
        met = others[:, :places].index_select(0, group) == targets.columns[:, None]
        met &= torch.arange(places, device=device) < most[targets.tasks, None]
        at = torch.where(met.any(1), met.int().argmax(1), -1)
        best_order = 1 / torch.log2(torch.arange(2, places + 2, device=device))
        self.ideal = best_order.cumsum(0)[torch.minimum(count, most[task]) - 1]
        self.differences = (discount[group, at][:, None] - discount[:, :-1].index_select(0, group)).abs_()
        self.places, self.task = places, task

    def losses(self, picked: torch.Tensor) -> torch.Tensor:
        """The loss of each task, of shape `(T,)`, from the scores of `cells`."""
        asked, group = len(self.weight), self.group
        number = self.others.numel()
        other_scores, label_scores = picked[:number].view(self.others), picked[number:]
        share = self.share.clone()
        share[:, self.places :] *= other_scores.detach()[:, self.places :] < self.lowest
        gain = self.differences * (share / self.ideal[:, None]).index_select(0, group)
        lead = other_scores.index_select(0, group) - label_scores[:, None]  # (M, places + sampled)
        cost = _total((F.softplus(lead) * gain).sum(1), group, asked)
        size_of_gradient = 2 * _total((lead.detach().sigmoid() * gain).sum(1), group, asked)
        damped = cost * torch.log2(1 + size_of_gradient) / size_of_gradient.clamp(min=1e-6)
        return _total(self.weight * damped, self.task, len(self.targets.sizes))


def task_losses(
    scores: torch.Tensor, targets: Targets, ranking_weight: float = 0.0, log_counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Equation 4 of each task, and `ranking_weight` times its ranking loss, of shape `(T,)`.

    Args:
        scores: s of shape `(R, V)`, the labels of all tasks side by side.
        targets: what followed.
        ranking_weight: 0 for equation 4 alone.
        log_counts: where labels are a sample, the log of how many each stands for, of shape `(V,)`; 0 for those that
            followed.

    Returns:
        0 for a task of which no label followed.
    """
    pairs = RankingPairs(scores.detach(), targets, log_counts) if ranking_weight and len(targets.rows) else None
    cells = targets.rows[:0] if pairs is None else pairs.cells
    shares = targets.shares(targets.weights, targets.customers, targets.tasks).to(scores.dtype)
    losses, picked = LabelSurprise.apply(scores, targets, shares, cells, log_counts)
    return losses if pairs is None else losses + ranking_weight * pairs.losses(picked.float())


class LossInParts(torch.autograd.Function):
    """The losses of a batch as a sum over parts of it, each with its gradients before the next is begun.

    The scores of all labels at all prefixes, `(B, P, V)`, and what their gradients need are the largest tensors of a
    training step by far. Since the total is a sum over customers, the gradients of a part's share of it can be taken
    in the forward pass, and only one part's scores are ever held; nothing is computed twice. Backward multiplies the
    gradients that were kept by that of the total.

    Forward takes `losses_of(part, *vectors)`, which gives a part's share of the task losses, `(T,)`; the parts, lists
    of customers; the number of the vectors; vectors with the customers first, of which it gets the part; and the
    parameters that it reads. It gives the total, and the losses of the tasks without a gradient.
    """

    @staticmethod
    def forward(ctx, losses_of, parts, number, *inputs):
        vectors, parameters = inputs[:number], inputs[number:]
        kept, losses = [None] * len(inputs), []
        device = inputs[0].device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
        scale = HALF_SCALE if computed == torch.half else 1  # a gradient scaler comes too late, in backward
        for part in parts:
            with torch.enable_grad():
                cut = [value[part].detach().requires_grad_(value.requires_grad) for value in vectors]
                read = [(place, value) for place, value in enumerate((*cut, *parameters)) if value.requires_grad]
                losses.append(losses_of(part, *cut))
                found = [None] * len(read)
                if losses[-1].requires_grad:
                    total = losses[-1].float().sum() * scale
                    found = torch.autograd.grad(total, [value for _, value in read], allow_unused=True)
            losses[-1] = losses[-1].detach()
            for (place, _), gradient in zip(read, found, strict=True):
                if gradient is None:  # of a task that is not trained: an optimizer must see none
                    continue
                gradient = gradient if scale == 1 else gradient.float() / scale
                if place < number:
                    if kept[place] is None:
                        kept[place] = torch.zeros_like(inputs[place], dtype=gradient.dtype)
                    kept[place][part] = gradient
                else:  # not in place: gradients of two parameters may share their memory
                    kept[place] = gradient if kept[place] is None else kept[place] + gradient
        ctx.save_for_backward(*kept)
        losses = torch.stack(losses).sum(0)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, gradient, _):
        found = [value for value in ctx.saved_tensors if value is not None]
        scaled = iter(torch._foreach_mul(found, gradient))
        return None, None, None, *(None if value is None else next(scaled) for value in ctx.saved_tensors)


def customers_in_parts(costs: Sequence[int], most: int) -> list[list[int]]:
    """Places of customers of similar cost together, while their number times the highest cost is at most `most`."""
    parts: list[list[int]] = [[]]
    for place in sorted(range(len(costs)), key=costs.__getitem__):
        if parts[-1] and (len(parts[-1]) + 1) * costs[place] > most:
            parts.append([])
        parts[-1].append(place)
    return parts


def prefix_cross_entropy(
    scores: torch.Tensor,
    labels: torch.Tensor,
    label_prefixes: torch.Tensor | None = None,
    label_weights: torch.Tensor | None = None,
    log_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equation 4: -log P(label | prefix), the mean over a customer's labels first and over the customers last.

    Args:
        scores: s of one task, of shape `(B, P, V)`.
        labels: ids of shape `(B, N)`; under 2 is no target.
        label_prefixes: the prefix of each label, of shape `(B, N)`; the first by default.
        label_weights: of the mean over a customer's labels, of shape `(B, N)`; all the same by default.
        log_counts: as for [`task_losses`].

    Returns:
        A scalar; 0 when no customer has a target.
    """
    targets = _of_one_task(scores, labels, label_prefixes, label_weights)
    return task_losses(scores.flatten(0, 1), targets, log_counts=log_counts)[0]


def prefix_ranking_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    label_prefixes: torch.Tensor | None = None,
    label_weights: torch.Tensor | None = None,
    log_counts: torch.Tensor | None = None,
    places: int = RANKED_PLACES,
    sampled: int = SAMPLED_BELOW,
) -> torch.Tensor:
    """The loss of [`RankingPairs`] of one task.

    Args:
        scores, labels, label_prefixes, label_weights, log_counts: as for [`prefix_cross_entropy`].
        places, sampled: as for [`RankingPairs`].

    Returns:
        A scalar; 0 when no customer has a target.
    """
    targets = _of_one_task(scores, labels, label_prefixes, label_weights)
    pairs = RankingPairs(scores.detach().flatten(0, 1), targets, log_counts, places, sampled)
    return pairs.losses(scores.flatten()[pairs.cells].float())[0]


def _of_one_task(
    scores: torch.Tensor, labels: torch.Tensor, prefixes: torch.Tensor | None, weights: torch.Tensor | None
) -> Targets:
    batch, width, size = scores.shape
    first = torch.arange(batch, device=labels.device)[:, None] * width
    return Targets.find(
        labels[..., None], (first if prefixes is None else first + prefixes).expand_as(labels), weights, [size]
    )
