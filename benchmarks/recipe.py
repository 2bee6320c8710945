#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM by its defaults on logs of several kinds, beside counting: one table, made by the commands of the README alone.

    python benchmarks/recipe.py --report_file docs/results_recipe.md
    python benchmarks/recipe.py --toys toys.parquet --seeds 0 1 2 --report_file docs/results_recipe.md

Logs: the Complete Journey (the demo), the synthetic shop, and, where its path is given, Toys and Games in the form
that S3-Rec published: a Parquet file with the columns user, time, event, item and attribute_1 to attribute_4, a row an
event, of which a customer's last is at 2024-04-01, the second last at 2024-03-01 and the others before. It is made
from data/Toys_and_Games.txt (a customer's items in their order) and data/Toys_and_Games_item2attributes.json of the
repository RUCAIBox/CIKM2020-S3Rec.

Each log is prepared, trained on once a seed, and evaluated at the test cutoff. What is there already is not made
again, so a run that was stopped goes on.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from modeling_mcm.data.synthetic import make_click_log
from modeling_mcm.evaluation.metrics import bootstrap_interval, paired_difference

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from arguments import parse_options

ROOT = Path(__file__).resolve().parents[1]

TOYS = {
    "name": "toys",
    "customer": "user",
    "time": "time",
    "token_type": "event",
    "features": [{"name": name} for name in ("event", "item", *(f"attribute_{place}" for place in range(1, 5)))],
    "tasks": ["item"],
    "cutoffs": {"validation": "2024-03-01", "test": "2024-04-01"},
    "min_history": 1,
    "max_events": 100,
}
SHOP_CUSTOMERS = 6000
NEXT, HORIZON = "next_visit_ndcg@10", "horizon_ndcg@10"


@dataclass(frozen=True)
class Question:
    """What is asked of a model.

    Attributes:
        name: for people and files.
        metric: the one that is shown.
        options: of run_evaluate.
    """

    name: str
    metric: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Log:
    """A log and what is asked of its models.

    Attributes:
        name: for people and files.
        tasks: that are shown.
        questions: that are asked.
        prepare: options of prepare_data.
        train: options of run_pretrain besides data, output_dir and seed.
    """

    name: str
    tasks: tuple[str, ...]
    questions: tuple[Question, ...]
    prepare: tuple[str, ...]
    train: tuple[str, ...] = ("--config", "configuration/mcm-tiny")


@dataclass
class Options:
    """Options of the study."""

    toys: str | None = field(default=None, metadata={"help": "Parquet file of Toys and Games; left out if not given."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of the trainings."})
    folder: str = field(default="build/recipe", metadata={"help": "Folder for the data, the runs and their values."})
    report_file: str | None = field(default=None, metadata={"help": "Markdown file to write; printed if not given."})


def logs(options: Options, folder: Path) -> list[Log]:
    """The logs, whose files are made where they are not downloaded."""
    journey = Question("next visit", NEXT), Question("30 days", HORIZON, ("--horizon_days", "30"))
    journey += (Question("30 days, never bought", HORIZON, ("--horizon_days", "30", "--only_new")),)
    recipe = ("configuration/recipes/quickstart.yaml",)
    demo = ("--demo", "complete_journey")
    found = [Log("complete_journey", ("product_type", "product_category"), journey, demo, recipe)]
    shop = folder / "shop.parquet"
    if not shop.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_click_log(customers=SHOP_CUSTOMERS).events, shop)
    words = ("--events", str(shop), "--schema", "configuration/schemas/clickstream.yaml")
    found.append(Log("synthetic_shop", ("item", "category"), (Question("next visit", NEXT),), words))
    if options.toys:
        schema = folder / "toys.yaml"
        schema.write_text(yaml.safe_dump(TOYS, sort_keys=False), encoding="utf-8")
        asked = (Question("next item, seen ones filtered", NEXT, ("--filter_seen",)),)
        found.append(Log("toys", ("item",), asked, ("--events", options.toys, "--schema", str(schema))))
    return found


def run(script: str, *words: Any) -> None:
    """Runs a script of training/ as a person would."""
    subprocess.run([sys.executable, str(ROOT / "training" / script), *map(str, words)], check=True, cwd=ROOT)


def make(log: Log, seed: int, folder: Path) -> dict[str, Path]:
    """Prepares, trains and evaluates what is not there yet; returns the values' files by question."""
    data, model = folder / log.name / "prepared", folder / log.name / f"seed-{seed}"
    run("prepare_data.py", *log.prepare, "--output_dir", data, "--reuse")
    if not (model / "pretraining.json").is_file():
        run("run_pretrain.py", *log.train, "--data", data, "--output_dir", model, "--seed", seed)
    files = {}
    for place, question in enumerate(log.questions):
        files[question.name] = model / f"values-{place}.parquet"
        if not files[question.name].is_file():
            words = ("--values_file", files[question.name], "--shown", 0, "--tasks", *log.tasks)
            run("run_evaluate.py", "--model", model, "--data", data, *words, *question.options)
    return files


def values_of(path: Path, metric: str) -> dict[str, dict[str, np.ndarray]]:
    """Method -> task -> one value a case."""
    table = pq.read_table(path).filter(pc.field("metric") == metric)
    found: dict[str, dict[str, np.ndarray]] = {}
    for method, task in sorted(set(zip(*(table[name].to_pylist() for name in ("method", "task")), strict=True))):
        rows = table.filter((pc.field("method") == method) & (pc.field("task") == task))
        found.setdefault(method, {})[task] = rows["value"].to_numpy()
    return found


def rows_of(log: Log, question: Question, files: Sequence[Path]) -> list[list[str]]:
    """The table's rows of a question: each method's mean and half its interval, and MCM beside the best of them."""
    runs = [values_of(path, question.metric) for path in files]
    ours = {task: np.mean([run["MCM"][task] for run in runs], axis=0) for task in log.tasks}  # over seeds, by customer
    methods = {name: values for name, values in runs[0].items() if name != "MCM"} | {"MCM": ours}
    rows = []
    for method, by_task in methods.items():
        cells = []
        for task in log.tasks:
            interval = bootstrap_interval(by_task[task])
            cells.append(f"{interval.mean:.4f} ± {(interval.high - interval.low) / 2:.4f}")
        rows.append([log.name, question.name, method, "; ".join(cells)])
    cells = []
    for task in log.tasks:
        others = {name: np.nanmean(by_task[task]) for name, by_task in methods.items() if name != "MCM"}
        best = max(others, key=lambda name: others[name])
        difference = paired_difference(ours[task], methods[best][task]).absolute
        cells.append(f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] over {best}")
    rows.append([log.name, question.name, "**MCM less the best of these**", "; ".join(cells)])
    return rows


def page(rows: Sequence[Sequence[str]], options: Options, chosen: Sequence[Log]) -> str:
    """The page."""
    tasks = "; ".join(f"{log.name}: {' and '.join(log.tasks)}" for log in chosen)
    lines = ["| log | question | method | NDCG@10 |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    command = f"python benchmarks/recipe.py --seeds {' '.join(map(str, options.seeds))}"
    command += " --toys TOYS.parquet" if options.toys else ""
    return "\n".join(
        [
            "# By the defaults, on several logs",
            "",
            f"Written by `{command} --report_file docs/results_recipe.md`. Every model is `configuration/mcm-tiny` "
            "with what [the recipe](recipe.md) chose, without other options; Complete Journey is the quickstart. Test "
            "cases, mean over customers ± half of its 95% bootstrap interval; MCM is the mean of "
            f"{len(options.seeds)} seed{'s' * (len(options.seeds) > 1)}. The last row of a question is the difference "
            "in pairs of customers to the best of the other methods, with its 95% interval. Tasks, in this order: "
            f"{tasks}.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    """Makes what is missing, and the page."""
    (options,) = parse_options(Options, description=__doc__)
    folder = Path(options.folder).resolve()
    rows = []
    chosen = logs(options, folder)
    for log in chosen:
        made = [make(log, seed, folder) for seed in options.seeds]
        for question in log.questions:
            rows += rows_of(log, question, [files[question.name] for files in made])
    text = page(rows, options, chosen)
    if options.report_file:
        Path(options.report_file).write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
