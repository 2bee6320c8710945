# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where preparation runs and writes: DuckDB or Spark, tables that are kept there, a folder that appears when whole.

Everything that differs between engines is in this file; all other steps are Ibis expressions. On DuckDB one process
does the work, and what does not fit in memory is spilled to disk. On Spark its workers do the work, and write the
shards themselves.
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

SPARK = "pyspark"  # name of the backend in Ibis, and of the package
# Times are read in UTC. Names that differ in case are different. Parts of a path are text, as on DuckDB. An overflow
# is an error. Data frames travel as Arrow.
SPARK_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # otherwise Spark does not count the fields of a row
}


@contextmanager
def open_engine(
    engine: str | ibis.BaseBackend,
    workspace: Path,
    memory_limit: str = "1GB",
    spark_config: Mapping[str, str] | None = None,
) -> Iterator[ibis.BaseBackend]:
    """Opens a connection to DuckDB or Spark, or uses the connection that is given.

    Args:
        engine (`str` or `ibis.BaseBackend`): "duckdb", "spark" or an Ibis connection.
        workspace (`Path`): folder into which DuckDB spills what does not fit in memory.
        memory_limit (`str`): memory that DuckDB may use, such as "1GB".
        spark_config (`dict[str, str]`, *optional*): options of the Spark session, such as `{"spark.master":
            "local[2]"}`. A session that runs already is used and stays running.

    Yields:
        `ibis.BaseBackend`: the connection.

    Raises:
        ValueError: if the engine is unknown, the running Spark session can't change an option any more, or DuckDB
            finds damaged input.
        OSError: if DuckDB finds no more memory or disk, or Spark does not start or fails.
        ImportError: if Spark is not installed.
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
    """Opens the Spark session that runs in this process, or starts a new one, which is stopped at the end.

    Args:
        config (`dict[str, str]`): options of the session.

    Yields:
        `pyspark.sql.SparkSession`: the session.

    Raises:
        ImportError: if Spark is not installed.
        ValueError: if a running session can't change an option any more.
        OSError: if Spark does not start.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ImportError("Spark is not installed: pip install 'modeling-mcm[spark]' (and Java 17).") from error
    running = SparkSession.getActiveSession()
    if running is not None:
        session = running.newSession()  # a session with its own settings and views
        for key, value in config.items():
            if session.conf.get(key, None) != value:
                if not session.conf.isModifiable(key):
                    raise ValueError(f"A Spark session runs already, and {key} can't be changed any more.")
                session.conf.set(key, value)
        yield session
        return
    if config.get("spark.master", "local").startswith("local"):  # workers on this machine use this Python
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
    """Sets a DuckDB session to UTC and back: in another zone times with a zone would be shifted by some hours."""
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
    """Sets the options of `SPARK_SETTINGS` and registers `shortest_text` on Spark, and sets the options back."""
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
    """Gives a function that keeps a table in the engine. The tables are dropped at the end.

    Args:
        connection (`ibis.BaseBackend`): connection from `open_engine`.

    Yields:
        `Callable[[ibis.Table, str | None], ibis.Table]`: the function. It takes the table and, as `near`, optionally a
        column whose equal rows should lie together on disk. Spark ignores `near`, because it brings such rows together
        when they are read.
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

    A CSV file has no types, so each value is read as the text that stands in the file ("007" stays "007").

    Args:
        source (`Any`): the table. Files are a path, an address such as `gs://bucket/log`, or a list of these.
        connection (`ibis.BaseBackend`): connection from `open_engine`.
        what (`str`): "event" or "profile", for messages.
        columns (`Sequence[str]`): names of the columns that are read, and must be the same in all files. Empty: all
            columns.
        text (`TextFiles`, *optional*): how text files are written and where their values are put. Default: the usual
            format, and a temporary folder of this machine that is removed with the connection.

    Returns:
        `ibis.Table`: the table.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file has an unknown type or is empty or damaged, files differ in `columns`, or the engine
            can't read an address.
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
    """Adds a column with the number of each row in the files, the data frame or the Arrow table, from 0.

    Files are read in the given order, and the files of a folder in the order of their names.

    Args:
        table (`ibis.Table`): table from `open_table`.
        source (`Any`): what the table was opened from.
        connection (`ibis.BaseBackend`): connection from `open_engine`.
        column (`str`): name of the new column.

    Returns:
        `ibis.Table`: the table with the new column.

    Raises:
        ValueError: if the rows have no order that would be the same next time.
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
    """The files of a log as Parquet. This process reads text files, so they mean the same for every engine."""
    if text is None:
        text = TextFiles(TextFormat(), Path(tempfile.mkdtemp(prefix="mcm-text-")))
        weakref.finalize(connection, shutil.rmtree, text.folder, ignore_errors=True)
    check_files(found, what, columns, text.format)
    return [files if files.kind == "parquet" else _text_as_parquet(files, what, columns, text) for files in found]


def _text_as_parquet(files: InputFiles, what: str, columns: Sequence[str], text: TextFiles) -> InputFiles:
    folder, paths = text.to_parquet(files.paths, files.root, files.kind, files.filesystem, what, columns)
    return replace(files, root=str(folder), paths=paths, kind="parquet", filesystem=fsspec.filesystem("file"))


def read_files(files: InputFiles, connection: Any) -> ir.Table:
    """Reads Parquet files as a table of DuckDB.

    Args:
        files (`InputFiles`): the files.
        connection (`ibis.BaseBackend`): connection to DuckDB.

    Returns:
        `ibis.Table`: the rows of all files.
    """
    names = files.filesystem.protocol
    name = names if isinstance(names, str) else names[0]
    if not is_local(files.filesystem) and not connection.con.filesystem_is_registered(name):
        connection.register_filesystem(files.filesystem)
    # A column without values in some files gets its type from the other files.
    options = {"union_by_name": True} if len({*files.empty_columns().values()}) > 1 else {}
    options |= {"hive_partitioning": files.partitioned, "hive_types_autocast": False}
    return known_types(connection.read_parquet(list(files.paths), **options))


def known_types(table: ir.Table) -> ir.Table:
    """Replaces the types that Ibis does not know: DuckDB's nanoseconds with a zone, and columns without values.

    Args:
        table (`ibis.Table`): the table.

    Returns:
        `ibis.Table`: the table, with UTC timestamps and text in the place of these types.
    """
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
    """Spark reads addresses of stores itself (by Hadoop), so it gets these addresses as they are, unchecked."""
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
    """The files in groups with the same empty columns, because Spark takes the types of one file for all files."""
    if files.filesystem is None:  # only Spark reaches the files
        return [(files, frozenset())]
    empty = files.empty_columns()
    return [
        (replace(files, paths=tuple(path for path in files.paths if empty[path] == names)), names)
        for names in dict.fromkeys(empty.values())
    ]


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


def _read_csv(reader: Any, files: InputFiles, text: TextFiles | None) -> Any:
    """Reads text files that only Spark reaches. Spark does not name bad lines, and can't count those it drops."""
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
    """Writes a number as its shortest exact text. `_spark_settings` registers this function in Spark.

    Args:
        number (`float`): the number.

    Returns:
        `str`: its text.
    """


def split_text(text: ir.StringValue, separator: str) -> ir.ArrayValue:
    """Splits a text at a separator. Spark reads a separator as a regular expression, so it is escaped there.

    Args:
        text (`ibis.StringValue`): the text.
        separator (`str`): the separator, taken literally.

    Returns:
        `ibis.ArrayValue`: the parts of the text.
    """
    return text.split(re.escape(separator) if text.get_backend().name == SPARK else separator)


def total(terms: Sequence[ir.Value], start: int) -> ir.Value:
    """Adds up expressions and a number.

    Args:
        terms (`Sequence[ibis.Value]`): the expressions.
        start (`int`): the number.

    Returns:
        `ibis.Value`: the sum.
    """
    return tree(operator.add, [*terms, ibis.literal(start)])


def tree(join: Callable[[Any, Any], Any], terms: Sequence[ir.Value]) -> ir.Value:
    """Joins many expressions into one, two by two. Engines recurse, and a chain of a thousand is too deep for them.

    Args:
        join (`Callable`): joins two expressions, such as `operator.add`.
        terms (`Sequence[ibis.Value]`): the expressions, at least one.

    Returns:
        `ibis.Value`: the joined expression.
    """
    while len(terms) > 1:
        terms = [functools.reduce(join, terms[place : place + 2]) for place in range(0, len(terms), 2)]
    return terms[0]


def text_of_float(number: ir.FloatingValue) -> ir.StringValue:
    """Writes a number as the shortest text that reads back to it, as DuckDB does. Java 17 writes it differently.

    Args:
        number (`ibis.FloatingValue`): the number.

    Returns:
        `ibis.StringValue`: its text.
    """
    return shortest_text(number) if number.get_backend().name == SPARK else number.cast("string")


def each_group(
    rows: Callable[[ir.Table], ir.Table],
    table: ir.Table,
    key: str,
    number: int,
    use: Callable[[int, pa.Table], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Applies a function to each group of rows, and gives its results in the order of the groups.

    On DuckDB one group after the other comes into this process. On Spark each group goes to a worker, and only the
    result of `use` comes into this process.

    Args:
        rows (`Callable[[ibis.Table], ibis.Table]`): makes the rows of the groups from `table`; its result has the
            column `key` too.
        table (`ibis.Table`): the table, cached.
        key (`str`): name of the column with the number of the group, from 0.
        number (`int`): number of groups.
        use (`Callable[[int, pyarrow.Table], dict]`): takes the number and the rows of a group, and returns values that
            JSON can hold.

    Yields:
        `dict`: the result of `use` for each group.

    Raises:
        OSError: if a worker of Spark failed.
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
    """Turns an error of a Spark worker into an `OSError` with the reason alone, without the traces of Java.

    Raises:
        OSError: if a worker failed.
    """
    try:
        yield
    except _spark_errors() as error:
        raise OSError(f"A worker of Spark failed: {_reason(error)}") from error


def _spark_errors() -> tuple[type[Exception], ...]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return PySparkException, Py4JError


def _reason(error: Exception) -> str:
    """The line of an error message that gives the reason; the other lines are traces of a worker and of Java."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for mark in ("Error: ", "Exception: ") for line in lines if mark in line]
    return (telling or lines)[0]


@contextmanager
def replacing(output_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Gives a folder to fill and a scratch folder. If no error occurs, the first replaces `output_dir` at the end.

    Args:
        output_dir (`Path`): the folder to write. Where it is a symbolic link, the folder that it names.

    Yields:
        `tuple[Path, Path]`: the folder to fill, and the scratch folder, which is removed at the end.

    Raises:
        OSError: if a folder can't be made or renamed; `output_dir` then is as it was.
    """
    output_dir = output_dir.resolve()  # a symbolic link stays, and the folder that it names is replaced
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
    """Puts a file under a second name, as a hard link or, where there are no hard links, as a copy.

    Files of a data set never change, so both names may share their bytes.

    Args:
        source (`Path`): path of the file.
        target (`Path`): the second path.

    Raises:
        OSError: if the file can't be copied.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
