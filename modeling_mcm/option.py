# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How a dataclass says which options a command has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any


def option(default: Any = MISSING, help: str = "", factory: Callable[[], Any] | None = None, **metadata: Any) -> Any:
    """Makes a field of a dataclass of options.

    Args:
        default (`Any`, *optional*): Value if the option is not given. Without a default the option is required.
        help (`str`): What `--help` says of it.
        factory (`Callable`, *optional*): Computes the default.
        metadata (`Any`): More arguments of `argparse`, such as `choices`.
    """
    if isinstance(default, list):
        factory, default = (lambda values=default: copy.copy(values)), MISSING
    if factory is not None:
        return field(default_factory=factory, metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})
