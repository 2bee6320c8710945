# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A customer who is followed live: every answer is that of the whole history, whatever way its events came."""

import json
import math
import zlib

import numpy as np
import pandas as pd
import pytest
from fitted import fill_scorer

from modeling_mcm import LiveCustomer
from modeling_mcm.encoding_mcm import Encoding
from modeling_mcm.live.customer import LiveHistory

CONFIG = {"extended": True, "attention_window": 4, "max_position_embeddings": None, "scorer": True}
CONFIG |= {"kind_feature": "type"}


@pytest.fixture
def model(tiny_model):
    """A model with a fitted scorer, which reads the encoder."""
    return fill_scorer(tiny_model(**CONFIG))


def make_events(count):
    """A purchase a day, of 24 items in turn."""
    days = np.datetime64("2017-01-01") + np.arange(count)
    return [
        {"when": str(day), "action": "buy", "item": f"item {place % 24:02}", "price": place / 7}
        for place, day in enumerate(days)
    ]


def test_a_customer_whose_events_are_all_removed_is_as_new(extractor):
    history, (event, other) = LiveHistory(extractor, {"age": "old"}, "c1"), make_events(2)
    for each in (event, other, event):
        history.add(each)
    for each in (event, other, event):
        history.remove(each)
    new = LiveHistory(extractor, {"age": "old"}, "c1")
    assert history.events == new.events == []
    np.testing.assert_equal(history.row, new.row)


def test_a_visit_that_comes_last_is_encoded_beside_the_one_before_alone(extractor, monkeypatch):
    encode, counted = Encoding.encode, []

    def count(self, events, *args):
        counted.append(len(events.positions))
        return encode(self, events, *args)

    monkeypatch.setattr(Encoding, "encode", count)
    live, events = LiveHistory(extractor, None, "c"), make_events(30)
    for event in events:
        live.add(event)
    assert max(counted) < 10
    live.add(events[2])  # an old visit: from there on
    assert counted[-1] > 25 and len(live.events) == 31


def test_late_events_are_reported(extractor):
    live = LiveHistory(extractor, None, None)
    event = {"action": "buy", "item": "item 01"}
    assert not live.add({"when": "2017-03-01", "basket": "a"} | event)
    assert not live.add({"when": "2017-03-01T10:00", "basket": "a"} | event)  # it goes on
    assert not live.add({"when": "2017-03-05", "basket": "b"} | event)
    assert live.add({"when": "2017-03-06", "basket": "a"} | event)  # into a finished visit
    assert live.add({"when": "2017-02-01"} | event)
    assert not live.add([])


def test_a_stored_customer_is_small_and_continues_with_any_checkpoint(model, tiny_model, extractor):
    events = make_events(300)
    live = LiveCustomer(model, extractor, {"age": "young"}, "c1")
    live.add(events[:250])
    stored = live.to_bytes()
    assert len(stored) < 20_000
    for checkpoint in (model, tiny_model(extended=True)):
        live = LiveCustomer.from_bytes(stored, checkpoint, extractor)
        live.add(events[250:])
        assert (live.customer_id, live.profile) == ("c1", {"age": "young"})
        whole = LiveCustomer(checkpoint, extractor, {"age": "young"})
        whole.add(events)
        assert live.scores() == whole.scores()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("profile"),
        lambda values: values["events"][0].pop("when"),
        lambda values: values.update(events=[[1, 2]]),
        lambda values: values["events"][0].update(bought="milk"),
        lambda values: values.update(format="mcm-live-5"),
        None,
    ],
    ids=["no profile", "no time", "a list", "another log", "another format", "cut"],
)
def test_what_is_no_stored_customer_is_refused(model, extractor, change):
    live = LiveCustomer(model, extractor)
    live.add(make_events(4))
    data = live.to_bytes()
    if change is not None:
        change(values := json.loads(zlib.decompress(data)))
        data = zlib.compress(json.dumps(values).encode())
    with pytest.raises(ValueError, match="A stored customer of .* add the customer's events to a new LiveCustomer"):
        LiveCustomer.from_bytes(data[: None if change else -9], model, extractor)


EVENT = {"when": "2017-03-01T10:00:00", "action": "buy", "item": "item 01"}
FAULTS = [
    *((lambda live, time=time: live.scores(as_of=time), "no time") for time in (math.inf, 1e300, pd.NaT)),
    (lambda live: live.add(EVENT, as_of=math.nan), "`as_of`: found nan, which is no time"),
    (lambda live: live.add({"action": "buy", "item": "item 01"}), r"column 'when': found no time"),
    (lambda live: live.add(EVENT | {"when": "2017-04-02"}, as_of="2017-04-01"), r"Customer 'c1' .* is after now"),
    (lambda live: live.scores(as_of="2017-02-28"), "the clock went back"),
    (lambda live: live.explain("items", as_of="2017-02-28"), "the clock went back"),
    (lambda live: live.add(EVENT | {"itm": "item 02"}), "unknown 'itm'; did you mean 'item'"),
    (lambda live: live.remove(EVENT | {"item": "item 02"}), "Customer 'c1' has no event .* give all columns"),
    (lambda live: live.add(EVENT | {"item": ["item 01"]}), r"column 'item': found \['item 01'\]"),
    (lambda live: live.predict(), "this question needs an MCMForCustomerPrediction: give such a checkpoint"),
    (lambda live: LiveCustomer(live.model, live.feature_extractor, {"height": 180}), "profile: unknown 'height'"),
]


@pytest.mark.parametrize(("act", "message"), FAULTS)
def test_bad_input_is_refused_and_changes_nothing(model, extractor, act, message):
    live = LiveCustomer(model, extractor, customer_id="c1")
    live.add(EVENT)
    before = live.to_bytes()
    with pytest.raises(ValueError, match=message):
        act(live)
    assert live.to_bytes() == before
