#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an explanation names the visit that matters: by deletion, beside other ways to name one.

    python benchmarks/explanations.py --model runs/quickstart --data data/complete_journey/prepared \
        --report_file docs/explanations.md

Of each customer the best label of a task is explained. Then every visit is taken out of the history, one at a time,
and the log-probability of that label is asked again: what it falls by is what the visit was worth. A way to name a
visit is measured by what the visit it names first is worth, on the mean of all customers, and by its share of what the
best visit of all is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import PreparedManifest, load_prepared
from modeling_mcm.evaluation.cases import find_cases
from modeling_mcm.evaluation.metrics import bootstrap_interval
from modeling_mcm.explanations_mcm import MOST_VISITS, Explanation, explain

WAYS = {
    "explanation": "named first by the explanation",
    "explanation, all visits": "the same with `most_visits=None`, which tries every visit",
    "readout": "with the largest weight of the readout (`preferences(return_weights=True)`)",
    "random": "a random visit",
    "random with the label": "a random visit that holds the label; where none does, any",
    "best": "the best visit of all",
}

TIMED = 10  # explanations of each cutoff and task that are timed, as they are by default


@dataclass
class Options:
    """What is explained."""

    model: str = field(default="runs/quickstart", metadata={"help": "Checkpoint folder."})
    data: str = field(default="data/complete_journey/prepared", metadata={"help": "Folder of its prepared data set."})
    tasks: list[str] = field(
        default_factory=lambda: ["product_type", "product_category"], metadata={"help": "Tasks of the table."}
    )
    customers: int = field(default=100, metadata={"help": "Of each cutoff, spread evenly over all cases."})
    cutoffs: list[str] = field(
        default_factory=lambda: ["validation", "test"], metadata={"help": "Where the histories end."}
    )
    threads: int = field(default=1, metadata={"help": "Of torch."})
    report_file: str | None = field(default=None, metadata={"help": "Markdown file to write; printed if not given."})


def histories(options: Options, cutoff: str) -> list[dict[str, Any]]:
    """Prepared rows of some customers, up to the cutoff."""
    manifest, rows = PreparedManifest.load(options.data), load_prepared(options.data)
    cases = find_cases(rows, cutoff, manifest.event_schema.min_history)
    places = np.linspace(0, len(cases) - 1, min(options.customers, len(cases))).round().astype(int)
    made = []
    for row, end in zip(PreparedRows(rows, cases.rows[places]), cases.history_end[places], strict=False):
        made.append({k: v[:end] if isinstance(v, np.ndarray) and v.ndim else v for k, v in row.items()})
    return made


def worth(model: Any, extractor: Any, row: dict[str, Any], task: str) -> tuple[dict[str, float], Explanation]:
    """What the visit of each way is worth, and the explanation."""
    found = explain(model, extractor, row, task, most_visits=None, visits_with_events=0)
    tried = sorted(found.visits, key=lambda visit: (not visit.has_label, -visit.visit))[:MOST_VISITS]
    deletions = np.zeros(len(found.visits))
    has_label = np.zeros(len(found.visits), bool)
    for visit in found.visits:
        deletions[visit.visit], has_label[visit.visit] = visit.deletion, visit.has_label
    inputs = {name: value.to(model.device) for name, value in extractor.pad([row]).items()}
    weights = model.preferences(task, 1, return_weights=True, **inputs)["weights"][0, 0, 1:]  # without the start row
    return (
        {
            "explanation": max(deletions[visit.visit] for visit in tried),
            "explanation, all visits": deletions[found.visits[0].visit],
            "readout": deletions[int(weights.argmax())],
            "random": deletions.mean(),
            "random with the label": deletions[has_label].mean() if has_label.any() else deletions.mean(),
            "best": deletions.max(),
        },
        found,
    )


def rows_of(task: str, cutoff: str, values: Sequence[dict[str, float]]) -> list[str]:
    """The table's lines of a task and cutoff."""
    best = np.mean([value["best"] for value in values])
    lines = []
    for way, words in WAYS.items():
        interval = bootstrap_interval([value[way] for value in values])
        half = (interval.high - interval.low) / 2
        lines.append(f"| {task}, {cutoff} | {words} | {interval.mean:.3f} ± {half:.3f} | {interval.mean / best:.0%} |")
    return lines


def page(lines: Sequence[str], options: Options, facts: dict[str, float], example: Explanation) -> str:
    """The page."""
    top = example.visits[0]
    parts = ", ".join(f"{name} {value:+.2f}" for name, value in example.parts.items() if value)
    return "\n".join(
        [
            "# Why a label has its score",
            "",
            "`explain` (or `LiveCustomer.explain`) says what the log-probability of a label is a sum of, and which "
            "visits and events it comes from:",
            "",
            "```python",
            "from modeling_mcm.explanations_mcm import explain",
            "",
            f'why = explain(model, feature_extractor, customer, "{example.task}")',
            "```",
            "",
            f"`{example.label}` has probability {example.probability:.3f}: {example.words}. Its log-probability "
            f"{example.score:.2f} is the sum of its parts: {parts}. A customer with the same profile and no history "
            f"has {example.baseline:.2f}; the difference is the sum of the visits' shares. The first of them, of "
            f"{top.time[:10]}, has {top.share:.2f}, and without it the log-probability falls by {top.deletion:.2f}.",
            "",
            "- **Parts**: the readout, the label's bias, the memories (`repeats`, `followers`, `habits`, `new`), and "
            "`others`, what the other labels of the task take away when scores become probabilities.",
            "- **Shares** come from deletion: the model reads the history without the visit, with the days between "
            "visits counted anew. Deletions alone do not add up, for of nine visits with a label each can be missed "
            "and all together cannot; the rest is given to the visits in proportion to their deletions, so the order "
            "of the shares is the order of the deletions. `baseline` is the log-probability of a customer with this "
            "profile and no event.",
            f"- **Cost**: a reading of the history for each of the {MOST_VISITS} visits that are tried (`most_visits`;"
            " those with the label first, then the latest), and for each event of the first three. The median "
            f"explanation here took {facts['seconds']:.2f} s on {options.threads} thread.",
            "- **Not an explanation** are the weights of `preferences(return_weights=True)`: they are those of the "
            "readout alone, a small part of the score. The table shows what they name.",
            "",
            "## Does it name the visit that matters?",
            "",
            f"Written by `python benchmarks/explanations.py --customers {options.customers} --cutoffs "
            f"{' '.join(options.cutoffs)} --report_file docs/explanations.md`: "
            f"{options.customers} customers of each cutoff, the best label of each. What the log-probability of the "
            "label falls by without the visit that is named first (mean ± half of its 95% interval), and its share of "
            f"what the best visit takes away. The largest error of a sum was {facts['error']:.1e}.",
            "",
            "The explanation is made by the same deletions that are measured here, so where every visit is tried it "
            "names the best one by construction; the rows tell what `most_visits` costs, and how far the other ways "
            "are from it.",
            "",
            "| task, cutoff | visit | falls by | of the best |",
            "| --- | --- | --- | --- |",
            *lines,
            "",
        ]
    )


def main() -> None:
    """Explains, measures, writes the page."""
    (options,) = parse_options(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    model = MCMForMultiTaskRecommendation.from_pretrained(options.model).eval()
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    lines, seconds, errors, examples = [], [], [0.0], []
    for cutoff in options.cutoffs:
        rows = histories(options, cutoff)
        for task in options.tasks:
            values = []
            for row in tqdm(rows, desc=f"{cutoff} {task}"):
                value, found = worth(model, extractor, row, task)
                values.append(value)
                errors.append(abs(sum(visit.share for visit in found.visits) - (found.score - found.baseline)))
                errors.append(abs(sum(found.parts.values()) - found.score))
            for row in rows[:TIMED]:
                start = perf_counter()
                examples.append(explain(model, extractor, row, task))
                seconds.append(perf_counter() - start)
            lines += rows_of(task, cutoff, values)
    facts = {"seconds": float(np.median(seconds)), "error": max(errors)}
    text = page(lines, options, facts, examples[0])
    if options.report_file:
        Path(options.report_file).write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
