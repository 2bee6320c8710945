# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Configs with a name, such as `--config mcm-base`. They stand here so that an installed package has them."""

from pathlib import Path
from typing import Any

from modeling_mcm.configuration_mcm import MCMConfig

Fields = dict[str, Any]  # of `MCMConfig`, or options, by name
SIZES: dict[str, Fields] = {
    "mcm-mini": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256},
    "mcm-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    "mcm-base": {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024},
}


def make_config(name: str) -> Fields:
    """The fields of a config that do not depend on the data: of one of `SIZES`, of a folder with a
    config.json, or of a name on the Hub. A folder goes before a built-in config of its name."""
    if name in SIZES and not Path(name).is_dir():
        return {"model_type": MCMConfig.model_type, **SIZES[name]}
    return MCMConfig.get_config_dict(name)[0]
