#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of the readout with its loss, forward and backward: in parts, as training does it, and whole.

    python benchmarks/readout.py                                        seconds, beside the floor of the products
    python benchmarks/readout.py --memory true --batch_size 64 --labels 30000        memory, at the paper's scale
    python benchmarks/readout.py --device cuda --bf16 true          on a GPU, with and without the Triton kernels

Whole is what torch's own operations give: z of all customers, a softmax (for all prefixes running sums), and its
cross-entropy. The literal form also holds r_w of equation 3. Runs alternate in one process; memory is measured in
processes of their own, as the highest resident size above that before the pass, on a GPU as what torch had allocated.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from unittest.mock import patch

import psutil
import torch

from floor import FORWARD_AND_BACKWARD, matmul_rate, readout_flops
from modeling_mcm import readout_mcm
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.losses_mcm import LossInParts, Targets, customers_in_parts, task_losses
from modeling_mcm.modeling_mcm import PART_ELEMENTS
from modeling_mcm.option import option
from modeling_mcm.readout_mcm import PackedUnits, attentional_readout, reference_readout
from modeling_mcm.training.memory import keep_freed_memory

GIGA, KIBI = 1e9, 1024


@dataclass
class Options:
    """The sizes of the inputs, and what is measured."""

    batch_size: int = option(8, "Number of customers in one batch (B in the table).")
    units: int = option(300, "Number of units, visits or events, of each customer (U in the table).")
    labels: int = option(8000, "Number of labels (V in the table).")
    hidden_size: int = option(256, "Length of the hidden vectors (H in the table).")
    device: str = option("cpu", "Device to measure on: cpu or cuda.")
    bf16: bool = option(False, "Compute with vectors in bfloat16 instead of float32.")
    threads: int = option(help="Number of torch's threads.", factory=torch.get_num_threads)
    runs: int = option(7, "Number of runs of each implementation, whose median is printed.")
    memory: bool = option(False, "Measure memory instead of seconds.")
    only: str = option("", "Measure one implementation in this process and print its figures as JSON.")


class Inputs:
    """Hidden vectors and label vectors with gradients, and a label for each prefix."""

    def __init__(self, options: Options):
        torch.manual_seed(0)
        shape = (options.batch_size, options.units)
        self.device, self.dtype = options.device, torch.bfloat16 if options.bf16 else torch.float32
        self.hidden, self.vectors = (
            (torch.randn(*number, options.hidden_size) / options.hidden_size**0.25)
            .to(self.device, self.dtype)
            .requires_grad_()
            for number in (shape, (options.labels,))
        )
        self.mask = torch.ones(shape, dtype=torch.bool, device=self.device)
        self.next = torch.randint(2, options.labels, shape, device=self.device)


def in_parts(inputs: Inputs, all_prefixes: bool) -> torch.Tensor:
    """Computes the loss as `MCMForMultiTaskRecommendation` does in training."""

    def losses_of(part: list[int], hidden: torch.Tensor) -> torch.Tensor:
        units = PackedUnits.of(inputs.mask[part]) if all_prefixes else None
        scores = attentional_readout(hidden, inputs.vectors, inputs.mask[part], units)
        rows = torch.arange(len(part), device=hidden.device)[:, None] if units is None else units.score_rows
        labels = inputs.next[part, -1:] if units is None else inputs.next[part]
        loss = task_losses(scores, Targets.find(labels[..., None], rows, None, [len(inputs.vectors)]))
        return loss * (len(hidden) / len(inputs.hidden))

    batch, units, _ = inputs.hidden.shape
    parts = customers_in_parts([units] * batch, PART_ELEMENTS[inputs.device == "cpu"] // len(inputs.vectors))
    return LossInParts.apply(losses_of, parts, 1, inputs.hidden, inputs.vectors)[0]


def without_kernels(inputs: Inputs, all_prefixes: bool) -> torch.Tensor:
    """Computes the loss as in training, in plain torch instead of Triton kernels."""
    with patch.object(readout_mcm, "FUSED_ON", "nowhere"):
        return in_parts(inputs, all_prefixes)


def whole(inputs: Inputs, all_prefixes: bool) -> torch.Tensor:
    """Computes the loss with torch's own operations and autograd."""
    z = inputs.hidden @ inputs.vectors.T
    if not all_prefixes:
        scores = (z.softmax(1) * z).sum(1)
        return torch.nn.functional.cross_entropy(scores, inputs.next[:, -1])
    weight = (z - z.amax(1, keepdim=True)).exp()
    scores = (weight * z).cumsum(1) / weight.cumsum(1)
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), inputs.next.flatten())


def literal(inputs: Inputs, all_prefixes: bool) -> torch.Tensor:
    """Computes the loss by equations 2 and 3 term by term, for one prefix only."""
    scores = reference_readout(inputs.hidden, inputs.vectors, inputs.mask)
    return torch.nn.functional.cross_entropy(scores, inputs.next[:, -1])


WAYS: dict[str, tuple[Callable[[Inputs, bool], torch.Tensor], bool]] = {
    "one prefix, in parts": (in_parts, False),
    "one prefix, without kernels": (without_kernels, False),
    "one prefix, whole": (whole, False),
    "one prefix, literal": (literal, False),
    "all prefixes, in parts": (in_parts, True),
    "all prefixes, without kernels": (without_kernels, True),
    "all prefixes, whole": (whole, True),
}


def run(name: str, inputs: Inputs) -> float:
    """Measures the seconds of one forward and backward pass."""
    way, all_prefixes = WAYS[name]
    inputs.hidden.grad = inputs.vectors.grad = None
    wait = torch.cuda.synchronize if inputs.device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    way(inputs, all_prefixes).backward()
    wait()
    return time.perf_counter() - start


def memory(name: str, inputs: Inputs) -> float:
    """Measures the gigabytes that one implementation takes beyond its inputs, if nothing ran before."""
    if inputs.device == "cuda":
        before = torch.cuda.memory_allocated()
        run(name, inputs)
        return (torch.cuda.max_memory_allocated() - before) / GIGA
    before = psutil.Process().memory_info().rss
    run(name, inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI - before) / GIGA


def alone(name: str, options: Options) -> float:
    """Measures the gigabytes of one implementation in a process of its own; infinity if the process was killed."""
    values = {**asdict(options), "only": name}
    flags = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
    if done.returncode < 0:
        return float("inf")
    done.check_returncode()
    return json.loads(done.stdout)


def main() -> None:
    """Reads the options, measures and prints a table."""
    (options,) = parse_options(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    inputs = Inputs(options)
    if options.only:
        print(memory(options.only, inputs))
        return
    ways = [name for name in WAYS if options.device == "cuda" or "without kernels" not in name]
    if options.memory:
        for name in ways:
            print(f"{name:30s} {alone(name, options):8.2f} GB above the inputs", flush=True)
        return
    rows = options.batch_size * options.units
    rate = matmul_rate(rows, options.hidden_size, options.labels, inputs.device, inputs.dtype)
    flops = FORWARD_AND_BACKWARD * readout_flops(options.hidden_size, rows, options.labels)
    least = flops / rate
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    print(f"floor: {flops / GIGA:,.0f} GFLOP at {rate / GIGA:,.0f} GFLOP/s, {least:.4f} s, {machine}")
    seconds: dict[str, list[float]] = {name: [] for name in ways if "literal" not in name}
    for _ in range(options.runs + 1):
        for name, times in seconds.items():
            times.append(run(name, inputs))
    for name, times in seconds.items():
        took = median(times[1:])  # the first warms up
        print(f"{name:30s} {took:8.4f} s, the floor is {least / took:.0%} of it")


if __name__ == "__main__":
    main()
