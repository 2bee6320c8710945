# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared rows read from their Parquet shards while a model trains, a few shards at a time: for data that do not fit.

`load_prepared` keeps an Arrow copy of all rows on disk, from which any row is read at random. `StreamedRows` keeps
nothing: it reads, checks and decodes a whole shard when one of its rows is asked for, and holds the latest few.
`StreamedOrder` asks for rows so that each process and each of its workers stays within shards of its own.

The order is that of a sampler, not of an iterator with a buffer, so it has a length, no process ends before another,
and a resumed run skips to where it was without reading a row.

Shapes: N rows that are trained on, S shards.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler

from modeling_mcm.data.collator import numpy_rows
from modeling_mcm.data.dataset import PreparedManifest, check_shards


class StreamedRows(Dataset):
    """Prepared rows as `PreparedRows` gives them, from the shards themselves.

    Takes eight bytes a row, and of each shard that is held its decoded columns.

    Args:
        directory: output folder of `prepare`.
        indices: the rows to keep, ascending, all by default. Each dict also has `row`, the place among all rows.
        lengths: sequence length of each kept row, for [`StreamedOrder`].
        columns: only these columns.
        held_shards: decoded shards that this process, or each worker of a data loader, holds.

    Raises:
        FileNotFoundError: no manifest.
        ValueError: a shard is missing, or differs from what the manifest lists or from the first in its columns.
    """

    def __init__(
        self,
        directory: str | Path,
        indices: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        columns: Sequence[str] | None = None,
        held_shards: int = 1,
    ):
        self.directory, self.columns, self.held_shards = Path(directory), columns, held_shards
        manifest = PreparedManifest.load(directory)
        check_shards(directory, manifest.shards)
        self.shards = manifest.shards
        self.starts = np.cumsum([0, *(shard["rows"] for shard in self.shards)])
        self._held: dict[int, pa.Table] = {}
        self.keep(np.arange(self.starts[-1]) if indices is None else indices, lengths)

    def keep(self, indices: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Keeps these rows, ascending, with their lengths."""
        self.indices = np.asarray(indices, np.int32)
        self.lengths = None if lengths is None else np.asarray(lengths, np.int32)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        rows = self.indices[places].astype(np.int64)
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for shard in dict.fromkeys(shards.tolist()):
            at = np.flatnonzero(shards == shard)
            table = self._shard(shard).take(rows[at] - self.starts[shard])
            found |= zip(at.tolist(), numpy_rows(table, rows[at]), strict=True)
        return [found[place] for place in range(len(rows))]

    def column(self, name: str) -> NDArray:
        """A column of numbers of all rows, kept or not."""
        parts = [pq.read_table(self.directory / shard["file"], columns=[name])[name] for shard in self.shards]
        return np.concatenate([part.to_numpy() for part in parts])

    def _shard(self, shard: int) -> pa.Table:
        table = self._held.pop(shard, None)
        while table is None and len(self._held) >= self.held_shards:
            del self._held[next(iter(self._held))]  # the one that was not asked for the longest
        self._held[shard] = self._read(shard) if table is None else table
        return self._held[shard]

    def _read(self, shard: int) -> pa.Table:
        """A whole shard, decoded only if it is what preparation wrote.

        Raises:
            ValueError: it is not.
            OSError: it can't be read.
        """
        entry = self.shards[shard]
        path = self.directory / entry["file"]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(
                f"{path} does not have the digest that the manifest lists: it was damaged or replaced. Put the shard "
                "that was prepared in its place, or prepare the data again; started again, the run goes on from its "
                "last checkpoint."
            )
        columns = None if self.columns is None else list(self.columns)
        return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False).combine_chunks()

    def __getstate__(self) -> dict[str, Any]:  # a worker that is not forked reads its shards itself
        return {**self.__dict__, "_held": {}}


class StreamedOrder(Sampler):
    """An order of rows in which few shards are needed at a time; it depends on (seed, epoch) and its arguments alone.

    The shards in random order, and the rows of each in random order, make one sequence. It is cut into lanes of equal
    length, read side by side; a lane is read window by window, the rows of a window sorted by length and cut into
    units, and the units come in random order, the same in lanes of one batch, so that processes have batches of like
    length. A global batch has a unit of each of `parts` lanes; the next comes from other lanes, until after `turns`
    batches it is the first ones' turn again. With as many parts as processes (times accumulated batches) and as many
    turns as workers, no two workers need the same shard but where lanes touch, and at the end of an epoch: the last
    rows, fewer than `turns` batches, are of no lane.

    Args:
        rows: with lengths.
        group_size: rows of a global batch.
        parts: units of a global batch, each of another lane.
        turns: global batches in a row that are of different lanes.
        window: shards (of average size) whose rows are mixed.
        seed: of the order.
        epoch: the collator's `epoch`, which the training loop moves on.

    Raises:
        ValueError: the rows have no lengths, or a global batch can't be cut into `parts`.
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
            raise ValueError("The rows have no lengths; give them to StreamedRows, in the order of its indices.")
        if min(parts, turns, window) < 1 or group_size % parts:
            raise ValueError(
                f"Found {parts} parts and {turns} turns of lanes and a window of {window}; expected positive numbers, "
                f"and parts that divide the {group_size} customers of a global batch: change them or the batch size."
            )
        self.lengths, self.group_size, self.parts, self.turns = rows.lengths, group_size, parts, turns
        self.window, self.seed, self.epoch = window, seed, epoch
        self.unit = group_size // parts
        self.places = np.searchsorted(rows.indices, rows.starts)  # of each shard's first row among those kept

    def __len__(self) -> int:
        return len(self.lengths)

    def lanes_of_a_worker(self, batch_size: int, processes: int, workers: int) -> int:
        """Most lanes that one worker reads, if batches of `batch_size` go round the processes, and theirs round the
        workers."""
        row = np.arange(self.group_size * self.turns * workers)
        lane = row // self.group_size % self.turns * self.parts + row % self.group_size // self.unit
        batch = row // batch_size
        worker = batch % processes * workers + batch // processes % workers
        pairs = np.unique(np.stack([worker, lane]), axis=1)
        return int(np.bincount(pairs[0]).max())

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, int(self.epoch)])
        shards = generator.permutation(len(self.places) - 1)
        ends = np.cumsum(np.diff(self.places)[shards])
        lanes = self.parts * self.turns
        in_lane = len(self) // (lanes * self.unit)  # units
        in_window = max(1, self.window * len(self) // (len(shards) * self.unit))
        for first in range(0, in_lane, in_window):
            size = min(in_window, in_lane - first)
            units = np.empty((self.turns, self.parts, size, self.unit), np.int64)
            for turn in range(self.turns):
                order = generator.permutation(size)
                for part in range(self.parts):
                    start = ((turn * self.parts + part) * in_lane + first) * self.unit
                    rows = self._sequence(shards, ends, start, start + size * self.unit)
                    rows = rows[np.argsort(self.lengths[rows], kind="stable")]
                    units[turn, part] = rows.reshape(size, self.unit)[order]
            yield from units.transpose(2, 0, 1, 3).ravel().tolist()
        yield from self._sequence(shards, ends, in_lane * lanes * self.unit, len(self)).tolist()

    def _sequence(self, shards: NDArray, ends: NDArray, start: int, end: int) -> NDArray[np.int64]:
        """A piece of the sequence of all rows; `ends[i]` is where the rows of `shards[i]` end in it."""
        first, last = np.searchsorted(ends, [start, end], side="right")
        touched = [self._shuffled(shard) for shard in shards[first : last + 1]]
        offset = ends[first - 1] if first else 0
        return np.concatenate([np.zeros(0, np.int64), *touched])[start - offset : end - offset]

    def _shuffled(self, shard: int) -> NDArray[np.int64]:
        generator = np.random.default_rng([self.seed, int(self.epoch), int(shard)])
        start, end = self.places[shard : shard + 2]
        return start + generator.permutation(end - start)
