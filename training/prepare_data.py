#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepares an event log for training: the command `mcm prepare`.

python training/prepare_data.py --events log.parquet --schema schema.yaml --output_dir data/prepared
"""

from modeling_mcm.commands.prepare import main

if __name__ == "__main__":
    main()
