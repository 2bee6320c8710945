# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The floor: the arithmetic and the bytes that a training step and the scoring of a customer can't do without.

Arithmetic is that of the products of matrices, a multiplication and an addition each, three times in training:
forward, and the gradients of both factors. Bytes are those of weights, gradients, optimizer and inputs, moved as
often as they must be; vectors that fit a cache are free. Seconds are the larger of arithmetic at the measured rate of
the machine's matrix product and bytes at its measured rate of copying. The benchmarks print their ratio to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from modeling_mcm.option import option

FLOAT, LONG = 4, 8
FORWARD_AND_BACKWARD, ADAM = 3, 7  # of AdamW: reads weight, gradient and two averages, writes weight and averages
PIECES = (1, 4, 16)  # of the rows of a product, to see in which it is made the fastest


@dataclass
class Shape:
    """The sizes that the floor is computed for. The defaults are those of a batch of the quickstart."""

    config: str = option("configuration/mcm-tiny", "Folder with a config.json.")
    label_sizes: list[int] = option([32, 304, 1914, 5115], "Number of labels of each task (V in the table).")
    features: int = option(17, "Number of features of an event (J in the table).")
    batch_size: int = option(16, "Number of customers in one batch (B in the table).")
    events: int = option(700, "Number of events of each customer (L in the table).")
    units: int = option(
        120, "Number of units, visits or events, that the encoder reads of each customer (U in the table)."
    )
    threads: int = option(help="Number of torch's threads.", factory=torch.get_num_threads)


def encoder_flops(layers: int, hidden: int, inner: int, units: int) -> int:
    """Floating-point operations of a forward pass over one customer: four projections, attention, and two linear
    layers.
    """
    return layers * units * (2 * 4 * hidden**2 + 2 * 2 * units * hidden + 2 * 2 * hidden * inner)


def readout_flops(hidden: int, units: int, labels: int) -> int:
    """FLOPs of e_w . h_i for each label and unit of a customer; the rest of equations 2 and 3 is no matrix product."""
    return 2 * hidden * units * labels


def matmul_rate(
    rows: int, hidden: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Measures the multiplications and additions a second of the matrix product of the readout.

    The product is computed whole and in blocks of rows, and the faster way counts, because a block may fit into a
    cache.
    """
    rates = []
    for share in PIECES:
        some = max(rows // share, 1)
        h, e = (torch.randn(number, hidden, device=device, dtype=dtype) for number in (some, columns))
        names = {"torch": torch, "h": h, "e": e, "out": h.new_empty(some, columns)}
        timer = Timer("torch.mm(h, e.T, out=out)", globals=names, num_threads=torch.get_num_threads())  # 1 if not told
        rates.append(2 * some * hidden * columns / timer.blocked_autorange(min_run_time=0.3).median)
    return max(rates)


def copy_rate(numbers: int = 2**26) -> float:
    """Measures the bytes a second, read and written, of a copy that is too large for the caches."""
    source, target = torch.randn(numbers), torch.empty(numbers)
    names = {"target": target, "source": source}
    timer = Timer("target.copy_(source)", globals=names, num_threads=torch.get_num_threads())
    return 2 * FLOAT * numbers / timer.blocked_autorange(min_run_time=0.5).median


def floor(shape: Shape, config: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Computes FLOPs, bytes and seconds of a training step and of scoring one customer."""
    if config is None:
        config = json.loads(Path(shape.config, "config.json").read_text(encoding="utf-8"))
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    labels = sum(shape.label_sizes)
    weights = layers * (4 * hidden**2 + 2 * hidden * inner) + labels * hidden
    read = shape.events * shape.features * (LONG + FLOAT * hidden)  # ids, and the row of each
    forward = encoder_flops(layers, hidden, inner, shape.units) + readout_flops(hidden, shape.units, labels)
    rate, copied = matmul_rate(shape.batch_size * shape.units, hidden, max(shape.label_sizes)), copy_rate()
    cases = {
        "training step": (
            FORWARD_AND_BACKWARD * shape.batch_size * forward,
            FLOAT * (2 + 1 + ADAM) * weights + 2 * shape.batch_size * read,
        ),
        "scoring a customer": (forward, FLOAT * weights / shape.batch_size + read),
    }
    return {
        name: {
            "gigaflops": flops / 1e9,
            "megabytes": moved / 1e6,
            "arithmetic_ms": 1e3 * flops / rate,
            "bytes_ms": 1e3 * moved / copied,
            "floor_ms": 1e3 * max(flops / rate, moved / copied),
        }
        for name, (flops, moved) in cases.items()
    } | {"machine": {"matmul_gigaflops": rate / 1e9, "copy_gigabytes": copied / 1e9, "threads": shape.threads}}
