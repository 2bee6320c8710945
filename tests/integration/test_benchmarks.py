# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say: the same loss in every way, and no less arithmetic than there is."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_mcm import MCMConfig, MCMModel

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--batch_size", "3", "--units", "7", "--labels", "40", "--hidden_size", "8", "--threads", "1", "--runs", "1"]


@pytest.fixture
def benchmark(monkeypatch):
    """A function that imports a benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_every_way_of_the_readout_gives_the_same_loss_and_gradients(benchmark, monkeypatch, most):
    module = benchmark("readout")
    monkeypatch.setattr(module, "PART_ELEMENTS", (most, most))
    inputs = module.Inputs(module.Options(batch_size=3, units=7, labels=40, hidden_size=8))
    for every in (False, True):
        ways = [way for way, all_prefixes in module.WAYS.values() if all_prefixes == every]
        losses = [way(inputs, every) for way in ways]
        gradients = [torch.autograd.grad(loss, (inputs.hidden, inputs.vectors)) for loss in losses]
        for loss, found in zip(losses[1:], gradients[1:], strict=True):
            torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)
            for ours, theirs in zip(found, gradients[0], strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_floor_counts_the_arithmetic_of_the_encoder(benchmark):
    config = MCMConfig(
        features=["token_type", "item"],
        vocabulary_sizes=[5, 50],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    config._attn_implementation = "eager"
    model = MCMModel(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, 11, 2, dtype=torch.long))
    assert counter.get_total_flops() == benchmark("floor").encoder_flops(2, 16, 24, 11)


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        ("readout", SMALL, ["floor: ", "one prefix, in parts", "all prefixes, whole"]),
        ("readout", [*SMALL, "--memory", "true"], ["one prefix, literal", "all prefixes, in parts"]),
        (
            "growth",
            ["--customers", "40", "--units", "4", "--labels", "20", "--batch_size", "2", "--doublings", "1"],
            ["customers from 40  preparing", "units from 4       seconds", "labels from 20     gigabytes"],
        ),
        (
            "streaming",
            ["--customers", "30", "--doublings", "1", "--rows_per_shard", "8"],
            ["Memory above the start", "streamed    31", "streamed    59", "Arrow copy  31", "Arrow copy  59"],
        ),
        ("floor", ["--batch_size", "1", "--threads", "1"], ["training step", "scoring a customer", "machine"]),
    ],
)
def test_a_benchmark_prints_its_table(name, options, lines):
    command = [sys.executable, f"benchmarks/{name}.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in lines:
        assert sum(each.startswith(line) for each in done.stdout.splitlines()) == 1, done.stdout
