#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Is the customer embedding worth storing? What it predicts that MCM was not trained on, beside hand-made counts.

    python benchmarks/run_probe.py --models runs/seed0 runs/seed1 --data data/prepared --report docs/results_probe.md

Histories end at a cutoff: `validation`, where pre-training ended, or `test`, on which nothing was chosen. The frozen
embedding at that moment, counts of the history (`HistoryFeatures`), and both, go into the same LightGBM and the same
linear model with repeated cross-validation. Targets: the profile (its values are hidden from the embedding), and of
the days after the cutoff what is spent, the visits, and churn, no visit at all (a visit has an event with a label
besides its token type). AUC for classes (one against the rest, the mean over classes), rank correlation for numbers; a
customer's prediction is the mean over repetitions, values are means over the models, intervals resample customers in
pairs.

A second table says what of the history is in the embedding: the cross-validated R2 of a linear model. A third one
holds the checkpoint's own forecasts against the same number of days before the cutoff and, for visits, against a
Poisson-gamma model of each customer's rate, which scipy fits in ten lines. A fourth one compares the means of the
forecasts with what came, for every horizon that the log reaches; the picture is the calibration of one. Needs the
extra `gbdt`.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from measuring import write_sentence
from modeling_mcm import MCMFeatureExtractor, MCMModel
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.evaluation.offers import resample_customers, weighted_ranking
from modeling_mcm.evaluation.reports import markdown_table, with_half_interval, with_interval
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import write_json, write_text
from modeling_mcm.option import option
from modeling_mcm.times_mcm import SECONDS_PER_DAY
from modeling_mcm.training.checkpoints import check_files, read_checkpoint
from probing import FEWEST, batches_at, make_learner

INPUTS = ("counts", "embedding", "counts and embedding")
LEARNERS = ("LightGBM", "linear")
SENTENCE = "state"  # the name of its lines in the README


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
    report: str = option("docs/results_probe.md", "Markdown file of the page to write.")
    readme: str | None = option(
        None, "File that gets a sentence on the state, between <!-- state --> and <!-- /state -->."
    )
    output_file: str | None = option(None, "JSON file to write every number to.")


@dataclass
class Customers:
    """The customers at a cutoff.

    Args:
        counts (`numpy.ndarray`, shape `(customers, F)`): Hand-made counts of the history.
        embeddings (list of `numpy.ndarray`): Embeddings by each model, of shape `(customers, S)`.
        forecasts (list of `dict`): Forecasts of each model by name; empty if it has none.
        targets (`dict[str, numpy.ndarray]`): Targets by name, of shape `(customers,)`; NaN or "" if unknown.
        facts (`dict[str, numpy.ndarray]`): Numbers of the history by name, of shape `(customers,)`.
        past (`dict[str, numpy.ndarray]`): The numbers that `forecasts` predict, in as many days before the cutoff.
        totals (`dict[str, float]`): By name of a forecast, the mean of what came, where the log reaches the horizon.
        rates (`tuple`): For the Poisson-gamma model: visits and days since the first visit, each of shape
            `(customers,)`.
        caption (`str`): A description for the page.
    """

    counts: NDArray
    embeddings: list[NDArray]
    forecasts: list[dict[str, NDArray]]
    targets: dict[str, NDArray]
    facts: dict[str, NDArray]
    past: dict[str, NDArray]
    totals: dict[str, float]
    rates: tuple[NDArray, NDArray]
    caption: str


def read_models(options: ProbeOptions) -> list[tuple[MCMModel, MCMFeatureExtractor]]:
    """Reads the checkpoints, each with its feature extractor."""
    models = []
    for path in options.models:
        check_files(path)
        model = read_checkpoint(MCMModel, path).eval()
        extractor = MCMFeatureExtractor.from_pretrained(path)
        check_vocabularies(str(options.data), extractor)
        models.append((model, extractor))
    return models


def read_customers(
    options: ProbeOptions, models: list[tuple[MCMModel, MCMFeatureExtractor]], cutoff_name: str
) -> Customers:
    """Reads the customers of a prepared data set as they were at one of its cutoffs.

    Args:
        options (`ProbeOptions`): The options of the probe.
        models (list): Models with their feature extractors, from [`read_models`].
        cutoff_name (`str`): `validation` or `test`.
    """
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
    token = extractor.token_type_feature
    types = FIRST_VALUE_ID + len(extractor.vocabularies[token])
    span = options.days * SECONDS_PER_DAY
    labels: dict[str, list[str]] = {name: [] for name in options.profile or profile}
    values: dict[str, list[float]] = {}
    counts, embeddings, forecasts = [], [[] for _ in models], [[] for _ in models]  # type: ignore[var-annotated]
    cutoff = schema.cutoff_seconds(cutoff_name)
    latest = max((int(times[-1]) for times in data.rows["times"] if len(times)), default=0)
    horizons = [day for day in models[0][0].config.forecast_days if cutoff + day * SECONDS_PER_DAY <= latest]
    for batch, blank, of_batch in batches_at(data, extractor, cutoff_name, options.min_events, options.batch_size):
        counts.append(of_batch)
        for row in batch:
            numbers_of_row = _numbers_of(row, cutoff, span, options.spend, token, types)
            for day in horizons:
                until = _numbers_of(row, cutoff, int(day * SECONDS_PER_DAY), options.spend, token, 0)
                numbers_of_row[f"visits_{day:g}d"] = until["visits after"]
                numbers_of_row[f"{options.spend}_{day:g}d"] = until["spend after"]
                numbers_of_row[f"visit_probability_{day:g}d"] = float(until["visits after"] > 0)
            for name, number in numbers_of_row.items():
                values.setdefault(name, []).append(number)
            for name, column in labels.items():
                known = ["", "", *extractor.vocabularies[name]] if name in extractor.vocabularies else None
                column.append(str(row[f"profile_{name}"]) if known is None else known[row[f"profile_{name}"]])
        for index, (model, own_extractor) in enumerate(models):
            readable = [own_extractor.readable(row, model.config.input_features) for row in blank]
            with torch.inference_mode():
                outputs = model(**own_extractor.pad(readable, now=[cutoff] * len(readable)))
            embeddings[index].append(outputs.pooler_output.numpy())
            means = outputs.forecasts or {}
            forecasts[index].append({name: value.numpy() for name, value in means.items()})
    numbers = {name: np.array(column) for name, column in values.items()}
    day = f"{options.days}"
    targets: dict[str, NDArray] = {
        f"spend in {day} days": numbers["spend after"],
        f"visits in {day} days": numbers["visits after"],
        f"churn in {day} days": numbers["visits after"] == 0,
    }
    facts = {
        "days since the last event": np.log1p(numbers["days since"]),
        f"visits in {day} days": np.log1p(numbers["visits before"]),
        f"spend in {day} days": np.log1p(numbers["spend before"]),
        "events of a visit": np.log1p(numbers["events of a visit"]),
    }
    shares = {value: numbers[f"type {FIRST_VALUE_ID + k}"] for k, value in enumerate(extractor.vocabularies[token])}
    facts |= {f"share of {value}": share for value, share in shares.items() if share.std() > 0}
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
        for parts in forecasts
    ]
    counted = np.nan_to_num(np.concatenate(counts), nan=-1.0)
    caption = (
        f"{len(counted):,} customers of {schema.name} with at least {options.min_events} events before "
        f"{schema.cutoff(cutoff_name):%Y-%m-%d} (the {cutoff_name} cutoff); {counted.shape[1]} counts, "
        f"{embeddings[0][0].shape[1]} numbers of embedding, {len(models)} trained models."
    )
    return Customers(
        counted,
        [np.concatenate(parts) for parts in embeddings],
        [forecast if model.forecasts is not None else {} for forecast, (model, _) in zip(joined, models, strict=True)],
        targets | {name: np.array(column) for name, column in labels.items()},
        facts,
        {f"visits_{day}d": numbers["visits before"], f"{options.spend}_{day}d": numbers["spend before"]},
        {name: float(column.mean()) for name, column in numbers.items() if re.search(r"_\d+d$", name)},
        (numbers["all visits"], numbers["days known"]),
        caption,
    )


def _numbers_of(row: dict[str, Any], cutoff: int, span: int, spend: str, token: str, types: int) -> dict[str, float]:
    """Numbers of one customer before and after a cutoff: visits, what was spent, and shares of `types` token types."""
    times, is_label = (
        row["times"],
        np.any([row[name] > 0 for name in row if name.startswith("task_") and name != f"task_{token}"], axis=0),
    )
    before, after = times < cutoff, (times >= cutoff) & (times < cutoff + span)
    latest = before & (times >= cutoff - span)
    visits = len(np.unique(row["visits"][before & is_label]))
    shares = np.bincount(row[f"feature_{token}"][before], minlength=types)[:types] / before.sum()
    return {
        "spend after": float(row[f"value_{spend}"][after].sum()),
        "visits after": float(len(np.unique(row["visits"][after & is_label]))),
        "spend before": float(row[f"value_{spend}"][latest].sum()),
        "visits before": float(len(np.unique(row["visits"][latest & is_label]))),
        "days since": float(cutoff - times[before].max()) / SECONDS_PER_DAY,
        "days known": float(cutoff - times[before].min()) / SECONDS_PER_DAY,
        "all visits": float(visits),
        "events of a visit": (before & is_label).sum() / max(visits, 1),
        **{f"type {value}": float(share) for value, share in enumerate(shares)},
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


def probe_cutoff(customers: Customers, options: ProbeOptions) -> dict[str, Any]:
    """Computes every number of one cutoff."""
    targets: dict[str, Any] = {}
    for name, target in customers.targets.items():
        classes = None if target.dtype.kind == "f" else np.unique(target)
        indices = np.arange(len(target))
        if classes is not None:
            sizes = {value: (target == value).sum() for value in classes}
            classes = np.array([value for value, size in sizes.items() if size >= FEWEST and not _unknown(value)])
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
            results[learner] = {key: _summary(measured) for key, measured in (values | differences).items()}
        targets[name] = results
    return {
        "caption": customers.caption,
        "targets": targets,
        "facts": facts_in(customers, options),
        "forecasts": forecasts_of(customers, options),
        "totals": totals_of(customers),
    }


def facts_in(customers: Customers, options: ProbeOptions) -> dict[str, float]:
    """Measures how well a linear model predicts facts of the history from the embedding: cross-validated R2."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = make_pipeline(StandardScaler(), Ridge(10.0))
    return {
        name: float(
            np.mean([cross_val_score(learner, x, fact, cv=options.folds).mean() for x in customers.embeddings])
        )
        for name, fact in customers.facts.items()
    }


def forecasts_of(customers: Customers, options: ProbeOptions) -> dict[str, Any]:
    """Compares the checkpoint's forecasts with simple ones: rank correlation or AUC, and the ratio of totals."""
    if not all(customers.forecasts):
        return {}
    day = f"{options.days}"
    truths = {name: customers.targets[f"{name} in {day} days"] for name in ("visits", "spend", "churn")}
    columns = {"visits": f"visits_{day}d", "spend": f"{options.spend}_{day}d", "churn": f"visit_probability_{day}d"}
    if any(column not in forecast for forecast in customers.forecasts for column in columns.values()):
        return {}
    weights = resample_customers(np.arange(len(truths["visits"])).astype(str), 500)
    ahead = poisson_gamma(*customers.rates, float(options.days))
    result: dict[str, Any] = {}
    for name, column in columns.items():
        forecasts = {"forecast": np.mean([forecast[column] for forecast in customers.forecasts], axis=0)}
        if name != "churn":
            forecasts[f"the last {day} days again"] = customers.past[column]
        else:
            forecasts["forecast"] = 1 - forecasts["forecast"]
            forecasts[f"the last {day} days again"] = -customers.past[columns["visits"]]
        if name != "spend":
            forecasts["Poisson-gamma"] = ahead if name == "visits" else -ahead
        classes = np.array([False, True]) if name == "churn" else None
        result[name] = {}
        for method, value in forecasts.items():
            ranks = metric(truths[name], np.stack([value] * (1 if classes is None else 2), 1), classes, weights)
            means = {"predicted": float(value.mean()), "observed": float(truths[name].mean())}
            result[name][method] = _summary(ranks) | means
        order = np.argsort(forecasts["forecast"], kind="stable")
        parts = np.array_split(order, 10)
        result[name]["forecast"]["by tenth"] = [
            [float(forecasts["forecast"][part].mean()), float(truths[name][part].mean())] for part in parts
        ]
    return result


def totals_of(customers: Customers) -> dict[str, tuple[float, float]]:
    """Compares the mean forecast over all customers with the mean of what came, by name of the forecast."""
    if not all(customers.forecasts):
        return {}
    return {
        name: (float(np.mean([forecast[name] for forecast in customers.forecasts])), observed)
        for name, observed in customers.totals.items()
        if all(name in forecast for forecast in customers.forecasts)
    }


def probe(options: ProbeOptions) -> dict[str, Any]:
    """Computes every number of the page."""
    models = read_models(options)
    command = shlex.join(["python", "benchmarks/run_probe.py", *sys.argv[1:]])
    cutoffs = {name: probe_cutoff(read_customers(options, models, name), options) for name in options.cutoffs}
    return {"command": command, "cutoffs": cutoffs}


def _unknown(value: Any) -> bool:
    return isinstance(value, str) and value == ""


def _summary(values: NDArray) -> dict[str, float]:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def write_page(results: dict[str, Any], path: Path) -> None:
    """Writes the page from the result of [`probe`], and a picture of the calibration beside it."""
    lines = ["# What the customer embedding predicts", "", f"Written by `{results['command']}`.", ""]
    lines += [
        "The metric is AUC for classes and rank correlation for numbers, ± half of its 95% interval. Differences have "
        "their 95% intervals in brackets. Intervals resample customers. The embedding does not read profiles. *Alone* "
        "is the metric of the embedding minus that of the counts. *Beside* is the metric of both together minus "
        "that of the counts.",
        "",
        "Differences whose interval does not hold 0:",
        "",
        *_summary_table(results["cutoffs"]),
    ]
    for cutoff, result in results["cutoffs"].items():
        lines += [f"## At the {cutoff} cutoff", "", result["caption"], ""]
        for learner in LEARNERS:
            rows = []
            for name, measured in result["targets"].items():
                intervals = measured[learner]
                cells = [with_half_interval(intervals[kind]) for kind in INPUTS[:2]]
                for kind in INPUTS[1:]:
                    gain = intervals[f"{kind} over counts"]
                    cells.append(with_interval(gain, "+.3f"))
                classes = f", {measured['classes']} classes" if measured["classes"] else ""
                size = f"{measured['customers']:,}{classes}"
                rows.append([name, size, *cells])
            lines += [f"### {learner}", ""]
            lines += [*markdown_table([["target", "customers", *INPUTS[:2], "alone", "beside"], *rows]), ""]
        lines += ["### What of the history is in the embedding", ""]
        lines += ["Cross-validated R2 of a linear model.", ""]
        lines += [
            *markdown_table([["fact", "R2"], *[[name, f"{value:.2f}"] for name, value in result["facts"].items()]]),
            "",
        ]
        if result["forecasts"]:
            lines += ["### Forecasts of the checkpoint itself", ""]
            rows = []
            for name, methods in result["forecasts"].items():
                for method, value in methods.items():
                    forecast = f"{value['predicted']:.2f}" if value["predicted"] >= 0 else ""  # a score is no chance
                    rows.append([name, method, with_half_interval(value), forecast, f"{value['observed']:.2f}"])
            head = ["what", "method", "rank correlation or AUC", "mean predicted", "mean observed"]
            lines += [*markdown_table([head, *rows]), ""]
        if result["totals"]:
            rows = [[name, *(f"{mean:.3f}" for mean in means)] for name, means in result["totals"].items()]
            lines += ["Means over all customers, for the horizons that the log reaches:", ""]
            lines += [*markdown_table([["forecast", "mean predicted", "mean observed"], *rows]), ""]
        if result["forecasts"]:
            picture = path.with_name(f"{path.stem}_{cutoff}.png")
            draw_calibration(result["forecasts"], picture)
            lines += [f"![Calibration of the forecasts at the {cutoff} cutoff]({picture.name})", ""]
    write_text(path, "\n".join(lines).rstrip() + "\n")


def state_sentence(results: dict[str, Any]) -> str:
    """Writes what linear models predict from the state, and from counts, at the last cutoff."""
    cutoff, result = list(results["cutoffs"].items())[-1]
    parts = []
    for name, measured in result["targets"].items():
        state, counts = (measured["linear"][kind]["mean"] for kind in (INPUTS[1], INPUTS[0]))
        parts.append(f"{name.replace('_', ' ')} {state:.3f} ({counts:.3f})")
    return (
        f"What a linear model predicts from the customer state at the {cutoff} cutoff, in brackets from hand-made "
        f"counts: {', '.join(parts)}. AUC for classes, rank correlation for numbers."
    )


def _summary_table(cutoffs: dict[str, Any]) -> list[str]:
    """Counts the differences whose interval lies above or below 0, of what came later and of the profile."""
    rows = [["cutoff", "learner", "targets", "alone: above, below counts", "beside: above, below counts"]]
    for cutoff, result in cutoffs.items():
        for learner in LEARNERS:
            for kind in ("behaviour", "profile"):
                targets = {
                    name: measured[learner]
                    for name, measured in result["targets"].items()
                    if name.endswith("days") == (kind == "behaviour")
                }
                cells = []
                for inputs in INPUTS[1:]:
                    gains = [measured[f"{inputs} over counts"] for measured in targets.values()]
                    above, below = sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains)
                    cells.append(f"{above}, {below}")
                rows.append([cutoff, learner, f"{len(targets)} of {kind}", *cells])
    return [*markdown_table(rows), ""]


def draw_calibration(forecasts: dict[str, Any], path: Path) -> None:
    """Draws the mean forecast and the mean outcome of customers in ten groups by their forecast."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(forecasts), figsize=(4 * len(forecasts), 3.6), layout="constrained")
    for axis, (name, methods) in zip(np.atleast_1d(axes), forecasts.items(), strict=True):
        tenths = np.array(methods["forecast"]["by tenth"])
        axis.plot([0, tenths.max()], [0, tenths.max()], color="0.7", linewidth=1)
        axis.plot(*tenths.T, marker="o")
        axis.set(title=name, xlabel="predicted", ylabel="observed")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Reads the options, probes, and writes the page."""
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
        results = probe(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_probe: {error}")
    if options.readme:
        write_sentence(Path(options.readme), SENTENCE, state_sentence(results))
    write_page(results, Path(options.report))
    if options.output_file:
        write_json(options.output_file, results)


if __name__ == "__main__":
    main()
