# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fills the tables of the counted memory from a prepared data set, and learns gains and scales of scores.

Gains have losses of their own. The gains of followers are learned before the encoder is trained, on training prefixes
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

# Ridge penalty of the regressions for new labels and for habits, as a multiple of the mean of the diagonal.
NEW_RIDGE, HABIT_RIDGE = 6.0, 1.0
DECIDED = 0.9  # a label determines a feature if this share of events has the label's most frequent value
MOST_WORK = 2e12  # largest number of multiplications of a regression; it limits the number of customers
FIT_ROWS, ROWS_A_CUSTOMER = 6000, 4  # number of prefixes for the gains of followers, in all and of one customer
CASES, MOST_SCORES = 4000, 2**27  # number of validation cases for the scales, and of their scores in memory
STEPS, LEAST_GAIN = (0.5, 0.2, 0.1), 1e-4  # relative steps of the search for scales, and least gain of NDCG for a step
SETTLED = 1e-3  # weight of the squared distance between scales or gains and their initial values
IDEAL_PLACES = 10  # length of the ranked list for NDCG


@torch.no_grad()
def fill_followers(model: MCMForMultiTaskRecommendation, followers: pa.Table, popularity: pa.Table) -> None:
    """Fills the tables of followers with the counts of the preparation.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a model with a counted memory, changed in place.
        followers (`pa.Table`): columns `task`, `label`, `follower` and `weight`, as `count_followers` returns them.
        popularity (`pa.Table`): columns `feature`, `id` and `count`: number of training events with each value.
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
        # Padding (id 0) comes first, so that each row is ascending.
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
    """Solves the regressions of habits and new labels for each task with related labels.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a model with a counted memory, changed in place.
        batches (`Callable`): returns, for the index of a task, batches of label ids `(B, L)` and visits `(B, L)` of
            training events, and the index of each customer's last event `(B,)`; see [`training_labels`].
    """
    memory = cast(CountedMemory, model.counted_memory)
    for place, size in enumerate(model.config.label_sizes.values()):
        if not memory.has_related(place):
            continue
        habits, sets, customers = torch.zeros(size, size), torch.zeros(size, size), 0
        for labels, visits, ends in batches(place):
            histories = Histories(visits, visits.float(), torch.arange(len(labels)), ends)
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
    """Fills a table with the weights of largest absolute value in each row of a matrix `(V, V)`."""
    weights[:, :FIRST_LABEL] = 0
    largest = weights.abs().topk(min(RELATED, len(weights)), dim=1).indices
    table.related[:, : largest.shape[1]] = largest.int()
    table.weights[:, : largest.shape[1]] = weights.gather(1, largest).half()


@torch.no_grad()
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Any, batch_size: int = 1024) -> dict[str, list[str]]:
    """Determines each label's most frequent value of `label_features` in the training period.

    It does so for the features that a task's labels determine: those where at least nine in ten events, over all
    labels, have their label's most frequent value. Other features stay out of the labels' embeddings.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a model with `label_features`, changed in place.
        rows (`datasets.Dataset`): prepared data, as `load_prepared` returns them.
        batch_size (`int`): number of customers read at a time.

    Returns:
        `dict[str, list[str]]`: by task the features that its labels determine.
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
            columns = rows.select_columns([f"task_{task}", f"feature_{name}", "validation_end"]).with_format("arrow")
            for table in columns.iter(batch_size):
                lengths = pc.list_value_length(table[f"task_{task}"]).to_numpy()
                place_in_row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                trained = place_in_row < np.repeat(table["validation_end"].to_numpy(), lengths)
                label, value = (
                    pc.list_flatten(table[each]).to_numpy() for each in (f"task_{task}", f"feature_{name}")
                )
                is_pair = trained & (label >= FIRST_LABEL) & (value >= FIRST_LABEL)
                keys = np.concatenate([pairs, label[is_pair].astype(np.int64) * values + value[is_pair]])
                weights = np.concatenate([counts, np.ones(is_pair.sum(), np.int64)])
                pairs, where = np.unique(keys, return_inverse=True)
                counts = np.bincount(where, weights, len(pairs)).astype(np.int64)
            if not len(pairs):
                continue
            order = np.lexsort((pairs, -counts, pairs // values))  # by label, most frequent value first
            labels = (pairs // values)[order]
            first = order[np.append(True, labels[1:] != labels[:-1])]
            if counts[first].sum() >= DECIDED * counts.sum():
                decided[task].append(name)
                usual = torch.zeros(size, dtype=torch.int32)
                usual[torch.as_tensor(pairs[first] // values)] = torch.as_tensor(pairs[first] % values).int()
                model.label_values(place)[:, column] = usual
    return decided


@dataclass
class _Examples:
    """Training examples for the gains of followers: prefixes with one target each.

    Only some cells, pairs of an example and a label, have features: the target, the customer's labels and followers.
    They are stored as flat lists.

    Attributes:
        cells: the cells, as example * V + label, ascending.
        targets: index into `cells` of each example's target, of shape `(R,)`.
        rows: example of each count above 0.
        positions: which of the example's latest labels the count belongs to, from 0 for the last.
        places: index into `cells` of the count's follower.
        counts: the counts.
        ages: age of each latest label in days, of shape `(R, A)`.
        popularity: for each cell the (negative) change of the label's log count without the customer's own events.
        met: for each cell 1 if the prefix has the label, else 0.
        own: for each cell the number of the prefix's events with the label, where newer events weigh more.
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


OWN_DECAY = 0.9  # weight of an event of a prefix relative to one that is one moment newer


def _examples_of(
    model: MCMForMultiTaskRecommendation, place: int, batch: Mapping[str, Any], counts: torch.Tensor, draw: Any
) -> _Examples | None:
    """Training examples of a batch for a task: a few random targets of each customer."""
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
    target_ids = targets[customers, at]
    ends = batch["prefix_ends"][customers, batch["label_prefixes"][customers, at]]
    histories = Histories.of(batch["event_times"], batch["visit_ids"], customers, ends)

    rows = torch.arange(len(customers))
    table = cast(FollowerTable, memory.follower_tables[str(place)])
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
    of_label = counts[own]
    less = torch.log((of_label - times).clamp(min=0) + 1) - torch.log(of_label + 1)
    seen = (torch.arange(own.shape[1]) <= ends[:, None]) & real
    moments = histories.moments
    ago = (moments[customers, ends][:, None] - moments[customers]).clamp(min=0).float()
    zeros = torch.zeros(len(cells))
    met = zeros.scatter_reduce(0, at_own, seen[real].float(), "amax")
    met_weight = zeros.index_add(0, at_own, (OWN_DECAY**ago * seen)[real])
    return _Examples(
        cells=cells,
        targets=torch.searchsorted(cells, target_cells),
        rows=row,
        positions=position,
        places=torch.searchsorted(cells, follower_cells),
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
    """Learns the gains of followers by the likelihood of the targets of training prefixes.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a model whose tables of followers are filled, changed in place.
        batches (`Iterable`): training batches of random customers; as many are read as are needed.
        counts (`Mapping[str, torch.Tensor]`): by task the number of targets with each label, of shape `(V,)`.
        seed (`int`): seed for the choice of targets.

    Returns:
        `dict`: for each task with followers the mean loss of a target, `before` and `after` learning.
    """
    memory = cast(CountedMemory, model.counted_memory)
    places = [place for place in range(len(model.config.tasks)) if memory.has_followers(place)]
    draw = np.random.default_rng(seed)
    rows: dict[int, list[_Examples]] = {place: [] for place in places}
    number = 0
    for batch in batches:
        made = {place: _examples_of(model, place, batch, counts[model.config.tasks[place]], draw) for place in places}
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
    model: MCMForMultiTaskRecommendation, place: int, rows: Sequence[_Examples], counts: torch.Tensor
) -> dict[str, float]:
    memory = cast(CountedMemory, model.counted_memory)
    size, log_counts, rarity = len(counts), torch.log(counts + 1), memory.label_rarity(place)
    gains = {name: value.clone().requires_grad_() for name, value in memory.gains(place).items()}
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
            n = torch.zeros(len(part.cells)).index_add(0, part.places, weighted)
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
            memory.get_buffer(name)[place] = value
        return {"before": before, "after": loss().item()}


@torch.no_grad()
def validation_parts(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Computes the parts of the scores of validation cases, and collects the cases' targets.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): the model, in evaluation mode.
        batches (`Iterable`): batches of cases at the validation cutoff; as many are read as are needed.

    Returns:
        `dict`: by task its parts by name, as `score_parts` of the model returns them, and a tensor that is 1 where a
        label is a target, else 0; all of shape `(R, V)`.
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
    """Learns the scale of each part of a score, and the gains of habits and new labels, on validation cases.

    These few numbers of each task minimise the cross-entropy of the targets, where a target weighs 1 / the best DCG of
    its case. For a task without related labels, a search then changes the scales in steps while NDCG@10 grows, and one
    common factor is fitted, so that the scores stay log-probabilities.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a trained model, changed in place.
        batches (`Iterable`): batches of cases at the validation cutoff.

    Returns:
        `dict[str, dict[str, float]]`: by task the learned numbers by name.
    """
    model.eval()
    return fit_scales_of(model, validation_parts(model, batches))


def fit_scales_of(
    model: MCMForMultiTaskRecommendation, parts: Mapping[str, tuple[Mapping[str, torch.Tensor], torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Learns scales and gains as [`fit_scales`] does, from parts that have been computed.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): a trained model, changed in place.
        parts (`Mapping`): result of [`validation_parts`]; parts may be left out.

    Returns:
        `dict[str, dict[str, float]]`: by task the learned numbers by name.
    """
    result = {}
    for task, (of_task, followed) in parts.items():
        place, targets = model.config.tasks.index(task), followed[:, FIRST_LABEL:]
        known = targets.sum(1) > 0
        if not known.any():
            continue
        cases = {name: part[known] for name, part in of_task.items()}
        if "met" in cases:
            result[task] = _fit_related(model, place, cases, targets[known])
        else:
            cases = {name: part[:, FIRST_LABEL:] for name, part in cases.items()}
            result[task] = _fit_parts(model, place, cases, targets[known])
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
    model: MCMForMultiTaskRecommendation, place: int, cases: Mapping[str, torch.Tensor], followed: torch.Tensor
) -> dict[str, float]:
    """Learns a scale for each part, and the gains of habits and new labels, by maximum likelihood.

    They are learned together, because habits are correlated with bias and repeats.
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
    """Learns a scale for each part: by maximum likelihood, then by a search that raises NDCG@10."""
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
                ndcg = _ndcg(scores(moved), followed)
                if ndcg > best + LEAST_GAIN:
                    scales, best, improved = moved, ndcg, True
    scales = scales * _likeliest(lambda factor: factor * scores(scales), torch.ones(1), followed).clamp(min=0.1)
    for name, value in zip(names, scales.tolist(), strict=True):
        model.score_scales[place, PARTS.index(name)] = value
    return dict(zip(names, scales.tolist(), strict=True))


def training_labels(
    rows: Any, tasks: Sequence[str], batch_size: int = 64, seed: int = 0
) -> Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Reads label ids and visits of training events in batches of random customers, for [`fill_related`].

    Args:
        rows (`datasets.Dataset`): prepared data, as `load_prepared` returns them.
        tasks (`Sequence[str]`): tasks of the model.
        batch_size (`int`): number of customers of a batch.
        seed (`int`): seed for the order of customers.

    Returns:
        A function from the index of a task to batches of label ids `(B, L)`, visits `(B, L)` and the index of each
        customer's last event `(B,)`.
    """
    ends = np.asarray(rows["validation_end"])
    known = np.random.default_rng(seed).permutation(np.flatnonzero(ends > 0))

    def batches(place: int) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        columns = [f"task_{tasks[place]}", "visits"]
        of_task = rows.select_columns(columns).with_format("numpy")
        for start in range(0, len(known), batch_size):
            chosen = known[start : start + batch_size]
            histories = of_task[np.sort(chosen)]
            last = ends[np.sort(chosen)] - 1
            padded = [
                nn.utils.rnn.pad_sequence(
                    [
                        torch.as_tensor(values[: end + 1].astype(np.int64))
                        for values, end in zip(histories[name], last, strict=True)
                    ],
                    batch_first=True,
                )
                for name in columns
            ]
            yield padded[0], padded[1], torch.as_tensor(last)

    return batches
