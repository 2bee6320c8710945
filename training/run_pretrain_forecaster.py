#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the forecaster that ships with the package, on synthetic shops: minutes on a CPU, and no log is read.

    python training/run_pretrain_forecaster.py                     writes modeling_mcm/forecaster.safetensors
    python training/run_pretrain_forecaster.py --output mine.safetensors --shops 500 --epochs 4

The same seed gives the same shops, with any number of processes, and on one machine the same weights. Afterwards
`benchmarks/forecasts.py` judges the weights on real logs.
"""

import argparse
import os
import time

import torch

from modeling_mcm.training.forecaster import SHIPPED_WEIGHTS, draw_examples, save_weights, train_forecaster


def main() -> None:
    """Reads the options, trains, writes the weights and prints the losses on shops that were left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(SHIPPED_WEIGHTS), help="file of the weights (default: %(default)s)")
    parser.add_argument("--shops", type=int, default=16_000, help="number of synthetic shops (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over their examples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the shops and of the training (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="processes that draw shops (default: all cores)"
    )
    options = parser.parse_args()
    begun = time.monotonic()
    torch.set_num_threads(1)  # so that the weights do not depend on the number of cores
    examples = draw_examples(options.shops, options.seed, options.processes)
    forecaster, losses = train_forecaster(examples, options.epochs, options.seed)
    save_weights(forecaster, options.output)
    words = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    print(f"{options.output}: {time.monotonic() - begun:.0f} s. Losses on shops that were left out: {words}.")


if __name__ == "__main__":
    main()
