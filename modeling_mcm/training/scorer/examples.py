# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The first step: draws the examples that the scorer is fitted, calibrated and judged on.

An example is a customer with a cutoff: the start of a visit in the training period, or a validation case.

Shapes: C customers, N examples, B examples of a batch, L labels of the longest next visit, V labels of a task, Q
questions.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import ENDS, CaseEvents, load_columns
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.scorer_mcm import HORIZON_DAYS, NEXT_VISIT, QUESTIONS, WITHIN

logger = logging.get_logger(__name__)
EXAMPLES, HELD_OUT, VALIDATION_EXAMPLES = 4_000, 5_000, 1_500
LEAST_SEEING = 0.1  # share of the examples that see the whole horizon; with fewer, all teach what comes within it
FEW, DRAWS = 1_000, 4  # number of visits up to which a fit depends on the draw; and of draws that are averaged
ENOUGH = 400  # number of validation cases of which at most one half chooses, and the others judge


class ExampleTable(NamedTuple):
    """One row a customer and a cutoff.

    Attributes:
        row (`NDArray[int64]` of shape `(N,)`): Index of the customer among the prepared rows.
        end, stop (`NDArray[int64]` of shape `(N,)`): Number of the customer's events before the cutoff, and before the
            end of the period in which targets are looked for.
        elapsed (`NDArray[float64]` of shape `(N,)`): Days from the last event before the cutoff to the time of the
            prediction.
        day (`NDArray[float64]` of shape `(N,)`): That time in days, if it is in the training period and other
            customers' later events are not counted; else NaN. Those of a log that leaves one out are counted, as they
            are when the model is used.
        left (`NDArray[float64]` of shape `(N,)`): Days from that time to the end of the training period. With less
            than `HORIZON_DAYS` nobody knows all that came within them. Infinite where that end cuts no targets.
    """

    row: NDArray
    end: NDArray
    stop: NDArray
    elapsed: NDArray
    day: NDArray
    left: NDArray

    def take(self, chosen: NDArray) -> "ExampleTable":
        """Selects some examples."""
        return ExampleTable(*(column[chosen] for column in self))


class Examples(NamedTuple):
    """The examples of a log.

    Attributes:
        training ([`ExampleTable`]): Examples of the training period.
        further (`list[ExampleTable]`): Further draws of the same visits, where these are few, without an encoder.
        held_out ([`ExampleTable`], *optional*): The latest ones, which the encoder must not learn from; with an
            encoder.
        ends (`NDArray[int64]` of shape `(C,)`, *optional*): Number of each customer's events that it may learn from.
        validation ([`ExampleTable`], *optional*): Validation cases that choose epochs, where the data set has any.
        judging ([`ExampleTable`], *optional*): Those that judge an encoder, in random order: all others, because among
            epochs the best one was also a lucky one; or the same if there are few.
        questions (`tuple[int]`): Those that validation answers.
    """

    training: ExampleTable
    further: list[ExampleTable]
    held_out: ExampleTable | None
    ends: NDArray | None
    validation: ExampleTable | None
    judging: ExampleTable | None
    questions: tuple[int, ...]


def draw_examples(data: PreparedData, seed: int, has_encoder: bool) -> Examples:
    """Draws the examples of a log. Arrays are on the CPU.

    In, prepared rows, of which `validation_end` and `test_end` say which events are of which period:

        customer | times in days     | visits        | items         | validation_end | test_end
        0        | 1.0 1.0 8.0 9.5   | 0 0 1 2       | 5 7 5 9       | 3              | 4
        1        | 2.0 4.0 4.0 7.0   | 0 1 1 2       | 6 6 8 6       | 4              | 4
        2        | 3.0               | 0             | 5             | 1              | 1

    Out, one row a customer and a cutoff; the last one is of validation:

        row | end | stop | elapsed | day | left
        0   | 2   | 3    | 3.5     | 4.5 | 3.5
        1   | 1   | 4    | 1.2     | 3.2 | 4.8
        0   | 3   | 4    | 1.0     | NaN | infinite

    Raises `ValueError` if the training period has no example.
    """
    held_out, ends = hold_out(data, seed) if has_encoder else (None, None)
    start, end = (data.schema.scoring_time(cutoff) for cutoff in ("validation", "test"))
    sees_horizon = start is not None and end is not None and end - start >= HORIZON_DAYS * SECONDS_PER_DAY
    questions = (NEXT_VISIT, WITHIN) if sees_horizon else (NEXT_VISIT,)
    training, cases = (
        draw_training(data, seed),
        draw_validation(data, seed, None if has_encoder else VALIDATION_EXAMPLES),
    )
    number = DRAWS if len(training.row) <= FEW and not has_encoder else 1
    further = [draw_training(data, seed + place) for place in range(1, number)]
    if cases is None:
        return Examples(training, further, held_out, ends, None, None, questions)
    total = len(cases.row)
    number = min(VALIDATION_EXAMPLES, total // 2 if has_encoder and total >= ENOUGH else total)
    if has_encoder and total < ENOUGH:
        logger.info(f"{total} validation cases are few: those that choose the epoch judge the encoder, too.")
    validation, judging = cases.take(np.argsort(cases.row[:number])), cases.take(np.arange(number % total, total))
    return Examples(training, further, held_out, ends, validation, judging if has_encoder else None, questions)


def read_visit_starts(data: PreparedData) -> ExampleTable:
    """The starts of visits with a target in the training period that follow enough earlier ones, customer after
    customer. Here `day` is that of the last event before the visit, NaN in a log that leaves one visit out; `elapsed`
    are the days until the visit, and `left` those until the last event of the period. The schema says which events
    are targets, and what an example needs."""
    schema, token = data.schema, data.schema.token_feature.name
    columns = ["times", "visits", *ENDS, *(f"task_{task}" for task in schema.tasks)]
    batch = load_columns(data.rows, columns)
    events = CaseEvents.read(batch, "validation", schema.tasks, token)
    row, place, is_target = batch.row, batch.places, events.history
    times, visits = batch.column("times"), batch.column("visits")
    earlier: NDArray = np.cumsum(is_target) - is_target  # (events,): targets before each event
    earlier -= earlier[batch.starts[row]]
    is_first = run_starts(row, visits)
    visit = np.cumsum(is_first) - 1  # (events,): index among the visits of all customers
    targets = np.flatnonzero(is_target)
    targets = targets[run_starts(visit[targets])]  # the first one of each visit
    targets = targets[earlier[targets] >= schema.min_history]  # (N,)
    opens = np.flatnonzero(is_first)[visit[targets]]  # (N,): the visit's first event, also if it is no target
    row, before = row[opens], times[opens - 1] / SECONDS_PER_DAY
    gap = (times[opens] / SECONDS_PER_DAY - before).clip(min=1 / SECONDS_PER_DAY)
    left = times[place < events.history_end[batch.row]].max(initial=0) / SECONDS_PER_DAY - before
    if schema.scoring_time("validation") is None:
        before, left = np.full((2, len(row)), [[np.nan], [np.inf]])
    return ExampleTable(row, place[opens], events.history_end[row], gap, before, left)


def draw_cutoffs(starts: ExampleTable, generator: np.random.Generator) -> ExampleTable:
    """Examples whose cutoffs are anywhere between the start of a visit and the event before, or at that event in a log
    that leaves one visit out. Those of the last `HORIZON_DAYS` of the period do not teach what comes within them,
    unless hardly any others are left: then all do, and the log says so."""
    days = generator.random(len(starts.row)) * np.where(np.isnan(starts.day), 0.0, starts.elapsed)
    left = starts.left - days
    if len(left) and (left >= HORIZON_DAYS).mean() < LEAST_SEEING:
        left = np.full(len(left), np.inf)
        logger.info(f"The training period is short: what comes within {HORIZON_DAYS:g} days is cut at its end.")
    return starts._replace(elapsed=days, day=starts.day + days, left=left)


def draw_training(data: PreparedData, seed: int, most: int = EXAMPLES) -> ExampleTable:
    """Draws as many cutoffs as there are starts of visits in the training period, at most so many. Later visits of a
    customer are likelier. A cutoff at any time falls into a gap as often as the gap is long, so visits after long
    ones are likelier, too; where one visit of each customer is left out, customers are equally likely instead. Raises
    `ValueError` if there is no such visit."""
    generator, starts = np.random.default_rng(seed), read_visit_starts(data)
    if not len(starts.row):
        raise ValueError(
            f"{data.folder} has no visit in its training period that follows {data.schema.min_history} target "
            "events, so nothing can be fitted: move the cutoffs of the event schema, or lower min_history."
        )
    weights = np.maximum(starts.end / starts.stop, 0.05)
    weights *= 1 / np.bincount(starts.row, weights)[starts.row] if np.isnan(starts.day[0]) else starts.elapsed
    total = len(weights)
    chosen = generator.choice(total, min(most, total), p=weights / weights.sum())
    return draw_cutoffs(starts.take(np.sort(chosen)), generator)


def hold_out(data: PreparedData, seed: int) -> tuple[ExampleTable, NDArray]:
    """Holds the latest visits of the training period out of the encoder's training: of all those that follow others
    a fifth, and at most so many. In a log that leaves one out they are the latest ones of customers, who are drawn.

    Returns:
        `tuple`: an example of each such visit; and for each row the number of events that are left, `(C,)`.
    """
    generator, starts = np.random.default_rng(seed), read_visit_starts(data)
    most, ends = min(HELD_OUT, len(starts.row) // 5), np.array(data.rows["validation_end"])
    if data.schema.scoring_time("validation") is None:
        number = np.bincount(starts.row, minlength=len(ends))  # (C,)
        from_last = np.cumsum(number)[starts.row] - np.arange(len(starts.row))  # (N,): 1 is a customer's last visit
        latest = 1 + np.searchsorted(np.bincount(from_last)[1:].cumsum(), most)  # of a customer, the fewest
        customers = generator.permutation(len(ends))
        drawn = customers[: np.searchsorted(np.minimum(number, latest)[customers].cumsum(), most, "right")]
        chosen = np.flatnonzero((from_last <= latest) & np.isin(starts.row, drawn))
    else:
        chosen = np.sort(np.argsort(starts.day + starts.elapsed, kind="stable")[len(starts.row) - most :])
    np.minimum.at(ends, starts.row[chosen], starts.end[chosen])
    return draw_cutoffs(starts.take(chosen), generator), ends


def draw_validation(data: PreparedData, seed: int, most: int | None = VALIDATION_EXAMPLES) -> ExampleTable | None:
    """Draws validation cases, at most so many; none where the data set has none."""
    if data.manifest.counts.get("validation_cases") == 0:
        return None
    cases = cases_at(data, "validation")
    chosen = np.random.default_rng(seed).permutation(len(cases))[:most]
    row, end, elapsed = cases.rows[chosen], cases.history_end[chosen], np.zeros(len(chosen))
    if cases.as_of is not None:
        batch = load_columns(data.rows.select(row), ["times"])
        events = batch.select(batch.places < end[batch.row])
        latest = np.maximum.reduceat(events.column("times"), events.starts)
        elapsed = ((cases.as_of - latest) / SECONDS_PER_DAY).clip(min=0)
    stop, (day, left) = np.asarray(data.rows["test_end"])[row], np.full((2, len(row)), [[np.nan], [np.inf]])
    return ExampleTable(row, end, stop, elapsed, day, left)


def find_later(rows: Customers, examples: ExampleTable) -> NDArray:
    """Events of a batch after the examples' cutoffs, within `HORIZON_DAYS` of the predictions."""
    row, times = rows.row, rows.column("times")
    until = times[rows.starts + examples.end - 1] + (examples.elapsed + HORIZON_DAYS) * SECONDS_PER_DAY  # (B,)
    comes = (rows.places >= examples.end[row]) & (rows.places < examples.stop[row])
    return np.flatnonzero(comes & (times <= until[row]))


def mark_targets(
    labels: torch.Tensor, later: tuple[NDArray, NDArray] | None, size: int, in_both: bool
) -> torch.Tensor:
    """Marks the labels that are targets of each question, `(Q, B, V)`.

    Args:
        labels (`torch.LongTensor` of shape `(B, L)`): Labels of the next visit; below `FIRST_LABEL`: none.
        later (`tuple` of two `NDArray[int64]`, *optional*): Example and label of the events within `HORIZON_DAYS`.
            `None`: the times of the log mean nothing.
        size (`int`): V.
        in_both (`bool`): Whether labels of the next visit are targets of both questions, whenever they come.
    """
    targets = torch.zeros(QUESTIONS, len(labels), size, dtype=torch.bool, device=labels.device)
    examples = torch.arange(len(labels), device=labels.device)[:, None]  # (B, 1)
    targets[: 1 + in_both, examples, labels.clamp(min=0)] = True
    if later is not None:
        targets[WITHIN, later[0], later[1]] = True
    targets[..., :FIRST_LABEL] = False
    return targets
