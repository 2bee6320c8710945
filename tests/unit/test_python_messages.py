# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What Python says of bad options, customers and tensors: which customer, what was found, what to do."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from faults import expected
from transformers import pipeline

GOOD = {"events": [{"when": "2017-03-01", "action": "buy", "item": "item 01", "basket": "1"}]}


@pytest.fixture
def score(save):
    return pipeline("preference-scores", model=save(extended=True))


@pytest.mark.parametrize("task", ["customer-embedding", "preference-scores"])
def test_nobody_is_answered_with_nothing(save, task):
    pipe = pipeline(task, model=save(extended=True))
    assert pipe([]) == pipe(()) == pipe([], batch_size=4) == []
    assert list(pipe(customer for customer in ())) == []
    with pytest.raises(ValueError, match="Unknown options"):
        pipe([], nonsense=1)


OPTIONS = {
    "half a label": {"top_k": 2.5},
    "labels as text": {"top_k": "3"},
    "labels as a flag": {"top_k": True},
    "no label": {"top_k": 0},
    "tasks as text": {"tasks": "items"},
    "tasks as letters": {"tasks": "abc"},
    "no task": {"tasks": []},
    "a task that is none": {"tasks": ["colour"]},
    "tasks as a number": {"tasks": 5},
}


@pytest.mark.parametrize(("options", "message"), expected("Options of the pipelines", OPTIONS))
def test_bad_options_are_named(score, options, message):
    with pytest.raises(ValueError, match=message):
        score(GOOD, **options)
    with pytest.raises(ValueError, match=message):
        score([], **options)


def test_good_options_of_other_types_work(score):
    assert score(GOOD, top_k=np.int64(2), tasks=("items",)).keys() == {"items"}


CUSTOMERS = {
    "a text": "c07",
    "no events": {"events": None},
    "no dict": 7,
    "an unknown column": {"events": [{"when": "2017-03-01", "action": "buy", "colour": "red"}]},
    "no time": {"events": [{"when": float("nan"), "action": "buy"}]},
    "a list as a value": {"events": [{"when": "2017-03-01", "action": "buy", "item": ["a"]}]},
    "mixed types in a frame": {
        "events": pd.DataFrame({"when": ["2017-03-01"] * 3, "action": "buy", "price": [1, "cheap", None]})
    },
    "mixed times in a frame": {"events": pd.DataFrame({"when": ["2017-03-01", 5], "action": "buy"})},
    "a column twice in a frame": {
        "events": pd.DataFrame([["2017-03-01", "a", "b"]], columns=["when", "item", "item"])
    },
    "bytes": {"events": [{"when": "2017-03-01", "action": b"buy"}]},
}


@pytest.mark.parametrize(("customer", "message"), expected("Customers of the pipelines", CUSTOMERS))
@pytest.mark.parametrize("form", [list, tuple, iter])
def test_the_bad_one_of_a_hundred_is_named(score, customer, message, form):
    everyone = [*[GOOD] * 63, customer, *[GOOD] * 36]
    with pytest.raises(ValueError, match=message) as refused:
        list(score(form(everyone), batch_size=8))
    assert "Customer 63 of the list" in str(refused.value)
    if isinstance(customer, dict):
        with pytest.raises(ValueError, match="Customer 'c7'"):
            list(score(form([GOOD, {**customer, "customer_id": "c7"}])))


def test_places_do_not_change_what_is_answered(score):
    alone = score(GOOD)
    for found in (score([GOOD] * 3, batch_size=2), score((GOOD,) * 3), list(score(iter([GOOD] * 3)))):
        for each in found:
            for task, best in alone.items():
                assert [one["label"] for one in each[task]] == [one["label"] for one in best]
                assert [one["score"] for one in each[task]] == pytest.approx([one["score"] for one in best], abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- tensors


def at(name, value, row=1, place=2):
    def change(inputs):
        inputs[name] = inputs[name].clone()
        inputs[name][row, place] = value

    return change


def cast(name, dtype):
    return lambda inputs: inputs.update({name: inputs[name].to(dtype)})


TENSORS = {
    "a time that is NaN": at("event_times", float("nan")),
    "an infinite time": at("event_times", float("inf")),
    "a negative time": at("event_times", -3.0),
    "times that fall": at("event_times", 1e6),
    "a negative visit": at("visit_ids", -1),
    "a visit that falls": at("visit_ids", 30),
    "a visit beyond the events": at("visit_ids", 10**6),
    "visits that are no whole numbers": cast("visit_ids", torch.float32),
    "visits of another shape": lambda inputs: inputs.update(visit_ids=inputs["visit_ids"][:, :-1]),
    "times of another shape": lambda inputs: inputs.update(event_times=inputs["event_times"][:1]),
    "an id of no value": at("input_ids", 99),
    "a negative id": at("input_ids", -1),
}


@pytest.mark.parametrize(("change", "message"), expected("Tensors", TENSORS))
def test_tensors_that_can_t_be_are_named(tiny_model, extractor, change, message):
    model = tiny_model(extended=True, label_features=["aisle"])
    events = [
        {"when": f"2017-03-{day:02}", "action": "buy", "item": f"item {day:02}", "basket": str(day)}
        for day in range(1, 18)
    ]
    inputs = dict(extractor([{"events": events[:9]}, {"events": events}]))
    with torch.no_grad():
        model(**inputs)
        change(inputs)
        with pytest.raises(ValueError, match=message) as refused:
            model(**inputs)
    assert "index out of range" not in str(refused.value) and re.search("MCMFeatureExtractor|order|pad", message)


def test_what_stands_in_padding_is_nobody_s_fault(tiny_model, extractor):
    model = tiny_model(extended=True)
    inputs = dict(extractor([GOOD, {"events": GOOD["events"] * 4}]))
    before = model(**inputs).logits["items"][0]
    last = inputs["attention_mask"][0].sum()
    inputs["event_times"][0, last:] = 0.0
    inputs["visit_ids"][0, last:] = 0
    torch.testing.assert_close(model(**inputs).logits["items"][0], before)
