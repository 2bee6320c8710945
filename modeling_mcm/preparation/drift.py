# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Drift: how much of a new event log a checkpoint can still read.

A checkpoint knows the values and the bins of its training period. New brands and new prices arrive every week. A value
that is not in a vocabulary is read as the unknown value, and a price beyond the outer edges falls into an outer bin.
The log is read by the same Ibis expressions as in preparation, so a large log needs little memory.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_mcm.data.schema import EventSchema, schema_of
from modeling_mcm.events_mcm import check_columns
from modeling_mcm.extras import needs
from modeling_mcm.preparation.text_files import TextFiles
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import CATEGORICAL, FeatureSpec, raw_indices

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.engine import engine_of, open_engine
    from modeling_mcm.preparation.events import normalise_events, normalise_profile, open_events, open_profile
    from modeling_mcm.preparation.times import moment_text
    from modeling_mcm.preparation.vocabulary import each_value

MOST_FREQUENT = 10


@dataclass(frozen=True)
class FeatureDrift:
    """How the values of one feature in a log fit a checkpoint. Shares are shares of `rows`.

    Attributes:
        feature (`str`): name of the feature.
        kind (`str`): "categorical" or "numeric".
        column (`str`): column that the feature reads.
        rows (`int`): number of events of the log, or of rows of the profile table.
        missing (`int`): number of rows without a value.
        unknown (`int`): number of rows with a value that is not in the vocabulary. For a column with several values in
            an event, the number of rows with at least one such value.
        unknown_values (`int`): number of different unknown values.
        most_frequent_unknown (`list[tuple[str, int]]`): the most frequent unknown values with their counts, at most
            10; equally frequent values are in the order of their text.
        below (`float`, *optional*): share of the rows with a number below the first inner edge (numeric features).
        above (`float`, *optional*): share of the rows with a number at or above the last inner edge (numeric
            features).
        expected_outside (`float`, *optional*): about what `below` and `above` each were in training, because bins hold
            equal shares of it (numeric features).
    """

    feature: str
    kind: str
    column: str
    rows: int
    missing: int
    unknown: int = 0
    unknown_values: int = 0
    most_frequent_unknown: list[tuple[str, int]] = field(default_factory=list)
    below: float | None = None
    above: float | None = None
    expected_outside: float | None = None

    @property
    def missing_share(self) -> float:
        """`float`: share of the rows without a value."""
        return self.missing / self.rows

    @property
    def unknown_share(self) -> float:
        """`float`: share of the rows with a value that the checkpoint does not know."""
        return self.unknown / self.rows

    @property
    def addable(self) -> list[str]:
        """`list[str]`: the most frequent unknown values that `model.resize_feature_vocabulary` can add."""
        return [value for value, _ in self.most_frequent_unknown if value]


@dataclass(frozen=True)
class DriftReport:
    """How a log fits the features of a checkpoint.

    Attributes:
        events (`int`): number of events that were read.
        left_out (`int`): number of events without a customer or a time, which were not read.
        first (`str`): time of the first event, or its number in a log without times.
        last (`str`): time of the last event, or its number in a log without times.
        features (`list[FeatureDrift]`): one entry per feature that has a column, in the model's order. Features that
            share the values of a column have one entry, that of the first of them.
        not_read (`list[str]`): names of the profile features, where no profile table was given.
    """

    events: int
    left_out: int
    first: str
    last: str
    features: list[FeatureDrift]
    not_read: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Gives the report as plain values for JSON.

        Returns:
            `dict`: the attributes, and for each feature also `missing_share`, `unknown_share` and `addable`.
        """
        values = dataclasses.asdict(self)
        for entry, drift in zip(values["features"], self.features, strict=True):
            entry["most_frequent_unknown"] = [
                {"value": value, "count": count} for value, count in drift.most_frequent_unknown
            ]
            entry |= {"missing_share": drift.missing_share, "unknown_share": drift.unknown_share}
            entry["addable"] = drift.addable
        return values


def feature_drift(
    events: Any,
    feature_extractor: MCMFeatureExtractor,
    profile: Any = None,
    memory_limit: str = "1GB",
) -> DriftReport:
    """Compares an event log with the vocabularies and bins of a checkpoint.

    Args:
        events (`Any`): the log, one row per event: a Parquet or CSV file, a folder of them, a data frame, an Arrow
            table or an Ibis table.
        feature_extractor ([`MCMFeatureExtractor`]): feature extractor of the checkpoint.
        profile (`Any`, *optional*): the profile table in any of the same forms. Default: profile features are not
            compared.
        memory_limit (`str`): memory that DuckDB may use before it spills to disk, such as "1GB".

    Raises:
        ValueError: if a column is missing or can't be read, the log is empty, or it holds token types that MCM adds.
        FileNotFoundError: if there is no such file.
    """
    schema = schema_of(feature_extractor)
    engine = engine_of(events, "duckdb")
    with tempfile.TemporaryDirectory() as folder, open_engine(engine, Path(folder), memory_limit) as connection:
        text = TextFiles(schema.text_format, Path(folder))
        table = open_events(events, connection, schema, text)
        fix = "The checkpoint reads it: rename columns, or add an empty one for a feature that was not recorded."
        check_columns(table.columns, schema.event_columns, "The event table has", fix)
        read = normalise_events(table, schema)
        whole = read.filter(read.customer_id.notnull() & read.second.notnull())
        counts = _count(whole, schema) | {"rows": read.count().to_pyarrow().as_py()}
        if not counts["events"]:
            raise ValueError(
                f"The event table has {counts['rows']} rows and none with a customer and a time (columns "
                f"{schema.customer!r} and {schema.order_column!r}): give a log with at least one event."
            )
        if counts["reserved"]:
            raise ValueError(
                f"Column {schema.token_type!r} holds {' or '.join(map(repr, schema.reserved_token_types))}, token "
                "types that MCM adds itself: rename them in the log."
            )
        tables = [(whole, "f", schema.features)]
        if profile is not None and schema.profile:
            people = open_profile(profile, connection, schema, text)
            check_columns(people.columns, schema.profile_columns, "The profile table has", fix)
            people = normalise_profile(people, schema)
            if not people.count().to_pyarrow().as_py():
                raise ValueError("The profile table has no row with a customer: give one, or leave `profile` out.")
            tables.append((people, "p", schema.profile))
        features = [
            _drift(values.select(value=values[f"{letter}{index}"]), spec, feature_extractor)
            for values, letter, specs in tables
            for index, spec in enumerate(specs)
            if spec.column and raw_indices(specs)[index] == index
        ]
    return DriftReport(
        events=counts["events"],
        left_out=counts["rows"] - counts["events"],
        first=counts["first"],
        last=counts["last"],
        features=features,
        not_read=[] if len(tables) > 1 else [spec.name for spec in schema.profile],
    )


def _count(events: ir.Table, schema: EventSchema) -> dict[str, Any]:
    token = events[f"f{schema.features.index(schema.token_feature)}"]
    counts = events.aggregate(
        events=events.count(),
        reserved=token.isin(schema.reserved_token_types).sum(),
        first=moment_text(events.second.min(), schema),
        last=moment_text(events.second.max(), schema),
    )
    return counts.to_pyarrow().to_pylist()[0]


def _drift(table: ir.Table, spec: FeatureSpec, feature_extractor: MCMFeatureExtractor) -> FeatureDrift:
    """The drift of one feature. The table has one column, `value`: text, a list of texts, or a number."""
    counts = table.aggregate(rows=table.count(), missing=table.value.isnull().sum()).to_pyarrow().to_pylist()[0]
    common = FeatureDrift(spec.name, spec.kind, spec.column or "", counts["rows"], counts["missing"] or 0)
    if spec.kind == CATEGORICAL:
        return dataclasses.replace(common, **_unknown(table, feature_extractor.vocabularies[spec.name], spec))
    edges = feature_extractor.bins[spec.name]
    if not edges:
        return common
    sums = table.aggregate(below=(table.value < edges[0]).sum(), above=(table.value >= edges[-1]).sum())
    outside = {name: (n or 0) / counts["rows"] for name, n in sums.to_pyarrow().to_pylist()[0].items()}
    return dataclasses.replace(common, **outside, expected_outside=1 / (len(edges) + 1))


def _unknown(table: ir.Table, vocabulary: Sequence[str], spec: FeatureSpec) -> dict[str, Any]:
    known = ibis.memtable(pa.table({"known": pa.array(vocabulary, pa.string())}))
    values = table.select(value=each_value(table.value, spec))
    counts = values.filter(values.value.notnull()).group_by("value").agg(number=lambda t: t.count())
    unknown = counts.anti_join(known, counts.value == known.known)
    sums = unknown.aggregate(unknown=unknown.number.sum(), unknown_values=unknown.count()).to_pyarrow().to_pylist()[0]
    most = unknown.order_by(ibis.desc("number"), ibis.asc("value")).limit(MOST_FREQUENT).to_pyarrow().to_pylist()
    if spec.item is not None:  # a row may have several values
        lists = table.group_by("value").agg(number=lambda t: t.count())
        values = lists.mutate(single=lists.value.unnest()).semi_join(unknown, ibis._.single == unknown.value)
        values = values.select("value", "number").distinct()
        sums["unknown"] = values.number.sum().to_pyarrow().as_py()
    return {
        "unknown": sums["unknown"] or 0,
        "unknown_values": sums["unknown_values"],
        "most_frequent_unknown": [(row["value"], row["number"]) for row in most],
    }
