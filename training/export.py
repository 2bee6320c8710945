#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint: ONNX, a torch.export program, or int8 weights: the command `mcm export`.

python training/export.py --model runs/mine --output_dir runs/mine-onnx
"""

from modeling_mcm.commands.export import main

if __name__ == "__main__":
    main()
