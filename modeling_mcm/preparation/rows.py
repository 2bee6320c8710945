# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From encoded events to what lies on disk: one row per customer in Parquet shards, popularity, counts."""

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from modeling_mcm.data.cases import ENDS, count_cases, deciding_tasks
from modeling_mcm.data.dataset import write_table
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.schema_mcm import CATEGORICAL, value_indices

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.engine import each_group
    from modeling_mcm.preparation.vocabulary import Vocabularies, task_indices

ROWS_PER_ROW_GROUP = 256


def customer_rows(encoded: ir.Table, profiles: ir.Table | None, schema: EventSchema) -> ir.Table:
    """Collects the events of each customer into one row, ordered by visit, time, ids and values, so that nothing
    depends on the order of the input. Not every engine can collect in an order, so they are sorted afterwards. The
    rows have the internal columns of `shard_schema` and the number of their `shard`."""
    names = [f"f{i}" for i in range(len(schema.features))]
    value_names = [f"v{i}" for i in value_indices(schema.features)]
    unseen_names = [f"u{k}" for k in range(len(schema.tasks))]
    order = ("visit", "period", "closes_visit", "second", *names, "is_target", *value_names, *unseen_names)
    rows = encoded.group_by("customer_id", "shard").agg(
        events=ibis.struct({name: encoded[name] for name in order}).collect(),
        validation_end=(encoded.period < 1).sum().cast("int32"),
        test_end=(encoded.period < 2).sum().cast("int32"),
    )
    rows = rows.mutate(events=rows.events.sort())
    columns: dict[str, ir.Value] = {
        "customer_id": rows.customer_id,
        "shard": rows.shard,
        "times": rows.events.map(lambda event: event["second"]),
        "visits": rows.events.map(lambda event: event["visit"]),
    }
    if schema.order is not None:  # without times each visit comes a day after the visit before
        columns["times"] = rows.events.map(lambda event: event["visit"].cast("int64") * SECONDS_PER_DAY)
    lists = (*names, *value_names, *unseen_names)
    columns |= {name: rows.events.map(lambda event, name=name: event[name]) for name in lists}
    for k, index in enumerate(task_indices(schema)):
        source = names[index]
        columns[f"t{k}"] = rows.events.map(lambda event, source=source: event[source] * event["is_target"])
    rows = rows.select(**columns, validation_end=rows.validation_end, test_end=rows.test_end)
    if profiles is not None:
        joined = rows.left_join(profiles, "customer_id")
        filled = {f"p{i}": ibis.coalesce(joined[f"p{i}"], MISSING_ID) for i in range(len(schema.profile))}
        rows = joined.mutate(**filled).select(*rows.columns, *filled)
    return rows


def shard_schema(schema: EventSchema) -> tuple[list[str], pa.Schema]:
    """The internal names of a shard's columns, as in `customer_rows` and in their order; and its own names and
    types."""
    ids = pa.list_(pa.int32())
    columns = [("customer_id", "customer_id", pa.string()), ("times", "times", pa.list_(pa.int64()))]
    columns += [("visits", "visits", ids)]
    columns += [(f"f{i}", f"feature_{spec.name}", ids) for i, spec in enumerate(schema.features)]
    columns += [
        (f"v{i}", f"value_{schema.features[i].name}", pa.list_(pa.float32())) for i in value_indices(schema.features)
    ]
    columns += [(f"t{k}", f"task_{task}", ids) for k, task in enumerate(schema.tasks)]
    columns += [(f"u{k}", f"unseen_{task}", ids) for k, task in enumerate(schema.tasks)]
    columns += [(f"p{i}", f"profile_{spec.name}", pa.int32()) for i, spec in enumerate(schema.profile)]
    columns += [(name, name, pa.int32()) for name in ENDS]
    return [internal for internal, _, _ in columns], pa.schema([(name, kind) for _, name, kind in columns])


def shard_table(rows: pa.Table, schema: EventSchema) -> pa.Table:
    """Gives rows the form in which they stand in a shard, in the order of `customer_id`. A checksum stands for the
    text of an unseen label, so that evaluation can tell one from another."""
    internal, arrow_schema = shard_schema(schema)
    for k in range(len(schema.tasks)):
        texts = pa.concat_arrays(rows[f"u{k}"].chunks)
        distinct = texts.flatten().dictionary_encode()
        checksums = pa.array([zlib.crc32(text.encode()) >> 1 for text in distinct.dictionary.to_pylist()], pa.int32())
        lists = pa.ListArray.from_arrays(
            pc.subtract(texts.offsets, texts.offsets[0]), checksums.take(distinct.indices)
        )
        rows = rows.set_column(rows.column_names.index(f"u{k}"), f"u{k}", lists)
    return rows.sort_by("customer_id").select(internal).rename_columns(arrow_schema.names).cast(arrow_schema)


def write_shard(table: pa.Table, path: Path) -> dict[str, Any]:
    """Writes a shard whole or not at all, and returns its entry in the manifest: `file`, `rows`, `bytes`, `sha256`."""
    write_table(path, table.combine_chunks(), compression="zstd", row_group_size=ROWS_PER_ROW_GROUP)
    return {"file": path.name, "rows": table.num_rows, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_shards(
    encoded: ir.Table, profiles: ir.Table | None, schema: EventSchema, directory: Path, number: int
) -> Iterator[dict[str, Any]]:
    """Writes all shards into a folder. Yields the entry of each shard in the manifest, in the order of the shards,
    with the key `cases` added: the evaluation cases of the shard, from `count_cases`."""
    rows = functools.partial(customer_rows, profiles=profiles, schema=schema)

    def write(index: int, rows_of_shard: pa.Table) -> dict[str, Any]:
        table = shard_table(rows_of_shard, schema)
        entry = write_shard(table, directory / f"customers-{index:05d}-of-{number:05d}.parquet")
        return entry | {"cases": count_cases(table, schema)}

    for entry in each_group(rows, encoded, "shard", number, write):
        if not (directory / entry["file"]).is_file():
            raise OSError(
                f"{entry['file']} was written by a worker and is not in {directory.parent.parent}: give an output "
                "folder on storage that all machines of the cluster share."
            )
        yield entry
    for partial in directory.glob(".*.partial"):  # left by a lost worker, whose shard another worker wrote
        partial.unlink()


def popularity(encoded: ir.Table, fitted: Vocabularies, schema: EventSchema) -> pa.Table:
    """Counts every value in the training period. Returns the columns feature, id, value, count (number of events) and
    target_count (number of target events), in the order of features and ids."""
    training = encoded.filter(encoded.period == 0)
    parts = []
    for i, spec in enumerate(schema.features):
        if spec.kind == CATEGORICAL:
            values_of_feature = training.filter(training[f"f{i}"] >= FIRST_VALUE_ID).group_by(id=training[f"f{i}"])
            table = values_of_feature.agg(count=lambda t: t.count(), target_count=lambda t: t.is_target.sum())
            counts = table.to_pyarrow().cast(
                pa.schema([("id", pa.int32()), ("count", pa.int64()), ("target_count", pa.int64())])
            )
            counts = counts.sort_by("id")
            values = [fitted.values[spec.name][k - FIRST_VALUE_ID] for k in counts["id"].to_pylist()]
            columns = {"feature": pa.array([spec.name] * len(values), pa.string()), "id": counts["id"]}
            columns |= {"value": pa.array(values, pa.string()), "count": counts["count"]}
            parts.append(pa.table(columns | {"target_count": counts["target_count"]}))
    return pa.concat_tables(parts)


def count_ids(encoded: ir.Table, schema: EventSchema) -> dict[str, Any]:
    """Counts the events of the log with a missing or unknown value, and the events that preparation added. Returns
    `missing` and `unknown`, by feature a number of events; and `ends_of_visit`, the number of added events."""
    events = encoded.filter(encoded.closes_visit == 0)
    sums: dict[str, ir.Value] = {}
    for i, _ in enumerate(schema.features):
        sums |= {f"m{i}": (events[f"f{i}"] == MISSING_ID).sum(), f"u{i}": (events[f"f{i}"] == UNKNOWN_ID).sum()}
    empty = events.filter(*(events[f"f{i}"] == MISSING_ID for i in range(len(schema.features)))).count()
    counts = events.aggregate(**sums, empty=empty.as_scalar()).to_pyarrow().to_pylist()[0]
    if counts["empty"]:
        raise ValueError(
            f"{counts['empty']} events have no value in any feature; leave them out of the log, or add a feature that "
            "is always there, such as {name: hour, kind: hour}."
        )
    return {
        "missing": {spec.name: counts[f"m{i}"] or 0 for i, spec in enumerate(schema.features)},
        "unknown": {spec.name: counts[f"u{i}"] or 0 for i, spec in enumerate(schema.features)},
        "ends_of_visit": (encoded.closes_visit == 1).sum().to_pyarrow().as_py() or 0,
    }


def measure(events: ir.Table, schema: EventSchema) -> dict[str, int]:
    """Measures what kind of log it is by the target events of the training period. The recipe of pre-training reads
    the measures.

    Only targets with a known label count, and the token type is a label only if it is the only task. In a log without
    times a visit has one moment, as for the model: a shard does not hold the order inside a visit. Returns
    `customers`, `one_visit` (number of customers with a single visit), `visits`, `moments` and `targets` (number of
    events); empty where nothing is split by time, because no model is trained on such a data set.
    """
    if schema.cutoffs == NO_CUTOFFS:
        return {}
    columns = {spec.name: f"f{i}" for i, spec in enumerate(schema.features)}
    labels = [events[columns[task]] for task in deciding_tasks(schema.tasks, schema.token_feature.name)]
    is_labelled = ibis.or_(*(label >= FIRST_VALUE_ID for label in labels))
    targets = events.filter((events.period == 0) & (events.is_target == 1) & is_labelled)
    of_moment = ["customer_id", "visit", *(["second"] if schema.order is None else [])]
    moments = targets.group_by(of_moment).agg(targets=targets.count())
    by_customer = moments.group_by("customer_id").agg(
        visits=moments.visit.nunique(), moments=moments.count(), targets=moments.targets.sum()
    )
    total = by_customer.aggregate(
        customers=by_customer.count(),
        one_visit=(by_customer.visits == 1).sum(),
        visits=by_customer.visits.sum(),
        moments=by_customer.moments.sum(),
        targets=by_customer.targets.sum(),
    )
    return {name: int(value or 0) for name, value in total.to_pyarrow().to_pylist()[0].items()}
