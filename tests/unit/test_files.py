# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all, at a full disk too, and by one function everywhere."""

import errno
import multiprocessing
import os
import re
import resource
import signal
from pathlib import Path

import pandas as pd
import pytest

from modeling_mcm.evaluation.comparison import write_report, write_values
from modeling_mcm.files_mcm import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = [*sorted((ROOT / "modeling_mcm").rglob("*.py")), *sorted((ROOT / "training").glob("*.py"))]
OLD = b"what was there before"


WRITERS = {
    "text": lambda folder: write_text(folder / "found", "text" * 100),
    "a report": lambda folder: write_report([["method"], ["MCM"]], "caption" * 30, folder / "found"),
    "values": lambda folder: write_values(folder / "found", ["a"], pd.DataFrame({("MCM", "items", "ndcg"): [1.0]})),
}


@pytest.mark.parametrize("room", [0, 1, 30])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("existed", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path, room, write, existed):
    if existed:
        (tmp_path / "found").write_bytes(OLD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # as on a disk that is full after them
    try:
        with pytest.raises(OSError) as raised:
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(raised.value)
    assert str(tmp_path / "found") in said and "can't be written" in said and "make room" in said
    assert [path.name for path in tmp_path.iterdir()] == (["found"] if existed else [])
    assert not existed or (tmp_path / "found").read_bytes() == OLD


def test_an_error_inside_leaves_what_was_there_and_no_trace(tmp_path):
    (tmp_path / "found").write_bytes(OLD)
    with pytest.raises(ValueError, match="of its own"), atomic_write(tmp_path / "found") as partial:
        partial.write_text("half")
        raise ValueError("an error of its own")
    assert (tmp_path / "found").read_bytes() == OLD and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_and_the_file_that_it_names_is_written(tmp_path):
    (tmp_path / "real").write_bytes(OLD)
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


def write_and_wait(path, pipe):
    os.getpid = lambda: 7  # as in a container, each of which numbers its processes, and may have the name of its host
    with atomic_write(path) as partial:
        partial.write_text("half")
        pipe.send(partial.parent)
        pipe.recv()


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_one_s_is_not(tmp_path):
    context, (here, there) = multiprocessing.get_context("fork"), multiprocessing.Pipe()
    processes = [context.Process(target=write_and_wait, args=(tmp_path / "found", there)) for _ in range(2)]
    parts = []
    for process in processes:
        process.start()
        parts.append(here.recv())
    other = tmp_path / ".found.more.0123456789ab.partial"
    other.mkdir()
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join()
    write_text(tmp_path / "found", "new")
    assert [part.exists() for part in parts] == [False, True] and other.exists()
    here.send("go on")
    processes[1].join()
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "found"])
    assert (tmp_path / "found").read_text() == "half"


def test_the_errors_of_the_place_are_those_of_the_place(tmp_path, monkeypatch):
    for number, named in [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, True), (errno.EINVAL, False)]:

        def replace(source, target, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("os.replace", replace)
        with pytest.raises(OSError) as raised:
            write_text(tmp_path / "found", "new")
        assert raised.value.errno == number and (str(tmp_path / "found") in str(raised.value)) == named


def test_no_other_place_writes_a_text_or_renames_a_file_by_hand():
    """Folders are renamed elsewhere; a text that is written in place is cut where the disk is full."""
    forbidden = re.compile(r"\.write_text\(|\bos\.(replace|rename)\(|\bjson\.dump\(")
    texts = {path.name: path.read_text(encoding="utf-8") for path in LIBRARY}
    found = {name for name, text in texts.items() if forbidden.search(text)}
    assert found == {"files_mcm.py", "checkpoint_mcm.py"}
