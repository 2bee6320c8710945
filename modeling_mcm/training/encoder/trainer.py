# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with MCM's additions.

Every customer of a step has the same weight on any number of processes; an average of the weights may be evaluated
and saved; and the logs hold the losses of each task.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from modeling_mcm.data.collator import LengthGroupedSampler, MCMCollator
from modeling_mcm.files_mcm import write_json
from modeling_mcm.folders import file_digest
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation

from ..resuming import FILES, ResumedRun, step_size

# Single parameters, and the factor on their learning rate: with that of a matrix they would hardly move.
FAST_PARAMETERS, FAST_FACTOR = ("readout_scale",), 20.0
AVERAGE = "average.safetensors"  # file of a checkpoint
WORTH_AN_EPOCH = 0.002  # a loss that falls by less does not keep a training going


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights. It evens out the noise of single steps and does not change them.

    Args:
        decay (`float`): Factor on the old average in each step, between 0 and 1. In step n it is (1 + n) / (10 + n)
            if that is less, so that the random weights of the start are soon forgotten.

    Raises:
        ValueError: If `decay` is not between 0 and 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"Found ema_decay = {decay}; expected a number between 0 and 1, or none for no average.")
        self.decay, self.model = decay, model
        self.average = AveragedModel(model, multi_avg_fn=self._average)

    def _average(self, averaged, current, steps):
        get_ema_multi_avg_fn(min(self.decay, (1 + int(steps)) / (10 + int(steps))))(averaged, current, steps)

    def on_train_begin(self, args, state, control, **kwargs):
        """Reads the average from the checkpoint if a run is resumed."""
        if state.global_step:
            self.load(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_step_end(self, args, state, control, **kwargs):
        """Adds the weights of the step to the average."""
        self.average.update_parameters(self.model)

    def on_train_end(self, args, state, control, **kwargs):
        """Gives the model the weights of the average: of the best checkpoint, if that is to be loaded."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self.load(Path(state.best_model_checkpoint))
        self.model.load_state_dict(self.average.module.state_dict())

    def load(self, folder: Path) -> None:
        """Reads the average from a checkpoint folder."""
        self.average.load_state_dict(load_file(folder / AVERAGE))


class MCMTrainer(Trainer):
    """`Trainer` for `MCMForMultiTaskRecommendation`, whose runs can be killed and started again. A batch has rows of
    similar length, in an order that depends on the seed and the epoch alone. With `args.early_stopping_patience`
    training ends early.

    Args:
        train_collator (`MCMCollator`): Collator of the training rows; its seed must be `args.seed`.
        measure (`Callable`): Gives the loss of a model on validation. Each process measures all cases.
        ema_decay (`float`, *optional*): Decay of a moving average of the weights ([`WeightAverage`]), which is
            evaluated and is the final model. `None` for no average.
        args, kwargs: Those of `Trainer`. `train_dataset` must be a `PreparedRows` with lengths.

    Raises:
        ValueError: If options do not fit together.
    """

    args: Any  # of these classes of Trainer are known, and not ours
    model: Any
    model_wrapped: Any
    train_dataset: Any
    data_collator: Any

    def __init__(
        self,
        *args: Any,
        train_collator: MCMCollator,
        measure: Callable[[MCMForMultiTaskRecommendation], float],
        ema_decay: float | None = None,
        **kwargs: Any,
    ):
        self.measure = measure
        self.epoch = train_collator.epoch
        self.task_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        kwargs |= {"data_collator": train_collator, "eval_dataset": measure}  # Trainer asks for one to evaluate
        super().__init__(*args, **kwargs)
        self.weight_average = None if ema_decay is None else WeightAverage(self.model, ema_decay)
        patience = self.args.early_stopping_patience
        early_end = None if patience is None else EarlyStoppingCallback(patience, WORTH_AN_EPOCH)
        for callback in filter(None, (ResumedRun(), early_end, self.weight_average)):
            self.add_callback(callback)
        if self.is_fsdp_enabled:
            if ema_decay is not None:
                raise ValueError("Found ema_decay with FSDP, which keeps no whole weights; leave it out.")
            # accelerate would shard the input embeddings by themselves, and gather them only while they run. The
            # readout reads their tables later, so they must be sharded with the root module.
            self.model.get_input_embeddings = lambda: None

    def _get_train_sampler(self, *args: object) -> Sampler | None:
        return LengthGroupedSampler(self.train_dataset.lengths, step_size(self.args), self.args.seed, self.epoch)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.epoch.fill_(kwargs["epoch"])  # which sampler and collator read
        if not self.control.should_training_stop:  # true if the resumed run has ended
            super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # the last file of each process
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(output_dir)
            files = [path for path in folder.rglob("*") if path.is_file() and path.name != TRAINER_STATE_NAME]
            write_json(folder / FILES, {path.relative_to(folder).as_posix(): file_digest(path) for path in files})

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the batches of a step, and adds to each its share: the factor that its mean loss is multiplied by.

        `Trainer` averages processes and accumulated batches as if all had the same number of customers. In the last
        step of an epoch they do not, and accelerate fills them up with customers of the first step. These customers
        are cut off here, and the share gives every customer of the step the same weight. Raises `RuntimeError` if a
        worker of the data loader was killed.
        """
        try:
            samples, number = super().get_batch_samples(*args, **kwargs)
        except (ConnectionError, EOFError) as error:  # torch's own message does not say that
            raise RuntimeError(
                f"A DataLoader worker was killed while it handed over a batch ({error!r}), most often for want of "
                "memory: have fewer (dataloader_num_workers). Started again, the run goes on from its last checkpoint."
            ) from error
        size, processes = self.args.train_batch_size, self.args.world_size
        last = size * processes  # customers of the last batch, of all processes
        if self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last:
            last = len(self.train_dataset) % last or last
        total, cut = size * processes * (len(samples) - 1) + last, []
        for step, sample in enumerate(samples, start=1):
            count = size if step < len(samples) else min(max(last - size * self.args.process_index, 0), size)
            share = count * processes * len(samples) / total
            cut.append({name: value[: max(count, 1)] for name, value in sample.items()} | {"share": share})
        return cut, number

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the Trainer's optimizer, in which single parameters learn faster and have no weight decay."""
        optimizer = super().create_optimizer(model)
        trained = self.model if model is None else model
        fast = [value for name, value in trained.named_parameters() if name.endswith(FAST_PARAMETERS)]
        if fast:
            groups = optimizer.param_groups
            for group in groups:
                group["params"] = [value for value in group["params"] if value not in set(fast)]
            own = {"params": fast, "lr": self.args.learning_rate * FAST_FACTOR, "weight_decay": 0.0}
            optimizer.add_param_group(groups[0] | own)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as `Trainer` does, and in a checkpoint the average of the weights beside it."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and self.weight_average and self.args.should_save:
            save_file(self.weight_average.average.state_dict(), Path(str(output_dir), AVERAGE))

    def gather_model(self) -> MCMForMultiTaskRecommendation:
        """Gathers the trained model of FSDP: whole weights in every process. The trainer goes on with these."""
        options = StateDictOptions(full_state_dict=True)
        model = MCMForMultiTaskRecommendation(self.data_collator.config)
        model.load_state_dict(get_model_state_dict(self.model_wrapped, options=options))
        self.model = self.model_wrapped = model
        self.model.to(self.args.device)
        self.is_fsdp_enabled = False
        return model

    def evaluate(self, eval_dataset: object = None, *args: object, **kwargs: object) -> dict[str, float]:
        """Measures the loss on validation, with the average of the weights if there is one. Raises `ValueError` if
        other cases are given than those of `measure`."""
        if eval_dataset is not None and eval_dataset is not self.measure:
            raise ValueError("`eval_dataset` is not read: `measure` says what validation is. Leave it out.")
        model: Any = self.weight_average.average.module if self.weight_average else self.model
        metrics = {"eval_loss": self._mean_over_processes(torch.tensor(self.measure(model.eval())))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Computes the loss of a batch times its share, and keeps the losses of the tasks for the log."""
        share = inputs.pop("share", 1.0)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        for task, value in outputs.task_losses.items():
            self.task_losses[task].append(value * share)
        return (loss * share, outputs) if return_outputs else loss * share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as `Trainer` does, and adds the losses of the tasks."""
        if "loss" in logs:
            for task, values in self.task_losses.items():
                logs[f"loss_{task}"] = self._mean_over_processes(torch.stack(values).mean())
            self.task_losses.clear()
        super().log(logs, *args, **kwargs)

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        return self.accelerator.reduce(value.to(self.args.device), "mean").item()
