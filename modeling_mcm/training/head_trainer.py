# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer that fine-tunes a model with a new head to offers."""

from typing import Any

import torch
from torch.utils.data import Sampler

from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback
from modeling_mcm.training.resuming import ResumableTrainer, step_size


class HeadTrainer(ResumableTrainer):
    """`Trainer` with another learning rate for the pre-trained weights. The batches of [`OfferGroups`] hold histories
    of similar length.

    Args:
        head (`str`): First part of the names of the weights that are new.
        encoder_lr_factor (`float`): Factor on the learning rate of all other weights.
        kwargs (`dict`): Arguments of `Trainer`.
    """

    def __init__(self, head: str, encoder_lr_factor: float, **kwargs: Any):
        self.head, self.encoder_lr_factor = head, encoder_lr_factor
        self.epoch = torch.zeros((), dtype=torch.int64)
        super().__init__(**kwargs)
        self.add_callback(EpochCallback(self))
        if (patience := kwargs["args"].early_stopping_patience) is not None:
            self.add_callback(EarlyStopping(patience))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        costs = dataset.costs(self.data_collator.max_events)  # type: ignore[union-attr]  # an OfferCollator
        return LengthGroupedSampler(costs, step_size(self.args), self.args.seed, self.epoch)

    def create_optimizer(self, model: Any = None):
        """Makes the Trainer's optimizer, with groups of their own for the pre-trained weights."""
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        new = {id(value) for name, value in trained.named_parameters() if self.head in name}
        for group in [*optimizer.param_groups]:
            moved = [value for value in group["params"] if id(value) not in new]
            group["params"] = [value for value in group["params"] if id(value) in new]
            if moved:
                rate = self.args.learning_rate * self.encoder_lr_factor
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer
