# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: its clock, the average of weights, the shares of batches and the learning rates."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerState

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.training.options import PretrainingArguments
from modeling_mcm.training.trainer import FAST_FACTOR, FAST_PARAMETERS, MCMTrainer, TrainingClock, WeightAverage


def test_seconds_and_targets_are_counted_without_pauses_and_over_a_resume(monkeypatch):
    now, state, arguments = [100.0], TrainerState(), SimpleNamespace(world_size=3)
    monkeypatch.setattr("modeling_mcm.training.trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run(clock, *steps):
        clock.on_train_begin(arguments, state, None)
        for seconds, targets in steps:
            now[0] += seconds
            for count in targets:
                clock.count_targets(torch.tensor(count))
            clock.on_optimizer_step(arguments, state, None)
            state.global_step += 1
            now[0] += 1000
            clock.on_save(arguments, state, None)
        return clock.seconds, clock.targets

    # As over three processes with as many targets each
    monkeypatch.setattr("modeling_mcm.training.trainer.reduce", lambda value, how: 3 * value)
    assert run(TrainingClock(), (2.0, [5]), (0.5, [1, 2])) == (2.5, 24)  # two batches a step
    assert run(TrainingClock(), (1.0, [1])) == (3.5, 27)


def test_the_average_follows_the_weights_and_swaps_with_them():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9)
    values = [1.0, 2.0, 4.0, 8.0]
    expected = values[0]  # the first step's weights; then (1 + n) / (10 + n) of what there was
    for n, value in enumerate(values):
        model.weight.data.fill_(value)
        average.on_step_end(None, None, None)
        if n:
            decay = min(0.9, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
    with average.swapped():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]


def test_a_decay_that_is_no_share_is_refused():
    for decay in (0, 1, 2.5):
        with pytest.raises(ValueError, match="expected a number between 0 and 1"):
            WeightAverage(torch.nn.Linear(1, 1), decay)


@pytest.mark.parametrize("tasks", [["items", "aisle", "type"], ["items", "type"]])
def test_scalars_learn_faster_and_targets_are_those_of_the_tasks(tiny_model, extractor, prepared, tmp_path, tasks):
    model = tiny_model(tasks=tasks)
    options = {"per_device_train_batch_size": 8, "learning_rate": 0.25, "report_to": "none", "use_cpu": True}
    trainer = MCMTrainer(
        model,
        PretrainingArguments(str(tmp_path / "run"), **options),
        train_collator=MCMCollator(extractor, model.config, "train"),
        train_dataset=PreparedRows(load_prepared(prepared), np.arange(26), np.arange(26)),
    )
    model.probe = torch.nn.ParameterDict({"readout_scale": torch.zeros(2), "other": torch.zeros(2)})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == {*names.values()} and rates["probe.readout_scale"] == (0.25 * FAST_FACTOR, 0.0)
    assert {rate for name, (rate, _) in rates.items() if not name.endswith(FAST_PARAMETERS)} == {0.25}
    del model.probe
    batch, seen = next(iter(trainer.get_train_dataloader())), []
    trainer.clock.count_targets = seen.append
    trainer.compute_loss(model.train(), dict(batch))
    assert [int(count) for count in seen] == [int((batch["labels"] >= FIRST_LABEL).sum())]
    assert set(trainer.task_losses) == {*tasks}
