#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Watches predictions: how far they moved, and whether they came true: the command `mcm monitor`.

python training/run_monitor.py --predictions scores/tuesday --before scores/monday
"""

from modeling_mcm.commands.monitor import main

if __name__ == "__main__":
    main()
