# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A page to look at a checkpoint and its customers in a browser (extra `app`)."""
