# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A feature extractor whose vocabularies and bins are written down, and a customer for it."""

from typing import Any

import numpy as np
import yaml

from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor

MISSING, UNKNOWN = 0, 1
BUY, CLICK, START, CLOSE = 2, 3, 4, 5
# "type", "items" and "a.b" mean something to dicts, modules and paths; the order is not alphabetical.
SETTINGS: dict[str, Any] = yaml.safe_load("""
features:
- {name: type, column: action}
- {name: items, column: item}
- {name: a.b, kind: numeric, column: price}
- {name: hour, kind: hour, column: null}
- {name: weekday, kind: weekday, column: null}
- {name: gap, kind: days_since_visit, column: null}
- {name: age, profile: true}
- {name: Income, kind: numeric, profile: true}
vocabularies:
  type: [buy, click, history_start, close]
  items: ['7', tea, 'true']
  age: [young, old]
bins: {a.b: [0.1, 2.5], gap: [0.5, 1.0], Income: [100.0]}
customer: who
time: when
token_type: action
visit: basket
amount: a.b
tasks: [items, type]
target_token_types: [buy]
end_of_visit: close
max_events: 8
""")
FEATURES = SETTINGS["features"]
MONDAY = "2017-01-02"


def make(**changes):
    return MCMFeatureExtractor(**{**SETTINGS, **changes})


def event(when=f"{MONDAY}T10:00:00", action="click", **others):
    return {"when": when, "action": action, **others}


# Out of order; the basket from 10:00 to 10:20 is target visit 1, the clicks are visits by their time.
HISTORY = [
    event("2017-01-04T00:30:00", "click", item="coffee", price=2.5),
    event(f"{MONDAY}T10:20:00", "buy", item=7.0, price=2.4, basket="b1"),
    event(f"{MONDAY}T09:00:00", "click", item="tea"),
    event(f"{MONDAY}T10:00:00", "click", item=True, price=0.1, basket="b1"),
    event(f"{MONDAY}T10:10:00", "click", price=float("nan")),
    event("2017-01-04T00:30:00", "click", item=None, price=0.0),
]
CUSTOMER = {"customer_id": "c1", "events": HISTORY, "profile": {"age": "old", "Income": 100}}


def seconds(time):
    return int(np.datetime64(time, "s").astype(np.int64))
