# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""LightGBM in the place of MCM's small network: lambdarank on the same numbers of the same examples."""

from functools import partial
from pathlib import Path

import lightgbm
import numpy as np
import torch

from logs import Log
from methods import Method, Ranker
from methods.mcm import rank_with
from modeling_mcm.data import PreparedData
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import COUNTED
from modeling_mcm.training.options import ModelOptions
from modeling_mcm.training.pretraining import NONE, read_config
from modeling_mcm.training.scorer import ScorerFit, calibrate
from modeling_mcm.training.scorer_examples import LabelExamples, read_examples

PARAMETERS = {"objective": "lambdarank", "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 50}
PARAMETERS |= {"feature_fraction": 0.5, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 10.0, "verbose": -1}
PARAMETERS |= {"metric": "ndcg", "eval_at": 10, "deterministic": True, "force_row_wise": True}
ROUNDS, PATIENCE = 400, 30


def to_dataset(found: LabelExamples) -> lightgbm.Dataset:
    """The candidates of examples that have a target among them; an example counts by 1 / IDCG@10."""
    targets = np.bincount(found.example, found.is_target, len(found.num_targets)).astype(int)
    kept = targets[found.example] > 0
    ideal = np.cumsum(1 / np.log2(np.arange(2, 12)))[targets.clip(1, 10) - 1]
    _, sizes = np.unique(found.example[kept], return_counts=True)
    features, labels = found.features[kept, :COUNTED].numpy(), found.is_target[kept].numpy().astype(int)
    return lightgbm.Dataset(features, labels, group=sizes, weight=1 / ideal[found.example[kept]], free_raw_data=False)


def predict(boosters: list[lightgbm.Booster], task: int | torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Scores of candidates, as [`~scorer_mcm.LabelScorer.forward`] gives them."""
    result, tasks = torch.zeros(len(features)), torch.as_tensor(task).expand(len(features))
    for index in tasks.unique().tolist():
        values = boosters[index].predict(features[tasks == index, :COUNTED].numpy())
        result[tasks == index] = torch.from_numpy(values).float()
    return result


def fit(log: Log, data: PreparedData, seed: int, folder: Path) -> Ranker:
    """Fits a booster to each task, and stops when the NDCG@10 of the validation cases stops to rise."""
    config = read_config(ModelOptions(data=str(data.folder), encoder=NONE), data.extractor)
    model = MCMForMultiTaskRecommendation(config).eval()
    fitted = ScorerFit(model, data, seed)  # counts, candidates and validation cases
    _, _, examples = read_examples(config, data, seed, torch.Generator().manual_seed(seed))
    validation, boosters = fitted._read_validation(), []
    for task, found in enumerate(examples):
        train, valid = to_dataset(found), to_dataset(validation[task])
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        boosters.append(
            lightgbm.train(PARAMETERS | {"seed": seed}, train, ROUNDS, valid_sets=[valid], callbacks=[stop])
        )
    model.scorer.forward = partial(predict, boosters)
    for task, found in enumerate(validation):
        model.scorer.calibration[task], model.scorer.chance[task] = calibrate(model.scorer, task, found)
    return rank_with(model, data.extractor, data)


TUNED = "the number of trees, on validation cases"
METHODS = [Method("LightGBM on MCM's numbers", fit, seeds=True, tuned=TUNED, packages=("lightgbm", "torch"))]
