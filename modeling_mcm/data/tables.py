# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads small files that a user gives: a table of labels of customers, actions or candidates; and YAML, in which a
key that stands twice is an error, an error names the file and the line, and words such as no and on are words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml
from pyarrow import csv


def read_table_file(path: str | Path, as_text: Sequence[str] | None = None) -> pd.DataFrame:
    """Reads a small table from a Parquet or CSV file. Columns of a CSV file that `as_text` names (default: all) stay
    text as they are written, and so do those in which a number begins with 0: 007 is not 7. Raises
    `FileNotFoundError` if there is no such file, and `ValueError` if it has another format or is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a Parquet or CSV file.")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        if path.suffix.lower() != ".csv":
            raise ValueError(f"the name ends in {path.suffix!r}, expected .parquet or .csv")
        with path.open("rb") as file:
            if b"\0" in file.read(1000):
                raise ValueError("it is no text in UTF-8; if it is UTF-16 or a spreadsheet, save it as UTF-8")
        with csv.open_csv(path) as reader:
            names = reader.schema.names
        if len({*names}) < len(names):
            raise ValueError(f"two columns have one name among {', '.join(names)}; rename one")
        text = _read_csv(path, names)
        if as_text is None:
            return text
        return _read_csv(path, [*as_text, *(name for name in names if text[name].str.fullmatch(r"0\d+").any())])
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _read_csv(path: Path, as_text: Sequence[str]) -> pd.DataFrame:
    options = csv.ConvertOptions(strings_can_be_null=True, column_types=dict.fromkeys(as_text, pa.string()))
    return csv.read_csv(path, convert_options=options).to_pandas()  # rows of another length are errors


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
        keys: list = []
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} stands in the mapping twice; remove one of them",
                    problem_mark=key.start_mark,
                )
            keys.append(key.value)
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
