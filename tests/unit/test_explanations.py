# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations: parts and shares add up, deletions are what the model says of the history without a visit."""

import json

import numpy as np
import pytest
import torch

from modeling_mcm import LiveCustomer
from modeling_mcm.live.explanations import explain

DAYS = ["01-03", "01-15", "01-15", "01-27", "02-08", "02-20", "02-20", "03-01"]
BOUGHT = list(zip(DAYS, [1, 2, 1, 1, 3, 1, 4, 5], strict=True))
EVENTS = [
    {"when": f"2017-{day}T10:00:00", "action": "buy", "item": f"item {item:02}", "aisle": f"aisle {item % 4}"}
    for day, item in BOUGHT
]
COUNTED = {"follower_tasks": ["items"], "related_tasks": ["items"]}
CHOICES = {
    "paper": {},
    "extended": {"extended": True},
    "counted": {"extended": True, **COUNTED},
    "masked": {"augmentation": "masked_lm", "readout": "last"},
}


@pytest.fixture
def explained_model(tiny_model):
    """A function that makes a model of one of CHOICES, whose related labels have something to say."""

    def make(name):
        model = tiny_model(**CHOICES[name])
        if model.counted_memory is not None:
            table = model.counted_memory.new_tables["0"]
            table.related[2:, :4] = torch.arange(2, 6).int()
            table.weights[2:, :4] = 0.05
            model.counted_memory.new_gain += 0.7
            model.counted_memory.habit_gain += 0.4
            model.score_scales *= 0.9
        return model

    return make


def log_probability(model, extractor, events, task, label, profile=None, now=None):
    mask_next = model.config.augmentation == "masked_lm"
    moment = None if now is None else [np.datetime64(now, "s").astype(int)]
    inputs = extractor.pad([extractor.encode({"events": events, "profile": profile})], mask_next=mask_next, now=moment)
    with torch.inference_mode():
        scores = model(**inputs).logits[task][0].double().log_softmax(-1)
    return float(scores[int(extractor.label_ids(task, [label])[0])])


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("label", ["item 01", "item 05", "item 20", None])
def test_parts_and_shares_add_up(explained_model, extractor, name, label):
    model = explained_model(name)
    customer = {"events": EVENTS, "profile": {"age": "old"}}
    why = explain(model, extractor, customer, "items", label)
    assert why.score == pytest.approx(log_probability(model, extractor, EVENTS, "items", why.label, {"age": "old"}))
    assert why.baseline == pytest.approx(log_probability(model, extractor, [], "items", why.label, {"age": "old"}))
    assert sum(why.parts.values()) == pytest.approx(why.score, abs=1e-5)
    assert sum(why.baseline_parts.values()) == pytest.approx(why.baseline, abs=1e-5)
    assert sum(visit.share for visit in why.visits) == pytest.approx(why.score - why.baseline, abs=1e-5)
    for part, value in why.parts.items():
        total = sum(visit.parts[part] for visit in why.visits)
        assert total == pytest.approx(value - why.baseline_parts[part], abs=1e-5)
    for visit in why.visits:
        assert sum(event.share for event in visit.events) == pytest.approx(visit.share, abs=1e-5)
        assert sum(visit.parts.values()) == pytest.approx(visit.share, abs=1e-5)
    json.dumps(why.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", CHOICES)
def test_deletion_is_the_score_without_the_visit(explained_model, extractor, name):
    model = explained_model(name)
    why = explain(model, extractor, {"events": EVENTS}, "items", "item 01")
    deletions = []
    for visit in why.visits:
        rest = [event for event in EVENTS if event["when"] != visit.time]
        assert len(rest) < len(EVENTS)
        deletions.append(visit.deletion)
        without = log_probability(model, extractor, rest, "items", "item 01")
        assert visit.deletion == pytest.approx(why.score - without, abs=1e-5)
    assert deletions == sorted(deletions, reverse=True)  # shares are in the order of the deletions


def test_explanation_is_as_of_now(explained_model, extractor):
    model, now = explained_model("counted"), "2017-06-01"
    why = explain(model, extractor, {"events": EVENTS}, "items", "item 01", now)
    assert why.score == pytest.approx(log_probability(model, extractor, EVENTS, "items", "item 01", now=now))
    assert why.score != pytest.approx(log_probability(model, extractor, EVENTS, "items", "item 01"), abs=1e-3)
    last = next(visit for visit in why.visits if visit.time.startswith("2017-03-01"))
    without = log_probability(model, extractor, EVENTS[:-1], "items", "item 01", now=now)
    assert last.deletion == pytest.approx(why.score - without, abs=1e-5)
    assert sum(visit.share for visit in why.visits) == pytest.approx(why.score - why.baseline, abs=1e-5)


@pytest.mark.parametrize(("max_events", "visits"), [(40, 3), (6, 2)])
def test_events_after_now_are_ignored(explained_model, extractor, max_events, visits):
    extractor.max_events = max_events
    model, now = explained_model("counted"), "2017-02-01"
    whole, before = (
        explain(model, extractor, {"events": events}, "items", "item 01", now) for events in (EVENTS, EVENTS[:4])
    )
    assert whole == before and len(whole.visits) == visits


def test_live_customer_gives_the_same_explanation(explained_model, extractor):
    model = explained_model("counted")
    live = LiveCustomer(model, extractor)
    live.add(EVENTS)
    assert live.explain("items", "item 01") == explain(model, extractor, {"events": EVENTS}, "items", "item 01")
    best = live.scores(tasks=["items"], k=1)["items"][0]
    why = live.explain("items")
    assert (why.label, why.probability) == (best["label"], pytest.approx(best["score"], abs=1e-6))


def test_visits_with_the_label_are_tried_first(explained_model, extractor):
    why = explain(explained_model("extended"), extractor, {"events": EVENTS}, "items", "item 01", most_visits=4)
    tried = {visit.time[:10] for visit in why.visits if visit.deletion is not None}
    assert tried == {"2017-01-03", "2017-01-15", "2017-01-27", "2017-02-20"}
    assert all(visit.share == 0 for visit in why.visits if visit.deletion is None)
    assert sum(visit.share for visit in why.visits) == pytest.approx(why.score - why.baseline, abs=1e-5)


def test_words_say_how_often_and_when(explained_model, extractor):
    model = explained_model("paper")

    def words(label, now=None):
        return explain(model, extractor, {"events": EVENTS}, "items", label, now).words

    assert words("item 01", "2017-03-06T10:00:00") == "4 times, every 16 days, last 14 days ago; due"
    assert words("item 01", "2017-02-21T10:00:00") == "4 times, every 16 days, last 1 day ago"
    assert words("item 05") == "once, less than a day ago"
    assert words("item 03") == "once, 21 days ago"
    assert words("item 20") == "never yet"


def test_customer_without_history(explained_model, extractor):
    why = explain(explained_model("counted"), extractor, {"events": []}, "items")
    assert why.visits == [] and why.score == why.baseline and why.words == "never yet"


def test_long_history_is_cut_as_the_model_cuts_it(explained_model, extractor):
    extractor.max_events = 8
    model = explained_model("extended")
    why = explain(model, extractor, {"events": EVENTS}, "items", "item 01")
    assert why.score == pytest.approx(log_probability(model, extractor, EVENTS, "items", "item 01"))
    assert len(why.visits) < len({event["when"] for event in EVENTS})
    assert np.isclose(sum(visit.share for visit in why.visits), why.score - why.baseline)


@pytest.mark.parametrize(
    "task, label, says", [("item", None, "No task 'item'"), ("items", "item 99", "no label 'item 99'")]
)
def test_unknown_tasks_and_labels_are_named(explained_model, extractor, task, label, says):
    with pytest.raises(ValueError, match=says):
        explain(explained_model("paper"), extractor, {"events": EVENTS}, task, label)
