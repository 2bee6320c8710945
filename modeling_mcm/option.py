# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How a dataclass says which options a command has."""

from collections.abc import Callable
from dataclasses import MISSING
from typing import Any

from transformers.hf_argparser import HfArg


def option(default: Any = MISSING, help: str = "", factory: Callable[[], Any] | None = None, **metadata: Any) -> Any:
    """`HfArg` of transformers, with the default first. `metadata` are more arguments of `argparse`, as `choices`."""
    if isinstance(default, list):
        default, factory = MISSING, default.copy
    chosen: Any = factory or MISSING
    return HfArg(default=default, default_factory=chosen, help=help, metadata=metadata)
