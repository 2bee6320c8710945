# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The forecaster's weights that ship, and the statistics of a shop."""
