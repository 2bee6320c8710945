# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Appends new values to a feature of a trained model; model, config and feature extractor change together."""

from collections.abc import Sequence
from typing import Any

import torch

from .configuration_mcm import FIRST_LABEL
from .embeddings_mcm import digest_bytes, grow


@torch.no_grad()
def resize_feature_vocabulary(model: Any, feature: str, values: Sequence[str], feature_extractor: Any) -> None:
    """Implements [`MCMPreTrainedModel.resize_feature_vocabulary`], which describes it.

    Args:
        model ([`MCMPreTrainedModel`]): the model, changed in place.
        feature (`str`): name of a categorical feature.
        values (`Sequence[str]`): new values of the feature's column.
        feature_extractor ([`MCMFeatureExtractor`]): feature extractor of the same checkpoint, changed in place.

    Raises:
        ValueError: if the feature can't get these values; nothing has changed then.
    """
    config, base = model.config, model.base_model
    sizes = dict(zip(config.features, config.vocabulary_sizes, strict=True))
    known_sizes = dict(zip(feature_extractor.feature_names, feature_extractor.vocabulary_sizes, strict=True))
    if known_sizes != sizes:
        raise ValueError(
            f"The feature extractor's vocabularies have sizes {known_sizes}, the model's {sizes}: take the feature "
            "extractor that was saved with this checkpoint."
        )
    model._check_resizable(feature)
    sizes[feature] = sizes.get(feature, 0) + len(values)
    feature_extractor.add_values(feature, values)
    index = config.features.index(feature)
    grow(base.embeddings.events.feature_tables[index], len(values), FIRST_LABEL - 1)  # like the unknown value
    if base.state is not None:
        config.state_features, config.taste_features = config.counted_features  # stay as chosen by the earlier sizes
        base.state.grow(index, len(values))
    model._resize_labels(feature, len(values))
    config.vocabulary_sizes = list(sizes.values())
    if config.values_digest is not None:  # None in checkpoints of versions before 0.2
        config.values_digest = feature_extractor.values_digest
        base.embeddings.values_digest.copy_(digest_bytes(config.values_digest))


__all__ = ["resize_feature_vocabulary"]
