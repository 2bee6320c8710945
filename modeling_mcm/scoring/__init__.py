# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring everyone, the folder of predictions that comes of it, and how to watch it."""

from modeling_mcm.scoring.scorer import SCORES, Scorer, ScoringJob, model_digest, score_on_spark

__all__ = ["SCORES", "Scorer", "ScoringJob", "model_digest", "score_on_spark"]
