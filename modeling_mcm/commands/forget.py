# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers from prepared data, predictions and the log, and proves that they are gone.

    mcm forget --customers ids.txt --data data/prepared --events log profile.parquet
    mcm forget --customers ids.txt --predictions scores/monday scores/tuesday
    mcm forget --customers ids.txt --data data/prepared --check_only true

`ids.txt` is read as CSV: one id a line, or ids separated by commas. An id that holds a comma, a quote or a line break
stands in double quotes. All files are read before any is changed, and again after the deletion. The exit status is 1
if a file can't be read or still holds a customer, or no file holds an id; the other customers are deleted. Give
--events, too; otherwise the customers come back with the next preparation of the data. If the command was
killed, start it again to finish. Model weights, vocabularies (docs/operations.md says what that means), backups and
other copies are not touched.
"""

import codecs
import csv
import io
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_mcm.commands.arguments import parse_options, report_errors
from modeling_mcm.data.dataset import CUSTOMER
from modeling_mcm.option import option
from modeling_mcm.scoring.scorer import forget_in_predictions

if TYPE_CHECKING:
    from modeling_mcm.preparation.forget import Places, Whereabouts


@dataclass
class ForgetOptions:
    """Which customers are deleted, and from which files."""

    customers: str = option(help="CSV file of the ids of the customers to delete, one a line or separated by commas.")
    data: list[str] = option([], "Folders of prepared data sets to delete the customers from.")
    predictions: list[str] = option(
        [],
        "Folders that `mcm predict` wrote, or other Parquet files with a column customer_id, to delete "
        "the customers from.",
    )
    events: list[str] = option(
        [],
        "Parquet files, or folders of them, of the log and the profile that the data sets were made "
        "from, to delete the customers from.",
    )
    check_only: bool = option(False, "Delete nothing, and only check that no file holds the customers.")

    def __post_init__(self) -> None:
        if not self.data and not self.predictions:
            raise ValueError("Give --data or --predictions: the folders that customers are to be deleted from.")
        if self.events and not self.data:
            raise ValueError("--events needs --data: its schema says which column holds the customers.")


def _read_ids(path: str) -> list[str]:
    """Reads customer ids from a CSV file in UTF-8, or in UTF-16 with a byte order mark: each once, in its order."""
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


def _delete(ids: list[str], places: "Places") -> tuple["Whereabouts", bool]:
    """Deletes customers, and prints for every file or folder how many were deleted."""
    from modeling_mcm.preparation.forget import DeletionNote, delete_from_log_and_data, forget_in_cache, look_for

    notes = [DeletionNote(folder) for folder in places.data]
    is_resumed = any([note.resume() for note in notes])
    column = places.customer_column()
    whereabouts = look_for(ids, places, column)
    for path, number, files in delete_from_log_and_data(whereabouts.there, places, column, notes):
        is_log = path in places.events
        deleted = f"rows deleted from {files} files" if is_log else f"of {len(ids):,} customers deleted"
        print(f"{path}: {number:,} {deleted}")
    for path in places.predictions:
        number = forget_in_predictions(path, whereabouts.there)
        print(f"{path}: {number:,} of {len(ids):,} customers deleted")
    print(f"{forget_in_cache(whereabouts.there | {*ids})} Arrow copies removed")
    for note in notes:
        note.close()
    if is_resumed:
        print("This finished a run that was killed. An id that no file holds was deleted by that run, or is misspelt")
    return whereabouts, is_resumed


def _run(options: ForgetOptions) -> list[str]:
    """Deletes customers, or with `check_only` only looks for them, and reads everything again."""
    from modeling_mcm.files_mcm import locked
    from modeling_mcm.preparation.forget import Places, find_customers, look_for

    ids = _read_ids(options.customers)
    places = Places.resolved(options.data, options.predictions, options.events)
    if absent := [path for path in [*places.predictions, *places.events] if not path.exists()]:
        raise FileNotFoundError(f"{absent[0]} does not exist; check the path.")
    with nullcontext() if options.check_only else locked(*places.all()):
        if options.check_only:
            whereabouts, may_be_gone = look_for(ids, places, places.customer_column()), True
        else:
            whereabouts, may_be_gone = _delete(ids, places)
        problems = [f"found nowhere: {line}" for line in whereabouts.absent_lines(only_near=may_be_gone)]
        for location in places.all():
            column = places.customer_column() if location in places.events else CUSTOMER
            remains = find_customers(location, whereabouts.there | {*whereabouts.absent}, column)
            problems += [f"{path}: {what}" for path, what in remains.items()]
    return problems


def main() -> None:
    """Reads the options, deletes the customers, and ends with status 1 if it is not proven that all are gone."""
    (options,) = parse_options(ForgetOptions, description=__doc__)
    with report_errors():
        problems = _run(options)
    if problems:
        sys.exit("\n  ".join([f"{Path(sys.argv[0]).stem}: not proven that the customers are gone:", *problems]))
    print("All files were read again: none of the customers is there")


if __name__ == "__main__":
    main()
