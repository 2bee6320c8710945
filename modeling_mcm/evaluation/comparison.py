# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines by name, their metrics on evaluation cases, and where a model is not better than they are.

    results = counting_baselines(rows, cases, {"product_type": number_of_labels}, STRONG_BASELINES)
    results["MCM"] = model_values(model, extractor, rows, cases, ["product_type"])  # model.py
    warnings = baseline_warnings(collect_values(results, "next_visit_ndcg@10"))

The baseline `lightgbm` needs the extra `gbdt`.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from modeling_mcm.data.cases import select_rows
from modeling_mcm.evaluation.baselines import Baseline, MostPopular, NearestCustomers, Transitions, VisitFrequency
from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.gbdt import LightGBMRanker, NothingToLearnError, expected_seconds
from modeling_mcm.evaluation.metrics import Interval, paired_difference
from modeling_mcm.evaluation.ranking import TargetRanks

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, NDArray]]]  # by method, task and metric: one value for each case

BASELINES: dict[str, type[Baseline]] = {
    "most_popular": MostPopular,
    "visit_frequency": VisitFrequency,
    "nearest_customers": NearestCustomers,
    "transitions": Transitions,
    "lightgbm": LightGBMRanker,
}
NEEDS = {"lightgbm": "gbdt"}  # baselines that need a package of their name, and the extra that installs it
FIRST_BASELINES = ("most_popular",)  # a model that learns is soon better than these
STRONG_BASELINES = ("visit_frequency", "nearest_customers", "transitions")  # the best that take some seconds
OURS = "MCM"
MOST_SECONDS = 300.0  # that LightGBM may take as a default baseline


def not_installed(baselines: Sequence[str]) -> list[str]:
    """Selects the baselines whose package is not installed."""
    return [name for name in baselines if name in NEEDS and importlib.util.find_spec(name) is None]


def default_baselines(cases: EvaluationCases, label_sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Chooses the strong baselines that make sense for some cases and do not take long. Returns their names, and a
    sentence for each that is left out. `label_sizes` is the number of labels of each task."""
    names, left_out = [*FIRST_BASELINES, *STRONG_BASELINES], []
    if cases.seen.keys() >= label_sizes.keys():
        names.remove("visit_frequency")
        left_out.append("visit_frequency is left out: it counts what the customer has seen, which is not ranked.")
    seconds = sum(expected_seconds(len(cases), size) for size in label_sizes.values())
    if not_installed(["lightgbm"]):
        left_out.append("lightgbm is left out, for it is not installed: `pip install modeling-mcm[gbdt]` adds it.")
    elif seconds > MOST_SECONDS:
        left_out.append(
            f"lightgbm is left out: with {max(label_sizes.values()):,} labels and {len(cases):,} cases it would take "
            f"about {seconds / 60:.0f} minutes, more than {MOST_SECONDS / 60:.0f}. Ask for it by name: "
            f"`--baselines {' '.join([*names, 'lightgbm'])}`."
        )
    else:
        names.append("lightgbm")
    return names, left_out


def evaluate_baseline(
    baseline: Baseline,
    rows: Any,
    cases: EvaluationCases,
    ks: Sequence[int] = (10,),
    lists: dict[str, NDArray[np.int64]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Computes the metrics of a fitted baseline, as [`TargetRanks.metrics`] does, each of shape `(cases,)`. Only one
    batch of scores is in memory at a time. `lists` gets the lists of the longest `ks` under the task's name."""
    ranks = TargetRanks(cases, baseline.task, max(ks))
    start = 0
    for scores in baseline.score_batches(select_rows(rows, cases.rows), cases.cutoff):
        ranks.add(np.arange(start, start + len(scores)), torch.from_numpy(scores))
        start += len(scores)
    if lists is not None:
        lists[baseline.task] = ranks.lists
    return ranks.metrics(ks)


def counting_baselines(
    rows: Any,
    cases: EvaluationCases,
    label_sizes: Mapping[str, int],
    names: Sequence[str],
    ks: Sequence[int] = (10,),
    lists: dict[str, dict[str, NDArray[np.int64]]] | None = None,
) -> Results:
    """Fits baselines on the training period and evaluates them: by baseline, task and metric of
    [`TargetRanks.metrics`] the values, of shape `(cases,)`.

    If a baseline has nothing to learn from in a task, as LightGBM if no customer has two visits, the task is left out
    with a warning. `label_sizes` include the ids for missing and unknown. `lists` gets by baseline and task the lists
    of the longest `ks`, of shape `(cases, length)`. Raises `ValueError` if a name is not in `BASELINES` or the rows
    lack a task, and `ImportError` if a baseline's package is not installed.
    """
    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"No baselines {unknown}; choose from {', '.join(BASELINES)}.")
    results: Results = {}
    for name, task in tqdm([(name, task) for name in names for task in label_sizes], unit="task"):
        try:
            baseline = BASELINES[name]().fit(rows, task, label_sizes[task])
        except NothingToLearnError as error:
            logger.warning("%s is left out of task %r: %s", name, task, error)
            continue
        own = None if lists is None else lists.setdefault(name, {})
        results.setdefault(name, {})[task] = evaluate_baseline(baseline, rows, cases, ks, own)
    return results


def collect_values(
    results: Mapping[str, Mapping[str, Mapping[str, NDArray]]], metric: str
) -> dict[str, dict[str, NDArray]]:
    """Selects the values of one metric, by method and task, from the results of an evaluation."""
    return {
        method: {task: metrics[metric] for task, metrics in by_task.items() if metric in metrics}
        for method, by_task in results.items()
    }


def write_title(metric: str) -> str:
    """Writes the name of a metric in words: `next_visit_ndcg@10` is "next-visit NDCG@10"."""
    target, _, name = metric.rpartition("_")
    return f"{target.replace('_', '-')} {name.upper()}".strip()


def baseline_warnings(values: Mapping[str, Mapping[str, NDArray]], metric: str = "next_visit_ndcg@10") -> list[str]:
    """Writes a sentence for each baseline that MCM is not better than: on which tasks, and by how much.

    Means and their 95% bootstrap intervals are of paired differences, over the same customers. MCM is *under* a
    baseline if the whole interval of the difference is below 0. It is *level* with the baseline if its mean is lower
    and the interval contains 0. Tasks in which no customer has a value of both are left out.

    Args:
        values (`dict[str, dict[str, numpy.ndarray]]`): One metric by method and task, in arrays of shape `(cases,)`,
            from [`collect_values`]. All methods have the same cases in the same order; NaN means a case without a
            target.

    Raises:
        ValueError: If MCM is not among the methods, or arrays have different numbers of cases.
    """
    if OURS not in values:
        raise ValueError(f"Found values of {', '.join(values) or 'no method'}; expected {OURS!r} among them.")
    warnings = []
    for baseline, by_task in values.items():
        under: list[str] = []
        level: list[str] = []
        for task, theirs in by_task.items():
            ours = values[OURS].get(task)
            if baseline == OURS or ours is None:
                continue
            if ours.shape == theirs.shape and np.isnan(ours + theirs).all():
                continue
            difference = paired_difference(ours, theirs)
            if difference.mean < 0:
                phrase = f"{task} by {-difference.mean:.4f} {_interval(difference)}"
                (under if difference.high < 0 else level).append(phrase)
        if under:
            also = f" (level, within noise, on {' and '.join(level)})" if level else ""
            summary = f"{OURS} is under {baseline}, beyond noise, on {' and '.join(under)}{also}"
        elif level:
            summary = f"{OURS} is level with {baseline}: lower within noise on {' and '.join(level)}"
        else:
            continue
        warnings.append(f"{summary}. Measured: {write_title(metric)}.")
    return warnings


def _interval(difference: Interval) -> str:
    return f"[{-difference.high:.4f}, {-difference.low:.4f}] ({difference.customers:,} customers)"
