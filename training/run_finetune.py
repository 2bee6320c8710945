#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pre-trained MCM to offers or to any label of customers: the command `mcm finetune`.

python training/run_finetune.py --model runs/mine --data data/prepared --offers data/raw
"""

from modeling_mcm.commands.finetune import main

if __name__ == "__main__":
    main()
