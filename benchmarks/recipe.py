#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM by its defaults on logs of several kinds, beside counting: one page, made by the commands of the README alone.

    python benchmarks/recipe.py --report_file docs/results_recipe.md
    python benchmarks/recipe.py --toys toys.parquet --report_file docs/results_recipe.md --readme README.md

Logs: the Complete Journey (the demo), the synthetic shop, and, where its path is given, Toys and Games in the form
that S3-Rec published: a Parquet file with the columns user, time, event, item and attribute_1 to attribute_4, a row an
event, of which a customer's last is at 2024-04-01, the second last at 2024-03-01 and the others before. It is made
from data/Toys_and_Games.txt (a customer's items in their order) and data/Toys_and_Games_item2attributes.json of the
repository RUCAIBox/CIKM2020-S3Rec.

Each log is prepared, trained on once a seed, and evaluated at the test cutoff, whole and without each of its parts
(parts.py). What the best ranking of the shop would have is known (shop_truth.py). What is there already is not made
again, so a run that was stopped goes on.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from measuring import ROOT, print_or_write, write_sentence
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.reports import markdown_table
from modeling_mcm.evaluation.tables import history_groups
from modeling_mcm.files_mcm import write_text
from modeling_mcm.option import option
from recipe_tables import (
    MCM,
    Answers,
    Values,
    encoder_sentence,
    history_table,
    mean_of,
    method_table,
    part_table,
    truth_table,
    values_of,
)
from synthetic import make_click_log

TOYS = {
    "name": "toys",
    "customer": "user",
    "time": "time",
    "token_type": "event",
    "features": [{"name": name} for name in ("event", "item", *(f"attribute_{index}" for index in range(1, 5)))],
    "tasks": ["item"],
    "cutoffs": {"validation": "2024-03-01", "test": "2024-04-01"},
    "min_history": 1,
    "max_events": 100,
}
SHOP, SHOP_CUSTOMERS = "synthetic_shop", 6000
NEXT, HORIZON, HITS = "next_visit_ndcg@10", "horizon_ndcg@10", "next_visit_hr@10"
RIVALS = {"BERT4Rec": "configuration/ablations/bert4rec"}  # models of one task, with a training of their own for each
RIVAL = "--recipe none --ranking_loss_weight 0 --max_events 300 --per_device_train_batch_size 16".split()
RIVAL += "--learning_rate 0.002 --num_train_epochs 2 --eval_strategy epoch --save_strategy epoch".split()
RIVAL += "--save_total_limit 2 --load_best_model_at_end true".split()
SENTENCE = "encoder"  # the name of its lines in the README


@dataclass(frozen=True)
class Question:
    """What a model is evaluated on.

    Attributes:
        name (`str`): Name for people and files.
        metric (`str`): The metric of the table.
        options (`dict`): Options of `mcm evaluate`.
    """

    name: str
    metric: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Log:
    """A log, with the evaluations of its models.

    Attributes:
        name (`str`): Name for people and files.
        tasks (`list[str]`): Tasks of the tables.
        questions (`list[Question]`): The evaluations.
        prepare (`dict`): Options of `mcm prepare`.
        train (`dict`): Options of `mcm pretrain` besides data, output_dir and seed.
        rivals (`list[str]`): Other models, of `RIVALS`, for the first evaluation.
    """

    name: str
    tasks: tuple[str, ...]
    questions: tuple[Question, ...]
    prepare: tuple[str, ...]
    train: tuple[str, ...] = ("--config", "configuration/mcm-tiny")
    rivals: tuple[str, ...] = ()


@dataclass
class Options:
    """Options of the study."""

    toys: str | None = option(
        None, "Parquet file of the data set Toys and Games. By default that data set is left out."
    )
    seeds: list[int] = option([0, 1, 2], "Seeds of the trainings.")
    part_seeds: list[int] = option([0], "Seeds for which parts of the model are left out one by one.")
    rival_seeds: list[int] = option([0], "Seeds of BERT4Rec's trainings.")
    folder: str = option("build/recipe", "Folder for the data, the runs and their values.")
    only_made: bool = option(False, "The page from what is there: nothing is trained or evaluated.")
    report_file: str | None = option(None, "Markdown file to write. By default the page is printed.")
    readme: str | None = option(
        None, "File that gets a sentence on the encoder, between <!-- encoder --> and <!-- /encoder -->."
    )


def logs(options: Options, folder: Path) -> list[Log]:
    """Lists the logs, and makes the files of those that are not downloaded."""
    journey = Question("next visit", NEXT), Question("30 days", HORIZON, ("--horizon_days", "30"))
    journey += (Question("30 days, never bought", HORIZON, ("--horizon_days", "30", "--only_new")),)
    recipe = ("configuration/recipes/quickstart.yaml",)
    demo = ("--demo", "complete_journey")
    result = [Log("complete_journey", ("product_type", "product_category"), journey, demo, recipe, tuple(RIVALS))]
    shop = folder / "shop.parquet"
    if not shop.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_click_log(customers=SHOP_CUSTOMERS).events, shop)
    words = ("--events", str(shop), "--schema", "configuration/schemas/clickstream.yaml")
    result.append(Log(SHOP, ("item", "category"), (Question("next visit", NEXT),), words))
    if options.toys:
        schema = folder / "toys.yaml"
        write_text(schema, yaml.safe_dump(TOYS, sort_keys=False))
        questions = (Question("next item, seen ones filtered", NEXT, ("--filter_seen",)),)
        questions += (Question("the same, HR@10", HITS, ("--filter_seen",)),)
        result.append(Log("toys", ("item",), questions, ("--events", options.toys, "--schema", str(schema))))
    return result


def run(script: str, *words: Any) -> None:
    """Runs a script in a process of its own."""
    subprocess.run([sys.executable, str(ROOT / script), *map(str, words)], check=True, cwd=ROOT)


def files_of(log: Log, model: Path) -> list[tuple[Path, Path]]:
    """Names for each evaluation the file of metrics, and that of the model without its parts.

    Args:
        log (`Log`): The log.
        model (`Path`): Checkpoint folder.
    """
    options_of_questions = [question.options for question in log.questions]
    indices = [options_of_questions.index(options) for options in options_of_questions]
    return [(model / f"values-{index}.parquet", model / f"parts-{index}.parquet") for index in indices]


def make(log: Log, seed: int, folder: Path, parts: bool) -> list[tuple[Path, Path]]:
    """Prepares, trains and evaluates what is missing.

    Args:
        log (`Log`): The log to train on.
        seed (`int`): Seed of the training.
        folder (`Path`): Folder for everything.
        parts (`bool`): Whether to evaluate the model also without each of its parts.

    Returns:
        For each evaluation the file of metrics, and that of the model without its parts.
    """
    data, model = folder / log.name / "prepared", folder / log.name / f"seed-{seed}"
    run("training/prepare_data.py", *log.prepare, "--output_dir", data, "--reuse")
    if not (model / "pretraining.json").is_file():
        run("training/run_pretrain.py", *log.train, "--data", data, "--output_dir", model, "--seed", seed)
    files = files_of(log, model)
    for (whole, without), question in zip(files, log.questions, strict=True):
        words = ("--model", model, "--data", data, "--tasks", *log.tasks, *question.options, "--values_file")
        if not whole.is_file():
            run("training/run_evaluate.py", *words, whole)
        if parts and not without.is_file():
            run("benchmarks/parts.py", *words, without)
    return files


def make_rival(rival: str, task: str, log: Log, seed: int, options: Options) -> Path:
    """The values' file of a model of one task, which is trained and evaluated where it is missing and wanted."""
    folder = Path(options.folder).resolve()
    data, model = folder / log.name / "prepared", folder / log.name / f"{rival}-{task}-seed-{seed}"
    values = model / "values.parquet"
    if options.only_made:
        return values
    if not (model / "pretraining.json").is_file():
        alone = [f'{name}=["{task}"]' for name in ("tasks", "input_features")]
        words = ("--config", RIVALS[rival], *RIVAL, "--config_overrides", *alone, "--seed", seed)
        run("training/run_pretrain.py", *words, "--data", data, "--output_dir", model)
    if not values.is_file():
        words = ("--model", model, "--data", data, "--baselines", "none", "--tasks", task)
        run("training/run_evaluate.py", *words, "--values_file", values)
    return values


def answers_of(log: Log, options: Options, folder: Path) -> list[Answers]:
    """Collects all results of a log's evaluations."""
    if options.only_made:
        files_by_seed = {seed: files_of(log, folder / log.name / f"seed-{seed}") for seed in options.seeds}
    else:
        files_by_seed = {seed: make(log, seed, folder, seed in options.part_seeds) for seed in options.seeds}
    data = folder / log.name / "prepared"
    truth = folder / log.name / "truth.parquet"
    if log.name == SHOP and not truth.is_file() and not options.only_made:
        run("benchmarks/shop_truth.py", "--customers", SHOP_CUSTOMERS, "--data", data, "--values_file", truth)
    groups = history_groups(cases_at(PreparedData(data), "test"))
    answers = []
    for index, question in enumerate(log.questions):
        rivals: Values = {}
        for rival in () if index else log.rivals:
            files = {t: [make_rival(rival, t, log, seed, options) for seed in options.rival_seeds] for t in log.tasks}
            rivals[rival] = {
                task: mean_of([values_of(path, question.metric) for path in paths], MCM)[task]
                for task, paths in files.items()
                if all(path.is_file() for path in paths)
            }
        answers.append(
            Answers(
                log=log.name,
                question=question.name,
                tasks=log.tasks,
                seeds=[
                    values_of(files[index][0], question.metric)
                    for files in files_by_seed.values()
                    if files[index][0].is_file()
                ],
                parts=[
                    values_of(files_by_seed[seed][index][1], question.metric)
                    for seed in options.part_seeds
                    if files_by_seed[seed][index][1].is_file()
                ],
                groups=None if index else groups,
                rivals=rivals,
                truth=values_of(truth, question.metric) if truth.is_file() else None,
            )
        )
    return answers


def page(answers: Sequence[Answers], options: Options) -> str:
    """The page."""
    command = f"python benchmarks/recipe.py --seeds {' '.join(map(str, options.seeds))}"
    command += " --toys TOYS.parquet" if options.toys else ""
    lines = [
        "# Default settings on several logs",
        "",
        f"Written by `{command} --report_file docs/results_recipe.md --readme README.md`.",
        "",
        "Every model is `configuration/mcm-tiny` with the choices of [the recipe](recipe.md) and no other options; "
        "Complete Journey is the quickstart. Values are of test cases: NDCG@10, unless the question names another "
        "metric, as the mean over customers ± half of its 95% bootstrap interval. MCM is the mean of the seeds in its "
        "row. Differences are paired by customer, with their 95% intervals. BERT4Rec is one model for each task. It "
        "is trained for two epochs, as MCM, and the epoch that is better on validation is used; seeds "
        f"{', '.join(map(str, options.rival_seeds))}.",
        "",
        *markdown_table(method_table(answers)),
        "",
        "## What each part brings",
        "",
        "A part is left out of the sum of a trained model's scores, and the scales of the other parts are fitted "
        "again on validation cases. No model is trained again without the part. The models are those of seed "
        f'{" and ".join(map(str, options.part_seeds))}. "Readout" is the encoder, "repeats" is the repeat memory, '
        'and "followers", "habits" and "new" are the counted memory. Counting alone is all parts but the encoder.',
        "",
        *markdown_table(part_table(answers)),
        "",
        encoder_sentence(answers),
        "",
        "## The share of the possible",
        "",
        "The probabilities by which the synthetic shop's customers choose are known. The best ranking also knows the "
        "taste of each customer, which can't be read from the log.",
        "",
        *markdown_table(truth_table(answers)),
        "",
        "## By length of history",
        "",
        "The best of counting is chosen for each length on the same cases, which is an advantage for it.",
        "",
        *markdown_table(history_table(answers)),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Makes what is missing, and the page."""
    (options,) = parse_options(Options, description=__doc__)
    folder = Path(options.folder).resolve()
    answers = [answer for log in logs(options, folder) for answer in answers_of(log, options, folder)]
    text = page(answers, options)
    if options.readme:
        write_sentence(Path(options.readme), SENTENCE, encoder_sentence(answers))
    print_or_write(text, options.report_file)


if __name__ == "__main__":
    main()
