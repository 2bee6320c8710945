# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Results as tables and as Parquet: means over customers with intervals, also by the length of the history."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from modeling_mcm.data.cases import select_rows
from modeling_mcm.evaluation.cases import EvaluationCases, seen_labels
from modeling_mcm.evaluation.histories import task_histories
from modeling_mcm.evaluation.metrics import bootstrap_interval, list_properties
from modeling_mcm.evaluation.reports import with_half_interval
from modeling_mcm.files_mcm import atomic_write

Results = Mapping[str, Mapping[str, Mapping[str, NDArray]]]  # method -> task -> metric -> one value a case
VALUES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("method", "task", "metric", "customer_id")] + [("value", pa.float64())]
)
HISTORY_GROUPS = {"1-2": (0, 2), "3-5": (3, 5), "6-20": (6, 20), "more": (21, np.inf)}  # visits before the cutoff


def metric_table(results: Results, tasks: Sequence[str], metric: str) -> list[list[str]]:
    """Makes a table of text with a row for each method, and for each task the mean of a metric and half of its
    interval. For the next visit, the metric of the next event stands in brackets. A method without values of a task
    has "-"."""
    target, table = find_target(results), [["method", *tasks]]
    for method, by_task in results.items():
        cells = [method]
        for task in tasks:
            values = by_task.get(task, {})
            found = values.get(f"{target}_{metric}")
            cell = "-"
            if found is not None and not np.isnan(found).all():
                cell = with_half_interval(bootstrap_interval(found)._asdict())
            if f"next_event_{metric}" in values:
                cell += f" ({bootstrap_interval(values[f'next_event_{metric}']).mean:.3f})"
            cells.append(cell)
        table.append(cells)
    return table


def find_target(results: Results) -> str:
    """Says which target the results are of: "horizon" or "next_visit"."""
    names = (name for by_task in results.values() for values in by_task.values() for name in values)
    return "horizon" if any(name.startswith("horizon_") for name in names) else "next_visit"


def history_groups(cases: EvaluationCases) -> dict[str, NDArray[np.bool_]]:
    """Groups the cases by the number of visits before the cutoff, as masks; groups without a case are left out."""
    visits = cases.history_visits
    groups = {name: (visits >= low) & (visits <= high) for name, (low, high) in HISTORY_GROUPS.items()}
    return {name: mask for name, mask in groups.items() if mask.any()}


def by_history(results: Results, cases: EvaluationCases, metric: str) -> dict[str, Any]:
    """Computes means and intervals by the length of the history: for each group `cases`, their number, and `results`,
    as [`summary`] gives them. `metric` is a name with the target, such as `next_visit_ndcg@10`."""
    groups: dict[str, Any] = {}
    for group, mask in history_groups(cases).items():
        by_method = {
            method: {
                task: {metric: values[metric][mask]} if metric in values else {} for task, values in by_task.items()
            }
            for method, by_task in results.items()
        }
        groups[group] = {"cases": int(mask.sum()), "results": summary(by_method)}
    return groups


def history_table(groups: Mapping[str, Any], tasks: Sequence[str], metric: str) -> list[list[str]]:
    """Rows of text from `by_history`: a task and group, its customers with a target, and each method's mean."""
    methods = list(next(iter(groups.values()))["results"])
    table = [["task", "visits before", "customers", *methods]]
    for task in tasks:
        for group, part in groups.items():
            measured = {name: part["results"][name].get(task, {}).get(metric) for name in methods}
            customers = max((interval["customers"] for interval in measured.values() if interval), default=0)
            if customers:
                cells = [with_half_interval(interval) if interval else "-" for interval in measured.values()]
                table.append([task, group, f"{customers:,}", *cells])
    return table


def list_summary(
    lists: Mapping[str, Mapping[str, NDArray[np.int64]]],
    rows: Any,
    cases: EvaluationCases,
    label_sizes: dict[str, int],
) -> dict[str, dict[str, dict[str, float]]]:
    """Computes [`list_properties`] by method and task of lists `(cases, k)`. `rows` are all prepared rows, whose
    training period says how popular a label is."""
    properties: dict[str, dict[str, dict[str, float]]] = {method: {} for method in lists}
    for task, size in label_sizes.items():
        popularity = np.zeros(size)
        for history in task_histories(rows, task, "validation"):
            popularity += np.bincount(history.label, minlength=size)
        seen = seen_labels(select_rows(rows, cases.rows), cases.cutoff, task)
        for method, by_task in lists.items():
            if task in by_task:
                properties[method][task] = list_properties(by_task[task], popularity, seen.offsets, seen.labels)
    return properties


def list_table(properties: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Rows of text from [`list_summary`]: a method and task, and its numbers."""
    table = [["method", "task", "labels in any list", "of the top 1%", "novelty, bits", "repeats"]]
    for method, by_task in properties.items():
        for task, values in by_task.items():
            shares = {name: f"{values[name]:.1%}" for name in ("coverage", "popular", "repeats")}
            cells = [shares["coverage"], shares["popular"], f"{values['novelty']:.2f}", shares["repeats"]]
            table.append([method, task, *cells])
    return table


def summary(results: Results) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Computes the mean, interval and number of customers by method, task and metric, as values for JSON. Metrics that
    no case has a value of are left out."""
    return {
        method: {
            task: {
                name: bootstrap_interval(values)._asdict()
                for name, values in metrics.items()
                if not np.isnan(values).all()
            }
            for task, metrics in by_task.items()
        }
        for method, by_task in results.items()
    }


def write_values(path: Path, customer_ids: Sequence[str], results: Results) -> None:
    """Writes a Parquet file with one row for each method, task, metric and customer, whole or not at all. `value` is
    NaN for a customer without a target in the task. `customer_ids` are in the order of the cases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, pq.ParquetWriter(partial, VALUES_SCHEMA) as writer:
        for method, by_task in results.items():
            for task, metrics in by_task.items():
                for metric, values in metrics.items():
                    repeated = [pa.repeat(name, len(values)) for name in (method, task, metric)]
                    columns = [*repeated, pa.array(customer_ids, pa.string()), pa.array(values, pa.float64())]
                    writer.write_table(pa.Table.from_arrays(columns, schema=VALUES_SCHEMA))
