# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""See `next_visit_metrics.py`."""
