#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-trains MCM on a prepared data set: the command `mcm pretrain`.

accelerate launch training/run_pretrain.py --data data/prepared --config mcm-tiny
"""

from modeling_mcm.commands.pretrain import main

if __name__ == "__main__":
    main()
