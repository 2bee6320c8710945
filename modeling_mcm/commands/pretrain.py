# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-trains MCM on a prepared data set.

    mcm pretrain --data data/prepared --config mcm-tiny
    mcm pretrain recipe.yaml --output_dir runs/mine             options as keys of one YAML file; flags win
    accelerate launch -m modeling_mcm.commands.pretrain ...     the same with accelerate's settings
    accelerate launch training/run_pretrain.py ...              the same, in a checkout
    accelerate launch --multi_gpu --num_processes 2 ...         two processes, on CPUs too

Data that do not fit are read from their shards as they are needed (`--streaming true`). Settings for one CPU, several
GPUs and several machines are in configuration/accelerate/; docs/training_at_scale.md says more.

Started again with the same options it goes on from its last whole checkpoint. All options of `TrainingArguments` work;
a YAML file may hold any of them, and flags win over it.

Equal compute: `--max_seconds 600` ends the run after 600 seconds of training, evaluation and saving not counted. The
learning rate follows the clock instead of the steps, and `--num_train_epochs` only bounds the run. How far it gets
depends on the machine, so it can't be resumed to the same bits, and trying to is an error: start it anew.
"""

from accelerate import PartialState

from modeling_mcm.commands.arguments import exits, given_options, parse_options
from modeling_mcm.losses_mcm import Objective
from modeling_mcm.training.memory import keep_freed_memory
from modeling_mcm.training.options import ModelOptions, PretrainingArguments, check_launch
from modeling_mcm.training.pretraining import chosen_recipe, pretrain
from modeling_mcm.training.resuming import RunError


def main() -> None:
    """Reads the options, trains or goes on training, and saves the model with its feature extractor."""
    keep_freed_memory()
    kinds = (ModelOptions, Objective, PretrainingArguments)
    evaluated = {"eval_strategy": "epoch", "save_strategy": "epoch"}  # as by the recipe, which is chosen by the data
    options, _, training = parse_options(*kinds, description=__doc__, defaults=evaluated)
    check_launch(training.world_size)
    if options.data is None:
        raise SystemExit("--data is missing: the folder that training/prepare_data.py wrote.")
    recipe = chosen_recipe(options, given_options())
    options, objective, training = parse_options(*kinds, description=__doc__, defaults=recipe.training)
    with exits(RunError):
        pretrain(options, objective, training, recipe)
    PartialState().destroy_process_group()  # whose threads would now and then abort the process at its end


if __name__ == "__main__":
    main()
