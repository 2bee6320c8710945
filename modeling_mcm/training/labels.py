# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the training period says of labels: how often each was a target, and which features it determines. None of it
is trained, and nothing after the validation cutoff is read.

Shapes: V labels of a task.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import load_columns
from modeling_mcm.evaluation.cases import read_history
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation

DECIDED = 0.9  # a label determines a feature if this share of events has the label's most frequent value


def popularity(data: PreparedData, config: MCMConfig) -> dict[str, Tensor]:
    """Counts how often each label was a target in the training period, by task of shape `(labels,)`."""
    return {
        task: torch.from_numpy(np.bincount(read_history(data.rows, task).label, minlength=size))
        for task, size in config.label_sizes.items()
    }


def categorical_features(extractor: MCMFeatureExtractor) -> list[str]:
    """The categorical features of events, without the token type: labels may determine them."""
    own = {*extractor.layout.profile, extractor.token_type_feature}
    return [name for name in extractor.feature_names if name in extractor.vocabularies and name not in own]


def find_usual_values(rows: Dataset, config: MCMConfig, task: str, features: Sequence[str]) -> dict[str, NDArray]:
    """Finds the features that a task's labels determine: those where at least nine in ten events of the training
    period, over all labels, have their label's most frequent value. Returns by feature these values `(V,)`, 0 for a
    label without any."""
    sizes = dict(zip(config.features, config.vocabulary_sizes, strict=True))
    columns = {name: f"feature_{name}" for name in features if name != task}
    batch = load_columns(rows, ["validation_end", f"task_{task}", *columns.values()])
    labels, values = batch.column(f"task_{task}"), dict[str, NDArray]()
    is_labelled = (batch.places < batch.column("validation_end")[batch.row]) & (labels >= FIRST_LABEL)
    for name, column in columns.items():
        own = np.flatnonzero(is_labelled & (batch.column(column) >= FIRST_LABEL))
        pairs = labels[own], batch.column(column)[own]
        counts = csr_array((np.ones(len(own)), pairs), shape=(sizes[task], sizes[name]))
        if counts.nnz and counts.max(axis=1).sum() >= DECIDED * counts.sum():
            values[name] = counts.argmax(axis=1)  # of equally frequent values the first one
    return values


@torch.no_grad()
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Dataset) -> dict[str, list[str]]:
    """Sets each label's values of `label_features`, see [`find_usual_values`]. Other features stay out of the labels'
    embeddings. Returns `dict[str, list[str]]`: by task the features that its labels determine."""
    config, decided = model.config, dict[str, list[str]]()
    for index, task in enumerate(config.tasks):
        usual = find_usual_values(rows, config, task, config.label_features)
        for name, values in usual.items():
            model.label_values(index)[:, config.label_features.index(name)] = torch.from_numpy(values).int()
        decided[task] = [*usual]
    return decided
