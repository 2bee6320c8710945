# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of `mcm`: each module reads the options of one command and calls the sub-packages that do the work."""
