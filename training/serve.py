#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Serves a checkpoint over HTTP: the command `mcm serve`.

python training/serve.py --model runs/mine --store state.db
"""

from modeling_mcm.commands.serve import main

if __name__ == "__main__":
    main()
