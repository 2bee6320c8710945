# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How every command reads its options and how it ends on an error.

Options come from flags, or from one YAML file whose values later flags replace.
"""

import argparse
import difflib
import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser

from modeling_mcm.data.tables import read_yaml
from modeling_mcm.option import option

MEMORY_LIMIT = "Memory that DuckDB may use before it writes temporary data to disk."  # help of --memory_limit
DEBUG = "--debug"  # as the last word, for `TrainingArguments` have an option of this name that needs a value
# Errors of the machine or a file, whoever raises them: no fault in the program.
EXPECTED = (OSError, MemoryError, OverflowError, StrictDataclassError, SafetensorError, pa.ArrowException)


@contextmanager
def report_errors() -> Iterator[None]:
    """A context in which progress is written to standard error, and an error of the input or the machine ends the
    process with its message: one of `EXPECTED`, or an error that this package raises. Any other is a fault in the
    program and keeps its traceback, and with --debug all do. Raises `SystemExit` with the name of the command and the
    error's message."""
    logger, handler = logging.getLogger("modeling_mcm"), logging.StreamHandler()
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        if logger.isEnabledFor(logging.DEBUG) or not (isinstance(error, EXPECTED) or _is_ours(error)):
            raise
        words = str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError) and error.filename:
            words = f"{error.filename} does not exist: check the path."
        raise SystemExit(f"{Path(sys.argv[0]).stem}: {words}") from error
    finally:
        logger.removeHandler(handler)


def _is_ours(error: Exception) -> bool:
    """Whether an error is a sentence of this package: of one of its classes, or a `ValueError` or `ImportError` that a
    function of it raised, and none of another package that it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = frame.f_globals["__name__"] if isinstance(error, ValueError | ImportError) else type(error).__module__
    return raised_by.startswith("modeling_mcm.")


@dataclass
class EngineOptions:
    """Options that choose between this process and a Spark cluster."""

    engine: str = option(
        "What does the work: duckdb works in this process, spark in a Spark session (docs/production.md).",
        "duckdb",
        choices=["duckdb", "spark"],
    )
    spark_master: str | None = option("Master of the Spark session, such as local[2]. By default the environment's.")
    spark_config: list[str] = option(
        "Options of the Spark session as KEY=VALUE ..., such as spark.executor.memory=8g.", []
    )

    def __post_init__(self) -> None:
        if self.engine != "spark" and (self.spark_master or self.spark_config):
            raise ValueError(
                "--spark_master and --spark_config are for --engine spark: add that option, or leave these out."
            )
        for pair in self.spark_config:
            if not pair.partition("=")[2]:
                raise ValueError(f"--spark_config has {pair!r}; write KEY=VALUE.")

    @property
    def spark(self) -> dict[str, str]:
        """The Spark session's options as a dict of strings, the master among them."""
        master = {"spark.master": self.spark_master} if self.spark_master else {}
        return master | dict(pair.split("=", 1) for pair in self.spark_config)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formats `--help` with the defaults that the words of an option don't say, and the docstring line by line."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        words = action.help or ""
        if isinstance(action, argparse._StoreFalseAction):
            return f"Switches --{action.dest} off."
        if action.required and "Required" not in words:
            return f"{words} Required."
        if action.default is None or action.default == [] or "default" in words.lower():
            return words
        return super()._get_help_string(action)


def named_options() -> set[str]:
    """Names of the options that the command line of this process sets, in its YAML file or as flags."""
    words = sys.argv[1:]
    with suppress(OSError, ValueError):  # which `parse_options` tells
        words = _read_words(words)
    return {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")} - {"debug"}


def _read_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the entries of its YAML file as flags, so that argparse checks types and
    choices alike. They come first, because a later flag wins."""
    if not words or not words[0].endswith((".yaml", ".yml")):
        return list(words)
    values, flags = read_yaml(words[0]), []
    if not isinstance(values, dict):
        raise ValueError("it must hold `option: value` lines, as in configuration/recipes/")
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value, default=str) if isinstance(value, dict) else value}")
    return [*flags, *words[1:]]


def parse_options(
    *option_classes: type,
    description: str | None,
    arguments: Sequence[str] | None = None,
    defaults: Mapping[str, object] | None = None,
    shown: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Fills one instance of each dataclass, as `HfArgumentParser` does, from the command line.

    `arguments` are the words after the command's name, by default those of this process; if the first ends in .yaml or
    .yml, that file's entries are defaults of the flags after it. `defaults` are values of options that neither sets.
    The help shows the options of `shown`, by default all. Raises `SystemExit` with a message for unknown or missing
    options, for values that do not fit, and for a `ValueError` of a dataclass.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = words[-1:] == [DEBUG]
    logging.getLogger("modeling_mcm").setLevel(logging.DEBUG if debug else logging.INFO)
    kinds: list = [*option_classes]
    parser = HfArgumentParser(
        kinds,
        description=description,
        usage="%(prog)s [recipe.yaml] [--option value ...] [--debug]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(**(defaults or {}))
    for action in parser._actions:
        action.help = action.help if not shown or action.dest in shown else argparse.SUPPRESS
    try:
        words = _read_words(words[: len(words) - debug])
    except (OSError, ValueError) as error:
        parser.error(f"{words[0]} can't be read: {error}")
    for name in (word.partition("=")[0] for word in words if word.startswith("--")):
        if name not in parser._option_string_actions:
            close = difflib.get_close_matches(name, parser._option_string_actions, n=1)
            parser.error(f"unknown option {name!r}; {f'did you mean {close[0]!r}?' if close else 'see --help'}")
    try:
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))


def command(description: str | None, *option_classes: type) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Makes a command of a function of options: it reads them from the command line, and ends on an error as
    [`report_errors`] says."""

    def decorate(run: Callable[..., None]) -> Callable[[], None]:
        @functools.wraps(run)
        def main() -> None:
            options = parse_options(*option_classes, description=description)
            with report_errors():
                run(*options)

        return main

    return decorate
