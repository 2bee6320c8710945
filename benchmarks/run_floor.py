#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prints the floor (floor.py) of a training step and of scoring a customer on this machine.

python benchmarks/run_floor.py
python benchmarks/run_floor.py --config configuration/mcm-base --label_sizes 30000 500 --events 300 --units 300
"""

import torch

from floor import Shape, floor
from modeling_mcm.commands.arguments import parse_options


def main() -> None:
    """Reads the options and prints the floor."""
    (shape,) = parse_options(Shape, description=__doc__)
    torch.set_num_threads(shape.threads)
    for name, values in floor(shape).items():
        print(f"{name:20s}", "  ".join(f"{key} {value:,.4g}" for key, value in values.items()))


if __name__ == "__main__":
    main()
