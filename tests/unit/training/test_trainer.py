# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: the average of weights, the shares of batches and the learning rates."""

import numpy as np
import pytest
import torch

from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.training.encoder.trainer import FAST_FACTOR, FAST_PARAMETERS, MCMTrainer, WeightAverage
from modeling_mcm.training.options import PretrainingArguments


def test_the_average_follows_the_weights():
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
    assert average.average.module.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]
    for decay in (0, 1):
        with pytest.raises(ValueError, match="expected a number between 0 and 1"):
            WeightAverage(model, decay)


@pytest.mark.parametrize("tasks", [["items", "aisle", "type"], ["items", "type"]])
def test_scalars_learn_faster_and_losses_are_those_of_the_tasks(tiny_model, extractor, prepared, tmp_path, tasks):
    model = tiny_model(tasks=tasks)
    options = {"per_device_train_batch_size": 8, "learning_rate": 0.25, "report_to": "none", "use_cpu": True}
    trainer = MCMTrainer(
        model,
        PretrainingArguments(str(tmp_path / "run"), **options),
        train_collator=MCMCollator(extractor, model.config, "train"),
        measure=None,
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
    trainer.compute_loss(model.train(), next(iter(trainer.get_train_dataloader())))
    assert set(trainer.task_losses) == {*tasks}
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate(trainer.train_dataset)
