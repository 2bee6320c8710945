# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""An export equals the model at every batch and length, holds no local path, and is written as a whole."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folders import content

from modeling_mcm import MCMFeatureExtractor, MCMForActionRecommendation, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.commands import export as script
from modeling_mcm.data import load_prepared
from modeling_mcm.data.dataset import POPULARITY_FILE
from modeling_mcm.serving.export import example_inputs
from modeling_mcm.training.counts import fill_followers, fill_label_values, fill_related, training_labels

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 11), reason="transformers' exporters need torch 2.11")
for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} not installed: pip install '.[export]'")

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1, 1), (1, 2), (2, 1), (7, 5), (2, 40), (4, 23)]  # customers, events
COUNTED = {"extended": True, "follower_tasks": ["items"], "related_tasks": ["aisle"], "label_features": ["aisle"]}


@pytest.fixture
def export(tmp_path):
    """A function that exports a checkpoint to the folder `exported`."""

    def run(model, output_dir=tmp_path / "exported"):
        return script.run(script.ExportOptions(model=str(model), output_dir=str(output_dir)))

    return run


def run_onnx(folder, inputs):
    import onnxruntime

    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads, one_thread.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(folder / "model.onnx", one_thread, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    read = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    return dict(zip(names, session.run(None, read), strict=True))


@torch.no_grad()
def assert_equal_scores(model, inputs, found):
    outputs = model(**inputs)
    assert set(found) == {*(f"logits.{task}" for task in model.config.tasks), "pooler_output"}
    np.testing.assert_allclose(found["pooler_output"], outputs.pooler_output, atol=1e-5)
    for task, scores in outputs.logits.items():
        np.testing.assert_allclose(found[f"logits.{task}"][:, 2:], scores[:, 2:], atol=1e-5, rtol=1e-5)
        assert (found[f"logits.{task}"][:, :2] < -1e30).all()  # the ids that are no labels


def assert_no_local_path(folder):
    for path in folder.iterdir():
        for local in (ROOT, folder.parent, Path(torch.__file__).parents[1]):
            assert str(local).encode() not in path.read_bytes(), path.name


def check_export(export, folder, extractor, event_log, exported):
    """The export gives the model's scores, at other batches and lengths too; returns the model and its inputs."""
    assert "MCMForMultiTaskRecommendation as ONNX, equal to the model" in export(folder)
    model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()  # with the usual attention kernel
    customers = [{"events": events.to_dict("list")} for _, events in event_log.groupby("who")]
    inputs = extractor([*customers[:5], {"events": []}])
    for each in (*(example_inputs(model, *shape) for shape in SHAPES), inputs):
        assert_equal_scores(model, each, run_onnx(exported, each))
    return model, inputs


@pytest.mark.parametrize("choices", [{}, {"readout": "last"}], ids=["paper", "last"])
def test_scores_equal_the_model_at_other_batches_and_lengths(export, save, extractor, event_log, tmp_path, choices):
    check_export(export, save(**choices), extractor, event_log, tmp_path / "exported")
    assert MCMFeatureExtractor.from_pretrained(str(tmp_path / "exported")).to_dict() == extractor.to_dict()
    assert_no_local_path(tmp_path / "exported")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "exported"}


@pytest.fixture
def counted(tiny_model, extractor, prepared, tmp_path):
    """Folder of a checkpoint with all counted parts: its tables filled, gains and scales as a training leaves them."""
    model = tiny_model(**COUNTED)
    rows = load_prepared(str(prepared))
    fill_label_values(model, rows)
    fill_related(model, training_labels(rows, model.config.tasks))
    labels, followers = np.mgrid[2:12, 2:12].reshape(2, -1)  # the log's visits are sets: none were counted
    pairs = {"task": ["items"] * len(labels), "label": labels, "follower": followers, "weight": 240 + 7 * labels}
    fill_followers(model, pa.table(pairs), pq.read_table(prepared / POPULARITY_FILE))
    torch.manual_seed(0)
    model.score_scales.uniform_(0.5, 1.5)
    for gains in (model.counted_memory.habit_gain, model.counted_memory.new_gain, model.counted_memory.new_offset):
        gains.uniform_(0.2, 1)
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def test_the_counted_parts_are_exported(export, counted, extractor, event_log, tmp_path):
    model, inputs = check_export(export, counted, extractor, event_log, tmp_path / "exported")
    parts = model.score_parts(**inputs)
    for task, name in (("items", "followers"), ("aisle", "habits"), ("aisle", "new")):
        assert parts[task][name][:5].std() > 0.01, f"{name} of {task} say nothing"


@torch.no_grad()
def test_a_checkpoint_without_the_head_for_all_tasks_exports_embeddings(export, tiny_config, extractor, tmp_path):
    MCMForActionRecommendation(tiny_config(extended=True)).save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    assert "a MCMModel as ONNX" in export(tmp_path / "checkpoint")
    model = MCMModel.from_pretrained(tmp_path / "checkpoint").eval()
    for shape in SHAPES:
        inputs = example_inputs(model, *shape)
        found = run_onnx(tmp_path / "exported", inputs)
        assert not [name for name in found if name.startswith("logits")]
        np.testing.assert_allclose(found["pooler_output"], model(**inputs).pooler_output, atol=1e-5)


@torch.no_grad()
def test_more_visits_than_there_are_positions_are_refused(export, tiny_config, extractor, tmp_path):
    model = MCMModel(tiny_config(extended=True, max_position_embeddings=8)).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint")
    inputs = example_inputs(model, 2, 16)
    inputs["visit_ids"] = (torch.arange(16) // 2).expand(2, -1).contiguous()  # events may be more
    found = run_onnx(tmp_path / "exported", inputs)["pooler_output"]
    np.testing.assert_allclose(found, model(**inputs).pooler_output, atol=1e-5)
    inputs["visit_ids"] = torch.arange(16).expand(2, -1).contiguous()
    with pytest.raises(Exception, match="(?i)broadcast|axis|dimension"):
        run_onnx(tmp_path / "exported", inputs)


class Exported:
    """What the exporter gives, in no time."""

    def save_pretrained(self, folder):
        Path(folder).mkdir()
        Path(folder, "model.onnx").write_text("exported")


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_an_export_that_differs_is_not_written(export, save, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(script, "export", lambda model: Exported())
    monkeypatch.setattr(script, "largest_difference", lambda *_: difference)
    folder, before = save(), content(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="nothing was written"):
        export(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"] and content(tmp_path / "checkpoint") == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("checkpoint", "is a file or not empty"),
        ("notes/file", "is a file or not empty"),
        ("notes/file/x", "can.t be"),
    ],
)
def test_a_folder_that_is_in_use_is_refused_before_the_work(export, save, tmp_path, monkeypatch, place, message):
    monkeypatch.setattr(script, "export", None)
    folder = save()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "file").write_text("mine")
    before = content(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        export(folder, tmp_path / place)
    assert content(tmp_path) == before


def test_an_empty_folder_is_filled(export, save, tmp_path, monkeypatch, command):
    monkeypatch.setattr(script, "export", lambda model: Exported())
    monkeypatch.setattr(script, "largest_difference", lambda *_: 0.0)
    (tmp_path / "exported").mkdir()
    options = ["--model", save(), "--output_dir", tmp_path / "exported"]
    assert "as ONNX, equal to the model to 0.0e+00" in command("modeling_mcm.commands.export", *options)
    assert {"model.onnx", "preprocessor_config.json"} <= {path.name for path in (tmp_path / "exported").iterdir()}
    words = "none is no folder: give a checkpoint folder"
    command("modeling_mcm.commands.export", "--model", tmp_path / "none", *options[2:3], tmp_path / "x", fails=words)
