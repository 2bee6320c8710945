# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring everyone: what is written, from prepared data and from a raw log, through kills and in several processes."""

import importlib
import re
import shutil
import time
from functools import partial

import forked_runs
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from choices import STATE
from corner_shop import SCHEMA
from fitted import fill_forecaster
from folders import content, cut, flipped
from in_process import call
from transformers import pipeline

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.data import NO_CUTOFFS, PreparedData, read_schema
from modeling_mcm.preparation import prepare
from modeling_mcm.scoring import ScoringJob, score_on_spark, scorer

SMALL = ["--rows_per_file", "5", "--batch_size", "3"]


def predict_slowly(options):
    """The script, each file a while after the one before, so that there is time to kill it."""
    write = scorer.write_sealed
    scorer.write_sealed = lambda *args: (time.sleep(0.2), write(*args))
    call("run_predict", *options)


@pytest.fixture
def predict(command):
    return partial(command, "run_predict")


@pytest.fixture
def log_options(raw):
    return ["--events", raw / "events.parquet", "--profile", raw / "profile.parquet"]


def test_columns_can_be_chosen(predict, save, prepared, tmp_path):
    options = ["--model", save(extended=True), "--data", prepared]
    predict(*options, "--output_dir", tmp_path / "a", "--top_k", 0)
    predict(*options, "--output_dir", tmp_path / "b", "--embeddings", "false", "--tasks", "aisle", "--top_k", 99)
    only, ranked = pd.read_parquet(tmp_path / "a"), pd.read_parquet(tmp_path / "b")
    assert list(only.columns) == ["customer_id", "embedding"] and only["embedding"].map(len).eq(16).all()
    assert list(ranked.columns) == ["customer_id", "aisle", "aisle_scores"]
    np.testing.assert_allclose(ranked["aisle_scores"].map(sum), 1, atol=1e-5)  # all four labels


def test_data_prepared_for_a_checkpoint_are_encoded_as_it_encodes(command, save, extractor, event_log, raw, tmp_path):
    one = event_log[event_log["who"] == "c07"].tail(3)
    one = pd.concat([one, one.tail(1).assign(item="item of tomorrow")])
    one.to_parquet(tmp_path / "today.parquet")
    words = ["--model", save(), "--events", tmp_path / "today.parquet", "--profile", raw / "profile.parquet"]
    said = command("modeling_mcm.commands.prepare", *words, "--output_dir", tmp_path / "data")
    assert re.search(r"Unknown +items 1\n", said)
    data = PreparedData(tmp_path / "data")
    assert data.manifest.counts["customers"] == 1 and data.schema.cutoffs == NO_CUTOFFS
    (row,) = data.rows
    assert list(row["feature_items"]) == extractor.encode({"events": one})["feature_items"].tolist()
    words += ["--output_dir", tmp_path / "data", "--overwrite"]
    for more in (["--cutoffs", "2018-01-01", "2018-01-02"], ["--model", tmp_path / "nowhere"]):
        said = command("modeling_mcm.commands.prepare", *words, *more, fails="prepare: ")
        assert "No event is between" in said or "nowhere is no folder: give a checkpoint" in said


def test_the_cutoffs_of_a_schema_can_be_moved(command, log_options, tmp_path):
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    words = [*log_options, "--schema", tmp_path / "schema.yaml", "--output_dir", tmp_path / "data"]
    command("modeling_mcm.commands.prepare", *words, "--cutoffs", "2017-09-01", "2017-09-15")
    cutoffs = PreparedData(tmp_path / "data").schema.cutoffs
    assert [f"{day:%m-%d}" for day in cutoffs.values()] == ["09-01", "09-15"]


def test_a_log_prepared_for_another_checkpoint_is_not_reused(extractor, raw, tmp_path):
    options = {"profile": raw / "profile.parquet", "feature_extractor": extractor, "reuse": True}
    first = prepare(raw / "events.parquet", read_schema(extractor), tmp_path / "data", **options)
    assert prepare(raw / "events.parquet", read_schema(extractor), tmp_path / "data", **options) == first
    extractor.vocabularies["items"] = extractor.vocabularies["items"][::-1]
    with pytest.raises(FileExistsError, match="another options made it"):
        prepare(raw / "events.parquet", read_schema(extractor), tmp_path / "data", **options)


def test_a_schema_of_the_log_sets_its_rules(predict, save, event_log, raw, tmp_path):
    log = pd.concat([event_log, event_log.head(1).assign(who=None)])
    log.to_parquet(tmp_path / "log.parquet")
    options = ["--model", save(), "--events", tmp_path / "log.parquet", "--profile", raw / "profile.parquet"]
    options += ["--output_dir", tmp_path / "out"]
    predict(*options, fails="Column 'who' is null in 1 of")
    options += ["--schema", tmp_path / "schema.yaml"]
    for changes, message in (
        ({"end_of_visit": None}, "`end_of_visit` is None in the schema and 'end_of_visit' in the checkpoint"),
        ({"target_token_types": ["click"]}, "`target_token_types` is ('click',) in the schema"),
        ({"time_zone": "Europe/Rome"}, "`time_zone` is 'Europe/Rome' in the schema"),
    ):
        (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA | {"on_null": "drop"} | changes))
        predict(*options, fails=message)
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA | {"on_null": "drop"}))
    assert "34 customers" in predict(*options)


def test_a_killed_run_resumes_to_the_same_bytes(predict, save, prepared, tmp_path):
    options = ["--model", save(extended=True), "--data", str(prepared), *SMALL]
    predict(*options, "--output_dir", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = forked_runs.CONTEXT.Process(target=predict_slowly, args=([*options, "--output_dir", str(killed)],))
    process.start()
    forked_runs.wait_for(lambda: len(list(killed.glob("*.parquet"))) >= 5, process)
    predict(*options, "--output_dir", killed, fails=f"Another run writes into {killed}: wait for its end")
    process.kill()
    process.join()
    done = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.parquet")}
    assert 5 <= len(done) < 7
    damaged, edited, copied, other = (killed / name for name in sorted(done)[:4])  # since then
    flipped(damaged.name)(killed)
    rows = pq.read_table(edited)
    pq.write_table(rows.set_column(0, "customer_id", rows["customer_id"].combine_chunks()[::-1]), edited)
    shutil.copy(other, copied)
    cut(other.name, -7)(killed)
    (killed / ".customers-00006-of-00007.parquet.0123456789ab.partial").mkdir()
    predict(*options, "--output_dir", killed)
    assert content(killed) == content(tmp_path / "whole")
    again = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.parquet")}
    assert [name for name in sorted(done) if again[name] == done[name]] == sorted(done)[4:]


def test_two_processes_write_what_one_does(predict, save, prepared, tmp_path):
    options = ["--model", save(extended=True), "--data", prepared, *SMALL]
    predict(*options, "--output_dir", tmp_path / "one")
    said = forked_runs.run_two([*options, "--output_dir", tmp_path / "two"], tmp_path / "log", "run_predict")
    assert "".join(said).count("34 customers") == 1
    assert list(content(tmp_path / "one")) == list(content(tmp_path / "two"))
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / name) for name in ("one", "two")), rtol=1e-5)


def test_at_most_a_batch_is_scored_at_once(predict, save, prepared, tmp_path, monkeypatch):
    forward, seen = MCMForMultiTaskRecommendation.forward, []

    def watched(self, *args, **inputs):
        outputs = forward(self, *args, **inputs)
        seen.append({task: tuple(scores.shape) for task, scores in outputs.logits.items()})
        return outputs

    monkeypatch.setattr(MCMForMultiTaskRecommendation, "forward", watched)
    predict("--model", save(extended=True), "--data", prepared, "--output_dir", tmp_path / "out", *SMALL)
    assert sum(shapes["items"][0] for shapes in seen) == 34
    assert max(shapes["items"][0] for shapes in seen) == 3


def test_leftovers_of_a_killed_run_are_cleaned_up(predict, save, log_options, tmp_path):
    out = tmp_path / "out"
    for folder in ("._histories.0123456789ab.partial", "_histories", "._predictions.json.0123456789ab.partial"):
        (out / folder).mkdir(parents=True)
    options = ["--model", save(), *log_options]
    assert "34 customers" in predict(*options, "--output_dir", out)
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".parquet"]


def test_other_folders_are_refused(predict, save, prepared, extractor, tmp_path):
    options = ["--model", save(), "--data", prepared, "--output_dir", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    predict(*options, fails="is not empty and holds no predictions")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    (tmp_path / "fourth").mkdir()
    (tmp_path / "fourth" / "_predictions.json").write_text("[]")
    predict(*options[:-1], tmp_path / "fourth", fails="holds predictions of another customers, data, model, options")
    predict(*options[:-1], tmp_path / "other")
    predict(*options[:-1], tmp_path / "other", "--top_k", 3, fails="holds predictions of another options")
    save(readout_bias=True)  # another checkpoint in the same place
    predict(*options[:-1], tmp_path / "other", fails="holds predictions of another model")
    extractor.vocabularies["items"] = extractor.vocabularies["items"][::-1]
    extractor.save_pretrained(options[1])
    predict(*options[:-1], tmp_path / "third", fails="The vocabularies of the data set")


@pytest.mark.slow
def test_spark_writes_the_same_bytes_and_resumes(spark, predict, save, prepared, tmp_path):
    options = ["--model", save(extended=True), "--data", prepared, *SMALL, "--output_dir"]
    predict(*options, tmp_path / "one")
    out = tmp_path / "spark"
    assert "34 customers, 7 files written" in predict(*options, out, "--engine", "spark")
    assert content(out) == content(tmp_path / "one")
    first, second, *others = sorted(out.glob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-7])
    times = [path.stat().st_mtime_ns for path in others]
    assert "34 customers, 2 files written, 5 were there" in predict(*options, out, "--engine", "spark")
    assert content(out) == content(tmp_path / "one") and times == [path.stat().st_mtime_ns for path in others]


@pytest.mark.slow
def test_spark_reads_a_raw_log_and_names_the_error_of_a_worker(spark, predict, save, log_options, tmp_path):
    model = save(extended=True)
    options = ["--model", model, *log_options, "--output_dir"]
    predict(*options, tmp_path / "one")
    predict(*options, tmp_path / "spark", "--engine", "spark")
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / name) for name in ("spark", "one")))
    job = ScoringJob(model, str(tmp_path / "none"), str(tmp_path / "three"), (), 0, True, 3, 5)
    with pytest.raises(OSError, match="Spark failed: ValueError: A worker finds another model at"):
        score_on_spark(spark, job, "of another model", job.parts(8))


def test_scores_that_are_not_finite_are_not_written(predict, save, prepared, tmp_path, monkeypatch):
    folder = save(extended=True)
    make = MCMForMultiTaskRecommendation.forward

    def forward(model, **inputs):
        outputs = make(model, **inputs)
        outputs.logits["items"][-1, 5] = torch.inf
        return outputs

    monkeypatch.setattr(MCMForMultiTaskRecommendation, "forward", forward)
    options = ["--model", folder, "--data", prepared, "--output_dir", tmp_path / "scores", *SMALL]
    said = predict(*options, fails="gives NaN or infinite numbers for 2 of 5 customers, the first 'c")
    assert said.startswith("run_predict: ") and not list((tmp_path / "scores").glob("*.parquet"))


# Forecasts


@pytest.fixture
def checkpoint(tiny_model, extractor, tmp_path):
    """Folder of a checkpoint whose forecasts are trained."""
    for part in (fill_forecaster(tiny_model(extended=True, **STATE)), extractor):
        part.save_pretrained(tmp_path / "forecasts")
    return tmp_path / "forecasts"


def test_forecasts_are_columns_where_they_are_trained_and_asked_for(checkpoint, predict, save, prepared, tmp_path):
    without = save(extended=True, **STATE | {"forecast_window": 0.0})
    with pytest.raises(ValueError, match="no trained forecasts"):
        pipeline("customer-forecast", model=without)
    for folder, choice in ((without, "true"), (checkpoint, "false")):
        out = tmp_path / choice
        predict("--model", folder, "--data", prepared, "--output_dir", out, "--tasks", "aisle", "--forecasts", choice)
        assert list(pd.read_parquet(out)) == ["customer_id", "embedding", "aisle", "aisle_scores"]


def test_the_example_lists_who_may_not_come_again(checkpoint, predict, prepared, tmp_path, capsys):
    as_of = ["--as_of", "2017-12-30"]
    predict("--model", checkpoint, "--data", prepared, "--output_dir", tmp_path / "scores", *as_of)
    scores = pd.read_parquet(tmp_path / "scores")
    importlib.import_module("4_stored_states").main(str(tmp_path / "scores"), str(tmp_path / "churn.csv"))
    said, listed = capsys.readouterr().out, pd.read_csv(tmp_path / "churn.csv")
    assert (listed["visit_probability_30d"] < 0.5).all()
    assert len(listed) == min(50, (scores["visit_probability_30d"] < 0.5).sum())
    assert said.count(" is like ") == 3
