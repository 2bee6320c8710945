# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing with the unmodified client to a Hub on loopback: what is sent, what is read back, what goes wrong."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from elsewhere import assert_close, read_elsewhere
from hub_server import Account, HubServer, Refusal
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import TrainingArguments, pipeline

from modeling_mcm.hub.publish import is_publishable

ROOT = Path(__file__).resolve().parents[2]
TOKEN, READER, BAD = "hf_AnnMayWriteToOrg01", "hf_BobMayOnlyRead0002", "hf_NobodyKnowsThis003"
REPO = "org/mcm-base"
PRIVATE = ["/home/joe", "joe's", "acme-internal", TOKEN, READER]
CUSTOMER = re.compile(r"\bc\d\d\b")  # c00 to c33
CHANCES = {"mean": 0.25, "low": 0.2, "high": 0.3, "customers": 34}


# Scripts as a person starts them, time after time in one process: what they import takes seconds.
RUNNER = """
import contextlib, io, json, os, runpy, sys, traceback
sys.path.insert(0, "training")
for line in sys.stdin:
    sys.argv, os.environ["HF_TOKEN"] = json.loads(line)
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
            print(code)
        except BaseException:
            code = traceback.format_exc()
            print(code)
    print(json.dumps([code == 0, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    accounts = {TOKEN: Account("ann", ["ann", "org"]), READER: Account("bob", ["bob"])}
    with HubServer(tmp_path_factory.mktemp("hub"), accounts) as server:
        yield server


@pytest.fixture(scope="module")
def process(server, tmp_path_factory):
    """A process that runs the scripts that it reads from a pipe."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", RUNNER]
    with subprocess.Popen(command, cwd=ROOT, env=known | {"PYTHONPATH": str(ROOT)}, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def hub(server, tmp_path):
    """The server, with nothing on it."""
    server.reset(tmp_path / "hub")
    return server


@pytest.fixture
def checkpoint(tiny_model, extractor, tmp_path):
    """A folder as a training leaves it, with all that must stay there."""
    folder = tmp_path / "checkpoint"
    tiny_model(extended=True).save_pretrained(folder)
    extractor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"_name_or_path": "/home/joe/runs/mcm", "data_dir": "/home/joe/acme-internal"}
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor["source"] = "/home/joe/acme-internal/log.parquet"
    preprocessor["features"][0]["note"] = "joe's column"
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    torch.save(TrainingArguments(output_dir="/home/joe/runs", report_to="none"), folder / "training_args.bin")
    (folder / "checkpoint-7").mkdir()
    torch.save({"state": 1}, folder / "checkpoint-7" / "optimizer.pt")
    shutil.copy(folder / "training_args.bin", folder / "model.bin")
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
def run(process):
    """A function that runs a script and gives what it says."""

    def run(*words, token=TOKEN, expect=0):
        print(json.dumps([list(map(str, words)), token]), file=process.stdin, flush=True)
        ended_well, said = json.loads(process.stdout.readline())
        assert ended_well == (expect == 0), said[-3000:]
        assert not any(each in said for each in (TOKEN, READER, BAD)) and "Traceback" not in said, said
        return said

    return run


@pytest.fixture
def push(hub, run, checkpoint):
    """A function that publishes the checkpoint and gives what the command says."""

    def push(*options, repo=REPO, **how):
        return run("training/push_to_hub.py", "--model", checkpoint, "--repo_id", repo, *options, **how)

    return push


def sent_files(hub):
    """Bytes of each file that arrived, by name; weights by their digest."""
    found = {}
    for request in hub.requests:
        if "/commit/" in request.path:
            for line in request.body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    found[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        elif request.method == "PUT":
            found[request.path] = request.body
    return found


def test_what_was_pushed_is_read_back_by_every_way(push, hub, checkpoint, event_log, tmp_path):
    said = push()
    assert f"{hub.url}/{REPO} (new repository" in said
    home = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    log = event_log[event_log["who"] == "c00"].dropna()
    events = log.assign(when=log["when"].astype(str)).drop(columns="who").to_dict("list")
    customers = [{"events": events, "profile": {"age": "old"}}, {"events": []}]
    numbers = read_elsewhere(REPO, customers, [], tmp_path / "elsewhere", **home)
    assert_close(numbers["preferences"], pipeline("preference-scores", model=str(checkpoint))(customers))
    embedded = pipeline("customer-embedding", model=str(checkpoint))(customers)
    assert_close(numbers["embedding"], [row.tolist() for row in embedded])

    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", f"{hub.url}/{REPO}", clone], check=True, timeout=60)
    assert (clone / "vocabularies.json").read_bytes() == (checkpoint / "vocabularies.json").read_bytes()
    assert {path.name for path in clone.iterdir()} - {".git"} == set(hub.files(REPO))
    pointer = (clone / "model.safetensors").read_text()
    assert f"size {(checkpoint / 'model.safetensors').stat().st_size}\n" in pointer


def test_no_byte_that_is_sent_tells_of_the_house(push, hub, tmp_path):
    push()
    files = sent_files(hub)
    weights = [name for name in files if name.startswith("/large/")]
    assert len(weights) == 1 and all(is_publishable(name) for name in files if name not in weights)
    for name, data in files.items():
        assert data[:1] != b"\x80" and data[:2] != b"PK", name  # a pickle, and the archive that torch.save writes
    data = files[weights[0]]
    header = json.loads(data[8 : 8 + (length := struct.unpack("<Q", data[:8])[0])])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - length  # nothing behind
    assert not [name for name in header if "optim" in name or "exp_avg" in name]
    texts = {name: data.decode() for name, data in files.items() if name not in weights}
    # Also what is sent around the files: names, messages, samples of the first bytes.
    for place, request in enumerate(hub.requests):
        body = request.body if request.method != "PUT" else b""
        texts[f"{place} {request.path}"] = body.decode()
        for sample in re.findall(rb'"sample": ?"([^"]*)"', body):
            texts[f"{place} sample {sample[:20]}"] = base64.b64decode(sample).decode("latin1")
    forbidden = [*PRIVATE, str(ROOT), str(tmp_path), f"{Path.home()}/"]
    assert not [(name, each) for name, text in texts.items() for each in forbidden if each in text]
    assert not [(name, found) for name, text in texts.items() for found in CUSTOMER.findall(text)]
    assert not [request.path for request in hub.requests if TOKEN in request.path]


def test_the_card_on_the_hub_has_results_that_the_client_reads(push, hub, prepared):
    push("--data", prepared, "--min_customers", "8")
    text = hub.content(REPO, hub.files(REPO)["README.md"])[0].decode()
    card = ModelCard(text)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("next_visit_ndcg", 0.25, "test")
    assert result.metric_args == {"confidence": 0.95, "low": 0.2, "high": 0.3, "customers": 34, "k": 10}
    assert card.data.license == "apache-2.0"
    assert "`run_pretrain.py configuration/recipes/mine.yaml --data ... --hub_token=...`" in text
    assert any(request.path == "/api/validate-yaml" for request in hub.requests)
    vocabularies = json.loads(hub.content(REPO, hub.files(REPO)["vocabularies.json"])[0])["vocabularies"]
    assert any(value.startswith("[hidden ") for value in vocabularies["items"])
    assert "of fewer than 8 customers" in text


def test_a_repository_that_another_process_makes_at_the_same_moment_is_not_written_to(push, hub):
    def create_first(request):
        if request.path == "/api/repos/create" and not hub.find_path(REPO).exists():
            hub.create(request)
        return False

    hub.interrupt = create_first
    assert "someone else is changing org/mcm-base. Run the same command again" in push(expect=1)
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_publishing_again_makes_a_commit_only_where_something_changed(push, hub, checkpoint):
    push()
    first = hub.head(REPO)
    assert "nothing had changed" in push() and hub.head(REPO) == first
    hub.commit(REPO, "an older version", {"old_mcm.py": b"x = 1\n", "model-00001-of-00002.safetensors": b"x"})
    facts = json.loads((checkpoint / "pretraining.json").read_text())
    (checkpoint / "pretraining.json").write_text(json.dumps(facts | {"seconds": 7200}))
    assert "new commit" in push()
    assert "- Time: 7,200 seconds" in hub.content(REPO, hub.files(REPO)["README.md"])[0].decode()
    assert not {"old_mcm.py", "model-00001-of-00002.safetensors"} & set(hub.files(REPO))
    assert sum(request.method == "PUT" for request in hub.requests) == 1  # the weights, once


def test_a_push_that_breaks_off_leaves_nothing_and_its_repetition_ends_right(push, hub):
    hub.interrupt = lambda request: "/commit/" in request.path
    assert f"The connection to {hub.url} was lost" in push(expect=1)
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.interrupt = lambda request: False
    assert "new commit" in push()
    assert {"model.safetensors", "README.md", "pipeline_mcm.py"} <= set(hub.files(REPO))
    assert "nothing had changed" in push()
    assert sum(request.method == "PUT" for request in hub.requests) == 1


def test_weights_that_break_off_are_sent_again(push, hub, checkpoint):
    broken = []
    hub.interrupt = lambda request: request.method == "PUT" and not broken and not broken.append(request)
    push()
    assert len(broken) == 1
    blob = hub.files(REPO)["model.safetensors"]
    assert hub.content(REPO, blob)[0] == (checkpoint / "model.safetensors").read_bytes()


def test_a_dry_run_shows_what_would_be_sent_and_calls_no_one(push, hub, tmp_path):
    said = push("--dry_run", "--output_dir", tmp_path / "kept", "--card", tmp_path / "card.md", token="")
    assert (tmp_path / "card.md").read_text() == (tmp_path / "kept" / "README.md").read_text()
    assert "Nothing was sent" in said and "model.safetensors" in said and "training_args" not in said
    assert not hub.requests
    names = [path.name for path in (tmp_path / "kept").iterdir()]
    assert all(map(is_publishable, names)) and "README.md" in names
    with safe_open(tmp_path / "kept" / "model.safetensors", "pt") as weights:
        assert list(weights.keys())


def test_the_example_publishes_and_reads_back(hub, run, checkpoint):
    said = run("examples/8_publish.py", checkpoint, REPO)
    assert f"{hub.url}/{REPO}: a new commit" in said and "an embedding of 16 numbers" in said
    assert b"Results" in hub.content(REPO, hub.files(REPO)["README.md"])[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--min_customers", "5"], "needs --data"),
        (["--data", "docs", "--min_customers", "1"], "every value has 1 customer"),
        (["--data", "nowhere"], "--data is 'nowhere', which is no folder"),
        (["--data", "docs"], "docs"),
        (["--model", "runs/nowhere"], "--model is 'runs/nowhere', which is no folder"),
        (["--evaluation", "nowhere.json"], "nowhere.json"),
        (["--create_onyl"], "did you mean 'create_only'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_are_refused_before_anything_is_sent(push, hub, options, expected):
    assert expected in push(*options, expect=1)
    assert not hub.requests


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"token": ""}, "There is no token for the Hub: run `hf auth login`"),
        ({"token": BAD}, "it does not accept the token"),
        ({"token": READER}, "the token has no right to write to org/mcm-base"),
        ({"repo": "org/mcm base"}, "is no name for the Hub"),
    ],
    ids=["no token", "wrong token", "no right", "no name"],
)
def test_what_goes_wrong_is_said_clearly(push, hub, options, expected):
    assert expected in push(expect=1, **options)
    assert not (hub.folder / "repositories").exists()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, "the Hub has a problem"), (409, "someone else is changing"), (418, "was not published")],
)
def test_a_refused_commit_says_why_without_the_token(push, hub, status, expected):
    def refuse(request):
        if "/commit/" in request.path:
            raise Refusal(status, f"no, {request.headers['authorization']}")

    hub.interrupt = refuse
    said = push(expect=1)
    assert expected in said and f"answered {status} (no, Bearer hf_...)" in said


def test_a_repository_that_exists_is_refused_where_that_was_asked_for(push, hub):
    push()
    head = hub.head(REPO)
    assert "org/mcm-base exists already" in push("--create_only", expect=1)
    assert "exists and is public, and nothing was sent" in push("--private", expect=1)
    assert hub.head(REPO) == head
    push("--private", repo="org/secret")
    assert "org/secret" in hub.private and "nothing had changed" in push("--private", repo="org/secret")
    assert f"{hub.url}/ann/mine" in push(repo="mine")  # no namespace: the user's own
