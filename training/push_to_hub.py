#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes a checkpoint on the Hugging Face Hub, with its card: the command `mcm publish`.

python training/push_to_hub.py --model runs/mine --repo_id org/name --dry_run
"""

from modeling_mcm.commands.publish import main

if __name__ == "__main__":
    main()
