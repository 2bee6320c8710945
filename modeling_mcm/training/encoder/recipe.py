# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe: chooses the encoder's unit and its training settings from measures of the log.

A log of visits with many events (groceries) and a log of single events (clicks, reviews, films) need different
encoders. Preparation computes the measures (`modeling_mcm.preparation.rows.measure`), and only this file reads them.
`mcm pretrain` prints a sentence for every choice; its options override the choices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_mcm.configuration_mcm import MCMConfig

Fields = dict[str, Any]  # of `MCMConfig`, or options, by name
# Configs with a name, such as `--config mcm-base`: here, so that an installed package has them
SIZES: dict[str, Fields] = {
    "mcm-mini": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256},
    "mcm-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    "mcm-base": {},  # the defaults of `MCMConfig`
}
# Share of customers with a single visit from which the next visit is no target, because most customers have none.
ONE_VISIT = 0.5
SEVERAL = 1.5  # mean number of target events of a visit above which a visit may be one unit
MANY_LABELS, SAMPLED = 1_000, 256  # number of labels from which training samples labels, and size of the sample
# Number of target events from which the encoder is mcm-tiny, and not mcm-mini: of visits, and of events
LARGE, LARGE_BY_EVENT = 100_000, 2_000_000
SHORT = 50  # mean number of target events of a customer below which batches are large
# Encoders of events. `mcm pretrain` replaces 300 by the longest input of the data.
BY_EVENT: Fields = {
    "encoder_unit": "event",
    "max_position_embeddings": 300,
    "attention_window": None,
    "readout": "last",
    "event_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.1,
}
# Encoders of visits. They need no positions: a feature gives the days since the visit before.
BY_VISIT = {name: getattr(MCMConfig, name) for name in BY_EVENT}
# Training ends after so many epochs in a row without a better one, and at least so many steps.
PATIENCE, PATIENT_STEPS = 3, 500
TRAINING: Fields = {
    "learning_rate": 0.001,
    "ema_decay": 0.99,
    "lr_scheduler_type": "constant_with_warmup",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "early_stopping_patience": PATIENCE,
    "num_train_epochs": 60.0,
    "target_half_life_days": 0.0,
    "per_device_train_batch_size": 64,
    "warmup_steps": 100,
}


@dataclass(frozen=True)
class Recipe:
    """Default settings of pre-training for a data set."""

    size: str = "mcm-base"  # the model's config, where `--config` names none
    config: Fields = field(default_factory=dict)  # further fields of `MCMConfig`
    training: Fields = field(default_factory=dict)  # options of `mcm pretrain`
    reasons: list[str] = field(default_factory=list)  # a sentence on the reason of each group of settings


def recipe_for(measures: Mapping[str, int], labels: int, features: Sequence[str] = (), repeats: bool = True) -> Recipe:
    """Chooses the settings of pre-training by the measures in a data set's manifest; without any, nothing is chosen.
    `labels` is the number of labels of the largest task. `features` are candidates for `label_features`: categorical
    features of events without the token type. `repeats`: whether customers have a label of that task again."""
    if not measures or not measures["visits"]:
        return Recipe(reasons=["The data set has no measures, so nothing is chosen by them: prepare it again."])
    targets, customers = measures["targets"], measures["customers"]
    visit_targets = targets / measures["visits"]
    one_visit = measures["one_visit"] / customers
    reason = (
        f"A visit has {visit_targets:.1f} events to predict, {one_visit:.0%} of the customers have one visit, and "
        "labels "
    )
    reason += "come again: " if repeats else "do not come again: "
    large = LARGE_BY_EVENT
    if repeats and visit_targets > SEVERAL and one_visit < ONE_VISIT:
        config, large = BY_VISIT, LARGE
        training = TRAINING | {"per_device_train_batch_size": 16, "target_half_life_days": 30.0}
        reasons = [reason + "visits are read, and the next visit is predicted."]
    else:
        config = BY_EVENT | {"label_features": list(features)}
        training = TRAINING | ({} if targets < SHORT * customers else {"per_device_train_batch_size": 32})
        reasons = [reason + "events are read and predicted."]
        if features:
            reasons.append("A label's embedding includes the features that it determines, such as an item's category.")
    if labels > MANY_LABELS:
        training["sampled_labels"] = SAMPLED
        reasons.append(
            f"Some tasks have more than {MANY_LABELS:,} labels: a training step scores those of its batch and "
            f"{SAMPLED:,} others."
        )
    size = "mcm-mini" if targets < large else "mcm-tiny"
    reasons.append(f"{targets:,} events to predict: the encoder is an {size}, unless --config names another.")
    epochs = math.ceil(PATIENT_STEPS * training["per_device_train_batch_size"] / customers)
    training["early_stopping_patience"] = max(PATIENCE, epochs)
    reasons.append(
        f"At most {training['num_train_epochs']:g} epochs; {training['early_stopping_patience']} in a row without a "
        "lower loss of counts and encoder together, on validation, end the training."
    )
    return Recipe(size, {"augmentation": "all_prefixes", **config}, training, reasons)


def make_config(name: str) -> Fields:
    """The fields of a config that do not depend on the data: of one of `SIZES`, of a folder with a
    config.json, or of a name on the Hub. A folder goes before a built-in config of its name."""
    if name in SIZES and not Path(name).is_dir():
        return SIZES[name]
    return MCMConfig.get_config_dict(name)[0]
