# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Choices of `MCMConfig` that tests share, every one spelled out: a change of the defaults moves no test. And models
whose every parameter has a say.
"""

import torch

# The paper's model, as in configuration/ablations/mcm-final.
PAPER = {
    "augmentation": "random_prefix",
    "encoder_unit": "event",
    "max_position_embeddings": 48,
    "attention_window": None,
    "attention_probs_dropout_prob": 0.1,
    "event_dropout_prob": 0.0,
    "readout": "attentional",
    "readout_bias": False,
    "scorer": False,
    "state_size": 0,
}
# What goes beyond the paper in mcm-base and mcm-tiny, but for the window, the scorer and the customer state.
EXTENDED = PAPER | {
    "augmentation": "all_prefixes",
    "encoder_unit": "visit",
    "readout_bias": True,
}
# A customer state of the log's features, and forecasts from a past that is long enough.
STATE = {"state_size": 8, "summed_features": ["a.b"], "state_features": ["type", "aisle", "weekday"]}
STATE |= {"forecast_window": 300.0}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
# The same as the options of a command that trains.
TINY_OVERRIDES = [f"{name}={value}" for name, value in TINY.items()]


# Without dropout a training draws nothing; and the same as overrides.
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "event_dropout_prob": 0.0}
NO_DROPOUT = [f"{name}={value}" for name, value in STILL.items()]


def pretraining_options(data, folder, *overrides, **options):
    """Words of a command that pre-trains a tiny model, without a recipe; `overrides` are those of its config."""
    chosen = {"data": data, "config": "configuration/mcm-tiny", "recipe": "none", "output_dir": folder}
    chosen |= {"report_to": "none", "disable_tqdm": "true", **options}
    words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return [*words, "--config_overrides", *TINY_OVERRIDES, *overrides]


def from_data(extractor):
    """The fields of a config that a data set decides."""
    return {
        "features": extractor.feature_names,
        "vocabulary_sizes": extractor.vocabulary_sizes,
        "tasks": extractor.tasks,
        "max_events": extractor.max_events,
    }


@torch.no_grad()
def perturb(model):
    """Moves every parameter of a model, so that none is left at 0 without a say; gives the model."""
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    for table in model.model.embeddings.events.feature_tables:
        table.weight[0] = 0  # padding, as `padding_idx` keeps it
    return model
