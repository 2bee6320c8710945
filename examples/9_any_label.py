# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes MCM to two labels of customers with the plain HF `Trainer`: who will not come back, and who has kids.

    python examples/9_any_label.py runs/quickstart data/complete_journey/prepared data/complete_journey/raw runs/labels

Any table of customer, time and label will do (docs/fine_tuning.md); here it is made of the quickstart's log.
"""

import sys

import pandas as pd
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments, pipeline

from modeling_mcm import MCMFeatureExtractor, MCMForCustomerPrediction
from modeling_mcm.data import load_prepared
from modeling_mcm.data.labels import LabelCollator, LabelledCustomers, make_labels
from modeling_mcm.evaluation.labels import LabelMetrics
from modeling_mcm.training.labels import CountedHistories


def tables(raw, as_of, days=30):
    """Labels at a time: no purchase in the days after it; kids in the household, where that is known."""
    events, profile = (pd.read_parquet(f"{raw}/{name}.parquet") for name in ("events", "profile"))
    buys = events[events["token_type"].str.startswith("purchase")]
    back = buys[buys["time"].between(as_of, as_of + pd.Timedelta(days=days))]["household_id"]
    churn = buys[buys["time"] < as_of].drop_duplicates("household_id")
    churn = churn.assign(label=~churn["household_id"].isin(back))
    kids = profile.dropna(subset="kids_count").assign(label=lambda table: table["kids_count"] != "0")
    made = [table.assign(customer_id=table["household_id"], time=as_of) for table in (churn, kids)]
    return dict(zip(("churn", "kids"), made, strict=True))


def main(checkpoint, data, raw, folder, as_of="2017-10-01", epochs=10):
    """Trains on four fifths of the customers, prints what was found on the others, and asks about a stranger."""
    for name, table in tables(raw, pd.Timestamp(as_of)).items():
        labels = make_labels(table)
        extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
        model = MCMForCustomerPrediction.from_pretrained(checkpoint, **labels.model_options())
        customers = LabelledCustomers(load_prepared(data), labels, on_unknown="drop")
        histories = CountedHistories(model.eval(), customers, LabelCollator(extractor, model.config))
        train, held_out = customers.labels.split(0.2, seed=0)
        model.start_from(histories.labels[train], model.model.state(histories.counts[train]))
        how = {"learning_rate": 1e-4, "num_train_epochs": int(epochs), "report_to": "none"}
        trainer = Trainer(
            model=model,
            args=TrainingArguments(f"{folder}/{name}", save_strategy="no", **how),
            train_dataset=Subset(histories, train.tolist()),
            eval_dataset=Subset(histories, held_out.tolist()),
            processing_class=extractor,
            compute_metrics=LabelMetrics(is_number=False),
        )
        trainer.train(), trainer.save_model()
        print(f"{name}: AUC {trainer.evaluate()['eval_auc']:.3f} on {len(held_out)} other customers")
        print(pipeline("customer-prediction", model=f"{folder}/{name}")({"events": []}, as_of=as_of))


if __name__ == "__main__":
    main(*sys.argv[1:])
