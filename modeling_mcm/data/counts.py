# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is counted once over all training customers: which labels followed which values, and what kind of log it is.

Both are Ibis expressions over encoded events, so they run in any engine, and come out the same from a log and from
the shards that preparation made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from modeling_mcm.data.events import epoch_seconds
from modeling_mcm.data.schema import CATEGORICAL, EventSchema
from modeling_mcm.processing_mcm import FIRST_VALUE_ID

FOLLOWERS_FILE = "followers.parquet"
# Weight of a pair by the moments between its events, times the least common multiple: whole numbers have one sum.
LAG_WEIGHTS = {1: 60, 2: 30, 3: 20, 4: 15, 5: 12, 6: 10}
MOST_FOLLOWERS = 50  # of a value that are kept
# Target events of one visit and time on average, above which the order of a visit's events says nothing.
SETS = 2.0
FOLLOWERS = pa.schema(
    [("source", pa.string()), ("value", pa.int32()), ("task", pa.string()), ("label", pa.int32())]
    + [("weight", pa.int64()), ("customers", pa.int64())]
)


def shard_events(connection: ibis.BaseBackend, paths: Sequence[Path], schema: EventSchema) -> ir.Table:
    """The events of shards as [`encode_events`] makes them: customer_id, visit, second, f0, f1 ..., is_target.

    Args:
        connection: DuckDB's.
        paths: of the shards.
        schema: that they were prepared with.
    """
    table = connection.read_parquet([str(path) for path in paths])
    lists = {"second": table.times, "visit": table.visits}
    lists |= {f"f{i}": table[f"feature_{spec.name}"] for i, spec in enumerate(schema.features)}
    lists |= {f"t{k}": table[f"task_{task}"] for k, task in enumerate(schema.tasks)}
    events = table.select(table.customer_id, **{name: values.unnest() for name, values in lists.items()})
    is_target = ibis.or_(*(events[f"t{k}"] > 0 for k in range(len(schema.tasks))))
    return events.mutate(is_target=is_target.cast("int8"))


def _training_events(events: ir.Table, schema: EventSchema) -> ir.Table:
    """Training events with `moment`: the number of the event's moment, which all events of a visit and time share."""
    training = events.filter(events.second < epoch_seconds(schema.cutoffs["validation"]))
    order = ibis.window(group_by="customer_id", order_by=[training.visit, training.second])
    return training.mutate(moment=ibis.dense_rank().over(order))


def _label_tasks(schema: EventSchema) -> dict[str, str]:
    """Tasks that say what a target event is, and their columns; the token type counts only where it is alone."""
    columns = {spec.name: f"f{i}" for i, spec in enumerate(schema.features)}
    others = {task: columns[task] for task in schema.tasks if task != schema.token_feature.name}
    return others or {task: columns[task] for task in schema.tasks}


def measure(events: ir.Table, schema: EventSchema) -> dict[str, Any]:
    """What kind of log it is, by its training events; the recipe of pre-training reads it.

    Args:
        events: as [`encode_events`] or [`shard_events`] makes them.
        schema: of the log.

    Returns:
        `customers`, `one_visit` (how many of them have a single visit with a target), `visits` and `moments` (with a
        target), `targets` (events), and for each task `labels` (distinct ones), `met` (visits in which a label was
        met; once a visit) and `repeats` (how many of those were not the customer's first).
    """
    training = _training_events(events, schema)
    tasks = _label_tasks(schema)
    targets = training.filter(training.is_target == 1, ibis.or_(*(training[f] >= FIRST_VALUE_ID for f in tasks.values())))
    by_customer = targets.group_by("customer_id").agg(
        visits=targets.visit.nunique(), moments=targets.moment.nunique(), targets=targets.count()
    )
    total = by_customer.aggregate(
        customers=by_customer.count(),
        one_visit=(by_customer.visits == 1).sum(),
        visits=by_customer.visits.sum(),
        moments=by_customer.moments.sum(),
        targets=by_customer.targets.sum(),
    )
    result = {name: int(value or 0) for name, value in total.to_pyarrow().to_pylist()[0].items()}
    result["tasks"] = {}
    for task, column in tasks.items():
        known = targets.filter(targets[column] >= FIRST_VALUE_ID)
        pairs = known.group_by("customer_id", label=known[column]).agg(visits=known.visit.nunique())
        found = pairs.aggregate(
            labels=pairs.label.nunique(), met=pairs.visits.sum(), repeats=(pairs.visits - 1).sum()
        )
        result["tasks"][task] = {name: int(value or 0) for name, value in found.to_pyarrow().to_pylist()[0].items()}
    return result


def count_followers(events: ir.Table, schema: EventSchema, measures: dict[str, Any]) -> pa.Table:
    """Counts which labels of a task came within six moments after a value of a feature, in the training period.

    Two events of a customer whose moments are 1 to 6 apart make a pair, of which nearer ones weigh more
    (`LAG_WEIGHTS`). The second is a target event. Events of one moment make none, for their order says nothing. Where
    most moments hold several target events, as baskets do, nothing is counted.

    Args:
        events: as [`encode_events`] or [`shard_events`] makes them.
        schema: of the log.
        measures: of [`measure`].

    Returns:
        Columns source (a feature), value (its id), task, label (its id), weight (sum over the pairs) and customers
        (how many have such a pair): for each value the 50 heaviest labels, by source, value, task and label.
    """
    if measures["targets"] > SETS * measures["moments"]:
        return FOLLOWERS.empty_table()
    training = _training_events(events, schema)
    lags = ibis.memtable(
        pa.table({"lag": pa.array(LAG_WEIGHTS, pa.int64()), "lag_weight": pa.array(LAG_WEIGHTS.values(), pa.int64())})
    )
    parts = []
    for task, column in _label_tasks(schema).items():
        targets = training.filter(training.is_target == 1, training[column] >= FIRST_VALUE_ID)
        targets = targets.select("customer_id", label=targets[column], moment=targets.moment.cast("int64"))
        for i, spec in enumerate(schema.features):
            if spec.kind != CATEGORICAL or (spec is schema.token_feature and spec.name != task):
                continue
            sources = training.filter(training[f"f{i}"] >= FIRST_VALUE_ID)
            sources = sources.select("customer_id", value=sources[f"f{i}"], since=sources.moment.cast("int64"))
            sources = sources.cross_join(lags)
            sources = sources.mutate(moment=sources.since + sources.lag)
            pairs = sources.inner_join(targets, ["customer_id", "moment"])
            counted = pairs.group_by("value", "label").agg(
                weight=pairs.lag_weight.sum(), customers=pairs.customer_id.nunique()
            )
            order = [ibis.desc(counted.weight), counted.label]
            place = ibis.row_number().over(ibis.window(group_by=counted.value, order_by=order))
            kept = counted.mutate(place=place).filter(lambda table: table.place < MOST_FOLLOWERS).drop("place")
            found = kept.to_pyarrow().sort_by([("value", "ascending"), ("label", "ascending")])
            named = {"source": [spec.name] * len(found), "task": [task] * len(found)}
            columns = {name: named[name] if name in named else found[name] for name in FOLLOWERS.names}
            parts.append(pa.table(columns, FOLLOWERS))
    return pa.concat_tables(parts) if parts else FOLLOWERS.empty_table()
