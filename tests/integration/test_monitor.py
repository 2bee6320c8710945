# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Monitoring of predictions: drift between two runs and calibration are those of a plain count."""

import importlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from faults import expected


@pytest.fixture
def monitor(command, tmp_path):
    """A function that runs the script and gives what it printed and its report."""

    def run(*options):
        said = command("run_monitor", *options, "--report_file", tmp_path / "report.json")
        return said, json.loads((tmp_path / "report.json").read_text())

    return run


def write(folder, rows, task="items"):
    """Predictions in two files: customer, labels, scores."""
    folder.mkdir()
    frame = pd.DataFrame(rows, columns=["customer_id", task, f"{task}_scores"])
    frame[: len(frame) // 2].to_parquet(folder / "customers-0.parquet")
    frame[len(frame) // 2 :].to_parquet(folder / "customers-1.parquet")
    return folder


def test_drift_is_that_of_a_plain_count(monitor, tmp_path):
    old = write(tmp_path / "old", [("a", ["x", "y"], [0.6, 0.2]), ("b", ["x", "y"], [0.4, 0.3]), ("c", ["y"], [0.9])])
    new = write(
        tmp_path / "new",
        [("a", ["y", "x"], [0.5, 0.4]), ("b", ["x", "y"], [0.5, 0.3]), ("d", ["z"], [0.9]), ("e", ["z"], [0.9])],
    )
    text, report = monitor("--predictions", new, "--before", old)
    assert {name: report["drift"][name] for name in ("customers", "new", "gone")} == {
        "customers": 2,
        "new": 2,
        "gone": 1,
    }
    expected = {"moved": 0.5, "first_score": 0.5, "first_score_before": 0.5, "distance": 0.5}
    assert report["drift"]["items"] == pytest.approx(expected) and "items  50.00%" in text
    assert monitor("--predictions", new, "--before", new)[1]["drift"]["items"]["distance"] == 0


def test_calibration_is_that_of_a_plain_count(monitor, prepared, event_log, tmp_path):
    since = "2017-11-01"
    rows, expected = [], []
    generator = np.random.default_rng(0)
    for who in sorted(event_log["who"].unique()):
        labels = generator.choice([f"item {k:02}" for k in range(24)], 5, replace=False).tolist()
        scores = np.sort(generator.random(5))[::-1].round(3).tolist()
        rows.append((who, labels, scores))
        later = event_log[(event_log["who"] == who) & (event_log["when"] >= since) & (event_log["action"] == "buy")]
        if len(later):
            visit = later[later["basket"] == later.sort_values("when")["basket"].iloc[0]]["item"]
            expected += [(score, (visit == label).mean()) for label, score in zip(labels, scores, strict=True)]
    folder = write(tmp_path / "scores", rows)
    text, report = monitor("--predictions", folder, "--data", prepared, "--since", since)
    expected = np.array(expected)
    assert sum(each["labels"] for each in report["calibration"]["items"]) == len(expected) > 50
    for each in report["calibration"]["items"]:
        inside = expected[(expected[:, 0] >= each["from"]) & (expected[:, 0] < each["to"])]
        assert each["labels"] == len(inside)
        assert (each["predicted"], each["happened"]) == pytest.approx(inside.mean(axis=0))
    assert any(each["happened"] > 0 for each in report["calibration"]["items"]) and "0.5 to 1" in text


def test_what_cannot_be_compared_is_refused(monitor, capsys, prepared, tmp_path):
    one, other = write(tmp_path / "one", [("a", ["x"], [0.5])] * 2), write(tmp_path / "two", [("b", ["x"], [0.5])] * 2)
    for options, message in (
        (["--predictions", one], "Give --before, --data, or both"),
        (["--predictions", one, "--data", prepared], "belong together"),
        (["--predictions", one, "--before", other], "no customer in common"),
        (["--predictions", prepared, "--before", one], "holds no predictions with scores"),
        (["--predictions", one, "--data", prepared, "--since", "2018-05-01"], "no target event from 2018-05-01"),
    ):
        with pytest.raises(SystemExit) as refused:
            monitor(*options)
        assert message in f"{refused.value.code} {capsys.readouterr().err}"
        assert not (tmp_path / "report.json").exists()


def spoil(folder, change):
    """Rewrites the second file of predictions."""
    path = sorted(folder.glob("*.parquet"))[1]
    change(pd.read_parquet(path)).to_parquet(path)


def with_scores(*scores):
    return lambda rows: rows.assign(items_scores=[list(scores)] * len(rows))


SPOILED = {
    "NaN": lambda folder: spoil(folder, with_scores(0.5, float("nan"))),
    "infinite": lambda folder: spoil(folder, with_scores(float("inf"), 0.1)),
    "null": lambda folder: spoil(folder, lambda rows: rows.assign(items_scores=None)),
    "a file is missing": lambda folder: sorted(folder.glob("*.parquet"))[1].unlink(),
    "a row is missing": lambda folder: spoil(folder, lambda rows: rows[1:]),
    "no identity": lambda folder: (folder / "_predictions.json").write_text("{"),
}


@pytest.fixture
def scores(save, prepared, tmp_path, monkeypatch):
    """Predictions of run_predict.py in three files or more."""
    script = importlib.import_module("modeling_mcm.commands.predict")
    options = {"model": save(), "data": str(prepared), "output_dir": str(tmp_path / "scores"), "rows_per_file": 10}
    script.run(script.PredictionOptions(**options), script.EngineOptions())
    return tmp_path / "scores"


@pytest.mark.parametrize(("change", "message"), expected("Predictions that are watched", SPOILED))
def test_predictions_that_are_not_whole_are_refused(monitor, scores, prepared, tmp_path, change, message):
    whole = shutil.copytree(scores, tmp_path / "whole")
    assert monitor("--predictions", scores, "--before", whole)[1]["drift"]["items"]["distance"] == 0
    (tmp_path / "report.json").unlink()
    change(scores)
    for options in (
        ["--predictions", scores, "--before", whole],
        ["--predictions", whole, "--before", scores],
        ["--predictions", scores, "--data", prepared, "--since", "2018-01-05"],
    ):
        with pytest.raises(SystemExit, match=message):
            monitor(*options)
        assert not (tmp_path / "report.json").exists()


def test_events_that_the_predictions_knew_are_no_proof_of_them(monitor, scores, prepared, event_log):
    latest = event_log["when"].max()
    for since in ("2017-03-01", str(latest)):
        with pytest.raises(SystemExit, match=f"know events until {latest}: what they are compared with must be later"):
            monitor("--predictions", scores, "--data", prepared, "--since", since)
    after = str(latest + pd.Timedelta(seconds=1))
    with pytest.raises(SystemExit, match="holds no target event from"):  # a moment that is late enough
        monitor("--predictions", scores, "--data", prepared, "--since", after)
    with pytest.raises(SystemExit, match="--since is 'last week'; give a moment"):
        monitor("--predictions", scores, "--data", prepared, "--since", "last week")
