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
"""What the models return.

Shapes are named as in modeling_mcm.py.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput, auto_docstring


@auto_docstring(custom_intro="What [`MCMModel`] returns.")
@dataclass
class MCMModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, units, hidden_size)`):
        h of the last layer; a unit is an event or a visit (`config.encoder_unit`).
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        The customer embedding: the customer state at `now`, of `config.state_size` numbers. Without a state it is of
        `config.hidden_size` numbers: the last unit's h under a causal encoder, which has read everything before it;
        the mean of all units' h under a bidirectional one.
    forecasts (`dict[str, torch.FloatTensor]`, *optional*):
        What is to be expected of the customer from `now` on, each of shape `(batch_size,)`. See
        [`~state_mcm.Forecasts`].
    unit_mask (`torch.LongTensor` of shape `(batch_size, units)`):
        1 where a unit is real.
    event_embeddings (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        e of equation 1.
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_hidden_states=True`: what the first layer reads and what each layer gives, of shape
        `(batch_size, units, hidden_size)`.
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_attentions=True` and eager attention: of each layer, of shape `(batch_size, heads, units, units)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    forecasts: dict[str, torch.Tensor] | None = None
    unit_mask: torch.Tensor | None = None
    event_embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="What [`MCMForMultiTaskRecommendation`] returns.")
@dataclass
class MCMRecommendationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        Equation 4, summed over the tasks.
    logits (`dict[str, torch.FloatTensor]`, *optional*):
        s(w) of each task, of shape `(batch_size, labels)`, or `(batch_size, prefixes, labels)` when `prefix_ends` was
        given. Ids 0 and 1, which are no labels, are masked with a large negative value. `None` in training with
        `labels`: there the scores are taken a few customers at a time, and never held.
    task_losses (`dict[str, torch.FloatTensor]`, *optional*, returned when `labels` is given):
        Equation 4 of each task, detached.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        The customer embedding, as in [`MCMModelOutput`].
    forecasts (`dict[str, torch.FloatTensor]`, *optional*):
        As in [`MCMModelOutput`].
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_hidden_states=True`: what the first layer reads and what each layer gives, of shape
        `(batch_size, units, hidden_size)`.
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_attentions=True` and eager attention: of each layer, of shape `(batch_size, heads, units, units)`.
    """

    loss: torch.Tensor | None = None
    logits: dict[str, torch.Tensor] | None = None
    task_losses: dict[str, torch.Tensor] | None = None
    pooler_output: torch.Tensor | None = None
    forecasts: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["MCMModelOutput", "MCMRecommendationOutput"]
