# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Vocabularies and bins fitted on the training period, and the ids that they give.

Ids of every feature: 0 is missing, 1 is unknown (never seen in training, or too rarely), and the values or bins have
the ids from 2 on.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from modeling_mcm.data.features import MOST_VALUES
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.events_mcm import EPOCH_WEEKDAY, LARGEST_VALUE, SECONDS_PER_DAY, SECONDS_PER_HOUR
from modeling_mcm.extras import needs
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import CATEGORICAL, HOUR, WEEKDAY, FeatureSpec, raw_indices, value_indices

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.expressions import total, tree


@dataclass
class Vocabularies:
    """What is fitted on the training period."""

    # By categorical feature its values, in the order of their ids, which begin at 2.
    values: dict[str, list[str]] = field(default_factory=dict)
    # By binned feature the inner edges of its bins, strictly increasing.
    bins: dict[str, list[float]] = field(default_factory=dict)

    def look_up_id(self, name: str, value: str) -> int:
        """Finds the id of a value."""
        return FIRST_VALUE_ID + self.values[name].index(value)


def build_vocabularies(feature_extractor: MCMFeatureExtractor, schema: EventSchema) -> Vocabularies:
    """Gives the vocabularies and bins of a checkpoint, to encode another log for it."""
    known, fix = feature_extractor.schema, "take the schema that the checkpoint was trained with."
    keys = "order", "end_of_visit", "target_token_types", "time_zone", "token_type", "on_duplicate"
    for name in (*keys, "amount", "currency"):
        given, expected = getattr(schema, name), getattr(known, name)
        has_any = name in ("order", "token_type")  # the name of the column may differ
        if (given is None) != (expected is None) if has_any else given != expected:
            raise ValueError(f"`{name}` is {given!r} in the schema and {expected!r} in the checkpoint: {fix}")
    ours, theirs = (
        [
            (spec.name, spec.kind, where, *spec.part.items())
            for where, specs in enumerate((read.features, read.profile))
            for spec in specs
        ]
        for read in (schema, known)
    )
    if ours != theirs:
        extra, absent = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        raise ValueError(
            f"The schema's features are not the checkpoint's, or in another order: {extra} in the schema alone, "
            f"{absent} in the checkpoint alone: {fix}"
        )
    return Vocabularies(dict(feature_extractor.vocabularies), dict(feature_extractor.bins))


def fit_values(column: ir.Value, spec: FeatureSpec) -> list[str]:
    """Finds the values of a feature that are frequent enough. The engine leaves out values by their counts alone, and
    the order is made in this process, so no engine has to sort all values. Returns values with at least `min_count`
    events, `max_values` at most, the most frequent first and equally frequent ones by their text."""
    table = column.name("value").as_table()
    counts = table.filter(table.value.notnull()).group_by("value").agg(number=lambda t: t.count())
    least = spec.min_count
    if spec.max_values:
        sizes = (
            counts.group_by("number").agg(values=lambda t: t.count()).to_pyarrow().sort_by([("number", "descending")])
        )
        too_many = np.cumsum(sizes["values"].to_numpy()) > spec.max_values
        least = max(least, 1 + max(sizes["number"].to_numpy()[too_many], default=0))
    frequent = counts.filter(counts.number >= least).limit(MOST_VALUES + 1).to_pyarrow()
    if len(frequent) > MOST_VALUES:
        raise ValueError(
            f"Feature {spec.name!r} has more than {MOST_VALUES:,} values (min_count: {spec.min_count}); set "
            "`max_values` to keep the most frequent, or a higher `min_count`."
        )
    return frequent.sort_by([("number", "descending"), ("value", "ascending")])["value"].to_pylist()


def each_value(column: ir.Value, spec: FeatureSpec) -> ir.Value:
    """Gives each of several values of an event a row of its own; the column itself where an event has one value."""
    return column if spec.item is None else column.unnest()


def fit_bins(column: ir.Value, bins: int) -> list[float]:
    """Finds the inner edges of quantile bins, strictly increasing; fewer than `bins - 1` where values repeat. A
    quantile lies between the two neighbours of its rank, as numpy defines it. They are found by counting, which an
    engine can spill to disk; its own quantile holds the column in memory and rounds in its own way."""
    table = column.name("value").as_table()
    finite = table.filter(table.value.abs() < float("inf"))  # `isinf` is always false in Ibis' PySpark backend
    counts = finite.group_by("value").agg(number=lambda t: t.count())
    # The events with a value have the ranks `first` to `last`.
    through = counts.mutate(last=counts.number.sum().over(ibis.cumulative_window(order_by=counts.value)) - 1)
    total = finite.count().to_pyarrow().as_py()
    if not total:
        return []
    ranks = [(total - 1) * (k / bins) for k in range(1, bins)]
    neighbours = sorted({neighbour for rank in ranks for neighbour in (math.floor(rank), math.ceil(rank))})
    first = through.last - through.number + 1
    hits = tree(operator.or_, [(first <= rank) & (rank <= through.last) for rank in neighbours])
    values_of_ranks = through.filter(hits).select("value", "last").to_pyarrow().sort_by("last")
    lasts, values = values_of_ranks["last"].to_numpy(), values_of_ranks["value"].to_numpy()
    edges = []
    for rank in ranks:
        low, high = values[np.searchsorted(lasts, [math.floor(rank), math.ceil(rank)])]
        share = rank - math.floor(rank)
        # Rounded twice and not three times, as DuckDB does with a fused multiply and add: edges that were fitted by
        # its quantile stay what they are.
        edges.append(float(Fraction(low) * Fraction(1 - share) + Fraction(high * share)))
    return np.unique(np.asarray(edges, dtype=np.float64)).tolist()


def fit(
    events: ir.Table,
    visits: ir.Table,
    profiles: ir.Table | None,
    schema: EventSchema,
    on_feature: Callable[[str], None],
) -> Vocabularies:
    """Fits the vocabulary or the bins of every feature on the training period (period 0)."""
    fitted = Vocabularies()
    training = events.filter(events.period == 0)
    tables = [("f", training, schema.features)]
    if profiles is not None:
        members = profiles.semi_join(training.select("customer_id").distinct(), "customer_id")
        tables.append(("p", members, schema.profile))
    for letter, table, specs in tables:
        sources = raw_indices(specs)
        for i, spec in enumerate(specs):
            if sources[i] != i:  # it shares the values of a column with an earlier feature
                fitted.values[spec.name] = list(fitted.values[specs[sources[i]].name])
            elif spec.kind == CATEGORICAL:
                fitted.values[spec.name] = fit_values(each_value(table[f"{letter}{i}"], spec), spec)
            elif not spec.is_derived:
                fitted.bins[spec.name] = fit_bins(table[f"{letter}{i}"], spec.bins)
            elif spec.kind not in (HOUR, WEEKDAY):
                fitted.bins[spec.name] = fit_bins(visits.filter(visits.period == 0).days, spec.bins)
            on_feature(spec.name)
    fitted.values[schema.token_feature.name] += schema.reserved_token_types
    return fitted


def _bin_id(column: ir.NumericValue, edges: Sequence[float]) -> ir.IntegerValue:
    """2 plus the number of edges at or below the value, as numpy's `searchsorted(edges, x, side="right")`."""
    # Edges go as text: a number with a point is a decimal in SQL, and its way to a float need not be exact.
    exact = [ibis.literal(repr(edge)).cast("float64") for edge in edges]
    above = total([(column >= edge).cast("int32") for edge in exact], FIRST_VALUE_ID)
    return ibis.ifelse(column.isnull(), MISSING_ID, above).cast("int32")


def _value(number: ir.NumericValue) -> ir.FloatingValue:
    """What a model reads as the value of a number, as `to_values` of the feature extractor computes it."""
    largest = ibis.literal(repr(LARGEST_VALUE)).cast("float64")  # as text, for the reason that `_bin_id` gives
    value = ibis.ifelse(number.abs() <= largest, number, ibis.literal(0, "float64")).cast("float32")
    nothing = ibis.literal(0, "float32")
    return ibis.ifelse(value == nothing, nothing, value)  # -0 is 0


def _cycle_id(number: ir.IntegerValue, length: int) -> ir.IntegerValue:
    """2 plus the remainder, also of negative numbers such as hours before 1970, unlike SQL's %."""
    return (FIRST_VALUE_ID + (number % length + length) % length).cast("int32")


def _look_up(table: ir.Table, column: str, values: Sequence[str]) -> ir.Table:
    """Replaces a text column by the ids of its values."""
    ids = ibis.memtable(
        pa.table(
            {
                f"{column}_value": pa.array(values, pa.string()),
                f"{column}_id": pa.array(np.arange(FIRST_VALUE_ID, FIRST_VALUE_ID + len(values)), pa.int32()),
            }
        )
    )
    joined = table.left_join(ids, table[column] == ids[f"{column}_value"])
    known = ibis.coalesce(joined[f"{column}_id"], UNKNOWN_ID)
    replaced = joined.mutate(**{column: ibis.ifelse(joined[column].isnull(), MISSING_ID, known).cast("int32")})
    return replaced.drop(f"{column}_value", f"{column}_id")


def _look_up_items(table: ir.Table, column: str, items: dict[str, int], values: Sequence[str]) -> ir.Table:
    """Replaces a column of lists of texts by ids of the features in `items`, which reads a position each, from 1."""
    lists, ids = f"{column}_list", f"{column}_ids"
    elements = table.select(**{lists: table[column]}).distinct().mutate(**{column: ibis._[lists].unnest()})
    elements = _look_up(elements.filter(elements[column].notnull()), column, values)
    last = FIRST_VALUE_ID + len(values)  # so that unknown values are sorted last
    label = ibis.ifelse(elements[column] == UNKNOWN_ID, last, elements[column])
    elements = elements.mutate(**{column: label.cast("int32")})
    id_lists = elements.group_by(lists).agg(**{ids: elements[column].collect()})
    id_lists = id_lists.mutate(**{ids: id_lists[ids].sort()})
    joined = table.left_join(id_lists, table[column] == id_lists[lists])
    features = {}
    for name, item in items.items():
        label = ibis.ifelse(joined[ids].length() >= item, joined[ids][item - 1], MISSING_ID)
        features[name] = ibis.ifelse(label == last, UNKNOWN_ID, ibis.coalesce(label, MISSING_ID)).cast("int32")
    return joined.mutate(**features).drop(lists, ids)


def _encode_raw(table: ir.Table, specs: Sequence[FeatureSpec], letter: str, fitted: Vocabularies) -> ir.Table:
    """Replaces the raw columns of features by ids; features that are computed from the time are left out."""
    sources = raw_indices(specs)
    for i, spec in enumerate(specs):
        name = f"{letter}{i}"
        if spec.item is not None:
            if sources[i] == i:
                items = {f"{letter}{k}": other.item or 1 for k, other in enumerate(specs) if sources[k] == i}
                table = _look_up_items(table, name, items, fitted.values[spec.name])
        elif spec.kind == CATEGORICAL:
            table = _look_up(table, name, fitted.values[spec.name])
        elif not spec.is_derived:
            table = table.mutate(**{name: _bin_id(table[name], fitted.bins[spec.name])})
    return table


def encode_profiles(profiles: ir.Table, fitted: Vocabularies, schema: EventSchema) -> ir.Table:
    """Replaces the raw values of profiles by ids."""
    return _encode_raw(profiles, schema.profile, "p", fitted)


def _derived(table: ir.Table, spec: FeatureSpec, fitted: Vocabularies, second: str) -> ir.IntegerValue:
    if spec.kind == HOUR:
        return _cycle_id(table[second] // SECONDS_PER_HOUR, 24)
    if spec.kind == WEEKDAY:  # from Monday
        return _cycle_id(table[second] // SECONDS_PER_DAY + EPOCH_WEEKDAY, 7)
    return _bin_id(table.days, fitted.bins[spec.name])


def task_indices(schema: EventSchema) -> list[int]:
    """Finds the index of each task's feature."""
    names = [spec.name for spec in schema.features]
    return [names.index(task) for task in schema.tasks]


def encode_events(events: ir.Table, visits: ir.Table, fitted: Vocabularies, schema: EventSchema) -> ir.Table:
    """Computes the ids of all events, and adds the events that close visits. Returns one row per event: customer_id,
    shard, visit, period, closes_visit (1 for an added event), second, f0, f1 ... (ids), is_target, v0, v1 ... (values
    of numeric features, numbered like the features), and u0, u1 ... (of targets the texts that the vocabularies of the
    tasks don't have, else "")."""
    joined = events.inner_join(
        visits.select("customer_id", "period", "visit_key", "visit", "days"), ["customer_id", "period", "visit_key"]
    )
    value_names = [f"v{i}" for i in value_indices(schema.features)]
    joined = joined.mutate(**{name: _value(joined[f"f{name[1:]}"]) for name in value_names})
    labels = {f"u{k}": f"f{index}" for k, index in enumerate(task_indices(schema))}
    texts = {name: joined[f"f{raw_indices(schema.features)[int(label[1:])]}"] for name, label in labels.items()}
    joined = joined.mutate(
        **{name: text.join("\n") if text.type().is_array() else text for name, text in texts.items()}
    )
    joined = _encode_raw(joined, schema.features, "f", fitted)
    is_unseen = {name: (joined[label] == UNKNOWN_ID) & (joined.is_target == 1) for name, label in labels.items()}
    joined = joined.mutate(**{name: ibis.ifelse(where, joined[name], "") for name, where in is_unseen.items()})
    for i, spec in enumerate(schema.features):
        if spec.is_derived:
            joined = joined.mutate(**{f"f{i}": _derived(joined, spec, fitted, "second")})
    names = [f"f{i}" for i in range(len(schema.features))]
    order = ("customer_id", "shard", "visit", "period", "closes_visit", "second", *names, "is_target")
    order += (*value_names, *labels)
    # Both tables get the same types, because an engine may have widened one of them.
    event_columns = {"period": joined.period.cast("int8"), "closes_visit": ibis.literal(0, "int8")}
    encoded = joined.mutate(**event_columns).select(*order)
    if schema.end_of_visit is None:
        return encoded
    closing = visits.filter(visits.has_target == 1)
    ids: dict[str, ir.Value] = {name: ibis.literal(0, "float32") for name in value_names}
    ids |= {name: ibis.literal("") for name in labels}
    for i, spec in enumerate(schema.features):
        if spec.is_derived:
            ids[f"f{i}"] = _derived(closing, spec, fitted, "end")
        elif spec is schema.token_feature:
            ids[f"f{i}"] = ibis.literal(fitted.look_up_id(spec.name, schema.end_of_visit), "int32")
        else:
            ids[f"f{i}"] = ibis.literal(MISSING_ID, "int32")
    visit_columns = {"period": closing.period.cast("int8"), "closes_visit": ibis.literal(1, "int8")}
    ends = closing.mutate(**ids, **visit_columns, second=closing.end, is_target=ibis.literal(0, "int8"))
    return encoded.union(ends.select(*order))
