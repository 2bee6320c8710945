# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The loader of EBES reads the layout of its files."""

import numpy as np
import pandas as pd
import pytest

import ebes

LAYOUT = ebes.DATA_SETS["age"]


@pytest.fixture
def folder(tmp_path):
    """Files with a row a sequence, whose groups say its label."""
    random = np.random.default_rng(0)
    for part, number in {"train": 120, "test": 60}.items():
        rows = []
        for client in range(number):
            days = np.sort(random.integers(0, 700, random.integers(8, 30)))
            groups = np.where(random.random(len(days)) < 0.7, client % 2 * 3, 0) + random.integers(1, 4, len(days))
            amounts = random.gamma(2.0, 20.0, len(days)).astype("float32")
            row = {"client_id": client, "bins": client % 2, "small_group": groups, "amount_rur": amounts}
            rows.append(row | {"trans_date": days, "_seq_len": len(days), "_last_trans_date": days[-1]})
        (tmp_path / part).mkdir()
        pd.DataFrame(rows).to_parquet(tmp_path / part / "part-00000.snappy.parquet")
    return tmp_path


def test_a_row_an_event_and_a_label_after_the_last_one(folder):
    events, labels = ebes.read_sequences(folder / "test", LAYOUT)
    rows = pd.read_parquet(folder / "test")
    assert len(events) == rows["_seq_len"].sum() and events["small_group"].map(type).eq(str).all()
    last = ebes.START + pd.to_timedelta(rows["_last_trans_date"], "D")
    assert (labels["as_of"] == last + pd.Timedelta(seconds=1)).all()
    assert labels["bins"].tolist() == rows["bins"].tolist()


def test_mcm_is_fitted_and_asked_for_the_test_sequences(folder):
    assert ebes.measure(folder, LAYOUT, seed=0) > 0.8
