# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the examples that the scorer of labels is fitted on, and computes their features.

An example is a customer with a cutoff: the start of a visit in the training period, or a validation case. Its features
say what was known then: how popular labels were, counted of customers in other folds.

Shapes: B examples of a batch, T tasks, V labels of a task, N candidates of all examples, F features of a candidate.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import ENDS, IGNORED, CaseEvents, load_columns
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length
from modeling_mcm.evaluation.cases import cases_at, read_history
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.features_mcm import compare
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import (
    HORIZON_DAYS,
    QUESTIONS,
    WITHIN,
    LabelTables,
    candidate_features,
    read_histories,
)
from modeling_mcm.training.fitting import categorical_features, find_usual_values
from modeling_mcm.training.scorer.counts import FOLDS, LabelCounts

EXAMPLES, HELD_OUT, VALIDATION_EXAMPLES, BATCH = 4_000, 5_000, 1_500, 64
NEGATIVES = 60  # about as many candidates of an example that are no targets are kept, drawn uniformly
STALE = 4  # largest number of parts of the period by which counts are old, because a model is used after its training


class Examples(NamedTuple):
    """Customers with a cutoff each.

    Attributes:
        row (`NDArray[int64]` of shape `(N,)`): Index of the customer among the prepared rows.
        end, stop (`NDArray[int64]` of shape `(N,)`): Number of the customer's events before the cutoff, and before the
            end of the period in which targets are looked for.
        elapsed (`NDArray[float64]` of shape `(N,)`): Days from the last event before the cutoff to the time of the
            prediction.
        day (`NDArray[float64]` of shape `(N,)`): That time in days, if it is in the training period and other
            customers' later events are not counted; else NaN. Those of a log that leaves one out are counted, as they
            are when the model is used.
    """

    row: NDArray
    end: NDArray
    stop: NDArray
    elapsed: NDArray
    day: NDArray

    def take(self, chosen: NDArray) -> "Examples":
        """Selects some examples."""
        return Examples(*(column[chosen] for column in self))


class LabelExamples(NamedTuple):
    """Candidates of a task in some examples.

    Attributes:
        example, label (`torch.LongTensor` of shape `(N,)`): The candidates; examples are ascending.
        features (`torch.FloatTensor` of shape `(N, F)`): Their features.
        is_target (`torch.BoolTensor` of shape `(N, Q)`): Whether a candidate is a target of each question: it comes in
            the next visit, or within `HORIZON_DAYS`; in training, in either of them.
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

    def select(self, candidates: torch.Tensor) -> "LabelExamples":
        """The same examples with some of the candidates, by a mask or by indices."""
        return LabelExamples(*[*(column[candidates] for column in self[:-2]), *self[-2:]])

    def compute_ndcg(self, scores: torch.Tensor) -> torch.Tensor:
        """NDCG@10 `(Q, examples)` of the candidates' scores `(N, Q)` for each question, NaN without a target."""
        place = compare(self.example, scores.T)[0] + 1
        gains = self.is_target.T * (place < 12) / place.log2()
        ideal = torch.cat([torch.zeros(1), (1 / torch.arange(2.0, 12).log2()).cumsum(0)])
        number = (self.num_targets.T + self.num_unseen).clamp(max=10)
        return torch.zeros(number.shape).index_add(1, self.example, gains.float()) / ideal[number]


def read_visit_starts(data: PreparedData) -> Examples:
    """The starts of visits with a target in the training period that follow enough earlier ones, customer after
    customer: `day` is that of the last event before the visit, NaN in a log that leaves one visit out, and `elapsed`
    the days until the visit. The schema says which events are targets, and what an example needs."""
    schema, token = data.schema, data.schema.token_feature.name
    columns = ["times", "visits", *ENDS, *(f"task_{task}" for task in schema.tasks)]
    batch = load_columns(data.rows, columns)
    events = CaseEvents.read(batch, "validation", schema.tasks, token)
    row, place, is_target = batch.row, batch.places, events.history
    times, visits = batch.column("times"), batch.column("visits")
    earlier: NDArray = np.cumsum(is_target) - is_target
    earlier -= earlier[batch.starts[row]]
    opens = np.flatnonzero(is_target)
    opens = opens[run_starts(row[opens], visits[opens])]
    opens = opens[earlier[opens] >= schema.min_history]
    row, before = row[opens], times[opens - 1] / SECONDS_PER_DAY
    gap = (times[opens] / SECONDS_PER_DAY - before).clip(min=1 / SECONDS_PER_DAY)
    if schema.scoring_time("validation") is None:
        before = np.full(len(row), np.nan)
    return Examples(row, place[opens], events.history_end[row], gap, before)


def _draw_cutoffs(starts: Examples, generator: np.random.Generator) -> Examples:
    """Examples whose cutoffs are anywhere between the start of a visit and the event before, or at that event in a log
    that leaves one visit out."""
    days = generator.random(len(starts.row)) * np.where(np.isnan(starts.day), 0.0, starts.elapsed)
    return starts._replace(elapsed=days, day=starts.day + days)


def draw_examples(data: PreparedData, seed: int, most: int = EXAMPLES) -> Examples:
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
    return _draw_cutoffs(starts.take(np.sort(chosen)), generator)


def hold_out(data: PreparedData, seed: int) -> tuple[Examples, NDArray]:
    """Holds the latest visits of the training period out of the encoder's training: of all those that follow others
    a fifth, and at most so many. In a log that leaves one out they are the latest ones of customers, who are drawn.

    Returns:
        `tuple`: an example of each such visit; and for each row the number of events that are left, `(rows,)`.
    """
    generator, starts = np.random.default_rng(seed), read_visit_starts(data)
    most, ends = min(HELD_OUT, len(starts.row) // 5), np.array(data.rows["validation_end"])
    if data.schema.scoring_time("validation") is None:
        number = np.bincount(starts.row, minlength=len(ends))
        from_last = np.cumsum(number)[starts.row] - np.arange(len(starts.row))  # 1 is a customer's last visit
        latest = 1 + np.searchsorted(np.bincount(from_last)[1:].cumsum(), most)  # of a customer, the fewest
        customers = generator.permutation(len(ends))
        drawn = customers[: np.searchsorted(np.minimum(number, latest)[customers].cumsum(), most, "right")]
        chosen = np.flatnonzero((from_last <= latest) & np.isin(starts.row, drawn))
    else:
        chosen = np.sort(np.argsort(starts.day + starts.elapsed, kind="stable")[len(starts.row) - most :])
    np.minimum.at(ends, starts.row[chosen], starts.end[chosen])
    return _draw_cutoffs(starts.take(chosen), generator), ends


def draw_validation(data: PreparedData, seed: int) -> Examples | None:
    """Draws validation cases; none where the data set has none."""
    if data.manifest.counts.get("validation_cases") == 0:
        return None
    cases = cases_at(data, "validation")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(cases))[:VALIDATION_EXAMPLES])
    row, end, elapsed = cases.rows[chosen], cases.history_end[chosen], np.zeros(len(chosen))
    if cases.as_of is not None:
        batch = load_columns(data.rows.select(row), ["times"])
        events = batch.select(batch.places < end[batch.row])
        latest = np.maximum.reduceat(events.column("times"), events.starts)
        elapsed = ((cases.as_of - latest) / SECONDS_PER_DAY).clip(min=0)
    return Examples(row, end, np.asarray(data.rows["test_end"])[row], elapsed, np.full(len(row), np.nan))


class ExampleReader:
    """Reads examples, and computes the features of their candidates in each task.

    Args:
        data (`PreparedData`): The data set.
        config ([`MCMConfig`]): Config of the model.
        seed (`int`): Seed of the folds of customers.

    Attributes:
        folds (`NDArray[int64]` of shape `(rows,)`): Fold of each customer.
        counts (`list[LabelCounts]`): Counts of each task.
    """

    def __init__(self, data: PreparedData, config: MCMConfig, seed: int = 0):
        self.rows, self.config = PreparedRows(data.rows), config
        self.folds = np.random.default_rng(seed).integers(0, FOLDS, len(data.rows))
        features, self.counts = categorical_features(data.extractor), []
        for (task, size), no_targets in zip(config.label_sizes.items(), config.no_targets, strict=True):
            usual = find_usual_values(data.rows, config, task, features)
            history = read_history(data.rows, task, kind="feature")
            self.counts.append(LabelCounts(history, size, self.folds, [*usual.values()], no_targets))
        self.collator = MCMCollator(data.extractor, config, "evaluate", cutoff="validation")

    def batches(
        self, examples: Examples, chosen: NDArray
    ) -> Iterator[tuple[NDArray, Customers, dict[str, torch.Tensor]]]:
        """Indices of chosen examples of similar length, their rows, and model inputs with `labels` and `as_of`."""
        for batch in batches_by_length(examples.end[chosen], BATCH):
            row, end, stop, elapsed, _ = examples.take(chosen[batch])
            rows = self.rows.__getitems__(row.tolist())
            rows = Customers(rows.columns | {"validation_end": end, "test_end": stop}, rows.lengths)
            inputs = self.collator(rows)
            inputs["as_of"] = inputs["event_times"].amax(1) + torch.from_numpy(elapsed).float()
            yield chosen[batch], rows, inputs

    def read(
        self,
        examples: Examples,
        generator: torch.Generator,
        tables: Sequence[LabelTables] | None = None,
        encoder: MCMForMultiTaskRecommendation | None = None,
    ) -> list[LabelExamples]:
        """Computes the candidates of each task.

        Args:
            examples (`Examples`): The examples. Those of training come fold by fold.
            generator (`torch.Generator`): Of the draw of candidates.
            tables (`Sequence[LabelTables]`, *optional*): Tables of each task, for examples of validation, all of whose
                candidates are kept. Default: the examples are of training. Their counts are those of the other folds,
                as they were on an example's day. Of the candidates that are no targets some `NEGATIVES` are kept.
            encoder ([`MCMForMultiTaskRecommendation`], *optional*): Model whose readout gives features, too.
        """
        is_training = tables is None
        folds = self.folds[examples.row] if is_training else np.full(len(examples.row), -1)
        parts: list[list[LabelExamples]] = [[] for _ in self.counts]
        read: list[torch.Tensor] = []
        for fold in np.unique(folds):
            known = tables or [counts.make_tables(fold) for counts in self.counts]
            states = list(zip(*(counts.read_parts(fold) for counts in self.counts), strict=True))
            for numbers, rows, batch in self.batches(examples, np.flatnonzero(folds == fold)):
                of_batch, number = examples.take(numbers), torch.from_numpy(numbers)
                readout = None if encoder is None else encoder.readouts(batch)
                age = torch.randint(STALE + 1, (len(numbers),), generator=generator).numpy()
                ended = [counts.find_part(of_batch.day, age) for counts in self.counts]
                then = ([values[at] for values, at in zip(state, ended, strict=True)] for state in states)
                history = read_histories(self.config, batch)
                found = candidate_features(history, known, readout, *then)
                later = _find_later(rows, of_batch)
                for index, (task, table) in enumerate(zip(self.config.tasks, known, strict=True)):
                    own = found.row % len(known) == index
                    customer, label = found.row[own] // len(known), found.label[own]
                    labels = batch["labels"][..., index]
                    targets = torch.zeros(QUESTIONS, len(numbers), table.counts.shape[1], dtype=torch.bool)
                    # An example of training has a target of each question: without any it would teach nothing
                    both = is_training or not table.totals[2]
                    targets[: 1 + both, torch.arange(len(numbers))[:, None], labels.clamp(min=0)] = True
                    if table.totals[2]:  # times mean something
                        targets[WITHIN, rows.row[later], rows.column(f"task_{task}")[later]] = True
                    targets[..., :FIRST_LABEL] = False
                    unseen = [len({label for label in row if label < IGNORED}) for row in labels.tolist()]
                    is_target, share = targets[:, customer, label].T, torch.ones(len(label))
                    if is_training:
                        share = (NEGATIVES / torch.bincount(customer)[customer].float()).clamp(max=1)
                        share[is_target.any(1)] = 1.0
                    kept = torch.rand(len(label), generator=generator) < share
                    candidates = number[customer], label, found.features[own], is_target, share.log()
                    of_task = LabelExamples(*candidates, targets.sum(2).T, torch.tensor(unseen))
                    parts[index].append(of_task.select(kept))
                read.append(number)
        order, result = torch.cat(read).argsort(), []
        for part in parts:
            joined = LabelExamples(*(torch.cat(column) for column in zip(*part, strict=True)))
            joined = joined._replace(num_targets=joined.num_targets[order], num_unseen=joined.num_unseen[order])
            result.append(joined.select(joined.example.argsort(stable=True)))
        return result


def _find_later(rows: Customers, examples: Examples) -> NDArray:
    """Events after the examples' cutoffs, within `HORIZON_DAYS` of the predictions."""
    row, times = rows.row, rows.column("times")
    until = times[rows.starts + examples.end - 1] + (examples.elapsed + HORIZON_DAYS) * SECONDS_PER_DAY
    comes = (rows.places >= examples.end[row]) & (rows.places < examples.stop[row])
    return np.flatnonzero(comes & (times <= until[row]))
