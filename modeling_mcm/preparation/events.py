# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From any table to checked, normalised events with their periods and visits, as Ibis expressions.

A period is 0 training, 1 validation, 2 test, either by dates or by each customer's last visits. Everything that is
fitted comes from period 0. The events of one period stand together in a customer's row.

Columns get internal names by their position (`f0`, `f1` ... for features, `p0` ... for the profile), because feature
names such as "a.b", or "Type" beside "type", are legal in a schema but not in every engine. Times are seconds since
1970-01-01.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers.utils import logging

from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.events_mcm import EXACT_FLOAT, SECONDS_PER_DAY, TIME_ADVICE, check_columns
from modeling_mcm.extras import needs
from modeling_mcm.preparation.text_files import TextFiles
from modeling_mcm.schema_mcm import CATEGORICAL, NUMERIC, ONE_TOKEN_TYPE, ROWS, FeatureSpec, raw_indices

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.expressions import split_text, text_of_float
    from modeling_mcm.preparation.tables import number_rows, open_table
    from modeling_mcm.preparation.times import express_seconds

logger = logging.get_logger(__name__)

# Texts that an engine reads as numbers and `to_number` of the feature extractor does not: Spark "5d", DuckDB "+-5".
NO_NUMBER = r"\d\.?[dDfF]\s*$|^\s*[+-][+-]"
NOT_A_NUMBER = r"(?i)^\s*[+-]?nan\s*$"  # such a text is a missing number, and no error
WHOLE_NUMBER = r"^[+-]?\d+$"
LEAST_TARGET_VISITS = 3  # one for training, one for validation and one for the test
ROW_NUMBER = "number of the row"  # name of the added column in a log whose rows are in order


def open_events(source: Any, connection: ibis.BaseBackend, schema: EventSchema, text: TextFiles) -> ir.Table:
    """Opens the log as `open_table` does, and numbers its rows where the schema needs it."""
    table = open_table(source, connection, "event", schema.event_columns, text)
    return number_rows(table, source, connection, ROW_NUMBER) if schema.order == ROWS else table


def open_profile(source: Any, connection: ibis.BaseBackend, schema: EventSchema, text: TextFiles) -> ir.Table:
    """Opens the profile table as `open_table` does. A bad line of a text file is always an error here."""
    strict = TextFiles(replace(text.format, on_bad_row="error"), text.folder / "profile")
    return open_table(source, connection, "profile", schema.profile_columns, strict)


def count_bad(table: ir.Table, read: ir.Table, schema: EventSchema) -> int:
    """Counts the rows of a log that `normalise_events` left out because a time or a number can't be read. Returns the
    number of these rows; 0 where bad rows are errors."""
    if schema.on_bad_row == "error":
        return 0
    return table.count().to_pyarrow().as_py() - read.count().to_pyarrow().as_py()


def _as_text(column: ir.Value, name: str) -> ir.StringValue:
    """Categorical values as text: 1 and 1.0 are "1", true is "true", NaN is missing, times are in UTC, others are as
    they print."""
    kind = column.type()
    if kind.is_null():
        return column.cast("string")
    if kind.is_floating() or kind.is_decimal():
        number = column.cast("float64")
        integer = number.try_cast("int64")  # null where it is out of range, so that such a number stays a float
        whole = (integer.cast("float64") == number) & (number.abs() < EXACT_FLOAT)
        text = ibis.ifelse(whole, integer.cast("string"), text_of_float(number))
        return ibis.ifelse(number.isnan(), ibis.null("string"), text)
    is_time = kind.is_date() or kind.is_timestamp()
    if kind.is_timestamp() and kind.timezone is not None:
        column = column.cast("timestamp")
    if kind.is_string() or kind.is_integer() or is_time or kind.is_boolean() or kind.is_uuid():
        return column.cast("string")
    raise ValueError(f"Column {name!r} has type {kind}; a categorical value needs text, numbers, booleans or dates.")


def _as_number(column: ir.Value, name: str) -> ir.FloatingValue:
    kind = column.type()
    if not (kind.is_numeric() or kind.is_string() or kind.is_boolean() or kind.is_null()):
        raise ValueError(f"Column {name!r} has type {kind}, and the schema says numeric; make it a number.")
    if kind.is_string():
        column = ibis.ifelse(column.re_search(NO_NUMBER), ibis.null("string"), column)
    number = column.try_cast("float64") if kind.is_string() else column.cast("float64")
    return ibis.ifelse(number.isnan(), ibis.null("float64"), number)


def _as_values(column: ir.Value, spec: FeatureSpec) -> ir.ArrayValue:
    """The different values of an event in the order of their text, null where there is none; empty text is none."""
    kind, name = column.type(), spec.column or spec.name
    if spec.separator is not None:
        if kind.is_array():
            raise ValueError(
                f"Column {name!r} has type {kind}, which needs no `separator`; remove it from the schema."
            )
        values = split_text(_as_text(column, name), spec.separator)
    elif kind.is_array():
        value_type = kind.value_type
        if not (value_type.is_string() or value_type.is_integer() or value_type.is_boolean() or value_type.is_null()):
            raise ValueError(
                f"Column {name!r} has type {kind}; write its lists of values as text, whole numbers or booleans."
            )
        values = column.map(lambda value: value.cast("string"))
    elif kind.is_null():
        return ibis.null("array<string>")
    else:
        raise ValueError(
            f"Column {name!r} has type {kind}, and feature {spec.name!r} reads several values of an event; give the "
            "schema the `separator` between them, or make the column one of lists."
        )
    values = values.filter(lambda value: value.notnull() & (value != "")).unique().sort()
    return ibis.ifelse(values.length() > 0, values, ibis.null("array<string>"))


def _as_path(column: ir.Value, spec: FeatureSpec) -> ir.StringValue:
    """The first levels of a path, null where the path has fewer. A path ends before its first empty level."""
    separator, level = str(spec.separator), int(spec.level or 1)
    parts = split_text(_as_text(column, spec.column or spec.name), separator)[:level]
    is_whole = (parts.length() == level) & (parts.filter(lambda part: part == "").length() == 0)
    return ibis.ifelse(is_whole, parts.join(separator), ibis.null("string"))


def _as_feature(table: ir.Table, spec: FeatureSpec) -> ir.Value:
    if spec.is_constant:
        return ibis.literal(ONE_TOKEN_TYPE)
    column = table[spec.column]
    if spec.kind != CATEGORICAL:
        number, *factors = [_as_number(table[name], spec.name) for name in spec.columns]
        product = functools.reduce(operator.mul, factors, number)
        return ibis.ifelse(product.isnan(), ibis.null("float64"), product) if factors else number
    if spec.item is not None:
        return _as_values(column, spec)
    if spec.level is not None:
        return _as_path(column, spec)
    return _as_text(column, spec.column or spec.name)


def _raw_features(table: ir.Table, specs: Sequence[FeatureSpec], letter: str) -> dict[str, ir.Value]:
    """The stored columns of features: features from the time have none, features of one column share one."""
    sources = raw_indices(specs)
    return {
        f"{letter}{i}": _as_feature(table, spec)
        for i, spec in enumerate(specs)
        if not spec.is_derived and sources[i] == i
    }


def has_value(table: ir.Table, specs: Sequence[FeatureSpec], index: int) -> ir.BooleanValue:
    """Says whether an event has a value of a categorical feature."""
    column, item = table[f"f{raw_indices(specs)[index]}"], specs[index].item
    return column.notnull() if item is None else ibis.coalesce(column.length() >= item, False)


def _moments(table: ir.Table, schema: EventSchema) -> ir.IntegerValue:
    """What puts events in order: seconds of the time column, or the numbers of a log without times."""
    if schema.order is None:
        return express_seconds(table, str(schema.time), schema.time_zone)
    column = table[schema.order_column or ROW_NUMBER]
    kind = column.type()
    if kind.is_string():
        return ibis.ifelse(column.re_search(WHOLE_NUMBER), column, ibis.null("string")).try_cast("int64")
    if not kind.is_integer():
        raise ValueError(f"Column {schema.order!r} (order) has type {kind}; it needs whole numbers. Make it integers.")
    return column.cast("int64")


def normalise_events(table: ir.Table, schema: EventSchema) -> ir.Table:
    """Gives the columns of a log their internal names and types.

    Returns one row per event: customer_id (text), second (since 1970-01-01; in a log without times the number that
    puts events in order), visit_key, and f0, f1 ... (text or number per stored feature). A column with several values
    is one list of texts, in the position of the first feature that reads it. `visit_key` is "v" and the text of the
    visit column, or "t" and the second where the events of one time are a visit.
    """
    check_columns(table.columns, schema.event_columns, "The event table has", "The schema names it.")
    columns = {
        "customer_id": _as_text(table[schema.customer], schema.customer),
        "second": _moments(table, schema),
        "visit_key": ibis.literal("t"),
    }
    if schema.visit:
        columns["visit_key"] = ibis.coalesce(ibis.literal("v") + _as_text(table[schema.visit], schema.visit), "t")
    columns |= _raw_features(table, schema.features, "f")
    bad = _find_unreadable(table, columns, schema)
    out = table.select(**columns)
    if bad is not None:
        out = table.select(**columns, is_bad=bad).filter(~ibis._.is_bad).drop("is_bad")
    # Events without a visit share their time: the time belongs to the key of the visit.
    return out.mutate(
        visit_key=ibis.ifelse(out.visit_key == "t", ibis.literal("t") + out.second.cast("string"), out.visit_key)
    )


def _find_unreadable(table: ir.Table, columns: dict[str, ir.Value], schema: EventSchema) -> ir.BooleanValue | None:
    """Whether each row has a time or a number that can't be read; None where no row has."""
    form = "a whole number" if schema.order else f"a time; write {TIME_ADVICE}"
    read = {schema.order_column or ROW_NUMBER: (columns["second"], form)}
    form = "a number; correct it, or leave the field empty where it is missing"
    for spec in schema.features:
        if spec.kind == NUMERIC:
            read |= {name: (_as_number(table[name], spec.name), form) for name in spec.columns}
    rows = []
    for name, (value, form) in read.items():
        if table[name].type().is_string():
            bad = table[name].notnull() & value.isnull() & ~table[name].re_search(NOT_A_NUMBER)
            sums = table.aggregate(rows=bad.sum(), example=table[name].max(where=bad)).to_pyarrow().to_pylist()[0]
            if not sums["rows"]:
                continue
            message = f"Column {name!r} has {sums['rows']} values that cannot be read, such as {sums['example']!r}"
            if schema.on_bad_row == "error":
                raise ValueError(
                    f"{message}; each must be {form}. Or set `on_bad_row: drop` in the schema to leave such rows out."
                )
            logger.warning(f"{message}; these rows are left out.")
            rows.append(ibis.coalesce(bad, False))
    return functools.reduce(operator.or_, rows) if rows else None


def normalise_profile(table: ir.Table, schema: EventSchema) -> ir.Table:
    """Gives the columns of a profile table their internal names and types. Returns one row per customer: customer_id
    (text), and p0, p1 ... (text or number per stored feature)."""
    check_columns(table.columns, schema.profile_columns, "The profile table has", "The schema names it.")
    values = _raw_features(table, schema.profile, "p")
    out = table.select(customer_id=_as_text(table[schema.customer], schema.customer), **values)
    out = out.filter(out.customer_id.notnull())
    twice = out.group_by("customer_id").agg(rows=out.count())
    example = twice.filter(twice.rows > 1).customer_id.min().to_pyarrow().as_py()
    if example is not None:
        raise ValueError(
            f"The profile table has several rows for the customer {example!r} (column {schema.customer!r}); "
            "keep one row a customer."
        )
    return out


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


def find_visits(events: ir.Table) -> ir.Table:
    """Finds the visits of all customers. A visit that reaches over a cutoff has a part before and one after, so that
    what lies before a cutoff never depends on what comes after. Both have one number, unless another visit lies
    between; then they count as two. Returns one row per part: customer_id, period, visit_key, visit (number of the
    customer's visit, from 0), start and end (seconds), has_target (in the visit so far), and days (from the start of
    the customer's visit before, null in the first visit)."""
    visits = events.group_by("customer_id", "period", "visit_key").agg(
        start=events.second.min(), end=events.second.max(), has_target=events.is_target.max()
    )
    ordered = {"group_by": "customer_id", "order_by": ["period", "start", "visit_key"]}
    opens = ibis.coalesce(visits.visit_key != visits.visit_key.lag().over(ibis.window(**ordered)), True)
    visits = visits.mutate(opens=opens.cast("int32"))
    so_far = ibis.window(**ordered, preceding=None, following=0)
    visits = visits.mutate(visit=(visits.opens.sum().over(so_far) - 1).cast("int32"))
    of_visit = {"group_by": ["customer_id", "visit"]}
    visits = visits.mutate(
        whole_start=visits.start.min().over(ibis.window(**of_visit)),
        has_target=visits.has_target.max().over(
            ibis.window(**of_visit, order_by="period", preceding=None, following=0)
        ),
    )
    seconds = visits.whole_start - visits.whole_start.lag().over(ibis.window(**ordered))
    visits = visits.mutate(days=ibis.ifelse(visits.opens == 1, seconds, ibis.null("int64")))
    visits = visits.mutate(days=visits.days.max().over(ibis.window(**of_visit)).cast("float64") / SECONDS_PER_DAY)
    return visits.drop("opens", "whole_start")
