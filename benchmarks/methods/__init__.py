# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The methods of docs/results.md, a file each or a family. To add one, write a file here with a list `METHODS`."""

import importlib
import json
import pkgutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from logs import Log, Question, run_mcm
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation import comparison_cases, distinct_targets, ndcg_at_k, recall_at_k, unseen_only

TOP, FIRST_LABEL = 10, 2  # ids 0 and 1 are no label and an unknown one


class Answer(NamedTuple):
    """What a task's lists of the best ten labels are worth: by case, NaN without a target, and for all of them."""

    ndcg: NDArray[np.float64]  # (cases,)
    recall: NDArray[np.float64]  # (cases,)
    coverage: float  # share of all labels that are in a list


Answers = dict[str, Answer]  # by task


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name (`str`): Its name in the tables.
        fit (callable): From a log, its prepared data, a seed and a folder of its own to what answers a [`Question`] at
            the test cutoff, before which it may read events; None if the method has no answer for such a log.
        seeds (`bool`): Whether its result depends on the seed.
        tuned (`str`): What was chosen on this log, in words.
        packages (tuple of `str`): Packages whose versions matter.
    """

    name: str
    fit: Callable[[Log, PreparedData, int, Path], Callable[[Question], Answers] | None]
    seeds: bool = False
    tuned: str = "nothing"
    packages: tuple[str, ...] = ("numpy",)


def find_methods() -> list[Method]:
    """The methods of all files of this folder, in the order of the names of the files."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [method for module in modules for method in module.METHODS]


@cache
def evaluate(
    data: Path, model: Path, tasks: tuple[str, ...], question: Question, *baselines: str
) -> dict[str, Answers]:
    """By method what `mcm evaluate` says of a model, as "MCM", and of baselines at the test cutoff."""
    options = {"horizon_days": question.horizon_days} if question.horizon_days else {}
    flags = ["--only_new"] if question.only_new else []
    with tempfile.TemporaryDirectory() as folder:
        values, report = Path(folder, "values.parquet"), Path(folder, "report.json")
        options |= {"tasks": tasks, "k": TOP, "baselines": baselines or "none"}
        run_mcm("evaluate", *flags, model=model, data=data, values_file=values, output_file=report, **options)
        table, lists = pd.read_parquet(values), json.loads(report.read_text(encoding="utf-8"))["lists"]
    target = "horizon" if question.horizon_days else "next_visit"
    found: dict[str, Answers] = {}
    for (method, task), part in table.groupby(["method", "task"]):
        ndcg, recall = (
            part["value"][part["metric"] == f"{target}_{name}@{TOP}"].to_numpy() for name in ("ndcg", "recall")
        )
        found.setdefault(method, {})[task] = Answer(ndcg, recall, lists[method][task]["coverage"])
    return found


def labelled_events(data: PreparedData, task: str) -> pd.DataFrame:
    """The events with a label of a task, oldest first: columns customer, time, item (the label's id) and part, which
    is 0 before the validation cutoff, 1 before the test cutoff and 2 after it."""
    names = {"customer_id": "customer", "times": "time", f"task_{task}": "item"}
    rows = data.rows.select_columns([*names, "validation_end", "test_end"]).to_pandas()
    events = rows.rename(columns=names).explode(["time", "item"]).dropna(subset=["item"])
    place = events.groupby(level=0).cumcount()
    events["part"] = (place >= events.pop("validation_end")).astype(int) + (place >= events.pop("test_end"))
    return events[events["item"] >= FIRST_LABEL].astype({"time": "int64", "item": "int64"})


def select_cases(data: PreparedData, question: Question, cutoff: str = "test"):
    """The cases of a question."""
    cases = comparison_cases(data, cutoff, horizon_days=question.horizon_days)
    return unseen_only(data.rows, cases) if question.only_new else cases


def judge(data: PreparedData, cases, task: str, lists: NDArray[np.int64]) -> Answer:
    """What the lists of label ids of the cases, best first and 0 where they end, `(cases, 10)`, are worth."""
    targets = cases.targets[task]
    labels, counts = distinct_targets(targets.case, targets.labels, len(cases))
    is_hit = (labels[:, :, None] == lists[:, None]) & (labels >= FIRST_LABEL)[:, :, None]  # (cases, targets, 10)
    ranks = np.where(is_hit.any(2), is_hit.argmax(2), TOP), np.ones_like(labels), counts > 0
    coverage = len(np.unique(lists[lists >= FIRST_LABEL])) / len(data.extractor.vocabularies[task])
    return Answer(ndcg_at_k(*ranks, TOP), recall_at_k(*ranks, TOP), coverage)


def answer_with_lists(data: PreparedData, tasks: tuple[str, ...], make_lists: Callable[..., NDArray[np.int64]]):
    """What answers questions with lists, which `make_lists` makes of cases and a task."""

    def answer(question: Question) -> Answers:
        cases = select_cases(data, question)
        return {task: judge(data, cases, task, make_lists(cases, task)) for task in tasks if task in cases.targets}

    return answer
