# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads small files that a user gives: a table of labels of customers, actions or candidates; and YAML, in which a
key that stands twice is an error, an error names the file and the line, and words such as no and on are words."""

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fsspec.implementations.local import LocalFileSystem

from modeling_mcm.events_mcm import to_text

from .text_files import TextFormat, TextReader

NUMBER = r"-?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?"  # 007 is a text
BOOLEANS = {"true": True, "True": True, "false": False, "False": False}
INTEGERS = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")  # of pandas, with missing ones
NULLABLE = {pa.type_for_alias(name.lower()): pd.api.types.pandas_dtype(name) for name in INTEGERS}
ROWS_AT_ONCE = 65_536
FORMULA = r"(?=[=+\-@\t\r])"  # begins what a program of spreadsheets would compute


def read_table_file(path: str | Path, as_text: Collection[str] | None = None) -> pd.DataFrame:
    """Reads a small table from a Parquet or CSV file. In a CSV file an empty field is missing, and columns that
    `as_text` names (default: all) stay text as they are written; those of booleans or numbers alone become these, see
    [`read_numbers`]. Raises `FileNotFoundError` if there is no such file, and `ValueError` if it has another format or
    is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a Parquet or CSV file.")
    if path.suffix.lower() == ".parquet":
        try:
            return to_frame(pq.read_table(path, partitioning=None))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} can't be read: {error}") from error
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{path} can't be read: the name ends in {path.suffix!r}, expected .parquet or .csv.")
    with TextReader(str(path), "csv", LocalFileSystem(), TextFormat(), "table") as reader:
        if twice := [name for name, number in Counter(reader.names).items() if number > 1]:
            raise ValueError(f"{path} has several columns {twice[0]!r} among {', '.join(reader.names)}; rename them.")
        schema = pa.schema(dict.fromkeys(reader.names, pa.string()))
        table = to_frame(pa.Table.from_batches(reader.blocks(reader.names, ROWS_AT_ONCE), schema))
    for name in table:
        if as_text is not None and name not in as_text:
            is_boolean = table[name].notna().any() and table[name].dropna().isin(BOOLEANS).all()
            table[name] = table[name].map(BOOLEANS) if is_boolean else read_numbers(table[name])
    return table


def read_numbers(texts: pd.Series, exact: bool = False) -> pd.Series:
    """A column of texts as one of numbers if each text is a number, else as it is. Whole numbers stay exact. With
    `exact` it stays as it is unless each number is written as its text, so that no id changes: 1e5 is not 100000."""
    known = texts.dropna().drop_duplicates()
    if not len(known) or not known.str.fullmatch(NUMBER).all():
        return texts
    is_whole = known.str.fullmatch(r"-?\d+").all()
    numbers = known.map(int if is_whole else float)
    if numbers.dtype.kind not in "if" or ((exact or is_whole) and (numbers.map(to_text) != known).any()):
        return texts  # also of more than 64 bits
    read = texts.dropna().map(dict(zip(known, numbers, strict=True)))
    return (read.astype("Int64") if is_whole and texts.hasnans else read).reindex(texts.index)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """An Arrow table as a data frame, without an index of its own. Whole numbers stay whole where some are missing."""
    table = table.replace_schema_metadata(None).select(
        [place for place, name in enumerate(table.column_names) if not name.startswith("__index_level_")]
    )
    return table.to_pandas(types_mapper=NULLABLE.get)


def write_safely(table: pd.DataFrame, path: str | Path) -> None:
    """Writes a table, without its index, as a CSV file in which no program of spreadsheets takes a text for a formula:
    an apostrophe stands before it."""
    safe = table.replace("^" + FORMULA, "'", regex=True)
    safe.rename(columns=lambda name: re.sub("^" + FORMULA, "'", name)).to_csv(path, index=False)


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
