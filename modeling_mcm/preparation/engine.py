# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where preparation runs and writes: DuckDB or Spark, tables that are kept there.

What differs between engines is in this file and in spark.py; all other steps on tables are Ibis expressions. On DuckDB
one process does the work, and what does not fit in memory is spilled to disk. On Spark its workers do the work, and
write the shards themselves.
"""

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa

from modeling_mcm.extras import needs

with needs("data"):
    import duckdb
    import ibis
    import ibis.expr.types as ir

    from .spark import SPARK, open_session, spark_session, spark_settings, worker_errors


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
    option any more, or DuckDB finds damaged input. Raises `OSError` if there is no more memory or disk, or Spark does
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
        except duckdb.Error as error:
            raise ValueError(
                f"DuckDB cannot read the input ({_first_line(error)}). If a file is damaged, write it again."
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


def each_group(
    table: ir.Table,
    key: str,
    number: int,
    use: Callable[[int, pa.Table], dict],
) -> Iterator[dict]:
    """Applies `use` to each group of rows, and gives what it returns, values that JSON can hold, in the order of the
    groups. On DuckDB one group after the other comes into this process, on Spark each goes to a worker. The column
    `key` of `table` has the number of the group, from 0."""
    connection = table.get_backend()
    if connection.name != SPARK:
        for group in range(number):
            yield use(group, table.filter(table[key] == group).to_pyarrow())
        return

    def used(group: pa.Table) -> pa.Table:
        index = group[key][0].as_py()
        return pa.table({"group": pa.array([index], pa.int64()), "made": [json.dumps(use(index, group))]})

    with worker_errors():
        frame = open_session(connection).sql(str(ibis.to_sql(table, dialect="pyspark"))).groupBy(key)
        made = frame.applyInArrow(used, "`group` long, made string").toArrow().sort_by("group")
    for text in made["made"].to_pylist():
        yield json.loads(text)
