# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fills the tables of the counted memory, and the labels' usual values, from the training period of a data set.

Shapes: B customers, L events.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.counted_memory_mcm import FOLLOWERS, RELATED, CountedMemory, FollowerTable, Histories, RelatedTable
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation

# Ridge penalty of the regressions for new labels and for habits, as a multiple of the mean of the diagonal.
NEW_RIDGE, HABIT_RIDGE = 6.0, 1.0
DECIDED = 0.9  # a label determines a feature if this share of events has the label's most frequent value
CUSTOMERS_AT_ONCE = 64  # whose training labels are read together
MOST_WORK = 2e12  # largest number of multiplications of a regression; it limits the number of customers


@torch.no_grad()
def fill_followers(model: MCMForMultiTaskRecommendation, followers: pa.Table, popularity: pa.Table) -> None:
    """Fills a model's tables of followers with what `count_followers` and [`popularity`] of the preparation count."""
    memory = cast(CountedMemory, model.counted_memory)
    for task_index, task in enumerate(model.config.tasks):
        if not memory.has_followers(task_index):
            continue
        table = cast(FollowerTable, memory.follower_tables[str(task_index)])
        task_followers = followers.filter(pc.equal(followers["task"], task)).sort_by(
            [("label", "ascending"), ("follower", "ascending")]
        )
        labels, ids, weights = (task_followers[name].to_numpy().copy() for name in ("label", "follower", "weight"))
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
    """Solves the regressions of habits and new labels for each task with related labels."""
    memory = cast(CountedMemory, model.counted_memory)
    for task_index, size in enumerate(model.config.label_sizes.values()):
        if not memory.has_related(task_index):
            continue
        habits, sets, customers = torch.zeros(size, size), torch.zeros(size, size), 0
        for labels, visits, ends in batches(task_index):
            histories = Histories(visits, visits.float(), torch.arange(len(labels)), ends)
            rates = memory.rates(task_index, labels, visits, histories)
            met = memory.met(task_index, labels, histories).float()
            habits.addmm_(rates.T, rates)
            sets.addmm_(met.T, met)
            customers += len(labels)
            if customers * size**2 > MOST_WORK:
                break
        kind = torch.float64 if size < 5000 else torch.float32
        for gram, ridge, table in (
            (habits, HABIT_RIDGE, memory.habit_tables[str(task_index)]),
            (sets, NEW_RIDGE, memory.new_tables[str(task_index)]),
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
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Any) -> dict[str, list[str]]:
    """Determines each label's most frequent value of `label_features` in the training period. It does so for the
    features that a task's labels determine: those where at least nine in ten events, over all labels, have their
    label's most frequent value. Other features stay out of the labels' embeddings. Returns `dict[str, list[str]]`: by
    task the features that its labels determine."""
    config = model.config
    decided: dict[str, list[str]] = {}
    for task_index, task in enumerate(config.tasks):
        size, decided[task] = config.label_sizes[task], []
        for column, name in enumerate(config.label_features):
            if name == task:
                continue
            values = config.vocabulary_sizes[config.features.index(name)]
            pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
            columns = rows.select_columns([f"task_{task}", f"feature_{name}", "validation_end"]).with_format("arrow")
            for table in columns.iter(1024):
                lengths = pc.list_value_length(table[f"task_{task}"]).to_numpy()
                index_in_row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                trained = index_in_row < np.repeat(table["validation_end"].to_numpy(), lengths)
                label, value = (pc.list_flatten(table[key]).to_numpy() for key in (f"task_{task}", f"feature_{name}"))
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
                model.label_values(task_index)[:, column] = usual
    return decided


def training_labels(
    rows: Any, tasks: Sequence[str]
) -> Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Reads label ids and visits of training events in batches of random customers, for [`fill_related`]: a function
    from a task's index to batches of label ids `(B, L)`, visits `(B, L)` and indices of the last events `(B,)`."""
    ends = np.asarray(rows["validation_end"])
    customers = np.random.default_rng(0).permutation(np.flatnonzero(ends > 0))

    def batches(task_index: int) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        columns = [f"task_{tasks[task_index]}", "visits"]
        task_rows = rows.select_columns(columns).with_format("numpy")
        for start in range(0, len(customers), CUSTOMERS_AT_ONCE):
            indices = np.sort(customers[start : start + CUSTOMERS_AT_ONCE])
            histories, last = task_rows[indices], ends[indices] - 1
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
