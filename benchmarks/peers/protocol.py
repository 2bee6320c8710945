# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What compare.py asks of a method, in the method's own environment, and what it gets back.

`python benchmarks/peers/METHOD.py '{"sequences": ...}'` trains for some seconds, recommends once for every customer,
and prints one line of JSON with its figures last. No package of this repository is imported here.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WARM_UP = 3  # steps that are not counted


@dataclass
class Task:
    """A run of one method."""

    method: str  # its name in the table
    sequences: str  # Parquet file with `customer` and `items`, ids from 0, oldest first, at most `length` + 1 of each
    items: int  # how many there are
    seconds: float  # of training
    recommend_to: str  # Parquet file for `customer` and `items`, the best `top`, best first
    batch_size: int = 32
    inference_batch_size: int = 256
    length: int = 100
    hidden: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.2
    learning_rate: float = 1e-3
    threads: int = 2
    top: int = 10
    more: dict[str, Any] = field(default_factory=dict)  # what only MCM reads

    def read(self) -> tuple[list[str], list[np.ndarray]]:
        """Customers and their items."""
        table = pq.read_table(self.sequences)
        column = table["items"].combine_chunks()
        values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        return table["customer"].to_pylist(), np.split(values, offsets[1:-1])

    def write(self, customers: list[str], best: np.ndarray) -> None:
        """Writes the best items of each customer, of shape `(customers, top)`."""
        items = pa.FixedSizeListArray.from_arrays(pa.array(best.reshape(-1).astype(np.int32)), best.shape[1])
        pq.write_table(pa.table({"customer": pa.array(customers, pa.string()), "items": items}), self.recommend_to)


class Clock:
    """Counts sequences and seconds of training after the steps that warm up."""

    def __init__(self, seconds: float):
        self.limit, self.steps, self.sequences = seconds, 0, 0
        self.start = self.begun = time.perf_counter()

    def step(self, sequences: int) -> bool:
        """After a step over so many sequences: whether the time is over."""
        self.steps += 1
        if self.steps <= WARM_UP:
            self.begun = time.perf_counter()
        else:
            self.sequences += sequences
        return time.perf_counter() - self.start >= self.limit

    def rate(self) -> float:
        """Sequences a second so far."""
        return self.sequences / (time.perf_counter() - self.begun)


class ClockHooks:
    """What a callback of Lightning does with a clock; `counted` names what a batch has one of a sequence."""

    counted: str

    def __init__(self, seconds: float):
        self.clock, self.rate = Clock(seconds), 0.0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.clock = Clock(self.clock.limit)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.clock.step(len(batch[self.counted])):
            self.rate = self.clock.rate()
            trainer.should_stop = True


# Of a trainer of Lightning that trains until its callback ends it, and does nothing else.
TRAINER = {
    "max_epochs": 10**6,
    "min_epochs": 0,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def run(method: Callable[[Task], dict[str, float]]) -> None:
    """Reads the task, runs the method on so many threads and prints its figures."""
    import torch

    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    print("\n" + json.dumps(method(task)))
