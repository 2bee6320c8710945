# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Training: the Trainer and its callbacks, options, fine-tuning, and checkpoints that are complete or not used."""
