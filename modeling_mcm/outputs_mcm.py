# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs of the models without a head and with the task-aware readout. Shapes are named as in modeling_mcm.py."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput, auto_docstring


@auto_docstring(custom_intro="Output of [`MCMModel`].")
@dataclass
class MCMModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, units, hidden_size)`):
        Hidden vector h of each unit after the last layer. A unit is an event or a visit (`config.encoder_unit`).
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        Customer embedding: the customer state at `now`, of `config.state_size` numbers. In a model without a state it
        has `config.hidden_size` numbers: h of the last unit for a causal encoder, whose last unit has read all units,
        and the mean of h over all units for a bidirectional one.
    forecasts (`dict[str, torch.FloatTensor]`, *optional*):
        Forecasts from `now` on by name, each of shape `(batch_size,)`. See [`~state_mcm.Forecasts`].
    unit_mask (`torch.LongTensor` of shape `(batch_size, units)`):
        1 where a unit is real, 0 on padding.
    event_embeddings (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        Embedding e of each event, by equation 1.
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_hidden_states=True`: input of the first layer and output of each layer, each of shape
        `(batch_size, units, hidden_size)`.
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_attentions=True` and eager attention: attention weights of each layer, each of shape
        `(batch_size, heads, units, units)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    forecasts: dict[str, torch.Tensor] | None = None
    unit_mask: torch.Tensor | None = None
    event_embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Output of [`MCMForMultiTaskRecommendation`].")
@dataclass
class MCMRecommendationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        Loss: equation 4 plus the weighted ranking loss ([`~losses_mcm.Objective`]), summed over the tasks.
    logits (`dict[str, torch.FloatTensor]`, *optional*):
        Scores s(w) by task, of shape `(batch_size, labels)`, or `(batch_size, prefixes, labels)` with `prefix_ends`.
        Ids 0 and 1, which are no labels, are masked with a large negative value. `None` in training with `labels`:
        there the scores are computed for a few customers at a time and not kept.
    task_losses (`dict[str, torch.FloatTensor]`, *optional*, returned when `labels` is given):
        Loss by task, detached from the graph; they add up to `loss`.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        Customer embedding, as in [`MCMModelOutput`].
    forecasts (`dict[str, torch.FloatTensor]`, *optional*):
        As in [`MCMModelOutput`].
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMModelOutput`].
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: dict[str, torch.Tensor] | None = None
    task_losses: dict[str, torch.Tensor] | None = None
    pooler_output: torch.Tensor | None = None
    forecasts: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["MCMModelOutput", "MCMRecommendationOutput"]
