# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pre-trained MCM to offers (who takes which of the offered actions), or to any label of customers.

    mcm finetune --model runs/mcm --data data/prepared --labels churn.csv --label churned
    mcm finetune --model runs/mcm --data data/prepared --offers data/raw
    accelerate launch -m modeling_mcm.commands.finetune ...     the same with accelerate's settings
    accelerate launch training/run_finetune.py ...              the same, in a checkout
    ... --offers data/raw --freeze_encoder        trains the new head only

--data is the data set that the checkpoint was pre-trained on; histories come from it. --labels is a table of customer,
time and label. --offers is a folder with
offers.parquet and actions.parquet; each history is read up to the time of the offers (docs/fine_tuning.md).
Evaluate a model of offers with `mcm evaluate --offers`.

To offers, the same command, started again, goes on from the last complete checkpoint, and all options of
`TrainingArguments` work. A YAML file may hold any option, and flags win over it.
"""

from dataclasses import fields

from accelerate import PartialState
from transformers import set_seed

from modeling_mcm.commands.arguments import named_options, parse_options, report_errors
from modeling_mcm.training.finetuning import FineTuningArguments, FineTuningOptions, fine_tune
from modeling_mcm.training.labels import SHARED, LabelOptions, train_to_labels
from modeling_mcm.training.memory import keep_freed_memory
from modeling_mcm.training.options import check_launch


def main() -> None:
    """Reads the options, trains or goes on training, and saves the model with its feature extractor."""
    keep_freed_memory()
    option_classes = (FineTuningOptions, LabelOptions, FineTuningArguments)
    named = named_options()
    defaults = {"output_dir": "runs/labels"} if "labels" in named and "output_dir" not in named else {}
    options, label_options, training = parse_options(*option_classes, description=__doc__, defaults=defaults)
    check_launch(training.world_size)
    if options.model is None or options.data is None or (options.offers is None) == (label_options.labels is None):
        raise SystemExit("--model, --data and one of --offers and --labels are needed: see --help.")
    set_seed(training.seed)
    read = {*SHARED, *(entry.name for entry in fields(LabelOptions))}
    if label_options.labels is not None and (unused := sorted(named - read)):
        raise SystemExit(f"--{', --'.join(unused)} is for --offers; a label's head is fitted at once: leave it out.")
    with report_errors():
        if label_options.labels is None:
            fine_tune(options, training)
        else:
            train_to_labels(options.model, options.data, label_options, training, options.max_events)
    PartialState().destroy_process_group()  # its threads sometimes abort the process at its end


if __name__ == "__main__":
    main()
