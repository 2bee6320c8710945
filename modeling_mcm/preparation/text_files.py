# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""CSV and TSV files, read by Python's csv.

Each row has as many fields as the heading. A bad line is reported by file, line and reason, or counted and left out.
"""

import bz2
import csv
import gzip
import io
import itertools
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import fsspec
import pyarrow as pa
from transformers.utils import logging

from modeling_mcm.data.text_format import TextFormat

logger = logging.get_logger(__name__)

DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|"}  # by kind of file, the usual delimiter first
LONGEST_LINE = 1_000_000  # bytes; a longer line is read in pieces, so that a file without line ends fits in memory
OPENED: dict[bytes, tuple[str, Callable[[Any], Any]]] = {  # by the first bytes of a compressed file
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda file: io.BufferedReader(pa.CompressedInputStream(file, "zstd"))),
}
NO_TEXT = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"PAR1": "Parquet; name it .parquet",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
}
OPEN_QUOTE = "a quote opens a field and does not close."
REASONS = {  # by how the message of csv begins
    "unexpected end": OPEN_QUOTE,
    "field larger": OPEN_QUOTE,
    "new-line character": "a carriage return stands inside a field; put the field in quotes.",
}


def heading(path: str, kind: str, filesystem: Any, text: TextFormat, what: str) -> list[str]:
    """Reads the names of the columns of a text file, as [`TextReader`] does."""
    with TextReader(path, kind, filesystem, text, what) as reader:
        return reader.names


class TextReader:
    """One open text file: `names` of its columns from its heading, then its rows.

    `bad` counts the rows that were left out so far, and `first_bad` says what was wrong with the first of them.

    Raises:
        ValueError: If the file is no text in UTF-8, is cut off, or has no heading.
    """

    def __init__(self, path: str, kind: str, filesystem: Any, text: TextFormat, what: str):
        self.path, self.text, self.where = path, text, f"The {what} file {path}"
        self.bad, self.first_bad = 0, ""
        self._line = 1  # number of the row's first line
        self._taken: list[bytes] = []  # lines of the row
        self._again: deque[bytes] = deque()  # lines to be read again
        self._fault: str | None = None  # why a line of the row is no text
        self._file = filesystem.open(fsspec.core.strip_protocol(path), "rb")
        self._raw = self._raw_lines()
        try:
            self.names = self._read_heading(text.delimiter or DELIMITERS[kind])
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def _raw_lines(self) -> Iterator[bytes]:
        start = self._file.read(8)
        self._file.seek(0)
        compression, stream = next(
            ((name, opened(self._file)) for magic, (name, opened) in OPENED.items() if start.startswith(magic)),
            ("", self._file),
        )
        try:
            while line := stream.readline(LONGEST_LINE):
                yield line
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk or the network
                raise
            line = self._line + len(self._taken) - 1
            raise ValueError(
                f"{self.where} is a {compression} file that is cut off or damaged after line {line:,} ({error}); "
                "write it again."
            ) from error

    def _read_heading(self, delimiters: str) -> list[str]:
        line = next(self._raw, b"")
        if kind := next((name for magic, name in NO_TEXT.items() if line.startswith(magic)), None):
            raise ValueError(f"{self.where} is {kind}, and a text file in UTF-8 was expected; save it as one.")
        line = line.removeprefix(b"\xef\xbb\xbf")
        while line and not line.strip():
            line, self._line = next(self._raw, b""), self._line + 1
        if not line:
            raise ValueError(f"{self.where} is empty; it needs a heading and at least one row.")
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            raise ValueError(f"{self.where} has lines that end with a carriage return alone; write line feeds.")
        self._again.append(line)
        text = next(self._text_lines())
        names: list[str] = []
        reason = self._fault
        for delimiter in delimiters if not reason else "":
            try:
                (found,) = csv.reader([text], **_options(self.text, delimiter))
            except csv.Error as error:
                reason = _reason(error)
            else:
                if len(found) > len(names):  # of equally good delimiters the first
                    names, self._delimiter = found, delimiter
        if not names:
            raise ValueError(f"{self.where}, line {self._line}: {reason}")
        return names

    def _text_lines(self) -> Iterator[str]:
        """The next lines as text; where one is no text, `_fault` says why."""
        while raw := self._again.popleft() if self._again else next(self._raw, b""):
            self._taken.append(raw)
            if b"\0" in raw:
                self._fault = "a null byte, which no text has; if the file is UTF-16, save it as UTF-8."
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                self._fault = f"byte 0x{raw[error.start]:02x} is no UTF-8; if the file is Latin-1, save it as UTF-8."
                yield raw.decode(errors="replace")

    def blocks(self, columns: Sequence[str], rows_per_block: int) -> Iterator[pa.RecordBatch]:
        """Reads the good rows in blocks with those of the `columns` that the file has; an empty field is missing. Says
        how many rows were left out."""
        indices = {name: self.names.index(name) for name in columns if name in self.names}
        rows = self.rows()
        while block := list(itertools.islice(rows, rows_per_block)):
            values = list(zip(*block, strict=True))
            arrays = [pa.array([value or None for value in values[index]], pa.string()) for index in indices.values()]
            yield pa.RecordBatch.from_arrays(arrays, list(indices))
        if self.bad:
            logger.warning(f"{self.bad:,} lines of {self.path} are left out, the first: {self.first_bad}")

    def rows(self) -> Iterator[list[str]]:
        """Reads the good rows."""
        options = _options(self.text, self._delimiter)
        reader = csv.reader(self._text_lines(), **options)
        while True:
            self._line += len(self._taken)
            self._taken.clear()
            self._fault = None
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = _reason(error)
                self._again.extendleft(reversed(self._taken[1:]))  # only the first line is bad
                del self._taken[1:]
                reader = csv.reader(self._text_lines(), **options)
            else:
                if not row:  # an empty line
                    continue
                if len(row) == len(self.names) and self._fault is None:
                    yield row
                    continue
                reason = self._fault or (
                    f"{len(row):,} fields were found, and the heading has {len(self.names):,} (delimiter "
                    f"{self._delimiter!r})."
                )
            self._report(reason)

    def _report(self, reason: str) -> None:
        """Counts a bad row, and reports it: as an error, or as `first_bad` where bad rows are left out."""
        self.bad += 1
        if self.first_bad:
            return
        data = b"".join(self._taken)
        if not data.endswith(b"\n"):
            reason += " It is the last line and does not end: the file may be cut off."
        shown = data.decode(errors="backslashreplace").rstrip("\r\n")
        message = f"line {self._line:,}: {reason} It reads {shown[:60]!r}{' ...' if len(shown) > 60 else ''}."
        if self.text.on_bad_row == "error":
            raise ValueError(
                f"{self.where}, {message} Correct it, or set `on_bad_row: drop` in the schema to leave such lines out."
            )
        self.first_bad = message


def _options(text: TextFormat, delimiter: str) -> dict[str, Any]:
    """Options of `csv.reader`."""
    quotes = {"quotechar": text.quote} if text.quote else {"quotechar": None, "quoting": csv.QUOTE_NONE}
    return quotes | {
        "delimiter": delimiter,
        "escapechar": text.escapes,
        "doublequote": text.escapes is None,
        "strict": True,
    }


def _reason(error: csv.Error) -> str:
    return next((reason for start, reason in REASONS.items() if str(error).startswith(start)), f"{error}.")
