# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM: heterogeneous embedding -> BERT encoder -> task-aware readout. Read from top to bottom it is the forward pass.

Shapes: B customers, L events, J features, U encoder units (events or visits), H hidden size, P prefixes of a
customer, R scored prefixes of all customers (rows of the score matrix), N targets of a customer, T tasks, V labels of
a task. Equation numbers refer to Luo & Wang, RecSys 2023.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertSelfAttention
from transformers.processing_utils import Unpack
from transformers.utils import CONFIG_NAME, ModelOutput, TransformersKwargs, auto_docstring, cached_file, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .calendar_mcm import Known
from .checkpoint_mcm import check_files, check_loaded, check_metadata, check_weights, save_together
from .configuration_mcm import DECIDING, FIRST_LABEL, MCMConfig
from .embeddings_mcm import HeterogeneousEmbedding, MCMEmbeddings, ValueEmbedding, check_inputs, find_later
from .forecaster_mcm import CustomerForecasts, VisitForecaster
from .losses_mcm import Targets, TaskLabels, compute_in_parts, group_customers, task_losses
from .readout_mcm import READOUTS, PrefixEnds, find_prefixes
from .scorer_mcm import NEXT_VISIT, WITHIN, LabelScorer, Readout, check_horizon, read_histories
from .state_mcm import CustomerState, Exact, ZeroLinear

logger = logging.get_logger(__name__)
HUB_OPTIONS = "repo_id", "commit_message", "private", "token", "create_pr"  # of `save_pretrained(push_to_hub=True)`
PARTS = ("encoder", "embedding", "forecasts")  # of [`MCMModel`]


@auto_docstring(custom_intro="Output of [`MCMModel`].")
@dataclass
class MCMModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, units, hidden_size)`):
        Hidden vector h of each unit after the last layer. A unit is an event or a visit (`config.encoder_unit`).
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        Customer embedding: the customer state at `as_of`, of `config.state_size` numbers. In a model without a state
        it has `config.hidden_size` numbers: h of the last unit for a causal encoder, whose last unit has read all
        units, and the mean of h over all units for a bidirectional one.
    forecasts (`dict[str, torch.FloatTensor]`, *optional*):
        Forecasts from `as_of` on by name, each of shape `(batch_size,)`. See
        [`~forecaster_mcm.CustomerForecasts`].
    unit_mask (`torch.LongTensor` of shape `(batch_size, units)`):
        1 where a unit is real, 0 on padding.
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_hidden_states=True`: input of the first layer and output of each layer, each of shape
        `(batch_size, units, hidden_size)`.
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        With `output_attentions=True` and eager attention: attention weights of each layer, each of shape
        `(batch_size, heads, units, units)`.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    forecasts: dict[str, Tensor] | None = None
    unit_mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@auto_docstring(custom_intro="Output of [`MCMForMultiTaskRecommendation`].")
@dataclass
class MCMRecommendationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        Loss by equation 4 of the encoder's readout, whose scores are the `logits` then, summed over the tasks.
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

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    task_losses: dict[str, Tensor] | None = None
    pooler_output: Tensor | None = None
    forecasts: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@auto_docstring(
    custom_intro="Base class of all MCM models: initialises weights, loads checkpoints, declares supported features."
)
class MCMPreTrainedModel(PreTrainedModel):
    config: MCMConfig
    if TYPE_CHECKING:  # transformers evaluates the annotations of the class before `MCMModel` is there
        base_model: "MCMModel"
    base_model_prefix = "model"
    _input_embed_layer = "events"  # of `MCMModel.embeddings`
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BertLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BertLayer, "attentions": BertSelfAttention}

    @property
    def _supports_flash_attn(self) -> bool:  # type: ignore[override]
        """Whether flash attention runs: it reads no mask, and a window needs one, see [`create_window_mask`]."""
        return self.config.attention_window is None

    def post_init(self):
        """Has what [`~state_mcm.Exact`] modules hold made and loaded in float32, but for whole numbers."""
        super().post_init()
        # Of this class alone: transformers adds those of `MCMModel`, which has no place for what the heads hold.
        self._keys_to_ignore_on_load_unexpected = {*(type(self)._keys_to_ignore_on_load_unexpected or ())}
        for name, module in self.named_modules():
            if isinstance(module, Exact):
                for key, value in module.state_dict(keep_vars=True).items():
                    if value.dtype == torch.get_default_dtype():  # not what is of another type in any model
                        value.data = value.data.float()
                    if value.is_floating_point():
                        self._keep_in_fp32_modules_strict.add(f"{name}.{key}")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """Loads a checkpoint as `PreTrainedModel.from_pretrained` does, with the same arguments, and checks it. Raises
        [`CheckpointError`], a `ValueError`, if a file is damaged, weights are NaN, infinite or were not trained with
        its settings and vocabularies or, without `output_loading_info`, which reports them instead, if the model has
        no place for some weights, or the checkpoint lacks some. A head may be missing as a whole: it is then a new
        one."""
        source, subfolder = pretrained_model_name_or_path, kwargs.get("subfolder") or ""
        folder = None if source is None else Path(source, subfolder)
        if folder is not None:
            check_files(source, subfolder)
            if folder.is_dir():
                check_metadata(folder, DECIDING)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)  # if not, they are refused below with a sentence
        kwargs["ignore_mismatched_sizes"] = may_differ or not output_loading_info
        model, loading = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        if not output_loading_info and source is not None:  # without a source the caller gives the weights
            loading = {**loading, "mismatched_keys": () if may_differ else loading["mismatched_keys"]}
            names, missing = set(model.state_dict()), set(loading["missing_keys"])
            parts, stored = ({key.partition(".")[0] for key in keys} for keys in (names, names - missing))
            new = parts - stored - {cls.base_model_prefix} if model is not model.base_model else ()
            check_loaded(model, source, loading, tuple(new))
        if folder is not None and not folder.is_dir():  # of the Hub, whose files are in the cache by now
            options = {name: kwargs.get(name) for name in ("cache_dir", "revision")}
            config = cached_file(source, CONFIG_NAME, subfolder=subfolder, local_files_only=True, **options)
            folder = Path(config).parent
            check_files(folder)
            check_metadata(folder, DECIDING)
        check_weights(model, source, folder)
        return (model, loading) if output_loading_info else model

    def save_pretrained(self, save_directory, is_main_process=True, *args, push_to_hub=False, **kwargs):
        """Writes config.json and weights as `PreTrainedModel.save_pretrained` does, with the same arguments, but all
        or nothing; and into the weights the settings that decide what they mean, which `from_pretrained` compares.
        Raises `OSError` if the disk is full; what was there is then as it was."""
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        if not self.should_save_on_this_rank(is_main_process) or kwargs.get("distributed_checkpoint"):
            return super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        with save_together(save_directory, DECIDING) as folder:
            super().save_pretrained(folder, is_main_process, *args, **kwargs)
        if push_to_hub:  # not in the base class, which would upload before all is written
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def describe(self) -> str:
        """Says in three lines what is learned, what is counted, and which labels are known, each from which log and
        until when."""

        def write(facts: dict) -> str:
            if "until" not in facts:
                return facts.get("log", "of no log")
            return (
                f"{facts['log']} until {facts['until']}: {facts['customers']:,} customers, {facts['events']:,} events"
            )

        config, sizes = self.config, self.config.label_sizes
        learned = dict(zip(config.features, config.learned_sizes or config.vocabulary_sizes, strict=True))
        new = {task: f" ({size - learned[task]:,} of them counted alone)" for task, size in sizes.items()}
        labels = ", ".join(
            f"{size - FIRST_LABEL:,} of {task}{new[task] if size > learned[task] else ''}"
            for task, size in sizes.items()
        )
        return f"weights       {write(config.learned)}\ncounts        {write(config.counted)}\nvocabularies  {labels}"

    @torch.no_grad()
    def _init_weights(self, module):
        if not isinstance(module, HeterogeneousEmbedding):  # it has no weight of its own
            super()._init_weights(module)
        if isinstance(module, ValueEmbedding):
            if not getattr(module.weight, "_is_hf_initialized", False):  # the flag of the whole weight
                init.normal_(module.weight, std=self.config.hidden_size**-0.5)
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, LabelScorer | CustomerState | VisitForecaster):
            module.reset_parameters()
        elif isinstance(module, nn.ParameterList | ZeroLinear):
            for value in module.parameters():
                init.zeros_(value)


def create_window_mask(config: MCMConfig, hidden: Tensor, unit_mask: Tensor) -> Any:
    """The causal mask of units `(B, U)`; with an attention window a unit attends to the latest ones and to the start
    row. Raises `ValueError` if a window needs a mask, and the attention's kernel reads no such mask."""
    window, units = config.attention_window, unit_mask.shape[1]
    if window is None or (not torch.compiler.is_exporting() and units <= window + 1):
        return create_causal_mask(config, hidden, unit_mask.long(), cache=None)

    def is_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key < window) | (key == 0)

    mask = create_causal_mask(config, hidden, unit_mask.long(), cache=None, and_mask_function=is_near)
    if mask is None or len(mask.shape) != 4:  # (B, 1, U, U); kernels that read lengths alone leave the window out
        raise ValueError(
            f"`attn_implementation` is {config._attn_implementation!r}, and `attention_window` needs a mask: a unit "
            "reads the start row beside its window. Load the model with attn_implementation='sdpa'."
        )
    return mask


def select_latest(
    input_ids: Tensor, attention_mask: Tensor, visit_ids: Tensor | None, most: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Selects the start row and the latest events of each customer, `most` rows in all, from inputs `(B, L, J)` and
    `(B, L)`; of an export, whose sizes are those of its inputs, the others are padding. A cut history's visits are
    counted from 1 again."""
    length, is_exporting = input_ids.shape[1], torch.compiler.is_exporting()
    if not is_exporting and length <= most:
        return input_ids, attention_mask, visit_ids
    place = torch.arange(length if is_exporting else most, device=input_ids.device)
    is_read = place < most
    left_out = (attention_mask.long().sum(1, keepdim=True) - most).clamp(min=0)  # (B, 1)
    place = torch.where(place > 0, place + left_out, 0).clamp(max=length - 1)  # (B, L or most)
    input_ids = input_ids.gather(1, place[..., None].expand(-1, -1, input_ids.shape[2]))
    attention_mask = attention_mask.gather(1, place) * is_read
    if visit_ids is not None:
        visit_ids = visit_ids.gather(1, place)
        first = torch.where(visit_ids > 0, visit_ids, length).amin(1, keepdim=True)  # (B, 1)
        before = (first - 1) * (left_out > 0)  # visits of which none is read
        visit_ids = (visit_ids - before).clamp(min=0).index_fill(1, place.new_zeros(1), 0)
    return input_ids, attention_mask, visit_ids


@auto_docstring(custom_intro="The customer model without a head: hidden states and a customer embedding.")
class MCMModel(MCMPreTrainedModel):
    # Parameters of the heads: a checkpoint that was saved with a head has them, and this model leaves them out.
    _keys_to_ignore_on_load_unexpected = [r"^(readout_|scorer\.|label_values_|prediction_head\.)"]

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.embeddings = MCMEmbeddings(config)
        self.encoder = BertEncoder(config)
        for layer in self.encoder.layer:  # without padding there is no mask, and kernels read this flag
            layer.attention.self.is_causal = config.encoder_attention == "causal"
        self.state = CustomerState(config) if config.state_size else None
        self.make_forecaster()
        self.post_init()

    def make_forecaster(self) -> None:
        """Makes the forecaster, untrained, if the config has one."""
        config = self.config
        self.forecaster = None
        if config.state_size and config.forecast_window:
            deciding = [config.features.index(name) for name in config.target_features or config.tasks]
            types = {config.features.index(name): ids for name, ids in config.target_types.items()}
            self.forecaster = VisitForecaster(1 + len(config.summed_features), deciding, types, config.calendar)
            self.forecaster.requires_grad_(False)

    @property
    def customer_forecasts(self) -> CustomerForecasts:
        """All forecasts of this checkpoint."""
        return self.select_forecasts()

    def select_forecasts(self, days: Sequence[float] | None = None) -> CustomerForecasts:
        """The forecasts for some horizons, by default those of the config. Raises `ValueError` if one is too long."""
        return CustomerForecasts(self.config, self.forecaster, days)

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring(custom_intro="Computes hidden states and the customer embedding from a batch of histories.\n")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visit_ids: Tensor | None = None,
        event_times: Tensor | None = None,
        event_values: Tensor | None = None,
        as_of: Tensor | None = None,
        forecast_days: Sequence[float] | None = None,
        as_of_days: Tensor | None = None,
        known: Known | None = None,
        parts: Collection[str] = PARTS,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMModelOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            Feature ids of each event, oldest event first, padded on the right with 0. The first row is the start row.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an event is real, 0 on padding. Default: 1 where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Visit of each event, counted from 0 for each customer. Required by the customer state, and if
            `config.encoder_unit` is "visit".
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Days from the customer's first event to each event, in ascending order. Required by the customer state. In
            single precision: 3 seconds apart after a year and 21 after ten, which half-lives of days do not see.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            Values of `config.summed_features` of each event, 0 where one is missing. Required by the customer state
            if the config has summed features.
        as_of (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            Time of all outputs, in days on the clock of `event_times`; none of them knows later events. Default: the
            time of the customer's last event.
        forecast_days (sequence of `float`, *optional*):
            Horizons of the forecasts. Default: those of `config.forecast_days` that this checkpoint can tell.
        as_of_days (`torch.DoubleTensor` of shape `(batch_size,)`, *optional*):
            Time of all outputs in days since 1970-01-01. Without it forecasts know no calendar.
        known (`dict`, *optional*):
            What is known of days, as `config.known`, which is the default.
        parts (collection of `str`):
            What is computed, of "encoder", "embedding" and "forecasts"; the others take no time, and their outputs
            are None. Default: everything.

        Returns:
            [`MCMModelOutput`].

        Raises:
            ValueError: If ids, visits or times are out of range or in the wrong order (outside of training), or an
                input that the config requires is missing.
        """
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        if not self.training:
            check_inputs(self.config, input_ids, attention_mask, visit_ids, event_times, event_values, as_of)
        if as_of is not None:
            attention_mask = attention_mask * ~find_later(event_times, as_of)
        outputs = MCMModelOutput()
        if "encoder" in parts or ("embedding" in parts and self.state is None):
            outputs = self.encode(input_ids, attention_mask, visit_ids, **kwargs)
        if self.state is None or {"embedding", "forecasts"}.isdisjoint(parts):
            return outputs
        if visit_ids is None or event_times is None:
            raise ValueError("The customer state needs `visit_ids` and `event_times`: MCMFeatureExtractor gives them.")
        times = event_times.amax(1) if as_of is None else as_of
        history = (input_ids, attention_mask, visit_ids, event_times, event_values)
        if "embedding" in parts:
            outputs.pooler_output = self.state(self.state.counts(*history, times[:, None]))[:, 0]
        if "forecasts" in parts and self.forecaster is not None and not self.training:
            visits = self.forecaster.read(*history)
            if as_of_days is None and len(self.forecaster.calendar.counts):
                logger.warning_once("Forecasts know no calendar without `as_of_days`, which pipelines give, too.")
            outputs.forecasts = self.select_forecasts(forecast_days).compute(visits, times, as_of_days, known)
        return outputs

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visit_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMModelOutput:
        """The encoder's part of `forward`, whose arguments these are: it reads the latest `config.max_events`."""
        latest = select_latest(input_ids, attention_mask, visit_ids, self.config.max_events)
        hidden, unit_mask = self.embeddings(*latest)
        if self.config.encoder_attention == "causal":
            mask = create_window_mask(self.config, hidden, unit_mask)
        else:
            mask = create_bidirectional_mask(self.config, hidden, unit_mask.long())
        hidden = self.encoder(hidden, attention_mask=mask, **kwargs).last_hidden_state
        return MCMModelOutput(
            last_hidden_state=hidden,
            pooler_output=self._pool(hidden, unit_mask) if self.state is None else None,
            unit_mask=unit_mask.long(),
        )

    def _pool(self, hidden, unit_mask):
        if self.config.encoder_attention == "causal":
            last = (unit_mask.sum(1) - 1).clamp(min=0)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        weight = unit_mask.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


# Approximate number of scores that a training step holds at a time: on a GPU, and on a CPU, where more saves no time.
PART_ELEMENTS = (2**26, 2**22)


@auto_docstring(custom_intro="MCM with the task-aware readout, which gives every label of every task a score.")
class MCMForMultiTaskRecommendation(MCMPreTrainedModel):
    accepts_loss_kwargs = False  # the loss is a mean over customers: equal micro-batches average exactly

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.model = MCMModel(config)
        sizes = config.label_sizes
        self.sampled_labels = 0  # of a task, that a training step scores; 0: all
        self.task_features = [config.features.index(task) for task in config.tasks]
        self.readout_scale = nn.Parameter(torch.ones(len(sizes))) if config.readout_bias else None
        biases = [nn.Parameter(torch.zeros(n)) for n in sizes.values()] if config.readout_bias else []
        self.readout_bias = nn.ParameterList(biases)
        # The most frequent value of each of `label_features` for each label, 0 where there is none.
        # `training/labels.py` fills these buffers.
        if config.label_features:
            for index, size in enumerate(sizes.values()):
                values = torch.zeros(size, len(config.label_features), dtype=torch.int32)
                setattr(self, f"label_values_{index}", nn.Buffer(values))
        self.scorer = None
        if config.scorer:
            has_encoder = config.num_hidden_layers > 0
            self.scorer = LabelScorer([*sizes.values()], config.no_targets, has_encoder, config.scorer_networks)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            for values in self.buffers(recurse=False):  # those of `label_values`
                init.zeros_(values)
            if self.readout_scale is not None:
                init.ones_(self.readout_scale)

    @property
    def fitted_scorer(self) -> LabelScorer | None:
        """The scorer, where there is one whose counts were fitted; else scores are the readout's."""
        return self.scorer if self.scorer is not None and self.scorer.read_settings()[0] else None

    def label_embeddings(self, task: str) -> Tensor:
        """Embeddings e_w `(V, H)` of a task's labels, in the order of their ids. With `label_features` they follow
        equation 1: e_w is the average over the vectors of the label and of its most frequent values."""
        index, tables = self.config.tasks.index(task), cast(Any, self.model.embeddings.events.feature_tables)
        vectors = tables[self.task_features[index]].weight
        if not self.config.label_features:
            return vectors
        values = self.label_values(index).long()
        for name, ids in zip(self.config.label_features, values.unbind(1), strict=True):
            vectors = vectors + tables[self.config.features.index(name)](ids)
        return vectors / (1 + (values > 0).sum(1, keepdim=True))

    def label_values(self, task: int) -> Tensor:
        """Most frequent values of `config.label_features` for each label of a task, of shape `(V, label features)`."""
        return self.get_buffer(f"label_values_{task}")

    @torch.no_grad()
    def initialize_from_popularity(self, counts: Mapping[str, Tensor]):
        """Initialises label biases, where the model has them, from training counts by task, each `(V,)`: the log of
        (count + 1) / sum of (count + 1)."""
        for bias, task in zip(self.readout_bias, self.config.tasks, strict=False):
            shares = counts[task].float() + 1
            bias.copy_(torch.log(shares / shares[FIRST_LABEL:].sum()))

    @can_return_tuple
    @auto_docstring(custom_intro="Scores histories; with `labels` by the encoder's readout alone, with its loss.\n")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visit_ids: Tensor | None = None,
        event_times: Tensor | None = None,
        prefix_ends: Tensor | None = None,
        labels: Tensor | None = None,
        label_prefixes: Tensor | None = None,
        label_weights: Tensor | None = None,
        event_values: Tensor | None = None,
        as_of: Tensor | None = None,
        horizon_days: float | None = None,
        tasks: Sequence[str] | None = None,
        parts: Collection[str] = PARTS,
        left_out: Sequence[str] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMRecommendationOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            Feature ids of each event, oldest event first, padded on the right with 0. The first row is the start row.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an event is real, 0 on padding. Default: 1 where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Visit of each event, counted from 0 for each customer. Required by the scorer and the customer state, and
            if `config.encoder_unit` is "visit".
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Days from the customer's first event to each event, in ascending order. Required by the scorer and the
            customer state.
        prefix_ends (`torch.LongTensor` of shape `(batch_size, prefixes)`, *optional*):
            Index of the last event of each prefix that is scored, by the readout alone. It requires a causal encoder,
            or a masked event at each prefix end. Default: one prefix, the whole sequence.
        labels (`torch.LongTensor` of shape `(batch_size, num_labels, num_tasks)`, *optional*):
            Label ids of the targets, the events that followed the prefixes. Ids below 2, such as -100, are ignored.
            With labels the readout alone is scored, also where counts were fitted.
        label_prefixes (`torch.LongTensor` of shape `(batch_size, num_labels)`, *optional*):
            Prefix that each target followed, as an index into `prefix_ends`. Default: the first prefix.
        label_weights (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
            Weight of each target in its customer's mean loss. Default: equal weights.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            Values of `config.summed_features` of each event, 0 where one is missing. Required by the customer state
            if the config has summed features.
        as_of (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            As in [`MCMModel`]. Evaluation at a cutoff gives the cutoff.
        horizon_days (`float`, *optional*):
            30: scores are those of labels that come within 30 days. Default: of labels that come in the next visit.
        tasks (`Sequence[str]`, *optional*):
            Tasks whose labels the fitted scorer scores; fewer take less time. Default: all tasks.
        parts (collection of `str`):
            As in [`MCMModel`]. The encoder runs if it is among the parts, or if the scores of the tasks read it;
            nothing else is computed in training with `labels`.
        left_out (`Sequence[str]`):
            That of [`~scorer_mcm.LabelScorer`]'s `score`: by customer, a group of numbers that is not read.

        Returns:
            [`MCMRecommendationOutput`].

        Raises:
            ValueError: If inputs are out of range or in the wrong order (outside of training), or an input that the
                config requires is missing.
        """
        tasks = list(self.config.tasks if tasks is None else tasks)
        scorer = self.fitted_scorer
        if labels is not None or prefix_ends is not None:
            scorer = None  # the readout, whose loss or prefixes are asked for
        check_horizon(horizon_days, scorer)
        question = NEXT_VISIT if horizon_days is None else WITHIN
        places = [self.config.tasks.index(task) for task in tasks]
        reading = tasks if scorer is None else self.tasks_with_encoder(tasks, horizon_days)
        if labels is not None and self.training:
            parts = ()
        if labels is not None or reading:
            parts = {*parts, "encoder"}
        history: dict[str, Any] = {"input_ids": input_ids, "visit_ids": visit_ids, "event_times": event_times}
        history |= {"attention_mask": attention_mask, "as_of": as_of}
        outputs = self.model(**history, event_values=event_values, parts=parts, **kwargs)
        ends = prefix_ends
        if ends is not None and input_ids.shape[1] > self.config.max_events:
            most = f"the encoder reads the latest {self.config.max_events} (max_events): keep these"
            raise ValueError(f"`prefix_ends` of histories of {input_ids.shape[1]} rows, and {most}.")
        if ends is not None and self.config.encoder_unit == "visit":
            ends = cast(Any, visit_ids).gather(1, ends)  # units
        loss = by_task = logits = None
        if labels is not None:
            loss, losses = self.compute_losses(outputs, input_ids, labels, ends, label_prefixes, label_weights)
            by_task = dict(zip(self.config.tasks, losses.detach(), strict=True))
        if labels is None or not self.training:
            readout = self.read_out(outputs, reading, ends)
            logits = {task: each.scores for task, each in readout.items()}
            if scorer is not None:
                counted = read_histories(self.config, history, tasks)
                scores = scorer.score(places, counted, [readout.get(task) for task in tasks], question, left_out)
                logits = dict(zip(tasks, scores, strict=True))
        return MCMRecommendationOutput(
            loss=loss,
            logits=logits,
            task_losses=by_task,
            pooler_output=outputs.pooler_output,
            forecasts=outputs.forecasts,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def read_out(self, outputs: Any, tasks: Sequence[str], prefix_ends: Tensor | None = None) -> dict[str, Readout]:
        """What the encoder says of the labels of tasks, with scores `(B, V)` after whole histories, or `(B, P, V)`
        after the prefixes that end at the units `prefix_ends` `(B, P)`."""
        if not tasks:
            return {}
        hidden, unit_mask = outputs.last_hidden_state, outputs.unit_mask.bool()
        ends, shape = None, hidden.shape[:1]
        if prefix_ends is not None:
            shape = prefix_ends.shape
            customers = torch.arange(shape[0], device=hidden.device)[:, None].expand(shape)
            ends = PrefixEnds(customers.flatten(), prefix_ends.flatten())
        result = {}
        for task, labels in zip(tasks, self.task_labels(tasks), strict=True):
            scores = self._score_labels(hidden, unit_mask, [labels], ends)
            result[task] = Readout(scores.unflatten(0, shape), labels.vectors)
        return result

    def compute_losses(
        self,
        outputs: Any,
        input_ids: Tensor,
        labels: Tensor,
        prefix_ends: Tensor | None,
        label_prefixes: Tensor | None,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Total loss by equation 4, and the loss of each task, of shape `(T,)`, computed for some customers at a time
        to save memory. The arguments are those of `forward`, with units as `prefix_ends`."""
        hidden, unit_mask = outputs.last_hidden_state, outputs.unit_mask.bool()
        task_labels = self.task_labels(self.config.tasks)
        if sample_size := self.sampled_labels if self.training else 0:
            certain = torch.cat([input_ids[..., self.task_features], labels], 1).flatten(0, 1)
            task_labels = [labels.sample(certain[:, task], sample_size) for task, labels in enumerate(task_labels)]
        sizes = [len(labels.vectors) for labels in task_labels]
        units = unit_mask.sum(1).tolist()
        ends = None  # (B, N): last unit of the prefix that each target followed
        if prefix_ends is not None:
            ends = prefix_ends.gather(
                1, torch.zeros_like(labels[..., 0]) if label_prefixes is None else label_prefixes
            )

        def compute(part: list[int], hidden: Tensor) -> Tensor:
            """Share of some customers in the losses."""
            longest = max(1, *(units[customer] for customer in part))
            indices = [each.indices(labels[part, :, task]) for task, each in enumerate(task_labels)]
            label_ids = torch.stack(indices, -1)
            # Only prefixes with a target are scored. One has many targets, so it is scored once: a row of the scores.
            is_target = (label_ids >= FIRST_LABEL).any(-1)
            rows, prefixes = find_prefixes(is_target, None if ends is None else ends[part], longest)
            scores = self._score_labels(hidden[:, :longest], unit_mask[part, :longest], task_labels, prefixes)
            targets = Targets.find(label_ids, rows, None if weights is None else weights[part], sizes)
            losses = task_losses(scores, targets, [each.log_counts for each in task_labels])
            return losses * (len(part) / len(units))  # a loss is a mean over customers

        parts = group_customers(units, PART_ELEMENTS[hidden.device.type == "cpu"] // sum(sizes))
        return compute_in_parts(compute, parts, hidden, [table for labels in task_labels for table in labels.tables])

    def _score_labels(
        self,
        hidden: Tensor,
        unit_mask: Tensor,
        task_labels: Sequence[TaskLabels],
        ends: PrefixEnds | None = None,
    ) -> Tensor:
        """Scores `(B, E)`, or `(R, E)` with `ends`, of the readout, the labels of all given tasks as columns. Ids 0
        and 1, which are no labels, are masked with a large negative value."""
        vectors = torch.cat([labels.vectors for labels in task_labels])
        scores = READOUTS[self.config.readout](hidden, vectors, unit_mask, ends)
        masked = scores.new_full((FIRST_LABEL,), torch.finfo(scores.dtype).min / 2)
        offsets = []
        for labels in task_labels:
            bias = scores.new_zeros(len(labels.vectors)) if labels.bias is None else labels.bias.to(scores.dtype)
            offsets += [masked, bias[FIRST_LABEL:]]
        return scores + torch.cat(offsets)

    def task_labels(self, tasks: Sequence[str]) -> list[TaskLabels]:
        """The labels of each task, with the embeddings and parameters that the readout's scores are computed from."""
        result = []
        for task in tasks:
            index = self.config.tasks.index(task)
            vectors = self.label_embeddings(task)
            if self.readout_scale is not None:
                vectors = vectors * self.readout_scale[index]
            result.append(TaskLabels(vectors, self.readout_bias[index] if len(self.readout_bias) else None))
        return result

    def tasks_with_encoder(self, tasks: Sequence[str], horizon_days: float | None = None) -> list[str]:
        """Those of some tasks whose scores read the encoder."""
        if (scorer := self.fitted_scorer) is None:
            return [*tasks]
        reads, question = scorer.read_settings()[1], NEXT_VISIT if horizon_days is None else WITHIN
        return [task for task in tasks if reads[self.config.tasks.index(task)][question]]

    @torch.no_grad()
    def readouts(self, batch: Mapping[str, Any]) -> list[Readout]:
        """What the encoder says after whole histories, by task, from model inputs on any device."""
        history = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask", "visit_ids")}
        return [*self.read_out(self.model(**history, parts=("encoder",)), self.config.tasks).values()]

    def chances(self, log_probabilities: Mapping[str, Tensor], horizon_days: float | None = None) -> dict[str, Tensor]:
        """Chances that labels of tasks are in the next visit, which has several, or come within 30 days if the
        customer comes, from the logarithms of their probabilities by task, each `(B, k)`; without tasks of a
        checkpoint that had no validation cases to fit them on."""
        if self.scorer is None or not log_probabilities:
            return {}
        places = torch.tensor([self.config.tasks.index(task) for task in log_probabilities])
        chance = self.scorer.chance[places, NEXT_VISIT if horizon_days is None else WITHIN]  # (T, 3)
        known, sizes = chance.any(1).tolist(), [each.shape[1] for each in log_probabilities.values()]
        by_column = chance.T.repeat_interleave(torch.tensor(sizes, device=chance.device), 1).double()  # (3, all k)
        log_p = torch.cat([*log_probabilities.values()], 1)  # in double precision as if each task were asked alone
        parts = LabelScorer.chances(by_column, log_p.double()).to(log_p.dtype).split(sizes, 1)
        return {task: part for task, part, is_known in zip(log_probabilities, parts, known, strict=True) if is_known}
