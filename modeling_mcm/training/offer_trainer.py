# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer that fine-tunes to offers."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Sampler

from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback
from modeling_mcm.training.resumable import ResumableTrainer

# Parts of a model for offers that are new, and trained whole beside an encoder with low-rank updates.
NEW_PARTS = ("action_head",)


class OfferTrainer(ResumableTrainer):
    """`Trainer` with groups of similar length in a batch, and a learning rate for what is pre-trained already.

    Args:
        args: as for `Trainer`.
        encoder_lr_factor: factor on the learning rate of what pre-training has trained already.
        data_version: what a resumed run must agree on, such as digests of data, offers and pre-trained weights.
        run_options: options besides these and the Trainer's that decide the weights: a resumed run must have the same.
        kwargs: as for `Trainer`; `data_collator` is an `OfferCollator`, `train_dataset` an `OfferGroups`.
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
        """Groups of offers of a step, in all processes."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        costs = dataset.costs(self.offer_collator.max_events)
        return LengthGroupedSampler(costs, self._group_size, self.args.seed, self.offer_collator.epoch)

    def create_optimizer(self, model: Any = None):
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
