# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Histories before a cutoff: the labelled events of a task, read from prepared rows in batches of customers.

Everything is computed on flat Arrow columns, in which the events of a batch of customers stand one after the other.

Shapes: B customers of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import arrow_batches, check_cutoff, flat_values, locate_events
from modeling_mcm.events_mcm import run_starts


@dataclass(frozen=True)
class TaskHistory:
    """The labelled events of one task before a cutoff, of a batch of customers, in flat arrays and oldest first."""

    customer_ids: NDArray
    customer: NDArray[np.int64]  # (events,): index in the batch of the event's customer
    label: NDArray[np.int64]  # (events,): label ids, at least 2
    time: NDArray[np.int64]  # (events,): time of the event, in seconds since 1970
    visits_ago: NDArray[np.int64]  # (events,): number of the customer's visits with a label after this one's

    def __len__(self) -> int:
        return len(self.customer_ids)

    def before_last_visit(self) -> Self:
        """Makes the history without the events of each customer's last visit with a label."""
        is_earlier = self.visits_ago > 0
        customer, label, time, visits_ago = (
            values[is_earlier] for values in (self.customer, self.label, self.time, self.visits_ago)
        )
        return type(self)(self.customer_ids, customer, label, time, visits_ago - 1)

    def once_a_visit(self) -> NDArray[np.bool_]:
        """Marks the first event of each label within a visit in a mask of shape `(events,)`."""
        first = np.zeros(len(self.label), dtype=bool)
        if len(first):
            shape = [values.max() + 1 for values in (self.customer, self.visits_ago, self.label)]
            keys = np.ravel_multi_index((self.customer, self.visits_ago, self.label), shape)
            first[np.unique(keys, return_index=True)[1]] = True
        return first


def task_histories(rows: Any, task: str, cutoff: str, batch_size: int = 1024) -> Iterator[TaskHistory]:
    """Reads the labelled events of a task before a cutoff, a batch of customers at a time. A `ValueError` is raised if
    the cutoff is neither "validation" nor "test", or if the rows lack the task."""
    end_column = check_cutoff(cutoff)
    for table in arrow_batches(rows, ["customer_id", "times", "visits", end_column, f"task_{task}"], batch_size):
        yield _task_history(table, f"task_{task}", end_column)


def _task_history(table: pa.Table, task_column: str, end_column: str) -> TaskHistory:
    row, index = locate_events(table)
    label = flat_values(table, task_column)
    is_earlier = (index < flat_values(table, end_column)[row]) & (label >= FIRST_LABEL)
    row, visit = row[is_earlier], flat_values(table, "visits")[is_earlier]
    counts = np.bincount(row, minlength=len(table))
    last = np.repeat(np.cumsum(counts) - 1, counts)  # index of the last event of the event's customer
    number = np.cumsum(run_starts(row, visit))
    return TaskHistory(
        customer_ids=np.array(table["customer_id"].to_pylist(), dtype=object),
        customer=row,
        label=label[is_earlier].astype(np.int64),
        time=flat_values(table, "times")[is_earlier].astype(np.int64),
        visits_ago=number[last] - number,
    )
