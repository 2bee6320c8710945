#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Brings a prepared data set up to its log: the command `mcm update`.

python training/update_data.py --data data/prepared --events log
"""

from modeling_mcm.commands.update import main

if __name__ == "__main__":
    main()
