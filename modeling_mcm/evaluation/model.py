# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates MCM: its scores batch by batch, and every metric of every evaluation case."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length, unit_counts
from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.scorer_mcm import HORIZON_DAYS


def model_values(
    model: MCMForMultiTaskRecommendation,
    extractor: MCMFeatureExtractor,
    rows: Any,
    cases: EvaluationCases,
    tasks: Sequence[str],
    ks: Sequence[int] = (10,),
    batch_size: int = 64,
    lists: dict[str, NDArray[np.int64]] | None = None,
) -> dict[str, dict[str, NDArray]]:
    """Computes every metric of every evaluation case: by task and name an array with one value for each case, in the
    order of `cases`. A model ranks what comes within any horizon by its scores of 30 days. `lists` gets by task the
    lists of the longest `ks`, of shape `(cases, length)`. The model is in evaluation mode. Cases of similar length
    share a batch."""
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff=cases.cutoff, as_of=cases.as_of)
    predictor, fitted = Predictor(model, extractor), model.scorer is not None and bool(model.scorer.fitted)
    horizon = HORIZON_DAYS if cases.horizon_days and fitted else None
    ranks = {task: TargetRanks(cases, task, max(ks)) for task in tasks}
    units = unit_counts(rows, rows[f"{cases.cutoff}_end"], model.config, extractor.max_events)[cases.rows]
    prepared = PreparedRows(rows, cases.rows)
    for batch in logging.tqdm(batches_by_length(units, batch_size), desc="MCM", unit="batch"):
        inputs = collator(prepared.__getitems__(batch.tolist()))
        inputs.pop("labels")
        logits = predictor.run(inputs, horizon_days=horizon, tasks=tasks, parts=()).logits
        for task in tasks:
            ranks[task].add(batch, logits[task])
    if lists is not None:
        lists.update({task: ranks[task].lists for task in tasks})
    return {task: ranks[task].metrics(ks) for task in tasks}
