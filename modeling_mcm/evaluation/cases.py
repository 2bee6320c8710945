# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation cases: which customers are evaluated at a cutoff, what each of them did before and does next.

A case is a customer with at least `min_history` target events before the cutoff and a target visit after it. The
target is the first such visit: its events on or after the cutoff, for the validation cutoff also before the test
cutoff. Of a visit that straddles a cutoff only the events on the asked side count. A target event is one with a label
in any task besides the token type: an event of which nothing else is known is nothing to predict.

Everything is computed on the flat Arrow columns of prepared rows, a batch of customers at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from modeling_mcm.evaluation.metrics import FIRST_LABEL

SECONDS_PER_DAY = 86400.0
CUTOFFS = ("validation", "test")


@dataclass(frozen=True)
class TargetEvents:
    """Labels of a task on the events of each case's target visit, ragged.

    Attributes:
        offsets: of shape `(cases + 1,)`; case c has `labels[offsets[c]:offsets[c + 1]]`, none if no event has a label.
        labels: label ids, 1 = unknown, one for each event with a value; repeated labels stay.
    """

    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, case: int) -> NDArray[np.int64]:
        return self.labels[self.offsets[case] : self.offsets[case + 1]]


@dataclass(frozen=True)
class EvaluationCases:
    """The cases at one cutoff, in the order of the rows.

    Attributes:
        cutoff: "validation" or "test".
        rows: place of each case among the prepared rows, of shape `(cases,)`.
        customer_ids: of shape `(cases,)`.
        history_end: number of stored events before the cutoff, of shape `(cases,)`.
        targets: task -> `TargetEvents` of length `cases`.
    """

    cutoff: str
    rows: NDArray[np.int64]
    customer_ids: list[str]
    history_end: NDArray[np.int64]
    targets: dict[str, TargetEvents]

    def __len__(self) -> int:
        return len(self.rows)


def arrow_batches(rows: Any, columns: Sequence[str], batch_size: int = 1024) -> Iterator[pa.Table]:
    """Reads some columns of prepared rows in batches of customers.

    Args:
        rows: a `datasets.Dataset`, as `load_prepared` returns it, or a `pyarrow.Table`.
        columns: names to read.
        batch_size: customers a batch.

    Raises:
        ValueError: if a column is missing.
    """
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"The rows have no column {missing[0]!r}; their columns are {', '.join(rows.column_names)}. Expected "
            "prepared rows; check the name of the task, or prepare the data again with a schema that has it."
        )
    if isinstance(rows, pa.Table):
        table = rows.select(list(columns))
        yield from (table.slice(start, batch_size) for start in range(0, len(table), batch_size))
    else:
        yield from rows.select_columns(list(columns)).with_format("arrow").iter(batch_size)


def select_rows(rows: Any, places: NDArray[np.int64]) -> Any:
    """Some of the prepared rows, a `datasets.Dataset` or a `pyarrow.Table`, as the same."""
    return rows.take(places) if isinstance(rows, pa.Table) else rows.select(places)


def check_cutoff(cutoff: str) -> str:
    """Returns the name of the column with the end of the history, or raises a ValueError for an unknown cutoff."""
    if cutoff not in CUTOFFS:
        raise ValueError(f"Found cutoff {cutoff!r}; expected one of {', '.join(map(repr, CUTOFFS))}.")
    return f"{cutoff}_end"


def flat_values(table: pa.Table, column: str) -> NDArray:
    """All values of a list column, one row after the other, or the values of a scalar column."""
    array = pa.concat_arrays(table[column].chunks) if table[column].num_chunks else pa.array([], table[column].type)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


def list_lengths(table: pa.Table, column: str) -> NDArray[np.int64]:
    """Length of each row's list; a null list is empty."""
    lengths = [pa.compute.fill_null(pa.compute.list_value_length(chunk), 0) for chunk in table[column].chunks]
    return np.concatenate([np.zeros(0, np.int64), *(chunk.to_numpy(zero_copy_only=False) for chunk in lengths)])


def find_cases(
    rows: Any, cutoff: str, min_history: int = 5, token_type: str = "token_type", batch_size: int = 1024
) -> EvaluationCases:
    """Finds the evaluation cases at a cutoff and the target events of all tasks.

    Args:
        rows: prepared rows, a `datasets.Dataset` or a `pyarrow.Table`.
        cutoff: "validation" or "test".
        min_history: target events that a case needs before the cutoff.
        token_type: name of the token type feature. As a task it makes no target event, unless it is the only task.
        batch_size: customers read at a time.

    Raises:
        ValueError: if the cutoff is unknown, the rows have no task or lack a column, or no customer is a case.
    """
    end_column = check_cutoff(cutoff)
    tasks = [name for name in rows.column_names if name.startswith("task_")]
    if not tasks:
        raise ValueError(
            f"The rows have no task column; their columns are {', '.join(rows.column_names)}. Expected prepared rows "
            "with columns such as task_product_type."
        )
    deciding = [name for name in tasks if name != f"task_{token_type}"] or tasks
    found, first_row = [], 0
    for table in arrow_batches(rows, ["customer_id", "visits", "validation_end", "test_end", *tasks], batch_size):
        found.append(_cases_of_batch(table, end_column, tasks, deciding, min_history, first_row))
        first_row += len(table)
    cases = EvaluationCases(
        cutoff=cutoff,
        rows=np.concatenate([batch.rows for batch in found]) if found else np.zeros(0, np.int64),
        customer_ids=[customer for batch in found for customer in batch.customer_ids],
        history_end=np.concatenate([batch.history_end for batch in found]) if found else np.zeros(0, np.int64),
        targets={name.removeprefix("task_"): _joined([batch.targets[name] for batch in found]) for name in tasks},
    )
    if not len(cases):
        raise ValueError(
            f"No evaluation case at the {cutoff} cutoff among {first_row} customers; expected customers with at least "
            f"{min_history} target events before it and a target visit after it. Check the cutoff dates and "
            "min_history."
        )
    return cases


def _cases_of_batch(
    table: pa.Table, end_column: str, tasks: Sequence[str], deciding: Sequence[str], min_history: int, first_row: int
) -> EvaluationCases:
    lengths = list_lengths(table, "visits")
    starts = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(len(table)), lengths)
    place = np.arange(len(row)) - starts[row]
    visit = flat_values(table, "visits")
    labels = {name: flat_values(table, name) for name in tasks}
    ends = flat_values(table, end_column).astype(np.int64)
    stop = flat_values(table, "test_end") if end_column == "validation_end" else lengths

    is_target = np.any([labels[name] > 0 for name in deciding], axis=0)
    history = np.bincount(row[is_target & (place < ends[row])], minlength=len(table))
    candidates = np.flatnonzero(is_target & (place >= ends[row]) & (place < stop[row]))
    owner, first = np.unique(row[candidates], return_index=True)
    target_visit = np.full(len(table), -1, dtype=np.int64)
    target_visit[owner] = visit[candidates[first]]
    is_case = (history >= min_history) & (target_visit >= 0)

    chosen = candidates[(visit[candidates] == target_visit[row[candidates]]) & is_case[row[candidates]]]
    rows = np.flatnonzero(is_case)
    case_of_row = np.cumsum(is_case) - 1
    targets = {}
    for name, label in labels.items():
        with_label = chosen[label[chosen] > 0]
        counts = np.bincount(case_of_row[row[with_label]], minlength=len(rows))
        targets[name] = TargetEvents(np.concatenate([[0], np.cumsum(counts)]), label[with_label].astype(np.int64))
    customer_ids = table["customer_id"].take(rows).to_pylist()
    return EvaluationCases(end_column.removesuffix("_end"), first_row + rows, customer_ids, ends[rows], targets)


def _joined(batches: Sequence[TargetEvents]) -> TargetEvents:
    counts = [np.zeros(0, np.int64), *(np.diff(batch.offsets) for batch in batches)]
    labels = [np.zeros(0, np.int64), *(batch.labels for batch in batches)]
    return TargetEvents(np.concatenate([[0], np.cumsum(np.concatenate(counts))]), np.concatenate(labels))


@dataclass(frozen=True)
class TaskHistory:
    """The labelled events of one task before a cutoff, of a batch of customers, flat and oldest first.

    Attributes:
        customer_ids: of shape `(B,)`.
        customer: place of the event's customer in the batch, of shape `(events,)`.
        label: label ids, at least 2, of shape `(events,)`.
        time: seconds since the epoch, of shape `(events,)`.
        events_ago: how many labelled events the customer has after this one, of shape `(events,)`.
        visits_ago: how many visits with a label the customer has after this one's, of shape `(events,)`.
    """

    customer_ids: NDArray
    customer: NDArray[np.int64]
    label: NDArray[np.int64]
    time: NDArray[np.int64]
    events_ago: NDArray[np.int64]
    visits_ago: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.customer_ids)

    @property
    def days_ago(self) -> NDArray[np.float64]:
        """Days from the event to its customer's last one; the time since then would scale all its weights alike."""
        latest = np.full(len(self), np.iinfo(np.int64).min)
        np.maximum.at(latest, self.customer, self.time)
        return (latest[self.customer] - self.time) / SECONDS_PER_DAY

    def first_of_visit(self) -> NDArray[np.bool_]:
        """True on the first event of each visit, of shape `(events,)`."""
        first = np.ones(len(self.label), dtype=bool)
        first[1:] = (self.customer[1:] != self.customer[:-1]) | (self.visits_ago[1:] != self.visits_ago[:-1])
        return first

    def once_a_visit(self) -> NDArray[np.bool_]:
        """True on the first event of each label within a visit, of shape `(events,)`."""
        keys = np.stack([self.customer, self.visits_ago, self.label])
        first = np.zeros(len(self.label), dtype=bool)
        first[np.unique(keys, axis=1, return_index=True)[1]] = True
        return first


def task_histories(rows: Any, task: str, cutoff: str, batch_size: int = 1024) -> Iterator[TaskHistory]:
    """Reads the labelled events of a task before a cutoff ("validation" or "test"), a batch of customers at a time.

    Raises:
        ValueError: if the cutoff is unknown or the rows lack the task.
    """
    end_column = check_cutoff(cutoff)
    for table in arrow_batches(rows, ["customer_id", "times", "visits", end_column, f"task_{task}"], batch_size):
        yield _task_history(table, f"task_{task}", end_column)


def _task_history(table: pa.Table, task_column: str, end_column: str) -> TaskHistory:
    lengths = list_lengths(table, "visits")
    row = np.repeat(np.arange(len(table)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    label = flat_values(table, task_column)
    kept = (place < flat_values(table, end_column)[row]) & (label >= FIRST_LABEL)
    row, visit = row[kept], flat_values(table, "visits")[kept]
    counts = np.bincount(row, minlength=len(table))
    last = np.repeat(np.cumsum(counts) - 1, counts)  # each event's customer's last event
    starts = np.ones(len(row), dtype=np.int64)
    starts[1:] = (row[1:] != row[:-1]) | (visit[1:] != visit[:-1])
    number = np.cumsum(starts)
    return TaskHistory(
        customer_ids=np.array(table["customer_id"].to_pylist(), dtype=object),
        customer=row,
        label=label[kept].astype(np.int64),
        time=flat_values(table, "times")[kept].astype(np.int64),
        events_ago=last - np.arange(len(row)),
        visits_ago=number[last] - number,
    )
