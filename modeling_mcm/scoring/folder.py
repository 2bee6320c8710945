# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of predictions: what made its files, which of them are whole, and how customers are deleted from it."""

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

IDENTITY_FILE, HISTORIES = "_predictions.json", "_histories"  # readers of Parquet folders skip such names
UNTIL = "until"  # key of the time of the latest known event, in seconds; absent in folders of older versions


def last_event(data: Path) -> int:
    """Finds the latest event of a prepared data set.

    Args:
        data (`Path`): folder of the prepared data set.

    Returns:
        `int`: time of the event, in seconds since 1970-01-01; 0 if there is no event.
    """
    latest = [
        pc.max(pq.read_table(data / shard["file"], columns=["times"])["times"].combine_chunks().flatten()).as_py()
        for shard in PreparedManifest.load(data).shards
    ]
    return max((second for second in latest if second is not None), default=0)


def is_whole(path: Path, rows: int) -> bool:
    """Says whether a file of an earlier run is whole, so that it need not be written again.

    Args:
        path (`Path`): path of the file, which need not exist.
        rows (`int`): number of rows that the file must have.

    Returns:
        `bool`: whether it is a readable Parquet file with so many rows.
    """
    try:
        return pq.read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def check_folder(folder: Path) -> None:
    """Checks that a folder holds nothing but predictions, or what a run that was killed left there.

    Args:
        folder (`Path`): the folder, which need not exist.

    Raises:
        ValueError: if something else is in the folder.
    """
    own = (HISTORIES, f".{HISTORIES}.", f".{IDENTITY_FILE}.")
    others = [path for path in folder.glob("*") if not path.name.startswith(own)] if folder.is_dir() else []
    if others and not (folder / IDENTITY_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no predictions: choose another --output_dir.")


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Writes into a folder what its predictions are made of, or checks that its files are made of the same.

    Args:
        folder (`Path`): folder of predictions; it is made if missing.
        identity (`dict`): what the predictions are made of, such as the digest of the model.

    Raises:
        ValueError: if the folder holds predictions that are made of something else. The message names what differs.
    """
    path = folder / IDENTITY_FILE
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {}
        earlier = earlier if isinstance(earlier, dict) else {}
        if changed := sorted(name for name in {*identity} - {UNTIL} if earlier.get(name) != identity[name]):
            raise ValueError(
                f"{folder} holds predictions of another {', '.join(changed)}: choose another --output_dir, or remove "
                "that one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.partial"):  # what a run that was killed left
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    write_json(path, identity, indent=1)


def forget_in_predictions(folder: Path, customers: Collection[str]) -> int:
    """Deletes customers from a folder of predictions, and corrects the number of customers that it says it has.

    Args:
        folder (`Path`): folder of predictions, or one file.
        customers (`Collection[str]`): ids of the customers.

    Returns:
        `int`: number of rows that were deleted.
    """
    from modeling_mcm.preparation.deletion import predictions_files
    from modeling_mcm.preparation.forget import forget_in_file

    files = predictions_files(folder)
    rows = sum(forget_in_file(path, customers) for path in files)
    identity = folder / IDENTITY_FILE
    if rows and identity.is_file():
        facts = json.loads(identity.read_text(encoding="utf-8"))
        # These are predictions of the data set as it was, so `mcm predict` will not continue this folder.
        facts["customers"] = sum(pq.read_metadata(path).num_rows for path in files)
        write_json(identity, facts, indent=1)
    return rows
