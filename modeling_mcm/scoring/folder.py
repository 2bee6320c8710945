# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of predictions: what made its files, which of them are whole, and how customers are deleted from it."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.files_mcm import write_json

IDENTITY_FILE, HISTORIES = "_predictions.json", "_histories"  # readers of Parquet folders skip such names


def is_whole(path: Path, rows: int) -> bool:
    """Says whether a file of an earlier run is a readable Parquet file with `rows` rows; it need not exist."""
    try:
        return pq.read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def check_folder(folder: Path) -> None:
    """Raises `ValueError` if a folder holds anything but predictions, or what a run that was killed left there."""
    own = (HISTORIES, f".{HISTORIES}.", f".{IDENTITY_FILE}.")
    others = [path for path in folder.glob("*") if not path.name.startswith(own)] if folder.is_dir() else []
    if others and not (folder / IDENTITY_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no predictions: choose another --output_dir.")


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Writes into a folder what its predictions are made of, or checks that its files are made of the same. Raises
    `ValueError` if the folder holds predictions that are made of something else. The message names what differs."""
    path = folder / IDENTITY_FILE
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {}
        earlier = earlier if isinstance(earlier, dict) else {}
        if changed := sorted(name for name in identity if earlier.get(name) != identity[name]):
            raise ValueError(
                f"{folder} holds predictions of another {', '.join(changed)}: choose another --output_dir, or remove "
                "that one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.partial"):  # what a run that was killed left
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    write_json(path, identity, indent=1)


def forget_in_predictions(folder: Path, customers: Collection[str]) -> int:
    """Deletes customers from a folder of predictions, or from one file, and returns the number of rows deleted."""
    from modeling_mcm.preparation.forget import forget_in_file, predictions_files

    files = predictions_files(folder)
    rows = sum(forget_in_file(path, customers) for path in files)
    identity = folder / IDENTITY_FILE
    if rows and identity.is_file():
        facts = json.loads(identity.read_text(encoding="utf-8"))
        # These are predictions of the data set as it was, so `mcm predict` will not continue this folder.
        facts["customers"] = sum(pq.read_metadata(path).num_rows for path in files)
        write_json(identity, facts, indent=1)
    return rows
