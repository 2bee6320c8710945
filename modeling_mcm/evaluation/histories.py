# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Histories before a cutoff: the labelled events of a task, read from prepared rows.

Everything is computed on flat Arrow columns, in which the events of customers stand one after the other. A moment is
one time of a visit.

Shapes: B customers, M moments, V labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import check_cutoff, compute_offsets, load_columns
from modeling_mcm.events_mcm import SECONDS_PER_DAY, number_groups, run_starts


@dataclass(frozen=True)
class TaskHistory:
    """The labelled events of one task before a cutoff, of some customers, in flat arrays (int64) and oldest first."""

    customer_ids: NDArray
    customer: NDArray  # (events,): index among the customers of the event's customer
    label: NDArray  # (events,): label ids, at least 2
    time: NDArray  # (events,): time of the event, in seconds since 1970
    visits_ago: NDArray  # (events,): number of the customer's visits with a label after this one's

    def __len__(self) -> int:
        return len(self.customer_ids)

    @property
    def visit(self) -> NDArray:
        """Index of each event's visit among those of all customers, `(events,)`."""
        return np.cumsum(run_starts(self.customer, self.visits_ago)) - 1

    @property
    def moment(self) -> NDArray:
        """Index of each event's moment among those of all customers, `(events,)`."""
        return np.cumsum(run_starts(self.customer, self.visits_ago, self.time)) - 1

    def select(self, events: NDArray) -> Self:
        """The history with some of the events alone, by a mask or by indices."""
        names = [field.name for field in fields(self) if field.name != "customer_ids"]
        return replace(self, **{name: getattr(self, name)[events] for name in names})

    def once_a_visit(self) -> NDArray:
        """Marks the first event of each label within a visit in a mask of shape `(events,)`."""
        return ~pd.DataFrame({"visit": self.visit, "label": self.label}).duplicated().to_numpy()


def read_history(rows: Dataset, task: str, cutoff: str = "validation", kind: str = "task") -> TaskHistory:
    """Reads the labelled events of a task before a cutoff. With the kind "feature" these are all events with a value,
    also those that are no targets. A `ValueError` is raised if the cutoff is neither "validation" nor "test", or if
    the rows lack the task."""
    end, column = check_cutoff(cutoff), f"{kind}_{task}"
    batch = load_columns(rows, ["customer_id", "times", "visits", end, column])
    events = batch.select((batch.places < batch.column(end)[batch.row]) & (batch.column(column) >= FIRST_LABEL))
    row, number = events.row, np.cumsum(run_starts(events.row, events.column("visits")))
    visits_ago = number[(events.starts + events.lengths - 1)[row]] - number
    label = events.column(column).astype(np.int64)
    return TaskHistory(batch.column("customer_id"), row, label, events.column("times"), visits_ago)


def task_histories(rows: Dataset, task: str, cutoff: str, batch_size: int) -> Iterator[TaskHistory]:
    """Reads what [`read_history`] reads, a batch of customers at a time."""
    for start in range(0, len(rows), batch_size):
        yield read_history(rows.select(range(start, min(start + batch_size, len(rows)))), task, cutoff)


def read_moments(history: TaskHistory, number_of_labels: int) -> tuple[csr_array, NDArray]:
    """Labels of each moment, oldest first, as 0 or 1 of shape `(M, V)`, and the customer of each moment."""
    moment = history.moment
    customer = history.customer[run_starts(moment)]
    pairs = np.ones(len(moment)), (moment, history.label)
    sets = csr_array(pairs, shape=(len(customer), number_of_labels))
    sets.data[:] = 1
    return sets, customer


def count_transitions(sets: csr_array, customer: NDArray, weights: Sequence[float]) -> csr_array:
    """Sums of the weights, by lag from 1, with which labels followed each other, `(V, V)`: of the labels of moments
    and their customers, as [`read_moments`] gives them."""
    lags = range(1, min(len(weights), len(customer) - 1) + 1)
    same = [weight * (customer[lag:] == customer[:-lag]) for lag, weight in zip(lags, weights, strict=False)]
    if not same:
        return csr_array((sets.shape[1], sets.shape[1]))
    shape = len(customer), len(customer)
    return csr_array(sets.T @ (diags_array(same, offsets=lags, shape=shape, format="csr") @ sets))


@dataclass(frozen=True)
class VisitSets:
    """The label sets of the visits of some customers, in flat arrays (int64, days float64) and oldest first. A row is
    one label of one visit."""

    # (customers + 1,): Customer c has the visits from `first_visit[c]` to before `first_visit[c + 1]`
    first_visit: NDArray
    day: NDArray  # (visits,): end of each visit, in days since 1970
    visit: NDArray  # (rows,): index of each row's visit
    label: NDArray  # (rows,): label id of each row

    @classmethod
    def of(cls, history: TaskHistory) -> Self:
        """Makes the label sets of visits from labelled events."""
        visit, once = history.visit, history.once_a_visit()
        last = np.flatnonzero(np.diff(visit, append=len(visit)))  # event of each visit
        first_visit = compute_offsets(np.bincount(history.customer[last], minlength=len(history)))
        return cls(first_visit, history.time[last] / SECONDS_PER_DAY, visit[once], history.label[once])

    @property
    def customer(self) -> NDArray:
        """Customer of each visit, `(visits,)`."""
        return number_groups(np.diff(self.first_visit))[0]

    @property
    def first_row(self) -> NDArray:
        """Index of each visit's first row, and the number of rows, `(visits + 1,)`."""
        return compute_offsets(np.bincount(self.visit))

    def count_occurrences(self, group: NDArray, groups: int, number_of_labels: int) -> list[NDArray]:
        """Counts labels by groups of visits `(visits,)`. Returns arrays `(groups, V)`: the number of visits with the
        label; of those where the customer had it before; and before, at the very next visit; and the sums of the gaps
        since, in visits and in days."""
        order = np.lexsort((self.visit, self.label))
        visit, label = self.visit[order], self.label[order]
        again = ~run_starts(self.customer[visit], label)
        gap, days = np.diff(visit, prepend=0) * again, np.diff(self.day[visit], prepend=0) * again
        cell, size = group[visit] * number_of_labels + label, groups * number_of_labels
        sums = [np.bincount(cell, weights, size) for weights in (again >= 0, again, gap == 1, gap, days)]
        return [values.reshape(groups, number_of_labels) for values in sums]
