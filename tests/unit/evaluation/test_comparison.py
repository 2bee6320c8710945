# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Baselines by name, and a sentence for each baseline that a model is not better than."""

import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest
from visits import horizon, prepared_rows

from modeling_mcm.evaluation import paired_difference
from modeling_mcm.evaluation.cases import find_cases, unseen_only
from modeling_mcm.evaluation.comparison import (
    FIRST_BASELINES,
    STRONG_BASELINES,
    baseline_warnings,
    counting_baselines,
    default_baselines,
)

COUNTED = [*FIRST_BASELINES, *STRONG_BASELINES]


@pytest.fixture
def model():
    values = np.random.default_rng(0).random(400)
    values[::7] = np.nan  # no target
    return values


@pytest.mark.parametrize("days", [None, 90])
@pytest.mark.parametrize("unseen", [False, True])
def test_customers_of_one_or_two_events_are_evaluated(days, unseen):
    rows = prepared_rows({"a": [(1, [2]), (210, [3])], "b": [(2, [3]), (150, [2]), (220, [2])], "c": [(250, [3])]})
    cases = find_cases(rows, "test", min_history=1, horizon=horizon(days, "test") if days else None)
    results = counting_baselines(rows, unseen_only(rows, cases) if unseen else cases, {"brand": 4}, COUNTED, (1,))
    assert list(results) == COUNTED
    assert all(len(values) == 2 for by_task in results.values() for values in by_task["brand"].values())


def test_lightgbm_is_left_out_without_two_visits(caplog):
    pytest.importorskip("lightgbm")
    rows = prepared_rows({"a": [(1, [2]), (210, [3])], "b": [(2, [3]), (220, [2])]})
    cases = find_cases(rows, "test", min_history=1)
    assert list(counting_baselines(rows, cases, {"brand": 4}, ["most_popular", "lightgbm"], (1,))) == ["most_popular"]
    assert "lightgbm is left out of task 'brand': No customer has two visits" in caplog.text
    with pytest.raises(ValueError, match=r"No baselines \['popular'\]; choose from most_popular"):
        counting_baselines(rows, cases, {"brand": 4}, ["popular"])


def test_default_baselines_are_fast_and_installed(monkeypatch):
    cases = find_cases(prepared_rows({"a": [(1, [2]), (210, [3])]}), "test", min_history=1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert default_baselines(cases, {"brand": 100}) == ([*COUNTED, "lightgbm"], [])
    assert "visit_frequency" not in default_baselines(replace(cases, seen=cases.targets), {"brand": 100})[0]
    names, (said,) = default_baselines(cases, {"brand": 100, "item": 10**11})
    assert names == COUNTED and "with 100,000,000,000 labels" in said and "--baselines most_popular" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names, (said,) = default_baselines(cases, {"brand": 100})
    assert names == COUNTED and "it is not installed: `pip install modeling-mcm[gbdt]`" in said


def test_a_significant_loss_is_reported_with_its_interval(model):
    better = model + 0.02 + 0.01 * np.random.default_rng(1).standard_normal(400)
    (said,) = baseline_warnings({"visit_frequency": {"brand": better}, "MCM": {"brand": model}})
    assert said.startswith("MCM is under visit_frequency, beyond noise, on brand by 0.0")
    numbers = [float(number) for number in re.findall(r"0\.\d{4}", said)]
    found = paired_difference(better, model)
    assert numbers == pytest.approx([found.mean, found.low, found.high], abs=6e-5)
    assert "(342 customers)" in said and "next-visit NDCG@10" in said


def test_a_loss_within_noise_is_level_and_a_gain_is_silent(model):
    noise = np.random.default_rng(2).standard_normal(400)
    noise -= np.nanmean(np.where(np.isnan(model), np.nan, noise))
    values = {
        "transitions": {"brand": model + 0.001 + 0.5 * noise, "item": model + 0.3},
        "most_popular": {"brand": model - 0.1, "item": model - 0.1},
        "nearest_customers": {"brand": model - 0.001 + 0.5 * noise},
        "lightgbm": {"brand": model + 0.001 + 0.5 * noise},
        "MCM": {"brand": model, "item": model},
    }
    under, level = baseline_warnings(values)
    assert re.match(r"MCM is under transitions, beyond noise, on item by 0.3000 .*\(level, .* on brand", under)
    assert re.match(r"MCM is level with lightgbm: lower within noise on brand by 0.0010 \[-0\.\d+, 0\.\d+\]", level)


def test_methods_without_common_customers_are_skipped_or_refused(model):
    nobody = np.full(400, np.nan)
    assert baseline_warnings({"transitions": {"brand": nobody, "item": model}, "MCM": {"brand": model}}) == []
    assert baseline_warnings({"MCM": {"brand": model}}) == []
    with pytest.raises(ValueError, match="Found values of transitions; expected 'MCM' among them"):
        baseline_warnings({"transitions": {"brand": model}})
    with pytest.raises(ValueError, match="the same customers"):
        baseline_warnings({"transitions": {"brand": model[1:]}, "MCM": {"brand": model}})
