# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's clock (what it counts, when it ends a run, how the learning rate follows it) and average of weights.

No test waits.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from modeling_mcm.training.callbacks import TrainingClock, WeightAverage


@pytest.fixture
def pass_time(monkeypatch):
    """A function that lets seconds pass, for the clock alone."""
    now = [100.0]
    monkeypatch.setattr("modeling_mcm.training.callbacks.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_time(seconds):
        now[0] += seconds

    return pass_time


@pytest.fixture
def start(pass_time):
    """A function that starts a clock and gives it with the hooks of a run."""

    def start(max_seconds=None, state=None, processes=1):
        clock = TrainingClock(lambda value: value * processes, max_seconds)
        state, control = state or TrainerState(), TrainerControl()
        arguments = SimpleNamespace(world_size=processes)
        clock.on_train_begin(arguments, state, control)

        def step(seconds, targets):
            pass_time(seconds)
            for count in targets:
                clock.see(torch.tensor(count))
            clock.on_optimizer_step(arguments, state, control)
            state.global_step += 1
            clock.on_step_end(arguments, state, control)

        return clock, step, state, control

    return start


def test_seconds_and_targets_are_counted_and_pauses_are_not(start, pass_time):
    clock, step, _, control = start()
    step(2.0, [5])
    with clock.paused():
        pass_time(1000.0)
    step(0.5, [1, 2])  # two batches a step
    assert (clock.seconds, clock.targets) == (2.5, 8)
    assert not control.should_training_stop


def test_processes_share_their_targets_and_agree_on_the_time(start):
    clock, step, _, _ = start(processes=3)
    step(2.0, [5])
    assert (clock.seconds, clock.targets) == (2.0, 15)


def test_a_limit_ends_the_run_at_the_first_step_that_reaches_it(start):
    _, step, _, control = start(max_seconds=10.0)
    step(9.0, [1])
    assert not control.should_training_stop
    step(1.0, [1])
    assert control.should_training_stop and control.should_log


def test_the_learning_rate_follows_the_clock(start):
    clock, step, _, _ = start(max_seconds=100.0)
    factors = [clock.cosine(0.1)]
    for seconds in (5.0, 5.0, 45.0, 45.0, 5.0):
        step(seconds, [0])
        factors.append(clock.cosine(0.1))
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.5 * (1 + math.cos(math.pi / 2)), 0.0, 0.0])


def test_a_resumed_run_goes_on_counting(start):
    _, step, state, _ = start()
    step(2.0, [5])
    clock, step, _, _ = start(state=state)
    step(1.0, [1])
    assert (clock.seconds, clock.targets) == (3.0, 6)


@pytest.mark.parametrize("before, after", [(10.0, 10.0), (10.0, None), (None, 10.0)])
def test_a_bounded_run_is_not_resumed(before, after, start):
    _, step, state, _ = start(max_seconds=before)
    step(2.0, [5])
    with pytest.raises(
        ValueError, match="bounded to 10 seconds was found at step 1.*Start anew in another output_dir"
    ):
        start(max_seconds=after, state=state)


def test_a_limit_that_is_none_is_refused():
    with pytest.raises(ValueError, match="Found max_seconds = 0"):
        TrainingClock(lambda value: value, 0)


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
