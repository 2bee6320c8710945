# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines by name, and their metrics on evaluation cases, which are computed once and then read from a cache.

    cache = BaselineCache("data/prepared/baselines", file_digest("data/prepared/manifest.json"))
    values = counting_baselines(rows, cases, {"product_type": number_of_labels}, FIRST_BASELINES, cache=cache)
    warnings = baseline_warnings(values_of(values | {"MCM": model_results}, "next_visit_ndcg@10"))  # comparison.py

To compute metrics, SciPy is needed (the extra `evaluation`), and for `lightgbm` the extra `gbdt`.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from modeling_mcm.evaluation.baseline_cache import BaselineCache, digest_of_cases
from modeling_mcm.evaluation.baselines import (
    Baseline,
    MostPopular,
    NearestHouseholds,
    PersonalFrequency,
    RecencyWeightedFrequency,
    RecentPopular,
    VisitFrequency,
    evaluate_baseline,
)
from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.gbdt import LightGBMRanker, NothingToLearnError, expected_seconds
from modeling_mcm.evaluation.transitions import Markov, Transitions

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, NDArray]]]  # by method, task and metric: one value for each case

BASELINES: dict[str, type[Baseline]] = {
    "most_popular": MostPopular,
    "recent_popular": RecentPopular,
    "markov": Markov,
    "personal_frequency": PersonalFrequency,
    "recency_weighted_frequency": RecencyWeightedFrequency,
    "visit_frequency": VisitFrequency,
    "nearest_households": NearestHouseholds,
    "transitions": Transitions,
    "lightgbm": LightGBMRanker,
}
NEEDS = {"lightgbm": "gbdt"}  # baselines that need a package of their name, and the extra that installs it
FIRST_BASELINES = ("most_popular",)  # a model that learns is soon better than these
STRONG_BASELINES = ("visit_frequency", "nearest_households", "transitions")  # the best that take some seconds
MOST_SECONDS = 300.0  # that LightGBM may take as a default baseline


def not_installed(baselines: Sequence[str]) -> list[str]:
    """Selects the baselines whose package is not installed.

    Args:
        baselines (sequence of `str`): Names of baselines.
    """
    return [name for name in baselines if name in NEEDS and importlib.util.find_spec(name) is None]


def default_baselines(cases: EvaluationCases, label_sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Chooses the strong baselines that make sense for some cases and do not take long.

    Args:
        cases (`EvaluationCases`): The cases to evaluate.
        label_sizes (`dict[str, int]`): Number of labels of each task.

    Returns:
        `tuple[list[str], list[str]]`: Names of the baselines, and a sentence for each baseline that is left out.
    """
    names, left_out = [*FIRST_BASELINES, *STRONG_BASELINES], []
    if cases.met is not None:
        names.remove("visit_frequency")
        left_out.append("visit_frequency is left out: it counts what the customer met, which is not ranked.")
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


def counting_baselines(
    rows: Any,
    cases: EvaluationCases,
    label_sizes: Mapping[str, int],
    names: Sequence[str],
    ks: Sequence[int] = (10,),
    cache: BaselineCache | None = None,
) -> Results:
    """Fits baselines on the training period and evaluates them, or reads their metrics from the cache.

    Args:
        rows (`datasets.Dataset` or `pyarrow.Table`): The prepared rows that the cases are of.
        cases (`EvaluationCases`): The cases, from [`find_cases`] or [`unmet_only`].
        label_sizes (`dict[str, int]`): Number of labels of each task, with the ids for missing and unknown.
        names (sequence of `str`): Names of the baselines, of `BASELINES`.
        ks (sequence of `int`): Lengths of the ranked list.
        cache (`BaselineCache`, *optional*): Where metrics are stored. By default they are not.

    Returns:
        `dict`: By baseline, task and metric of [`TargetRanks.metrics`] the values, of shape `(cases,)`. If a baseline
        has nothing to learn from in a task, as LightGBM if no customer has two visits, the task is left out with a
        warning.

    Raises:
        ValueError: If a name is not in `BASELINES`, or the rows lack a task.
        ImportError: If a baseline's package is not installed.
    """
    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"No baselines {unknown}; choose from {', '.join(BASELINES)}.")
    results: Results = {name: {} for name in names}
    digests = {task: digest_of_cases(cases, task) for task in label_sizes} if cache else {}
    for name, task in tqdm([(name, task) for name in names for task in label_sizes], unit="task"):
        baseline = BASELINES[name]()
        key = {
            "baseline": baseline.identity(),
            "task": task,
            "labels": label_sizes[task],
            "ks": list(ks),
            "cutoff": cases.cutoff,
            "horizon_days": cases.horizon_days,
            "unmet_only": cases.met is not None,
            "cases": digests.get(task),
            "customers": len(rows),
        }
        values = cache.read(key, len(cases)) if cache else None
        if values is None:
            try:
                values = evaluate_baseline(baseline.fit(rows, task, label_sizes[task]), rows, cases, ks)
            except NothingToLearnError as error:
                logger.warning("%s is left out of task %r: %s", name, task, error)
                continue
            if cache:
                cache.write(key, values)
        results[name][task] = values
    return {name: by_task for name, by_task in results.items() if by_task}
