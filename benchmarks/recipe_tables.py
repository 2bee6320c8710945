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
        """Of counting and of other models, and of MCM the mean over its seeds."""
        counted = {name: values for name, values in self.seeds[0].items() if name != MCM}
        return counted | self.rivals | {MCM: mean_of(self.seeds, MCM)}

    def best(self, task: str, chosen: NDArray[np.bool_] | slice = slice(None)) -> str:
        """The best method of counting in a task, of all customers or some."""
        counted = {name: by_task[task] for name, by_task in self.seeds[0].items() if name != MCM and task in by_task}
        return max(counted, key=lambda name: float(np.nanmean(counted[name][chosen])))


def values_of(path: Path, metric: str) -> Values:
    """Reads one metric of a values file."""
    table = pq.read_table(path).filter(pc.field("metric") == metric)
    found: Values = {}
    for method, task in sorted(set(zip(*(table[name].to_pylist() for name in ("method", "task")), strict=True))):
        rows = table.filter((pc.field("method") == method) & (pc.field("task") == task))
        found.setdefault(method, {})[task] = rows["value"].to_numpy()
    return found


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
    for each in answers:
        for task in each.tasks:
            for method, by_task in each.methods.items():
                if task not in by_task:
                    continue
                shown = mean_text(by_task[task])
                if method == MCM:
                    by_seed = ", ".join(f"{np.nanmean(seed[MCM][task]):.4f}" for seed in each.seeds)
                    less, over = f"seeds: {by_seed}" if len(each.seeds) > 1 else "", ""
                else:
                    pair = each.methods[MCM][task], by_task[task]
                    found = paired_difference(*pair).relative
                    less, over = difference_text(*pair), f"{found.mean:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
                rows.append(
                    [each.log, each.question, task, f"**{MCM}**" if method == MCM else method, shown, less, over]
                )
    return rows


def part_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Makes a row for each part: the metric without it, and the difference that the part makes."""
    rows = [["log", "question", "task", "scores", "value", "MCM less it"]]
    for each in answers:
        for task in each.tasks if each.parts else ():
            whole = mean_of(each.parts, MCM)[task]
            for method in [name for name in each.parts[0] if name != MCM and task in each.parts[0][name]]:
                of_part = mean_of(each.parts, method)[task]
                words = f"{method} (counting alone)" if method == NO_ENCODER else method
                difference = difference_text(whole, of_part)
                rows.append([each.log, each.question, task, words, mean_text(of_part), difference])
    return rows


def history_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Compares MCM with the best baseline by the length of the history."""
    rows = [["log", "question", "task", "visits before", "customers", "MCM", "best of counting", "MCM less it"]]
    for each in answers:
        for task in each.tasks if each.groups else ():
            for name, chosen in (each.groups or {}).items():
                ours = each.methods[MCM][task][chosen]
                if np.isnan(ours).all():
                    continue
                best = each.best(task, chosen)
                counted = each.methods[best][task][chosen]
                shown = [mean_text(ours), f"{mean_text(counted)} ({best})", difference_text(ours, counted)]
                customers = f"{int((~np.isnan(ours)).sum()):,}"
                rows.append([each.log, each.question, task, name, customers, *shown])
    return rows


def truth_table(answers: Sequence[Answers]) -> list[list[str]]:
    """Compares MCM and the best baseline with the best possible ranking."""
    rows = [["log", "question", "task", "method", "value", "share of the possible"]]
    for each in answers:
        for task in each.tasks if each.truth else ():
            possible = (each.truth or {})[TRUTH][task]
            rows.append([each.log, each.question, task, "the best ranking", mean_text(possible), "100%"])
            for method in (MCM, each.best(task)):
                share = paired_difference(each.methods[method][task], possible).relative
                words = f"{1 + share.mean:.1%} [{1 + share.low:.1%}, {1 + share.high:.1%}]"
                rows.append([each.log, each.question, task, method, mean_text(each.methods[method][task]), words])
    return rows


def encoder_sentence(answers: Sequence[Answers]) -> str:
    """Writes what the encoder adds to counting, in the first evaluation of each log."""
    parts = []
    for log in dict.fromkeys(each.log for each in answers):
        first = next(each for each in answers if each.log == log)
        words = []
        for task in first.tasks if first.parts else ():
            whole, alone = mean_of(first.parts, MCM)[task], mean_of(first.parts, NO_ENCODER)[task]
            gain = with_interval(paired_difference(whole, alone).absolute, "+.3f")
            words.append(f"{gain} on {np.nanmean(alone):.3f} ({task})")
        parts += [f"{log.replace('_', ' ')} {' and '.join(words)}"] if words else []
    return f"What the encoder adds to all that is counted, NDCG@10 of test cases: {'; '.join(parts)}."
