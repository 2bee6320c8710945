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
"""MCM: heterogeneous embedding -> BERT encoder -> task-aware readout. Read from top to bottom it is the forward pass.

Shapes: B customers, L events, J features, U encoder units (events or visits), H hidden, P prefixes, N labels a
customer, T tasks, V labels of a task. Equation numbers are those of Luo & Wang, RecSys 2023.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertSelfAttention
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mcm import MCMConfig
from .counted_memory_mcm import CountedMemory, Histories
from .embeddings_mcm import HeterogeneousEmbedding, MCMEmbeddings, ValueEmbedding, check_inputs, digest_bytes, grow
from .files_mcm import check_loaded
from .losses_mcm import (
    FIRST_LABEL,
    LossInParts,
    Targets,
    customers_in_parts,
    prefix_cross_entropy,
    prefix_ranking_loss,
    task_losses,
)
from .readout_mcm import READOUTS, PackedUnits, attention_weights
from .repeat_memory_mcm import RepeatMemory
from .sampling_mcm import TaskLabels, joined_log_counts, places_of
from .state_mcm import CustomerState, Forecasts


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
        Equation 4, summed over the trained tasks.
    logits (`dict[str, torch.FloatTensor]`, *optional*):
        s(w) of each task, of shape `(batch_size, labels)`, or `(batch_size, prefixes, labels)` when `prefix_ends` was
        given. The two ids that are no labels hold a number that is always the smallest. `None` in training with
        `labels`: there the scores are taken a few customers at a time, and never held.
    task_losses (`dict[str, torch.FloatTensor]`, *optional*, returned when `labels` is given):
        Equation 4 of each trained task, detached.
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


@auto_docstring(custom_intro="Weight initialisation and what the library may assume of an MCM model.")
class MCMPreTrainedModel(PreTrainedModel):
    config: MCMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BertLayer, "attentions": BertSelfAttention}
    _keys_to_ignore_on_load_missing = [r"values_digest$"]  # of checkpoints before it was kept

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, and whole: weights that the model has no place for are an error where
        `output_loading_info` does not ask for them, and so are vocabularies that the weights were not trained with."""
        model, loading = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        unexpected = () if output_loading_info else loading["unexpected_keys"]
        check_loaded(model, pretrained_model_name_or_path, unexpected, kwargs.get("subfolder") or "")
        return (model, loading) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module):
        if not isinstance(module, HeterogeneousEmbedding):  # an embedding without a weight of its own
            super()._init_weights(module)
        if isinstance(module, ValueEmbedding):
            std = self.config.embedding_initializer_range or self.config.hidden_size**-0.5
            if not getattr(module.weight, "_is_hf_initialized", False):  # a slice of the weight does not know
                init.normal_(module.weight, std=std)
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, MCMEmbeddings):
            init.copy_(module.values_digest, digest_bytes(self.config.values_digest))
        elif isinstance(module, RepeatMemory):
            module.reset_parameters()
        elif isinstance(module, CountedMemory | CustomerState | Forecasts):
            module.reset_parameters()
        elif isinstance(module, nn.ParameterList):
            for bias in module:
                init.zeros_(bias)
        elif isinstance(module, MCMForMultiTaskRecommendation):
            init.ones_(module.score_scales)
            for place in range(len(module.task_features) if module.config.label_features else 0):
                init.zeros_(module.label_values(place))
            if module.readout_scale is not None:
                init.ones_(module.readout_scale)

    def get_input_embeddings(self) -> nn.Module:
        return cast(MCMModel, self.base_model).embeddings.events

    def set_input_embeddings(self, value: nn.Module):
        cast(MCMModel, self.base_model).embeddings.events = cast(HeterogeneousEmbedding, value)

    @torch.no_grad()
    def resize_feature_vocabulary(self, feature: str, values: Sequence[str], feature_extractor: Any) -> None:
        """Gives one feature new values, after those that it has: new brands, without a new training.

        Every weight stays as it was bit for bit, and so does every label's score. A new value's vector is that of the
        unknown value, which is what it was read as until now, so visits with it are read as they were (events of one
        time are ordered by their ids, which encoder units of single events may notice). As a label it starts as the
        rarest does: its bias is the smallest of the labels, its rarity the largest, its gains are 0; a label
        embedding of its own is the mean of the labels'. It follows no label and goes with none; where related labels
        have been learned, the scores of labels met all move by one small number, for new labels get a share of the
        probability. Fine-tuning tells the new values apart; make the optimizer
        after this call. Model, config and feature extractor change together: save both.

        Args:
            feature: a categorical feature.
            values: what its column may say from now on.
            feature_extractor: the [`MCMFeatureExtractor`] of this checkpoint.

        Raises:
            ValueError: if the feature extractor is of another checkpoint, the feature is unknown or not categorical,
                a value is there already or no text, or the model reads the number of the feature's values. Nothing has
                changed then.
        """
        sizes = dict(zip(self.config.features, self.config.vocabulary_sizes, strict=True))
        found = dict(zip(feature_extractor.feature_names, feature_extractor.vocabulary_sizes, strict=True))
        if found != sizes:
            raise ValueError(
                f"The feature extractor's vocabularies have sizes {found}, the model's {sizes}: take the feature "
                "extractor that was saved with this checkpoint."
            )
        self._check_resizable(feature)
        feature_extractor.add_values(feature, values)
        sizes[feature] += len(values)
        tables = cast(MCMModel, self.base_model).embeddings.events.feature_tables
        place = self.config.features.index(feature)
        grow(tables[place], len(values), FIRST_LABEL - 1)  # like the unknown value
        state = cast(MCMModel, self.base_model).state
        if state is not None:
            self.config.state_features, self.config.taste_features = self.config.counted_features  # by sizes before
            state.grow(place, len(values))
        self._resize_labels(feature, len(values))
        self.config.vocabulary_sizes = list(sizes.values())
        if self.config.values_digest is not None:  # CODEPATH: known since 0.2, None in checkpoints before
            self.config.values_digest = feature_extractor.values_digest
            embeddings = cast(MCMModel, self.base_model).embeddings
            embeddings.values_digest.copy_(digest_bytes(self.config.values_digest))

    def _check_resizable(self, feature: str) -> None:
        """Raises if the model can't take new values of a feature."""

    def _resize_labels(self, feature: str, number: int) -> None:
        """Gives the task that predicts a feature, if there is one, as many new labels."""


def latest_units(window: int | None, units: int) -> Callable[..., torch.Tensor] | None:
    """Which units a unit attends to, beside the causal mask: the latest `window`, and the first, which is the start
    row. `None` where that is all of them."""
    if window is None or (not torch.compiler.is_exporting() and units <= window + 1):
        return None  # an export has any number of units
    return lambda batch, head, query, key: (query - key < window) | (key == 0)


def check_window(mask: Any, implementation: str | None) -> None:
    """Raises where a mask can't have the attention window in it.

    Args:
        mask: what `create_causal_mask` gives for an attention implementation: a row for each query, or which units
            are padding where its kernel reads the lengths of sequences alone.
        implementation (`str`, *optional*): the config's attention implementation.

    Raises:
        ValueError: naming it.
    """
    if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() < 4):
        raise ValueError(
            f"`attn_implementation` is {implementation!r}, whose kernel reads no mask, and `attention_window` needs "
            "one: a unit reads the start row beside its window. Load the model with attn_implementation='sdpa', "
            "'eager' or 'flex_attention'."
        )


@auto_docstring(custom_intro="The customer model without a head: hidden states and a customer embedding.")
class MCMModel(MCMPreTrainedModel):
    # The head's own parameters, in a checkpoint that was saved with it.
    _keys_to_ignore_on_load_unexpected = [
        r"^readout_",
        r"^score_scales$",
        r"^repeat_memory\.",
        r"^counted_memory\.",
        r"^label_values_",
        r"^label_tables\.",
        r"^prediction_head\.",
    ]

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.embeddings = MCMEmbeddings(config)
        self.encoder = BertEncoder(config)
        for layer in self.encoder.layer:  # a batch without padding has no mask: the kernels then ask the layer
            layer.attention.self.is_causal = config.encoder_attention == "causal"
        # CODEPATH: chosen in pre-training (recipe.py), none in the paper's model, ablations/mcm-final.
        self.state = CustomerState(config) if config.state_size else None
        # CODEPATH: as the line above, and none for data that are too short for any horizon.
        self.forecasts = Forecasts(config) if config.state_size and config.forecast_days else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring(custom_intro="From interactions to hidden states and a customer embedding.\n")
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.LongTensor | None = None,
        event_times: torch.FloatTensor | None = None,
        event_values: torch.FloatTensor | None = None,
        now: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMModelOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            Ids of the interactions, oldest first, padded on the right with 0.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an interaction is real. Default: where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Which visit an interaction belongs to, counted from 0 a customer. Read when a unit is a visit.
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Days since the customer's first event, none less than the one before. Read by the customer state.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            Values of `config.summed_features`, 0 where one is missing. Read by the customer state.
        now (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            The moment of the question, in days on the clock of `event_times`. The customer state and the forecasts are
            those of this moment and know no later event; the encoder reads all events. Default: the time of the last
            event.

        Returns:
            [`MCMModelOutput`].
        """
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        if not self.training:
            sizes = dict(zip(self.config.features, self.config.vocabulary_sizes, strict=True))
            check_inputs(attention_mask, visit_ids, input_ids=input_ids, sizes=sizes)
        hidden, unit_mask, events = self.embeddings(input_ids, attention_mask, visit_ids)
        # CODEPATH: causal in mcm-base and mcm-tiny, bidirectional in the paper's model, ablations/mcm-final.
        if self.config.encoder_attention == "causal":
            window = latest_units(self.config.attention_window, hidden.shape[1])
            mask = create_causal_mask(self.config, hidden, unit_mask.long(), cache=None, and_mask_function=window)
            if window is not None:
                check_window(mask, self.config._attn_implementation)
        else:
            mask = create_bidirectional_mask(self.config, hidden, unit_mask.long())
        hidden = self.encoder(hidden, attention_mask=mask, **kwargs).last_hidden_state
        state, forecasts = self._pool(hidden, unit_mask), None
        # CODEPATH: chosen in pre-training (recipe.py), none in the paper's model, ablations/mcm-final.
        if self.state is not None:
            moment = (event_times, event_values, now)
            state = self.state(self.state_counts(input_ids, attention_mask, visit_ids, *moment))
            forecasts = None if self.forecasts is None else self.forecasts(state)
        return MCMModelOutput(
            last_hidden_state=hidden,
            pooler_output=state,
            forecasts=forecasts,
            unit_mask=unit_mask.long(),
            event_embeddings=events,
        )

    def state_counts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.Tensor | None = None,
        event_times: torch.Tensor | None = None,
        event_values: torch.Tensor | None = None,
        now: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the customer state at `now` is made of, of shape `(B, numbers)`; no training changes it, and the
        encoder is not needed for it.

        Args:
            input_ids: as in `forward`.
            attention_mask: as in `forward`.
            visit_ids: as in `forward`.
            event_times: as in `forward`.
            event_values: as in `forward`.
            now: as in `forward`.

        Raises:
            ValueError: if the model has no state, or `event_times` are missing.
        """
        if self.state is None:
            raise ValueError("This checkpoint has no customer state (state_size is 0): pre-train one with a state.")
        if event_times is None:
            raise ValueError("The customer state needs `event_times`: MCMFeatureExtractor gives them.")
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        now = event_times.amax(1) if now is None else now
        return self.state.counts(input_ids, attention_mask, visit_ids, event_times, event_values, now[:, None])[:, 0]

    def _pool(self, hidden, unit_mask):
        # CODEPATH: causal in mcm-base and mcm-tiny, bidirectional in the paper's model, ablations/mcm-final.
        if self.config.encoder_attention == "causal":
            last = (unit_mask.sum(1) - 1).clamp(min=0)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        weight = unit_mask.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


# What a score is a sum of, in the order of `score_scales`.
PARTS = ("readout", "bias", "repeats", "followers")
# Scores that a training step holds at a time, about: on a GPU, and on a CPU, which is no faster with more.
PART_ELEMENTS = (2**26, 2**22)


@auto_docstring(custom_intro="MCM with the task-aware readout: for every task, a score for every label.")
class MCMForMultiTaskRecommendation(MCMPreTrainedModel):
    score_scales: torch.Tensor
    accepts_loss_kwargs = False  # the loss is a mean over customers, so micro-batches of equal size average exactly

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.model = MCMModel(config)
        sizes = config.label_sizes
        self.task_features = [config.features.index(task) for task in config.tasks]
        self.trained_tasks = [task for task in config.tasks if task in (config.trained_tasks or config.tasks)]
        # CODEPATH: tied in every shipped configuration, as in the paper.
        tables = [] if config.tie_label_embeddings else [ValueEmbedding(n, config.hidden_size) for n in sizes.values()]
        self.label_tables = nn.ModuleList(tables)
        # CODEPATH: scale and bias in mcm-base and mcm-tiny, neither in the paper's model, ablations/mcm-final.
        self.readout_scale = nn.Parameter(torch.ones(len(sizes))) if config.readout_scale else None
        # CODEPATH: as the line above.
        biases = [nn.Parameter(torch.zeros(n)) for n in sizes.values()] if config.readout_bias else []
        self.readout_bias = nn.ParameterList(biases)
        half_lives = (config.repeat_half_lives_days, config.repeat_half_lives_units)
        memory = (list(sizes.values()), config.hidden_size, *half_lives, config.repeat_network_size)
        self.repeat_memory = RepeatMemory(*memory) if any(half_lives) else None
        # How much each of `PARTS` counts; learned on validation cases when all else has been.
        self.score_scales = nn.Buffer(torch.ones(len(sizes), len(PARTS)))
        # The usual value of each of `label_features` for each label, 0 where there is none; `counting` fills them.
        # CODEPATH: chosen by the data in pre-training (recipe.py), none in the paper's model, ablations/mcm-final.
        if config.label_features:
            for place, size in enumerate(sizes.values()):
                values = torch.zeros(size, len(config.label_features), dtype=torch.int32)
                setattr(self, f"label_values_{place}", nn.Buffer(values))
        # CODEPATH: chosen by the data in pre-training (recipe.py), none in the paper's model, ablations/mcm-final.
        counted = [
            [task in chosen for task in config.tasks] for chosen in (config.follower_tasks, config.related_tasks)
        ]
        has_counts = config.follower_tasks or config.related_tasks
        self.counted_memory = CountedMemory(list(sizes.values()), *counted) if has_counts else None
        self.post_init()

    def post_init(self):
        super().post_init()
        self._keys_to_ignore_on_load_unexpected = set()  # what the model inside has no place for, this class has

    def label_embeddings(self, task: str) -> torch.Tensor:
        """e_w of the task's labels, of shape `(V, H)`; row = id. With `label_features` it is equation 1: the average
        over the label and its usual values."""
        place = self.config.tasks.index(task)
        if len(self.label_tables):
            table = self.label_tables[place]
        else:
            table = self.model.embeddings.events.feature_tables[self.task_features[place]]
        vectors = cast(ValueEmbedding, table).weight
        # CODEPATH: chosen by the data in pre-training (recipe.py), none in the paper's model, ablations/mcm-final.
        if not self.config.label_features:
            return vectors
        values = self.label_values(place).long()
        for name, ids in zip(self.config.label_features, values.unbind(1), strict=True):
            feature = self.model.embeddings.events.feature_tables[self.config.features.index(name)]
            vectors = vectors + cast(ValueEmbedding, feature)(ids)
        return vectors / (1 + (values > 0).sum(1, keepdim=True))

    def label_values(self, task: int) -> torch.Tensor:
        """The usual values of a task's labels, by its place, of shape `(V, features)`; 0 where there is none."""
        return self.get_buffer(f"label_values_{task}")

    @torch.no_grad()
    def initialize_from_popularity(self, counts: Mapping[str, torch.Tensor]):
        """Starts the label biases and the repeat memory's rarities, where the model has them, at what is known
        beforehand: a label's bias is the log of its share, (count + 1) / sum, its rarity -log(V share).

        Args:
            counts: for each task, how often each label occurs in the training period, of shape `(V,)`.
        """
        for place, (task, size) in enumerate(self.config.label_sizes.items()):
            shares = counts[task].float() + 1
            log_shares = torch.log(shares / shares[FIRST_LABEL:].sum())
            if len(self.readout_bias):
                self.readout_bias[place].copy_(log_shares)
            rarity = -(log_shares + math.log(size - FIRST_LABEL))
            if self.repeat_memory is not None:
                cast(nn.Embedding, self.repeat_memory.label_rarity[place]).weight.copy_(rarity[:, None])
            if self.counted_memory is not None:
                self.counted_memory.label_rarity(place).copy_(rarity)

    def _resize_labels(self, feature: str, number: int) -> None:
        if feature not in self.config.tasks:  # CODEPATH: the token type where it is no task, as in the paper
            return
        place = self.config.tasks.index(feature)
        if len(self.label_tables):
            grow(self.label_tables[place], number, slice(FIRST_LABEL, None))
        if len(self.readout_bias):
            bias = self.readout_bias[place]
            self.readout_bias[place] = nn.Parameter(torch.cat([bias, bias[FIRST_LABEL:].min().expand(number)]))
        if self.repeat_memory is not None:
            rarity = cast(nn.Embedding, self.repeat_memory.label_rarity[place])
            grow(rarity, number, FIRST_LABEL + int(rarity.weight[FIRST_LABEL:].argmax()))
            grow(self.repeat_memory.label_gains[place], number, slice(0, 0))
        if self.counted_memory is not None:
            self.counted_memory.grow(place, number)
        if self.config.label_features:  # CODEPATH: chosen by the data in pre-training, none in the paper's model
            values = self.label_values(place)
            values = torch.cat([values, values.new_zeros(number, values.shape[1])])
            setattr(self, f"label_values_{place}", nn.Buffer(values))

    @can_return_tuple
    @auto_docstring(custom_intro="From interactions to scores, and to the loss when `labels` are given.\n")
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.LongTensor | None = None,
        event_times: torch.FloatTensor | None = None,
        prefix_ends: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        label_prefixes: torch.LongTensor | None = None,
        label_weights: torch.FloatTensor | None = None,
        event_values: torch.FloatTensor | None = None,
        now: torch.FloatTensor | None = None,
        encoder_outputs: MCMModelOutput | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMRecommendationOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            As in [`MCMModel.forward`].
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Days since the customer's first event, none less than the one before. Read by the repeat memory.
        prefix_ends (`torch.LongTensor` of shape `(batch_size, prefixes)`, *optional*):
            Index of the last event of each prefix that is asked for; needs a causal encoder, or a masked event to read
            from. Default: the whole sequence is the one prefix.
        labels (`torch.LongTensor` of shape `(batch_size, num_labels, num_tasks)`, *optional*):
            What followed the prefixes; ids under 2, -100 among them, are no targets.
        label_prefixes (`torch.LongTensor` of shape `(batch_size, num_labels)`, *optional*):
            Which prefix (an index into `prefix_ends`) each label followed. Default: the first.
        label_weights (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
            How much each label counts in its customer's mean loss. Default: all the same.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            As in [`MCMModel.forward`].
        now (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            As in [`MCMModel.forward`]; the repeat memory, too, has faded until then. In training and in evaluation at
            a cutoff there is no `now`: every visit is asked about at the one before.
        encoder_outputs (`MCMModelOutput`, *optional*):
            What [`MCMModel`] gave for these inputs, where it is known already.

        Returns:
            [`MCMRecommendationOutput`].
        """
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        if event_times is not None and not self.training:
            check_inputs(attention_mask, event_times=event_times)
        outputs: Any = encoder_outputs
        if outputs is None:
            moment = {"event_times": event_times, "event_values": event_values, "now": now}
            outputs = self.model(input_ids, attention_mask=attention_mask, visit_ids=visit_ids, **moment, **kwargs)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "unit_mask": outputs.unit_mask.bool()}
        batch |= {"visit_ids": visit_ids, "event_times": event_times, "prefix_ends": prefix_ends, "now": now}
        batch |= {"labels": labels, "label_prefixes": label_prefixes, "label_weights": label_weights}
        vectors = (outputs.last_hidden_state, outputs.event_embeddings)
        if self.training and labels is not None and torch.is_grad_enabled():
            logits, (total, losses) = None, self._losses_in_parts(*vectors, batch)
        else:
            logits, losses = self._answers(*vectors, batch, self._all_labels())
            total = losses.sum()
        return MCMRecommendationOutput(
            loss=total if len(losses) else None,
            logits=logits,
            task_losses=dict(zip(self.trained_tasks, losses.detach(), strict=True)) if len(losses) else None,
            pooler_output=outputs.pooler_output,
            forecasts=outputs.forecasts,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _answers(
        self, hidden: torch.Tensor, events: torch.Tensor, batch: Mapping[str, Any], scored: Sequence[TaskLabels]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Logits of all tasks, and the losses of the trained ones, of shape `(T,)` or `(0,)` without labels."""
        labels, logits, losses = batch["labels"], {}, {}
        parts = self._score_parts(hidden, events, batch, scored)
        for place, (task, rows) in enumerate(zip(self.config.tasks, scored, strict=True)):
            scores = self.joined_scores(place, parts[place])
            if labels is not None and task in self.trained_tasks:
                followed = rows.places(labels[..., place])
                asked_for = (scores, followed, batch["label_prefixes"], batch["label_weights"], rows.log_counts)
                losses[task] = prefix_cross_entropy(*asked_for)
                # CODEPATH: on in mcm-base and mcm-tiny, off in the paper's model, ablations/mcm-final.
                if self.config.ranking_loss_weight:
                    losses[task] = losses[task] + self.config.ranking_loss_weight * prefix_ranking_loss(*asked_for)
            logits[task] = scores[:, 0] if batch["prefix_ends"] is None else scores
        return logits, torch.stack(list(losses.values())) if losses else hidden.new_zeros(0)

    def _score_parts(
        self,
        hidden: torch.Tensor,
        events: torch.Tensor,
        batch: Mapping[str, Any],
        scored: Sequence[TaskLabels],
        tasks: Sequence[int] | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Of each task what its scores are made of: those of `PARTS` that the model has, of shape `(B, P, V)` or, for
        the bias, `(V,)`; of a task with related labels also `met` (boolean), `habits` and `new`. `tasks` are the
        places of the tasks of `scored`, all by default."""
        tasks = range(len(scored)) if tasks is None else tasks
        unit_mask, prefix_ends = batch["unit_mask"], batch["prefix_ends"]
        event_ends = batch["attention_mask"].sum(1, keepdim=True) - 1 if prefix_ends is None else prefix_ends
        unit_ends = self._event_units(batch).gather(1, event_ends)
        asked = None if prefix_ends is None else unit_ends
        parts = []
        for place, rows in zip(tasks, scored, strict=True):
            scale = None if self.readout_scale is None else self.readout_scale[place]
            read = READOUTS[self.config.readout](hidden, rows.vectors, unit_mask, asked, scale)
            read = read[:, None] if prefix_ends is None else read
            parts.append({"readout": read, "bias": self._label_offsets(rows, read.dtype)})
        if self.repeat_memory is not None:
            remembered = self._memory(tasks, scored, events, batch, unit_ends)
            for of_task, (customers, prefixes, ids, added) in zip(parts, remembered, strict=True):
                shape = of_task["readout"].shape
                cells = (customers * shape[1] + prefixes) * shape[2] + ids
                zeros = torch.zeros_like(of_task["readout"]).flatten()
                of_task["repeats"] = zeros.scatter_add(0, cells, added.to(zeros.dtype)).view(shape)
        if self.counted_memory is not None:
            customers = torch.arange(event_ends.shape[0], device=event_ends.device)[:, None].expand_as(event_ends)
            histories = self._histories(batch, customers.flatten(), event_ends.flatten())
            for place, rows, of_task in zip(tasks, scored, parts, strict=True):
                found = self._counted_parts(place, rows, batch, histories)
                of_task |= {name: part.view(of_task["readout"].shape) for name, part in found.items()}
        return parts

    def joined_scores(self, place: int, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scores of a task from its parts; ids 0 and 1 are masked with a large negative value.

        Args:
            place (`int`): of the task among the model's.
            parts: what [`MCMForMultiTaskRecommendation.score_parts`] gives for the task, all of one shape
                `(..., V)`; one of `PARTS` that is missing counts nothing.

        Returns:
            Of the same shape.
        """
        scales = self.score_scales[place]
        scores = sum(parts[name] * scales[k].to(parts[name].dtype) for k, name in enumerate(PARTS) if name in parts)
        scores = cast(torch.Tensor, scores)
        if self.counted_memory is not None and "met" in parts:
            memory = self.counted_memory
            gains = [gain[place] for gain in (memory.habit_gain, memory.new_gain, memory.new_offset)]
            related = memory.joined(scores, parts, *gains)
            # CODEPATH: off until the gains are learned, at the end of pre-training.
            is_learned = (memory.new_gain[place] != 0) | (memory.habit_gain[place] != 0)
            scores = torch.where(is_learned, related, scores).to(scores.dtype)
        never = torch.finfo(scores.dtype).min / 2
        return torch.where(torch.arange(scores.shape[-1], device=scores.device) < FIRST_LABEL, never, scores)

    def _histories(self, batch: Mapping[str, Any], customers: torch.Tensor, ends: torch.Tensor) -> Histories:
        """What rows of scores look back on: the rows of these customers that may see events up to these ends."""
        if batch["event_times"] is None:
            raise ValueError("The counted memory needs `event_times`: MCMFeatureExtractor gives them.")
        visits = torch.zeros_like(batch["attention_mask"]) if batch["visit_ids"] is None else batch["visit_ids"]
        return Histories.of(batch["event_times"], visits, customers, ends)

    def _counted_parts(
        self, place: int, rows: TaskLabels, batch: Mapping[str, Any], histories: Histories, without_own: bool = False
    ) -> dict[str, torch.Tensor]:
        """What the counted memory knows of a task's labels, each of shape `(R, V)`."""
        memory, parts = cast(CountedMemory, self.counted_memory), {}
        labels = batch["input_ids"][..., self.task_features[place]]
        if memory.has_followers(place):
            added = memory.followers(place, labels, histories, rows.ids, without_own)
            if self.repeat_memory is None:
                met = memory.met(place, labels, histories)
                met = met if rows.ids is None else met.index_select(1, rows.ids)
                added = added + memory.met_gain[place] * met
            parts["followers"] = added
        if memory.has_related(place) and not self.training:
            visits = torch.zeros_like(labels) if batch["visit_ids"] is None else batch["visit_ids"]
            parts["met"] = memory.met(place, labels, histories)
            parts["habits"] = memory.habits(place, memory.rates(place, labels, visits, histories))
            parts["new"] = memory.new(place, parts["met"])
        return parts

    @torch.no_grad()
    def score_parts(self, tasks: Sequence[str] | None = None, **inputs: Any) -> dict[str, dict[str, torch.Tensor]]:
        """What the scores of the whole history are a sum of.

        Args:
            tasks: names of the tasks that are wanted, all by default.
            inputs: what the feature extractor returns.

        Returns:
            For each task its parts, each of shape `(B, V)`: `readout`, `bias` and, where the model has them,
            `repeats` (the repeat memory) and `followers` (the counted memory), before `score_scales`; of a task with
            related labels also `met`, `habits` and `new`. See [`CountedMemory`].
        """
        batch: dict[str, Any] = {"visit_ids": None, "event_times": None, **inputs}
        if batch.get("attention_mask") is None:
            batch["attention_mask"] = (batch["input_ids"] != 0).any(-1).long()
        read = ("input_ids", "attention_mask", "visit_ids", "event_times", "event_values", "now")
        outputs = self.model(**{name: batch[name] for name in read if name in batch})
        batch |= {"unit_mask": outputs.unit_mask.bool(), "prefix_ends": None}
        names = self.config.tasks if tasks is None else list(tasks)
        places, labels = [self.config.tasks.index(task) for task in names], self._all_labels()
        scored = [labels[place] for place in places]
        found = self._score_parts(outputs.last_hidden_state, outputs.event_embeddings, batch, scored, places)
        return {
            task: {
                name: part[:, 0] if part.dim() == 3 else part.expand(len(batch["input_ids"]), -1)
                for name, part in parts.items()
            }
            for task, parts in zip(names, found, strict=True)
        }

    def _losses_of_prefixes(
        self, hidden: torch.Tensor, events: torch.Tensor, batch: Mapping[str, Any], scored: Sequence[TaskLabels]
    ) -> torch.Tensor:
        """The losses of the trained tasks, of shape `(T,)`, from a row of scores for each unit that a label followed.

        Labels of all tasks stand side by side in a row.
        """
        tasks = [place for place, task in enumerate(self.config.tasks) if task in self.trained_tasks]
        scored = [scored[place] for place in tasks]
        sizes = [len(rows.vectors) for rows in scored]
        event_units = self._event_units(batch)
        unit_ends = event_units.gather(1, batch["prefix_ends"])
        ends = unit_ends.gather(1, batch["label_prefixes"])  # of each label: (B, N)
        followed = places_of(scored, batch["labels"][..., tasks])
        counted = (followed >= FIRST_LABEL).any(-1)
        asked = torch.zeros_like(batch["unit_mask"]).long().scatter_add(1, ends, counted.long()) > 0

        units = PackedUnits.of(batch["unit_mask"], asked)
        vectors = [rows.vectors for rows in scored]
        if self.readout_scale is not None:
            vectors = [table * self.readout_scale[place] for place, table in zip(tasks, vectors, strict=True)]
        scores = READOUTS[self.config.readout](hidden, torch.cat(vectors), batch["unit_mask"], units)
        biases = torch.cat([self._label_offsets(rows, scores.dtype) for rows in scored])
        scales = self.score_scales[tasks].to(scores.dtype)
        if is_scaled := bool((scales != 1).any()):
            columns = scales.repeat_interleave(torch.tensor(sizes, device=scales.device), 0)  # (V, parts)
            scores, biases = scores * columns[:, 0], biases * columns[:, 1]
        scores = scores + biases
        if self.repeat_memory is not None:
            most = int(asked.sum(1).max())
            in_order = (~asked).byte().argsort(dim=1, stable=True)[:, :most]  # each customer's asked units
            remembered = self._memory(tasks, scored, events, batch, in_order, asked.gather(1, in_order))
            customers, places, ids, added = (torch.cat(parts) for parts in zip(*remembered, strict=True))
            starts = [torch.full_like(part[2], sum(sizes[:place])) for place, part in enumerate(remembered)]
            columns_met = ids + torch.cat(starts)
            if is_scaled:
                added = added * columns[columns_met, 2]
            cells = (units.rows[customers, in_order[customers, places]], columns_met)
            scores.index_put_(cells, added.to(scores.dtype), accumulate=True)
        if self.counted_memory is not None and any(map(self.counted_memory.has_followers, tasks)):
            scores = scores + self._followers_of_units(tasks, scored, batch, event_units, units).to(scores.dtype)
        for start in (sum(sizes[:place]) for place in range(len(sizes))):
            scores[:, start : start + FIRST_LABEL] = torch.finfo(scores.dtype).min / 2
        targets = Targets.find(followed, units.rows.gather(1, ends), batch["label_weights"], sizes)
        return task_losses(scores, targets, self.config.ranking_loss_weight, joined_log_counts(scored))

    def _followers_of_units(
        self,
        tasks: Sequence[int],
        scored: Sequence[TaskLabels],
        batch: Mapping[str, Any],
        event_units: torch.Tensor,
        units: PackedUnits,
    ) -> torch.Tensor:
        """What followers add to the scores of packed units, without the customers' own pairs: they are trained on."""
        chosen = slice(None) if units.asked is None else units.asked
        customers, places = units.customers[chosen], units.units[chosen]
        event = torch.arange(event_units.shape[1], device=places.device).expand_as(event_units)
        event = event * batch["attention_mask"]
        last = torch.zeros_like(batch["unit_mask"]).long().scatter_reduce(1, event_units, event, "amax")
        histories = self._histories(batch, customers, last[customers, places])
        added = []
        for place, rows in zip(tasks, scored, strict=True):
            found = self._counted_parts(place, rows, batch, histories, without_own=True)
            part = found.get("followers")
            part = rows.vectors.new_zeros(len(places), len(rows.vectors)) if part is None else part
            added.append(part * self.score_scales[place, PARTS.index("followers")])
        return torch.cat(added, 1)

    def _event_units(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The unit of each event, of shape `(B, L)`."""
        # CODEPATH: units are visits in mcm-base and mcm-tiny, events in the paper's model, ablations/mcm-final.
        if self.config.encoder_unit == "visit" and batch["visit_ids"] is not None:  # else the embeddings have raised
            return batch["visit_ids"]
        shape = batch["input_ids"].shape[:2]
        return torch.arange(shape[1], device=batch["input_ids"].device).expand(shape)

    def _memory(
        self,
        tasks: Sequence[int],
        scored: Sequence[TaskLabels],
        events: torch.Tensor,
        batch: Mapping[str, Any],
        unit_ends: torch.Tensor,
        asked: torch.Tensor | None = None,
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """What the repeat memory adds to the scores of these tasks: see [`RepeatMemory.forward`]."""
        memory, shape = cast(RepeatMemory, self.repeat_memory), batch["unit_mask"].shape
        if batch["event_times"] is None:
            raise ValueError("The repeat memory needs `event_times`: MCMFeatureExtractor gives them.")
        times, event_units = batch["event_times"], self._event_units(batch)
        unit_times = times.new_zeros(shape).scatter_reduce(1, event_units, times, "amax")
        label_ids = places_of(scored, batch["input_ids"][..., [self.task_features[place] for place in tasks]])
        met = memory.votes(label_ids, event_units, events, shape[1])
        waits = None
        if (now := batch.get("now")) is not None:
            waits = (now[:, None] - unit_times.gather(1, unit_ends)).clamp(min=0)
        return memory(tasks, unit_times, unit_ends, met, asked, [rows.memory for rows in scored], waits)

    def _losses_in_parts(
        self, hidden: torch.Tensor, events: torch.Tensor, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The total and the task losses, of shape `(T,)`, of a batch whose scores would not fit at once."""
        units, lengths = batch["unit_mask"].sum(1).tolist(), batch["attention_mask"].sum(1).tolist()
        scored = self._all_labels()
        # CODEPATH: None in every shipped configuration; for tasks of very many labels.
        if (number := self.config.sampled_labels) is not None:
            met, followed = batch["input_ids"][..., self.task_features], batch["labels"]
            certain = torch.cat([met, followed], 1).flatten(0, 1)  # (B (L + N), T)
            scored = [rows.sample(certain[:, place], number) for place, rows in enumerate(scored)]
        most = PART_ELEMENTS[hidden.device.type == "cpu"] // sum(len(rows.vectors) for rows in scored)
        several = batch["prefix_ends"] is not None and batch["label_prefixes"] is not None

        def losses_of(part: list[int], hidden: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
            cut: dict[str, Any] = {name: None if value is None else value[part] for name, value in batch.items()}
            unit, event = (slice(max(1, *(sizes[place] for place in part))) for sizes in (units, lengths))
            cut["unit_mask"] = cut["unit_mask"][:, unit]
            for name in ("input_ids", "attention_mask", "visit_ids", "event_times"):
                cut[name] = None if cut[name] is None else cut[name][:, event]
            given = (hidden[:, unit], events[:, event], cut, scored)
            packed = several and bool(cut["unit_mask"].any())
            losses = self._losses_of_prefixes(*given) if packed else self._answers(*given)[1]
            return losses * (len(hidden) / len(units))  # a loss is a mean over customers

        parts = customers_in_parts(units, most)
        return LossInParts.apply(losses_of, parts, 2, hidden, events, *self._head_parameters(scored))

    def _all_labels(self) -> list[TaskLabels]:
        """What scores read of the labels of each task."""
        return [
            TaskLabels(
                self.label_embeddings(task),
                self.readout_bias[place] if len(self.readout_bias) else None,
                None if self.repeat_memory is None else self.repeat_memory.of_labels(place),
            )
            for place, task in enumerate(self.config.tasks)
        ]

    def _head_parameters(self, scored: Sequence[TaskLabels]) -> list[torch.Tensor]:
        """What scores and losses read besides the encoder's vectors."""
        apart = {id(table) for rows in self._all_labels() for table in rows.tables}  # `scored` has them, or rows
        apart |= {id(value) for value in self.model.parameters()}
        own = [value for value in self.parameters() if id(value) not in apart]
        return [*own, *(table for rows in scored for table in rows.tables)]

    @staticmethod
    def _label_offsets(rows: TaskLabels, dtype: torch.dtype) -> torch.Tensor:
        """The labels' biases, of shape `(V,)`; 0 where the model has none."""
        # CODEPATH: biases in mcm-base and mcm-tiny, none in the paper's model, ablations/mcm-final.
        return rows.vectors.new_zeros(len(rows.vectors), dtype=dtype) if rows.bias is None else rows.bias.to(dtype)

    @torch.no_grad()
    def preferences(
        self, task: str, k: int = 10, return_weights: bool = False, **inputs: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The k labels that the customers prefer, best first.

        Args:
            task: one of `config.tasks`.
            k: how many labels; at most all of them.
            return_weights: also return which units spoke for each label.
            inputs: what the feature extractor returns.

        Returns:
            `labels` (ids) and `scores` (probabilities among the task's labels), of shape `(B, k)`; with
            `return_weights` also `weights`, a_{w,i} of equation 2 with shape `(B, k, U)`, and `unit_mask`. The weights
            are those of the attentional readout alone, a small part of the score where a memory speaks beside it.
            Which visits a score comes from is said by [`~explanations_mcm.explain`].

        Raises:
            ValueError: for a task that the model does not have, or weights of a readout that has none.
        """
        if task not in self.config.tasks:
            raise ValueError(f"No task {task!r}: this checkpoint predicts {self.config.tasks}.")
        if return_weights and self.config.readout != "attentional":
            raise ValueError("Only the attentional readout has weights a_{w,i}; this checkpoint's is 'last'.")
        count = min(k, self.config.label_sizes[task] - FIRST_LABEL)
        scores, labels = self(**inputs).logits[task].softmax(-1).topk(count)
        result = {"labels": labels, "scores": scores}
        if return_weights:
            names = ("input_ids", "attention_mask", "visit_ids", "event_times", "event_values", "now")
            outputs = self.model(**{name: inputs[name] for name in names if name in inputs})
            embeddings = self.label_embeddings(task)
            if self.readout_scale is not None:
                embeddings = embeddings * self.readout_scale[self.config.tasks.index(task)]
            unit_mask = outputs.unit_mask.bool()
            weights = attention_weights(outputs.last_hidden_state, embeddings, unit_mask)
            result["weights"] = weights.gather(1, labels[..., None].expand(-1, -1, weights.shape[-1]))
            result["unit_mask"] = unit_mask
        return result


__all__ = ["MCMForMultiTaskRecommendation", "MCMModel", "MCMPreTrainedModel"]
