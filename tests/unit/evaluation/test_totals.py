# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Totals of a group, the errors of the same forecast on the log's past, and columns that would make no table."""

import re

import pandas as pd
import pytest
from choices import STATE
from fitted import fill_forecaster

from modeling_mcm.data import PreparedData
from modeling_mcm.scoring import ScoringJob, forecast_total

DAYS = 25


@pytest.fixture(scope="module")
def data(prepared):
    return PreparedData(prepared)


@pytest.fixture(scope="module")
def model(tiny_model):
    return fill_forecaster(tiny_model(extended=True, **STATE, forecast_days=[7.0, DAYS]).model)


def bought(log, start, end, column=None):
    """Number of baskets with a purchase in a time, or the sum of a column, of customers who came before."""
    known = log.loc[log["when"] <= start, "who"].unique()
    part = log[(log["when"] > start) & (log["when"] <= end) & log["who"].isin(known)]
    return part["basket"].nunique() if column is None else part[column].sum()


def test_a_total_is_the_sum_and_its_past_is_what_came(model, data, event_log):
    found = forecast_total(model, data, "visits", DAYS)
    last, step = event_log["when"].max(), pd.Timedelta(days=DAYS)
    assert found.as_of == last.to_pydatetime()
    moments = [last - step * number for number in (1, 2, 3)]
    assert [each.as_of for each in found.past] == moments  # a fourth would be before the validation cutoff
    clicks = event_log[event_log["basket"].isna()].groupby(["who", "when"]).ngroups  # each is a visit of its own
    prices = forecast_total(model, data, "a.b", DAYS)
    for visits, price in zip(found.past, prices.past, strict=True):
        least = bought(event_log, visits.as_of, visits.as_of + step)
        assert least <= visits.actual <= least + clicks
        assert visits.error == pytest.approx(visits.expected / visits.actual - 1) and visits.expected > 0
        assert price.actual == pytest.approx(bought(event_log, price.as_of, price.as_of + step, "price"), rel=1e-5)


def test_amounts_of_visits_without_a_target_are_no_part_of_what_came(model, data, prepare_log, event_log):
    """As the forecaster reads no such visit: neither are they forecast."""
    fee = event_log.iloc[[0]].assign(item=None, aisle=None, basket="fee", price=1000.0)
    fee["when"] = event_log["when"].max() - pd.Timedelta(days=DAYS / 2)
    log = pd.concat([event_log, fee]).sort_values(["who", "when"], kind="stable")
    changed = PreparedData(prepare_log(log))
    changed.__dict__["extractor"] = data.extractor
    for quantity in ("visits", "events", "a.b"):
        actual, expected = (forecast_total(model, each, quantity, DAYS).past[0].actual for each in (changed, data))
        assert actual == pytest.approx(expected), quantity


def test_the_past_does_not_read_its_future(model, data, prepare_log, event_log):
    before = forecast_total(model, data, "visits", DAYS).past[-1]
    same_end = (event_log["when"] <= before.as_of) | (event_log["when"] == event_log["when"].max())
    changed = PreparedData(prepare_log(event_log[same_end | (event_log["who"] < "c20")]))
    changed.__dict__["extractor"] = data.extractor  # as the vocabularies are those of the training period anyway
    found = forecast_total(model, changed, "visits", DAYS).past[-1]
    assert found.expected == pytest.approx(before.expected, rel=1e-5) and found.actual < before.actual


def test_the_command_writes_any_horizon_and_prints_the_totals(model, data, command, tmp_path):
    for part in (model, data.extractor):
        part.save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--data", data.folder, "--output_dir", tmp_path / "out", "--top_k", 0]
    total, *_ = command("run_predict", *options, "--forecast_days", DAYS, "--total", "visits").splitlines()
    found = forecast_total(model, data, "visits", DAYS)
    assert total.startswith(f"visits in {DAYS} days from {found.as_of:%Y-%m-%d}: {found.expected:,.0f}; errors ")
    assert [f"{past.error:+.0%} from {past.as_of:%Y-%m-%d}" in total for past in found.past] == [True] * 3
    written = pd.read_parquet(tmp_path / "out")
    assert written[f"visits_{DAYS}d"].sum() == pytest.approx(found.expected, rel=1e-4)
    assert not any("_7d" in name for name in written)
    command("run_predict", *options, "--total", "visits", "--as_of", "2017-11-01", fails="leave out --as_of")


def test_missing_weeks_are_told(model, prepare_log, event_log, caplog):
    gap = event_log["when"].between("2017-05-01", "2017-05-30")
    forecast_total(model, PreparedData(prepare_log(event_log[~gap])), "visits", DAYS)
    assert re.search("has no event in [34] weeks", caplog.text)


WRONG = {
    "No forecasts of 'price': this checkpoint has those of": {"quantity": "price"},
    "The log ends .* days after the validation cutoff, so the error of 200 days": {"days": 200},
    "`days` is 1e-09": {"days": 1e-9},
    "`days` is '30'": {"days": "30"},
    "No forecast for 9999 days": {"days": 9999},
    "nobody": {"customers": ["nobody"]},
    "`customers` is empty": {"customers": []},
}


def test_a_wrong_question_is_refused(model, data, prepare_log, event_log):
    for words, options in WRONG.items():
        with pytest.raises(ValueError, match=words):
            forecast_total(model, data, **options)
    with pytest.raises(ValueError, match="prepare the log with dates"):
        forecast_total(model, PreparedData(prepare_log(event_log, cutoffs="leave_one_out")))


def test_a_task_that_would_overwrite_a_column_is_refused():
    kept = {"top_k": 1, "embeddings": False, "batch_size": 1, "rows_per_file": 1}
    for tasks in (("customer_id",), ("item", "embedding"), ("item", "item_scores")):
        with pytest.raises(ValueError, match=f"two columns '{tasks[-1]}'.*another name"):
            ScoringJob("model", "data", "scores", tasks=tasks, **kept)
