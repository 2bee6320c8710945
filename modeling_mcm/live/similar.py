# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels that are alike, or that go together, as the scorer's counts over all customers say."""

import difflib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from modeling_mcm.candidates_mcm import choose_labels
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import Predictor, RankedLabel
from modeling_mcm.scorer_mcm import LabelTables

TRANSITIONS, EASE = 0, 2  # index of a table of [`LabelTables`]: transitions in both directions, and EASE
LIFT = 0.3, 0.75  # exponents on a label's popularity, by which the weights of EASE, and of transitions, are divided


def similar(
    model: MCMForMultiTaskRecommendation,
    feature_extractor: MCMFeatureExtractor,
    task: str,
    label: object,
    k: int = 10,
) -> list[RankedLabel]:
    """The labels that are most alike, best first: the same labels come before and after them, and they have the same
    attributes, such as a category.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): A model with a fitted scorer.
        feature_extractor ([`MCMFeatureExtractor`]): Feature extractor of the same checkpoint.
        task (`str`): Name of a task.
        label: a value of the task's feature.
        k (`int`): Number of labels.

    Returns:
        `list[dict]`: `{"label": value, "score": number}`; 1 is equal.

    Raises:
        ValueError: If the model has no fitted scorer, or the task or the label is unknown.
    """
    tables, (index,) = read_labels(model, feature_extractor, task, [label])
    neighbours, weights = tables.neighbours[TRANSITIONS].long(), tables.weights[TRANSITIONS].float()
    profile = torch.bincount(neighbours[index], weights[index], len(weights))
    length = weights.norm(dim=1).clamp(min=1e-9)
    scores = (weights * profile[neighbours]).sum(1) / length / length[index]
    has_value = tables.attributes[index] > 0
    if has_value.any():
        shared = ((tables.attributes == tables.attributes[index]) & has_value).float().sum(1) / has_value.sum()
        scores = (scores + shared) / 2
    return _best(feature_extractor, task, scores, [index], k)


def together(
    model: MCMForMultiTaskRecommendation,
    feature_extractor: MCMFeatureExtractor,
    task: str,
    labels: Sequence[object],
    k: int = 10,
) -> list[RankedLabel]:
    """The labels that go with some labels, such as those of a basket, best first: customers who take these take them
    more often than others do. Arguments, result and errors are those of [`similar`]; the scores have no unit."""
    if isinstance(labels, str) or not len(labels):
        raise ValueError(f"Found {labels!r}, expected a list of at least one label of {task!r}.")
    tables, ids = read_labels(model, feature_extractor, task, labels)
    has_ease = len(tables.neighbours) > EASE
    kind, lift = (EASE, LIFT[0]) if has_ease else (TRANSITIONS, LIFT[1])
    neighbours, weights = tables.neighbours[kind, ids].long(), tables.weights[kind, ids].float().clamp(min=0)
    weights = F.normalize(weights, 1) / len(ids)
    popularity = tables.counts[0] + 1
    scores = torch.bincount(neighbours.flatten(), weights.flatten(), len(popularity))
    return _best(feature_extractor, task, scores / (popularity / popularity.sum()) ** lift, ids, k)


def read_labels(
    model: MCMForMultiTaskRecommendation, feature_extractor: MCMFeatureExtractor, task: str, labels: Sequence[object]
) -> tuple[LabelTables, list[int]]:
    """The counts of a task, and the ids of labels. Raises `ValueError` as [`similar`] does."""
    Predictor(model, feature_extractor).tasks([task])
    if (scorer := model.scorer) is None or not scorer.fitted:
        raise ValueError(
            "This checkpoint has no fitted scorer, so nothing is counted of its labels: mcm start fits one."
        )
    ids = feature_extractor.label_ids(task, labels).tolist()
    if unknown := [label for label, index in zip(labels, ids, strict=True) if index < FIRST_LABEL]:
        known = {value.lower(): value for value in feature_extractor.vocabularies[task]}
        (close,) = difflib.get_close_matches(str(unknown[0]).lower(), known, 1, 0)
        raise ValueError(f"The checkpoint knows no label {unknown[0]!r} of {task!r}: is {known[close]!r} meant?")
    return scorer.get_tables(model.config.tasks.index(task)), ids


def _best(
    feature_extractor: MCMFeatureExtractor, task: str, scores: torch.Tensor, own: Sequence[int], k: int
) -> list[RankedLabel]:
    is_candidate = scores > 0
    is_candidate[[*own, *feature_extractor.own_ids(task)]] = False  # the labels asked about, and MCM's own
    chosen = choose_labels(scores[None], k, is_candidate).labels[0]
    ids = chosen[chosen > 0]
    pairs = zip(feature_extractor.decode_labels(task, ids), scores[ids].tolist(), strict=True)
    return [{"label": label, "score": score} for label, score in pairs]
