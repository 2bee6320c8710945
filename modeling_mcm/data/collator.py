# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From prepared rows to a batch. What a customer's row is trained or evaluated on is decided here, batch by batch.

The collator has three modes. `train` draws prefixes of the training period and gives the labels that followed them.
`evaluate` gives the history before a cutoff and the labels of the next visit after it. `predict` gives the whole
history. Every draw depends on the seed, the epoch and the row alone, so a run that is resumed or distributed draws the
same as a run that is neither.

Shapes: B customers, L events (start row included), P prefixes, N labels of a customer, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch.utils.data import Dataset, Sampler

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, UNKNOWN_ID, MCMConfig
from modeling_mcm.data.cases import check_cutoff, deciding_tasks, visible_end
from modeling_mcm.events_mcm import select_events
from modeling_mcm.losses_mcm import Objective
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.times_mcm import SECONDS_PER_DAY

MODES = ("train", "evaluate", "predict")
ONE_PREFIX = ("random_prefix", "last_prefix")
IGNORED = -100
POOLED_GROUPS = 64  # number of groups whose rows are sorted by length together
FADED = 4  # older targets, in half-lives, are left out: they would weigh less than a sixteenth


class PreparedRows(Dataset):
    """Prepared rows as dicts of numpy arrays. They are read from Arrow a batch at a time, and never as Python lists.

    Args:
        rows (`datasets.Dataset`): what `load_prepared` returns, or some of its columns.
        indices (`ArrayLike` of shape `(N,)`, *optional*): indices of the rows that are used, among all rows. Default:
            all rows. Each dict also holds `row`, the row's index among all rows.
        lengths (`ArrayLike` of shape `(N,)`, *optional*): length of each used row, for [`LengthGroupedSampler`]; see
            `unit_counts`.
    """

    def __init__(self, rows: datasets.Dataset, indices: ArrayLike | None = None, lengths: ArrayLike | None = None):
        self.rows = rows.with_format("arrow")
        self.indices = np.arange(len(rows)) if indices is None else np.asarray(indices)
        self.lengths = None if lengths is None else np.asarray(lengths)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = self.indices[indices]
        return numpy_rows(self.rows[rows], rows)


def numpy_rows(table: pa.Table, numbers: Sequence[int] | NDArray) -> list[dict[str, Any]]:
    """Reads prepared rows as dicts of numpy arrays: a list column is an array of shape `(events,)`, any other a plain
    value. `row` is the row's index among all rows of the data set, from `numbers` `(rows,)`."""
    batch: list[dict[str, Any]] = [{"row": int(number)} for number in numbers]
    for name in table.column_names:
        column = table[name].combine_chunks()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            offsets, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
            for row, start, end in zip(batch, offsets[:-1], offsets[1:], strict=True):
                row[name] = values[start:end]
        else:
            for row, value in zip(batch, column.to_pylist(), strict=True):
                row[name] = value
    return batch


def unit_counts(rows: datasets.Dataset, ends: ArrayLike, config: MCMConfig, max_events: int) -> NDArray[np.int64]:
    """Counts the units (events or visits) that the encoder reads of each row, `(rows,)`, the start row included.
    `ends` `(rows,)` are numbers of events of the histories; of one longer than `max_events` the latest events
    count."""
    ends = np.asarray(ends)
    if config.encoder_unit == "event":
        return np.minimum(ends + 1, max_events)
    counts, first = np.ones(len(ends), np.int64), 0
    for table in rows.select_columns(["visits"]).with_format("arrow").iter(1024):
        column = table["visits"].combine_chunks()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        offsets, visits = column.offsets.to_numpy(), column.values.to_numpy()
        indices = first + np.flatnonzero(ends[first : first + len(table)] > 0)
        start = offsets[indices - first]
        latest = visits[start + ends[indices] - 1]
        counts[indices] += latest - visits[start + np.maximum(ends[indices] - max_events + 1, 0)] + 1
        first += len(table)
    return counts


def batches_by_length(lengths: ArrayLike, size: int) -> list[NDArray[np.int64]]:
    """Cuts rows into batches of `size` rows of similar length, shortest first, so that little of a batch is padding.
    Rows of one length stay in their order."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


class LengthGroupedSampler(Sampler):
    """Gives the rows in random order, in groups of similar length, so that little of a batch is padding. The order
    depends on the seed and the epoch alone. A group is as large as a global batch: two processes with half of the
    batch each read together the rows that one process would read."""

    def __init__(self, lengths: ArrayLike, group_size: int, seed: int, epoch: torch.Tensor):
        self.lengths, self.group_size, self.seed, self.epoch = np.asarray(lengths), group_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = np.random.default_rng([self.seed, int(self.epoch)])
        order = generator.permutation(len(self.lengths))
        pool = POOLED_GROUPS * self.group_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        groups = [rows[at] for rows in pools for at in batches_by_length(self.lengths[rows], self.group_size)]
        whole = [rows for rows in groups if len(rows) == self.group_size]
        rest = [rows for rows in groups if len(rows) < self.group_size]  # comes last, for it may be a smaller batch
        yield from np.concatenate([*(whole[at] for at in generator.permutation(len(whole))), *rest, []]).astype(int)


class MCMCollator:
    """Turns prepared rows into model inputs.

    Args:
        config (`MCMConfig`): config of the model. `augmentation`, `target`, `tasks` and `input_features` are read.
        mode (`str`): "train", "evaluate" or "predict".
        cutoff (`str`): "validation" or "test": where the history ends in the mode "evaluate". Training always stays
            before the validation cutoff.
        max_events (`int`, *optional*): largest number of events in an input, the start row included. Default:
            `max_events` of the feature extractor.
        now (`int`, *optional*): moment for which customers are scored in the modes "predict" and "evaluate", in
            seconds since 1970-01-01. Default: each customer's last event.
        objective (`Objective`, *optional*): objective of pre-training. `target_half_life_days` (with the augmentation
            "all_prefixes") and `mask_probability` (with "masked_lm") are read. Default: `Objective()`.

    Attributes:
        epoch (`torch.Tensor`, int64 of shape `()`): number of the epoch. The training loop sets it. It lies in shared
            memory, so that the workers of the data loader read the new number too.

    Raises:
        ValueError: if the mode is unknown.
    """

    def __init__(
        self,
        extractor: MCMFeatureExtractor,
        config: MCMConfig,
        mode: str = "train",
        cutoff: str = "validation",
        seed: int = 0,
        max_events: int | None = None,
        now: int | None = None,
        objective: Objective | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"Found mode {mode!r}; expected one of {MODES}.")
        self.extractor, self.config, self.mode, self.seed, self.now = extractor, config, mode, seed, now
        # Reading an attribute of a config is slow, and these are read for every row.
        self.augmentation, self.target = config.augmentation, config.target
        self.objective = objective or Objective()
        # Weights compare the prefixes of one pass of the model, so they need several prefixes.
        self.half_life = self.objective.target_half_life_days if self.augmentation == "all_prefixes" else 0.0
        self.cutoff, self.end_column = cutoff, check_cutoff(cutoff)
        self.max_events = extractor.max_events if max_events is None else max_events
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.token_column = f"feature_{extractor.token_type_feature}"
        vocabulary = extractor.vocabularies[extractor.token_type_feature]
        end = extractor.end_of_visit
        self.end_of_visit_id = FIRST_VALUE_ID + vocabulary.index(end) if end is not None else -1
        self.task_columns = [f"task_{task}" for task in config.tasks]
        deciding = deciding_tasks(config.tasks, extractor.token_type_feature)
        self.deciding_columns = [f"task_{task}" for task in deciding]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch. Returns `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, `event_times`, `visit_ids`
        and, with numeric features, `event_values`, as `MCMFeatureExtractor.pad` gives them; with a moment `now` (not
        in training) also `now`. The modes "train" and "evaluate" add `labels` int64 `(B, N, T)`, where -100 is
        ignored. Training with several prefixes or masked events adds `prefix_ends` int64 `(B, P)`, the index of each
        prefix's last event in the input, and `label_prefixes` int64 `(B, N)`, the index of each label's prefix. Where
        targets fade, training also adds `label_weights` float32 `(B, N)`."""
        make = {"train": self._train, "evaluate": self._evaluate, "predict": self._predict}[self.mode]
        features = self.config.input_features
        examples = [make(self.extractor.readable(row, features)) for row in rows]
        masked = self.augmentation == "masked_lm"
        histories = [history for history, *_ in examples]
        moments = None if self.now is None or self.mode == "train" else [self.now] * len(rows)
        masked = masked and self.mode != "train"
        batch = dict(self.extractor.pad(histories, self.max_events, mask_next=masked, now=moments))
        if self.mode == "predict":
            return batch
        _, ends, prefixes, labels = zip(*examples, strict=True)
        if self.mode == "train" and self.half_life:
            weights = [self._weights(history, end[prefix]) for history, end, prefix, _ in examples]
            batch["label_weights"] = _stack(weights, 0, np.float32)
        if self.mode == "train" and self.augmentation not in ONE_PREFIX:
            batch["prefix_ends"] = _stack(ends, 0)
            batch["label_prefixes"] = _stack(prefixes, 0)
        batch["labels"] = _stack(labels, IGNORED)
        return batch

    # Each of the next methods returns a tuple: history (dict), ends of the prefixes (P,), index of each label's prefix
    # (N,), labels (N, T). The end of a prefix is an index in the padded input, where the start row has index 0 and
    # event i of the history has index i + 1. So the prefix before event i ends at index i.

    def _predict(self, row: Mapping[str, Any]):
        return (row,)

    def _evaluate(self, row: Mapping[str, Any]):
        end = row[self.end_column]
        is_target = self._is_target(row)
        is_target[:end] = is_target[visible_end(row, self.cutoff) :] = False
        next_visit = row["visits"][np.argmax(is_target)] if is_target.any() else -1
        labels = self._labels(row)[is_target & (row["visits"] == next_visit)]
        return select_events(row, slice(end)), np.zeros(1, int), np.zeros(len(labels), int), labels

    def _train(self, row: Mapping[str, Any]):
        generator = np.random.default_rng([self.seed, int(self.epoch), row["row"]])
        history = select_events(row, slice(row["validation_end"]))
        number = len(history["times"])
        draw = generator.random(number)
        if self.augmentation in ONE_PREFIX:
            return self._one_prefix(select_events(history, self._shuffled(history, draw, 0, number)), generator)
        start, end = self._window(history["visits"], generator)
        window = select_events(history, self._shuffled(history, draw, start, end))
        if self.augmentation == "masked_lm":
            return self._masked_events(window, generator)
        return self._all_prefixes(window, whole=start == 0)

    def _shuffled(self, history: dict[str, Any], draw: NDArray, start: int, end: int) -> NDArray[np.int64]:
        """Indices of the events from `start` to `end` of a history whose order within visits is drawn anew."""
        visits = history["visits"]
        first = int(np.searchsorted(visits, visits[start])) if start else 0
        sorted_part = slice(first, end)
        draw[history[self.token_column] == self.end_of_visit_id] = 2.0
        order = np.lexsort((draw[sorted_part], history["times"][sorted_part], visits[sorted_part]))
        return first + order[start - first :]

    def _window(self, visits: NDArray, generator: np.random.Generator) -> tuple[int, int]:
        """Start and end of the events that fit: all events, or the events before the end of a random visit."""
        size = self.max_events - 1
        if len(visits) <= size:
            return 0, len(visits)
        visit_ends = np.flatnonzero(np.append(visits[1:] != visits[:-1], True)) + 1
        end = int(generator.choice(visit_ends[visit_ends >= size]))
        return end - size, end

    def _prefix_before(self, history: Mapping[str, Any]) -> NDArray:
        """End of the prefix from which each event is predicted: the event before, or the end of the visit before."""
        events = np.arange(len(history["visits"]))
        if self.target == "next_event" or not len(events):
            return events
        opens = np.append(True, np.diff(history["visits"]) != 0)
        return events[opens][np.cumsum(opens) - 1]

    def _one_prefix(self, history: dict[str, Any], generator: np.random.Generator):
        ends = self._prefix_before(history)
        is_target = self._is_target(history)
        choices = ends[is_target] if self.target == "next_event" else np.unique(ends[is_target])
        choices = choices[choices > 0] if (choices > 0).any() else choices  # else only the start row is read
        if self.augmentation == "last_prefix":
            choices = choices[-1:]
        end = int(generator.choice(choices)) if len(choices) else 0
        labels = self._labels(history)[is_target & (ends == end)]
        prefixes = np.zeros(len(labels), int)
        return select_events(history, slice(end)), np.array([end]), prefixes, self._distinct(prefixes, labels)

    def _all_prefixes(self, window: dict[str, Any], whole: bool):
        ends = self._prefix_before(window)
        # Where the history is longer than the window, the start row is not all that came before the first visit.
        is_target = self._is_target(window) & (whole | (ends > 0))
        if self.half_life:
            days = self._days_before_latest(window["times"], window["times"][is_target])
            is_target &= days <= FADED * self.half_life
        prefix_ends, prefixes = np.unique(ends[is_target], return_inverse=True)
        return window, prefix_ends, prefixes, self._distinct(prefixes, self._labels(window)[is_target])

    def _masked_events(self, window: dict[str, Any], generator: np.random.Generator):
        draw = np.where(self._is_target(window), generator.random(len(window["times"])), 2.0)
        hidden = np.flatnonzero(draw < max(self.objective.mask_probability, draw.min(initial=2.0) + 1e-12))
        hidden = hidden[draw[hidden] < 2.0]
        masked = {
            name: np.where(
                np.isin(np.arange(len(value)), hidden), UNKNOWN_ID if name.startswith("feature_") else 0, value
            )
            for name, value in window.items()
            if name.startswith(("feature_", "value_"))
        }
        return {**window, **masked}, hidden + 1, np.arange(len(hidden)), self._labels(window)[hidden]

    def _weights(self, window: Mapping[str, Any], ends: NDArray) -> NDArray[np.float32]:
        """Weight of each label: it halves for every half-life from the label's prefix to the latest prefix."""
        times = window["times"][np.minimum(ends, len(window["times"]) - 1)]
        days = self._days_before_latest(times, times)
        return np.exp2(-days / self.half_life).astype(np.float32)

    @staticmethod
    def _days_before_latest(times: NDArray, targets: NDArray) -> NDArray[np.float64]:
        """Days from each time to the latest target; times and targets are in seconds."""
        return (targets.max(initial=times.min(initial=0)) - times) / SECONDS_PER_DAY

    def _labels(self, row: Mapping[str, Any]) -> NDArray:
        return np.stack([row[column] for column in self.task_columns], axis=1).astype(np.int64)

    def _is_target(self, row: Mapping[str, Any]) -> NDArray:
        return np.any([row[column] > 0 for column in self.deciding_columns], axis=0)

    def _distinct(self, prefixes: NDArray, labels: NDArray) -> NDArray:
        """Ignores a label that its prefix has already, because the next visit is a set of labels."""
        if self.target == "next_event":
            return labels
        tasks = labels.shape[1]
        met = (prefixes[:, None] * tasks + np.arange(tasks)) * (labels.max(initial=0) + 1) + labels
        _, first = np.unique(met, return_index=True)  # index of the first event of each prefix, task and label
        result = np.full_like(labels, IGNORED)
        result.flat[first] = labels.flat[first]
        return result


def _stack(arrays: Sequence[NDArray], padding: int, dtype: DTypeLike = np.int64) -> torch.Tensor:
    """Arrays of different lengths as one tensor, padded at the end of their first axis with the value `padding`."""
    longest = max(1, max(map(len, arrays)))
    result = np.full((len(arrays), longest, *arrays[0].shape[1:]), padding, dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(result)
