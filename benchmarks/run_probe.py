#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Is the customer embedding worth storing? What it predicts that MCM was not trained on, beside hand-made counts.

    python benchmarks/run_probe.py --models runs/seed0 runs/seed1 --data data/prepared

Histories end at a cutoff: `validation`, where pre-training ended, or `test`, on which nothing was chosen. The frozen
embedding at that moment, counts of the history (`HistoryFeatures`), and both, go into the same LightGBM and the same
linear model with repeated cross-validation. Targets: the profile (its values are hidden from the embedding), and of
the days after the cutoff what is spent, the visits, and churn, no visit at all (a visit has an event with a label
besides its token type). AUC for classes (one against the rest, the mean over classes), rank correlation for numbers; a
customer's prediction is the mean over repetitions, values are means over the models, intervals resample customers in
pairs.

A second table holds the checkpoint's own forecasts against the same number of days before the cutoff and, for visits,
against a Poisson-gamma model of each customer's rate. Needs the extra `gbdt`.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from measuring import RESULTS, write_table
from modeling_mcm import MCMFeatureExtractor, MCMModel
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.evaluation.offers import resample_customers, weighted_ranking
from modeling_mcm.evaluation.reports import with_half_interval, with_interval
from modeling_mcm.extras import needs
from modeling_mcm.option import option
from modeling_mcm.times_mcm import SECONDS_PER_DAY
from modeling_mcm.training.checkpoints import open_checkpoint
from probing import FEWEST, batches_at, make_learner

INPUTS = ("counts", "embedding", "counts and embedding")
LEARNERS = ("LightGBM", "linear")


@dataclass
class ProbeOptions:
    """Which checkpoints are probed for which targets, and where the results are written."""

    models: list[str] = option([], "Pre-trained checkpoints, such as several seeds of one training.")
    data: str | None = option(None, "Folder of the prepared data set of the checkpoint.")
    profile: list[str] = option([], "Features of the profile to predict; all by default.")
    spend: str = option("price", "Numeric feature whose sum is the spend of a customer.")
    days: int = option(30, "Number of days after the cutoff in which churn and spend are measured.")
    cutoffs: list[str] = option(
        ["validation", "test"],
        "Where histories end: the prepared data set's validation cutoff, its test cutoff, or both.",
    )
    min_events: int = option(5, "Number of events that a customer needs before the cutoff.")
    folds: int = option(5, "Number of folds of the cross-validation.")
    repeats: int = option(3, "Number of times that the cross-validation is repeated with other folds.")
    batch_size: int = option(32, "Number of customers in one batch of the model.")
    results: str = option(RESULTS, "Folder of the tables.")


@dataclass
class Customers:
    """The customers at a cutoff.

    Attributes:
        counts (`numpy.ndarray`, shape `(customers, F)`): Hand-made counts of the history.
        embeddings (list of `numpy.ndarray`): Embeddings by each model, of shape `(customers, S)`.
        forecasts (list of `dict`): Forecasts of each model by name; empty if it has none.
        targets (`dict[str, numpy.ndarray]`): Targets by name, of shape `(customers,)`; NaN or "" if unknown.
        numbers (`dict[str, numpy.ndarray]`): Numbers of the log by name ([`numbers_of`]), of shape `(customers,)`.
        caption (`str`): A description for the page.
    """

    counts: NDArray
    embeddings: list[NDArray]
    forecasts: list[dict[str, NDArray]]
    targets: dict[str, NDArray]
    numbers: dict[str, NDArray]
    caption: str


def read_models(options: ProbeOptions) -> list[tuple[MCMModel, MCMFeatureExtractor]]:
    """Reads the checkpoints, each with its feature extractor."""
    models = []
    for path in options.models:
        model, extractor = open_checkpoint(MCMModel, path)
        check_vocabularies(str(options.data), extractor)
        models.append((model, extractor))
    return models


def read_customers(
    options: ProbeOptions, models: list[tuple[MCMModel, MCMFeatureExtractor]], cutoff_name: str
) -> Customers:
    """Reads the customers of a prepared data set as they were at its `validation` or `test` cutoff."""
    data = PreparedData(str(options.data))
    schema = data.schema
    extractor = models[0][1]
    profile = [feature["name"] for feature in extractor.features if feature.get("profile")]
    if wrong := [name for name in options.profile if name not in profile]:
        raise SystemExit(f"No features {wrong} in the profile; it has {', '.join(profile) or 'none'}.")
    if options.spend not in extractor.numeric_features:
        raise SystemExit(
            f"No numeric feature {options.spend!r} to sum; there are "
            f"{', '.join(extractor.numeric_features) or 'none'}."
        )
    span = options.days * SECONDS_PER_DAY
    tasks = [f"task_{task}" for task in extractor.tasks if task != extractor.token_type_feature]
    labels: dict[str, list[str]] = {name: [] for name in options.profile or profile}
    values: dict[str, list[float]] = {}
    counts, embeddings, forecasts = [], [[] for _ in models], [[] for _ in models]  # type: ignore[var-annotated]
    cutoff = schema.cutoff_seconds(cutoff_name)
    for batch, blank, of_batch in batches_at(data, extractor, cutoff_name, options.min_events, options.batch_size):
        counts.append(of_batch)
        for row in batch:
            for name, number in numbers_of(row, cutoff, span, options.spend, tasks).items():
                values.setdefault(name, []).append(number)
            for name, column in labels.items():
                known = ["", "", *extractor.vocabularies[name]] if name in extractor.vocabularies else None
                column.append(str(row[f"profile_{name}"]) if known is None else known[row[f"profile_{name}"]])
        for index, (model, own_extractor) in enumerate(models):
            readable = [own_extractor.readable(row, model.config.input_features) for row in blank]
            with torch.inference_mode():
                outputs = model(**own_extractor.pad(readable, now=[cutoff] * len(readable)))
            embeddings[index].append(outputs.pooler_output.numpy())
            forecasts[index].append({name: value.numpy() for name, value in (outputs.forecasts or {}).items()})
    numbers = {name: np.array(column) for name, column in values.items()}
    targets: dict[str, NDArray] = {
        f"spend in {options.days} days": numbers["spend after"],
        f"visits in {options.days} days": numbers["visits after"],
        f"churn in {options.days} days": numbers["visits after"] == 0,
    }
    counted = np.nan_to_num(np.concatenate(counts), nan=-1.0)
    caption = (
        f"{len(counted):,} customers of {schema.name} with at least {options.min_events} events before "
        f"{schema.cutoff(cutoff_name):%Y-%m-%d} (the {cutoff_name} cutoff); {counted.shape[1]} counts, "
        f"{embeddings[0][0].shape[1]} numbers of embedding, {len(models)} trained models."
    )
    return Customers(
        counted,
        [np.concatenate(parts) for parts in embeddings],
        [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in forecasts],
        targets | {name: np.array(column) for name, column in labels.items()},
        numbers,
        caption,
    )


def numbers_of(row: dict[str, Any], cutoff: int, span: int, spend: str, tasks: list[str]) -> dict[str, float]:
    """Visits and spend of one customer before and after a cutoff; `tasks` are columns whose labels make a visit."""
    times, is_label = row["times"], np.any([row[name] > 0 for name in tasks], axis=0)
    before, after = times < cutoff, (times >= cutoff) & (times < cutoff + span)
    latest = before & (times >= cutoff - span)

    def visits(events: NDArray) -> float:
        return float(len(np.unique(row["visits"][events & is_label])))

    return {
        "spend after": float(row[f"value_{spend}"][after].sum()),
        "visits after": visits(after),
        "spend before": float(row[f"value_{spend}"][latest].sum()),
        "visits before": visits(latest),
        "all visits": visits(before),
        "days known": float(cutoff - times[before].min()) / SECONDS_PER_DAY,
    }


def poisson_gamma(visits: NDArray, days: NDArray, ahead: float) -> NDArray[np.float64]:
    """Computes the expected visits of the next days if each customer's rate is drawn from one gamma distribution.

    Args:
        visits (`numpy.ndarray`, shape `(customers,)`): Number of visits so far.
        days (`numpy.ndarray`, shape `(customers,)`): Number of days from the first visit to the cutoff.
        ahead (`float`): Number of days ahead.
    """
    from scipy.optimize import minimize
    from scipy.stats import nbinom

    days = np.maximum(days, 1.0)

    def surprise(logs: NDArray) -> float:
        shape, rate = np.exp(logs)
        return float(-nbinom.logpmf(visits, shape, rate / (rate + days)).mean())

    shape, rate = np.exp(minimize(surprise, np.log([1.0, max(days.mean() / max(visits.mean(), 1e-3), 1e-3)])).x)
    return ahead * (shape + visits) / (rate + days)


def out_of_fold(
    features: NDArray, target: NDArray, learner: str, classes: NDArray | None, options: ProbeOptions
) -> NDArray[np.float64]:
    """Predicts customers by models that were not trained on them: means over repetitions, `(customers, C)`."""
    from scipy.stats import rankdata
    from sklearn.model_selection import KFold, StratifiedKFold

    total = np.zeros((len(target), 1 if classes is None else len(classes)))
    for repeat in range(options.repeats):
        splitter = (KFold if classes is None else StratifiedKFold)(options.folds, shuffle=True, random_state=repeat)
        for train, test in splitter.split(features, target):
            if classes is None:
                values = rankdata(target[train]) / len(train)  # spend is skewed, and ranks are what is measured
                fitted = make_learner(learner, "regression").fit(features[train], values)
                predicted = fitted.predict(features[test])[:, None]
            else:
                fitted = make_learner(learner, "classes").fit(features[train], target[train])
                predicted = fitted.predict_proba(features[test])
            total[test] += predicted
    return total / options.repeats


def metric(target: NDArray, predicted: NDArray, classes: NDArray | None, weights: NDArray) -> NDArray[np.float64]:
    """Computes AUC, as the mean over classes or of the second of two, or rank correlation; of shape `(resamples,)`."""
    if classes is None:
        from scipy.stats import rankdata

        first, second = rankdata(target), rankdata(predicted[:, 0])
        shares = weights / weights.sum(1, keepdims=True)
        mean = [shares @ ranks for ranks in (first, second)]
        covariance = shares @ (first * second) - mean[0] * mean[1]
        spreads = [shares @ ranks**2 - of**2 for ranks, of in zip((first, second), mean, strict=True)]
        return covariance / np.sqrt(spreads[0] * spreads[1])
    columns = [1] if len(classes) == 2 else range(len(classes))
    areas = [weighted_ranking(target == classes[c], predicted[:, c], weights)["roc_auc"] for c in columns]
    return np.mean(areas, axis=0)


def measure_targets(customers: Customers, options: ProbeOptions) -> dict[str, Any]:
    """Computes for each target how well learners predict it from counts, embedding and both."""
    targets: dict[str, Any] = {}
    for name, target in customers.targets.items():
        classes = None if target.dtype.kind == "f" else np.unique(target)
        indices = np.arange(len(target))
        if classes is not None:
            classes = np.array([value for value in classes if str(value) and (target == value).sum() >= FEWEST])
            indices = np.flatnonzero(np.isin(target, classes))
            if len(classes) < 2:
                continue  # nothing to tell apart
        weights = resample_customers(np.arange(len(indices)).astype(str), 500)
        results: dict[str, Any] = {"customers": len(indices), "classes": 0 if classes is None else len(classes)}
        for learner in LEARNERS:
            values: dict[str, NDArray] = {}
            for kind in logging.tqdm(INPUTS, desc=f"{name}, {learner}", unit="fit"):
                by_model = []
                for embedding in customers.embeddings[: 1 if kind == "counts" else None]:
                    inputs = {"counts": customers.counts, "embedding": embedding}
                    inputs["counts and embedding"] = np.concatenate([customers.counts, embedding], axis=1)
                    predicted = out_of_fold(inputs[kind][indices], target[indices], learner, classes, options)
                    by_model.append(metric(target[indices], predicted, classes, weights))
                values[kind] = np.mean(by_model, axis=0)
            differences = {f"{kind} over counts": values[kind] - values["counts"] for kind in INPUTS[1:]}
            results[learner] = {key: summary(measured) for key, measured in (values | differences).items()}
        targets[name] = results
    return targets


def forecast_rows(customers: Customers, options: ProbeOptions) -> list[list[str]]:
    """Compares the checkpoint's forecasts with simple ones: rank correlation or AUC, and the means; none without."""
    day, numbers = options.days, customers.numbers
    columns = {"visits": f"visits_{day}d", "spend": f"{options.spend}_{day}d", "churn": f"visit_probability_{day}d"}
    if any(column not in forecast for forecast in customers.forecasts for column in columns.values()):
        return []
    weights = resample_customers(np.arange(len(customers.counts)).astype(str), 500)
    ahead, again = (
        poisson_gamma(numbers["all visits"], numbers["days known"], float(day)),
        f"the last {day} days again",
    )
    own = {name: np.mean([of[column] for of in customers.forecasts], axis=0) for name, column in columns.items()}
    methods = {
        "visits": {"forecast": own["visits"], again: numbers["visits before"], "Poisson-gamma": ahead},
        "spend": {"forecast": own["spend"], again: numbers["spend before"]},
        "churn": {"forecast": 1 - own["churn"], again: -numbers["visits before"], "Poisson-gamma": -ahead},
    }
    rows = []
    for name, of_method in methods.items():
        truth, classes = (
            customers.targets[f"{name} in {day} days"],
            np.array([False, True]) if name == "churn" else None,
        )
        for method, value in of_method.items():
            ranks = metric(truth, np.stack([value] * (1 if classes is None else 2), 1), classes, weights)
            mean = f"{value.mean():.2f}" if value.mean() >= 0 else ""  # a score is no chance
            rows.append([name, method, with_half_interval(summary(ranks)), mean, f"{truth.mean():.2f}"])
    return rows


def summary(values: NDArray) -> dict[str, float]:
    """The value of the data, which is the first, and the interval of the resamples."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def target_rows(targets: dict[str, Any], learner: str) -> list[list[str]]:
    """Makes a row for each target from the result of [`measure_targets`]."""
    rows = []
    for name, measured in targets.items():
        intervals = measured[learner]
        gains = [with_interval(intervals[f"{kind} over counts"], "+.3f") for kind in INPUTS[1:]]
        classes = f", {measured['classes']} classes" if measured["classes"] else ""
        size = f"{measured['customers']:,}{classes}"
        rows.append([name, size, *(with_half_interval(intervals[kind]) for kind in INPUTS[:2]), *gains])
    return rows


def probe(options: ProbeOptions) -> None:
    """Computes and writes both tables."""
    models, captions = read_models(options), []
    probed = [["cutoff", "learner", "target", "customers", *INPUTS[:2], "alone", "beside"]]
    forecasts = [["cutoff", "what", "method", "rank correlation or AUC", "mean predicted", "mean observed"]]
    for cutoff in options.cutoffs:
        customers = read_customers(options, models, cutoff)
        targets = measure_targets(customers, options)
        probed += [[cutoff, learner, *row] for learner in LEARNERS for row in target_rows(targets, learner)]
        forecasts += [[cutoff, *row] for row in forecast_rows(customers, options)]
        captions.append(customers.caption)
    write_table(options.results, "probe", " ".join(captions), probed)
    write_table(options.results, "forecasts", " ".join(captions), forecasts)


def main() -> None:
    """Reads the options, probes, and writes the tables."""
    (options,) = parse_options(ProbeOptions, description=__doc__)
    if not options.models or options.data is None:
        raise SystemExit("--models and --data are needed: see --help.")
    if wrong := sorted(set(options.cutoffs) - {"validation", "test"}):
        raise SystemExit(f"--cutoffs names {', '.join(wrong)}; choose validation, test or both.")
    try:
        with needs("gbdt"):  # before minutes of embedding
            import lightgbm  # noqa: F401
            import scipy  # noqa: F401
            import sklearn  # noqa: F401
        probe(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_probe: {error}")


if __name__ == "__main__":
    main()
