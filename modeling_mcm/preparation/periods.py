# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The period of an event: 0 training, 1 validation, 2 test, either by dates or by each customer's last visits.

Everything that is fitted comes from period 0. The events of one period stand together in a customer's row.
"""

from __future__ import annotations

import functools
import operator

from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.extras import needs

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.events import has_value

LEAST_TARGET_VISITS = 3  # one for training, one for validation and one for the test


def add_target(events: ir.Table, schema: EventSchema) -> ir.Table:
    """Adds `is_target`: 1 where the token type is one of `target_token_types`, or the schema names none; else 0."""
    token = events[f"f{schema.features.index(schema.token_feature)}"]
    is_target = token.isin(schema.target_token_types) if schema.target_token_types else ibis.literal(True)
    return events.mutate(is_target=ibis.coalesce(is_target, False).cast("int8"))


def to_predict(events: ir.Table, schema: EventSchema) -> ir.BooleanValue:
    """Says whether an event is a target and has a label in a task besides the token type. Other events have nothing to
    predict. Where the token type is the only task, every target has something to predict."""
    token_index = schema.features.index(schema.token_feature)
    indices = [i for i, spec in enumerate(schema.features) if spec.name in schema.tasks and i != token_index]
    has_label = [has_value(events, schema.features, i) for i in indices] or [ibis.literal(True)]
    return (events.is_target == 1) & functools.reduce(operator.or_, has_label)


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
    marked = events.mutate(to_predict=to_predict(events, schema).cast("int8"))
    visits = marked.group_by("customer_id", "visit_key").agg(start=marked.second.min(), target=marked.to_predict.max())
    so_far = ibis.window(
        group_by="customer_id", order_by=[visits.start, visits.visit_key], preceding=None, following=0
    )
    visits = visits.mutate(
        passed=visits.target.sum().over(so_far), targets=visits.target.sum().over(ibis.window(group_by="customer_id"))
    )
    period = ibis.greatest(visits.passed - visits.targets + 2, 0)
    visits = visits.mutate(period=ibis.ifelse(visits.targets >= LEAST_TARGET_VISITS, period, 0).cast("int8"))
    keys = ["customer_id", "visit_key"]
    return events.inner_join(visits.select(*keys, "period"), keys)
