# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint: weights, config and vocabularies must be complete and of one save; the extractor's files."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from choices import perturb
from folders import edit_json, flipped_bits, read_json, update_json
from handmade_extractor import CUSTOMER, SETTINGS, make
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_mcm import (
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    MCMModel,
)
from modeling_mcm.checkpoint_mcm import VOCABULARIES_NAME
from modeling_mcm.training.checkpoints import CheckpointError

CLASSES = [MCMModel, MCMForMultiTaskRecommendation, MCMForActionRecommendation]


@pytest.fixture
def tied(save, extractor):
    """Folder of a checkpoint whose weights and config know their values, as pre-training leaves it."""
    return Path(save(extended=True, values_digest=extractor.values_digest))


@pytest.fixture
def others(tiny_model, extractor, tmp_path):
    """Folder of a checkpoint of the same sizes, of other values."""
    extractor.vocabularies["items"].reverse()
    for part in (perturb(tiny_model(extended=True, values_digest=extractor.values_digest)), extractor):
        part.save_pretrained(tmp_path / "others")
    return tmp_path / "others"


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
def test_changed_vocabularies_are_refused(tied, change):
    edit_json(tied / VOCABULARIES_NAME, change)
    for read in CLASSES:
        with pytest.raises(
            ValueError, match="other values, or in another order, in vocabularies.json .*one and the s"
        ):
            read.from_pretrained(tied)


@pytest.mark.parametrize("files", [["model.safetensors"], ["config.json"], ["config.json", "vocabularies.json"]])
def test_files_of_another_save_are_refused(tied, others, files):
    for name in files:
        shutil.copy(others / name, tied / name)
    with pytest.raises(ValueError, match="from one and the same save"):
        MCMForMultiTaskRecommendation.from_pretrained(tied)


def test_pipeline_refuses_another_extractor(tied, others, prepare_log, event_log):
    model = MCMForMultiTaskRecommendation.from_pretrained(tied)
    other = MCMFeatureExtractor.from_pretrained(others)
    with pytest.raises(ValueError, match="other values, or in another order"):
        pipeline("preference-scores", model=model, feature_extractor=other)
    with pytest.raises(ValueError, match="has the tasks .*and .* was trained with .* take both from one"):
        MCMFeatureExtractor.from_pretrained(tied, tasks=[]).check_fits(model)
    smaller = prepare_log(event_log[event_log["item"] != "item 01"]) / "feature_extractor"
    with pytest.raises(ValueError, match="feature extractor has the features and sizes .* take both from one"):
        pipeline("preference-scores", model=model, feature_extractor=MCMFeatureExtractor.from_pretrained(str(smaller)))


def test_unknown_digest_gives_a_warning(save, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_mcm.checkpoint_mcm.logger.warning_once", said.append)
    assert MCMModel.from_pretrained(save(values_digest=None)).config.values_digest is None
    assert said and "does not say which values its weights were trained with" in said[0]


# ------------------------------------------------------------------------------------------------------ read whole


def test_every_class_reads_checkpoints_of_the_others(tied, tmp_path):
    MCMForActionRecommendation.from_pretrained(tied).save_pretrained(tmp_path / "offers")
    MCMModel.from_pretrained(tied).save_pretrained(tmp_path / "base")
    folders = tied, tmp_path / "offers", tmp_path / "base"
    found = {each.from_pretrained(folder).config.values_digest for folder in folders for each in CLASSES}
    assert len(found) == 1 and None not in found


@pytest.mark.parametrize("place", ["a folder", "the cache of the Hub"])
def test_a_flipped_bit_of_the_weights_is_found(tied, tmp_path, place):
    source, options = tied, {}
    if place == "the cache of the Hub":
        source, options = "org/name", {"cache_dir": tmp_path / "cache"}
        repository, commit = tmp_path / "cache" / "models--org--name", "0" * 40
        shutil.copytree(tied, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        tied = repository / "snapshots" / commit
    for _ in flipped_bits(tied / "model.safetensors"):
        with pytest.raises((CheckpointError, SafetensorError)):
            MCMForMultiTaskRecommendation.from_pretrained(source, **options)
    MCMForMultiTaskRecommendation.from_pretrained(source, **options)


def test_weights_of_other_origins_have_no_digest_and_are_read(tied, tmp_path):
    assert read_json(tied / "config.json")[DIGESTS]
    update_json(tied / "config.json", **{DIGESTS: None})
    save_file(load_file(tied / "model.safetensors"), tied / "model.safetensors", {"format": "pt", "by": "another"})
    assert DIGESTS not in MCMModel.from_pretrained(tied).config.to_dict()


def test_saving_over_a_checkpoint_in_parts_and_pushing_keep_the_digests_right(tied, monkeypatch):
    pushed = []
    monkeypatch.setattr(MCMModel, "push_to_hub", lambda self, name, **options: pushed.append((name, options)))
    model = MCMModel.from_pretrained(tied)
    model.save_pretrained(tied, max_shard_size="5KB", push_to_hub=True, repo_id="org/name", private=True)
    (tied / "model.safetensors").unlink()
    assert len(MCMModel.from_pretrained(tied).state_dict()) == len(model.state_dict())
    model.save_pretrained(tied, state_dict=model.state_dict())
    noted = read_json(tied / "config.json")[DIGESTS]
    assert list(noted) == ["model.safetensors"] and pushed == [("org/name", {"private": True})]
    MCMModel.from_pretrained(tied)


def test_saved_extractor_is_loaded_equal(tmp_path):
    edges = [0.1 + 0.2, 1 / 3, 5e-324, 1e300]
    extractor = make(bins={**SETTINGS["bins"], "a.b": sorted(edges)})
    extractor.vocabularies["items"] += ["crème", "\ud800", 'quote " and \n line']
    saved = extractor.save_pretrained(tmp_path)
    assert sorted(saved) == [str(tmp_path / name) for name in ("preprocessor_config.json", VOCABULARIES_NAME)]
    assert not {"vocabularies", "bins"} & set(read_json(tmp_path / "preprocessor_config.json"))
    for source in (tmp_path, str(tmp_path / "preprocessor_config.json")):
        loaded = MCMFeatureExtractor.from_pretrained(source)
        assert loaded.to_dict() == extractor.to_dict() and loaded.values_digest == extractor.values_digest
        torch.testing.assert_close(*(each([CUSTOMER, {"events": []}]) for each in (loaded, extractor)), rtol=0, atol=0)
    assert MCMFeatureExtractor.from_pretrained(tmp_path, max_events=3).max_events == 3


def test_push_saves_vocabularies_first(tmp_path, monkeypatch):
    pushed = {}

    def push_to_hub(self, repo_id, **options):
        pushed[repo_id] = {path.name for path in (tmp_path / "grocer").iterdir()}

    monkeypatch.setattr(MCMFeatureExtractor, "push_to_hub", push_to_hub)
    make().save_pretrained(tmp_path / "grocer", push_to_hub=True)
    assert pushed == {"grocer": {"preprocessor_config.json", VOCABULARIES_NAME}}


def test_bad_vocabulary_file_is_named(tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / VOCABULARIES_NAME
    whole = path.read_text()
    for damaged in (whole[: len(whole) // 2], "[]", "{}", '{"vocabularies": {}, "bins": 3}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=f"{VOCABULARIES_NAME} is damaged .* save the feature extractor again"):
            MCMFeatureExtractor.from_pretrained(tmp_path)
    path.write_text(whole.replace('"items"', '"brand"'))
    with pytest.raises(ValueError, match=f"Found vocabularies of .*'brand'.* the features need .*{VOCABULARIES_NAME}"):
        MCMFeatureExtractor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=f"has no {VOCABULARIES_NAME}.* save the feature extractor again"):
        MCMFeatureExtractor.from_pretrained(tmp_path)
