#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Is the customer embedding worth storing? What it predicts that MCM was not trained on, beside hand-made counts.

    python training/run_probe.py --model runs/before_offers --data data/offers/prepared --report docs/results_probe.md

Histories end at the validation cutoff, where pre-training ended. The frozen embedding, counts of the history
(`HistoryFeatures`), and both, go into the same LightGBM and the same linear model with repeated cross-validation.
Targets: the profile (its values are hidden from the embedding), what is spent in the days after the cutoff (summed
from the bins of the prices), and churn, no visit in them (no event with a label besides its token type). AUC for
classes (one against the rest, the mean over classes), rank correlation for spend; a customer's prediction is the mean
over repetitions, intervals resample customers in pairs. Needs the extra `gbdt`.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from modeling_mcm import MCMFeatureExtractor, MCMModel
from modeling_mcm.data import PreparedManifest, check_vocabularies, load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.offer_collator import events_before
from modeling_mcm.evaluation.offers import resample_customers, weighted_ranking
from modeling_mcm.evaluation.offers_gbdt import HistoryFeatures
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import write_json, write_text
from modeling_mcm.training.checkpoints import check_files, read_checkpoint

from ablation_report import _interval, _markdown
from arguments import parse_options

SECONDS_PER_DAY = 86_400
WHOLE_HISTORY = 10**6
INPUTS = ("counts", "embedding", "counts and embedding")
LEARNERS = ("LightGBM", "linear")
FEWEST = 30  # customers of a class; rarer ones are left out


@dataclass
class ProbeOptions:
    """What is probed, and where it is written."""

    model: str | None = field(default=None, metadata={"help": "Pre-trained checkpoint."})
    data: str | None = field(default=None, metadata={"help": "Folder of the prepared data set of the checkpoint."})
    profile: list[str] = field(
        default_factory=list, metadata={"help": "Features of the profile to predict; all by default."}
    )
    spend: str = field(default="price", metadata={"help": "Numeric feature that is summed to spend."})
    days: int = field(default=30, metadata={"help": "Days after the cutoff."})
    min_events: int = field(default=5, metadata={"help": "Events before the cutoff that a customer needs."})
    folds: int = field(default=5, metadata={"help": "Of the cross-validation."})
    repeats: int = field(default=3, metadata={"help": "Of the cross-validation."})
    batch_size: int = field(default=32, metadata={"help": "Customers a step."})
    report: str = field(default="docs/results_probe.md", metadata={"help": "The page."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for every number."})


def read_customers(options: ProbeOptions) -> tuple[dict[str, NDArray], dict[str, NDArray], str]:
    """Inputs `(customers, F)` by name, targets `(customers,)` by name (NaN or "" where unknown), and a caption."""
    check_files(str(options.model))
    schema = PreparedManifest.load(str(options.data)).event_schema
    model = read_checkpoint(MCMModel, str(options.model)).eval()
    extractor = MCMFeatureExtractor.from_pretrained(str(options.model))
    check_vocabularies(str(options.data), extractor)
    profile = [feature["name"] for feature in extractor.features if feature.get("profile")]
    if wrong := [name for name in options.profile if name not in profile]:
        raise SystemExit(f"No features {wrong} in the profile; it has {', '.join(profile) or 'none'}.")
    if options.spend not in extractor.bins:
        raise SystemExit(
            f"No numeric feature {options.spend!r} to sum; there are {', '.join(extractor.bins) or 'none'}."
        )
    cutoff = int(np.datetime64(schema.cutoff("validation"), "s").astype(np.int64))
    rows = load_prepared(str(options.data))
    kept = np.flatnonzero(np.asarray(rows["validation_end"]) >= options.min_events)
    customers = PreparedRows(rows, kept)
    edges = np.array(extractor.bins[options.spend])
    middles = np.interp(np.arange(len(edges) + 1), np.arange(len(edges)) + 0.5, edges)
    token = f"task_{extractor.token_type_feature}"
    embeddings, counts, spend, churn = [], [], [], []
    labels: dict[str, list[str]] = {name: [] for name in options.profile or profile}
    for start in tqdm(range(0, len(customers), options.batch_size), desc="Customers", unit="batch"):
        batch = customers.__getitems__(list(range(start, min(start + options.batch_size, len(customers)))))
        for row in batch:
            after = (row["times"] >= cutoff) & (row["times"] < cutoff + options.days * SECONDS_PER_DAY)
            bins = row[f"feature_{options.spend}"][after]
            spend.append(middles[bins[bins >= 2] - 2].sum())
            visited = np.any([row[name] > 0 for name in row if name.startswith("task_") and name != token], axis=0)
            churn.append(not (after & visited).any())
            for name, found in labels.items():
                values = ["", "", *extractor.vocabularies[name]] if name in extractor.vocabularies else None
                found.append(str(row[f"profile_{name}"]) if values is None else values[row[f"profile_{name}"]])
        histories = [events_before(row, cutoff) for row in batch]
        blank = [row | {f"profile_{name}": 0 for name in profile} for row in histories]
        readable = [extractor.readable(row, model.config.input_features) for row in blank]
        inputs = extractor.pad(readable, now=[cutoff] * len(readable))
        with torch.inference_mode():
            embeddings.append(model(**inputs).pooler_output.numpy())
        whole = {name: value.numpy() for name, value in extractor.pad(blank, WHOLE_HISTORY).items()}
        days = np.array([(cutoff - row["times"].max()) / SECONDS_PER_DAY for row in histories])
        counts.append(np.stack(list(HistoryFeatures(extractor, whole, days).make().values()), axis=1))
    counted = np.nan_to_num(np.concatenate(counts), nan=-1.0)
    embedded = np.concatenate(embeddings)
    inputs_by_name = dict(zip(INPUTS, (counted, embedded, np.concatenate([counted, embedded], axis=1)), strict=True))
    targets: dict[str, NDArray] = {name: np.array(found) for name, found in labels.items()}
    targets |= {f"spend in {options.days} days": np.array(spend), f"churn in {options.days} days": np.array(churn)}
    caption = (
        f"{len(kept):,} customers of {schema.name} with at least {options.min_events} events before "
        f"{schema.cutoff('validation'):%Y-%m-%d}; {counted.shape[1]} counts, {embedded.shape[1]} numbers of "
        "embedding."
    )
    return inputs_by_name, targets, caption


def out_of_fold(
    features: NDArray, target: NDArray, learner: str, classes: NDArray | None, options: ProbeOptions
) -> NDArray[np.float64]:
    """Predictions of customers by models that have not seen them, the mean over repetitions, `(customers, C)`."""
    from scipy.stats import rankdata
    from sklearn.model_selection import KFold, StratifiedKFold

    total = np.zeros((len(target), 1 if classes is None else len(classes)))
    for repeat in range(options.repeats):
        splitter = (KFold if classes is None else StratifiedKFold)(options.folds, shuffle=True, random_state=repeat)
        for train, test in splitter.split(features, target):
            if classes is None:
                values = rankdata(target[train]) / len(train)  # spend is skewed, and ranks are what is measured
                predicted = (
                    _learner(learner, "regression").fit(features[train], values).predict(features[test])[:, None]
                )
            else:
                predicted = (
                    _learner(learner, "classes").fit(features[train], target[train]).predict_proba(features[test])
                )
            total[test] += predicted
    return total / options.repeats


def _learner(name: str, kind: str) -> Any:
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
    chosen = lightgbm.LGBMRegressor if kind == "regression" else lightgbm.LGBMClassifier
    return chosen(
        n_estimators=100, learning_rate=0.05, num_leaves=8, min_child_samples=20, colsample_bytree=0.3, subsample=0.8,
        subsample_freq=1, reg_lambda=1.0, random_state=0, n_jobs=1, verbose=-1,
    )  # fmt: skip


def signed_log(features: NDArray) -> NDArray:
    """Counts have long tails, which a linear model can't bend."""
    return np.sign(features) * np.log1p(np.abs(features))


def metric(target: NDArray, predicted: NDArray, classes: NDArray | None, weights: NDArray) -> NDArray[np.float64]:
    """AUC, the mean over classes (the second of two), or rank correlation; of shape `(resamples,)`."""
    if classes is None:
        from scipy.stats import rankdata

        first, second = rankdata(target), rankdata(predicted[:, 0])
        shares = weights / weights.sum(1, keepdims=True)
        mean = [shares @ ranks for ranks in (first, second)]
        covariance = shares @ (first * second) - mean[0] * mean[1]
        spreads = [shares @ ranks**2 - of**2 for ranks, of in zip((first, second), mean, strict=True)]
        return covariance / np.sqrt(spreads[0] * spreads[1])
    asked = [1] if len(classes) == 2 else range(len(classes))
    found = [weighted_ranking(target == classes[c], predicted[:, c], weights)["roc_auc"] for c in asked]
    return np.mean(found, axis=0)


def probe(options: ProbeOptions) -> dict[str, Any]:
    """Every number of the page."""
    inputs, targets, caption = read_customers(options)
    results: dict[str, Any] = {}
    for name, target in targets.items():
        classes = None if target.dtype.kind == "f" else np.unique(target)
        kept = np.arange(len(target))
        if classes is not None:
            sizes = {value: (target == value).sum() for value in classes}
            classes = np.array([value for value, size in sizes.items() if size >= FEWEST and not _unknown(value)])
            kept = np.flatnonzero(np.isin(target, classes))
            if len(classes) < 2:
                continue  # nothing to tell apart
        weights = resample_customers(np.arange(len(kept)).astype(str), 500)
        of_target: dict[str, Any] = {"customers": len(kept), "classes": 0 if classes is None else len(classes)}
        for learner in LEARNERS:
            values = {}
            for kind in tqdm(INPUTS, desc=f"{name}, {learner}", unit="fit"):
                predicted = out_of_fold(inputs[kind][kept], target[kept], learner, classes, options)
                values[kind] = metric(target[kept], predicted, classes, weights)
            differences = {f"{kind} over counts": values[kind] - values["counts"] for kind in INPUTS[1:]}
            of_target[learner] = {key: _summary(each) for key, each in (values | differences).items()}
        results[name] = of_target
    return {"command": shlex.join(["python", "training/run_probe.py", *sys.argv[1:]]), "caption": caption} | {
        "targets": results
    }


def _unknown(value: Any) -> bool:
    return isinstance(value, str) and value == ""


def _summary(values: NDArray) -> dict[str, float]:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def write_page(results: dict[str, Any], path: Path) -> None:
    """Writes the page from what `probe` found."""
    lines = ["# What the customer embedding predicts", "", f"Written by `{results['command']}`.", ""]
    lines += [results["caption"], ""]
    lines += [
        "AUC for classes, rank correlation for spend; 95% intervals resample customers. Profiles are hidden from the "
        "embedding.",
        "",
    ]
    for learner in LEARNERS:
        rows = []
        for name, found in results["targets"].items():
            of_learner = found[learner]
            cells = [_interval(of_learner[kind]) for kind in INPUTS]
            gain = of_learner["counts and embedding over counts"]
            cells.append(f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
            size = f"{found['customers']:,}" + (f", {found['classes']} classes" if found["classes"] else "")
            rows.append([name, size, *cells])
        lines += [f"## {learner}", ""]
        lines += _markdown(["target", "customers", *INPUTS, "embedding beside counts"], rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Reads the options, probes, and writes the page."""
    (options,) = parse_options(ProbeOptions, description=__doc__)
    if options.model is None or options.data is None:
        raise SystemExit("--model and --data are needed: see --help.")
    try:
        with needs("gbdt"):  # before minutes of embedding
            import lightgbm  # noqa: F401
            import scipy  # noqa: F401
            import sklearn  # noqa: F401
        results = probe(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_probe: {error}")
    write_page(results, Path(options.report))
    if options.output_file:
        write_json(options.output_file, results)


if __name__ == "__main__":
    main()
