# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How results are written, for a terminal and for Markdown pages: numbers with intervals, tables, parts of pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_mcm.evaluation.metrics import Interval
from modeling_mcm.files_mcm import write_text

RESULTS = "results"  # the part of a page that a command writes, unless it names another one


def with_interval(value: Interval | Mapping[str, Any], form: str = ".3f") -> str:
    """Writes a mean and its interval: `0.323 [0.311, 0.335]`; `form` is how a number is written, such as `+.1%`."""
    mean, low, high = (_numbers(value)[name] for name in ("mean", "low", "high"))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def with_half_interval(value: Interval | Mapping[str, Any], form: str = ".3f") -> str:
    """Writes a mean and half of its interval: `0.323 ±0.012`."""
    mean, low, high = (_numbers(value)[name] for name in ("mean", "low", "high"))
    return f"{mean:{form}} ±{(high - low) / 2:{form}}"


def _numbers(value: Interval | Mapping[str, Any]) -> Mapping[str, Any]:
    return value._asdict() if isinstance(value, Interval) else value


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Aligns the rows of a table in columns, to print it; the first row is the heading."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Writes the lines of a table in Markdown; the first row is the heading."""
    heading, *lines = [f"| {' | '.join(row)} |" for row in table]
    return [heading, "|" + " --- |" * len(table[0]), *lines]


def replace_part(path: Path, text: str, part: str = RESULTS) -> bool:
    """Writes a text between the lines `<!-- PART -->` and `<!-- /PART -->` of a page. Returns whether there is a page
    with these lines; without them nothing is written."""
    start, end = f"<!-- {part} -->\n", f"<!-- /{part} -->"
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    before, opened, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if opened and closed:
        write_text(path, before + start + text + end + after)
    return bool(opened and closed)


def write_report(table: Sequence[Sequence[str]], caption: str, path: Path) -> None:
    """Writes a caption and a table below it as Markdown. If the page has the lines `<!-- results -->` and
    `<!-- /results -->`, the text between them is replaced, otherwise the whole page."""
    text = "\n".join([caption, "", *markdown_table(table), ""])
    if not replace_part(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
