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
import pyarrow.parquet as pq

WARM_UP = 3  # steps that are not counted


@dataclass
class Task:
    """A run of one method."""

    method: str  # its name in the table
    sequences: str  # Parquet file with `items` of each customer, ids from 0, oldest first, at most `length` + 1
    items: int  # how many there are
    seconds: float  # of training
    batch_size: int = 32
    inference_batch_size: int = 256
    length: int = 100
    hidden: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.2
    learning_rate: float = 1e-3
    threads: int = 2
    top: int = 10  # recommended items of each customer
    more: dict[str, Any] = field(default_factory=dict)  # what only MCM reads

    def read(self) -> list[np.ndarray]:
        """The items of each customer."""
        column = pq.read_table(self.sequences)["items"].combine_chunks()
        values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        return np.split(values, offsets[1:-1])


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

    def on_train_start(self, trainer: object, module: object) -> None:
        self.clock = Clock(self.clock.limit)

    def on_train_batch_end(self, trainer: Any, module: object, outputs: object, batch: dict, batch_idx: int) -> None:
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
