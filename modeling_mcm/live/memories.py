# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The memories of a live customer: which labels were met, how often, when, and what is related to them.

[`LiveMemories`] holds what the repeat memory and the counted memory of a model need of a customer's events, and is
updated by new events alone: for each label met the fading counts, its first and last unit and time, and its rate; for
related labels the two products with the tables of the counted memory.

Shapes: L events, J features, U units (events or visits), H hidden size, V labels of all tasks, S labels met by the
customer, K half-lives, A latest labels, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.counted_memory_mcm import (
    HABIT_VISITS,
    LATEST,
    LEAST_RATE,
    LEAST_WEIGHT,
    CountedMemory,
    Histories,
    RelatedTable,
)
from modeling_mcm.live.weights import Reader, TaskTables
from modeling_mcm.repeat_memory_mcm import RepeatMemory

DECAY = 2.0 ** (-1 / HABIT_VISITS)
# Columns of `LiveMemories.met` after the K fading counts.
NUMBER, FIRST_UNIT, LAST_UNIT, FIRST_TIME, LAST_TIME, RATE = range(6)
COLUMNS = 6
PRODUCTS = ("habits", "new")  # computed from the rest, so they are not stored


class NewUnits(NamedTuple):
    """New units of a customer, and their events."""

    input_ids: torch.Tensor  # (L, J): feature ids of the events, oldest first
    events: torch.Tensor  # (L, H): vectors of the events
    units: torch.Tensor  # (L,): unit of each event, counted from 0
    visits: torch.Tensor  # (L,): visit of each event, counted from 0
    times: torch.Tensor  # (L,): days from the customer's first event to each event
    unit_times: torch.Tensor  # (U,): days from the customer's first event to each unit


class Moment(NamedTuple):
    """A moment for which a customer is scored."""

    units: int  # number of units until then, the start row included
    time: float  # time of the last event, in days from the customer's first event
    wait: float  # days from the last event to the moment


@dataclass
class LiveMemories:
    """What the memories need of a customer's events. A label's index is that among the labels of all tasks."""

    labels: torch.Tensor  # (S,): indices of the labels met, ascending
    # (S, K + 6): for each label met the fading counts, the number of units with it, the first and the last of these
    # units, their times, and its rate, not normalised
    met: torch.Tensor
    label_visits: torch.Tensor  # (T,): number of visits with a label of each task
    # (T, A): label ids of each task's latest labels, the last one at the end; 0 where there are fewer
    latest: torch.Tensor
    latest_times: torch.Tensor  # (T, A): times of the latest labels
    habits: torch.Tensor  # (V,): rates of the labels met times the table of habits
    new: torch.Tensor  # (V,): labels met times the table of new labels

    @classmethod
    def empty(cls, reader: Reader) -> "LiveMemories":
        """The memories of a customer without events."""
        tasks, size = len(reader.tables), reader.labels
        kernels = reader.tables[0].gains.shape[1]
        return cls(
            labels=torch.zeros(0, dtype=torch.long),
            met=torch.zeros(0, kernels + COLUMNS, dtype=torch.float64),
            label_visits=torch.zeros(tasks, dtype=torch.long),
            latest=torch.zeros(tasks, LATEST, dtype=torch.long),
            latest_times=torch.zeros(tasks, LATEST),
            habits=torch.zeros(size, dtype=torch.float64),
            new=torch.zeros(size, dtype=torch.float64),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors to store, by name, from which `of_tensors` restores the memories."""
        return {name: value for name, value in vars(self).items() if name not in PRODUCTS}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor], reader: Reader) -> "LiveMemories":
        """Restores memories."""
        names = [each.name for each in fields(cls) if each.name not in PRODUCTS]
        memories = replace(cls.empty(reader), **{name: tensors[name] for name in names})
        memories._relate(reader, memories.labels, memories.met[:, RATE - COLUMNS], memories.labels)
        return memories

    def extend(self, reader: Reader, new: NewUnits, units: int, time: float) -> "LiveMemories":
        """Adds new units after `units` earlier ones, the last at `time`, and returns new memories; the old stay as
        they are."""
        memories = replace(self)
        memory = reader.model.repeat_memory
        votes = torch.ones(len(new.events)) if memory is None else memory.vote(new.events)[:, 0].exp()
        ids = new.input_ids.T[reader.features]  # (T, L)
        is_label = ids >= FIRST_LABEL
        task, event = is_label.nonzero(as_tuple=True)
        labels = ids[task, event] + reader.starts[task]
        count = len(new.unit_times)
        # Each label's votes in each unit: pairs (label, unit), each once, in the order of labels and units.
        pairs, of_vote, number = (labels * count + new.units[event]).unique(return_inverse=True, return_counts=True)
        vote = torch.zeros(len(pairs)).index_add(0, of_vote, votes[event]) / number
        pair_labels, pair_units = pairs // count, pairs % count
        met_now, of_pair, meetings = pair_labels.unique_consecutive(return_inverse=True, return_counts=True)
        is_first, rows = memories._make_room(met_now)

        slots, kernels = rows[of_pair], memories.met.shape[1] - COLUMNS
        pair_times = new.unit_times[pair_units]
        if memory is not None:
            faded, columns = memories.met[:, :kernels], memories.met[:, kernels:]
            ages = torch.where(reader.by_day, float(new.unit_times[-1]) - time, float(count))
            faded *= torch.exp2(-ages.double().clamp(min=0) * reader.rates)
            if count == 1:
                added = vote.double()[:, None].expand(-1, kernels)
            else:
                days, steps = (new.unit_times[-1] - pair_times).clamp(min=0), (count - 1 - pair_units).float()
                since = torch.where(reader.by_day, days[:, None], steps[:, None]).double()
                added = vote[:, None] * torch.exp2(-since * reader.rates)
            faded.index_add_(0, slots, added)
        else:
            columns = memories.met
        columns[:, NUMBER].index_add_(0, rows, meetings.double())
        ends = meetings.cumsum(0)
        opening, last = (ends - meetings)[is_first], ends - 1
        pair_units = pair_units + units
        for column, values in ((FIRST_UNIT, pair_units), (FIRST_TIME, pair_times)):
            columns[:, column].index_copy_(0, rows[is_first], values[opening].double())
        for column, values in ((LAST_UNIT, pair_units), (LAST_TIME, pair_times)):
            columns[:, column].index_copy_(0, rows, values[last].double())
        if reader.relates_some:
            if reader.unit != "visit":
                number = int(new.visits[-1]) + 1
                cells = (labels * number + new.visits[event]).unique()
                pair_labels, visits_met = cells // number, cells % number
            else:
                number, visits_met = count, pairs % count
            memories._add_visits(reader, pair_labels, visits_met, number, met_now[is_first])
        memories._add_latest(ids, is_label, new.times)
        return memories

    def _make_room(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds rows to `met` for ascending labels that have none, in a copy: the earlier state does not change."""
        rows = torch.searchsorted(self.labels, labels)
        is_new = F.pad(self.labels, (0, 1), value=-1)[rows] != labels
        new = labels[is_new]
        if not len(new):
            self.met = self.met.clone()
            return is_new, rows
        self.labels, order = torch.cat([self.labels, new]).sort()
        self.met = F.pad(self.met, (0, 0, 0, len(new)))[order]
        return is_new, rows + is_new.cumsum(0) - is_new.long()

    def _add_visits(
        self, reader: Reader, labels: torch.Tensor, visits: torch.Tensor, number: int, new: torch.Tensor
    ) -> None:
        """Adds new visits to the rates of labels and to the products with the tables of related labels."""
        tasks = reader.task_of[labels]
        if not reader.relates_all:
            related = reader.is_related[tasks]
            labels, visits, tasks = labels[related], visits[related], tasks[related]
            new = new[reader.is_related[reader.task_of[new]]]
        has_label = torch.zeros(len(reader.tables), number, dtype=torch.bool)
        has_label[tasks, visits] = True
        passed = has_label.cumsum(1)  # visits with a label of the task, up to each
        fades = DECAY ** passed[:, -1].double()
        self.label_visits = self.label_visits + passed[:, -1]
        weights = DECAY ** (passed[tasks, -1] - passed[tasks, visits]).double()
        rates = self.met[:, RATE - COLUMNS]
        rates *= fades[reader.task_of[self.labels]]
        rates.index_add_(0, torch.searchsorted(self.labels, labels), weights)
        self.habits = self.habits * fades[reader.task_of]
        self.new = self.new.clone()
        self._relate(reader, labels, weights, new)

    def _relate(self, reader: Reader, labels: torch.Tensor, rates: torch.Tensor, new: torch.Tensor) -> None:
        """Adds products with the tables of related labels: those of `labels` times their `rates` to `habits`, and
        those of `new` labels to `new`. Indices of labels are ascending."""
        memory = reader.model.counted_memory
        if memory is None:
            return
        for total, tables, of, amounts in (
            (self.habits, memory.habit_tables, labels, rates),
            (self.new, memory.new_tables, new, None),
        ):
            ends = torch.searchsorted(of, reader.starts).tolist()
            for table, start, end in zip(reader.tables, ends, [*ends[1:], len(of)], strict=True):
                if start == end or not memory.has_related(table.task):
                    continue
                related = cast(RelatedTable, tables[str(table.task)])
                rows = of[start:end] - table.labels.start
                values = related.weights[rows].double()
                if amounts is not None:
                    values *= amounts[start:end, None]
                total[table.labels].scatter_add_(0, related.related[rows].flatten().long(), values.flatten())

    def _add_latest(self, ids: torch.Tensor, is_label: torch.Tensor, times: torch.Tensor) -> None:
        """Adds the labels of new events, where `is_label` says that an id is a label, to the latest labels."""
        latest, latest_times = [], []
        for task in range(len(ids)):
            some = is_label[task].nonzero()[-LATEST:, 0]
            latest.append(torch.cat([self.latest[task], ids[task, some]])[-LATEST:])
            latest_times.append(torch.cat([self.latest_times[task], times[some]])[-LATEST:])
        self.latest, self.latest_times = torch.stack(latest), torch.stack(latest_times)

    def parts(self, reader: Reader, table: TaskTables, moment: Moment) -> dict[str, torch.Tensor]:
        """Parts of a task's scores that come from memories, each of shape `(labels,)`; see the model's
        `score_parts`."""
        model, parts = reader.model, {}
        size = table.labels.stop - table.labels.start
        part = self._of_task(table)
        labels, met = self.labels[part] - table.labels.start, self.met[part]
        if model.repeat_memory is not None:
            parts["repeats"] = torch.zeros(size)
            parts["repeats"][labels] = self._repeats(reader, table, labels, met.float(), moment)
        memory = model.counted_memory
        if memory is not None:
            is_met = torch.zeros(size, dtype=torch.bool)
            is_met[labels] = True
            if memory.has_followers(table.task):
                parts["followers"] = self._followers(memory, table.task, moment.time)
                if model.repeat_memory is None:
                    parts["followers"] = parts["followers"] + memory.met_gain[table.task] * is_met
            if memory.has_related(table.task):
                total = max(int(self.label_visits[table.task]), 1)
                habits = self.habits[table.labels] * ((1 - DECAY) / (1 - DECAY**total))
                parts["met"] = is_met
                parts["habits"] = (habits.clamp(min=0) + LEAST_RATE).log().float()
                parts["new"] = torch.log1p(self.new[table.labels].clamp(min=0) / LEAST_WEIGHT).float()
        return parts

    def _of_task(self, table: TaskTables) -> slice:
        """The rows of `labels` and `met` that belong to a task."""
        bounds = torch.tensor([table.labels.start, table.labels.stop])
        return slice(*torch.searchsorted(self.labels, bounds).tolist())

    def _repeats(
        self, reader: Reader, table: TaskTables, labels: torch.Tensor, met: torch.Tensor, moment: Moment
    ) -> torch.Tensor:
        """Values that the repeat memory adds to the scores of labels met."""
        memory, kernels = cast(RepeatMemory, reader.model.repeat_memory), met.shape[1] - COLUMNS
        counts, columns = met[:, :kernels], met[:, kernels:]
        if moment.wait:  # counts that fade with days fade until the moment of the scores
            counts = counts * torch.exp2(-moment.wait * reader.by_day * reader.rates).float()
        return memory.pair_scores(
            [table.task],
            [len(labels)],
            counts,
            table.gains[labels],
            table.rarity[labels],
            ends=torch.full((len(labels),), float(moment.units - 1)),
            meetings=[columns[:, column] for column in (NUMBER, FIRST_UNIT, LAST_UNIT)],
            days=[moment.time + moment.wait - columns[:, column] for column in (FIRST_TIME, LAST_TIME)],
        )

    def _followers(self, memory: CountedMemory, task: int, time: float) -> torch.Tensor:
        """Values that followers of the latest labels add to a task's scores, of shape `(labels,)`."""
        labels = F.pad(self.latest[task], (0, 1))[None]
        times = F.pad(self.latest_times[task], (0, 1), value=time)[None]
        nothing = torch.zeros_like(labels)
        histories = Histories(nothing, times, torch.zeros(1, dtype=torch.long), torch.tensor([labels.shape[1] - 1]))
        return memory.followers(task, labels, histories)[0]
