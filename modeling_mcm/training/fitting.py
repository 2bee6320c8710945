# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is fitted outside of the Trainer's steps: the labels' usual values before them, the customer state after."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import POPULARITY_FILE
from modeling_mcm.forecaster_mcm import LONGEST_RATIO
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.training.moments import train_state
from modeling_mcm.training.resuming import FORECAST_FIELDS

logger = logging.get_logger(__name__)
DECIDED = 0.9  # a label determines a feature if this share of events has the label's most frequent value


def trainable(ends: NDArray) -> NDArray[np.int64]:
    """The customers with at least two events before the validation cutoff. Raises `ValueError` if there is none."""
    several = np.flatnonzero(ends > 1)
    if not len(several):
        raise ValueError(
            f"None of the {len(ends)} customers has two events before the validation cutoff, so there is nothing to "
            "train on: move the cutoff dates of the event schema."
        )
    return several


def popularity(data: PreparedData, config: MCMConfig) -> dict[str, torch.Tensor]:
    """Reads how often each label was a target in the training period, by task of shape `(labels,)`."""
    table = pq.read_table(data.folder / POPULARITY_FILE).to_pandas()
    counts = {}
    for task, size in config.label_sizes.items():
        task_rows = table[table["feature"] == task]
        counts[task] = torch.zeros(size)
        counts[task][torch.as_tensor(task_rows["id"].to_numpy().copy())] = torch.as_tensor(
            task_rows["target_count"].to_numpy().copy(), dtype=torch.float32
        )
    return counts


@torch.no_grad()
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Any) -> dict[str, list[str]]:
    """Determines each label's most frequent value of `label_features` in the training period. It does so for the
    features that a task's labels determine: those where at least nine in ten events, over all labels, have their
    label's most frequent value. Other features stay out of the labels' embeddings. Returns `dict[str, list[str]]`: by
    task the features that its labels determine."""
    config = model.config
    decided: dict[str, list[str]] = {}
    for task_index, task in enumerate(config.tasks):
        size, decided[task] = config.label_sizes[task], []
        for column, name in enumerate(config.label_features):
            if name == task:
                continue
            values = config.vocabulary_sizes[config.features.index(name)]
            pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
            columns = rows.select_columns([f"task_{task}", f"feature_{name}", "validation_end"]).with_format("arrow")
            for table in columns.iter(1024):
                lengths = pc.list_value_length(table[f"task_{task}"]).to_numpy()
                index_in_row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                trained = index_in_row < np.repeat(table["validation_end"].to_numpy(), lengths)
                label, value = (pc.list_flatten(table[key]).to_numpy() for key in (f"task_{task}", f"feature_{name}"))
                is_pair = trained & (label >= FIRST_LABEL) & (value >= FIRST_LABEL)
                keys = np.concatenate([pairs, label[is_pair].astype(np.int64) * values + value[is_pair]])
                weights = np.concatenate([counts, np.ones(is_pair.sum(), np.int64)])
                pairs, where = np.unique(keys, return_inverse=True)
                counts = np.bincount(where, weights, len(pairs)).astype(np.int64)
            if not len(pairs):
                continue
            order = np.lexsort((pairs, -counts, pairs // values))  # by label, most frequent value first
            labels = (pairs // values)[order]
            first = order[np.append(True, labels[1:] != labels[:-1])]
            if counts[first].sum() >= DECIDED * counts.sum():
                decided[task].append(name)
                usual = torch.zeros(size, dtype=torch.int32)
                usual[torch.as_tensor(pairs[first] // values)] = torch.as_tensor(pairs[first] % values).int()
                model.label_values(task_index)[:, column] = usual
    return decided


def learn_state(model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int, most: int) -> None:
    """Trains the customer state and its forecasts at times of the training period, in at most so many steps."""
    rows, schema = data.rows, data.schema
    ends = np.asarray(rows["validation_end"])
    several = trainable(ends)
    cutoff = None if schema.leaves_one_out else float(schema.cutoff_seconds("validation"))
    requested = sorted(model.config.forecast_days)
    prepared = PreparedRows(rows, several, ends[several])
    losses = train_state(model.model, data.extractor, prepared, cutoff, seed, most)
    words = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
    config, told = model.config, model.model.customer_forecasts
    for name in FORECAST_FIELDS:
        setattr(config, name, getattr(model.model.config, name))
    logger.info(f"The customer state is trained. Losses: {words}. It has forecasts for {_days(config.head_days)}.")
    if shipped := [day for day in told.days if day not in config.head_days]:
        logger.info(
            f"The training period is too short to learn {_days(shipped)}: the shipped forecaster answers there."
        )
    if missed := [day for day in requested if day not in told.days]:
        logger.warning(
            f"There are no forecasts for {_days(missed)}, because the shipped forecaster goes up to "
            f"{LONGEST_RATIO:g} times the training period, {config.forecast_window:.0f} days. Choose a later "
            "validation cutoff, or shorter horizons (--config_overrides 'forecast_days=[7,30]')."
        )


def _days(days: Sequence[float]) -> str:
    return f"{', '.join(f'{day:g}' for day in days) or 'no'} days"
