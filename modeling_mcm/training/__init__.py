# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Training: the Trainer, what happens beside its steps, and checkpoints, which are whole or not used."""
