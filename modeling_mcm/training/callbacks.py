# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What happens beside the steps of a training run: the epoch told to the collator, a clock, an average of the weights,
early stopping, and what processes and resumed runs have to agree on.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.utils import logging

from modeling_mcm.data.collator import MCMCollator
from modeling_mcm.training.resuming import changed_options, weight_faults

logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Tells the training collator which epoch it is, also after a resume."""

    def __init__(self, collator: MCMCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch.fill_(int((state.epoch or 0) + 1e-6))  # a resume may start inside an epoch


class TrainingClock(TrainerCallback):
    """Seconds of training and targets seen; neither evaluation nor saving counts. With a limit it ends the training.

    A run under a limit takes as many steps as its machine manages, so it can't be resumed to the same end and is
    refused. Any other run goes on counting where its checkpoint stood.

    Args:
        total: sums a tensor over the processes, so that all of them read the same time and stop at the same step.
        max_seconds: training ends with the first step that reaches it; `None` for no limit.

    Attributes:
        seconds: of training so far, from reading a batch to the optimizer's step; the mean over the processes.
        targets: labels of trained tasks that losses were computed on so far, in all processes.
    """

    STATE = "training_clock"

    def __init__(self, total: Callable[[torch.Tensor], torch.Tensor], max_seconds: float | None = None):
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"Found max_seconds = {max_seconds}; expected a positive number of seconds, or none.")
        self.total, self.max_seconds = total, max_seconds
        self.seconds, self.targets = 0.0, 0
        self._new_targets: list[torch.Tensor] = []
        self._passed, self._since = 0.0, time.perf_counter()

    def see(self, targets: torch.Tensor) -> None:
        """Counts targets, a scalar, of the step that runs."""
        self._new_targets.append(targets)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time."""
        self._passed += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        earlier = state.stateful_callbacks.get(self.STATE, {}) if state.global_step else {}
        limit = earlier.get("max_seconds") or self.max_seconds
        if state.global_step and limit is not None:
            raise ValueError(
                f"A run bounded to {limit:g} seconds was found at step {state.global_step}; such a run can't be "
                "resumed, because its learning rate and its end depend on the clock. Start anew in another output_dir."
            )
        self.seconds, self.targets = earlier.get("seconds", 0.0), earlier.get("targets", 0)
        self._new_targets.clear()
        self._passed, self._since = 0.0, time.perf_counter()

    def on_optimizer_step(self, args, state, control, **kwargs):
        now = time.perf_counter()
        targets = torch.stack(self._new_targets).sum()
        added = self.total(torch.tensor([self._passed + now - self._since, targets.item()], device=targets.device))
        self.seconds += added[0].item() / args.world_size
        self.targets += int(added[1].item())
        self._new_targets.clear()
        self._passed, self._since = 0.0, now
        state.stateful_callbacks[self.STATE] = {
            "seconds": self.seconds,
            "targets": self.targets,
            "max_seconds": self.max_seconds,
        }

    def on_step_end(self, args, state, control, **kwargs):
        if self.max_seconds is not None and self.seconds >= self.max_seconds:
            control.should_training_stop = control.should_log = True

    def cosine(self, warmup: float) -> float:
        """Factor on the learning rate: from 0 to 1 in the share `warmup` of the limit, then along a cosine to 0."""
        passed = min(self.seconds / (self.max_seconds or math.inf), 1.0)
        if passed < warmup:
            return passed / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (passed - warmup) / (1.0 - warmup)))


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights: what a constant learning rate jitters about. It changes no step.

    Args:
        model: whose weights are averaged.
        decay: share of the average that a step keeps, under 1; the first steps keep less, (1 + n) / (10 + n).
    """

    FILE = "average.safetensors"

    def __init__(self, model: torch.nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"Found ema_decay = {decay}; expected a number between 0 and 1, or none for no average.")
        self.decay, self.model = decay, model
        self.average = AveragedModel(model, multi_avg_fn=self._average)

    def _average(self, averaged, current, seen):
        decay = min(self.decay, (1 + int(seen)) / (10 + int(seen)))
        get_ema_multi_avg_fn(decay)(averaged, current, seen)

    def on_step_end(self, args, state, control, **kwargs):
        self.average.update_parameters(self.model)

    def swap(self) -> None:
        """The model gets the average, the average the model's weights; a second call undoes the first."""
        for own, averaged in zip(self.model.parameters(), self.average.module.parameters(), strict=True):
            own.data, averaged.data = averaged.data, own.data

    def save(self, folder: str | Path) -> None:
        save_file(self.average.state_dict(), Path(folder, self.FILE))

    def load(self, folder: str | Path) -> None:
        path = Path(folder, self.FILE)
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {self.FILE}: its run kept no average of the weights. Resume it without ema_decay, "
                "or start anew in another output_dir."
            )
        self.average.load_state_dict(load_file(path))


NOISE = 0.02  # share by which a first evaluation may be under popularity without a word


class FirstComparison(TrainerCallback):
    """After the first evaluation says where the model is under popularity, which no model should be for long.

    Args:
        popularity (`dict[str, float]`): of each task the metric of the most popular labels, on the same cases.
        metric (`str`): its name, without `eval_` and the task.
        tell: takes a sentence, such as the `warning` of a logger.
    """

    def __init__(self, popularity: Mapping[str, float], metric: str, tell: Callable[[str], Any]):
        self.popularity, self.metric, self.tell, self.has_compared = popularity, metric, tell, False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.has_compared or not state.is_world_process_zero:
            return
        self.has_compared = True
        for task, theirs in self.popularity.items():
            ours = (metrics or {}).get(f"eval_{task}_{self.metric}")
            if ours is not None and ours < theirs * (1 - NOISE):
                self.tell(
                    f"After the first evaluation the model is under popularity on {task}: {self.metric} {ours:.4f} "
                    f"and {theirs:.4f}. If the next evaluations do not change that, look whether the training loss "
                    "falls, and try another learning rate (--learning_rate) or more epochs (--num_train_epochs)."
                )


class SameRun(TrainerCallback):
    """Refuses to train where processes, or a checkpoint and the run that goes on from it, differ in what must be one.

    Args:
        facts: name -> value, such as the digest of the data's manifest; anything that JSON keeps as it is.
        options: name -> value of what decides the weights besides, such as the learning rate.
    """

    STATE, OPTIONS = "same_run", "options"

    def __init__(self, facts: dict[str, Any], options: dict[str, Any] | None = None):
        self.facts, self.options = facts, options or {}

    def check(self, step: int, earlier: Mapping[str, Any], config_changes: Sequence[str] = ()) -> None:
        """Compares with what the checkpoint of a step noted; what it did not note is not compared.

        Raises:
            ValueError: naming what differs.
        """
        advice = "Put back what there was, or start anew in another output_dir."
        for name, value in earlier.items():
            if name in self.facts and self.facts[name] != value:
                raise ValueError(
                    f"The checkpoint of step {step} was trained with {name} {value} and this run has "
                    f"{self.facts[name]}: it would repeat some customers and skip others. {advice}"
                )
        if changes := [*changed_options(earlier.get(self.OPTIONS, {}), self.options), *config_changes]:
            raise ValueError(
                f"The checkpoint of step {step} was trained with {', and '.join(changes)}: a run that goes on would "
                f"ignore it, or be a mixture of both. {advice}"
            )

    def on_train_begin(self, args, state, control, **kwargs):
        of_processes = gather_object([self.facts | {self.OPTIONS: self.options}])
        for process, facts in enumerate(of_processes):
            for name in facts:
                if facts[name] != of_processes[0][name]:
                    raise ValueError(
                        f"Process {process} has {name} {facts[name]} and process 0 has {of_processes[0][name]}: one "
                        "model can't be trained on both. Give every machine the same data and options."
                    )
        if state.global_step:
            self.check(state.global_step, state.stateful_callbacks.get(self.STATE, {}))
        state.stateful_callbacks[self.STATE] = self.facts | {self.OPTIONS: self.options}
        if state.global_step >= state.max_steps > 0:  # all of its steps were made before it was ended
            control.should_training_stop = True


class BestSoFar(TrainerCallback):
    """Finds the best checkpoint of a run that goes on where it lies now, and says if it is lost."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.global_step or state.best_metric is None or not args.load_best_model_at_end:
            return
        place = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
        if not (faults := weight_faults(place)):
            state.best_model_checkpoint = str(place)
            return
        logger.warning(
            f"The best checkpoint so far, of step {state.best_global_step} with {state.best_metric:.4f}, can't be "
            f"used ({faults[0]}): the best of those that follow is kept."
        )
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None


class EarlyStopping(EarlyStoppingCallback):
    """The Trainer's early stopping, whose patience is also that of a resumed run; a run that it ended stays ended."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.setdefault(type(self).__name__, {}) if state.global_step else {}
        self.early_stopping_patience_counter = stored.get("attributes", {}).get("early_stopping_patience_counter", 0)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True
