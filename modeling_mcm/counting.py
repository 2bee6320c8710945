# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the counted memory knows and what it is worth: tables from a prepared data set, and gains for them.

Gains have losses of their own. Those of followers are learned before the encoder is trained, on training prefixes
whose counts are without the customer's own pairs. Those of related labels, and how much each part of a score counts,
are learned at the end on validation cases, which no table and no weight has seen.

Shapes: B customers, L events, R rows (prefixes with one target, or validation cases), V labels, A latest values.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import nn

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.counted_memory_mcm import (
    FOLLOWERS,
    RELATED,
    CountedMemory,
    Followers,
    FollowerTable,
    Histories,
    RelatedTable,
)
from modeling_mcm.modeling_mcm import PARTS, MCMForMultiTaskRecommendation

# Ridge of the regressions, as a multiple of the mean of the diagonal: of new labels on sets, of habits on rates.
NEW_RIDGE, HABIT_RIDGE = 6.0, 1.0
DECIDED = 0.9  # share of events with their label's usual value, from which on the label decides a feature
MOST_WORK = 2e12  # multiplications of a regression, which bounds the customers it is made of
FIT_ROWS, ROWS_A_CUSTOMER = 6000, 4  # prefixes that followers' gains are learned on
CASES, MOST_SCORES = 4000, 2**27  # validation cases, and scores of theirs held at once, that scales are learned on
STEPS, LEAST_GAIN = (0.5, 0.2, 0.1), 1e-4  # of the grid that scales are moved along, and of NDCG for a move
SETTLED = 1e-3  # weight of the squared distance of scales and gains from where they start
IDEAL_PLACES = 10


@torch.no_grad()
def fill_followers(model: MCMForMultiTaskRecommendation, followers: pa.Table, popularity: pa.Table) -> None:
    """Fills the tables of followers from what preparation counted.

    Args:
        model: with a counted memory.
        followers: columns task, label, follower and weight; see `count_followers`.
        popularity: columns feature, id and count.
    """
    memory = cast(CountedMemory, model.counted_memory)
    for place, task in enumerate(model.config.tasks):
        if not memory.has_followers(place):
            continue
        table = cast(FollowerTable, memory.follower_tables[str(place)])
        of_task = followers.filter(pc.equal(followers["task"], task)).sort_by(
            [("label", "ascending"), ("follower", "ascending")]
        )
        labels, ids, weights = (of_task[name].to_numpy().copy() for name in ("label", "follower", "weight"))
        sizes = np.bincount(labels, minlength=len(table.totals))
        # Zeros first, so that a row ascends.
        column = FOLLOWERS - sizes[labels] + np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels]
        table.followers[labels, column] = torch.as_tensor(ids, dtype=torch.int32)
        table.counts[labels, column] = torch.as_tensor(weights, dtype=torch.float32)
        known = popularity.filter(pc.equal(popularity["feature"], task))
        totals = torch.as_tensor(known["count"].to_numpy().copy(), dtype=torch.float32)
        table.totals[torch.as_tensor(known["id"].to_numpy().copy()).long()] = totals


@torch.no_grad()
def fill_related(
    model: MCMForMultiTaskRecommendation,
    batches: Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]],
) -> None:
    """Solves the regressions behind habits and new labels, of each task that has related labels.

    Args:
        model: with a counted memory.
        batches: gives, for the place of a task, label ids and visits of training events, both of shape `(B, L)`, and
            the last event of each customer, of shape `(B,)`.
    """
    memory = cast(CountedMemory, model.counted_memory)
    for place, size in enumerate(model.config.label_sizes.values()):
        if not memory.has_related(place):
            continue
        habits, sets, customers = torch.zeros(size, size), torch.zeros(size, size), 0
        for labels, visits, ends in batches(place):
            every = torch.arange(len(labels))
            histories = Histories(visits, visits.float(), every, ends)
            rates, met = memory.rates(place, labels, visits, histories), memory.met(place, labels, histories).float()
            habits.addmm_(rates.T, rates)
            sets.addmm_(met.T, met)
            customers += len(labels)
            if customers * size**2 > MOST_WORK:
                break
        kind = torch.float64 if size < 5000 else torch.float32
        for gram, ridge, table in (
            (habits, HABIT_RIDGE, memory.habit_tables[str(place)]),
            (sets, NEW_RIDGE, memory.new_tables[str(place)]),
        ):
            strength = ridge * gram.diagonal()[FIRST_LABEL:].mean().clamp(min=1e-8)
            inverse = torch.linalg.inv(gram.to(kind) + strength * torch.eye(size, dtype=kind))
            if gram is habits:  # the ridge regression of x on itself: (G + l)^-1 G = 1 - l (G + l)^-1
                weights = torch.eye(size, dtype=kind) - strength * inverse
            else:  # EASE
                weights = -inverse / inverse.diagonal()
                weights.fill_diagonal_(0)
            _keep_largest(cast(RelatedTable, table), weights.float())


def _keep_largest(table: RelatedTable, weights: torch.Tensor) -> None:
    weights[:, :FIRST_LABEL] = 0
    largest = weights.abs().topk(min(RELATED, len(weights)), dim=1).indices
    table.related[:, : largest.shape[1]] = largest.int()
    table.weights[:, : largest.shape[1]] = weights.gather(1, largest).half()


@torch.no_grad()
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Any, batch_size: int = 1024) -> dict[str, list[str]]:
    """Finds which of `label_features` a task's labels decide, and each label's usual value, in the training period.

    A label decides a feature where nine in ten of its events, counted over all labels, have the label's most frequent
    value; what it does not decide stays out of its embedding.

    Args:
        model: with `label_features`.
        rows: what `load_prepared` gives.
        batch_size (`int`): customers read at a time.

    Returns:
        For each task the features that its labels decide.
    """
    config = model.config
    decided: dict[str, list[str]] = {}
    for place, task in enumerate(config.tasks):
        size, decided[task] = config.label_sizes[task], []
        for column, name in enumerate(config.label_features):
            if name == task:
                continue
            values = config.vocabulary_sizes[config.features.index(name)]
            pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
            wanted = rows.select_columns([f"task_{task}", f"feature_{name}", "validation_end"]).with_format("arrow")
            for table in wanted.iter(batch_size):
                lengths = pc.list_value_length(table[f"task_{task}"]).to_numpy()
                place_in_row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                trained = place_in_row < np.repeat(table["validation_end"].to_numpy(), lengths)
                label, value = (
                    pc.list_flatten(table[each]).to_numpy() for each in (f"task_{task}", f"feature_{name}")
                )
                kept = trained & (label >= FIRST_LABEL) & (value >= FIRST_LABEL)
                keys = np.concatenate([pairs, label[kept].astype(np.int64) * values + value[kept]])
                weights = np.concatenate([counts, np.ones(kept.sum(), np.int64)])
                pairs, where = np.unique(keys, return_inverse=True)
                counts = np.bincount(where, weights, len(pairs)).astype(np.int64)
            if not len(pairs):
                continue
            order = np.lexsort((pairs, -counts, pairs // values))  # of each label the most frequent value first
            labels = (pairs // values)[order]
            first = order[np.append(True, labels[1:] != labels[:-1])]
            if counts[first].sum() >= DECIDED * counts.sum():
                decided[task].append(name)
                usual = torch.zeros(size, dtype=torch.int32)
                usual[torch.as_tensor(pairs[first] // values)] = torch.as_tensor(pairs[first] % values).int()
                model.label_values(place)[:, column] = usual
    return decided


@dataclass
class _Rows:
    """Prefixes of a batch with one target each, and the labels of which something is known, as flat cells.

    Attributes:
        cells: row and label of each pair of which something is known, as row * V + label, ascending.
        targets: the cell of each row's target, as a place in `cells`, of shape `(R,)`.
        rows, positions, places: of each count above 0 its row, which of the latest labels it is a follower of, and
            its place in `cells`.
        counts: those counts.
        ages: of the latest labels, of shape `(R, A)`.
        popularity: what the customer's own events take off the log of the label's count, a number a cell.
        met: whether the row has met the label, a number a cell.
        own: how often, newer meetings weighing more, a number a cell.
    """

    cells: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    counts: torch.Tensor
    ages: torch.Tensor
    popularity: torch.Tensor
    met: torch.Tensor
    own: torch.Tensor


OWN_DECAY = 0.9  # of a meeting a moment, beside which followers' gains are learned


def _rows_of(
    model: MCMForMultiTaskRecommendation, place: int, batch: Mapping[str, Any], counts: torch.Tensor, draw: Any
) -> _Rows | None:
    """The rows of a training batch for a task: a few drawn targets of each customer."""
    memory, ids = cast(CountedMemory, model.counted_memory), batch["input_ids"]
    size, labels = len(counts), ids[..., model.task_features[place]]
    targets = batch["labels"][..., place]
    customers, at = (targets >= FIRST_LABEL).nonzero(as_tuple=True)
    order = draw.permutation(len(customers))
    number = np.zeros(len(labels), int)
    chosen = []
    for position in order:
        if number[customers[position]] < ROWS_A_CUSTOMER:
            number[customers[position]] += 1
            chosen.append(position)
    if not chosen:
        return None
    customers, at = customers[sorted(chosen)], at[sorted(chosen)]
    wanted = targets[customers, at]
    ends = batch["prefix_ends"][customers, batch["label_prefixes"][customers, at]]
    histories = Histories.of(batch["event_times"], batch["visit_ids"], customers, ends)

    rows = torch.arange(len(customers))
    table = cast(FollowerTable, memory.follower_tables[str(place)])
    found: Followers = table.look_up(labels, histories, without_own=True)
    row, position, k = found.counts.nonzero(as_tuple=True)
    follower_cells = row * size + found.labels[row, position, k]
    own = labels[customers].clamp(min=0)  # (R, L)
    times = (own[..., None] == own[:, None]).sum(-1).float()  # how often the customer has the label
    real = own >= FIRST_LABEL
    own_cells = (rows[:, None] * size + own)[real]
    target_cells = rows * size + wanted
    cells = torch.cat([target_cells, own_cells, follower_cells]).unique()
    at_own = torch.searchsorted(cells, own_cells)
    of_label = counts[own]
    less = torch.log((of_label - times).clamp(min=0) + 1) - torch.log(of_label + 1)
    seen = (torch.arange(own.shape[1]) <= ends[:, None]) & real
    moments = histories.moments
    ago = (moments[customers, ends][:, None] - moments[customers]).clamp(min=0).float()
    zeros = torch.zeros(len(cells))
    met = zeros.scatter_reduce(0, at_own, seen[real].float(), "amax")
    met_weight = zeros.index_add(0, at_own, (OWN_DECAY**ago * seen)[real])
    return _Rows(
        cells=cells,
        targets=torch.searchsorted(cells, target_cells),
        rows=row,
        positions=position,
        places=torch.searchsorted(cells, follower_cells),
        counts=found.counts[row, position, k],
        ages=found.ages,
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
    """Learns what followers are worth, by the likelihood of what came next after training prefixes.

    Args:
        model: whose tables of followers are filled.
        batches: training batches of customers drawn at random; as many are read as are needed.
        counts: how often each label of each task is a target, of shape `(V,)`.
        seed: of the draw of targets.

    Returns:
        For each task with followers the loss a target before and after learning.
    """
    memory = cast(CountedMemory, model.counted_memory)
    places = [place for place in range(len(model.config.tasks)) if memory.has_followers(place)]
    draw = np.random.default_rng(seed)
    rows: dict[int, list[_Rows]] = {place: [] for place in places}
    number = 0
    for batch in batches:
        made = {place: _rows_of(model, place, batch, counts[model.config.tasks[place]], draw) for place in places}
        for place, of_task in made.items():
            if of_task is not None:
                rows[place].append(of_task)
        number += max(len(of_task.targets) if of_task is not None else 0 for of_task in made.values())
        if number >= FIT_ROWS:
            break
    result = {}
    for place in places:
        if rows[place]:
            result[model.config.tasks[place]] = _fit_task(model, place, rows[place], counts[model.config.tasks[place]])
    return result


def _fit_task(
    model: MCMForMultiTaskRecommendation, place: int, rows: Sequence[_Rows], counts: torch.Tensor
) -> dict[str, float]:
    memory = cast(CountedMemory, model.counted_memory)
    size, log_counts, rarity = len(counts), torch.log(counts + 1), memory.label_rarity(place)
    gains = {name: value.clone().requires_grad_() for name, value in memory.gains(place).items()}
    # Of popularity, and never under 0: a customer's own labels have lost a count each, which would tell them.
    raw_slope = torch.tensor(0.0, requires_grad=True)
    # Where a repeat memory will count a customer's own labels, they are counted here too, else followers would stand
    # for them.
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
            n = torch.zeros(len(part.cells)).index_add(0, part.places, weighted)
            scores = scores + memory.added(gains, n, rarity[label]) + gains["met_gain"] * part.met
            # The sum over all labels is that of popularity alone, but for the cells of which more is known.
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
            memory.get_buffer(name)[place] = value
        return {"before": before, "after": loss().item()}


@torch.no_grad()
def validation_parts(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """What the scores of validation cases are made of, as `score_parts` of the model says it, and what followed.

    Args:
        model: in evaluation mode.
        batches: of evaluation cases at the validation cutoff; as many are read as are needed.

    Returns:
        For each task its parts by name, and which labels followed (1, else 0), all of shape `(R, V)`.
    """
    sizes = model.config.label_sizes
    parts: dict[str, list[dict[str, torch.Tensor]]] = {task: [] for task in model.config.tasks}
    followed: dict[str, list[torch.Tensor]] = {task: [] for task in model.config.tasks}
    most, cases = min(CASES, MOST_SCORES // (len(PARTS) * max(sizes.values()))), 0
    for batch in batches:
        inputs: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for place, (task, of_task) in enumerate(model.score_parts(**inputs).items()):
            parts[task].append({name: part.cpu() for name, part in of_task.items()})
            labels = batch["labels"][..., place].clamp(min=0)
            followed[task].append(torch.zeros(len(labels), sizes[task]).scatter(1, labels, 1.0))
        cases += len(batch["labels"])
        if cases >= most:
            break
    return {
        task: ({name: torch.cat([each[name] for each in of_task]) for name in of_task[0]}, torch.cat(followed[task]))
        for task, of_task in parts.items()
    }


def fit_scales(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Learns how much each part of a score counts, and what habits and new labels are worth, on validation cases.

    A few numbers a task, first by the cross-entropy of the labels that followed, of which each weighs 1 over the best
    DCG of so many. Of a task without related labels the weights of the parts are then moved along a grid as long as
    NDCG@10 grows, and all of them are scaled by one factor, so that the scores stay log-probabilities.

    Args:
        model: trained.
        batches: of evaluation cases at the validation cutoff.

    Returns:
        For each task the numbers by name.
    """
    model.eval()
    return fit_scales_of(model, validation_parts(model, batches))


def fit_scales_of(
    model: MCMForMultiTaskRecommendation, parts: Mapping[str, tuple[Mapping[str, torch.Tensor], torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """As [`fit_scales`], on parts that are known already ([`validation_parts`]); some may have been left out."""
    result = {}
    for task, (of_task, followed) in parts.items():
        place, wanted = model.config.tasks.index(task), followed[:, FIRST_LABEL:]
        known = wanted.sum(1) > 0
        if not known.any():
            continue
        cases = {name: part[known] for name, part in of_task.items()}
        if "met" in cases:
            result[task] = _fit_related(model, place, cases, wanted[known])
        else:
            cases = {name: part[:, FIRST_LABEL:] for name, part in cases.items()}
            result[task] = _fit_parts(model, place, cases, wanted[known])
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
    """The numbers under which the labels that followed are likeliest; `scores` makes scores `(R, V)` of them."""
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
    model: MCMForMultiTaskRecommendation, place: int, cases: Mapping[str, torch.Tensor], followed: torch.Tensor
) -> dict[str, float]:
    """A scale for each part, and the gains of habits and new labels, all by likelihood alone.

    Habits say again what bias and repeats say, so all of them are learned at once.
    """
    memory = cast(CountedMemory, model.counted_memory)
    names, gains = [name for name in PARTS if name in cases], ("habit_gain", "new_gain", "new_offset")

    def scores(learned: torch.Tensor) -> torch.Tensor:
        scales = learned[len(gains) :]
        own = cast(torch.Tensor, sum(scale * cases[name] for scale, name in zip(scales, names, strict=True)))
        return memory.joined(own, cases, *learned[: len(gains)])[:, FIRST_LABEL:]

    values = _likeliest(scores, torch.tensor([0.0, 1.0, 0.0] + [1.0] * len(names)), followed).tolist()
    for name, value in zip(gains, values, strict=False):
        memory.get_buffer(name)[place] = value
    for name, value in zip(names, values[len(gains) :], strict=True):
        model.score_scales[place, PARTS.index(name)] = value
    return dict(zip((*names, *gains), values[len(gains) :] + values[: len(gains)], strict=True))


def _fit_parts(
    model: MCMForMultiTaskRecommendation, place: int, cases: Mapping[str, torch.Tensor], followed: torch.Tensor
) -> dict[str, float]:
    """A scale for each part."""
    names = [name for name in PARTS if name in cases]

    def scores(scales: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, sum(scale * cases[name] for scale, name in zip(scales, names, strict=True)))

    scales = _likeliest(scores, torch.ones(len(names)), followed)
    scales, best = max(
        ((start, _ndcg(scores(start), followed)) for start in (scales, torch.ones(len(names)))),
        key=lambda each: each[1],
    )
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for place_of, factor in itertools.product(range(len(names)), (1 - step, 1 + step)):
                moved = scales.clone()
                moved[place_of] *= factor
                found = _ndcg(scores(moved), followed)
                if found > best + LEAST_GAIN:
                    scales, best, improved = moved, found, True
    scales = scales * _likeliest(lambda factor: factor * scores(scales), torch.ones(1), followed).clamp(min=0.1)
    for name, value in zip(names, scales.tolist(), strict=True):
        model.score_scales[place, PARTS.index(name)] = value
    return dict(zip(names, scales.tolist(), strict=True))


def training_labels(
    rows: Any, tasks: Sequence[str], batch_size: int = 64, seed: int = 0
) -> Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Label ids and visits of training events, for [`fill_related`], a batch of customers in a random order at a time.

    Args:
        rows: what `load_prepared` gives.
        tasks: of the model.
        batch_size: customers.
        seed: of the order.
    """
    ends = np.asarray(rows["validation_end"])
    known = np.random.default_rng(seed).permutation(np.flatnonzero(ends > 0))

    def batches(place: int) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        columns = [f"task_{tasks[place]}", "visits"]
        of_task = rows.select_columns(columns).with_format("numpy")
        for start in range(0, len(known), batch_size):
            chosen = known[start : start + batch_size]
            found = of_task[np.sort(chosen)]
            last = ends[np.sort(chosen)] - 1
            padded = [
                nn.utils.rnn.pad_sequence(
                    [
                        torch.as_tensor(values[: end + 1].astype(np.int64))
                        for values, end in zip(found[name], last, strict=True)
                    ],
                    batch_first=True,
                )
                for name in columns
            ]
            yield padded[0], padded[1], torch.as_tensor(last)

    return batches
