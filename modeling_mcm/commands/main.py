# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The console command `mcm`: its first word names a command, and all other words go to that command."""

import importlib
import sys

from modeling_mcm import __version__

# Each name but `start` is a module of this folder with a function `main()`.
COMMANDS = {
    "prepare": "prepare an event log for training: check it, split it by time, make one row for each customer",
    "forget": "delete customers from prepared data, predictions and the log, and check that they are gone",
    "start": "fit a model without an encoder: scores, embeddings and forecasts",
    "pretrain": "pre-train a model on a prepared data set",
    "finetune": "fine-tune a checkpoint to offers, or to any label of customers",
    "uplift": "say what an offer changes, by customers with and without it, and whom to offer it within a budget",
    "evaluate": "evaluate a checkpoint and compare it with baselines",
    "predict": "score every customer: embeddings and the best labels of every task",
    "similar": "name the labels that are alike, or that go together",
    "serve": "serve a checkpoint over HTTP",
    "app": "show a page of all customers in a browser",
    "refresh": "add a day to a model: its counts go to the end of the log, and its weights stay",
    "watch": "compare new days with a model: unknown values, drift, chances and intervals; 1 if there is an alarm",
    "publish": "publish a checkpoint on the Hugging Face Hub, with its card",
}


HEADING = "usage: mcm COMMAND [recipe.yaml] [--option value ...]\n"
LAST = "\n`mcm COMMAND --help` shows a command's options; with --debug as last word an error keeps its traceback."


def main() -> None:
    """Runs the command that the first word of the command line names. Raises `SystemExit` with a message, if there is
    no such command or a package that it needs is not installed."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(HEADING, *(f"  {name:<10}{what}" for name, what in COMMANDS.items()), LAST, sep="\n")
    elif name == "--version":
        print(__version__)
    elif name not in COMMANDS:
        raise SystemExit(f"mcm: found {name!r}, expected one of {', '.join(COMMANDS)}; see mcm --help.")
    else:
        sys.argv = [f"mcm {name}", *words]
        if name == "start":  # pre-training without an encoder
            name = "pretrain"
            sys.argv.insert(len(sys.argv) - (sys.argv[-1] == "--debug"), "--encoder=none")
        try:
            importlib.import_module(f"modeling_mcm.commands.{name}").main()
        except ImportError as error:  # the message names the package and its extra
            raise SystemExit(f"mcm {name}: {error}") from error


if __name__ == "__main__":
    main()
