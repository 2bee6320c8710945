# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The examples as a person runs them, on a small log. The others: 1 in test_docs, 2 in test_offers, 7 in
test_finetuning, 8 in test_hub, 9 in test_label_finetuning, 10 in test_stored_states."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from choices import TINY_OVERRIDES

from modeling_mcm import MCMForMultiTaskRecommendation

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: int(path.name.split("_")[0]))


def needs(*packages):
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed")


@pytest.fixture
def log_file(event_log, tmp_path):
    path = tmp_path / "log.parquet"
    event_log.to_parquet(path)
    return str(path)


def test_examples_are_numbered_and_short():
    assert [path.name.split("_")[0] for path in EXAMPLES] == [str(number + 1) for number in range(len(EXAMPLES))]
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path.name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_run_by_a_test(path):
    texts = [test.read_text(encoding="utf-8") for test in (ROOT / "tests").rglob("*.py")]
    assert any(re.search(rf'["/]{path.stem}(\.py)?"', text) for text in texts)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log/a.csv.gz"])
def test_your_own_log_goes_from_a_file_to_scores(form, event_log, tmp_path):
    from corner_shop import SCHEMA

    path = tmp_path / form
    path.parent.mkdir(exist_ok=True)
    event_log.to_parquet(path) if path.suffix == ".parquet" else event_log.to_csv(path, index=False)
    log_file = str(path.parent if path.parent.name == "log" else path)

    schema = tmp_path / "schema.yaml"
    schema.write_text(yaml.safe_dump({key: value for key, value in SCHEMA.items() if key != "profile"}))
    command = [sys.executable, "examples/3_your_own_log.py", log_file, str(schema), str(tmp_path / "run")]
    command += [
        "--max_steps",
        "3",
        "--config_overrides",
        *TINY_OVERRIDES,
        "--disable_tqdm",
        "true",
        "--use_cpu",
        "true",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"34 customers, {len(event_log)} events" in done.stdout
    for task in SCHEMA["tasks"]:
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{task}: "))
        assert line.count("%") == 3
    assert "items: item " in done.stdout


@needs("faiss")
def test_look_alikes_are_the_nearest_embeddings(save, log_file, tmp_path, capsys):
    module, folder = importlib.import_module("4_look_alikes"), save(extended=True)
    index_file = str(tmp_path / "customers.faiss")
    module.main(folder, log_file, index_file, "c07", "c21")
    said = capsys.readouterr().out.splitlines()
    names, vectors = module.embed(folder, pd.read_parquet(log_file))
    assert len(names) == 34 and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert module.faiss.read_index(index_file).ntotal == 34
    for line, name in zip(said, ["c07", "c21"], strict=True):
        cosines = vectors @ vectors[names.index(name)]
        order = [names[place] for place in np.argsort(-cosines) if names[place] != name][:5]
        assert line.startswith(f"{name} is like {order[0]} ") and line.count(",") == 4


@pytest.mark.parametrize("choices", [{}, {"extended": True}], ids=["events", "visits"])
@torch.no_grad()
def test_a_preference_is_explained_by_what_its_visits_hold(save, log_file, event_log, extractor, capsys, choices):
    folder = save(**choices)
    importlib.import_module("5_explain_a_preference").main(folder, log_file, "c07", "items")
    said = capsys.readouterr().out.splitlines()
    model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()
    inputs = extractor({"events": event_log[event_log["who"] == "c07"]})
    best = model.preferences("items", k=3, **inputs)
    labels = extractor.decode_labels("items", best["labels"][0])
    assert [line.split(": ")[0].rsplit(" ", 1)[0] for line in said if not line.startswith(" ")] == labels
    reasons = [line for line in said if " by the visit of " in line]
    assert len(reasons) == 6
    own = set(event_log[event_log["who"] == "c07"]["item"]) | {"no label"}
    for line in reasons:
        assert set(line.split(" with ")[1].split(", ")) <= own


@needs("onnx", "onnxscript", "onnxruntime")
@pytest.mark.skipif(torch.__version__ < (2, 11), reason="transformers' exporters need torch 2.11")
def test_the_onnx_server_answers_as_the_model_and_names_what_it_cannot_read(save, event_log, extractor, tmp_path):
    folder, script = save(extended=True), importlib.import_module("modeling_mcm.commands.export")
    script.run(script.ExportOptions(model=folder, output_dir=str(tmp_path / "onnx")))
    module = importlib.import_module("6_serve_onnx")
    server = ThreadingHTTPServer(("localhost", 0), module.Handler)
    server.score = module.scorer(str(tmp_path / "onnx"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        events = event_log[event_log["who"] == "c07"].astype({"when": str})
        events = events.astype(object).where(events.notna(), None)
        customer = {"events": events.to_dict("records"), "profile": {"age": "young"}}
        found = ask(server, customer)
        model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()
        for task in extractor.tasks:
            best = model.preferences(task, k=5, **extractor(customer))
            assert list(found[task]) == extractor.decode_labels(task, best["labels"][0])
            assert list(found[task].values()) == pytest.approx(best["scores"][0].tolist(), abs=1e-5)
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(server, {"events": [{"colour": "red"}]})
        assert caught.value.code == 400 and "unknown 'colour'" in json.loads(caught.value.read())["error"]
    finally:
        server.shutdown()
        server.server_close()


def ask(server, customer):
    url = f"http://localhost:{server.server_address[1]}"
    request = urllib.request.Request(url, json.dumps(customer).encode(), method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.loads(answer.read())
