# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fits a model without an encoder in a minute or two: `mcm pretrain --encoder none`, with the same options.

mcm start --data data/prepared --output_dir runs/start
"""

import sys

from modeling_mcm.commands.pretrain import main as pretrain


def main() -> None:
    """Runs `mcm pretrain` without an encoder."""
    sys.argv.append("--encoder=none")
    pretrain()


if __name__ == "__main__":
    main()
