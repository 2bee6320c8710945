# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A customer who is followed live: every answer is that of the whole history, whatever way its events came."""

import json
import math
import zlib

import numpy as np
import pandas as pd
import pytest
from corner_shop import without_times
from fitted import fill_scorer

from modeling_mcm import LiveCustomer
from modeling_mcm.live.customer import LiveHistory

CONFIG = {"extended": True, "attention_window": 4, "max_position_embeddings": None, "scorer": True}
CONFIG |= {"kind_feature": "type"}


@pytest.fixture
def model(tiny_model):
    """A model with a fitted scorer, which reads the encoder."""
    return fill_scorer(tiny_model(**CONFIG))


def random_events(seed, count=30):
    """Events of visits with keys and without, of equal times, and visits that overlap; in the order of their times."""
    generator = np.random.default_rng(seed)
    events = []
    for visit in range(count):
        start = pd.Timestamp("2017-01-01") + pd.Timedelta(hours=int(visit * 30 + generator.integers(40)))
        keyed = generator.random() < 0.7
        for _ in range(generator.integers(1, 4)):
            late = pd.Timedelta(hours=int(generator.integers(3)) * keyed)
            event = {"when": str(start + late), "action": "buy", "item": f"item {generator.integers(24):02}"}
            event |= {"price": float(generator.integers(9)), "aisle": f"aisle {generator.integers(4)}"}
            if keyed:
                event["basket"] = f"b{generator.integers(10**6) if generator.random() < 0.02 else visit}"
            events.append(event if generator.random() < 0.8 else {"when": str(start), "action": "click"})
    return sorted(events, key=lambda event: event["when"])


def assert_encoded(history, events):
    """The row of a live history is that of the whole history, to the bit."""
    whole = history.feature_extractor.encode({"events": events, "profile": history.profile})
    assert history.row.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(history.row[name], values, err_msg=name)
        assert np.asarray(history.row[name]).dtype == np.asarray(values).dtype


@pytest.mark.parametrize("order", ["times", "equal ones count once", "rows", "place"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_events_in_parts_are_encoded_as_the_whole_history(extractor, order, shuffled):
    if order in ("rows", "place"):
        extractor = without_times(extractor, order)
    elif order != "times":
        stored = extractor.to_dict() | {"vocabularies": extractor.vocabularies, "bins": extractor.bins}
        extractor = type(extractor)(**stored | {"on_duplicate": "drop"})
    for seed in range(5):
        generator, events = np.random.default_rng(seed), random_events(seed, 20)
        if order in ("rows", "place"):
            for number, event in enumerate(events):
                del event["when"]
                event |= {"place": number // 2} if order == "place" else {}
        events += events[3:9] if order == "equal ones count once" else []
        if shuffled and order != "rows":
            events = [events[place] for place in generator.permutation(len(events))]
        history, given = LiveHistory(extractor, {"age": "old"}, None), 0
        while given < len(events):
            size = int(generator.choice([1, 1, 2, 3, 9]))
            history.add(events[given : given + size])
            given += size
            if generator.random() < 0.7:
                assert_encoded(history, events[:given])
        while events:
            gone = int(generator.integers(len(events)))
            last = len(events) - 1 - events[::-1].index(events[gone])  # of equal ones
            history.remove(events.pop(last))
            if generator.random() < 0.2:
                assert_encoded(history, events)
        empty = LiveHistory(extractor, {"age": "old"}, None)
        assert not history.events and vars(history).keys() == vars(empty).keys()
        assert_encoded(history, [])


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
    events = random_events(3, 100)
    live = LiveCustomer(model, extractor, {"age": "young"}, "c1")
    live.add(events[:150])
    stored = live.to_bytes()
    assert len(stored) < 20_000
    for checkpoint in (model, tiny_model(extended=True)):
        live = LiveCustomer.from_bytes(stored, checkpoint, extractor)
        live.add(events[150:])
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
    live.add(random_events(0, 4))
    data = live.to_bytes()
    if change is not None:
        change(values := json.loads(zlib.decompress(data)))
        data = zlib.compress(json.dumps(values).encode())
    with pytest.raises(ValueError, match="A stored customer of .* add the customer's events to a new LiveCustomer"):
        LiveCustomer.from_bytes(data[: None if change else -9], model, extractor)


def test_all_forms_of_events_are_read(model, extractor):
    events = random_events(6, 5)
    frame = pd.DataFrame(events).assign(when=lambda table: pd.to_datetime(table["when"]))
    answers = []
    named = [events[0] | {"who": "c1"}, *events[1:]]
    for form in (events, frame, {name: frame[name].tolist() for name in frame}, named):
        live = LiveCustomer(model, extractor, customer_id="c1")
        live.add(form)
        answers.append(live.scores())
        assert json.loads(json.dumps(live.events)) == live.events and len(live.events) == len(events)
    assert all(answer == answers[0] for answer in answers)


EVENT = {"when": "2017-03-01T10:00:00", "action": "buy", "item": "item 01"}
NO_TIMES = [math.nan, math.inf, -math.inf, 1e300, np.datetime64("NaT"), pd.NaT]
FAULTS = [
    *((lambda live, time=time: live.scores(as_of=time), "`as_of`: found .*no time") for time in NO_TIMES),
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
