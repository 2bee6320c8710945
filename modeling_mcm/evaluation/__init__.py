# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: cases and targets, ranking metrics, baselines, predictions.

This file imports the metrics only, which need numpy alone. `streaming` needs torch, `cases` and `predictions` pyarrow,
and `baselines` scipy (the extra `evaluation`): import those where they are used.
"""

from modeling_mcm.evaluation.metrics import (
    Interval,
    PairedDifference,
    average_relative_difference,
    bootstrap_interval,
    customer_metrics,
    distinct_targets,
    hit_rate_at_k,
    mean_reciprocal_rank,
    ndcg_at_k,
    next_event,
    paired_difference,
    precision_at_k,
    recall_at_k,
    tie_ranks,
)

__all__ = [
    "Interval",
    "PairedDifference",
    "average_relative_difference",
    "bootstrap_interval",
    "customer_metrics",
    "distinct_targets",
    "hit_rate_at_k",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "next_event",
    "paired_difference",
    "precision_at_k",
    "recall_at_k",
    "tie_ranks",
]
