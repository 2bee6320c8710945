# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: its clock, the average of weights, the shares of batches and the learning rates."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerState, TrainingArguments

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.training.callbacks import TrainingClock, WeightAverage
from modeling_mcm.training.trainer import FAST_FACTOR, FAST_PARAMETERS, MCMTrainer


@pytest.fixture
def pass_time(monkeypatch):
    """A function that lets seconds pass, for the clock alone."""
    as_of = [100.0]
    monkeypatch.setattr("modeling_mcm.training.callbacks.time", SimpleNamespace(perf_counter=lambda: as_of[0]))

    def pass_time(seconds):
        as_of[0] += seconds

    return pass_time


@pytest.fixture
def start(pass_time):
    """A function that starts a clock and gives it with the hooks of a run."""

    def start(state=None, processes=1):
        clock = TrainingClock(lambda value: value * processes)
        state, control = state or TrainerState(), None
        arguments = SimpleNamespace(world_size=processes)
        clock.on_train_begin(arguments, state, control)

        def step(seconds, targets):
            pass_time(seconds)
            for count in targets:
                clock.count_targets(torch.tensor(count))
            clock.on_optimizer_step(arguments, state, control)
            state.global_step += 1

        return clock, step, state

    return start


def test_seconds_and_targets_are_counted_and_pauses_are_not(start, pass_time):
    clock, step, _ = start()
    step(2.0, [5])
    pass_time(1000.0)
    clock.on_save(None, None, None)
    step(0.5, [1, 2])  # two batches a step
    assert (clock.seconds, clock.targets) == (2.5, 8)


def test_processes_share_their_targets_and_agree_on_the_time(start):
    clock, step, _ = start(processes=3)
    step(2.0, [5])
    assert (clock.seconds, clock.targets) == (2.0, 15)


def test_a_resumed_run_goes_on_counting(start):
    _, step, state = start()
    step(2.0, [5])
    clock, step, _ = start(state=state)
    step(1.0, [1])
    assert (clock.seconds, clock.targets) == (3.0, 6)


def test_the_average_follows_the_weights_and_swaps_with_them(tmp_path):
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
    average.swap()
    assert model.weight.item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == values[-1]
    average.save(tmp_path)
    restored = WeightAverage(torch.nn.Linear(1, 1, bias=False), 0.9)
    restored.load(tmp_path)
    restored.swap()
    assert restored.model.weight.item() == pytest.approx(expected)
    assert int(restored.average.n_averaged) == len(values)


def test_an_average_that_is_not_there_is_missed(tmp_path):
    with pytest.raises(ValueError, match="kept no average of the weights"):
        WeightAverage(torch.nn.Linear(1, 1), 0.9).load(tmp_path)
    for decay in (0, 1, 2.5):
        with pytest.raises(ValueError, match="expected a number between 0 and 1"):
            WeightAverage(torch.nn.Linear(1, 1), decay)


@pytest.fixture
def train(tiny_model, extractor, prepared, tmp_path):
    """A function that makes a trainer of a tiny model with the first customers of the prepared log."""

    def make(customers=26, tasks=("items", "aisle", "type"), accumulate=2, **options):
        model = tiny_model(tasks=list(tasks))
        arguments = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulate,
            learning_rate=0.25,
            weight_decay=0.125,
            remove_unused_columns=False,
            label_names=["labels"],
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


def test_an_average_of_sharded_weights_is_refused(train, monkeypatch):
    # transformers' own construction needs a plugin of accelerate where this is true
    sharded = property(lambda self: hasattr(self, "weight_average"), lambda self, value: None)
    monkeypatch.setattr(MCMTrainer, "is_fsdp_enabled", sharded, raising=False)
    with pytest.raises(ValueError, match="ema_decay with FSDP"):
        train(ema_decay=0.9)


@pytest.mark.parametrize(("customers", "accumulate"), [(26, 2), (24, 2), (31, 3), (9, 1), (34, 4)])
def test_the_loss_of_a_step_is_the_mean_over_its_customers(train, customers, accumulate):
    """Also of the last one of an epoch, whose last batch is short: each batch counts by its customers."""
    trainer = train(customers, accumulate=accumulate)
    batches = iter(trainer.get_train_dataloader())
    left = customers
    while left:
        number = min(accumulate, -(-left // 8))
        samples, _ = trainer.get_batch_samples(batches, number, trainer.args.device)
        sizes = [min(8, left - 8 * place) for place in range(number)]
        assert [len(sample["input_ids"]) for sample in samples] == sizes
        weights = [sample["share"] / number for sample in samples]  # the batches of a step are averaged
        assert weights == pytest.approx([size / sum(sizes) for size in sizes])
        left -= sum(sizes)


def test_a_batch_loses_its_share(train):
    trainer = train()
    model = trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    whole = trainer.compute_loss(model, dict(batch))
    assert trainer.compute_loss(model, {**batch, "share": 0.4}).item() == pytest.approx(0.4 * whole.item(), rel=1e-6)


def test_scalars_of_the_readout_learn_faster(train):
    trainer = train()
    trainer.model.probe = torch.nn.ParameterDict({"readout_scale": torch.zeros(2), "other": torch.zeros(2)})
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert set(found) == set(names.values())
    fast = {name for name in found if name.rsplit(".", 1)[-1] in FAST_PARAMETERS}
    assert "probe.readout_scale" in fast
    for name, (rate, decay) in found.items():
        assert rate == (0.25 * FAST_FACTOR if name in fast else 0.25), name
        assert decay == 0.0 or name not in fast


@pytest.fixture
def evaluate(train):
    """A function that evaluates the encoder on two customers by scores `(B, V)` of each task, with counts fitted."""
    trainer = train(tasks=("items", "aisle"))
    model = trainer.model
    history, labels = torch.zeros(2, 4, len(model.config.features), dtype=torch.long), torch.zeros(2, 3, 2).long()
    history[:, 1:, model.task_features] = torch.tensor([[[2, 2], [3, 3], [0, 0]], [[2, 2], [3, 1], [0, 3]]])
    labels[:] = torch.tensor([[[6, 3], [6, 4], [-100, 1]], [[-100, 2], [7, 2], [7, -100]]])
    inputs = {"input_ids": history, "labels": labels}

    def evaluate(scores, without_repeats=()):
        model.readout_scores = lambda batch: [each.clone() for each in scores]
        reader = SimpleNamespace(batches=lambda examples: [(None, None, dict(inputs))])
        trainer.scorer_fit = SimpleNamespace(reader=reader, validation=[], without_repeats=without_repeats)
        return trainer.evaluate()

    return evaluate, [torch.randn(2, size) for size in model.config.label_sizes.values()]


def test_the_encoder_is_judged_by_labels_that_are_new_to_the_customer(evaluate):
    evaluate, (items, aisles) = evaluate
    losses = [-scores.log_softmax(1)[place] for scores, place in ((items, (0, 6)), (items, (1, 7)), (aisles, (0, 4)))]
    found = evaluate([items, aisles])["eval_new_label_loss"]
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    better = items.clone()
    better[1, 7] += 1  # one task gains, and the other stands still
    assert evaluate([better, aisles])["eval_new_label_loss"] < found
    had = aisles.clone()
    had[:, 2:4] -= 1  # says nothing new of what was had, but takes it from new labels
    assert evaluate([items, had])["eval_new_label_loss"] < found


def test_the_encoder_alone_does_not_rank_what_can_not_come(evaluate):
    evaluate, (items, aisles) = evaluate
    items[:, 2:4], items[:, 6:8] = 9.0, torch.tensor([[8.0, 7.0], [7.0, 8.0]])  # what was had is first
    name = "eval_encoder_items_next_visit_ndcg@10"
    assert evaluate([items, aisles], ["items"])[name] == 1 > evaluate([items, aisles])[name]


@pytest.mark.parametrize("tasks", [["items", "aisle", "type"], ["aisle"], ["items", "type"]])
def test_targets_are_those_of_the_tasks(train, tasks):
    trainer = train(tasks=tasks)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = []
    trainer.clock.count_targets = seen.append
    trainer.compute_loss(trainer.model.train(), dict(batch))
    of_task = {task: (batch["labels"][..., place] >= FIRST_LABEL).sum() for place, task in enumerate(tasks)}
    assert [int(count) for count in seen] == [sum(int(count) for count in of_task.values())]
    assert set(trainer.task_losses) == {*tasks}
