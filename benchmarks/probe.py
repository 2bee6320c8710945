# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the customer embedding predicts that MCM was not trained on, beside counts and their principal components.

Histories end at the test cutoff, on which nothing was chosen. A linear model reads, with cross-validation: `counts` of
the history; `components`, the 64 principal components of standardised log counts of some tasks' labels; both; the
vectors of `CoLES`; the frozen `state`, `CustomerModel.embed` of MCM without encoder; or `counts and state`. LightGBM
reads counts and components, too. Targets: the profile, which none of these see; and of the days after the cutoff what
is spent, the visits, and whether there is any. AUC for classes (one against the rest, the mean over classes), rank
correlation for numbers; a value is the mean over the models that are there, intervals resample customers in pairs.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightgbm import LGBMClassifier, LGBMRegressor
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from environments import COLES, PEERS, install
from logs import Log, read_raw
from methods.mcm import WITHOUT
from modeling_mcm import CustomerModel
from modeling_mcm.data import EventSchema, PreparedData

SETTINGS = {  # columns whose labels are counted for the components, and of the profile
    "complete_journey": (("product_type", "product_category"), None),
    "ta_feng": (("product_subclass", "product_id"), ["age_group"]),
}
DAYS, COMPONENTS = 30, 64
FOLDS, RESAMPLES, FEWEST = 5, 500, 30  # customers of a class; rarer ones are left out
TREES = "LightGBM"
SMALL_TREES = {
    "n_estimators": 200,
    "learning_rate": 0.03,
    "num_leaves": 8,
    "min_child_samples": 20,
    "colsample_bytree": 0.5,
}
SMALL_TREES |= {"reg_lambda": 10.0, "n_jobs": 1, "random_state": 0, "verbosity": -1}
YARDSTICKS = ("counts", "components", "counts and components", TREES, "CoLES")  # what needs no MCM
HALF_LIVES, COARSE, FREQUENT = (np.inf, 120, 30), 48, 5  # days; values of a column that is counted; events of a label


def make_counts(events: pd.DataFrame, schema: EventSchema, cutoff: pd.Timestamp) -> pd.DataFrame:
    """What a careful analyst would count of the events before a cutoff; the index is the customer."""
    customer, token = schema.customer, schema.token_type
    age = (cutoff - events[schema.time]) / pd.Timedelta(days=1)
    ages = age.groupby(events[customer])
    found = {"first": ages.max(), "last": ages.min(), "a day": ages.size() / ages.max().clip(lower=1)}
    for kind, last in age.groupby([events[token], events[customer]]).min().unstack(0).items():
        found[f"last {kind}"] = last
    for days in (np.inf, 90, 30):
        recent = events[age < days].groupby(customer)
        found |= {f"events {days}": recent.size(), f"visits {days}": recent[schema.visit or schema.time].nunique()}
    for half_life in HALF_LIVES:
        weight = 0.5 ** (age / half_life)
        for spec in schema.features:
            if spec.kind == "numeric":
                amounts = (events[spec.column] * weight).groupby(events[customer])
                found |= {f"{spec.name} {half_life}": amounts.sum(), f"mean {spec.name} {half_life}": amounts.mean()}
            elif spec.kind == "categorical" and events[spec.column].nunique() < COARSE:
                counts = weight.groupby([events[spec.column], events[customer]]).sum().unstack(0, fill_value=0)
                for value, value_counts in counts.items():
                    found[f"{spec.name} {value} {half_life}"] = value_counts
                    if spec.column == token:
                        found[f"share {value} {half_life}"] = value_counts / counts.sum(1)
    return pd.DataFrame(found).fillna(-1)


def components(events: pd.DataFrame, customer: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Principal components of standardised log counts of the labels of some columns; the index is the customer."""
    rows, blocks = events[customer].astype("category").cat, []
    for column in columns:
        labels = events[column].where(events.groupby(column)[column].transform("size") >= FREQUENT)
        labels = labels.astype("category").cat
        known = labels.codes >= 0
        shape = len(rows.categories), len(labels.categories)
        blocks.append(csr_array((np.ones(known.sum()), (rows.codes[known], labels.codes[known])), shape))
    scaled = StandardScaler(with_mean=False).fit_transform(hstack(blocks).tocsr().log1p())
    number = min(COMPONENTS, min(scaled.shape) - 1)
    return pd.DataFrame(PCA(number, svd_solver="arpack", random_state=0).fit_transform(scaled), rows.categories)


def embed_by_coles(events: pd.DataFrame, schema: EventSchema, cutoff: pd.Timestamp, folder: Path) -> pd.DataFrame:
    """Vectors of CoLES, trained on all these events; the index is the customer."""
    customers, ids = pd.factorize(events[schema.customer], sort=True)
    columns = {
        "customer": customers,
        "time": ((events[schema.time] - cutoff) / pd.Timedelta(days=1)).astype("float32"),
    }
    for spec in schema.features:
        if spec.kind == "numeric":
            columns[spec.name] = events[spec.column].fillna(0).astype("float32")
        elif spec.kind == "categorical":
            columns[spec.name] = 1 + pd.factorize(events[spec.column])[0]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: str(folder / f"{name}.parquet") for name in ("events", "embeddings")}
    table = pd.DataFrame(columns).sort_values(["customer", "time"], kind="stable")
    table.to_parquet(paths["events"], index=False)
    words = paths | {"threads": torch.get_num_threads(), "seed": 0}
    subprocess.run([install(COLES), str(PEERS / "coles.py"), json.dumps(words)], check=True)
    return pd.read_parquet(paths["embeddings"]).set_axis(ids)


def read_customers(
    data: PreparedData, models: list[Path], folder: Path, counted: tuple[str, ...], profile: list[str] | None
) -> tuple[dict[str, list[NDArray]], pd.DataFrame]:
    """Reads the customers at the test cutoff: inputs by name, one array for each model that there is, each of shape
    `(customers, F)`; and their targets, NaN if unknown."""
    schema, raw = data.schema, read_raw(data)
    cutoff, customer = pd.Timestamp(schema.cutoff("test")), schema.customer
    events = raw.events.astype({customer: str})
    events = events[events[schema.time] < cutoff]
    counts = make_counts(events, schema, cutoff)
    counts = counts[counts["events inf"] >= schema.min_history]
    later = raw.visits[raw.visits["time"].between(cutoff, cutoff + pd.Timedelta(days=DAYS), inclusive="left")]
    later = later.groupby("customer")["spend"].agg(["sum", "size"]).reindex(counts.index, fill_value=0.0)
    targets = later.set_axis([f"spend in {DAYS} days", f"visits in {DAYS} days"], axis=1).astype(float)
    targets[f"comes in {DAYS} days"] = later["size"] > 0
    known = pd.read_parquet(data.folder.with_name("raw") / "profile.parquet").astype({customer: str})
    columns = profile or [spec.column for spec in schema.profile]
    targets = targets.join(known.set_index(customer)[columns])
    states = [CustomerModel.load(model, events).embed(counts.index, as_of=cutoff).to_numpy() for model in models]
    inputs = {"counts": [counts.to_numpy()]}
    inputs["components"] = [components(events, customer, counted).loc[counts.index].to_numpy()]
    inputs["counts and components"] = inputs[TREES] = [np.concatenate([*inputs["counts"], *inputs["components"]], 1)]
    inputs["CoLES"] = [embed_by_coles(events, schema, cutoff, folder).loc[counts.index].to_numpy()]
    inputs |= {"state": states, "counts and state": [np.concatenate([counts, state], 1) for state in states]}
    return inputs, targets


def out_of_fold(features: NDArray, target: NDArray, is_class: bool, trees: bool) -> NDArray[np.float64]:
    """Predicts customers by models that were not trained on them, linear ones or trees: `(customers, C)`."""
    if trees:
        learner = (LGBMClassifier if is_class else LGBMRegressor)(**SMALL_TREES)
    else:
        learner = LogisticRegression(C=0.01, max_iter=500) if is_class else Ridge(100.0)
    logs = FunctionTransformer(lambda values: np.sign(values) * np.log1p(np.abs(values)))  # counts have long tails
    folds = (StratifiedKFold if is_class else KFold)(FOLDS, shuffle=True, random_state=0)
    if not is_class:  # spend is skewed, and ranks are what is measured
        target = rankdata(target) / len(target)
    method = "predict_proba" if is_class else "predict"
    found = cross_val_predict(
        make_pipeline(logs, StandardScaler(), learner), features, target, cv=folds, method=method
    )
    return found.reshape(len(target), -1)


def compute_auc(positive: NDArray, scores: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """The area under the ROC curve with the weights of each resample, of shape `(resamples,)`."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # of equal scores
    hits, misses = (np.add.reduceat(weights[:, order] * side[order], starts, axis=1) for side in (positive, ~positive))
    return (hits * (misses.cumsum(1) - misses / 2)).sum(1) / (hits.sum(1) * misses.sum(1))


def metric(target: NDArray, predicted: NDArray, classes: NDArray | None, weights: NDArray) -> NDArray[np.float64]:
    """Computes AUC, as the mean over classes or of the second of two, or rank correlation; of shape `(resamples,)`."""
    if classes is not None:
        columns = [1] if len(classes) == 2 else range(len(classes))
        return np.mean([compute_auc(target == classes[c], predicted[:, c], weights) for c in columns], axis=0)
    first, second = rankdata(target), rankdata(predicted[:, 0])
    shares = weights / weights.sum(1, keepdims=True)
    mean = [shares @ ranks for ranks in (first, second)]
    covariance = shares @ (first * second) - mean[0] * mean[1]
    spreads = [shares @ ranks**2 - of**2 for ranks, of in zip((first, second), mean, strict=True)]
    return covariance / np.sqrt(spreads[0] * spreads[1])


def summary(values: NDArray) -> dict[str, float]:
    """The value of the data, which is the first, and the interval of the resamples."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, object] | None:
    """A row for each target of a log, with the value of each input and what the state is over the best yardstick;
    None for a log without profiles, or without a trained model."""
    models = sorted((runs / log.name).glob(f"{WITHOUT.replace(' ', '_')}.*"))
    if log.name not in SETTINGS or not models:
        return None
    inputs, targets = read_customers(data, models, runs / log.name / "CoLES", *SETTINGS[log.name])
    rows = []
    for name, column in targets.items():
        classes, is_class = None, column.dtype.kind != "f"
        if is_class:
            counts = column.value_counts()
            classes = np.sort(counts.index[counts >= FEWEST])
            column = column.where(column.isin(classes))
        chosen = column.notna().to_numpy()
        target = column[chosen].to_numpy(classes.dtype if is_class else float)
        draws = np.random.default_rng(0).multinomial(len(target), np.full(len(target), 1 / len(target)), RESAMPLES)
        weights, values = np.concatenate([np.ones((1, len(target))), draws]), {}
        for kind, arrays in inputs.items():
            guesses = [out_of_fold(array[chosen], target, is_class, kind == TREES) for array in arrays]
            values[kind] = np.mean([metric(target, guess, classes, weights) for guess in guesses], axis=0)
        best = max(YARDSTICKS, key=lambda kind: values[kind][0])
        row = {kind: summary(kind_values) for kind, kind_values in values.items()}
        row["state over the best yardstick"] = summary(values["state"] - values[best])
        rows.append({"target": name, "customers": len(target)} | row)
    sizes = {name: arrays[0].shape[1] for name, arrays in inputs.items()}
    return {"log": log.name, "models": len(models), "numbers": sizes, "rows": rows}
