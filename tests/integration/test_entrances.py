# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The same answer through every entrance: kinds of logs x questions x entrances, all equal to `encode` and `forward`.

Every entrance gets the same raw events, all at once, or one by one in pieces of any size, and gives for each customer
a dict of numbers by name. What they should be is computed here by hand from the model's forward pass.
"""

import functools
import itertools
import json
import shutil
from datetime import UTC, datetime
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from answers import flatten
from choices import EXTENDED, STATE, TINY, from_data, perturb
from corner_shop import SCHEMA, make_profile
from fitted import fill_forecaster, fill_scorer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import call
from serving_client import make_client, make_service

from modeling_mcm import (
    CustomerModel,
    LiveCustomer,
    MCMConfig,
    MCMForActionRecommendation,
    MCMForCustomerPrediction,
    MCMForMultiTaskRecommendation,
)
from modeling_mcm.action_inputs_mcm import EncodedActions
from modeling_mcm.calendar_mcm import join_known
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.data.collator import MCMCollator
from modeling_mcm.data.dataset import END
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.live.customer import LiveHistory
from modeling_mcm.page.histories import Histories
from modeling_mcm.pipeline_mcm import (
    ActionScoresPipeline,
    CustomerEmbeddingPipeline,
    CustomerForecastPipeline,
    CustomerPredictionPipeline,
    PreferenceScoresPipeline,
)
from modeling_mcm.preparation import prepare
from modeling_mcm.refresh import refresh
from modeling_mcm.training.checkpoints import open_checkpoint
from modeling_mcm.training.counting import Counts

KNOWN_COLUMNS = ["name", "from", "to", "value"]
AS_OF, K = "2017-12-31", 4
# Of 100 days until AS_OF a busy one each week, and a closed week to come
CALENDAR = {"calendar": [17431, 100], "known": {"closed": [["2018-01-03", "2018-01-09", 1.0]]}}
DAY_OFF = {"closed": [["2018-01-15", "2018-01-15", 0.5]]}
FOURTH = "the fourth label"  # of the vocabulary, whatever it is
TEXT = "%Y-%m-%dT%H:%M:%S.%f"


LONG = 20, 300, 2_000, 8_000  # lines of customers, of which the encoder reads 39
MOST_PIECES = 100  # of one customer's events


def make_long_events(draw):
    """Four customers of LONG, who take six lines a visit."""
    parts = []
    for customer, number in enumerate(LONG):
        visit = np.arange(number) // 6
        start = np.sort(draw.integers(0, 50 * 86_400, 1 + visit[-1]))
        log = pd.DataFrame({"who": f"c{customer:02}", "visit": visit, "number": draw.integers(0, 12, number)})
        log["when"] = pd.Timestamp("2017-10-01T22:00") + pd.to_timedelta(start[visit] + np.arange(number) % 6, "s")
        parts.append(log)
    log = pd.concat(parts, ignore_index=True)
    log["basket"], log["price"] = log["who"] + "-" + log.pop("visit").astype(str), 1.0 + log["number"] % 7
    log["item"], log["aisle"] = (
        f"{name} " + ids.astype(str).str.zfill(2)
        for name, ids in (("item", log["number"]), ("aisle", log["number"] // 4))
    )
    return log.drop(columns="number").assign(action=np.where(np.arange(len(log)) % 6, "buy", "click"))


def make_events(kind, seed=0, customers=9, later=False):
    """Events around midnights: baskets that overlap, clicks without one, several events of a second, empty values."""
    draw, rows = np.random.default_rng(seed), []
    for customer in range(customers):
        for visit in range(1 + customer * 2):
            start = pd.Timestamp("2017-10-01T22:00") + pd.Timedelta(hours=int(draw.integers(24 * 50)))
            for _ in range(draw.integers(1, 5)):
                item, is_click = int(draw.integers(12)), draw.random() < 0.2
                seconds = float(draw.choice([0, 0, 0.1, 0.4, 1, 3600, 10_000]))
                rows.append({"who": f"c{customer:02}", "when": start + pd.Timedelta(seconds=seconds)})
                rows[-1] |= {"action": "click" if is_click else "buy", "item": None if is_click else f"item {item:02}"}
                rows[-1] |= {"basket": None if is_click else f"{customer}-{visit}", "price": float(1 + item % 7)}
                rows[-1] |= {"aisle": f"aisle {item // 4}"}
    log = make_long_events(draw) if kind.startswith("long") else pd.DataFrame(rows)
    if later:  # whoever comes at the cutoffs, of whom nobody asks, and who has not come yet
        late = {"2017-12-30T12": "c98", "2017-12-31T12": "c98", "2018-01-05T12": "c99"}
        late = [log.iloc[-1:].assign(who=name, when=pd.Timestamp(time)) for time, name in late.items()]
        log = pd.concat([log, *late], ignore_index=True)
    if kind == "refunds":
        log["price"] *= np.where(np.arange(len(log)) % 5, 1, -1)
    if kind == "numbers":
        log["who"] = log["who"].str[1:].astype(int) + 1
        log["item"] = pd.to_numeric(log["item"].str[5:]).astype("Int64") * 10**17 + 3
    if kind == "equal events count once":
        log = pd.concat([log, log.iloc[::3]], ignore_index=True)
    if kind == "place":
        log["place"] = log.groupby("who").cumcount() // 2
    if kind in ("rows", "place"):
        return log.drop(columns="when")
    if kind in ("Europe/Berlin", "+05:30"):  # written in UTC, read on the clocks of the zone
        return log.assign(when=log["when"].dt.strftime(TEXT) + "Z")
    return log if kind == "numbers" else log.assign(when=log["when"].dt.strftime(TEXT))


NO_TIMES = {"time": None, "cutoffs": "leave_one_out", "features": SCHEMA["features"][:4], "amount": None}
# By name what differs from the corner shop's schema
KINDS = yaml.safe_load("""
baskets: {}
days: {visit: visit_day}
times: {visit: null}
place: {order: place}
rows: {order: rows, visit: null}
Europe/Berlin: {time_zone: Europe/Berlin, visit: visit_day}
'+05:30': {time_zone: '+05:30', visit: visit_day}
refunds: {}
numbers: {}
equal events count once: {on_duplicate: drop, visit: visit_day}
readable events: {visit: null}
one kind of event: {token_type: null, target_token_types: [], tasks: [items, aisle]}
refreshed: {visit: visit_day}
""")
# Of a refreshed model: what it was made of, before a day with new labels was added
LEARNED = {"validation": "2017-11-05", "test": "2017-11-08"}
QUESTIONS = {
    "next visit": {"tasks": None},
    "within a month": {"tasks": ["aisle"], "horizon_days": 30.0},
    "what is in stock": {"tasks": ["items"], "candidates": True, "exclude": "seen", "per_group": ("aisle", 1)},
    "what is new, but for a label": {"tasks": ["items"], "exclude": ["seen", FOURTH]},
    "embedding": {"embedding": True},
    "forecasts": {"forecasts": True, "days": [3.0, 40.0]},
    "forecasts and what they are worth now": {"forecasts": True, "days": [3.0, 40.0], "discount_rate": 0.2},
    "forecasts with a day off": {"forecasts": True, "days": [3.0, 40.0], "known": DAY_OFF},
    "label": {"prediction": True},
    "offers": {"offers": True},
}
HEADS = {"prediction": MCMForCustomerPrediction, "offers": MCMForActionRecommendation}


class Shop(SimpleNamespace):
    def __repr__(self):
        return f"<{self.kind}>"


def save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def shop(request, tmp_path_factory):
    return make_shop(request.param, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def long_shop(tmp_path_factory):
    """A function that makes the shop of a kind once."""
    return functools.cache(lambda kind: make_shop(kind, tmp_path_factory.mktemp("shop")))


@torch.no_grad()
def make_shop(kind, place):
    """The log of a kind, its prepared data, and a tiny model whose every weight has a say."""
    log, schema = make_events(kind, later=True), SCHEMA | {"cutoffs": {"validation": "2017-12-30", "test": AS_OF}}
    schema |= {"min_history": 1} | (NO_TIMES if "order" in KINDS.get(kind, {}) else {}) | KINDS.get(kind, {})
    profile = make_profile(log.assign(who=log["who"].map(lambda name: f"c{name}" if kind == "numbers" else name)))
    profile["who"] = sorted(log["who"].unique())
    log.to_parquet(place / "events.parquet")
    known, is_refreshed = log, "refreshed" in kind
    *names, _, newcomer = sorted(log["who"].unique())
    if is_refreshed:
        known, schema = log[(log["when"] < "2017-11-12") & (log["item"] != "item 11")], schema | {"cutoffs": LEARNED}
    profile.to_parquet(place / "profile.parquet")
    prepare(known, EventSchema.from_dict(schema), place / "data", profile=profile)
    extractor = PreparedData(place / "data").extractor
    config = from_data(extractor) | TINY | EXTENDED | {"scorer": True, "kind_feature": extractor.token_type_feature}
    if kind == "readable events":
        config["input_features"] = ["items"]
    if extractor.time:
        config |= CALENDAR | STATE
        config |= {"state_features": [name for name in STATE["state_features"] if name in config["features"]]}
    torch.manual_seed(0)
    model = fill_scorer(perturb(MCMForMultiTaskRecommendation(MCMConfig(**config)).eval()))
    model.scorer.chance.copy_(torch.tensor([0.5, 0.9, -0.2]))
    if extractor.time:
        fill_forecaster(model)
    folder = save(place / "model", model, extractor)
    if is_refreshed:
        folder = place / "of today"
        refresh(place / "model", log.drop(known.index), folder, place / "data")
        model, extractor = (kind.from_pretrained(folder) for kind in (type(model), type(extractor)))
        model.config.counted = {}  # else who has the log answers by the counts of then: tests/integration/test_past.py
        model.save_pretrained(folder)
    stock = pd.DataFrame({"items": extractor.vocabularies["items"][1::2]})
    stock["aisle"] = [f"aisle {number % 3}" for number in range(len(stock))]
    stock.to_parquet(place / "stock.parquet")
    actions = pd.DataFrame({"action_id": ["one", "one", "two", "two"], "item": extractor.vocabularies["items"][:4]})
    actions["time"] = ["2017-01-01", "2018-06-01", "2017-01-01", "2017-01-01"]  # two versions; two rows of one
    actions = actions.assign(action="buy").to_dict("records")
    pd.DataFrame(actions).to_parquet(place / "actions.parquet")
    ages = {str(row["who"]): {"age": row["age"]} for row in profile.to_dict("records")}
    histories = {str(name): rows for name, rows in log.groupby("who") if name in names}
    histories[str(newcomer)] = log.iloc[:0]
    parts = {"place": place, "log": log, "extractor": extractor, "model": model, "stock": stock, "kind": kind}
    return Shop(
        **parts,
        actions=actions,
        folder=place / "of today" if is_refreshed else place / "model",
        ages=ages,
        histories=histories,
        newcomer=str(newcomer),
    )


def with_head(shop, question):
    """The shop of the model that answers a question: for one of a head the same encoder with that head."""
    if not (head := HEADS.get(next(iter(question)))):
        return shop
    torch.manual_seed(0)
    labels = {"id2label": {0: "stays", 1: "leaves"}} if head is MCMForCustomerPrediction else {}
    model = perturb(head.from_pretrained(shop.folder, **labels).eval())
    return Shop(**vars(shop) | {"model": model, "folder": save(shop.place / "head", model, shop.extractor)})


# ------------------------------------------------------------------------------------------- what answers should be


@torch.no_grad()
def ask_by_hand(shop, question, as_of=AS_OF, with_profile=True, inputs=None):
    """Of each customer the numbers by name, from `encode` and the forward pass of one customer at a time."""
    model, extractor, answers = shop.model, shop.extractor, {}
    for name, events in shop.histories.items():
        row = extractor.encode({"events": events, "profile": shop.ages[name] if with_profile else None})
        seen = {task: set(row[f"feature_{task}"].tolist()) for task in extractor.tasks}
        if model.config.input_features:  # events without an item are not there, and a visit without one is none
            is_read = row["feature_items"] > 0
            row = {key: value[is_read] if np.ndim(value) else value for key, value in row.items() if value is not None}
            row["visits"] = np.unique(row["visits"], return_inverse=True)[1].astype(np.int32)
        times = None if extractor.order else [pd.Timestamp(as_of).timestamp()]
        if "offers" in question:
            actions = EncodedActions(extractor, model.config, shop.actions, times and times[0])
            output = model(**actions.batch([row], actions.offered[None], times))
            table = pd.DataFrame(output.logits[0].sigmoid(), actions.action_ids, model.config.action_outcomes)
            answers[name] = flatten(table.to_dict("index"))
            continue
        batch = inputs[name] if inputs else dict(extractor.pad([row], as_of=times))
        if "prediction" in question:
            chances = model(**batch).logits[0].softmax(0).tolist()
            answers[name] = dict(zip(model.config.id2label.values(), chances, strict=True))
            continue
        days = question.get("days", []) + [30.0] * bool(question.get("horizon_days"))
        time = torch.tensor([pd.Timestamp(as_of).timestamp() / 86400], dtype=torch.float64)
        calendar = {} if extractor.order else {"as_of_days": time}
        if "known" in question:
            calendar["known"] = join_known(model.config.known, question["known"])
        steps = [*days, 30.0] if "discount_rate" in question else days
        output = model(**batch, horizon_days=question.get("horizon_days"), forecast_days=steps or None, **calendar)
        if "embedding" in question:
            answers[name] = {str(place): value for place, value in enumerate(output.pooler_output[0].tolist())}
        elif "forecasts" in question:
            answers[name] = {key: value.item() for key, value in output.forecasts.items()}
            if "discount_rate" in question:
                answers[name] = discount_by_hand(answers[name], question["discount_rate"])
        else:
            tasks = question["tasks"] or extractor.tasks
            comes = output.forecasts["visit_probability_30d"].item() if days else 1.0
            ranked = (rank_by_hand(shop, task, output.logits[task][0], seen[task], comes, question) for task in tasks)
            answers[name] = {key: value for part in ranked for key, value in part.items()}
    return answers


def discount_by_hand(told, rate):
    """Adds what the numbers of 3 and 40 days are worth now, and drops those of 30 days."""
    found = {name: value for name, value in told.items() if "_30d" not in name}
    for quantity in (name.removesuffix("_3d") for name in told if name.endswith("_3d") and "probability" not in name):
        first, second, last = (told[f"{quantity}_{day}d"] for day in (3, 30, 40))
        parts = zip((first, second - first, last - second), (1.5, 16.5, 35.0), strict=True)
        worth = [part / (1 + rate) ** (day / 365.2425) for part, day in parts]
        found |= {f"{quantity}_3d_discounted": worth[0], f"{quantity}_40d_discounted": sum(worth)}
    return found


def rank_by_hand(shop, task, logits, seen, comes, question):
    labels, model = shop.extractor.vocabularies[task], shop.model
    chances = (
        comes * model.chances({task: logits[None].double().log_softmax(1)}, question.get("horizon_days"))[task][0]
    )
    allowed = [id for id in range(2, len(logits)) if id not in shop.extractor.own_ids(task)]
    if "exclude" in question:
        allowed = [id for id in allowed if id not in seen and not (FOURTH in question["exclude"] and id == 2 + 3)]
    if "candidates" in question:
        aisles = shop.stock.set_index("items")["aisle"]
        allowed = [id for id in allowed if labels[id - 2] in aisles]
    total = logits[allowed].logsumexp(0)
    best = sorted(allowed, key=lambda id: -logits[id].item())
    if "per_group" in question:
        best = list({aisles[labels[id - 2]]: id for id in reversed(best)}.values())
        best = sorted(best, key=lambda id: -logits[id].item())
    return {
        f"{task}/{labels[id - 2]}/{kind}": value
        for id in best[:K]
        for kind, value in (("score", (logits[id] - total).exp().item()), ("chance", chances[id].item()))
    }


# ------------------------------------------------------------------- entrances: of each customer the numbers by name

OPTIONS = ("tasks", "candidates", "exclude", "per_group", "horizon_days")
FORECAST_OPTIONS = ("days", "known", "discount_rate")


def choose(shop, question, **others):
    """The options of a question as most entrances take them."""
    options = {name: question[name] for name in OPTIONS if name in question}
    if FOURTH in options.get("exclude", ""):
        options["exclude"] = ["seen", shop.extractor.vocabularies["items"][3]]
    return options | ({"candidates": shop.stock} if "candidates" in options else {}) | others


def as_customers(shop):
    return [{"events": rows, "profile": shop.ages[name], "customer_id": name} for name, rows in shop.histories.items()]


def ask_pipelines(shop, question, at_construction=False):
    time, what = {} if shop.extractor.order else {"as_of": AS_OF}, next(iter(question))
    kind, more = {
        "tasks": (PreferenceScoresPipeline, {"top_k": K}),
        "embedding": (CustomerEmbeddingPipeline, {}),
        "forecasts": (CustomerForecastPipeline, {name: question.get(name) for name in FORECAST_OPTIONS}),
        "prediction": (CustomerPredictionPipeline, {}),
        "offers": (ActionScoresPipeline, {"actions": shop.actions}),
    }[what]
    options = choose(shop, question, **time | more)
    first, then = (options, {}) if at_construction else ({}, options)
    if at_construction and "tasks" in options:  # the call goes before the construction
        first, then = (
            options | {"top_k": 1, "tasks": shop.extractor.tasks[:1]},
            {"top_k": K, "tasks": options["tasks"]},
        )
        then["tasks"] = then["tasks"] or shop.extractor.tasks
    pipe = kind(model=shop.model, feature_extractor=shop.extractor, **first)
    return dict(zip(shop.histories, map(flatten, pipe(as_customers(shop), batch_size=4, **then)), strict=True))


def cut(rows, seed=0):
    """Pieces of a frame of any size, in any order where times say it."""
    draw = np.random.default_rng(seed)
    rows = rows if "when" not in rows else rows.iloc[draw.permutation(len(rows))]
    ends = np.sort(draw.integers(0, len(rows) + 1, draw.integers(0, 1 + min(len(rows), MOST_PIECES))))
    return np.split(np.arange(len(rows)), ends), rows


def ask_live(shop, question, in_pieces=True):
    time = () if shop.extractor.order else (AS_OF,)
    for name, rows in shop.histories.items():
        live = LiveCustomer(shop.model, shop.extractor, shop.ages[name], name)
        pieces, rows = cut(rows) if in_pieces else ([np.arange(len(rows))], rows)
        for piece in pieces:
            live.add(rows.iloc[piece])
        live = LiveCustomer.from_bytes(live.to_bytes(), shop.model, shop.extractor) if in_pieces else live
        yield name, flatten(ask_one(live, shop, question, *time))


def ask_one(live, shop, question, *time):
    if "embedding" in question:
        return live.embedding(*time)
    if "forecasts" in question:
        return live.forecast(*time, **{name: question.get(name) for name in FORECAST_OPTIONS})
    if "prediction" in question:
        return live.predict(*time)
    if "offers" in question:
        return live.offers(shop.actions, *time)
    return live.scores(*time, k=K, **choose(shop, question))


def unprefixed(column):
    """The class of a column of a table; answers for one customer name classes alone."""
    return column.removeprefix("predicted_")


def write_known(known):
    """The table of what is known of days."""
    return pd.DataFrame([(name, *row) for name, rows in known.items() for row in rows], columns=KNOWN_COLUMNS)


def ask_file(shop, question):
    shop.log.to_csv(shop.place / "events.csv", index=False)
    return ask_frame(shop, question, shop.place / "events.csv")


def ask_frame(shop, question, file=None):
    if "offers" in question:
        return None  # which has none
    model = CustomerModel(shop.model, shop.extractor, shop.log if file is None else file)
    time = {} if shop.extractor.order else {"as_of": AS_OF}
    time["customers"] = [name for name in shop.histories if name != shop.newcomer or not shop.extractor.order]
    if "embedding" in question:
        return {name: flatten(row) for name, row in model.embed(**time).T.to_dict("list").items()}
    if "forecasts" in question:
        known = question.get("known") and write_known(question["known"])
        rate = question.get("discount_rate")
        return model.forecast(days=question["days"], known=known, discount_rate=rate, **time).to_dict("index")
    if "prediction" in question:
        return model.predict(**time).rename(columns=unprefixed).to_dict("index")
    table = model.recommend(k=K, **choose(shop, question, **time))
    table["label"] = table["task"] + "/" + table["label"]
    parts = {name: part.set_index("label")[["score", "chance"]] for name, part in table.groupby("customer")}
    return {name: flatten(parts[name].to_dict("index")) if name in parts else {} for name in time["customers"]}


def ask_predict(shop, question):
    if FOURTH in question.get("exclude", ""):
        return None  # which takes one of the two, or a table
    return read_predictions(shop, question)


def read_predictions(shop, question):
    files = {"model": shop.folder.name, "events": "events.parquet", "profile": "profile.parquet", "output_dir": "out"}
    files |= {"actions": "actions.parquet"} if "offers" in question else {}
    options = {name: shop.place / file for name, file in files.items()}
    options |= {"top_k": 0 if "embedding" in question or "forecasts" in question else K} | (
        {} if shop.extractor.order else {"as_of": AS_OF}
    )
    options |= {name: question[name] for name in ("horizon_days", "exclude", "discount_rate") if name in question}
    if "known" in question:
        write_known(question["known"]).to_csv(shop.place / "known.csv", index=False)
        options["known"] = shop.place / "known.csv"
    options |= {"candidates": shop.place / "stock.parquet", "per_group": "aisle=1"} if "candidates" in question else {}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    for name in ("tasks", "days"):
        words += [f"--{name.replace('days', 'forecast_days')}", *question[name]] if question.get(name) else []
    call("run_predict", *words)
    table = pd.read_parquet(shop.place / "out").set_index("customer_id")
    shutil.rmtree(shop.place / "out")
    if "embedding" in question:
        return {name: flatten(embedding) for name, embedding in table["embedding"].items()}
    if "forecasts" in question or "prediction" in question:
        numbers = table.drop(columns="embedding", errors="ignore")
        return numbers.rename(columns=unprefixed).to_dict("index")
    told = {}
    for name, row in table.iterrows():
        ranked = {
            (column, kind): zip(row[column], row[f"{column}_{kind}s"], strict=True)
            for column in row.index
            for kind in ("score", "chance")
            if f"{column}_{kind}s" in row
        }
        if "offers" in question:
            told[name] = {f"{each}/{outcome}": p for (outcome, _), pairs in ranked.items() for each, p in pairs}
        else:
            told[name] = {f"{task}/{each}/{kind}": p for (task, kind), pairs in ranked.items() for each, p in pairs}
    return told


def make_earlier(shop):
    """Another checkpoint of the log: other weights, and the items in another order."""
    place = shop.place / "earlier"
    extractor = type(shop.extractor).from_pretrained(shop.folder)
    extractor.vocabularies["items"].reverse()
    model = perturb(type(shop.model).from_pretrained(shop.folder))
    model.config.values_digest = extractor.values_digest
    return open_checkpoint(type(model), str(save(place, model, extractor)))


def ask_service(shop, question, is_exchanged=False):
    if "candidates" in question or "known" in question:
        return None  # a request names labels, not their aisles, and no days
    parts = make_earlier(shop) if is_exchanged else (shop.model, shop.extractor)
    service = make_service(*parts, shop.place / "state.db", clock=lambda: datetime(2018, 2, 2, tzinfo=UTC))
    client, answers = make_client(service), {}
    options = {name: value for name, value in choose(shop, question).items() if name in ("horizon_days", "exclude")}
    options |= {name: question[name] for name in ("days", "discount_rate") if name in question}
    options |= {"task": question["tasks"] or []} if "tasks" in question else {}
    options |= {} if shop.extractor.order else {"as_of": AS_OF}
    what = next(iter(question)).replace("tasks", "scores").replace("forecasts", "forecast")
    options |= {"k": K} if what == "scores" else {}
    for name, rows in shop.histories.items():
        if name == shop.newcomer:
            continue  # whom it does not know
        pieces, rows = cut(rows, 1)
        known = [name for name in rows if name in shop.extractor.schema.event_columns and name != "who"]
        events = json.loads(rows[known].astype({"when": str} if "when" in known else {}).to_json(orient="records"))
        for number, piece in enumerate(pieces):
            body = [
                {"event_id": f"{number}-{place}", "customer_id": name, "profile": shop.ages[name]}
                | {"event": {key: value for key, value in events[place].items() if value is not None}}
                for place in piece
            ]
            if body:
                assert client.post("/events", json={"events": body}).status_code == 200
    for checkpoint in [None, shop.folder] if is_exchanged else [None]:
        if checkpoint is not None:
            client.app.state.service = service.with_checkpoint(str(checkpoint))
        before, answers = answers, {}
        for name in shop.histories.keys() - {shop.newcomer}:
            if what == "offers":
                body = {"customers": [name], "actions": shop.actions}
                (found,) = client.post("/offers", params=options, json=body).json()["customers"]
            else:
                found = client.get(f"/customers/{name}/{what}", params=options).json()
            answers[name] = flatten(found["tasks" if what == "scores" else what])
    assert answers != before or what in ("embedding", "forecast")  # of which much is counted
    service.close()
    (shop.place / "state.db").unlink()
    return answers


def ask_page(shop, question):
    if "refreshed" in shop.kind or shop.extractor.order or "prediction" in question or "offers" in question:
        return None  # which shows logs with times as of a cutoff, and a head beside the scores
    if "known" in question:
        return None
    files = (str(shop.place / name) for name in ("data", "events.parquet", "profile.parquet"))
    shop.model.config.counted = Counts(PreparedData(shop.place / "data", "test")).describe()  # it has these counts
    page = Histories(shop.model, shop.extractor, *files)
    names = (name for name in shop.histories if name != shop.newcomer)  # nobody to look back on
    return {name: flatten(ask_one(page.case(name).live, shop, question, AS_OF)) for name in names}


def ask_evaluation(shop, question):
    """The inputs that evaluation makes of prepared data."""
    if shop.extractor.order or "offers" in question:
        return None  # each customer's last visit is left out there, and offers are read otherwise
    data = PreparedData(shop.place / "data")
    if "refreshed" in shop.kind:
        data = PreparedData(shop.place / "of today" / "data", END)
    collator = MCMCollator(
        shop.extractor, shop.model.config, "evaluate", cutoff="test", as_of=pd.Timestamp(AS_OF).timestamp()
    )
    inputs = {name: collator([row]) for name, row in zip(data.rows["customer_id"], data.rows, strict=True)}
    for batch in inputs.values():
        batch.pop("labels", None)
    return ask_by_hand(shop, question, inputs=inputs)


ENTRANCES = {
    "a pipeline's call": ask_pipelines,
    "a pipeline's construction": functools.partial(ask_pipelines, at_construction=True),
    "live, at once": functools.partial(ask_live, in_pieces=False),
    "live, in pieces": ask_live,
    "a frame": ask_frame,
    "mcm predict": ask_predict,
    "the service": ask_service,
    "the service after an exchange": functools.partial(ask_service, is_exchanged=True),
    "the page": ask_page,
    "evaluation": ask_evaluation,
}


ONLY_WITH_EVENTS = ("the service", "the service after an exchange", "the page")  # whoever has come by then


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_entrance_gives_what_the_model_says(shop, question):
    assert_entrances_agree(shop, QUESTIONS[question])


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("long histories", "within a month"),
        ("long histories", "embedding"),
        ("long histories", "forecasts"),
        ("long refreshed", "within a month"),
    ],
)
def test_every_entrance_reads_long_histories_whole(long_shop, kind, question):
    assert_entrances_agree(long_shop(kind), QUESTIONS[question], {"a CSV file": ask_file})


def assert_entrances_agree(shop, question, more=MappingProxyType({})):
    if shop.extractor.order and question.keys() & {"forecasts", "horizon_days", "prediction"}:
        return  # which need times
    shop = with_head(shop, question)
    wanted = {is_told: ask_by_hand(shop, question, with_profile=is_told) for is_told in (True, False)}
    assert len({json.dumps(answer) for answer in wanted[True].values()}) > 4
    needs_events = ONLY_WITH_EVENTS + (("a frame", "mcm predict") if shop.extractor.order else ())
    for entrance, ask in {**ENTRANCES, **more}.items():
        if (answers := ask(shop, question)) is None:
            continue
        answers = dict(answers)
        left_out = {shop.newcomer} if entrance in needs_events else set()
        assert answers.keys() >= wanted[True].keys() - left_out, entrance
        for name, answer in wanted[entrance not in ("a frame", "a CSV file")].items():  # which have no profiles
            if name in left_out:
                continue
            names = {"label", "action_id"}
            found = {key: value for key, value in answers[name].items() if key.split("/")[-1] not in names}
            assert found == pytest.approx(answer, abs=1e-5, rel=1e-4), f"{entrance}: customer {name}"


# ------------------------------------------------------------------------------------------------- events in pieces


PLACES = st.lists(st.integers(0, 60), max_size=5)


def split(rows, ends):
    """Pieces of a frame, some of them empty."""
    places = [0, *sorted(ends), len(rows)]
    return [rows.iloc[start:end] for start, end in itertools.pairwise(places)]


def assert_rows(found, wanted):
    """Two rows are the same to the bit."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert np.asarray(found[name]).dtype == np.asarray(values).dtype, name


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    ends=st.lists(st.integers(0, 60), max_size=6),
    gone=st.lists(st.integers(0, 60), max_size=3),
)
def test_events_in_pieces_are_the_whole_history(shop, seed, ends, gone):
    """Of several customers at once, and of one who follows the shop live and takes events back."""
    log, extractor = make_events(shop.kind, seed, customers=4), shop.extractor
    log = log.sample(frac=1, random_state=seed) if extractor.time else log
    first, known = log.drop_duplicates("who"), [name for name in log if name in extractor.schema.event_columns]
    pieces = split(log.drop(first.index), ends)
    customers = Customers.encode(extractor, first)
    for piece in pieces:
        customers = customers.add(piece)
    whole = Customers.encode(extractor, pd.concat([first, *pieces]))
    assert len(customers) == len(whole) == 4
    for found, wanted in zip(customers, whole, strict=True):
        assert_rows(found, wanted)
        own = log.loc[log["who"].astype(str) == wanted["customer_id"], known]
        alone = extractor.encode({"events": own, "customer_id": wanted["customer_id"]})
        assert_rows({name: wanted[name] for name in alone}, alone)
        live, rows = LiveHistory(extractor, None, wanted["customer_id"]), own
        for piece in split(own, ends):
            live.add(piece)
        for number in (number for number in gone if len(rows) > 1):
            row = rows.iloc[number % len(rows)]
            live.remove({name: value for name, value in row.items() if pd.notna(value)})
            equal = [rows.iloc[k].equals(row) for k in range(len(rows))]
            rows = rows.drop(rows.index[max(np.flatnonzero(equal))])
        assert_rows(live.row, extractor.encode({"events": rows, "customer_id": wanted["customer_id"]}))
