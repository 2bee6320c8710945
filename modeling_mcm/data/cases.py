# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation case is, computed on the flat Arrow columns of prepared rows.

A case is a customer with at least `min_history` target events before a cutoff and at least one target event after it.
For the validation cutoff, that target event must also come before the test cutoff. A target event is an event with a
label in any task besides the token type: where nothing else is known of an event, there is nothing to predict.
Preparation counts the cases of the shards that it writes, and evaluation reads the targets of each case.
"""

from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import UNKNOWN_ID
from modeling_mcm.events_mcm import SECONDS_PER_DAY, BoolArray, IntArray, check_columns, run_starts, to_iso
from modeling_mcm.inputs_mcm import PER_EVENT, Customers
from modeling_mcm.schema_mcm import check_choice

from .schema import EventSchema

CUTOFFS = ("validation", "test")
IGNORED = -100  # label that no loss and no metric reads
ENDS = tuple(f"{cutoff}_end" for cutoff in CUTOFFS)  # columns with the number of a row's events before each cutoff


def deciding_tasks(tasks: Sequence[str], token_type: str) -> list[str]:
    """Tasks whose labels make an event a target: all besides the token type, unless that is the only task."""
    return [task for task in tasks if task != token_type] or list(tasks)


def check_cutoff(cutoff: str) -> str:
    """Checks the name of a cutoff, and names the column that says where the history ends at this cutoff. Raises
    `ValueError` if the cutoff is unknown."""
    check_choice(cutoff, "cutoff", CUTOFFS)
    return f"{cutoff}_end"


def find_targets(rows: Customers, tasks: Sequence[str], token_type: str) -> BoolArray:
    """Says of each event whether it is a target event."""
    return np.any([rows.column(f"task_{task}") > 0 for task in deciding_tasks(tasks, token_type)], axis=0)


def to_batch(table: pa.Table) -> Customers:
    """Prepared rows as arrays, of which an event column has the values of all events, row after row; a null list
    counts as empty."""
    columns, lengths = {}, pa.array([], pa.int32())
    for name in table.column_names:
        array = table[name].combine_chunks()
        if name.startswith(PER_EVENT):
            lengths, array = pc.list_value_length(array).fill_null(0), array.flatten()
        columns[name] = array.to_numpy(zero_copy_only=False)
    return Customers(columns, lengths.to_numpy().astype(np.int64))


def from_batch(rows: Customers, schema: pa.Schema) -> pa.RecordBatch:
    """The reverse of [`to_batch`]."""
    offsets, arrays = pa.array(compute_offsets(rows.lengths), pa.int32()), []
    for field in schema:
        values = rows.column(field.name)
        if field.name.startswith(PER_EVENT):
            arrays.append(pa.ListArray.from_arrays(offsets, pa.array(values, field.type.value_type), field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.record_batch(arrays, schema=schema)


def load_columns(rows: datasets.Dataset, columns: Sequence[str]) -> Customers:
    """Reads some columns of prepared rows; a `ValueError` names a missing column."""
    fix = "Expected prepared rows; check the name of the task, or prepare the data again with a schema that has it."
    check_columns(rows.column_names, columns, "The rows have", fix)
    return to_batch(rows.select_columns([*columns]).with_format("arrow")[:])


def check_reached(events: IntArray, times: IntArray, what: str) -> None:
    """Raises `ValueError` if some times are more than a day after the last of the times of `events`."""
    if number := int((times > (end := events.max()) + SECONDS_PER_DAY).sum()):
        raise ValueError(
            f"{number} {what} are of times that the log does not reach: it ends on {to_iso(end)}, and they go on to "
            f"{to_iso(times.max())}. What came between would be missing from the history; prepare the log up to the "
            f"{what}, or leave these rows out."
        )


def count_pairs(first: NDArray, second: NDArray) -> tuple[IntArray, IntArray, IntArray]:
    """Counts pairs of whole numbers, of which the first is at least 0: both numbers of each distinct pair in ascending
    order, and how often the pair is there."""
    low = int(np.min(second, initial=0))
    size = int(np.max(second, initial=0)) - low + 1
    pairs, counts = np.unique(first * size + (second - low), return_counts=True)
    return pairs // size, pairs % size + low, counts


def compute_offsets(counts: NDArray) -> IntArray:
    """Computes where groups of these sizes begin; the last number is where the last group ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def tell_unseen(labels: NDArray, checksums: NDArray) -> IntArray:
    """Gives each label that training has never seen an id of its own, below `IGNORED`, in the place of the unknown id:
    by the checksum of its text, which stands in the columns `unseen_<task>` of prepared rows."""
    return np.where(labels == UNKNOWN_ID, IGNORED - 1 - checksums.astype(np.int64), labels)


class CaseEvents(NamedTuple):
    """The events of some customers at a cutoff, as flat arrays: one customer after the other, oldest event first."""

    rows: Customers
    history_end: IntArray  # (rows,): number of the customer's events before the cutoff
    # (events,): whether the event may be read when the cutoff is evaluated. At the validation cutoff these are the
    # events before the test cutoff, at the test cutoff all events
    visible: BoolArray
    history: BoolArray  # (events,): whether the event is a target event before the cutoff
    future: BoolArray  # (events,): whether the event is a visible target event after the cutoff

    @classmethod
    def read(cls, rows: Customers, cutoff: str, tasks: Sequence[str], token_type: str) -> "CaseEvents":
        """Reads the events of prepared rows. Raises `ValueError` if the cutoff is unknown."""
        end = np.asarray(rows.column(check_cutoff(cutoff)), np.int64)
        stop = np.asarray(rows.column(ENDS[1])) if cutoff == CUTOFFS[0] else rows.lengths
        is_target, places = find_targets(rows, tasks, token_type), rows.places
        is_past, visible = places < end[rows.row], places < stop[rows.row]
        return cls(rows, end, visible, is_target & is_past, is_target & ~is_past & visible)

    def next_visit(self) -> IntArray:
        """Indices of the target events of each customer's first visit that has one after the cutoff."""
        targets = np.flatnonzero(self.future)
        visits, is_first = self.rows.column("visits")[targets], run_starts(self.rows.row[targets])
        return targets[visits == visits[is_first][is_first.cumsum() - 1]]

    def is_case(self, min_history: int, targets: NDArray) -> BoolArray:
        """Says for each customer whether the customer is a case. `targets` are a mask or indices of the events that
        count as targets after the cutoff."""
        row, number = self.rows.row, len(self.rows)
        before, after = (np.bincount(row[events], minlength=number) for events in (self.history, targets))
        return (before >= min_history) & (after > 0)


def count_cases(rows: Customers, schema: EventSchema) -> dict[str, int]:
    """Counts the evaluation cases among prepared rows at both cutoffs."""
    counts = {}
    for cutoff in CUTOFFS:
        events = CaseEvents.read(rows, cutoff, schema.tasks, schema.token_feature.name)
        counts[f"{cutoff}_cases"] = int(events.is_case(schema.min_history, events.future).sum())
    return counts
