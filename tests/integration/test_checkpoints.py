# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is not whole, or not what its config says, is named: the file, what it holds, what to do."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from folders import cut, rewritten, update_json, without
from huggingface_hub.errors import StrictDataclassError
from in_process import call
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_mcm import (
    CustomerModel,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    MCMModel,
)
from modeling_mcm.training.checkpoints import CheckpointError, open_checkpoint, read_checkpoint


def weights(edit):
    """A change of the weights by another tool, which does not know of the settings in their metadata."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def config(**changes):
    """A change of config.json, and of the weights, or the settings would differ."""

    def change(folder):
        update_json(folder / "config.json", **changes)
        weights(bool)(folder)

    return change


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


QUERY = "model.encoder.layer.0.attention.self.query.weight"
CUT = "has .* bytes and is cut or damaged .* copy it again, or give an earlier checkpoint"
RANDOM = "of .*, which would start at random"
DAMAGED = {
    "no encoder": (config(num_hidden_layers=0), "weights that .* has no place for by config.json"),
    "a layer more": (config(num_hidden_layers=2), f"lacks 16 weights {RANDOM}"),
    "other sizes": (config(hidden_size=32), r"have other sizes than config.json says: .* and \[.*, 32\] was expected"),
    "a field of another type": (config(hidden_size="x"), "'hidden_size' expected int, got str"),
    "an unknown type": (config(dtype="floaty"), "`dtype` is 'floaty', no type of torch"),
    "a weight more": (weights(lambda each: each.update(new=torch.ones(2))), "1 weights .* would leave out: new"),
    "a weight less": (weights(lambda each: each.pop(QUERY)), f"lacks 1 weights {RANDOM}"),
    "NaN": (
        weights(lambda each: each[QUERY][0].fill_(torch.nan)),
        "NaN or infinite numbers in 1 weights",
    ),
    "cut weights": (cut("model.safetensors", 5000), f"model.safetensors {CUT}"),
    "a pickle alone": (pickled, "has no model.safetensors: give the folder that a training wrote"),
    "a cut config": (cut("config.json", 40), f"config.json ({CUT}|is not a valid JSON file)|is not a valid JSON"),
    "no config": (without("config.json"), "config.json"),
    "a cut extractor": (cut("preprocessor_config.json", 40), f"preprocessor_config.json {CUT}"),
    "an extractor that is nested deeply": (rewritten("preprocessor_config.json", "[" * 10**5), f"config.json {CUT}"),
    "an extractor that is a list": (rewritten("preprocessor_config.json", "[]"), "config.json holds no JSON object"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_every_entrance_refuses_it(save, extractor, prepared, tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("MCM_TOKEN", "a token of the tests")
    folder, place = save(extended=True, values_digest=extractor.values_digest), tmp_path / "out"
    change(Path(folder))
    entrances = {
        "library": partial(MCMForMultiTaskRecommendation.from_pretrained, folder),
        "base model": partial(MCMModel.from_pretrained, folder),
        "pipeline": partial(pipeline, "preference-scores", model=folder),
        "customer model": partial(CustomerModel.load, folder, None),
        "training": partial(read_checkpoint, MCMForMultiTaskRecommendation, folder),
    }
    for name, words in (
        ("predict", ["--data", prepared, "--output_dir", place]),
        ("evaluate", ["--data", prepared, "--output_file", place]),
        ("serve", ["--store", place]),
    ):
        entrances[name] = partial(call, f"modeling_mcm.commands.{name}", "--model", folder, *words)
    for name, read in entrances.items():
        with pytest.raises((ValueError, OSError, StrictDataclassError, SystemExit)) as refused:
            read()
        assert re.search(message, str(refused.value), re.DOTALL), (name, refused.value)
        assert not place.exists(), name


@pytest.mark.parametrize("read", [MCMModel.from_pretrained, partial(CustomerModel.load, events=None)])
def test_a_config_too_deep_to_read_is_named(save, read):
    folder = save()
    Path(folder, "config.json").write_text("[" * 10**5)
    with pytest.raises(CheckpointError, match=f"config.json {CUT}"):
        read(folder)


def test_other_contents_of_the_other_files_are_named(save):
    folder = save(extended=True)
    for text in ("[" * 10**5, "{}"):
        Path(folder, "frame.json").write_text(text)
        with pytest.raises(CheckpointError, match="can't be read as frame.json"):
            CustomerModel.load(folder, events=None)
    update_json(Path(folder, "preprocessor_config.json"), max_events=None)
    with pytest.raises(CheckpointError, match="can't be read as MCMFeatureExtractor .ValueError"):
        open_checkpoint(MCMForMultiTaskRecommendation, folder)


def test_scores_of_actions_need_a_trained_head(save, extractor, tmp_path):
    folder = save(extended=True)
    with pytest.raises(ValueError, match="checkpoint has no trained head for action-scores: .*mcm finetune"):
        pipeline("action-scores", model=folder)
    model = read_checkpoint(MCMForActionRecommendation, folder, ("action_head.",))  # which may be left out
    torch.nn.init.normal_(model.action_head.numbers.weight)
    model.save_pretrained(tmp_path / "offers")
    extractor.save_pretrained(tmp_path / "offers")
    assert pipeline("action-scores", model=str(tmp_path / "offers")).model.config.tasks
