# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with MCM's additions.

Every customer of a step has the same weight on any number of processes; an average of the weights may be evaluated
and saved; and the logs hold the losses of each task. Import it from `modeling_mcm.training.trainer`, because inference
does not need it.
"""

from collections import defaultdict
from collections.abc import Callable, Sized
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.collator import MCMCollator
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.training.callbacks import TrainingClock, WeightAverage
from modeling_mcm.training.resuming import ResumableTrainer

# Single parameters, and the factor on their learning rate: with that of a matrix they would hardly move.
FAST_PARAMETERS, FAST_FACTOR = ("readout_scale",), 20.0


class MCMTrainer(ResumableTrainer):
    """`Trainer` for `MCMForMultiTaskRecommendation`.

    Args:
        train_collator (`MCMCollator`): Collator of the training rows; its seed must be `args.seed`.
        measure (`Callable`, *optional*): Gives the loss of a model on validation. Each process measures all cases.
        ema_decay (`float`, *optional*): Decay of a moving average of the weights ([`WeightAverage`]), which is
            evaluated and is the final model. `None` for no average.
        kwargs (`dict`): Further arguments of [`ResumableTrainer`]. `train_dataset` must be a `PreparedRows`.

    Raises:
        ValueError: If options do not fit together.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        train_collator: MCMCollator,
        measure: Callable[[MCMForMultiTaskRecommendation], float] | None = None,
        ema_decay: float | None = None,
        **kwargs: Any,
    ):
        self.measure = measure
        self.task_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.clock = TrainingClock(lambda value: self.accelerator.reduce(value, "sum"))
        kwargs |= {"data_collator": train_collator, "eval_dataset": measure}  # Trainer asks for one to evaluate
        super().__init__(model, args, epoch=train_collator.epoch, **kwargs)
        self.add_callback(self.clock)
        self.weight_average = (
            None if ema_decay is None else WeightAverage(cast(PreTrainedModel, self.model), ema_decay)
        )
        if self.weight_average is not None:
            if self.is_fsdp_enabled:
                raise ValueError("Found ema_decay with FSDP, which keeps no whole weights; leave it out.")
            self.add_callback(self.weight_average)
        if self.is_fsdp_enabled:
            # accelerate would shard the input embeddings by themselves, and gather them only while they run. The
            # readout reads their tables later, so they must be sharded with the root module.
            trained: Any = self.model
            trained.get_input_embeddings = lambda: None

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
        batch, processes = self.args.train_batch_size, self.args.world_size
        last = batch * processes
        if self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last:
            last = len(cast(Sized, self.train_dataset)) % last or last
        total = batch * processes * (len(samples) - 1) + last
        customers = [batch] * (len(samples) - 1) + [min(max(last - batch * self.args.process_index, 0), batch)]
        cut = [
            {name: value[: max(count, 1)] for name, value in sample.items()}
            | {"share": count * processes * len(samples) / total}
            for sample, count in zip(samples, customers, strict=True)
        ]
        return cut, number

    def rate_factor(self, name: str) -> float:
        """Single parameters learn faster."""
        return FAST_FACTOR if name.endswith(FAST_PARAMETERS) else 1.0

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay, which single ones have not."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith(FAST_PARAMETERS)]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as `Trainer` does. With an average of the weights, which a checkpoint has beside the weights, the
        model has the average's weights afterwards: those of the best checkpoint, if that is to be loaded."""
        if self.weight_average is not None and isinstance(resume_from_checkpoint, str):
            self.weight_average.load(resume_from_checkpoint)
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.weight_average is not None:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self.weight_average.load(self.state.best_model_checkpoint)
            self.weight_average.swap()
            self.remove_callback(self.weight_average)
            self.weight_average = None
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as `Trainer` does, and the average of the weights beside it, if there is one."""
        if self.weight_average is not None and self.args.should_save:
            self.weight_average.save(str(output_dir or self.args.output_dir))
        super().save_model(output_dir, _internal_call)  # last, as it notes the digests of both

    def gather_model(self) -> MCMForMultiTaskRecommendation:
        """Gathers the trained model of FSDP: whole weights in every process. The trainer goes on with these."""
        options = StateDictOptions(full_state_dict=True)
        model = MCMForMultiTaskRecommendation(cast(MCMCollator, self.data_collator).config)
        model.load_state_dict(get_model_state_dict(cast(nn.Module, self.model_wrapped), options=options))
        cast(nn.Module, model).to(self.args.device)
        self.model = self.model_wrapped = model
        self.is_fsdp_enabled = False
        return model

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the loss on validation, with the average of the weights if there is one. Raises `ValueError` if the
        trainer has no `measure`."""
        if self.measure is None:
            raise ValueError("There is no `measure`: give MCMTrainer what computes a model's loss on validation.")
        with self.weight_average.swapped() if self.weight_average else nullcontext():
            loss = self.measure(cast(MCMForMultiTaskRecommendation, self.model).eval())
        metrics = {"eval_loss": self._mean_over_processes(torch.tensor(loss))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Computes the loss of a batch times its share, and keeps the losses of the tasks for the log."""
        share = inputs.pop("share", 1.0)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.clock.count_targets((inputs["labels"] >= FIRST_LABEL).sum() * (share > 0))
        for task, value in outputs.task_losses.items():
            self.task_losses[task].append(value * share)
        return (loss * share, outputs) if return_outputs else loss * share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as `Trainer` does, and adds the losses of the tasks, the seconds and the number of targets."""
        if "loss" in logs:
            for task, values in self.task_losses.items():
                logs[f"loss_{task}"] = self._mean_over_processes(torch.stack(values).mean())
            self.task_losses.clear()
            logs |= {"seconds": self.clock.seconds, "targets": self.clock.targets}
        super().log(logs, *args, **kwargs)

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        return self.accelerator.reduce(value.to(self.args.device), "mean").item()
