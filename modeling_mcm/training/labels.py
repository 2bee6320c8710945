# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to a label of customers: what `run_finetune.py --labels` does once it has read its options.

What the state is made of does not change in training, so the counts of every label's history are taken once and kept,
if they fit; then a step costs a millisecond.
"""

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from transformers import Trainer, default_data_collator
from transformers.utils import logging

from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.data.dataset import PreparedManifest, check_vocabularies, load_prepared
from modeling_mcm.data.labels import (
    AUTO,
    ERROR,
    KINDS,
    NUMBER,
    ON_UNKNOWN,
    LabelCollator,
    LabelledCustomers,
    load_labels,
)
from modeling_mcm.evaluation.labels import LabelMetrics
from modeling_mcm.files_mcm import write_json
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.callbacks import EarlyStopping
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.resuming import last_whole_checkpoint

logger = logging.get_logger(__name__)
NEW = ("prediction_head.",)
MOST_KEPT = 2**29  # numbers of counts that are kept in memory, 2 GB
COUNT_BATCH = 64  # histories that are counted at a time
SAMPLE = 2**14  # labels that the head starts with, where they are not all kept
# Options that suit a few hundred labels, where none are given; those of a set belong together.
DEFAULTS: tuple[dict[str, Any], ...] = (
    {"eval_strategy": "epoch", "save_strategy": "epoch", "early_stopping_patience": 2},
    {"output_dir": "runs/labels"},
    {"learning_rate": 1e-3},
    {"num_train_epochs": 5},
    {"per_device_train_batch_size": 32},
)
METRICS = ("auc", "accuracy", "rank_correlation", "mae", "loss")


def label_defaults(given: Collection[str]) -> dict[str, Any]:
    """Values of options that are not given, where `labels` is; none where it is not.

    Args:
        given: names of the options that are.
    """
    chosen = [part for part in DEFAULTS if "labels" in given and not set(part) & set(given)]
    return {name: value for part in chosen for name, value in part.items()}


@dataclass
class LabelOptions:
    """Labels of customers to fine-tune to, in the place of offers."""

    labels: str | None = field(
        default=None,
        metadata={"help": "Parquet or CSV file with customer, time and label, instead of --offers (docs/labels.md)."},
    )
    label: str = field(default="label", metadata={"help": "Column of the label."})
    customer_column: str = field(default="customer_id", metadata={"help": "Column of the labels that says who."})
    time_column: str = field(default="time", metadata={"help": "Column that says when; later events are not read."})
    label_kind: str = field(
        default=AUTO,
        metadata={"help": "What the label is; auto: 0 and 1, booleans and text are classes.", "choices": list(KINDS)},
    )
    validation_share: float = field(
        default=0.2, metadata={"help": "Share of the customers that are not trained on but evaluated; 0 for none."}
    )
    on_unknown: str = field(
        default=ERROR,
        metadata={
            "help": "What becomes of labels whose customer has no event before their time.",
            "choices": list(ON_UNKNOWN),
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"--validation_share is {self.validation_share}; give 0 or more and less than 1.")


class KeptCounts(Dataset):
    """Labels with the counts of their histories, as `MCMForCustomerPrediction.forward` takes them.

    Args:
        model: whose counts they are.
        customers: a `LabelledCustomers`, or some of them.
        collator: its `LabelCollator`.
    """

    def __init__(self, model: MCMForCustomerPrediction, customers: Any, collator: LabelCollator):
        counts, labels = [], []
        bar = logging.tqdm(range(0, len(customers), COUNT_BATCH), desc="Histories", unit="batch")
        for start in bar:
            places = list(range(start, min(start + COUNT_BATCH, len(customers))))
            batch = collator(customers.__getitems__(places))
            labels.append(batch.pop("labels"))
            counts.append(model.counts(**{name: value.to(model.device) for name, value in batch.items()}).cpu())
        self.counts, self.labels = torch.cat(counts), torch.cat(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"counts": self.counts[place], "labels": self.labels[place]}


class LabelTrainer(Trainer):
    """`Trainer` with a smaller learning rate for what pre-training has trained already.

    Args:
        args: as for `Trainer`.
        encoder_lr_factor: factor on the learning rate of the customer state.
        kwargs: as for `Trainer`.
    """

    def __init__(self, *args: Any, encoder_lr_factor: float, **kwargs: Any):
        self.encoder_lr_factor = encoder_lr_factor
        super().__init__(*args, **kwargs)
        if (patience := kwargs["args"].early_stopping_patience) is not None:
            self.add_callback(EarlyStopping(patience))

    def create_optimizer(self, model: Any = None):
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        new = {id(value) for name, value in trained.named_parameters() if NEW[0] in name}
        slow = []
        for group in optimizer.param_groups:
            slow.append({**group, "params": [value for value in group["params"] if id(value) not in new]})
            group["params"] = [value for value in group["params"] if id(value) in new]
        for group in slow:
            if group["params"]:
                optimizer.add_param_group(group | {"lr": self.args.learning_rate * self.encoder_lr_factor})
        return optimizer


def read_labels(data: str, options: LabelOptions) -> LabelledCustomers:
    """The labels of the options with the histories before them; a warning says how many were left out.

    Raises:
        ValueError: as `load_labels` and `LabelledCustomers`, or if the log has no times.
    """
    schema = PreparedManifest.load(data).event_schema
    if schema.order is not None:
        raise ValueError(
            f"The log {schema.name} has no times but `order`, so it can't be told what came before a label: prepare "
            "a log with times."
        )
    columns = (options.label, options.customer_column, options.time_column)
    labels = load_labels(str(options.labels), *columns, options.label_kind, schema.time_zone)
    customers = LabelledCustomers(load_prepared(data), labels, options.on_unknown)
    if customers.dropped:
        logger.warning(
            f"{customers.dropped:,} of {len(labels):,} labels are left out: no event of their customer is known "
            "before their time."
        )
    if not schema.leaves_one_out:
        cutoff = schema.cutoff("validation")
        early = int((customers.labels.times < np.datetime64(cutoff, "s").astype(np.int64)).sum())
        if early:
            logger.warning(
                f"{early:,} labels are of times before {cutoff:%Y-%m-%d}, and pre-training read events until then: "
                "figures of a label that tells of the days after its time, such as churn, are too good there."
            )
    return customers


def train_to_labels(
    model: str,
    data: str,
    options: LabelOptions,
    training: Any,
    is_frozen: bool = False,
    encoder_lr_factor: float = 0.1,
    max_events: int | None = None,
) -> dict[str, float]:
    """Fine-tunes a checkpoint to a label and saves it, with its feature extractor and what was found on the customers
    that were held out.

    Args:
        model: checkpoint folder, or name on the Hub.
        data: folder of the prepared data set of the checkpoint.
        options: which labels.
        training: `TrainingArguments` with `early_stopping_patience`.
        is_frozen: whether the state stays as it is and the head alone is trained.
        encoder_lr_factor: factor on the learning rate of the state.
        max_events: longest history in events, start row included; the checkpoint's by default.

    Returns:
        Metrics of the validation customers; empty without any.

    Raises:
        ValueError: if the labels, the data or the options do not fit together.
        CheckpointError: if the checkpoint can't be read.
    """
    extractor = MCMFeatureExtractor.from_pretrained(model)
    check_vocabularies(data, extractor)
    if max_events is not None:
        extractor.max_events = max_events  # saved with the model
    customers = read_labels(data, options)
    labels = customers.labels
    places, held_out = labels.split(options.validation_share, training.seed)
    labels.of(places).check_trainable()
    evaluates = training.eval_strategy != "no"
    if evaluates and not len(held_out):
        raise ValueError(
            f"--validation_share {options.validation_share} of {len(set(labels.customer_ids))} customers holds none "
            "out to evaluate on: give a larger share, or --eval_strategy no."
        )
    if evaluates:
        labels.of(held_out).check_trainable("validation")
    tuned: MCMForCustomerPrediction = read_checkpoint(MCMForCustomerPrediction, model, NEW, **labels.model_options())
    if is_frozen:
        tuned.freeze_state()
    collator: Any = LabelCollator(extractor, tuned.config)
    dataset: Dataset = customers
    numbers = tuned.model.state.mean.numel()
    if len(customers) * numbers <= MOST_KEPT:
        dataset, collator = KeptCounts(tuned, customers, collator), default_data_collator
        sampled, sample = places, dataset.counts[places]
    else:
        sampled = np.random.default_rng(training.seed).permutation(places)[:SAMPLE]
        sample = KeptCounts(tuned, Subset(customers, sampled.tolist()), collator).counts
    tuned.eval()
    with torch.no_grad():
        states = tuned.model.state(sample.to(tuned.device))
    tuned.start_from(torch.from_numpy(labels.values[sampled]).to(tuned.device), states)
    trainer = LabelTrainer(
        model=tuned,
        args=training,
        data_collator=collator,
        train_dataset=Subset(dataset, places.tolist()),
        eval_dataset=Subset(dataset, held_out.tolist()) if evaluates else None,
        processing_class=extractor,
        compute_metrics=LabelMetrics(labels.kind == NUMBER),
        encoder_lr_factor=encoder_lr_factor,
    )
    checkpoint, broken = last_whole_checkpoint(training.output_dir)
    if broken:
        logger.warning(f"Interrupted while they were written, so not used: {', '.join(broken)}.")
    trained = sum(value.numel() for value in tuned.parameters() if value.requires_grad)
    logger.warning(
        f"{trained:,} trained parameters, {len(places):,} labels to train on and {len(held_out):,} to evaluate on, "
        f"{f'{labels.kind}: ' + ', '.join(labels.classes) if labels.classes else labels.kind}; "
        + (f"going on from {checkpoint}" if checkpoint else "starting anew")
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    found = trainer.evaluate() if evaluates else {}
    metrics = {name.removeprefix("eval_"): found[name] for name in found if name.removeprefix("eval_") in METRICS}
    if trainer.is_world_process_zero():
        facts = {
            "label": labels.name,
            "kind": labels.kind,
            "classes": list(labels.classes),
            "labels": len(places),
            "left_out": customers.dropped,
            "validation": metrics | {"labels": len(held_out) if evaluates else 0},
            "seconds": result.metrics["train_runtime"],
            "steps": trainer.state.global_step,
            "trained_parameters": trained,
            "seed": training.seed,
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "threads": torch.get_num_threads(),
        }
        write_json(Path(training.output_dir, "finetuning.json"), facts)
    words = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    said = f"On {len(held_out):,} labels of customers that were not trained on: {words}." if words else "Saved."
    logger.warning(said)
    return metrics


__all__ = ["KeptCounts", "LabelOptions", "LabelTrainer", "label_defaults", "read_labels", "train_to_labels"]
