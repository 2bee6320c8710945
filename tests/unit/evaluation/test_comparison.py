# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A model that is under a baseline is told of, with the interval in pairs; one that is above is not."""

import re

import numpy as np
import pytest

from modeling_mcm.evaluation import paired_difference
from modeling_mcm.evaluation.comparison import baseline_warnings, title_of, values_of
from modeling_mcm.evaluation.counting import BASELINES


@pytest.fixture
def model() -> np.ndarray:
    values = np.random.default_rng(0).random(400)
    values[::7] = np.nan  # no target
    return values


def test_under_beyond_noise_is_told_with_its_interval(model: np.ndarray) -> None:
    better = model + 0.02 + 0.01 * np.random.default_rng(1).standard_normal(400)
    (said,) = baseline_warnings({"visit_frequency": {"brand": better}, "MCM": {"brand": model}})
    assert said.startswith("MCM is under visit_frequency, beyond noise, on brand by 0.0")
    numbers = [float(number) for number in re.findall(r"0\.\d{4}", said)]
    found = paired_difference(better, model).absolute
    assert numbers == pytest.approx([found.mean, found.low, found.high], abs=6e-5)
    assert "(342 customers)" in said and "next-visit NDCG@10" in said
    assert "What to try: the customers' own habits have too little weight: turn on the repeat memory" in said


def test_within_noise_is_level_and_above_is_silent(model: np.ndarray) -> None:
    noise = np.random.default_rng(2).standard_normal(400)
    noise -= np.nanmean(np.where(np.isnan(model), np.nan, noise))
    values = {
        "transitions": {"brand": model + 0.001 + 0.5 * noise, "item": model + 0.3},
        "most_popular": {"brand": model - 0.1, "item": model - 0.1},
        "nearest_households": {"brand": model - 0.001 + 0.5 * noise},
        "lightgbm": {"brand": model + 0.001 + 0.5 * noise},
        "MCM": {"brand": model, "item": model},
    }
    under, level = baseline_warnings(values)
    assert re.match(
        r"MCM is under transitions, beyond noise, on item by 0.3000 .*\(level, within noise, on brand", under
    )
    assert "`encoder_unit=event`" in under
    assert re.match(r"MCM is level with lightgbm: lower within noise on brand by 0.0010 \[-0\.\d+, 0\.\d+\]", level)


def test_what_can_not_be_compared_is_passed_over_or_refused(model: np.ndarray) -> None:
    nobody = np.full(400, np.nan)
    assert baseline_warnings({"markov": {"brand": nobody, "item": model}, "MCM": {"brand": model}}) == []
    assert baseline_warnings({"MCM": {"brand": model}}) == []
    with pytest.raises(ValueError, match="Found values of markov; expected 'MCM' among them"):
        baseline_warnings({"markov": {"brand": model}})
    with pytest.raises(ValueError, match="the same customers"):
        baseline_warnings({"markov": {"brand": model[1:]}, "MCM": {"brand": model}})
    (said,) = baseline_warnings({"ours": {"a": model - 0.2}, "another": {"a": model}}, "horizon_hr@3", model="ours")
    assert said.startswith("ours is under another") and "horizon HR@3" in said and "train longer" in said


def test_every_baseline_has_advice(model: np.ndarray) -> None:
    values = {name: {"brand": model + 0.1} for name in BASELINES} | {"MCM": {"brand": model}}
    said = baseline_warnings(values)
    assert [text.split()[3].rstrip(",") for text in said] == list(BASELINES)
    assert all("What to try: train longer" not in text for text in said)  # which is all that is said of others


def test_one_metric_is_taken_out_of_results(model: np.ndarray) -> None:
    results = {"MCM": {"brand": {"a": model, "b": model + 1}, "item": {"b": model}}}
    assert values_of(results, "a").keys() == {"MCM"} and list(values_of(results, "a")["MCM"]) == ["brand"]
    assert title_of("next_visit_ndcg@10") == "next-visit NDCG@10" and title_of("horizon_mrr") == "horizon MRR"
