# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/results.md from the files in docs/results; what is not there is left empty."""

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from logs import LOGS
from methods import find_methods
from methods.best_possible import BEST
from methods.mcm import WITH, WITHOUT
from modeling_mcm.evaluation import paired_difference

STEPS, MISSING = 250, 255  # of a stored value from 0 to 1; an error of .002 of a customer is none of a mean
IN_LISTS = ("popularity", "neighbours", "transitions", "RecTools SASRec", WITHOUT, WITH)  # whose lists are described
FEWEST = 30  # labels of a bin that is drawn
Runs = dict[tuple[str, str], list[dict[str, Any]]]  # by log and method, a run for each seed
Table = list[list[str]]


def pack(values: NDArray) -> str:
    """Text of values from 0 to 1, or NaN: a byte each, compressed."""
    steps = np.where(np.isnan(values), MISSING, np.round(np.nan_to_num(values) * STEPS)).astype(np.uint8)
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpack(text: str) -> NDArray[np.float64]:
    """The values of a text of `pack`."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.where(steps == MISSING, np.nan, steps / STEPS)


def read(folder: Path) -> tuple[Runs, dict[str, dict[str, Any]]]:
    """The runs, and the other files by name. Raises `ValueError` if two runs of a log read other data."""
    runs: Runs = {}
    others: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "answers" not in content:
            others[path.stem] = content
            continue
        runs.setdefault((content["log"], content["method"]), []).append(content)
    for log in LOGS:
        found = {run["data"] for (of, _), each in runs.items() if of == log for run in each}
        if len(found) > 1:
            raise ValueError(
                f"Runs of {log} read the data {sorted(found)}; expected one: remove those of the old data."
            )
    return runs, others


def asked(runs: Runs) -> list[tuple[str, str, str]]:
    """Log, question and task of each row."""
    rows = [
        (log.name, question.name, task) for log in LOGS.values() for question in log.questions for task in log.tasks
    ]
    return [row for row in rows if any(log == row[0] for log, _ in runs)]


def each(runs: Runs, row: tuple[str, str, str], method: str, name: str) -> list[Any]:
    """A fact of a row by a method, one for each seed; none where it was not run or has no answer."""
    log, question, task = row
    answers = [run["answers"].get(question, {}).get(task) for run in runs.get((log, method), [])]
    return [answer[name] for answer in answers if answer]


def values(runs: Runs, row: tuple[str, str, str], method: str, like: str | None = None) -> NDArray | None:
    """NDCG@10 of each customer, the mean over seeds, or over those that another method has, too."""
    seeds = {run["seed"] for run in runs.get((row[0], like or method), [])}
    runs = {key: [run for run in found if run["seed"] in seeds] for key, found in runs.items()}
    found = [unpack(text) for text in each(runs, row, method, "values")]
    return np.mean(found, axis=0) if found else None


def by_method(rows: list[tuple[str, str, str]], methods: list[str], cell: Callable[..., str]) -> Table:
    """A row for each question and task, a column for each method."""
    return [
        ["log, question", "task", *methods],
        *([*titles(row), *(cell(row, name) for name in methods)] for row in rows),
    ]


def with_interval(value: dict[str, float], form: str) -> str:
    """Writes a mean and its interval: `+0.323 [+0.311, +0.335]`."""
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def titles(row: tuple[str, str, str]) -> list[str]:
    """The first cells of a row."""
    log, question, task = row
    return [log if question == LOGS[log].questions[0].name else f"{log}, {question}", task]


def differences(runs: Runs, methods: list[str]) -> Table:
    """MCM with and without its encoder less the best other method, with it less the best of RecTools, and with it less
    without it by the same seeds; paired by customer."""
    table = [["log, question", "task", "best other", f"{WITH} less it", f"{WITHOUT} less it"]]
    table[0] += [f"{WITH} less the best of RecTools", "what the encoder adds"]
    for row in asked(runs):
        found = {name: of_method for name in methods if (of_method := values(runs, row, name)) is not None}
        others = [name for name in found if name not in (WITH, WITHOUT, BEST)]
        others.sort(key=lambda name: -float(np.nanmean(found[name])))
        best = next(iter(others), "")
        peer = next((name for name in others if name.startswith("RecTools")), "")
        pairs = [(found.get(one), found.get(other)) for one, other in ((WITH, best), (WITHOUT, best), (WITH, peer))]
        pairs.append((values(runs, row, WITH, WITHOUT), values(runs, row, WITHOUT, WITH)))
        cells = [
            "" if one is None or other is None else with_interval(paired_difference(one, other)._asdict(), "+.4f")
            for one, other in pairs
        ]
        table.append([*titles(row), best, *cells])
    return table


def share_table(runs: Runs, methods: list[str]) -> Table:
    """The share of the best possible NDCG@10 by method, where the best is known."""
    rows = [row for row in asked(runs) if each(runs, row, BEST, "values")]
    table = [["task", *methods]]
    for row in rows:
        best = float(np.nanmean(values(runs, row, BEST)))
        found = [values(runs, row, name) for name in methods]
        table.append([row[2], *("" if one is None else f"{np.nanmean(one) / best:.1%}" for one in found)])
    return table


def forecast_table(others: dict[str, dict[str, Any]]) -> Table:
    """A row for each setting of the forecasts."""
    table = [["log", "window", "horizon", "customers", "RMSE: MCM", "BG/NBD", "total: MCM", "BG/NBD"]]
    table[0] += ["in 80%", "in 95%", "spend", "actual spend"]
    for log in LOGS:
        for row in others.get(f"{log}.forecasts", {"rows": []})["rows"]:
            sizes = [f"{row['window']}", f"{row['horizon']}", f"{row['customers']:,}"]
            errors = [f"{row[name + ' RMSE']:.3f}" for name in ("MCM", "BG/NBD")]
            totals = [f"{row[name + ' total'] - 1:+.0%}" for name in ("MCM", "BG/NBD")]
            shares = [f"{row[name]:.1%}" for name in ("in 80%", "in 95%")]
            table.append(
                [log, *sizes, *errors, *totals, *shares, f"{row['spend']:,.0f}", f"{row['actual spend']:,.0f}"]
            )
    return table


def chances(others: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The bins of each log and task."""
    found: dict[str, list[dict[str, Any]]] = {}
    for log in LOGS:
        for row in others.get(f"{log}.chance", {"rows": []})["rows"]:
            found.setdefault(f"{log} {row['task']}", []).append(row)
    return found


def chance_picture(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws the share that came by the chance, with its 95% interval."""
    axes = plt.subplots(figsize=(5, 4), layout="constrained")[1]
    for name, rows in found.items():
        many = [row for row in rows if row["labels"] >= FEWEST]
        chance, came, number = (np.array([row[key] for row in many]) for key in ("chance", "came", "labels"))
        axes.errorbar(chance, came, 1.96 * (came * (1 - came) / number) ** 0.5, label=name, marker="o", capsize=2)
    axes.plot([0, 0.5], [0, 0.5], color="grey", linestyle="dotted")
    axes.set(xlabel="chance", ylabel="came in the next visit")
    axes.legend()
    plt.savefig(path, metadata={"Software": None})
    plt.close()


def chance_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    """A row for each bin of a tenth, a column for each task."""
    table = [["chance", *found]]
    for tenth in range(10):
        bins = [next((row for row in rows if int(row["chance"] * 10) == tenth), None) for rows in found.values()]
        cells = [
            "" if row is None else f"{row['chance']:.3f} / **{row['came']:.3f}** of {row['labels']:,}" for row in bins
        ]
        if any(cells):
            table.append([f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", *cells])
    return table


def probe_table(others: dict[str, dict[str, Any]]) -> Table:
    """A row for each target of the probe."""
    kinds = ["counts", "components", "state", "counts and state"]
    table = [["log", "target", "customers", *kinds, "state less the best of counts and components"]]
    for log in LOGS:
        for row in others.get(f"{log}.probe", {"rows": []})["rows"]:
            gain = with_interval(row["state over the best of both"], "+.3f")
            cells = [f"{row[kind]['mean']:.3f}" for kind in kinds]
            table.append([log, row["target"], f"{row['customers']:,}", *cells, gain])
    return table


def small_table(others: dict[str, dict[str, Any]]) -> Table:
    """A row for each task and number of visits of the small logs."""
    table = [["log", "task", "visits", "cases", "best of counting", "its NDCG@10", WITHOUT, "difference ± error"]]
    for log in LOGS:
        for row in others.get(f"{log}.small_logs", {"rows": []})["rows"]:
            cells = [row["task"], str(row["visits"]), str(row["cases"]), row["best"].replace("_", " ")]
            cells += [f"{row['counting']:.4f}", f"{row['MCM']:.4f}", f"{row['gain']:+.4f} ± {row['error']:.4f}"]
            table.append([log, *cells])
    return table


def verdict(table: Table) -> str:
    """Says on which targets of the probe the state is under the best of counts and components."""
    gains = [(f"{row[1]} of {row[0]}", *(float(word.strip("[],")) for word in row[-1].split())) for row in table[1:]]
    under = [name for name, mean, *_ in gains if mean < 0]
    clear = [name for name, _, _, high in gains if high < 0]
    better = sum(low > 0 for _, _, low, _ in gains)
    words = f"The state is under the best of counts and components on {len(under)} of {len(gains)} targets"
    words += f" ({', '.join(under)}), beyond noise on {len(clear)}" if under else ""
    return f"{words}; it is above it beyond noise on {better}."


def draw(folder: Path) -> None:
    """Writes the page beside the folder of the results."""
    runs, others = read(folder)
    methods = sorted(
        (method.name for method in find_methods()), key=lambda name: (name.startswith("MCM"), name == WITH)
    )
    shown = [name for name in methods if name != BEST and any(method == name for _, method in runs)]
    main = [row for row in asked(runs) if row[1] == LOGS[row[0]].questions[0].name]

    def ndcg(row, method):
        found = [answer["mean"] for answer in each(runs, row, method, "ndcg@10")]
        return f"{np.mean(found):.4f}" if found else ""

    def lists(row, method):
        recall = [answer["mean"] for answer in each(runs, row, method, "recall@10")]
        covered = each(runs, row, method, "coverage")
        return f"{np.mean(recall):.3f} / {np.mean(covered):.0%}" if recall else ""

    seeds = {name: {len(found) for (_, method), found in runs.items() if method == name} for name in (WITHOUT, WITH)}
    probe, speed = probe_table(others), others.get("speed", {"caption": "", "table": []})
    parts = {
        "seeds": "; ".join(f"{name}: {' or '.join(map(str, sorted(of))) or 'none'}" for name, of in seeds.items()),
        "ndcg": _table(by_method(asked(runs), shown, ndcg)),
        "differences": _table(differences(runs, methods)),
        "lists": _table(by_method(main, [name for name in shown if name in IN_LISTS], lists)),
        "shares": _table(share_table(runs, shown)),
        "forecasts": _table(forecast_table(others)),
        "chance": _table(chance_table(chances(others))),
        "small": _table(small_table(others)),
        "verdict": verdict(probe) if len(probe) > 1 else "",
        "probe": _table(probe),
        "speed": f"{speed['caption']}\n\n{_table(speed['table'])}",
    }
    if found := chances(others):
        pictures = folder.with_name("pictures")
        pictures.mkdir(exist_ok=True)
        chance_picture(found, pictures / "chance.png")
    text = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    folder.with_suffix(".md").write_text(text.format(**parts), encoding="utf-8")


def _table(table: Table) -> str:
    if len(table) < 2:
        return "Not run yet."
    heading, *lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([heading, "|" + " --- |" * len(table[0]), *lines])
