# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Every page with figures says of which commit they are, and none of them is older than what made it."""

import re
import shlex
from pathlib import Path

import pytest

import figures

ROOT = Path(__file__).resolve().parents[3]

PAGES = figures.read_list()
# A table that a command writes, and is no figure: tests hold it.
TESTED = {"docs/faults.md", "docs/tutorial.md"}


def test_every_page_that_a_command_writes_is_on_the_list():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        assert name in {*PAGES, *TESTED} or not re.search(r"^<!-- results -->|^Written (by|from) ", text, re.M), name


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_stamped_and_what_makes_it_exists(page):
    assert figures.stamp_of(page), f"{page} has no stamp at its end: make it with `make figures PAGES={page}`."
    for source in (path for paths in PAGES[page]["sources"] for path in paths):
        assert list(ROOT.glob(source.removeprefix(":(exclude)"))), f"{page}: {source} is nowhere"
    assert all((ROOT / picture).is_file() for picture in PAGES[page].get("pictures", ()))
    for command in PAGES[page]["commands"]:
        words = shlex.split(command)
        assert words[0] == "make" or (ROOT / words[1]).is_file(), command


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_not_older_than_what_made_them(page):
    if not figures.has_history():
        pytest.skip("no git history: the ages of stamps can't be told, only their form")
    stamp = figures.stamp_of(page)
    figures.git("merge-base", "--is-ancestor", stamp["made"] or stamp["kept"], "HEAD")
    newer = figures.newer_commits(stamp, PAGES[page]["sources"]) if stamp["made"] else []
    assert not newer, (
        f"{page} is older than {newer[0]}: `make figures PAGES={page}`, or say why it is not made again, "
        f'`python benchmarks/figures.py --keep "REASON" {page}`.'
    )


def test_a_stamp_is_replaced_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n| a |\n")
    figures.write_stamp("page.md", "kept from commit 0123abc because the machine is gone")
    figures.write_stamp("page.md", "made at commit 4567def on x86_64 (2 cores) on 2026-01-31 by `python a.py`")
    assert page.read_text().count("*Figures ") == 1 and page.read_text().startswith("# Page\n\n| a |\n\n")
    stamp = figures.stamp_of("page.md")
    assert stamp["made"] == "4567def" and stamp["kept"] is None


def test_what_changed_since_a_stamp_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert not figures.has_history()
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "a")
        monkeypatch.setenv(f"{name}_EMAIL", "a@b")
    figures.git("init", "--quiet")
    for number, name in enumerate(("a_mcm.py", "page.md", "a_mcm.py")):
        (tmp_path / name).write_text(f"{number}\n")
        figures.git("add", name)
        figures.git("commit", "--quiet", "--message", f"change {number}")
    assert figures.has_history()
    for back, expected in ((2, ["change 2"]), (0, [])):
        commit = figures.git("rev-parse", "--short", f"HEAD~{back}")
        figures.write_stamp("page.md", f"made at commit {commit} on x86_64 (2 cores) on 2026-01-31 by `python a.py`")
        newer = figures.newer_commits(figures.stamp_of("page.md"), [["*_mcm.py"]])
        assert [line.split(" ", 1)[1] for line in newer] == expected
    with pytest.raises(RuntimeError, match=r"a_mcm\.py.*Commit first"):
        (tmp_path / "a_mcm.py").write_text("3\n")
        figures.make("page.md", ["true"], [["*_mcm.py"]])
