# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the service share: a service of a tiny model, and the events of the tests' log as requests."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np

from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.serving import CustomerService, EventStore, create_api

HOST = "http://testserver"
TOKEN = "a token of the tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
NOW = datetime(2018, 1, 1, tzinfo=UTC)


def as_requests(log, customers=None):
    """A log's events as POST /events takes them; the event id is the number of the row."""
    found = []
    for number, row in enumerate(json.loads(log.to_json(orient="records", date_format="iso"))):
        name = row.pop("who")
        if customers is None or name in customers:
            event = {column: value for column, value in row.items() if value is not None}
            event["when"] = event["when"].removesuffix("Z")
            found.append({"event_id": f"e{number}", "customer_id": name, "event": event})
    return found


def make_service(model, extractor, place, **options):
    """A service on a store, whose clock stands at the end of the log."""
    store_options = {name: options.pop(name) for name in ("timeout", "log") if name in options}
    store = EventStore(str(place), **store_options)
    return CustomerService(model, extractor, store, **{"clock": lambda: NOW, **options})


def forget_cutoff(monkeypatch):
    """Totals of a service with `data` ask a model that counts no log, about any time."""
    for place in ("past", "serving.api"):
        monkeypatch.setattr(f"modeling_mcm.{place}.read_cutoff", lambda folder: 0)
    opened = lambda *parts: SimpleNamespace(at=lambda *_, **__: Predictor(*parts[:2]))  # noqa: E731
    monkeypatch.setattr("modeling_mcm.past._open", opened)


def make_client(service, tokens=TOKEN, **limits):
    """A client of /v1 that knows the token; errors of the service are answers."""
    from fastapi.testclient import TestClient

    options = {"headers": HEADERS, "base_url": f"{HOST}/v1", "raise_server_exceptions": False}
    return TestClient(create_api(service, tokens, **limits), **options)


def assert_same_list(found, wanted):
    """Two lists have the same labels in the same order, with scores that are alike."""
    assert [each["label"] for each in found] == [each["label"] for each in wanted]
    np.testing.assert_allclose([each["score"] for each in found], [each["score"] for each in wanted], atol=1e-5)


def assert_same(found, wanted):
    """The lists of two answers are alike."""
    assert found.keys() == wanted.keys()
    for task, labels in wanted.items():
        assert_same_list(found[task], labels)
