# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The predictions file, a Parquet file with each customer's best labels of each task.

It has one row for each customer and task, with the columns `customer_id` (string), `task` (string), `labels`
(list<string>, best first) and `scores` (list<float>). The file appears under its name only when it is complete.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.files_mcm import atomic_write

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("customer_id", pa.string()),
        ("task", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
    ]
)


def top_labels(scores: NDArray, top: int) -> NDArray[np.int64]:
    """Finds the best labels of each customer. Equal scores are in the order of the ids.

    Args:
        scores (`numpy.ndarray`, shape `(B, V)`): Scores of V labels for B customers. The first two, for missing and
            unknown, are never chosen.
        top (`int`): Number of labels.

    Returns:
        `numpy.ndarray`, shape `(B, min(top, V - 2))`: Ids of the labels, best first.
    """
    ranked = -np.asarray(scores)[:, FIRST_LABEL:]
    if 0 < top < ranked.shape[1]:
        # Sorting only labels that are at least as good as the top-th is faster; a stable sort decides about ties.
        worst = np.partition(ranked, top - 1, axis=1)[:, top - 1 : top]
        rows = [np.flatnonzero(is_good) for is_good in ranked <= worst]
        best = [good[np.argsort(row[good], kind="stable")[:top]] for row, good in zip(ranked, rows, strict=True)]
        return np.array(best, dtype=np.int64).reshape(len(ranked), top) + FIRST_LABEL
    return np.argsort(ranked, axis=1, kind="stable")[:, :top] + FIRST_LABEL


class PredictionsWriter:
    """Writes a predictions file batch by batch, as a context manager. After an error inside it there is no new file.

    Args:
        path (`str` or `Path`): The Parquet file. An older one is replaced when the new one is complete.
        top (`int`): Number of labels to write for each customer and task.

    Raises:
        ValueError: If `top` is less than 1.

    Example:

        with PredictionsWriter("predictions.parquet") as writer:
            writer.write("brand", ["7", "8"], scores, ["", "", "National", "Private"])
    """

    def __init__(self, path: str | os.PathLike[str], top: int = 100):
        if top < 1:
            raise ValueError(f"Found top = {top}; expected at least one label for each customer.")
        self.path = Path(path)
        self.top = top

    def __enter__(self) -> "PredictionsWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            partial = stack.enter_context(atomic_write(self.path))
            self._writer = stack.enter_context(pa.parquet.ParquetWriter(partial, PREDICTIONS_SCHEMA))
            self._open = stack.pop_all()
        return self

    def write(self, task: str, customer_ids: Sequence[str], scores: ArrayLike, values: Sequence[str]) -> None:
        """Adds the best labels of a batch of customers.

        Args:
            task (`str`): Name of the task.
            customer_ids (sequence of `str`, length B): Ids of the customers.
            scores (array, shape `(B, V)`): Scores of the labels. A label with minus infinity is not written.
            values (sequence of `str`, length V): The label of each id. The first two, for missing and unknown, are
                not used.

        Raises:
            ValueError: If the lengths don't fit.
        """
        scores = np.asarray(scores, dtype=np.float32)
        if scores.shape != (len(customer_ids), len(values)):
            raise ValueError(
                f"Found scores of shape {scores.shape} for task {task!r}; expected one row for each of "
                f"{len(customer_ids)} customers and one column for each of {len(values)} labels."
            )
        best = top_labels(scores, self.top)
        best_scores = np.take_along_axis(scores, best, axis=1)
        ranked = best_scores > -np.inf
        offsets = pa.array(np.concatenate([[0], np.cumsum(ranked.sum(axis=1))]).astype(np.int32))
        labels = pa.array(values, pa.string()).take(pa.array(best[ranked]))
        columns = [
            pa.array(customer_ids, pa.string()),
            pa.array([task] * len(best), pa.string()),
            pa.ListArray.from_arrays(offsets, labels),
            pa.ListArray.from_arrays(offsets, pa.array(best_scores[ranked])),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=PREDICTIONS_SCHEMA))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)
