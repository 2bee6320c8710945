# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The upload folder: what of a checkpoint is in it, and what is refused before anything is sent."""

import shutil
import struct
from pathlib import Path

import pytest
import torch
from folders import content, edit_json, read_json, rewritten, update_json, without
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_mcm import MCMFeatureExtractor, MCMForActionRecommendation, MCMForMultiTaskRecommendation
from modeling_mcm.hub import PublishingError, check_name, folder, publish, write_upload_folder
from modeling_mcm.hub.publish import _redact


@pytest.fixture
def checkpoint(save, extractor):
    return Path(save(values_digest=extractor.values_digest))


def test_only_named_files_and_keys_are_copied_and_the_checkpoint_stays_as_it_was(checkpoint, tmp_path):
    (checkpoint / "notes.txt").write_text("for us")
    update_json(checkpoint / "config.json", _name_or_path="/x", owner="ann", _commit_hash="1")
    update_json(checkpoint / "preprocessor_config.json", owner="ann")
    change_features(checkpoint, 2, factor="units")
    save_file(load_file(checkpoint / "model.safetensors"), checkpoint / "model.safetensors", {"owner": "ann"})
    before = content(checkpoint)
    write_upload_folder(checkpoint, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert content(checkpoint) == before
    code = {name for name in names if name.endswith("_mcm.py")}
    fixed = {"model.safetensors", "config.json", "preprocessor_config.json", "vocabularies.json"}
    assert names == fixed | code and {"modeling_mcm.py", "pipeline_mcm.py", "action_mcm.py"} <= code
    texts = [(tmp_path / "out" / name).read_text() for name in fixed if name.endswith("json")]
    first, second = (read_json(place / "preprocessor_config.json") for place in (checkpoint, tmp_path / "out"))
    assert first["features"] == second["features"] and "ann" not in str(texts)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata().keys() == {"format", "settings", "sha256"}


def test_code_that_an_entry_point_reaches_is_published_and_no_other(checkpoint, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    for file in folder.PACKAGE.glob("*_mcm.py"):
        shutil.copy(file, package)
    shipped = {file.name for file in package.iterdir()}  # each flat file is reached
    (package / "stray_mcm.py").write_text("from .needed_mcm import X\n")
    (package / "needed_mcm.py").write_text("from .deep_mcm import X\n")
    (package / "deep_mcm.py").write_text("X = 1\n")
    monkeypatch.setattr(folder, "PACKAGE", package)
    assert {file.name for file in folder.code_files()} == shipped
    with open(package / "feature_extraction_mcm.py", "a") as file:
        file.write("\nfrom .needed_mcm import X\n")
    write_upload_folder(checkpoint, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").glob("*_mcm.py")} == shipped | {"needed_mcm.py", "deep_mcm.py"}


RANKS = {"customer-embedding", "preference-scores"}


@pytest.mark.parametrize("place, tasks", enumerate((RANKS, RANKS | {"action-scores"}, {"customer-embedding"})))
def test_only_what_the_checkpoint_can_do_is_announced(place, tasks, checkpoint, tmp_path):
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
    (model, MCMForActionRecommendation(model.config), model.model)[place].save_pretrained(checkpoint)
    write_upload_folder(checkpoint, tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert set(config["custom_pipelines"]) == tasks and len(config["auto_map"]) == 2 + len(tasks)
    for entry in config["custom_pipelines"].values():
        assert set(entry["pt"]) <= set(config["auto_map"])


def test_weights_in_several_files_are_published_as_one(checkpoint, tmp_path):
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="5KB")
    write_upload_folder(checkpoint, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names and not [n for n in names if n.startswith("model-") or "index" in n]
    again = MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def cut_weights(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10**9) + b"{}")


def change_features(folder, place, **changes):
    """A change of a feature by someone who saves the feature extractor again."""
    extractor = MCMFeatureExtractor.from_pretrained(folder)
    extractor.features[place] |= changes
    extractor.save_pretrained(folder)


def reorder_values(folder):
    edit_json(folder / "vocabularies.json", lambda values: values["vocabularies"]["items"].reverse())


def fill_the_target(folder):
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "mine.txt").touch()


REFUSED = {
    "config.json is missing": without("config.json"),
    "vocabularies.json is damaged .ValueError": rewritten("vocabularies.json", "[" * 10**5),
    "vocabularies.json is damaged .KeyError: 'vocabularies'": rewritten("vocabularies.json", "{}"),
    "holds no JSON object": rewritten("config.json", "[]"),
    "'bert'": lambda folder: update_json(folder / "config.json", model_type="bert"),
    "is cut or damaged": cut_weights,
    "'items' reads the customer column 'who'": lambda folder: change_features(folder, 1, column="who"),
    "from one and the same save": reorder_values,
    "is not empty": fill_the_target,
}


@pytest.mark.parametrize(("message", "spoil"), REFUSED.items(), ids=REFUSED)
def test_what_must_not_or_can_not_be_published_is_refused(spoil, message, checkpoint, tmp_path):
    spoil(checkpoint)
    with pytest.raises((ValueError, OSError), match=message):
        write_upload_folder(checkpoint, tmp_path / "out")


def test_publish_sends_no_folder_with_other_files_and_no_token(checkpoint, tmp_path):
    token, target = "hf_AnnMayWriteToOrg", tmp_path / "out"
    write_upload_folder(checkpoint, target)
    for name, message in (("", "has no README.md"), ("README.md", "the token itself"), ("args.bin", "holds args.bin")):
        if name:
            (target / name).write_text(token)
        with pytest.raises(PublishingError, match=message):
            publish(target, "org/x", token=token)


@pytest.mark.parametrize("name", ["../../x y", "org/..", "a/b/c", "org/mcm base", "", "org/", "/x", "org/a--b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(PublishingError, match="is no name for the Hub"):
        check_name(name)


@pytest.mark.parametrize("password", ["secret", "p@ss", "p/w", "a:b"])
def test_a_password_in_the_endpoint_is_never_said(password):
    endpoint = f"https://joe:{password}@hub.example/base"
    said = _redact(f"no answer of {endpoint}/api", "hf_token")
    assert password not in said and "joe" not in said and "https://hub.example/base/api" in said
