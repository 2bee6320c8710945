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
    features_before = config.counted_features
    sizes[feature] = sizes.get(feature, 0) + len(values)
    resized = type(config).from_dict(config.to_dict() | {"state_features": features_before[0]})
    resized.vocabulary_sizes = list(sizes.values())
    if base.state is not None and feature in config.features and resized.counted_features != features_before:
        raise ValueError(
            f"{feature!r} would have {sizes[feature]} ids, and the customer state counts a feature of so many in "
            "another way than one of as few as now, or not at all: pre-train a model with the new values."
        )
    feature_extractor.add_values(feature, values)
    place = config.features.index(feature)
    grow(base.embeddings.events.feature_tables[place], len(values), FIRST_LABEL - 1)  # like the unknown value
    if base.state is not None:
        config.state_features = features_before[0]  # stay as chosen by the earlier sizes
        base.state.grow(place, len(values))
    model._resize_labels(feature, len(values))
    config.vocabulary_sizes = list(sizes.values())
    if config.values_digest is not None:  # None in checkpoints of versions before 0.2
        config.values_digest = feature_extractor.values_digest
        base.embeddings.values_digest.copy_(digest_bytes(config.values_digest))


__all__ = ["resize_feature_vocabulary"]
