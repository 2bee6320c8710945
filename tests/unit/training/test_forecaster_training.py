# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The forecaster's training: seeds decide it, it learns, and its weights are one file."""

import torch
from in_process import call
from run_pretrain_forecaster import compute_losses, draw_examples, train_forecaster
from safetensors.torch import load_file

from modeling_mcm.forecaster_mcm import VisitForecaster
from modeling_mcm.training.forecaster.shop import SHIPPED_WEIGHTS


def test_processes_change_no_example():
    for one, other in zip(draw_examples(30, 3, 1), draw_examples(30, 3, 2), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(draw_examples(2, 4).number, draw_examples(2, 5).number)


def test_the_seed_decides_the_weights_and_training_lowers_the_losses():
    examples = draw_examples(80, 0)
    (first, losses), (second, again) = (train_forecaster(examples, 4, seed=1) for _ in range(2))
    assert losses == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    start = VisitForecaster()
    start.visit_network.range, start.amount_network.range = first.visit_network.range, first.amount_network.range
    with torch.no_grad():
        untrained = compute_losses(start, examples)
        trained = compute_losses(first, examples)
    assert sum(trained.values()) < sum(untrained.values())


def test_the_command_writes_what_loads(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    call("run_pretrain_forecaster", "--output", path, "--shops", "40", "--epochs", "1", "--processes", "1")
    assert "Losses on shops that were left out" in capsys.readouterr().out
    made, shipped = load_file(path), load_file(SHIPPED_WEIGHTS)
    assert {name: value.shape for name, value in made.items()} == {name: v.shape for name, v in shipped.items()}
    assert SHIPPED_WEIGHTS.stat().st_size < 160_000
