# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers, as `mcm finetune --offers` does it: a linear model of the numbers of customer and action,
whose penalty is chosen by cross-validation.

Shapes: N offers, X numbers of an offer with the customer embedding, O outcomes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from transformers.utils import logging

from modeling_mcm.action_mcm import ActionHead, MCMForActionRecommendation, offer_loss
from modeling_mcm.data import PreparedData
from modeling_mcm.data.offers import SPLITS, TRAIN, VALIDATION, OfferReader, load_offers
from modeling_mcm.option import option
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.finetuning import (
    FineTuningOptions,
    HeadInputs,
    compute_digest,
    describe_run,
    draw_folds,
    fit_linear,
    fitted_once,
    open_extractor,
)

logger = logging.get_logger(__name__)
HEAD = "action_head."
PENALTIES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0)  # see `fit_linear`
LEAST_STD = 0.05  # of a number that is standardised
MOST_REFUSED = 40_000  # offers without any outcome that are read, drawn at random; they then weigh more


@dataclass
class OfferOptions:
    """Which offers a checkpoint is fine-tuned to."""

    offers: str | None = option(None, "Folder with offers.parquet and actions.parquet (docs/fine_tuning.md).")
    outcomes: list[str] = option(
        [], "Columns of offers.parquet to predict. By default click and conversion, where they exist."
    )
    train_splits: list[str] = option([TRAIN, VALIDATION], "Splits of the offers to train on.")

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.train_splits) - set(SPLITS)):
            raise ValueError(f"No splits {wrong}; choose from {', '.join(SPLITS)}.")


@torch.inference_mode()
def read_inputs(model: MCMForActionRecommendation, reader: OfferReader) -> HeadInputs:
    """Reads what the head reads of offers."""
    numbers = torch.zeros(len(reader.offers.table), model.action_head.numbers.in_features)
    labels, order = [], []
    for rows, inputs in reader.batches():
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        is_offer = (offered := inputs["offered_actions"]) >= 0
        numbers[rows] = model(**inputs).numbers[is_offer].float().cpu()
        of_actions = model.action_labels(inputs["action_input_ids"], inputs["action_rows"], int(offered.max()) + 1)
        of_actions = csr_array(torch.nn.functional.normalize(of_actions, dim=1).cpu().numpy())
        labels.append(of_actions[offered[is_offer].cpu().numpy()])
        order.append(rows)
    return HeadInputs(numbers, csr_array(vstack(labels))[np.argsort(np.concatenate(order))])


@torch.no_grad()
def fit_head(
    head: ActionHead, inputs: HeadInputs, outcomes: torch.Tensor, weights: torch.Tensor, folds: NDArray[np.int64]
) -> float:
    """Fits a head to the outcomes `(N, O)` of offers, negative where they were not observed, with weights `(N,)`.
    Returns the penalty."""
    mean, std = inputs.numbers.mean(0), inputs.numbers.std(0).clamp(min=LEAST_STD)
    inputs = inputs._replace(numbers=(inputs.numbers - mean) / std)

    def compute_loss(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (offer_loss(scores, y[:, :-1]) * y[:, -1:]).sum() / len(y)

    y = torch.cat([outcomes, weights[:, None]], 1)
    penalty, (weight, of_labels, bias) = fit_linear(inputs, y, outcomes.shape[1], compute_loss, folds, PENALTIES)
    head.numbers.weight.copy_(weight.T / std)
    head.numbers.bias.copy_(bias - head.numbers.weight @ mean)
    head.labels.weight.copy_(of_labels.T)
    return penalty


def train_to_offers(options: FineTuningOptions, offer_options: OfferOptions) -> dict[str, Any]:
    """Fine-tunes a checkpoint to offers, saves it with its feature extractor, and returns the record of the run.
    Raises `ValueError` if the offers, the data and the options do not fit together. Raises `CheckpointError` if the
    checkpoint can't be read. Raises `RunError` if the output folder holds another run."""
    data, source, splits = PreparedData(str(options.data)), str(options.model), offer_options.train_splits
    extractor = open_extractor(source, data, options.max_events)
    offers = load_offers(str(offer_options.offers), offer_options.outcomes or None, data.schema.time_zone)
    trained, outcomes = offers.of(splits), offers.outcomes
    trained.check_times(0, offers.of(sorted({*SPLITS} - {*splits})))
    trained.check_trainable()
    model = read_checkpoint(MCMForActionRecommendation, source, (HEAD,), action_outcomes=outcomes).eval()
    own = {"outcomes": outcomes, "train_splits": splits, "max_events": extractor.max_events, "seed": options.seed}
    run = describe_run(source, data, own, offers=compute_digest(str(offer_options.offers), ("*.parquet",)))
    with fitted_once(options.output_dir or "runs/offers", run, model, extractor) as facts:
        if not facts:
            known = trained.table.dropna(subset=outcomes, how="all")
            is_taken = (known[outcomes] == 1).any(axis=1).to_numpy()
            refused = np.random.default_rng(options.seed).permutation(np.flatnonzero(~is_taken))
            read = np.sort(np.concatenate([np.flatnonzero(is_taken), refused[:MOST_REFUSED]]))
            weights = np.where(is_taken[read], 1.0, max(len(refused) / MOST_REFUSED, 1.0))
            table = known.iloc[read].reset_index(drop=True)
            reader = OfferReader(data.rows, replace(trained, table=table), extractor, model.config)
            values = torch.tensor(table[outcomes].fillna(-1).to_numpy(np.float32))
            folds = draw_folds(table["customer_id"].to_numpy(), options.seed)
            inputs = read_inputs(model, reader)
            penalty = fit_head(model.action_head, inputs, values, torch.from_numpy(weights).float(), folds)
            facts |= {"groups": table["group_id"].nunique(), "offers": len(table), "outcomes": outcomes}
            facts |= {"penalty": penalty, "seed": options.seed}
            logger.info(f"Fitted to {len(table):,} of {len(trained.table):,} offers, with the penalty {penalty:g}.")
        return facts
