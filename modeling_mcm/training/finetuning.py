# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers: options, the model with its new head, and the training."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Sampler
from transformers.utils import logging

from modeling_mcm.action_inputs_mcm import EncodedActions
from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.data.offers import SPLITS, TEST, TRAIN, VALIDATION, OfferCollator, OfferGroups, load_offers
from modeling_mcm.evaluation.offers import OfferMetrics
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.options import PretrainingArguments
from modeling_mcm.training.resuming import (
    FINE_TUNING,
    ResumableTrainer,
    Start,
    deciding_options,
    find_start,
    output_folder_lock,
    step_size,
)

logger = logging.get_logger(__name__)
HEAD = "action_head."
ENCODER_FACTOR = 0.1  # on the learning rate of the pre-trained weights
# Options that decide the weights, besides those of the Trainer and of the model's config.
OWN_OPTIONS = ("outcomes", "train_splits", "freeze_encoder")


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
    learning_rate: float = option(1e-3, "Highest learning rate of the head's weights; the others have a tenth.")
    num_train_epochs: float = option(4.0, "Number of passes over the training groups of offers.")
    batch_eval_metrics: bool = option(
        False, "Must stay false: metrics are computed over all groups of offers at once."
    )
    best_metric: ClassVar[str] = "loss"


class OfferTrainer(ResumableTrainer):
    """`Trainer` with a lower learning rate for the pre-trained weights, and batches of [`OfferGroups`] whose histories
    have similar lengths."""

    def __init__(self, args: FineTuningArguments, **kwargs: Any):
        super().__init__(args=args, **kwargs)
        self.epoch = torch.zeros((), dtype=torch.int64)
        self.add_callback(EpochCallback(self))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        groups: Any = self.train_dataset
        return LengthGroupedSampler(groups.lengths, step_size(self.args), self.args.seed, self.epoch)

    def create_optimizer(self, model: Any = None):
        """Makes the Trainer's optimizer, with groups of their own for the pre-trained weights."""
        optimizer = super().create_optimizer(model)
        trained: Any = model or self.model
        new = {id(value) for name, value in trained.named_parameters() if HEAD in name}
        for group in [*optimizer.param_groups]:
            moved = [value for value in group["params"] if id(value) not in new]
            group["params"] = [value for value in group["params"] if id(value) in new]
            if moved:
                rate = self.args.learning_rate * ENCODER_FACTOR
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer


def open_extractor(model: str, data: PreparedData, max_events: int | None) -> MCMFeatureExtractor:
    """Opens the feature extractor of a checkpoint that is fine-tuned on a data set; `max_events` is saved with it."""
    extractor = MCMFeatureExtractor.from_pretrained(model)
    check_vocabularies(data.folder, extractor)
    extractor.max_events = max_events or extractor.max_events
    return extractor


def describe_run(model: str, data: PreparedData, options: Mapping[str, Any], **digests: str) -> dict[str, Any]:
    """What a fine-tuning is, for [`find_start`]."""
    weights = compute_digest(model, ("*.safetensors", "config.json"))
    digests = {"data": file_digest(data.folder / MANIFEST_FILE), "pre-trained model": weights} | digests
    return {**digests, "options": options}


def compute_digest(folder: str | Path, patterns: Sequence[str]) -> str:
    """Computes one SHA-256 digest of a folder's files."""
    files = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
    return hashlib.sha256(" ".join(map(file_digest, files)).encode()).hexdigest()


def fine_tune(options: FineTuningOptions, training: FineTuningArguments) -> None:
    """Fine-tunes a checkpoint to offers and saves the model with its feature extractor. An interrupted run is resumed.
    Raises `ValueError` if the offers, the data and the options do not fit together. Raises `CheckpointError` if the
    checkpoint can't be read. Raises `RunError` if the output folder holds another run."""
    data, source = PreparedData(str(options.data)), str(options.model)
    extractor = open_extractor(source, data, options.max_events)
    offers = load_offers(str(options.offers), options.outcomes or None, data.schema.time_zone)
    trained, evaluated = offers.of(options.train_splits), offers.of([options.eval_split])
    if training.eval_strategy == "no":
        evaluated = offers.of([])
    trained.check_times(data.schema.cutoff_seconds("validation"), evaluated)
    trained.check_trainable()
    known: Any = {"action_outcomes": offers.outcomes, "action_history_feature": extractor.token_type_feature}
    known["action_features"] = EncodedActions(extractor, MCMConfig.from_pretrained(source), offers.actions).features
    model = read_checkpoint(MCMForActionRecommendation, source, (HEAD,), **known)
    if options.freeze_encoder:
        model.freeze_encoder()
    own = {name: getattr(options, name) for name in OWN_OPTIONS} | {"max_events": extractor.max_events}
    digest = compute_digest(str(options.offers), ("*.parquet",))
    run = describe_run(source, data, deciding_options(training, model.config, own), offers=digest)
    with output_folder_lock(str(training.output_dir), training.should_save):
        start = find_start(training, FINE_TUNING, run)
        if not start.is_finished:
            trainer = OfferTrainer(
                training,
                model=model,
                data_collator=OfferCollator(extractor, model.config, offers),
                train_dataset=OfferGroups(data.rows, trained),
                eval_dataset=OfferGroups(data.rows, evaluated) if len(evaluated.table) else None,
                processing_class=extractor,
                compute_metrics=OfferMetrics(offers.outcomes),
                preprocess_logits_for_metrics=_first_output,
            )
            _train(trainer, start)


def _train(trainer: OfferTrainer, start: Start) -> None:
    """Trains a model on offers, and writes the model and the record of the run, finetuning.json."""
    model: Any = trainer.model
    groups: Any = trainer.train_dataset
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(f"{trained:,} trained parameters, {len(groups):,} groups of offers, {start}")
    result = trainer.train(resume_from_checkpoint=start.checkpoint)
    trainer.save_final()
    facts: dict[str, Any] = {
        "seconds": result.metrics["train_runtime"],
        "groups": len(groups),
        "steps": trainer.state.global_step,
        "outcomes": groups.offers.outcomes,
        "trained_parameters": trained,
        "seed": trainer.args.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
    }
    trainer.write_record(FINE_TUNING, facts)


def _first_output(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Takes the logits, which come first in the model's outputs, so that evaluation stores nothing else."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
