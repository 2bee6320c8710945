# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where preparation runs and writes: an engine, tables that are kept in it, a folder that appears when whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
import ibis.expr.types as ir


@contextmanager
def open_engine(engine: str | ibis.BaseBackend, workspace: Path, memory_limit: str) -> Iterator[ibis.BaseBackend]:
    """A connection to DuckDB that spills into `workspace` beyond `memory_limit`, or the given connection as it is.

    Raises:
        ValueError: for another name than `duckdb`, and where DuckDB finds input damaged.
        OSError: where DuckDB finds no more memory or disk.
    """
    if not isinstance(engine, str):
        yield engine
        return
    if engine != "duckdb":
        raise ValueError(f"`engine` is {engine!r}; give 'duckdb' or an Ibis connection.")
    connection = ibis.duckdb.connect(
        str(workspace / "engine.duckdb"), memory_limit=memory_limit, temp_directory=str(workspace / "spill")
    )
    try:
        yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise OSError(
            f"DuckDB found no more memory or disk ({_first_line(error)}). It may use {memory_limit} of memory, and "
            f"the disk of {workspace}: free some there, or give it another memory limit."
        ) from error
    except duckdb.Error as error:
        raise ValueError(
            f"DuckDB cannot read the input ({_first_line(error)}). If a file is damaged, write it again."
        ) from error
    finally:
        connection.disconnect()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def caching(connection: ibis.BaseBackend) -> Iterator[Callable[[ir.Table], ir.Table]]:
    """Gives a function that keeps a table in the engine; the tables are dropped at the end."""
    names: list[str] = []

    def cache(table: ir.Table) -> ir.Table:
        names.append(ibis.util.gen_name("mcm"))
        return connection.create_table(names[-1], table, temp=True)

    try:
        yield cache
    finally:
        for name in names:
            connection.raw_sql(f"DROP TABLE {name}")


@contextmanager
def replacing(output_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Gives a folder to fill and one for scratch; the first takes the place of `output_dir` when all went well."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.partial")
    replaced = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "data").mkdir(parents=True)
        (partial / "scratch").mkdir()
        yield partial / "data", partial / "scratch"
        if output_dir.exists():
            output_dir.rename(replaced)
        (partial / "data").rename(output_dir)
    finally:
        if replaced.exists() and not output_dir.exists():
            replaced.rename(output_dir)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where there are no hard links. Files of a data set never change."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
