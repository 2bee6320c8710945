# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation case is, computed on the flat Arrow columns of prepared rows.

A case is a customer with at least `min_history` target events before a cutoff and at least one target event after it.
For the validation cutoff, that target event must also come before the test cutoff. A target event is an event with a
label in any task besides the token type: where nothing else is known of an event, there is nothing to predict.
Preparation counts the cases of the shards that it writes, and evaluation reads the targets of each case.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import MISSING_ID, UNKNOWN_ID
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.events_mcm import BoolArray, IntArray, check_columns, number_groups
from modeling_mcm.schema_mcm import check_choice

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


def flat_values(table: pa.Table, column: str) -> NDArray:
    """One flat array of all values of a list column, row after row, or of one value for each row of a scalar
    column."""
    array = table[column].combine_chunks()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


def list_lengths(table: pa.Table, column: str) -> IntArray:
    """Counts the values in each row's list; a null list counts as empty."""
    return pc.fill_null(pc.list_value_length(table[column]), 0).to_numpy().astype(np.int64)


def locate_events(table: pa.Table) -> tuple[IntArray, IntArray]:
    """Row of each event of prepared rows, and its index in its row, both of shape `(events,)`."""
    return number_groups(list_lengths(table, "visits"))


def arrow_batches(rows: Any, columns: Sequence[str], batch_size: int = 1024) -> Iterator[pa.Table]:
    """Reads some columns of prepared rows (`datasets.Dataset` or `pyarrow.Table`) in batches of customers; a
    `ValueError` names a missing column."""
    fix = "Expected prepared rows; check the name of the task, or prepare the data again with a schema that has it."
    check_columns(rows.column_names, columns, "The rows have", fix)
    if isinstance(rows, pa.Table):
        table = rows.select(list(columns))
        yield from (table.slice(start, batch_size) for start in range(0, len(table), batch_size))
    else:
        yield from rows.select_columns(list(columns)).with_format("arrow").iter(batch_size)


def select_rows(rows: Any, indices: IntArray) -> Any:
    """Selects some of the prepared rows; the result has the class of `rows`."""
    return rows.take(indices) if isinstance(rows, pa.Table) else rows.select(indices)


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

    row: IntArray  # (events,): index of the event's customer among the rows
    place: IntArray  # (events,): index of the event among the customer's
    history_end: IntArray  # (rows,): number of the customer's events before the cutoff
    # (events,): whether the event may be read when the cutoff is evaluated. At the validation cutoff these are the
    # events before the test cutoff, at the test cutoff all events
    visible: BoolArray
    history: BoolArray  # (events,): whether the event is a target event before the cutoff
    future: BoolArray  # (events,): whether the event is a visible target event after the cutoff

    @classmethod
    def read(cls, table: pa.Table, cutoff: str, tasks: Sequence[str], token_type: str) -> "CaseEvents":
        """Reads the events of prepared rows. Raises `ValueError` if the cutoff is unknown."""
        row, index = locate_events(table)
        end = flat_values(table, check_cutoff(cutoff)).astype(np.int64)
        stop = flat_values(table, ENDS[1]) if cutoff == CUTOFFS[0] else list_lengths(table, "visits")
        labels = [flat_values(table, f"task_{task}") for task in deciding_tasks(tasks, token_type)]
        is_target = np.any([of_task != MISSING_ID for of_task in labels], axis=0)
        is_past, visible = index < end[row], index < stop[row]
        return cls(row, index, end, visible, is_target & is_past, is_target & ~is_past & visible)

    def is_case(self, min_history: int, targets: IntArray | None = None) -> BoolArray:
        """Says for each customer whether the customer is a case. `targets` are indices of the events that count as
        targets after the cutoff; by default all target events after it."""
        rows = len(self.history_end)
        after = self.row[self.future if targets is None else targets]
        enough = np.bincount(self.row[self.history], minlength=rows) >= min_history
        return enough & (np.bincount(after, minlength=rows) > 0)


def count_cases(table: pa.Table, schema: EventSchema) -> dict[str, int]:
    """Counts the evaluation cases among prepared rows at both cutoffs."""
    counts = {}
    for cutoff in CUTOFFS:
        events = CaseEvents.read(table, cutoff, schema.tasks, schema.token_feature.name)
        counts[f"{cutoff}_cases"] = int(events.is_case(schema.min_history).sum())
    return counts
