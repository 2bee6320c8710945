# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is read once of a model for all live customers: its parameters in the form that live states need.

Shapes: H hidden size, V labels of a task.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation


class Reader:
    """A model's parameters in the form that live states need; they are computed once, not for every new visit. The
    model is in evaluation mode, [`is_incremental`] holds for it, and its weights must not change afterwards."""

    def __init__(self, model: MCMForMultiTaskRecommendation):
        config = model.config
        self.model, self.window = model, config.attention_window
        self.reads_last = config.readout == "last"
        self.event_tables = model.model.embeddings.events.joined()
        self.id_type = torch.int16 if max(config.vocabulary_sizes) <= 2**15 else torch.int32
        self.is_scored = model.scorer is not None and bool(model.scorer.fitted)
        self.reads_readout = model.needs_readout() and not (self.is_scored and config.live_state == "counts")
        self.encodes = self.reads_readout or model.model.state is None  # the embedding may need it
        labels = dict(zip(config.tasks, model.task_labels(), strict=True)) if self.reads_readout else {}
        vectors = [of_task.vectors.detach() for of_task in labels.values()]
        self.vectors = torch.cat([*vectors, torch.zeros(0, config.hidden_size)])
        # (V,) by task: what is added to each label's readout; ids that are no labels are masked.
        self.offsets: dict[str, torch.Tensor] = {}
        for task, of_task in labels.items():
            bias = torch.zeros(len(of_task.vectors)) if of_task.bias is None else of_task.bias.detach().clone()
            bias[:FIRST_LABEL] = torch.finfo(bias.dtype).min / 2
            self.offsets[task] = bias


# The reader of each model, with the versions of the weights that it was computed from.
_READERS: WeakKeyDictionary[torch.nn.Module, tuple[Any, Reader]] = WeakKeyDictionary()


def find_reader(model: MCMForMultiTaskRecommendation) -> Reader:
    """The reader of a model. It is computed once, and again where the weights have changed since."""
    versions = tuple((value.data_ptr(), value._version) for value in model.state_dict().values())
    entry = _READERS.get(model)
    if entry is None or entry[0] != versions:
        entry = _READERS[model] = (versions, Reader(model))
    return entry[1]


def is_incremental(model: MCMForMultiTaskRecommendation) -> bool:
    """Whether a model's hidden vectors never change when further units follow, as a [`LiveState`] requires."""
    config = model.config
    reads_all = not config.input_features or set(config.input_features) == set(config.features)
    return reads_all and config.encoder_attention == "causal"
