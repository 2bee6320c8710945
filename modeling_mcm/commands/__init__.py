# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a person runs: how options are read."""
