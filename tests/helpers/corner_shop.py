# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A small event log with awkward names, its schema, and the sizes and choices of tiny models for it."""

import numpy as np
import pandas as pd
import yaml

VALIDATION, TEST = "2017-10-01", "2017-11-01"
# "type", "items" and "a.b" mean something to dicts, modules and paths; the order is not alphabetical.
SCHEMA = yaml.safe_load("""
name: corner_shop
customer: who
time: when
visit: basket
token_type: action
features:
- {name: type, column: action}
- {name: items, column: item}
- {name: a.b, column: price, kind: numeric, bins: 4}
- {name: aisle}
- {name: weekday, kind: weekday}
- {name: gap, kind: days_since_visit, bins: 4}
profile: [{name: age}]
amount: a.b
tasks: [items, aisle, type]
target_token_types: [buy]
end_of_visit: end_of_visit
max_events: 40
min_history: 3
""")
SCHEMA["cutoffs"] = {"validation": VALIDATION, "test": TEST}


def make_log(customers=34, seed=0):
    """Visits of 2017: customers buy mostly from a few items of their own; a visit is a basket, or a click."""
    generator = np.random.default_rng(seed)
    events = []
    for customer in range(customers):
        favourites = generator.integers(0, 24, 4)
        days = np.sort(generator.choice(364, generator.integers(8, 20), replace=False))
        for visit, day in enumerate(days):
            when = pd.Timestamp("2017-01-01") + pd.Timedelta(days=int(day), hours=int(generator.integers(8, 20)))
            if generator.random() < 0.2:
                events.append((f"c{customer:02}", when, None, "click", int(generator.integers(24)), None))
                continue
            for _ in range(generator.integers(1, 5)):
                item = int(generator.choice(favourites) if generator.random() < 0.8 else generator.integers(24))
                events.append((f"c{customer:02}", when, f"{customer}-{visit}", "buy", item, 1 + item % 7 + day % 2))
    log = pd.DataFrame(events, columns=["who", "when", "basket", "action", "item", "price"])
    log["aisle"] = log["item"].map(lambda item: f"aisle {item // 6}").where(log["action"] == "buy")
    log["item"] = log["item"].map(lambda item: f"item {item:02}")
    return log


def make_profile(log):
    """The customers of a log with their ages."""
    who = sorted(log["who"].unique())
    return pd.DataFrame({"who": who, "age": list(map(draw_age, who))})


def draw_age(name):
    """The age of a customer, by the number in the name."""
    return ("young", "old")[int(name[1:]) % 2]


def find_customer(log, name):
    """A customer of a log as pipelines take it."""
    return {"events": log[log["who"] == name], "profile": {"age": draw_age(name)}}


def without_times(extractor, order):
    """A feature extractor of the same log without its times."""
    kept = [feature for feature in extractor.features if feature["name"] not in ("weekday", "gap")]
    bins = {"a.b": extractor.bins["a.b"]}
    names = ("customer", "token_type", "visit", "tasks", "target_token_types", "end_of_visit")
    same = {name: getattr(extractor, name) for name in names}
    return type(extractor)(kept, extractor.vocabularies, bins, **same, order=order)
