# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens what a person names as a log as a table that is read in blocks: files, a data frame, an Arrow table or a table
of a database."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.text_format import TextFormat
from modeling_mcm.extras import needs
from modeling_mcm.preparation.files import InputFiles, check_files, check_names, find_files, is_files
from modeling_mcm.preparation.text_files import TextReader

with needs("data"):
    import ibis
    import ibis.expr.types as ir

ROWS_PER_BLOCK = 65_536  # rows that are in memory at once


class SourceTable:
    """A table that is read in blocks. Values of text files are text ("007" stays "007").

    Args:
        source (`Any`): Parquet or CSV files, a folder of them, a data frame, an Arrow table or an Ibis table.
        what (`str`): "event" or "profile", for messages.
        columns (`Sequence[str]`): Names of the columns that are read. Empty: all that there are.
        text (`TextFormat`): How text files are written.

    Attributes:
        names (`list[str]`): Names of the table's columns.
        dropped (`int`): Number of lines of text files that were left out so far.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file has an unknown type or is empty or damaged, or files differ in `columns`.
    """

    def __init__(self, source: Any, what: str, columns: Sequence[str] = (), text: TextFormat | None = None):
        self.what, self.text, self.dropped = what, text or TextFormat(), 0
        self._table: Any = None
        self._files: list[InputFiles] = []
        if is_files(source):
            self._files = find_files(source, what)
            self.names = check_files(self._files, what, columns, self.text)
        elif isinstance(source, ir.Table):
            is_here = isinstance(source.op(), ibis.expr.operations.InMemoryTable)
            self._table, self.names = source.to_pyarrow() if is_here else source, list(source.columns)
        else:
            check_names([*map(str, getattr(source, "columns", ()))], f"The {what} table", columns)
            self._table = source if isinstance(source, pa.Table) else pa.table(source)
            self.names = self._table.column_names
            check_names(self.names, f"The {what} table", columns)

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Reads some columns, in the order of the rows."""
        if isinstance(self._table, ir.Table):
            rows = self._table.select(*columns)
            backend: Any = rows.get_backend()
            if backend.name == "duckdb":  # Ibis 12 can't read blocks from DuckDB 2
                yield from backend.con.sql(str(ibis.to_sql(rows))).fetch_record_batch(ROWS_PER_BLOCK)
            else:
                yield from rows.to_pyarrow_batches(chunk_size=ROWS_PER_BLOCK)
        elif self._table is not None:
            yield from self._table.select(columns).to_batches(ROWS_PER_BLOCK)
        for files in self._files:
            for path in files.paths:
                read = self._parquet_blocks if files.kind == "parquet" else self._text_blocks
                for block in read(path, files, columns):
                    for name, value in files.path_columns(path).items():
                        if name in columns:
                            block = block.append_column(name, pa.array([value] * len(block), pa.string()))
                    yield block.select(columns)

    def _parquet_blocks(self, path: str, files: InputFiles, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with files.filesystem.open(path) as opened, pq.ParquetFile(opened) as file:
                names = [name for name in columns if name in file.schema_arrow.names]
                yield from file.iter_batches(ROWS_PER_BLOCK, columns=names)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"The {self.what} file {path} can't be read ({error}): if it is damaged, write it again."
            ) from error

    def _text_blocks(self, path: str, files: InputFiles, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with TextReader(path, files.kind, files.filesystem, self.text, self.what) as reader:
            yield from reader.blocks(columns, ROWS_PER_BLOCK)
            self.dropped += reader.bad
