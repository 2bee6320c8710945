# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights, config and vocabularies of a checkpoint are of one save, or it is not read; and it is read whole."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_mcm import (
    MCMConfig,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    MCMModel,
)
from modeling_mcm.hub.folder import write_upload_folder
from modeling_mcm.training.checkpoints import CheckpointError, read_checkpoint

CLASSES = [MCMModel, MCMForMultiTaskRecommendation, MCMForActionRecommendation]
DIGEST = "model.embeddings.values_digest"


@pytest.fixture
def tied(save, extractor):
    """Folder of a checkpoint whose weights and config know their values, as pre-training leaves it."""
    return Path(save(extended=True, values_digest=extractor.values_digest))


@pytest.fixture
def others(tiny_model, extractor, tmp_path):
    """Folder of a checkpoint of the same sizes, of other values."""
    extractor.vocabularies["items"].reverse()
    other = MCMFeatureExtractor(
        **{**extractor.to_dict(), **{n: getattr(extractor, n) for n in ("vocabularies", "bins")}}
    )
    tiny_model(extended=True, values_digest=other.values_digest).save_pretrained(tmp_path / "others")
    other.save_pretrained(tmp_path / "others")
    return tmp_path / "others"


def edit(folder, change):
    path = folder / "vocabularies.json"
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def swap(values):
    values[-1], values[-2] = values[-2], values[-1]


REORDERED = {
    "two values swapped": lambda stored: swap(stored["vocabularies"]["items"]),
    "shuffled": lambda stored: random.Random(0).shuffle(stored["vocabularies"]["items"]),
    "of a profile": lambda stored: swap(stored["vocabularies"]["age"]),
    "a value renamed": lambda stored: stored["vocabularies"]["aisle"].__setitem__(0, "aisle 9"),
    "another edge": lambda stored: stored["bins"]["a.b"].__setitem__(-1, 1e6),
}


@pytest.mark.parametrize("change", REORDERED.values(), ids=REORDERED)
@pytest.mark.parametrize("model_class", CLASSES)
def test_vocabularies_in_another_order_are_refused(tied, model_class, change):
    model_class.from_pretrained(tied)
    edit(tied, change)
    with pytest.raises(
        ValueError, match=r"other values, or in another order, in vocabularies.json .*one and the same"
    ):
        model_class.from_pretrained(tied)
    with pytest.raises(CheckpointError, match=r"vocabularies.json .*of one and the same|from one and the same save"):
        read_checkpoint(model_class, str(tied), ("action_head.",))
    with pytest.raises(ValueError, match="other values, or in another order"):
        pipeline("customer-embedding", model=str(tied))


@pytest.mark.parametrize("files", [["model.safetensors"], ["config.json"], ["config.json", "vocabularies.json"]])
def test_files_of_another_save_are_refused(tied, others, files):
    for name in files:
        shutil.copy(others / name, tied / name)
    with pytest.raises(ValueError, match="from one and the same save"):
        MCMForMultiTaskRecommendation.from_pretrained(tied)


def test_all_files_of_another_save_are_that_save(tied, others):
    for name in ("model.safetensors", "config.json", "vocabularies.json", "preprocessor_config.json"):
        shutil.copy(others / name, tied / name)
    assert MCMForMultiTaskRecommendation.from_pretrained(tied).config.values_digest


def test_a_pipeline_with_another_checkpoint_s_extractor_is_refused(tied, others, prepare_log, event_log):
    model = MCMForMultiTaskRecommendation.from_pretrained(tied)
    other = MCMFeatureExtractor.from_pretrained(others)
    with pytest.raises(ValueError, match="other values, or in another order"):
        pipeline("preference-scores", model=model, feature_extractor=other)
    smaller = prepare_log(event_log[event_log["item"] != "item 01"]) / "feature_extractor"
    with pytest.raises(ValueError, match="feature extractor has the features and sizes .* take both from one"):
        pipeline("preference-scores", model=model, feature_extractor=MCMFeatureExtractor.from_pretrained(str(smaller)))


def test_the_order_of_features_in_the_file_says_nothing(tied):
    edit(tied, lambda stored: stored.update(vocabularies=dict(reversed(list(stored["vocabularies"].items())))))
    found = MCMModel.from_pretrained(tied)
    assert MCMFeatureExtractor.from_pretrained(tied).values_digest == found.config.values_digest


def test_what_is_saved_again_is_tied_again(tied, tmp_path):
    model = MCMForMultiTaskRecommendation.from_pretrained(tied)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors")[DIGEST].any()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["values_digest"] == model.config.values_digest
    config = MCMConfig.from_pretrained(tied, values_digest=None)  # as one that is made by hand
    assert MCMModel.from_pretrained(tied, config=config).config.values_digest == model.config.values_digest


def test_an_old_checkpoint_is_read_and_it_is_said_that_nothing_ties_it(tied, monkeypatch):
    config = json.loads((tied / "config.json").read_text())
    del config["values_digest"]
    (tied / "config.json").write_text(json.dumps(config))
    tensors = load_file(tied / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if name != DIGEST}, tied / "model.safetensors")
    said = []
    monkeypatch.setattr("modeling_mcm.files_mcm.logger.warning_once", said.append)
    for model_class in CLASSES[:2]:
        model, loading = model_class.from_pretrained(tied, output_loading_info=True)
        assert not loading["missing_keys"] and model.config.values_digest is None
        assert not model.base_model.embeddings.values_digest.any()
        assert type(read_checkpoint(model_class, str(tied))) is model_class
    assert said and all("does not say which values its weights were trained with" in text for text in said)


def test_new_values_are_tied_with_their_model(tied, tmp_path):
    model, extractor = MCMForMultiTaskRecommendation.from_pretrained(tied), MCMFeatureExtractor.from_pretrained(tied)
    before = extractor.values_digest
    model.resize_feature_vocabulary("items", ["a new item"], extractor)
    assert extractor.values_digest != before
    model.save_pretrained(tmp_path / "grown")
    with pytest.raises(ValueError, match="feature extractor has the features and sizes .* take both from one"):
        pipeline("customer-embedding", model=model, feature_extractor=MCMFeatureExtractor.from_pretrained(tied))
    extractor.save_pretrained(tmp_path / "grown")
    assert MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "grown").config.values_digest != before


def test_a_published_folder_with_placeholders_is_tied(tied, extractor, tmp_path):
    hidden = {"items": extractor.vocabularies["items"][:2]}
    write_upload_folder(tied, tmp_path / "published", hidden, {})
    published = MCMFeatureExtractor.from_pretrained(str(tmp_path / "published"))
    assert published.vocabularies != extractor.vocabularies
    model = MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "published")
    assert model.config.values_digest == published.values_digest
    edit(tied, REORDERED["shuffled"])
    with pytest.raises(ValueError, match="from one and the same save"):
        write_upload_folder(tied, tmp_path / "other")


# ------------------------------------------------------------------------------------------------------ read whole


LEFT_OUT = {
    "no layers": ({"num_hidden_layers": 0}, "encoder.layer.0"),
    "no biases": ({"readout_bias": False}, "readout_bias"),
    "no memory": ({"repeat_memory": False}, "repeat_mem"),
    "no positions": ({"max_position_embeddings": None}, "position_embeddings"),
}


@pytest.mark.parametrize(("change", "name"), LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("way", ["options", "file"])
def test_weights_without_a_place_are_an_error_when_read_directly(tied, change, name, way):
    given = change if way == "options" else {}
    if way == "file":
        config = json.loads((tied / "config.json").read_text())
        (tied / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"weights that MCMForMultiTaskRecommendation has no place for .*{name}"):
        MCMForMultiTaskRecommendation.from_pretrained(tied, **given)
    model, loading = MCMForMultiTaskRecommendation.from_pretrained(tied, output_loading_info=True, **given)
    assert loading["unexpected_keys"]  # who asks for them sees them


def test_every_class_reads_the_checkpoints_of_the_others(tied, tmp_path):
    MCMForActionRecommendation.from_pretrained(tied).save_pretrained(tmp_path / "offers")
    MCMModel.from_pretrained(tied).save_pretrained(tmp_path / "base")
    for folder in (tied, tmp_path / "offers", tmp_path / "base"):
        for model_class in CLASSES:
            model = model_class.from_pretrained(folder)
            assert bytes(model.base_model.embeddings.values_digest.tolist()).hex() == model.config.values_digest


def test_a_foreign_weight_is_an_error(tied):
    tensors = load_file(tied / "model.safetensors") | {"model.encoder.layer.7.new": torch.ones(2)}
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    for model_class in CLASSES:
        with pytest.raises(ValueError, match=r"has 1 weights that .* no place for .*layer\.7\.new"):
            model_class.from_pretrained(tied)
