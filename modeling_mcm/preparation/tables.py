# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens what a person names as a log as a table: files, a data frame, an Arrow table or a table of an engine."""

import functools
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_mcm.extras import needs
from modeling_mcm.preparation.files import (
    InputFiles,
    check_files,
    check_names,
    detect_kind,
    find_files,
    is_files,
    is_local,
    merged,
)
from modeling_mcm.preparation.text_files import TextFiles, TextFormat

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.expressions import known_types
    from modeling_mcm.preparation.spark import SPARK, read_by_spark


def open_table(
    source: Any, connection: ibis.BaseBackend, what: str, columns: Sequence[str] = (), text: TextFiles | None = None
) -> ir.Table:
    """Opens Parquet or CSV files, a folder of them, a data frame, an Arrow table or an Ibis table. Values of CSV files
    are text ("007" stays "007").

    Args:
        what (`str`): "event" or "profile", for messages.
        columns (`Sequence[str]`): Names of the columns that are read. Empty: all.
        text (`TextFiles`, *optional*): How text files are written and where their values are put. Default: the usual
            format, and a temporary folder that is removed with the connection.

    Raises `FileNotFoundError` if there is no such file. Raises `ValueError` if a file has an unknown type or is empty
    or damaged, files differ in `columns`, or the engine can't read an address.
    """
    if isinstance(source, ir.Table):
        table = known_types(source)
    elif not is_files(source):
        names: Any = source.column_names if isinstance(source, pa.Table) else getattr(source, "columns", ())
        check_names([*map(str, names)], f"The {what} table", columns)
        table = known_types(ibis.memtable(source))
    elif connection.name == SPARK:
        return _open_on_spark(source, connection, what, columns, text)
    else:
        found = _as_parquet(find_files(source, what), connection, what, columns, text)
        tables = [(read_files(files, connection), files.empty_columns()) for files in merged(found)]
        table = _together([(table, frozenset.intersection(*empty.values())) for table, empty in tables], what, columns)
    if connection.name == SPARK and isinstance(table.op(), ibis.expr.operations.InMemoryTable):
        return connection.create_view(ibis.util.gen_name("mcm"), table)  # as a view the table knows its engine
    return table


def number_rows(table: ir.Table, source: Any, connection: Any, column: str) -> ir.Table:
    """Adds a column with the number of each row in the files, the data frame or the Arrow table, from 0. Files are
    read in the given order, and the files of a folder in the order of their names."""
    if connection.name != "duckdb" or isinstance(source, ir.Table):
        raise ValueError(
            f"`order: rows` needs files, a data frame or an Arrow table that DuckDB reads: the rows of a table of "
            f"{connection.name} have no order of their own. Number the events of a customer in a column, and name it "
            "as `order`."
        )
    if connection.raw_sql("SELECT current_setting('preserve_insertion_order')").fetchall() != [(True,)]:
        raise ValueError("`order: rows` needs DuckDB's setting preserve_insertion_order, which is off; turn it on.")
    return table.mutate(**{column: ibis.row_number()})


def _as_parquet(
    found: list[InputFiles], connection: Any, what: str, columns: Sequence[str], text: TextFiles | None
) -> list[InputFiles]:
    """The files of a log as Parquet. This process reads text files, so they mean the same for every engine."""
    if text is None:
        text = TextFiles(TextFormat(), Path(tempfile.mkdtemp(prefix="mcm-text-")))
        weakref.finalize(connection, shutil.rmtree, text.folder, ignore_errors=True)
    check_files(found, what, columns, text.format)
    return [files if files.kind == "parquet" else text.to_parquet(files, what, columns) for files in found]


def read_files(files: InputFiles, connection: Any) -> ir.Table:
    """Reads Parquet files as a table of DuckDB."""
    names = files.filesystem.protocol
    name = names if isinstance(names, str) else names[0]
    if not is_local(files.filesystem) and not connection.con.filesystem_is_registered(name):
        connection.register_filesystem(files.filesystem)
    # A column without values in some files gets its type from the other files.
    options = {"union_by_name": True} if len({*files.empty_columns().values()}) > 1 else {}
    options |= {"hive_partitioning": files.partitioned, "hive_types_autocast": False}
    return known_types(connection.read_parquet(list(files.paths), **options))


def _open_on_spark(
    source: Any, connection: Any, what: str, columns: Sequence[str], text: TextFiles | None
) -> ir.Table:
    """Spark reads Parquet in stores itself (by Hadoop), so it gets these addresses as they are, unchecked."""
    addresses = [str(part) for part in (source if isinstance(source, list | tuple) else [source])]
    stored = [
        address
        for address in addresses
        if "://" in address and not address.startswith("file://") and detect_kind(address) in (None, "parquet")
    ]
    others = [address for address in addresses if address not in stored]
    found = _as_parquet(find_files(others, what), connection, what, columns, text) if others else []
    found += [InputFiles(address, (address,), "parquet", None) for address in stored]
    tables = [part for files in merged(found) for part in read_by_spark(files, connection, what)]
    return _together(tables, what, columns)


def _together(found: list[tuple[ir.Table, frozenset[str]]], what: str, columns: Sequence[str]) -> ir.Table:
    """Joins the rows of tables with the same columns; a column without values gets its type from the other tables."""
    kinds: dict[str, Any] = {}
    for table, empty in found:
        kinds = {name: kind for name, kind in table.schema().items() if name not in empty} | kinds
    tables = [
        table.mutate(**{name: ibis.null(kinds.get(name, "string")) for name in empty}) if empty else table
        for table, empty in found
    ]
    if len(tables) > 1 and columns:
        tables = [table.select([name for name in table.columns if name in columns]) for table in tables]
    try:
        return functools.reduce(lambda table, other: table.union(other), tables)
    except ibis.common.exceptions.RelationError as error:
        raise ValueError(
            f"The {what} files have different columns or types ({' '.join(str(error).split())}): write them alike, or "
            "pass an Ibis table."
        ) from error
