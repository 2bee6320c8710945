# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring everyone: what is written, from prepared data and from a raw log, through kills and in several processes."""

import re
import shutil
import time
from functools import partial

import forked_runs
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from corner_shop import SCHEMA, make_profile
from folders import content
from in_process import call

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.data import NO_CUTOFFS, PreparedManifest, load_prepared, read_schema
from modeling_mcm.preparation import prepare
from modeling_mcm.scoring import ScoringJob, score_on_spark

SMALL = ["--rows_per_file", "5", "--batch_size", "3"]


def predict_slowly(options):
    """The script, each file a while after the one before, so that there is time to kill it."""
    write = pq.write_table
    pq.write_table = lambda *args, **options: (time.sleep(0.2), write(*args, **options))
    call("run_predict", *options)


@pytest.fixture
def predict(command):
    return partial(command, "run_predict")


@pytest.fixture
def log_file(event_log, tmp_path):
    event_log.to_parquet(tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


@pytest.fixture
def profile_file(event_log, tmp_path):
    make_profile(event_log).to_parquet(tmp_path / "profile.parquet")
    return tmp_path / "profile.parquet"


def test_columns_can_be_chosen(predict, save, prepared, tmp_path):
    options = ["--model", save(extended=True), "--data", prepared]
    predict(*options, "--output_dir", tmp_path / "a", "--top_k", 0)
    predict(*options, "--output_dir", tmp_path / "b", "--embeddings", "false", "--tasks", "aisle", "--top_k", 99)
    only, ranked = pd.read_parquet(tmp_path / "a"), pd.read_parquet(tmp_path / "b")
    assert list(only.columns) == ["customer_id", "embedding"] and only["embedding"].map(len).eq(16).all()
    assert list(ranked.columns) == ["customer_id", "aisle", "aisle_scores"]
    np.testing.assert_allclose(ranked["aisle_scores"].map(sum), 1, atol=1e-5)  # all four labels


def test_data_prepared_for_a_checkpoint_are_encoded_as_it_encodes(
    command, save, extractor, event_log, profile_file, tmp_path
):
    one = event_log[event_log["who"] == "c07"].tail(3)
    one = pd.concat([one, one.tail(1).assign(item="item of tomorrow")])
    one.to_parquet(tmp_path / "today.parquet")
    words = ["--model", save(), "--events", tmp_path / "today.parquet", "--profile", profile_file]
    said = command("modeling_mcm.commands.prepare", *words, "--output_dir", tmp_path / "data")
    assert re.search(r"Unknown +items 1\n", said)
    manifest = PreparedManifest.load(tmp_path / "data")
    assert manifest.counts["customers"] == 1 and manifest.event_schema.cutoffs == NO_CUTOFFS
    assert not {"first", "last"} & set(manifest.counts)
    (row,) = load_prepared(tmp_path / "data")
    encoded = extractor.encode({"events": one, "profile": {"age": "old"}})
    for name, values in encoded.items():
        if name.startswith("feature_"):
            assert list(row[name]) == list(values), name
    words += ["--output_dir", tmp_path / "data", "--overwrite"]
    for more in (["--cutoffs", "2018-01-01", "2018-01-02"], ["--model", tmp_path / "nowhere"]):
        said = command("modeling_mcm.commands.prepare", *words, *more, fails="prepare: ")
        assert "No event is between" in said or "nowhere is no folder: give a checkpoint" in said


def test_a_log_prepared_for_another_checkpoint_is_not_reused(extractor, log_file, profile_file, tmp_path):
    options = {"profile": profile_file, "feature_extractor": extractor, "reuse": True}
    first = prepare(log_file, read_schema(extractor), tmp_path / "data", **options)
    assert prepare(log_file, read_schema(extractor), tmp_path / "data", **options) == first
    extractor.vocabularies["items"] = extractor.vocabularies["items"][::-1]
    with pytest.raises(FileExistsError, match="another options made it"):
        prepare(log_file, read_schema(extractor), tmp_path / "data", **options)


def test_a_schema_of_the_log_sets_its_rules(predict, save, event_log, profile_file, tmp_path):
    log = pd.concat([event_log, event_log.head(1).assign(who=None)])
    log.to_parquet(tmp_path / "log.parquet")
    options = ["--model", save(), "--events", tmp_path / "log.parquet", "--profile", profile_file]
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
    while len(list(killed.glob("*.parquet"))) < 3 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    done = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.parquet")}
    assert 3 <= len(done) < 7
    first = killed / sorted(done)[0]
    first.write_bytes(first.read_bytes()[:-7])  # a file that a disk has damaged since
    (killed / ".customers-00006-of-00007.parquet.partial").write_bytes(b"half")
    shutil.copy(killed / sorted(done)[1], killed / sorted(done)[2])  # as many rows, of other customers
    predict(*options, "--output_dir", killed)
    assert content(killed) == content(tmp_path / "whole")
    again = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.parquet")}
    assert [name for name in sorted(done) if again[name] == done[name]] == [sorted(done)[1], *sorted(done)[3:]]


def test_two_processes_write_what_one_does(predict, save, prepared, tmp_path):
    options = ["--model", save(extended=True), "--data", prepared, *SMALL]
    predict(*options, "--output_dir", tmp_path / "one")
    said = forked_runs.run_two([*options, "--output_dir", tmp_path / "two"], tmp_path / "log", "run_predict")
    assert "".join(said).count("34 customers") == 1
    one, two = (content(tmp_path / name) for name in ("one", "two"))
    assert list(one) == list(two)
    for name in (name for name in one if one[name] != two[name]):  # the last bit of a score is a process's own
        first, second = (pd.read_parquet(tmp_path / folder / name) for folder in ("one", "two"))
        assert list(first) == list(second)
        for column in first:
            left, right = (np.stack(list(of_file[column])) for of_file in (first, second))
            same = np.allclose(left, right, rtol=1e-5, atol=1e-7) if left.dtype.kind == "f" else (left == right).all()
            assert same, column


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--events", "log.parquet"], "Give --data, a prepared data set, or --events"),
        (["--profile", "ages.parquet"], "--profile and --schema belong to --events"),
        (["--top_k", "0", "--embeddings", "false"], "leaves nothing to write"),
        (["--top_k", "0", "--tasks", "items"], "--top_k 0 ranks nothing"),
        (["--batch_size", "0"], "--batch_size and --rows_per_file at least 1"),
        (["--spark_master", "local[2]"], "--spark_master and --spark_config are for --engine spark"),
        (["--engine", "spark", "--spark_config", "spark.cores"], "has 'spark.cores'; write KEY=VALUE"),
        (["--tasks", "brand"], "No tasks ['brand']; the checkpoint has items, aisle, type"),
    ],
)
def test_options_that_do_not_fit_are_refused(predict, save, prepared, tmp_path, options, message):
    predict("--model", save(), "--data", prepared, "--output_dir", tmp_path / "out", *options, fails=message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", ["._histories.123.partial/", "._predictions.json.partial", "_histories/"])
def test_leftovers_of_a_killed_run_are_cleaned_up(predict, save, log_file, profile_file, tmp_path, left):
    options = ["--model", save(), "--events", log_file, "--profile", profile_file]
    path = tmp_path / "out" / left
    (path if left.endswith("/") else path.parent).mkdir(parents=True)
    if not left.endswith("/"):
        path.write_text("{")
    assert "34 customers" in predict(*options, "--output_dir", tmp_path / "out")
    assert sorted(each.suffix for each in (tmp_path / "out").iterdir()) == [".json", ".parquet"]


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
    assert "34 customers, 2 files written" in predict(*options, out, "--engine", "spark")
    assert content(out) == content(tmp_path / "one") and times == [path.stat().st_mtime_ns for path in others]


@pytest.mark.slow
def test_spark_reads_a_raw_log_and_names_the_error_of_a_worker(spark, predict, save, log_file, profile_file, tmp_path):
    model = save(extended=True)
    options = ["--model", model, "--events", log_file, "--profile", profile_file, "--output_dir"]
    predict(*options, tmp_path / "one")
    predict(*options, tmp_path / "spark", "--engine", "spark")
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / name) for name in ("spark", "one")))
    job = ScoringJob(model, str(tmp_path / "none"), str(tmp_path / "three"), (), 0, True, 3, 5)
    with pytest.raises(OSError, match="A worker of Spark failed: ValueError: A worker finds another model at"):
        score_on_spark(spark, job, "of another model", job.parts(8))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_not_written(predict, save, prepared, tmp_path, monkeypatch, number):
    folder = save(extended=True)
    make = MCMForMultiTaskRecommendation.forward

    def forward(model, **inputs):
        outputs = make(model, **inputs)
        outputs.logits["items"][-1, 5] = number
        return outputs

    monkeypatch.setattr(MCMForMultiTaskRecommendation, "forward", forward)
    options = ["--model", folder, "--data", prepared, "--output_dir", tmp_path / "scores", *SMALL]
    said = predict(*options, fails="gives NaN or infinite numbers for 1 of 3 customers, the first 'c")
    assert said.startswith("run_predict: ") and not list((tmp_path / "scores").glob("*.parquet"))
