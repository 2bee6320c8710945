#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's ablation beside ours and the counting baselines, each trained to its best; writes the results page.

    python benchmarks/run_ablation.py --data data/complete_journey/prepared --seeds 0 1 2

Every model trains until validation gets no better for some epochs, or until a limit of seconds. BERT4Rec and
MCM_Single predict one task, so there is one of them for each task, each with all that time; the others are one model
for all tasks of the event schema. Leave the machine to it: what else runs takes from the seconds of a training.

Finished runs with the same options, configuration and data are kept, so it may be interrupted and run again. A change
of the code is not noticed: remove the output folder then.
"""

import json
import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_report import FinishedRun, draw_bars, draw_curves, summarize, write_page
from measuring import ROOT, is_finished, write_record
from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.evaluation.cases import EvaluationCases, cases_at
from modeling_mcm.evaluation.comparison import BASELINES, NEEDS, counting_baselines, not_installed
from modeling_mcm.evaluation.model import model_values
from modeling_mcm.evaluation.tables import write_values
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest, write_json
from modeling_mcm.option import option

logger = logging.getLogger("run_ablation")
LENGTHS = [1, 3, 10]
PAPER_OBJECTIVE = {"ranking_loss_weight": 0.0, "target_half_life_days": 0.0}  # equation 4 alone, all times alike
UNBOUNDED = 1_000_000  # epochs: validation or the clock ends a run


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
    max_seconds: float = option(3600.0, "Seconds after which the training of a model and seed ends at the latest.")
    cutoff: str = option(
        "test", "Cutoff at which the history ends and the targets begin.", choices=["validation", "test"]
    )
    output_dir: str = option("runs/ablation", "Folder for the runs and results.json.")
    report: str = option("docs/results.md", "Markdown file of the page to write; its pictures are written beside it.")

    def __post_init__(self):
        if not (self.max_seconds > 0 and self.patience > 0 and self.seeds and self.tasks):
            raise ValueError(
                "--max_seconds and --patience must be positive, and --seeds and --tasks name at least one each."
            )
        known = [model.name for model in MODELS]
        if not {BERT4REC, OURS} <= set(self.models) <= set(known):
            raise ValueError(
                f"Found --models {' '.join(self.models)}; expected {BERT4REC}, {OURS} and any of {', '.join(known)}."
            )


def training_runs(options: AblationOptions) -> Iterator[tuple[AblatedModel, FinishedRun]]:
    """All runs to make, seed by seed."""
    for seed in options.seeds:
        for model in (model for model in MODELS if model.name in options.models):
            for tasks in [[task] for task in options.tasks] if model.fields_of_task else [options.tasks]:
                suffix = f"-{tasks[0]}" if model.fields_of_task else ""
                folder = Path(options.output_dir, f"{Path(model.config).name}{suffix}-seed{seed}")
                yield model, FinishedRun(model.name, tasks, seed, folder, bool(model.fields_of_task))


def train(model: AblatedModel, run: FinishedRun, options: AblationOptions, data: str) -> dict[str, Any]:
    """Trains a model unless it was, in a process of its own; returns what identifies the run."""
    overrides = [f"{name}={json.dumps(run.tasks)}" for name in model.fields_of_task]
    settings: dict[str, Any] = {"max_seconds": options.max_seconds, "seed": run.seed}
    settings["early_stopping_patience"] = options.patience
    if not model.by_recipe:
        settings |= PAPER_OBJECTIVE
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
    flags |= {"num_train_epochs": UNBOUNDED, "logging_steps": 10, "logging_first_step": True}
    flags |= {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}
    flags |= {"report_to": "none", "disable_tqdm": True} | ({} if model.by_recipe else {"recipe": "none"})
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--config_overrides", *overrides] if overrides else []
    logger.info("%s trains for at most %g seconds.", run.folder, options.max_seconds)
    subprocess.run([sys.executable, str(ROOT / "training" / "run_pretrain.py"), *words], check=True)
    write_record(record, identity)
    return identity


def evaluate_run(run: FinishedRun, identity: dict[str, Any], rows: Any, cases: EvaluationCases) -> None:
    """Writes the values of a trained model's cases, unless they are there."""
    record = run.folder / f"evaluated-{cases.cutoff}.json"
    evaluated = {"trained": identity, "tasks": run.tasks, "lengths": LENGTHS}
    if is_finished(record, evaluated):
        return
    model = MCMForMultiTaskRecommendation.from_pretrained(run.folder).eval()
    extractor = MCMFeatureExtractor.from_pretrained(str(run.folder))
    values = model_values(model, extractor, rows, cases, run.tasks, LENGTHS)
    write_values(run.values_file(cases.cutoff), cases.customer_ids, {run.model: values})
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
    evaluated = {"data": data, "tasks": list(tasks), "lengths": LENGTHS, "baselines": baselines}
    if is_finished(record, evaluated):
        return
    label_sizes = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True))
    sizes = {task: label_sizes[task] for task in tasks}
    values = counting_baselines(rows, cases, sizes, baselines, LENGTHS)
    write_values(folder / f"values-{cases.cutoff}.parquet", cases.customer_ids, values)
    write_record(record, evaluated)


def main() -> None:
    """Reads the options, trains and evaluates what is missing, and writes the page from the files of the runs."""
    (options,) = parse_options(AblationOptions, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.data is None:
        raise SystemExit("--data is missing: the folder that training/prepare_data.py wrote.")
    try:
        with needs("evaluation"):  # before the hours of training
            import scipy.sparse  # noqa: F401
        page = compare(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_ablation: {error}")
    logger.info("%s is written.", page)


def compare(options: AblationOptions) -> Path:
    """Trains and evaluates what is missing; gives the page that it has written."""
    prepared = PreparedData(str(options.data))
    rows, extractor = prepared.rows, prepared.extractor
    if wrong := [task for task in options.tasks if task not in extractor.tasks]:
        raise SystemExit(f"No tasks {wrong}; the data set has {', '.join(extractor.tasks)}.")
    data = file_digest(prepared.folder / MANIFEST_FILE)
    cases = cases_at(prepared, options.cutoff)

    counting = Path(options.output_dir, "baselines")
    evaluate_counting(counting, data, options.tasks, extractor, rows, cases)
    runs = []
    for model, run in training_runs(options):
        evaluate_run(run, train(model, run, options, data), rows, cases)
        runs.append(run)

    results = summarize(runs, counting, options.cutoff, options.tasks, ours=OURS, reference=BERT4REC)
    results["command"] = shlex.join(["python", "benchmarks/run_ablation.py", *sys.argv[1:]])
    results |= {"data": prepared.schema.name, "patience": options.patience, "max_seconds": options.max_seconds}
    write_json(Path(options.output_dir, "results.json"), results)
    page = Path(options.report)
    pictures = page.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    draw_bars(results, pictures / "ablation_ndcg.png")
    draw_curves(runs, options.tasks, pictures / "ablation_curves.png")
    write_page(results, page, ["pictures/ablation_ndcg.png", "pictures/ablation_curves.png"])
    return page


if __name__ == "__main__":
    main()
