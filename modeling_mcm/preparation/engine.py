# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where preparation runs and writes: DuckDB or Spark, tables that are kept there, a folder that appears when whole.

Everything that differs between engines is here; all else are Ibis expressions. On DuckDB one process does the work and
spills to disk what does not fit in memory. On Spark its workers do, and write the shards themselves.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from modeling_mcm.data.features import check_size
from modeling_mcm.extras import needs
from modeling_mcm.preparation.files import (
    InputFiles,
    check_files,
    check_names,
    find_files,
    is_files,
    is_local,
    kind_of,
    merged,
)
from modeling_mcm.preparation.text_files import DELIMITERS, TextFiles, TextFormat

with needs("data"):
    import duckdb
    import ibis
    import ibis.expr.types as ir

SPARK = "pyspark"  # Ibis' name of the backend, and that of the package
# Times are read in UTC; names differ where their case does; parts of a path are text, as DuckDB is told too; overflow
# is an error; frames travel as Arrow.
SPARK_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # else it does not count the fields of a row
}


@contextmanager
def open_engine(
    engine: str | ibis.BaseBackend,
    workspace: Path,
    memory_limit: str = "1GB",
    spark_config: Mapping[str, str] | None = None,
) -> Iterator[ibis.BaseBackend]:
    """A connection to DuckDB that spills into `workspace` beyond `memory_limit`, to Spark, or the one that is given.

    Args:
        engine: `duckdb`, `spark` or an Ibis connection.
        workspace: folder for what DuckDB spills.
        memory_limit: of DuckDB.
        spark_config: of the Spark session, such as `{"spark.master": "local[2]"}`. A session that runs already is
            used and left running.

    Raises:
        ValueError: for another name, an option that the running session can't change any more, and where DuckDB finds
            input damaged.
        OSError: where DuckDB finds no more memory or disk, and where Spark does not start.
        ImportError: where Spark is not installed.
    """
    if spark_config and engine != "spark":
        raise ValueError(f"Spark's options are given ({', '.join(spark_config)}) and the engine is {engine!r}.")
    if not isinstance(engine, str):
        with _spark_settings(engine), _in_utc(engine):
            yield engine
    elif engine == "duckdb":
        check_size(memory_limit, "memory_limit")
        connection = ibis.duckdb.connect(
            str(workspace / "engine.duckdb"), memory_limit=memory_limit, temp_directory=str(workspace / "spill")
        )
        try:
            yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise OSError(
                f"DuckDB found no more memory or disk ({_first_line(error)}). It may use {memory_limit} of memory, "
                f"and the disk of {workspace}: free some there, or give it another memory limit."
            ) from error
        except duckdb.Error as error:
            raise ValueError(
                f"DuckDB cannot read the input ({_first_line(error)}). If a file is damaged, write it again."
            ) from error
        finally:
            connection.disconnect()
    elif engine == "spark":
        with spark_session(spark_config or {}) as session:
            connection = ibis.pyspark.connect(session)
            try:
                with _spark_settings(connection):
                    yield connection
            except _spark_errors() as error:
                raise OSError(f"Spark can't go on: {_reason(error)}") from error
    else:
        raise ValueError(f"`engine` is {engine!r}; give 'duckdb', 'spark' or an Ibis connection.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def spark_session(config: Mapping[str, str]) -> Iterator[Any]:
    """The Spark session that runs in this process, or a new one, which is stopped at the end."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ImportError("Spark is not installed: pip install 'modeling-mcm[spark]' (and Java 17).") from error
    running = SparkSession.getActiveSession()
    if running is not None:
        session = running.newSession()  # with settings and views of its own
        for key, value in config.items():
            if session.conf.get(key, None) != value:
                if not session.conf.isModifiable(key):
                    raise ValueError(f"A Spark session runs already, and {key} can't be changed any more.")
                session.conf.set(key, value)
        yield session
        return
    if config.get("spark.master", "local").startswith("local"):  # workers of this machine have this Python's packages
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("MCM")
    for key, value in config.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except _spark_errors() as error:
        raise OSError(f"Spark did not start ({_reason(error)}); check its options, and JAVA_HOME: Java 17.") from error
    try:
        yield session
    finally:
        session.stop()


@contextmanager
def _in_utc(connection: ibis.BaseBackend) -> Iterator[None]:
    """Times are read in UTC: a session of DuckDB's in another zone would give moments the hours of that."""
    if connection.name != "duckdb":
        yield
        return
    (before,) = connection.raw_sql("SELECT current_setting('TimeZone')").fetchone()
    connection.raw_sql("SET TimeZone = 'UTC'")
    try:
        yield
    finally:
        connection.raw_sql(f"SET TimeZone = '{before}'")


@contextmanager
def _spark_settings(connection: ibis.BaseBackend) -> Iterator[None]:
    if connection.name != SPARK:
        yield
        return
    settings = _session(connection).conf
    before = {key: settings.get(key, None) for key in SPARK_SETTINGS}
    for key, value in SPARK_SETTINGS.items():
        settings.set(key, value)
    from pyspark.sql.functions import udf

    text = udf(lambda number: None if number is None else repr(float(number)), "string", useArrow=True)
    _session(connection).udf.register(shortest_text.__name__, text)
    try:
        yield
    finally:
        for key, value in before.items():
            settings.unset(key) if value is None else settings.set(key, value)


def _session(connection: Any) -> Any:
    return connection._session  # Ibis has no other way to its session


@contextmanager
def caching(connection: ibis.BaseBackend) -> Iterator[Callable[..., ir.Table]]:
    """Gives a function that keeps a table in the engine; the tables are dropped at the end.

    The function takes the table and, as `near`, a column whose equal rows should lie together. Spark needs no such
    order: it brings them together when they are asked for.
    """
    names: list[str] = []

    def cache(table: ir.Table, near: str | None = None) -> ir.Table:
        name = ibis.util.gen_name("mcm")
        if connection.name == SPARK:
            kept = connection.create_view(name, table)
            _session(connection).catalog.cacheTable(name)
        else:
            kept = connection.create_table(name, table.order_by(near) if near else table, temp=True)
        names.append(name)
        return kept

    try:
        yield cache
    finally:
        for name in reversed(names):
            if connection.name == SPARK:
                _session(connection).catalog.uncacheTable(name)
                _session(connection).catalog.dropTempView(name)
            else:
                connection.raw_sql(f"DROP TABLE {name}")


def open_table(
    source: Any,
    connection: ibis.BaseBackend,
    what: str,
    columns: Sequence[str] = (),
    text: TextFiles | None = None,
) -> ir.Table:
    """Opens Parquet or CSV files, a folder of them, a data frame, an Arrow table or an Ibis table.

    A CSV has no types, so each value is read as the text that stands in the file ("007" stays "007").

    Args:
        source: the table; files are a path, an address such as `gs://bucket/log`, or a list of these.
        connection: from `open_engine`.
        what: `event` or `profile`, for messages.
        columns: those that are read, and must be the same in all files; all if none are given.
        text: how text files are written and where their values are put; by default a folder of this machine that is
            gone with the connection.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown file type, an empty file or a damaged one, files that differ in `columns`, an address
            that the engine can't read.
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
        return connection.create_view(ibis.util.gen_name("mcm"), table)  # so that the table knows its engine
    return table


def number_rows(table: ir.Table, source: Any, connection: Any, column: str) -> ir.Table:
    """Adds a column with the place of each row in the files, the data frame or the Arrow table, from 0.

    Files are in the order in which they are given, those of a folder in the order of their names.

    Args:
        table: of `open_table`.
        source: what it was opened from.
        connection: from `open_engine`.
        column: name of the new column.

    Raises:
        ValueError: The rows have no order that would be the same next time.
    """
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
    """Files of a log as Parquet: text files are read here, the same for every engine."""
    if text is None:
        text = TextFiles(TextFormat(), Path(tempfile.mkdtemp(prefix="mcm-text-")))
        weakref.finalize(connection, shutil.rmtree, text.folder, ignore_errors=True)
    check_files(found, what, columns, text.format)
    return [files if files.kind == "parquet" else _text_as_parquet(files, what, columns, text) for files in found]


def _text_as_parquet(files: InputFiles, what: str, columns: Sequence[str], text: TextFiles) -> InputFiles:
    folder, paths = text.to_parquet(files.paths, files.root, files.kind, files.filesystem, what, columns)
    return replace(files, root=str(folder), paths=paths, kind="parquet", filesystem=fsspec.filesystem("file"))


def read_files(files: InputFiles, connection: Any) -> ir.Table:
    """Parquet files as a table of DuckDB's."""
    names = files.filesystem.protocol
    name = names if isinstance(names, str) else names[0]
    if not is_local(files.filesystem) and not connection.con.filesystem_is_registered(name):
        connection.register_filesystem(files.filesystem)
    # Where a column holds nothing in some files, its type is that of the others.
    options = {"union_by_name": True} if len({*files.empty_columns().values()}) > 1 else {}
    options |= {"hive_partitioning": files.partitioned, "hive_types_autocast": False}
    return known_types(connection.read_parquet(list(files.paths), **options))


def known_types(table: ir.Table) -> ir.Table:
    """The table with types that Ibis knows in the place of DuckDB's for nanoseconds with a zone, and for nothing."""
    changed = {}
    for name, kind in table.schema().items():
        raw = str(getattr(kind, "raw_type", "")).upper()
        if kind.is_null() or "NULL" in raw:
            changed[name] = ibis.null("string")
        elif "TIMESTAMPTZ_NS" in raw or "TIMESTAMP_NS WITH TIME ZONE" in raw:
            changed[name] = table[name].cast("timestamp('UTC')")
    return table.mutate(**changed) if changed else table


def _open_on_spark(
    source: Any, connection: Any, what: str, columns: Sequence[str], text: TextFiles | None
) -> ir.Table:
    """Spark reaches stores by itself (through Hadoop), so it is given their addresses as they are, unchecked."""
    addresses = [str(part) for part in (source if isinstance(source, list | tuple) else [source])]
    local = [address for address in addresses if "://" not in address or address.startswith("file://")]
    found = find_files(local, what) if local else []
    if found:
        found = _as_parquet(found, connection, what, columns, text)
    for address in addresses:
        if address not in local:
            found.append(InputFiles(address, (address,), kind_of(address) or "parquet", None))
    tables = []
    for files, empty in (part for each in merged(found) for part in _by_empty_columns(each)):
        reader = _session(connection).read
        if files.partitioned:
            reader = reader.option("basePath", files.root)
        try:
            read = reader.parquet(*files.paths) if files.kind == "parquet" else _read_csv(reader, files, text)
        except _spark_errors() as error:
            raise ValueError(
                f"Spark can't read the {what} file {files.root} ({_reason(error)}); check the path, write times in "
                "microseconds where it says NANOS, or give what Hadoop needs for such an address (--spark_config "
                "spark.jars.packages=..., docs/spark.md)."
            ) from error
        name = ibis.util.gen_name("mcm")
        read.createOrReplaceTempView(name)
        tables.append((connection.table(name), empty))
    return _together(tables, what, columns)


def _by_empty_columns(files: InputFiles) -> list[tuple[InputFiles, frozenset[str]]]:
    """The files by which of their columns hold nothing: Spark takes the types of one file for all that it reads."""
    if files.filesystem is None:  # only Spark reaches them
        return [(files, frozenset())]
    empty = files.empty_columns()
    return [
        (replace(files, paths=tuple(path for path in files.paths if empty[path] == names)), names)
        for names in dict.fromkeys(empty.values())
    ]


def _together(found: list[tuple[ir.Table, frozenset[str]]], what: str, columns: Sequence[str]) -> ir.Table:
    """The rows of tables with the same columns; those that hold nothing in a table get their type from the others."""
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


def _read_csv(reader: Any, files: InputFiles, text: TextFiles | None) -> Any:
    """A text file that only Spark reaches: it says no line of a bad row, and can't count those that it drops."""
    import pyspark.sql.functions as F

    written = text.format if text else TextFormat()
    if written.on_bad_row != "error":
        raise ValueError(
            f"`on_bad_row: {written.on_bad_row}` needs files that this process can read, and only Spark reaches "
            f"{files.root}; copy the log, or write it as Parquet."
        )
    frame = reader.csv(
        list(files.paths),
        header=True,
        sep=written.delimiter or DELIMITERS[files.kind][0],
        quote=written.quote,
        escape=written.escape or written.quote,
        multiLine=True,
        mode="FAILFAST",
    )
    return frame.select([F.nullif(F.col(f"`{name}`"), F.lit("")).alias(name) for name in frame.columns])


@ibis.udf.scalar.builtin
def shortest_text(number: float) -> str:  # type: ignore[empty-body]
    """The function that `_spark_settings` registers."""


def split_text(text: ir.StringValue, separator: str) -> ir.ArrayValue:
    """The parts of a text between separators; Spark takes a separator for a regular expression."""
    return text.split(re.escape(separator) if text.get_backend().name == SPARK else separator)


def total(terms: Sequence[ir.Value], start: int) -> ir.Value:
    """The sum of expressions and a number."""
    return tree(operator.add, [*terms, ibis.literal(start)])


def tree(join: Callable[[Any, Any], Any], terms: Sequence[ir.Value]) -> ir.Value:
    """Many expressions as one, joined two by two: engines recurse, and a chain of a thousand is too deep for them."""
    while len(terms) > 1:
        terms = [functools.reduce(join, terms[place : place + 2]) for place in range(0, len(terms), 2)]
    return terms[0]


def text_of_float(number: ir.FloatingValue) -> ir.StringValue:
    """The shortest text that reads back to the same number, as DuckDB writes it; Java 17 has another form."""
    return shortest_text(number) if number.get_backend().name == SPARK else number.cast("string")


def each_group(
    rows: Callable[[ir.Table], ir.Table],
    table: ir.Table,
    key: str,
    number: int,
    use: Callable[[int, pa.Table], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Gives what `use` makes of each group of rows, in the order of the groups.

    On DuckDB one group after the other comes into this process. On Spark each goes to a worker, and only what `use`
    returns comes here.

    Args:
        rows: expression over `table`, whose result has the column `key` too.
        table: cached.
        key: column with the numbers of the groups, from 0.
        number: of groups.
        use: takes the number and the rows of a group and gives values that JSON can hold.

    Raises:
        OSError: A worker of Spark failed.
    """
    connection = table.get_backend()
    if connection.name != SPARK:
        for group in range(number):
            yield use(group, rows(table.filter(table[key] == group)).to_pyarrow())
        return

    def used(group: pa.Table) -> pa.Table:
        place = group[key][0].as_py()
        return pa.table({"group": pa.array([place], pa.int64()), "made": [json.dumps(use(place, group))]})

    name = ibis.util.gen_name("mcm")
    connection.create_view(name, rows(table))
    try:
        with worker_errors():
            frame = _session(connection).table(name).groupBy(key)
            made = frame.applyInArrow(used, "`group` long, made string").toArrow().sort_by("group")
    finally:
        _session(connection).catalog.dropTempView(name)
    for text in made["made"].to_pylist():
        yield json.loads(text)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turns what a worker of Spark raises into an `OSError` with the reason, without pages of Java."""
    try:
        yield
    except _spark_errors() as error:
        raise OSError(f"A worker of Spark failed: {_reason(error)}") from error


def _spark_errors() -> tuple[type[Exception], ...]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return PySparkException, Py4JError


def _reason(error: Exception) -> str:
    """The line that says it, of a message that holds the traces of a worker and of Java."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for mark in ("Error: ", "Exception: ") for line in lines if mark in line]
    return (telling or lines)[0]


@contextmanager
def replacing(output_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Gives a folder to fill and one for scratch; the first takes the place of `output_dir` when all went well."""
    output_dir = output_dir.resolve()  # of a symbolic link, which stays, the folder that it names
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
