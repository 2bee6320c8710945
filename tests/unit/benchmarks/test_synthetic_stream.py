# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A log that is written in blocks: the same from the same seed, whatever its files, and shaped as its settings say."""

import hashlib

import numpy as np
import pandas as pd
import pytest

import synthetic_stream as module
from synthetic_stream import StreamSettings, write_event_log

SETTINGS = StreamSettings(items=2000, length_scale=20, max_events=500)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "CUSTOMERS_A_BLOCK", 128)


def digests(folder):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]


def read(folder):
    return pd.read_parquet(folder).sort_values(
        ["user_id", "timestamp", "session_id"], kind="stable", ignore_index=True
    )


def test_the_seed_gives_the_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_event_log(tmp_path / name, 300, SETTINGS, seed=seed, files=3)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert not set(digests(tmp_path / "a")) & set(digests(tmp_path / "c"))
    assert (read(tmp_path / "a")["timestamp"].head(100) != read(tmp_path / "c")["timestamp"].head(100)).any()


def test_customers_do_not_depend_on_the_files_or_on_who_comes_after_them(tmp_path):
    number = write_event_log(tmp_path / "one", 300, SETTINGS, files=1)
    write_event_log(tmp_path / "seven", 300, SETTINGS, files=7)
    write_event_log(tmp_path / "more", 450, SETTINGS, files=2)
    one, seven, more = (read(tmp_path / name) for name in ("one", "seven", "more"))
    assert len(one) == number and one["user_id"].nunique() == 300 and more["user_id"].nunique() == 450
    pd.testing.assert_frame_equal(one, seven)
    pd.testing.assert_frame_equal(one, more[more["user_id"] < 300].reset_index(drop=True))


def test_memory_holds_a_block_and_not_the_log(tmp_path, monkeypatch):
    lengths, write = [], module.pq.ParquetWriter.write_table
    monkeypatch.setattr(
        module.pq.ParquetWriter, "write_table", lambda self, table: (lengths.append(len(table)), write(self, table))
    )
    number = write_event_log(tmp_path / "log", 1280, SETTINGS, files=1)
    assert len(lengths) == 10 and sum(lengths) == number and max(lengths) < number / 4


def test_the_log_is_shaped_as_its_settings_say(tmp_path):
    number = write_event_log(tmp_path / "log", 4000, SETTINGS, files=1)
    log = read(tmp_path / "log")
    assert number == pytest.approx(4000 * SETTINGS.mean_events, rel=0.1)
    lengths = log.groupby("user_id").size()
    assert lengths.max() == 500 and lengths.min() == 1
    for least in (10, 40, 160):
        expected = (1 + (least - 1) / SETTINGS.length_scale) ** -SETTINGS.length_exponent
        assert (lengths >= least).mean() == pytest.approx(expected, abs=4 * (expected / 4000) ** 0.5)
    sessions = log.groupby("session_id")
    assert sessions["user_id"].nunique().eq(1).all() and sessions.size().mean() == pytest.approx(5, rel=0.2)
    gaps = sessions["timestamp"].diff().dropna().dt.total_seconds()
    assert gaps.between(module.LEAST_GAP, module.MOST_GAP).all()
    # Zipf law of what is not a return: the counts of the first items fall as 1, 1/2, 1/3 ...
    counts = log["item_id"].value_counts().to_numpy()
    np.testing.assert_allclose(counts[0] / counts[[1, 3, 7]], [2, 4, 8], rtol=0.3)
    assert log.groupby("item_id")["category_id"].nunique().eq(1).all()


def test_what_makes_no_log_is_refused(tmp_path):
    scales = ({"items": 0}, "at least 1"), ({"length_exponent": 1.0}, "no mean")
    for wrong, message in (*scales, ({"return_rate": 1.2}, "shares"), ({"end": "2022-05-01"}, "too short")):
        with pytest.raises(ValueError, match=message):
            StreamSettings(**wrong)
    with pytest.raises(ValueError, match="expected one of each"):
        write_event_log(tmp_path / "log", 0)
    (tmp_path / "log").mkdir()
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_event_log(tmp_path / "log", 1)
