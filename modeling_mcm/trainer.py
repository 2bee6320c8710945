# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with the five things that MCM adds: rows grouped by length in an order that depends on
(seed, epoch) alone, the epoch told to the collator, losses and ranks by task in the logs, a clock that can bound the
training, and checkpoints told from halves of checkpoints.

Import it as `modeling_mcm.trainer`: inference does not need it.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback

from modeling_mcm.data.collator import LengthGroupedSampler, MCMCollator
from modeling_mcm.evaluation.metrics import FIRST_LABEL
from modeling_mcm.evaluation.streaming import StreamingMetrics, ranks_from_logits

# Scalars on a logarithm or on all of a task's scores: steps that suit a matrix would leave them where they started.
FAST_PARAMETERS = ("log_half_life", "log_sensitivity", "memory_gain", "rarity_weight", "readout_scale")


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


class MCMTrainer(Trainer):
    """`Trainer` for `MCMForMultiTaskRecommendation`.

    Args:
        model: as for `Trainer`.
        args: as for `Trainer`.
        train_collator: collator of the training rows; `args.seed` must be its seed.
        eval_collator: collator of the evaluation rows (mode "evaluate").
        scalar_lr_factor: factor on the learning rate of the readout's and the memory's scalars.
        ema_decay: of the average of the weights, which is what is evaluated and what training ends with; `None` for
            none. See `WeightAverage`.
        max_seconds: of training; then the learning rate follows the clock instead of the steps. See `TrainingClock`.
        kwargs: as for `Trainer`; `train_dataset` is a `PreparedRows` with lengths.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        train_collator: MCMCollator,
        eval_collator: MCMCollator | None = None,
        scalar_lr_factor: float = 20.0,
        ema_decay: float | None = None,
        max_seconds: float | None = None,
        **kwargs: Any,
    ):
        self.eval_collator, self.scalar_lr_factor = eval_collator, scalar_lr_factor
        self.task_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.clock = TrainingClock(lambda value: self.accelerator.reduce(value, "sum"), max_seconds)
        tasks = train_collator.config.tasks
        trained = train_collator.config.trained_tasks or tasks
        self.trained_places = [place for place, task in enumerate(tasks) if task in trained]
        super().__init__(
            model,
            args,
            data_collator=train_collator,
            compute_metrics=TaskMetrics(tasks),
            preprocess_logits_for_metrics=partial(task_ranks, tasks),  # type: ignore[arg-type]  # nested is fine too
            **kwargs,
        )
        self.train_collator = train_collator
        self.add_callback(EpochCallback(train_collator))
        self.add_callback(self.clock)
        self.weight_average = (
            None if ema_decay is None else WeightAverage(cast(PreTrainedModel, self.model), ema_decay)
        )
        if self.weight_average is not None:
            self.add_callback(self.weight_average)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(dataset.lengths, group, self.args.seed, self.train_collator.epoch)

    def get_eval_dataloader(self, eval_dataset: Any = None):
        if self.eval_collator is None:
            raise ValueError("There is no `eval_collator`: give MCMTrainer an MCMCollator in mode 'evaluate'.")
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def create_optimizer(self, model: Any = None):
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        fast = {id(p) for name, p in trained.named_parameters() if name.rsplit(".", 1)[-1] in FAST_PARAMETERS}
        moved = []
        for group in optimizer.param_groups:
            moved += [p for p in group["params"] if id(p) in fast]
            group["params"] = [p for p in group["params"] if id(p) not in fast]
        if moved:
            rate = self.args.learning_rate * self.scalar_lr_factor
            optimizer.add_param_group({"params": moved, "weight_decay": 0.0, "lr": rate})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None):
        if self.clock.max_seconds is None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.warmup_steps
        if self.args.lr_scheduler_type != "cosine" or not 0 <= warmup < 1:
            raise ValueError(
                f"Found lr_scheduler_type {str(self.args.lr_scheduler_type)!r} and warmup_steps {warmup:g} together "
                "with max_seconds; expected cosine, and a warm-up under 1, a share of the seconds."
            )
        if self.lr_scheduler is None:
            of_time = partial(self._factor_of_time, warmup)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, of_time)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _factor_of_time(self, warmup: float, step: int) -> float:
        return self.clock.cosine(warmup)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        if self.weight_average is not None:  # what training ends with is the average
            self.weight_average.swap()
            self.remove_callback(self.weight_average)
            self.weight_average = None
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.clock.paused(), self._averaged():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """What happens inside sees the average of the weights, if there is one."""
        if self.weight_average is None:
            yield
            return
        self.weight_average.swap()
        try:
            yield
        finally:
            self.weight_average.swap()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # A checkpoint: a resume needs the weights and their average. Every process comes here, and one of them writes.
        if self.weight_average is not None and self.args.should_save:
            self.weight_average.save(str(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weight_average is not None:
            self.weight_average.load(resume_from_checkpoint)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.paused():
            super()._save_checkpoint(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self.clock.see((inputs["labels"][..., self.trained_places] >= FIRST_LABEL).sum())
            for task, value in outputs.task_losses.items():
                self.task_losses[task].append(value)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for task, values in self.task_losses.items():
                logs[f"loss_{task}"] = self._mean_over_processes(torch.stack(values).mean())
            self.task_losses.clear()
            logs |= {"seconds": self.clock.seconds, "targets": self.clock.targets}
        super().log(logs, *args, **kwargs)

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        return self.accelerator.reduce(value, "mean").item()


class TaskMetrics:
    """`compute_metrics` of the Trainer: ranks of all tasks in, next-visit and next-event metrics out."""

    def __init__(self, tasks: Sequence[str]):
        self.tasks, self.metrics = list(tasks), StreamingMetrics()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        labels = torch.as_tensor(prediction.label_ids)
        by_task: Any = {task: labels[..., place] for place, task in enumerate(self.tasks)}
        return self.metrics(EvalPrediction(prediction.predictions, by_task), compute_result)


def task_ranks(
    tasks: Sequence[str], logits: Any, labels: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Ranks of the labels `(B, N, T)` among the logits of each task, so that no logits are kept."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {task: ranks_from_logits(logits[task], labels[..., place]) for place, task in enumerate(tasks)}


def last_whole_checkpoint(output_dir: str | Path) -> tuple[str | None, list[str]]:
    """The newest checkpoint that was written to its end, and the newer ones that were not.

    The Trainer writes trainer_state.json last, so a checkpoint without a readable one was interrupted.
    """
    broken = []
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    for folder in sorted(folders, key=lambda path: -int(path.name.rsplit("-", 1)[1])):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            broken.append(str(folder))
            continue
        return str(folder), broken
    return None, broken
