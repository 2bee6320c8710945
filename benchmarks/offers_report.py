# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the page of results on offers from the numbers that `run_offers.py` found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mcm.evaluation.reports import markdown_table, with_half_interval, with_interval
from modeling_mcm.files_mcm import write_text
from offers_gbdt import SEARCH, TREES

METRICS = {
    "average_precision": "who: average precision",
    "roc_auc": "who: ROC AUC",
    "ndcg@10": "which: NDCG@10",
    "recall@10": "which: recall@10",
}
ZERO_SHOT, FINE_TUNED, RANDOM, GBDT = (
    "MCM without fine-tuning",
    "MCM fine-tuned",
    "MCM from random weights",
    "LightGBM",
)


def write_page(results: dict[str, Any], path: Path) -> None:
    """Writes the page from what `compare` found."""
    methods, settings = results["methods"], results["lightgbm"]["chosen"]
    names = list(METRICS)
    lines = [
        "# Results on offers",
        "",
        f"Written by `{results['command']}` from the files of its runs ([what offers are](offers.md)).",
        "",
        f"{results['data']}: {results['groups']:,} test groups of {results['customers']:,} customers, of which "
        f"{results['takers']} take an offer; {results['learned']:,} groups are for training. **Who** tells who takes "
        "an offer: all groups are ranked. **Which** tells which offer is taken: the offers of each group that takes "
        f"one are ranked. {_seeds(results['seeds'])} Values are means ± half of their 95% interval, and differences "
        "have their 95% intervals in brackets. Intervals resample customers.",
        "",
    ]
    rows = [
        [
            name,
            *(with_half_interval(metrics[metric]) for metric in names),
            " ".join(f"{v:.3f}" for v in metrics["by_seed"]["ndcg@10"]),
        ]
        for name, metrics in methods.items()
    ]
    lines += [*markdown_table([["method", *METRICS.values(), "NDCG@10 by seed"], *rows]), ""]
    lines += [
        f"## {FINE_TUNED} over each method",
        "",
        "Relative differences, paired by customer.",
        "",
    ]
    rows = [
        [name, *(with_interval(metrics[metric], "+.1%") for metric in names)]
        for name, metrics in results["differences"].items()
    ]
    lines += [*markdown_table([["over", *METRICS.values()], *rows]), ""]
    lines += ["## With fewer labels", ""]
    for metric in ("average_precision", "ndcg@10"):
        rows = [
            [f"{float(share):.0%}", *(with_half_interval(metrics[metric]) for metrics in by_method.values())]
            for share, by_method in results["curve"].items()
        ]
        lines += [*markdown_table([[METRICS[metric], *results["curve"]["1"]], *rows]), ""]
    lines += [f"{FINE_TUNED} over the others with as many labels, as relative differences paired by customer:", ""]
    rows = [
        [f"{float(share):.0%}", name, *(with_interval(metrics[metric], "+.1%") for metric in names)]
        for share, by_method in results["with_fewer"].items()
        for name, metrics in by_method.items()
    ]
    lines += [*markdown_table([["labels", "over", *METRICS.values()], *rows]), ""]
    lines += ["## What fine-tuning took", ""]
    rows = [[name, *(f"{value:,.0f}" for value in facts.values())] for name, facts in results["took"].items()]
    lines += [*markdown_table([["model", "seconds", "steps", "trained parameters"], *rows]), ""]
    lines += ["## LightGBM: features and search", ""]
    for question, setting in settings.items():
        shown = (
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in setting.items()
        )
        lines.append(f"- {question}: " + ", ".join(shown))
    lines += ["", f"Searched: {SEARCH}, trees {TREES}.", ""]
    for kind in ("group_features", "offer_features"):
        features = results["lightgbm"][kind]
        lines += [f"{kind.replace('_', ' ').capitalize()} ({len(features)}): {', '.join(features)}.", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines).rstrip() + "\n")


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"The figures are of one seed, {seeds[0]}; the intervals do not include differences between seeds."
    return f"The figures are means over the seeds {', '.join(map(str, seeds))}."
