# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The results page of run_ablation.py: numbers from the files of the runs, a Markdown page and two pictures from them.

Nothing is typed here: values come from the runs' Parquet files, costs from their pretraining.json, curves from their
trainer_state.json.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from modeling_mcm.evaluation.metrics import average_relative_difference, bootstrap_interval, paired_difference
from modeling_mcm.evaluation.reports import markdown_table, with_half_interval, with_interval
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import write_text

METRICS = {
    "next_visit_ndcg@10": "next visit NDCG@10",
    "next_event_ndcg@10": "next event NDCG@10",
    "next_visit_hr@1": "next visit HR@1",
    "next_visit_ndcg@3": "next visit NDCG@3",
}
COMPARED = ["next_visit_ndcg@10", "next_event_ndcg@10"]
SHOWN_COSTS = {  # of pretraining.json: title and format
    "seconds": ("seconds", ",.0f"),
    "steps": ("steps", ",.0f"),
    "targets": ("targets", ",.0f"),
    "parameters": ("parameters", ",.0f"),
    "batch_size": ("batch", ",.0f"),
    "max_events": ("window", ",.0f"),
    "learning_rate": ("learning rate", "g"),
}
SATURATED = 0.7  # next-visit NDCG@10 of the most popular labels above which NDCG@10 tells methods hardly apart

Values = dict[tuple[str, str], NDArray[np.float64]]  # (task, metric) -> one value a customer


@dataclass(frozen=True)
class FinishedRun:
    """A trained and evaluated model, with the tasks that it predicts and whether it was trained for only one task."""

    model: str
    tasks: list[str]
    seed: int
    folder: Path
    one_task: bool

    def values_file(self, cutoff: str) -> Path:
        """Parquet file of its values at a cutoff."""
        return self.folder / f"values-{cutoff}.parquet"

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def read_values(path: Path) -> tuple[list[str], dict[str, Values]]:
    """Reads the customers of a file of metrics, and for each method the values in their order."""
    frame = pq.read_table(path, filters=[("metric", "in", list(METRICS))]).to_pandas()
    methods: dict[str, Values] = {}
    customers: list[str] = []
    for (method, task, metric), rows in frame.groupby(["method", "task", "metric"], sort=False):
        methods.setdefault(method, {})[task, metric] = rows["value"].to_numpy()
        customers = customers or rows["customer_id"].tolist()
    return customers, methods


def summarize(
    runs: Sequence[FinishedRun], counting: Path, cutoff: str, tasks: Sequence[str], ours: str, reference: str
) -> dict[str, Any]:
    """Computes every number of the page.

    Args:
        runs (list of `FinishedRun`): All models and seeds.
        counting (`Path`): Folder with the metrics of the baselines.
        cutoff (`str`): "validation" or "test".
        tasks (list of `str`): Tasks of the tables.
        ours (`str`): The model that is compared with every other method, customer by customer.
        reference (`str`): The model that the paper compares with.

    Raises:
        ValueError: If the runs were not evaluated on the same customers.
    """
    customers, methods = read_values(counting / f"values-{cutoff}.parquet")
    baselines = list(methods)
    by_seed: dict[str, dict[tuple[str, str], dict[int, NDArray]]] = {}
    for run in runs:
        names, values = read_values(run.values_file(cutoff))
        if names != customers:
            raise ValueError(
                f"{run.folder} was evaluated on {len(names)} customers that are not the {len(customers)} of "
                f"{counting}: remove the output folder and run the ablation again."
            )
        for key, by_customer in values[run.model].items():
            by_seed.setdefault(run.model, {}).setdefault(key, {})[run.seed] = by_customer
    # a customer's value is the mean over seeds, so that intervals are those of customers
    methods |= {
        model: {key: np.mean(list(seeds.values()), axis=0) for key, seeds in by_key.items()}
        for model, by_key in by_seed.items()
    }
    table: dict[str, Any] = {}
    for method, metrics in methods.items():
        table[method] = {task: {} for task in tasks}
        for task in tasks:
            for metric in METRICS:
                seeds = by_seed.get(method, {}).get((task, metric), {})
                means = {str(seed): float(np.nanmean(values)) for seed, values in seeds.items()}
                interval = bootstrap_interval(metrics[task, metric])._asdict()
                table[method][task][metric] = interval | ({"by_seed": means} if means else {})
    return {
        "cutoff": cutoff,
        "cases": len(customers),
        "tasks": list(tasks),
        "seeds": sorted({run.seed for run in runs}),
        "baselines": baselines,
        "models": list(by_seed),
        "ours": ours,
        "reference": reference,
        "methods": table,
        "saturated": [t for t in tasks if table["most_popular"][t]["next_visit_ndcg@10"]["mean"] > SATURATED],
        "differences": {
            method: differences(methods[ours], values, tasks) for method, values in methods.items() if method != ours
        },
        "costs": costs(runs),
        "versions": _distinct([run.read("pretraining.json")["versions"] for run in runs]),
        "machines": _distinct([run.read("pretraining.json")["machine"] for run in runs]),
    }


def differences(ours: Values, theirs: Values, tasks: Sequence[str]) -> dict[str, Any]:
    """Computes relative differences of two methods on the same customers by metric, of each task and of their mean."""
    result: dict[str, Any] = {}
    for metric in COMPARED:
        pairs = {task: (ours[task, metric], theirs[task, metric]) for task in tasks}
        result[metric] = {task: paired_difference(*pair).relative._asdict() for task, pair in pairs.items()}
        firsts, seconds = zip(*pairs.values(), strict=True)
        result[metric]["average"] = average_relative_difference(np.stack(firsts), np.stack(seconds))._asdict()
    return result


def costs(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Computes what the training of each model took, as the mean over its seeds. Models of one task are listed
    separately.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys((run.model, run.tasks[0] if run.one_task else None) for run in runs):
        own_runs = [run for run in runs if (run.model, run.tasks[0] if run.one_task else None) == name]
        facts = [run.read("pretraining.json") for run in own_runs]
        row: dict[str, Any] = {"model": name[0], "task": name[1]}
        rows.append(row | {count: float(np.mean([fact[count] for fact in facts])) for count in SHOWN_COSTS})
    return rows


def _name(cost: dict[str, Any]) -> str:
    return f"{cost['model']} ({cost['task']})" if cost["task"] else cost["model"]


def _distinct(facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [fact for index, fact in enumerate(facts) if fact not in facts[:index]]


def write_page(results: dict[str, Any], path: Path, pictures: Sequence[str]) -> None:
    """Writes the page from the result of [`summarize`]; paths of `pictures` are relative to the page."""
    models, ours, reference = results["models"], results["ours"], results["reference"]
    alone = list(dict.fromkeys(cost["model"] for cost in results["costs"] if cost["task"]))
    ended = [_name(cost) for cost in results["costs"] if cost["seconds"] >= results["max_seconds"]]
    lines = [
        "# Results",
        "",
        f"Written by `{results['command']}` from the files of its runs.",
        "",
        f"{results['cases']:,} {results['cutoff']} cases of {results['data']} "
        "([how cases are made](event_schema.md)): all labels are ranked, and none is filtered out. Values are means "
        "± half of their 95% interval, and differences have their 95% intervals in brackets. Intervals resample "
        f"customers. Every model trains until {results['patience']} epochs in a row bring no better validation, for "
        f"at most {results['max_seconds']:g} seconds without evaluation and saving, and its best epoch is used; "
        f"{', '.join(ended) or 'none'} reached that limit. All other settings of {ours} are those of "
        f"[its recipe](recipe.md). Seeds: {', '.join(map(str, results['seeds']))}; a customer's value is the mean "
        f"over them. {' and '.join(alone)} are one model for each task, each with the whole time, which is an "
        "advantage for them. Each of the others predicts all tasks of the event schema at once.",
        "",
    ]
    lines += [f"![NDCG@10 of all methods]({pictures[0]})", ""]
    for task in results["tasks"]:
        metrics = COMPARED if task not in results["saturated"] else list(METRICS)
        lines += [f"## {task}", ""]
        if task in results["saturated"]:
            lines += [f"The most popular labels reach {SATURATED:g} already, so the top of the list is shown too.", ""]
        rows = []
        for method in [*results["baselines"], *models]:
            intervals = results["methods"][method][task]
            seeds = [f"{mean:.3f}" for mean in intervals[metrics[0]].get("by_seed", {}).values()]
            rows.append([method, *(with_half_interval(intervals[metric]) for metric in metrics), " ".join(seeds)])
        lines += [
            *markdown_table(
                [["method", *(METRICS[metric] for metric in metrics), f"{METRICS[metrics[0]]} by seed"], *rows]
            ),
            "",
        ]
    lines += [f"## {ours} over each method", "", "Relative differences of means, paired by customer.", ""]
    for metric in COMPARED:
        rows = [
            [method, *(with_interval(intervals[metric][key], "+.1%") for key in (*results["tasks"], "average"))]
            for method, intervals in results["differences"].items()
        ]
        lines += [*markdown_table([[METRICS[metric], *results["tasks"], "average over tasks"], *rows]), ""]
    average = {metric: results["differences"][reference][metric]["average"] for metric in COMPARED}
    lines += [
        f"{ours} over {reference}, average over the tasks: "
        + ", ".join(f"{METRICS[metric]} {with_interval(value, '+.1%')}" for metric, value in average.items())
        + ". (The paper reports +17% for its model over BERT4Rec, on its own data.)",
        "",
        "## What training took",
        "",
        "Figures are means over the seeds. A target is a label of one trained task for which a loss was computed. "
        "Parameters are those that got a gradient. The window is in events.",
        "",
    ]
    rows = []
    for cost in results["costs"]:
        rows.append([_name(cost), *(f"{cost[count]:{style}}" for count, (_, style) in SHOWN_COSTS.items())])
    lines += [*markdown_table([["model", *(title for title, _ in SHOWN_COSTS.values())], *rows]), ""]
    lines += [
        f"![Training curves]({pictures[1]})",
        "",
        "Each line is a run. The losses of different models are for different targets (a masked event, the next "
        "event, the labels of the next visit), so their slopes can be compared but not their values.",
        "",
        "## Versions and machine",
        "",
    ]
    lines += [
        f"- {', '.join(f'{name} {version}' for name, version in facts.items())}" for facts in results["versions"]
    ]
    lines += [f"- {', '.join(f'{name}: {value}' for name, value in facts.items())}" for facts in results["machines"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")


def _figure(width: float, height: float) -> Any:
    with needs("docs"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def draw_bars(results: dict[str, Any], path: Path) -> None:
    """Draws next-visit NDCG@10 of all methods with 95% intervals, in one panel for each task."""
    methods, tasks = [*results["baselines"], *results["models"]], results["tasks"]
    colours = ["0.65"] * len(results["baselines"]) + [f"C{index}" for index in range(len(results["models"]))]
    figure = _figure(4.5 * len(tasks) + 1.5, 0.32 * len(methods) + 1.2)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        intervals = [results["methods"][method][task]["next_visit_ndcg@10"] for method in methods]
        means = [value["mean"] for value in intervals]
        sides = [[v["mean"] - v["low"] for v in intervals], [v["high"] - v["mean"] for v in intervals]]
        panel.barh(methods, means, xerr=sides, color=colours)
        panel.set(title=task, xlabel=METRICS["next_visit_ndcg@10"])
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def draw_curves(runs: Sequence[FinishedRun], tasks: Sequence[str], path: Path) -> None:
    """Draws the training loss of each run against the seconds, in one panel for each task and one colour for each
    model.
    """
    colours = {model: f"C{index}" for index, model in enumerate(dict.fromkeys(run.model for run in runs))}
    figure = _figure(4.5 * len(tasks) + 1.5, 3.8)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for run in runs:
        entries = [entry for entry in run.read("trainer_state.json")["log_history"] if "seconds" in entry]
        seconds = [entry["seconds"] for entry in entries]
        for panel, task in zip(panels, tasks, strict=True):
            if task in run.tasks:
                first = run.seed == min(other.seed for other in runs if other.model == run.model)
                losses = [entry.get(f"loss_{task}", entry.get(f"loss_with_ranking_{task}")) for entry in entries]
                label = run.model if first else None
                panel.plot(seconds, losses, ".-", color=colours[run.model], linewidth=0.8, markersize=2, label=label)
                panel.set(title=task, xlabel="seconds of training", ylabel="training loss of the task")
    panels[-1].legend()
    figure.savefig(path, dpi=120)
