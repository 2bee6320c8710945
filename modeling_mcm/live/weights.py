# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is read once of a model for all live customers: its parameters in the form that live states need.

Shapes: H hidden size, V labels of a task, K half-lives of the repeat memory.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.state_mcm import TASTE_HALF_LIFE


class TaskTables(NamedTuple):
    """Parameters of one task's labels (V labels of this task)."""

    task: int  # index of the task
    labels: slice  # the task's labels among the labels of all tasks
    bias: torch.Tensor  # (V,): bias of each label
    gains: torch.Tensor  # (V, K): label gains c of the repeat memory
    rarity: torch.Tensor  # (V, 1): rarities r of the repeat memory


class Reader:
    """A model's parameters in the form that live states need; they are computed once, not for every new visit. The
    model is in evaluation mode, [`is_incremental`] holds for it, and its weights must not change afterwards."""

    def __init__(self, model: MCMForMultiTaskRecommendation):
        config = model.config
        self.model, self.tasks, self.window = model, list(config.tasks), config.attention_window
        self.unit, self.reads_last = config.encoder_unit, config.readout == "last"
        self.heads, self.layers = config.num_attention_heads, list(model.model.encoder.layer)
        self.hidden_size = config.hidden_size
        self.projections = [_projections(layer) for layer in self.layers]
        self.event_tables = model.model.embeddings.events.joined()
        memory, counts = model.repeat_memory, model.counted_memory
        self.tables: list[TaskTables] = []
        vectors, start = [], 0
        for task, scored in enumerate(model._all_labels()):
            size = len(scored.vectors)
            gains, rarity = scored.memory or (scored.vectors.new_zeros(size, 0), scored.vectors.new_zeros(size, 1))
            bias = model._label_offsets(scored, torch.float32)
            labels = slice(start, start + size)
            self.tables.append(TaskTables(task, labels, bias.detach(), gains.detach(), rarity.detach()))
            scale = 1.0 if model.readout_scale is None else model.readout_scale[task].detach()
            vectors.append(scored.vectors.detach() * scale)
            start += size
        self.vectors, self.labels = torch.cat(vectors), start
        self.features = torch.tensor(model.task_features)
        self.starts = torch.tensor([table.labels.start for table in self.tables])
        self.task_of = torch.repeat_interleave(torch.tensor([len(table) for table in vectors]))
        self.is_related = torch.tensor([counts is not None and counts.has_related(k) for k in range(len(vectors))])
        self.relates_some, self.relates_all = bool(self.is_related.any()), bool(self.is_related.all())
        self.rates = torch.zeros(0) if memory is None else torch.exp(-memory.log_half_life.detach()).double()
        self.by_day = torch.arange(len(self.rates)) < (0 if memory is None else memory.num_days)
        state = model.model.state
        self.has_state = state is not None
        half_lives = [] if state is None else [*state.half_lives, math.inf]
        self.half_lives = torch.tensor(half_lives, dtype=torch.float64)
        self.few: list[int] = [] if state is None else state.few
        self.many: list[int] = [] if state is None else state.many
        self.channels = 0 if state is None else 2 + state.num_sums
        # Indices of the half-lives of features with many values: the one nearest to a month, and the infinite one.
        nearest = sorted(range(len(half_lives)), key=lambda k: abs(half_lives[k] - TASTE_HALF_LIFE))[:1]
        self.slow = [*nearest, len(half_lives) - 1] if half_lives else []
        self.few_rows, self.many_rows = self._rows(self.few), self._rows(self.many)
        # P z of features with many values: a row of P for each count, and P z of a customer without any such value.
        self.taste: torch.Tensor | None = None
        if state is not None and state.taste is not None:
            weight = state.taste.weight.detach()
            nothing = state.standardised(weight.new_zeros(state.num_many), slice(state.num_few, None))
            self.taste = weight.T.contiguous()
            self.no_taste = (weight.double() @ nothing.double()).float()

    def _rows(self, features: Sequence[int]) -> torch.Tensor:
        """Index of the first count of each feature, and the index behind the last: of shape `(features + 1,)`."""
        sizes = self.model.config.vocabulary_sizes
        return torch.tensor([0, *(sizes[feature] for feature in features)]).cumsum(0)


# The reader of each model, with the versions of the weights that it was computed from.
_READERS: WeakKeyDictionary[torch.nn.Module, tuple[Any, Reader]] = WeakKeyDictionary()


def reader_of(model: MCMForMultiTaskRecommendation) -> Reader:
    """The reader of a model. It is computed once, and again where the weights have changed since."""
    versions = tuple((value.data_ptr(), value._version) for value in model.state_dict().values())
    entry = _READERS.get(model)
    if entry is None or entry[0] != versions:
        entry = _READERS[model] = (versions, Reader(model))
    return entry[1]


def _projections(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a layer's queries, keys and values, as one product, of shape `(3 H, H)` and `(3 H,)`."""
    heads = layer.attention.self
    three = (heads.query, heads.key, heads.value)
    return torch.cat([each.weight.detach() for each in three]), torch.cat([each.bias.detach() for each in three])


def is_incremental(model: MCMForMultiTaskRecommendation) -> bool:
    """Whether a model's hidden vectors never change when further units follow, as a [`LiveState`] requires."""
    config = model.config
    reads_all = not config.input_features or set(config.input_features) == set(config.features)
    is_causal = config.encoder_attention == "causal" and config.augmentation != "masked_lm"
    return is_causal and reads_all and not config.scorer
