#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores every customer: the command `mcm predict`.

python training/run_predict.py --model runs/mine --data data/prepared --output_dir scores
"""

from modeling_mcm.commands.predict import main

if __name__ == "__main__":
    main()
