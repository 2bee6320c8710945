# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where preparation runs and writes: DuckDB or Spark, tables that are kept there.

What differs between engines is in this file; all other steps on tables are Ibis expressions. On DuckDB one process
does the work, and what does not fit in memory is spilled to disk. On Spark its workers do the work, and write the
shards themselves. Nothing of Spark is imported before it is used, because it is an extra of its own.
"""

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow as pa

from modeling_mcm.events_mcm import check_columns
from modeling_mcm.extras import needs

from .rows import RowReader
from .sources import DATABASES, NULL, Source, check_files, detect_kind, find_files, is_delta, list_addresses

with needs("data"):
    import duckdb
    import ibis
    import ibis.expr.types as ir

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SPARK = "pyspark"  # name of the backend in Ibis, and of the package
# Times are read in UTC. Names that differ in case are different. Parts of a path are text, as on DuckDB. An overflow
# is an error. Data frames travel as Arrow.
SPARK_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}


@contextmanager
def spark_session(config: Mapping[str, str]) -> "Iterator[SparkSession]":
    """Opens the Spark session that runs in this process, or starts a new one, which is stopped at the end."""
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
    try:
        session = SparkSession.builder.appName("MCM").config(map=dict(config)).getOrCreate()
    except spark_errors() as error:
        raise OSError(
            f"Spark did not start ({find_reason(error)}); check its options, and JAVA_HOME: Java 17."
        ) from error
    try:
        yield session
    finally:
        session.stop()


@contextmanager
def spark_settings(connection: ibis.BaseBackend) -> Iterator[None]:
    """Sets the options of `SPARK_SETTINGS`, and sets them back."""
    settings = open_session(connection).conf
    before = {key: settings.get(key, None) for key in SPARK_SETTINGS}
    for key, value in SPARK_SETTINGS.items():
        settings.set(key, value)
    try:
        yield
    finally:
        for key, earlier in before.items():
            settings.unset(key) if earlier is None else settings.set(key, earlier)


def open_session(connection: ibis.BaseBackend) -> "SparkSession":
    """The Spark session of a connection."""
    return connection._session  # Ibis has no other way to its session


def read_on_spark(source: Source, connection: ibis.BaseBackend, what: str, reader: RowReader) -> ir.Table | None:
    """Reads Parquet files or a table of Spark on its workers, as `reader` does. Spark reads stores itself (by Hadoop),
    so it gets these addresses as they are, unchecked. None for a source that this process has to read."""
    session, addresses = open_session(connection), list_addresses(source)
    if isinstance(source, ir.Table):
        if source.get_backend().name != SPARK:
            return None
        frames = [session.sql(str(ibis.to_sql(source, dialect="pyspark")))]
    elif not addresses or any(is_delta(each) or urlsplit(each).scheme in DATABASES for each in addresses):
        return None
    else:
        stored = [address for address in addresses if "://" in address and not address.startswith("file://")]
        parts = find_files(others, what) if (others := [part for part in addresses if part not in stored]) else []
        kinds = {detect_kind(address) or "parquet" for address in stored} | {files.kind for files in parts}
        if kinds != {"parquet"}:
            return None
        types_by_file = check_files(parts, what, reader.columns)
        if any(NULL in types.values() for types in types_by_file.values()):
            return None  # because Spark takes the types of the first file
        frames = [_read_parquet(address, [address], session, what) for address in stored]
        frames += [_read_parquet(files.root, files.paths, session, what) for files in parts]
    from pyspark.sql.pandas.types import from_arrow_schema

    rows, columns = [], from_arrow_schema(reader.arrow)
    for frame in frames:
        check_columns(frame.columns, reader.columns, f"The {what} table has", "The schema names it.")
        rows.append(frame.select(*(f"`{name}`" for name in reader.columns)).mapInArrow(reader.read, columns))
    name = ibis.util.gen_name("mcm")
    functools.reduce(lambda frame, other: frame.unionAll(other), rows).createOrReplaceTempView(name)
    return connection.table(name)


def _read_parquet(root: str, paths: Sequence[str], session: "SparkSession", what: str) -> "DataFrame":
    """Reads Parquet files as a frame of Spark. Parts of the files' paths below the root are columns."""
    reader = session.read.option("basePath", root) if [*paths] != [root] else session.read
    try:
        return reader.parquet(*paths)
    except spark_errors() as error:
        raise ValueError(
            f"Spark can't read the {what} file {root} ({find_reason(error)}); check the path, write times in "
            "microseconds where it says NANOS, or give what Hadoop needs for such an address (--spark_config "
            "spark.jars.packages=..., docs/production.md)."
        ) from error


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turns an error of Spark or a worker into an `OSError` with the reason alone, without the traces of Java."""
    try:
        yield
    except spark_errors() as error:
        raise OSError(f"Spark failed: {find_reason(error)}") from error


def spark_errors() -> tuple[type[Exception], ...]:
    """The errors that Spark raises."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return PySparkException, Py4JError


def find_reason(error: Exception) -> str:
    """The line of an error message that gives the reason; the other lines are traces of a worker and of Java."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for mark in ("Error: ", "Exception: ") for line in lines if mark in line]
    return (telling or lines)[0]


@contextmanager
def open_engine(
    engine: str | ibis.BaseBackend,
    workspace: Path,
    memory_limit: str = "1GB",
    spark_config: Mapping[str, str] | None = None,
) -> Iterator[ibis.BaseBackend]:
    """Opens a connection to DuckDB or Spark, or uses the connection to Spark that is given.

    DuckDB spills what does not fit into `memory_limit` into the folder `workspace`. A Spark session that runs already
    is used and stays running. Raises `ValueError` if the engine is unknown, the running Spark session can't change an
    option any more. Raises `OSError` if there is no more memory or disk, or Spark does
    not start or fails. Raises `ImportError` if Spark is not installed.
    """
    if spark_config and engine != "spark":
        raise ValueError(f"Spark's options are given ({', '.join(spark_config)}) and the engine is {engine!r}.")
    if not isinstance(engine, str) and engine.name == SPARK:
        with spark_settings(engine):
            yield engine
    elif engine == "duckdb":
        try:
            connection = ibis.duckdb.connect(
                str(workspace / "engine.duckdb"), memory_limit=memory_limit, temp_directory=str(workspace / "spill")
            )
        except duckdb.Error as error:
            raise ValueError(
                f"`memory_limit` is {memory_limit!r}; give a size such as 4GB, 512MiB or 80% ({_first_line(error)})."
            ) from error
        try:
            yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException, OSError) as error:
            # What is met first depends on the machine: DuckDB that spills, or a file that is written for it or by it.
            if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"Preparation found no more memory or disk ({_first_line(error)}). DuckDB may use {memory_limit} of "
                f"memory, and what does not fit lies in {workspace}: make room on its disk, or give another memory "
                "limit."
            ) from error
        finally:
            connection.disconnect()
    elif engine == "spark":
        with spark_session(spark_config or {}) as session, worker_errors():
            connection = ibis.pyspark.connect(session)
            with spark_settings(connection):
                yield connection
    else:
        raise ValueError(f"`engine` is {engine!r}; give 'duckdb', 'spark' or an Ibis connection to Spark.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def caching(connection: ibis.BaseBackend) -> Iterator[Callable[[ir.Table], ir.Table]]:
    """Yields a function that keeps a table in the engine: on Spark until the end, on DuckDB until its connection is
    closed."""
    with ExitStack() as stack:
        if connection.name == SPARK:
            yield lambda table: stack.enter_context(table.cache())
        else:  # Ibis 12 can't drop a table of DuckDB 2
            yield lambda table: connection.create_table(ibis.util.gen_name("mcm"), table, temp=True)


def each_shard(table: ir.Table, number: int, use: Callable[[int, pa.Table], dict]) -> Iterator[dict]:
    """Applies `use` to the rows of each shard, and gives what it returns, values that JSON can hold, in the order of
    the shards. On DuckDB one shard after the other comes into this process, on Spark each goes to a worker. The column
    `shard` of `table` has the number of the shard, from 0."""
    connection = table.get_backend()
    if connection.name != SPARK:
        for index in range(number):
            yield use(index, table.filter(table.shard == index).to_pyarrow())
        return

    def used(rows: pa.Table) -> pa.Table:
        index = rows["shard"][0].as_py()
        return pa.table({"shard": pa.array([index], pa.int64()), "made": [json.dumps(use(index, rows))]})

    with worker_errors():
        frame = open_session(connection).sql(str(ibis.to_sql(table, dialect="pyspark"))).groupBy("shard")
        made = frame.applyInArrow(used, "shard long, made string").toArrow().sort_by("shard")
    for text in made["made"].to_pylist():
        yield json.loads(text)
