# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared rows that are read from their Parquet shards while a model trains, for large data sets.

`load_prepared` makes an Arrow copy of all rows on disk, from which any row is read at random. `StreamedRows` makes no
copy: it reads, checks and decodes a whole shard when one of its rows is needed, and holds the few shards that were
read last. `StreamedOrder` gives the rows in an order in which each process and each of its workers needs few shards,
and shares hardly any of them with others.

The order comes from a sampler and not from an iterator with a buffer. So it has a length, no process ends before
another, and a resumed run continues where it was without reading the rows before.

Shapes: N rows that are trained on, S shards.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler

from modeling_mcm.data.collator import batches_by_length, numpy_rows
from modeling_mcm.data.dataset import PreparedManifest, check_shards


class StreamedRows(Dataset):
    """Prepared rows as `PreparedRows` gives them, read directly from the shards.

    It needs eight bytes of memory per row, and the decoded columns of each shard that it holds.

    Args:
        directory (`str` or `Path`): folder that `prepare` wrote. All its rows are used until [`keep`] chooses. Each
            row's dict also holds `row`, its index among all rows.

    Attributes:
        held_shards (`int`): number of decoded shards that this process, or each worker of a data loader, holds; 1
            until it is set.
        shards (`list[dict]`): entries of the shards in the manifest.
        starts (`NDArray[int64]` of shape `(S + 1,)`): index of each shard's first row among all rows; the last one is
            the number of all rows.
        indices (`NDArray[int32]` of shape `(N,)`): indices of the used rows among all rows.
        lengths (`NDArray[int32]` of shape `(N,)`, *optional*): length of each used row.

    Raises:
        FileNotFoundError: if the folder has no manifest.
        ValueError: if a shard is missing, differs from what the manifest lists, or has other columns than the first
            shard.
    """

    def __init__(self, directory: str | Path):
        self.directory, self.held_shards = Path(directory), 1
        manifest = PreparedManifest.load(directory)
        check_shards(directory, manifest.shards)
        self.shards = manifest.shards
        self.starts = np.cumsum([0, *(shard["rows"] for shard in self.shards)])
        self._held: dict[int, pa.Table] = {}
        self.keep(np.arange(self.starts[-1]))

    def keep(self, indices: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Sets which rows are used.

        Args:
            indices (`ArrayLike` of shape `(N,)`): indices of the rows among all rows, ascending.
            lengths (`ArrayLike` of shape `(N,)`, *optional*): length of each of these rows, for [`StreamedOrder`].
        """
        self.indices = np.asarray(indices, np.int32)
        self.lengths = None if lengths is None else np.asarray(lengths, np.int32)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = self.indices[indices].astype(np.int64)
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        row_by_index: dict[int, dict[str, Any]] = {}
        for shard in dict.fromkeys(shards.tolist()):
            at = np.flatnonzero(shards == shard)
            table = self._shard(shard).take(rows[at] - self.starts[shard])
            row_by_index |= zip(at.tolist(), numpy_rows(table, rows[at]), strict=True)
        return [row_by_index[index] for index in range(len(rows))]

    def column(self, name: str) -> NDArray:
        """Reads a column of numbers, of all rows: those that are not used too.

        Args:
            name (`str`): name of a scalar column.
        """
        parts = [pq.read_table(self.directory / shard["file"], columns=[name])[name] for shard in self.shards]
        return np.concatenate([part.to_numpy() for part in parts])

    def _shard(self, shard: int) -> pa.Table:
        table = self._held.pop(shard, None)
        while table is None and len(self._held) >= self.held_shards:
            del self._held[next(iter(self._held))]  # the shard that was not needed for the longest time
        self._held[shard] = self._read(shard) if table is None else table
        return self._held[shard]

    def _read(self, shard: int) -> pa.Table:
        """Reads a whole shard, and decodes it only if it is what preparation wrote; otherwise raises `ValueError`."""
        entry = self.shards[shard]
        path = self.directory / entry["file"]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(
                f"{path} does not have the digest that the manifest lists: it was damaged or replaced. Put the shard "
                "that was prepared in its place, or prepare the data again; started again, the run goes on from its "
                "last checkpoint."
            )
        return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False).combine_chunks()

    def __getstate__(self) -> dict[str, Any]:  # a worker that is not forked reads its own shards
        return {**self.__dict__, "_held": {}}


class StreamedOrder(Sampler):
    """An order of rows in which few shards are needed at a time.

    The order depends on the seed, the epoch and the arguments alone. The shards in random order, and the rows of each
    shard in random order, make one sequence. The sequence is cut into `parts` times `turns` lanes of equal length,
    which are read side by side. A lane is read window by window: the rows of a window are sorted by length and cut
    into pieces of `group_size / parts` rows. The pieces come in random order, and this order is the same in all lanes
    of one batch, so that the batches of all processes have similar lengths.

    A global batch has one piece of each of `parts` lanes. The next batch comes from other lanes, and after `turns`
    batches the first lanes follow again. With as many parts as processes (times accumulated batches) and as many turns
    as workers, two workers need the same shard only where their lanes touch, and at the end of an epoch: the last
    rows, fewer than `turns` batches, belong to no lane.

    Args:
        rows ([`StreamedRows`]): the rows, with their lengths.
        group_size (`int`): number of rows of a global batch, over all processes.
        parts (`int`): number of pieces of a global batch, each from another lane.
        turns (`int`): number of global batches in a row that come from different lanes.
        window (`int`): number of shards (of average size) whose rows are mixed.
        seed (`int`): seed of the order.
        epoch (`torch.Tensor`, int64 of shape `()`): number of the epoch: the tensor `epoch` of the collator, whose
            value the training loop increases.

    Raises:
        ValueError: if the rows have no lengths, or a global batch can't be cut into `parts`.
    """

    def __init__(
        self,
        rows: StreamedRows,
        group_size: int,
        parts: int,
        turns: int,
        window: int,
        seed: int,
        epoch: torch.Tensor,
    ):
        if rows.lengths is None:
            raise ValueError("The rows have no lengths; give them to StreamedRows.keep, in the order of the indices.")
        if min(parts, turns, window) < 1 or group_size % parts:
            raise ValueError(
                f"Found {parts} parts and {turns} turns of lanes and a window of {window}; expected positive numbers, "
                f"and parts that divide the {group_size} customers of a global batch: change them or the batch size."
            )
        self.lengths, self.group_size, self.parts, self.turns = rows.lengths, group_size, parts, turns
        self.window, self.seed, self.epoch = window, seed, epoch
        self.unit = group_size // parts
        self.shard_starts = np.searchsorted(rows.indices, rows.starts)  # indices among the used rows

    def __len__(self) -> int:
        return len(self.lengths)

    def lanes_of_a_worker(self, batch_size: int, processes: int, workers: int) -> int:
        """Computes the largest number of lanes that one worker reads.

        Batches go to the processes in turn, and the batches of a process go to its workers in turn.

        Args:
            batch_size (`int`): number of rows of one batch of one process.
            processes (`int`): number of processes.
            workers (`int`): number of data loader workers of each process.
        """
        row = np.arange(self.group_size * self.turns * workers)
        lane = row // self.group_size % self.turns * self.parts + row % self.group_size // self.unit
        batch = row // batch_size
        worker = batch % processes * workers + batch // processes % workers
        pairs = np.unique(np.stack([worker, lane]), axis=1)
        return int(np.bincount(pairs[0]).max())

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, int(self.epoch)])
        shards = generator.permutation(len(self.shard_starts) - 1)
        ends = np.cumsum(np.diff(self.shard_starts)[shards])
        lanes = self.parts * self.turns
        in_lane = len(self) // (lanes * self.unit)  # pieces of a lane
        in_window = max(1, self.window * len(self) // (len(shards) * self.unit))
        for first in range(0, in_lane, in_window):
            size = min(in_window, in_lane - first)
            units = np.empty((self.turns, self.parts, size, self.unit), np.int64)
            for turn in range(self.turns):
                order = generator.permutation(size)
                for part in range(self.parts):
                    start = ((turn * self.parts + part) * in_lane + first) * self.unit
                    rows = self._sequence(shards, ends, start, start + size * self.unit)
                    units[turn, part] = rows[np.stack(batches_by_length(self.lengths[rows], self.unit))[order]]
            yield from units.transpose(2, 0, 1, 3).ravel().tolist()
        yield from self._sequence(shards, ends, in_lane * lanes * self.unit, len(self)).tolist()

    def _sequence(self, shards: NDArray, ends: NDArray, start: int, end: int) -> NDArray[np.int64]:
        """The rows from `start` to `end` of the sequence of all rows; the rows of `shards[i]` end at `ends[i]`."""
        first, last = np.searchsorted(ends, [start, end], side="right")
        touched = [self._shuffled(shard) for shard in shards[first : last + 1]]
        offset = ends[first - 1] if first else 0
        return np.concatenate([np.zeros(0, np.int64), *touched])[start - offset : end - offset]

    def _shuffled(self, shard: int) -> NDArray[np.int64]:
        generator = np.random.default_rng([self.seed, int(self.epoch), int(shard)])
        start, end = self.shard_starts[shard : shard + 2]
        return start + generator.permutation(end - start)
