# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The upload folder: what of a checkpoint is in it, and what is refused before anything is sent."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file

from modeling_mcm import MCMForActionRecommendation, MCMForMultiTaskRecommendation
from modeling_mcm.files_mcm import note_digests
from modeling_mcm.hub import PublishingError, check_name, files_to_publish, folder, publish, write_upload_folder
from modeling_mcm.hub.publish import _redact


@pytest.fixture
def checkpoint(tiny_model, extractor, tmp_path):
    folder = tmp_path / "checkpoint"
    tiny_model().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def edit(path, change):
    """Changes a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_only_named_files_and_keys_are_copied_and_the_checkpoint_stays_as_it_was(checkpoint, tmp_path):
    (checkpoint / "notes.txt").write_text("for us")
    edit(checkpoint / "config.json", lambda values: values.update(_name_or_path="/x", owner="ann", _commit_hash="1"))
    edit(checkpoint / "preprocessor_config.json", lambda values: values.update(owner="ann"))
    edit(checkpoint / "preprocessor_config.json", lambda values: values["features"][2].update(factor="units"))
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    write_upload_folder(checkpoint, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before
    code = {name for name in names if name.endswith("_mcm.py")}
    fixed = {"model.safetensors", "config.json", "preprocessor_config.json", "vocabularies.json"}
    assert names == fixed | code and {"modeling_mcm.py", "pipeline_mcm.py", "action_mcm.py"} <= code
    features = [
        json.loads((place / "preprocessor_config.json").read_text())["features"]
        for place in (checkpoint, tmp_path / "out")
    ]
    assert features[0] == features[1]
    assert "ann" not in json.dumps(
        [json.loads((tmp_path / "out" / name).read_text()) for name in fixed if "json" in name]
    )


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
    with open(package / "processing_mcm.py", "a") as file:
        file.write("\nfrom .needed_mcm import X\n")
    write_upload_folder(checkpoint, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").glob("*_mcm.py")} == shipped | {"needed_mcm.py", "deep_mcm.py"}


@pytest.mark.parametrize("head", ["MCMModel", "MCMForMultiTaskRecommendation", "MCMForActionRecommendation"])
def test_only_what_the_checkpoint_can_do_is_announced(head, checkpoint, tmp_path):
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
    if head == "MCMForActionRecommendation":
        MCMForActionRecommendation(model.config).save_pretrained(checkpoint)
    if head == "MCMModel":
        model.model.save_pretrained(checkpoint)
    write_upload_folder(checkpoint, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tasks = ["customer-embedding", "preference-scores", "action-scores"]
    count = ["MCMModel", "MCMForMultiTaskRecommendation", "MCMForActionRecommendation"].index(head) + 1
    assert set(config["custom_pipelines"]) == set(tasks[:count]) and len(config["auto_map"]) == 2 + count
    for entry in config["custom_pipelines"].values():
        assert set(entry["pt"]) <= set(config["auto_map"])


def test_weights_in_several_files_are_published_with_their_index(checkpoint, tmp_path):
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="5KB")
    write_upload_folder(checkpoint, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors.index.json" in names and len([n for n in names if n.startswith("model-")]) > 1
    again = MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def annotate_weights(folder):
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors", metadata={"owner": "ann"})
    note_digests(folder)


def cut_weights(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10**9) + b"{}")


def read_customers(folder):
    edit(folder / "preprocessor_config.json", lambda values: values["features"][1].update(column="who"))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "has no config.json"),
        (lambda folder: (folder / "vocabularies.json").write_text("[" * 10**5), ValueError, "is no JSON"),
        (lambda folder: (folder / "vocabularies.json").write_text("{}"), ValueError, "has no .'bins', 'vocabularies'"),
        (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "holds a list"),
        (lambda folder: edit(folder / "config.json", lambda v: v.update(model_type="bert")), ValueError, "'bert'"),
        (cut_weights, ValueError, "is cut or damaged"),
        (annotate_weights, ValueError, r"has notes \['owner'\]"),
        (read_customers, ValueError, "'items' reads the customer column 'who'"),
    ],
)
def test_what_must_not_or_can_not_be_published_is_refused(spoil, error, message, checkpoint, tmp_path):
    spoil(checkpoint)
    with pytest.raises(error, match=message):
        write_upload_folder(checkpoint, tmp_path / "out")


def test_a_folder_with_something_in_it_is_not_written_to(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_upload_folder(checkpoint, tmp_path / "out")


def test_publish_sends_no_folder_with_other_files_and_no_token(checkpoint, tmp_path):
    write_upload_folder(checkpoint, tmp_path / "out")
    with pytest.raises(PublishingError, match="has no README.md"):
        files_to_publish(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("my token is hf_AnnMayWriteToOrg")
    with pytest.raises(PublishingError, match="README.md holds the token itself"):
        publish(tmp_path / "out", "org/x", token="hf_AnnMayWriteToOrg")
    (tmp_path / "out" / "training_args.bin").write_bytes(b"")
    with pytest.raises(PublishingError, match="holds training_args.bin"):
        publish(tmp_path / "out", "org/x", token="hf_AnnMayWriteToOrg")


@pytest.mark.parametrize("name", ["../../x y", "org/..", "a/b/c", "org/mcm base", "", "org/", "/x", "org/a--b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(PublishingError, match="is no name for the Hub"):
        check_name(name)


@pytest.mark.parametrize("password", ["secret", "p@ss", "p/w", "a:b"])
def test_a_password_in_the_endpoint_is_never_said(password):
    endpoint = f"https://joe:{password}@hub.example/base"
    said = _redact(f"no answer of {endpoint}/api", "hf_token")
    assert password not in said and "joe" not in said and "https://hub.example/base/api" in said
