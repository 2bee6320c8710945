# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is fitted outside of the Trainer's steps: counted tables and their gains before them, and after them the scales
of the parts of a score, the customer state and its forecasts."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.data.dataset import FOLLOWERS_FILE, POPULARITY_FILE
from modeling_mcm.forecaster_mcm import LONGEST_RATIO
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.training.counts import fill_followers, fill_label_values, fill_related, training_labels
from modeling_mcm.training.gains import CASES, fit_followers, fit_scales
from modeling_mcm.training.moments import train_state
from modeling_mcm.training.resuming import RunError

logger = logging.get_logger(__name__)
FIT_BATCH = 32  # customers in one batch when gains and scales are fitted


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


def fit_counted_memory(model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int) -> None:
    """Fills the tables of the counted memory, and fits how much the followers of a label count in a score. Raises
    `RunError` if the data set has no table of followers and the model needs one."""
    config, followers = model.config, data.folder / FOLLOWERS_FILE
    rows = data.rows
    if config.label_features:
        for task, decided in fill_label_values(model, rows).items():
            logger.warning(f"A label of {task} determines: {', '.join(decided) or 'no other feature'}.")
    if config.related_tasks:
        logger.warning(f"Computing habits and related labels of {', '.join(config.related_tasks)}.")
        fill_related(model, training_labels(rows, config.tasks))
    if config.follower_tasks:
        if not followers.is_file():
            words = "prepare it again (mcm prepare --overwrite)."
            raise RunError(f"{data.folder} has no {FOLLOWERS_FILE}: {words}")
        fill_followers(model, pq.read_table(followers), pq.read_table(data.folder / POPULARITY_FILE))
        collator = MCMCollator(data.extractor, config, "train", seed=seed, objective=model.objective)
        customers = PreparedRows(rows, trainable(np.asarray(rows["validation_end"])))
        order = np.random.default_rng(seed).permutation(len(customers)).tolist()
        batches = (
            collator(customers.__getitems__(order[at : at + FIT_BATCH])) for at in range(0, len(order), FIT_BATCH)
        )
        for task, losses in fit_followers(model, batches, popularity(data, config), seed).items():
            words = f"{losses['before']:.3f} before and {losses['after']:.3f} after their weights were learned"
            logger.warning(f"Followers of {task}: the mean loss of a target was {words}.")


def fit_score_scales(model: MCMForMultiTaskRecommendation, collator: MCMCollator, rows: PreparedRows) -> None:
    """Fits on validation cases how much each part of a score counts, and logs the scales."""
    # Sorted, because the rows are sorted by length, so that a batch needs little padding.
    order = np.sort(np.random.default_rng(0).permutation(len(rows))[:CASES]).tolist()
    batches = (collator(rows.__getitems__(order[at : at + FIT_BATCH])) for at in range(0, len(order), FIT_BATCH))
    for task, scales in fit_scales(model, batches).items():
        words = ", ".join(f"{name} {value:.3g}" for name, value in scales.items())
        logger.warning(f"Weights of the parts of the scores of {task}, learned on validation cases: {words}.")


def learn_state(model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int) -> None:
    """Trains the customer state and its forecasts on moments of the training period."""
    rows, schema = data.rows, data.schema
    ends = np.asarray(rows["validation_end"])
    several = trainable(ends)
    cutoff = None if schema.leaves_one_out else float(schema.cutoff_seconds("validation"))
    requested = sorted(model.config.forecast_days)
    losses = train_state(model.model, data.extractor, PreparedRows(rows, several, ends[several]), cutoff, seed)
    words = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
    config, told = model.config, model.model.customer_forecasts
    for name in ("forecast_days", "learned_days", "forecast_window", "target_features", "target_types"):
        setattr(config, name, getattr(model.model.config, name))
    logger.warning(f"The customer state is trained. Losses: {words}. It has forecasts for {_days(config.head_days)}.")
    if shipped := [day for day in told.days if day not in config.head_days]:
        logger.warning(
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
