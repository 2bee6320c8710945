# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer that fine-tunes a model to offers."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Sampler

from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback
from modeling_mcm.training.resumable import ResumableTrainer

# Modules that a model for offers adds. All of their weights are trained, also if the encoder has low-rank updates.
NEW_PARTS = ("action_head",)


class OfferTrainer(ResumableTrainer):
    """`Trainer` whose batches hold histories of similar length, with a learning rate for the pre-trained weights.

    Args:
        args (`tuple`): Positional arguments of `Trainer`.
        encoder_lr_factor (`float`): Factor on the learning rate of the pre-trained weights; the head's has factor 1.
        data_version (`str`, *optional*): Digests of data, offers and pre-trained weights. A resumed run and all
            processes must have the same.
        run_options (`dict[str, Any]`, *optional*): Further options that decide the weights. A resumed run must have
            the same.
        kwargs (`dict`): Keyword arguments of `Trainer`. `data_collator` must be an `OfferCollator` and
            `train_dataset` an `OfferGroups`.
    """

    def __init__(
        self,
        *args: Any,
        encoder_lr_factor: float,
        data_version: str | None = None,
        run_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.encoder_lr_factor = encoder_lr_factor
        super().__init__(*args, **kwargs)
        self.offer_collator: Any = kwargs["data_collator"]
        self.add_callback(EpochCallback(self.offer_collator))
        if (patience := kwargs["args"].early_stopping_patience) is not None:
            self.add_callback(EarlyStopping(patience))
        facts = {"data": data_version, "seed": self.args.seed, "batch size": self._group_size}
        self.remember_run(facts, {"encoder_lr_factor": encoder_lr_factor, **(run_options or {})})

    @property
    def _group_size(self) -> int:
        """Number of groups of offers in one step of all processes together."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        costs = dataset.costs(self.offer_collator.max_events)
        return LengthGroupedSampler(costs, self._group_size, self.args.seed, self.offer_collator.epoch)

    def create_optimizer(self, model: Any = None):
        """Makes the Trainer's optimizer, with groups of parameters of their own for the pre-trained weights."""
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        new = {
            id(parameter)
            for name, parameter in trained.named_parameters()
            if any(part in name for part in (*NEW_PARTS, "lora_"))
        }
        slow = []
        for group in optimizer.param_groups:
            moved = [p for p in group["params"] if id(p) not in new]
            group["params"] = [p for p in group["params"] if id(p) in new]
            slow.append({**group, "params": moved, "lr": self.args.learning_rate * self.encoder_lr_factor})
        for group in slow:
            if group["params"]:
                optimizer.add_param_group(group)
        return optimizer
