# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to a label of customers, as `mcm finetune --labels` does it: a linear model of the customer state and of
the labels of tasks that customers had, an average over penalties by cross-validation.

Shapes: N examples, S size of the state, V labels of all tasks, C classes (1 for a number).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from transformers.utils import logging

from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.data import NO_CUTOFFS, PreparedData
from modeling_mcm.data.labels import (
    AUTO,
    ERROR,
    LABEL_KINDS,
    NUMBER,
    ON_UNKNOWN,
    LabelledCustomers,
    make_labels,
)
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.evaluation.metrics import measure_labels
from modeling_mcm.events_mcm import EPOCH, SECONDS_PER_DAY, naming
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.folders import file_digest
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.option import option
from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.state_mcm import ROTATED, WHITENED, CustomerState

from ..checkpoints import read_checkpoint
from ..resuming import Facts
from .finetuning import FineTuningOptions, HeadInputs, draw_folds, fine_tune, fit_linear

logger = logging.get_logger(__name__)
NEW = "prediction_head."
LEAST_SPREAD = 0.05  # standard deviation of a silence
LEAST_STD = 1e-6  # of a count; smaller ones say nothing
AT_ONCE = 64  # histories that are read at a time
PENALTIES = (400.0, 120.0, 40.0, 10.0, 4.0, 1.5, 0.5)  # of `fit_linear`
# Heads that are averaged: factors of the state's standardised numbers by the first part of their names, those of
# silences and of labels, and the head's weight before any example. Who the customer is stands in labels, and who
# leaves in plain counts. A hundred examples hardly say which, but where counts decide they say it clearly.
SCALES = [
    ({WHITENED: 0.06, ROTATED: 0.015, "": 0.03}, 0.03, 1.0, 20.0),
    ({WHITENED: 0.2, ROTATED: 0.05, "": 0.1}, 0.1, 1.0, 1.0),
    ({WHITENED: 0.0, ROTATED: 0.0, "": 1.0}, 0.3, 0.0, 1.0),
]


@dataclass
class LabelOptions:
    """Which labels of customers a checkpoint is fine-tuned to, in the place of offers."""

    labels: str | None = option(
        "Parquet or CSV file with customer, time and label, in the place of --offers (docs/fine_tuning.md)."
    )
    label: str = option("Column of --labels with the label.", "label")
    customer_column: str = option("Column of --labels with the customer.", "customer_id")
    time_column: str = option(
        "Column of --labels with the time of the label. Events at it or later are not read.", "time"
    )
    label_kind: str = option(
        "Kind of the label. With auto, a label of 0 and 1, of booleans or of text is a class, and any other a number.",
        AUTO,
        choices=list(LABEL_KINDS),
    )
    validation_share: float = option(
        "Share of the customers whose labels are not trained on but evaluated; 0 for none.", 0.2
    )
    on_unknown: str = option(
        "What is done about a label whose customer has no event before the label's time.",
        ERROR,
        choices=list(ON_UNKNOWN),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"--validation_share is {self.validation_share}; give 0 or more and less than 1.")


def read_labels(data: PreparedData, options: LabelOptions) -> LabelledCustomers:
    """Reads the labels with the histories before them, and warns of labels that are left out. Raises `ValueError` if
    the table of labels is not as its options say, or if a customer is unknown and
    `on_unknown` makes that an error."""
    schema = data.schema
    columns = (options.label, options.customer_column, options.time_column)
    table = read_table_file(str(options.labels), columns[1:])
    if schema.order is not None:  # no times: a label is of the whole history
        table[options.time_column] = EPOCH
    with naming(str(options.labels)):
        labels = make_labels(table, *columns, options.label_kind, schema.time_zone)
    customers = LabelledCustomers(data.rows, labels, options.on_unknown, schema.order is not None)
    if customers.dropped:
        logger.warning(
            f"{customers.dropped:,} of {len(labels):,} labels are left out: no event of their customer is known "
            "before their time."
        )
    if names := [*labels.columns]:
        logger.warning(f"The columns {names} are features: leave out what nobody knew at the time of the label.")
    if not schema.leaves_one_out and schema.cutoffs != NO_CUTOFFS:
        cutoff = schema.cutoff("validation")
        early = int((customers.labels.times < schema.cutoff_seconds("validation")).sum())
        if early:
            logger.warning(
                f"{early:,} labels are of times before {cutoff:%Y-%m-%d}, and pre-training read events until then: "
                "metrics of a label that depends on the days after its time, such as churn, are too good there."
            )
    return customers


@torch.no_grad()
def read_inputs(
    model: MCMForCustomerPrediction, extractor: MCMFeatureExtractor, customers: LabelledCustomers
) -> tuple[HeadInputs, torch.Tensor]:
    """Reads what the head reads before the labels, and the counts there of [`count_histories`]."""
    predictor, times, parts = Predictor(model, extractor), customers.labels.times, []
    for start in logging.tqdm(range(0, len(times), AT_ONCE), desc="Histories", unit="batch"):
        chosen: Any = np.arange(len(times))[start : start + AT_ONCE]
        rows = customers.histories(chosen, extractor.layout)
        outputs = predictor.run(predictor.inputs(rows, None if extractor.schema.order else times[chosen]))
        counts = torch.from_numpy(count_histories(rows, times[chosen]))
        parts.append((outputs.numbers.cpu(), csr_array(outputs.label_counts.cpu().numpy()), counts))
    numbers, had, counted = zip(*parts, strict=True)
    return HeadInputs(torch.cat(numbers), csr_array(vstack(had))), torch.cat(counted)


def count_histories(rows: Customers, times: NDArray) -> NDArray[np.float32]:
    """What an analyst would count first, of histories before times `(B,)`, as logarithms `(B, F)`: days since the last
    event and since the first, events, visits, and of each feature the distinct values, and the sum of a number."""
    row, last = rows.row, rows.starts + rows.lengths - 1
    columns = [(times - rows.column("times")[events]) / SECONDS_PER_DAY for events in (last, rows.starts)]
    columns += [rows.lengths, rows.column("visits")[last] + 1]
    for name in rows.columns:
        if name.startswith("feature_"):
            ids = rows.column(name).astype(np.int64)
            size = int(ids.max(initial=0)) + 1
            columns.append(np.bincount(np.unique(row * size + ids) // size, minlength=len(rows)))
        elif name.startswith("value_"):
            columns.append(np.bincount(row, np.nan_to_num(rows.column(name)), len(rows)))
    table = np.stack(columns, 1)
    return (np.sign(table) * np.log1p(np.abs(table))).astype(np.float32)


@torch.no_grad()
def fit_yardstick(
    model: MCMForCustomerPrediction, counts: torch.Tensor, labels: torch.Tensor, folds: NDArray
) -> list[torch.Tensor]:
    """Fits what a head is compared with, a linear model of standardised counts `(N, F)`: its weights `(C, F)` and
    biases `(C,)`. The arguments are those of [`fit_head`]."""
    inputs, std = HeadInputs(counts, csr_array((len(counts), 0), dtype=np.float32)), counts.std(0)
    scale = torch.where(std > LEAST_STD, 1 / std, 0.0)
    weight, _, bias = _fit(model, inputs, labels, folds, [(scale, 0.0, 1.0)])[1]
    return [weight, bias]


def _fit(
    model: MCMForCustomerPrediction,
    inputs: HeadInputs,
    labels: torch.Tensor,
    folds: NDArray,
    scales: Sequence[tuple[torch.Tensor, float, float]],
) -> tuple[NDArray, list[torch.Tensor]]:
    """What [`fit_linear`] gives, of numbers in their own unit."""
    y, shift, scale = labels, 0.0, 1.0
    if y.is_floating_point():
        shift, scale = y.double().mean().item(), max(y.double().std().item(), 1e-9)
        y = ((y - shift) / scale).float()
    shares, parameters = fit_linear(inputs, y, model.num_labels, model.compute_loss, folds, PENALTIES, scales)
    weight, label_weight, bias = (values * scale for values in parameters)
    return shares, [weight, label_weight, bias + shift]


@torch.no_grad()
def fit_head(model: MCMForCustomerPrediction, inputs: HeadInputs, labels: torch.Tensor, folds: NDArray) -> NDArray:
    """Fits a model's head to the inputs and labels `(N,)` of training customers: logistic or linear regression of
    standardised states and further columns, and of label counts, the average over `SCALES` and L2 penalties. The
    `folds` `(N,)` are numbered from 0. Returns the share of each of these, `(scales, penalties)`."""
    names, head = cast(CustomerState, model.model.state).names, model.prediction_head
    std, scales = inputs.numbers.std(0).clamp(min=1e-9), []
    std[: len(names)] = std[: len(names)].clamp(min=1e-3)
    silences = slice(len(std) - model.num_kinds, None)
    std[silences] = std[silences].clamp(min=LEAST_SPREAD)
    for by_name, silence_factor, label_factor, prior in SCALES:
        factors = torch.ones_like(std)
        factors[silences] = silence_factor
        for place, name in enumerate(names):
            factors[place] = next(factor for start, factor in by_name.items() if name.startswith(start))
        scales.append((factors / std, label_factor, prior))
    shares, (weight, label_weight, bias) = _fit(model, inputs, labels, folds, scales)
    head.state.weight.copy_(weight)
    head.state.bias.copy_(bias)
    head.labels.weight.copy_(label_weight)
    return shares


@torch.no_grad()
def predict(model: MCMForCustomerPrediction, inputs: HeadInputs) -> torch.Tensor:
    """The scores `(N, C)` of a model's head, on the CPU, where the inputs are."""
    head = model.prediction_head
    weight, bias, label_weight = (value.cpu() for value in (head.state.weight, head.state.bias, head.labels.weight))
    return inputs.numbers @ weight.T + bias + torch.from_numpy(inputs.labels @ label_weight.numpy().T)


def train_to_labels(options: FineTuningOptions, label_options: LabelOptions) -> Facts:
    """Fine-tunes a checkpoint to a label of customers, saves it with its feature extractor, and returns the record of
    the run, with its metrics in "validation". Raises `ValueError` if the labels, the data and the options do not fit
    together. Raises `CheckpointError` if the checkpoint can't be read. Raises `RunError` if the output folder holds
    another run."""
    data = PreparedData(options.data)
    customers = read_labels(data, label_options)
    labels = customers.labels
    trained_on, held_out = labels.split(label_options.validation_share, options.seed)
    labels.of(trained_on).check_trainable()
    if label_options.validation_share:
        labels.of(held_out).check_trainable("validation")
    own = asdict(label_options)
    digest = file_digest(own.pop("labels"))  # where the file lies does not matter, but what it holds

    def fit(model: MCMForCustomerPrediction, extractor: MCMFeatureExtractor) -> Facts:
        inputs, counts = read_inputs(model, extractor, customers)
        values = torch.from_numpy(labels.values)
        folds = draw_folds(labels.customer_ids[trained_on], options.seed)
        fit_head(model, inputs.of(trained_on), values[trained_on], folds)
        weight, bias = fit_yardstick(model, counts[trained_on], values[trained_on], folds)
        metrics, yardstick = {}, {}
        if len(held_out):
            scores, plain = predict(model, inputs.of(held_out)), counts[held_out] @ weight.T + bias
            metrics, yardstick = (
                measure_labels(each.numpy(), labels.values[held_out], labels.kind == NUMBER)
                for each in (scores, plain)
            )
            metrics["loss"] = model.compute_loss(scores, values[held_out]).item()
            words = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            words += "; of counts alone " + ", ".join(f"{name} {value:.3f}" for name, value in yardstick.items())
            logger.info(f"On {len(held_out):,} labels of customers that were not trained on: {words}.")
        return {
            "label": labels.name,
            "kind": labels.kind,
            "classes": list(labels.classes),
            "labels": len(trained_on),
            "left_out": customers.dropped,
            "validation": metrics | {"labels": len(held_out)},
            "yardstick": yardstick,
            "yardstick_weights": [weight.tolist(), bias.tolist()],
        }

    read = partial(read_checkpoint, MCMForCustomerPrediction, new=(NEW,), **labels.of(trained_on).model_options())
    return fine_tune(options, data, "labels", digest, own, read, fit)
