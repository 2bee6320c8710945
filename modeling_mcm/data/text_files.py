# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""CSV and TSV files, read by Python's csv; fsspec opens compressed ones.

Each row has as many fields as the heading. A bad line is reported by file, line and reason, or counted and left out.
Readers that are faster lose good rows: a quote that opens a field and does not close swallows the lines up to the next
quote, and pyarrow and DuckDB drop them all, or take them for one value. Here it costs one line.
"""

import csv
import io
import itertools
import lzma
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import fsspec.compression
import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.utils import infer_compression
from transformers.utils import logging

from modeling_mcm.schema_mcm import check_choice

logger = logging.get_logger(__name__)

DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|"}  # by kind of file, the usual delimiter first
LONGEST_LINE = 1_000_000  # characters; a longer line is read in pieces, so that a file without line ends fits
NO_UTF8 = "if the file is UTF-16, Latin-1 or a spreadsheet, save it as UTF-8."
DROP_ADVICE = ", or set `on_bad_row: drop` in the schema to leave such lines out."
LONGEST_FIELD = csv.field_size_limit()  # characters
# The packages that fsspec takes for zstd end a file that is cut off as if it were whole.
WHOLE_ZSTD = "whole zstd"
fsspec.compression.register_compression(
    WHOLE_ZSTD,
    lambda file, **_: io.BufferedReader(pa.CompressedInputStream(file, "zstd")),
    [] if "zstd" in fsspec.compression.compr else "zst",
    force=True,
)


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How text files are written.

    Args:
        delimiter (`str`, *optional*): Character between the fields of a row. Default: the character among `,`, `;`,
            tab and `|` that divides the heading into most fields.
        quote (`str`): Character around a field that holds a delimiter, a line end or a quote; empty if there is none.
        escape (`str`, *optional*): Character before a quote inside such a field. Default: a quote inside a field is
            doubled.
        on_bad_row (`str`): What to do with a line that does not fit the heading or the format, and with a row whose
            times or numbers can't be read: "error" or "drop".

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
        if len({*values}) < len(values):
            raise ValueError(
                f"`delimiter`, `quote` and `escape` are {', '.join(map(repr, values))}; give different ones."
            )
        check_choice(self.on_bad_row, "on_bad_row", ("error", "drop"))


class Row(NamedTuple):
    """A row of a text file."""

    line: int  # number of its first line
    text: str
    fields: list[str]
    fault: str | None  # why its fields can't be read


def read_rows(lines: Iterator[str], line: int, options: Mapping) -> Iterator[Row]:
    """Parses lines, the first of which has the number `line`, with `options` of `csv.reader`. Of a row that can't be
    parsed, only the first line is taken; the others are parsed again."""
    again: deque[str] = deque()
    taken = []

    def take() -> Iterator[str]:
        while text := again.popleft() if again else next(lines, ""):
            taken.append(text)
            yield text

    while True:
        try:
            for fields in csv.reader(take(), strict=True, **options):
                yield Row(line, "".join(taken), fields, None)
                line += len(taken)
                taken.clear()
            return
        except csv.Error as error:
            again.extendleft(reversed(taken[1:]))
            yield Row(line, taken[0], [], str(error))
            line += 1
            taken.clear()


class TextReader:
    """One open text file: `names` of its columns from its heading, then its rows.

    `bad` counts the rows that were left out so far, and `first_bad` says what was wrong with the first of them.

    Raises:
        ValueError: If the file is no text in UTF-8, is cut off, or has no heading.
    """

    def __init__(self, path: str, kind: str, filesystem: AbstractFileSystem, text: TextFormat, what: str):
        self.path, self.text, self.where = path, text, f"The {what} file {path}"
        self.fix = "Correct it" + (DROP_ADVICE if what == "event" else ".")
        self.bad, self.first_bad, self.names = 0, "", []
        packed = WHOLE_ZSTD if path.lower().endswith(".zst") else infer_compression(path)
        self._file = filesystem.open(
            path, "rt", compression=packed, encoding="utf-8-sig", errors="surrogateescape", newline="\n"
        )
        try:
            lines = self._lines()
            number, first = next(((i, line) for i, line in enumerate(lines, 1) if line.strip()), (0, ""))
            if not first:
                raise ValueError(f"{self.where} is empty; it needs a heading and at least one row.")
            bare = "".join(first.split(text.quote)[::2]) if text.quote else first  # what stands in no quotes
            self._delimiter = text.delimiter or max(DELIMITERS[kind], key=bare.count)  # of equally good ones the first
            options = {
                "delimiter": self._delimiter,
                "quotechar": text.quote or None,
                "quoting": csv.QUOTE_MINIMAL if text.quote else csv.QUOTE_NONE,
                "escapechar": text.escape,
                "doublequote": text.escape is None,
            }
            self._rows = read_rows(itertools.chain([first], lines), number, options)
            heading = next(self._rows)
            self.names = heading.fields
            if reason := self._find_fault(heading):
                raise ValueError(f"{self.where}, line {number}: {reason}")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lines(self) -> Iterator[str]:
        number = 0
        try:
            while line := self._file.readline(LONGEST_LINE):
                yield line
                number += 1
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk or the network
                raise
            raise ValueError(
                f"{self.where} is cut off or damaged after line {number:,} ({error}); write it again."
            ) from error

    def _find_fault(self, row: Row) -> str | None:
        """What is wrong with a row, if anything."""
        if "\0" in row.text:
            return f"a null byte, which no text has; {NO_UTF8}"
        try:
            row.text.encode()
        except UnicodeEncodeError as error:
            return f"byte 0x{ord(row.text[error.start]) & 0xFF:02x} is no UTF-8; {NO_UTF8}"
        if row.fault and row.fault.startswith("new-line character"):
            return "a carriage return stands inside a field; put the field in quotes, or end lines with line feeds."
        if row.fault and row.fault.startswith("field larger"):
            if len(row.text) > LONGEST_FIELD:
                return f"a field has more than {LONGEST_FIELD:,} characters, which no value needs; cut it."
            return f"a quote opens a field and does not close within {LONGEST_FIELD:,} characters."
        if row.fault and row.fault.startswith("unexpected end"):
            return "a quote opens a field and does not close."
        if row.fault or len(row.fields) == len(self.names):
            return row.fault and f"{row.fault}."
        return (
            f"{len(row.fields):,} fields were found, and the heading has {len(self.names):,} (delimiter "
            f"{self._delimiter!r})."
        )

    def blocks(self, columns: Sequence[str], rows_per_block: int) -> Iterator[pa.RecordBatch]:
        """Reads the good rows in blocks with those of the `columns` that the file has; an empty field is missing. Says
        how many rows were left out."""
        indices = {name: self.names.index(name) for name in columns if name in self.names}
        rows = self._good_rows()
        while block := list(itertools.islice(rows, rows_per_block)):
            values = list(zip(*block, strict=True))
            arrays = [pa.array([value or None for value in values[index]], pa.string()) for index in indices.values()]
            yield pa.RecordBatch.from_arrays(arrays, list(indices))
        if self.bad:
            logger.warning(f"{self.bad:,} lines of {self.path} are left out, the first: {self.first_bad}")

    def _good_rows(self) -> Iterator[list[str]]:
        for row in self._rows:
            if not row.fault and row.text in ("\n", "\r\n"):  # an empty line
                continue
            reason = self._find_fault(row)
            if reason is None:
                yield row.fields
                continue
            self.bad += 1
            if self.first_bad:
                continue
            shown = row.text.encode(errors="surrogateescape").decode(errors="backslashreplace").rstrip("\r\n")
            self.first_bad = f"line {row.line:,}: {reason} It reads {shown[:60]!r}{' ...' if shown[60:] else ''}."
            if self.text.on_bad_row == "error":
                raise ValueError(f"{self.where}, {self.first_bad} {self.fix}")
