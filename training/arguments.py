# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How every script here reads its options: flags, or one YAML file with flags that win over it."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse_options(*option_classes: type, description: str | None, arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Fills one instance of each dataclass from the command line.

    Args:
        option_classes: dataclasses, as for `HfArgumentParser`.
        description: shown by `--help`.
        arguments: the command line after the script's name; that of this process by default. If the first one ends in
            .yaml, the file's entries are the defaults of the flags that follow.

    Raises:
        SystemExit: with a message, for unknown options or values of the wrong type.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(option_classes, description=description)
    if words and words[0].endswith((".yaml", ".yml")):
        recipe = Path(words.pop(0))
        try:
            values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            parser.error(f"{recipe} can't be read: {error}")
        if not isinstance(values, dict):
            parser.error(f"{recipe} must hold `option: value` lines, as in configuration/recipes/.")
        known = {action.dest: action for action in parser._actions}
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "; see --help"
                parser.error(f"{recipe} has an unknown option {name!r}{hint}")
        # Through the same door as flags, so that types and choices are checked alike; a later flag wins.
        words = [word for name, value in values.items() for word in _as_flags(name, value)] + words
    return parser.parse_args_into_dataclasses(words)


def _as_flags(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
