# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How a CSV or TSV file is written: a part of the event schema. `preparation/text_files.py` reads the files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextFormat:
    """How text files are written.

    Args:
        delimiter (`str`, *optional*): Character between the fields of a row. Default: the character among `,`, `;`,
            tab and `|` that divides the heading into most fields.
        quote (`str`): Character around a field that holds a delimiter, a line end or a quote; empty if there is none.
        escape (`str`, *optional*): Character before a quote inside such a field. Default: a quote inside a field is
            doubled.
        on_bad_row (`str`): What to do with a line that does not fit the heading or the format: "error" or "drop".

    Raises:
        ValueError: If a value is not one ASCII character, two of them are the same, or `on_bad_row` is unknown.
    """

    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None
    on_bad_row: str = "error"

    def __post_init__(self) -> None:
        characters = {"delimiter": self.delimiter, "quote": self.quote or None, "escape": self.escape}
        for key, value in characters.items():
            if value is not None and not (
                isinstance(value, str) and len(value) == 1 and value.isascii() and value not in "\r\n\0"
            ):
                raise ValueError(f"`{key}` is {value!r}; give one character, such as ',' or \"\\t\" for a tab.")
        values = [value for value in characters.values() if value is not None]
        if self.escape != self.quote and len({*values}) < len(values):
            raise ValueError(
                f"`delimiter`, `quote` and `escape` are {', '.join(map(repr, values))}; give different ones."
            )
        if self.on_bad_row not in ("error", "drop"):
            raise ValueError(f"`on_bad_row` is {self.on_bad_row!r}; choose error or drop.")

    @property
    def escapes(self) -> str | None:
        """`str` or None: the character before a quote inside a field; None where quotes are doubled."""
        return None if self.escape == self.quote else self.escape
