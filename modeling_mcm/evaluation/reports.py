# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How results are written, for a terminal and for Markdown pages: numbers with intervals, tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from modeling_mcm.files_mcm import write_text


def with_half_interval(value: Mapping[str, float]) -> str:
    """Writes a mean and half of its interval: `0.323 ±0.012`."""
    return f"{value['mean']:.3f} ±{(value['high'] - value['low']) / 2:.3f}"


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Aligns the rows of a table in columns, to print it; the first row is the heading."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_report(table: Sequence[Sequence[str]], caption: str, path: Path) -> None:
    """Writes a caption and a table below it as Markdown. If the page has the lines `<!-- results -->` and
    `<!-- /results -->`, the text between them is replaced, otherwise the whole page."""
    heading, *lines = [f"| {' | '.join(row)} |" for row in table]
    text = "\n".join([caption, "", heading, "|" + " --- |" * len(table[0]), *lines, ""])
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    before, start, rest = page.partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, before + start + text + end + after if end else text)
