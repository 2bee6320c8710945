#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fits the network that the scorer of every log starts from, on prepared logs of different kinds: minutes on a CPU.

    python training/run_pretrain_scorer.py --data data/complete_journey data/ta_feng data/toys data/clicks

Its numbers mean the same in every shop, so nothing of a label or a customer is in the weights.
"""

import argparse

import torch

from modeling_mcm import MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.scorer_mcm import LabelScorer
from modeling_mcm.training.scorer import SHIPPED_NETWORK, fit_network, save_network, start_network
from modeling_mcm.training.scorer_examples import read_examples


def main() -> None:
    """Reads the options, draws the examples of all logs, fits the network and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="folders of prepared data sets")
    parser.add_argument("--output", default=str(SHIPPED_NETWORK), help="file of the weights (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=1200, help="most examples of a task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the examples and of the fit (default: %(default)s)")
    options = parser.parse_args()
    found = []
    for folder in options.data:
        data = PreparedData(folder)
        extractor = data.extractor
        config = MCMConfig(
            features=extractor.feature_names,
            vocabulary_sizes=extractor.vocabulary_sizes,
            tasks=extractor.tasks,
            kind_feature=extractor.token_type_feature,
        )
        generator = torch.Generator().manual_seed(options.seed)
        *_, examples = read_examples(config, data, options.seed, generator, options.examples)
        found += examples
    scorer = LabelScorer([3] * len(found))
    start_network(scorer, found, options.seed)
    fit_network(scorer, found, [], options.seed)
    save_network(scorer, options.output)
    print(
        f"{options.output}: fitted on {sum(len(each.num_targets) for each in found):,} examples of {len(found)} tasks."
    )


if __name__ == "__main__":
    main()
