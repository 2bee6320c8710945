#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pre-trained MCM to offers: who takes which of the actions that they are offered.

    accelerate launch training/run_finetune.py --model runs/mcm --data data/prepared --offers data/raw
    ... --freeze_encoder        only the new head
    ... --lora 8                low-rank updates of the encoder's attention, and the head; needs `peft`
    ... --from_scratch          the same model without its pre-training

--data is the data set that the checkpoint was pre-trained on (histories come from it, each cut where the offers were
made), --offers a folder with offers.parquet and actions.parquet (docs/offers.md). Evaluate the result with
run_evaluate.py --offers. Started again with the same options it goes on from its last whole checkpoint. All options of
`TrainingArguments` work; a YAML file may hold any of them, and flags win over it.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Sampler
from transformers import Trainer, set_seed
from transformers.utils import logging

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForActionRecommendation
from modeling_mcm.action_inputs_mcm import features_of_actions
from modeling_mcm.data import PreparedManifest, check_vocabularies, load_prepared
from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.data.offer_collator import OfferCollator, OfferGroups
from modeling_mcm.data.offers import SPLITS, TEST, TRAIN, VALIDATION, Offers, load_offers
from modeling_mcm.evaluation.offers import OfferMetrics
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import write_json
from modeling_mcm.training.callbacks import EarlyStopping, EpochCallback
from modeling_mcm.training.checkpoints import check_files, read_checkpoint
from modeling_mcm.training.trainer import last_whole_checkpoint

from arguments import parse_options
from memory import keep_freed_memory
from run_pretrain import PretrainingArguments, check_launch, popularity

logger = logging.get_logger("run_finetune")
# Of BertSelfAttention; the head has a `query` of its own, which is trained whole.
ADAPTED, TRAINED_WHOLE = ["query", "value"], ["action_head", "action_vectors"]


@dataclass
class FineTuningOptions:
    """What is fine-tuned, on what."""

    model: str | None = field(
        default=None, metadata={"help": "Pre-trained checkpoint: a folder, or a name on the Hub."}
    )
    data: str | None = field(default=None, metadata={"help": "Folder of the prepared data set of the checkpoint."})
    offers: str | None = field(default=None, metadata={"help": "Folder with offers.parquet and actions.parquet."})
    outcomes: list[str] = field(
        default_factory=list, metadata={"help": "Columns to predict; click and conversion by default, where known."}
    )
    train_splits: list[str] = field(default_factory=lambda: [TRAIN, VALIDATION], metadata={"help": "Trained on."})
    eval_split: str = field(default=TEST, metadata={"help": "Evaluated on with --eval_strategy.", "choices": SPLITS})
    label_share: float = field(default=1.0, metadata={"help": "Share of the training groups; drawn with --seed."})
    action_embedding: str = field(
        default="features",
        metadata={"help": "What an action is to the model.", "choices": ["features", "learned", "both"]},
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the head alone."})
    lora: int = field(default=0, metadata={"help": "Rank of low-rank updates of the encoder; 0 for none."})
    from_scratch: bool = field(default=False, metadata={"help": "Forget the pre-trained weights, keep the config."})
    encoder_lr_factor: float = field(
        default=0.1, metadata={"help": "Factor on the learning rate of what pre-training has trained already."}
    )
    max_events: int | None = field(
        default=None, metadata={"help": "Longest history in events, start row included. Default: the checkpoint's."}
    )

    def __post_init__(self) -> None:
        if self.freeze_encoder and self.lora:
            raise ValueError("--freeze_encoder leaves the encoder as it is and --lora changes it; choose one.")
        if self.from_scratch and (self.freeze_encoder or self.lora):
            raise ValueError("--from_scratch trains everything; leave out --freeze_encoder and --lora.")
        if wrong := sorted(set(self.train_splits) - set(SPLITS)):
            raise ValueError(f"No splits {wrong}; choose from {', '.join(SPLITS)}.")
        if not 0 < self.label_share <= 1 or self.lora < 0:
            raise ValueError("--label_share is above 0 and at most 1, --lora at least 0.")


@dataclass
class FineTuningArguments(PretrainingArguments):
    """`TrainingArguments` with defaults that suit a few thousand labels."""

    output_dir: str | None = field(default="runs/offers", metadata={"help": "Where checkpoints and the model go."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate of the head."})
    num_train_epochs: float = field(default=4.0, metadata={"help": "Passes over the groups of offers."})
    batch_eval_metrics: bool = field(default=False, metadata={"help": "Must stay off: metrics are of all groups."})
    best_metric: ClassVar[str] = "loss"


class OfferTrainer(Trainer):
    """`Trainer` with groups of similar length in a batch, and a learning rate for what is pre-trained already."""

    def __init__(self, *args: Any, encoder_lr_factor: float, **kwargs: Any):
        self.encoder_lr_factor = encoder_lr_factor
        super().__init__(*args, **kwargs)
        self.offer_collator: Any = kwargs["data_collator"]
        self.add_callback(EpochCallback(self.offer_collator))
        if (patience := kwargs["args"].early_stopping_patience) is not None:
            self.add_callback(EarlyStopping(patience))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        costs = dataset.costs(self.offer_collator.max_events)
        return LengthGroupedSampler(costs, group, self.args.seed, self.offer_collator.epoch)

    def create_optimizer(self, model: Any = None):
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        new = {
            id(parameter)
            for name, parameter in trained.named_parameters()
            if any(part in name for part in (*TRAINED_WHOLE, "lora_"))
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


def read_model(
    options: FineTuningOptions, extractor: MCMFeatureExtractor, offers: Offers, action_ids: list[str]
) -> MCMForActionRecommendation:
    """The checkpoint with a new head for these offers, or a model like it as it stands before any pre-training."""
    known: dict[str, Any] = {
        "action_outcomes": list(offers.outcomes),
        "action_features": features_of_actions(extractor, offers.columns),
        "action_embedding": options.action_embedding,
        "action_history_feature": extractor.token_type_feature,
        "action_ids": [] if options.action_embedding == "features" else action_ids,
    }
    if not options.from_scratch:
        new = ("action_head.", "action_vectors.")
        return read_checkpoint(MCMForActionRecommendation, str(options.model), new, **known)
    model = MCMForActionRecommendation(MCMConfig.from_pretrained(str(options.model), **known))
    model.initialize_from_popularity(popularity(str(options.data), model.config))
    return model


def adapted(model: MCMForActionRecommendation, rank: int) -> Any:
    """The model with low-rank updates of the encoder's attention, as `peft` makes it.

    Raises:
        ImportError: if `peft` is not installed.
    """
    with needs("lora"):
        from peft import LoraConfig, get_peft_model
    whole = [name for name in TRAINED_WHOLE if getattr(model, name) is not None]
    low_rank = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=ADAPTED,
        exclude_modules=f"({'|'.join(whole)}).*",
        modules_to_save=whole,
    )
    return get_peft_model(model, low_rank)


def main() -> None:
    """Reads the options, trains or goes on training, and saves the model with its feature extractor."""
    keep_freed_memory()
    options, training = parse_options(FineTuningOptions, FineTuningArguments, description=__doc__)
    check_launch(training.world_size)
    if options.model is None or options.data is None or options.offers is None:
        raise SystemExit("--model, --data and --offers are needed: see --help.")
    set_seed(training.seed)
    schema = PreparedManifest.load(options.data).event_schema
    check_files(options.model)
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    check_vocabularies(options.data, extractor)
    if options.max_events is not None:
        extractor.max_events = options.max_events  # saved with the model
    offers = load_offers(options.offers, options.outcomes or None, schema.time_zone)
    outcomes = list(offers.outcomes)
    groups = offers.groups(options.train_splits)
    evaluated = offers.groups([options.eval_split]) if training.eval_strategy != "no" else groups[:0]
    training_end = int(np.datetime64(schema.cutoff("validation"), "s").astype(np.int64))
    offers.check_times(training_end, groups, evaluated)
    if options.label_share < 1:
        kept = np.random.default_rng(training.seed).permutation(len(groups))[
            : round(options.label_share * len(groups))
        ]
        groups = groups[np.sort(kept)]
    offers.check_trainable(groups, outcomes)
    learned_actions = sorted(set(offers.action_ids[np.unique(offers.actions[offers.places(groups)])]))
    model = read_model(options, extractor, offers, learned_actions)
    if options.freeze_encoder:
        model.freeze_encoder()

    rows = load_prepared(options.data)
    used = np.concatenate([groups, evaluated])
    wrapped: Any = adapted(model, options.lora) if options.lora else model
    trainer = OfferTrainer(
        model=wrapped,
        args=training,
        data_collator=OfferCollator(extractor, model.config, offers, used),
        train_dataset=OfferGroups(rows, offers, groups),
        eval_dataset=OfferGroups(rows, offers, evaluated) if len(evaluated) else None,
        processing_class=extractor,
        compute_metrics=OfferMetrics(outcomes),
        preprocess_logits_for_metrics=first_output,
        encoder_lr_factor=1.0 if options.from_scratch else options.encoder_lr_factor,
    )
    checkpoint, broken = last_whole_checkpoint(training.output_dir)
    if broken:
        logger.warning(f"Interrupted while they were written, so not used: {', '.join(broken)}.")
    trained = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    logger.warning(
        f"{trained:,} trained parameters, {len(groups):,} groups of offers, "
        + (f"going on from {checkpoint}" if checkpoint else "starting anew")
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if options.lora:
        trainer.model = wrapped.merge_and_unload()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        facts = {
            "seconds": result.metrics["train_runtime"],
            "groups": len(groups),
            "steps": trainer.state.global_step,
            "outcomes": outcomes,
            "trained_parameters": trained,
            "seed": training.seed,
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "threads": torch.get_num_threads(),
        }
        write_json(Path(training.output_dir, "finetuning.json"), facts)
    PartialState().destroy_process_group()  # whose threads would now and then abort the process at its end


def first_output(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """The logits, for the metrics need nothing else."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


if __name__ == "__main__":
    main()
