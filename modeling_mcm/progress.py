# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One switch for every progress bar: those of this package are transformers' own, those of `datasets` follow."""

import datasets
from transformers.utils import logging


def disable_progress_bars() -> None:
    """Hides the progress bars of this package, transformers, huggingface_hub and `datasets` from now on."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def enable_progress_bars() -> None:
    """Shows progress bars again."""
    logging.enable_progress_bar()
    datasets.enable_progress_bars()
