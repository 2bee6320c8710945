# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Histories before a cutoff, and evaluation cases: which customers are evaluated at it, with their targets.

A case is a customer with at least `min_history` target events before the cutoff and a target visit after it. The
target is the first such visit: its events on or after the cutoff, for the validation cutoff also before the test
cutoff. If a visit lies on both sides of a cutoff, its events before the cutoff are history and the others may be
targets. A target event is one with a label in any task other than the token type, because an event of which nothing
else is known is nothing to predict.

There are two variants, for a model and all baselines alike. With a horizon the targets are the labels of all target
events within some days. `unseen_only` removes the labels that a customer had before the cutoff from the targets and
from the ranking; `comparison_cases` does so in tasks in which nobody has a label twice.

Everything is computed on the flat Arrow columns of prepared rows, in which the events of customers stand one after the
other. A moment is one time of a visit.

Shapes: B customers, M moments, V labels.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from modeling_mcm.configuration_mcm import FIRST_LABEL, MOST_IDS
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import (
    ENDS,
    CaseEvents,
    check_cutoff,
    compute_offsets,
    count_pairs,
    load_columns,
    tell_unseen,
)
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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetEvents:
    """The labels of a task in each case, as flat arrays (int64), case after case."""

    case: NDArray  # (labels,): index of each label's case
    # (labels,): Label ids, one for each event with a value, so that labels may repeat; those that training has never
    # seen are negative
    labels: NDArray

    def of(self, case: int) -> NDArray:
        """The labels of a case."""
        return self.labels[self.case == case]


@dataclass(frozen=True)
class EvaluationCases:
    """The cases at one cutoff, in the order of the rows. Arrays are int64."""

    cutoff: str
    rows: NDArray  # (cases,): index of each case among the prepared rows
    customer_ids: list[str]  # id of each case's customer
    history_end: NDArray  # (cases,): number of the customer's stored events before the cutoff
    targets: dict[str, TargetEvents]  # the target labels of each task
    # (cases,): Number of visits with a target event before the cutoff
    history_visits: NDArray
    horizon_days: float | None = None  # number of days of the horizon; `None` if the target is the next visit
    # For each task in which not all labels are ranked, `(cases, labels)`: how often each customer had a label before
    # the cutoff, which then is not
    seen: dict[str, csr_array] = field(default_factory=dict)
    # Time at which a model scores the customers, in seconds since 1970, of [`~data.schema.EventSchema.scoring_time`];
    # `None`: at the last event of each
    as_of: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def target(self) -> str:
        """First part of the names of metrics, "next_visit" or "horizon"."""
        return "next_visit" if self.horizon_days is None else "horizon"


def find_cases(
    rows: Dataset,
    cutoff: str,
    min_history: int = 5,
    token_type: str = "token_type",
    horizon: tuple[float, int] | None = None,
) -> EvaluationCases:
    """Finds the evaluation cases at a cutoff and the target events of all tasks.

    Args:
        token_type (`str`): Name of the token type feature. As a task it makes no target event, unless it is the only
            task.
        horizon (`tuple[float, int]`, *optional*): Number of days whose labels are the targets, each label once, and
            the cutoff at which they start, in seconds since 1970; a case then has a target event in them. If the
            horizon ends more than a day after the last event of the data, a warning says so. By default the targets
            are those of the next visit.

    Raises:
        ValueError: If the cutoff is unknown, the rows lack a column, or no customer is a case.
    """
    tasks = [name.removeprefix("task_") for name in rows.column_names if name.startswith("task_")]
    columns = ["customer_id", "visits", *ENDS, *(["times"] if horizon else [])]
    columns += [f"{kind}_{task}" for kind in ("task", "unseen") for task in tasks]
    batch = load_columns(rows, columns)
    events = CaseEvents.read(batch, cutoff, tasks, token_type)
    if horizon:
        days, start = horizon
        times, stop = batch.column("times"), start + days * SECONDS_PER_DAY
        latest = np.max(times[events.visible], initial=np.iinfo(np.int64).min)
        targeted = np.flatnonzero(events.future & (times < stop))
    else:
        targeted = events.next_visit()
    is_case = events.is_case(min_history, targeted)
    chosen, case_of_row = np.flatnonzero(is_case), np.cumsum(is_case) - 1
    targeted, targets = targeted[is_case[batch.row[targeted]]], {}
    for task in tasks:
        label = batch.column(f"task_{task}")
        with_label = targeted[label[targeted] > 0]
        labels = tell_unseen(label[with_label], batch.column(f"unseen_{task}")[with_label])
        case = case_of_row[batch.row[with_label]]
        if horizon:
            case, labels, _ = count_pairs(case, labels)
        targets[task] = TargetEvents(case, labels)
    past = batch.select(events.history)
    visited = past.row[run_starts(past.row, past.column("visits"))]
    cases = EvaluationCases(
        cutoff=cutoff,
        rows=chosen,
        history_end=events.history_end[chosen],
        history_visits=np.bincount(visited, minlength=len(batch))[chosen],
        customer_ids=batch.column("customer_id")[chosen].tolist(),
        targets=targets,
        horizon_days=days if horizon else None,
    )
    if not len(cases):
        target = f"one within {days:g} days from it" if horizon else "a target visit after it"
        raise ValueError(
            f"No evaluation case at the {cutoff} cutoff among {len(batch)} customers; expected customers with at "
            f"least {min_history} target events before it and {target}. Check the cutoff dates and min_history"
            f"{', or take a longer horizon' if horizon else ''}."
        )
    if horizon and stop > latest + SECONDS_PER_DAY:
        logger.warning(
            f"The horizon of {days:g} days from the {cutoff} cutoff is longer than the data: the last event "
            f"that counts is {(latest - start) / SECONDS_PER_DAY:.1f} days after the cutoff"
            f"{', because validation reads nothing after the test cutoff' if cutoff == 'validation' else ''}. The "
            "targets are the labels until then; choose a horizon that the data cover."
        )
    return cases


def cases_at(data: PreparedData, cutoff: str, horizon_days: float | None = None) -> EvaluationCases:
    """Finds the cases of a prepared data set as its schema defines them, with [`find_cases`]; a horizon of
    `horizon_days` goes before the next visit."""
    schema = data.schema
    horizon = (horizon_days, schema.cutoff_seconds(cutoff)) if horizon_days else None
    cases = find_cases(data.rows, cutoff, schema.min_history, schema.token_feature.name, horizon)
    return replace(cases, as_of=schema.scoring_time(cutoff))


def seen_labels(rows: Dataset, cutoff: str, task: str) -> csr_array:
    """Counts how often the customers of prepared rows had each label in a task before a cutoff, `(rows, labels)`."""
    history = read_history(rows, task, cutoff)
    return csr_array((np.ones(len(history.label)), (history.customer, history.label)), shape=(len(history), MOST_IDS))


def unseen_only(rows: Dataset, cases: EvaluationCases, tasks: Sequence[str] | None = None) -> EvaluationCases:
    """Removes labels that a customer had before the cutoff from the targets and from the ranking.

    All events of the customer before the cutoff count, also those that a model's window leaves out. A label that
    training has never seen stays a target, because nothing says whether the customer had it before. No ranking has it.

    Returns the same cases with fewer targets, and with `seen`, in some tasks or in all. A task in which no case has
    a target left is removed, with a warning; a `ValueError` is raised if no task is left. `rows` are the prepared rows
    that the cases are of.
    """
    history_rows = rows.select(cases.rows)
    targets, seen = dict(cases.targets), {}
    for task in cases.targets if tasks is None else tasks:
        known, events = seen_labels(history_rows, cases.cutoff, task), cases.targets[task]
        is_new = (known[events.case, events.labels.clip(min=0)] == 0) | (events.labels < FIRST_LABEL)
        if is_new.any():
            targets[task], seen[task] = TargetEvents(events.case[is_new], events.labels[is_new]), known
        else:
            del targets[task]
            logger.warning("Task %r is left out: its customers had seen all labels of its targets before.", task)
    if not targets:
        raise ValueError(
            f"None of {len(cases)} cases has a target that its customer had not seen before the {cases.cutoff} "
            "cutoff; expected at least one. Evaluate without --only_new, choose other tasks, or "
            "take a longer horizon."
        )
    return replace(cases, targets=targets, seen=seen)


def tasks_without_repeats(rows: Dataset, tasks: Sequence[str]) -> list[str]:
    """Selects the tasks in which customers don't have a label again, such as films that nobody rates twice: in the
    training period less than one in 100 labels of later visits, of at least 100, is one that the customer had in an
    earlier visit."""
    selected = []
    for task in tasks:
        history = read_history(rows, task)
        history = history.select(history.once_a_visit())
        first = pd.Series(history.visits_ago).groupby(history.customer).transform("max")
        later = int((history.visits_ago < first).sum())
        repeats = len(history.label) - len(count_pairs(history.customer, history.label)[0])
        if repeats < later // 100:
            selected.append(task)
    return selected


def comparison_cases(data: PreparedData, cutoff: str, horizon_days: float | None = None) -> EvaluationCases:
    """Finds the cases on which methods are compared: those of [`cases_at`], and in [`tasks_without_repeats`] as
    [`unseen_only`] makes them, so that all methods rank what can be a target."""
    cases = cases_at(data, cutoff, horizon_days)
    return unseen_only(data.rows, cases, tasks_without_repeats(data.rows, list(cases.targets)))
