# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the customer state predicts that MCM was not trained on, beside counts and beside their principal components.

Histories end at the test cutoff, on which nothing was chosen. A linear model reads, with repeated cross-validation:
`counts` of the history (`HistoryFeatures`); `components`, the 64 principal components of standardised log counts of
each task's labels, without any model; the frozen `state` of MCM without encoder; or `counts and state`. Targets: the
profile, whose values are hidden from all of these; and of the days after the cutoff what is spent, the visits, and
whether there is any. AUC for classes (one against the rest, the mean over classes), rank correlation for numbers; a
value is the mean over the models that are there, intervals resample customers in pairs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from transformers.utils import logging

from history_features import HistoryFeatures
from logs import Log
from methods.mcm import WITHOUT
from modeling_mcm import MCMFeatureExtractor, MCMModel
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.offer_collator import events_before
from modeling_mcm.evaluation.offers import resample_customers, weighted_ranking
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.training.checkpoints import open_checkpoint

SETTINGS = {  # tasks whose labels are counted for the components, features of the profile, events before the cutoff
    "complete_journey": (("product_type", "product_category"), None, 5),
    "ta_feng": (("product_subclass", "product_id"), ["age_group"], 1),
}
SPEND, DAYS, COMPONENTS = "price", 30, 64
FOLDS, REPEATS, RESAMPLES, FEWEST = 5, 1, 500, 30  # customers of a class; rarer ones are left out
WHOLE_HISTORY = 10**6


def batches_at(
    data: PreparedData, extractor: MCMFeatureExtractor, cutoff_name: str, min_events: int, batch_size: int = 32
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]], NDArray]]:
    """Reads the customers with enough events before a cutoff, batch by batch: their prepared rows; the same with the
    events before the cutoff alone and without the profile; and counts of these, of shape `(customers, F)`."""
    cutoff = data.schema.cutoff_seconds(cutoff_name)
    hidden = {f"profile_{feature['name']}": 0 for feature in extractor.features if feature.get("profile")}
    customers = PreparedRows(data.rows, np.flatnonzero(np.asarray(data.rows[f"{cutoff_name}_end"]) >= min_events))
    for start in logging.tqdm(range(0, len(customers), batch_size), desc="Customers", unit="batch"):
        batch = customers.__getitems__(list(range(start, min(start + batch_size, len(customers)))))
        blank = [events_before(row, cutoff) | hidden for row in batch]
        whole = {name: value.numpy() for name, value in extractor.pad(blank, WHOLE_HISTORY).items()}
        days = np.array([(cutoff - row["times"].max()) / SECONDS_PER_DAY for row in blank])
        yield batch, blank, np.stack(list(HistoryFeatures(extractor, whole, days).make().values()), axis=1)


def read_customers(
    data: PreparedData, folders: list[Path], counted: tuple[str, ...], profile: list[str] | None, min_events: int
) -> tuple[dict[str, list[NDArray]], dict[str, NDArray]]:
    """Reads the customers at the test cutoff: inputs by name, one array for each model that there is, each of shape
    `(customers, F)`; and targets by name, of shape `(customers,)`, NaN or "" if unknown."""
    models = [open_checkpoint(MCMModel, str(folder)) for folder in folders]
    extractor, cutoff = data.extractor, data.schema.cutoff_seconds("test")
    names = profile or [feature["name"] for feature in extractor.features if feature.get("profile")]
    tasks = [f"task_{task}" for task in extractor.tasks if task != extractor.token_type_feature]
    targets: dict[str, list[Any]] = {}
    counts, labels, states = [], {task: [] for task in counted}, [[] for _ in models]  # type: ignore[var-annotated]
    for batch, blank, of_batch in batches_at(data, extractor, "test", min_events):
        counts.append(of_batch)
        for row, past in zip(batch, blank, strict=True):
            for name, number in compute_numbers(row, cutoff, DAYS * SECONDS_PER_DAY, SPEND, tasks).items():
                targets.setdefault(f"{name} in {DAYS} days", []).append(number)
            for name in names:
                known = ["", "", *extractor.vocabularies[name]]
                targets.setdefault(name, []).append(known[row[f"profile_{name}"]])
            for task, of_task in labels.items():
                of_task.append(past[f"task_{task}"])
        for (model, own), of_model in zip(models, states, strict=True):
            readable = [own.readable(row, model.config.input_features) for row in blank]
            with torch.inference_mode():
                of_model.append(model(**own.pad(readable, as_of=[cutoff] * len(readable))).pooler_output.numpy())
    found = {"counts": [np.nan_to_num(np.concatenate(counts), nan=-1.0)], "components": [components(labels)]}
    found["state"] = [np.concatenate(parts) for parts in states]
    found["counts and state"] = [np.concatenate([found["counts"][0], state], 1) for state in found["state"]]
    return found, {name: np.array(column) for name, column in targets.items()}


def components(labels: dict[str, list[NDArray]]) -> NDArray:
    """Principal components of standardised log counts of the labels of each customer's events, by task."""
    blocks = []
    for of_task in labels.values():
        row = np.repeat(np.arange(len(of_task)), [len(each) for each in of_task])
        label = np.concatenate(of_task)
        ones = np.ones(int((label > 1).sum()))
        blocks.append(csr_array((ones, (row[label > 1], label[label > 1])), (len(of_task), int(label.max()) + 1)))
    joined = hstack([block[:, block.sum(0) > 0] for block in blocks]).log1p().tocsr()
    scaled = StandardScaler(with_mean=False).fit_transform(joined)
    return PCA(min(COMPONENTS, min(scaled.shape) - 1), svd_solver="arpack", random_state=0).fit_transform(scaled)


def compute_numbers(row: dict[str, Any], cutoff: int, span: int, spend: str, tasks: list[str]) -> dict[str, Any]:
    """Spend, visits and whether there is any of one customer after a cutoff; `tasks` are columns whose labels make a
    visit."""
    times, is_label = row["times"], np.any([row[name] > 0 for name in tasks], axis=0)
    after = (times >= cutoff) & (times < cutoff + span)
    visits = float(len(np.unique(row["visits"][after & is_label])))
    return {"spend": float(row[f"value_{spend}"][after].sum()), "visits": visits, "comes": visits > 0}


def out_of_fold(features: NDArray, target: NDArray, classes: NDArray | None) -> NDArray[np.float64]:
    """Predicts customers by models that were not trained on them: means over repetitions, `(customers, C)`."""
    total = np.zeros((len(target), 1 if classes is None else len(classes)))
    learner = Ridge(100.0) if classes is None else LogisticRegression(C=0.01, max_iter=500)
    logs = FunctionTransformer(lambda values: np.sign(values) * np.log1p(np.abs(values)))  # counts have long tails
    for repeat in range(REPEATS):
        splitter = (KFold if classes is None else StratifiedKFold)(FOLDS, shuffle=True, random_state=repeat)
        for train, test in splitter.split(features, target):
            model = make_pipeline(logs, StandardScaler(), learner)
            if classes is None:  # spend is skewed, and ranks are what is measured
                model.fit(features[train], rankdata(target[train]) / len(train))
                total[test] += model.predict(features[test])[:, None]
            else:
                total[test] += model.fit(features[train], target[train]).predict_proba(features[test])
    return total / REPEATS


def metric(target: NDArray, predicted: NDArray, classes: NDArray | None, weights: NDArray) -> NDArray[np.float64]:
    """Computes AUC, as the mean over classes or of the second of two, or rank correlation; of shape `(resamples,)`."""
    if classes is None:
        first, second = rankdata(target), rankdata(predicted[:, 0])
        shares = weights / weights.sum(1, keepdims=True)
        mean = [shares @ ranks for ranks in (first, second)]
        covariance = shares @ (first * second) - mean[0] * mean[1]
        spreads = [shares @ ranks**2 - of**2 for ranks, of in zip((first, second), mean, strict=True)]
        return covariance / np.sqrt(spreads[0] * spreads[1])
    columns = [1] if len(classes) == 2 else range(len(classes))
    areas = [weighted_ranking(target == classes[c], predicted[:, c], weights)["roc_auc"] for c in columns]
    return np.mean(areas, axis=0)


def summary(values: NDArray) -> dict[str, float]:
    """The value of the data, which is the first, and the interval of the resamples."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, Any] | None:
    """A row for each target of a log, with the value of each input and what the state is over the best of counts and
    components; None for a log without profiles, or without a trained model."""
    folders = sorted((runs / log.name).glob(f"{WITHOUT.replace(' ', '_')}.*"))
    if log.name not in SETTINGS or not folders:
        return None
    inputs, targets = read_customers(data, folders, *SETTINGS[log.name])
    rows = []
    for name, target in targets.items():
        classes, indices = None, np.arange(len(target))
        if target.dtype.kind != "f":
            classes = np.array([c for c in np.unique(target) if str(c) and (target == c).sum() >= FEWEST])
            indices = np.flatnonzero(np.isin(target, classes))
        weights = resample_customers(np.arange(len(indices)).astype(str), RESAMPLES)
        values = {}
        for kind, arrays in inputs.items():
            each = [out_of_fold(array[indices], target[indices], classes) for array in arrays]
            values[kind] = np.mean([metric(target[indices], one, classes, weights) for one in each], axis=0)
        best = max(("counts", "components"), key=lambda kind: values[kind][0])
        row = {kind: summary(of_kind) for kind, of_kind in values.items()}
        row["state over the best of both"] = summary(values["state"] - values[best])
        rows.append({"target": name, "customers": len(indices)} | row)
    sizes = {name: arrays[0].shape[1] for name, arrays in inputs.items()}
    return {"log": log.name, "models": len(folders), "numbers": sizes, "rows": rows}
