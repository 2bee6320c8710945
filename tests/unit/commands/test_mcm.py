# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The console command `mcm`: what it lists, where it goes, and models by name."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from folders import read_json

import modeling_mcm
from modeling_mcm import MCMConfig
from modeling_mcm.commands import main as mcm
from modeling_mcm.training.encoder.recipe import SIZES, TRAINING, make_config

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(monkeypatch):
    """A function that runs `mcm` with some words, in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mcm", *words])
        mcm.main()

    return call


def test_help_has_a_line_for_every_command(run, capsys):
    run("--help")
    lines = capsys.readouterr().out.splitlines()
    modules = {path.stem for path in Path(mcm.__file__).parent.glob("*.py")} - {"__init__", "arguments", "main"}
    assert {*modules, "start"} == mcm.COMMANDS.keys() == {line.split()[0] for line in lines if line.startswith("  ")}


def test_the_version_is_that_of_the_package(run, capsys):
    run("--version")
    assert capsys.readouterr().out.strip() == modeling_mcm.__version__


def test_a_command_that_does_not_exist_is_answered(run):
    with pytest.raises(SystemExit, match=r"mcm: found 'train', expected one of prepare, .*; see mcm --help\."):
        run("train")


@pytest.mark.parametrize("name", mcm.COMMANDS)
def test_each_command_shows_its_options(run, capsys, name):
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    assert end.value.code == 0 and f"usage: mcm {name} [recipe.yaml]" in capsys.readouterr().out


def test_help_of_pretraining_shows_what_the_recipe_takes(run, capsys):
    with pytest.raises(SystemExit):
        run("pretrain", "--help")
    words = " ".join(capsys.readouterr().out.split())
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "ema_decay", "lr_scheduler_type"):
        assert re.search(rf"--{name} .*?\(default: (.*?)\)", words)[1] == str(TRAINING[name]), name


def test_a_missing_package_is_one_sentence(run, monkeypatch):
    def missing():
        raise ImportError("ibis is not installed, which comes with an extra: pip install 'modeling-mcm[data]'.")

    monkeypatch.setattr(importlib.import_module("modeling_mcm.commands.prepare"), "main", missing)
    with pytest.raises(SystemExit, match=r"^mcm prepare: ibis is not installed.*modeling-mcm\[data\]'\.$"):
        run("prepare")


@pytest.mark.parametrize("name", SIZES)
def test_a_model_by_name_is_that_of_the_configuration(name, tmp_path, monkeypatch):
    folder = ROOT / "configuration" / name
    assert MCMConfig(**make_config(name)) == MCMConfig(**read_json(folder / "config.json"))
    monkeypatch.chdir(tmp_path)
    MCMConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path / name)
    assert make_config(name)["hidden_size"] == 8  # a folder of this name goes first


def test_help_of_start_is_of_start(run, capsys):
    with pytest.raises(SystemExit):
        run("start", "--help")
    words = capsys.readouterr().out
    assert "without an encoder, in minutes" in words and {*re.findall(r"^  --(\w+)", words, re.M)} == {
        *("data", "output_dir", "network", "max_events", "seed", "disable_tqdm")
    }


def test_start_is_pretraining_without_an_encoder(run, monkeypatch):
    said = []
    pretrain = importlib.import_module("modeling_mcm.commands.pretrain")
    monkeypatch.setattr(pretrain, "main", lambda: said.extend(sys.argv))
    run("start", "--data", "prepared")
    assert said == ["mcm start", "--data", "prepared", "--encoder=none"]
