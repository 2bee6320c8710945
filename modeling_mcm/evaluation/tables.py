# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Results as tables for a terminal, for Markdown pages and in Parquet: means over customers with intervals, also by
the length of the history."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from modeling_mcm.files_mcm import atomic_write, write_text

from .cases import EvaluationCases, seen_labels
from .histories import read_history
from .metrics import Ranks, bootstrap_interval, list_properties

VALUES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("method", "task", "metric", "customer_id")] + [("value", pa.float64())]
)
Summary = dict[str, dict[str, dict[str, dict[str, float]]]]  # by method, task, metric and field of `Interval`
HISTORY_GROUPS = {"1-2": 2, "3-5": 5, "6-20": 20, "more": np.inf}  # most visits before the cutoff


def metric_table(results: Summary, tasks: Sequence[str], metric: str) -> list[list[str]]:
    """Makes a table of text from [`summary`] with a row for each method, and for each task the mean of a metric and
    half of its interval. `metric` is a name with the target, such as `next_visit_ndcg@10`; for it, the metric of the
    next event stands in brackets. A method without values of a task has "-"."""
    table, of_event = [["method", *tasks]], metric.replace("next_visit", "next_event")
    for method, by_task in results.items():
        cells = [method]
        for task in tasks:
            values = by_task.get(task, {})
            words = f" ({values[of_event]['mean']:.3f})" if values and of_event != metric else ""
            cells.append(with_half_interval(values[metric]) + words if values else "-")
        table.append(cells)
    return table


def by_history(results: pd.DataFrame, cases: EvaluationCases, metric: str) -> dict[str, dict]:
    """Computes means and intervals by the number of visits before the cutoff: for each group that has one, the number
    of `cases`, and `results`, as [`summary`] gives them. `metric` is a name with the target, such as
    `next_visit_ndcg@10`."""
    group = pd.cut(cases.history_visits, [-1, *HISTORY_GROUPS.values()], labels=[*HISTORY_GROUPS])
    values = results.xs(metric, axis=1, level=2, drop_level=False).groupby(group, observed=True)
    return {name: {"cases": len(of_group), "results": summary(of_group)} for name, of_group in values}


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
        of_task = summaries.setdefault(method, {}).setdefault(task, {})
        if values.notna().any():
            of_task[metric] = bootstrap_interval(values)._asdict()
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
