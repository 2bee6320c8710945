# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The table of bad input and what is said of it, tests/faults.yaml, for the tests and for the page docs/faults.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TABLE = Path(__file__).resolve().parents[1] / "faults.yaml"
AREAS: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def expected(area: str, changes: dict[str, Any]) -> list[Any]:
    """Parameters (change, pattern of the words) of a test of every fault of an area; `changes` are by fault."""
    says = AREAS[area]["faults"]
    if says.keys() != changes.keys():
        raise ValueError(f"{TABLE.name} and the test of {area!r} differ: {sorted(says.keys() ^ changes.keys())}")
    return [pytest.param(change, pattern(says[name]), id=name) for name, change in changes.items()]


def pattern(says: str) -> str:
    """A regular expression of words in which `...` stands for any."""
    return "(?s)" + ".*".join(re.escape(part.strip()) for part in says.split("..."))


def page() -> str:
    """The text of docs/faults.md."""
    command = "pytest tests/unit/test_faults_page.py --update-faults"
    lines = ["# What happens to bad input", "", f"Written from `tests/faults.yaml` by `{command}`.", ""]
    lines += ["The tests try each of these faults and expect these words; `...` stands for any words.", ""]
    for area, entry in AREAS.items():
        lines += [f"## {area}", "", entry["happens"], "", "| What is wrong | What is said |", "| --- | --- |"]
        lines += [f"| {name} | `{says.replace('|', chr(92) + '|')}` |" for name, says in entry["faults"].items()]
        lines.append("")
    return "\n".join(lines)
