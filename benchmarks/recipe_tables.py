# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of recipe.py, from the values of customers in files that scripts wrote; nothing is typed here.

A customer's value of a method is the mean over its seeds, so that intervals are those of customers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from modeling_mcm.evaluation.metrics import bootstrap_interval, paired_difference
from modeling_mcm.evaluation.reports import with_half_interval, with_interval

MCM, TRUTH, NO_ENCODER = "MCM", "truth", "without readout"
Values = dict[str, dict[str, NDArray]]  # method -> task -> one value a customer, NaN without a target


@dataclass(frozen=True)
class Answers:
    """The results of one evaluation of a log's models.

    Attributes:
        log (`str`): Name of the log.
        question (`str`): The evaluation, in words.
        tasks (`list[str]`): Tasks of the tables.
        seeds (`list`): For each seed the metrics of MCM and of the baselines.
        parts (`list`): For each seed the metrics of MCM without some of its parts.
        groups (`dict`, *optional*): By name, the customers with a history of that length; `None` if they are not
            shown.
        truth (`dict`, *optional*): Metrics of the best ranking, if it is known.
        rivals (`dict`): Metrics of other models.
    """

    log: str
    question: str
    tasks: tuple[str, ...]
    seeds: Sequence[Values]
    parts: Sequence[Values]
    groups: Mapping[str, NDArray[np.bool_]] | None = None
    truth: Values | None = None
    rivals: Values = field(default_factory=dict)

    @property
    def methods(self) -> Values:
        """Values of counting and of other models, and the mean of MCM's over its seeds."""
        counted = {name: values for name, values in self.seeds[0].items() if name != MCM}
        return counted | self.rivals | {MCM: mean_of(self.seeds, MCM)}

    def best(self, task: str, customers: NDArray[np.bool_] | slice = slice(None)) -> str:
        """The best method of counting in a task, of all customers or some."""
        counted = {name: by_task[task] for name, by_task in self.seeds[0].items() if name != MCM and task in by_task}
        return max(counted, key=lambda name: float(np.nanmean(counted[name][customers])))


def values_of(path: Path, metric: str) -> Values:
    """Reads one metric of a values file."""
    table = pq.read_table(path).filter(pc.field("metric") == metric)
    values: Values = {}
    for method, task in sorted(set(zip(*(table[name].to_pylist() for name in ("method", "task")), strict=True))):
        rows = table.filter((pc.field("method") == method) & (pc.field("task") == task))
        values.setdefault(method, {})[task] = rows["value"].to_numpy()
    return values


def mean_of(seeds: Sequence[Values], method: str) -> dict[str, NDArray]:
    """Computes for each task a method's mean over seeds, with one value for each customer."""
    return {task: np.mean([seed[method][task] for seed in seeds], axis=0) for task in seeds[0][method]}


def mean_text(values: NDArray) -> str:
    """A mean with half of its interval."""
    return with_half_interval(bootstrap_interval(values), ".4f")


def difference_text(first: NDArray, second: NDArray) -> str:
    """A difference in pairs with its interval."""
    return with_interval(paired_difference(first, second).absolute, "+.4f")


def method_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Makes a row for each method, with the difference to MCM."""
    rows = [["log", "question", "task", "method", "value", "MCM less it", "MCM over it"]]
    for answer in answers:
        for task in answer.tasks:
            for method, by_task in answer.methods.items():
                if task not in by_task:
                    continue
                shown = mean_text(by_task[task])
                if method == MCM:
                    by_seed = ", ".join(f"{np.nanmean(seed[MCM][task]):.4f}" for seed in answer.seeds)
                    less, over = f"seeds: {by_seed}" if len(answer.seeds) > 1 else "", ""
                else:
                    pair = answer.methods[MCM][task], by_task[task]
                    relative = paired_difference(*pair).relative
                    less = difference_text(*pair)
                    over = f"{relative.mean:+.1%} [{relative.low:+.1%}, {relative.high:+.1%}]"
                rows.append(
                    [answer.log, answer.question, task, f"**{MCM}**" if method == MCM else method, shown, less, over]
                )
    return rows


def part_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Makes a row for each part: the metric without it, and the difference that the part makes."""
    rows = [["log", "question", "task", "scores", "value", "MCM less it"]]
    for answer in answers:
        for task in answer.tasks if answer.parts else ():
            whole = mean_of(answer.parts, MCM)[task]
            for method in [name for name in answer.parts[0] if name != MCM and task in answer.parts[0][name]]:
                without = mean_of(answer.parts, method)[task]
                words = f"{method} (counting alone)" if method == NO_ENCODER else method
                difference = difference_text(whole, without)
                rows.append([answer.log, answer.question, task, words, mean_text(without), difference])
    return rows


def history_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Compares MCM with the best baseline by the length of the history."""
    rows = [["log", "question", "task", "visits before", "customers", "MCM", "best of counting", "MCM less it"]]
    for answer in answers:
        for task in answer.tasks if answer.groups else ():
            for name, group in (answer.groups or {}).items():
                ours = answer.methods[MCM][task][group]
                if np.isnan(ours).all():
                    continue
                best = answer.best(task, group)
                counted = answer.methods[best][task][group]
                shown = [mean_text(ours), f"{mean_text(counted)} ({best})", difference_text(ours, counted)]
                customers = f"{int((~np.isnan(ours)).sum()):,}"
                rows.append([answer.log, answer.question, task, name, customers, *shown])
    return rows


def truth_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Compares MCM and the best baseline with the best possible ranking."""
    rows = [["log", "question", "task", "method", "value", "share of the possible"]]
    for answer in answers:
        for task in answer.tasks if answer.truth else ():
            possible = (answer.truth or {})[TRUTH][task]
            rows.append([answer.log, answer.question, task, "the best ranking", mean_text(possible), "100%"])
            for method in (MCM, answer.best(task)):
                share = paired_difference(answer.methods[method][task], possible).relative
                words = f"{1 + share.mean:.1%} [{1 + share.low:.1%}, {1 + share.high:.1%}]"
                rows.append(
                    [answer.log, answer.question, task, method, mean_text(answer.methods[method][task]), words]
                )
    return rows


def encoder_sentence(answers: Sequence[Answers]) -> str:
    """Writes what the encoder adds to counting, in the first evaluation of each log."""
    parts = []
    for log in dict.fromkeys(answer.log for answer in answers):
        first = next(answer for answer in answers if answer.log == log)
        words = []
        for task in first.tasks if first.parts else ():
            whole, alone = mean_of(first.parts, MCM)[task], mean_of(first.parts, NO_ENCODER)[task]
            gain = with_interval(paired_difference(whole, alone).absolute, "+.3f")
            words.append(f"{gain} to {np.nanmean(alone):.3f} ({task})")
        parts += [f"{log.replace('_', ' ')} {' and '.join(words)}"] if words else []
    return f"What the encoder adds to the NDCG@10 of counting alone, on test cases: {'; '.join(parts)}."
