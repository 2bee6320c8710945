# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MLflow keeps a checkpoint as a model, loads it and serves it, and is told of a training."""

import importlib
import json
import os
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

import mlflow
import pytest
from choices import pretraining_options
from forked_runs import free_port
from in_process import ROOT, call

CHECKPOINT = ROOT / "tests" / "fixtures" / "mcm-dummy"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store of MLflow in a folder."""
    uri = (tmp_path / "mlflow").as_uri()
    for name, value in {"TRACKING_URI": uri, "ALLOW_FILE_STORE": "true", "DISABLE_TELEMETRY": "true"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    mlflow.set_tracking_uri(uri)
    yield tmp_path / "mlflow"
    mlflow.set_tracking_uri(None)


def wait_for(url, server, data=None, seconds=60):
    request = Request(url, data, {"Content-Type": "application/json"})
    for _ in range(10 * seconds):
        assert server.poll() is None, "the server ended"
        try:
            with urlopen(request) as answer:
                return answer.read()
        except URLError:
            time.sleep(0.1)
    raise TimeoutError(url)


def test_a_checkpoint_is_logged_registered_loaded_and_served(store, capsys):
    importlib.import_module("10_mlflow").main(str(CHECKPOINT))
    assert "CAT FOOD" in capsys.readouterr().out
    assert not [path for path in store.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    (example,) = store.rglob("serving_input_example.json")
    model = mlflow.pyfunc.load_model("models:/customers/1")
    events = model.input_example
    wanted = model.predict(events).to_dict("records")
    assert len(wanted) == 2 * 3 and {row["customer"] for row in wanted} == {"7"}
    port = free_port()
    words = ["models", "serve", "-m", "models:/customers/1", "--env-manager", "local", "-p", port]
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, start_new_session=True) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", server)
            answer = wait_for(f"http://127.0.0.1:{port}/invocations", server, example.read_bytes())
        finally:
            os.killpg(server.pid, 15)
    served = json.loads(answer)["predictions"]
    assert [row.pop("score") for row in served] == pytest.approx([row.pop("score") for row in wanted], rel=1e-5)
    assert [row.pop("chance") for row in served] == pytest.approx([row.pop("chance") for row in wanted], rel=1e-5)
    assert served == wanted


def test_a_training_tells_mlflow_its_metrics(store, prepared, tmp_path):
    options = {"report_to": "mlflow", "max_steps": 4, "logging_steps": 2, "eval_strategy": "no"}
    call("run_pretrain", *pretraining_options(prepared, tmp_path / "run", **options))
    (run,) = mlflow.search_runs(output_format="list", search_all_experiments=True)
    steps = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [each.step for each in steps] == [2, 4] and all(each.value > 0 for each in steps)
    assert run.data.params["max_steps"] == "4"
