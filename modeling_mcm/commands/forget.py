# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers from prepared data, predictions and the log, and proves that they are gone.

    mcm forget --customers ids.txt --data data/prepared --events log profile.parquet
    mcm forget --customers ids.txt --predictions scores/monday scores/tuesday
    mcm forget --customers ids.txt --data data/prepared --check_only true

`ids.txt` is read as CSV: ids one a line, or separated by commas, in double quotes where they have a comma, a quote or
a line break. Everything is read first, and nothing is touched where something is wrong. An id that is found nowhere is
named, and the exit status is 1, though the others are deleted. Without --events they come back with the next
preparation or update. After the deletion every file is read again; if anything of theirs is found, or a file can't be
read, the files are named and the exit status is 1. A run that was killed is finished by the same command. Symbolic
links are followed. Arrow copies of `datasets` that hold them are removed too. Not touched: model weights, vocabularies
(docs/operations.md says what that means), backups, and other copies.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.data.dataset import CUSTOMER
from modeling_mcm.scoring.folder import forget_in_predictions

if TYPE_CHECKING:
    from modeling_mcm.preparation.deletion import Places, Whereabouts


@dataclass
class ForgetOptions:
    """Who, and where."""

    customers: str = field(metadata={"help": "CSV file of customer ids, one a line or separated by commas."})
    data: list[str] = field(default_factory=list, metadata={"help": "Folders of prepared data sets."})
    predictions: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders of run_predict.py, or other Parquet files with a column customer_id."},
    )
    events: list[str] = field(
        default_factory=list,
        metadata={"help": "What the data sets were made from, log and profile: Parquet files or folders of them."},
    )
    check_only: bool = field(default=False, metadata={"help": "Delete nothing; only look whether they are there."})

    def __post_init__(self) -> None:
        if not self.data and not self.predictions:
            raise ValueError("Give --data or --predictions: where customers are to be forgotten.")
        if self.events and not self.data:
            raise ValueError("--events needs --data: its schema says which column holds the customers.")


def read_ids(path: str) -> list[str]:
    """The ids of a CSV file of UTF-8 or UTF-16, with or without a byte order mark, in their order.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no such file, or holds no id.
    """
    content = Path(path).read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8, one id a line.") from error
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        ids = [name for row in reader for name in row if name.strip()]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}. Write ids one a line, or separated by commas; one with a "
            'quote, a comma or a line break in double quotes, and its quotes doubled ("").'
        ) from error
    if not ids:
        raise ValueError(f"{path} holds no id; write one a line.")
    return list(dict.fromkeys(ids))


def delete(ids: list[str], places: Places) -> tuple[Whereabouts, bool]:
    """Forgets and says what was done; returns who was where, and whether this finished a run that was killed."""
    from modeling_mcm.preparation.deletion import DeletionNote, check_deletion, delete_from_log_and_data, look_for
    from modeling_mcm.preparation.forget import forget_in_cache

    notes = [DeletionNote(folder) for folder in places.data]
    is_resumed = any([note.resume() for note in notes])
    column = places.customer_column()
    seen = look_for(ids, places, column)
    check_deletion(seen.there, places)
    for path, number, files in delete_from_log_and_data(seen.there, places, column, notes):
        of_log = f"{number:,} rows deleted from {files} files"
        said = of_log if path in places.events else f"{number:,} of {len(ids):,} customers deleted"
        sys.stdout.write(f"{path}: {said}\n")
    for path in places.predictions:
        number = forget_in_predictions(path, seen.there)
        sys.stdout.write(f"{path}: {number:,} of {len(ids):,} customers deleted\n")
    sys.stdout.write(f"{forget_in_cache(seen.there | {*ids})} Arrow copies removed\n")
    for note in notes:
        note.close()
    if is_resumed:
        sys.stdout.write("A run that was killed is finished; who is nowhere now was deleted by it, or is misspelt\n")
    return seen, is_resumed


def run(options: ForgetOptions) -> list[str]:
    """Forgets, says what was done, and returns what speaks against it that they are forgotten."""
    from modeling_mcm.preparation.deletion import Places, look_for
    from modeling_mcm.preparation.forget import find_customers
    from modeling_mcm.preparation.locks import locked

    ids = read_ids(options.customers)
    places = Places.resolved(options.data, options.predictions, options.events)
    if absent := [path for path in [*places.predictions, *places.events] if not path.exists()]:
        raise FileNotFoundError(f"{absent[0]} does not exist; check the path.")
    with nullcontext() if options.check_only else locked(*places.all()):
        if options.check_only:
            seen, may_be_gone = look_for(ids, places, places.customer_column()), True
        else:
            seen, may_be_gone = delete(ids, places)
        left = [f"found nowhere: {line}" for line in seen.said_of_absent(only_near=may_be_gone)]
        for place in places.all():
            column = places.customer_column() if place in places.events else CUSTOMER
            found = find_customers(place, seen.there | {*seen.absent}, column)
            left += [f"{path}: {what}" for path, what in found.items()]
    return left


def main() -> None:
    """Reads the options, forgets, and ends with status 1 if anybody is left."""
    (options,) = parse_options(ForgetOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        found = run(options)
    if found:
        told = "".join(f"\n  {line}" for line in found)
        sys.exit(f"{Path(sys.argv[0]).stem}: not proven that they are gone:{told}")
    sys.stdout.write("Read again: none of them is there\n")


if __name__ == "__main__":
    main()
