# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Adds a day to a model: its counts go to the end of the log, and its weights stay.

A model's folder says in `LOG_FILE` where the prepared log of its counts is. A refreshed model has it in a folder of
its own, and is written whole or not at all.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .data import PreparedData, check_vocabularies, read_known
from .data.dataset import END
from .data.guessing import READER_FILE
from .files_mcm import read_json, write_json
from .folders import RunError, atomic_folder, locked
from .preparation.sources import Source
from .training.checkpoints import find_head, open_checkpoint, save_checkpoint
from .training.counting import Counts
from .training.resuming import FINE_TUNING, LOG_FILE, PRETRAINING

logger = logging.get_logger(__name__)
KEPT = READER_FILE, PRETRAINING, FINE_TUNING, "evaluation.json"  # what is said of the weights, which stay
DATA = "data"  # folder of the log in that of a refreshed model


def refresh(
    model: str | Path,
    events: Source,
    output_dir: str | Path,
    data: str | Path | None = None,
    described: dict[str, Any] | None = None,
    memory_limit: str = "1GB",
    known: str | Path | None = None,
) -> dict[str, str | int]:
    """Writes a model with new events in its counts, beside their prepared log.

    Args:
        model (`str`): Folder of the model, with or without a head.
        events (`Source`): New events in the columns of the log, such as the file of a day.
        output_dir (`str`): New folder.
        data (`str`, *optional*): Prepared data set that the model's counts are of. Default: what its folder names.
        described (`dict`, *optional*): Names and digests of the files of `events`, if it is a frame that was read of
            them.
        memory_limit (`str`): Memory that DuckDB may use.
        known (`str`, *optional*): Table of what is known of days, beside what the model knows; see [`read_known`].

    Returns:
        `dict`: what the counts are of, as `MCMConfig.counted`.

    Raises:
        FileExistsError: If the new folder holds something.
        RunError: If another run writes it.
        ValueError: If the log is not there or not that of the model, or the events can't be added.
    """
    output, log = Path(output_dir).resolve(), find_log(Path(model)) if data is None else Path(data)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output_dir} holds something already: give a new folder.")
    base, known_days = PreparedData(log), read_known(known)
    old, extractor = open_checkpoint(find_head(str(model)), str(model))
    check_vocabularies(log, extractor)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(output, wait=False), atomic_folder(output) as (target, _):
            options = {"memory_limit": memory_limit, "described": described, "counted": old.config.counted}
            counts = Counts.of(base, END).add(events, target / DATA, **options)
            new, counted = counts.give(old, extractor, state=False, known=known_days)
            save_checkpoint(target, new, counted)
            write_json(target / LOG_FILE, {"data": DATA})
            for path in filter(Path.is_file, (Path(model, name) for name in KEPT)):
                shutil.copy(path, target)
    except TimeoutError as error:
        raise RunError(f"Another run writes {output_dir}: wait for its end, or give another folder.") from error
    return new.config.counted


def find_log(model: Path) -> Path:
    """Finds the prepared data set of a model's counts. Raises `ValueError` if it is not known or not there."""
    path = model / LOG_FILE
    if not path.is_file():
        raise ValueError(f"{model} has no {LOG_FILE}, which names its prepared log: give it as --data.")
    data = Path(os.path.normpath(model.resolve() / read_json(path)["data"]))
    if not data.is_dir():
        raise ValueError(f"{data}, the prepared log of {model}, is not there: give it as --data.")
    return data
