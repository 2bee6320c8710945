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
"""The losses of one task: from the scores of prefixes and the labels that followed them to one number.

`prefix_cross_entropy` is equation 4, what a label's probability costs. `prefix_ranking_loss` is what the order of the
best labels costs in NDCG. Both are a mean over a customer's labels or prefixes first, and over the customers last.

Shapes: B customers, P prefixes, V labels, N labels that followed a customer's prefixes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Ids 0 (missing) and 1 (unknown) are no labels: nothing is predicted as "unknown".
FIRST_LABEL = 2
# Places of a ranking whose order the ranking loss asks for, more than are ever shown, and labels sampled below them.
RANKED_PLACES, SAMPLED_BELOW = 30, 64
HALF_SCALE = 2.0**12  # of losses whose gradients float16 would round to 0
GOLDEN_RATIO = 0.6180339887498949  # the fractions of its multiples fill (0, 1) evenly


class LabelSurprise(torch.autograd.Function):
    """Weighted sum of -log softmax(s)_label over labels that share prefixes, in few passes over s.

    Forward keeps s and its log-sum-exp; backward writes softmax(s) times the weight of a prefix once, and takes the
    labels' weights off in place.
    """

    @staticmethod
    def forward(ctx, scores, labels, prefixes, weights):
        """Scores `(B, P, V)`; labels, their prefixes and weights `(B, N)`. Returns a scalar."""
        rows = torch.arange(labels.shape[0], device=labels.device)[:, None]
        partition = scores.logsumexp(-1)
        ctx.save_for_backward(scores, partition, labels, prefixes, weights)
        return (weights * (partition.gather(1, prefixes) - scores[rows, prefixes, labels])).sum()

    @staticmethod
    def backward(ctx, gradient):
        scores, partition, labels, prefixes, weights = ctx.saved_tensors
        rows = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labels)
        weights = weights * gradient
        of_prefix = torch.zeros_like(partition).scatter_add_(1, prefixes, weights)
        out = torch.sub(scores, partition[..., None]).exp_().mul_(of_prefix[..., None])
        return out.index_put_((rows, prefixes, labels), -weights, accumulate=True), None, None, None


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
                else:
                    kept[place] = gradient.clone() if kept[place] is None else kept[place].add_(gradient)
        ctx.save_for_backward(*kept)
        losses = torch.stack(losses).sum(0)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, gradient, _):
        return None, None, None, *(None if value is None else value * gradient for value in ctx.saved_tensors)


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
) -> torch.Tensor:
    """Equation 4: -log P(label | prefix), the mean over a customer's labels first and over the customers last.

    Args:
        scores: s of shape `(B, P, V)`.
        labels: ids of shape `(B, N)`; under 2 is no target.
        label_prefixes: the prefix of each label, of shape `(B, N)`; the first by default.
        label_weights: of the mean over a customer's labels, of shape `(B, N)`; all the same by default.

    Returns:
        A scalar; 0 when no customer has a target.
    """
    prefixes = torch.zeros_like(labels) if label_prefixes is None else label_prefixes
    counted = labels >= FIRST_LABEL
    weights = counted.float() if label_weights is None else counted * label_weights.float()
    totals = weights.sum(1, keepdim=True)
    weights = weights / (torch.where(totals > 0, totals, 1.0) * labels.shape[0])
    return LabelSurprise.apply(scores, labels.clamp(min=0), prefixes, weights.to(scores.dtype))


def prefix_ranking_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    label_prefixes: torch.Tensor | None = None,
    label_weights: torch.Tensor | None = None,
    places: int = RANKED_PLACES,
    sampled: int = SAMPLED_BELOW,
) -> torch.Tensor:
    """LambdaRank (Burges, 2010) over the first places of each prefix's ranking.

    A label w that followed prefix p, and a label v that did not, cost

        log(1 + exp(s(v) - s(w))) |D(w) - D(v)| / ideal(p),    D(w) = 1 / log2(1 + min(rank of w, k + 1)),

    what NDCG would gain if the two changed places; ideal(p) is the DCG of the best order, and two labels below place k
    cost nothing. The pairs of a prefix are summed and weighed by log2(1 + g) / g, g being the sum of the sizes of
    their gradients, so that a prefix whose ranking is all wrong does not outvote the others.

    v is each of the k best, and below them every (V / `sampled`)th label, which stands for as many. Without those
    the ranking breaks: what is pushed below place k is never held there. The first of them depends on the labels
    that followed alone, so nothing is drawn and any number of processes asks the same.

    Args:
        scores, labels, label_prefixes, label_weights: as for [`prefix_cross_entropy`]. A prefix weighs as much as its
            labels do on average.
        places: k.
        sampled: labels that stand for those below place k.

    Returns:
        A scalar; 0 when no customer has a target.
    """
    batch, width, size = scores.shape
    candidates = size - FIRST_LABEL
    places, sampled = min(places, candidates), min(sampled, candidates)
    prefixes = torch.zeros_like(labels) if label_prefixes is None else label_prefixes
    weights = torch.ones_like(labels, dtype=torch.float32) if label_weights is None else label_weights.float()
    customer, at = ((labels >= FIRST_LABEL) & (weights > 0)).nonzero(as_tuple=True)
    label = labels[customer, at]
    asked, row, count = (customer * width + prefixes[customer, at]).unique(return_inverse=True, return_counts=True)

    def total(values: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
        return values.new_zeros(length).index_add(0, index, values)

    weight = total(weights[customer, at], row, len(asked)) / count
    weight = weight / (total(weight, asked // width, batch)[asked // width] * batch)

    best = scores.detach().flatten(0, 1)[asked, FIRST_LABEL:].topk(places)
    offset = (total(label, row, len(asked)).double() * GOLDEN_RATIO).frac()[:, None]
    spread = ((torch.arange(sampled, device=scores.device) + offset) * (candidates / sampled)).long()
    others = torch.cat([best.indices, spread.clamp(max=candidates - 1)], 1) + FIRST_LABEL  # v, (prefixes, k + sampled)
    cells = torch.cat([(asked[:, None] * size + others).flatten(), asked[row] * size + label])
    picked = scores.flatten().gather(0, cells).float()
    other_scores, label_scores = picked[: others.numel()].view_as(others), picked[others.numel() :]

    followed = torch.zeros(len(asked), size, dtype=torch.bool, device=scores.device)
    followed[row, label] = True
    below = other_scores.detach()[:, places:] < best.values[:, -1:].float()
    share = torch.cat([torch.ones_like(best.values), below * candidates / sampled], 1)
    share = share * ~followed.gather(1, others)

    discount = 1 / torch.log2(torch.arange(2, places + 3, device=scores.device))  # D of the places 1 to k + 1
    met = others[row, :places] == label[:, None]
    rank = torch.where(met.any(1), met.int().argmax(1), places)
    ideal = discount[:places].cumsum(0)[count.clamp(max=places) - 1]
    rank_of_others = torch.arange(places + sampled, device=scores.device).clamp(max=places)
    gain = (discount[rank][:, None] - discount[rank_of_others]).abs() / ideal[row][:, None] * share[row]

    lead = other_scores[row] - label_scores[:, None]  # (labels that followed, k + sampled)
    cost = total((F.softplus(lead) * gain).sum(1), row, len(asked))
    size_of_gradient = 2 * total((lead.detach().sigmoid() * gain).sum(1), row, len(asked))
    return (weight * cost * torch.log2(1 + size_of_gradient) / size_of_gradient.clamp(min=1e-6)).sum()
