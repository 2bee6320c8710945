# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation on Spark: its session and settings, the files that it reads, and its errors in one line.

Nothing of Spark is imported before it is used, because it is an extra of its own.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from modeling_mcm.extras import needs
from modeling_mcm.preparation.files import InputFiles

with needs("data"):
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
}


@contextmanager
def spark_session(config: Mapping[str, str]) -> Iterator[Any]:
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
    """Sets the options of `SPARK_SETTINGS` and registers `shortest_text` on Spark, and sets the options back."""
    if connection.name != SPARK:
        yield
        return
    settings = open_session(connection).conf
    before = {key: settings.get(key, None) for key in SPARK_SETTINGS}
    for key, value in SPARK_SETTINGS.items():
        settings.set(key, value)
    from pyspark.sql.functions import udf

    text = udf(lambda number: None if number is None else repr(float(number)), "string", useArrow=True)
    open_session(connection).udf.register(shortest_text.__name__, text)
    try:
        yield
    finally:
        for key, value in before.items():
            settings.unset(key) if value is None else settings.set(key, value)


def open_session(connection: Any) -> Any:
    """The Spark session of a connection."""
    return connection._session  # Ibis has no other way to its session


def read_by_spark(files: InputFiles, connection: Any, what: str) -> Iterator[tuple[ir.Table, frozenset[str]]]:
    """Reads Parquet files as tables of Spark. Files that this process does not reach are read unchecked. Yields a
    table, and the names of its columns that have no value."""
    for part, empty in _by_empty_columns(files):
        reader = open_session(connection).read
        if part.partitioned:
            reader = reader.option("basePath", part.root)
        try:
            read = reader.parquet(*part.paths)
        except spark_errors() as error:
            raise ValueError(
                f"Spark can't read the {what} file {part.root} ({find_reason(error)}); check the path, write times in "
                "microseconds where it says NANOS, or give what Hadoop needs for such an address (--spark_config "
                "spark.jars.packages=..., docs/large_logs.md)."
            ) from error
        name = ibis.util.gen_name("mcm")
        read.createOrReplaceTempView(name)
        yield connection.table(name), empty


def _by_empty_columns(files: InputFiles) -> list[tuple[InputFiles, frozenset[str]]]:
    """The files in groups with the same empty columns, because Spark takes the types of one file for all files."""
    if files.filesystem is None:  # only Spark reaches the files
        return [(files, frozenset())]
    empty = files.empty_columns()
    return [
        (replace(files, paths=tuple(path for path in files.paths if empty[path] == names)), names)
        for names in dict.fromkeys(empty.values())
    ]


@ibis.udf.scalar.builtin
def shortest_text(number: float) -> str:  # type: ignore[empty-body]
    """Writes a number as its shortest exact text. `spark_settings` registers this function in Spark."""


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turns an error of a Spark worker into an `OSError` with the reason alone, without the traces of Java."""
    try:
        yield
    except spark_errors() as error:
        raise OSError(f"A worker of Spark failed: {find_reason(error)}") from error


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
