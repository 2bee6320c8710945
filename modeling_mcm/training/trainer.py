# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with MCM's additions.

Rows are grouped by length, in an order that depends on seed and epoch alone; the collator knows the epoch; every
customer of a step has the same weight on any number of processes; and the logs hold losses and metrics of each task.
Import it from `modeling_mcm.training.trainer`, because inference does not need it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.collator import LengthGroupedSampler, MCMCollator
from modeling_mcm.evaluation.metrics import ranks_from_logits
from modeling_mcm.evaluation.ranking import StreamingMetrics
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback, TrainingClock, WeightAverage
from modeling_mcm.training.options import BEST_METRIC, NEW_LABEL_LOSS
from modeling_mcm.training.resuming import ResumableTrainer, step_size

if TYPE_CHECKING:
    from modeling_mcm.training.scorer import ScorerFit

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
        eval_collator (`MCMCollator`, *optional*): Collator of the evaluation rows, in the mode "evaluate".
        scorer_fit ([`ScorerFit`], *optional*): Fitted scorer. Evaluation is then that of the encoder by itself on the
            fit's validation cases, because the scorer learns of the encoder at the end.
        ema_decay (`float`, *optional*): Decay of a moving average of the weights ([`WeightAverage`]), which is
            evaluated and is the final model. `None` for no average.
        patience (`int`, *optional*): Number of evaluations in a row without a better `metric_for_best_model` after
            which training ends. `None` for no early stopping.
        kwargs (`dict`): Further arguments of `Trainer`. `train_dataset` must be a `PreparedRows`.

    Raises:
        ValueError: If options do not fit together.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        train_collator: MCMCollator,
        eval_collator: MCMCollator | None = None,
        scorer_fit: "ScorerFit | None" = None,
        ema_decay: float | None = None,
        patience: int | None = None,
        **kwargs: Any,
    ):
        self.eval_collator, self.scorer_fit = eval_collator, scorer_fit
        self.task_losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.clock = TrainingClock(lambda value: self.accelerator.reduce(value, "sum"))
        tasks = train_collator.config.tasks
        super().__init__(
            model,
            args,
            data_collator=train_collator,
            compute_metrics=TaskMetrics(tasks),
            preprocess_logits_for_metrics=partial(_task_ranks, tasks),  # type: ignore[arg-type]  # nested is fine too
            **kwargs,
        )
        self.train_collator = train_collator
        self.add_callback(EpochCallback(train_collator))
        self.add_callback(self.clock)
        self.weight_average = (
            None if ema_decay is None else WeightAverage(cast(PreTrainedModel, self.model), ema_decay)
        )
        if self.weight_average is not None:
            if self.is_fsdp_enabled:
                raise ValueError("Found ema_decay with FSDP, which keeps no whole weights; leave it out.")
            self.add_callback(self.weight_average)
        if patience is not None:
            self.add_callback(EarlyStopping(patience))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedSampler(dataset.lengths, step_size(self.args), self.args.seed, self.train_collator.epoch)

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
        own = [batch] * (len(samples) - 1) + [min(max(last - batch * self.args.process_index, 0), batch)]
        cut = [
            {name: value[: max(customers, 1)] for name, value in sample.items()}
            | {"share": customers * processes * len(samples) / total}
            for sample, customers in zip(samples, own, strict=True)
        ]
        return cut, number

    def get_eval_dataloader(self, eval_dataset: Any = None):
        """Makes the data loader of an evaluation. Raises `ValueError` if the trainer has no `eval_collator`."""
        if self.eval_collator is None:
            raise ValueError("There is no `eval_collator`: give MCMTrainer an MCMCollator in mode 'evaluate'.")
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def create_optimizer(self, model: Any = None):
        """Makes the Trainer's optimizer, with a group of its own for single parameters (`FAST_PARAMETERS`)."""
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        fast = {id(p) for name, p in trained.named_parameters() if name.rsplit(".", 1)[-1] in FAST_PARAMETERS}
        moved = []
        for group in optimizer.param_groups:
            moved += [p for p in group["params"] if id(p) in fast]
            group["params"] = [p for p in group["params"] if id(p) not in fast]
        if moved:
            rate = self.args.learning_rate * FAST_FACTOR
            optimizer.add_param_group({"params": moved, "weight_decay": 0.0, "lr": rate})
        return optimizer

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
        model = MCMForMultiTaskRecommendation(self.train_collator.config)
        model.load_state_dict(get_model_state_dict(cast(nn.Module, self.model_wrapped), options=options))
        cast(nn.Module, model).to(self.args.device)
        self.model = self.model_wrapped = model
        self.is_fsdp_enabled = False
        return model

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*args, **kwargs)
        # accelerate shards the input embeddings by themselves, and gathers them only while they run. The readout reads
        # their tables later, so they must be sharded with the root module.
        model: Any = self.model
        model.get_input_embeddings = lambda: None
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            del model.get_input_embeddings

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as `Trainer` does, with the average of the weights if there is one."""
        with self._averaged():
            metric = self.args.metric_for_best_model or NEW_LABEL_LOSS
            if self.scorer_fit is None or not metric.removeprefix("eval_").startswith((NEW_LABEL_LOSS, ENCODER)):
                return super().evaluate(*args, **kwargs)
            metrics = self._evaluate_encoder(self.scorer_fit)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    @torch.no_grad()
    def _evaluate_encoder(self, fit: "ScorerFit") -> dict[str, float]:
        """Evaluates the encoder's readout by itself: `NEW_LABEL_LOSS`, of all labels if no label is new, and the
        NDCG@10 of each task, in which labels that customers have had are left out where none comes again."""
        model, tasks = cast(MCMForMultiTaskRecommendation, self.model).eval(), self.train_collator.config.tasks
        losses, ranked, nothing = torch.zeros(2, 2), TaskMetrics(tasks), torch.zeros(0, 1, len(tasks))
        for _, _, inputs in fit.reader.batches(fit.validation):
            batch = self._prepare_inputs(inputs)
            labels, scores = batch["labels"], model.readout_scores(batch)
            for index, (task, of_task) in enumerate(zip(tasks, scores, strict=True)):
                none = torch.zeros_like(of_task, dtype=torch.bool)
                had = none.scatter(1, batch["input_ids"][:, 1:, model.task_features[index]], True)
                is_target = none.scatter(1, labels[..., index].clamp(min=0), True)
                is_target[:, :FIRST_LABEL] = False
                loss = -of_task.float().log_softmax(1)
                for total, chosen in zip(losses, (is_target & ~had, is_target), strict=True):
                    total += torch.stack([loss[chosen].sum(), chosen.sum()]).cpu()
                if task in fit.without_repeats:
                    scores[index] = of_task.masked_fill(had, -torch.inf)
            ranks = _task_ranks(tasks, dict(zip(tasks, scores, strict=True)), labels)
            ranked(EvalPrediction(cast(Any, ranks), cast(Any, labels)), compute_result=False)
        metrics = ranked(EvalPrediction(cast(Any, {}), cast(Any, nothing)))
        total, number = losses[0] if losses[0, 1] else losses[1]
        values = {f"eval_{ENCODER}{name}": value for name, value in metrics.items() if name.endswith(BEST_METRIC)}
        return values | {f"eval_{NEW_LABEL_LOSS}": (total / number).item()}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """A context in which the model has the weights of the average, if there is one."""
        if self.weight_average is None:
            yield
            return
        self.weight_average.swap()
        try:
            yield
        finally:
            self.weight_average.swap()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Computes the loss of a batch times its share, and keeps the losses of the tasks for the log."""
        share = inputs.pop("share", 1.0)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss * share
        if model.training:
            self.clock.count_targets((inputs["labels"] >= FIRST_LABEL).sum() * (share > 0))
            for task, value in outputs.task_losses.items():
                self.task_losses[task].append(value * share)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as `Trainer` does, and adds the losses of the tasks, the seconds and the number of targets."""
        if "loss" in logs:
            for task, values in self.task_losses.items():
                logs[f"loss_{task}"] = self._mean_over_processes(torch.stack(values).mean())
            self.task_losses.clear()
            logs |= {"seconds": self.clock.seconds, "targets": self.clock.targets}
        super().log(logs, *args, **kwargs)

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        return self.accelerator.reduce(value, "mean").item()


class TaskMetrics:
    """Next-visit and next-event metrics of the tasks, and their mean NDCG; the Trainer's `compute_metrics`."""

    def __init__(self, tasks: Sequence[str]):
        self.tasks, self.metrics = list(tasks), StreamingMetrics()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        labels = torch.as_tensor(prediction.label_ids)
        by_task: Any = {task: labels[..., index] for index, task in enumerate(self.tasks)}
        metrics = self.metrics(EvalPrediction(prediction.predictions, by_task), compute_result)
        compared = [metrics[name] for task in self.tasks if (name := f"{task}_{BEST_METRIC}") in metrics]
        return metrics | ({BEST_METRIC: geometric_mean(compared)} if compared else {})


def _task_ranks(
    tasks: Sequence[str], logits: Any, labels: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Computes the ranks of the labels `(batch, units, tasks)` of each task, so that no logits are stored."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {task: ranks_from_logits(logits[task], labels[..., index]) for index, task in enumerate(tasks)}
