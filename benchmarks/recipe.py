#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM by its defaults on logs of several kinds, beside counting and BERT4Rec.

    python benchmarks/recipe.py
    python benchmarks/recipe.py --toys toys.parquet

Logs: the Complete Journey (the demo), the synthetic shop, and, where its path is given, Toys and Games in the form
that S3-Rec published: a Parquet file with the columns user, time, event, item and attribute_1 to attribute_4, a row an
event, of which a customer's last is at 2024-04-01, the second last at 2024-03-01 and the others before. It is made
from data/Toys_and_Games.txt (a customer's items in their order) and data/Toys_and_Games_item2attributes.json of the
repository RUCAIBox/CIKM2020-S3Rec.

Each log is prepared, trained on once a seed, and evaluated at the test cutoff. The best ranking of the shop is known
(synthetic_truth.py): sessions are drawn by the law that its customers follow. It knows each customer's taste, which
the log does not tell, so no model reaches it. What is there already is not made again, so a run that was stopped goes
on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray

from measuring import RESULTS, ROOT, run_training_script, write_table
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.metrics import bootstrap_interval, paired_difference
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.evaluation.reports import with_half_interval, with_interval
from modeling_mcm.files_mcm import write_text
from modeling_mcm.option import option
from synthetic import ClickLog, make_click_log
from synthetic_truth import session_gains

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
MCM, RIVAL = "MCM", "BERT4Rec"
NEXT, HORIZON, HITS = "next_visit_ndcg@10", "horizon_ndcg@10", "next_visit_hr@10"
RIVAL_OPTIONS = (  # a model of one task, with a training of its own for each
    "--config configuration/ablations/bert4rec --recipe none --max_events 300 "
    "--per_device_train_batch_size 16 --learning_rate 0.002 --num_train_epochs 2 --eval_strategy epoch "
    "--save_strategy epoch --save_total_limit 2 --load_best_model_at_end true"
).split()

Values = dict[str, dict[str, NDArray]]  # method -> task -> one value a customer, NaN without a target


@dataclass(frozen=True)
class Question:
    """An evaluation: its name, the metric of the table, and options of `mcm evaluate`."""

    name: str
    metric: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Log:
    """A log, its evaluations, the options of `mcm prepare` and `mcm pretrain`, and whether BERT4Rec is beside MCM."""

    name: str
    tasks: tuple[str, ...]
    questions: tuple[Question, ...]
    prepare: tuple[str, ...]
    train: tuple[str, ...] = ("--config", "configuration/mcm-tiny")
    with_rival: bool = False


@dataclass
class Options:
    """Options of the study."""

    toys: str | None = option(
        None, "Parquet file of the data set Toys and Games. By default that data set is left out."
    )
    seeds: list[int] = option([0, 1, 2], "Seeds of the trainings.")
    rival_seeds: list[int] = option([0], "Seeds of BERT4Rec's trainings.")
    folder: str = option("build/recipe", "Folder for the data, the runs and their values.")
    results: str = option(RESULTS, "Folder of the tables.")


@dataclass(frozen=True)
class Answers:
    """Results of one evaluation: of MCM and counting for each seed, of BERT4Rec, and of the best ranking."""

    log: str
    question: str
    tasks: tuple[str, ...]
    seeds: Sequence[Values]
    rivals: Values = field(default_factory=dict)
    truth: dict[str, NDArray] = field(default_factory=dict)

    @property
    def methods(self) -> Values:
        """Values of counting and of BERT4Rec, and the mean of MCM's over its seeds."""
        counted = {name: values for name, values in self.seeds[0].items() if name != MCM}
        return counted | self.rivals | {MCM: mean_of(self.seeds)}

    def best(self, task: str) -> str:
        """The best method of counting in a task."""
        counted = {name: by_task[task] for name, by_task in self.seeds[0].items() if name != MCM and task in by_task}
        return max(counted, key=lambda name: float(np.nanmean(counted[name])))


def logs(options: Options, folder: Path) -> list[Log]:
    """Lists the logs, and makes the files of those that are not downloaded."""
    month = ("--horizon_days", "30")
    journey = (
        Question("next visit", NEXT),
        Question("30 days", HORIZON, month),
        Question("30 days, never bought", HORIZON, (*month, "--only_new")),
    )
    recipe, demo = ("configuration/recipes/quickstart.yaml",), ("--demo", "complete_journey")
    result = [Log("complete_journey", ("product_type", "product_category"), journey, demo, recipe, with_rival=True)]
    shop = folder / "shop.parquet"
    if not shop.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_click_log(customers=SHOP_CUSTOMERS).events, shop)
    words = ("--events", str(shop), "--schema", str(ROOT / "configuration/schemas/clickstream.yaml"))
    result.append(Log(SHOP, ("item", "category"), (Question("next visit", NEXT),), words))
    if options.toys:
        schema = folder / "toys.yaml"
        write_text(schema, yaml.safe_dump(TOYS, sort_keys=False))
        questions: tuple[Question, ...] = (Question("next item, seen ones filtered", NEXT, ("--filter_seen",)),)
        questions += (Question("the same, HR@10", HITS, ("--filter_seen",)),)
        result.append(Log("toys", ("item",), questions, ("--events", options.toys, "--schema", str(schema))))
    return result


def values_of(path: Path, metric: str) -> Values:
    """Reads one metric of a values file."""
    frame = pq.read_table(path).filter(pc.field("metric") == metric).to_pandas()
    values: Values = {}
    for (method, task), rows in frame.groupby(["method", "task"]):
        values.setdefault(method, {})[task] = rows["value"].to_numpy()
    return values


def mean_of(seeds: Sequence[Values]) -> dict[str, NDArray]:
    """Computes for each task MCM's mean over seeds, one value a customer, so that intervals are those of customers."""
    return {task: np.mean([seed[MCM][task] for seed in seeds], axis=0) for task in seeds[0][MCM]}


def evaluated(data: Path, model: Path, train: Sequence[str], evaluate: Sequence[str], values: Path, seed: int) -> Path:
    """The values file of a model, which is trained and evaluated where it is missing."""
    if not (model / "pretraining.json").is_file():
        run_training_script("run_pretrain", *train, "--data", data, "--output_dir", model, "--seed", seed)
    if not values.is_file():
        words = ("--model", model, "--data", data, *evaluate)
        run_training_script("run_evaluate", *words, "--values_file", values)
    return values


def rival_values(log: Log, data: Path, options: Options, metric: str) -> Values:
    """BERT4Rec's values, the means over its seeds."""
    result: dict[str, NDArray] = {}
    for task in log.tasks:
        train = [*RIVAL_OPTIONS, "--config_overrides", f'tasks=["{task}"]', f'input_features=["{task}"]']
        evaluate = ["--baselines", "none", "--tasks", task]
        seeds = []
        for seed in options.rival_seeds:
            model = data.with_name(f"{RIVAL}-{task}-seed-{seed}")
            seeds.append(values_of(evaluated(data, model, train, evaluate, model / "values.parquet", seed), metric))
        result |= mean_of(seeds)
    return {RIVAL: result}


def true_values(log: ClickLog, data: PreparedData, metric: str) -> dict[str, NDArray]:
    """Values of the best ranking of the shop's test cases, by what each label adds to the expected NDCG@10."""
    cases, vocabularies = cases_at(data, "test"), data.extractor.vocabularies
    labels = {}
    for task, number in {"item": log.settings.items, "category": log.settings.categories}.items():
        ids = {value: index for index, value in enumerate(vocabularies[task], FIRST_LABEL)}
        labels[task] = np.array([ids.get(f"{task}-{label}", FIRST_LABEL - 1) for label in range(number)])
    customers = np.array(cases.customer_ids).astype(int)
    gains_by_task = session_gains(log, customers, data.schema.cutoff_seconds("test"), labels["item"])
    result = {}
    for (task, task_labels), gains in zip(labels.items(), gains_by_task, strict=True):
        scores = np.full((len(cases), len(vocabularies[task]) + FIRST_LABEL), -np.inf)
        known = task_labels >= FIRST_LABEL
        scores[:, task_labels[known]] = gains[:, known]
        ranks = TargetRanks(cases, task)
        ranks.add(np.arange(len(cases)), torch.from_numpy(scores))
        result[task] = ranks.metrics((10,))[metric]
    return result


def answers_of(log: Log, options: Options, folder: Path) -> list[Answers]:
    """Makes what is missing, and collects the results of a log's evaluations."""
    data = folder / log.name / "prepared"
    run_training_script("prepare_data", *log.prepare, "--output_dir", data, "--reuse")
    answers = []
    for question in log.questions:
        seeds = []
        for seed in options.seeds:
            model = data.with_name(f"seed-{seed}")
            file = model / f"values{''.join(question.options).replace('--', '-')}.parquet"
            words = ("--tasks", *log.tasks, *question.options)
            seeds.append(values_of(evaluated(data, model, log.train, words, file, seed), question.metric))
        first = question is log.questions[0]
        rivals = rival_values(log, data, options, question.metric) if first and log.with_rival else {}
        truth = {}
        if log.name == SHOP:
            truth = true_values(make_click_log(customers=SHOP_CUSTOMERS), PreparedData(data), question.metric)
        answers.append(Answers(log.name, question.name, log.tasks, seeds, rivals, truth))
    return answers


def mean_text(values: NDArray) -> str:
    """A mean with half of its interval."""
    return with_half_interval(bootstrap_interval(values), ".4f")


def method_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Makes a row for each method, with the difference to MCM."""
    rows = [["log", "question", "task", "method", "value", "MCM less it", "MCM over it"]]
    for answer in answers:
        for task in answer.tasks:
            for method in [name for name, by_task in answer.methods.items() if task in by_task]:
                values = answer.methods[method][task]
                if method == MCM:
                    by_seed = ", ".join(f"{np.nanmean(seed[MCM][task]):.4f}" for seed in answer.seeds)
                    cells = [f"seeds: {by_seed}" if len(answer.seeds) > 1 else "", ""]
                else:
                    pair = paired_difference(answer.methods[MCM][task], values)
                    cells = [with_interval(pair.absolute, "+.4f"), with_interval(pair.relative, "+.1%")]
                rows.append([answer.log, answer.question, task, method, mean_text(values), *cells])
    return rows


def truth_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Compares MCM and the best of counting with the best possible ranking."""
    rows = [["log", "question", "task", "method", "value", "share of the possible"]]
    for answer in answers:
        for task, possible in answer.truth.items():
            rows.append([answer.log, answer.question, task, "the best ranking", mean_text(possible), "100%"])
            for method in (MCM, answer.best(task)):
                values = answer.methods[method][task]
                share = paired_difference(values, possible).relative
                words = f"{1 + share.mean:.1%} [{1 + share.low:.1%}, {1 + share.high:.1%}]"
                rows.append([answer.log, answer.question, task, method, mean_text(values), words])
    return rows


def main() -> None:
    """Makes what is missing, and the tables."""
    (options,) = parse_options(Options, description=__doc__)
    folder = Path(options.folder).resolve()
    answers = [answer for log in logs(options, folder) for answer in answers_of(log, options, folder)]
    write_table(options.results, "several_logs", "Default settings; values of test cases.", method_table(answers))
    write_table(options.results, "possible", "Share of the best possible ranking.", truth_table(answers))


if __name__ == "__main__":
    main()
