# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads tables of events as people have them, in memory or in files, and how the columns of one were read before."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from .data import EventSchema
from .data.guessing import READER_FILE, FrameReader
from .data.schema import TextFormat
from .data.tables import read_numbers, to_frame
from .files_mcm import read_json

COMPUTING = (  # nodes of conditions on columns
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop),
    *(ast.Compare, ast.cmpop, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple),
)


def read_frame(events: object, schema: EventSchema | Mapping | None = None) -> pd.DataFrame:
    """A table, a file, or a list of these as a data frame; what is known of the schema says how text files are
    written. Raises `ValueError` if it is none, or has no row."""
    if isinstance(events, str | Path):
        frame = _read_file(events, schema)
    elif isinstance(events, list | tuple) and events and not any(isinstance(each, Mapping) for each in events):
        frame = pd.concat([read_frame(each, schema) for each in events], ignore_index=True)
    elif isinstance(events, pd.DataFrame):
        frame = events
    elif hasattr(events, "__arrow_c_stream__"):  # Arrow, polars and others
        frame = to_frame(pa.table(events))
    else:
        raise ValueError(
            f"Found {type(events).__name__}, expected a pandas data frame, an Arrow table of events or another table "
            "with the Arrow interface, the name of a file, or a list of these."
        )
    if not len(frame):
        raise ValueError("The table of events has no row: give a log of several customers.")
    if twice := sorted({str(name) for name in frame.columns[frame.columns.duplicated()]}):
        raise ValueError(f"Two columns are named {twice[0]!r}: rename or leave out one of them.")
    return frame


def _read_file(path: str | Path, schema: EventSchema | Mapping | None) -> pd.DataFrame:
    """A Parquet or CSV file, or a folder of them, as preparation reads it; columns of text that are numbers become
    numbers if this changes no id."""
    from .preparation.sources import SourceTable  # the extra `data`

    given = schema if isinstance(schema, Mapping) else vars(schema) if schema else {}
    text = TextFormat(**{entry.name: given[entry.name] for entry in fields(TextFormat) if entry.name in given})
    source = SourceTable(path, "event", text=text)
    blocks = [pa.Table.from_batches([block]) for block in source.blocks(source.names)]
    frame = to_frame(pa.concat_tables(blocks, promote_options="permissive")) if blocks else pd.DataFrame()
    return frame.apply(read_numbers, exact=True) if source.is_text else frame


def select_rows(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The rows for which conditions on columns hold, as `DataFrame.query` reads them, but for what could do anything
    else than compare and compute: a call, an attribute, an index. Raises `ValueError` if they can't be read."""
    names, plain = {}, where.strip()
    for place, name in enumerate(table):
        if f"`{name}`" in plain:
            names[name] = f"column_{place}_"
            plain = plain.replace(f"`{name}`", names[name])
    try:
        for node in ast.walk(ast.parse(plain, mode="eval")):
            if not isinstance(node, COMPUTING):
                raise ValueError(f"found a {type(node).__name__.lower()}, expected conditions such as a > 1")
        return table.loc[table.rename(columns=names).query(plain).index]
    except (NameError, SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"`where` is {where!r}, which can't be read ({error}). Columns: {[*table]}.") from None


def read_reader(folder: str | Path) -> FrameReader | None:
    """How the columns of a frame were read before, if `fit` made the model in a folder."""
    from .training.checkpoints import reading

    path = Path(folder, READER_FILE)
    if not path.is_file():
        return None
    with reading(str(folder), READER_FILE):
        return FrameReader.from_dict(read_json(path))


def read_events(folder: str | Path, events: Sequence[str]) -> tuple[Any, dict | None]:
    """Files of new events as a model's log has them, and how [`~.preparation.sources.describe`] describes them."""
    from .preparation.sources import describe

    reader = read_reader(folder)
    return reader.read(read_frame(events, reader.schema)) if reader else events, describe(events)
