# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What customers did before a cutoff: the labelled events of a task, read from prepared rows in batches of customers.

Everything is computed on the flat Arrow columns, in which the events of a batch of customers stand one after the
other.

Shapes: B customers of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import check_cutoff, flat_values, list_lengths
from modeling_mcm.events_mcm import SECONDS_PER_DAY


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

    def before_last_visit(self) -> Self:
        """The history without the events of each customer's last visit with a label."""
        kept = self.visits_ago > 0
        customer = self.customer[kept]
        taken = np.bincount(self.customer[~kept], minlength=len(self))
        return type(self)(
            self.customer_ids,
            customer,
            self.label[kept],
            self.time[kept],
            self.events_ago[kept] - taken[customer],
            self.visits_ago[kept] - 1,
        )

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
