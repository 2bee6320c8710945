# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to a label of customers, as `mcm finetune --labels` does it.

The counts that a customer's state is computed from do not change in training. If they fit into memory, they are
computed once for the history of every label, and a training step then takes a millisecond.
"""

import json
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset
from transformers import default_data_collator
from transformers.utils import logging

from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.data.dataset import MANIFEST_FILE, PreparedData, check_vocabularies
from modeling_mcm.data.labels import (
    AUTO,
    ERROR,
    LABEL_KINDS,
    NUMBER,
    ON_UNKNOWN,
    CustomerLabels,
    LabelCollator,
    LabelledCustomers,
    load_labels,
)
from modeling_mcm.evaluation.labels import LabelMetrics, mean_auc
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.finetuning import MODEL_PARTS, PRE_TRAINED, compute_digest
from modeling_mcm.training.head_trainer import HeadTrainer
from modeling_mcm.training.resuming import (
    FINE_TUNING,
    Start,
    deciding_options,
    find_start,
    output_folder_lock,
)

logger = logging.get_logger(__name__)
NEW = "prediction_head."
MOST_NUMBERS = 2**29  # that the counts of all histories may have to be held in memory: 2 GB
COUNT_BATCH = 64  # histories that are counted at a time
SAMPLED_EXAMPLES = 2**14  # labels that the head is initialised from, if not all counts fit into memory
# Defaults that suit a few hundred labels. Those of one dict belong together: none is used if one of them is set.
DEFAULTS: tuple[dict[str, Any], ...] = (
    {"eval_strategy": "epoch", "save_strategy": "epoch", "early_stopping_patience": 2},
    {"output_dir": "runs/labels"},
    {"learning_rate": 3e-4},
    {"num_train_epochs": 5},
    {"per_device_train_batch_size": 32},
)
METRICS = ("auc", "accuracy", "rank_correlation", "mae", "loss")


def label_defaults(named: Collection[str]) -> dict[str, Any]:
    """Defaults of a fine-tuning to labels for options that are not `named`; none without `labels` among the names."""
    defaults = [part for part in DEFAULTS if "labels" in named and not set(part) & set(named)]
    return {name: value for part in defaults for name, value in part.items()}


@dataclass
class LabelOptions:
    """Which labels of customers a checkpoint is fine-tuned to, in the place of offers."""

    labels: str | None = option(
        None, "Parquet or CSV file with customer, time and label, in the place of --offers (docs/fine_tuning.md)."
    )
    label: str = option("label", "Column of --labels with the label.")
    customer_column: str = option("customer_id", "Column of --labels with the customer.")
    time_column: str = option(
        "time", "Column of --labels with the time of the label. Events at it or later are not read."
    )
    label_kind: str = option(
        AUTO,
        "Kind of the label. With auto, a label of 0 and 1, of booleans or of text is a class, and any other a number.",
        choices=list(LABEL_KINDS),
    )
    validation_share: float = option(
        0.2, "Share of the customers whose labels are not trained on but evaluated; 0 for none."
    )
    on_unknown: str = option(
        ERROR,
        "What is done about a label whose customer has no event before the label's time.",
        choices=list(ON_UNKNOWN),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"--validation_share is {self.validation_share}; give 0 or more and less than 1.")


class CountedHistories(Dataset):
    """A data set of labels, each with the counts of the history before it, as `MCMForCustomerPrediction` reads them.

    Attributes:
        counts (`torch.Tensor`, shape `(labels, numbers)`): Counts of the history of each label.
        labels (`torch.Tensor`, shape `(labels,)`): The labels.
    """

    def __init__(self, model: MCMForCustomerPrediction, customers: Any, collator: LabelCollator):
        counts, labels = [], []
        bar = logging.tqdm(range(0, len(customers), COUNT_BATCH), desc="Histories", unit="batch")
        for start in bar:
            indices = list(range(start, min(start + COUNT_BATCH, len(customers))))
            batch = collator(customers.__getitems__(indices))
            labels.append(batch.pop("labels"))
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            counts.append(model.model.state_counts(**inputs).cpu())
        self.counts, self.labels = torch.cat(counts), torch.cat(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"counts": self.counts[index], "labels": self.labels[index]}


def read_labels(data: str, options: LabelOptions) -> LabelledCustomers:
    """Reads the labels with the histories before them, and warns of labels that are left out. Raises `ValueError` if
    the log has no times, if the table of labels is not as its options say, or if a customer is unknown and
    `on_unknown` makes that an error."""
    prepared = PreparedData(data)
    schema = prepared.schema
    if schema.order is not None:
        raise ValueError(
            f"The log {schema.name} has no times but `order`, so nothing says which events came before a label: "
            "prepare a log with times."
        )
    columns = (options.label, options.customer_column, options.time_column)
    labels = load_labels(str(options.labels), *columns, options.label_kind, schema.time_zone)
    customers = LabelledCustomers(prepared.rows, labels, options.on_unknown)
    if customers.dropped:
        logger.warning(
            f"{customers.dropped:,} of {len(labels):,} labels are left out: no event of their customer is known "
            "before their time."
        )
    if not schema.leaves_one_out:
        cutoff = schema.cutoff("validation")
        early = int((customers.labels.times < schema.cutoff_seconds("validation")).sum())
        if early:
            logger.warning(
                f"{early:,} labels are of times before {cutoff:%Y-%m-%d}, and pre-training read events until then: "
                "metrics of a label that depends on the days after its time, such as churn, are too good there."
            )
    return customers


def _split(
    labels: CustomerLabels, share: float, seed: int, evaluates: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits labels by their customers, and checks that they can be trained on and, if needed, evaluated on."""
    trained_on, held_out = labels.split(share, seed)
    labels.of(trained_on).check_trainable()
    if evaluates and not len(held_out):
        raise ValueError(
            f"--validation_share {share} of {len(set(labels.customer_ids))} customers holds none "
            "out to evaluate on: give a larger share, or --eval_strategy no."
        )
    if evaluates:
        labels.of(held_out).check_trainable("validation")
    return trained_on, held_out


def _start_head(
    model: MCMForCustomerPrediction,
    customers: LabelledCustomers,
    collator: LabelCollator,
    trained_on: NDArray[np.int64],
    seed: int,
) -> tuple[Any, Any]:
    """Initialises a model's head from the labels to train on and the states of their customers."""
    dataset: Any = customers
    collate: Any = collator
    if len(customers) * model.model.state.mean.numel() <= MOST_NUMBERS:
        dataset, collate = CountedHistories(model, customers, collator), default_data_collator
        sampled, counts = trained_on, dataset.counts[trained_on]
    else:
        sampled = np.random.default_rng(seed).permutation(trained_on)[:SAMPLED_EXAMPLES]
        counts = CountedHistories(model, Subset(customers, sampled.tolist()), collator).counts
    model.eval()
    with torch.no_grad():
        states = model.model.state(counts.to(model.device))
    model.start_from(torch.from_numpy(customers.labels.values[sampled]).to(model.device), states)
    return dataset, collate


def _compute_yardsticks(
    customers: LabelledCustomers, dataset: Any, trained_on: NDArray[np.int64], held_out: NDArray[np.int64]
) -> dict[str, float]:
    """AUC of simple methods on the held-out labels of two classes: days since the last event; and, if scikit-learn is
    installed and all counts are in memory, logistic regression on the counts that the state reads."""

    def days(indices: NDArray[np.int64]) -> NDArray[np.float64]:
        items = customers.__getitems__(indices.tolist())
        return np.array([(item["time"] - item["history"]["times"].max()) / SECONDS_PER_DAY for item in items])

    def auc(indices: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
        return mean_auc(customers.labels.values[indices], np.stack([-scores, scores], 1))

    sample = trained_on[:SAMPLED_EXAMPLES]
    sign = 1.0 if auc(sample, days(sample)) >= 0.5 else -1.0  # for some labels a long absence speaks against it
    found = {"days since the last event": auc(held_out, sign * days(held_out))}
    if isinstance(dataset, CountedHistories):
        with suppress(ImportError):
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            counts, fitted = dataset.counts.numpy(), make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            fitted.fit(counts[trained_on], customers.labels.values[trained_on])
            found["logistic regression of counts"] = auc(held_out, fitted.decision_function(counts[held_out]))
    return found


def train_to_labels(
    model: str,
    data: str,
    options: LabelOptions,
    training: Any,
    is_frozen: bool = False,
    encoder_lr_factor: float = 0.1,
    max_events: int | None = None,
) -> dict[str, float]:
    """Fine-tunes a checkpoint to a label of customers, and saves it with its feature extractor and its metrics. Raises
    `ValueError` if the labels, the data and the options do not fit together. Raises `CheckpointError` if the
    checkpoint can't be read. Raises `RunError` if the output folder holds another run."""
    extractor = MCMFeatureExtractor.from_pretrained(model)
    check_vocabularies(data, extractor)
    if max_events is not None:
        extractor.max_events = max_events  # saved with the model
    customers = read_labels(data, options)
    labels, evaluates = customers.labels, training.eval_strategy != "no"
    trained_on, held_out = _split(labels, options.validation_share, training.seed, evaluates)
    tuned: MCMForCustomerPrediction = read_checkpoint(
        MCMForCustomerPrediction, model, (NEW,), **labels.model_options()
    )
    if is_frozen:
        tuned.freeze_state()
    own = asdict(options) | {"freeze_encoder": is_frozen, "encoder_lr_factor": encoder_lr_factor}
    own |= {"max_events": extractor.max_events}
    del own["labels"]  # where the file lies does not matter, but what it holds
    run = {
        "data": file_digest(Path(data, MANIFEST_FILE)),
        "labels": file_digest(Path(str(options.labels))),
        PRE_TRAINED: compute_digest(model, MODEL_PARTS),
        "options": deciding_options(training, tuned.config, own),
    }
    with output_folder_lock(str(training.output_dir), training.should_save):
        start = find_start(training, FINE_TUNING, run)
        if start.is_finished:
            return _finished_metrics(Path(str(training.output_dir), FINE_TUNING))
        return _train(tuned, extractor, customers, trained_on, held_out, training, encoder_lr_factor, start)


def _finished_metrics(record: Path) -> dict[str, float]:
    """Reads the metrics of a finished run from its record."""
    facts = json.loads(record.read_text(encoding="utf-8"))
    return {name: value for name, value in facts["validation"].items() if name in METRICS}


def _train(
    model: MCMForCustomerPrediction,
    extractor: MCMFeatureExtractor,
    customers: LabelledCustomers,
    trained_on: NDArray[np.int64],
    held_out: NDArray[np.int64],
    training: Any,
    encoder_lr_factor: float,
    start: Start,
) -> dict[str, float]:
    """Trains a model on labels, and writes the model and the record of the run, finetuning.json."""
    labels, evaluates = customers.labels, training.eval_strategy != "no"
    dataset, collator = _start_head(
        model, customers, LabelCollator(extractor, model.config), trained_on, training.seed
    )
    trainer = HeadTrainer(
        head=NEW,
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=Subset(dataset, trained_on.tolist()),
        eval_dataset=Subset(dataset, held_out.tolist()) if evaluates else None,
        processing_class=extractor,
        compute_metrics=LabelMetrics(labels.kind == NUMBER),
        encoder_lr_factor=encoder_lr_factor,
    )
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    logger.info(
        f"{trained:,} trained parameters, {len(trained_on):,} labels to train on and {len(held_out):,} to evaluate "
        f"on, {f'{labels.kind}: ' + ', '.join(labels.classes) if labels.classes else labels.kind}; {start}"
    )
    result = trainer.train(resume_from_checkpoint=start.checkpoint)
    trainer.save_final()
    evaluation = trainer.evaluate() if evaluates else {}
    values = {name.removeprefix("eval_"): value for name, value in evaluation.items()}
    metrics = {name: value for name, value in values.items() if name in METRICS}
    compares = evaluates and len(labels.classes) == 2 and trainer.is_world_process_zero()
    yardsticks = _compute_yardsticks(customers, dataset, trained_on, held_out) if compares else {}
    facts = {
        "label": labels.name,
        "kind": labels.kind,
        "classes": list(labels.classes),
        "labels": len(trained_on),
        "left_out": customers.dropped,
        "validation": metrics | {"labels": len(held_out) if evaluates else 0},
        "yardsticks": yardsticks,
        "seconds": result.metrics["train_runtime"],
        "steps": trainer.state.global_step,
        "trained_parameters": trained,
        "seed": training.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
    }
    trainer.write_record(FINE_TUNING, facts)
    words = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    words += "".join(f"; auc of {name} {value:.3f}" for name, value in yardsticks.items())
    on_held_out = f"On {len(held_out):,} labels of customers that were not trained on: {words}."
    logger.info(on_held_out if words else "Saved.")
    return metrics
