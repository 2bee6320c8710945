# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes MCM to two labels of customers in Python: who will not come back, and who has kids.

    python examples/9_any_label.py runs/quickstart data/complete_journey/prepared data/complete_journey/raw runs/labels

Any table of customer, time and label will do (docs/fine_tuning.md); here it is made of the quickstart's log.
"""

import sys

import numpy as np
import pandas as pd
import torch
from transformers import pipeline

from modeling_mcm import MCMFeatureExtractor, MCMForCustomerPrediction
from modeling_mcm.data import load_prepared
from modeling_mcm.data.labels import LabelledCustomers, make_labels
from modeling_mcm.evaluation.metrics import measure_labels
from modeling_mcm.training.heads.customer import fit_head, predict, read_inputs


def tables(raw, as_of, days=30):
    """Labels at a time: no purchase in the days after it; kids in the household, where that is known."""
    events, profile = (pd.read_parquet(f"{raw}/{name}.parquet") for name in ("events", "profile"))
    buys = events[events["token_type"].str.startswith("purchase")]
    back = buys[buys["time"].between(as_of, as_of + pd.Timedelta(days=days))]["household_id"]
    churn = buys[buys["time"] < as_of].drop_duplicates("household_id")
    churn = churn.assign(label=~churn["household_id"].isin(back))
    kids = profile.dropna(subset="kids_count").assign(label=lambda table: table["kids_count"] != "0")
    made = [table.assign(customer_id=table["household_id"], time=as_of) for table in (churn, kids)]
    made = [table[["customer_id", "time", "label"]] for table in made]  # further columns would be features
    return dict(zip(("churn", "kids"), made, strict=True))


def main(checkpoint, data, raw, folder, as_of="2017-10-01"):
    """Learns from four fifths of the customers, prints what was found on the others, and asks about a stranger."""
    for name, table in tables(raw, pd.Timestamp(as_of)).items():
        labels = make_labels(table)
        extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
        model = MCMForCustomerPrediction.from_pretrained(checkpoint, **labels.model_options()).eval()
        customers = LabelledCustomers(load_prepared(data), labels, on_unknown="drop")
        inputs, _ = read_inputs(model, extractor, customers)
        train, held_out = customers.labels.split(0.2, seed=0)
        values = torch.from_numpy(customers.labels.values)
        fit_head(model, inputs.of(train), values[train], folds=np.arange(len(train)) % 5)
        scores = predict(model, inputs.of(held_out))
        metrics = measure_labels(scores, values[held_out], is_number=False)
        print(f"{name}: AUC {metrics['auc']:.3f} on {len(held_out)} other customers")
        model.save_pretrained(f"{folder}/{name}"), extractor.save_pretrained(f"{folder}/{name}")
        print(pipeline("customer-prediction", model=f"{folder}/{name}")({"events": []}, as_of=as_of))


if __name__ == "__main__":
    main(*sys.argv[1:])
