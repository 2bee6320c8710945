# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens what a person names as a log, as a table that is read in blocks: a file, a folder, an address that fsspec
knows, a list of these, a data frame, an Arrow table, a folder of Delta Lake or a table of a database.

Below a folder, parts of a path such as `year=2024` are columns of the table ("hive partitions"), which are read as
text. Files and folders whose names begin with `_` or `.` are skipped, as every engine does. pyarrow.dataset is not
used: it reads such a column as a number (01 is 1), and takes the columns of the first file for those of all.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.utils import infer_compression
from transformers.utils import logging

from modeling_mcm.data.text_files import TextFormat, TextReader
from modeling_mcm.events_mcm import map_distinct, naming, to_text
from modeling_mcm.extras import needs
from modeling_mcm.folders import file_digest

with needs("data"):
    import duckdb
    import ibis
    import ibis.expr.types as ir
    from ibis.common.exceptions import TableNotFound

logger = logging.get_logger(__name__)

Source: TypeAlias = str | Path | Sequence[str | Path] | pd.DataFrame | pa.Table | ds.Dataset | ir.Table
DATABASES = "postgresql", "postgres", "duckdb"
DELTA_LOG = "_delta_log"  # the folder that says which files of a table of Delta Lake count
ROWS_PER_BLOCK = 65_536  # rows that are in memory at once
SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv"}
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # in a path where the column has no value
ABSENT, NULL = "absent", "null"  # in the place of a type: the file lacks the column; the column has no value


class InputFiles(NamedTuple):
    """Some files of one kind that an engine reads at once."""

    root: str  # the folder or the file that was named
    paths: tuple[str, ...]  # local paths or addresses, in the order of their names
    filesystem: AbstractFileSystem

    @property
    def kind(self) -> str:
        """Kind of the files: "parquet", "csv" or "tsv"."""
        return str(detect_kind(self.paths[0]))

    def path_columns(self, path: str) -> dict[str, str | None]:
        """The columns that the path of a file gives, by name, with their values."""
        parts = [part.partition("=") for part in PurePosixPath(self.name(path)).parts[:-1] if "=" in part]
        return {name: None if value == NO_PARTITION else unquote(value) for name, _, value in parts}

    def name(self, path: str) -> str:
        """Name of a file below the root."""
        return path[len(self.root) + 1 :] or PurePosixPath(path).name

    def columns(self, path: str, what: str, text: TextFormat | None = None) -> list[tuple[str, str]]:
        """Names and types of the columns of a file and of its path. In a text file all columns are text."""
        path_columns = [(name, "string") for name in self.path_columns(path)]
        if self.kind != "parquet":
            with TextReader(path, self.kind, self.filesystem, text or TextFormat(), what) as reader:
                return [(name, "string") for name in reader.names] + path_columns
        try:
            with self.filesystem.open(path) as file:
                schema = pq.read_schema(file)
        except Exception as error:  # pyarrow raises ArrowInvalid or OSError, depending on where the file is cut
            raise ValueError(
                f"The {what} file {path} is not a whole Parquet file ({error}); it may be cut off: write it again."
            ) from error
        # Types that hold the same text have one name.
        types = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema]
        names = ["string" if pa.types.is_large_string(kind) else str(kind) for kind in types]
        return [*zip(schema.names, names, strict=True), *path_columns]


def describe(source: Source) -> dict | None:
    """Describes the files of a source for the manifest: `name`, and `files`, by name of the file its SHA-256
    digest, or the checksum of its store. None for a table in memory, and for files that only the engine reaches. Warns
    of files with the same bytes."""
    if not list_addresses(source):
        return None
    try:
        parts = find_files(source, "input")
    except (ValueError, OSError, ImportError):  # opening the files reports what is wrong
        return None
    digests = {}
    seen: dict[tuple, str] = {}
    for index, files in enumerate(parts):
        for path in files.paths:
            digest = file_digest(path) if "file" in files.filesystem.protocol else str(files.filesystem.checksum(path))
            digests[files.name(path) if len(parts) == 1 else f"{index}/{files.name(path)}"] = digest
            other = seen.setdefault((digest, *files.path_columns(path).items()), path)
            if other is not path:
                logger.warning(f"{other} and {path} have the same bytes: each of their events counts twice.")
    return {"name": ", ".join(PurePosixPath(files.root).name for files in parts), "files": digests}


def detect_kind(name: str) -> str | None:
    """Finds the kind of a file by its name, "parquet", "csv" or "tsv"; `.csv.gz` is csv, and None any other file."""
    path = PurePosixPath(name.lower())
    packed = infer_compression(path.name)
    kind = SUFFIXES.get((path.with_suffix("") if packed else path).suffix)
    return None if packed and kind == "parquet" else kind


def list_addresses(source: Source) -> list[str]:
    """Lists the files and folders that a source names, none if it is a table."""
    parts = source if isinstance(source, list | tuple) else [source]
    return [*map(str, parts)] if all(isinstance(part, str | Path) for part in parts) else []


def is_delta(address: str) -> bool:
    """Whether an address is a folder of Delta Lake on a disk."""
    return Path(address, DELTA_LOG).is_dir()


def open_table(source: Source, what: str) -> Source:
    """Opens a table of a database, such as `postgresql://user@host/database#TABLE` or `duckdb://FILE#SCHEMA.TABLE`,
    and a folder of Delta Lake on a disk. Any other source stays as it is.

    Raises:
        ImportError: If what reads such a table is not installed.
        ValueError: If the database can't be reached or read, or has no such table.
    """
    if len(addresses := list_addresses(source)) != 1:
        return source
    address, _, table = addresses[0].partition("#")
    url = urlsplit(address)
    if is_delta(address):
        with needs("tables"):
            from deltalake import DeltaTable
            from deltalake.exceptions import DeltaError
        try:
            return DeltaTable(address).to_pyarrow_dataset()
        except DeltaError as error:
            raise ValueError(f"The {what} table of Delta Lake {address} can't be read ({error}).") from error
    if url.scheme not in DATABASES:
        return source
    if not table:
        raise ValueError(f"The {what} source is a database: name a table of it, as in {url.scheme}://...#events.")
    *schema, name = table.split(".")
    faults: tuple[type[Exception], ...] = duckdb.Error, TableNotFound
    if url.scheme != "duckdb":
        with needs("tables"):
            import psycopg
        faults += (psycopg.Error,)
    try:
        if url.scheme == "duckdb":
            database = ibis.duckdb.connect(url.netloc + url.path, read_only=True)
        else:
            database = ibis.connect(address)
        try:
            return database.table(name, database=tuple(schema) or None)
        except BaseException:
            database.disconnect()
            raise
    except faults as error:
        place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # without a password
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"The {what} table {table!r} of {place} can't be opened ({reason}).") from error


def find_files(source: Source, what: str) -> list[InputFiles]:
    """Finds the files that a source names, at least one."""
    parts = [_find(address, what) for address in list_addresses(source)]
    firsts = {detect_kind(path): path for files in reversed(parts) for path in reversed(files.paths)}
    if len(firsts) > 1:
        raise ValueError(
            f"The {what} source holds files of several kinds, {' and '.join(sorted(firsts.values()))}; put those that "
            "are no part of the log elsewhere, or write all of them alike."
        )
    return parts


def _find(address: str, what: str) -> InputFiles:
    filesystem, path = fsspec.core.url_to_fs(address)
    root = path.rstrip("/")
    if not filesystem.exists(path):
        raise FileNotFoundError(f"The {what} file {address} does not exist; check the path.")
    if filesystem.isdir(f"{root}/{DELTA_LOG}"):  # files that were replaced are still there
        raise ValueError(
            f"The {what} source {address} is a table of Delta Lake, which is read from a disk and as the only source; "
            "give what deltalake.DeltaTable(...).to_pyarrow_table() reads."
        )
    found = [
        file
        for file in sorted(filesystem.find(root))
        if detect_kind(file) and not any(part[0] in "_." for part in PurePosixPath(file[len(root) :]).parts)
    ]
    if not found:
        raise ValueError(
            f"The {what} file {address} is neither .parquet, .csv nor .tsv, nor a folder with such a file; convert it "
            "or pass an Ibis table."
        )
    root, *paths = (
        each if "file" in filesystem.protocol else filesystem.unstrip_protocol(each) for each in (root, *found)
    )
    return InputFiles(root, tuple(paths), filesystem)


def check_files(
    parts: Sequence[InputFiles], what: str, columns: Sequence[str] = (), text: TextFormat | None = None
) -> dict[str, dict[str, str]]:
    """Checks that all files have the same columns with the same types. An empty column fits any type. Returns by file
    the type of each column."""
    opened = [(files, path) for files in parts for path in files.paths]
    types_by_file = {}
    with ThreadPoolExecutor() as pool:  # a store answers slowly, so many files are read at once
        read = pool.map(lambda file: file[0].columns(file[1], what, text), opened)
        for (_, path), columns_of in zip(opened, read, strict=True):
            check_names([name for name, _ in columns_of], f"The {what} file {path}", columns)
            types_by_file[path] = dict(columns_of)
    for name in columns or sorted({name for types in types_by_file.values() for name in types}):
        first_with: dict[str, str] = {}  # by type
        for path, types in types_by_file.items():
            first_with.setdefault(types.get(name, ABSENT), path)
        first_with.pop(NULL, None)
        if len(first_with) > 1:
            ways = " and ".join(f"{kind} in {path}" for kind, path in first_with.items())
            raise ValueError(
                f"Column {name!r} of the {what} files is {ways}: the files have different columns or types ({name}), "
                "and the schema of the log has changed; write them alike."
            )
    return types_by_file


def check_names(names: Sequence[str], where: str, columns: Sequence[str]) -> None:
    """Checks that no two columns, of those that are read, have the same name."""
    for name, number in Counter(names).items():
        if number > 1 and (not columns or name in columns):
            raise ValueError(
                f"{where} has {number} columns {name!r} (a part of its path such as year=2024 is one too); rename "
                "or remove one."
            )


class SourceTable:
    """A table that is read in blocks. Values of text files are text ("007" stays "007").

    Args:
        source (`Source`): Parquet or CSV files, a folder of them, a data frame, an Arrow table or an Ibis table; or
            what [`open_table`] opens.
        what (`str`): "event" or "profile", for messages.
        columns (`Sequence[str]`): Names of the columns that are read. Empty: all that there are.
        text (`TextFormat`): How text files are written.

    Attributes:
        names (`list[str]`): Names of the table's columns.
        dropped (`int`): Number of lines of text files that were left out so far.
        is_text (`bool`): Whether its files are text files.
        is_ordered (`bool`): Whether its rows have an order of their own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file has an unknown type or is empty or damaged, or files differ in `columns`.
    """

    def __init__(self, source: Source, what: str, columns: Sequence[str] = (), text: TextFormat | None = None):
        self.what, self.text, self.dropped = what, text or TextFormat(), 0
        self._table, self._files, self.is_text = None, [], False
        opened = open_table(source, what)
        self.is_ordered = not isinstance(opened, ir.Table | ds.Dataset)
        self._database = opened.get_backend() if isinstance(opened, ir.Table) and opened is not source else None
        source = opened
        if list_addresses(source):
            self._files = find_files(source, what)
            self.is_text = self._files[0].kind != "parquet"
            types_by_file = check_files(self._files, what, columns, self.text)
            self.names = [*dict.fromkeys(name for types in types_by_file.values() for name in types)]
        elif isinstance(source, ir.Table):
            is_here = isinstance(source.op(), ibis.expr.operations.InMemoryTable)
            self._table, self.names = source.to_pyarrow() if is_here else source, list(source.columns)
        elif isinstance(source, ds.Dataset):
            self._table, self.names = source, source.schema.names
        else:
            names: Any = source.column_names if isinstance(source, pa.Table) else getattr(source, "columns", source)
            self.names = [*map(str, names)]
            check_names(self.names, f"The {what} table", columns)
            if isinstance(source, pd.DataFrame):
                source = pa.table(
                    {
                        str(name): self._to_arrow(source[name])
                        for name in source
                        if str(name) in (columns or self.names)
                    }
                )
            self._table = source if isinstance(source, pa.Table) else pa.table(source)

    def _to_arrow(self, column: pd.Series) -> pa.Array:
        """A column of a frame; where Arrow has no type for its values, such as 1 and "x", as texts."""
        try:
            return pa.array(column, from_pandas=True)
        except (pa.ArrowException, OverflowError):
            with naming(f"Column {column.name!r} of the {self.what} table"):
                return pa.array(map_distinct(column.tolist(), to_text, object), pa.string())

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Reads some columns, in the order of the rows, once: a database that was opened here is closed then."""
        try:
            yield from self._blocks(columns)
        finally:
            if self._database is not None:
                self._database.disconnect()

    def _blocks(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if isinstance(self._table, ir.Table):
            rows = self._table.select(*columns)
            backend = rows.get_backend()
            if backend.name == "duckdb":  # Ibis 12 can't read blocks from DuckDB 2
                try:
                    yield from backend.con.sql(str(ibis.to_sql(rows))).fetch_record_batch(ROWS_PER_BLOCK)
                except duckdb.Error as error:
                    reason = f"The {self.what} table of DuckDB can't be read ({str(error).splitlines()[0]})"
                    raise ValueError(f"{reason}; check its query and its files.") from error
            else:
                yield from rows.to_pyarrow_batches(chunk_size=ROWS_PER_BLOCK)
        elif isinstance(self._table, ds.Dataset):
            yield from self._table.to_batches(columns=[*columns], batch_size=ROWS_PER_BLOCK)
        elif self._table is not None:
            yield from self._table.select(columns).to_batches(ROWS_PER_BLOCK)
        for files in self._files:
            for path in files.paths:
                for block in self._file_blocks(path, files, columns):
                    for name, value in files.path_columns(path).items():
                        if name in columns:
                            block = block.append_column(name, pa.array([value] * len(block), pa.string()))
                    yield block.select(columns)

    def _file_blocks(self, path: str, files: InputFiles, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if files.kind != "parquet":
            with TextReader(path, files.kind, files.filesystem, self.text, self.what) as reader:
                yield from reader.blocks(columns, ROWS_PER_BLOCK)
                self.dropped += reader.bad
            return
        try:
            with files.filesystem.open(path) as opened, pq.ParquetFile(opened) as file:
                names = [name for name in columns if name in file.schema_arrow.names]
                yield from file.iter_batches(ROWS_PER_BLOCK, columns=names)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"The {self.what} file {path} can't be read ({error}): if it is damaged, write it again."
            ) from error
