# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of predictions: what its files are made of, which of them are whole, and customers taken out of it."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_mcm.data import PreparedManifest
from modeling_mcm.files_mcm import write_json

IDENTITY_FILE, HISTORIES = "_predictions.json", "_histories"  # readers of a folder of Parquet pass over such names
UNTIL = "until"  # the second of the latest event that the predictions knew of; earlier versions did not say it


def last_event(data: Path) -> int:
    """The second of the latest event of a prepared data set, since 1970."""
    latest = [
        pc.max(pq.read_table(data / shard["file"], columns=["times"])["times"].combine_chunks().flatten()).as_py()
        for shard in PreparedManifest.load(data).shards
    ]
    return max((second for second in latest if second is not None), default=0)


def is_whole(path: Path, rows: int) -> bool:
    """Whether a file of an earlier run can stay."""
    try:
        return pq.read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def check_folder(folder: Path) -> None:
    """Raises `ValueError` for a folder with something else in it than predictions or what a killed run left."""
    own = (HISTORIES, f".{HISTORIES}.", f".{IDENTITY_FILE}.")
    others = [path for path in folder.glob("*") if not path.name.startswith(own)] if folder.is_dir() else []
    if others and not (folder / IDENTITY_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no predictions: choose another --output_dir.")


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Says in the folder what its files are made of, or checks that those there are made of the same.

    Raises:
        ValueError: if another command made them.
    """
    path = folder / IDENTITY_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        found = found if isinstance(found, dict) else {}
        if changed := sorted(name for name in {*identity} - {UNTIL} if found.get(name) != identity[name]):
            raise ValueError(
                f"{folder} holds predictions of another {', '.join(changed)}: choose another --output_dir, or remove "
                "that one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.partial"):  # of a run that was killed
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    write_json(path, identity, indent=1)


def forget_in_predictions(folder: Path, customers: Collection[str]) -> int:
    """Takes customers out of a folder of predictions and of the number that it says it has."""
    from modeling_mcm.preparation.deletion import predictions_files
    from modeling_mcm.preparation.forget import forget_in_file

    files = predictions_files(folder)
    rows = sum(forget_in_file(path, customers) for path in files)
    identity = folder / IDENTITY_FILE
    if rows and identity.is_file():
        said = json.loads(identity.read_text(encoding="utf-8"))
        # Of other data than the data set is now: run_predict.py will not go on with this folder.
        said["customers"] = sum(pq.read_metadata(path).num_rows for path in files)
        write_json(identity, said, indent=1)
    return rows
