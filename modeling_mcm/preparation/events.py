# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From a log to checked events with their periods, as tables of an engine.

A period is 0 training, 1 validation, 2 test, either by dates or by each customer's last visits. Everything that is
fitted comes from period 0. The events of one period stand together in a customer's row.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers.utils import logging

from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.events_mcm import check_columns
from modeling_mcm.extras import needs
from modeling_mcm.preparation.reading import BAD, RowReader
from modeling_mcm.preparation.tables import SourceTable
from modeling_mcm.schema_mcm import ROWS

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.spark import SPARK, read_on_spark

logger = logging.get_logger(__name__)

FIX = "The schema names it."
LEAST_TARGET_VISITS = 3  # one for training, one for validation and one for the test


def open_rows(
    source: Any, connection: ibis.BaseBackend, schema: EventSchema, folder: Path, profile: bool = False
) -> tuple[ir.Table, int]:
    """Reads a log, or a table of profiles, as a table with the columns of [`RowReader`] but `BAD`. Returns it and the
    number of rows that were left out because they can't be read.

    On Spark the workers read Parquet files and tables of Spark. This process reads everything else, and writes what it
    read into `folder`.
    """
    what, reader, dropped = "profile" if profile else "event", RowReader(schema, profile), 0
    text = replace(schema.text_format, on_bad_row="error") if profile else schema.text_format
    table = read_on_spark(source, connection, what, reader) if connection.name == SPARK else None
    if schema.order == ROWS and not profile and (table is not None or isinstance(source, ir.Table)):
        raise ValueError(
            f"`order: rows` needs files, a data frame or an Arrow table: the rows of a table of {connection.name} "
            "have no order of their own. Number the events of a customer in a column, and name it as `order`."
        )
    if table is None:
        opened = SourceTable(source, what, reader.columns, text)
        check_columns(opened.names, reader.columns, f"The {what} table has", FIX)
        path = folder / f"{what}.parquet"
        with pq.ParquetWriter(path, reader.schema, compression="zstd", compression_level=1) as writer:
            for block in reader.read(opened.blocks(reader.columns)):
                writer.write_batch(block)
        table, dropped = connection.read_parquet(path), opened.dropped
    return _without_bad(table, schema.on_bad_row == "drop" and not profile, dropped)


def _without_bad(table: ir.Table, may_drop: bool, dropped: int) -> tuple[ir.Table, int]:
    """Leaves out rows with a value that can't be read, or raises `ValueError`."""
    column, reason = (table[name] for name in BAD)
    bad = table.filter(column.notnull()).group_by(column).agg(rows=lambda t: t.count(), reason=reason.max())
    for row in bad.to_pyarrow().sort_by(BAD[0]).to_pylist():
        message = f"Column {row[BAD[0]]!r} has {row['rows']} values that cannot be read, such as: {row['reason']}"
        if not may_drop:
            raise ValueError(f"{message}. Or set `on_bad_row: drop` in the schema to leave such rows of events out.")
        logger.warning(f"{message}; these rows are left out.")
        dropped += row["rows"]
    return table.filter(column.isnull()).drop(*BAD), dropped


def check_profiles(profiles: ir.Table, customer: str) -> ir.Table:
    """Leaves out profiles of no customer. Raises `ValueError` if a customer has several."""
    profiles = profiles.filter(profiles.customer_id.notnull())
    twice = profiles.group_by("customer_id").agg(rows=profiles.count())
    example = twice.filter(twice.rows > 1).customer_id.min().to_pyarrow().as_py()
    if example is not None:
        raise ValueError(
            f"The profile table has several rows for the customer {example!r} (column {customer!r}); keep one row a "
            "customer."
        )
    return profiles


def add_period(events: ir.Table, schema: EventSchema) -> ir.Table:
    """Adds `period`: 0, 1 or 2. With dates a visit may lie in two periods. With "leave_one_out" it lies in one: of a
    customer's visits that have something to predict, the last one begins period 2, and the one before it begins period
    1. Customers with fewer than three such visits are in period 0 alone."""
    if schema.cutoffs == NO_CUTOFFS:
        return events.mutate(period=ibis.literal(0, "int8"))
    if schema.leaves_one_out:
        return _leave_one_out(events, schema)
    cutoffs = [schema.cutoff_seconds(key) for key in ("validation", "test")]
    return events.mutate(period=sum((events.second >= cutoff).cast("int8") for cutoff in cutoffs))


def _leave_one_out(events: ir.Table, schema: EventSchema) -> ir.Table:
    marked = events.mutate(target=events.to_predict.cast("int8"))
    visits = marked.group_by("customer_id", "visit_key").agg(start=marked.second.min(), target=marked.target.max())
    so_far = ibis.window(
        group_by="customer_id", order_by=[visits.start, visits.visit_key], preceding=None, following=0
    )
    visits = visits.mutate(
        passed=visits.target.sum().over(so_far), targets=visits.target.sum().over(ibis.window(group_by="customer_id"))
    )
    period = ibis.greatest(visits.passed - visits.targets + 2, 0)
    visits = visits.mutate(period=ibis.ifelse(visits.targets >= LEAST_TARGET_VISITS, period, 0).cast("int8"))
    keys = ["customer_id", "visit_key"]
    return marked.inner_join(visits.select(*keys, "period"), keys).drop("target")


def keep_latest(events: ir.Table, most: int) -> tuple[ir.Table, dict[str, int]]:
    """Leaves out all but the latest events of each customer in each period; each period by itself, so that the events
    before a cutoff never depend on what comes after it. Returns the events that stay; and `dropped_excess` (number of
    events left out) and `customers_with_excess` (number of customers that had too many)."""
    long = events.group_by("customer_id", "period").agg(number=events.count())
    long = long.filter(long.number > most)
    totals = long.aggregate(events=(long.number - most).sum(), customers=long.customer_id.nunique())
    counts = totals.to_pyarrow().to_pylist()[0]
    if not counts["customers"]:
        return events, {"dropped_excess": 0, "customers_with_excess": 0}
    keys = ["customer_id", "period"]
    cut = events.semi_join(long, keys)
    # All columns decide, so that the same events are left out whatever the order of the input.
    latest = [ibis.desc("second"), *(ibis.asc(name) for name in cut.columns if name not in (*keys, "second"))]
    rank = ibis.row_number().over(ibis.window(group_by=keys, order_by=latest))
    cut = cut.mutate(rank=rank).filter(lambda table: table.rank < most).drop("rank")
    return (
        events.anti_join(long, keys).union(cut),
        {"dropped_excess": counts["events"], "customers_with_excess": counts["customers"]},
    )
