# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the counted memory knows and what it is worth: tables from a prepared data set, and gains for them.

Gains have losses of their own. Those of followers are learned before the encoder is trained, on training prefixes
whose counts are without the customer's own pairs. Those of related labels, and how much each part of a score counts,
are learned at the end on validation cases, which no table and no weight has seen.

Shapes: B customers, L events, R rows (prefixes with one target, or validation cases), V labels, A latest values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn

from modeling_mcm.counted_memory_mcm import (
    FIRST_LABEL,
    FOLLOWER_GAINS,
    FOLLOWERS,
    RELATED,
    CountedMemory,
    FollowerTable,
    Histories,
    RelatedTable,
)
from modeling_mcm.modeling_mcm import PARTS, MCMForMultiTaskRecommendation

LAG_UNIT = 60  # weight of a pair of neighbours in the file of followers
# Ridge of the regressions, as a multiple of the mean of the diagonal: of new labels on sets, of habits on rates.
NEW_RIDGE, HABIT_RIDGE = 6.0, 3.0
MOST_WORK = 2e12  # multiplications of a regression, which bounds the customers it is made of
FIT_ROWS, ROWS_A_CUSTOMER = 6000, 4  # prefixes that followers' gains are learned on
CASES, MOST_SCORES = 4000, 2**27  # validation cases, and scores of theirs held at once, that scales are learned on
SETTLED = 1e-3  # weight of the squared distance of scales and gains from where they start
IDEAL_PLACES = 10


@torch.no_grad()
def fill_followers(model: MCMForMultiTaskRecommendation, followers: pa.Table, popularity: pa.Table) -> None:
    """Fills the tables of followers from what preparation counted.

    Args:
        model: with a counted memory.
        followers: columns source, value, task, label and weight; see `count_followers`.
        popularity: columns feature, id and count.
    """
    memory, config = cast(CountedMemory, model.counted_memory), model.config
    for place, (task, sources) in enumerate(zip(config.tasks, model.sources, strict=True)):
        tables = cast(nn.ModuleList, memory.follower_tables[place])
        for source, table in zip(sources, cast(Iterable[FollowerTable], tables), strict=True):
            name = config.features[source]
            of_both = followers.filter(pc.and_(pc.equal(followers["task"], task), pc.equal(followers["source"], name)))
            values, labels = (of_both[column].to_numpy() for column in ("value", "label"))
            first = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0, int)
            place_in_row = np.arange(len(values)) - np.repeat(first, np.diff(np.append(first, len(values))))
            sizes = np.bincount(values, minlength=len(table.totals))
            column = FOLLOWERS - sizes[values] + place_in_row  # zeros first, so that a row ascends
            table.followers[values, column] = torch.as_tensor(labels, dtype=torch.int32)
            weights = torch.as_tensor(of_both["weight"].to_numpy() / LAG_UNIT, dtype=torch.float32)
            table.counts[values, column] = weights
            known = popularity.filter(pc.equal(popularity["feature"], name))
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
            (habits, HABIT_RIDGE, memory.habit_tables[place]),
            (sets, NEW_RIDGE, memory.new_tables[place]),
        ):
            strength = ridge * gram.diagonal()[FIRST_LABEL:].mean().clamp(min=1e-8)
            inverse = torch.linalg.inv(gram.to(kind) + strength * torch.eye(size, dtype=kind))
            if gram is habits:  # the ridge regression of x on itself: (G + l)^-1 G = 1 - l (G + l)^-1
                weights = torch.eye(size, dtype=kind) - strength * inverse
            else:  # EASE
                weights = -inverse / inverse.diagonal()
                weights.fill_diagonal_(0)
            _keep_largest(cast(RelatedTable, cast(nn.ModuleList, table)[0]), weights.float())


def _keep_largest(table: RelatedTable, weights: torch.Tensor) -> None:
    weights[:, :FIRST_LABEL] = 0
    largest = weights.abs().topk(min(RELATED, len(weights)), dim=1).indices
    table.related[:, : largest.shape[1]] = largest.int()
    table.weights[:, : largest.shape[1]] = weights.gather(1, largest)


@dataclass
class _Rows:
    """Prefixes of a batch with one target each, and the labels of which something is known, as flat cells.

    Attributes:
        cells: row and label of each pair of which something is known, as row * V + label, ascending.
        targets: the cell of each row's target, as a place in `cells`, of shape `(R,)`.
        pairs: of each source the rows, positions, places in `cells`, counts, and ages `(R, A)` of its followers.
        popularity: what the customer's own events take off the log of the label's count, a number a cell.
        met: whether the row has met the label, a number a cell.
        own: how often, newer meetings weighing more, a number a cell.
    """

    cells: torch.Tensor
    targets: torch.Tensor
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
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
    found = []
    tables = cast(nn.ModuleList, memory.follower_tables[place])
    for source, table in zip(model.sources[place], cast(Iterable[FollowerTable], tables), strict=True):
        known = table.look_up(ids[..., source], labels, histories, without_own=True)
        where = known.counts.nonzero(as_tuple=True)
        cells = where[0] * size + known.labels[where]
        found.append((where[0], where[1], cells, known.counts[where], known.ages))
    own = labels[customers].clamp(min=0)  # (R, L)
    times = (own[..., None] == own[:, None]).sum(-1).float()  # how often the customer has the label
    real = own >= FIRST_LABEL
    own_cells = (rows[:, None] * size + own)[real]
    target_cells = rows * size + wanted
    cells = torch.cat([target_cells, own_cells, *(each[2] for each in found)]).unique()
    at_own = torch.searchsorted(cells, own_cells)
    of_label = counts[own]
    less = torch.log((of_label - times).clamp(min=0) + 1) - torch.log(of_label + 1)
    seen = (torch.arange(own.shape[1]) <= ends[:, None]) & real
    moments = histories.moments
    ago = (moments[customers, ends][:, None] - moments[customers]).clamp(min=0).float()
    zeros = torch.zeros(len(cells))
    met = zeros.scatter_reduce(0, at_own, seen[real].float(), "amax")
    met_weight = zeros.index_add(0, at_own, (OWN_DECAY**ago * seen)[real])
    pairs = [(row, j, torch.searchsorted(cells, cell), n, ages) for row, j, cell, n, ages in found]
    return _Rows(
        cells, torch.searchsorted(cells, target_cells), pairs, zeros.scatter(0, at_own, less[real]), met, met_weight
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
        For each task with followers the loss a target before and after, beside that of popularity and repeats alone.
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
    size, log_counts = len(counts), torch.log(counts + 1)
    gains = {name: memory.get_buffer(name).clone().requires_grad_() for name in FOLLOWER_GAINS}
    slope, met_gain, own_gain = (torch.tensor(value, requires_grad=True) for value in (0.6, 0.0, 0.5))
    rarity = memory.label_rarity(place)

    def added(source: int, counted: torch.Tensor, of_label: torch.Tensor) -> torch.Tensor:
        stored = {name: memory.get_buffer(name) for name in FOLLOWER_GAINS}
        for name, value in gains.items():
            setattr(memory, name, value)
        try:
            return memory.added_by(place, source, counted, of_label)
        finally:
            for name, value in stored.items():
                setattr(memory, name, value)

    def weights(source: int, ages: torch.Tensor) -> torch.Tensor:
        decay = torch.sigmoid(gains["position_decay"][place, source]) ** torch.arange(ages.shape[1])
        return decay * torch.exp(-gains["log_rate"][place, source].exp() * ages)

    def loss(with_followers: bool = True) -> torch.Tensor:
        total, number = torch.zeros(()), 0
        everywhere = torch.logsumexp(slope * log_counts[FIRST_LABEL:], 0)
        for part in rows:
            label = part.cells % size
            prior = slope * log_counts[label]
            scores = prior + slope * part.popularity + met_gain * part.met + own_gain * torch.log1p(part.own)
            if with_followers:
                for source, (row, position, at, counted, ages) in enumerate(part.pairs):
                    weighted = counted * weights(source, ages)[row, position]
                    n = torch.zeros(len(part.cells)).index_add(0, at, weighted).clamp(min=0)
                    scores = scores + added(source, n, rarity[label])
            # The sum over all labels is that of popularity alone, but for the cells of which more is known.
            change = torch.where(label >= FIRST_LABEL, (scores - everywhere).exp() - (prior - everywhere).exp(), 0.0)
            partition = 1 + torch.zeros(len(part.targets)).index_add(0, part.cells // size, change)
            log_partition = everywhere + partition.clamp(min=1e-6).log()
            total = total + (log_partition - scores[part.targets]).sum()
            number += len(part.targets)
        return total / number

    learned = [*gains.values(), slope, met_gain, own_gain]
    with torch.no_grad():
        before = loss().item()
    optimizer = torch.optim.LBFGS(learned, max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        after = loss().item()
        optimum = {"before": before, "after": after}
        for name, value in gains.items():
            memory.get_buffer(name)[place] = value[place]
        memory.met_gain[place] = met_gain
    return optimum


@torch.no_grad()
def _validation_parts(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> tuple[list[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """Of each task the parts of validation cases' scores, and which labels followed, both of shape `(R, V)`."""
    sizes = list(model.config.label_sizes.values())
    parts: list[list[dict[str, torch.Tensor]]] = [[] for _ in sizes]
    followed: list[list[torch.Tensor]] = [[] for _ in sizes]
    most, cases = min(CASES, MOST_SCORES // (len(PARTS) * max(sizes))), 0
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for place, of_task in enumerate(model.score_parts(**inputs).values()):
            parts[place].append({name: part.cpu() for name, part in of_task.items()})
            labels = batch["labels"][..., place].clamp(min=0)
            followed[place].append(torch.zeros(len(labels), sizes[place]).scatter(1, labels, 1.0))
        cases += len(batch["labels"])
        if cases >= most:
            break
    joined = [{name: torch.cat([each[name] for each in of_task]) for name in of_task[0]} for of_task in parts]
    return joined, [torch.cat(of_task) for of_task in followed]


def fit_scales(
    model: MCMForMultiTaskRecommendation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Learns how much each part of a score counts, and what habits and new labels are worth, on validation cases.

    A few numbers a task, by the cross-entropy of the labels that followed. A case weighs as much as its labels do in
    NDCG: each 1 over the best DCG of so many.

    Args:
        model: trained.
        batches: of evaluation cases at the validation cutoff.

    Returns:
        For each task the numbers by name.
    """
    model.eval()
    parts, followed = _validation_parts(model, batches)
    result = {}
    for place, task in enumerate(model.config.tasks):
        followed[place][:, :FIRST_LABEL] = 0
        if followed[place].sum() and task in model.trained_tasks:
            result[task] = _fit_scales_of_task(model, place, parts[place], followed[place])
    return result


def _fit_scales_of_task(
    model: MCMForMultiTaskRecommendation, place: int, parts: Mapping[str, torch.Tensor], followed: torch.Tensor
) -> dict[str, float]:
    own = [name for name in PARTS if name in parts]
    related = "met" in parts
    if related:  # one scale for all: habits say again what the others do
        names = ["all", "habit_gain", "new_gain", "new_offset"]
        terms = [sum(parts[name] for name in own)]
        met, habits, new = (parts[name][:, FIRST_LABEL:] for name in ("met", "habits", "new"))
        start = torch.tensor([1.0, 0.0, 1.0, -8.0])
    else:
        names, terms, start = own, [parts[name] for name in own], torch.ones(len(own))
    terms = [cast(torch.Tensor, term)[:, FIRST_LABEL:] for term in terms]
    followed = followed[:, FIRST_LABEL:]
    known = followed.sum(1) > 0
    discounts = 1 / torch.log2(torch.arange(IDEAL_PLACES) + 2.0)
    ideal = discounts.cumsum(0)[(followed.sum(1).long() - 1).clamp(0, IDEAL_PLACES - 1)]
    weights = followed / ideal[:, None] / known.sum()
    learned = start.clone().requires_grad_()

    def loss() -> torch.Tensor:
        if related:
            scores = learned[0] * terms[0]
            scores = torch.where(met, scores + learned[1] * habits, learned[2] * new + learned[3])
        else:
            scores = cast(torch.Tensor, sum(scale * term for scale, term in zip(learned, terms, strict=True)))
        distance = ((learned - start)[: len(names) - 1 if related else None] ** 2).sum()
        return -(weights * F.log_softmax(scores, -1)).sum() + SETTLED * distance

    optimizer = torch.optim.LBFGS([learned], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    values = dict(zip(names, learned.tolist(), strict=True))
    with torch.no_grad():
        if related:
            memory = cast(CountedMemory, model.counted_memory)
            model.score_scales[place] = values["all"]
            for name in names[1:]:
                memory.get_buffer(name)[place] = values[name]
        else:
            for name in own:
                model.score_scales[place, PARTS.index(name)] = values[name]
    return values


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
                    [torch.as_tensor(values[: end + 1].astype(np.int64)) for values, end in zip(found[name], last, strict=True)],
                    batch_first=True,
                )
                for name in columns
            ]
            yield padded[0], padded[1], torch.as_tensor(last)

    return batches


def read_counts(directory: str | Path, followers_file: str, popularity_file: str) -> tuple[pa.Table, pa.Table]:
    """The tables of followers and of popularity that preparation wrote."""
    return pq.read_table(Path(directory) / followers_file), pq.read_table(Path(directory) / popularity_file)
