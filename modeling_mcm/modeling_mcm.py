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

Shapes: B customers, L events, J features, U encoder units (events or visits), H hidden, P prefixes, R rows of scores,
N labels a customer, T tasks, V labels of a task. Equation numbers are those of Luo & Wang, RecSys 2023.

A branch on the config has a comment `CODEPATH`, for transformers' linter of model files asks for it (TRF041): it says
which of the models in `configuration/` take the branch. "The paper's" are those of `configuration/ablations/`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertSelfAttention
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mcm import FIRST_LABEL, MCMConfig
from .counted_memory_mcm import CountedMemory
from .embeddings_mcm import HeterogeneousEmbedding, MCMEmbeddings, ValueEmbedding, check_inputs, digest_bytes, grow
from .files_mcm import check_loaded
from .losses_mcm import LossInParts, Objective, customers_in_parts
from .outputs_mcm import MCMModelOutput, MCMRecommendationOutput
from .readout_mcm import attention_weights
from .repeat_memory_mcm import RepeatMemory
from .resizing_mcm import resize_feature_vocabulary
from .sampling_mcm import TaskLabels
from .scores_mcm import PARTS, TaskScores
from .state_mcm import CustomerState, Forecasts


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
            if not getattr(module.weight, "_is_hf_initialized", False):  # a slice of the weight does not know
                init.normal_(module.weight, std=self.config.hidden_size**-0.5)
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, MCMEmbeddings):
            init.copy_(module.values_digest, digest_bytes(self.config.values_digest))
        elif isinstance(module, RepeatMemory | CountedMemory | CustomerState | Forecasts):
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
        resize_feature_vocabulary(self, feature, values, feature_extractor)

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
        r"^prediction_head\.",
    ]

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.embeddings = MCMEmbeddings(config)
        self.encoder = BertEncoder(config)
        for layer in self.encoder.layer:  # a batch without padding has no mask: the kernels then ask the layer
            layer.attention.self.is_causal = config.encoder_attention == "causal"
        # CODEPATH: a state in mcm-base and mcm-tiny, none in the paper's.
        self.state = CustomerState(config) if config.state_size else None
        # CODEPATH: as the line above, but none for data that are too short for any horizon.
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
        # CODEPATH: causal in mcm-base and mcm-tiny, bidirectional in the paper's.
        if self.config.encoder_attention == "causal":
            window = latest_units(self.config.attention_window, hidden.shape[1])
            mask = create_causal_mask(self.config, hidden, unit_mask.long(), cache=None, and_mask_function=window)
            if window is not None:
                check_window(mask, self.config._attn_implementation)
        else:
            mask = create_bidirectional_mask(self.config, hidden, unit_mask.long())
        hidden = self.encoder(hidden, attention_mask=mask, **kwargs).last_hidden_state
        state, forecasts = self._pool(hidden, unit_mask), None
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
        # CODEPATH: causal in mcm-base and mcm-tiny, bidirectional in the paper's.
        if self.config.encoder_attention == "causal":
            last = (unit_mask.sum(1) - 1).clamp(min=0)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        weight = unit_mask.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


# Scores that a training step holds at a time, about: on a GPU, and on a CPU, which is no faster with more.
PART_ELEMENTS = (2**26, 2**22)


@auto_docstring(custom_intro="MCM with the task-aware readout: for every task, a score for every label.")
class MCMForMultiTaskRecommendation(TaskScores, MCMPreTrainedModel):
    accepts_loss_kwargs = False  # the loss is a mean over customers, so micro-batches of equal size average exactly

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.model = MCMModel(config)
        sizes = config.label_sizes
        self.objective = Objective()  # of training; whoever trains otherwise sets another
        self.task_features = [config.features.index(task) for task in config.tasks]
        # CODEPATH: scale and bias in mcm-base and mcm-tiny, neither in the paper's.
        self.readout_scale = nn.Parameter(torch.ones(len(sizes))) if config.readout_bias else None
        # CODEPATH: as the line above.
        biases = [nn.Parameter(torch.zeros(n)) for n in sizes.values()] if config.readout_bias else []
        self.readout_bias = nn.ParameterList(biases)
        # CODEPATH: a memory in mcm-base and mcm-tiny, none in the paper's and for logs without repeats (recipe.py).
        self.repeat_memory = RepeatMemory(list(sizes.values()), config.hidden_size) if config.repeat_memory else None
        # How much each of `PARTS` counts; learned on validation cases when all else has been.
        self.score_scales = nn.Buffer(torch.ones(len(sizes), len(PARTS)))
        # The usual value of each of `label_features` for each label, 0 where there is none; `counting` fills them.
        # CODEPATH: of logs without many repeats (recipe.py), none in the paper's.
        if config.label_features:
            for place, size in enumerate(sizes.values()):
                values = torch.zeros(size, len(config.label_features), dtype=torch.int32)
                setattr(self, f"label_values_{place}", nn.Buffer(values))
        counted = [
            [task in chosen for task in config.tasks] for chosen in (config.follower_tasks, config.related_tasks)
        ]
        # CODEPATH: chosen by the data in pre-training (recipe.py), none in the paper's.
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
        table = self.model.embeddings.events.feature_tables[self.task_features[place]]
        vectors = cast(ValueEmbedding, table).weight
        # CODEPATH: of logs without many repeats (recipe.py), none in the paper's.
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
        if feature not in self.config.tasks:  # CODEPATH: the token type is no task in the paper's
            return
        place = self.config.tasks.index(feature)
        if len(self.readout_bias):
            bias = self.readout_bias[place]
            self.readout_bias[place] = nn.Parameter(torch.cat([bias, bias[FIRST_LABEL:].min().expand(number)]))
        if self.repeat_memory is not None:
            rarity = cast(nn.Embedding, self.repeat_memory.label_rarity[place])
            grow(rarity, number, FIRST_LABEL + int(rarity.weight[FIRST_LABEL:].argmax()))
            grow(self.repeat_memory.label_gains[place], number, slice(0, 0))
        if self.counted_memory is not None:
            self.counted_memory.grow(place, number)
        if self.config.label_features:  # CODEPATH: of logs without many repeats (recipe.py), none in the paper's
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
        logits = losses = total = None
        if self.training and labels is not None and torch.is_grad_enabled():
            total, losses = self._losses_in_parts(*vectors, batch)
        else:
            scored, rows, places = self._all_labels(), self._rows(batch), list(range(len(self.config.tasks)))
            parts = self._score_parts(*vectors, batch, rows, scored, places)
            scores = [self.joined_scores(place, parts[place]) for place in places]
            if labels is not None:
                of_tasks = [self._losses(scores[k], batch, rows, [scored[k]], [k]) for k in places]
                losses = torch.cat(of_tasks)
                total = losses.sum()
            if prefix_ends is not None:  # (R, V) to (B, P, V)
                of_prefixes = rows.of_units.gather(1, self._event_units(batch).gather(1, prefix_ends))
                scores = [of_task[of_prefixes] for of_task in scores]
            logits = dict(zip(self.config.tasks, scores, strict=True))
        return MCMRecommendationOutput(
            loss=total,
            logits=logits,
            task_losses=None if losses is None else dict(zip(self.config.tasks, losses.detach(), strict=True)),
            pooler_output=outputs.pooler_output,
            forecasts=outputs.forecasts,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

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
        vectors = (outputs.last_hidden_state, outputs.event_embeddings)
        result = {}
        for task, parts in zip(
            names, self._score_parts(*vectors, batch, self._rows(batch), scored, places), strict=True
        ):
            if "repeats" in parts:
                zeros = torch.zeros_like(parts["readout"])
                cells, added = parts["repeats"]
                parts["repeats"] = zeros.flatten().scatter_add(0, cells, added.to(zeros.dtype)).view(zeros.shape)
            result[task] = {name: part.expand(len(batch["input_ids"]), -1) for name, part in parts.items()}
        return result

    def _losses_in_parts(
        self, hidden: torch.Tensor, events: torch.Tensor, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The total and the task losses, of shape `(T,)`, of a batch whose scores would not fit at once."""
        units, lengths = batch["unit_mask"].sum(1).tolist(), batch["attention_mask"].sum(1).tolist()
        scored = self._all_labels()
        if number := self.objective.sampled_labels:
            met, followed = batch["input_ids"][..., self.task_features], batch["labels"]
            certain = torch.cat([met, followed], 1).flatten(0, 1)  # (B (L + N), T)
            scored = [rows.sample(certain[:, place], number) for place, rows in enumerate(scored)]
        most = PART_ELEMENTS[hidden.device.type == "cpu"] // sum(len(rows.vectors) for rows in scored)

        def losses_of(part: list[int], hidden: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
            cut: dict[str, Any] = {name: None if value is None else value[part] for name, value in batch.items()}
            unit, event = (slice(max(1, *(sizes[place] for place in part))) for sizes in (units, lengths))
            cut["unit_mask"] = cut["unit_mask"][:, unit]
            for name in ("input_ids", "attention_mask", "visit_ids", "event_times"):
                cut[name] = None if cut[name] is None else cut[name][:, event]
            losses = self._losses_side_by_side(hidden[:, unit], events[:, event], cut, scored)
            return losses * (len(hidden) / len(units))  # a loss is a mean over customers

        parts = customers_in_parts(units, most)
        return LossInParts.apply(losses_of, parts, 2, hidden, events, *self._score_parameters(scored))

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

    def _score_parameters(self, scored: Sequence[TaskLabels]) -> list[torch.Tensor]:
        """What scores and losses read besides the encoder's vectors, and may have a gradient."""
        scale = [] if self.readout_scale is None else [self.readout_scale]
        memory = [] if self.repeat_memory is None else self.repeat_memory.shared_parameters()
        return [*scale, *memory, *(table for rows in scored for table in rows.tables)]

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
