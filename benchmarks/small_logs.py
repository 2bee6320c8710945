# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a start is worth it on a small log: `mcm pretrain --encoder none` beside counting, on few visits.

A small log has customers of a larger one, drawn at random until the visits that follow another one in the training
period reach a number. Each brings the latest ten visits of that period, so that a hundred visits are of ten customers
and not of one. Each draw is prepared, trained and evaluated by the commands, as a user would do.
"""

from pathlib import Path

import pandas as pd

from logs import Log, run_mcm
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.preparation import prepare

LOGS = ("complete_journey", "ta_feng", "synthetic_shop", "movielens_100k")
VISITS, DRAWS, LATEST = (100, 200, 500, 1000), 3, 10
BASELINES = ("most_popular", "visit_frequency", "nearest_customers", "transitions")
METRIC, CUTOFF = "next_visit_ndcg@10", "test"


def count_visits(events: pd.DataFrame, schema: EventSchema) -> tuple[pd.Series, pd.Series]:
    """Of each event, whether it is in the training period, and how many later visits its customer has there."""
    customer = events[schema.customer]
    if schema.leaves_one_out:
        trained = customer.groupby(customer).cumcount(ascending=False) > 1
    else:
        trained = events[schema.time] < pd.Timestamp(schema.cutoffs["validation"])
    visit = events[schema.visit or schema.time] if schema.time else pd.Series(events.index, events.index)
    is_target = trained & visit.notna()
    if schema.target_token_types:
        is_target &= events[schema.token_feature.column].isin(schema.target_token_types)
    opens = is_target & ~pd.DataFrame({"customer": customer, "visit": visit.where(is_target)}).duplicated()
    number = opens.groupby(customer).cumsum()
    return trained, number.groupby(customer).transform("max") - number


def draw(events: pd.DataFrame, schema: EventSchema, visits: int, seed: int) -> pd.DataFrame:
    """Events of customers at random, who have so many visits to learn from."""
    trained, later = count_visits(events, schema)
    events = events[~trained | (later < LATEST)]
    to_learn = later.groupby(events[schema.customer]).max().clip(upper=LATEST - 1)  # all visits but the first
    customers = to_learn.sample(frac=1, random_state=seed)
    return events[events[schema.customer].isin(customers.index[: int((customers.cumsum() < visits).sum()) + 1])]


def evaluate(log: Log, folder: Path, events: pd.DataFrame, schema: EventSchema, seed: int) -> pd.DataFrame:
    """NDCG@10 of each task and customer, a column for the start and for each way of counting."""
    data, run, values = folder / "data", folder / "run", folder / f"{CUTOFF}.parquet"
    if not (run / "pretraining.json").is_file():
        prepare(events, schema, data, overwrite=True)
        options = {"report_to": "none", "disable_tqdm": True}
        run_mcm("pretrain", data=data, output_dir=run, encoder="none", seed=seed, **options)
    words = ["--only_new"] if log.questions[0].only_new else []
    ranked = [name for name in BASELINES if not words or name != "visit_frequency"]  # which counts what was seen
    run_mcm("evaluate", *words, model=run, data=data, cutoff=CUTOFF, baselines=ranked, values_file=values)
    found = pd.read_parquet(values)
    return found[found["metric"] == METRIC].pivot(index=["task", "customer_id"], columns="method", values="value")


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, object] | None:
    """A row for each task and number of visits: means over the customers of all draws, and the difference of the start
    from the best of counting with its standard error; None for other logs."""
    if log.name not in LOGS:
        return None
    changes = {"tasks": list(log.tasks), "min_history": 1, "profile": []}
    schema = EventSchema.from_dict(data.schema.to_dict() | changes)
    events = pd.read_parquet(data.folder.with_name("raw") / "events.parquet")
    events = events.sort_values([schema.customer, *([schema.time] if schema.time else [])], kind="stable")
    events = events[[name for name in events if name in schema.event_columns]].reset_index(drop=True)
    rows = []
    for visits in VISITS:
        folders = {seed: runs / log.name / f"small.{visits}.{seed}" for seed in range(DRAWS)}
        draws = [
            evaluate(log, folder, draw(events, schema, visits, seed), schema, seed) for seed, folder in folders.items()
        ]
        for task, values in pd.concat(draws).groupby(level="task"):
            means = values.mean()
            best = means.drop("MCM").idxmax()
            gains = (values["MCM"] - values[best]).dropna()
            row = {"task": task, "visits": visits, "cases": len(gains), "best": best, "counting": means[best]}
            rows.append(row | {"MCM": means["MCM"], "gain": gains.mean(), "error": gains.sem()})
    return {"log": log.name, "rows": rows}
