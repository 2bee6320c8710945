# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A cache of the baselines' metrics: a baseline on the same data and cases has the same metrics.

A file holds the metrics of one baseline and task, one row a case, without the customers' ids. It also holds the key
that the metrics belong to. A file that is damaged or has another key is ignored and written again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.files_mcm import atomic_write

logger = logging.getLogger(__name__)

FOLDER = "baselines"  # within a prepared data set's folder
FORMAT = 1  # to be raised when metrics or cases change their meaning
KEY = b"key"


def digest_of_cases(cases: EvaluationCases, task: str) -> str:
    """Computes a digest of the cases of a task: their customers, histories, targets, and labels that are not ranked.

    Args:
        cases (`EvaluationCases`): The cases.
        task (`str`): Name of the task.

    Returns:
        `str`: SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256("\0".join(cases.customer_ids).encode())
    ragged = [cases.targets[task], *([cases.met[task]] if cases.met is not None else [])]
    arrays = [cases.rows, cases.history_end, *(array for entry in ragged for array in (entry.offsets, entry.labels))]
    for array in arrays:
        digest.update(f"{len(array)}:".encode())
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()


class BaselineCache:
    """Reads and writes metrics of baselines in a folder, as Parquet files.

    Args:
        folder (`str` or `Path`): Folder of the files; usually `FOLDER` in the folder of the prepared data set.
        data (`str`): Digest of the data set's manifest, which holds the digests of its shards. Writing deletes the
            files of other data.
    """

    def __init__(self, folder: str | os.PathLike[str], data: str):
        self.folder, self.data = Path(folder), data

    def read(self, key: Mapping[str, Any], cases: int) -> dict[str, NDArray[np.float64]] | None:
        """Reads the metrics of a key.

        Args:
            key (`dict[str, Any]`): What the metrics depend on, such as baseline, task and cases.
            cases (`int`): Number of cases.

        Returns:
            `dict[str, numpy.ndarray]`: For each metric the values, of shape `(cases,)`; `None` if there are none.
        """
        path, text = self._path_and_key(key)
        try:
            with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                if file.schema_arrow.metadata.get(KEY) != text.encode() or file.metadata.num_rows != cases:
                    raise ValueError("it belongs to something else")
                table = file.read()
            return {name: table[name].to_numpy().astype(np.float64, copy=False) for name in table.column_names}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError) as error:  # Arrow's errors are among these
            logger.debug("%s is not used (%s): the values are computed again.", path, error)
            return None

    def write(self, key: Mapping[str, Any], values: Mapping[str, NDArray[np.float64]]) -> None:
        """Writes the metrics of a key. If the folder can't be written to, nothing happens.

        Args:
            key (`dict[str, Any]`): What the metrics depend on, such as baseline, task and cases.
            values (`dict[str, numpy.ndarray]`): For each metric the values, of shape `(cases,)`.
        """
        path, text = self._path_and_key(key)
        table = pa.table({name: pa.array(column, pa.float64()) for name, column in values.items()})
        try:
            self.folder.mkdir(exist_ok=True)
            table = table.replace_schema_metadata({KEY: text.encode()})
            with atomic_write(path) as partial:
                pa.parquet.write_table(table, partial, write_page_checksum=True)
            for other in self.folder.glob("*.parquet"):
                if not other.name.startswith(f"{self.data[:16]}-"):
                    other.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("Values of a baseline are not kept in %s: %s.", self.folder, error)

    def _path_and_key(self, key: Mapping[str, Any]) -> tuple[Path, str]:
        text = json.dumps({"format": FORMAT, "data": self.data, **key}, sort_keys=True)
        name = f"{self.data[:16]}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"
        return self.folder / name, text
