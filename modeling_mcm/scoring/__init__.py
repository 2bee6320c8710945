# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores all customers of a data set and writes the scores into a folder of predictions."""

from modeling_mcm.evaluation.totals import GroupTotal, PastTotal
from modeling_mcm.past import forecast_total
from modeling_mcm.training.memory import keep_freed_memory

from .scorer import SCORES, BatchScorer, ScoringJob, score_on_spark

__all__ = [
    "SCORES",
    "BatchScorer",
    "GroupTotal",
    "PastTotal",
    "ScoringJob",
    "forecast_total",
    "keep_freed_memory",
    "score_on_spark",
]
