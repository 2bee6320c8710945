#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint on a prepared data set, beside counting baselines.

    python training/run_evaluate.py --model runs/quickstart --data data/complete_journey/prepared
    python training/run_evaluate.py --model runs/offers --data data/offers/prepared --offers data/offers/raw

A case is a customer with enough history before the cutoff and a visit after it; the history runs up to the cutoff,
the target is the first visit on or after it. Everything is ranked, nothing is filtered. Baselines count the training
period (popularity) and the customer's own history up to the cutoff. Prints a table of means over customers with their
95% bootstrap half-widths, and what three customers did last and are expected to do next.

With --offers the cases are groups of offers (docs/offers.md): who takes any, and which one.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from modeling_mcm import (
    MCMConfig,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
)
from modeling_mcm.data import PreparedManifest, check_vocabularies, load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows, unit_counts
from modeling_mcm.data.offer_collator import OfferCollator, OfferGroups
from modeling_mcm.data.offers import SPLITS, TEST, load_offers
from modeling_mcm.evaluation.baselines import (
    Baseline,
    Markov,
    MostPopular,
    NearestHouseholds,
    PersonalFrequency,
    RecencyWeightedFrequency,
    RecentPopular,
    evaluate_baseline,
)
from modeling_mcm.evaluation.cases import EvaluationCases, find_cases
from modeling_mcm.evaluation.gbdt import LightGBMRanker
from modeling_mcm.evaluation.metrics import bootstrap_interval, customer_metrics, distinct_targets
from modeling_mcm.evaluation.offers import (
    OfferTruth,
    expected_takes,
    interval,
    offer_metrics,
    resample_customers,
    score_offers,
)
from modeling_mcm.evaluation.predictions import PredictionsWriter
from modeling_mcm.evaluation.streaming import ranks_from_logits

from arguments import parse_options
from checkpoints import read_checkpoint
from memory import keep_freed_memory

BASELINES: dict[str, type[Baseline]] = {
    "most_popular": MostPopular,
    "recent_popular": RecentPopular,
    "markov": Markov,
    "personal_frequency": PersonalFrequency,
    "recency_weighted_frequency": RecencyWeightedFrequency,
    "nearest_households": NearestHouseholds,
    "lightgbm": LightGBMRanker,
}
NEEDS = {"lightgbm": "gbdt"}  # baselines by another package, of the same name -> the extra that installs it

Results = dict[str, dict[str, dict[str, NDArray]]]  # method -> task -> metric -> one value a case
VALUES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("method", "task", "metric", "customer_id")] + [("value", pa.float64())]
)


@dataclass
class EvaluationOptions:
    """What is evaluated, and what is written."""

    model: str | None = field(default=None, metadata={"help": "Checkpoint folder, or name on the Hub."})
    data: str | None = field(default=None, metadata={"help": "Folder of a prepared data set."})
    cutoff: str = field(
        default="test", metadata={"help": "Where the history ends.", "choices": ["validation", "test"]}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "Tasks of the table; all of the model's by default."}
    )
    k: list[int] = field(default_factory=lambda: [1, 3, 10], metadata={"help": "Lengths of the ranked list."})
    table: list[str] = field(
        default_factory=list,
        metadata={"help": "Metrics of the table, such as hr@1 ndcg@3; NDCG at the largest k by default."},
    )
    baselines: list[str] = field(
        default_factory=lambda: ["most_popular", "personal_frequency", "recency_weighted_frequency"],
        metadata={"help": f"Any of {', '.join(BASELINES)} (needs the extra `gbdt`); `none` for none."},
    )
    batch_size: int = field(default=64, metadata={"help": "Customers a step."})
    shown: int = field(default=3, metadata={"help": "Customers whose past and expected next visit are printed."})
    offers: str | None = field(
        default=None,
        metadata={
            "help": "Folder with offers.parquet and actions.parquet, to evaluate a model of run_finetune.py on."
        },
    )
    offers_split: str = field(default=TEST, metadata={"help": "Of the offers.", "choices": SPLITS})
    predictions_file: str | None = field(
        default=None, metadata={"help": "Parquet file for the best 100 labels of every case and task."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file for every metric and its interval."})
    values_file: str | None = field(
        default=None,
        metadata={"help": "Parquet file for every metric's value of every customer, for differences in pairs."},
    )
    report_file: str | None = field(
        default=None,
        metadata={
            "help": "Markdown file for the table. In a file that has the lines <!-- results --> and "
            "<!-- /results -->, only what stands between them is replaced."
        },
    )


def not_installed(baselines: Sequence[str]) -> list[str]:
    """Those baselines whose package is missing."""
    return [name for name in baselines if name in NEEDS and importlib.util.find_spec(name) is None]


def model_scores(
    model: MCMForMultiTaskRecommendation, collator: MCMCollator, rows: PreparedRows, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, torch.Tensor]]]:
    """Places and logits of all tasks, a batch of cases at a time; by length where it is known, to pad little."""
    order = np.arange(len(rows)) if rows.lengths is None else np.argsort(rows.lengths, kind="stable")
    for start in tqdm(range(0, len(rows), batch_size), desc="MCM", unit="batch"):
        batch = order[start : start + batch_size]
        inputs = collator(rows.__getitems__(batch.tolist()))
        inputs.pop("labels")
        with torch.inference_mode():
            yield batch, model(**{name: value.to(model.device) for name, value in inputs.items()}).logits


def evaluate_model(
    model: MCMForMultiTaskRecommendation,
    extractor: MCMFeatureExtractor,
    rows: Any,
    cases: EvaluationCases,
    options: EvaluationOptions,
) -> dict[str, dict[str, NDArray]]:
    """For each task every metric, one value a case; writes the predictions file on the way."""
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff=cases.cutoff)
    chosen = {task: cases.targets[task] for task in options.tasks}
    targets = {task: distinct_targets(found.offsets, found.labels) for task, found in chosen.items()}
    ranks = {task: (np.zeros_like(labels), np.ones_like(labels)) for task, (labels, _) in targets.items()}
    values = {task: ["", "", *extractor.vocabularies[task]] for task in options.tasks}
    writer = PredictionsWriter(options.predictions_file) if options.predictions_file else None
    with writer or torch.no_grad():
        ends = rows[f"{cases.cutoff}_end"]
        units = unit_counts(rows, ends, model.config, extractor.max_events)[cases.rows]
        cases_rows = PreparedRows(rows, cases.rows, units)
        for batch, logits in model_scores(model, collator, cases_rows, options.batch_size):
            for task, (labels, _) in targets.items():
                greater, ties = ranks_from_logits(logits[task], torch.from_numpy(labels[batch]))
                ranks[task][0][batch], ranks[task][1][batch] = greater.cpu().numpy(), ties.cpu().numpy()
                if writer:
                    scores = logits[task].float().softmax(-1).cpu().numpy()
                    writer.write(task, [cases.customer_ids[case] for case in batch], scores, values[task])
    return {task: customer_metrics(*ranks[task], targets[task][1], options.k) for task in options.tasks}


def evaluate_baselines(
    names: Sequence[str],
    rows: Any,
    cases: EvaluationCases,
    label_sizes: Mapping[str, int],
    ks: Sequence[int],
) -> Results:
    """Fits each baseline on the training period; for each of them and each task of `label_sizes` what a model gets."""
    results: Results = {}
    for name in names:
        results[name] = {}
        for task, size in tqdm(label_sizes.items(), desc=name, unit="task"):
            results[name][task] = evaluate_baseline(BASELINES[name]().fit(rows, task, size), rows, cases, ks)
    return results


def write_values(path: Path, customer_ids: Sequence[str], results: Results) -> None:
    """Writes one row a method, task, metric and customer; `value` is NaN for a customer without a target in the task.

    The file appears under its name only when it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, VALUES_SCHEMA) as writer:
        for method, by_task in results.items():
            for task, metrics in by_task.items():
                for metric, values in metrics.items():
                    repeated = [pa.repeat(name, len(values)) for name in (method, task, metric)]
                    columns = [*repeated, pa.array(customer_ids, pa.string()), pa.array(values, pa.float64())]
                    writer.write_table(pa.Table.from_arrays(columns, schema=VALUES_SCHEMA))
    partial.replace(path)


def metric_table(results: Results, tasks: list[str], metrics: list[str]) -> list[list[str]]:
    """Rows of text: a method; by task and metric the next visit's with its half-width, the next event's in brackets.

    Raises:
        SystemExit: with a message, for a metric that was not measured.
    """
    known = {name.removeprefix("next_visit_") for name in next(iter(results.values()))[tasks[0]] if "visit" in name}
    if wrong := [metric for metric in metrics if metric not in known]:
        raise SystemExit(f"No metrics {wrong} for the table; measured were {', '.join(sorted(known))}. See --k.")
    table = [["method", *(f"{task} {metric}" if len(metrics) > 1 else task for task in tasks for metric in metrics)]]
    for method, by_task in results.items():
        cells = [method]
        for values, metric in ((by_task[task], metric) for task in tasks for metric in metrics):
            visit = bootstrap_interval(values[f"next_visit_{metric}"])
            cell = f"{visit.mean:.3f} ±{(visit.high - visit.low) / 2:.3f}"
            if f"next_event_{metric}" in values:
                cell += f" ({bootstrap_interval(values[f'next_event_{metric}']).mean:.3f})"
            cells.append(cell)
        table.append(cells)
    return table


def text_table(table: list[list[str]]) -> str:
    """Rows of text in columns, to print."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_report(table: list[list[str]], caption: str, path: Path) -> None:
    """Writes the table as Markdown, between the markers of a file that has them, else as the whole file."""
    lines = [" | ".join(["", *row, ""]).strip() for row in table]
    lines.insert(1, "|" + " --- |" * len(table[0]))
    text = f"{caption}\n\n" + "\n".join(lines) + "\n"
    start, end = "<!-- results -->\n", "<!-- /results -->"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if start in old and end in old:
        text = old[: old.index(start)] + start + text + old[old.index(end) :]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def print_customers(
    model: MCMForMultiTaskRecommendation,
    extractor: MCMFeatureExtractor,
    rows: Any,
    cases: EvaluationCases,
    options: EvaluationOptions,
) -> None:
    """Prints the last visit before the cutoff and the labels that MCM expects next, with scores and what happened."""
    chosen = np.linspace(0, len(cases) - 1, options.shown).round().astype(int)
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff=cases.cutoff)
    shown = PreparedRows(rows, cases.rows[chosen])
    scores = [logits for _, logits in model_scores(model, collator, shown, options.batch_size)]
    for place, case in enumerate(chosen):
        row, end = shown[place], cases.history_end[case]
        print(f"\nCustomer {cases.customer_ids[case]}")
        for task in options.tasks:
            past = row[f"task_{task}"][:end][row["visits"][:end] == row["visits"][end - 1]]
            happened = set(cases.targets[task][case].tolist())
            best = scores[0][task][place].softmax(-1).topk(5)
            names = extractor.decode_labels(task, best.indices)
            expected = [
                f"{name} {score:.1%}{' ✓' if label in happened else ''}"
                for name, score, label in zip(names, best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            last = list(dict.fromkeys(extractor.decode_labels(task, past[past > 0])))
            print(f"  {task}: last visit {', '.join(last[:5]) or '-'}{' ...' if len(last) > 5 else ''}")
            print(f"  {' ' * len(task)}  expected   {', '.join(expected)}")
    print("\n✓ = in the visit that followed.")


def evaluate_offers(options: EvaluationOptions) -> tuple[list[list[str]], str, dict[str, Any]]:
    """Table, caption and numbers of a model that was fine-tuned to offers, beside MCM's own scores."""
    schema = PreparedManifest.load(str(options.data)).event_schema
    config = MCMConfig.from_pretrained(str(options.model))
    tuned = "MCMForActionRecommendation" in (config.architectures or [])
    offers = load_offers(str(options.offers), config.action_outcomes if tuned else None, schema.time_zone)
    outcomes = list(offers.outcomes)
    new = () if tuned else ("action_head.",)
    model = read_checkpoint(MCMForActionRecommendation, str(options.model), new, action_outcomes=outcomes)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    extractor = MCMFeatureExtractor.from_pretrained(str(options.model))
    check_vocabularies(str(options.data), extractor)
    groups = offers.groups([options.offers_split])
    training_end = int(np.datetime64(schema.cutoff("validation"), "s").astype(np.int64))
    offers.check_times(training_end, [], groups)
    collator = OfferCollator(extractor, model.config, offers, groups)
    cases = OfferGroups(load_prepared(str(options.data)), offers, groups)
    logits, own = score_offers(model, collator, cases, options.batch_size)
    weights = resample_customers(offers.customer_ids[groups])
    customers = len(set(offers.customer_ids[groups]))
    results: dict[str, dict[str, Any]] = {}
    for place, outcome in enumerate(outcomes):
        truth = OfferTruth.of(offers, groups, outcome)
        for method, scores in {"MCM without fine-tuning": own, "MCM fine-tuned": logits[:, place]}.items():
            if method == "MCM fine-tuned" and not tuned:
                continue
            found = offer_metrics(truth, scores, expected_takes(truth.offsets, scores), weights, max(options.k))
            results[f"{outcome}: {method}"] = {
                name: interval(values, customers)._asdict() for name, values in found.items()
            }
    names = list(next(iter(results.values())))
    table = [["method", *names]]
    for method, metrics in results.items():
        cells = [f"{v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for v in metrics.values()]
        table.append([method, *cells])
    caption = (
        f"{len(groups):,} {options.offers_split} groups of offers of {schema.name}, {customers:,} customers. Who "
        "responds: average_precision, roc_auc; which offer, of those who take one: ndcg, recall. 95% intervals "
        "resample customers."
    )
    return table, caption, results


def main() -> None:
    """Reads the options, evaluates, prints, and writes what was asked for."""
    keep_freed_memory()
    (options,) = parse_options(EvaluationOptions, description=__doc__)
    if options.model is None or options.data is None:
        raise SystemExit("--model and --data are needed: a checkpoint and the folder of a prepared data set.")
    if wrong := [name for name in options.baselines if name not in BASELINES and name != "none"]:
        raise SystemExit(f"No baselines {wrong}; choose from {', '.join(BASELINES)} or none.")
    for name in not_installed(options.baselines):
        raise SystemExit(
            f"{name} is not installed: `pip install modeling-mcm[{NEEDS[name]}]`, or name other baselines."
        )
    if options.shown < 0 or min(options.k) < 1 or options.batch_size < 1:
        raise SystemExit("--shown must be at least 0, --k and --batch_size at least 1.")
    architectures = MCMConfig.from_pretrained(options.model).architectures or []
    if "MCMForActionRecommendation" in architectures and not options.offers:
        raise SystemExit(f"{options.model} is fine-tuned to offers: give them with --offers.")
    if options.offers:
        table, caption, found = evaluate_offers(options)
        print(f"\n{caption}\n")
        print(text_table(table))
        if options.report_file:
            write_report(table, caption, Path(options.report_file))
        if options.output_file:
            Path(options.output_file).parent.mkdir(parents=True, exist_ok=True)
            Path(options.output_file).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return
    manifest = PreparedManifest.load(options.data)
    model = read_checkpoint(MCMForMultiTaskRecommendation, options.model).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    check_vocabularies(options.data, extractor)
    if wrong := [task for task in options.tasks if task not in model.config.tasks]:
        raise SystemExit(f"No tasks {wrong}; the checkpoint has {', '.join(model.config.tasks)}.")
    options.tasks = options.tasks or list(model.config.trained_tasks or model.config.tasks)

    rows = load_prepared(options.data)
    schema = manifest.event_schema
    cases = find_cases(rows, options.cutoff, schema.min_history, extractor.token_type_feature)
    baselines = [name for name in options.baselines if name != "none"]
    label_sizes = {task: model.config.label_sizes[task] for task in options.tasks}
    results = evaluate_baselines(baselines, rows, cases, label_sizes, options.k)
    results["MCM"] = evaluate_model(model, extractor, rows, cases, options)

    metrics = options.table or [f"ndcg@{max(options.k)}"]
    table = metric_table(results, options.tasks, metrics)
    named = ", ".join(metric.upper() for metric in metrics)
    caption = (
        f"{len(cases):,} {options.cutoff} cases of {schema.name}: next-visit {named}, mean over customers, ± half of "
        f"its 95% bootstrap interval; in brackets next-event {named}."
    )
    print(f"\n{caption}\n")
    print(text_table(table))
    if options.shown:
        print_customers(model, extractor, rows, cases, options)
    if options.values_file:
        write_values(Path(options.values_file), cases.customer_ids, results)
    if options.report_file:
        write_report(table, caption, Path(options.report_file))
    if options.output_file:
        summary = {
            method: {
                task: {name: bootstrap_interval(values)._asdict() for name, values in metrics.items()}
                for task, metrics in by_task.items()
            }
            for method, by_task in results.items()
        }
        report = {"data": schema.name, "cutoff": options.cutoff, "cases": len(cases), "results": summary}
        Path(options.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output_file).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
