# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint on a prepared data set, and compares it with baselines.

    mcm evaluate --model runs/quickstart --data data/complete_journey/prepared
    mcm evaluate --model runs/mine --data data/prepared --horizon_days 30 --only_new
    mcm evaluate --model runs/offers --data data/offers/prepared --offers data/offers/raw

A case is a customer with enough history before the cutoff and a visit after it, whose labels are the targets. All
labels are ranked, unless --only_new or --horizon_days says otherwise (docs/evaluation.md). The command
prints means over customers, each with half of its 95% bootstrap interval; the same by length of history; what the
lists are like (how much of the catalogue, how popular, how many repeats); and a sentence for each baseline that is
better than MCM. With --offers the cases are groups of offers (docs/fine_tuning.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.offers import OfferReader, check_unseen, load_offers
from modeling_mcm.evaluation.cases import comparison_cases, unseen_only
from modeling_mcm.evaluation.comparison import (
    BASELINES,
    Summary,
    baseline_warnings,
    by_history,
    counting_baselines,
    default_baselines,
    history_table,
    list_summary,
    list_table,
    metric_table,
    rank_targets,
    summary,
    text_table,
    with_half_interval,
    write_protocol,
    write_report,
    write_title,
    write_values,
)
from modeling_mcm.evaluation.metrics import measure
from modeling_mcm.evaluation.offers import offer_metrics, score_offers
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import write_json
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.training.checkpoints import open_checkpoint
from modeling_mcm.training.counting import Counts
from modeling_mcm.training.memory import keep_freed_memory

from .arguments import command


@dataclass
class EvaluationOptions:
    """What is evaluated, by which metrics and baselines, and which files are written."""

    model: str = option("Checkpoint folder, or name on the Hub.", REQUIRED)
    data: str = option("Folder of a prepared data set.", REQUIRED)
    cutoff: str = option(
        "Cutoff at which the history ends and the targets begin. Compare models by validation, and use "
        "test only for the final figures.",
        "test",
        choices=["validation", "test"],
    )
    tasks: list[str] = option("Tasks to evaluate. By default all tasks of the model.", [])
    k: list[int] = option("Lengths of the ranked list at which metrics are computed, as in ndcg@10.", [1, 3, 10])
    baselines: list[str] = option(
        "Baselines to compare with (lightgbm needs the extra `gbdt`). By default all, but lightgbm only if it is "
        "installed and takes less than about five minutes.",
        [],
        choices=[*BASELINES, "none"],
    )
    only_new: bool = option(
        "Rank, and take as targets, only labels that no target event of the customer had before the cutoff. This is "
        "the usual protocol for catalogues in which nobody takes an item twice.",
        False,
    )
    horizon_days: float | None = option(
        "Number of days from the cutoff. The targets are then the labels of all target events within "
        "these days, each once, instead of those of the next visit, and the cases are the customers with at "
        "least one. The names of the metrics then begin with horizon_."
    )
    batch_size: int = option("Number of customers in one batch of the model.", 64)
    offers: str | None = option(
        "Folder with offers.parquet and actions.parquet, to evaluate a model of `mcm finetune --offers` on "
        "the split `test`."
    )
    output_file: str | None = option("JSON file to write every metric with its 95%% interval to.")
    values_file: str | None = option(
        "Parquet file to write the metrics of every single customer to, so that two evaluations can be "
        "compared customer by customer."
    )
    report_file: str | None = option(
        "Markdown file to write the table to. In a file that has the lines <!-- results --> and "
        "<!-- /results -->, only the text between them is replaced."
    )

    def __post_init__(self) -> None:
        if self.horizon_days is not None and not 0 < self.horizon_days < np.inf:
            raise ValueError(f"--horizon_days is {self.horizon_days:g}; give a positive number of days, such as 30.")
        if min(self.k) < 1 or self.batch_size < 1:
            raise ValueError("--k and --batch_size must be at least 1.")
        visit_options = "tasks", "baselines", "only_new", "horizon_days", "values_file"
        if self.offers and (unread := [f"--{name}" for name in visit_options if getattr(self, name)]):
            raise ValueError(f"{', '.join(unread)} is not read with --offers: leave it out, or --offers.")
        if self.offers and self.cutoff != "test":
            raise ValueError("Offers of validation are trained on, too: evaluate on those of test, without --cutoff.")


Report = tuple[list[list[str]], str, dict, list[str]]  # table, caption, all results, what is printed below


def _open(options: EvaluationOptions, head: type[PreTrainedModel]) -> tuple[PreparedData, Any, MCMFeatureExtractor]:
    """What is judged knows nothing after the cutoff: it counts the log until then."""
    data = PreparedData(options.data, options.cutoff)
    model, extractor = open_checkpoint(head, options.model)
    check_vocabularies(data.folder, extractor)
    model, extractor = Counts(data).give(model, extractor, state=False)
    return data, model.to("cuda" if torch.cuda.is_available() else "cpu"), extractor


def _evaluate_offers(options: EvaluationOptions) -> Report:
    """Evaluates a model on offers, beside the scores that MCM has without fine-tuning."""
    data, model, extractor = _open(options, MCMForActionRecommendation)
    offers = load_offers(str(options.offers), model.config.action_outcomes, data.schema.time_zone)
    offers = offers.of([options.cutoff])
    check_unseen(offers, data.schema.cutoff_seconds("validation"))
    scores = score_offers(model, OfferReader(data.rows, offers, extractor, model.config), options.batch_size)
    results: Summary = {}
    table = []
    for index, outcome in enumerate(offers.outcomes):
        for method, column in {"MCM without fine-tuning": -1, "MCM fine-tuned": index}.items():
            metrics = offer_metrics(offers, outcome, scores[:, column], max(options.k))
            intervals = {name: value._asdict() for name, value in metrics.items()}
            results.setdefault(method, {})[outcome] = intervals
            table.append([f"{outcome}: {method}", *map(with_half_interval, intervals.values())])
    caption = (
        f"{len(offers.groups):,} {options.cutoff} groups of offers of {data.schema.name}, "
        f"{offers.groups['customer_id'].nunique():,} customers. Who "
        "responds: average_precision, roc_auc; which offer, of those who take one: ndcg, recall. Mean "
        "over customers, ± half of its 95% bootstrap interval."
    )
    report = {"data": data.schema.name, "cutoff": options.cutoff, "results": results}
    return [["method", *intervals], *table], caption, report, []


def _evaluate_visits(options: EvaluationOptions) -> Report:
    """Evaluates on next visits or on a horizon, and writes the metrics of every customer if the options say so."""
    data, model, extractor = _open(options, MCMForMultiTaskRecommendation)
    tasks = Predictor(model, extractor).tasks(options.tasks or None)
    cases = comparison_cases(data, options.cutoff, options.horizon_days)
    if options.only_new:
        cases = unseen_only(data.rows, cases, tasks)
    tasks = [task for task in tasks if task in cases.targets]  # those that have a target left
    label_sizes = {task: model.config.label_sizes[task] for task in tasks}
    names, left_out = default_baselines(cases, label_sizes)
    if options.baselines:
        names, left_out = [name for name in options.baselines if name != "none"], []
    ranks = counting_baselines(data.rows, cases, label_sizes, names, max(options.k))
    ranks["MCM"] = rank_targets(model, extractor, data.rows, cases, tasks, max(options.k), options.batch_size)
    results = measure(ranks, options.k)

    metric = f"ndcg@{max(options.k)}"
    main_metric = f"{cases.target}_{metric}"
    means = summary(results)
    table = metric_table(means, tasks, main_metric)
    caption = f"{len(cases):,} {options.cutoff} cases of {data.schema.name}: {write_title(main_metric)}"
    caption += ", mean over customers, ± half of its 95% bootstrap interval"
    caption += "." if options.horizon_days else f"; in brackets next-event {metric.upper()}."
    protocol = write_protocol(data, cases, label_sizes)
    caption += f" {protocol}"
    histories = by_history(results, cases, main_metric)
    history = text_table(history_table(histories, tasks, main_metric))
    below = [f"By visits before the cutoff: {write_title(main_metric)}.", history]
    properties = list_summary(ranks, data.rows, cases, label_sizes)
    below += [f"The lists of the {max(options.k)} best labels.", text_table(list_table(properties))]
    below += [*left_out, *baseline_warnings(results, main_metric)]
    if options.values_file:
        write_values(Path(options.values_file), cases.customer_ids, results)
    report = {"data": data.schema.name, "cutoff": options.cutoff, "cases": len(cases), "protocol": protocol}
    report |= {name: getattr(options, name) for name in ("horizon_days", "only_new")}
    return table, caption, report | {"results": means, "by_history": histories, "lists": properties}, below


@command(__doc__, EvaluationOptions)
def main(options: EvaluationOptions) -> None:
    """Evaluates, prints the tables, and writes the files that the options name."""
    keep_freed_memory()
    table, caption, report, below = (_evaluate_offers if options.offers else _evaluate_visits)(options)
    print(f"\n{caption}", text_table(table), *below, sep="\n\n")
    if options.report_file:
        write_report(table, caption, Path(options.report_file))
    if options.output_file:
        write_json(options.output_file, report)
