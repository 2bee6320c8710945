# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The ablation from a prepared data set to its tables: every model trains for a few steps, on one task.

Training starts in processes that have imported everything; run_pretrain.py from a shell is tested elsewhere.
"""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import forked_runs
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TASK, NDCG = "aisle", "next_visit_ndcg@10"  # of few labels: the most popular are hard to tell from the best
MODELS = {"BERT4Rec": "bert4rec-aisle", "MCM_Single": "mcm-single-aisle", "MCM_MTL": "mcm-mtl"}
MODELS |= {"MCM_final": "mcm-final", "ours": "mcm-tiny"}


@pytest.fixture(scope="module")
def ablation(prepared, tmp_path_factory):
    """A function that runs the ablation, the folder of its runs, and that of its tables."""
    folder = tmp_path_factory.mktemp("ablation")
    words = ["--data", prepared, "--tasks", TASK, "--seeds", 3, "--max_steps", 4]
    words += ["--output_dir", folder / "runs", "--results", folder / "results"]

    def train(command, check):
        assert check and command[:2] == [sys.executable, str(ROOT / "training" / "run_pretrain.py")]
        forked_runs.pretrain(command[2:], folder / "log")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_ablation.py", *map(str, words)])
        module = importlib.import_module("run_ablation")
        with patch.context() as starting:
            starting.setattr(importlib.import_module("measuring"), "subprocess", SimpleNamespace(run=train))
            module.main()
        yield module.main, folder / "runs", folder / "results"


def rows(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["table"][1:]


def numbers(cell):
    """Numbers of a cell such as `0.1 ±0.2` or `+10.0% [+1.0%, +19.0%]`."""
    return [float(number.rstrip("%")) for number in re.findall(r"[-+]?\d+\.\d+%?", cell)]


def test_the_tables_hold_what_the_runs_left(ablation):
    _, runs, results = ablation
    values = {row[1]: row[2:] for row in rows(results, "all_methods")}
    assert list(values)[-5:] == list(MODELS) and "most_popular" in values
    of_method, costs = {}, {row[0]: row[1:] for row in rows(results, "training_cost")}
    for name, folder in MODELS.items():
        run = runs / f"{folder}-seed3"
        frame = pq.read_table(run / "values-test.parquet").to_pandas()
        chosen = frame[(frame["metric"] == NDCG) & (frame["task"] == TASK)]
        assert set(chosen["method"]) == {name}
        of_method[name] = chosen.set_index("customer_id")["value"]
        assert (
            numbers(values[name][0])[0] == float(values[name][2]) == pytest.approx(of_method[name].mean(), abs=5.1e-4)
        )
        facts = json.loads((run / "pretraining.json").read_text())
        assert facts["seed"] == 3 and facts["seconds"] > 0 and facts["targets"] > 0
        cost = costs[f"{name} ({TASK})" if name in ("BERT4Rec", "MCM_Single") else name]
        assert [float(cell.replace(",", "")) for cell in cost[1:3]] == [facts["steps"], facts["targets"]]
    over = {row[1]: row[2:] for row in rows(results, "ours_over") if row[0] == "next visit NDCG@10"}
    gain = 100 * (of_method["ours"].mean() / of_method["BERT4Rec"].mean() - 1)
    assert numbers(over["BERT4Rec"][0])[0] == numbers(over["BERT4Rec"][1])[0] == pytest.approx(gain, abs=0.051)
    assert "ours" not in over


def test_models_are_what_their_names_say(ablation):
    configs = {
        name: json.loads((ablation[1] / f"{folder}-seed3" / "config.json").read_text())
        for name, folder in MODELS.items()
    }
    assert configs["BERT4Rec"]["input_features"] == configs["BERT4Rec"]["tasks"] == [TASK]
    assert configs["MCM_Single"]["tasks"] == [TASK] and configs["MCM_Single"]["input_features"] is None
    for name, augmentation in [("MCM_MTL", "last_prefix"), ("MCM_final", "random_prefix"), ("ours", "all_prefixes")]:
        assert configs[name]["tasks"] == ["items", "aisle", "type"]
        assert configs[name]["augmentation"] == augmentation


def test_a_second_call_trains_nothing_and_writes_the_same(ablation, monkeypatch):
    run, folder, results = ablation
    before = {path.name: path.read_text() for path in results.iterdir()}
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("something is trained again"))
    shutil.rmtree(results)
    run()
    assert {path.name: path.read_text() for path in results.iterdir()} == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_run_with_other_options_is_trained_again(ablation, monkeypatch, tmp_path):
    run, folder, _ = ablation
    trained = folder / "mcm-tiny-seed3"
    shutil.copytree(trained, tmp_path / "kept")
    record = trained / "trained.json"
    record.write_text(record.read_text().replace('"max_steps": 4', '"max_steps": 5'))
    monkeypatch.setattr("subprocess.run", lambda command, **kwargs: pytest.fail(" ".join(command)))
    with pytest.raises(pytest.fail.Exception, match=r"run_pretrain.py .*mcm-tiny-seed3 --max_steps 4 --seed 3"):
        run()
    assert not trained.exists()  # a training would refuse a folder of another run
    shutil.copytree(tmp_path / "kept", trained)
