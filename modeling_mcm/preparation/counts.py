# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What kind of log it is: measures of its encoded events, and the events of shards, which give the same measures.

Everything is an Ibis expression, so it runs in any engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from modeling_mcm.data.cases import CUTOFFS, ENDS, deciding_tasks
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.extras import needs

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.rows import count_ids, shard_schema
    from modeling_mcm.preparation.vocabulary import Vocabularies


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
    ids = [fitted.look_up_id(token.name, value) for value in kinds if value not in schema.reserved_token_types]
    if not schema.target_token_types:
        ids += [MISSING_ID, UNKNOWN_ID]  # every event of the log is a target, whatever its token type
    return events.mutate(is_target=((events.is_target == 1) | column.isin(ids)).cast("int8"))


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


def count_events(events: ir.Table, fitted: Vocabularies, schema: EventSchema) -> dict[str, Any]:
    """Counts the events of shards, as preparation counts those of the log."""
    token, tasks = schema.token_feature, deciding_tasks(schema.tasks, schema.token_feature.name)
    column = events[f"f{schema.features.index(token)}"]
    closes = column == (fitted.look_up_id(token.name, schema.end_of_visit) if schema.end_of_visit else -1)
    events = mark_targets(events, fitted, schema).mutate(closes_visit=closes.cast("int8"))
    of_log = events.filter(events.closes_visit == 0)
    is_target = of_log.is_target == 1
    labels = [of_log[f"t{schema.tasks.index(task)}"] != MISSING_ID for task in tasks if task != token.name]
    numbers = {f"{name}_events": (of_log.period == k).sum() for k, name in enumerate(("training", *CUTOFFS))}
    has_label = ibis.or_(*labels) if labels else ibis.literal(True)
    numbers |= {"events": of_log.count(), "target_events": is_target.sum()}
    numbers |= {"training_targets": (is_target & has_label & (of_log.period == 0)).sum()}
    return of_log.aggregate(**numbers).to_pyarrow().to_pylist()[0] | count_ids(events, schema)


def combined(old: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Updates counts, which are sums over customers: minus what the changed customers were, plus what they are."""
    return {
        name: combined(value, before.get(name, {}), after.get(name, {}))
        if isinstance(value, dict)
        else value - before.get(name, 0) + after.get(name, 0)
        for name, value in old.items()
    }
