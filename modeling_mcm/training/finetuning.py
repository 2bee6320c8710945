# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers: options, the model with its new head, and the training."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.action_inputs_mcm import features_of_actions
from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.data.offer_collator import OfferCollator, OfferGroups
from modeling_mcm.data.offers import SPLITS, TEST, TRAIN, VALIDATION, Offers, load_offers
from modeling_mcm.evaluation.offers import OfferMetrics
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.head_trainer import HeadTrainer
from modeling_mcm.training.options import PretrainingArguments
from modeling_mcm.training.resuming import (
    FINE_TUNING,
    Start,
    deciding_options,
    find_start,
    output_folder_lock,
)

logger = logging.get_logger(__name__)
HEAD = "action_head."
# Options that decide the weights, besides those of the Trainer and of the model's config.
OWN_OPTIONS = ("outcomes", "train_splits", "freeze_encoder", "encoder_lr_factor")

# The model that is fine-tuned: its name among the digests of a run, and its files.
PRE_TRAINED, MODEL_PARTS = "pre-trained model", ("*.safetensors", "config.json")


@dataclass
class FineTuningOptions:
    """Which checkpoint is fine-tuned on which offers, and which of its weights are trained."""

    model: str | None = option(None, "Pre-trained checkpoint: a folder, or a name on the Hub. Required.")
    data: str | None = option(
        None, "Folder of the prepared data set that the checkpoint was pre-trained on. Required."
    )
    offers: str | None = option(None, "Folder with offers.parquet and actions.parquet.")
    outcomes: list[str] = option(
        [], "Columns of offers.parquet to predict. By default click and conversion, where they exist."
    )
    train_splits: list[str] = option([TRAIN, VALIDATION], "Splits of the offers to train on.")
    eval_split: str = option(TEST, "Split of the offers to evaluate on if --eval_strategy is set.", choices=SPLITS)
    freeze_encoder: bool = option(False, "Train the new head only, and leave the pre-trained weights as they are.")
    encoder_lr_factor: float = option(
        0.1, "Factor on the learning rate of the pre-trained weights; the head's has the factor 1."
    )
    max_events: int | None = option(
        None,
        "Largest number of events that are read of a history, the start row included. By default the checkpoint's.",
    )

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.train_splits) - set(SPLITS)):
            raise ValueError(f"No splits {wrong}; choose from {', '.join(SPLITS)}.")


@dataclass
class FineTuningArguments(PretrainingArguments):
    """`TrainingArguments` with defaults that suit a few thousand labels."""

    output_dir: str | None = option("runs/offers", "Folder for checkpoints and the fine-tuned model.")
    learning_rate: float = option(1e-3, "Highest learning rate of the head's weights.")
    num_train_epochs: float = option(4.0, "Number of passes over the training groups of offers.")
    batch_eval_metrics: bool = option(
        False, "Must stay false: metrics are computed over all groups of offers at once."
    )
    best_metric: ClassVar[str] = "loss"


def _read_model(
    options: FineTuningOptions, extractor: MCMFeatureExtractor, offers: Offers
) -> MCMForActionRecommendation:
    """Reads the checkpoint and adds a new head for the outcomes and features of the offers."""
    known: dict[str, Any] = {
        "action_outcomes": list(offers.outcomes),
        "action_features": features_of_actions(extractor, offers.columns),
        "action_history_feature": extractor.token_type_feature,
    }
    return read_checkpoint(MCMForActionRecommendation, str(options.model), (HEAD,), **known)


def fine_tune(options: FineTuningOptions, training: FineTuningArguments) -> None:
    """Fine-tunes a checkpoint to offers and saves the model with its feature extractor. An interrupted run is resumed.
    Raises `ValueError` if the offers, the data and the options do not fit together. Raises `CheckpointError` if the
    checkpoint can't be read. Raises `RunError` if the output folder holds another run."""
    data = PreparedData(str(options.data))
    extractor = MCMFeatureExtractor.from_pretrained(str(options.model))
    check_vocabularies(data.folder, extractor)
    if options.max_events is not None:
        extractor.max_events = options.max_events  # saved with the model
    offers = load_offers(str(options.offers), options.outcomes or None, data.schema.time_zone)
    outcomes = list(offers.outcomes)
    groups = offers.groups(options.train_splits)
    evaluated = offers.groups([options.eval_split]) if training.eval_strategy != "no" else groups[:0]
    training_end = data.schema.cutoff_seconds("validation")
    offers.check_times(training_end, groups, evaluated)
    offers.check_trainable(groups, outcomes)
    model = _read_model(options, extractor, offers)
    if options.freeze_encoder:
        model.freeze_encoder()

    own = {name: getattr(options, name) for name in OWN_OPTIONS} | {"max_events": extractor.max_events}
    run = {
        "data": file_digest(data.folder / MANIFEST_FILE),
        "offers": compute_digest(str(options.offers), ("*.parquet",)),
        PRE_TRAINED: compute_digest(str(options.model), MODEL_PARTS),
        "options": deciding_options(training, model.config, own),
    }
    with output_folder_lock(str(training.output_dir), training.should_save):
        start = find_start(training, FINE_TUNING, run)
        if not start.is_finished:
            _train(options, training, data, extractor, model, offers, groups, evaluated, start)


def compute_digest(folder: str | Path, patterns: Sequence[str]) -> str:
    """Computes one SHA-256 digest of a folder's files."""
    files = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
    return hashlib.sha256(" ".join(map(file_digest, files)).encode()).hexdigest()


def _train(
    options: FineTuningOptions,
    training: FineTuningArguments,
    data: PreparedData,
    extractor: MCMFeatureExtractor,
    model: MCMForActionRecommendation,
    offers: Any,
    groups: NDArray[np.int64],
    evaluated: NDArray[np.int64],
    start: Start,
) -> None:
    """Trains a model on offers, and writes the model and the record of the run, finetuning.json."""
    used = np.concatenate([groups, evaluated])
    trainer = HeadTrainer(
        head=HEAD,
        model=model,
        args=training,
        data_collator=OfferCollator(extractor, model.config, offers, used),
        train_dataset=OfferGroups(data.rows, offers, groups),
        eval_dataset=OfferGroups(data.rows, offers, evaluated) if len(evaluated) else None,
        processing_class=extractor,
        compute_metrics=OfferMetrics(list(offers.outcomes)),
        preprocess_logits_for_metrics=_first_output,
        encoder_lr_factor=options.encoder_lr_factor,
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(f"{trained:,} trained parameters, {len(groups):,} groups of offers, {start}")
    result = trainer.train(resume_from_checkpoint=start.checkpoint)
    facts: dict[str, Any] = {
        "seconds": result.metrics["train_runtime"],
        "groups": len(groups),
        "steps": trainer.state.global_step,
        "outcomes": list(offers.outcomes),
        "trained_parameters": trained,
        "seed": training.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
    }
    trainer.save_final()
    trainer.write_record(FINE_TUNING, facts)


def _first_output(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Takes the logits, which come first in the model's outputs, so that evaluation stores nothing else."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
