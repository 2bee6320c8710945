# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations: the changes are what the model says of the history without a visit."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from fitted import fill_scorer

from modeling_mcm.features_mcm import FEATURES, PLACES
from modeling_mcm.live.explanations import explain
from modeling_mcm.scorer_mcm import MIX, NEXT_VISIT

DAYS = ["01-03", "01-15", "01-15", "01-27", "02-08", "02-20", "02-20", "03-01"]
BOUGHT = list(zip(DAYS, [1, 2, 1, 1, 3, 1, 4, 5], strict=True))
EVENTS = [
    {"when": f"2017-{day}T10:00:00", "action": "buy", "item": f"item {item:02}", "aisle": f"aisle {item % 4}"}
    for day, item in BOUGHT
]
CHANCE = (0.5, 0.9, -0.2)
SCORER = {"scorer": True, "kind_feature": "type"}
CHOICES = {
    "paper": {},
    "extended": {"extended": True},
    "scorer": {"extended": True, **SCORER},
    "no encoder": {"extended": True, "num_hidden_layers": 0, **SCORER},
    "masked": {"augmentation": "masked_lm", "readout": "last", **SCORER},
}


@pytest.fixture
def explained_model(tiny_model):
    """A function that makes a model of one of CHOICES, whose counts have something to say."""

    def make(name):
        model = tiny_model(**CHOICES[name])
        if model.scorer is None:
            return model
        model.scorer.chance.copy_(torch.tensor(CHANCE))
        return fill_scorer(model, reads_readout=name != "no encoder")

    return make


def chance(model, extractor, events, task, label, profile=None, as_of=None):
    mask_next = model.config.augmentation == "masked_lm"
    moment = None if as_of is None else [np.datetime64(as_of, "s").astype(int)]
    inputs = extractor.pad(
        [extractor.encode({"events": events, "profile": profile})], mask_next=mask_next, as_of=moment
    )
    with torch.inference_mode():
        scores = model(**inputs).logits[task][0].double()
    log_p = scores.log_softmax(-1)[int(extractor.label_ids(task, [label])[0])]
    if model.scorer is None:  # there is nothing that was fitted on validation cases
        return float(log_p.exp())
    a, b, c = CHANCE
    return float((a + b * log_p + c * log_p.exp()).sigmoid())


def without(visit):
    rest = [event for event in EVENTS if event["when"] != visit.time]
    assert len(rest) < len(EVENTS)
    return rest


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("label", ["item 01", "item 20", None])
def test_changes_are_those_of_the_model_without_a_visit(explained_model, extractor, name, label):
    model, profile = explained_model(name), {"age": "old"}
    why = explain(model, extractor, {"events": EVENTS, "profile": profile}, "items", label)
    for found, events in [
        (why.chance, EVENTS),
        (why.baseline, []),
        *((visit.without, without(visit)) for visit in why.visits),
    ]:
        expected = chance(model, extractor, events, "items", why.label, profile, EVENTS[-1]["when"])
        assert found == pytest.approx(expected, rel=1e-4)
    assert len(why.visits) == len(set(DAYS))
    changes = [visit.without for visit in why.visits]
    assert changes == sorted(changes) and changes[0] < changes[-1]  # the visit that matters most comes first
    assert {visit.time for visit in why.visits if visit.has_label} == {
        event["when"] for event in EVENTS if event["item"] == why.label
    }
    json.dumps(asdict(why), allow_nan=False)


def test_events_after_now_are_ignored(explained_model, extractor):
    model, as_of = explained_model("scorer"), "2017-02-01"
    whole, before = (
        explain(model, extractor, {"events": events}, "items", "item 01", as_of) for events in (EVENTS, EVENTS[:4])
    )
    assert whole == before and len(whole.visits) == 3
    assert whole.chance == pytest.approx(chance(model, extractor, EVENTS[:4], "items", "item 01", as_of=as_of))


def test_visits_with_the_label_are_tried_first(explained_model, extractor):
    why = explain(explained_model("extended"), extractor, {"events": EVENTS}, "items", "item 01", most_visits=4)
    assert {visit.time[:10] for visit in why.visits if visit.without is not None} == {
        "2017-01-03", "2017-01-15", "2017-01-27", "2017-02-20",
    }  # fmt: skip
    assert [visit.without is None for visit in why.visits] == [False] * 4 + [True] * 2


def test_words_say_how_often_and_when(explained_model, extractor):
    model = explained_model("paper")

    def words(label, as_of=None):
        return explain(model, extractor, {"events": EVENTS}, "items", label, as_of).words

    assert words("item 01", "2017-03-06T10:00:00") == "4 times, every 16 days, last 14 days ago"
    assert words("item 01", "2017-02-21T10:00:00") == "4 times, every 16 days, last 1 day ago"
    assert words("item 05") == "once, less than a day ago"
    assert words("item 03") == "once, 21 days ago"
    assert words("item 20") == "never yet"


def test_customer_without_history(explained_model, extractor):
    why = explain(explained_model("scorer"), extractor, {"events": []}, "items")
    assert why.visits == [] and why.chance == why.baseline and why.words == "never yet"


def test_visits_that_the_encoder_does_not_read_are_explained(explained_model, extractor):
    model = explained_model("scorer")
    model.config.max_events = 3
    why = explain(model, extractor, {"events": EVENTS}, "items", "item 01")
    assert why.chance == pytest.approx(chance(model, extractor, EVENTS, "items", "item 01"))
    assert len(why.visits) == len(set(DAYS)) and why.words.startswith("4 times")
    (first,) = (visit for visit in why.visits if visit.time == EVENTS[0]["when"])
    assert abs(first.without - why.chance) > 1e-3


@pytest.mark.parametrize(
    "options, says",
    [
        ({"task": "item"}, "No tasks ..item"),
        ({"label": "item 99"}, "no label 'item 99'"),
        ({"most_visits": -1}, "`most_visits` is -1"),
        ({"most_visits": 1.5}, "`most_visits` is 1.5"),
    ],
)
def test_bad_questions_are_refused(explained_model, extractor, options, says):
    with pytest.raises(ValueError, match=says):
        explain(explained_model("paper"), extractor, {"events": EVENTS}, **{"task": "items"} | options)


@pytest.mark.parametrize("name", ["scorer", "no encoder", "paper"])
def test_chances_without_a_group_are_those_of_a_network_that_does_not_read_it(explained_model, extractor, name):
    model = explained_model(name)
    why = explain(model, extractor, {"events": EVENTS}, "items", "item 01")
    assert len(why.groups) == (0 if name == "paper" else 8)
    for group, found in why.groups.items():
        if group in {FEATURES[PLACES[rate]].group for rate in MIX}:  # which is no part of the network
            continue
        blind = explained_model(name)
        places = [place for place, feature in enumerate(FEATURES) if feature.group == group]
        network = blind.scorer.get_network(blind.config.tasks.index("items"), NEXT_VISIT)
        network.linear.weight.data[:, places] = network.first.weight.data[:, places] = 0
        assert found == pytest.approx(chance(blind, extractor, EVENTS, "items", "item 01"), rel=1e-4), group
        assert found != pytest.approx(why.chance, rel=1e-4), group
