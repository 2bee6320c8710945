# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How every command reads its options, flags or one YAML file with flags that win over it, and how it ends."""

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from modeling_mcm.data.yaml_files import UniqueKeyLoader, read_yaml

ENGINES = ["duckdb", "spark"]
YAML_BOOL = "tag:yaml.org,2002:bool"


@contextmanager
def exits(*errors: type[Exception]) -> Iterator[None]:
    """Ends the process with a sentence in the place of a traceback where one of these errors is raised.

    Args:
        errors (`type[Exception]`): The errors whose message says all that a person needs.

    Raises:
        SystemExit: With the name of the command and the error's message.
    """
    try:
        yield
    except errors as error:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: {error}") from error


@dataclass
class EngineOptions:
    """Where the work is done."""

    engine: str = field(
        default="duckdb",
        metadata={"help": "duckdb: this process; spark: a Spark session (docs/spark.md).", "choices": ENGINES},
    )
    spark_master: str | None = field(
        default=None, metadata={"help": "Spark's master, such as local[2]; that of the environment by default."}
    )
    spark_config: list[str] = field(
        default_factory=list,
        metadata={"help": "Spark's options as KEY=VALUE ..., such as spark.executor.memory=8g."},
    )

    def __post_init__(self) -> None:
        if self.engine != "spark" and (self.spark_master or self.spark_config):
            raise ValueError("--spark_master and --spark_config are for --engine spark.")
        for pair in self.spark_config:
            if not pair.partition("=")[2]:
                raise ValueError(f"--spark_config has {pair!r}; write KEY=VALUE.")

    @property
    def spark(self) -> dict[str, str]:
        """Options of the Spark session."""
        master = {"spark.master": self.spark_master} if self.spark_master else {}
        return master | {key: value for key, _, value in (pair.partition("=") for pair in self.spark_config)}


@dataclass
class ProgressOptions:
    """What every script shows while it works; `parse_options` reads and applies it."""

    no_progress: bool = field(default=False, metadata={"help": "Show no progress bars, of a training neither."})

    def apply(self, others: Iterable[Any]) -> None:
        """Switches the bars off, where that is asked for, also those of a `TrainingArguments` among the others."""
        if not self.no_progress:
            return
        from modeling_mcm.progress import disable_progress_bars

        disable_progress_bars()
        for options in others:
            if hasattr(options, "disable_tqdm"):
                options.disable_tqdm = True


class RecipeLoader(UniqueKeyLoader):
    """YAML in which only true and false are booleans: `eval_strategy: no` means the word."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != YAML_BOOL or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the commands of a script's docstring as they are written."""


def given_options(arguments: Sequence[str] | None = None) -> set[str]:
    """The names of the options that a command line gives, in its YAML file or as flags; see [`parse_options`]."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    names = {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}
    if words and words[0].endswith((".yaml", ".yml")):
        values = read_yaml(words[0], RecipeLoader)
        names |= {name for name, value in values.items() if value is not None}
    return names


def parse_options(
    *option_classes: Any,
    description: str | None,
    arguments: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Fills one instance of each dataclass from the command line.

    Args:
        option_classes: dataclasses, as for `HfArgumentParser`. A ValueError of theirs becomes a message.
        description: shown by `--help`, line by line.
        arguments: the command line after the script's name; that of this process by default. If the first one ends in
            .yaml, the file's entries are the defaults of the flags that follow.
        defaults (*optional*): values of options that neither the file nor a flag gives.

    Raises:
        SystemExit: with a message, for unknown or missing options and values that do not fit.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    option_classes = (*option_classes, ProgressOptions)
    parser = HfArgumentParser(
        option_classes,
        description=description,
        usage="%(prog)s [recipe.yaml] [--option value ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    known = [field.name for options in option_classes for field in dataclasses.fields(options) if field.init]
    if words and words[0].endswith((".yaml", ".yml")):
        recipe = Path(words.pop(0))
        try:
            values = read_yaml(recipe, RecipeLoader)
        except (OSError, ValueError) as error:
            parser.error(f"{recipe} can't be read: {error}")
        if not isinstance(values, dict):
            parser.error(f"{recipe} must hold `option: value` lines, as in configuration/recipes/.")
        for name in values:
            if name not in known:
                parser.error(f"{recipe} has an unknown option {name!r}{_hint(str(name), known)}")
        # Through the same door as flags, so that types and choices are checked alike; a later flag wins.
        words = [word for name, value in values.items() for word in _as_flags(name, value)] + words
    words = [word for name, value in (defaults or {}).items() for word in _as_flags(name, value)] + words
    _, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(f"unknown option {unknown[0]!r}{_hint(unknown[0].lstrip('-').partition('=')[0], known)}")
    try:
        *others, progress = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    progress.apply(others)
    return tuple(others)


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; see --help"


def _as_flags(name: str, value: Any) -> list[str]:
    """The words of a YAML entry; null leaves the default, and options that are dicts are JSON on the command line."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
