# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-trains MCM on a prepared data set.

    mcm pretrain --data data/prepared --config mcm-tiny
    mcm pretrain --data data/prepared --encoder none            scores from counts alone
    mcm pretrain recipe.yaml --output_dir runs/mine             options as keys of one YAML file; flags win
    accelerate launch -m modeling_mcm.commands.pretrain ...     the same with accelerate's settings
    accelerate launch training/run_pretrain.py ...              the same, in a checkout
    accelerate launch --multi_gpu --num_processes 2 ...         two processes, on CPUs too

Rows are memory-mapped from the local disk and need not fit into memory. Settings for one CPU, several GPUs and several
machines are in configuration/accelerate/; docs/production.md says more.

The same command, started again, goes on from the last complete checkpoint. Options of `TrainingArguments` work, but
for those of sampling: a batch has customers of similar length. A YAML file may hold any option, and flags win over it.
"""

import sys

from accelerate import PartialState

from modeling_mcm.training.encoder.recipe import TRAINING
from modeling_mcm.training.memory import keep_freed_memory
from modeling_mcm.training.options import ModelOptions, PretrainingArguments
from modeling_mcm.training.pretraining import chosen_recipe, pretrain

from .arguments import named_options, parse_options, report_errors

START = """Fits scores, the customer embedding and forecasts on a prepared data set, without an encoder, in minutes.

    mcm start --data data/prepared --output_dir runs/mine
    mcm start --data data/prepared --network shipped            nothing is fitted, in seconds

It takes the other options of `mcm pretrain`, too, which trains an encoder beside these."""
STARTING = ("help", "data", "output_dir", "network", "max_events", "seed", "disable_tqdm")  # what its help shows


def main() -> None:
    """Reads the options, trains or goes on training, and saves the model with its feature extractor."""
    keep_freed_memory()
    option_classes = (ModelOptions, PretrainingArguments)
    # The recipe depends on --data, so the options are read twice, first with what most recipes have, as --help shows.
    has_own = {"eval_strategy", "save_strategy"} & named_options()
    words = {"description": START, "shown": STARTING} if sys.argv[0] == "mcm start" else {"description": __doc__}
    options, training = parse_options(*option_classes, **words, defaults={} if has_own else TRAINING)
    with report_errors():
        recipe = chosen_recipe(options, named_options())
        options, training = parse_options(*option_classes, **words, defaults=recipe.training)
        pretrain(options, training, recipe)
    PartialState().destroy_process_group()  # its threads sometimes abort the process at its end


if __name__ == "__main__":
    main()
