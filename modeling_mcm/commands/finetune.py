# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pre-trained MCM to offers (who takes which of the offered actions), or to any label of customers.

    mcm finetune --model runs/mcm --data data/prepared --labels churn.csv --label churned
    mcm finetune --model runs/mcm --data data/prepared --offers data/raw
    python training/run_finetune.py ...              the same, in a checkout

--data is the data set that the checkpoint was pre-trained on; histories come from it. --labels is a table of customer,
time and label. --offers is a folder with offers.parquet and actions.parquet; each history is read up to the time of
the offers (docs/fine_tuning.md). Evaluate a model of offers with `mcm evaluate --offers`.

A head is fitted at once. A YAML file may hold any option, and flags win over it.
"""

from dataclasses import fields

from modeling_mcm.training.heads.customer import LabelOptions, train_to_labels
from modeling_mcm.training.heads.finetuning import FineTuningOptions
from modeling_mcm.training.heads.offers import OfferOptions, train_to_offers
from modeling_mcm.training.memory import keep_freed_memory

from .arguments import command, named_options


@command(__doc__, FineTuningOptions, OfferOptions, LabelOptions)
def main(options: FineTuningOptions, offers: OfferOptions, labels: LabelOptions) -> None:
    """Fits a head, and saves the model with its feature extractor."""
    keep_freed_memory()
    if (offers.offers is None) == (labels.labels is None):
        raise ValueError("One of --offers and --labels is needed: see --help.")
    given, other = ("offers", LabelOptions) if labels.labels is None else ("labels", OfferOptions)
    if unused := sorted(named_options() & {entry.name for entry in fields(other)}):
        raise ValueError(f"--{', --'.join(unused)} is not read with --{given}: leave it out.")
    if labels.labels is None:
        train_to_offers(options, offers)
    else:
        train_to_labels(options, labels)
