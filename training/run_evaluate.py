#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint on a prepared data set, beside counting baselines: the command `mcm evaluate`.

python training/run_evaluate.py --model runs/mine --data data/prepared
"""

from modeling_mcm.commands.evaluate import main

if __name__ == "__main__":
    main()
