# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Between the raw blocks of a log, the tables of an engine, and the rows of customers on disk.

[`RowReader`] reads raw blocks as texts, numbers and seconds for the engine. [`ShardEncoder`] makes one row per
customer of what comes back from it, and counts what is in them.

In the engine, columns have names by their position (`f0`, `f1` ... for features, `p0` ... for the profile), because
feature names such as "a.b", or "Type" beside "type", are legal in a schema but not in every engine. Features that
share the values of a column have one column, that of the first.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, MOST_IDS, UNKNOWN_ID
from modeling_mcm.data import NO_CUTOFFS, EventSchema
from modeling_mcm.data.cases import CUTOFFS, ENDS, compute_offsets, count_cases, deciding_tasks, to_batch
from modeling_mcm.data.dataset import describe_file, write_table
from modeling_mcm.encoding_mcm import Encoding
from modeling_mcm.events_mcm import (
    NO_TIME,
    BadValues,
    BoolArray,
    Column,
    Distinct,
    EventReader,
    Events,
    read_values,
    run_starts,
    to_id,
)
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.schema_mcm import NUMERIC, ROWS

BAD = ("bad_column", "bad_reason")  # of a row with a value that can't be read: the column, and what is wrong
ROWS_PER_ROW_GROUP = 256


class RowReader:
    """Reads the blocks of a log, or of a table of profiles.

    Attributes:
        columns (`list[str]`): The columns of the table that are read.
        stored (`dict[str, FeatureSpec]`): The features with a column in the engine, by its name.
        arrow (`pa.Schema`): The columns in the engine: `customer_id` (text); of events `second` (since 1970-01-01, or
            the place of an event without a time), `nanosecond` after it, `visit` (text of the visit column),
            `is_target` and `to_predict` (whether the target has a label in a task besides the token type; where that
            is the only task, every target has); the `stored` columns; and `BAD`.
    """

    def __init__(self, schema: EventSchema, profile: bool = False, start: int = 0):
        self.log, self.profile, self.reader, self.start = schema, profile, EventReader(schema), start
        letter, self.specs = ("p", schema.profile) if profile else ("f", schema.features)
        self.columns = schema.profile_columns if profile else schema.event_columns
        self.stored = {
            f"{letter}{i}": spec for i, spec in enumerate(self.specs) if schema.sources.get(spec.name) == spec.name
        }
        others = {column for spec in self.specs if spec.kind != NUMERIC for column in spec.columns}
        self._numbers = {column for spec in self.specs for column in spec.columns} - others
        text, flag = pa.string(), pa.bool_()
        columns = {"customer_id": text}
        if not profile:
            columns |= {"second": pa.int64(), "nanosecond": pa.int64(), "visit": text}
            columns |= {"is_target": flag, "to_predict": flag}
        columns |= {
            name: pa.float64() if spec.kind == NUMERIC else text if spec.item is None else pa.list_(text)
            for name, spec in self.stored.items()
        }
        self.arrow = pa.schema(columns | dict.fromkeys(BAD, text))

    def read(self, blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads blocks with the columns of the table."""
        start = self.start
        for block in blocks:
            yield self._read_block(block, start)
            start += len(block)

    def _read_block(self, block: pa.RecordBatch, start: int) -> pa.RecordBatch:
        bad, customer = list[BadValues](), self.log.customer
        columns = {name: self._column(name, block[name]) for name in self.columns}
        read: dict = {"customer_id": read_values(customer, columns[customer], to_id, bad)}
        if self.profile:
            values = self.reader.read_features(self.specs, columns, bad)
        else:
            events = self.reader.read(columns, len(block), bad)
            positions, values = events.positions, events.values
            places = positions + (start if self.log.order == ROWS else 0)
            read |= {
                "second": pa.array(places, mask=positions == NO_TIME),
                "nanosecond": events.fractions,
                "visit": events.visits,
                "is_target": events.is_target,
                "to_predict": self._to_predict(events),
            }
        read |= {name: values[spec.name] for name, spec in self.stored.items()}
        read |= {name: np.full(len(block), None) for name in BAD}
        for noted in bad:
            for name, value in zip(BAD, (noted.column, noted.reason), strict=True):
                read[name][noted.rows] = value
        return pa.record_batch([_as_arrow(read[field.name], field.type) for field in self.arrow], self.arrow)

    def _column(self, name: str, array: pa.Array) -> Column:
        """A column as the reader of events reads columns: as an array, or by its distinct values."""
        kind = array.type
        if name == self.log.time and pa.types.is_timestamp(kind):
            if kind.tz is not None:  # to what clocks show in the zone of the log
                array = pc.local_timestamp(array.cast(pa.timestamp(kind.unit, self.log.time_zone)))
            return array.to_numpy(zero_copy_only=False)
        if name in self._numbers and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            return array.to_numpy(zero_copy_only=False)
        return read_distinct(array)

    def _to_predict(self, events: Events) -> BoolArray:
        tasks = [spec for spec in self.specs if spec.name in self.log.tasks and spec != self.log.token_feature]
        has_label = [
            events.values[self.log.sources[spec.name]]
            .map(lambda value, least=spec.item or 0: value is not None and len(value) >= least)
            .expand(np.bool_)
            for spec in tasks
        ]
        return events.is_target & (np.any(has_label, axis=0) if tasks else True)


def _as_arrow(column: Column, kind: pa.DataType) -> pa.Array:
    if isinstance(column, Distinct):
        values = [sorted(value or ()) or None for value in column.values] if pa.types.is_list(kind) else column.values
        return pa.array(values, kind).take(pa.array(column.codes))
    return pa.array(column, kind, from_pandas=True)


def from_arrow(column: pa.ChunkedArray) -> Any:
    """What was read of a column, from its column in the engine."""
    array = column.combine_chunks()
    return array.to_numpy(zero_copy_only=False) if pa.types.is_floating(array.type) else read_distinct(array)


def read_distinct(array: pa.Array) -> Distinct:
    """A column by its distinct values."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if array.type == pa.string_view():  # which `dictionary_encode` reads without its nulls
        array = array.cast(pa.string())
    try:
        coded = array.dictionary_encode("encode")
    except pa.ArrowNotImplementedError:  # such as lists
        return Distinct.of([tuple(value) if isinstance(value, list) else value for value in array.to_pylist()])
    return Distinct(coded.dictionary.to_pylist(), coded.indices.to_numpy())


class ShardEncoder:
    """Makes the rows of a shard from the events of its customers."""

    def __init__(self, schema: EventSchema, extractor: MCMFeatureExtractor):
        # By feature the number of ids of the training period, if others follow
        self.known = {} if schema.cutoffs == NO_CUTOFFS else extractor.known.get(CUTOFFS[0], {})
        self.schema, self.encoding = schema, Encoding(schema, extractor.vocabularies, extractor.bins)
        self.events, self.profiles = RowReader(schema), RowReader(schema, profile=True)
        self.closing = extractor.layout.closing

    def encode(self, rows: pa.Table) -> tuple[pa.Table, dict]:
        """Encodes events with their periods and, if there are profiles, the columns of their customers' profiles.
        Returns one row per customer, ordered by id, and what is counted; see [`count`]."""
        ids = from_arrow(rows["customer_id"])
        customers, periods = ids.rank(), rows["period"].to_numpy().astype(np.int64)
        values = {spec.name: from_arrow(rows[name]) for name, spec in self.events.stored.items()}
        seconds, fractions, is_target = (rows[name].to_numpy() for name in ("second", "nanosecond", "is_target"))
        events = Events(seconds, fractions, from_arrow(rows["visit"]), is_target, values)
        row, timeline = self.encoding.encode(events, customers, periods, self.known)
        customers_of_row, periods_of_row = customers[timeline.indices], periods[timeline.indices]
        offsets = pa.array(compute_offsets(np.bincount(customers_of_row)), pa.int32())
        columns = {"customer_id": pa.array(sorted(ids.values), pa.string())}
        columns |= {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in row.items()}
        if self.profiles.stored:
            first = rows.take(np.unique(customers, return_index=True)[1])
            values = {spec.name: from_arrow(first[name]) for name, spec in self.profiles.stored.items()}
            encoded = self.encoding.encode_features(self.encoding.profile_features, values)
            columns |= {f"profile_{feature}": ids for feature, ids in encoded.items()}
        for period, name in enumerate(ENDS, 1):
            columns[name] = np.bincount(customers_of_row, weights=periods_of_row < period).astype(np.int32)
        table = pa.table(columns)
        return table, self.count(table)

    def count(self, table: pa.Table) -> dict:
        """Counts in rows: `missing` and `unknown`, by feature the number of the log's events; `ends_of_visit`, the
        number of added events; `empty`, that of events without any value; the cases of each cutoff; `measures`."""
        batch = to_batch(table)
        ids = {feature: batch.column(f"feature_{feature}") for feature in self.encoding.event_features}
        closes = ids[self.encoding.token_feature] == self.closing
        is_empty = ~np.any([*ids.values()], axis=0) & ~closes
        counts: dict[str, Any] = {
            kind: {name: int(((column == value) & ~closes).sum()) for name, column in ids.items()}
            for kind, value in (("missing", MISSING_ID), ("unknown", UNKNOWN_ID))
        }
        counts |= {"ends_of_visit": int(closes.sum()), "empty": int(is_empty.sum()), "measures": self.measure(batch)}
        return counts | count_cases(batch, self.schema)

    def measure(self, batch: Customers) -> dict[str, int]:
        """Measures what kind of log it is by the target events of rows in the training period; the recipe of
        pre-training reads the measures.

        Only targets with a known label count, and the token type is a label only if it is the only task. Returns
        `customers`, `one_visit` (number of customers with a single visit), `visits` and `targets` (number of events);
        empty where nothing is split by time, because no model is trained on such a data set.
        """
        if self.schema.cutoffs == NO_CUTOFFS:
            return {}
        tasks = deciding_tasks(self.schema.tasks, self.encoding.token_feature)
        labels = {task: batch.column(f"task_{task}") for task in tasks}
        is_known = [(ids >= FIRST_VALUE_ID) & (ids < self.known.get(task, MOST_IDS)) for task, ids in labels.items()]
        is_labelled = np.any(is_known, axis=0)
        targets = np.flatnonzero(is_labelled & (batch.places < batch.column("validation_end")[batch.row]))
        customers, visits = batch.row[targets], batch.column("visits")[targets]
        opens_visit = run_starts(customers, visits)
        visits_of_customers = np.bincount(customers[opens_visit])
        return {
            "customers": int((visits_of_customers > 0).sum()),
            "one_visit": int((visits_of_customers == 1).sum()),
            "visits": int(opens_visit.sum()),
            "targets": len(targets),
        }


def add_counts(totals: dict, counts: Mapping, sign: int = 1) -> None:
    """Adds counts to totals of the same names, or takes them away (`sign` -1); a mapping holds more of them."""
    for name, value in counts.items():
        if isinstance(value, Mapping):
            add_counts(totals.setdefault(name, {}), value, sign)
        else:
            totals[name] = totals.get(name, 0) + sign * value


def check_empty(totals: dict) -> None:
    """Takes the number of events without any value out of the totals. Raises `ValueError` if there is one."""
    if empty := totals.pop("empty"):
        raise ValueError(
            f"{empty} events have no value in any feature; leave them out of the log, or add a feature that is "
            "always there, such as {name: hour, kind: hour}."
        )


def write_shard(table: pa.Table, path: Path) -> dict:
    """Writes a shard whole or not at all, and returns its entry in the manifest: `file`, `rows`, `bytes`, `sha256`."""
    write_table(path, table.combine_chunks(), compression="zstd", row_group_size=ROWS_PER_ROW_GROUP)
    return describe_file(path, table.num_rows)
