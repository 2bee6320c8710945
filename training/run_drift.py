#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Says how much of a new event log a checkpoint can still read: the command `mcm drift`.

python training/run_drift.py --model runs/mine --events new.parquet
"""

from modeling_mcm.commands.drift import main

if __name__ == "__main__":
    main()
