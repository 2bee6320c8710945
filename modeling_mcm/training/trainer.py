# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with MCM's additions.

Every customer of a step has the same weight on any number of processes; evaluations are of the encoder by itself; an
average of the weights may be evaluated and saved; and the logs hold losses and metrics of each task. Import it from
`modeling_mcm.training.trainer`, because inference does not need it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from modeling_mcm.configuration_mcm import FIRST_LABEL, MISSING_ID
from modeling_mcm.data.cases import IGNORED
from modeling_mcm.data.collator import MCMCollator
from modeling_mcm.evaluation.metrics import customer_metrics, ranks_from_logits
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.training.callbacks import TrainingClock, WeightAverage
from modeling_mcm.training.options import BEST_METRIC, NEW_LABEL_LOSS
from modeling_mcm.training.resuming import ResumableTrainer

MIN_METRIC = 1e-3  # metrics below it count as it
ENCODER = "encoder_"  # first part of the names of metrics of the encoder by itself
# Single parameters, and the factor on their learning rate: with that of a matrix they would hardly move.
FAST_PARAMETERS, FAST_FACTOR = ("readout_scale",), 20.0


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of the metrics of tasks, without NaN."""
    return float(np.exp(np.nanmean(np.log(np.maximum(values, MIN_METRIC)))))


class MCMTrainer(ResumableTrainer):
    """`Trainer` for `MCMForMultiTaskRecommendation`.

    Args:
        train_collator (`MCMCollator`): Collator of the training rows; its seed must be `args.seed`.
        validation (`Callable`, *optional*): Makes the batches of an evaluation, as `MCMCollator` gives them in the
            mode "evaluate". Each process evaluates all.
        without_repeats (`Sequence[str]`): Tasks in which customers don't have a label again. An evaluation leaves out
            what a customer has had.
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
        validation: Callable[[], Iterable[Mapping[str, torch.Tensor]]] | None = None,
        without_repeats: Sequence[str] = (),
        ema_decay: float | None = None,
        **kwargs: Any,
    ):
        self.validation, self.without_repeats = validation, without_repeats
        self.task_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.clock = TrainingClock(lambda value: self.accelerator.reduce(value, "sum"))
        kwargs |= {"data_collator": train_collator, "eval_dataset": validation}  # Trainer asks for one to evaluate
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
        """Evaluates the encoder, with the average of the weights if there is one. Raises `ValueError` if the trainer
        has no `validation`."""
        if self.validation is None:
            raise ValueError("There is no `validation`: give MCMTrainer what makes the batches of an evaluation.")
        with self.weight_average.swapped() if self.weight_average else nullcontext():
            values = self._evaluate_encoder(self.validation())
        metrics = {f"eval_{name}": self._mean_over_processes(torch.tensor(value)) for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _evaluate_encoder(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, float]:
        """Metrics of the encoder's readout by itself: `NEW_LABEL_LOSS`, of all labels if no label is new; the NDCG@10
        of each task; and their mean, `BEST_METRIC`."""
        model = cast(MCMForMultiTaskRecommendation, self.model).eval()
        losses, ndcg = torch.zeros(2, 2, dtype=torch.float64), defaultdict(list)
        for batch in batches:
            inputs = self._prepare_inputs(dict(batch))
            logits = model(**inputs, parts=()).logits  # of the readout, as there are labels
            for index, task in enumerate(model.config.tasks):
                scores, labels = logits[task].float(), inputs["labels"][..., index].sort(1).values
                labels = labels.masked_fill(labels.diff(prepend=labels.new_zeros(len(labels), 1)) == 0, IGNORED)
                nothing = torch.zeros_like(scores, dtype=torch.bool)
                had = nothing.scatter(1, inputs["input_ids"][:, 1:, model.task_features[index]], True)
                is_target = nothing.scatter(1, labels.clamp(min=MISSING_ID), True)
                is_target[:, :FIRST_LABEL] = False
                loss = -scores.log_softmax(1)
                for total, chosen in zip(losses, (is_target & ~had, is_target), strict=True):
                    total += torch.stack([loss[chosen].sum(), chosen.sum()]).cpu()
                if task in self.without_repeats:
                    scores = scores.masked_fill(had, -torch.inf)
                greater, ties = (ranks.cpu() for ranks in ranks_from_logits(scores, labels))
                counts = ((labels != IGNORED) & (labels != MISSING_ID)).cpu()
                ndcg[task].append(customer_metrics(greater, ties, counts)[BEST_METRIC])
        means = {task: float(np.nanmean(np.concatenate(values))) for task, values in ndcg.items()}
        total, number = losses[0] if losses[0, 1] else losses[1]
        metrics = {f"{ENCODER}{task}_{BEST_METRIC}": mean for task, mean in means.items()}
        return metrics | {BEST_METRIC: geometric_mean([*means.values()]), NEW_LABEL_LOSS: (total / number).item()}

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
