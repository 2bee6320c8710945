# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is counted once over all training customers: which labels followed which labels, and what kind of log it is.

Both counts are Ibis expressions over encoded events, so they run in any engine, and give the same for a log and for
the shards that preparation made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
MOST_FOLLOWERS = 200
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)
from modeling_mcm.data.cases import ENDS, deciding_tasks
from modeling_mcm.data.dataset import FOLLOWERS_FILE, write_table
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.extras import needs

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.engine import caching
    from modeling_mcm.preparation.rows import shard_schema
    from modeling_mcm.preparation.vocabulary import Vocabularies

# Largest mean number of target events by moment at which the order of a visit's events still says something.
SETS = 2.0
FOLLOWERS = pa.schema(
    [("task", pa.string()), ("label", pa.int32()), ("follower", pa.int32())]
    + [("weight", pa.int64()), ("customers", pa.int64())]
)


def shard_events(connection: ibis.BaseBackend, paths: Sequence[Path], schema: EventSchema) -> ir.Table:
    """Reads the events of shards in the form that [`encode_events`] gives: customer_id, visit, period, second (since
    1970-01-01), f0, f1 ... (ids of the features), t0, t1 ... (labels of the tasks) and is_target."""
    table = connection.read_parquet([str(path) for path in paths])
    # Columns are read by their position: DuckDB ignores case in names, and renames one of "feature_type" and
    # "feature_Type".
    column = dict(zip(shard_schema(schema)[0], (table[name] for name in table.columns), strict=True))
    lists = {"second": column["times"], "visit": column["visits"]}
    lists |= {f"f{i}": column[f"f{i}"] for i in range(len(schema.features))}
    lists |= {f"t{k}": column[f"t{k}"] for k in range(len(schema.tasks))}
    lists["position"] = ibis.range(column["times"].length())
    ends = {name: column[name] for name in ENDS}
    events = table.select(column["customer_id"], **ends, **{name: values.unnest() for name, values in lists.items()})
    is_target = ibis.or_(*(events[f"t{k}"] > 0 for k in range(len(schema.tasks))))
    period = sum((events.position >= events[name]).cast("int8") for name in ENDS)
    return events.mutate(is_target=is_target.cast("int8"), period=period).drop("position", *ENDS)


def mark_targets(events: ir.Table, fitted: Vocabularies, schema: EventSchema) -> ir.Table:
    """Also marks those events of shards as targets that have no label in any task, as in the log. An event with an
    unknown token type stays unmarked, because a shard does not say what the event was."""
    token = schema.token_feature
    column, values = events[f"f{schema.features.index(token)}"], fitted.values[token.name]
    kinds = [value for value in schema.target_token_types or values if value in values]
    ids = [fitted.id_of(token.name, value) for value in kinds if value not in schema.reserved_token_types]
    if not schema.target_token_types:
        ids += [MISSING_ID, UNKNOWN_ID]  # every event of the log is a target, whatever its token type
    return events.mutate(is_target=((events.is_target == 1) | column.isin(ids)).cast("int8"))


def target_events(events: ir.Table, schema: EventSchema) -> ir.Table:
    """Selects the target events of the training period, with what [`measure`] and [`count_followers`] read.

    Both read the table several times, and the numbers of moments are expensive: keep it in a temporary table. Returns
    columns customer_id, visit, moment (number of the event's moment, which all events of a visit and time share) and
    the ids of the tasks that make an event a target. In a log without times a visit has one moment, as for the model:
    a shard does not hold the order inside a visit.
    """
    training = events.filter(events.period == 0)
    order_by = [training.visit, *([training.second] if schema.order is None else [])]
    order = ibis.window(group_by="customer_id", order_by=order_by)
    training = training.mutate(moment=ibis.dense_rank().over(order).cast("int64"))
    return training.filter(training.is_target == 1).select(
        "customer_id", "visit", "moment", *_label_tasks(schema).values()
    )


def recount(
    connection: ibis.BaseBackend, directory: Path, paths: Sequence[Path], schema: EventSchema
) -> tuple[dict[str, Any], ir.Table]:
    """Counts what the customers of a changed data set did, from its shards, and writes `FOLLOWERS_FILE`. Returns the
    measures for the manifest, empty where nothing is split by time; and the training events."""
    events = shard_events(connection, paths, schema)
    training = connection.create_table(ibis.util.gen_name("mcm"), events.filter(events.period == 0), temp=True)
    if schema.cutoffs == NO_CUTOFFS:  # no model is trained on it
        return {}, training
    with caching(connection) as cache:
        targets = cache(target_events(training, schema))
        measures = measure(targets, schema)
        write_table(directory / FOLLOWERS_FILE, count_followers(targets, schema, measures))
    return measures, training


def _label_tasks(schema: EventSchema) -> dict[str, str]:
    """The tasks that make an event a target, with their columns; the token type is among them only if it is alone."""
    columns = {spec.name: f"f{i}" for i, spec in enumerate(schema.features)}
    return {task: columns[task] for task in deciding_tasks(schema.tasks, schema.token_feature.name)}


def measure(events: ir.Table, schema: EventSchema) -> dict[str, Any]:
    """Measures what kind of log it is by its training events. The recipe of pre-training reads the measures.

    Returns `customers` (with a target), `one_visit` (number of customers with a single visit with a target), `visits`
    and `moments` (with a target), `targets` (target events), and `tasks`: by task `labels` (number of different
    labels), `met` (number of pairs of a visit and a label in it) and `repeats` (number of these pairs in which the
    customer had the label in an earlier visit).
    """
    tasks = _label_tasks(schema)
    targets = events.filter(ibis.or_(*(events[f] >= FIRST_VALUE_ID for f in tasks.values())))
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
    result: dict[str, Any] = {"tasks": {}}
    result |= {name: int(value or 0) for name, value in total.to_pyarrow().to_pylist()[0].items()}
    for task, column in tasks.items():
        known = targets.filter(targets[column] >= FIRST_VALUE_ID)
        pairs = known.group_by("customer_id", label=known[column]).agg(visits=known.visit.nunique())
        sums = pairs.aggregate(labels=pairs.label.nunique(), met=pairs.visits.sum(), repeats=(pairs.visits - 1).sum())
        result["tasks"][task] = {name: int(value or 0) for name, value in sums.to_pyarrow().to_pylist()[0].items()}
    return result


def count_followers(events: ir.Table, schema: EventSchema, measures: dict[str, Any]) -> pa.Table:
    """Counts which labels of a task came within six moments before or after which, in the training period.

    Two target events of a customer whose moments are 1 to 6 apart make one pair in each direction. Near pairs weigh
    more than far ones, and what comes after weighs more than what comes before (`LAG_WEIGHTS`). Events of one moment
    make no pair, because their order says nothing. Where most moments hold several target events, as baskets do,
    nothing is counted. Returns the columns task (name), label and follower (ids), weight (sum over the pairs) and
    customers (number with such a pair). For each label it has the 50 followers with the largest weight, in the order
    of task, label and follower.
    """
    if measures["targets"] > SETS * measures["moments"]:
        return FOLLOWERS.empty_table()
    # Each pair is made once, forwards, and counted for both directions at a time: this halves the rows and the groups.
    distances = [lag for lag in LAG_WEIGHTS if lag > 0]
    weights = {
        "distance": distances,
        "after": [LAG_WEIGHTS[lag] for lag in distances],
        "before": [LAG_WEIGHTS[-lag] for lag in distances],
    }
    lags = ibis.memtable(pa.table({name: pa.array(values, pa.int64()) for name, values in weights.items()}))
    parts = []
    for task, column in _label_tasks(schema).items():
        targets = events.filter(events[column] >= FIRST_VALUE_ID)
        earlier = targets.select("customer_id", first=targets[column], since=targets.moment).cross_join(lags)
        earlier = earlier.mutate(moment=earlier.since + earlier.distance)
        later = targets.select("customer_id", "moment", second=targets[column])
        pairs = earlier.inner_join(later, ["customer_id", "moment"])
        first, second, after, before = pairs.first, pairs.second, pairs.after, pairs.before
        of_low = ibis.cases((first < second, after), (first > second, before), else_=after + before)
        both = pairs.group_by(low=ibis.least(first, second), high=ibis.greatest(first, second)).agg(
            of_low=of_low.sum(),
            of_high=ibis.ifelse(first < second, before, after).sum(),
            customers=pairs.customer_id.nunique(),
        )
        one = both.select("customers", label=both.low, follower=both.high, weight=both.of_low)
        two = both.filter(both.low < both.high)
        two = two.select("customers", label=two.high, follower=two.low, weight=two.of_high)
        counted = one.union(two)
        order = [ibis.desc(counted.weight), counted.follower]
        rank = ibis.row_number().over(ibis.window(group_by=counted.label, order_by=order))
        first = counted.mutate(rank=rank).filter(lambda table: table.rank < MOST_FOLLOWERS).drop("rank")
        followers = first.to_pyarrow().sort_by([("label", "ascending"), ("follower", "ascending")])
        columns = {name: [task] * len(followers) if name == "task" else followers[name] for name in FOLLOWERS.names}
        parts.append(pa.table(columns, FOLLOWERS))
    return pa.concat_tables(parts)
