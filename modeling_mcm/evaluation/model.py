# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates MCM: its scores batch by batch, and every metric of every evaluation case."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length, unit_counts
from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.predictions import PredictionsWriter
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor


def model_scores(
    model: MCMForMultiTaskRecommendation, collator: MCMCollator, rows: PreparedRows, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, torch.Tensor]]]:
    """Scores evaluation cases batch by batch, ordered by length to save padding.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): the model, in evaluation mode.
        collator ([`MCMCollator`]): a collator with the mode "evaluate".
        rows ([`PreparedRows`]): prepared rows of the cases.
        batch_size (`int`): number of cases of a batch.

    Yields:
        Indices of the batch's cases, of shape `(B,)`, and the logits by task, each of shape `(B, V)`.
    """
    batches = batches_by_length(np.zeros(len(rows)) if rows.lengths is None else rows.lengths, batch_size)
    for batch in logging.tqdm(batches, desc="MCM", unit="batch"):
        inputs = collator(rows.__getitems__(batch.tolist()))
        inputs.pop("labels")
        with torch.inference_mode():
            yield batch, model(**{name: value.to(model.device) for name, value in inputs.items()}).logits


def model_values(
    model: MCMForMultiTaskRecommendation,
    extractor: MCMFeatureExtractor,
    rows: Any,
    cases: EvaluationCases,
    tasks: Sequence[str],
    ks: Sequence[int] = (10,),
    batch_size: int = 64,
    writer: PredictionsWriter | None = None,
) -> dict[str, dict[str, NDArray]]:
    """Computes every metric of every evaluation case.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): the model, in evaluation mode.
        extractor ([`MCMFeatureExtractor`]): feature extractor of the checkpoint.
        rows (`datasets.Dataset`): prepared data, as `load_prepared` returns them.
        cases ([`EvaluationCases`]): cases, as `find_cases` returns them; `unmet_only` leaves out labels met before.
        tasks (`Sequence[str]`): names of the tasks.
        ks (`Sequence[int]`): lengths of the ranked list.
        batch_size (`int`): number of cases of a batch.
        writer ([`PredictionsWriter`], *optional*): writes the scores of all cases to a folder.

    Returns:
        `dict`: by task and name of the metric an array with one value for each case, in the order of `cases`.
    """
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff=cases.cutoff, now=cases.moment)
    ranks = {task: TargetRanks(cases, task) for task in tasks}
    names: Mapping[str, list[str]] = {task: ["", "", *extractor.vocabularies[task]] for task in tasks}
    units = unit_counts(rows, rows[f"{cases.cutoff}_end"], model.config, extractor.max_events)[cases.rows]
    for batch, logits in model_scores(model, collator, PreparedRows(rows, cases.rows, units), batch_size):
        for task in tasks:
            ranked = ranks[task].add(batch, logits[task])
            if writer:
                scores = ranked.float().softmax(-1).where(ranked > -torch.inf, -torch.inf).cpu().numpy()
                writer.write(task, [cases.customer_ids[case] for case in batch], scores, names[task])
    return {task: ranks[task].metrics(ks) for task in tasks}
