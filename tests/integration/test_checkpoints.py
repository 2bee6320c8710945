# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is not whole, or not what its config says, is named: the file, what it holds, what to do."""

import json
import re
from pathlib import Path

import pytest
import torch
from folders import cut, rewritten, without
from huggingface_hub.errors import StrictDataclassError
from in_process import call
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_mcm import (
    LiveCustomer,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    MCMModel,
)
from modeling_mcm.files_mcm import note_digests
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
        note_digests(folder)

    return change


def values(folder):
    stored = json.loads((folder / "vocabularies.json").read_text())
    stored["vocabularies"]["items"].reverse()
    (folder / "vocabularies.json").write_text(json.dumps(stored))


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


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
    "an unknown activation": (config(hidden_act="nope"), "`hidden_act` is 'nope', no activation"),
    "a field of another type": (config(hidden_size="x"), "'hidden_size' expected int, got str"),
    "no heads": (config(num_attention_heads=0), "`num_attention_heads` is 0: expected 1 to"),
    "a million layers": (config(num_hidden_layers=10**6), "`num_hidden_layers` is 1000000: expected 0 to"),
    "NaN in the config": (config(layer_norm_eps=float("nan")), "`layer_norm_eps` is nan"),
    "an unknown type": (config(dtype="floaty"), "`dtype` is 'floaty', no type of torch"),
    "other values": (values, "other values, or in another order, in vocabularies.json"),
    "cut weights": (cut("model.safetensors", 5000), f"model.safetensors {CUT}"),
    "empty weights": (cut("model.safetensors", 0), f"model.safetensors {CUT}"),
    "no weights": (without("model.safetensors"), "has no model.safetensors: give the folder that a training wrote"),
    "a cut config": (
        cut("config.json", 40),
        f"config.json ({CUT}|is not a valid JSON file)|config.json' is not a valid JSON",
    ),
    "no config": (without("config.json"), "config.json"),
    "a pickle alone": (pickled, "has no model.safetensors: give the folder that a training wrote"),
    "a cut extractor": (cut("preprocessor_config.json", 40), f"preprocessor_config.json {CUT}"),
    "an extractor that is nested deeply": (rewritten("preprocessor_config.json", "[" * 10**5), f"config.json {CUT}"),
    "an extractor that is a list": (rewritten("preprocessor_config.json", "[]"), "config.json holds no JSON object"),
}


def read_live(folder, prepared, place):
    model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()
    LiveCustomer(model, MCMFeatureExtractor.from_pretrained(folder))


ENTRANCES = {
    "library": lambda folder, *_: MCMForMultiTaskRecommendation.from_pretrained(folder),
    "base model": lambda folder, *_: MCMModel.from_pretrained(folder),
    "pipeline": lambda folder, *_: pipeline("preference-scores", model=folder),
    "live": read_live,
    "command": lambda folder, *_: read_checkpoint(MCMForMultiTaskRecommendation, folder),
    "predict": lambda folder, data, place: call(
        "modeling_mcm.commands.predict", "--model", folder, "--data", data, "--output_dir", place
    ),
    "evaluate": lambda folder, data, place: call(
        "modeling_mcm.commands.evaluate", "--model", folder, "--data", data, "--output_file", place
    ),
    "serve": lambda folder, data, place: call("modeling_mcm.commands.serve", "--model", folder, "--store", place),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_every_entrance_refuses_it(save, extractor, prepared, tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("MCM_TOKEN", "a token of the tests")
    folder, place = save(extended=True, values_digest=extractor.values_digest), tmp_path / "out"
    change(Path(folder))
    for name, read in ENTRANCES.items():
        with pytest.raises((ValueError, OSError, StrictDataclassError, SystemExit)) as refused:
            read(folder, str(prepared), str(place))
        assert re.search(message, str(refused.value), re.DOTALL), (name, refused.value)
        assert not place.exists(), name


def test_a_config_too_deep_to_read_is_named(save):
    folder = save()
    Path(folder, "config.json").write_text("[" * 10**5)
    with pytest.raises(CheckpointError, match=f"config.json {CUT}"):
        MCMModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["./absent", "/absent/checkpoint", "runs/absent/checkpoint-5", "runs/absent"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(CheckpointError, match=f"{name} (is no folder|can't be read as .* It is no folder here)"):
        read_checkpoint(MCMModel, name)


def test_scores_of_actions_need_a_trained_head(save, extractor, tmp_path):
    folder = save(extended=True)
    with pytest.raises(ValueError, match="checkpoint has no trained head for actions: .*mcm finetune"):
        pipeline("action-scores", model=folder)
    model = read_checkpoint(MCMForActionRecommendation, folder, ("action_head.",))  # which may be left out
    torch.nn.init.normal_(model.action_head.numbers.weight)
    model.save_pretrained(tmp_path / "offers")
    extractor.save_pretrained(tmp_path / "offers")
    assert pipeline("action-scores", model=str(tmp_path / "offers")).model.config.tasks
    for model_class in (MCMModel, MCMForMultiTaskRecommendation, MCMForActionRecommendation):
        assert type(read_checkpoint(model_class, str(tmp_path / "offers"))) is model_class
