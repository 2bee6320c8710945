# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation cases: which customers are evaluated at a cutoff, with their histories and targets.

A case is a customer with at least `min_history` target events before the cutoff and a target visit after it. The
target is the first such visit: its events on or after the cutoff, for the validation cutoff also before the test
cutoff. If a visit lies on both sides of a cutoff, its events before the cutoff are history and the others may be
targets. A target event is one with a label in any task other than the token type, because an event of which nothing
else is known is nothing to predict.

There are two variants, for a model and all baselines alike. With a `Horizon` the targets are the labels of all target
events within some days. `unseen_only` removes the labels that a customer had before the cutoff from the targets and
from the ranking; `comparison_cases` does so in tasks in which nobody has a label twice.

Everything is computed on the flat Arrow columns of prepared rows, a batch of customers at a time.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.cases import (
    ENDS,
    CaseEvents,
    arrow_batches,
    check_cutoff,
    compute_offsets,
    count_pairs,
    flat_values,
    select_rows,
    tell_unseen,
)
from modeling_mcm.data.dataset import PreparedData
from modeling_mcm.evaluation.histories import task_histories
from modeling_mcm.events_mcm import SECONDS_PER_DAY, number_groups, run_starts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetEvents:
    """The labels of a task in each case, as one flat array with offsets."""

    # (cases + 1,): Case c has the labels `labels[offsets[c]:offsets[c + 1]]`, none if no event has a label
    offsets: NDArray[np.int64]
    # (labels,): Label ids, one for each event with a value, so that labels may repeat; those that training has never
    # seen are negative
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, case: int) -> NDArray[np.int64]:
        return self.labels[self.offsets[case] : self.offsets[case + 1]]


@dataclass(frozen=True)
class Horizon:
    """The days after a cutoff whose labels are the targets, in the place of those of the next visit. `start` is the
    cutoff, in seconds since 1970. A `ValueError` is raised if the days are no positive finite number."""

    days: float
    start: int

    def __post_init__(self) -> None:
        if not 0 < self.days < np.inf:
            raise ValueError(f"Found a horizon of {self.days:g} days; expected a positive number of days, such as 30.")

    @property
    def end(self) -> float:
        """The first time after the horizon, in seconds since 1970."""
        return self.start + self.days * SECONDS_PER_DAY


@dataclass(frozen=True)
class EvaluationCases:
    """The cases at one cutoff, in the order of the rows."""

    cutoff: str
    rows: NDArray[np.int64]  # (cases,): index of each case among the prepared rows
    customer_ids: list[str]  # id of each case's customer
    history_end: NDArray[np.int64]  # (cases,): number of the customer's stored events before the cutoff
    targets: dict[str, TargetEvents]  # the target labels of each task
    # (cases,): Number of visits with a target event before the cutoff
    history_visits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    horizon_days: float | None = None  # number of days of the horizon; `None` if the target is the next visit
    # For each task in which not all labels are ranked, the distinct labels that each customer had before the cutoff,
    # which are not
    seen: dict[str, TargetEvents] = field(default_factory=dict)
    # Time at which a model scores the customers, in seconds since 1970, of [`~data.schema.EventSchema.scoring_time`];
    # `None`: at the last event of each
    as_of: int | None = None

    def __len__(self) -> int:
        return len(self.rows)


def find_cases(
    rows: Any,
    cutoff: str,
    min_history: int = 5,
    token_type: str = "token_type",
    batch_size: int = 1024,
    horizon: Horizon | None = None,
) -> EvaluationCases:
    """Finds the evaluation cases at a cutoff and the target events of all tasks.

    Args:
        token_type (`str`): Name of the token type feature. As a task it makes no target event, unless it is the only
            task.
        horizon (`Horizon`, *optional*): The days whose labels are the targets, each label once; a case then has a
            target event in them. If the horizon ends more than a day after the last event of the data, a warning
            says so. By default the targets are those of the next visit.

    Raises:
        ValueError: If the cutoff is unknown, the rows have no task or lack a column, or no customer is a case.
    """
    check_cutoff(cutoff)
    tasks = [name.removeprefix("task_") for name in rows.column_names if name.startswith("task_")]
    if not tasks:
        raise ValueError(
            f"The rows have no task column; their columns are {', '.join(rows.column_names)}. Expected prepared rows "
            "with columns such as task_product_type."
        )
    columns = ["customer_id", "visits", *ENDS, *(["times"] if horizon else [])]
    columns += [f"{kind}_{task}" for kind in ("task", "unseen") for task in tasks]
    parts, first_row, latest = [], 0, -np.inf
    for table in arrow_batches(rows, columns, batch_size):
        part, until = _cases_of_batch(table, cutoff, tasks, token_type, min_history, first_row, horizon)
        parts.append(part)
        latest = max(latest, until)
        first_row += len(table)

    cases = EvaluationCases(
        cutoff=cutoff,
        rows=_concatenated([part.rows for part in parts]),
        history_end=_concatenated([part.history_end for part in parts]),
        history_visits=_concatenated([part.history_visits for part in parts]),
        customer_ids=[customer for part in parts for customer in part.customer_ids],
        targets={task: _joined([part.targets[task] for part in parts]) for task in tasks},
        horizon_days=horizon.days if horizon else None,
    )
    if not len(cases):
        target = f"one within {horizon.days:g} days from it" if horizon else "a target visit after it"
        raise ValueError(
            f"No evaluation case at the {cutoff} cutoff among {first_row} customers; expected customers with at least "
            f"{min_history} target events before it and {target}. Check the cutoff dates and min_history"
            f"{', or take a longer horizon' if horizon else ''}."
        )
    if horizon and horizon.end > latest + SECONDS_PER_DAY:
        logger.warning(
            f"The horizon of {horizon.days:g} days from the {cutoff} cutoff is longer than the data: the last event "
            f"that counts is {(latest - horizon.start) / SECONDS_PER_DAY:.1f} days after the cutoff"
            f"{', because validation reads nothing after the test cutoff' if cutoff == 'validation' else ''}. The "
            "targets are the labels until then; choose a horizon that the data cover."
        )
    return cases


def cases_at(
    data: PreparedData,
    cutoff: str,
    rows: Any = None,
    min_history: int | None = None,
    horizon_days: float | None = None,
) -> EvaluationCases:
    """Finds the cases of a prepared data set, or of some of its rows, as its schema defines them, with [`find_cases`];
    `min_history` and a [`Horizon`] of `horizon_days` go before the schema's number and the next visit."""
    schema = data.schema
    horizon = Horizon(horizon_days, schema.cutoff_seconds(cutoff)) if horizon_days else None
    rows = data.rows if rows is None else rows
    min_history = schema.min_history if min_history is None else min_history
    cases = find_cases(rows, cutoff, min_history, schema.token_feature.name, horizon=horizon)
    return replace(cases, as_of=schema.scoring_time(cutoff))


def _cases_of_batch(
    table: pa.Table,
    cutoff: str,
    tasks: Sequence[str],
    token_type: str,
    min_history: int,
    first_row: int,
    horizon: Horizon | None,
) -> tuple[EvaluationCases, float]:
    """Finds the cases of a batch of customers, and with a horizon the time of the last event that counts."""
    events = CaseEvents.read(table, cutoff, tasks, token_type)
    row, visit = events.row, flat_values(table, "visits")
    past = np.flatnonzero(events.history)
    new_visit = run_starts(row[past], visit[past])
    history_visits = np.bincount(row[past][new_visit], minlength=len(table))
    candidates = np.flatnonzero(events.future)
    latest = -np.inf
    if horizon:
        times = flat_values(table, "times")
        latest = float(np.max(times[events.visible], initial=np.iinfo(np.int64).min))
        targeted = candidates[times[candidates] < horizon.end]
    else:
        owner, first = np.unique(row[candidates], return_index=True)
        target_visit = np.full(len(table), -1, dtype=np.int64)
        target_visit[owner] = visit[candidates[first]]
        targeted = candidates[visit[candidates] == target_visit[row[candidates]]]
    is_case = events.is_case(min_history, targeted)

    targeted = targeted[is_case[row[targeted]]]
    rows = np.flatnonzero(is_case)
    case_of_row = np.cumsum(is_case) - 1
    targets = {}
    for task in tasks:
        label = flat_values(table, f"task_{task}")
        with_label = targeted[label[targeted] > 0]
        unseen = flat_values(table, f"unseen_{task}")[with_label]
        case, case_labels = case_of_row[row[with_label]], tell_unseen(label[with_label], unseen)
        if horizon:
            case, case_labels, _ = count_pairs(case, case_labels)
        targets[task] = _ragged(case, case_labels, len(rows))
    customer_ids = table["customer_id"].take(rows).to_pylist()
    history_end = events.history_end[rows]
    cases = EvaluationCases(cutoff, first_row + rows, customer_ids, history_end, targets, history_visits[rows])
    return cases, latest


def _ragged(case: NDArray[np.int64], label: NDArray[np.int64], cases: int) -> TargetEvents:
    return TargetEvents(compute_offsets(np.bincount(case, minlength=cases)), label)


def _joined(parts: Sequence[TargetEvents]) -> TargetEvents:
    counts, labels = [np.diff(part.offsets) for part in parts], [part.labels for part in parts]
    return TargetEvents(compute_offsets(_concatenated(counts)), _concatenated(labels))


def _concatenated(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def seen_labels(rows: Any, cutoff: str, task: str) -> TargetEvents:
    """Finds the distinct labels that the customers of prepared rows had in a task before a cutoff."""
    histories = task_histories(rows, task, cutoff)
    return _joined([_ragged(*count_pairs(each.customer, each.label)[:2], len(each)) for each in histories])


def unseen_only(rows: Any, cases: EvaluationCases, tasks: Sequence[str] | None = None) -> EvaluationCases:
    """Removes labels that a customer had before the cutoff from the targets and from the ranking.

    All events of the customer before the cutoff count, also those that a model's window leaves out. A label that
    training has never seen stays a target, because nothing says whether the customer had it before. No ranking has it.

    Returns the same cases with fewer targets, and with `seen`, in some tasks or in all. A task in which no case has
    a target left is removed, with a warning; a `ValueError` is raised if no task is left. `rows` are the prepared rows
    that the cases are of.
    """
    history_rows = select_rows(rows, cases.rows)
    targets, seen = dict(cases.targets), {}
    for task in cases.targets if tasks is None else tasks:
        known, events = seen_labels(history_rows, cases.cutoff, task), cases.targets[task]
        case = number_groups(np.diff(events.offsets))[0]
        size = int(max(np.max(known.labels, initial=0), np.max(events.labels, initial=0))) + 1
        owner = number_groups(np.diff(known.offsets))[0]
        is_new = ~np.isin(case * size + events.labels, owner * size + known.labels) | (events.labels < FIRST_LABEL)
        if is_new.any():
            targets[task], seen[task] = _ragged(case[is_new], events.labels[is_new], len(cases)), known
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


def tasks_without_repeats(rows: Any, tasks: Sequence[str]) -> list[str]:
    """Selects the tasks in which customers don't have a label again, such as films that nobody rates twice: in the
    training period less than one in 100 labels of later visits, of at least 100, is one that the customer had in an
    earlier visit."""
    selected = []
    for task in tasks:
        later = repeats = 0
        for history in task_histories(rows, task, "validation"):
            once = history.once_a_visit()
            customer, visits_ago = history.customer[once], history.visits_ago[once]
            first = np.zeros(len(history), np.int64)
            np.maximum.at(first, customer, visits_ago)
            later += int((visits_ago < first[customer]).sum())
            repeats += len(customer) - len(count_pairs(customer, history.label[once])[0])
        if repeats < later // 100:
            selected.append(task)
    return selected


def comparison_cases(
    data: PreparedData, cutoff: str, min_history: int | None = None, horizon_days: float | None = None
) -> EvaluationCases:
    """Finds the cases on which methods are compared: those of [`cases_at`], and in [`tasks_without_repeats`] as
    [`unseen_only`] makes them, so that all methods rank what can be a target."""
    cases = cases_at(data, cutoff, min_history=min_history, horizon_days=horizon_days)
    return unseen_only(data.rows, cases, tasks_without_repeats(data.rows, list(cases.targets)))
