# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Exports equal the model at every batch and length and hold no local path; int8 weights come back as saved."""

import importlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faults import expected
from folders import content
from launched_runs import ONE_PROCESS, run

from modeling_mcm import MCMFeatureExtractor, MCMForActionRecommendation, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.data import load_prepared
from modeling_mcm.data.dataset import POPULARITY_FILE
from modeling_mcm.serving.export import example_inputs
from modeling_mcm.training.counts import fill_followers, fill_label_values, fill_related, training_labels

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 11), reason="transformers' exporters need torch 2.11")

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "paper": {},
    "extended": {"extended": True},
    "events and memory": {"extended": True, "encoder_unit": "event"},
    "last": {"readout": "last"},
}
SHAPES = [(1, 1), (1, 2), (2, 1), (7, 5), (2, 40), (4, 23)]  # customers, events
COUNTED = {"extended": True, "follower_tasks": ["items"], "related_tasks": ["aisle"], "label_features": ["aisle"]}
every_model = pytest.mark.parametrize(
    "choices",
    [
        pytest.param(choices, id=name, marks=[pytest.mark.slow] if name == "events and memory" else [])
        for name, choices in MODELS.items()
    ],
)


def needs(*packages):
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: pip install '.[export]'")


needs_onnx, needs_torchao = needs("onnx", "onnxscript", "onnxruntime"), needs("torchao")


@pytest.fixture
def script(monkeypatch):
    return importlib.import_module("modeling_mcm.commands.export")


def options(script, model, tmp_path, **changes):
    return script.ExportOptions(model=model, output_dir=str(tmp_path / "exported"), **changes)


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


@needs_onnx
@every_model
def test_onnx_scores_equal_the_model_at_other_batches_and_lengths(
    script, save, extractor, event_log, tmp_path, choices
):
    folder = save(**choices)
    assert "equal to the model" in script.run(options(script, folder, tmp_path))
    model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()  # with the attention kernel of every day
    for customers, events in SHAPES:
        inputs = example_inputs(model.config, "scores", customers, events)
        assert_equal_scores(model, inputs, run_onnx(tmp_path / "exported", inputs))
    customers = [{"events": events.to_dict("list")} for _, events in event_log.groupby("who")]
    inputs = extractor([*customers[:3], {"events": []}])
    assert_equal_scores(model, inputs, run_onnx(tmp_path / "exported", inputs))
    assert MCMFeatureExtractor.from_pretrained(str(tmp_path / "exported")).to_dict() == extractor.to_dict()
    assert_no_local_path(tmp_path / "exported")


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


@needs_onnx
def test_onnx_has_the_counted_parts(script, counted, extractor, event_log, tmp_path):
    assert "equal to the model" in script.run(options(script, counted, tmp_path))
    model = MCMForMultiTaskRecommendation.from_pretrained(counted).eval()
    customers = [{"events": events.to_dict("list")} for _, events in event_log.groupby("who")]
    inputs = extractor([*customers[:5], {"events": []}])
    parts = model.score_parts(**inputs)
    for task, name in (("items", "followers"), ("aisle", "habits"), ("aisle", "new")):
        assert parts[task][name][:5].std() > 0.01, f"{name} of {task} say nothing"
    assert_equal_scores(model, inputs, run_onnx(tmp_path / "exported", inputs))


@needs_onnx
@pytest.mark.parametrize("choices", [MODELS["paper"], MODELS["extended"]], ids=["paper", "extended"])
@torch.no_grad()
def test_onnx_embeddings_equal_the_model(script, save, tmp_path, choices):
    folder = save(**choices)
    script.run(options(script, folder, tmp_path, what="embeddings"))
    model = MCMModel.from_pretrained(folder).eval()
    for customers, events in SHAPES:
        inputs = example_inputs(model.config, "embeddings", customers, events)
        found = run_onnx(tmp_path / "exported", inputs)["pooler_output"]
        np.testing.assert_allclose(found, model(**inputs).pooler_output, atol=1e-5)


@needs_onnx
def test_onnx_refuses_more_visits_than_there_are_positions(script, save, tmp_path):
    script.run(options(script, save(extended=True, max_position_embeddings=8), tmp_path, what="embeddings"))
    config = MCMModel.from_pretrained(tmp_path / "checkpoint").config
    inputs = example_inputs(config, "embeddings", 2, 16)
    inputs["visit_ids"] = (torch.arange(16) // 2).expand(2, -1).contiguous()
    assert run_onnx(tmp_path / "exported", inputs)["pooler_output"].shape == (2, 16)  # events may be more
    inputs["visit_ids"] = torch.arange(16).expand(2, -1).contiguous()
    with pytest.raises(Exception, match="(?i)broadcast|axis|dimension"):
        run_onnx(tmp_path / "exported", inputs)


@every_model
def test_the_torch_program_gives_the_models_numbers(script, save, tmp_path, choices):
    folder = save(**choices)
    script.run(options(script, folder, tmp_path, format="torch"))
    program = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    model = MCMForMultiTaskRecommendation.from_pretrained(folder, attn_implementation="eager").eval()
    for customers, events in SHAPES:
        inputs = example_inputs(model.config, "scores", customers, events)
        found = program(**inputs)
        scores = {f"logits.{task}": values for task, values in found["logits"].items()}
        assert_equal_scores(model, inputs, scores | {"pooler_output": found["pooler_output"]})
    assert_no_local_path(tmp_path / "exported")


@needs_torchao
@pytest.mark.parametrize("what", ["scores", "embeddings"])
@pytest.mark.parametrize("choices", [MODELS["paper"], MODELS["extended"]], ids=["paper", "extended"])
@torch.no_grad()
def test_int8_weights_are_saved_and_reloaded(script, save, tmp_path, what, choices):
    folder = save(**choices)
    script.run(options(script, folder, tmp_path, what=what, format="int8"))
    kind = MCMForMultiTaskRecommendation if what == "scores" else MCMModel
    model, small = (kind.from_pretrained(path).eval() for path in (folder, tmp_path / "exported"))
    for name, module in small.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert (type(module.weight.data).__name__ == "Int8Tensor") == ("encoder.layer" in name), name
    wanted, plain = dict(model.named_parameters()), dict(small.named_parameters())
    for name, value in plain.items():
        if type(value.data) is torch.Tensor:
            assert torch.equal(value, wanted[name]), name
    inputs = example_inputs(model.config, what, 4, 20)
    found, before = small(**inputs), model(**inputs)
    assert 0 < (found.pooler_output - before.pooler_output).abs().max() < 0.02 * before.pooler_output.std()
    again = kind.from_pretrained(tmp_path / "exported").eval()
    assert torch.equal(again(**inputs).pooler_output, found.pooler_output)


@needs_torchao
def test_int8_says_what_it_costs_in_ndcg(script, save, prepared, tmp_path):
    folder, page = save(extended=True), tmp_path / "page.md"
    said = script.run(
        options(script, folder, tmp_path, format="int8", data=str(prepared), report_file=str(page))
    ).splitlines()
    exported = str(tmp_path / "exported")
    table, caption = script.cost_in_ndcg(folder, exported, str(prepared))
    assert (
        caption in said and caption in page.read_text() and [row[0] for row in table[1:]] == ["items", "aisle", "type"]
    )
    for task, before, after, change in table[1:]:
        assert 0 < float(before) < 1 and float(change.split()[0]) == pytest.approx(
            float(after) - float(before), abs=2e-5
        )
        assert any(line.startswith(task) and before in line for line in said)
    same = script.cost_in_ndcg(folder, folder, str(prepared))[0]
    assert all(row[1] == row[2] and row[3] == "+0.00000 [+0.00000, +0.00000]" for row in same[1:])


@needs_torchao
def test_int8_for_another_data_set_is_refused_before_anything_is_written(script, save, extractor, prepared, tmp_path):
    folder = save()
    extractor.vocabularies["items"] = extractor.vocabularies["items"][::-1]
    extractor.save_pretrained(folder)
    with pytest.raises(ValueError, match="The vocabularies of the data set"):
        script.run(options(script, folder, tmp_path, format="int8", data=str(prepared)))
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "data/prepared"}, "--data measures what --format int8 costs in scores"),
        ({"data": "data/prepared", "format": "int8", "what": "embeddings"}, "--data measures what --format int8"),
        ({"report_file": "page.md", "format": "int8"}, "--report_file needs --data"),
    ],
)
def test_options_of_the_cost_belong_together(script, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        options(script, "runs/mine", tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what": "scores"}, "MCMForActionRecommendation, scores need MCMForMultiTaskRecommendation: use --what"),
        ({"what": "scores", "format": "int8"}, "scores need MCMForMultiTaskRecommendation"),
    ],
)
def test_scores_need_their_head(script, tiny_config, extractor, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    MCMForActionRecommendation(tiny_config(extended=True)).save_pretrained(tmp_path / "offers")
    extractor.save_pretrained(tmp_path / "offers")
    with pytest.raises(ValueError, match=message):
        script.run(options(script, str(tmp_path / "offers"), tmp_path, **({"format": "torch"} | changes)))
    assert not (tmp_path / "exported").exists()


def test_what_is_missing_is_named(script, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is the checkpoint .* itself; choose another folder"):
        script.ExportOptions(model=str(tmp_path), output_dir=f"{tmp_path}/.")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--format onnx needs onnx, onnxscript, onnxruntime: pip install"):
        options(script, "runs/mine", tmp_path)


def test_an_export_that_differs_is_not_written(script, save, tmp_path, monkeypatch):
    export = script.export

    def broken(model, what, target):
        exported = export(model, what, target)
        return lambda **inputs: exported(**inputs) | {"pooler_output": exported(**inputs)["pooler_output"] * torch.nan}

    monkeypatch.setattr(script, "export", broken)
    with pytest.raises(ValueError, match="nothing was written"):
        script.run(options(script, save(), tmp_path, format="torch"))
    assert not (tmp_path / "exported").exists()


def test_the_script_as_a_person_runs_it(save, tmp_path, command):
    options = ["--model", save(), "--output_dir", tmp_path / "exported", "--format", "torch"]
    assert "scores as torch, equal to the model to" in run(ONE_PROCESS, "export", *options).stdout
    command("export", *options, "--model", tmp_path / "none", fails="none is no folder: give a checkpoint folder")


@pytest.fixture
def quick(script, monkeypatch):
    """The script, with an exporter that writes a file that says the format and takes no time; asked how often."""
    calls = []

    class Exported:
        def __init__(self, name):
            self.name = name

        def save_pretrained(self, folder):
            Path(folder, f"model.{self.name}").write_text("exported")

    monkeypatch.setattr(script, "export", lambda model, what, name: calls.append(name) or Exported(name))
    monkeypatch.setattr(script, "largest_difference", lambda *_: 0.0)
    script.calls = calls
    return script


@pytest.mark.parametrize("name", ["onnx", "torch", "int8"])
def test_a_folder_of_something_else_is_refused_before_the_work(quick, save, tmp_path, monkeypatch, name):
    checkpoint = Path(save())
    monkeypatch.setattr(quick, "save_int8", lambda *_: quick.calls.append("int8"))
    other, notes = tmp_path / "other", tmp_path / "notes"
    shutil.copytree(checkpoint, other)
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    for folder, holds in ((other, "config.json"), (notes, "notes.txt")):
        before = content(folder)
        changed = quick.ExportOptions(model=str(checkpoint), output_dir=str(folder), format=name)
        with pytest.raises(ValueError, match=f"not empty and holds more than an earlier export .*{holds}"):
            quick.run(changed)
        assert content(folder) == before and quick.calls == []


def test_an_earlier_export_is_replaced_as_a_whole(quick, save, tmp_path):
    checkpoint, folder = save(), tmp_path / "exported"
    folder.mkdir()  # empty
    quick.run(options(quick, checkpoint, tmp_path, format="torch"))
    assert (folder / "model.torch").is_file()
    quick.run(options(quick, checkpoint, tmp_path))
    assert (folder / "model.onnx").is_file() and not (folder / "model.torch").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="mine.txt"):
        quick.run(options(quick, checkpoint, tmp_path))


def test_an_export_that_fails_leaves_the_earlier_one(quick, save, tmp_path, monkeypatch):
    quick.run(options(quick, checkpoint := save(), tmp_path))
    before = content(tmp_path / "exported")
    monkeypatch.setattr(quick, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="nothing was written"):
        quick.run(options(quick, checkpoint, tmp_path))
    assert content(tmp_path / "exported") == before


def with_file(folder, name):
    folder.mkdir()
    (folder / name).write_text("mine")
    return str(folder)


PLACES = {
    "the folder of the checkpoint": lambda folder: {"output_dir": f"{folder}/checkpoint/."},
    "a folder of another checkpoint": lambda folder: {
        "output_dir": shutil.copytree(folder / "checkpoint", folder / "other")
    },
    "a folder with something else": lambda folder: {"output_dir": with_file(folder / "notes", "notes.txt")},
    "a file": lambda folder: {"output_dir": with_file(folder / "notes", "file") + "/file"},
    "a folder that can't be made": lambda folder: {"output_dir": with_file(folder / "notes", "file") + "/file/folder"},
    "a report that can't be written": lambda folder: {
        "output_dir": str(folder / "exported"),
        "format": "int8",
        "data": folder / "data",
        "report_file": with_file(folder / "notes", "file") + "/file/report.md",
    },
}


@pytest.mark.parametrize(("place", "message"), expected("Exports", PLACES))
def test_a_place_that_is_no_place_for_an_export_is_told_before_the_work(
    quick, save, prepared, tmp_path, place, message
):
    shutil.copytree(prepared, tmp_path / "data")
    checkpoint, options_of_place = save(), place(tmp_path)
    before = content(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        quick.run(quick.ExportOptions(model=checkpoint, **{k: str(v) for k, v in options_of_place.items()}))
    assert quick.calls == [] and content(tmp_path) == before and not (tmp_path / "exported").exists()
