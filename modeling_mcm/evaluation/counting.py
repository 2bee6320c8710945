# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines by name, and their values on evaluation cases: computed once, then read from a cache.

    cache = BaselineCache("data/prepared/baselines", sha256_of("data/prepared/manifest.json"))
    values = counting_baselines(rows, cases, {"product_type": number_of_labels}, FIRST_BASELINES, ks=(10,),
    cache=cache) warnings = baseline_warnings(values_of(values | {"MCM": of_the_model}, "next_visit_ndcg@10"))   #
    comparison.py

Needs SciPy, the extra `evaluation`, when something is computed; `lightgbm` needs the extra `gbdt`.
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

Results = dict[str, dict[str, dict[str, NDArray]]]  # method -> task -> metric -> one value a case

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
NEEDS = {"lightgbm": "gbdt"}  # baselines by another package, of the same name -> the extra that installs it
FIRST_BASELINES = ("most_popular",)  # what a model passes early or never
STRONG_BASELINES = ("visit_frequency", "nearest_households", "transitions")  # the best by counting, in some seconds
MOST_SECONDS = 300.0  # of LightGBM, where nobody asked for it by name


def not_installed(baselines: Sequence[str]) -> list[str]:
    """Those baselines whose package is missing."""
    return [name for name in baselines if name in NEEDS and importlib.util.find_spec(name) is None]


def default_baselines(cases: EvaluationCases, label_sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The baselines that are worth their time on these cases, and a sentence for each one that is left out.

    Args:
        cases: that are evaluated.
        label_sizes: task -> number of labels V.
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
    progress: bool = True,
) -> Results:
    """Fits each baseline on the training period, or reads its values from the cache; nothing after it is counted.

    Args:
        rows: the prepared rows in which the cases were found, a `datasets.Dataset` or a `pyarrow.Table`.
        cases: from `find_cases`, and `unmet_only` where what was met is not ranked.
        label_sizes: task -> number of labels V, with pad and unknown.
        names: of `BASELINES`.
        ks: lengths of the list.
        cache: where values are kept; nowhere by default.
        progress: whether a bar is shown.

    Returns:
        Baseline -> task -> metric -> values of shape `(cases,)`, as `TargetRanks.metrics`. A baseline that has
        nothing to learn from in a task (LightGBM, where no customer has two visits) lacks it, with a warning.

    Raises:
        ValueError: for a name that is none of `BASELINES`, or as `Baseline.fit`.
        ImportError: if a baseline's package is not installed.
    """
    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"No baselines {unknown}; choose from {', '.join(BASELINES)}.")
    results: Results = {name: {} for name in names}
    digests = {task: digest_of_cases(cases, task) for task in label_sizes} if cache else {}
    for name, task in tqdm(
        [(name, task) for name in names for task in label_sizes], unit="task", disable=not progress
    ):
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
