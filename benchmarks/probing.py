# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What run_probe.py and few_labels.py share: customers as they were at a cutoff, counts of their history, learners."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.offer_collator import events_before
from modeling_mcm.times_mcm import SECONDS_PER_DAY
from offers_gbdt import HistoryFeatures

WHOLE_HISTORY = 10**6
FEWEST = 30  # customers of a class; rarer ones are left out


def batches_at(
    data: PreparedData, extractor: MCMFeatureExtractor, cutoff_name: str, min_events: int, batch_size: int = 32
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]], NDArray]]:
    """Reads the customers with enough events before a cutoff, batch by batch.

    Yields:
        `tuple`: Their prepared rows; the same with the events before the cutoff alone and without the profile; and
        hand-made counts of these, of shape `(customers, F)`.
    """
    cutoff = data.schema.cutoff_seconds(cutoff_name)
    hidden = {f"profile_{feature['name']}": 0 for feature in extractor.features if feature.get("profile")}
    customers = PreparedRows(data.rows, np.flatnonzero(np.asarray(data.rows[f"{cutoff_name}_end"]) >= min_events))
    for start in logging.tqdm(range(0, len(customers), batch_size), desc="Customers", unit="batch"):
        batch = customers.__getitems__(list(range(start, min(start + batch_size, len(customers)))))
        blank = [events_before(row, cutoff) | hidden for row in batch]
        whole = {name: value.numpy() for name, value in extractor.pad(blank, WHOLE_HISTORY).items()}
        days = np.array([(cutoff - row["times"].max()) / SECONDS_PER_DAY for row in blank])
        yield batch, blank, np.stack(list(HistoryFeatures(extractor, whole, days).make().values()), axis=1)


def make_learner(name: str, kind: str) -> Any:
    """Makes a model of scikit-learn or LightGBM that learns from the numbers of customers.

    Args:
        name (`str`): `LightGBM`, or `linear` for a linear or logistic regression.
        kind (`str`): `regression`, or `classes` for a classifier.
    """
    import lightgbm
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    if name == "linear":
        return make_pipeline(
            FunctionTransformer(signed_log),
            StandardScaler(),
            Ridge(100.0) if kind == "regression" else LogisticRegression(C=0.01, max_iter=500),
        )
    estimator = lightgbm.LGBMRegressor if kind == "regression" else lightgbm.LGBMClassifier
    return estimator(
        n_estimators=100, learning_rate=0.05, num_leaves=8, min_child_samples=20, colsample_bytree=0.3, subsample=0.8,
        subsample_freq=1, reg_lambda=1.0, random_state=0, n_jobs=1, verbose=-1,
    )  # fmt: skip


def signed_log(features: NDArray) -> NDArray:
    """Computes signed logarithms, because counts have long tails that a linear model can't fit."""
    return np.sign(features) * np.log1p(np.abs(features))
