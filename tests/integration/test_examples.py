# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The examples as a person runs them, on a small log. The others: 1 and 6 in test_docs, 2 in test_offers, 4 in
test_predict, 7 and 9 in test_finetuning, 8 in test_hub."""

import importlib
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from corner_shop import SCHEMA, make_profile
from folders import read_json
from in_process import ROOT, call
from tutorial import NOTEBOOK, run_notebook

from modeling_mcm import MCMForMultiTaskRecommendation


def test_your_own_log_goes_from_a_file_to_scores(event_log, tmp_path, capsys, monkeypatch):
    event_log.to_csv(tmp_path / "log.csv", index=False)
    schema = tmp_path / "schema.yaml"
    schema.write_text(yaml.safe_dump(SCHEMA))
    make_profile(event_log).to_csv(tmp_path / "profile.csv", index=False)
    options = [str(tmp_path / "profile.csv"), *"--network shipped --disable_tqdm true --use_cpu true".split()]
    example = importlib.import_module("3_your_own_log")

    def run_here(words, check):
        assert words[:2] == ["mcm", "start"]
        call("run_pretrain", "--encoder", "none", *words[2:])

    monkeypatch.setattr(example, "subprocess", SimpleNamespace(run=run_here))
    example.main(str(tmp_path / "log.csv"), str(schema), str(tmp_path / "run"), *options)
    said = capsys.readouterr().out
    assert f"34 customers, {len(event_log)} events" in said
    for task in SCHEMA["tasks"]:
        (line,) = (line for line in said.splitlines() if line.startswith(f"{task}: "))
        assert line.count("%") == (2 if task == "type" else 3)  # MCM's own types are no answer


@pytest.mark.parametrize("choices", [{}, {"extended": True}], ids=["events", "visits"])
@torch.no_grad()
def test_a_preference_is_explained_by_what_its_visits_hold(save, raw, event_log, extractor, capsys, choices):
    folder = save(**choices)
    importlib.import_module("5_explain_a_preference").main(folder, str(raw / "events.parquet"), "c07", "items")
    said = capsys.readouterr().out.splitlines()
    model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()
    inputs = extractor({"events": event_log[event_log["who"] == "c07"]})
    labels = extractor.decode_labels("items", model(**inputs).logits["items"][0].topk(3).indices)
    assert [line.split(": ")[0].rsplit(" ", 1)[0] for line in said if not line.startswith(" ")] == labels
    assert sum(" without the visit of " in line for line in said) == 6


def test_the_notebook_is_short():
    cells = [cell for cell in read_json(NOTEBOOK)["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(line.strip()) for cell in cells for line in cell["source"]) <= 60


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows(tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="nbclient not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stored, found = read_json(NOTEBOOK), run_notebook(tmp_path)
    for expected, cell in zip(stored["cells"], found.cells, strict=True):
        pairs = zip(cell.get("outputs", []), expected.get("outputs", []), strict=True)
        for (kind, numbers), (wanted, others) in ([shown(output) for output in pair] for pair in pairs):
            # Another order of sums moves the last digits, and may exchange labels that are nearly as likely.
            assert kind == wanted and numbers == pytest.approx(others, rel=0.25, abs=0.05)


def shown(output):
    """The kind of a notebook's output, and its decimal numbers where it is printed to be read."""
    text = output.get("text", "") if output.get("name") == "stdout" else output.get("data", {}).get("text/plain", "")
    text = "".join(text) if output["output_type"] != "display_data" else ""
    return output["output_type"], [float(number) for number in re.findall(r"-?\d+\.\d+", text)]
