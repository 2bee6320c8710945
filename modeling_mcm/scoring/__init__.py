# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores all customers of a data set, writes the scores into a folder of predictions, and watches such folders."""

from modeling_mcm.scoring.scorer import SCORES, Scorer, ScoringJob, model_digest, score_on_spark

__all__ = ["SCORES", "Scorer", "ScoringJob", "model_digest", "score_on_spark"]
