# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Progress bars have one switch, that of transformers, and every script has an option for it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pytest
from synthetic_log import run
from transformers import TrainingArguments
from transformers.utils import logging

from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.progress import disable_progress_bars, enable_progress_bars

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Options:
    name: str = field(default="x", metadata={"help": "A word."})


@pytest.fixture(autouse=True)
def bars():
    """Bars as they were, whatever a test does."""
    yield
    enable_progress_bars()


def test_preparation_shows_a_bar_until_it_is_switched_off(tmp_path, capfd):
    run(tmp_path, name="shown")
    assert "Preparing" in capfd.readouterr().err
    disable_progress_bars()
    run(tmp_path, name="quiet")
    datasets.Dataset.from_dict({"x": np.arange(3)}).map(lambda row: row)
    assert capfd.readouterr().err == ""


def test_every_script_has_the_option(tmp_path):
    classes, words = (Options, TrainingArguments), ["--output_dir", str(tmp_path)]
    _, training = parse_options(*classes, description=None, arguments=words)
    assert logging.is_progress_bar_enabled() and not training.disable_tqdm
    options, training = parse_options(*classes, description=None, arguments=[*words, "--no_progress"])
    assert options == Options() and training.disable_tqdm
    assert not logging.is_progress_bar_enabled() and datasets.utils.are_progress_bars_disabled()


@pytest.mark.parametrize("room", ["modeling_mcm", "training"])
def test_there_is_no_bar_beside_the_switch(room):
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / room).rglob("*.py")}
    assert texts and not [path for path, text in texts.items() if re.search(r"^\s*(from|import) tqdm", text, re.M)]
