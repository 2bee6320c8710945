#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an explanation names the visit that matters: by deletion, by insertion and by a cause that was planted.

    python benchmarks/explanations.py --model runs/quickstart --data data/complete_journey/prepared \
        --report_file docs/explanations.md

Of each customer the best label of a task is explained. Then every visit is taken out of the history, one at a time,
and the log-probability of that label is asked again: what it falls by is what the visit was worth. A way to name a
visit is measured by what the visit it names first is worth, on the mean of all customers, and by its share of what the
best visit of all is worth.

Explanations are made of deletions, so two measures beside are not theirs. Insertion: what the log-probability rises by
from a customer without history to one whose whole history is the visit that is named. A planted cause: a visit of
another customer with a label that this one never had is put among the visits of this one; it alone holds the label, so
it should be named first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from measuring import print_or_write
from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.metrics import bootstrap_interval
from modeling_mcm.evaluation.reports import markdown_table, with_half_interval
from modeling_mcm.live.explanations import MOST_VISITS, Explanation, _History, _read_part, explain

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
    """Which model's predictions are explained, for which customers."""

    model: str = field(default="runs/quickstart", metadata={"help": "Checkpoint folder."})
    data: str = field(
        default="data/complete_journey/prepared",
        metadata={"help": "Folder of the prepared data set of the checkpoint."},
    )
    tasks: list[str] = field(
        default_factory=lambda: ["product_type", "product_category"], metadata={"help": "Tasks of the table."}
    )
    customers: int = field(
        default=100, metadata={"help": "Number of customers at each cutoff, spread evenly over all cases."}
    )
    cutoffs: list[str] = field(
        default_factory=lambda: ["validation", "test"], metadata={"help": "Where the histories end."}
    )
    threads: int = field(default=1, metadata={"help": "Number of torch's threads."})
    report_file: str | None = field(
        default=None, metadata={"help": "Markdown file to write. By default the page is printed."}
    )


def histories(options: Options, cutoff: str) -> list[dict[str, Any]]:
    """Reads the prepared rows of some customers, up to the cutoff."""
    data = PreparedData(options.data)
    cases = cases_at(data, cutoff)
    indices = np.linspace(0, len(cases) - 1, min(options.customers, len(cases))).round().astype(int)
    prefixes = []
    for row, end in zip(PreparedRows(data.rows, cases.rows[indices]), cases.history_end[indices], strict=False):
        prefixes.append({k: v[:end] if isinstance(v, np.ndarray) and v.ndim else v for k, v in row.items()})
    return prefixes


@dataclass
class Worth:
    """How much the visit that each way of explaining names first changes the log-probability.

    Attributes:
        deletion (`dict[str, float]`): By way, how much the log-probability falls without the visit.
        insertion (`dict[str, float]`): By way, how much it rises with this visit alone.
    """

    deletion: dict[str, float]
    insertion: dict[str, float]


def worth(model: Any, extractor: Any, row: dict[str, Any], task: str) -> tuple[Worth, Explanation]:
    """Measures how much the visit of each way is worth; returns that and the explanation."""
    explanation = explain(model, extractor, row, task, most_visits=None, visits_with_events=0)
    tried = sorted(explanation.visits, key=lambda visit: (not visit.has_label, -visit.visit))[:MOST_VISITS]
    deletions = np.zeros(len(explanation.visits))
    has_label = np.zeros(len(explanation.visits), bool)
    for visit in explanation.visits:
        deletions[visit.visit], has_label[visit.visit] = visit.deletion, visit.has_label
    label = int(extractor.label_ids(task, [explanation.label])[0])
    history = _History(model, extractor, _read_part(row, extractor.max_events), None)
    single = [history._without(history.visits != visit) for visit in range(len(deletions))]
    insertions = history.parts(single, task, label).sum(1) - explanation.baseline
    every = np.arange(len(deletions))
    visits_by_way = {
        "explanation": max(tried, key=lambda visit: deletions[visit.visit]).visit,
        "explanation, all visits": explanation.visits[0].visit,
        "readout": heaviest(model, extractor, row, task, label),
        "random": every,
        "random with the label": every[has_label] if has_label.any() else every,
    }
    by_deletion, by_insertion = (
        {way: float(np.mean(values[visits])) for way, visits in visits_by_way.items()} | {"best": float(values.max())}
        for values in (deletions, insertions)
    )
    return Worth(by_deletion, by_insertion), explanation


def heaviest(model: Any, extractor: Any, row: dict[str, Any], task: str, label: int) -> int:
    """Finds the visit with the largest weight in the readout for a label."""
    inputs = {name: value.to(model.device) for name, value in extractor.pad([row]).items()}
    every = model.config.label_sizes[task]
    preferred = model.preferences(task, every, return_weights=True, **inputs)
    weights = preferred["weights"][0, preferred["labels"][0] == label][0, 1:]  # without the start row
    return int(weights.argmax())


def planted(
    row: dict[str, Any], donors: Sequence[dict[str, Any]], task: str, most: int, generator: np.random.Generator
) -> tuple[dict[str, Any], int, int] | None:
    """Makes a history with a visit of another customer that alone holds a label.

    Args:
        row (`dict`): The prepared history.
        donors (`Sequence[dict]`): Histories of other customers, one of which gives the visit.
        task (`str`): Task of the label.
        most (`int`): Largest number of events that the model reads.
        generator (`numpy.random.Generator`): Draws the label, and the place of the visit between two others.

    Returns:
        `tuple`: The history, the label's id and the planted visit; `None` if no donor has a label that the customer
        never had, or the customer has only one visit.
    """
    own = [0, 1, *row[f"feature_{task}"]]
    shuffled = (donors[index] for index in generator.permutation(len(donors)))
    candidates = ((other, np.setdiff1d(other[f"task_{task}"], own)) for other in shuffled)
    donor, new = next(((other, labels) for other, labels in candidates if len(labels)), (row, []))
    if not len(new):
        return None
    label = int(generator.choice(new))
    label_visits = donor["visits"][donor[f"task_{task}"] == label]
    visit_events = donor["visits"] == generator.choice(label_visits)
    row = _read_part(row, most - int(visit_events.sum()))
    if not len(row["visits"]) or row["visits"][-1] == 0:
        return None
    visit = int(generator.integers(1, row["visits"][-1] + 1))
    start = int(np.searchsorted(row["visits"], visit))
    middle = (int(row["times"][start - 1]) + int(row["times"][start])) // 2
    joined = dict(row)
    for name, values in row.items():
        if isinstance(values, np.ndarray) and values.ndim:
            inserted = donor[name][visit_events]
            joined[name] = np.concatenate([values[:start], inserted, values[start:]])
    end = start + int(visit_events.sum())
    joined["times"][start:end] = middle
    joined["visits"][start:end] = visit
    joined["visits"][end:] += 1
    return joined, label, visit


def names_planted(model: Any, extractor: Any, graft: tuple[dict[str, Any], int, int], task: str) -> dict[str, float]:
    """Says for each way whether it names the planted visit first, and for a random choice with which probability."""
    row, label, visit = graft
    row = _History(model, extractor, row, None)._without(np.zeros(len(row["times"]), bool))  # with its days between
    name = extractor.decode_labels(task, [label])[0]
    explanation = explain(model, extractor, row, task, name, visits_with_events=0)
    return {
        "explanation": float(explanation.visits[0].visit == visit),
        "readout": float(heaviest(model, extractor, row, task, label) == visit),
        "random": 1 / len(explanation.visits),
    }


def rows_of(task: str, cutoff: str, values: Sequence[Worth]) -> list[list[str]]:
    """Makes the rows of the table for a task and a cutoff."""
    lines = []
    for way, words in WAYS.items():
        cells = []
        for measure in ("deletion", "insertion"):
            amounts = [getattr(value, measure) for value in values]
            best = np.mean([amount["best"] for amount in amounts])
            interval = bootstrap_interval([amount[way] for amount in amounts])
            cells += [with_half_interval(interval), f"{interval.mean / best:.0%}"]
        lines.append([f"{task}, {cutoff}", words, *cells])
    return lines


def planted_rows_of(task: str, cutoff: str, values: Sequence[dict[str, float]]) -> list[str]:
    """Makes the row of the table of planted visits for a task and a cutoff."""
    cells = []
    for way in ("explanation", "readout", "random"):
        interval = bootstrap_interval([value[way] for value in values])
        cells.append(f"{interval.mean:.0%} ({interval.low:.0%} to {interval.high:.0%})")
    return [f"{task}, {cutoff}", str(len(values)), *cells]


def page(
    lines: Sequence[list[str]],
    planted_lines: Sequence[list[str]],
    options: Options,
    facts: dict[str, float],
    example: Explanation,
) -> str:
    """Writes the text of the page."""
    top = example.visits[0]
    parts = ", ".join(f"{name} {value:+.2f}" for name, value in example.parts.items() if value)
    return "\n".join(
        [
            "# Why a label has its score",
            "",
            "`explain` (or `LiveCustomer.explain`) divides the log-probability of a label into parts of the model, "
            "and says which visits and events it comes from:",
            "",
            "```python",
            "from modeling_mcm.live.explanations import explain",
            "",
            f'why = explain(model, feature_extractor, customer, "{example.task}")',
            "```",
            "",
            f"The label `{example.label}` has probability {example.probability:.3f}. The customer met it as follows: "
            f"{example.words}. Its log-probability {example.score:.2f} is the sum of its parts: {parts}. For a "
            f"customer with the same profile and no history it would be {example.baseline:.2f}. The difference is the "
            f"sum of the visits' shares. The visit with the largest share, of {top.time[:10]}, has {top.share:.2f}; "
            f"without this visit the log-probability falls by {top.deletion:.2f}.",
            "",
            "- **Parts** are the readout, the label's bias, the memories (`repeats`, `followers`, `habits`, `new`), "
            "and `others`: what the other labels of the task take away when scores become probabilities.",
            "- **Shares** come from deletions: the model reads the history without the visit, and the days between "
            "visits are computed again. The deletions do not add up to the difference: if nine visits have the label, "
            "each one hardly matters alone, but all together matter. The rest is therefore divided among the visits "
            "in proportion to their deletions, so shares and deletions have the same order. `baseline` is the "
            "log-probability of a customer with this profile and no event.",
            f"- **Cost**: the model reads the history once for each of the {MOST_VISITS} visits that are tried "
            "(`most_visits`; those with the label first, then the latest), and once for each event of the first "
            f"three. The median explanation here took {facts['seconds']:.2f} s on {options.threads} thread.",
            "- The weights of `preferences(return_weights=True)` are **not an explanation**: they are those of the "
            "readout alone, which is a small part of the score. The table shows which visits they name.",
            "",
            "## Does it name the visit that matters?",
            "",
            f"Written by `python benchmarks/explanations.py --customers {options.customers} --cutoffs "
            f"{' '.join(options.cutoffs)} --report_file docs/explanations.md`, for {options.customers} customers of "
            f"each cutoff and the best label of each, on {options.threads} thread. Sums of parts and of shares had "
            f"an error of at most {facts['error']:.1e}.",
            "",
            "- **Deletion** is how much the log-probability of the label falls without the visit that is named first "
            "(mean ± half of its 95% interval). The next column gives it as a share of the largest fall that any "
            "visit causes. Explanations are made from the same deletions. So if every visit is tried, an explanation "
            "always names the best one. These rows show what `most_visits` costs, and how far other ways are from the "
            "best.",
            "- **Insertion** is how much the log-probability rises from a customer without history to one with that "
            "visit alone, and its share of the largest such rise. Explanations do not use insertions.",
            "",
            *markdown_table(
                [["task, cutoff", "visit", "deletion", "share of the best", "insertion", "share of the best"], *lines]
            ),
            "",
            "## Does it name a cause that was planted?",
            "",
            "One visit of another customer is put into the history of each of these customers, at a random place "
            "between two of their own visits. It has a label that the customer never had, and this label is "
            "explained. So the planted visit is the only one with the label. The table shows in how many cases it is "
            "named first of all visits of the history (95% interval). A rule that names the visit with the label "
            "would always be right here; the weights of the readout and a random visit do not use such a rule.",
            "",
            *markdown_table(
                [
                    ["task, cutoff", "cases", "explanation", "largest weight of the readout", "a random visit"],
                    *planted_lines,
                ]
            ),
            "",
        ]
    )


def main() -> None:
    """Explains predictions, measures the explanations, and writes the page."""
    (options,) = parse_options(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    model = MCMForMultiTaskRecommendation.from_pretrained(options.model).eval()
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    generator = np.random.default_rng(0)
    lines, planted_lines, seconds, errors, examples = [], [], [], [0.0], []
    for cutoff in options.cutoffs:
        rows = histories(options, cutoff)
        for task in options.tasks:
            values = []
            for row in tqdm(rows, desc=f"{cutoff} {task}"):
                value, explanation = worth(model, extractor, row, task)
                values.append(value)
                shares = sum(visit.share for visit in explanation.visits)
                errors.append(abs(shares - (explanation.score - explanation.baseline)))
                errors.append(abs(sum(explanation.parts.values()) - explanation.score))
            for row in rows[:TIMED]:
                start = perf_counter()
                examples.append(explain(model, extractor, row, task))
                seconds.append(perf_counter() - start)
            lines += rows_of(task, cutoff, values)
            grafts = [planted(row, rows, task, extractor.max_events, generator) for row in rows]
            chances = [names_planted(model, extractor, one, task) for one in grafts if one is not None]
            planted_lines.append(planted_rows_of(task, cutoff, chances))
    facts = {"seconds": float(np.median(seconds)), "error": max(errors)}
    print_or_write(page(lines, planted_lines, options, facts, examples[0]), options.report_file)


if __name__ == "__main__":
    main()
