# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers from prepared data, predictions and the log, and proves that they are gone.

    python training/forget_customers.py --customers ids.txt --data data/prepared --events log profile.parquet
    python training/forget_customers.py --customers ids.txt --predictions scores/monday scores/tuesday
    python training/forget_customers.py --customers ids.txt --data data/prepared --check_only true

`ids.txt` has one id a line, as in the column `customer_id` of the prepared data. Without --events they come back with
the next preparation or update. After the deletion every file is read again; if anything of theirs is found, or a file
can't be read, the files are named and the exit status is 1. Arrow copies of `datasets` that hold them are removed too.
Not touched: model weights, vocabularies (docs/operations.md says what that means), backups, and other copies.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from modeling_mcm.data import PreparedManifest

from arguments import parse_options
from run_predict import IDENTITY_FILE


@dataclass
class ForgetOptions:
    """Who, and where."""

    customers: str = field(metadata={"help": "Text file, one customer id a line."})
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


def read_ids(path: str) -> set[str]:
    """The ids of a text file; raises `ValueError` where there is none."""
    ids = {line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""}
    if not ids:
        raise ValueError(f"{path} holds no id; write one a line.")
    return ids


def forget_in_predictions(folder: Path, customers: set[str]) -> int:
    """Takes customers out of a folder of predictions and of the number that it says it has."""
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not files:
        raise ValueError(f"{folder} holds no Parquet file.")
    from modeling_mcm.data.forget import forget_in_file

    rows = sum(forget_in_file(path, customers) for path in files)
    identity = folder / IDENTITY_FILE
    if rows and identity.is_file():
        said = json.loads(identity.read_text(encoding="utf-8"))
        # Of other data than the data set is now: run_predict.py will not go on with this folder.
        said["customers"] = sum(pq.read_metadata(path).num_rows for path in files)
        partial = identity.with_name(f".{IDENTITY_FILE}.partial")
        partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        partial.replace(identity)
    return rows


def run(options: ForgetOptions) -> dict[str, str]:
    """Forgets, says what was done, and returns what was found afterwards."""
    from modeling_mcm.data.forget import find_customers, forget_in_cache, forget_in_log, forget_in_prepared

    customers = read_ids(options.customers)
    columns = {PreparedManifest.load(folder).event_schema.customer for folder in options.data}
    if options.events and len(columns) > 1:
        raise ValueError(
            f"The data sets read the customers from the columns {', '.join(sorted(columns))}: one at a time."
        )
    if not options.check_only:
        digests: dict[str, str] = {}
        for folder in options.events:
            rows, changed = forget_in_log(Path(folder), customers, *columns)
            digests |= changed
            sys.stdout.write(f"{folder}: {rows:,} rows deleted from {len(changed)} files\n")
        for folder in options.data:
            number = forget_in_prepared(Path(folder), customers, digests)
            sys.stdout.write(f"{folder}: {number:,} of {len(customers):,} customers deleted\n")
        for folder in options.predictions:
            number = forget_in_predictions(Path(folder), customers)
            sys.stdout.write(f"{folder}: {number:,} of {len(customers):,} customers deleted\n")
        sys.stdout.write(f"{forget_in_cache(customers)} Arrow copies removed\n")
    found: dict[str, str] = {}
    for folder in [*options.data, *options.predictions]:
        found |= find_customers(Path(folder), customers)
    for folder in options.events:
        found |= find_customers(Path(folder), customers, *columns)
    return found


def main() -> None:
    """Reads the options, forgets, and ends with status 1 if anybody is left."""
    (options,) = parse_options(ForgetOptions, description=__doc__)
    try:
        found = run(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"forget_customers: {error}")
    if found:
        told = "\n".join(f"  {path}: {what}" for path, what in found.items())
        sys.exit(f"forget_customers: not proven that they are gone:\n{told}")
    sys.stdout.write("Read again: none of them is there\n")


if __name__ == "__main__":
    main()
