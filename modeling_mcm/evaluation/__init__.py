# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: cases and their targets, ranking metrics, baselines, and comparisons with them.

This file imports the cases and the metrics. Every module here can be imported with the base installation; fitting the
baseline `lightgbm` needs the extra `gbdt`.
"""

from .cases import comparison_cases, unseen_only
from .metrics import (
    Interval,
    bootstrap_interval,
    customer_metrics,
    distinct_targets,
    ndcg_at_k,
    next_event,
    paired_difference,
    recall_at_k,
    tie_ranks,
)

__all__ = [
    "Interval",
    "bootstrap_interval",
    "comparison_cases",
    "customer_metrics",
    "distinct_targets",
    "ndcg_at_k",
    "next_event",
    "paired_difference",
    "recall_at_k",
    "tie_ranks",
    "unseen_only",
]
