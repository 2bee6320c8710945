#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the forecaster that ships with the package, on synthetic shops.

python training/run_pretrain_forecaster.py
"""

from modeling_mcm.commands.pretrain_forecaster import main

if __name__ == "__main__":
    main()
