#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's ablation beside ours and the counting baselines, each trained to its best.

    python benchmarks/run_ablation.py --data data/complete_journey/prepared --seeds 0 1 2

Every model trains until validation gets no better for some epochs. BERT4Rec and MCM_Single predict one task, so there
is one of them for each task; the others are one model for all tasks of the event schema.

Finished runs with the same options, configuration and data are kept, so it may be interrupted and run again. A change
of the code is not noticed: remove the output folder then.
"""

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from measuring import RESULTS, ROOT, is_finished, run_training_script, write_record, write_table
from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.evaluation.cases import EvaluationCases, cases_at
from modeling_mcm.evaluation.comparison import BASELINES, NEEDS, counting_baselines, not_installed
from modeling_mcm.evaluation.metrics import average_relative_difference, bootstrap_interval, paired_difference
from modeling_mcm.evaluation.model import model_values
from modeling_mcm.evaluation.reports import with_half_interval, with_interval
from modeling_mcm.evaluation.tables import write_values
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.option import option

logger = logging.getLogger("run_ablation")
METRICS = {"next_visit_ndcg@10": "next visit NDCG@10", "next_event_ndcg@10": "next event NDCG@10"}
COSTS = {  # of pretraining.json: title and format
    "seconds": ("seconds", ",.0f"),
    "steps": ("steps", ",.0f"),
    "targets": ("targets", ",.0f"),
    "parameters": ("parameters", ",.0f"),
    "batch_size": ("batch", ",.0f"),
    "max_events": ("window", ",.0f"),
    "learning_rate": ("learning rate", "g"),
}
UNBOUNDED = 1_000_000  # epochs: validation ends a run
Values = dict[tuple[str, str], NDArray[np.float64]]  # (task, metric) -> one value a customer


@dataclass(frozen=True)
class AblatedModel:
    """A step of the ablation: its name in the tables, its configuration, and how it is trained.

    `fields_of_task` are the fields of the configuration that hold the task of a model that predicts only one; `tasks`
    is among them, so that no time goes into scores that nobody asks for. `max_events` is the window, the schema's by
    default: an encoder of events takes a time that grows with its square. `by_recipe` leaves all else to the recipe
    (docs/recipe.md), which only ours has.
    """

    name: str
    config: str
    fields_of_task: tuple[str, ...] = ()
    batch_size: int = 16
    learning_rate: float = 2e-3
    max_events: int | None = 300
    by_recipe: bool = False


# One target a customer makes small steps noisy, hence the larger batches of the prefixes.
MODELS = (
    AblatedModel("BERT4Rec", "configuration/ablations/bert4rec", ("tasks", "input_features")),
    AblatedModel("MCM_Single", "configuration/ablations/mcm-single", ("tasks",)),
    AblatedModel("MCM_MTL", "configuration/ablations/mcm-mtl", batch_size=32),
    AblatedModel("MCM_final", "configuration/ablations/mcm-final", batch_size=32),
    AblatedModel("ours", "configuration/mcm-tiny", max_events=None, by_recipe=True),
)
BERT4REC, OURS = MODELS[0].name, MODELS[-1].name


@dataclass
class AblationOptions:
    """What is compared, for how long, and where it is written."""

    data: str | None = option(None, "Folder of a prepared data set.")
    tasks: list[str] = option(["product_type", "product_category"], "Tasks of the tables.")
    models: list[str] = option(
        help=f"Which are trained; {BERT4REC} and {OURS} are needed.", factory=lambda: [model.name for model in MODELS]
    )
    seeds: list[int] = option([0, 1, 2], "Seeds; every model is trained once for each.")
    patience: int = option(3, "Epochs in a row without a better validation after which a training ends.")
    max_steps: int = option(-1, "Steps after which a training ends at the latest; -1 for no limit.")
    cutoff: str = option(
        "test", "Cutoff at which the history ends and the targets begin.", choices=["validation", "test"]
    )
    output_dir: str = option("runs/ablation", "Folder for the runs.")
    results: str = option(RESULTS, "Folder of the tables.")

    def __post_init__(self):
        if not (self.patience > 0 and self.seeds and self.tasks):
            raise ValueError("--patience must be positive, and --seeds and --tasks name at least one each.")
        known = [model.name for model in MODELS]
        if not {BERT4REC, OURS} <= set(self.models) <= set(known):
            raise ValueError(
                f"Found --models {' '.join(self.models)}; expected {BERT4REC}, {OURS} and any of {', '.join(known)}."
            )


@dataclass(frozen=True)
class Run:
    """A model to train and evaluate, with the tasks that it predicts."""

    model: AblatedModel
    tasks: list[str]
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Its name in the table of costs, where models of one task stand alone."""
        return f"{self.model.name} ({self.tasks[0]})" if self.model.fields_of_task else self.model.name


def training_runs(options: AblationOptions) -> Iterator[Run]:
    """All runs to make, seed by seed."""
    for seed in options.seeds:
        for model in (model for model in MODELS if model.name in options.models):
            for tasks in [[task] for task in options.tasks] if model.fields_of_task else [options.tasks]:
                suffix = f"-{tasks[0]}" if model.fields_of_task else ""
                yield Run(
                    model, tasks, seed, Path(options.output_dir, f"{Path(model.config).name}{suffix}-seed{seed}")
                )


def train(run: Run, options: AblationOptions, data: str) -> dict[str, Any]:
    """Trains a model unless it was, in a process of its own; returns what identifies the run."""
    model = run.model
    overrides = [f"{name}={json.dumps(run.tasks)}" for name in model.fields_of_task]
    settings: dict[str, Any] = {"max_steps": options.max_steps, "seed": run.seed}
    settings["early_stopping_patience"] = options.patience
    if not model.by_recipe:
        settings |= {"per_device_train_batch_size": model.batch_size, "learning_rate": model.learning_rate}
    if model.max_events is not None:
        settings["max_events"] = model.max_events
    config = json.loads((ROOT / model.config / "config.json").read_text(encoding="utf-8"))
    identity = {"data": data, "config": config, "config_overrides": overrides, "recipe": model.by_recipe, **settings}
    record = run.folder / "trained.json"
    existed = record.exists()
    if is_finished(record, identity):
        logger.info("%s is trained.", run.folder)
        return identity
    if existed:  # of other options or data: a training would leave it alone
        shutil.rmtree(run.folder)
    flags = {"data": options.data, "config": ROOT / model.config, "output_dir": run.folder, **settings}
    flags |= {"num_train_epochs": UNBOUNDED, "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}
    flags |= {"report_to": "none", "disable_tqdm": True} | ({} if model.by_recipe else {"recipe": "none"})
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--config_overrides", *overrides] if overrides else []
    logger.info("%s trains.", run.folder)
    run_training_script("run_pretrain", *words)
    write_record(record, identity)
    return identity


def evaluate_run(run: Run, identity: dict[str, Any], rows: Any, cases: EvaluationCases) -> None:
    """Writes the values of a trained model's cases, unless they are there."""
    record = run.folder / f"evaluated-{cases.cutoff}.json"
    evaluated = {"trained": identity, "tasks": run.tasks}
    if is_finished(record, evaluated):
        return
    model = MCMForMultiTaskRecommendation.from_pretrained(run.folder).eval()
    extractor = MCMFeatureExtractor.from_pretrained(str(run.folder))
    values = model_values(model, extractor, rows, cases, run.tasks, [10])
    write_values(run.folder / f"values-{cases.cutoff}.parquet", cases.customer_ids, {run.model.name: values})
    write_record(record, evaluated)


def evaluate_counting(
    folder: Path, data: str, tasks: Sequence[str], extractor: MCMFeatureExtractor, rows: Any, cases: EvaluationCases
) -> None:
    """Writes the values of all baselines that are installed, unless they are there."""
    missing = not_installed(list(BASELINES))
    for name in missing:
        logger.warning("Without %s: `pip install modeling-mcm[%s]` adds it.", name, NEEDS[name])
    baselines = [name for name in BASELINES if name not in missing]
    record = folder / f"evaluated-{cases.cutoff}.json"
    evaluated = {"data": data, "tasks": list(tasks), "baselines": baselines}
    if is_finished(record, evaluated):
        return
    label_sizes = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True))
    sizes = {task: label_sizes[task] for task in tasks}
    values = counting_baselines(rows, cases, sizes, baselines, [10])
    write_values(folder / f"values-{cases.cutoff}.parquet", cases.customer_ids, values)
    write_record(record, evaluated)


def read_values(path: Path) -> dict[str, Values]:
    """Reads for each method of a file of metrics the values in the order of the customers."""
    frame = pq.read_table(path, filters=[("metric", "in", list(METRICS))]).to_pandas()
    methods: dict[str, Values] = {}
    for (method, task, metric), rows in frame.groupby(["method", "task", "metric"], sort=False):
        methods.setdefault(method, {})[task, metric] = rows["value"].to_numpy()
    return methods


def value_table(methods: dict[str, Values], by_seed: dict[str, dict[int, Values]], tasks: Sequence[str]) -> Any:
    """Makes a row for each task and method, with the means of its seeds."""
    first = next(iter(METRICS))
    rows = [["task", "method", *METRICS.values(), f"{METRICS[first]} by seed"]]
    for task in tasks:
        for method, values in methods.items():
            cells = [with_half_interval(bootstrap_interval(values[task, metric])) for metric in METRICS]
            seeds = [f"{np.nanmean(of_seed[task, first]):.3f}" for of_seed in by_seed.get(method, {}).values()]
            rows.append([task, method, *cells, " ".join(seeds)])
    return rows


def difference_table(methods: dict[str, Values], tasks: Sequence[str]) -> list[list[str]]:
    """Makes a row for each metric and method: how much better ours is, relative and paired by customer."""
    rows = [["metric", "method", *tasks, "average over tasks"]]
    for metric, title in METRICS.items():
        for method, values in methods.items():
            if method == OURS:
                continue
            pairs = [(methods[OURS][task, metric], values[task, metric]) for task in tasks]
            differences = [paired_difference(*pair).relative for pair in pairs]
            differences.append(average_relative_difference(*(np.stack(side) for side in zip(*pairs, strict=True))))
            rows.append([title, method, *(with_interval(difference, "+.1%") for difference in differences)])
    return rows


def cost_table(runs: Sequence[Run]) -> list[list[str]]:
    """Makes a row for what the training of each model took, as the mean over its seeds."""
    facts: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        facts.setdefault(run.name, []).append(json.loads((run.folder / "pretraining.json").read_text("utf-8")))
    rows = [["model", *(title for title, _ in COSTS.values())]]
    for name, of_seeds in facts.items():
        rows.append([name, *(f"{np.mean([f[key] for f in of_seeds]):{form}}" for key, (_, form) in COSTS.items())])
    return rows


def compare(options: AblationOptions) -> None:
    """Trains and evaluates what is missing, and writes the tables."""
    prepared = PreparedData(str(options.data))
    rows, extractor = prepared.rows, prepared.extractor
    if wrong := [task for task in options.tasks if task not in extractor.tasks]:
        raise SystemExit(f"No tasks {wrong}; the data set has {', '.join(extractor.tasks)}.")
    data = file_digest(prepared.folder / MANIFEST_FILE)
    cases = cases_at(prepared, options.cutoff)

    counting = Path(options.output_dir, "baselines")
    evaluate_counting(counting, data, options.tasks, extractor, rows, cases)
    by_seed: dict[str, dict[int, Values]] = {}
    runs = list(training_runs(options))
    for run in runs:
        evaluate_run(run, train(run, options, data), rows, cases)
        values = read_values(run.folder / f"values-{options.cutoff}.parquet")[run.model.name]
        by_seed.setdefault(run.model.name, {}).setdefault(run.seed, {}).update(values)
    # a customer's value is the mean over seeds, so that intervals are those of customers
    methods = read_values(counting / f"values-{options.cutoff}.parquet")
    for model, seeds in by_seed.items():
        methods[model] = {
            key: np.mean([of_seed[key] for of_seed in seeds.values()], axis=0) for key in seeds[options.seeds[0]]
        }
    caption = f"{len(cases):,} {options.cutoff} cases of {prepared.schema.name}"
    write_table(options.results, "all_methods", caption, value_table(methods, by_seed, options.tasks))
    write_table(options.results, "ours_over", caption, difference_table(methods, options.tasks))
    write_table(
        options.results, "training_cost", "Means over seeds; a target is a label with a loss.", cost_table(runs)
    )


def main() -> None:
    """Reads the options, trains and evaluates what is missing, and writes the tables."""
    (options,) = parse_options(AblationOptions, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.data is None:
        raise SystemExit("--data is missing: the folder that training/prepare_data.py wrote.")
    try:
        with needs("evaluation"):  # before the hours of training
            import scipy.sparse  # noqa: F401
        compare(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_ablation: {error}")


if __name__ == "__main__":
    main()
