# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Heads: fine-tuning to a label of customers, or to offers."""
