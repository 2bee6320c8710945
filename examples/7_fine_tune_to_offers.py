# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pre-trained MCM to offers in Python, and says how well it ranks the test offers.

    python examples/7_fine_tune_to_offers.py runs/mine data/offers/prepared data/offers/raw runs/offers

The offers are two tables (docs/fine_tuning.md). `mcm evaluate --offers` adds intervals.
"""

import sys

from modeling_mcm import MCMFeatureExtractor, MCMForActionRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.data.offers import TEST, OfferReader, load_offers
from modeling_mcm.evaluation.offers import offer_metrics, score_offers
from modeling_mcm.training.heads.finetuning import FineTuningOptions
from modeling_mcm.training.heads.offers import OfferOptions, train_to_offers


def main(checkpoint, data, offers_folder, folder):
    """Fits the head of a checkpoint, and prints the metrics of the test offers."""
    train_to_offers(FineTuningOptions(checkpoint, data, folder), OfferOptions(offers_folder))
    extractor, prepared = MCMFeatureExtractor.from_pretrained(folder), PreparedData(data)
    model = MCMForActionRecommendation.from_pretrained(folder).eval()

    offers = load_offers(offers_folder, model.config.action_outcomes, prepared.schema.time_zone).of([TEST])
    scores = score_offers(model, OfferReader(prepared.rows, offers, extractor, model.config))
    for index, outcome in enumerate(offers.outcomes):
        metrics = offer_metrics(offers, outcome, scores[:, index])
        print(f"{outcome}: {', '.join(f'{name} {value.mean:.3f}' for name, value in metrics.items())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
