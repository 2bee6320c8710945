# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Bad options, customers and tensors are refused with a message that names the customer and what was found."""

import numpy as np
import pytest
import torch
import yaml
from transformers import pipeline

GOOD = {"events": [{"when": "2017-03-01", "action": "buy", "item": "item 01", "basket": "1"}]}


@pytest.fixture
def score(save):
    return pipeline("preference-scores", model=save(extended=True))


@pytest.mark.parametrize("task", ["customer-embedding", "preference-scores"])
def test_pipelines_return_an_empty_list_for_no_customers(save, task):
    pipe = pipeline(task, model=save(extended=True))
    assert pipe([]) == pipe(()) == pipe([], batch_size=4) == []
    assert list(pipe(customer for customer in ())) == []


# Options, and what is said of them
OPTIONS = r"""
{top_k: 2.5}               -> number of labels is 2.5 \(float\)
{top_k: '3'}               -> number of labels is '3' \(str\)
{top_k: 0}                 -> whole number, at least 1
{tasks: items}             -> `tasks` is 'items'; give a list of names such as \['items'\]
{tasks: []}                -> `tasks` is \[\]; give a list
{tasks: [colour]}          -> No tasks \['colour'\]: this checkpoint predicts
{topk: 3}                  -> Unknown options \['topk'\]: preference-scores has `tasks`, `top_k`, `as_of`, `cand
{as_of: next week}         -> `as_of`.*'next week'
{as_of: 1700000000000.0}   -> give seconds since
""".strip().splitlines()


@pytest.mark.parametrize("line", OPTIONS)
def test_bad_options_are_named(score, line):
    options, message = line.split(" -> ")
    with pytest.raises(ValueError, match=message):
        score(GOOD, **yaml.safe_load(options))


def test_good_options_of_other_types_work(score):
    assert score(GOOD, top_k=np.int64(2), tasks=("items",)).keys() == {"items"}


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("name", [{}, {"customer_id": "c7"}], ids=["nameless", "named"])
def test_the_bad_one_of_a_hundred_is_named(score, form, name):
    bad = {"events": [GOOD["events"][0] | {"colour": "red"}]} | name
    said = "Customer 'c7'" if name else "Customer 63 of the list"
    with pytest.raises(ValueError, match=f"{said}: columns of the events: unknown 'colour'"):
        list(score(form([*[GOOD] * 63, bad, *[GOOD] * 36]), batch_size=8))


# ------------------------------------------------------------------------------------------------------------- tensors


def at(name, value, row=1, place=2):
    def change(inputs):
        inputs[name] = inputs[name].clone()
        inputs[name][row, place] = value

    return change


def cast(name, dtype):
    return lambda inputs: inputs.update({name: inputs[name].to(dtype)})


RANGE = "is no number, out of range, or less than that of the event before"
PLACE = "at event 2 of customer 1 of the batch: MCMFeatureExtractor"
TENSORS = {
    "NaN": (at("event_times", float("nan")), f"`event_times` {RANGE} {PLACE}"),
    "an infinite time": (at("event_times", float("inf")), f"`event_times` {RANGE} {PLACE}"),
    "a negative first time": (at("event_times", -3.0, place=0), f"`event_times` {RANGE} at event 0 of customer 1"),
    "times fall": (at("event_times", 1e6), f"`event_times` {RANGE} at event 3 of customer 1"),
    "a visit too many": (at("visit_ids", 300), f"`visit_ids` {RANGE} {PLACE}"),
    "float visits": (
        cast("visit_ids", torch.float32),
        "`visit_ids` is torch.float32, and whole numbers",
    ),
    "visits' shape": (lambda inputs: inputs.update(visit_ids=inputs["visit_ids"][:, :-1]), "`visit_ids` has shape"),
    "a value that is NaN": (at("event_values", float("nan")), f"`event_values` is no number or infinite {PLACE}"),
    "unknown id": (at("input_ids", 99), f"`input_ids` is not from 0 to 5 in feature 'type' {PLACE}"),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_bad_tensors_are_named(tiny_model, extractor, change, message):
    model = tiny_model(extended=True, label_features=["aisle"])
    events = [
        {"when": f"2017-03-{day:02}", "action": "buy", "item": f"item {day:02}", "basket": str(day)}
        for day in range(1, 18)
    ]
    inputs = dict(extractor([{"events": events[:9]}, {"events": events}]))
    with torch.no_grad():
        model(**inputs)
        change(inputs)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            model(**inputs)
