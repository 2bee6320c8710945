# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""YAML files that people write: a key that stands twice is an error, an error names the file and the line, and words
such as no and on are words."""

from pathlib import Path
from typing import Any

import yaml

YAML_BOOL = "tag:yaml.org,2002:bool"


class Loader(yaml.SafeLoader):
    """A YAML loader that accepts each key of a mapping once, where PyYAML itself silently takes the last of several;
    and for which only true and false are booleans, so that `eval_strategy: no` is the word "no"."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != YAML_BOOL or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Builds the mapping of a YAML node as PyYAML does. Raises `YAMLError` if a key stands in it twice."""
        lines: dict[tuple[str, str], int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key, line = (key_node.tag, key_node.value), key_node.start_mark.line + 1
                if key in lines:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key_node.value!r} stands in line {lines[key]} too; remove one of them",
                        problem_mark=key_node.start_mark,
                    )
                lines[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file. Raises `ValueError` if the file is no valid YAML, is no text in UTF-8, or has a key twice.
    The message names the file and the line. Raises `OSError` if the file can't be opened."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8.") from error
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{path}{where} is not valid YAML: {reason}.") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a date such as 2024-02-30
        raise ValueError(f"{path} is not valid YAML: {error}.") from error
