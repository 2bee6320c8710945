# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A customer who is followed live: every answer is that of the whole history, whatever way its events came."""

import json
import math
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from corner_shop import without_times
from fitted import fill_forecaster, fill_scorer
from safetensors.torch import load, save

from modeling_mcm import LiveCustomer
from modeling_mcm.live.customer import Added
from modeling_mcm.live.explanations import explain
from modeling_mcm.live.storage import pack

TOLERANCE = 1e-5
STATE = {"state_size": 8, "summed_features": ["a.b"], "state_features": ["type", "aisle", "weekday"]}
STATE |= {"forecast_days": [7, 30, 90], "forecast_window": 80, "target_types": {"type": [2, 3]}}
VISITS = {"extended": True, "max_position_embeddings": None}
SCORER = {"scorer": True, "kind_feature": "type"}
CONFIGS = {
    "visits": VISITS,
    "visits, a window": VISITS | {"attention_window": 3},
    "positions": VISITS | {"max_position_embeddings": 100},
    "customer state": VISITS | {"attention_window": 4, **STATE},
    "scorer": VISITS | {"attention_window": 4, **SCORER},
    "scorer and state": VISITS | {"attention_window": 4, **STATE, **SCORER},
    "no readout": VISITS | {**STATE, **SCORER},  # the encoder is not run
    "no encoder": VISITS | {"num_hidden_layers": 0, **STATE, **SCORER},
    "not fitted": VISITS | {"num_hidden_layers": 0, **STATE, **SCORER},
    "events": VISITS | {"encoder_unit": "event", "attention_window": 5, "readout": "last"},
    # What is said of the past changes with every event, so the whole history is read again.
    "bidirectional": {"max_position_embeddings": 200, **SCORER},
}


@pytest.fixture
def live_model(tiny_model):
    """A function that makes a model of one of CONFIGS, whose counts have something to say."""

    def make(name, **changes):
        model = tiny_model(**CONFIGS[name], **changes)
        if model.scorer is not None and name != "not fitted":
            fill_scorer(model, reads_readout=name != "no readout")
        if model.model.state is not None:
            generator = torch.Generator().manual_seed(1)
            model.model.state.std.uniform_(0.3, 2, generator=generator)
            model.model.state.mean.uniform_(0, 1, generator=generator)
            model.model.state.longest_silence.fill_(60.0)  # some moments of the tests come later
            fill_forecaster(model)
        return model

    return make


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


def whole(model, extractor, events, profile=None):
    """Logits and embedding of a history that is read at once."""
    inputs = extractor({"events": events, "profile": profile})
    with torch.inference_mode():
        outputs = model(**inputs)
    return {task: scores[0] for task, scores in outputs.logits.items()}, outputs.pooler_output[0]


def content(live):
    """What a stored state holds, as the digest in its metadata says."""
    data = live.to_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["content"]


def assert_equal_to_whole(live, events, profile=None):
    logits, embedding = whole(live.model, live.feature_extractor, events, profile)
    found = live.logits()
    is_counted = live._window is not None and not live._window.reader.encodes
    tolerance = 0.0 if is_counted else TOLERANCE  # counts are the same to the bit
    for task, scores in logits.items():
        torch.testing.assert_close(found[task][2:], scores[2:], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.from_numpy(live.embedding()), embedding, rtol=tolerance, atol=tolerance)


def test_an_event_that_comes_twice_counts_once_where_the_checkpoint_says_so(live_model, extractor):
    stored = extractor.to_dict() | {"vocabularies": extractor.vocabularies, "bins": extractor.bins}
    once = type(extractor)(**stored | {"on_duplicate": "drop"})
    model, events = live_model("scorer"), [*{str(each): each for each in random_events(3)}.values()]
    live = LiveCustomer(model, once)
    for event in [*events, *events[:20], events[-1] | {"item": "unknown"}]:
        live.add([event, event])
    alone = LiveCustomer(model, extractor)
    alone.add([*events, events[-1] | {"item": "unknown"}])
    for options in ({}, {"tasks": ["aisle"], "candidates": {"aisle": ["aisle 1", "new"], "type": ["buy", "buy"]}}):
        assert live.scores(**options) == alone.scores(**options)
    live.remove(events[0])  # the other one of the two stays
    assert live.scores() == alone.scores()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_events", [2048, 40, 4])
def test_events_in_parts_equal_the_whole_history(live_model, extractor, name, max_events):
    extractor.max_events = max_events
    model = live_model(name)
    for seed in range(3):
        generator, events = np.random.default_rng(seed), random_events(seed)
        live, given = LiveCustomer(model, extractor, {"age": "old"}), 0
        while given < len(events):
            size = int(generator.choice([1, 1, 2, 3, 9]))
            live.add(events[given : given + size])
            given += size
            if generator.random() < 0.5:
                assert_equal_to_whole(live, events[:given], {"age": "old"})
        assert_equal_to_whole(live, events, {"age": "old"})


@pytest.mark.parametrize("name", ["scorer", "events"])
@pytest.mark.parametrize("max_events", [2048, 40])
def test_events_in_any_order_equal_the_whole_history(live_model, extractor, name, max_events):
    extractor.max_events = max_events
    model = live_model(name)
    for seed in range(3):
        generator, events = np.random.default_rng(seed), random_events(seed, 15)
        live, given = LiveCustomer(model, extractor), []
        for place in generator.permutation(len(events)):
            live.add(events[place])
            given.append(events[place])
            if generator.random() < 0.3:
                assert_equal_to_whole(live, given)
        assert_equal_to_whole(live, events)


def test_late_events_are_reported(live_model, extractor):
    live = LiveCustomer(live_model("visits"), extractor)
    event = {"action": "buy", "item": "item 01"}
    assert live.add({"when": "2017-03-01", "basket": "a"} | event) == Added(1, late=False)
    assert live.add({"when": "2017-03-01T10:00", "basket": "a"} | event) == Added(1, late=False)  # it goes on
    assert live.add({"when": "2017-03-05", "basket": "b"} | event) == Added(1, late=False)
    assert live.add({"when": "2017-03-06", "basket": "a"} | event) == Added(1, late=True)  # into a finished visit
    assert live.add({"when": "2017-02-01"} | event) == Added(1, late=True)
    assert live.add([]) == Added(0, late=False)


@pytest.mark.parametrize("name", ["scorer", "no encoder", "events", "bidirectional"])
def test_removed_event_leaves_no_trace(live_model, extractor, name):
    model, events = live_model(name), random_events(5, 12)
    live = LiveCustomer(model, extractor)
    live.add(events)
    live.scores()
    generator = np.random.default_rng(0)
    while events:
        gone = events.pop(int(generator.integers(len(events))))
        live.remove(gone)
        assert_equal_to_whole(live, events)
        assert len(live.events) == len(events)
    empty = LiveCustomer(model, extractor)
    assert content(live) == content(empty) and live.scores() == empty.scores()


def test_one_of_two_equal_events_is_removed(live_model, extractor):
    live, events = LiveCustomer(live_model("scorer"), extractor), random_events(5, 6)
    live.add([*events, events[2]])
    assert_equal_to_whole(live, [*events, events[2]])
    live.remove(events[2])
    assert_equal_to_whole(live, events)
    live.remove(events[2])
    assert_equal_to_whole(live, events[:2] + events[3:])


def test_last_of_equal_events_without_times_is_removed(live_model, extractor):
    rows = without_times(extractor, "rows")
    model = live_model("scorer", features=rows.feature_names, vocabulary_sizes=rows.vocabulary_sizes)
    first, second = ({"action": "buy", "item": f"item {number:02}"} for number in (1, 2))
    live = LiveCustomer(model, rows)
    live.add([first, second, first])
    live.remove(first)
    assert [event["item"] for event in live.events] == ["item 01", "item 02"]


@pytest.mark.parametrize("order", ["rows", "place"])
def test_log_without_times(live_model, extractor, order):
    rows = without_times(extractor, order)
    from_data = {"features": rows.feature_names, "vocabulary_sizes": rows.vocabulary_sizes}
    model = live_model("scorer", **from_data)
    live, given = LiveCustomer(model, rows), []
    for number, event in enumerate(random_events(2, 12)):
        event = {name: value for name, value in event.items() if name != "when"}
        given.append(event if order == "rows" else event | {"place": number // 2})
        live.add(given[-1])
        if number % 3 == 0:
            assert_equal_to_whole(live, given)
    assert_equal_to_whole(live, given)
    live.remove(given.pop(4))
    assert_equal_to_whole(live, given)


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("name", ["scorer", "no encoder", "events", "bidirectional"])
def test_stored_state_continues(live_model, extractor, name, caches):
    extractor.max_events = 40
    model, events = live_model(name), random_events(3)
    live, given = LiveCustomer(model, extractor, {"age": "young"}, "c1"), 0
    for size in (0, 1, 7, 20, len(events)):
        live.add(events[given : given + size])
        given += size
        live = LiveCustomer.from_bytes(live.to_bytes(caches), model, extractor)
        assert (live.customer_id, live.profile) == ("c1", {"age": "young"})
        assert_equal_to_whole(live, events[:given], {"age": "young"})


@pytest.mark.parametrize("name", ["no readout", "no encoder"])
def test_a_state_without_readout_is_small(live_model, extractor, name):
    live, events = LiveCustomer(live_model(name), extractor), random_events(0, 100)
    live.add(events)
    live.scores()
    assert len(events) > 180 and len(live.to_bytes()) - len(live.to_bytes(caches=False)) < 4_000
    assert not live._window.state().cache.get_seq_length()  # the encoder is not run


def test_scores_equal_the_pipelines(live_model, extractor):
    from modeling_mcm import PreferenceScoresPipeline

    model, events = live_model("scorer"), random_events(4)
    live = LiveCustomer(model, extractor)
    live.add(events)
    there = PreferenceScoresPipeline(model=model, feature_extractor=extractor)({"events": events}, top_k=3)
    here = live.scores(k=3)
    assert {task: [each["label"] for each in best] for task, best in here.items()} == {
        task: [each["label"] for each in best] for task, best in there.items()
    }
    later = PreferenceScoresPipeline(model=model, feature_extractor=extractor)({"events": events}, as_of="2017-06-01")
    for task, best in live.scores("2017-06-01", k=5).items():
        assert [each["label"] for each in best] == [each["label"] for each in later[task][:5]]
        assert best != live.scores(k=5)[task]
        assert [each["score"] for each in best] == pytest.approx([each["score"] for each in later[task][:5]], rel=1e-4)
    (alone, *_), best = live.scores(tasks=["aisle"], k=1000)["aisle"], here["aisle"][0]
    assert alone["label"] == best["label"] and alone["score"] == pytest.approx(best["score"], rel=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_now_counts_as_in_the_pipelines(live_model, extractor, name):
    model, events = live_model(name), random_events(7)
    live = LiveCustomer(model, extractor)
    for as_of in ("2017-01-01", "2017-06-01T12:00:00"):
        inputs = extractor({"events": live.events}, as_of=as_of)
        with torch.inference_mode():
            outputs = model(**inputs)
        np.testing.assert_allclose(live.embedding(as_of), outputs.pooler_output[0].numpy(), rtol=1e-5, atol=1e-5)
        for task, scores in live.logits(as_of).items():
            is_later = as_of != "2017-01-01" and model.scorer is not None and name != "not fitted"
            assert torch.equal(scores, live.logits()[task]) != is_later
            torch.testing.assert_close(scores[2:], outputs.logits[task][0, 2:], rtol=TOLERANCE, atol=TOLERANCE)
        if model.model.state is not None:
            found, wanted = live.forecast(as_of), outputs.forecasts
            assert found == pytest.approx({key: value.item() for key, value in wanted.items()}, rel=1e-4, abs=1e-5)
        else:
            with pytest.raises(
                ValueError, match=r"no trained forecasts.*Pre-train a checkpoint with a customer state"
            ):
                live.forecast(as_of)
        live.add(events)


def test_all_forms_of_events_are_read(live_model, extractor):
    model, events = live_model("visits"), random_events(6, 5)
    frame = pd.DataFrame(events).assign(when=lambda table: pd.to_datetime(table["when"]))
    answers = []
    for form in (events, frame, {name: frame[name].tolist() for name in frame}):
        live = LiveCustomer(model, extractor)
        assert live.add(form).events == len(events)
        answers.append(live.scores())
        assert json.loads(json.dumps(live.events)) == live.events
    assert answers[0] == answers[1] == answers[2]


EVENT = {"when": "2017-03-01T10:00:00", "action": "buy", "item": "item 01"}
NO_TIMES = [math.nan, math.inf, -math.inf, 1e300, np.datetime64("NaT"), pd.NaT]
FAULTS = [
    *((lambda live, time=time: live.scores(as_of=time), "`as_of`: found .*no time") for time in NO_TIMES),
    *((lambda live, time=time: live.forecast(time), "`as_of`: found .*no time") for time in NO_TIMES),
    (lambda live: live.add(EVENT, as_of=math.nan), "`as_of`: found nan, which is no time"),
    (lambda live: live.add({"action": "buy", "item": "item 01"}), r"column 'when': found no time"),
    (lambda live: live.add(EVENT | {"when": "2017-04-02"}, as_of="2017-04-01"), r"Customer 'c1' .* is after now"),
    (lambda live: live.scores(as_of="2017-02-28"), "the clock went back"),
    (lambda live: live.add(EVENT | {"itm": "item 02"}), "unknown 'itm'; did you mean 'item'"),
    (lambda live: live.remove(EVENT | {"item": "item 02"}), "Customer 'c1' has no event .* give all columns"),
    (lambda live: live.scores(tasks=["item"]), r"No tasks \['item'\]: this checkpoint predicts"),
    (lambda live: live.add(EVENT | {"item": ["item 01"]}), r"column 'item': found \['item 01'\]"),
    (lambda live: explain(live.model, live.feature_extractor, live.history(), "items", most_visits=-1), "is -1: give"),
    (lambda live: live.explain("items", "item 99"), "Task 'items' has no label 'item 99'"),
    (lambda live: LiveCustomer(live.model, live.feature_extractor, {"height": 180}), "profile: unknown 'height'"),
]


@pytest.mark.parametrize(("act", "message"), FAULTS)
def test_bad_input_is_refused_and_changes_nothing(live_model, extractor, act, message):
    live = LiveCustomer(live_model("visits"), extractor, customer_id="c1")
    live.add(EVENT)
    before = content(live)
    with pytest.raises(ValueError, match=message):
        act(live)
    assert content(live) == before


def _of_another_checkpoint(data, model):
    with torch.no_grad():
        model.scorer.calibration += 1
    return data


def _with_another_number(data, model):
    tensors = load(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors["state.hidden"][3] += 1
    return save(tensors, metadata)


def _repacked(change):
    """Other contents, with a digest that fits them."""

    def run(data, model):
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        parts = [zlib.decompress(tensors.pop(name).numpy().tobytes()) for name in ("events", "state.events")]
        values, state = json.loads(parts[0]), load(parts[1])
        state |= {name.removeprefix("state."): value for name, value in tensors.items()}
        change(values, state)
        return pack(values, state, metadata["checkpoint"])

    return run


OTHER_CONTENTS = {
    "no profile": lambda values, state: values.pop("profile"),
    "no events": lambda values, state: values.pop("events"),
    "an event without time": lambda values, state: values["events"][0].pop("when"),
    "a list": lambda values, state: values.update(events=[[1, 2]]),
    "an unknown profile": lambda values, state: values.update(profile={"shoe": 44}),
    "fewer visits": lambda values, state: values["events"].clear(),
    "more visits": lambda values, state: values["state"].__setitem__(0, 99),
    "no tensor": lambda values, state: state.pop("event_times"),
    "a shorter tensor": lambda values, state: state.update(event_times=state["event_times"][1:]),
    "another type": lambda values, state: state.update(hidden=state["hidden"].double()),
    "NaN": lambda values, state: state["event_times"].fill_(float("nan")),
    "no id": lambda values, state: state["input_ids"].fill_(-1),
}
STORED_FAULTS = [
    (_of_another_checkpoint, "is of the checkpoint .* add the customer's events to a new LiveCustomer"),
    (lambda data, model: data[:-100], "is cut or damaged .* add the customer's events to a new LiveCustomer"),
    (lambda data, model: b"", "A stored state of 0 bytes is cut or damaged"),
    (lambda data, model: b"x" * 200, "A stored state of 200 bytes is cut or damaged"),
    (_with_another_number, "its content does not have the digest"),
    *[(_repacked(change), "A stored state holds something else .*add the") for change in OTHER_CONTENTS.values()],
]


@pytest.mark.parametrize(("damage", "message"), STORED_FAULTS)
def test_damaged_stored_states_are_refused(live_model, extractor, damage, message):
    model = live_model("scorer")
    live = LiveCustomer(model, extractor)
    live.add(random_events(0, 4))
    data = damage(live.to_bytes(), model)
    with pytest.raises(ValueError, match=message):
        LiveCustomer.from_bytes(data, model, extractor)


def test_changed_byte_is_noticed_or_harmless(live_model, extractor):
    model = live_model("scorer")
    live = LiveCustomer(model, extractor)
    live.add(random_events(0, 4))
    data, scores = live.to_bytes(), live.scores()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(data), 60).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(generator.integers(8))
        try:
            assert LiveCustomer.from_bytes(bytes(damaged), model, extractor).scores() == scores
        except ValueError as error:
            assert "stored state" in str(error)


def test_a_state_of_counts_has_no_caches_and_the_scores_without_the_encoder(live_model, extractor):
    full, counts = live_model("scorer and state"), live_model("scorer and state", live_state="counts")
    counts.load_state_dict(full.state_dict())
    lives = [LiveCustomer(model, extractor) for model in (full, counts)]
    for live in lives:
        live.add(random_events(0, 80))
    assert len(lives[1].to_bytes()) < len(lives[0].to_bytes())
    assert [live._window.state().cache.get_seq_length() > 0 for live in lives] == [True, False]
    counts.scorer.calibration[..., 1:] = 0  # the weights of the encoder
    alone = LiveCustomer(counts, extractor)
    alone.add(random_events(0, 80))
    for task, scores in lives[1].logits().items():
        torch.testing.assert_close(scores, alone.logits()[task])
        assert not torch.equal(scores, lives[0].logits()[task])
