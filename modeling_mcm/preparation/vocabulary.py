# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Vocabularies and bins, fitted on the training period.

Ids of every feature: 0 is missing, 1 is unknown (never seen in training, or too rarely), and the values or bins have
the ids from 2 on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.data.features import MOST_VALUES
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.extras import needs
from modeling_mcm.preparation.reading import RowReader
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import DAYS_SINCE_VISIT, NUMERIC, ONE_TOKEN_TYPE, FeatureSpec

with needs("data"):
    import ibis.expr.types as ir


@dataclass
class Vocabularies:
    """What is fitted on the training period."""

    # By categorical feature its values, in the order of their ids, which begin at 2.
    values: dict[str, list[str]] = field(default_factory=dict)
    # By binned feature the inner edges of its bins, strictly increasing.
    bins: dict[str, list[float]] = field(default_factory=dict)


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


def count_numbers(column: ir.FloatingValue) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Finds the distinct finite numbers of a column, in ascending order, and how often each occurs."""
    table = column.name("value").as_table()
    finite = table.filter(table.value.abs() < float("inf"))  # `isinf` is always false in Ibis' PySpark backend
    counts = finite.group_by("value").agg(number=lambda t: t.count()).to_pyarrow().sort_by("value")
    return counts["value"].to_numpy(), counts["number"].to_numpy()


def fit_bins(values: NDArray[np.float64], counts: NDArray[np.int64], bins: int) -> list[float]:
    """Finds the inner edges of quantile bins of numbers that occur so often, strictly increasing; fewer than `bins -
    1` where numbers repeat. A quantile lies between the two neighbours of its rank, as numpy defines it."""
    if not len(values):
        return []
    ranks = (counts.sum() - 1) * (np.arange(1, bins) / bins)
    whole = np.floor(ranks)
    low, high = (values[np.searchsorted(np.cumsum(counts), rank, "right")] for rank in (whole, np.ceil(ranks)))
    return np.unique(low + (high - low) * (ranks - whole)).tolist()  # exact where both are equal


def fit(
    events: ir.Table,
    profiles: ir.Table | None,
    schema: EventSchema,
    days: Mapping[float, int],
    on_feature: Callable[[str], None],
) -> Vocabularies:
    """Fits the vocabulary or the bins of every feature on the training period (period 0); `days` are the days between
    visits and how often they occur there."""
    fitted = Vocabularies()
    training = events.filter(events.period == 0)
    tables = [(RowReader(schema), training, schema.features)]
    if profiles is not None:
        members = profiles.semi_join(training.select("customer_id").distinct(), "customer_id")
        tables.append((RowReader(schema, profile=True), members, schema.profile))
    for reader, table, specs in tables:
        columns = {spec.name: table[name] for name, spec in reader.stored.items()}
        for spec in specs:
            if spec.is_constant:
                fitted.values[spec.name] = [ONE_TOKEN_TYPE]
            elif spec.kind == NUMERIC:
                fitted.bins[spec.name] = fit_bins(*count_numbers(columns[spec.name]), spec.bins)
            elif spec.kind == DAYS_SINCE_VISIT:
                values = sorted(days)
                counts = np.array([days[each] for each in values])
                fitted.bins[spec.name] = fit_bins(np.array(values), counts, spec.bins)
            elif spec.name in columns:
                column = columns[spec.name]  # each of several values of an event counts
                fitted.values[spec.name] = fit_values(column if spec.item is None else column.unnest(), spec)
            elif spec.column is not None:  # it shares the values of a column with an earlier feature
                fitted.values[spec.name] = list(fitted.values[reader.encoding.sources[spec.name]])
            on_feature(spec.name)
    fitted.values[schema.token_feature.name] += schema.reserved_token_types
    return fitted
