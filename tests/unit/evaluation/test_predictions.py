# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The predictions file holds the best labels, best first, and is whole or not there."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from modeling_mcm.evaluation.predictions import PREDICTIONS_SCHEMA, PredictionsWriter, top_labels

VALUES = ["", "", "milk", "bread", "eggs", "tea"]


def test_what_is_written_is_read_back_best_first(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "predictions.parquet"
    with PredictionsWriter(path, top=3) as writer:
        writer.write("type", ["a", "b"], [[9, 9, 1, 4, 2, 3], [9, 9, 0, -1, -2, -3]], VALUES)
        writer.write("type", ["c"], [[0, 0, 1, 2, 3, 4]], VALUES)
        writer.write("brand", ["a"], [[0, 0, 0.5]], ["", "", "own"])
    table = pq.read_table(path)
    assert table.schema.equals(PREDICTIONS_SCHEMA)
    assert table.to_pylist() == [
        {"customer_id": "a", "task": "type", "labels": ["bread", "tea", "eggs"], "scores": [4, 3, 2]},
        {"customer_id": "b", "task": "type", "labels": ["milk", "bread", "eggs"], "scores": [0, -1, -2]},
        {"customer_id": "c", "task": "type", "labels": ["tea", "eggs", "bread"], "scores": [4, 3, 2]},
        {"customer_id": "a", "task": "brand", "labels": ["own"], "scores": [0.5]},
    ]


@pytest.mark.parametrize("top", [1, 5, 29, 30, 100])
def test_top_labels_are_those_of_a_full_stable_sort(top: int) -> None:
    scores = np.random.default_rng(0).integers(0, 6, size=(20, 32)).astype(np.float32)
    expected = 2 + np.argsort(-scores[:, 2:], axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(top_labels(scores, top), expected)


def test_an_error_while_writing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with PredictionsWriter(path) as writer:
        writer.write("type", ["old"], np.zeros((1, 6)), VALUES)
    with pytest.raises(KeyboardInterrupt), PredictionsWriter(path) as writer:
        writer.write("type", ["new"], np.zeros((1, 6)), VALUES)
        raise KeyboardInterrupt
    assert pq.read_table(path)["customer_id"].to_pylist() == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="each of 2 customers and one column for each of 6 labels"),
        PredictionsWriter(tmp_path / "predictions.parquet") as writer,
    ):
        writer.write("type", ["a", "b"], np.zeros((1, 6)), VALUES)
    with pytest.raises(ValueError, match="top = 0"):
        PredictionsWriter(tmp_path / "predictions.parquet", top=0)
    assert not list(tmp_path.iterdir())
