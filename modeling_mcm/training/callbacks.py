# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Callbacks of a training run: the epoch, a clock, an average of the weights, and early stopping."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EarlyStoppingCallback, TrainerCallback


class EpochCallback(TrainerCallback):
    """Writes the number of the epoch into a tensor, which samplers and collators read, also when a run is resumed."""

    def __init__(self, epoch: torch.Tensor):
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Writes the number."""
        self.epoch.fill_(int((state.epoch or 0) + 1e-6))  # a resume may start inside an epoch


class TrainingClock(TrainerCallback):
    """Counts the seconds and the targets of training, without evaluation and saving, also when a run is resumed.

    Attributes:
        seconds (`float`): Seconds of training so far, from reading a batch to the optimizer's step, as the mean over
            the processes.
        targets (`int`): Number of labels of trained tasks that losses were computed on so far, in all processes.
    """

    STATE = "training_clock"

    def __init__(self, total: Callable[[torch.Tensor], torch.Tensor]):
        self.total = total
        self.seconds, self.targets = 0.0, 0
        self._new_targets: list[torch.Tensor] = []
        self._since = time.perf_counter()

    def count_targets(self, targets: torch.Tensor) -> None:
        """Adds the number of targets of a batch, a tensor of shape `()`, to those of the current step."""
        self._new_targets.append(targets)

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock, at the values of the checkpoint if a run is resumed."""
        earlier = state.stateful_callbacks.get(self.STATE, {}) if state.global_step else {}
        self.seconds, self.targets = earlier.get("seconds", 0.0), earlier.get("targets", 0)
        self._new_targets.clear()
        self._since = time.perf_counter()

    def on_evaluate(self, args, state, control, **kwargs):
        """Leaves out the time since the last step, which was spent on evaluation or on a checkpoint."""
        self._since = time.perf_counter()

    on_save = on_evaluate

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Adds the seconds and targets of the step, and stores both for the checkpoint."""
        now = time.perf_counter()
        targets = torch.stack(self._new_targets).sum()
        added = self.total(torch.tensor([now - self._since, targets.item()], device=targets.device))
        self.seconds += added[0].item() / args.world_size
        self.targets += int(added[1].item())
        self._new_targets.clear()
        self._since = now
        state.stateful_callbacks[self.STATE] = {"seconds": self.seconds, "targets": self.targets}


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights. It evens out the noise of single steps and does not change them.

    Args:
        decay (`float`): Factor on the old average in each step, between 0 and 1. In step n it is (1 + n) / (10 + n)
            if that is less, so that the random weights of the start are soon forgotten.

    Raises:
        ValueError: If `decay` is not between 0 and 1.
    """

    FILE = "average.safetensors"

    def __init__(self, model: torch.nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"Found ema_decay = {decay}; expected a number between 0 and 1, or none for no average.")
        self.decay, self.model = decay, model
        self.average = AveragedModel(model, multi_avg_fn=self._average)

    def _average(self, averaged, current, steps):
        decay = min(self.decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(decay)(averaged, current, steps)

    def on_step_end(self, args, state, control, **kwargs):
        """Adds the weights of the step to the average."""
        self.average.update_parameters(self.model)

    def swap(self) -> None:
        """Exchanges the weights of the model and the average. A second call undoes the first."""
        for weight, averaged in zip(self.model.parameters(), self.average.module.parameters(), strict=True):
            weight.data, averaged.data = averaged.data, weight.data

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the model has the weights of the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save(self, folder: str | Path) -> None:
        """Writes the average to the file `average.safetensors` of a checkpoint folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.average.state_dict(), Path(folder, self.FILE))

    def load(self, folder: str | Path) -> None:
        """Reads the average from a checkpoint folder. Raises `ValueError` if the checkpoint's run had no average."""
        path = Path(folder, self.FILE)
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {self.FILE}: its run kept no average of the weights. Resume it without ema_decay, "
                "or start anew in another output_dir."
            )
        self.average.load_state_dict(load_file(path))


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping of transformers whose count goes on when a run is resumed."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Reads from the checkpoint how many evaluations in a row were no better than the best."""
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.early_stopping_patience_counter = stored["early_stopping_patience_counter"]
