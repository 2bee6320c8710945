# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing: what is sent, what is read back, and what is said where something goes wrong."""

import importlib
import json
import re
from pathlib import Path

import httpx2
import pytest
import torch
from fake_hub import FakeHub, refusal
from folders import update_json
from in_process import ROOT
from safetensors import safe_open
from transformers import TrainingArguments

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.hub import files_to_publish

publishing = importlib.import_module("modeling_mcm.hub.publish")  # the name is that of a function, too
TOKEN, READER, BAD = "hf_AnnMayWriteToOrg01", "hf_BobMayOnlyRead0002", "hf_NobodyKnowsThis003"
REPO = "org/mcm-base"
PRIVATE = ["/home/joe", "joe's", "acme-internal", TOKEN, READER]
CUSTOMER = re.compile(r"\bc\d\d\b")  # c00 to c33
CHANCES = {"mean": 0.25, "low": 0.2, "high": 0.3, "customers": 34}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub, with nothing on it."""
    hub = FakeHub(tmp_path / "hub", {TOKEN: ("ann", ["ann", "org"]), READER: ("bob", ["bob"])})
    monkeypatch.setattr(publishing, "HfApi", hub)
    return hub


@pytest.fixture
def checkpoint(save):
    """A folder as a training leaves it, with all that must stay there."""
    folder = Path(save(extended=True))
    update_json(folder / "config.json", _name_or_path="/home/joe/runs/mcm", data_dir="/home/joe/acme-internal")
    extractor = MCMFeatureExtractor.from_pretrained(folder)
    extractor.features[0]["note"] = "joe's column"
    extractor.source = "/home/joe/acme-internal/log.parquet"
    extractor.save_pretrained(folder)
    (folder / "checkpoint-7").mkdir()
    for name in ("training_args.bin", "model.bin", "checkpoint-7/optimizer.pt"):
        torch.save(TrainingArguments(output_dir="/home/joe/runs", report_to="none"), folder / name)
    (folder / "trainer_state.json").write_text('{"best_model_checkpoint": "/home/joe/runs"}')
    (folder / "predictions.csv").write_text("c00,item 03")
    command = f"run_pretrain.py configuration/recipes/mine.yaml --data /home/joe/acme-internal --hub_token {TOKEN}"
    facts = {"seconds": 3600.0, "steps": 20, "customers": 34, "command": command, "seed": 42, "data": "corner_shop"}
    (folder / "pretraining.json").write_text(json.dumps(facts))
    found = {method: {"items": {"next_visit_ndcg@10": CHANCES}} for method in ("most_popular", "MCM")}
    evaluation = {"data": "corner_shop", "cutoff": "test", "cases": 30, "results": found}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.fixture
def push(hub, checkpoint, command, monkeypatch):
    """A function that publishes the checkpoint and gives what the command says."""

    def push(*options, repo=REPO, token=TOKEN, fails=None):
        monkeypatch.setattr(publishing, "get_token", lambda: token)
        said = command("push_to_hub", "--model", checkpoint, "--repo_id", repo, *options, fails=fails)
        assert not any(each in said for each in (TOKEN, READER, BAD)), said
        return said

    return push


def test_what_is_sent_tells_nothing_of_the_house(push, hub, tmp_path):
    assert f"https://hub.test/{REPO} (new repository" in push()
    with safe_open(hub.folder / REPO / "model.safetensors", "pt") as weights:  # which bears nothing behind them
        assert weights.metadata().keys() == {"format", "settings", "sha256"}
    texts = {path.name: path.read_bytes() for path in (hub.folder / REPO).iterdir()}
    del texts["model.safetensors"]
    texts = {name: content.decode() for name, content in texts.items()}  # no pickle, which is no text
    assert {"README.md", "pipeline_mcm.py"} <= texts.keys()
    forbidden = [*PRIVATE, str(ROOT), str(tmp_path), f"{Path.home()}/"]
    assert not [(name, each) for name, text in texts.items() for each in forbidden if each in text]
    assert not [(name, found) for name, text in texts.items() for found in CUSTOMER.findall(text)]


def test_publishing_again_makes_a_commit_only_where_something_changed(push, hub, checkpoint):
    push()
    first = hub.head(REPO)
    assert "nothing had changed" in push() and hub.head(REPO) == first
    for name in ("old_mcm.py", "model-00001-of-00002.safetensors"):
        (hub.folder / REPO / name).write_bytes(b"x = 1")
    update_json(checkpoint / "pretraining.json", seconds=7200)
    assert "new commit" in push()
    assert "- Time: 7,200 seconds" in (hub.folder / REPO / "README.md").read_text()
    assert not [*(hub.folder / REPO).glob("old_mcm.py"), *(hub.folder / REPO).glob("model-*")]


def test_a_dry_run_shows_what_would_be_sent_and_calls_no_one(push, hub, tmp_path):
    said = push("--dry_run", "--output_dir", tmp_path / "kept", token=None)
    assert "Nothing was sent" in said and "model.safetensors" in said and "training_args" not in said
    assert hub.token is None
    assert tmp_path / "kept" / "model.safetensors" in files_to_publish(tmp_path / "kept")


def test_the_example_publishes_and_reads_back(hub, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(publishing, "get_token", lambda: TOKEN)
    hub.folder.mkdir()
    monkeypatch.chdir(hub.folder)  # where the name is that of a folder
    importlib.import_module("8_publish").main(checkpoint, REPO)
    said = capsys.readouterr().out
    assert f"https://hub.test/{REPO}: a new commit" in said and "an embedding of 16 numbers" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"token": None}, "There is no token for the Hub: run `hf auth login`"),
        ({"token": BAD}, "401 Invalid username or password"),
        ({"token": READER}, "403 You don't have the rights"),
    ],
    ids=["no token", "wrong token", "no right"],
)
def test_what_goes_wrong_is_said_clearly(push, hub, options, expected):
    push(fails=expected, **options)
    assert not hub.folder.exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refusal(503, f"no, Bearer {TOKEN}"), "was not published (HfHubHTTPError: 503 no, Bearer hf_...)"),
        (httpx2.ReadError("gone"), "(ReadError: gone). A push is one commit, so the repository is as it was"),
    ],
    ids=["refused", "lost"],
)
def test_a_commit_that_fails_says_why_without_the_token_and_can_be_repeated(push, hub, error, expected):
    def fail():
        raise error

    hub.before_commit = fail
    push(fails=expected)
    hub.before_commit = lambda: None
    assert "new commit" in push() and "nothing had changed" in push()


def test_a_repository_that_exists_is_refused_where_that_was_asked_for(push, hub):
    push()
    head = hub.head(REPO)
    push("--private", fails="exists and is public, and nothing was sent")
    assert hub.head(REPO) == head
    push("--private", repo="org/secret")
    assert "org/secret" in hub.private
    assert "https://hub.test/ann/mine" in push(repo="mine")  # no namespace: the user's own
