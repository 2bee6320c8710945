# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation cases: which customers are evaluated at a cutoff, with their histories and targets.

A case is a customer with at least `min_history` target events before the cutoff and a target visit after it. The
target is the first such visit: its events on or after the cutoff, for the validation cutoff also before the test
cutoff. If a visit lies on both sides of a cutoff, its events before the cutoff are history and the others may be
targets. A target event is one with a label in any task other than the token type, because an event of which nothing
else is known is nothing to predict.

There are two variants, for a model and all baselines alike. With a horizon the targets are the labels of all target
events within some days. `unseen_only` removes the labels that a customer had before the cutoff from the targets and
from the ranking; `comparison_cases` does so in tasks in which nobody has a label twice.

Everything is computed on the flat Arrow columns of prepared rows.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array

from modeling_mcm.configuration_mcm import FIRST_LABEL, MOST_IDS
from modeling_mcm.data.cases import ENDS, CaseEvents, count_pairs, load_columns, tell_unseen
from modeling_mcm.data.dataset import PreparedData
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts

from .histories import read_history

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
    counted = np.ones(len(history.label)), (history.customer, history.label)
    return csr_array(counted, shape=(len(history), MOST_IDS))


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
        first = np.zeros(len(history), np.int64)
        np.maximum.at(first, history.customer, history.visits_ago)
        later = int((history.visits_ago < first[history.customer]).sum())
        repeats = len(history.label) - len(count_pairs(history.customer, history.label)[0])
        if repeats < later // 100:
            selected.append(task)
    return selected


def comparison_cases(data: PreparedData, cutoff: str, horizon_days: float | None = None) -> EvaluationCases:
    """Finds the cases on which methods are compared: those of [`cases_at`], and in [`tasks_without_repeats`] as
    [`unseen_only`] makes them, so that all methods rank what can be a target."""
    cases = cases_at(data, cutoff, horizon_days)
    return unseen_only(data.rows, cases, tasks_without_repeats(data.rows, list(cases.targets)))
