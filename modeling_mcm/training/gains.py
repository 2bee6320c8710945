# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Learns the gains of counted tables, and the scale of each part of a score.

They have losses of their own. The gains of followers are learned before the encoder is trained, on training prefixes
and on counts without the customer's own pairs. The gains of related labels, and the scale of each part of a score, are
learned at the end on validation cases, which neither tables nor weights know.

Shapes: B customers, L events, R examples (prefixes with one target each, or validation cases), V labels of a task,
A latest labels of a customer.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.counted_memory_mcm import CountedMemory, Followers, FollowerTable, Histories
from modeling_mcm.modeling_mcm import PARTS, MCMForMultiTaskRecommendation

FIT_ROWS, ROWS_A_CUSTOMER = 6000, 4  # number of prefixes for the gains of followers, in all and of one customer
CASES, MOST_SCORES = 4000, 2**27  # number of validation cases for the scales, and of their scores in memory
STEPS, LEAST_GAIN = (0.5, 0.2, 0.1), 1e-4  # relative steps of the search for scales, and least gain of NDCG for a step
SETTLED = 1e-3  # weight of the squared distance between scales or gains and their initial values
IDEAL_PLACES = 10  # length of the ranked list for NDCG


@dataclass
class _Examples:
    """Training examples for the gains of followers: prefixes with one target each. Only some cells, pairs of an
    example and a label, have features: the target, the customer's labels and followers. They are stored as flat
    lists."""

    cells: torch.Tensor  # the cells, as example * V + label, ascending
    targets: torch.Tensor  # index into `cells` of each example's target, of shape `(R,)`
    rows: torch.Tensor  # example of each count above 0
    positions: torch.Tensor  # which of the example's latest labels the count belongs to, from 0 for the last
    follower_cells: torch.Tensor  # index into `cells` of the count's follower
    counts: torch.Tensor  # the counts
    ages: torch.Tensor  # age of each latest label in days, of shape `(R, A)`
    # for each cell the (negative) change of the label's log count without the customer's own events
    popularity: torch.Tensor
    met: torch.Tensor  # for each cell 1 if the prefix has the label, else 0
    own: torch.Tensor  # for each cell the number of the prefix's events with the label, where newer events weigh more


OWN_DECAY = 0.9  # weight of an event of a prefix relative to one that is one moment newer


def _examples_of(
    model: MCMForMultiTaskRecommendation, task_index: int, batch: Mapping[str, Any], counts: torch.Tensor, draw: Any
) -> _Examples | None:
    """Training examples of a batch for a task: a few random targets of each customer."""
    memory, ids = cast(CountedMemory, model.counted_memory), batch["input_ids"]
    size, labels = len(counts), ids[..., model.task_features[task_index]]
    targets = batch["labels"][..., task_index]
    customers, at = (targets >= FIRST_LABEL).nonzero(as_tuple=True)
    order = draw.permutation(len(customers))
    number = np.zeros(len(labels), int)
    positions = []
    for position in order:
        if number[customers[position]] < ROWS_A_CUSTOMER:
            number[customers[position]] += 1
            positions.append(position)
    if not positions:
        return None
    customers, at = customers[sorted(positions)], at[sorted(positions)]
    target_ids = targets[customers, at]
    ends = batch["prefix_ends"][customers, batch["label_prefixes"][customers, at]]
    histories = Histories.of(batch["event_times"], batch["visit_ids"], customers, ends)

    rows = torch.arange(len(customers))
    table = cast(FollowerTable, memory.follower_tables[str(task_index)])
    followers: Followers = table.look_up(labels, histories, without_own=True)
    row, position, k = followers.counts.nonzero(as_tuple=True)
    follower_cells = row * size + followers.labels[row, position, k]
    own = labels[customers].clamp(min=0)  # (R, L)
    times = (own[..., None] == own[:, None]).sum(-1).float()  # how often the customer has the label
    real = own >= FIRST_LABEL
    own_cells = (rows[:, None] * size + own)[real]
    target_cells = rows * size + target_ids
    cells = torch.cat([target_cells, own_cells, follower_cells]).unique()
    at_own = torch.searchsorted(cells, own_cells)
    label_counts = counts[own]
    less = torch.log((label_counts - times).clamp(min=0) + 1) - torch.log(label_counts + 1)
    is_earlier = (torch.arange(own.shape[1]) <= ends[:, None]) & real
    moments = histories.moments
    ago = (moments[customers, ends][:, None] - moments[customers]).clamp(min=0).float()
    zeros = torch.zeros(len(cells))
    met = zeros.scatter_reduce(0, at_own, is_earlier[real].float(), "amax")
    met_weight = zeros.index_add(0, at_own, (OWN_DECAY**ago * is_earlier)[real])
    return _Examples(
        cells=cells,
        targets=torch.searchsorted(cells, target_cells),
        rows=row,
        positions=position,
        follower_cells=torch.searchsorted(cells, follower_cells),
        counts=followers.counts[row, position, k],
        ages=followers.ages,
        popularity=zeros.scatter(0, at_own, less[real]),
        met=met,
        own=met_weight,
    )


def fit_followers(
    model: MCMForMultiTaskRecommendation,
    batches: Iterable[Mapping[str, Any]],
    counts: Mapping[str, torch.Tensor],
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Learns the gains of followers by the likelihood of the targets of training prefixes."""
    memory = cast(CountedMemory, model.counted_memory)
    indices = [index for index in range(len(model.config.tasks)) if memory.has_followers(index)]
    draw = np.random.default_rng(seed)
    rows: dict[int, list[_Examples]] = {index: [] for index in indices}
    number = 0
    for batch in batches:
        examples = {
            index: _examples_of(model, index, batch, counts[model.config.tasks[index]], draw) for index in indices
        }
        for index, own in examples.items():
            if own is not None:
                rows[index].append(own)
        number += max(len(own.targets) if own is not None else 0 for own in examples.values())
        if number >= FIT_ROWS:
            break
    result = {}
    for index in indices:
        if rows[index]:
            result[model.config.tasks[index]] = _fit_task(model, index, rows[index], counts[model.config.tasks[index]])
    return result


def _fit_task(
    model: MCMForMultiTaskRecommendation, task_index: int, rows: Sequence[_Examples], counts: torch.Tensor
) -> dict[str, float]:
    memory = cast(CountedMemory, model.counted_memory)
    size, log_counts, rarity = len(counts), torch.log(counts + 1), memory.label_rarity(task_index)
    gains = {name: value.clone().requires_grad_() for name, value in memory.gains(task_index).items()}
    # Slope on popularity, never negative: counts lack the customer's own events, and a negative slope would use that.
    raw_slope = torch.tensor(0.0, requires_grad=True)
    # If the model has a repeat memory, a term for the customer's own labels stands in for it here. Otherwise the gains
    # of followers would learn repeats too.
    own_gain = torch.tensor(0.5, requires_grad=True) if model.repeat_memory is not None else None

    def loss() -> torch.Tensor:
        total, number, slope = torch.zeros(()), 0, F.softplus(raw_slope)
        everywhere = torch.logsumexp(slope * log_counts[FIRST_LABEL:], 0)
        for part in rows:
            label = part.cells % size
            prior = slope * log_counts[label]
            scores = prior + slope * part.popularity
            if own_gain is not None:
                scores = scores + own_gain * torch.log1p(part.own)
            weighted = part.counts * memory.position_weights(gains, part.ages)[part.rows, part.positions]
            n = torch.zeros(len(part.cells)).index_add(0, part.follower_cells, weighted)
            scores = scores + memory.added(gains, n, rarity[label]) + gains["met_gain"] * part.met
            # The partition function is that of popularity alone, corrected for the cells with features.
            change = torch.where(label >= FIRST_LABEL, (scores - everywhere).exp() - (prior - everywhere).exp(), 0.0)
            partition = 1 + torch.zeros(len(part.targets)).index_add(0, part.cells // size, change)
            total = total + (everywhere + partition.clamp(min=1e-6).log() - scores[part.targets]).sum()
            number += len(part.targets)
        return total / number

    start = {name: value.detach().clone() for name, value in gains.items()}
    with torch.no_grad():
        before = loss().item()
    learned = [*gains.values(), raw_slope, *([] if own_gain is None else [own_gain])]
    optimizer = torch.optim.LBFGS(learned, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        distance = sum((value - start[name]) ** 2 for name, value in gains.items() if name != "met_gain")
        value = loss() + SETTLED * distance
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        for name, value in gains.items():
            memory.get_buffer(name)[task_index] = value
        return {"before": before, "after": loss().item()}


@torch.no_grad()
def validation_parts(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Computes by task the parts of the scores of validation cases, named as in the model's `score_parts`, and a
    tensor that is 1 where a label is a target, else 0; all of shape `(R, V)`."""
    sizes = model.config.label_sizes
    parts: dict[str, list[dict[str, torch.Tensor]]] = {task: [] for task in model.config.tasks}
    followed: dict[str, list[torch.Tensor]] = {task: [] for task in model.config.tasks}
    most, cases = min(CASES, MOST_SCORES // (len(PARTS) * max(sizes.values()))), 0
    for batch in batches:
        inputs: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for task_index, (task, task_parts) in enumerate(model.score_parts(**inputs).items()):
            parts[task].append({name: part.cpu() for name, part in task_parts.items()})
            labels = batch["labels"][..., task_index].clamp(min=0)
            followed[task].append(torch.zeros(len(labels), sizes[task]).scatter(1, labels, 1.0))
        cases += len(batch["labels"])
        if cases >= most:
            break
    return {
        task: (
            {name: torch.cat([scores[name] for scores in task_parts]) for name in task_parts[0]},
            torch.cat(followed[task]),
        )
        for task, task_parts in parts.items()
    }


def fit_scales(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Learns the scale of each part of a score, and the gains of habits and new labels, on validation cases. These few
    numbers of each task minimise the cross-entropy of the targets, where a target weighs 1 / the best DCG of its case.
    For a task without related labels, a search then changes the scales in steps while NDCG@10 grows, and one common
    factor is fitted, so that the scores stay log-probabilities."""
    model.eval()
    return fit_scales_of(model, validation_parts(model, batches))


def fit_scales_of(
    model: MCMForMultiTaskRecommendation, parts: Mapping[str, tuple[Mapping[str, torch.Tensor], torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Learns scales and gains as [`fit_scales`] does, from parts that have been computed."""
    result = {}
    for task, (task_parts, followed) in parts.items():
        task_index, targets = model.config.tasks.index(task), followed[:, FIRST_LABEL:]
        known = targets.sum(1) > 0
        if not known.any():
            continue
        cases = {name: part[known] for name, part in task_parts.items()}
        if "met" in cases:
            result[task] = _fit_related(model, task_index, cases, targets[known])
        else:
            cases = {name: part[:, FIRST_LABEL:] for name, part in cases.items()}
            result[task] = _fit_parts(model, task_index, cases, targets[known])
    return result


def _ideal(followed: torch.Tensor) -> torch.Tensor:
    """The best DCG at 10 of each case, of shape `(R,)`."""
    discounts = 1 / torch.log2(torch.arange(IDEAL_PLACES) + 2.0)
    return discounts.cumsum(0)[(followed.sum(1).long() - 1).clamp(0, IDEAL_PLACES - 1)]


def _ndcg(scores: torch.Tensor, followed: torch.Tensor) -> float:
    """The mean NDCG@10 of scores `(R, V)`."""
    best = scores.topk(min(IDEAL_PLACES, scores.shape[1])).indices
    discounts = 1 / torch.log2(torch.arange(best.shape[1]) + 2.0)
    return ((followed.gather(1, best) * discounts).sum(1) / _ideal(followed)).mean().item()


def _likeliest(
    scores: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, followed: torch.Tensor
) -> torch.Tensor:
    """Maximum-likelihood estimate of some numbers, from which the function `scores` computes scores `(R, V)`."""
    weights = followed / _ideal(followed)[:, None] / len(followed)
    learned = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([learned], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -(weights * F.log_softmax(scores(learned), -1)).sum() + SETTLED * ((learned - start) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return learned.detach()


def _fit_related(
    model: MCMForMultiTaskRecommendation, task_index: int, cases: Mapping[str, torch.Tensor], followed: torch.Tensor
) -> dict[str, float]:
    """Learns a scale for each part, and the gains of habits and new labels, by maximum likelihood."""
    memory = cast(CountedMemory, model.counted_memory)
    names, gains = [name for name in PARTS if name in cases], ("habit_gain", "new_gain", "new_offset")

    def scores(learned: torch.Tensor) -> torch.Tensor:
        scales = learned[len(gains) :]
        own = cast(torch.Tensor, sum(scale * cases[name] for scale, name in zip(scales, names, strict=True)))
        return memory.joined(own, cases, *learned[: len(gains)])[:, FIRST_LABEL:]

    values = _likeliest(scores, torch.tensor([0.0, 1.0, 0.0] + [1.0] * len(names)), followed).tolist()
    for name, value in zip(gains, values, strict=False):
        memory.get_buffer(name)[task_index] = value
    for name, value in zip(names, values[len(gains) :], strict=True):
        model.score_scales[task_index, PARTS.index(name)] = value
    return dict(zip((*names, *gains), values[len(gains) :] + values[: len(gains)], strict=True))


def _fit_parts(
    model: MCMForMultiTaskRecommendation, task_index: int, cases: Mapping[str, torch.Tensor], followed: torch.Tensor
) -> dict[str, float]:
    """Learns a scale for each part: by maximum likelihood, then by a search that raises NDCG@10."""
    names = [name for name in PARTS if name in cases]

    def scores(scales: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, sum(scale * cases[name] for scale, name in zip(scales, names, strict=True)))

    scales = _likeliest(scores, torch.ones(len(names)), followed)
    scales, best = max(
        ((start, _ndcg(scores(start), followed)) for start in (scales, torch.ones(len(names)))),
        key=lambda pair: pair[1],
    )
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for index, factor in itertools.product(range(len(names)), (1 - step, 1 + step)):
                moved = scales.clone()
                moved[index] *= factor
                ndcg = _ndcg(scores(moved), followed)
                if ndcg > best + LEAST_GAIN:
                    scales, best, improved = moved, ndcg, True
    scales = scales * _likeliest(lambda factor: factor * scores(scales), torch.ones(1), followed).clamp(min=0.1)
    for name, value in zip(names, scales.tolist(), strict=True):
        model.score_scales[task_index, PARTS.index(name)] = value
    return dict(zip(names, scales.tolist(), strict=True))
