# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of the encoder: the Trainer with its additions, and the recipe that chooses its settings."""
