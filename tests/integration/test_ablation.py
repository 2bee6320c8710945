# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The ablation from a prepared data set to its page: every model trains for a second, on one task.

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
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from in_process import call

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TASK = "aisle"  # of few labels, so that the most popular ones are hard to tell from the best
MODELS = {"BERT4Rec": "bert4rec-aisle", "MCM_Single": "mcm-single-aisle", "MCM_MTL": "mcm-mtl"}
MODELS |= {"MCM_final": "mcm-final", "ours": "mcm-tiny"}


@pytest.fixture(scope="module")
def ablation(prepared, tmp_path_factory):
    """A function that runs the ablation; the folder of its runs; its page."""
    folder = tmp_path_factory.mktemp("ablation")
    page = folder / "docs" / "results.md"
    words = ["--data", prepared, "--tasks", TASK, "--seeds", 3, "--max_seconds", 1]
    words += ["--output_dir", folder / "runs", "--report", page]

    def train(command, check):
        assert check and command[:2] == [sys.executable, str(ROOT / "training" / "run_pretrain.py")]
        forked_runs.pretrain(command[2:], folder / "log")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_ablation.py", *map(str, words)])
        module = importlib.import_module("run_ablation")
        with patch.context() as starting:
            starting.setattr(module, "subprocess", SimpleNamespace(run=train))
            module.main()
        yield module.main, folder / "runs", page


@pytest.fixture(scope="module")
def results(ablation):
    return json.loads((ablation[1] / "results.json").read_text())


def tables(page):
    """Rows of each table of a page, keyed by the first cell."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", page.read_text(), flags=re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]
    return [{cells[0]: cells[1:] for cells in [table[0], *table[2:]]} for table in rows]


def numbers(cell):
    """Numbers of a cell such as `0.1 ±0.2` or `+10.0% [+1.0%, +19.0%]`."""
    return [float(number.rstrip("%")) for number in re.findall(r"[-+]?\d+\.\d+%?", cell)]


def test_the_page_holds_the_numbers_of_the_json(ablation, results):
    values, *relative, costs = tables(ablation[2])
    assert list(values)[1:] == [*results["baselines"], *MODELS] and len(results["baselines"]) == 5
    assert results["saturated"] == [TASK] and "next visit HR@1" in values["method"]
    metrics = ["next_visit_ndcg@10", "next_event_ndcg@10", "next_visit_hr@1", "next_visit_ndcg@3"]
    for method, by_task in results["methods"].items():
        for metric, cell in zip(metrics, values[method], strict=False):
            found = by_task[TASK][metric]
            half = (found["high"] - found["low"]) / 2
            assert "±" in cell and numbers(cell) == pytest.approx([found["mean"], half], abs=5.1e-4)
    for metric, table in zip(metrics[:2], relative, strict=True):
        assert list(table)[1:] == [*results["baselines"], *list(MODELS)[:-1]]
        for method, by_metric in results["differences"].items():
            for key, cell in zip((TASK, "average"), table[method], strict=True):
                found = by_metric[metric][key]
                in_percent = [100 * found[side] for side in ("mean", "low", "high")]
                assert numbers(cell) == pytest.approx(in_percent, abs=0.051)
    for cost in results["costs"]:
        name = f"{cost['model']} ({cost['task']})" if cost["task"] else cost["model"]
        shown = [float(cell.replace(",", "")) for cell in costs[name]]
        kept = [cost[key] for key in ("steps", "targets", "parameters", "batch_size", "max_events", "learning_rate")]
        assert shown[1:] == pytest.approx(kept) and shown[0] == round(cost["seconds"])


def test_the_json_holds_what_the_runs_left(ablation, results):
    of_method = {}
    for name, folder in MODELS.items():
        run = ablation[1] / f"{folder}-seed3"
        frame = pq.read_table(run / "values-test.parquet").to_pandas()
        chosen = frame[(frame["metric"] == "next_visit_ndcg@10") & (frame["task"] == TASK)]
        of_method[name] = chosen.set_index("customer_id")["value"]
        assert set(chosen["method"]) == {name} and len(chosen) == results["cases"]
        found = results["methods"][name][TASK]["next_visit_ndcg@10"]
        assert found["mean"] == pytest.approx(of_method[name].mean()) == found["by_seed"]["3"]
        facts = json.loads((run / "pretraining.json").read_text())
        assert facts["seed"] == 3 and facts["seconds"] > 0 and facts["targets"] > 0 and facts["steps"] > 0
        (cost,) = [cost for cost in results["costs"] if cost["model"] == name]
        assert cost["steps"] == facts["steps"] and cost["targets"] == facts["targets"]
    gain = of_method["ours"].mean() / of_method["BERT4Rec"].mean() - 1
    assert results["differences"]["BERT4Rec"]["next_visit_ndcg@10"][TASK]["mean"] == pytest.approx(gain)


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


def test_pictures_are_written_and_shown(ablation):
    page = ablation[2]
    shown = re.findall(r"!\[.*\]\((.*)\)", page.read_text())
    assert shown == ["pictures/ablation_ndcg.png", "pictures/ablation_curves.png"]
    for picture in shown:
        assert (page.parent / picture).read_bytes()[:4] == b"\x89PNG"


def test_a_second_call_trains_nothing_and_writes_the_same(ablation, monkeypatch):
    run, folder, page = ablation
    before, weights = page.read_text(), {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("something is trained again"))
    page.unlink()
    run()
    assert page.read_text() == before
    unchanged = {path for path in weights if path.name != "results.json"}
    assert all(path.stat().st_mtime_ns == weights[path] for path in unchanged)


def test_evaluation_of_a_run_alone_writes_the_same_values(ablation, prepared, tmp_path):
    _, folder, _ = ablation
    words = ["--model", folder / "mcm-tiny-seed3", "--data", prepared, "--tasks", TASK]
    words += ["--baselines", "transitions", "--values_file", tmp_path / "values.parquet"]
    call("run_evaluate", *words)
    found = pq.read_table(tmp_path / "values.parquet")
    assert found.column_names == ["method", "task", "metric", "customer_id", "value"]
    kept = [pq.read_table(folder / name / "values-test.parquet") for name in ("baselines", "mcm-tiny-seed3")]
    for method, name, table in [("transitions", "transitions", kept[0]), ("MCM", "ours", kept[1])]:
        ours, theirs = found.filter(pc.field("method") == method), table.filter(pc.field("method") == name)
        assert len(ours) and ours.drop_columns("method").equals(theirs.drop_columns("method"))


def test_a_run_with_other_options_is_made_anew(ablation, monkeypatch, tmp_path):
    run, folder, _ = ablation
    trained = folder / "mcm-tiny-seed3"
    shutil.copytree(trained, tmp_path / "kept")
    record = trained / "trained.json"
    record.write_text(record.read_text().replace('"max_seconds": 1.0', '"max_seconds": 2.0'))
    monkeypatch.setattr("subprocess.run", lambda command, **kwargs: pytest.fail(" ".join(command)))
    with pytest.raises(pytest.fail.Exception, match=r"run_pretrain.py .*mcm-tiny-seed3 --max_seconds 1\.0 --seed 3"):
        run()
    assert not trained.exists()  # a training would refuse a folder of another run
    shutil.copytree(tmp_path / "kept", trained)
