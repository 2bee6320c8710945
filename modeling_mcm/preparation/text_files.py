# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""CSV and TSV files: every line is checked and each error is reported, then engines read the values as Parquet.

The grammar is strict. A field is in quotes from its first to its last character, or has no quote at all, and each row
has as many fields as the heading. A block without an error is recognised by counting with numpy, and a block with an
error is read record by record. So the same lines are good, and the same values are read, for every engine.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from transformers.utils import logging

from modeling_mcm.data.text_format import TextFormat

logger = logging.get_logger(__name__)

DELIMITERS = {"csv": (",", ";", "\t", "|"), "tsv": ("\t", ",", ";", "|")}  # by kind of file, the usual delimiter first
BLOCK = 8_000_000  # bytes that are checked at once
LONGEST_RECORD = 1_000_000  # bytes; a record that seems longer has a quote that was never closed
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
NO_TEXT = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"PAR1": "Parquet; name it .parquet",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
}


@dataclass
class TextFiles:
    """Reads text files for an engine, by writing their values as Parquet.

    Attributes:
        format (`TextFormat`): how the files are written.
        folder (`Path`): folder for the Parquet files. All machines of a cluster must reach it.
        dropped (`int`): number of lines that were left out so far.
    """

    format: TextFormat
    folder: Path
    dropped: int = 0
    _written: int = field(default=0, repr=False)

    def to_parquet(
        self, paths: Sequence[str], root: str, kind: str, filesystem: Any, what: str, columns: Sequence[str]
    ) -> tuple[Path, tuple[str, ...]]:
        """Writes the values of text files as Parquet.

        Args:
            paths (`Sequence[str]`): paths of the files.
            root (`str`): folder that the files are in, or the file itself. Folders below it such as `year=2024` stay
                in the new paths.
            kind (`str`): "csv" or "tsv".
            filesystem (`fsspec.AbstractFileSystem`): file system of the paths.
            what (`str`): "event" or "profile", for messages.
            columns (`Sequence[str]`): names of the columns that are read. Empty: all columns.

        Returns:
            `tuple[Path, tuple[str, ...]]`: the folder, and the new files in the order of `paths`.

        Raises:
            ValueError: if a file is no text in UTF-8, is cut off, or has a bad line where bad lines are errors.
            OSError: if a file can't be read or written.
        """
        self._written += 1
        folder = self.folder / f"text-{self._written}"
        written = []
        for index, path in enumerate(paths):
            inside = PurePosixPath(path[len(root) + 1 :]).parent if path != root else PurePosixPath()
            target = folder / inside / f"{index:06d}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            with TextReader(path, kind, filesystem, self.format, what) as reader:
                self._write(reader, target, columns)
            written.append(str(target))
        return folder, tuple(written)

    def _write(self, reader: TextReader, target: Path, columns: Sequence[str]) -> None:
        some = (
            {*columns} if {*columns} <= {*reader.names} else {*reader.names}
        )  # the error about absent columns names all columns
        indices = [index for index, name in enumerate(reader.names) if not columns or name in some]
        schema = pa.schema([(reader.names[index], pa.string()) for index in indices])
        with pq.ParquetWriter(target, schema, compression="zstd", compression_level=1) as writer:
            for table in reader.tables(indices):
                writer.write_table(table.rename_columns(schema.names))
        if reader.bad:
            self.dropped += reader.bad
            logger.warning(f"{reader.bad:,} lines of {reader.path} are left out, the first: {reader.first_bad}")


def heading(path: str, kind: str, filesystem: Any, text: TextFormat, what: str) -> list[str]:
    """Reads the names of the columns of a text file; arguments and errors are those of [`TextReader`]."""
    with TextReader(path, kind, filesystem, text, what) as reader:
        return reader.names


class TextReader:
    """One open text file: its heading, then its rows in blocks.

    Args:
        path (`str`): path of the file.
        kind (`str`): "csv" or "tsv".
        filesystem (`fsspec.AbstractFileSystem`): file system of the path.
        text (`TextFormat`): how the file is written.
        what (`str`): "event" or "profile", for messages.

    Attributes:
        names (`list[str]`): names of the columns, from the heading.
        bad (`int`): number of lines that were left out so far.
        first_bad (`str`): what was wrong with the first of them; empty if there is none.
        line (`int`): number of the next line, from 1.

    Raises:
        ValueError: if the file is no text in UTF-8, is cut off, or has no heading.
    """

    def __init__(self, path: str, kind: str, filesystem: Any, text: TextFormat, what: str):
        self.path, self.text, self.where = path, text, f"The {what} file {path}"
        self.bad, self.first_bad, self.line = 0, "", 1
        self._file = filesystem.open(fsspec.core.strip_protocol(path), "rb")
        try:
            self._open()
            self._read_heading(DELIMITERS[kind])
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> TextReader:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    # ------------------------------------------------------------------------------------------------- bytes, heading

    def _open(self) -> None:
        start = self._file.read(8)
        self._file.seek(0)
        self.compression = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
        opened: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
        self._stream: Any = self._file
        if self.compression in opened:
            self._stream = opened[self.compression](self._file)
        elif self.compression:
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), self.compression)

    def _read(self) -> bytes:
        """The next block of the file's bytes, b"" at the end."""
        parts, size = [], 0
        try:
            while size < BLOCK and (part := self._stream.read(BLOCK - size)):
                parts.append(part)
                size += len(part)
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk or the network
                raise
            raise ValueError(
                f"{self.where} is a {self.compression} file that is cut off or damaged after line {self.line:,} "
                f"({error}); write it again."
            ) from error
        return b"".join(parts)

    def _read_heading(self, delimiters: Sequence[str]) -> None:
        data = self._read()
        if kind := next((name for magic, name in NO_TEXT.items() if data.startswith(magic)), None):
            raise ValueError(f"{self.where} is {kind}, and a text file in UTF-8 was expected; save it as one.")
        data = data.removeprefix(b"\xef\xbb\xbf")
        blank = re.match(rb"(?:\s*\n)?", data).end()  # type: ignore[union-attr]  # empty lines before the heading
        data, self.line = data[blank:], self.line + data.count(b"\n", 0, blank)
        line = data[: data.find(b"\n") + 1 or len(data)]
        if not line.strip():
            raise ValueError(f"{self.where} is empty; it needs a heading and at least one row.")
        if reason := self._no_text(line):
            raise ValueError(f"{self.where}, line {self.line}: {reason}")
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            raise ValueError(f"{self.where} has lines that end with a carriage return alone; write line feeds.")
        if self.text.delimiter:
            delimiters = [self.text.delimiter]
        read = [(grammar.fields(line), grammar) for grammar in (_Grammar(mark, self.text) for mark in delimiters)]
        names, self._grammar = max(read, key=lambda pair: len(pair[0] or ()))  # of equally good delimiters the first
        if names is None:
            raise ValueError(f"{self.where}, line {self.line}: {self._grammar.reason(line, 0)}")
        self.names = [name.decode() for name in names]
        self._rest, self.line = data[len(line) :], self.line + 1

    # ----------------------------------------------------------------------------------------------------------- rows

    def tables(self, indices: Sequence[int]) -> Iterator[pa.Table]:
        """Reads the good rows.

        Args:
            indices (`Sequence[int]`): indices of the columns that are read.

        Yields:
            `pyarrow.Table`: the rows of each block, all values as text. The name of a column is its index.

        Raises:
            ValueError: if a line is bad where bad lines are errors, or the file is cut off.
        """
        names = [str(index) for index in range(len(self.names))]
        grammar = self._grammar
        parsing = pyarrow.csv.ParseOptions(
            delimiter=grammar.delimiter,
            quote_char=self.text.quote or False,
            double_quote=self.text.escapes is None,
            escape_char=self.text.escapes or False,
            newlines_in_values=True,
        )
        converting = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[str(index) for index in indices],
            strings_can_be_null=True,
            null_values=[""],
        )
        for block in self._good_blocks():
            reading = pyarrow.csv.ReadOptions(column_names=names, block_size=len(block) + 1)
            yield pyarrow.csv.read_csv(pa.BufferReader(block), reading, parsing, converting)

    def _good_blocks(self) -> Iterator[bytes]:
        """The bytes without the bad lines, in blocks that end where a row ends."""
        data = self._rest
        while True:
            block = self._read()
            data, is_last = data + block, not block
            good, used = self._look_at(data, is_last)
            if good.strip():
                yield good
            self.line += data.count(b"\n", 0, used)
            data = data[used:]
            if is_last:
                return

    def _look_at(self, data: bytes, is_last: bool) -> tuple[bytes, int]:
        """The good rows of a block, and the number of bytes that were read; the other bytes are an unfinished row."""
        used = self._grammar.sound(data, len(self.names), is_last)
        if used is not None and self._no_text(data[:used]) is None:
            return data[:used], used
        good, start, number, one_by_one = [], 0, len(self.names), 0
        while start < len(data):
            if start >= one_by_one and (through := self._grammar.run(data, start, number)) > start:
                if self._no_text(data[start:through]) is None:
                    good.append(data[start:through])
                    start = through
                    continue
                one_by_one = through
            end, fields = self._grammar.record(data, start)
            if end is None:
                if not is_last and len(data) - start < LONGEST_RECORD and self._grammar.may_go_on(data, start):
                    break
                end = data.find(b"\n", start) + 1 or len(data)  # the line is bad; reading goes on after it
                if end == len(data) and not data.endswith(b"\n") and not is_last:
                    break
                self._report(data, start, end, self._grammar.reason(data[start:end], number), is_last)
            elif end == len(data) and not data.endswith(b"\n") and not is_last:
                break
            elif not data[start:end].strip(b"\r\n"):  # an empty line
                pass
            elif reason := self._no_text(data[start:end]):
                self._report(data, start, end, reason, is_last)
            elif fields != number:
                self._report(data, start, end, self._grammar.count(fields, number), is_last)
            else:
                good.append(data[start:end])
            start = end
        return b"".join(good), start

    def _report(self, data: bytes, start: int, end: int, reason: str, is_last: bool) -> None:
        """Counts a bad line, and reports it: as an error, or as `first_bad` where bad lines are left out."""
        self.bad += 1
        if self.first_bad:  # only the first is reported, because counting lines takes long
            return
        line = self.line + data.count(b"\n", 0, start)
        if is_last and end == len(data) and not data.endswith(b"\n"):
            reason += " It is the last line and does not end: the file may be cut off."
        shown = data[start:end].decode(errors="backslashreplace").rstrip("\r\n")
        message = f"line {line:,}: {reason} It reads {shown[:60]!r}{' ...' if len(shown) > 60 else ''}."
        if self.text.on_bad_row == "error":
            raise ValueError(
                f"{self.where}, {message} Correct it, or set `on_bad_row: drop` in the schema to leave such lines out."
            )
        self.first_bad = message

    def _no_text(self, data: bytes) -> str | None:
        """The reason why some bytes are no text in UTF-8; None if they are."""
        if b"\0" in data:
            return "a null byte, which no text has; if the file is UTF-16, save it as UTF-8."
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return f"byte 0x{data[error.start]:02x} is no UTF-8; if the file is Latin-1, save it as UTF-8."
        return None


class _Grammar:
    """Recognises records of a text file, for one delimiter."""

    def __init__(self, delimiter: str, text: TextFormat):
        self.delimiter = delimiter
        self._quote, self._escape = text.quote.encode(), (text.escapes or "").encode()
        d, q, e = (re.escape(mark) for mark in (delimiter.encode(), self._quote, self._escape))
        plain = rb"(?:[^" + q + d + e + rb"\r\n]" + (rb"|" + e + rb"." if e else rb"") + rb")*+"
        inside = rb"(?:[^" + q + e + rb"]|" + (e + rb"." if e else q + q) + rb")*+"
        value = rb"(?>" + q + inside + q + rb"|" + plain + rb")" if q else plain
        row = value + rb"(?:" + d + value + rb")*+"
        self._parts = (value, d)
        self._runs: dict[int, re.Pattern[bytes]] = {}
        self._record = re.compile(rb"(" + row + rb")(?:\r?\n|\Z)", re.DOTALL)
        # A row whose last field opens with a quote and continues to the end of the bytes.
        self._open = re.compile(
            rb"(?:" + value + d + rb")*+" + q + inside + q + rb"?\r?\Z" if q else rb"(?!)", re.DOTALL
        )
        self._delimiters = re.compile(rb"(" + value + rb")" + d, re.DOTALL)
        self._escaped = re.compile(e + rb".", re.DOTALL) if e else None

    def run(self, data: bytes, start: int, number: int) -> int:
        """Index after the last of the good records, of `number` fields, that follow each other from `start` on."""
        if number not in self._runs:
            value, delimiter = self._parts
            row = value + b"(?:%b%b){%d}" % (delimiter, value, number - 1)
            self._runs[number] = re.compile(b"(?:" + row + rb"\r?\n)*+", re.DOTALL)
        return self._runs[number].match(data, start).end()  # type: ignore[union-attr]

    def record(self, data: bytes, start: int) -> tuple[int | None, int]:
        """Index after the record at `start`, None if no record starts there; and its number of fields."""
        match = self._record.match(data, start)
        if match is None or match.end() - start > LONGEST_RECORD:
            return None, 0
        return match.end(), len(self.fields(match[1]) or ())

    def fields(self, row: bytes) -> list[bytes] | None:
        """The values of a row without quotes, with or without its line end; None if the bytes are no row."""
        row = re.sub(rb"\r?\n?\Z", b"", row)
        if self._record.fullmatch(row) is None:
            return None
        values, start = [], 0
        while match := self._delimiters.match(row, start):
            values.append(match[1])
            start = match.end()
        return [self._unquoted(value) for value in (*values, row[start:])]

    def _unquoted(self, value: bytes) -> bytes:
        if self._quote and value.startswith(self._quote):
            value = value[1:-1].replace(self._quote * 2, self._quote) if not self._escape else value[1:-1]
        return self._escaped.sub(lambda match: match[0][1:], value) if self._escaped else value

    def may_go_on(self, data: bytes, start: int) -> bool:
        """Whether the bytes from `start` on may begin a record that goes on after them: a quote is open."""
        return self._open.match(data, start) is not None

    def sound(self, data: bytes, number: int, is_last: bool) -> int | None:
        """Number of bytes up to the end of the last whole record, found by counting alone; None if a record is bad.

        The bytes begin with a record, and a good record has `number` fields. Opening and closing quotes take turns,
        and a delimiter or line end between them is a part of the value.
        """
        if self._escaped:
            data = self._escaped.sub(b"xx", data)
        bytes_ = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(bytes_ == self._quote[0]) if self._quote else np.zeros(0, np.int64)

        def outside(code: int) -> np.ndarray:
            indices = np.flatnonzero(bytes_ == code)
            return indices[np.searchsorted(quotes, indices) % 2 == 0] if len(quotes) else indices

        ends = outside(ord("\n"))
        used = len(data) if is_last else int(ends[-1]) + 1 if len(ends) else 0
        if used == 0:
            return 0 if len(data) < LONGEST_RECORD else None
        quotes = quotes[quotes < used]
        if len(quotes) % 2:
            return None
        after = np.append(bytes_[:used], np.uint8(ord("\n")))
        delimiter, line_ends = ord(self.delimiter), [ord("\n"), ord("\r")]
        before = after[quotes[::2] - 1]  # before the first byte is index -1, the appended line end
        opens = np.isin(before, [delimiter, ord("\n"), *self._quote])
        closes = np.isin(after[quotes[1::2] + 1], [delimiter, *line_ends, *self._quote])
        returns = outside(ord("\r"))
        returns = returns[returns < used]
        if not (opens.all() and closes.all() and (after[returns + 1] == ord("\n")).all()):
            return None
        stops = ends[ends < used] if bytes_[used - 1] == ord("\n") else np.append(ends, used)
        delimiters = np.diff(np.searchsorted(outside(delimiter), stops), prepend=0)
        starts = np.append(0, stops[:-1] + 1)
        sizes = stops - starts
        is_blank = (sizes == 0) | ((sizes == 1) & (after[starts] == ord("\r")))
        return used if ((delimiters == number - 1) | is_blank).all() else None

    def count(self, fields: int, number: int) -> str:
        """What is wrong with a row that has other than the `number` fields of the heading."""
        return f"{fields:,} fields were found, and the heading has {number:,} (delimiter {self.delimiter!r})."

    def reason(self, line: bytes, number: int) -> str:
        """What is wrong with a line that is no record; the heading has `number` fields."""
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        quote = self._quote.decode()
        if self._open.match(line):
            return f"a quote ({quote}) opens a field and does not close."
        if self._quote in line and self._quote:
            how = f"with {self._escape.decode()!r} before it" if self._escape else "doubled"
            return f"a quote ({quote}) stands inside a field; put the field in quotes and write this one {how}."
        if b"\r" in line:
            return "a carriage return stands inside a field; put the field in quotes."
        return self.count(len(self.fields(line) or ()), number)
