# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pre-trained MCM to offers with the plain HF `Trainer`, and says how well it ranks the test offers.

    python examples/7_fine_tune_to_offers.py runs/mine data/offers/prepared data/offers/raw runs/offers

The offers are two tables (docs/fine_tuning.md). `training/run_finetune.py` does more: a lower learning rate for the
encoder, low-rank updates, batches of similar length, going on after an interruption, checks that no future is seen.
"""

import json
import sys

from transformers import Trainer, TrainingArguments

from modeling_mcm import MCMFeatureExtractor, MCMForActionRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.data.offers import TEST, TRAIN, VALIDATION, OfferCollator, OfferGroups, load_offers
from modeling_mcm.evaluation.offers import OfferMetrics


def main(checkpoint, data, offers_folder, folder, steps=-1):
    """Trains the head of a checkpoint, its encoder frozen, and returns the metrics of the test offers."""
    prepared = PreparedData(data)
    extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
    offers = load_offers(offers_folder, time_zone=prepared.schema.time_zone)

    new_head = {"action_outcomes": list(offers.outcomes), "action_history_feature": extractor.token_type_feature}
    model = MCMForActionRecommendation.from_pretrained(checkpoint, **new_head)
    model.freeze_encoder()

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            learning_rate=1e-3,
            num_train_epochs=2,
            max_steps=int(steps),
            per_device_train_batch_size=32,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
        ),
        data_collator=OfferCollator(extractor, model.config, offers),
        train_dataset=OfferGroups(prepared.rows, offers.of([TRAIN, VALIDATION])),
        eval_dataset=OfferGroups(prepared.rows, offers.of([TEST])),
        processing_class=extractor,
        compute_metrics=OfferMetrics(model.config.action_outcomes),
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0] if isinstance(outputs, tuple) else outputs,
    )
    trainer.train()
    trainer.save_model()
    print(json.dumps(trainer.evaluate(), indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
