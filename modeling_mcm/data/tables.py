# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a small table that a user gives: labels of customers, actions, candidates."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
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
        text = _read_csv(path, names)
        if as_text is None:
            return text
        return _read_csv(path, [*as_text, *(name for name in names if text[name].str.fullmatch(r"0\d+").any())])
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _read_csv(path: Path, as_text: Sequence[str]) -> pd.DataFrame:
    options = csv.ConvertOptions(strings_can_be_null=True, column_types=dict.fromkeys(as_text, pa.string()))
    return csv.read_csv(path, convert_options=options).to_pandas()  # rows of another length are errors
