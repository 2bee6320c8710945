#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Next baskets of customers that MCM was not fitted on, as DNNTSP splits them, beside published figures.

    python benchmarks/baskets.py --data FOLDER     fits MCM by its defaults, and writes docs/results/baskets.json

For each log the folder has, made from the data of the repository yule-BUAA/DNNTSP: NAME_fit.parquet (user, basket,
item), all baskets of the customers of its train and validate parts; NAME_test.parquet, those of its test customers but
for the last one; and NAME_truth.json, the items of that one by customer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from logs import SCHEMAS
from modeling_mcm import CustomerModel
from modeling_mcm.evaluation import bootstrap_interval, ndcg_at_k, recall_at_k
from run_results import versions

LOGS = {"TaFeng": "Ta-Feng", "DC": "Dunnhumby-Carbo"}
TOP = 10
METRICS = ("recall", "ndcg", "hit")
# Recall, NDCG and hit ratio at 10 of others, as papers print them
PUBLISHED = {
    "DNNTSP (KDD 2020)": {"TaFeng": (0.169, 0.144, 0.471), "DC": (0.461, 0.328, 0.553)},
    "SFCNTSP (AAAI 2023)": {"TaFeng": (0.167, 0.144, 0.470)},
    "PIETSP (arXiv 2504.17140)": {"TaFeng": (0.187, 0.165, 0.497), "DC": (0.462, 0.346, 0.561)},
}


@dataclass
class BasketOptions:
    """Which logs are measured, and where they are."""

    data: str = HfArg(default="data/dnntsp", help="Folder of the files.")
    names: list[str] = HfArg(default_factory=lambda: [*LOGS], help=f"Logs, any of {', '.join(LOGS)}.")
    results: str = HfArg(default="docs/results", help="Folder of the results.")


def measure(lists: dict[str, list[str]], truth: dict[str, list[str]]) -> dict[str, NDArray]:
    """Recall, NDCG (ideal: that of as many items as the basket has) and hit ratio at 10 of each customer."""
    ranks = np.full((len(truth), max(map(len, truth.values()))), TOP)
    is_target = np.zeros(ranks.shape, bool)
    for row, (customer, items) in enumerate(truth.items()):
        places = {item: place for place, item in enumerate(lists.get(customer, [])[:TOP])}
        is_target[row, : len(items)] = True
        ranks[row, : len(items)] = [places.get(item, TOP) for item in items]
    each = ranks, np.ones_like(ranks), is_target, TOP
    hits = (ranks < TOP).any(1).astype(float)
    return dict(zip(METRICS, (recall_at_k(*each), ndcg_at_k(*each), hits), strict=True))


def run(folder: Path, name: str) -> dict[str, object]:
    """Fits MCM on a log, and measures its lists for the test customers."""
    events, asked = (pd.read_parquet(folder / f"{name}_{part}.parquet") for part in ("fit", "test"))
    fitted = CustomerModel.fit(events, SCHEMAS["ta_feng_baskets"])
    model = CustomerModel(fitted.model, fitted.feature_extractor, asked, fitted.reader)
    lists = model.recommend(k=TOP).groupby("customer", sort=False)["label"].agg(list).to_dict()
    values = measure(lists, json.loads((folder / f"{name}_truth.json").read_text(encoding="utf-8")))
    row = {metric: bootstrap_interval(found)._asdict() for metric, found in values.items()}
    return {"log": LOGS[name], "method": "MCM without encoder"} | row


def main() -> None:
    """Reads the options, and writes a row for each log and method."""
    (options,) = HfArgumentParser(BasketOptions, description=__doc__).parse_args_into_dataclasses()
    rows = [
        {"log": LOGS[name], "method": method}
        | {key: {"mean": value} for key, value in zip(METRICS, of_log, strict=True)}
        for method, figures in PUBLISHED.items()
        for name, of_log in figures.items()
    ]
    rows += [run(Path(options.data), name) for name in options.names]
    found = {"rows": rows, "versions": versions(("torch", "transformers"))}
    Path(options.results, "baskets.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
