# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Baselines by name, a sentence for each baseline that a model is not better than, and tables of what was measured."""

import importlib.util
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from visits import prepared_rows

from modeling_mcm.evaluation import paired_difference
from modeling_mcm.evaluation.cases import EvaluationCases, find_cases
from modeling_mcm.evaluation.comparison import (
    COUNTING,
    baseline_warnings,
    by_history,
    counting_baselines,
    default_baselines,
)

COUNTED = [*COUNTING]


@pytest.fixture
def model():
    values = np.random.default_rng(0).random(400)
    values[::7] = np.nan  # no target
    return values


def test_lightgbm_ranks_by_popularity_without_two_visits(caplog):
    pytest.importorskip("lightgbm")
    rows = prepared_rows({"a": [(1, [2]), (210, [3])], "b": [(2, [3]), (220, [2])]})
    cases = find_cases(rows, "test", min_history=1)
    popular, learned = counting_baselines(rows, cases, {"brand": 4}, ["most_popular", "lightgbm"]).values()
    np.testing.assert_equal(learned["brand"].metrics([1]), popular["brand"].metrics([1]))
    assert "No customer has two visits with a label of task 'brand'" in caplog.text


def test_default_baselines_are_fast_and_installed(monkeypatch):
    cases = find_cases(prepared_rows({"a": [(1, [2]), (210, [3])]}), "test", min_history=1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert default_baselines(cases, {"brand": 100}) == ([*COUNTED, "lightgbm"], [])
    names, (said,) = default_baselines(cases, {"brand": 100, "item": 10**11})
    assert names == COUNTED and "with 100,000,000,000 labels" in said and "--baselines most_popular" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names, (said,) = default_baselines(cases, {"brand": 100})
    assert names == COUNTED and "it is not installed: `pip install modeling-mcm[gbdt]`" in said


def warn(**brands):
    """The sentences for methods with values of the task brand."""
    values = {(name, "brand", "next_visit_ndcg@10"): of_brand for name, of_brand in brands.items()}
    return baseline_warnings(pd.DataFrame(values))


def test_a_significant_loss_is_reported_with_its_interval(model):
    better = model + 0.02 + 0.01 * np.random.default_rng(1).standard_normal(400)
    (said,) = warn(visit_frequency=better, MCM=model)
    assert said.startswith("MCM is under visit_frequency, beyond noise, on brand by 0.0")
    numbers = [float(number) for number in re.findall(r"0\.\d{4}", said)]
    found = paired_difference(better, model)
    assert numbers == pytest.approx([found.mean, found.low, found.high], abs=6e-5)
    assert "(342 customers)" in said and "next-visit NDCG@10" in said


def test_a_loss_within_noise_is_level_and_a_gain_is_silent(model):
    noise = np.random.default_rng(2).standard_normal(400)
    noise -= np.nanmean(np.where(np.isnan(model), np.nan, noise))
    within = {"transitions": model + 0.001 + 0.5 * noise, "most_popular": model - 0.1, "nearest": model - 0.5 * noise}
    values = {(name, "brand"): of_brand for name, of_brand in (within | {"MCM": model}).items()}
    values |= {("transitions", "item"): model + 0.3, ("MCM", "item"): model}
    values["lightgbm", "brand"] = values["transitions", "brand"]
    under, level = baseline_warnings(pd.DataFrame({(*key, "recall@1"): of for key, of in values.items()}), "recall@1")
    assert re.match(r"MCM is under transitions, beyond noise, on item by 0.3000 .*\(level, .* on brand", under)
    assert re.match(r"MCM is level with lightgbm: lower within noise on brand by 0.0010 \[-0\.\d+, 0\.\d+\]", level)


def test_it_is_said_where_lightgbm_has_learned_nothing(model):
    popularity = model / 2
    (said,) = warn(most_popular=popularity, lightgbm=popularity * 1.01, MCM=model)
    assert said.startswith("lightgbm is not above most_popular on brand, so it has learned nothing there")
    assert warn(most_popular=popularity, lightgbm=popularity * 1.1, MCM=model) == []


def test_methods_without_common_customers_are_skipped(model):
    assert warn(transitions=np.full(400, np.nan), MCM=model) == warn(MCM=model) == []


def test_each_case_is_in_the_group_of_its_visits():
    visits = np.array([1, 2, 2, 3, 5, 6, 20, 21, 400, 4])
    cases = EvaluationCases("test", np.arange(10), [], visits, {}, visits)
    values = pd.DataFrame({("one", "a", "ndcg"): np.arange(10.0)})
    groups = by_history(values, cases, "ndcg")
    assert {name: group["cases"] for name, group in groups.items()} == {"1-2": 3, "3-5": 3, "6-20": 2, "more": 2}
    assert groups["3-5"]["results"]["one"]["a"]["ndcg"]["mean"] == np.mean([3, 4, 9])
    few = replace(cases, history_visits=np.full(10, 2))
    assert list(by_history(values, few, "ndcg")) == ["1-2"]
