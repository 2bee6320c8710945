# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From prepared rows to a batch. What a customer's row is trained or evaluated on is decided here, batch by batch.

The collator has two modes. `evaluate` gives the history before a cutoff and the labels of the next visit after it.
`train` reads the training period, and gives what the config's augmentation asks of it:

    random_prefix   the history before a random target; the target, or the set of labels of its visit
    last_prefix     the history before the last target; that
    all_prefixes    the history; after each of its prefixes what followed
    masked_lm       the history with some targets hidden; those

What a prefix is asked for is the next event, or the next visit, by the config's `target`. Every draw depends on the
seed, the epoch and the row alone, so a run that is resumed or distributed draws the same as a run that is neither.

All rows of a batch are computed together, in flat arrays: "events" is the number of all their events.

Shapes: B customers, L events (start row included), P prefixes, N labels of a customer, T tasks.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, Lock
from typing import NamedTuple, TypeVar

import datasets
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler

from modeling_mcm.configuration_mcm import UNKNOWN_ID, MCMConfig
from modeling_mcm.events_mcm import SECONDS_PER_DAY, BoolArray, FloatArray, IntArray, pad_groups, run_starts
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.inputs_mcm import Customers

from .cases import IGNORED, CaseEvents, find_targets, tell_unseen, to_batch

Item = TypeVar("Item")
Result = TypeVar("Result")
ONE_PREFIX = ("random_prefix", "last_prefix")
MASKED = 0.2  # share of the events that "masked_lm" masks
MOST_PADDED = 2**19  # events of a batch, padding included: 2,048 of each of 256 customers
POOLED_GROUPS = 64  # number of groups whose rows are sorted by length together
STARTING = Lock()  # while threads start, torch's number of threads is not that of the process
FADED = 4  # older targets, in half-lives, are left out: they would weigh less than a sixteenth


class PreparedRows(Dataset):
    """Prepared rows, read from Arrow a batch at a time, and never as Python lists. Of each row an event column is an
    array of shape `(events,)`, any other a plain value.

    Args:
        rows (`datasets.Dataset`): What `load_prepared` returns, or some of its columns.
        indices (`ArrayLike` of shape `(N,)`, *optional*): Indices of the rows that are used, among all rows. Default:
            all rows. Each dict also holds `row`, the row's index among all rows.
        lengths (`NDArray` of shape `(N,)`, *optional*): Length of each used row, for [`LengthGroupedSampler`]; see
            `unit_counts`.
        ends (`NDArray` of shape `(rows,)`, *optional*): Number of events of each row to train on, in the place of
            those before the validation cutoff.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        indices: ArrayLike | None = None,
        lengths: NDArray | None = None,
        ends: NDArray | None = None,
    ):
        self.rows = rows.with_format("arrow")
        self.indices = np.arange(len(rows)) if indices is None else np.asarray(indices)
        self.lengths, self.ends = lengths, ends

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Mapping:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Customers:
        rows = self.indices[indices].tolist()
        batch = to_batch(self.rows[rows])
        batch.columns["row"] = rows
        if self.ends is not None:
            batch.columns["validation_end"] = self.ends[rows]
        return batch


def unit_counts(batch: Customers, ends: IntArray, config: MCMConfig) -> IntArray:
    """Counts the units (events or visits) that the encoder reads of each row, `(rows,)`, the start row included.
    `ends` `(rows,)` are numbers of events of the histories."""
    if config.encoder_unit == "event":
        return np.minimum(ends + 1, config.max_events)
    visits = np.append(batch.column("visits"), 0)  # where a last row without events would begin
    first = batch.starts + np.maximum(ends - config.max_events + 1, 0)
    return np.where(ends > 0, visits[batch.starts + ends - 1] - visits[first] + 2, 1)


def batches_by_length(lengths: ArrayLike, size: int, most: float = MOST_PADDED) -> list[IntArray]:
    """Cuts rows into batches of `size` rows of similar length, shortest first, so that little of a batch is padding;
    of fewer rows where it would have more than `most` events, padding included. Rows of one length stay in their
    order."""
    order = np.argsort(lengths, kind="stable")
    batches: list[IntArray] = []
    end, sizes = 0, np.asarray(lengths)[order]
    while end < len(order):
        start, end = end, min(end + size, len(order))
        while end > start + 1 and sizes[end - 1] * (end - start) > most:
            end = (start + end) // 2
        batches.append(order[start:end])
    return batches


def map_on_cores(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device | None = None
) -> Iterator[Result]:
    """Calls a function with each item, and yields the results in the order of the items. As many items are in work at
    a time as torch has threads, and one where the work is on another device: operations on a batch of customers are
    too small to be shared by cores."""
    threads = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    with start_single_core_threads(threads if device is None or device.type == "cpu" else 1) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def start_single_core_threads(number: int) -> ThreadPoolExecutor:
    """Starts threads in each of which torch computes on one core; in others it computes on as many as before."""
    started = Barrier(number + 1)

    def start() -> None:
        torch.get_num_threads()  # else the thread would take the number of the process when it first computes
        torch.set_num_threads(1)
        started.wait()

    with STARTING:
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(number, initializer=start)
        for _ in range(number):  # a thread for each, because none of them is idle before all have started
            pool.submit(int)
        started.wait()
        torch.set_num_threads(threads)  # what threads take that start later
    return pool


class LengthGroupedSampler(Sampler):
    """Gives the rows in random order, in groups of similar length, so that little of a batch is padding. The order
    depends on the seed and the epoch alone. A group is as large as a global batch: two processes with half of the
    batch each read together the rows that one process would read."""

    def __init__(self, lengths: NDArray, group_size: int, seed: int, epoch: torch.Tensor):
        self.lengths, self.group_size, self.seed, self.epoch = lengths, group_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, int(self.epoch)])
        order = generator.permutation(len(self.lengths))
        pool = POOLED_GROUPS * self.group_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        size = self.group_size
        groups = [rows[at] for rows in pools for at in batches_by_length(self.lengths[rows], size, math.inf)]
        whole = len(self.lengths) // self.group_size  # groups; the last one may be smaller, and comes last
        groups[:whole] = [groups[at] for at in generator.permutation(whole)]
        yield from np.concatenate([*groups, []]).astype(int)


class MCMCollator:
    """Turns prepared rows into model inputs.

    Args:
        config (`MCMConfig`): Config of the model. `augmentation`, `target`, `tasks` and `input_features` are read.
        mode (`str`): "train" or "evaluate".
        cutoff (`str`): "validation" or "test": where the history ends in the mode "evaluate". Training always stays
            before the validation cutoff.
        as_of (`int`, *optional*): Time at which customers are scored in the mode "evaluate", in seconds since
            1970-01-01. Default: each customer's last event.
        half_life (`float`): Age of a target, in days before the customer's latest one, at which it weighs half as
            much, with the augmentation "all_prefixes"; 0: all weigh the same.

    Attributes:
        epoch (`torch.Tensor`, int64 of shape `()`): Number of the epoch. The training loop sets it. It lies in shared
            memory, so that the workers of the data loader read the new number too.
    """

    def __init__(
        self,
        extractor: MCMFeatureExtractor,
        config: MCMConfig,
        mode: str = "train",
        cutoff: str = "validation",
        seed: int = 0,
        as_of: int | None = None,
        half_life: float = 30.0,
    ):
        self.extractor, self.config, self.mode, self.seed, self.as_of = extractor, config, mode, seed, as_of
        # Reading an attribute of a config is slow, and these are read for every row.
        self.augmentation, self.target = config.augmentation, config.target
        # Weights compare the prefixes of one pass of the model, so they need several prefixes.
        self.half_life = half_life if self.augmentation == "all_prefixes" else 0.0
        self.cutoff, self.token_type = cutoff, extractor.token_type_feature
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.end_of_visit_id = extractor.layout.closing

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """Makes a batch. Returns `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, `event_times`, `visit_ids`
        and, with numeric features, `event_values`, as `MCMFeatureExtractor.pad` gives them; with `as_of` (not in
        training) also `as_of`; and `labels` int64 `(B, N, T)`, where -100 is ignored. Training with several prefixes
        or masked events adds `prefix_ends` int64 `(B, P)`, the index of each prefix's last event in the input, and
        `label_prefixes` int64 `(B, N)`, the index of each label's prefix. Where targets fade, training also adds
        `label_weights` float32 `(B, N)`."""
        features = self.config.input_features
        batch = Customers.of([self.extractor.readable(row, features) for row in rows] if features else rows)
        train = self.mode == "train"
        masked = self.augmentation == "masked_lm" and not train
        times = None if self.as_of is None or train else [self.as_of] * len(batch)
        asked = self._train(batch) if train else self._evaluate(batch)
        inputs = dict(self.extractor.pad(asked.history, mask_next=masked, as_of=times))
        if train and self.half_life:
            inputs["label_weights"] = _stack(self._weights(asked), asked.rows, len(batch), 0)
        if train and self.augmentation not in ONE_PREFIX:
            inputs["prefix_ends"] = _stack(asked.ends, asked.prefix_rows, len(batch), 0)
            prefixes = asked.prefixes - np.searchsorted(asked.prefix_rows, asked.rows)
            inputs["label_prefixes"] = _stack(prefixes, asked.rows, len(batch), 0)
        inputs["labels"] = _stack(asked.labels, asked.rows, len(batch), IGNORED)
        return inputs

    def _evaluate(self, batch: Customers) -> "_Questions":
        """The history before the cutoff, and the labels of the next visit after it."""
        events = CaseEvents.read(batch, self.cutoff, self.config.tasks, self.token_type)
        targets = batch.select(events.next_visit())
        columns = ((targets.column(f"task_{task}"), targets.column(f"unseen_{task}")) for task in self.config.tasks)
        labels = np.stack([tell_unseen(*each) for each in columns], axis=1)  # (labels, T)
        return _Questions(batch.select(batch.places < events.history_end[batch.row]), labels, targets.row)

    def _train(self, batch: Customers) -> "_Questions":
        """What the augmentation asks of the training period; each cuts a window of it in its own way."""
        history = batch.select(batch.places < np.array(batch.column("validation_end"))[batch.row])
        generators = [self._make_generator(row) for row in batch.column("row")]
        window, is_whole = self._draw_window(history, generators)
        if self.augmentation == "masked_lm":
            return self._mask_events(window, generators)
        ends = self._find_prefix_ends(window)  # (events,)
        # Where the history is longer than the window, the start row is not all that came before the first visit.
        is_asked = self._is_target(window) & (is_whole[window.row] | (ends > 0))  # (events,)
        if self.augmentation in ONE_PREFIX:
            return self._ask_one_prefix(window, ends, is_asked, generators)
        return self._ask_all_prefixes(window, ends, is_asked)

    def _make_generator(self, row: int) -> np.random.Generator:
        words = [self.seed, int(self.epoch), row]
        return np.random.default_rng(np.array(words, np.uint32))  # faster than of a list

    def _draw_window(
        self, history: Customers, generators: Sequence[np.random.Generator]
    ) -> tuple[Customers, BoolArray]:
        """The events that are read, in the order in which they are read, and whether they are the whole history of
        each row, `(rows,)`. Events of one moment have no order, so it is drawn. Of a history longer than the window
        augmentations of several prefixes read the events before the end of a random visit; the others cut later."""
        visits, size = history.column("visits"), self.config.max_events - 1
        draw = np.zeros(len(history.row))  # (events,): their order in a moment
        starts, ends = np.zeros(len(history), int), history.lengths.copy()  # (rows,): of the window
        for i, (generator, length) in enumerate(zip(generators, history.lengths, strict=True)):
            events = slice(history.starts[i], history.starts[i] + length)
            draw[events] = generator.random(length)
            if length > size and self.augmentation not in ONE_PREFIX:
                visit_ends = np.flatnonzero(np.append(run_starts(visits[events])[1:], True)) + 1
                ends[i] = generator.choice(visit_ends[visit_ends >= size])
                starts[i] = ends[i] - size
        draw[history.column(f"feature_{self.token_type}") == self.end_of_visit_id] = 1.0  # after all others
        moments = np.cumsum(run_starts(history.row, visits, history.column("times")))  # (events,)
        order = np.lexsort((draw, moments))  # (events,)
        # A row keeps its places when its events are put in order: the window is of places, not of events
        is_read = (history.places >= starts[history.row]) & (history.places < ends[history.row])  # (events,)
        return history.select(order[is_read]), starts == 0

    def _find_prefix_ends(self, window: Customers) -> IntArray:
        """End of the prefix from which each event is predicted, `(events,)`: the event before, or the end of the visit
        before."""
        if self.target == "next_event":
            return window.places
        opens = run_starts(window.row, window.column("visits"))
        return window.places[opens][np.cumsum(opens) - 1]

    def _ask_one_prefix(
        self,
        window: Customers,
        ends: IntArray,
        is_asked: BoolArray,
        generators: Sequence[np.random.Generator],
    ) -> "_Questions":
        """The augmentation "random_prefix" cuts each history before a random target, and "last_prefix" before the
        last; what followed is asked."""
        chosen = np.zeros(len(window), int)  # (rows,): end of the prefix
        for i, generator in enumerate(generators):
            events = slice(window.starts[i], window.starts[i] + window.lengths[i])
            choices = ends[events][is_asked[events]]
            choices = choices if self.target == "next_event" else np.unique(choices)
            choices = choices[choices > 0] if (choices > 0).any() else choices  # else only the start row is read
            if self.augmentation == "last_prefix":
                choices = choices[-1:]
            chosen[i] = generator.choice(choices) if len(choices) else 0
        targets = np.flatnonzero(is_asked & (ends == chosen[window.row]))
        ago = chosen[window.row] - window.places  # (events,): 1 is the last event of the prefix
        history = window.select((ago > 0) & (ago < self.config.max_events))
        return self._ask(window, targets, ends)._replace(history=history)

    def _ask_all_prefixes(self, window: Customers, ends: IntArray, is_asked: BoolArray) -> "_Questions":
        """The augmentation "all_prefixes" cuts nothing: each prefix is asked for what followed it, unless that is long
        ago."""
        targets = np.flatnonzero(is_asked)
        if self.half_life:
            days = _days_before_latest(window.column("times")[targets], window.row[targets])
            targets = targets[days <= FADED * self.half_life]
        return self._ask(window, targets, ends)

    def _ask(self, window: Customers, targets: IntArray, ends: IntArray) -> "_Questions":
        """Asks for the events with indices `targets` `(labels,)`, after the prefixes that end at `ends` `(events,)`; a
        prefix of several targets is one."""
        rows, ends = window.row[targets], ends[targets]  # (labels,)
        opens = run_starts(rows, ends)
        prefixes = np.cumsum(opens) - 1  # (labels,)
        labels = self._distinct(prefixes, self._labels(window.select(targets)))  # (labels, T)
        return _Questions(window, labels, rows, prefixes, ends[opens], rows[opens])

    def _mask_events(self, window: Customers, generators: Sequence[np.random.Generator]) -> "_Questions":
        """The augmentation "masked_lm" cuts nothing: it hides some targets, at least one of each row, and asks what
        they were."""
        draw = np.concatenate([each.random(length) for each, length in zip(generators, window.lengths, strict=True)])
        draw = np.where(self._is_target(window), draw, 2.0)  # (events,)
        least = np.full(len(window), 2.0)  # (rows,)
        np.minimum.at(least, window.row, draw)
        hidden = draw < np.minimum(np.maximum(MASKED, least + 1e-12), 2.0)[window.row]  # (events,)
        columns = {name: window.column(name) for name in window.columns}
        for name in columns:
            if name.startswith(("feature_", "value_")):
                columns[name] = np.where(hidden, UNKNOWN_ID if name.startswith("feature_") else 0, columns[name])
        history, targets = Customers(columns, window.lengths), np.flatnonzero(hidden)
        rows, prefixes = window.row[targets], np.arange(len(targets))  # each hidden event ends a prefix of its own
        labels = self._labels(window.select(targets))  # (labels, T)
        return _Questions(history, labels, rows, prefixes, window.places[targets] + 1, rows)

    def _weights(self, asked: "_Questions") -> NDArray:
        """Weight of each label `(labels,)`: it halves with every half-life from the time of the event that follows the
        label's prefix, its target, to the latest such time of the row."""
        history, rows = asked.history, asked.rows
        ends = np.minimum(asked.ends[asked.prefixes], history.lengths[rows] - 1)
        days = _days_before_latest(history.column("times")[history.starts[rows] + ends], rows)
        return np.exp2(-days / self.half_life).astype(np.float32)

    def _labels(self, targets: Customers) -> IntArray:
        return np.stack([targets.column(f"task_{task}") for task in self.config.tasks], axis=1).astype(np.int64)

    def _is_target(self, batch: Customers) -> BoolArray:
        return find_targets(batch, self.config.tasks, self.token_type)

    def _distinct(self, prefixes: NDArray, labels: NDArray) -> NDArray:
        """Ignores a label that its prefix has already, because the next visit is a set of labels."""
        if self.target == "next_event":
            return labels
        result = np.full_like(labels, IGNORED)
        for task, ids in enumerate(labels.T):
            first = np.unique(prefixes * (ids.max(initial=0) + 1) + ids, return_index=True)[1]
            result[first, task] = ids[first]
        return result


class _Questions(NamedTuple):
    """What a batch asks. The end of a prefix is an index in the padded input, where the start row has index 0 and
    event i of the history has index i + 1. So the prefix before event i ends at index i."""

    history: Customers
    labels: IntArray  # (labels, T), those of a row after those of the row before
    rows: IntArray  # (labels,): row of each label
    prefixes: IntArray = np.zeros(0, np.int64)  # (labels,): index of each label's prefix
    ends: IntArray = np.zeros(0, np.int64)  # (prefixes,): end of each prefix
    prefix_rows: IntArray = np.zeros(0, np.int64)  # (prefixes,): row of each prefix


def _days_before_latest(times: IntArray, rows: IntArray) -> FloatArray:
    """Days from each time, in seconds, to the latest one of its row."""
    latest = np.full(rows.max(initial=0) + 1, times.min(initial=0))
    np.maximum.at(latest, rows, times)
    return (latest[rows] - times) / SECONDS_PER_DAY


def _stack(values: NDArray, rows: IntArray, number: int, padding: int) -> torch.Tensor:
    """Values of rows, those of a row after those of the row before, as one tensor with `number` rows, padded with the
    value `padding`."""
    return torch.from_numpy(pad_groups(values, np.bincount(rows, minlength=number), padding))
