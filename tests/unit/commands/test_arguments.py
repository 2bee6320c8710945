# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The scripts' options: flags and YAML go through one door, and a mistake is answered with a message."""

from dataclasses import dataclass, field

import pytest
import torch
from transformers import TrainingArguments

from modeling_mcm.commands.arguments import parse_options, report_errors
from modeling_mcm.events_mcm import read_zone
from modeling_mcm.files_mcm import some


@dataclass
class Options:
    """One option of each kind."""

    output_dir: str = field(metadata={"help": "Required."})
    cutoff: str = field(default="test", metadata={"choices": ["validation", "test"]})
    save_strategy: str = field(default="steps", metadata={"help": "A word."})
    rate: float = field(default=0.5, metadata={"help": "A number."})
    k: list[int] = field(default_factory=lambda: [1, 3], metadata={"help": "A list."})
    overwrite: bool = field(default=False, metadata={"help": "A switch."})
    shuffle: bool = field(default=True, metadata={"help": "Another switch."})

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError("a negative rate")


@pytest.fixture
def parse():
    def parse(*words, options=Options):
        return parse_options(options, description="Line one.\n    line two", arguments=list(map(str, words)))[0]

    return parse


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_flags(parse):
    options = parse("--output_dir", "runs", "--k", "5", "7", "--overwrite", "--cutoff=validation", "--rate", "1e-3")
    assert options == Options("runs", cutoff="validation", rate=1e-3, k=[5, 7], overwrite=True)


def test_a_yaml_gives_what_the_same_flags_give(parse, recipe):
    path = recipe("output_dir: -runs\nrate: 1e-3\nk: [5, 7]\noverwrite: true\nsave_strategy: no\ncutoff: null\n")
    assert parse(path) == Options("-runs", rate=1e-3, k=[5, 7], overwrite=True, save_strategy="no")


def test_flags_win_over_the_yaml(parse, recipe):
    path = recipe("output_dir: runs\nrate: 0.25\nk: [5, 7]\noverwrite: true\n")
    assert parse(path, "--k", "9", "--overwrite", "false") == Options("runs", rate=0.25, k=[9])


def test_a_dict_reaches_the_training_arguments(parse, recipe, tmp_path):
    path = recipe("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0.001, name: no}\n")
    options = parse(path, "--output_dir", tmp_path, options=TrainingArguments)
    assert options.lr_scheduler_kwargs == {"min_lr": 0.001, "name": "no"}


MISTAKES = [  # in a recipe, or in flags
    ("output_dri: runs", "unknown option '--output_dri'; did you mean '--output_dir'?"),
    ("output_dir: runs\nrate: fast", "argument --rate: invalid float value: 'fast'"),
    ("output_dir: runs\nk: [5, many]", "argument --k: invalid int value: 'many'"),
    ("output_dir: runs\noverwrite: perhaps", "Truthy value expected: got perhaps"),
    ("rate: 1", "required: --output_dir"),
    ("- output_dir", "recipe.yaml can't be read: it must hold `option: value` lines"),
    ("output_dir: [runs", "recipe.yaml can't be read"),
    (b"output_dir: \xff", "recipe.yaml can't be read"),
    ("output_dir: a\nrate: 1\noutput_dir: b\n", "line 3, column 1 is not valid YAML: the key 'output_dir' stands in"),
    (["absent.yaml"], "absent.yaml can't be read"),
    (["--output_dir", "runs", "--overwite"], "unknown option '--overwite'; did you mean '--overwrite'?"),
    (["--output_dir", "runs", "--rate", "-1"], "a negative rate"),
]


@pytest.mark.parametrize("given, message", MISTAKES)
def test_a_mistake_is_answered(given, message, parse, recipe, capsys):
    with pytest.raises(SystemExit):
        parse(*(given if isinstance(given, list) else [recipe(given)]))
    assert message in capsys.readouterr().err


def test_help_keeps_the_lines_of_the_description_and_shows_defaults(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "Line one.\n    line two\n" in shown and "A number. (default: 0.5)" in shown
    assert "--no_shuffle, --no-shuffle Switches --shuffle off." in " ".join(shown.split())
    assert "--output-dir OUTPUT_DIR Required." in " ".join(shown.split())


@pytest.mark.parametrize(
    ("fail", "words", "expected"),
    [
        (lambda: read_zone("nowhere"), (), SystemExit),
        (lambda: open("nowhere"), (), SystemExit),
        (lambda: read_zone("nowhere"), ("--debug",), ValueError),
        (lambda: torch.zeros(2) @ torch.zeros(3), (), RuntimeError),
        (lambda: some(None), (), TypeError),  # in a line of the package
    ],
)
def test_a_fault_in_the_program_keeps_its_traceback_and_other_errors_are_sentences(fail, words, expected):
    parse_options(description=None, arguments=words)
    with pytest.raises(expected), report_errors():
        fail()
