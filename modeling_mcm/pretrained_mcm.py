# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The base class of all MCM models: what transformers asks of a model beside its forward pass."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention
from transformers.utils import auto_docstring

from .configuration_mcm import MCMConfig
from .counted_memory_mcm import CountedMemory
from .embeddings_mcm import HeterogeneousEmbedding, MCMEmbeddings, ValueEmbedding, digest_bytes
from .files_mcm import check_loaded
from .repeat_memory_mcm import RepeatMemory
from .resizing_mcm import resize_feature_vocabulary
from .state_mcm import CustomerState, Forecasts


@auto_docstring(
    custom_intro="Base class of all MCM models: initialises weights, loads checkpoints, declares supported features."
)
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
    _keys_to_ignore_on_load_missing = [r"values_digest$", r"state\.longest_silence$"]  # older checkpoints lack these

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """Loads a checkpoint as `PreTrainedModel.from_pretrained` does, with the same arguments, and checks it.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder of the checkpoint, or its name on the Hub.
            output_loading_info (`bool`): whether to return the loading report beside the model. With it, weights
                that the model has no place for are reported instead of raised.

        Returns:
            The model, or the model and a `dict` with the loading report.

        Raises:
            ValueError: if the checkpoint has weights that the model has no place for, or vocabularies that the
                weights were not trained with.
        """
        model, loading = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        unexpected = () if output_loading_info else loading["unexpected_keys"]
        check_loaded(model, pretrained_model_name_or_path, unexpected, kwargs.get("subfolder") or "")
        return (model, loading) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module):
        if not isinstance(module, HeterogeneousEmbedding):  # it has no weight of its own
            super()._init_weights(module)
        if isinstance(module, ValueEmbedding):
            if not getattr(module.weight, "_is_hf_initialized", False):  # the flag of the whole weight
                init.normal_(module.weight, std=self.config.hidden_size**-0.5)
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, MCMEmbeddings):
            init.copy_(module.values_digest, digest_bytes(self.config.values_digest))
        elif isinstance(module, RepeatMemory | CountedMemory | CustomerState | Forecasts):
            module.reset_parameters()
        elif isinstance(module, nn.ParameterList):
            for bias in module:
                init.zeros_(bias)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the [`HeterogeneousEmbedding`], which embeds events."""
        return cast(Any, self.base_model).embeddings.events

    def set_input_embeddings(self, value: nn.Module):
        """Replaces the module that embeds events.

        Args:
            value ([`HeterogeneousEmbedding`]): the new module.
        """
        cast(Any, self.base_model).embeddings.events = value

    @torch.no_grad()
    def resize_feature_vocabulary(self, feature: str, values: Sequence[str], feature_extractor: Any) -> None:
        """Appends new values, such as new brands, to the vocabulary of a feature, without training.

        All present weights and scores stay the same to the bit. Each new value starts with the vector of the unknown
        value. Until now it was read as the unknown value, so visits with it are read as before. (Events of one time
        are ordered by their ids, so an encoder of single events may read them in another order.) As a label, a new
        value starts like the rarest label: with the smallest bias, the largest rarity and gains of 0. The counted
        memory knows no followers and no related labels of it. Where related labels have been learned, the scores of
        all labels that the customer met move by one small number, because new labels get a share of the probability.

        Fine-tuning makes the new values differ from each other; create the optimizer after this call. Model, config
        and feature extractor change together: save model and feature extractor.

        Args:
            feature (`str`): name of a categorical feature.
            values (`Sequence[str]`): new values of the feature's column.
            feature_extractor ([`MCMFeatureExtractor`]): feature extractor of this checkpoint; it gets the values too.

        Raises:
            ValueError: if the feature extractor belongs to another checkpoint, the feature is unknown or not
                categorical, a value is present already or is no text, or the model's shape depends on the number of
                the feature's values. In these cases nothing has changed.
        """
        resize_feature_vocabulary(self, feature, values, feature_extractor)

    def _check_resizable(self, feature: str) -> None:
        """Raises a `ValueError` if the model can't take new values of a feature; the base class takes all."""

    def _resize_labels(self, feature: str, number: int) -> None:
        """Appends `number` new labels to the task that predicts `feature`, if the model has such a task."""


__all__ = ["MCMPreTrainedModel"]
