# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Remakes the tables and pictures of README.md, docs/, benchmarks/ and model_cards/ (`make figures`).

    python benchmarks/figures.py --list                     every page, and whether its figures are of its sources
    python benchmarks/figures.py                            runs the commands of all pages whose figures are older
    python benchmarks/figures.py docs/live.md               of these pages, also where they are not older
    python benchmarks/figures.py --keep "no quiet machine" docs/live.md         stamps a page without making it

figures.yaml says which command makes which page from which sources. The last line of a page is its stamp: the commit
whose sources made its figures, the machine and the date. Stopped and started again it goes on with what is left.
"""

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from modeling_mcm.files_mcm import write_text

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "benchmarks" / "figures.yaml"
STAMP = re.compile(
    r"\n\*Figures (?:made at commit (?P<made>[0-9a-f]{7,}) on .+ \(\d+ cores\) on \d{4}-\d\d-\d\d by `.+`"
    r"|kept from commit (?P<kept>[0-9a-f]{7,}) because .+)\.\*\n?$"
)


def read_list() -> dict[str, dict[str, Any]]:
    """Reads the pages of figures.yaml. Each of a page's `sources` is a list of git's patterns of paths: those of the
    group that is named there, or the path itself.
    """
    content = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    for page in content["pages"].values():
        page["sources"] = [content["groups"].get(name, [name]) for name in page["sources"]]
    return content["pages"]


def git(*words: str) -> str:
    """Runs a git command and returns what it prints.

    Raises:
        RuntimeError: If it fails, for example outside of a clone.
    """
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)} failed: {done.stderr.strip()}. The stamps need a clone with git.")
    return done.stdout.strip()


def has_history() -> bool:
    """Whether this is a git clone with all of its commits, which the ages of stamps are found from."""
    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        return git("rev-parse", "--is-shallow-repository") == "false" and top.resolve() == ROOT
    except (RuntimeError, OSError):
        return False


def newer_commits(stamp: re.Match[str], sources: list[list[str]]) -> list[str]:
    """Lists the commits that changed the sources of a page after the commit of its stamp.

    Args:
        stamp (`re.Match`): The stamp, a match of `STAMP`.
        sources (list of lists of `str`): Sources as [`read_list`] returns them.

    Returns:
        `list[str]`: Hash and title of each commit, those of one source after those of another.
    """
    since = f"{stamp['made'] or stamp['kept']}..HEAD"
    lines = [line for paths in sources for line in git("log", "--format=%h %s", since, "--", *paths).splitlines()]
    return list(dict.fromkeys(lines))


def stamp_of(page: str) -> re.Match[str] | None:
    """Finds the stamp at the end of a page."""
    return STAMP.search((ROOT / page).read_text(encoding="utf-8"))


def write_stamp(page: str, words: str) -> None:
    """Writes a stamp at the end of a page, in the place of an earlier one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = STAMP.sub("", text).rstrip("\n")
    write_text(ROOT / page, f"{text}\n\n*Figures {words}.*\n")


def make(page: str, commands: list[str], sources: list[list[str]]) -> None:
    """Runs the commands of a page and stamps it.

    Raises:
        RuntimeError: If sources have changes that are not committed.
        subprocess.CalledProcessError: If a command fails; the stamp stays as it was.
    """
    if changed := "".join(git("status", "--porcelain", "--", *paths) for paths in sources):
        raise RuntimeError(f"{page} is made from files with changes that are not committed: {changed}. Commit first.")
    commit = git("rev-parse", "--short", "HEAD")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        subprocess.run(shlex.split(command), cwd=ROOT, env=environment, check=True)
    machine = f"{platform.machine()} ({os.cpu_count()} cores)"
    write_stamp(page, f"made at commit {commit} on {machine} on {datetime.date.today()} by `{'; '.join(commands)}`")


def main() -> None:
    """Reads the options and makes, keeps or lists the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="Pages of figures.yaml; by default those older than their sources.")
    parser.add_argument("--list", action="store_true", help="Say what would be made, and make nothing.")
    parser.add_argument(
        "--keep", metavar="REASON", help="Stamp the pages as kept from the commit of their last stamp."
    )
    options = parser.parse_args()
    known = read_list()
    if unknown := set(options.pages) - set(known):
        parser.error(f"no pages {sorted(unknown)} in {LIST.name}; it has {', '.join(known)}")
    for page in options.pages or known:
        stamp, sources = stamp_of(page), known[page]["sources"]
        newer = newer_commits(stamp, sources) if stamp else ["without a stamp"]
        print(f"{page}: {'as its sources are' if not newer else f'{len(newer)} changes since, the last {newer[0]}'}")
        if options.list:
            continue
        if options.keep:
            commit = (stamp["made"] or stamp["kept"]) if stamp else git("log", "-1", "--format=%h", "--", page)
            write_stamp(page, f"kept from commit {commit} because {options.keep}")
        elif newer or options.pages:
            make(page, known[page]["commands"], sources)


if __name__ == "__main__":
    main()
