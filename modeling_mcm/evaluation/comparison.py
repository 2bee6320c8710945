# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines by name, their metrics on evaluation cases, and where a model is not better than they are.

    ranks = counting_baselines(rows, cases, {"product_type": number_of_labels}, COUNTING)
    ranks["MCM"] = rank_targets(model, extractor, rows, cases, ["product_type"])
    warnings = baseline_warnings(measure(ranks))

The baseline `lightgbm` needs the extra `gbdt`.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length, map_on_cores
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.scorer_mcm import HORIZON_DAYS

from .baselines import MostPopular, NearestCustomers, Transitions, VisitFrequency
from .cases import EvaluationCases, comparison_cases
from .gbdt import LightGBMRanker
from .metrics import Ranks, TargetRanks, measure, paired_difference

BASELINES = {
    "most_popular": MostPopular,
    "visit_frequency": VisitFrequency,
    "nearest_customers": NearestCustomers,
    "transitions": Transitions,
    "lightgbm": LightGBMRanker,
}
COUNTING = [*BASELINES][:-1]  # those that take some seconds
OURS = "MCM"
MOST_SECONDS = 300.0  # that LightGBM may take as a default baseline
# By measurements on two data sets: of one core of 2024, to fit the most cases; and of a label of a case
SECONDS_TO_FIT, SECONDS_A_SCORE = 40.0, 4e-8


def default_baselines(cases: EvaluationCases, label_sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Chooses the strong baselines that make sense for some cases and do not take long. Returns their names, and a
    sentence for each that is left out. `label_sizes` is the number of labels of each task."""
    names, left_out = [*COUNTING], []
    seconds = sum(SECONDS_TO_FIT + SECONDS_A_SCORE * len(cases) * size for size in label_sizes.values())
    if importlib.util.find_spec("lightgbm") is None:
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
    rows: Dataset, cases: EvaluationCases, label_sizes: Mapping[str, int], names: Sequence[str], k: int = 10
) -> Ranks:
    """Fits baselines on the training period, and ranks the targets of cases by them: by baseline and task. Only one
    batch of scores is in memory at a time.

    `label_sizes` include the ids for missing and unknown; `k` is the length of the lists. Raises
    `ImportError` if a baseline's package is not installed.
    """
    histories, jobs = rows.select(cases.rows), [(name, task) for name in names for task in label_sizes]

    def rank(job: tuple[str, str]) -> TargetRanks:
        name, task = job
        baseline = BASELINES[name]().fit(rows, task, label_sizes[task])
        ranks = TargetRanks(cases, task, k)
        for batch, scores in baseline.score_batches(histories, cases.cutoff):
            ranks.add(batch, torch.from_numpy(scores))
        return ranks

    results: Ranks = {}
    for (name, task), ranks in zip(jobs, tqdm(map_on_cores(rank, jobs), total=len(jobs), unit="task"), strict=True):
        results.setdefault(name, {})[task] = ranks
    return results


def read_cases(
    config: MCMConfig, extractor: MCMFeatureExtractor, rows: Dataset, cases: EvaluationCases, batch_size: int
) -> Iterator[tuple[NDArray, dict[str, torch.Tensor]]]:
    """Indices of cases of similar length, and a model's inputs with `labels`."""
    collator = MCMCollator(extractor, config, "evaluate", cutoff=cases.cutoff, as_of=cases.as_of)
    prepared = PreparedRows(rows, cases.rows)
    for batch in tqdm(batches_by_length(cases.history_end, batch_size), desc="MCM", unit="batch"):
        yield batch, collator(prepared.__getitems__(batch.tolist()))


def rank_targets(
    model: MCMForMultiTaskRecommendation,
    extractor: MCMFeatureExtractor,
    rows: Dataset,
    cases: EvaluationCases,
    tasks: Sequence[str],
    k: int = 10,
    batch_size: int = 64,
) -> dict[str, TargetRanks]:
    """Ranks the targets of evaluation cases by task. A model ranks what comes within any horizon by its scores of 30
    days. `k` is the length of the lists. The model is in evaluation mode. Cases of similar length share a batch."""
    predictor, fitted = Predictor(model, extractor), model.scorer is not None and bool(model.scorer.fitted)
    horizon = HORIZON_DAYS if cases.horizon_days and fitted else None
    ranks = {task: TargetRanks(cases, task, k) for task in tasks}

    def rank(item: tuple[NDArray, dict[str, torch.Tensor]]) -> None:
        batch, inputs = item
        inputs.pop("labels")
        logits = predictor.run(inputs, horizon_days=horizon, tasks=tasks, parts=()).logits
        for task in tasks:
            ranks[task].add(batch, logits[task])

    for _ in map_on_cores(rank, read_cases(model.config, extractor, rows, cases, batch_size), model.device):
        pass
    return ranks


def compare_with_counting(
    model: MCMForMultiTaskRecommendation, extractor: MCMFeatureExtractor, data: PreparedData, cutoff: str
) -> pd.DataFrame:
    """Evaluates a model and the counting baselines on the cases of a cutoff."""
    cases = comparison_cases(data, cutoff)
    sizes = {task: size for task, size in model.config.label_sizes.items() if task in cases.targets}
    ranks = counting_baselines(data.rows, cases, sizes, COUNTING)
    return measure(ranks | {OURS: rank_targets(model, extractor, data.rows, cases, list(sizes))})


def mean_values(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of one metric over the cases with a target: a row for each method, and a column for each task."""
    return results.xs(metric, axis=1, level=2).mean().unstack(sort=False)


def write_title(metric: str) -> str:
    """Writes the name of a metric in words: `next_visit_ndcg@10` is "next-visit NDCG@10"."""
    target, _, name = metric.rpartition("_")
    return f"{target.replace('_', '-')} {name.upper()}".strip()


def baseline_warnings(results: pd.DataFrame, metric: str = "next_visit_ndcg@10") -> list[str]:
    """Writes a sentence for each baseline that MCM is not better than by a metric: on which tasks, and by how much.

    Means and their 95% bootstrap intervals are of paired differences, over the same customers. MCM is *under* a
    baseline if the whole interval of the difference is below 0. It is *level* with the baseline if its mean is lower
    and the interval contains 0. Tasks in which no customer has a value of both are left out.
    """
    values, warnings = results.xs(metric, axis=1, level=2), []
    for baseline in values.columns.unique(0):
        under: list[str] = []
        level: list[str] = []
        for task, theirs in values[baseline].items():
            ours = values.get((OURS, task))
            if baseline == OURS or ours is None or (ours + theirs).isna().all():
                continue
            difference = paired_difference(theirs, ours)
            if difference.mean > 0:
                interval = f"[{difference.low:.4f}, {difference.high:.4f}] ({difference.customers:,} customers)"
                (under if difference.low > 0 else level).append(f"{task} by {difference.mean:.4f} {interval}")
        if under:
            also = f" (level, within noise, on {' and '.join(level)})" if level else ""
            summary = f"{OURS} is under {baseline}, beyond noise, on {' and '.join(under)}{also}"
        elif level:
            summary = f"{OURS} is level with {baseline}: lower within noise on {' and '.join(level)}"
        else:
            continue
        warnings.append(f"{summary}. Measured: {write_title(metric)}.")
    return warnings
