# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with the four things that MCM adds: rows grouped by length in an order that depends on
(seed, epoch) alone, the epoch told to the collator, losses and ranks by task in the logs, and checkpoints told from
halves of checkpoints.

Import it as `modeling_mcm.trainer`: inference does not need it.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback

from modeling_mcm.data.collator import LengthGroupedSampler, MCMCollator
from modeling_mcm.evaluation.streaming import StreamingMetrics, ranks_from_logits

# Scalars on a logarithm or on all of a task's scores: steps that suit a matrix would leave them where they started.
FAST_PARAMETERS = ("log_half_life", "log_sensitivity", "memory_gain", "readout_scale")


class EpochCallback(TrainerCallback):
    """Tells the training collator which epoch it is, also after a resume."""

    def __init__(self, collator: MCMCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch.fill_(int((state.epoch or 0) + 1e-6))  # a resume may start inside an epoch


class MCMTrainer(Trainer):
    """`Trainer` for `MCMForMultiTaskRecommendation`.

    Args:
        model, args: as for `Trainer`.
        train_collator: collator of the training rows; `args.seed` must be its seed.
        eval_collator: collator of the evaluation rows (mode "evaluate").
        scalar_lr_factor: factor on the learning rate of the readout's and the memory's scalars.
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
        **kwargs: Any,
    ):
        self.eval_collator, self.scalar_lr_factor = eval_collator, scalar_lr_factor
        self.task_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        tasks = train_collator.config.tasks
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

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            for task, value in outputs.task_losses.items():
                self.task_losses[task].append(value)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for task, values in self.task_losses.items():
                logs[f"loss_{task}"] = self._mean_over_processes(torch.stack(values).mean())
            self.task_losses.clear()
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
