# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Options of a pre-training, which fine-tuning shares a part of, and a look at how it was started."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil
import torch
from transformers import TrainingArguments

from modeling_mcm.training.trainer import BEST_METRIC

AUTO, NONE = "auto", "none"


@dataclass
class ModelOptions:
    """What is trained."""

    data: str | None = field(default=None, metadata={"help": "Folder of a prepared data set (prepare_data.py)."})
    config: str = field(
        default="mcm-base",
        metadata={
            "help": "mcm-tiny, mcm-base or a folder with a config.json; features and sizes come from the data, "
            "tasks where it names none."
        },
    )
    config_overrides: list[str] = field(
        default_factory=list, metadata={"help": "Fields of MCMConfig, as name=value: hidden_size=64 readout=last."}
    )
    recipe: str = field(
        default=AUTO,
        metadata={
            "help": "auto: what preparation measured decides about units, target, losses, memories, sampling and "
            "epochs, where no option or config_overrides does, and the log says why; none: the config as it is.",
            "choices": [AUTO, NONE],
        },
    )
    max_events: int | None = field(
        default=None, metadata={"help": "Longest input in events, start row included. Default: the event schema's."}
    )
    scalar_lr_factor: float = field(
        default=20.0, metadata={"help": "Factor on the learning rate of the readout's and the memory's scalars."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, which is evaluated and saved; e.g. 0.99."},
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "End after this many seconds of training; the learning rate follows them."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the Parquet shards while training instead of keeping an Arrow copy."}
    )
    streaming_window: int = field(default=4, metadata={"help": "Shards whose customers are mixed at a time."})
    streaming_lanes: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Two numbers that, with seed and batch size, fix the order: parts of a step that come from shards "
            "of their own, and steps in a row that do. Default: processes and dataloader workers; give the same two "
            "when a run goes on with other numbers of those."
        },
    )
    streaming_eval_shards: int = field(
        default=16, metadata={"help": "Shards, spread evenly, whose customers are evaluated when streaming."}
    )

    def __post_init__(self):
        if self.streaming_lanes and len(self.streaming_lanes) != 2:
            raise ValueError(f"Found streaming_lanes {self.streaming_lanes}; expected two numbers, or none.")


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults that suit MCM."""

    output_dir: str | None = field(default="runs/mcm", metadata={"help": "Where checkpoints and the model go."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Customers a step and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Customers a step and device."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of the matrices; embeddings and biases have none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: a share of the steps under 1, else steps."})
    num_train_epochs: float = field(default=6.0, metadata={"help": "Passes over the customers."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    save_strategy: str = field(default="epoch", metadata={"help": "When a checkpoint is written."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    report_to: str | None = field(default="tensorboard", metadata={"help": "Loggers."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator reads all."})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Must stay on: ranks are kept, never logits."})
    use_cpu: bool = field(
        default=not torch.cuda.is_available(), metadata={"help": "Train on CPUs; the default without a GPU."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End after this many evaluations in a row without a better metric_for_best_model, and keep the "
            f"best model; pre-training's is {BEST_METRIC}, the mean over its tasks."
        },
    )
    best_metric: ClassVar[str] = BEST_METRIC  # where none is named

    def __post_init__(self):
        self.label_names = ["labels"]
        if self.resume_from_checkpoint is not None:
            raise ValueError(
                "--resume_from_checkpoint is not read: a run goes on by itself from the last whole checkpoint of its "
                "output_dir. Leave it out."
            )
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1 or self.eval_strategy == "no":
                raise ValueError(
                    f"Found early_stopping_patience {self.early_stopping_patience} with eval_strategy "
                    f"{self.eval_strategy!r}; expected 1 or more, and evaluations: set eval_strategy and "
                    "save_strategy to epoch or steps."
                )
            self.load_best_model_at_end = True
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = self.best_metric
        super().__post_init__()


def check_launch(world_size: int) -> None:
    """Refuses to run alone when `accelerate launch` was asked for several processes and, as on CPUs, started one.

    Raises:
        RuntimeError: with the launch line that works.
    """
    words = psutil.Process(os.getppid()).cmdline()
    if not any(Path(word).name.startswith("accelerate") for word in words[:3]):
        return
    asked = 1
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes" or name == "-n":
            asked = int(value or words[place + 1])
    if asked > world_size:
        raise RuntimeError(
            f"{asked} processes were asked for and {world_size} runs: `accelerate launch --cpu` starts only one. Use "
            f"`accelerate launch --multi_gpu --num_processes {asked}` (it works on CPUs too) or `torchrun`."
        )
