# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Example requests that the service accepts, and its answers to them, for the OpenAPI page."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import CATEGORICAL, NUMERIC

CUSTOMER = "example-customer"
DAYS = (5, 1)  # before now, of the two visits
SHOWN, NUMBERS = 3, 4  # labels of a task, numbers of an embedding


def example_events(extractor: MCMFeatureExtractor, now: datetime) -> list[dict[str, Any]]:
    """Makes two example events of the last days, each a visit, with values of the checkpoint and the columns of its
    log.
    """
    targets = extractor.target_token_types
    own = {*extractor.schema.reserved_token_types}
    events = []
    for index, days in enumerate(DAYS):
        event: dict[str, Any] = {}
        time = f"{now - timedelta(days=days):%Y-%m-%d}T17:30:00"
        if extractor.time is not None:
            event[extractor.time] = time
        elif extractor.order in extractor._known_columns:
            event[str(extractor.order)] = index
        if extractor.visit:
            event[extractor.visit] = f"visit-{index}"
        for feature in extractor.features:
            column = feature.get("column") or feature["name"]
            kind = feature.get("kind", CATEGORICAL)
            if feature.get("profile") or column in event or column not in extractor._known_columns:
                continue
            if column == extractor.token_type:
                event[column] = (targets or [v for v in extractor.vocabularies[feature["name"]] if v not in own])[0]
            elif kind == NUMERIC:
                edges = extractor.bins[feature["name"]]
                event[column] = round(edges[len(edges) // 2], 2) if edges else 1.0
            elif kind == CATEGORICAL and feature.get("item") is None and extractor.vocabularies[feature["name"]]:
                event[column] = extractor.vocabularies[feature["name"]][index % SHOWN if index else 0]
        events.append(event)
    return events


def example_body(extractor: MCMFeatureExtractor, now: datetime) -> dict[str, Any]:
    """Makes the body of an example request to POST /events."""
    events = enumerate(example_events(extractor, now), 1)
    return {
        "events": [
            {"event_id": f"till-7-{number}", "customer_id": CUSTOMER, "event": event} for number, event in events
        ]
    }


def example_answers(model: Any, extractor: MCMFeatureExtractor, now: datetime) -> dict[str, Any]:
    """Computes the service's answers to the example events, by endpoint; long lists are shortened."""
    live = LiveCustomer(model, extractor, customer_id=CUSTOMER)
    live.add(events := example_events(extractor, now))
    task = model.config.tasks[0]
    about = {"customer_id": CUSTOMER, "events": len(live.events), "now": events[-1].get(str(extractor.time))}
    explanation = live.explain(task).to_dict()
    return {
        "events": {"added": len(live.events), "known": 0, "late": [], "customers": {CUSTOMER: len(live.events)}},
        "scores": about | {"tasks": live.scores(tasks=[task], k=SHOWN)},
        "embedding": about | {"embedding": live.embedding().tolist()[:NUMBERS]},
        "explain": about | {"explanation": explanation | {"visits": explanation["visits"][:1]}},
        "delete": {"customer_id": CUSTOMER, "events": len(live.events)},
    }
