# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is not whole, or not what its config says, is named: the file, what it holds, what to do."""

import json
import re
from pathlib import Path

import pytest
import torch
from faults import AREAS, expected, pattern
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
DAMAGED = {
    "no encoder": config(num_hidden_layers=0),
    "a weight more": weights(lambda each: each.update({"model.new": torch.ones(2)})),
    "a layer more": config(num_hidden_layers=2),
    "a weight less": weights(lambda each: each.pop(QUERY)),
    "other sizes": config(hidden_size=32),
    "NaN": weights(lambda each: each[QUERY].fill_(float("nan"))),
    "infinity": weights(lambda each: each[QUERY][0].fill_(float("inf"))),
    "an unknown activation": config(hidden_act="nope"),
    "a field of another type": config(hidden_size="x"),
    "cut weights": cut("model.safetensors", 5000),
    "empty weights": cut("model.safetensors", 0),
    "no weights": without("model.safetensors"),
    "a cut config": cut("config.json", 40),
    "no config": without("config.json"),
    "a cut extractor": cut("preprocessor_config.json", 40),
    "an extractor that is a list": rewritten("preprocessor_config.json", "[]"),
}


@pytest.mark.parametrize("model_class", [MCMModel, MCMForMultiTaskRecommendation])
@pytest.mark.parametrize(("change", "message"), expected("Checkpoints", DAMAGED))
def test_a_damaged_checkpoint_is_named(save, model_class, change, message):
    folder = Path(save(extended=True))
    read_checkpoint(model_class, str(folder))
    change(folder)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(model_class, str(folder))
    said = str(refused.value)
    assert re.search(message, said) and str(folder) in said and "ignore_mismatched" not in said


ABSENT = ("./absent", "/absent/checkpoint", "runs/absent/checkpoint-5", "runs/absent")


@pytest.mark.parametrize(
    ("name", "message"), expected("Folders of checkpoints that are not there", {name: name for name in ABSENT})
)
def test_a_folder_that_is_not_there_is_named(name, message):
    with pytest.raises(CheckpointError, match=message) as refused:
        read_checkpoint(MCMModel, name)
    assert "Repo id must" not in str(refused.value)


@pytest.mark.parametrize("name", ["run_predict", "run_evaluate", "export"])
@pytest.mark.parametrize("case", ["a cut config", "a cut extractor", "no encoder", "cut weights", "NaN"])
def test_scripts_say_it_before_they_write(save, prepared, tmp_path, name, case):
    if name == "export" and torch.__version__ < (2, 11):
        pytest.skip("transformers' exporters need torch 2.11")
    folder = save(extended=True)
    DAMAGED[case](Path(folder))
    message = pattern(AREAS["Checkpoints"]["faults"][case])
    words = ["--model", folder, "--output_file" if name == "run_evaluate" else "--output_dir", str(tmp_path / "out")]
    words += ["--data", str(prepared)] if name != "export" else []
    with pytest.raises(SystemExit, match=message):
        call(name, *words)
    assert not (tmp_path / "out").exists()


def test_the_head_for_offers_may_be_left_out(save, tmp_path):
    model = read_checkpoint(MCMForActionRecommendation, save(extended=True), ("action_head.",))
    model.save_pretrained(tmp_path / "offers")
    for model_class in (MCMModel, MCMForMultiTaskRecommendation, MCMForActionRecommendation):
        assert type(read_checkpoint(model_class, str(tmp_path / "offers"))) is model_class


def test_scores_of_actions_need_a_trained_head(save, extractor, tmp_path):
    folder = save(extended=True)
    with pytest.raises(ValueError, match="checkpoint has no trained head for actions: .*mcm finetune"):
        pipeline("action-scores", model=folder)
    model = MCMForActionRecommendation.from_pretrained(folder)
    torch.nn.init.normal_(model.action_head.output)
    model.save_pretrained(tmp_path / "offers")
    extractor.save_pretrained(tmp_path / "offers")
    assert pipeline("action-scores", model=str(tmp_path / "offers")).model.config.tasks
