# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Options of pre-training."""

from dataclasses import dataclass

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from modeling_mcm.option import REQUIRED, option

AUTO, NONE, SHIPPED_NETWORK = "auto", "none", "shipped"


@dataclass
class ModelOptions:
    """Which model is pre-trained on which data, and how the data are read."""

    data: str = option("Folder of a prepared data set, as `mcm prepare` writes it.", REQUIRED)
    config: str = option(
        "Model to train: mcm-mini, mcm-tiny, mcm-base, or a folder with a config.json; with auto, the recipe chooses "
        "by the number of events to predict. Features and vocabulary sizes come from the data; tasks, too, if the "
        "config names none.",
        AUTO,
    )
    config_overrides: list[str] = option(
        "Fields of MCMConfig to set, as name=value, such as hidden_size=64 readout=last.", []
    )
    encoder: str = option(
        "With none, scores come from counts alone: a small network reads what the history and all customers say of a "
        "label. There are embedding and forecasts, and no encoder.",
        AUTO,
        choices=[AUTO, NONE],
    )
    network: str = option(
        "With shipped, nothing is fitted: the log is counted to its end, and scores come from the network of counts "
        "that ships with the package. Only with --encoder none.",
        AUTO,
        choices=[AUTO, SHIPPED_NETWORK],
    )
    recipe: str = option(
        "How choices are made that no option and no --config_overrides makes. With auto, measurements of "
        "the data decide about units, target, dropout, sampling and epochs, and the log says why: batches, for "
        "example, are smaller where customers have many events. With none, the config stays as it is, and training is "
        "as PretrainingArguments says.",
        AUTO,
        choices=[AUTO, NONE],
    )
    max_events: int | None = option(
        "Largest number of a customer's latest events that the encoder reads, the start row included. By default that "
        "of the event schema."
    )
    known: str | None = option(
        "Table of what is known of days beforehand, past ones and those to come, whose effects forecasts learn: "
        ".parquet or .csv with from and to, or date; name, such as campaign or closed; value, by default 1."
    )
    ema_decay: float | None = option(
        "Decay of an exponential moving average of the weights. The average is evaluated and saved in the place of "
        "the weights. With --recipe none there is none."
    )
    target_half_life_days: float = option(
        "Age of a target, in days before the customer's latest target, at which it weighs half as much in the loss; "
        "targets of four times this age are left out. Older tastes and seasons then have less effect. With 0 all "
        "targets have the same weight. Only for augmentation=all_prefixes.",
        30.0,
    )
    sampled_labels: int = option(
        "Number of labels of a task that a training step samples and scores, beside the labels in the batch's "
        "histories and targets; the loss corrects for the sampling. For tasks with very many labels. With 0 all "
        "labels are scored.",
        0,
    )

    def __post_init__(self) -> None:
        if self.network == SHIPPED_NETWORK and self.encoder != NONE:
            raise ValueError("--network shipped reads counts alone: add --encoder none, or call mcm start.")
        for name in ("target_half_life_days", "sampled_labels"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}: 0 is none.")


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults that suit MCM."""

    output_dir: str | None = option("Folder for checkpoints and the trained model.", "runs/mcm")
    per_device_train_batch_size: int = option("Number of customers in one training batch of one device.", 16)
    per_device_eval_batch_size: int = option("Number of customers in one evaluation batch of one device.", 64)
    learning_rate: float = option("Highest learning rate of the optimizer AdamW.", 2e-3)
    weight_decay: float = option("Weight decay of the matrices; embeddings and biases have none.", 0.01)
    lr_scheduler_type: str = option("Schedule of the learning rate, by its name in transformers.", "cosine")
    warmup_steps: float = option(
        "Length of the warm-up: below 1 a share of all steps, otherwise a number of steps.", 0.05
    )
    num_train_epochs: float = option("Number of passes over the customers.", 6.0)
    logging_steps: float = option("Number of steps between two lines of the log.", 50)
    save_strategy: str = option("When checkpoints are written: no, epoch, steps or best.", "epoch")
    save_total_limit: int | None = option(
        "Largest number of checkpoints to keep; older ones are deleted, but not the best.", 2
    )
    report_to: str | None = option(
        "Tools that metrics are logged to, or none. By default tensorboard where it is installed.",
        "tensorboard" if is_tensorboard_available() else "none",
    )
    use_cpu: bool = option(
        "Train on CPUs. By default true without CUDA: Apple's GPUs lack the double precision that counts need.",
        not torch.cuda.is_available(),
    )
    early_stopping_patience: int | None = option(
        "Number of evaluations in a row that better metric_for_best_model by less than .002, after which training "
        "ends with the best model. That metric is by default the loss on validation: of counts and encoder where "
        "there are counts, so that what the encoder adds decides."
    )

    def __post_init__(self) -> None:
        for name in ("resume_from_checkpoint", "data_seed", "label_smoothing_factor"):
            if getattr(self, name):
                raise ValueError(
                    f"--{name} is not read: a run goes on by itself from the last whole checkpoint of its output_dir, "
                    "draws customers by --seed, and takes labels as they are. Leave it out."
                )
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1 or self.eval_strategy == "no":
                raise ValueError(
                    f"Found early_stopping_patience {self.early_stopping_patience} with eval_strategy "
                    f"{self.eval_strategy!r}; expected 1 or more, and evaluations: set eval_strategy and "
                    "save_strategy to epoch or steps."
                )
            self.load_best_model_at_end = True
        self.remove_unused_columns = False  # the collator needs all columns of the rows
        self.restore_callback_states_from_checkpoint = True  # early_stopping_patience goes on counting
        super().__post_init__()
