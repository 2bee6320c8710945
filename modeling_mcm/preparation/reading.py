# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of a log as [`Encoding.read`] reads them, block by block: texts, numbers and seconds for the engines.

Columns get internal names by their position (`f0`, `f1` ... for features, `p0` ... for the profile), because feature
names such as "a.b", or "Type" beside "type", are legal in a schema but not in every engine. Features that share the
values of a column have one column, that of the first.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from modeling_mcm.data.schema import EventSchema
from modeling_mcm.encoding_mcm import BadValues, Encoding, Events
from modeling_mcm.events_mcm import NO_TIME, Distinct, to_local, to_text
from modeling_mcm.schema_mcm import NUMERIC, ROWS, FeatureSpec

BAD = ("bad_column", "bad_reason")  # of a row with a value that can't be read: the column, and what is wrong


class RowReader:
    """Reads the blocks of a log, or of a table of profiles.

    Its rows have the columns of `schema`: `customer_id` (text); of events `second` (since 1970-01-01, or the place of
    an event without a time), and `visit_key`, "v" and the text of the visit column, or "t" and the second where the
    events of one time are a visit; the stored columns of features; of events `is_target` and `to_predict` (whether the
    target has a label in a task besides the token type; where that is the only task, every target has); and `BAD`.

    Attributes:
        stored (`dict[str, FeatureSpec]`): The features with a stored column, by its internal name.
        columns (`list[str]`): The columns of the table that are read.
    """

    def __init__(self, schema: EventSchema, profile: bool = False):
        self.log, self.profile = schema, profile
        self.encoding = Encoding(schema, schema.feature_names, {}, {})
        letter, specs = ("p", schema.profile) if profile else ("f", schema.features)
        sources = self.encoding.sources
        self.stored = {f"{letter}{i}": spec for i, spec in enumerate(specs) if sources.get(spec.name) == spec.name}
        self.columns = schema.profile_columns if profile else schema.event_columns
        kinds = {"customer_id": pa.string()}
        kinds |= {} if profile else {"second": pa.int64(), "visit_key": pa.string()}
        kinds |= {name: _arrow_type(spec) for name, spec in self.stored.items()}
        kinds |= {} if profile else {"is_target": pa.bool_(), "to_predict": pa.bool_()}
        kinds |= dict.fromkeys(BAD, pa.string())
        self.schema = pa.schema(kinds)
        others = {column for spec in specs if spec.kind != NUMERIC for column in spec.columns}
        self._numbers = {column for spec in specs if spec.kind == NUMERIC for column in spec.columns} - others

    def read(self, blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads blocks with the columns of the table."""
        start = 0
        for block in blocks:
            yield self._read_block(block, start)
            start += len(block)

    def _read_block(self, block: pa.RecordBatch, start: int) -> pa.RecordBatch:
        bad: list[BadValues] = []
        encoding, columns = self.encoding, {name: self._column(name, block[name]) for name in self.columns}
        customers = encoding.read_values(self.log.customer, columns[self.log.customer], to_text, bad)
        read: dict[str, Any] = {"customer_id": _as_arrow(customers, pa.string())}
        if self.profile:
            values = encoding.read_features(encoding.profile_features, columns, bad)
        else:
            events = encoding.read(columns, len(block), bad)
            values, first = events.values, start if self.log.order == ROWS else 0
            read["second"] = pa.array(events.positions + first, mask=events.positions == NO_TIME)
            read["visit_key"] = pc.binary_join_element_wise("t", read["second"].cast(pa.string()), "")
            if events.visits is not None:
                keys = events.visits.map(lambda text: None if text is None else f"v{text}")
                read["visit_key"] = pc.coalesce(_as_arrow(keys, pa.string()), read["visit_key"])
            read |= {"is_target": events.is_target, "to_predict": self._to_predict(events)}
        read |= {name: _as_arrow(values[spec.name], _arrow_type(spec)) for name, spec in self.stored.items()}
        codes = np.full(len(block), -1)
        for index, noted in enumerate(bad):
            codes[noted.rows] = index
        indices = pa.array(codes, mask=codes < 0)
        for name, texts in zip(BAD, ([noted.column for noted in bad], [noted.reason for noted in bad]), strict=True):
            read[name] = pa.array(texts, pa.string()).take(indices)
        return pa.RecordBatch.from_pydict(read, self.schema)

    def _column(self, name: str, array: pa.Array) -> Any:
        """A column as the encoding reads columns: as an array, or by its distinct values."""
        kind = array.type
        if name == self.log.time and pa.types.is_timestamp(kind):
            times = array.to_numpy(zero_copy_only=False).astype("datetime64[s]")
            there = ~np.isnat(times)
            if kind.tz is not None:  # moments go to the zone of the log
                times[there] = to_local(times[there].astype(np.int64), self.encoding.zone).astype("datetime64[s]")
            return times
        if name in self._numbers and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            return array.to_numpy(zero_copy_only=False)
        return read_distinct(array)

    def _to_predict(self, events: Events) -> NDArray[np.bool_]:
        encoding, token = self.encoding, self.encoding.token_feature
        tasks = [task for task in self.log.tasks if task != token]
        has_label = [encoding.has_value(task, events.values[encoding.sources[task]]) for task in tasks]
        return events.is_target & (np.any(has_label, axis=0) if tasks else True)


def _arrow_type(spec: FeatureSpec) -> pa.DataType:
    return pa.float64() if spec.kind == NUMERIC else pa.string() if spec.item is None else pa.list_(pa.string())


def _as_arrow(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, Distinct):
        values = [sorted(value or ()) or None for value in column.values] if pa.types.is_list(kind) else column.values
        return pa.array(values, kind).take(pa.array(column.codes))
    return pa.array(column, kind, from_pandas=True)


def to_events(rows: pa.Table, reader: RowReader) -> Events:
    """The events of rows that a reader read."""
    visits = from_arrow(rows["visit_key"]).map(lambda key: key[1:] if key[0] == "v" else None)
    values = {spec.name: from_arrow(rows[name]) for name, spec in reader.stored.items() if name in rows.column_names}
    second, is_target = (rows[name].to_numpy() for name in ("second", "is_target"))
    return Events(second, visits if reader.log.visit else None, is_target, values)


def from_arrow(column: pa.ChunkedArray) -> Any:
    """What was read of a column, from its stored column."""
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_list(array.type):
        return Distinct.of([texts and tuple(texts) for texts in array.to_pylist()])
    return read_distinct(array)


def read_distinct(array: pa.Array) -> Distinct:
    """A column by its distinct values."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if array.type == pa.string_view():  # which `dictionary_encode` reads without its nulls
        array = array.cast(pa.string())
    try:
        coded = array.dictionary_encode("encode")
    except pa.ArrowNotImplementedError:  # such as lists
        return Distinct.of(array.to_pylist())
    return Distinct(coded.dictionary.to_pylist(), coded.indices.to_numpy())
