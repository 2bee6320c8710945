# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to a label of customers, as `mcm finetune --labels` does it: a linear model of the customer state, whose
penalty is chosen by cross-validation.

Shapes: N labels, S size of the state, C classes (1 for a number).
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.data.dataset import PreparedData
from modeling_mcm.data.labels import (
    AUTO,
    ERROR,
    LABEL_KINDS,
    NUMBER,
    ON_UNKNOWN,
    CustomerLabels,
    LabelledCustomers,
    load_labels,
)
from modeling_mcm.evaluation.labels import mean_auc, measure_labels, rank_correlation
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.files_mcm import file_digest, write_json
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.finetuning import describe_run, open_extractor
from modeling_mcm.training.resuming import FINE_TUNING, find_start, output_folder_lock

logger = logging.get_logger(__name__)
NEW = "prediction_head."
AT_ONCE = 64  # histories that are read at a time
FOLDS = 5
# Factors on the squared weights beside the sum of the losses, the largest first: each fit starts from the last.
PENALTIES = (1000.0, 200.0, 50.0, 10.0, 2.0)
# Options of a fine-tuning to offers that one to a label reads, too; what trains in steps is not read.
SHARED = ("model", "data", "max_events", "output_dir", "seed", "report_to", "disable_tqdm", "no_progress")


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


def read_labels(data: PreparedData, options: LabelOptions) -> LabelledCustomers:
    """Reads the labels with the histories before them, and warns of labels that are left out. Raises `ValueError` if
    the log has no times, if the table of labels is not as its options say, or if a customer is unknown and
    `on_unknown` makes that an error."""
    schema = data.schema
    if schema.order is not None:
        raise ValueError(
            f"The log {schema.name} has no times but `order`, so nothing says which events came before a label: "
            "prepare a log with times."
        )
    columns = (options.label, options.customer_column, options.time_column)
    labels = load_labels(str(options.labels), *columns, options.label_kind, schema.time_zone)
    customers = LabelledCustomers(data.rows, labels, options.on_unknown)
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
            "out to evaluate on: give a larger share, or 0."
        )
    if evaluates:
        labels.of(held_out).check_trainable("validation")
    return trained_on, held_out


@torch.no_grad()
def read_states(
    model: MCMForCustomerPrediction, extractor: MCMFeatureExtractor, customers: LabelledCustomers
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Computes the customer states before the labels, `(N, S)`, and the days since the last event there, `(N,)`."""
    times, states, days = customers.labels.times, [], []
    for start in logging.tqdm(range(0, len(times), AT_ONCE), desc="Histories", unit="batch"):
        chosen = range(start, min(start + AT_ONCE, len(times)))
        rows = customers.histories(chosen)
        histories = [extractor.readable(row, model.config.input_features) for row in rows]
        batch = extractor.pad(histories, as_of=times[chosen]).to(model.device)
        states.append(model.model(**batch, parts=("embedding",)).pooler_output.cpu())
        days += [(time - row["times"].max()) / SECONDS_PER_DAY for time, row in zip(times[chosen], rows, strict=True)]
    return torch.cat(states), np.array(days)


def fit_head(
    model: MCMForCustomerPrediction, states: torch.Tensor, labels: torch.Tensor, folds: NDArray[np.int64]
) -> float:
    """Fits a model's head to the states `(N, S)` and labels `(N,)` of training customers: logistic or linear
    regression of standardised states, with the L2 penalty of the lowest loss in cross-validation. The `folds` `(N,)`
    are numbered from 0. Returns that penalty."""
    mean, std = states.mean(0), states.std(0).clamp(min=1e-3)
    z, y = (states - mean) / std, labels
    shift, scale = (y.double().mean(), y.double().std().clamp(min=1e-9)) if y.is_floating_point() else (0.0, 1.0)
    y = ((y - shift) / scale).float() if y.is_floating_point() else y
    losses = np.zeros(len(PENALTIES))
    for fold in range(FOLDS):
        held_out = torch.from_numpy(folds == fold)
        if 0 < held_out.sum() < len(y):
            for index, (weight, bias) in enumerate(_fit_path(model, z[~held_out], y[~held_out], PENALTIES)):
                scores = F.linear(z[held_out], weight, bias)
                losses[index] += model.compute_loss(scores, y[held_out]).item() * int(held_out.sum())
    best = int(losses.argmin())
    *_, (weight, bias) = _fit_path(model, z, y, PENALTIES[: best + 1])
    weight = weight * scale / std
    with torch.no_grad():
        model.prediction_head.weight.copy_(weight)
        model.prediction_head.bias.copy_(bias * scale + shift - weight @ mean)
    return PENALTIES[best]


@torch.enable_grad()
def _fit_path(
    model: MCMForCustomerPrediction, z: torch.Tensor, y: torch.Tensor, penalties: Sequence[float]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Fits weights `(C, S)` and biases `(C,)` for each penalty."""
    weight, bias = torch.zeros(model.num_labels, z.shape[1]), torch.zeros(model.num_labels)
    fits = []
    for penalty in penalties:
        parameters = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

        def closure(parameters: Any = parameters, penalty: float = penalty, optimizer: Any = optimizer) -> float:
            optimizer.zero_grad()
            loss = model.compute_loss(F.linear(z, *parameters), y) + penalty / len(y) * parameters[0].square().sum()
            loss.backward()
            return loss.item()

        optimizer.step(closure)
        weight, bias = (value.detach() for value in parameters)
        fits.append((weight, bias))
    return fits


def train_to_labels(
    model: str, data: str, options: LabelOptions, training: Any, max_events: int | None = None
) -> dict[str, float]:
    """Fine-tunes a checkpoint to a label of customers, and saves it with its feature extractor and its metrics. Raises
    `ValueError` if the labels, the data and the options do not fit together. Raises `CheckpointError` if the
    checkpoint can't be read. Raises `RunError` if the output folder holds another run."""
    prepared = PreparedData(data)
    extractor = open_extractor(model, prepared, max_events)
    customers = read_labels(prepared, options)
    labels, evaluates = customers.labels, options.validation_share > 0
    trained_on, held_out = _split(labels, options.validation_share, training.seed, evaluates)
    tuned: MCMForCustomerPrediction = read_checkpoint(
        MCMForCustomerPrediction, model, (NEW,), **labels.model_options()
    )
    own = asdict(options) | {"max_events": extractor.max_events, "seed": training.seed}
    del own["labels"]  # where the file lies does not matter, but what it holds
    run = describe_run(model, prepared, own, labels=file_digest(str(options.labels)))
    output = Path(str(training.output_dir))
    with output_folder_lock(output, training.should_save):
        if find_start(training, FINE_TUNING, run).is_finished:
            return json.loads((output / FINE_TUNING).read_text(encoding="utf-8"))["validation"]
        facts = _fit(tuned, extractor, customers, trained_on, held_out, training.seed)
        if training.should_save:
            tuned.save_pretrained(output)
            extractor.save_pretrained(output)
            write_json(output / FINE_TUNING, facts)
        return facts["validation"]


def _fit(
    model: MCMForCustomerPrediction,
    extractor: MCMFeatureExtractor,
    customers: LabelledCustomers,
    trained_on: NDArray[np.int64],
    held_out: NDArray[np.int64],
    seed: int,
) -> dict[str, Any]:
    """Fits a model's head, and returns the record of the run."""
    model.eval()
    labels, start = customers.labels, time.monotonic()
    states, days = read_states(model, extractor, customers)
    values = torch.from_numpy(labels.values)
    _, owner = np.unique(labels.customer_ids[trained_on].astype(str), return_inverse=True)
    folds = np.random.default_rng(seed).permutation(np.arange(owner.max() + 1) % FOLDS)[owner]
    penalty = fit_head(model, states[trained_on], values[trained_on], folds)
    metrics: dict[str, float] = {}
    yardsticks: dict[str, float] = {}
    if len(held_out):
        with torch.no_grad():
            scores = model.prediction_head(states[held_out])
            metrics = measure_labels(scores.numpy(), labels.values[held_out], labels.kind == NUMBER)
            metrics["loss"] = model.compute_loss(scores, values[held_out]).item()
        if len(labels.classes) == 2:
            # a long absence may speak against it
            days = days * (-1 if rank_correlation(labels.values[trained_on], days[trained_on]) < 0 else 1)
            area = mean_auc(labels.values[held_out], np.stack([-days, days], 1)[held_out])
            yardsticks["days since the last event"] = area
        words = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        words += "".join(f"; auc of {name} {value:.3f}" for name, value in yardsticks.items())
        logger.info(f"On {len(held_out):,} labels of customers that were not trained on: {words}.")
    return {
        "label": labels.name,
        "kind": labels.kind,
        "classes": list(labels.classes),
        "labels": len(trained_on),
        "left_out": customers.dropped,
        "validation": metrics | {"labels": len(held_out)},
        "yardsticks": yardsticks,
        "penalty": penalty,
        "seconds": time.monotonic() - start,
        "seed": seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
