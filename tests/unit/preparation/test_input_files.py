# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a log: folders in folders, lists, addresses of a store, and what is wrong with one of many."""

import fsspec
import pytest
from synthetic_log import make_log, make_profile, read_rows, run, schema_with

from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.files import check_files, describe, find_files


@pytest.fixture
def store():
    """A store of fsspec's that is in memory, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def write_months(log, folder, mkdir=True):
    """The log in folders by month; the column of the month is in the folders' names alone."""
    for month, part in log.groupby(log["at"].dt.month):
        if mkdir:
            (folder / f"month={month:02}").mkdir(parents=True)
        part.to_parquet(f"{folder}/month={month:02}/part.parquet", index=False)


def test_folders_lists_and_addresses_give_the_same_rows(store, tmp_path):
    log = make_log()
    run(tmp_path, log, name="frame")
    write_months(log, tmp_path / "log")
    write_months(log, "memory://bucket/log", mkdir=False)
    for name in ("_SUCCESS", ".part.parquet.crc", "_temporary.parquet"):
        (tmp_path / "log" / name).write_text("of an engine")
    folder, files = tmp_path / "log", [str(path) for path in sorted((tmp_path / "log").glob("*/*.parquet"))]
    several = ["memory://bucket/log/month=01", *(f"{folder}/month={month:02}" for month in range(2, 6))]
    for place, source in enumerate((folder, f"file://{folder}", "memory://bucket/log", files, several)):
        run(tmp_path, source, name=str(place))
        assert read_rows(tmp_path, str(place)) == read_rows(tmp_path, "frame"), source


def test_what_is_wrong_with_one_file_of_many_is_named(store, tmp_path):
    write_months(make_log(), tmp_path / "log")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "log.csv").write_text("user\n1\n")
    (tmp_path / "log.xlsx").write_text("x")
    damaged = tmp_path / "log" / "month=03" / "part.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    store.pipe("/bucket/cut.parquet", b"PAR1")
    for source, error, message in (
        (tmp_path / "log", ValueError, "month=03/part.parquet is not a whole Parquet file"),
        ("memory://bucket/cut.parquet", ValueError, "memory:///bucket/cut.parquet is not a whole Parquet file"),
        ("memory://bucket/none", FileNotFoundError, "memory://bucket/none does not exist"),
        (tmp_path / "none.parquet", FileNotFoundError, "does not exist"),
        (tmp_path / "empty", ValueError, "empty is empty"),
        (tmp_path / "empty.parquet", ValueError, "empty.parquet is empty"),
        (tmp_path / "log.xlsx", ValueError, "neither .parquet, .csv"),
        ([tmp_path / "log", tmp_path / "log.csv"], ValueError, "are parquet and csv; give files of one kind"),
        ("carrier://pigeon", ValueError, "carrier"),
    ):
        with pytest.raises(error, match=message):
            check_files(find_files(source, "event"), "event")


def test_what_was_read_is_told_apart(store, tmp_path):
    write_months(make_log(), tmp_path / "log")
    write_months(make_log(), "memory://bucket/log", mkdir=False)
    profile = tmp_path / "profile.parquet"
    make_profile().to_parquet(profile)
    for source in (tmp_path / "log", "memory://bucket/log", [tmp_path / "log", profile]):
        assert describe(source) == describe(source) is not None
    assert describe(make_log()) is None and describe("memory://bucket/none") is None
    first = prepare("memory://bucket/log", schema_with(), tmp_path / "out", profile=profile)
    options = {"profile": profile, "reuse": True}
    assert prepare("memory://bucket/log", schema_with(), tmp_path / "out", **options) == first
    make_log(seed=1).to_parquet("memory://bucket/log/month=03/part.parquet")
    with pytest.raises(FileExistsError, match="another input made it"):
        prepare("memory://bucket/log", schema_with(), tmp_path / "out", **options)
