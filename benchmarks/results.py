#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The page of results, docs/results.md, from the tables in docs/results/*.json that the other benchmarks write.

python benchmarks/results.py                      the page from what is there
python benchmarks/results.py --seeds "0, 1, 2"    besides, first notes version, machine and packages in release.json
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
PACKAGES = ("torch", "transformers", "duckdb")
Table = list[list[str]]


def release(seeds: str) -> dict[str, str]:
    """What every table of a release has in common."""
    return {
        "version": importlib.metadata.version("modeling-mcm"),
        "seeds": seeds,
        "machine": f"cores: {os.cpu_count()}, architecture: {platform.machine()}",
        "packages": ", ".join(
            [
                f"python {platform.python_version()}",
                *(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
            ]
        ),
    }


def chosen(table: Table, *columns: str, **where: str) -> Table:
    """Some columns of the rows that have these values."""
    head, *rows = table
    rows = [row for row in rows if all(row[head.index(name)] == value for name, value in where.items())]
    return [list(columns), *([row[head.index(name)] for name in columns] for row in rows)]


def pivot(table: Table, keys: int, column: str, value: str) -> Table:
    """A row for each value of the first `keys` columns, a column for each value of another, and the means in it."""
    head, *rows = table
    of, at = head.index(column), head.index(value)
    columns = dict.fromkeys(row[of] for row in rows)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        cells.setdefault(tuple(row[:keys]), {})[row[of]] = row[at].split()[0]
    return [
        [*head[:keys], *columns],
        *([*key, *(found.get(name, "") for name in columns)] for key, found in cells.items()),
    ]


def several_logs(table: Table) -> Table:
    """A row for each log, question and task, a column for each method, and MCM over the best of the others."""
    head, *rows = pivot(table, 3, "method", "value")
    over = {tuple(row[:4]): row[-1] for row in table[1:]}
    for row in rows:
        others = [
            (float(cell), name)
            for name, cell in zip(head, row, strict=True)
            if name not in (*head[:3], "MCM") and cell
        ]
        row.append(over[*row[:3], max(others)[1]])
    return [[*head, "MCM over the best other"], *rows]


def all_methods(values: Table, over: Table) -> Table:
    """A row for each method: its value of each task, and what ours is over it, as the average over tasks."""
    metric = "next visit NDCG@10"
    head, *rows = pivot(chosen(values, "method", "task", metric), 1, "task", metric)
    gains = dict(chosen(over, "method", "average over tasks", metric=metric)[1:])
    return [[*head, "ours over it"], *([*row, gains.get(row[0], "")] for row in rows)]


def markdown(table: Table) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], ["---"] * len(table[0]), *table[1:]])


def page(folder: Path) -> str:
    """The whole page."""
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    common = stored.pop("release")
    tables = {name: content["table"] for name, content in stored.items()}
    captions = {name: content["caption"] for name, content in stored.items()}

    def rows(name: str, *columns: str, **where: str) -> str:
        return markdown(chosen(tables[name], *columns, **where))

    def means(name: str, *columns: str, **where: str) -> str:
        return re.sub(r" ±[\d.]+", "", rows(name, *columns, **where))

    offers = ["who: average precision", "which: NDCG@10"]
    few = ["MCM fine-tuned", "frozen state, logistic regression", "counts, LightGBM"]
    measure = "rank correlation or AUC"
    forecasts = chosen(tables["forecasts"], "what", "method", measure, cutoff="test")
    parts = [
        f"# Results of version {common['version']}",
        f"Seeds: {common['seeds']}. Machine: {common['machine']}; {common['packages']}.",
        "`make figures` measures everything and draws this page from [docs/results](results/), which holds more. "
        "Values are means of test cases, ± half of their 95% interval; brackets hold the 95% interval of a "
        "difference, paired by customer.",
        "## Several logs by default settings",
        "Each model is `configuration/mcm-tiny` with [the recipe](recipe.md) and no other options. NDCG@10; all "
        "labels are ranked. BERT4Rec is one model for each task.",
        markdown(several_logs(tables["several_logs"])),
        "How the customers of the synthetic shop choose is known. MCM's share of the best possible NDCG:",
        rows("possible", "task", "share of the possible", method="MCM"),
        "## Next visit: all methods and the paper's ablation",
        f"{captions['all_methods']}; NDCG@10; each model trains until validation stops. BERT4Rec and MCM_Single are "
        "one model for each task. (The paper reports +17% over BERT4Rec on its own data.)",
        markdown(all_methods(tables["all_methods"], tables["ours_over"])),
        "## Offers",
        f"{captions['offers']} Who takes an [offer](fine_tuning.md), and which one:",
        rows("offers", "method", *offers),
        "MCM fine-tuned over the others, with a tenth of the labels:",
        rows("offers_fewer_over", "over", *offers, labels="10%"),
        "## What the customer state predicts",
        "A linear model reads hand-made counts, the state, or both, at the test cutoff. AUC for classes, rank "
        "correlation for numbers. *Alone*: state less counts. *Beside*: both less counts.",
        means("probe", "target", "counts", "alone", "beside", cutoff="test", learner="linear"),
        f"The model's own forecasts of 30 days ({measure}):",
        markdown(pivot(forecasts, 1, "method", measure)),
        "Where labels are few (AUC, validation cutoff):",
        means("few_labels", "target", "labels", *few, "fine-tuned over counts, LightGBM"),
        "## Speed beside other libraries",
        f"{captions['speed']} The others read the labels of one task; MCM reads all features and ranks all tasks.",
        rows("speed", "method", "training: sequences/s", "training: ratio to the first", "inference: customers/s"),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", help="The seeds of this release, in words.")
    if seeds := parser.parse_args().seeds:
        (FOLDER / "release.json").write_text(f"{json.dumps(release(seeds), indent=2)}\n", encoding="utf-8")
    PAGE.write_text(page(FOLDER), encoding="utf-8")


if __name__ == "__main__":
    main()
