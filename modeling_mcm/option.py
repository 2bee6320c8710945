# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How a dataclass says which options a command has."""

from dataclasses import MISSING
from typing import Any

from transformers.hf_argparser import HfArg

REQUIRED = MISSING  # default of an option that has to be given


def option(help: str, default: Any = None, **metadata: Any) -> Any:
    """`HfArg` of transformers, with the help first. `metadata` are more arguments of `argparse`, as `choices`."""
    factory: Any = MISSING
    if isinstance(default, list):
        default, factory = MISSING, default.copy
    return HfArg(default=default, default_factory=factory, help=help, metadata=metadata)
