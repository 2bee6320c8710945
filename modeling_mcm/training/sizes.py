# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The models that are trained by name: `--config mcm-base` needs no folder, so an installed package has them."""

from pathlib import Path
from typing import Any

from modeling_mcm.configuration_mcm import MCMConfig

SIZES: dict[str, dict[str, Any]] = {
    "mcm-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    "mcm-base": {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024},
}


def config_of(name: str) -> dict[str, Any]:
    """The fields of a config that are chosen before the data are known.

    Args:
        name (`str`): `mcm-tiny` or `mcm-base`, or a folder with a config.json, or a name on the Hub. A folder of that
            name goes before the built-in model.
    """
    if name in SIZES and not Path(name).is_dir():
        return {"model_type": MCMConfig.model_type, **SIZES[name]}
    return MCMConfig.get_config_dict(name)[0]


__all__ = ["SIZES", "config_of"]
