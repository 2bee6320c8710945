# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""States and forecasts as a person gets them: columns of run_predict, pipelines and the example."""

import importlib

import pandas as pd
import pytest
import torch
from choices import PAPER, TINY, from_data
from in_process import call
from transformers import pipeline

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.training.fitting import describe_customers

CUTOFF = pd.Timestamp("2017-10-01").timestamp()


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """Folder of a checkpoint whose state and forecasts are trained; its encoder is not."""
    folder = tmp_path_factory.mktemp("trained")
    data = PreparedData(prepared)
    extractor = data.extractor
    torch.manual_seed(0)
    choices = from_data(extractor) | TINY | PAPER | {"augmentation": "all_prefixes", "state_size": 12}
    model = MCMForMultiTaskRecommendation(MCMConfig(**choices, summed_features=extractor.summed_features))
    describe_customers(model, data, seed=0)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def test_events_after_the_moment_change_nothing(trained, event_log):
    forecast = pipeline("customer-forecast", model=str(trained))
    events = event_log[event_log["who"] == "c05"]
    moment = "2017-08-01"
    before = events[events["when"] < moment]
    assert len(before) < len(events)
    told = forecast({"events": events}, as_of=moment)
    assert told == forecast({"events": before}, as_of=moment)
    assert {"visits_30d_low80", "a.b_90d_median", "visit_probability_7d", "days_to_next_visit"} <= set(told)
    assert told != forecast({"events": before}, as_of="2018-03-01")  # months without a visit have passed


def test_forecasts_can_be_left_out(trained, prepared, tmp_path):
    options = ["--model", trained, "--data", prepared, "--output_dir", tmp_path / "scores"]
    call("run_predict", *options, "--forecasts", "false", "--tasks", "aisle")
    assert list(pd.read_parquet(tmp_path / "scores")) == ["customer_id", "embedding", "aisle", "aisle_scores"]


def test_a_checkpoint_without_trained_forecasts_tells_none(prepared, trained, tmp_path):
    model = MCMForMultiTaskRecommendation.from_pretrained(trained)
    model.config.forecast_window = model.model.config.forecast_window = 0.0
    model.model.make_forecaster()
    model.save_pretrained(tmp_path / "model")
    MCMFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="no trained forecasts"):
        pipeline("customer-forecast", model=str(tmp_path / "model"))
    call("run_predict", "--model", tmp_path / "model", "--data", prepared, "--output_dir", tmp_path / "scores")
    assert "visits_30d" not in pd.read_parquet(tmp_path / "scores")


def test_the_example_lists_who_may_not_come_again(trained, prepared, tmp_path, capsys):
    as_of = ["--as_of", "2017-12-30"]
    call("run_predict", "--model", trained, "--data", prepared, "--output_dir", tmp_path / "scores", *as_of)
    importlib.import_module("4_stored_states").main(str(tmp_path / "scores"), str(tmp_path / "churn.csv"))
    said = capsys.readouterr().out
    scores, listed = pd.read_parquet(tmp_path / "scores"), pd.read_csv(tmp_path / "churn.csv")
    assert (listed["visit_probability_30d"] < 0.5).all()
    assert len(listed) == min(50, (scores["visit_probability_30d"] < 0.5).sum())
    assert said.count(" is like ") == 3
