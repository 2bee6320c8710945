# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Translates the config.json of earlier versions to the fields of this version, so that their checkpoints load.

Until version 0.1 the config had 57 fields, and its defaults were the paper's model. A config.json with a removed field
is read as one of that version: fields that it leaves out get the defaults of that version.
"""

from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

TRAINING = "it is an option of pre-training now (`mcm pretrain`, `modeling_mcm.losses_mcm.Objective`)"
MEMORY = "`repeat_memory` says whether there is a repeat memory; its half-lives and its network are constants"
# Removed fields, and what replaces them.
REMOVED = {
    "encoder_attention": "`augmentation` decides it, causal for 'all_prefixes'",
    "target": "`encoder_unit` decides it, the next visit where units are visits",
    "readout_scale": "`readout_bias` says whether there are biases and scales",
    "use_position_embeddings": "`max_position_embeddings` None says that there are none",
    "repeat_half_lives_days": MEMORY,
    "repeat_half_lives_units": MEMORY,
    "repeat_network_size": MEMORY,
    "target_half_life_days": TRAINING,
    "ranking_loss_weight": TRAINING,
    "sampled_labels": TRAINING,
    "mask_probability": TRAINING,
    "trained_tasks": "name the tasks that are trained in `tasks`",
    "label_mean": "the head keeps it among its weights",
    "label_std": "the head keeps it among its weights",
    "tie_label_embeddings": "labels have the embeddings of the input",
    "embedding_layer_norm": "the embeddings are always normed",
    "embedding_initializer_range": "it is 1 / sqrt(hidden_size)",
    "state_half_lives_days": "a constant of `state_mcm`",
    "action_half_lives_days": "a constant of `action_counts_mcm`",
    "action_dropout": "a constant of `action_mcm`",
    "action_embedding": "an action is its features",
    "action_ids": "an action is its features",
}
# Defaults of version 0.1 for fields that have another default now, or were removed.
EARLIER_DEFAULTS: dict[str, Any] = {
    "augmentation": "random_prefix",
    "encoder_unit": "event",
    "attention_window": None,
    "attention_probs_dropout_prob": 0.1,
    "event_dropout_prob": 0.0,
    "max_position_embeddings": 300,
    "readout_bias": False,
    "state_size": 0,
    "encoder_attention": "bidirectional",
    "readout_scale": False,
    "use_position_embeddings": True,
    "repeat_half_lives_days": [],
    "repeat_half_lives_units": [],
    "repeat_network_size": 0,
}
# Removed fields of which one value is still supported.
ONE_VALUE: dict[str, Any] = {
    "tie_label_embeddings": True,
    "embedding_layer_norm": True,
    "state_half_lives_days": [7.0, 30.0, 90.0],
    "action_half_lives_days": [14.0, 60.0, 365.0],
    "action_embedding": "features",
    "action_ids": [],
    "label_mean": 0.0,
    "label_std": 1.0,
}
# Former fields that are constants of `MCMConfig` now; other values are still read.
CONSTANTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
    "pad_token_id": 0,
}
# Supported repeat memories of version 0.1 (half-lives and network size): none, and the shipped one.
MEMORIES = {
    (): False,
    (7.0, 30.0, 120.0, 2.0, 6.0, 20.0, 60.0, 16): True,
}


def of_this_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a config.json of any version to the fields of this version.

    Args:
        values (`Mapping[str, Any]`): content of a config.json.

    Returns:
        `dict[str, Any]`: the fields of this version; unchanged if the file is of this version.

    Raises:
        ValueError: if this version does not support a value; the message names it and what to do.
    """
    removed = [name for name in values if name in REMOVED]
    if not removed:
        return dict(values)
    earlier = EARLIER_DEFAULTS | dict(values)
    faults = [
        f"`{name}` is {earlier[name]!r}, and {value!r} is the one value that is left ({REMOVED[name]})"
        for name, value in ONE_VALUE.items()
        if name in earlier and earlier[name] != value
    ]
    half_lives = [*earlier["repeat_half_lives_days"], *earlier["repeat_half_lives_units"]]
    memory = (*map(float, half_lives), earlier["repeat_network_size"]) if half_lives else ()
    split = len(earlier["repeat_half_lives_days"]) in (0, 3)
    if memory not in MEMORIES or not split:
        faults.append(
            f"the repeat memory has the half-lives {earlier['repeat_half_lives_days']} days and "
            f"{earlier['repeat_half_lives_units']} units and a network of {earlier['repeat_network_size']}, and there "
            "is one now: [7, 30, 120] days, [2, 6, 20, 60] units and 16"
        )
    if earlier["readout_scale"] != earlier["readout_bias"]:
        faults.append(
            f"`readout_scale` is {earlier['readout_scale']} and `readout_bias` {earlier['readout_bias']}, and a model "
            "has both or neither"
        )
    if faults:
        raise ValueError(
            f"This config.json is of an earlier version, and can't be read by this one: {'; '.join(faults)}. "
            "Pre-train the model again (mcm pretrain), or go on with version 0.1 of modeling-mcm."
        )
    is_constant = {name for name, value in CONSTANTS.items() if earlier.get(name) == value}
    new = {name: value for name, value in earlier.items() if name not in REMOVED and name not in is_constant}
    new["repeat_memory"] = MEMORIES[memory]
    if not earlier["use_position_embeddings"]:
        new["max_position_embeddings"] = None
    if earlier["encoder_attention"] == "causal":
        new["augmentation"] = "all_prefixes"
    by_reason: dict[str, list[str]] = {}
    for name in removed:
        by_reason.setdefault(REMOVED[name], []).append(f"`{name}`")
    reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
    logger.warning(
        "This config.json is of an earlier version, and the model answers as it did; save it again to have one of "
        f"this version. Fields that are gone, and what stands in their place: {reasons}."
    )
    return new
