# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fits the scorer of labels ([`~scorer_mcm.LabelScorer`]) on prefixes of the log's own customers, in seconds.

What is counted over all customers would contain the targets of the examples, so the customers are divided into folds,
and an example's numbers are computed from the counts of the other folds. Everything comes from the training period.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import deciding_tasks, flat_values, list_lengths
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.histories import arrow_batches, offsets_of, run_starts
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import (
    COUNTED,
    HABIT_VISITS,
    MOST_DENSE,
    OF_READOUT,
    Candidates,
    LabelScorer,
    LabelTables,
    candidate_features,
    read_histories,
)
from modeling_mcm.times_mcm import SECONDS_PER_DAY

logger = logging.get_logger(__name__)
# The network that each fit starts from, and the names of its parts in a scorer.
SHIPPED_NETWORK = Path(__file__).resolve().parents[1] / "scorer.safetensors"
NETWORK = ("mean", "std", "linear", "first", "second", "last")
FOLDS = 5
LAG_WEIGHTS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6)  # weight of a transition by its lag in moments
BACKWARDS, SHRINKAGE = 0.25, 0.4  # weight of a transition's opposite, and exponent on a label's number of occurrences
EASE_RIDGE, RATES_RIDGE = 6.0, 1.0  # strengths in units of the mean diagonal
MOST_FREQUENT = 2_000  # number of labels whose matrices are inverted, the most frequent ones
# Parts of the training period at whose ends labels are counted; the latest ones, which are recent; and the largest
# number of parts by which an example's counts are old, because a model is used for some time after its training.
PERIODS, LATE, STALE = 26, 4, 4
EXAMPLES, EXAMPLES_OF_CUSTOMER, BATCH = 4_000, 2, 64
FEW_EXAMPLES = 500  # below which the network starts from the shipped one
NEGATIVES = 60  # about as many candidates of an example that are no targets are kept, drawn uniformly
START_STD, EPOCHS, LEARNING_RATE, WEIGHT_DECAY, EXAMPLES_OF_STEP = 0.02, 8, 3e-3, 1e-2, 32
RANKING = 1.5  # weight of the smooth NDCG beside the cross-entropy
LATER_DAYS, LATER = 30.0, 0.4  # labels that come so soon, though not next, and the weight of their cross-entropy
MOST_TARGETS, TEMPERATURE = 12, 2.0  # of the smooth NDCG
# Weights u of the encoder's log-probability and rank that are tried, none first.
GRID = torch.tensor([(a, -b) for a in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8) for b in (0.0, 0.1, 0.3)])


class LabelEvents(NamedTuple):
    """The labelled events of a task in the training period, customer after customer, in flat arrays.

    Attributes:
        customer, label, visit, moment (`NDArray[int64]` of shape `(E,)`): visits and moments are numbered over all
            customers.
        day (`NDArray[float64]` of shape `(E,)`): time of the event, in days.
        size (`int`): number of labels.
    """

    customer: NDArray[np.int64]
    label: NDArray[np.int64]
    visit: NDArray[np.int64]
    moment: NDArray[np.int64]
    day: NDArray[np.float64]
    size: int

    @classmethod
    def read(cls, rows: Any, task: str, size: int) -> "LabelEvents":
        """Reads the events of prepared rows before the validation cutoff."""
        parts, first = [], 0
        for table in arrow_batches(rows, ["times", "visits", "validation_end", f"feature_{task}"]):
            lengths = list_lengths(table, "visits")
            row = np.repeat(np.arange(len(table)), lengths)
            index = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            label = flat_values(table, f"feature_{task}").astype(np.int64)
            kept = (index < flat_values(table, "validation_end")[row]) & (label >= FIRST_LABEL)
            times, visits = flat_values(table, "times")[kept], flat_values(table, "visits")[kept]
            parts.append((row[kept] + first, label[kept], visits, times / SECONDS_PER_DAY))
            first += len(table)
        customer, label, visit, day = (np.concatenate(part) for part in zip(*parts, strict=True))
        visits, moments = run_starts(customer, visit), run_starts(customer, visit, day)
        return cls(customer, label, np.cumsum(visits) - 1, np.cumsum(moments) - 1, day, size)


def _expand(starts: NDArray, stops: NDArray) -> tuple[NDArray, NDArray]:
    """Index of the range, and element, of every element of some ranges."""
    lengths = stops - starts
    which = np.repeat(np.arange(len(starts)), lengths)
    return which, np.arange(len(which)) - offsets_of(lengths)[which] + starts[which]


class LabelCounts:
    """Counts of a task's labels by fold of customers, from which tables without one fold are made.

    Args:
        events ([`LabelEvents`]): events of the training period.
        folds (`NDArray[int64]` of shape `(customers,)`): fold of each customer.
    """

    def __init__(self, events: LabelEvents, folds: NDArray[np.int64]):
        self.size = events.size
        self.transitions = [self._transitions(events, folds == fold) for fold in range(FOLDS)]
        self.start, self.part = events.day.min(), max(np.ptp(events.day), 1e-9) / PERIODS
        self.counts, self.visits, rates = self._occurrences(events, folds)
        self.grams = [self._grams(rates, folds == fold) for fold in range(FOLDS)] if self.size <= MOST_DENSE else []
        same = events.customer[1:] == events.customer[:-1]
        between = same & (events.moment[1:] != events.moment[:-1])
        gaps = np.diff(events.day)[between]
        self.has_times = bool(len(gaps) and (gaps > 0).mean() > 0.5)
        self.gap = float(np.median(gaps[gaps > 0])) if self.has_times else 1.0

    def _transitions(self, events: LabelEvents, in_fold: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
        """Pairs (label x V + next label), ascending, and their weights."""
        kept = in_fold[events.customer]
        cells = np.unique(events.moment[kept] * self.size + events.label[kept])  # a label counts once a moment
        moment, label = cells // self.size, cells % self.size
        numbers, starts = np.unique(moment, return_index=True)
        starts = np.append(starts, len(moment))
        of_moment = np.zeros(events.moment[-1] + 1, np.int64)
        of_moment[events.moment] = events.customer
        customer, keys, weights = of_moment[numbers], [], []
        for lag, weight in enumerate(LAG_WEIGHTS, 1):
            before = np.flatnonzero(customer[lag:] == customer[:-lag])
            which, first = _expand(starts[before], starts[before + 1])
            after = before[which] + lag
            which, second = _expand(starts[after], starts[after + 1])
            pairs, number = np.unique(label[first][which] * self.size + label[second], return_counts=True)
            keys.append(pairs)
            weights.append(number * weight)
        return _summed(np.concatenate(keys), np.concatenate(weights))

    def _occurrences(self, events: LabelEvents, folds: NDArray) -> tuple[NDArray, NDArray, tuple[NDArray, ...]]:
        """Counts by fold until the end of each part of the period, `(folds, PERIODS + 1, 4, V)`: those of
        `LabelTables.counts` without the recent ones; such numbers of visits; and personal rates."""
        cells = np.unique(events.visit * self.size + events.label)
        visit, label = cells // self.size, cells % self.size
        of_visit, period = np.zeros((2, events.visit[-1] + 1), np.int64)
        of_visit[events.visit], period[events.visit] = events.customer, self.part_of(events.day).clip(max=PERIODS - 1)
        order = np.lexsort((visit, label, of_visit[visit]))
        customer, label, visit = of_visit[visit][order], label[order], visit[order]
        again, gap = ~run_starts(customer, label), np.diff(visit, prepend=-2)
        counts = np.zeros((FOLDS, PERIODS + 1, 4, self.size), np.float32)
        for index, weights in enumerate((1, again, again & (gap == 1), again * gap)):
            np.add.at(counts[:, :, index], (folds[customer], period[visit] + 1, label), weights)
        visits = np.zeros((FOLDS, PERIODS + 1), np.float32)
        np.add.at(visits, (folds[of_visit], period + 1), 1)
        number = np.bincount(of_visit)
        latest = np.cumsum(number) - 1
        faded = 0.5 ** ((latest[customer] - visit) / HABIT_VISITS)
        possible = (1 - 0.5 ** (number / HABIT_VISITS)) / (1 - 0.5 ** (1 / HABIT_VISITS))
        keys, sums = _summed(customer * self.size + label, faded)
        return (
            counts.cumsum(1),
            visits.cumsum(1),
            (keys // self.size, keys % self.size, sums / possible[keys // self.size]),
        )

    def _grams(self, rates: tuple[NDArray, ...], in_fold: NDArray[np.bool_]) -> torch.Tensor:
        """Gram matrices of the customers' sets of labels and of their rates, of shape `(2, W, W)`, where W are the
        most frequent labels."""
        size = min(self.size, FIRST_LABEL + MOST_FREQUENT)  # ids are in the order of frequency
        kept = in_fold[rates[0]] & (rates[1] < size)
        row = np.unique(rates[0][kept], return_inverse=True)[1]
        indices = torch.from_numpy(np.stack([row, rates[1][kept]]))
        result = torch.zeros(2, size, size)
        for start in range(0, int(row[-1]) + 1 if len(row) else 0, BATCH**2):
            part = (indices[0] >= start) & (indices[0] < start + BATCH**2)
            owner, label = indices[0, part] - start, indices[1, part]
            for gram, values in zip(result, (np.ones(len(row)), rates[2][kept]), strict=True):
                dense = torch.zeros(int(owner[-1]) + 1, size)
                dense[owner, label] = torch.from_numpy(values).float()[part]
                gram.addmm_(dense.T, dense)
        return result

    def part_of(self, day: NDArray) -> NDArray[np.int64]:
        """Number of parts of the training period that have ended at each day."""
        return np.floor((day - self.start) / self.part).astype(np.int64).clip(0, PERIODS)

    def as_of(self, part: int, without: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`LabelTables.counts` `(5, V)` and number of visits when a part of the training period had ended.

        Args:
            part (`int`): number of parts that have ended.
            without (`int`, *optional*): fold that is left out.
        """
        folds = [fold for fold in range(FOLDS) if fold != without]
        counts, visits = self.counts[folds, part].sum(0), float(self.visits[folds, part].sum())
        recent = counts[0] - self.counts[folds, max(part - LATE, 0), 0].sum(0)
        return torch.from_numpy(np.stack([*counts[:3], recent, counts[3]])), torch.tensor(max(visits, 1.0))

    def tables(self, without: int | None = None) -> LabelTables:
        """Tables of the customers of all folds, or of all but one.

        Args:
            without (`int`, *optional*): the fold that is left out.
        """
        folds = [fold for fold in range(FOLDS) if fold != without]
        tables, size = LabelTables(self.size), self.size
        counts, visits = self.as_of(PERIODS, without)
        tables.counts.copy_(counts)
        tables.totals.copy_(torch.tensor([visits, self.gap, float(self.has_times)]))
        occurrences = counts[0].numpy()
        pairs, weights = _summed(
            *(np.concatenate(part) for part in zip(*(self.transitions[f] for f in folds), strict=True))
        )
        first, second = pairs // size, pairs % size
        _keep_largest(tables, 1, first, second, weights / (occurrences[first] + 1))
        pairs, weights = _summed(
            np.concatenate([pairs, second * size + first]), np.concatenate([weights, BACKWARDS * weights])
        )
        first, second = pairs // size, pairs % size
        _keep_largest(tables, 0, first, second, weights / (occurrences[first] + 1) ** SHRINKAGE)
        if self.grams:
            sets, rates = torch.stack([self.grams[fold] for fold in folds]).sum(0)
            identity, stored = torch.eye(len(sets)), min(tables.weights.shape[2], len(sets))
            for index, gram, ridge in ((2, sets, EASE_RIDGE), (3, rates, RATES_RIDGE)):
                strength = ridge * gram.diagonal()[FIRST_LABEL:].mean().clamp(min=1e-8)
                inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + strength * identity))
                matrix = identity - strength * inverse
                if index == 2:
                    matrix = (-inverse / inverse.diagonal()).fill_diagonal_(0)
                matrix[:, :FIRST_LABEL] = 0
                largest = matrix.abs().topk(stored, 1).indices
                tables.neighbours[index, : len(sets), :stored] = largest.int()
                tables.weights[index, : len(sets), :stored] = matrix.gather(1, largest).half()
        return tables


def _summed(keys: NDArray[np.int64], weights: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Distinct keys, ascending, and the sum of the weights of each."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse, weights, len(distinct))


def _keep_largest(tables: LabelTables, index: int, first: NDArray, second: NDArray, weights: NDArray) -> None:
    """Fills a table with the largest weights of each label; `first` is ascending."""
    most, starts = tables.weights.shape[2], np.searchsorted(first, np.arange(tables.weights.shape[1] + 1))
    kept = np.ones(len(first), bool)
    for label in np.flatnonzero(np.diff(starts) > most):
        own = slice(starts[label], starts[label + 1])
        kept[own][np.argpartition(weights[own], -most)[:-most]] = False
    first, second, weights = first[kept], second[kept], weights[kept]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    cells = index, torch.from_numpy(first), torch.from_numpy(rank)
    tables.neighbours[cells] = torch.from_numpy(second).int()
    tables.weights[cells] = torch.from_numpy(weights).half()


class Case(NamedTuple):
    """A customer with a cutoff: an example of training, or a validation case.

    Attributes:
        row (`int`): index of the customer among the prepared rows.
        end, stop (`int`): number of the customer's events before the cutoff, and before the end of the period in which
            targets are looked for.
        wait (`float`): days from the last event before the cutoff to the prediction time.
        day (`float`, *optional*): the prediction time in days, if it is in the training period.
    """

    row: int
    end: int
    stop: int
    wait: float
    day: float | None = None


FLAGS = ("is_target", "is_later", "log_kept")  # of the candidates in [`CaseFeatures`]


class CaseFeatures(NamedTuple):
    """Candidates of a task in some cases.

    Attributes:
        candidates ([`Candidates`]): candidates of all cases.
        is_target (`torch.BoolTensor` of shape `(N,)`): whether a candidate is a target.
        is_later (`torch.BoolTensor` of shape `(N,)`): whether it is none, and comes within `LATER_DAYS`; of examples.
        log_kept (`torch.FloatTensor` of shape `(N,)`): log of the share of such candidates that were kept.
        targets (`list[torch.LongTensor]`): distinct targets of each case, also those that are no candidates.
    """

    candidates: Candidates
    is_target: torch.Tensor
    is_later: torch.Tensor
    log_kept: torch.Tensor
    targets: list[torch.Tensor]


def draw_examples(rows: Any, data: PreparedData, seed: int, most: int = EXAMPLES) -> list[Case]:
    """Draws starts of visits in the training period as cutoffs; a customer's later visits are likelier.

    Args:
        rows (`datasets.Dataset`): prepared rows.
        data (`PreparedData`): the data set; its schema says what a case needs, and whether times mean anything.
        seed (`int`): seed of the draws.
        most (`int`): largest number of examples.
    """
    generator, cases, first = np.random.default_rng(seed), [], 0
    schema = data.schema
    columns = [f"task_{task}" for task in deciding_tasks(schema.tasks, schema.token_feature.name)]
    for table in arrow_batches(rows, ["times", "visits", "validation_end", *columns]):
        lengths, ends = list_lengths(table, "visits"), flat_values(table, "validation_end").astype(np.int64)
        row = np.repeat(np.arange(len(table)), lengths)
        index = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        times, visits = flat_values(table, "times"), flat_values(table, "visits")
        is_target = np.any([flat_values(table, name) > 0 for name in columns], axis=0) & (index < ends[row])
        number = np.cumsum(is_target)
        earlier = number - is_target - (number - is_target)[offsets_of(lengths)[:-1]][row] if len(row) else number
        opens = np.flatnonzero(is_target)
        opens = opens[run_starts(row[opens], visits[opens])]
        opens = opens[(earlier[opens] >= max(schema.min_history, 1)) & (index[opens] > 0)]
        likely = generator.random(len(opens)) ** (1 / np.maximum(index[opens] / ends[row[opens]], 0.05))
        order = np.lexsort((-likely, row[opens]))
        opens = opens[order][np.arange(len(opens)) - np.searchsorted(row[opens], row[opens]) < EXAMPLES_OF_CUSTOMER]
        waits = generator.random(len(opens)) * (times[opens] - times[opens - 1]) / SECONDS_PER_DAY
        waits = waits if schema.moment("validation") is not None else np.zeros(len(opens))
        for at, wait in zip(opens.tolist(), waits.clip(min=0).tolist(), strict=True):
            day = float(times[at - 1]) / SECONDS_PER_DAY + wait
            cases.append(Case(first + int(row[at]), int(index[at]), int(ends[row[at]]), wait, day))
        first += len(table)
    chosen = generator.permutation(len(cases))[:most]
    return [cases[index] for index in np.sort(chosen)]


def validation_cases(rows: Any, data: PreparedData, seed: int, most: int = 1500) -> list[Case]:
    """Draws validation cases; none where the data set has none."""
    if data.manifest.counts.get("validation_cases") == 0:
        return []
    cases = cases_at(data, "validation", rows)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(cases))[:most])
    moment = data.schema.moment("validation")
    ends = np.asarray(rows["test_end"])
    result = []
    for table, index in zip(
        PreparedRows(rows, cases.rows[chosen]).__getitems__(list(range(len(chosen)))), chosen, strict=True
    ):
        row, end = int(cases.rows[index]), int(cases.history_end[index])
        wait = 0.0 if moment is None or not end else (moment - float(table["times"][:end].max())) / SECONDS_PER_DAY
        result.append(Case(row, end, int(ends[row]), max(wait, 0.0)))
    return result


class FeatureReader:
    """Reads cases and computes the candidates' numbers of each task.

    Args:
        rows (`datasets.Dataset`): prepared rows.
        data (`PreparedData`): the data set.
        config ([`MCMConfig`]): config of the model.
    """

    def __init__(self, rows: Any, data: PreparedData, config: MCMConfig):
        self.rows, self.config = PreparedRows(rows), config
        self.collator = MCMCollator(data.extractor, config, "evaluate", cutoff="validation")

    def batches(self, cases: Sequence[Case]) -> Iterator[tuple[NDArray, Sequence[Any], dict[str, torch.Tensor]]]:
        """Indices of cases, their rows, and their model inputs with `labels` and `now`, similar lengths together."""
        order = np.argsort([case.end for case in cases], kind="stable")
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = self.rows.__getitems__([cases[index].row for index in chosen])
            ends = [{"validation_end": cases[index].end, "test_end": cases[index].stop} for index in chosen]
            batch = self.collator([{**row, **end} for row, end in zip(rows, ends, strict=True)])
            waits = torch.tensor([cases[index].wait for index in chosen])
            batch["now"] = batch["event_times"].amax(1) + waits
            yield chosen, rows, batch

    def read(
        self,
        cases: Sequence[Case],
        counts: Sequence[LabelCounts],
        tables: Sequence[LabelTables],
        fold: int | None,
        generator: torch.Generator,
        encoder: MCMForMultiTaskRecommendation | None = None,
    ) -> list[CaseFeatures]:
        """Computes the candidates of each task.

        Args:
            cases (`Sequence[Case]`): the cases.
            counts (`Sequence[LabelCounts]`): counts of each task.
            tables (`Sequence[LabelTables]`): tables of each task.
            fold (`int`, *optional*): fold of the cases, if they are examples: counts are those of the other folds
                until the prediction time, and of the candidates that are no targets some `NEGATIVES` are kept.
            generator (`torch.Generator`): of the draw of candidates.
            encoder ([`MCMForMultiTaskRecommendation`], *optional*): model whose readout gives numbers, too.
        """
        parts: list[list[CaseFeatures]] = [[] for _ in tables]
        for chosen, rows, batch in self.batches(cases):
            readout = None if encoder is None else encoder.readout_scores(batch)
            old = torch.randint(STALE + 1, (len(chosen),), generator=generator).numpy()
            then = ([], []) if fold is None else self._counts_then([cases[n] for n in chosen], counts, fold, old)
            found = candidate_features(read_histories(self.config, batch), tables, readout, *filter(None, then))
            bounds = torch.searchsorted(found.row, torch.arange(len(tables) + 1) * len(chosen)).tolist()
            for index, table in enumerate(tables):
                row, label, features = (column[bounds[index] : bounds[index + 1]] for column in found)
                customer, size = row - index * len(chosen), table.counts.shape[1]
                targets = [each[each >= FIRST_LABEL].unique() for each in batch["labels"][..., index]]
                cells = customer * size + label
                is_target = torch.isin(cells, torch.cat([each + size * n for n, each in enumerate(targets)]))
                is_later = torch.zeros_like(is_target)
                if fold is not None and counts[index].has_times:
                    task = f"task_{self.config.tasks[index]}"
                    later = [_later(rows[n], cases[case], task) + size * n for n, case in enumerate(chosen)]
                    is_later = torch.isin(cells, torch.from_numpy(np.concatenate(later))) & ~is_target
                number = torch.bincount(customer, minlength=len(chosen))[customer].float()
                share = torch.ones_like(number) if fold is None else (NEGATIVES / number).clamp(max=1)
                share = torch.where(is_target | is_later, 1.0, share)
                kept = torch.rand(len(share), generator=generator) < share
                candidates = Candidates(torch.from_numpy(chosen)[customer[kept]], label[kept], features[kept])
                flags = is_target[kept], is_later[kept], share.log()[kept]
                parts[index].append(CaseFeatures(candidates, *flags, targets))
        order = np.argsort([case.end for case in cases], kind="stable")
        return [_joined(part, order) for part in parts]

    @staticmethod
    def _counts_then(
        cases: Sequence[Case], counts: Sequence[LabelCounts], fold: int, old: NDArray[np.int64]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Counts `(B, 5, V)` and visits `(B,)` of each task without a fold at the cases' prediction times, less some
        parts of the period by which they are `old` `(B,)`."""
        days = np.array([case.day for case in cases])
        found = []
        for each in counts:
            ended = (each.part_of(days) - old).clip(min=0) if each.has_times else np.full(len(days), PERIODS)
            distinct, of_part = np.unique(ended, return_inverse=True)
            states = zip(*(each.as_of(part, fold) for part in distinct), strict=True)
            found.append([torch.stack(values)[of_part] for values in states])
        of_counts, of_visits = zip(*found, strict=True)
        return list(of_counts), list(of_visits)


def _later(row: Mapping[str, Any], case: Case, task: str) -> NDArray[np.int64]:
    """Labels of a row after a case's cutoff, within `LATER_DAYS` of its prediction time."""
    times = row["times"]
    latest = times[case.end - 1] + (case.wait + LATER_DAYS) * SECONDS_PER_DAY
    stop = case.end + int(np.searchsorted(times[case.end : case.stop], latest, side="right"))
    labels = np.asarray(row[task][case.end : stop], np.int64)
    return labels[labels >= FIRST_LABEL]


def _joined(parts: Sequence[CaseFeatures], order: NDArray[np.int64]) -> CaseFeatures:
    """Joins parts, with candidates by case."""
    columns = [torch.cat(values) for values in zip(*(part.candidates for part in parts), strict=True)]
    is_target, is_later, log_kept = (torch.cat([getattr(part, name) for part in parts]) for name in FLAGS)
    targets = [each for part in parts for each in part.targets]
    by_case = columns[0].argsort(stable=True)
    ordered: list[torch.Tensor] = [torch.zeros(0)] * len(targets)
    for case, each in zip(order.tolist(), targets, strict=True):
        ordered[case] = each
    candidates = Candidates(*(column[by_case] for column in columns))
    return CaseFeatures(candidates, is_target[by_case], is_later[by_case], log_kept[by_case], ordered)


def case_ndcg(found: CaseFeatures, values: torch.Tensor, k: int = 10) -> torch.Tensor:
    """NDCG at k of the candidates' scores `(N,)` in each case, NaN without a target."""
    customer = found.candidates.row
    order = values.argsort(descending=True, stable=True)
    order = order[customer[order].argsort(stable=True)]
    rank = torch.arange(len(order)) - torch.searchsorted(customer, customer) + 2.0
    gains = torch.where(found.is_target[order] & (rank < k + 2), 1 / rank.log2(), 0.0)
    numbers = torch.tensor([len(each) for each in found.targets])
    ideal = torch.cat([torch.zeros(1), (1 / torch.arange(2.0, k + 2).log2()).cumsum(0)])[numbers.clamp(max=k)]
    return torch.zeros(len(numbers)).index_add(0, customer[order], gains) / ideal


def mean_ndcg(found: CaseFeatures, values: torch.Tensor) -> float:
    """Mean NDCG at 10 of the candidates' scores `(N,)` over the cases with a target."""
    return case_ndcg(found, values).nanmean().item()


def start_network(scorer: LabelScorer, examples: Sequence[CaseFeatures], seed: int) -> None:
    """Starts the network with small random weights, and computes mean and standard deviation of the numbers."""
    generator = torch.Generator().manual_seed(seed)
    for layer in (scorer.linear, scorer.first, scorer.second, scorer.last):
        nn.init.normal_(layer.weight, std=START_STD, generator=generator)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(scorer.task_vectors.weight)
    features = torch.cat([found.candidates.features[:, :COUNTED] for found in examples])
    scorer.mean.copy_(features.mean(0))
    scorer.std.copy_(features.std(0).clamp(min=1e-3))


def fit_network(
    scorer: LabelScorer, examples: Sequence[CaseFeatures], validation: Sequence[CaseFeatures], seed: int
) -> list[float]:
    """Trains the network on examples of all tasks, and keeps the epoch that ranks the validation cases best.

    Returns:
        `list[float]`: NDCG@10 of each task on validation; empty without cases, where the last epoch is kept.

    Raises `ValueError` if no target of any example is among its candidates.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    epoch = _steps_of(examples, generator)
    if not epoch:
        raise ValueError("What followed the histories is never among their candidates: the log is too small to fit.")
    optimizer = torch.optim.AdamW(scorer.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * len(epoch) + 1, pct_start=0.15
    )
    best: tuple[float, list[float], dict[str, torch.Tensor]] = (-1.0, [], {})
    for number in range(EPOCHS + 1):  # the first one is the start
        scorer.train()
        for task, mask, index in epoch if number else []:
            found = examples[task]
            scores = scorer(task, found.candidates.features[index])
            is_target, is_later = found.is_target[index] & mask, found.is_later[index] & mask
            loss = ranking_loss(scores, mask, is_target, is_later, found.log_kept[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        epoch = _steps_of(examples, generator) if number else epoch
        scorer.eval()
        with torch.no_grad():
            values = [mean_ndcg(v, scorer(t, v.candidates.features)) for t, v in enumerate(validation)]
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
        if mean > best[0] or not validation:
            best = (mean, values, {name: value.clone() for name, value in scorer.state_dict().items()})
    scorer.load_state_dict(best[2])
    return best[1]


def calibrate(
    scorer: LabelScorer, task: int, found: CaseFeatures, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits t, b and f of a task (see [`LabelScorer`]) by the cross-entropy of the validation targets, and then the
    chances of labels by that of the candidates.

    Args:
        scorer ([`LabelScorer`]): a scorer whose network is trained.
        task (`int`): index of the task.
        found ([`CaseFeatures`]): all candidates of validation cases.
        weights (`torch.FloatTensor` of shape `(OF_READOUT,)`, *optional*): u. Default: 0.

    Returns:
        `tuple`: t, b, f and u, `torch.FloatTensor` of shape `(3 + OF_READOUT,)`; and a, b and c of
        [`~LabelScorer.chances`], of shape `(3,)`.
    """
    of_readout = torch.zeros(OF_READOUT) if weights is None else weights
    customer, label, features = found.candidates
    with torch.no_grad():
        values, log_shares = scorer(task, features), scorer.log_shares(task)
    numbers = torch.tensor([len(each) for each in found.targets], dtype=torch.float32)
    shares = torch.where(numbers > 0, 1 / numbers.clamp(min=1), 0.0) / (numbers > 0).sum().clamp(min=1)
    zeros = torch.zeros(len(numbers))
    hits = zeros.index_add(0, customer, found.is_target.float())
    missed = (shares * (numbers - hits)).sum()  # weight of targets that are no candidates
    outside = (1 - zeros.index_add(0, customer, log_shares[label].exp())).clamp(min=1e-6).log()
    target_weights = shares[customer] * found.is_target

    def log_probabilities(parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the candidates, and for each case the logarithm of the sum over all labels."""
        logits = scorer.calibrated(torch.cat([parameters, of_readout]), values, features)
        largest = zeros.scatter_reduce(0, customer, logits.detach(), "amax", include_self=False)
        inside = zeros.index_add(0, customer, (logits - largest[customer]).exp()).log() + largest
        return logits, torch.logaddexp(inside, parameters[2] + outside)

    def loss_of_scores(parameters: torch.Tensor) -> torch.Tensor:
        logits, total = log_probabilities(parameters)
        loss = (shares * numbers * total).sum() - (target_weights * logits).sum() - missed * parameters[2]
        return loss + 1e-3 * parameters.square().sum()

    parameters = _minimize(loss_of_scores, torch.zeros(3))
    logits, total = log_probabilities(parameters)
    log_p, is_target = logits - total[customer], found.is_target.float()
    chance = _minimize(
        lambda chance: F.binary_cross_entropy(scorer.chances(chance, log_p).clamp(1e-7, 1 - 1e-7), is_target),
        torch.tensor([0.0, 1.0, 0.0]),
    )
    return torch.cat([parameters, of_readout]), chance


@torch.enable_grad()
def _minimize(function: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """Parameters that minimise a function, by L-BFGS."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = function(parameters)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return parameters.detach()


def _steps_of(
    examples: Sequence[CaseFeatures], generator: np.random.Generator
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Steps of an epoch: task, mask and indices of candidates, both of shape `(cases, candidates)`."""
    steps = []
    for task, found in enumerate(examples):
        customer = found.candidates.row
        has_target = torch.zeros(len(found.targets)).index_add(0, customer, found.is_target.float()) > 0
        cases = generator.permutation(has_target.nonzero()[:, 0].numpy())
        for start in range(0, len(cases), EXAMPLES_OF_STEP):
            chosen = torch.from_numpy(cases[start : start + EXAMPLES_OF_STEP])
            begin, end = torch.searchsorted(customer, chosen), torch.searchsorted(customer, chosen, right=True)
            offset = torch.arange(int((end - begin).max()))
            mask = offset < (end - begin)[:, None]
            steps.append((task, mask, torch.where(mask, begin[:, None] + offset, 0)))
    return [steps[index] for index in generator.permutation(len(steps))]


def ranking_loss(
    scores: torch.Tensor,
    mask: torch.Tensor,
    is_target: torch.Tensor,
    is_later: torch.Tensor,
    log_kept: torch.Tensor,
) -> torch.Tensor:
    """Mean cross-entropy of the targets among the candidates, less a smooth NDCG, and with a small weight the
    cross-entropy of labels that come later among all that are no targets.

    Args:
        scores (`torch.FloatTensor` of shape `(cases, candidates)`): scores of the candidates.
        mask, is_target, is_later (`torch.BoolTensor` of that shape): whether there is a candidate, whether it is a
            target, and whether it is none and comes later.
        log_kept (`torch.FloatTensor` of that shape): log of the share of such candidates that were kept.
    """
    weighted = (scores - log_kept).masked_fill(~mask, -1e4)  # a kept negative stands for those left out
    number = is_target.sum(1)
    entropy = -(weighted.log_softmax(1) * is_target).sum(1) / number
    most = min(MOST_TARGETS, int(number.max()))
    has, best = is_target.float().topk(most, 1)
    lead = torch.sigmoid(TEMPERATURE * (scores[:, None] - scores.gather(1, best)[..., None])) * mask[:, None]
    rank = 0.5 + lead.sum(2)
    ideal = (1 / torch.arange(2.0, MOST_TARGETS + 2).log2()).cumsum(0)[(number.clamp(max=most) - 1)]
    ndcg = (has / (1 + rank).log2()).sum(1) / ideal
    others = weighted.masked_fill(is_target, -1e4).log_softmax(1)
    later = -(others * is_later).sum(1) / is_later.sum(1).clamp(min=1)
    return (entropy - RANKING * ndcg + LATER * later).mean()


class EncoderWorth(NamedTuple):
    """What a task gains by the encoder, on validation cases.

    Attributes:
        ndcg (`float`): mean NDCG@10 where the weights u are the best of `GRID` for other customers.
        gain, error (`float`): mean of what this adds to the NDCG@10 of counts alone, and its standard error.
        calibration, chance (`torch.Tensor`): what [`calibrate`] fits with the best weights of all cases.
    """

    ndcg: float
    gain: float
    error: float
    calibration: torch.Tensor
    chance: torch.Tensor


def read_examples(
    config: MCMConfig, data: PreparedData, seed: int, generator: torch.Generator, most: int = EXAMPLES
) -> tuple[list[LabelCounts], FeatureReader, list[CaseFeatures]]:
    """Counts the labels of a data set, and draws examples from its training period.

    Args:
        config ([`MCMConfig`]): config of a model for the data set.
        data (`PreparedData`): the data set.
        seed (`int`): seed of folds and examples.
        generator (`torch.Generator`): of the draw of candidates.
        most (`int`): largest number of examples.

    Returns:
        `tuple`: counts of each task, a reader of cases, and the examples of each task.

    Raises:
        ValueError: if the training period has no example.
    """
    rows, sizes = data.rows, config.label_sizes.items()
    folds = np.random.default_rng(seed).integers(0, FOLDS, len(rows))
    counts = [LabelCounts(LabelEvents.read(rows, task, size), folds) for task, size in sizes]
    reader, examples = FeatureReader(rows, data, config), draw_examples(rows, data, seed, most)
    if not examples:
        least = max(data.schema.min_history, 1)
        raise ValueError(
            f"{data.folder} has no visit in its training period that follows {least} target events, so nothing "
            "can be fitted: move the cutoffs of the event schema, or lower min_history."
        )
    parts = []
    for fold in range(FOLDS):
        tables = [each.tables(fold) for each in counts]
        if chosen := [case for case in examples if folds[case.row] == fold]:
            parts.append(reader.read(chosen, counts, tables, fold, generator))
    return counts, reader, [_stacked([features[task] for features in parts]) for task in range(len(counts))]


def load_network(scorer: LabelScorer) -> None:
    """Starts a scorer's network from the shipped one, which `training/run_pretrain_scorer.py` fits on several logs."""
    for name, value in load_file(SHIPPED_NETWORK).items():
        scorer.get_parameter(name).data.copy_(value) if "." in name else scorer.get_buffer(name).copy_(value)
    scorer.task_vectors.weight.data.zero_()


def save_network(scorer: LabelScorer, path: str | Path) -> None:
    """Saves a scorer's network for any task: the mean of the task vectors becomes part of the first layer."""
    tensors = {name: value for name, value in scorer.state_dict().items() if name.split(".")[0] in NETWORK}
    tensors["first.bias"] = tensors["first.bias"] + scorer.task_vectors.weight.mean(0)
    save_file(tensors, path)


class ScorerFit:
    """Fits a model's scorer: counts and network when it is made, and the encoder's part when the encoder is trained.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): model with a scorer, which is changed.
        data (`PreparedData`): the data set.
        seed (`int`): seed of folds, examples and network.

    Attributes:
        counted (`list[float]`): NDCG@10 of each task on validation cases by counts alone, NaN without any.

    Raises:
        ValueError: if the training period has no example, or no target of any example is a candidate.
    """

    def __init__(self, model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int = 0):
        self.model, self.seed = model, seed
        self.scorer = cast(LabelScorer, model.scorer)
        self.generator = torch.Generator().manual_seed(seed)
        self.counts, self.reader, examples = read_examples(model.config, data, seed, self.generator)
        number, rows = len(examples[0].targets), data.rows
        if number < FEW_EXAMPLES:
            logger.warning(
                f"{data.folder} has {number} visits to learn from, fewer than {FEW_EXAMPLES}: scores rest on what was "
                "learned on other logs. Give a longer log, or one of more customers, for better ones."
            )
            load_network(self.scorer)
        else:
            start_network(self.scorer, examples, seed)
        for table, each in zip(self.scorer.tables, self.counts, strict=True):
            table.load_state_dict(each.tables().state_dict())
        self.cases = validation_cases(rows, data, seed)
        tables = [self.scorer.tables_of(task) for task in range(len(self.counts))]
        validation = self.reader.read(self.cases, self.counts, tables, None, self.generator) if self.cases else []
        self.counted = fit_network(self.scorer, examples, validation, seed) or [math.nan] * len(examples)
        for task, features in enumerate(validation):
            self.scorer.calibration[task], self.scorer.chance[task] = calibrate(self.scorer, task, features)
        self.scorer.fitted.fill_(True)

    def with_encoder(self) -> list[EncoderWorth]:
        """What each task gains by the encoder as it is now."""
        tables = [self.scorer.tables_of(task) for task in range(len(self.counts))]
        was_training = self.model.training
        self.model.eval()
        read = self.reader.read(self.cases, self.counts, tables, None, self.generator, self.model)
        folds = torch.from_numpy(np.random.default_rng(self.seed).integers(0, FOLDS, len(self.cases)))
        result = []
        for task, found in enumerate(read):
            with torch.no_grad():
                counted = self.scorer(task, found.candidates.features)
                x = found.candidates.features[:, COUNTED:]
                ndcg = torch.stack([case_ndcg(found, counted + x @ u) for u in GRID])  # (grid, cases)
            own = torch.empty(len(self.cases))
            for fold in range(FOLDS):
                own[folds == fold] = ndcg[ndcg[:, folds != fold].nanmean(1).nan_to_num().argmax(), folds == fold]
            gains = (own - ndcg[0])[~own.isnan()]  # the first weight is 0
            error = gains.std() / max(len(gains), 1) ** 0.5 if len(gains) > 1 else gains.new_zeros(())
            best = GRID[ndcg.nanmean(1).nan_to_num().argmax()]
            calibration = calibrate(self.scorer, task, found, best)
            result.append(EncoderWorth(own.nanmean().item(), gains.mean().item(), error.item(), *calibration))
        self.model.train(was_training)
        return result

    def finish(self) -> None:
        """Fits the weight of the trained encoder for each task where it adds more to NDCG@10 than its standard error,
        and says so in the log."""
        if not self.cases:
            logger.warning("Without validation cases nobody knows what the encoder is worth, so it is not used.")
            return
        for task, found in enumerate(self.with_encoder()):
            is_used = found.gain > found.error
            logger.info(
                f"The encoder adds {found.gain:+.4f} (standard error {found.error:.4f}) to the NDCG@10 of "
                f"{self.model.config.tasks[task]} on validation, so it is {'used' if is_used else 'not used'}."
            )
            if is_used:
                self.scorer.calibration[task], self.scorer.chance[task] = found.calibration, found.chance


def _stacked(parts: Sequence[CaseFeatures]) -> CaseFeatures:
    """Joins features of different cases, whose numbers are counted on."""
    starts = offsets_of(np.array([len(part.targets) for part in parts]))[:-1].tolist()
    customers = torch.cat([part.candidates.row + start for part, start in zip(parts, starts, strict=True)])
    label, features = (torch.cat([part.candidates[index] for part in parts]) for index in (1, 2))
    is_target, is_later, log_kept = (torch.cat([getattr(part, name) for part in parts]) for name in FLAGS)
    targets = [each for part in parts for each in part.targets]
    return CaseFeatures(Candidates(customers, label, features), is_target, is_later, log_kept, targets)
