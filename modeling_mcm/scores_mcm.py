# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Computes the scores of labels as sums of parts, and the losses of score matrices, from hidden vectors.

Training, evaluation and serving share this code. Without gradients, or without labels, each task has a score matrix of
its own. A training step has one score matrix with the labels of all tasks as columns, and computes its losses from it.

Shapes: as in modeling_mcm.py; E labels of the tasks of one score matrix. In [`ScoredRows`] E is the number of scored
prefixes of the customer with the most, and M that of selected scores.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from .configuration_mcm import FIRST_LABEL
from .counted_memory_mcm import CountedMemory, Histories
from .losses_mcm import Objective, Targets, task_losses
from .readout_mcm import READOUTS, PackedUnits
from .repeat_memory_mcm import RepeatMemory
from .sampling_mcm import TaskLabels, indices_of, joined_log_counts
from .scorer_mcm import LabelScorer, read_histories

# The parts whose sum is a score, in the order of `score_scales`.
PARTS = ("readout", "bias", "repeats", "followers")
# Parts of scores by name. `repeats` may be sparse: a pair of indices into the flattened score matrix and values.
Parts = dict[str, Any]


class ScoredRows(NamedTuple):
    """The rows of a batch's score matrix: one row for each scored prefix."""

    customers: torch.Tensor  # (R,): customer of each row
    last_events: torch.Tensor  # (R,): index of the last event of each row's prefix
    ends: torch.Tensor  # (B, E): index of the last unit of each scored prefix, by customer
    is_row: torch.Tensor | None  # (B, E): whether an element of `ends` is real or padding; `None`: all are real
    # (B, U): row of the prefix that ends at each unit; without meaning where no scored prefix ends
    of_units: torch.Tensor
    mask: torch.Tensor  # (B, U): units that the readout reads
    # the units without padding where prefixes are scored; `None` where only the whole histories are
    packed: PackedUnits | None

    @classmethod
    def of_histories(cls, batch: Mapping[str, Any], event_units: torch.Tensor) -> "ScoredRows":
        """One row for each customer: the whole history is scored."""
        last_events = batch["attention_mask"].sum(1) - 1
        customers = torch.arange(last_events.shape[0], device=last_events.device)
        ends = event_units.gather(1, last_events[:, None])
        mask = batch["unit_mask"]
        return cls(customers, last_events, ends, None, customers[:, None].expand_as(mask), mask, None)

    @classmethod
    def of_prefixes(cls, batch: Mapping[str, Any], event_units: torch.Tensor, is_end: torch.Tensor) -> "ScoredRows":
        """One row for each prefix that ends at a unit of `is_end`; it reads the events up to the prefix's end.

        Args:
            batch (`dict`): `attention_mask` of shape `(B, L)` and `unit_mask` of shape `(B, U)`.
            event_units (`torch.LongTensor` of shape `(B, L)`): index of each event's unit.
            is_end (`torch.BoolTensor` of shape `(B, U)`): True where a scored prefix ends.
        """
        mask = batch["unit_mask"].clone()
        mask[:, 0] = True  # an empty history needs a row for the look-ups below; its scores are not used
        packed = PackedUnits.of(mask, is_end)
        scored = slice(None) if packed.scored is None else packed.scored
        customers, units = packed.customers[scored], packed.units[scored]
        event = torch.arange(event_units.shape[1], device=event_units.device).expand_as(event_units)
        event = event * batch["attention_mask"]
        last_events = torch.zeros_like(mask).long().scatter_reduce(1, event_units, event, "amax")
        most = int(is_end.sum(1).max())
        ends = (~is_end).byte().argsort(dim=1, stable=True)[:, :most]  # ascending for each customer
        return cls(
            customers, last_events[customers, units], ends, is_end.gather(1, ends), packed.score_rows, mask, packed
        )

    def cells(self, customers: torch.Tensor, ends: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
        """Indices of selected scores in the flattened score matrix, of shape `(M,)`."""
        return self.of_units[customers, self.ends[customers, ends]] * width + columns


class TaskScores:
    """Mixin of [`MCMForMultiTaskRecommendation`]: computes scores and losses from the encoder's vectors."""

    config: Any  # [`MCMConfig`]
    training: bool
    objective: Objective
    task_features: list[int]
    readout_scale: nn.Parameter | None
    readout_bias: nn.ParameterList
    repeat_memory: RepeatMemory | None
    counted_memory: CountedMemory | None
    scorer: LabelScorer | None
    score_scales: torch.Tensor

    def _event_units(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Index of each event's unit, of shape `(B, L)`."""
        if self.config.encoder_unit == "visit" and batch["visit_ids"] is not None:  # else the embeddings have raised
            return batch["visit_ids"]
        shape = batch["input_ids"].shape[:2]
        return torch.arange(shape[1], device=batch["input_ids"].device).expand(shape)

    def _rows(self, batch: Mapping[str, Any], of_labels: torch.Tensor | None = None) -> ScoredRows:
        """The rows of a batch's score matrix."""
        event_units = self._event_units(batch)
        if batch["prefix_ends"] is None:
            return ScoredRows.of_histories(batch, event_units)
        ends = event_units.gather(1, batch["prefix_ends"])
        is_scored = torch.ones_like(ends)
        if of_labels is not None:
            ends, is_scored = ends.gather(1, _prefixes_of_labels(batch)), of_labels.long()
        is_end = torch.zeros_like(batch["unit_mask"]).long().scatter_add(1, ends, is_scored) > 0
        return ScoredRows.of_prefixes(batch, event_units, is_end)

    def _score_parts(
        self,
        hidden: torch.Tensor,
        events: torch.Tensor,
        batch: Mapping[str, Any],
        rows: ScoredRows,
        scored: Sequence[TaskLabels],
        tasks: Sequence[int],
        side_by_side: bool = False,
    ) -> list[Parts]:
        """Parts of the scores of some tasks."""
        if self.scorer is not None:
            if batch.get("prefix_ends") is not None:
                raise ValueError("A model without an encoder scores whole histories: leave out `prefix_ends`.")
            found = read_histories(self.config, batch)
            return [{"readout": self.scorer.score(task, found[task])} for task in tasks]
        indices = range(len(tasks))
        groups = [list(indices)] if side_by_side else [[index] for index in indices]
        vectors = [labels.vectors for labels in scored]
        if (scale := self.readout_scale) is not None:
            vectors = [table * scale[task] for task, table in zip(tasks, vectors, strict=True)]
        remembered = None if self.repeat_memory is None else self._memory(tasks, scored, events, batch, rows)
        histories = None if self.counted_memory is None else self._histories(batch, rows.customers, rows.last_events)
        result = []
        for group in groups:
            readout = READOUTS[self.config.readout](
                hidden, torch.cat([vectors[k] for k in group]), rows.mask, rows.packed
            )
            parts: Parts = {
                "readout": readout,
                "bias": torch.cat([self._label_offsets(scored[k], readout.dtype) for k in group]),
            }
            if remembered is not None:
                parts["repeats"] = _cells(rows, [remembered[k] for k in group], [len(vectors[k]) for k in group])
            if histories is not None:
                of_tasks = [self._counted_parts(tasks[k], scored[k], batch, histories, side_by_side) for k in group]
                parts |= _beside(of_tasks, [vectors[k] for k in group], rows.customers.shape[0])
            result.append(parts)
        return result

    def _memory(
        self,
        tasks: Sequence[int],
        scored: Sequence[TaskLabels],
        events: torch.Tensor,
        batch: Mapping[str, Any],
        rows: ScoredRows,
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Values that the repeat memory adds to the scores of these tasks; see [`RepeatMemory.forward`]."""
        memory, shape = cast(RepeatMemory, self.repeat_memory), batch["unit_mask"].shape
        if batch["event_times"] is None:
            raise ValueError("The repeat memory needs `event_times`: MCMFeatureExtractor gives them.")
        times, event_units = batch["event_times"], self._event_units(batch)
        unit_times = times.new_zeros(shape).scatter_reduce(1, event_units, times, "amax")
        label_ids = indices_of(scored, batch["input_ids"][..., [self.task_features[task] for task in tasks]])
        met = memory.votes(label_ids, event_units, events, shape[1])
        waits, moments = None, None
        if (prefix_times := batch.get("prefix_times")) is not None:
            ends = event_units.gather(1, batch["prefix_ends"])
            moments = unit_times.scatter_reduce(1, ends, prefix_times, "amax").gather(1, rows.ends)
        elif (now := batch.get("now")) is not None:
            moments = now[:, None]
        if moments is not None:
            waits = (moments - unit_times.gather(1, rows.ends)).clamp(min=0)
        return memory(tasks, unit_times, rows.ends, met, rows.is_row, [labels.memory for labels in scored], waits)

    def _histories(self, batch: Mapping[str, Any], customers: torch.Tensor, ends: torch.Tensor) -> Histories:
        """Histories of the scored prefixes: each is one customer's events up to an end."""
        if batch["event_times"] is None:
            raise ValueError("The counted memory needs `event_times`: MCMFeatureExtractor gives them.")
        visits = torch.zeros_like(batch["attention_mask"]) if batch["visit_ids"] is None else batch["visit_ids"]
        return Histories.of(batch["event_times"], visits, customers, ends)

    def _counted_parts(
        self, task: int, scored: TaskLabels, batch: Mapping[str, Any], histories: Histories, without_own: bool = False
    ) -> Parts:
        """Parts of a task's scores that the counted memory adds, each of shape `(R, V)`."""
        memory, parts = cast(CountedMemory, self.counted_memory), {}
        labels = batch["input_ids"][..., self.task_features[task]]
        if memory.has_followers(task):
            added = memory.followers(task, labels, histories, scored.ids, without_own)
            if self.repeat_memory is None:
                met = memory.met(task, labels, histories)
                met = met if scored.ids is None else met.index_select(1, scored.ids)
                added = added + memory.met_gain[task] * met
            parts["followers"] = added
        if memory.has_related(task) and not self.training:
            visits = torch.zeros_like(labels) if batch["visit_ids"] is None else batch["visit_ids"]
            parts["met"] = memory.met(task, labels, histories)
            parts["habits"] = memory.habits(task, memory.rates(task, labels, visits, histories))
            parts["new"] = memory.new(task, parts["met"])
        return parts

    @staticmethod
    def _label_offsets(scored: TaskLabels, dtype: torch.dtype) -> torch.Tensor:
        """Bias of each label, of shape `(V,)`; 0 if the model has no biases."""
        return (
            scored.vectors.new_zeros(len(scored.vectors), dtype=dtype)
            if scored.bias is None
            else scored.bias.to(dtype)
        )

    def joined_scores(self, index: int, parts: Mapping[str, Any]) -> torch.Tensor:
        """Sums the parts of a task's scores, `(..., V)`; ids 0 and 1 are masked with a large negative value."""
        return self._joined([index], parts, [0])

    def _joined(self, tasks: Sequence[int], parts: Mapping[str, Any], sizes: Sequence[int]) -> torch.Tensor:
        """As `joined_scores`, for several tasks in one matrix; `sizes` are their numbers of labels."""
        scales = self.score_scales[list(tasks)]
        is_scaled = not self.training or bool((scales != 1).any())  # training starts with 1
        if len(tasks) > 1:
            of_labels = [scale.expand(size, -1) for scale, size in zip(scales, sizes, strict=True)]
            scales = torch.cat(of_labels)  # (E, parts)
        scores: Any = None
        for number, name in enumerate(PARTS):
            if name not in parts:
                continue
            part, of_part = parts[name], scales[:, number]
            if isinstance(part, tuple):
                cells, added = part
                if is_scaled:
                    of_cells = of_part if len(tasks) == 1 else of_part[cells % scores.shape[-1]]
                    added = added * of_cells.to(added.dtype)
                scores = scores.flatten().scatter_add_(0, cells, added.to(scores.dtype)).view(scores.shape)
            else:
                part = part * of_part.to(part.dtype) if is_scaled else part
                scores = part if scores is None else scores + part
        if self.counted_memory is not None and "met" in parts:
            memory, (task,) = self.counted_memory, tasks
            gains = [gain[task] for gain in (memory.habit_gain, memory.new_gain, memory.new_offset)]
            related = memory.joined(scores, parts, *gains)
            # The gains are learned at the end of pre-training, and 0 before.
            is_learned = (memory.new_gain[task] != 0) | (memory.habit_gain[task] != 0)
            scores = torch.where(is_learned, related, scores).to(scores.dtype)
        masked = torch.finfo(scores.dtype).min / 2
        if len(tasks) == 1:
            return torch.where(torch.arange(scores.shape[-1], device=scores.device) < FIRST_LABEL, masked, scores)
        for start in (sum(sizes[:index]) for index in range(len(sizes))):
            scores[:, start : start + FIRST_LABEL] = masked
        return scores

    def _losses(
        self,
        scores: torch.Tensor,
        batch: Mapping[str, Any],
        rows: ScoredRows,
        scored: Sequence[TaskLabels],
        tasks: Sequence[int],
    ) -> torch.Tensor:
        """Loss of each task, of shape `(T,)`, from a score matrix `(R, E)` with their labels as columns."""
        target_ids = indices_of(scored, batch["labels"][..., tasks])
        of_labels = rows.of_units[:, :1].expand(target_ids.shape[:2])
        if rows.packed is not None:
            ends = self._event_units(batch).gather(1, batch["prefix_ends"]).gather(1, _prefixes_of_labels(batch))
            of_labels = rows.of_units.gather(1, ends)
        sizes = [len(labels.vectors) for labels in scored]
        targets = Targets.find(target_ids, of_labels, batch["label_weights"], sizes)
        return task_losses(scores, targets, self.objective.ranking_loss_weight, joined_log_counts(scored))

    def _losses_side_by_side(
        self, hidden: torch.Tensor, events: torch.Tensor, batch: Mapping[str, Any], scored: Sequence[TaskLabels]
    ) -> torch.Tensor:
        """Loss of each task, of shape `(T,)`; only the prefixes of targets are scored."""
        tasks = list(range(len(scored)))
        is_target = (indices_of(scored, batch["labels"]) >= FIRST_LABEL).any(-1)
        rows = self._rows(batch, is_target)
        (parts,) = self._score_parts(hidden, events, batch, rows, scored, tasks, side_by_side=True)
        scores = self._joined(tasks, parts, [len(labels.vectors) for labels in scored])
        return self._losses(scores, batch, rows, scored, tasks)


def _prefixes_of_labels(batch: Mapping[str, Any]) -> torch.Tensor:
    """Prefix of each target, of shape `(B, N)`; the first prefix by default."""
    prefixes = batch["label_prefixes"]
    return torch.zeros_like(batch["labels"][..., 0]) if prefixes is None else prefixes


def _cells(
    rows: ScoredRows,
    remembered: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that the repeat memory adds to the scores of tasks in one matrix, as pairs of an index into the flattened
    matrix and a value, each of shape `(M,)`."""
    columns = [labels + sum(sizes[:index]) for index, (_, _, labels, _) in enumerate(remembered)]
    customers, ends, _, added = (torch.cat(values) for values in zip(*remembered, strict=True))
    return rows.cells(customers, ends, torch.cat(columns), sum(sizes)), added


def _beside(of_tasks: Sequence[Parts], vectors: Sequence[torch.Tensor], rows: int) -> Parts:
    """Parts of the counted memory for one task, or the followers of several tasks in one matrix (0 if none)."""
    if len(of_tasks) == 1:
        return of_tasks[0]
    if not any("followers" in parts for parts in of_tasks):
        return {}
    zeros = [table.new_zeros(rows, len(table)) for table in vectors]
    return {"followers": torch.cat([p.get("followers", zero) for p, zero in zip(of_tasks, zeros, strict=True)], 1)}
