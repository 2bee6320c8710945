# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is not whole, or not what its config says, is named: the file, what it holds, what to do."""

import json
from pathlib import Path

import pytest
import torch
from folders import cut, rewritten, without
from in_process import call
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_mcm import MCMForActionRecommendation, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.training.checkpoints import CheckpointError, read_checkpoint


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(edit):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


QUERY = "model.encoder.layer.0.attention.self.query.weight"
CUT = "has .* bytes and is cut or damaged .* copy it again, or give an earlier checkpoint"
DAMAGED = {
    "no encoder": (config(num_hidden_layers=0), "weights that .* has no place for by config.json"),
    "a weight more": (
        weights(lambda each: each.update({"model.new": torch.ones(2)})),
        "1 weights .* would leave out: model.new",
    ),
    "a layer more": (config(num_hidden_layers=2), "lacks 16 weights of .*, which would start at random"),
    "a weight less": (weights(lambda each: each.pop(QUERY)), "lacks 1 weights of .*, which would start at random"),
    "other sizes": (config(hidden_size=32), r"have other sizes than config.json says: .* and \[.*, 32\] was expected"),
    "NaN": (
        weights(lambda each: each[QUERY].fill_(float("nan"))),
        "NaN or infinite numbers in 1 weights: .* diverged",
    ),
    "infinity": (weights(lambda each: each[QUERY][0].fill_(float("inf"))), "NaN or infinite numbers in 1 weights"),
    "an unknown activation": (config(hidden_act="nope"), "config.json has hidden_act 'nope', which is no activation"),
    "a field of another type": (config(hidden_size="x"), "can't be read as .* 'hidden_size' expected int, got str"),
    "cut weights": (cut("model.safetensors", 5000), f"model.safetensors {CUT}"),
    "empty weights": (cut("model.safetensors", 0), f"model.safetensors {CUT}"),
    "no weights": (without("model.safetensors"), "has no model.safetensors: give the folder that a training wrote"),
    "a cut config": (cut("config.json", 40), f"config.json {CUT}"),
    "no config": (without("config.json"), "config.json is missing"),
    "a cut extractor": (cut("preprocessor_config.json", 40), f"preprocessor_config.json {CUT}"),
    "an extractor that is a list": (rewritten("preprocessor_config.json", "[]"), "config.json holds no JSON object"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_is_named(save, change, message):
    folder, classes = Path(save(extended=True)), (MCMModel, MCMForMultiTaskRecommendation)
    for model_class in classes:
        read_checkpoint(model_class, str(folder))
    change(folder)
    for model_class in classes:
        with pytest.raises(CheckpointError, match=message) as refused:
            read_checkpoint(model_class, str(folder))
        assert str(folder) in str(refused.value) and "ignore_mismatched" not in str(refused.value)


@pytest.mark.parametrize("name", ["./absent", "/absent/checkpoint", "runs/absent/checkpoint-5", "runs/absent"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(CheckpointError, match=f"{name} (is no folder|can't be read as .* It is no folder here)"):
        read_checkpoint(MCMModel, name)


@pytest.mark.parametrize(("name", "case"), [("predict", "no config"), ("evaluate", "NaN")])
def test_scripts_say_it_before_they_write(save, prepared, tmp_path, name, case):
    change, message = DAMAGED[case]
    folder = save(extended=True)
    change(Path(folder))
    words = ["--model", folder, "--output_file" if name == "evaluate" else "--output_dir", str(tmp_path / "out")]
    words += ["--data", str(prepared)]
    with pytest.raises(SystemExit, match=message):
        call(f"modeling_mcm.commands.{name}", *words)
    assert not (tmp_path / "out").exists()


def test_scores_of_actions_need_a_trained_head(save, extractor, tmp_path):
    folder = save(extended=True)
    with pytest.raises(ValueError, match="checkpoint has no trained head for actions: .*mcm finetune"):
        pipeline("action-scores", model=folder)
    model = read_checkpoint(MCMForActionRecommendation, folder, ("action_head.",))  # which may be left out
    torch.nn.init.normal_(model.action_head.output)
    model.save_pretrained(tmp_path / "offers")
    extractor.save_pretrained(tmp_path / "offers")
    assert pipeline("action-scores", model=str(tmp_path / "offers")).model.config.tasks
    for model_class in (MCMModel, MCMForMultiTaskRecommendation, MCMForActionRecommendation):
        assert type(read_checkpoint(model_class, str(tmp_path / "offers"))) is model_class
