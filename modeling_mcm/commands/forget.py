# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers from the log, prepared data and predictions, and proves that they are gone.

    mcm forget --customers ids.txt --data data/prepared --events log --profile profile.parquet
    mcm forget --customers ids.txt --predictions scores/monday scores/tuesday
    mcm forget --customers ids.txt --data data/prepared --events log --check_only

`ids.txt` holds one id a line, as the log has it. Their rows are deleted from the files of --events, --profile and
--predictions. Each data set that holds one of them is prepared again from these files, with its own schema and
vocabularies. All files are read before any is changed, and again after the deletion. The exit status is 1 if a file
can't be read or still holds a customer, or no file holds an id; the other customers are deleted. If the command was
killed, start it again to finish. Model weights, vocabularies (docs/production.md says what that means), backups and
other copies are not touched.
"""

import itertools
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.events_mcm import to_id
from modeling_mcm.folders import locked
from modeling_mcm.option import REQUIRED, option

from .arguments import EngineOptions, command


@dataclass
class ForgetOptions:
    """Which customers are deleted, and from which files."""

    customers: str = option("Text file with the ids of the customers to delete, one a line.", REQUIRED)
    data: list[str] = option("Folders of prepared data sets to delete the customers from. They need --events.", [])
    events: list[str] = option("Parquet files, or folders of them: the log that the data sets were prepared from.", [])
    profile: str | None = option("The profile table that the data sets were prepared from, if they have one.")
    predictions: list[str] = option(
        "Folders that `mcm predict` wrote, or other Parquet files with a column customer_id, to delete "
        "the customers from.",
        [],
    )
    check_only: bool = option("Delete nothing, and only check that no file holds the customers.", False)

    def __post_init__(self) -> None:
        if not self.data and not self.predictions:
            raise ValueError("Give --data or --predictions: the folders that customers are to be deleted from.")
        if bool(self.data) != bool(self.events) or (self.profile and not self.data):
            raise ValueError(
                "Give --data and --events together, and --profile with them: data sets are prepared again from these."
            )


def _read_ids(path: str) -> list[str]:
    """Reads customer ids from a text file in UTF-8, one a line: each once, in their order."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"  # which UTF-16 has between letters
    if "\0" in text:
        raise ValueError(f"{path} is no text in UTF-8; save it as UTF-8, one id a line.")
    ids = list(dict.fromkeys(str(to_id(line)) for line in text.split("\n") if line.strip()))
    if not ids:
        raise ValueError(f"{path} holds no id; write one a line.")
    return ids


@command(__doc__, ForgetOptions, EngineOptions)
def main(options: ForgetOptions, engine: EngineOptions) -> None:
    """Deletes the customers, and ends with status 1 if it is not proven that all are gone."""
    from modeling_mcm.preparation.forget import Places

    names, problems = _read_ids(options.customers), []
    groups = (options.data, options.events, [options.profile] if options.profile else [], options.predictions)
    paths = [[Path(path).resolve() for path in group] for group in groups]
    with nullcontext() if options.check_only else locked(*itertools.chain(*paths)):
        places = Places(*paths)
        if not options.check_only:
            customers = places.look_for(names)
            absent = [name for name in names if name not in customers]
            problems = [f"found nowhere: {name!r} (deleted before, or misspelt)" for name in absent]
            for path, rows in places.forget(customers, engine=engine.engine, spark_config=engine.spark).items():
                print(f"{path}: {rows:,} rows deleted")
        problems += [f"{path}: {reason}" for path, reason in places.find(names).items()]
    if problems:
        sys.exit("\n  ".join([f"{Path(sys.argv[0]).stem}: not proven that the customers are gone:", *problems]))
    print("All files were read again: none of the customers is there")
