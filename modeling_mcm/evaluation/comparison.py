# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The baselines by name, their metrics on evaluation cases, and where a model is not better than they are; results as
tables for a terminal, for Markdown pages and in Parquet, also by the length of the history.

    ranks = counting_baselines(rows, cases, {"product_type": number_of_labels}, COUNTING)
    ranks["MCM"] = rank_targets(model, extractor, rows, cases, ["product_type"])
    warnings = baseline_warnings(measure(ranks))

The baseline `lightgbm` needs the extra `gbdt`.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length, map_on_cores
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import atomic_write, write_text
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.scorer_mcm import HORIZON_DAYS

from .baselines import LightGBMRanker, MostPopular, NearestCustomers, Transitions, VisitFrequency
from .cases import EvaluationCases, comparison_cases, read_history, seen_labels
from .metrics import Ranks, TargetRanks, bootstrap_interval, list_properties, measure, paired_difference

BASELINES = {
    "most_popular": MostPopular,
    "visit_frequency": VisitFrequency,
    "nearest_customers": NearestCustomers,
    "transitions": Transitions,
    "lightgbm": LightGBMRanker,
}
WORTH_A_FIT = 0.02  # share of the NDCG of popularity by which a ranker that has learned something is above it
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
    """Evaluates a model and the counting baselines on the cases of a cutoff. The attributes `attrs` of the table say
    how many `cases` there were, and the `protocol`."""
    cases = comparison_cases(data, cutoff)
    sizes = {task: size for task, size in model.config.label_sizes.items() if task in cases.targets}
    ranks = counting_baselines(data.rows, cases, sizes, COUNTING)
    results = measure(ranks | {OURS: rank_targets(model, extractor, data.rows, cases, list(sizes))})
    results.attrs = {"cases": len(cases), "protocol": write_protocol(data, cases, sizes)}
    return results


def mean_values(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of one metric over the cases with a target: a row for each method, and a column for each task."""
    return results.xs(metric, axis=1, level=2).mean().unstack(sort=False)


def write_title(metric: str) -> str:
    """Writes the name of a metric in words: `next_visit_ndcg@10` is "next-visit NDCG@10"."""
    target, _, name = metric.rpartition("_")
    return f"{target.replace('_', '-')} {name.upper()}".strip()


def write_protocol(data: PreparedData, cases: EvaluationCases, label_sizes: Mapping[str, int]) -> str:
    """Writes how cases were split, how many labels are ranked, which are not, and what the targets are if they are not
    those of the next visit."""
    split = (
        "Each customer's last visit but one is asked" if cases.cutoff == "validation" else "Each last visit is asked"
    )
    if not data.schema.leaves_one_out:
        split = f"Split at {data.schema.cutoff(cases.cutoff):%Y-%m-%d %H:%M}"
    number = ", ".join(f"{size - FIRST_LABEL:,} of {task}" for task, size in label_sizes.items())
    words = f"{split}; all labels are ranked ({number})"
    if filtered := [task for task in label_sizes if task in cases.seen]:
        where = "" if len(filtered) == len(label_sizes) else f" in {' and '.join(filtered)}"
        words += f", but{where} no label that the customer has seen, which is no target either"
    else:
        words += ", also those that the customer has seen"
    return words + (f"; the targets are those of {cases.horizon_days:g} days." if cases.horizon_days else ".")


def baseline_warnings(results: pd.DataFrame, metric: str = "next_visit_ndcg@10") -> list[str]:
    """Writes a sentence for each baseline that MCM is not better than by a metric: on which tasks, and by how much.

    Another sentence names the tasks in which LightGBM is not above popularity: it has not learned them.

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
            if difference.mean >= 0.00005:  # less is shown as 0.0000
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
    means = values.mean().unstack()
    if {"lightgbm", "most_popular"} <= {*means.index}:
        failed = means.columns[means.loc["lightgbm"] <= means.loc["most_popular"] * (1 + WORTH_A_FIT)]
        if len(failed):
            warnings.append(
                f"lightgbm is not above most_popular on {' and '.join(failed)}, so it has learned nothing there: that "
                "MCM is better than it says nothing. It needs more visits, or fewer labels."
            )
    return warnings


VALUES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("method", "task", "metric", "customer_id")] + [("value", pa.float64())]
)
Summary = dict[str, dict[str, dict[str, dict[str, float]]]]  # by method, task, metric and field of `Interval`
HISTORY_GROUPS = {"1-2": 2, "3-5": 5, "6-20": 20, "more": np.inf}  # most visits before the cutoff


def metric_table(results: Summary, tasks: Sequence[str], metric: str) -> list[list[str]]:
    """Makes a table of text from [`summary`] with a row for each method, and for each task the mean of a metric and
    half of its interval. `metric` is a name with the target, such as `next_visit_ndcg@10`; for it, the metric of the
    next event stands in brackets. A method without values of a task has "-"."""
    table, event_metric = [["method", *tasks]], metric.replace("next_visit", "next_event")
    for method, by_task in results.items():
        cells = [method]
        for task in tasks:
            values = by_task.get(task, {})
            words = f" ({values[event_metric]['mean']:.3f})" if values and event_metric != metric else ""
            cells.append(with_half_interval(values[metric]) + words if values else "-")
        table.append(cells)
    return table


def by_history(results: pd.DataFrame, cases: EvaluationCases, metric: str) -> dict[str, dict]:
    """Computes means and intervals by the number of visits before the cutoff: for each group that has one, the number
    of `cases`, and `results`, as [`summary`] gives them. `metric` is a name with the target, such as
    `next_visit_ndcg@10`."""
    group = pd.cut(cases.history_visits, [-1, *HISTORY_GROUPS.values()], labels=[*HISTORY_GROUPS])
    values = results.xs(metric, axis=1, level=2, drop_level=False).groupby(group, observed=True)
    return {name: {"cases": len(group_values), "results": summary(group_values)} for name, group_values in values}


def history_table(groups: Mapping[str, dict], tasks: Sequence[str], metric: str) -> list[list[str]]:
    """Rows of text from `by_history`: a task and group, its customers with a target, and each method's mean."""
    methods = list(next(iter(groups.values()))["results"])
    table = [["task", "visits before", "customers", *methods]]
    for task in tasks:
        for group, part in groups.items():
            intervals = [part["results"][name].get(task, {}).get(metric) for name in methods]
            customers = max((interval["customers"] for interval in intervals if interval), default=0)
            if customers:
                cells = [with_half_interval(interval) if interval else "-" for interval in intervals]
                table.append([task, group, f"{customers:,}", *cells])
    return table


def list_summary(ranks: Ranks, rows: Dataset, cases: EvaluationCases, label_sizes: dict[str, int]) -> dict[str, dict]:
    """Computes [`list_properties`] by method and task of the lists of ranks. `rows` are all prepared rows, whose
    training period says how popular a label is."""
    properties: dict[str, dict] = {method: {} for method in ranks}
    for task, size in label_sizes.items():
        popularity = np.bincount(read_history(rows, task).label, minlength=size)
        seen = seen_labels(rows.select(cases.rows), cases.cutoff, task)
        for method, by_task in ranks.items():
            if task in by_task:
                properties[method][task] = list_properties(by_task[task].lists, popularity, seen)
    return properties


def list_table(properties: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Rows of text from [`list_summary`]: a method and task, and its numbers."""
    table = [["method", "task", "labels in any list", "of the top 1%", "novelty, bits", "repeats"]]
    formats = {"coverage": ".1%", "popular": ".1%", "novelty": ".2f", "repeats": ".1%"}
    for method, by_task in properties.items():
        for task, values in by_task.items():
            table.append([method, task, *(format(values[name], kind) for name, kind in formats.items())])
    return table


def summary(results: pd.DataFrame) -> Summary:
    """Computes the mean, interval and number of customers by method, task and metric, as values for JSON. Metrics that
    no case has a value of are left out."""
    summaries: Summary = {}
    for (method, task, metric), values in results.items():
        task_summaries = summaries.setdefault(method, {}).setdefault(task, {})
        if values.notna().any():
            task_summaries[metric] = bootstrap_interval(values)._asdict()
    return summaries


def write_values(path: Path, customer_ids: Sequence[str], results: pd.DataFrame) -> None:
    """Writes a Parquet file with one row for each method, task, metric and customer, whole or not at all. `value` is
    NaN for a customer without a target in the task. `customer_ids` are in the order of the cases."""
    with atomic_write(path) as partial, pq.ParquetWriter(partial, VALUES_SCHEMA) as writer:
        for names, values in results.items():
            columns = [*(pa.repeat(name, len(values)) for name in names), pa.array(customer_ids, pa.string())]
            writer.write_table(pa.Table.from_arrays([*columns, values.to_numpy()], schema=VALUES_SCHEMA))


def with_half_interval(value: Mapping[str, float]) -> str:
    """Writes a mean and half of its interval: `0.323 ±0.012`."""
    return f"{value['mean']:.3f} ±{(value['high'] - value['low']) / 2:.3f}"


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Aligns the rows of a table in columns, to print it; the first row is the heading."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_report(table: Sequence[Sequence[str]], caption: str, path: Path) -> None:
    """Writes a caption and a table below it as Markdown. If the page has the lines `<!-- results -->` and
    `<!-- /results -->`, the text between them is replaced, otherwise the whole page."""
    heading, *lines = [f"| {' | '.join(row)} |" for row in table]
    text = "\n".join([caption, "", heading, "|" + " --- |" * len(table[0]), *lines, ""])
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    before, start, rest = page.partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    write_text(path, before + start + text + end + after if end else text)
