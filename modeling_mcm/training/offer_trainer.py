# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer that fine-tunes a model to offers."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Sampler

from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback
from modeling_mcm.training.resuming import ResumableTrainer, step_size

# Modules that a model for offers adds. All of their weights are trained, also if the encoder has low-rank updates.
NEW_PARTS = ("action_head",)


def slow_down(optimizer: Any, model: Any, new: Sequence[str], rate: float) -> Any:
    """Gives the pre-trained weights groups of their own, each with the options of its old group besides the rate."""
    stay = {id(value) for name, value in model.named_parameters() if any(part in name for part in new)}
    slow = []
    for group in optimizer.param_groups:
        moved = [value for value in group["params"] if id(value) not in stay]
        group["params"] = [value for value in group["params"] if id(value) in stay]
        slow.append({**group, "params": moved, "lr": rate})
    for group in slow:
        if group["params"]:
            optimizer.add_param_group(group)
    return optimizer


class OfferTrainer(ResumableTrainer):
    """`Trainer` whose batches hold histories of similar length, with a learning rate for the pre-trained weights."""

    def __init__(
        self,
        *args: Any,
        encoder_lr_factor: float,
        **kwargs: Any,
    ):
        self.encoder_lr_factor = encoder_lr_factor
        super().__init__(*args, **kwargs)
        self.offer_collator: Any = kwargs["data_collator"]
        self.add_callback(EpochCallback(self.offer_collator))
        if (patience := kwargs["args"].early_stopping_patience) is not None:
            self.add_callback(EarlyStopping(patience))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        costs = dataset.costs(self.offer_collator.max_events)
        return LengthGroupedSampler(costs, step_size(self.args), self.args.seed, self.offer_collator.epoch)

    def create_optimizer(self, model: Any = None):
        """Makes the Trainer's optimizer, with groups of parameters of their own for the pre-trained weights."""
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        rate = self.args.learning_rate * self.encoder_lr_factor
        return slow_down(optimizer, self.model if model is None else model, (*NEW_PARTS, "lora_"), rate)
