# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the examples that the scorer of labels is fitted on, and computes their features.

An example is a customer with a cutoff: the start of a visit in the training period, or a validation case. Its features
say what was known then: how popular labels were, counted of customers in other folds.

Shapes: B examples of a batch, T tasks, V labels of a task, N candidates of all examples, F features of a candidate.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.data.cases import (
    IGNORED,
    arrow_batches,
    deciding_tasks,
    flat_values,
    locate_events,
)
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.inputs_mcm import RowBatch
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import (
    HORIZON_DAYS,
    NEXT_VISIT,
    QUESTIONS,
    WITHIN,
    LabelTables,
    candidate_features,
    read_histories,
)
from modeling_mcm.training.scorer_counts import FOLDS, PERIODS, LabelCounts, LabelEvents

EXAMPLES, HELD_OUT, VALIDATION_EXAMPLES, BATCH = 4_000, 5_000, 1_500, 64
NEGATIVES = 60  # about as many candidates of an example that are no targets are kept, drawn uniformly
STALE = 4  # largest number of parts of the period by which counts are old, because a model is used after its training


class Example(NamedTuple):
    """A customer with a cutoff.

    Attributes:
        row (`int`): Index of the customer among the prepared rows.
        end, stop (`int`): Number of the customer's events before the cutoff, and before the end of the period in which
            targets are looked for.
        elapsed (`float`): Days from the last event before the cutoff to the time of the prediction.
        day (`float`, *optional*): That time in days, if it is in the training period and other customers' later events
            are not counted. Those of a log that leaves one out are, as they are when the model is used.
    """

    row: int
    end: int
    stop: int
    elapsed: float
    day: float | None = None


class LabelExamples(NamedTuple):
    """Candidates of a task in some examples.

    Attributes:
        example, label (`torch.LongTensor` of shape `(N,)`): The candidates; examples are ascending.
        features (`torch.FloatTensor` of shape `(N, F)`): Their features.
        is_target (`torch.BoolTensor` of shape `(N, Q)`): Whether a candidate is a target of each question: it comes in
            the next visit, or within `HORIZON_DAYS`.
        log_kept (`torch.FloatTensor` of shape `(N,)`): Log of the share of such candidates that were kept.
        num_targets (`torch.LongTensor` of shape `(examples, Q)`): Number of each example's targets, also of those that
            are no candidates.
        num_unseen (`torch.LongTensor` of shape `(examples,)`): Number of values in the next visit that training has
            never seen. They are further targets, which no score reaches.
    """

    example: torch.Tensor
    label: torch.Tensor
    features: torch.Tensor
    is_target: torch.Tensor
    log_kept: torch.Tensor
    num_targets: torch.Tensor
    num_unseen: torch.Tensor

    @classmethod
    def join(cls, parts: Sequence["LabelExamples"]) -> "LabelExamples":
        """Joins parts whose examples have different numbers; the numbers of targets of the last part are those of
        all."""
        columns = [torch.cat(column) for column in zip(*(part[:-2] for part in parts), strict=True)]
        order = columns[0].argsort(stable=True)
        return cls(*[*(column[order] for column in columns), *parts[-1][-2:]])

    def compute_ndcg(self, scores: torch.Tensor, question: int = NEXT_VISIT, k: int = 10) -> torch.Tensor:
        """NDCG at k of the candidates' scores `(N,)` for a question in each example, NaN without a target."""
        order = scores.argsort(descending=True, stable=True)
        order = order[self.example[order].argsort(stable=True)]
        rank = torch.arange(len(order)) - torch.searchsorted(self.example, self.example) + 2.0
        gains = torch.where(self.is_target[order, question] & (rank < k + 2), 1 / rank.log2(), 0.0)
        ideal = torch.cat([torch.zeros(1), (1 / torch.arange(2.0, k + 2).log2()).cumsum(0)])
        sums = torch.zeros(len(self.num_targets)).index_add(0, self.example[order], gains)
        return sums / ideal[(self.num_targets[:, question] + self.num_unseen).clamp(max=k)]


class VisitStarts(NamedTuple):
    """The starts of visits with a target in the training period that follow enough earlier ones, customer after
    customer.

    Attributes:
        row, end, stop (`NDArray[int64]` of shape `(N,)`): As in [`Example`].
        before, gap (`NDArray[float64]` of shape `(N,)`): Day of the last event before the visit, and days until it.
    """

    row: NDArray[np.int64]
    end: NDArray[np.int64]
    stop: NDArray[np.int64]
    before: NDArray[np.float64]
    gap: NDArray[np.float64]

    @classmethod
    def read(cls, rows: Any, schema: EventSchema) -> "VisitStarts":
        """Reads the visits of prepared rows. The schema says which events are targets, and what an example needs."""
        parts, first = [], 0
        columns = [f"task_{task}" for task in deciding_tasks(schema.tasks, schema.token_feature.name)]
        for table in arrow_batches(rows, ["times", "visits", "validation_end", *columns]):
            (row, index), ends = locate_events(table), flat_values(table, "validation_end").astype(np.int64)
            times, visits = flat_values(table, "times"), flat_values(table, "visits")
            is_target = np.any([flat_values(table, name) > 0 for name in columns], axis=0) & (index < ends[row])
            earlier = np.cumsum(is_target) - is_target
            earlier -= earlier[np.arange(len(row)) - index]  # at the row's first event
            opens = np.flatnonzero(is_target)
            opens = opens[run_starts(row[opens], visits[opens])]
            opens = opens[(earlier[opens] >= max(schema.min_history, 1)) & (index[opens] > 0)]
            row, before = row[opens], times[opens - 1] / SECONDS_PER_DAY
            gap = (times[opens] / SECONDS_PER_DAY - before).clip(min=1 / SECONDS_PER_DAY)
            parts.append(cls(row + first, index[opens], ends[row], before, gap))
            first += len(table)
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def make_examples(self, chosen: NDArray, generator: np.random.Generator, leaves_one_out: bool) -> list[Example]:
        """An example of each chosen visit, whose cutoff is anywhere between the visit and the event before."""
        days = generator.random(len(chosen)) * self.gap[chosen] * (not leaves_one_out)
        then = [None] * len(chosen) if leaves_one_out else (self.before[chosen] + days).tolist()
        values = (values[chosen].tolist() for values in (self.row, self.end, self.stop))
        return list(map(Example, *values, days.tolist(), then))


def draw_examples(rows: Any, data: PreparedData, seed: int, most: int = EXAMPLES) -> list[Example]:
    """Draws as many cutoffs as there are starts of visits in the training period, at most so many. Later visits of a
    customer are likelier. A cutoff at any time falls into a gap as often as the gap is long, so visits after long
    ones are likelier, too; where one visit of each customer is left out, customers are equally likely instead."""
    generator, starts = np.random.default_rng(seed), VisitStarts.read(rows, data.schema)
    if not len(starts.row):
        return []
    leaves_one_out = data.schema.scoring_time("validation") is None
    weights = np.maximum(starts.end / starts.stop, 0.05)
    weights *= 1 / np.bincount(starts.row, weights)[starts.row] if leaves_one_out else starts.gap
    total = len(weights)
    chosen = np.sort(generator.choice(total, min(most, total), p=weights / weights.sum()))
    return starts.make_examples(chosen, generator, leaves_one_out)


def hold_out(
    rows: Any, data: PreparedData, seed: int, most: int = HELD_OUT
) -> tuple[list[Example], NDArray[np.int64]]:
    """Holds the latest visits of the training period out of the encoder's training: of all those that follow others
    a fifth, and at most so many. In a log that leaves one out they are the latest ones of customers, who are drawn.

    Returns:
        `tuple`: an example of each such visit; and for each row the number of events that are left, `(rows,)`.
    """
    generator, starts = np.random.default_rng(seed), VisitStarts.read(rows, data.schema)
    most, leaves_one_out = min(most, len(starts.row) // 5), data.schema.scoring_time("validation") is None
    if leaves_one_out:
        number = np.bincount(starts.row, minlength=len(rows))
        from_last = np.cumsum(number)[starts.row] - np.arange(len(starts.row))  # 1 is a customer's last visit
        latest = 1 + np.searchsorted(np.bincount(from_last)[1:].cumsum(), most)  # of a customer, the fewest
        customers = generator.permutation(len(rows))
        drawn = customers[: np.searchsorted(np.minimum(number, latest)[customers].cumsum(), most, "right")]
        chosen = np.flatnonzero((from_last <= latest) & np.isin(starts.row, drawn))
    else:
        chosen = np.sort(np.argsort(starts.before + starts.gap, kind="stable")[len(starts.row) - most :])
    ends = np.array(rows["validation_end"])
    np.minimum.at(ends, starts.row[chosen], starts.end[chosen])
    return starts.make_examples(chosen, generator, leaves_one_out), ends


def draw_validation(rows: Any, data: PreparedData, seed: int, most: int = VALIDATION_EXAMPLES) -> list[Example]:
    """Draws validation cases; none where the data set has none."""
    if data.manifest.counts.get("validation_cases") == 0:
        return []
    cases = cases_at(data, "validation", rows)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(cases))[:most])
    as_of = data.schema.scoring_time("validation")
    ends = np.asarray(rows["test_end"])
    result = []
    for table, index in zip(
        PreparedRows(rows, cases.rows[chosen]).__getitems__(list(range(len(chosen)))), chosen, strict=True
    ):
        row, end = int(cases.rows[index]), int(cases.history_end[index])
        elapsed = 0.0 if as_of is None or not end else (as_of - float(table["times"][:end].max())) / SECONDS_PER_DAY
        result.append(Example(row, end, int(ends[row]), max(elapsed, 0.0)))
    return result


class ExampleReader:
    """Reads examples, and computes the features of their candidates in each task.

    Args:
        rows (`datasets.Dataset`): Prepared rows.
        data (`PreparedData`): The data set.
        config ([`MCMConfig`]): Config of the model.
        seed (`int`): Seed of the folds of customers.

    Attributes:
        counts (`list[LabelCounts]`): Counts of each task.
    """

    def __init__(self, rows: Any, data: PreparedData, config: MCMConfig, seed: int = 0):
        self.rows, self.config = PreparedRows(rows), config
        self.folds = np.random.default_rng(seed).integers(0, FOLDS, len(rows))
        sizes = config.label_sizes.items()
        self.counts = [LabelCounts(LabelEvents.read(rows, task, size), self.folds) for task, size in sizes]
        self.collator = MCMCollator(data.extractor, config, "evaluate", cutoff="validation")

    def batches(self, examples: Sequence[Example]) -> Iterator[tuple[NDArray, RowBatch, dict[str, torch.Tensor]]]:
        """Indices of examples of similar length, their rows, and model inputs with `labels` and `as_of`."""
        for chosen in batches_by_length([example.end for example in examples], BATCH):
            row, end, stop, elapsed, _ = zip(*(examples[index] for index in chosen), strict=True)
            rows = self.rows.__getitems__(list(row))
            rows = RowBatch(rows.columns | {"validation_end": list(end), "test_end": list(stop)}, rows.lengths)
            batch = self.collator(rows)
            batch["as_of"] = batch["event_times"].amax(1) + torch.tensor(elapsed)
            yield chosen, rows, batch

    def read(
        self,
        examples: Sequence[Example],
        tables: Sequence[LabelTables],
        generator: torch.Generator,
        fold: int | None = None,
        encoder: MCMForMultiTaskRecommendation | None = None,
    ) -> list[LabelExamples]:
        """Computes the candidates of each task.

        Args:
            examples (`Sequence[Example]`): The examples.
            tables (`Sequence[LabelTables]`): Tables of each task.
            generator (`torch.Generator`): Of the draw of candidates.
            fold (`int`, *optional*): Fold of training examples, whose counts are those of the other folds, as they
                were on an example's day. Of the candidates that are no targets some `NEGATIVES` are kept. Default:
                all, of validation.
            encoder ([`MCMForMultiTaskRecommendation`], *optional*): Model whose readout gives features, too.
        """
        parts: list[list[LabelExamples]] = [[] for _ in tables]
        num_targets = torch.zeros(len(tables), len(examples), QUESTIONS, dtype=torch.long)
        num_unseen = torch.zeros(len(tables), len(examples), dtype=torch.long)
        for chosen, rows, batch in self.batches(examples):
            readout = None if encoder is None else encoder.readouts(batch)
            age = torch.randint(STALE + 1, (len(chosen),), generator=generator).numpy()
            days = [examples[index].day for index in chosen]
            then = (
                ()
                if fold is None
                else zip(*(_read_counts(each, fold, days, age) for each in self.counts), strict=True)
            )
            found = candidate_features(read_histories(self.config, batch), tables, readout, *map(list, then))
            numbers = torch.from_numpy(chosen)
            for index, (table, task) in enumerate(zip(tables, self.config.tasks, strict=True)):
                own = (found.row % len(tables) == index).nonzero()[:, 0]
                customer, size = found.row[own] // len(tables), table.counts.shape[1]
                cells = customer * size + found.label[own]
                targets = [_read_targets(batch["labels"][..., index], size)] * QUESTIONS
                if table.totals[2]:  # times mean something
                    later = _read_later(rows, [examples[each] for each in chosen], f"task_{task}", size)
                    targets[WITHIN] = torch.cat([targets[NEXT_VISIT], later]).unique()
                for question, each in enumerate(targets):
                    num_targets[index, numbers, question] = torch.bincount(each // size, minlength=len(chosen))
                ordered = batch["labels"][..., index].sort(1).values
                is_new = ordered.diff(dim=1, prepend=ordered.new_zeros(len(ordered), 1)) != 0
                num_unseen[index, numbers] = (is_new & (ordered < IGNORED)).sum(1)
                is_target = torch.stack([torch.isin(cells, each) for each in targets], 1)
                share = torch.ones(len(cells))
                if fold is not None:
                    number = torch.bincount(customer, minlength=len(chosen))[customer].float()
                    share = torch.where(is_target.any(1), 1.0, (NEGATIVES / number).clamp(max=1))
                kept = torch.rand(len(share), generator=generator) < share
                columns = numbers[customer], found.label[own], found.features[own], is_target, share.log()
                every = [*(column[kept] for column in columns), num_targets[index], num_unseen[index]]
                parts[index].append(LabelExamples(*every))
        return [LabelExamples.join(part) for part in parts]

    def read_training(
        self,
        examples: Sequence[Example],
        generator: torch.Generator,
        encoder: MCMForMultiTaskRecommendation | None = None,
    ) -> list[LabelExamples]:
        """Computes the candidates of each task in examples of the training period, fold by fold. Arguments are those
        of `read`."""
        parts: list[list[LabelExamples]] = [[] for _ in self.counts]
        number = 0
        for fold in range(FOLDS):
            if not (chosen := [example for example in examples if self.folds[example.row] == fold]):
                continue
            tables = [each.make_tables(fold) for each in self.counts]
            for part, found in zip(parts, self.read(chosen, tables, generator, fold, encoder), strict=True):
                joined = [torch.cat(each) for each in zip(*(one[-2:] for one in (*part[-1:], found)), strict=True)]
                found = found._replace(example=found.example + number)
                part.append(LabelExamples(*found[:-2], *joined))
            number += len(chosen)
        return [LabelExamples.join(part) for part in parts]


def _read_counts(
    counts: LabelCounts, fold: int, days: Sequence[float | None], age: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts `(B, 5, V)` and visits `(B,)` without a fold at some days, less the parts of the period by which they are
    old `(B,)`; at the end of the period without days."""
    ended = np.full(len(age), PERIODS)
    if counts.has_times and None not in days:
        ended = (counts.count_parts(np.array(days, float)) - age).clip(min=0)
    distinct, index = np.unique(ended, return_inverse=True)
    states = zip(*(counts.read_at(part, fold) for part in distinct), strict=True)
    of_labels, visits = (torch.stack(values)[index] for values in states)
    return of_labels, visits


def _read_targets(labels: torch.Tensor, size: int) -> torch.Tensor:
    """Distinct targets, row x V + label, from labels `(B, number)`."""
    row, at = (labels >= FIRST_LABEL).nonzero(as_tuple=True)
    return (row * size + labels[row, at]).unique()


def _read_later(rows: RowBatch, examples: Sequence[Example], task: str, size: int) -> torch.Tensor:
    """Labels, row x V + label, after the examples' cutoffs, within `HORIZON_DAYS` of the predictions."""
    _, end, stop, elapsed, _ = (np.array(column) for column in zip(*examples, strict=True))
    row, times, labels = rows.row, rows.column("times"), rows.column(task).astype(np.int64)
    until = times[rows.starts + end - 1] + (elapsed + HORIZON_DAYS) * SECONDS_PER_DAY
    comes = (rows.places >= end[row]) & (rows.places < stop[row]) & (times <= until[row]) & (labels >= FIRST_LABEL)
    return torch.from_numpy((row * size + labels)[comes])
