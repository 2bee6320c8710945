# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: its clock, the average of weights, the shares of batches and the learning rates."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerState

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.training.callbacks import TrainingClock, WeightAverage
from modeling_mcm.training.options import PretrainingArguments
from modeling_mcm.training.trainer import FAST_FACTOR, FAST_PARAMETERS, MCMTrainer


def test_seconds_and_targets_are_counted_without_pauses_and_over_a_resume(monkeypatch):
    now, state, arguments = [100.0], TrainerState(), SimpleNamespace(world_size=3)
    monkeypatch.setattr("modeling_mcm.training.callbacks.time", SimpleNamespace(perf_counter=lambda: now[0]))

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

    gather = partial(torch.mul, other=3)  # as over three processes with as many targets each
    assert run(TrainingClock(gather), (2.0, [5]), (0.5, [1, 2])) == (2.5, 24)  # two batches a step
    assert run(TrainingClock(gather), (1.0, [1])) == (3.5, 27)


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


@pytest.fixture
def train(tiny_model, extractor, prepared, tmp_path):
    """A function that makes a trainer of a tiny model with the first customers of the prepared log."""

    def make(customers=26, tasks=("items", "aisle", "type"), accumulate=2, **options):
        model = tiny_model(tasks=list(tasks))
        arguments = PretrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulate,
            learning_rate=0.25,
            weight_decay=0.125,
            report_to="none",
            use_cpu=True,
        )
        return MCMTrainer(
            model,
            arguments,
            train_collator=MCMCollator(extractor, model.config, "train"),
            train_dataset=PreparedRows(load_prepared(prepared), np.arange(customers), np.arange(customers)),
            **options,
        )

    return make


def test_scalars_of_the_readout_learn_faster(train):
    trainer = train()
    trainer.model.probe = torch.nn.ParameterDict({"readout_scale": torch.zeros(2), "other": torch.zeros(2)})
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert set(found) == set(names.values()) and found["probe.readout_scale"] == (0.25 * FAST_FACTOR, 0.0)
    rates = {name: rate for name, (rate, _) in found.items() if name.rsplit(".", 1)[-1] not in FAST_PARAMETERS}
    assert {*rates.values()} == {0.25} and "probe.other" in rates


@pytest.mark.parametrize("tasks", [["items", "aisle", "type"], ["aisle"], ["items", "type"]])
def test_targets_are_those_of_the_tasks(train, tasks):
    trainer = train(tasks=tasks)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = []
    trainer.clock.count_targets = seen.append
    trainer.compute_loss(trainer.model.train(), dict(batch))
    assert [int(count) for count in seen] == [int((batch["labels"] >= FIRST_LABEL).sum())]
    assert set(trainer.task_losses) == {*tasks}
