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
import pandas as pd
from numpy.typing import NDArray

from labels import METHODS, SIZES
from logs import LOGS
from methods import find_methods
from methods.best_possible import BEST
from methods.mcm import WITH, WITHOUT
from modeling_mcm.evaluation import paired_difference
from probe import YARDSTICKS

STEPS, MISSING = 250, 255  # of a stored value from 0 to 1; an error of .002 of a customer is none of a mean
IN_LISTS = ("neighbours", WITHOUT, WITH)  # whose lists are described
FEWEST = 30  # labels of a bin that is shown
# NDCG@10 / hit ratio at 10 of others on logs of reviews, as papers print them
CATALOGUES = ("toys", "sports")
PRINTED = {
    "SASRec, in S3-Rec (CIKM 2020)": {"toys": "0.0374 / 0.0675"},
    "BERT4Rec, in S3-Rec (CIKM 2020)": {"toys": "0.0099 / 0.0203"},
    "S3-Rec (CIKM 2020)": {"toys": "0.0376 / 0.0700", "sports": "0.0204 / 0.0385"},
    "WEARec, the best of 88 settings by test": {"sports": "0.0367 / 0.0631"},
}
PAGE = """# Results

NDCG@10 of the next visit, or of the row's question; higher is better. [How it was measured](#how-it-was-measured).

{ndcg}

## Differences in NDCG@10

Paired by customer, ± half of the 95% interval; empty where MCM leaves the encoder out. {peers}

{differences}

## Lists of ten

Recall@10, and in brackets the share of all labels that are in any list; empty as above.

{lists}

## Published figures of catalogues

NDCG@10 / hit ratio at 10 of each customer's last item; all items are ranked but those that the customer has seen. Rows
with a source are those that it prints: their settings were often chosen by test cases, MCM's by validation.

{catalogues}

## Next baskets

Recall, NDCG and hit ratio at 10 of the last basket, with the customers and the split of
[DNNTSP](https://github.com/yule-BUAA/DNNTSP): test customers are none of those that a method is fitted on. MCM is
`CustomerModel.fit` by its defaults, ± half of the 95% interval over customers; the other rows are those that the
papers print.

{baskets}

## Small logs

NDCG@10 of MCM without encoder less the best of counting, ± its standard error, by the number of visits to learn from.
Means of three draws of customers with at most ten visits each.

{small}

## Chance

How often labels come in the next visit, by the `chance` that MCM without encoder gives: the 50 best of all test cases,
in bins of at least 30. Largest differences: {chance}.

![The share that came by the chance, with 95% intervals](pictures/chance.png)

## Forecasts

`CustomerModel.fit` on the events before a cutoff, and `forecast` at it, beside BG/NBD, fitted on the same visits.
Window and horizon are in days. Errors are of a customer, the smallest one bold: those of means, and of MCM's medians,
which are no forecasts of sums. Totals are over or under the actual ones. The last columns are shares of customers in
MCM's intervals; of those in an interval of 0 alone, only its level is counted.

{forecasts}

Spend, beside Gamma-Gamma, which is the mean of a visit, times the visits of BG/NBD:

{spend}

## Who the customer is

AUC of linear models and of LightGBM, which reads counts and components, or rank correlation (spend, visits).
*Counts* are made by hand, *components* 64 principal ones of log counts of labels. The *state* is `CustomerModel.embed`
by MCM without encoder. {verdict}

{probe}

## Labels

AUC of `CustomerModel.finetune` and others, learned from 100/1,000/half of the customers. *Sparse*: tf-idf of labels.
Cells come from several runs.

{labels}

## Speed beside other libraries

The others read the labels of one task. MCM reads all features, trains all tasks and ranks that one, made to read its
encoder. {speed}

## How it was measured

- `make results` runs what is missing and draws this page from [docs/results](results/), which has the NDCG@10 of every
  customer, and versions. An empty cell was not run, or the method has no answer there.
- Methods run by their defaults, are fitted before the validation cutoff and asked at the test cutoff. Values are means
  over customers and seeds ({seeds}).
- All labels are ranked; on Toys and MovieLens those that the customer had not seen.
- How customers of the synthetic shop choose is known. The best possible ranking knows tastes that the log does not
  tell.
- Toys, `movielens_100k` and `leave_one_out` hold out last visits, so other customers' later events are in all counts.
- MCM is one model for all tasks of a log, five on Toys. RecTools has one for each task, trained until the NDCG@10 of
  validation stops to rise. It knows no visits, and reads the latest 100 labels, those of one time in random order.
- Variants of MCM saw test cases: thirteen those of Complete Journey, ten of Ta-Feng's baskets, nine of Toys, one of
  sports, two of DNNTSP's baskets, five of films by time, one of Ta-Feng. Variants of the state saw its targets: nine
  or more on Complete Journey, five on Ta-Feng; sixty of the head saw labels.
- One item, twice as frequent in the last baskets, decides what was never bought of Ta-Feng's baskets.
- Training took, on two cores that were shared: {seconds}.
- Each file names its commit. RecTools, chances, small logs and LightGBM on Ta-Feng's baskets are of before ties were
  broken by id. RecTools was not ranked again on the shop and on products of Ta-Feng since each of several unseen
  labels counts. On Complete Journey and the shop MCM is of before af79e067. Speed is of 3148bed3, forecasts are
  of 742fd512; all other rows are of before MCM and what only counts count the log until the test cutoff.
- Forecasts: six cutoffs of CDNOW chose how large amounts are smoothed, two variants of it saw the page's.
  Earlier cutoffs chose the calendar; on the page's it makes RMSE up to .5% larger than 95ee0383, without it, had.
"""
Answer = dict[str, Any]  # of a file of results
Runs = dict[tuple[str, str], list[Answer]]  # by log and method, a run for each seed
Table = list[list[str]]


def pack(values: NDArray) -> str:
    """Text of values from 0 to 1, or NaN: a byte each, compressed."""
    steps = np.where(np.isnan(values), MISSING, np.round(np.nan_to_num(values) * STEPS)).astype(np.uint8)
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpack(text: str) -> NDArray[np.float64]:
    """The values of a text of `pack`."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.where(steps == MISSING, np.nan, steps / STEPS)


def read(folder: Path) -> tuple[Runs, dict[str, Answer]]:
    """The runs, and the other files by name. Raises `ValueError` if two runs of a log read other data."""
    runs: Runs = {}
    others: dict[str, Answer] = {}
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
        ["log, task, question", *methods],
        *([title(row), *(cell(row, name) for name in methods)] for row in rows),
    ]


def with_interval(value: dict[str, float], digits: int) -> str:
    """Writes a mean and half of its interval: `+0.323 ±0.012`."""
    return f"{value['mean']:+.{digits}f} ±{(value['high'] - value['low']) / 2:.{digits}f}"


def title(row: tuple[str, str, str]) -> str:
    """The first cell of a row."""
    log, question, task = row
    return ", ".join([f"{log} {task}", *([] if question == LOGS[log].questions[0].name else [question])])


def differences(runs: Runs, methods: list[str]) -> tuple[Table, str]:
    """MCM with and without its encoder less the best other method, and with it less without it by the same seeds;
    paired by customer. And a sentence on the best of RecTools."""
    table = [["log, task, question", "best other", f"{WITH} less it", f"{WITHOUT} less it", "what the encoder adds"]]
    lows = []
    for row in asked(runs):
        found = {name: method_values for name in methods if (method_values := values(runs, row, name)) is not None}
        others = [name for name in found if name not in (WITH, WITHOUT, BEST)]
        others.sort(key=lambda name: -float(np.nanmean(found[name])))
        best = next(iter(others), "")
        peer = next((found[name] for name in others if name.startswith("RecTools")), None)
        if peer is not None:
            lows.append(paired_difference(found.get(WITH, found.get(WITHOUT)), peer).low)
        pairs = [(found.get(one), found.get(best)) for one in (WITH, WITHOUT)]
        pairs.append((values(runs, row, WITH, WITHOUT), values(runs, row, WITHOUT, WITH)))
        cells = [
            "" if one is None or other is None else with_interval(paired_difference(one, other)._asdict(), 4)
            for one, other in pairs
        ]
        if pairs[-1][0] is not None and np.array_equal(*pairs[-1], equal_nan=True):
            cells[1:] = ["", ""]
        table.append([title(row), best, *cells])
    above = sum(low > 0 for low in lows)
    return table, f"MCM is above the best of RecTools beyond noise in {above} of the {len(lows)} rows where both ran."


def share_rows(runs: Runs, methods: list[str]) -> Table:
    """Rows with the share of the best possible NDCG@10 by method, where the best is known."""
    rows = []
    for row in asked(runs):
        if (best := values(runs, row, BEST)) is not None:
            found = [values(runs, row, name) for name in methods]
            shares = ["" if one is None else f"{np.nanmean(one) / np.nanmean(best):.0%}" for one in found]
            rows.append([f"{title(row)}, share of the best possible", *shares])
    return rows


def forecast_table(others: dict[str, Answer], quantity: str, other: str) -> Table:
    """A row for each setting of the forecasts of visits or spend, the least error in bold; intervals are of visits."""
    names, levels = ("MCM", other), ("in 80%", "in 95%") if quantity == "visits" else ()
    table = [["log", "window", "horizon", "RMSE: MCM", other, "MAE: MCM", "MCM's median", other]]
    table[0] += ["total: MCM", other, *levels]
    for log in LOGS:
        for row in others.get(f"{log}.forecasts", {"rows": []})["rows"]:
            cells = [log, f"{row['window']}", f"{row['horizon']}"]
            for error, methods in (("RMSE", names), ("MAE", ("MCM", "MCM's median", other))):
                found = [f"{row[f'{quantity}: {name} {error}']:.4g}" for name in methods]
                cells += [f"**{cell}**" if float(cell) == min(map(float, found)) else cell for cell in found]
            cells += [f"{row[f'{quantity}: {name} total'] - 1:+.0%}" for name in names]
            table.append([*cells, *(f"{row[level]:.1%}" for level in levels)])
    return table


def chances(others: dict[str, Answer]) -> dict[str, list[Answer]]:
    """The bins of each log and task."""
    found: dict[str, list[Answer]] = {}
    for log in LOGS:
        for row in others.get(f"{log}.chance", {"rows": []})["rows"]:
            found.setdefault(f"{log} {row['task']}", []).append(row)
    return found


def chance_picture(found: dict[str, list[Answer]], path: Path) -> None:
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


def farthest(found: dict[str, list[Answer]]) -> str:
    """Says how far the share that came is from the chance, at most, in the bins that are drawn."""
    errors = {
        name: max(abs(row["came"] - row["chance"]) for row in rows if row["labels"] >= FEWEST)
        for name, rows in found.items()
        if any(row["labels"] >= FEWEST for row in rows)
    }
    return "; ".join(f"{name} {error:.3f}" for name, error in errors.items()) or "not known"


def probe_table(rows: list[tuple[str, Answer]]) -> Table:
    """A row for each target of the probe."""
    kinds = [*YARDSTICKS, "state"]
    table = [["log", "target", *kinds, "state less the best of those without MCM"]]
    for log, row in rows:
        gain = with_interval(row["state over the best yardstick"], 3)
        values = [f"{row[kind]['mean']:.3f}" if kind in row else "" for kind in kinds]
        table.append([log, row["target"], *values, gain])
    return table


def label_table(others: dict[str, Answer]) -> Table:
    """A row for each method, a column for each label; those of a profile together."""
    rows = [row | {"log": log} for log in LOGS for row in others.get(f"{log}.labels", {"rows": []})["rows"]]
    if not rows:
        return []
    table = pd.DataFrame(rows)
    profile = table["log"].eq("complete_journey") & table["label"].ne("leaves")
    table["label"] = table["log"] + " " + table["label"].mask(profile, "demographics")
    table["size"] = table["learned from"].where(table["learned from"].isin(SIZES), np.inf)
    means = table.groupby(["label", "size"])[list(METHODS)].mean()
    labels = table["label"].unique().tolist()
    return [["method", *labels]] + [
        [method, *("/".join(f"{auc:.3f}" for auc in means.loc[label, method]) for label in labels)]
        for method in METHODS
    ]


def basket_table(others: dict[str, Answer]) -> Table:
    """A row for each method, a column for each metric of each log."""
    found: dict[str, dict[str, str]] = {}
    for row in others.get("baskets", {"rows": []})["rows"]:
        for metric in ("recall", "ndcg", "hit"):
            value = row[metric]
            cell = with_interval(value, 3)[1:] if "low" in value else f"{value['mean']:.3f}"
            found.setdefault(row["method"], {})[f"{row['log']}: {metric}"] = cell
    columns = dict.fromkeys(column for cells in found.values() for column in cells)
    return [
        ["method", *columns],
        *([method, *(cells.get(column, "") for column in columns)] for method, cells in found.items()),
    ]


def catalogue_table(runs: Runs) -> Table:
    """A row for each method, a column for each log of [`CATALOGUES`]."""
    table = [
        ["method", *CATALOGUES],
        *([name, *(of.get(log, "") for log in CATALOGUES)] for name, of in PRINTED.items()),
    ]
    for method in (WITHOUT, WITH):
        cells = []
        for log in CATALOGUES:
            row = (log, LOGS[log].questions[0].name, LOGS[log].tasks[0])
            means = ([one["mean"] for one in each(runs, row, method, name)] for name in ("ndcg@10", "recall@10"))
            cells.append(" / ".join(f"{np.mean(found):.4f}" for found in means if found))
        table.append([method, *cells])
    return table


def small_table(others: dict[str, Answer]) -> Table:
    """A row for each task of the small logs, a column for each number of visits."""
    rows = [(log, row) for log in LOGS for row in others.get(f"{log}.small_logs", {"rows": []})["rows"]]
    numbers = sorted({row["visits"] for _, row in rows})
    table = [["log", "task", *(f"{number:,} visits" for number in numbers)]]
    for log, task in dict.fromkeys((log, row["task"]) for log, row in rows):
        cells = {
            row["visits"]: f"{row['gain']:+.3f} ±{row['error']:.3f}"
            for of, row in rows
            if (of, row["task"]) == (log, task)
        }
        table.append([log, task, *(cells.get(number, "") for number in numbers)])
    return table


def verdict(rows: list[tuple[str, Answer]]) -> str:
    """Says on how many targets of the probe the state is above or under the best of what needs no MCM."""
    gains = [row["state over the best yardstick"] for _, row in rows]
    above, under = sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains)
    return f"Of {len(gains)} targets it is above the best of these beyond noise on {above}, and under it on {under}."


def time_of(runs: Runs, method: str) -> str:
    """The shortest and the longest training of a method."""
    seconds = [run.get("seconds") for (_, name), each in runs.items() for run in each if name == method]
    known = [number for number in seconds if number]
    return f"{method}, {min(known):.0f} to {max(known):.0f} s" if known else f"{method}, not known"


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
        cell = f"{np.mean(recall):.3f} ({np.mean(covered):.0%})" if recall else ""
        return "" if method == WITH and cell == lists(row, WITHOUT) else cell

    seeds = {name: {len(found) for (_, method), found in runs.items() if method == name} for name in (WITHOUT, WITH)}
    probe = [(log, row) for log in LOGS for row in others.get(f"{log}.probe", {"rows": []})["rows"]]
    speed = others.get("speed", {"caption": "", "table": []})
    gains, peers = differences(runs, methods)
    parts = {
        "seeds": "; ".join(f"{name}: {' or '.join(map(str, sorted(of))) or 'none'}" for name, of in seeds.items()),
        "seconds": "; ".join(time_of(runs, name) for name in (WITHOUT, WITH)),
        "ndcg": _table(by_method(asked(runs), shown, ndcg) + share_rows(runs, shown)),
        "differences": _table(gains),
        "peers": peers,
        "lists": _table(by_method(main, [name for name in shown if name in IN_LISTS], lists)),
        "forecasts": _table(forecast_table(others, "visits", "BG/NBD")),
        "spend": _table(forecast_table(others, "spend", "Gamma-Gamma")),
        "chance": farthest(chances(others)),
        "catalogues": _table(catalogue_table(runs)),
        "baskets": _table(basket_table(others)),
        "small": _table(small_table(others)),
        "verdict": verdict(probe) if probe else "",
        "probe": _table(probe_table(probe)),
        "labels": _table(label_table(others)),
        "speed": f"{speed['caption']}\n\n{_table(speed['table'])}",
    }
    if found := chances(others):
        pictures = folder.with_name("pictures")
        pictures.mkdir(exist_ok=True)
        chance_picture(found, pictures / "chance.png")
    folder.with_suffix(".md").write_text(PAGE.format(**parts), encoding="utf-8")


def _table(table: Table) -> str:
    if len(table) < 2:
        return "Not run yet."
    kept = [column for column in zip(*table, strict=True) if any(column[1:])]
    table = [list(row) for row in zip(*kept, strict=True)]
    heading, *lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([heading, "|" + "---|" * len(table[0]), *lines])
