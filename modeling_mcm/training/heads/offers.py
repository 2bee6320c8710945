# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to offers, as `mcm finetune --offers` does it: a linear model of the numbers of customer and action, an
average over penalties by cross-validation.

Shapes: N offers, V labels of all tasks, O outcomes.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from transformers.utils import logging

from modeling_mcm.action_mcm import MCMForActionRecommendation, offer_loss
from modeling_mcm.data import PreparedData
from modeling_mcm.data.offers import TEST, TRAIN, VALIDATION, OfferReader, load_offers
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.folders import file_digest
from modeling_mcm.option import option

from ..checkpoints import read_checkpoint
from ..resuming import Facts
from .finetuning import FineTuningOptions, HeadInputs, draw_folds, fine_tune, fit_linear

logger = logging.get_logger(__name__)
HEAD = "action_head."
OFFER_PENALTIES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0)  # see `fit_linear`
LEAST_STD = 0.05  # of a number that is standardised
MOST_REFUSED = 40_000  # offers without any outcome that are read, drawn at random; they then weigh more


@dataclass
class OfferOptions:
    """Which offers a checkpoint is fine-tuned to."""

    offers: str | None = option("Folder with offers.parquet and actions.parquet (docs/fine_tuning.md).")
    outcomes: list[str] = option(
        "Columns of offers.parquet to predict. By default click and conversion, where they exist.", []
    )


@torch.inference_mode()
def read_offers(model: MCMForActionRecommendation, reader: OfferReader) -> HeadInputs:
    """Reads what the head reads of offers."""
    parts = []
    for rows, inputs in reader.batches(model.device):
        is_offer = (offered := inputs["offered_actions"]) >= 0
        labels = model.action_labels(inputs["action_input_ids"], inputs["action_rows"], int(offered.max()) + 1)
        labels = torch.nn.functional.normalize(labels, dim=1)[offered[is_offer]]
        parts.append((rows, model(**inputs).numbers[is_offer].float().cpu(), csr_array(labels.cpu().numpy())))
    order, numbers, action_labels = zip(*parts, strict=True)
    return HeadInputs(torch.cat(numbers), csr_array(vstack(action_labels))).of(np.argsort(np.concatenate(order)))


def compute_offer_loss(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean loss of log-odds `(N, O)` by `y` `(N, O + 1)`: outcomes, negative where they were not observed, and the
    weight of each offer."""
    return (offer_loss(scores, y[:, :-1]) * y[:, -1:]).sum() / len(y)


def train_to_offers(options: FineTuningOptions, offer_options: OfferOptions) -> Facts:
    """Fine-tunes a checkpoint to offers, saves it with its feature extractor, and returns the record of the run.
    Raises `ValueError` if the offers, the data and the options do not fit together. Raises `CheckpointError` if the
    checkpoint can't be read. Raises `RunError` if the output folder holds another run."""
    data = PreparedData(options.data)
    offers = load_offers(str(offer_options.offers), offer_options.outcomes or None, data.schema.time_zone)
    trained, outcomes = offers.of([TRAIN, VALIDATION]), offers.outcomes
    trained.check_before(offers.of([TEST]))
    trained.check_trainable()

    def fit(model: MCMForActionRecommendation, extractor: MCMFeatureExtractor) -> Facts:
        known = trained.table.dropna(subset=outcomes, how="all")
        is_taken = (known[outcomes] == 1).any(axis=1).to_numpy()
        refused = np.random.default_rng(options.seed).permutation(np.flatnonzero(~is_taken))
        is_read = is_taken.copy()
        is_read[refused[:MOST_REFUSED]] = True
        weights = np.where(is_taken[is_read], 1.0, max(len(refused) / MOST_REFUSED, 1.0))
        table = known[is_read].reset_index(drop=True)
        inputs = read_offers(model, OfferReader(data.rows, replace(trained, table=table), extractor, model.config))
        y = torch.from_numpy(np.column_stack([table[outcomes].fillna(-1), weights])).float()
        folds = draw_folds(table["customer_id"].to_numpy(), options.seed)
        std = inputs.numbers.std(0).clamp(min=LEAST_STD)
        _, parameters = fit_linear(
            inputs, y, len(outcomes), compute_offer_loss, folds, OFFER_PENALTIES, [(1 / std, 1.0, 1.0)]
        )
        head = model.action_head.requires_grad_(False)
        stored = head.numbers.weight, head.labels.weight, head.numbers.bias
        for parameter, value in zip(stored, parameters, strict=True):
            parameter.copy_(value)
        logger.info(f"Fitted to {len(table):,} of {len(trained.table):,} offers.")
        return {"groups": table["group_id"].nunique(), "offers": len(table), "outcomes": outcomes}

    digest = " ".join(map(file_digest, sorted(Path(str(offer_options.offers)).glob("*.parquet"))))
    read = partial(read_checkpoint, MCMForActionRecommendation, new=(HEAD,), action_outcomes=outcomes)
    return fine_tune(options, data, "offers", digest, {"outcomes": outcomes}, read, fit)
