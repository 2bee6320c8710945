# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The files of an input table: a file, a folder, an address that fsspec knows, or a list of these; found and checked.

Below a folder, parts of a path such as `year=2024` are columns of the table ("hive partitions"), which are read as
text. Files and folders whose names begin with `_` or `.` are skipped, as every engine does.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.text_format import TextFormat
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.preparation.text_files import heading

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv"}
PACKED = (".gz", ".bz2", ".xz", ".zst")  # suffixes of compressed text files
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # in a path where the column has no value
ABSENT, NULL = "absent", "null"  # in the place of a type: the file lacks the column; the column has no value


@dataclass(frozen=True)
class InputFiles:
    """Some files of one kind that an engine reads at once."""

    root: str  # the folder or the file that was named
    paths: tuple[str, ...]  # local paths or addresses, in the order of their names
    kind: str  # "parquet", "csv" or "tsv"
    filesystem: Any  # fsspec's; None where only the engine reaches the address
    partitioned: bool = False  # whether parts of the paths below the root are columns

    def empty_columns(self) -> dict[str, frozenset[str]]:
        """Finds by file the columns without any value, which have the type null in a Parquet file."""
        if self.kind != "parquet":
            return dict.fromkeys(self.paths, frozenset())
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda path: _columns(path, self, "input"), self.paths)
            return {
                path: frozenset(name for name, kind in columns if kind == NULL)
                for path, columns in zip(self.paths, read, strict=True)
            }

    def path_columns(self, path: str) -> dict[str, str | None]:
        """The columns that the path of a file gives, by name, with their values."""
        inside = PurePosixPath(path[len(self.root) + 1 :]).parts[:-1] if self.partitioned else ()
        parts = [part.partition("=") for part in inside if "=" in part]
        return {name: None if value == NO_PARTITION else unquote(value) for name, _, value in parts}

    @property
    def name(self) -> str:
        """`str`: name of the folder or the file, for a manifest."""
        return PurePosixPath(self.root).name

    def digests(self) -> dict[str, str]:
        """Finds by name below the root the SHA-256 digest of each local file, or the store's checksum."""
        inside = len(self.root) + 1
        names = {path: path[inside:] or PurePosixPath(path).name for path in self.paths}
        if is_local(self.filesystem):
            return {name: file_digest(path) for path, name in names.items()}
        return {name: str(self.filesystem.checksum(path)) for path, name in names.items()}


def describe(source: Any) -> dict[str, Any] | None:
    """Describes the files of a source for the manifest: `name`, and `files`, by name of the file its digest. None for
    a table in memory, and for files that only the engine reaches."""
    if not is_files(source):
        return None
    try:
        parts = find_files(source, "input")
    except (ValueError, OSError, ImportError):  # opening the files reports what is wrong
        return None
    is_one = len(parts) == 1
    return {
        "name": ", ".join(files.name for files in parts),
        "files": {
            name if is_one else f"{index}/{name}": digest
            for index, files in enumerate(parts)
            for name, digest in files.digests().items()
        },
    }


def is_local(filesystem: Any) -> bool:
    """Says whether a file system is that of this machine."""
    return isinstance(filesystem, fsspec.implementations.local.LocalFileSystem)


def detect_kind(name: str) -> str | None:
    """Finds the kind of a file by its name, "parquet", "csv" or "tsv"; `.csv.gz` is csv, and None any other file."""
    path = PurePosixPath(name.lower())
    packed = path.suffix in PACKED
    kind = SUFFIXES.get((path.with_suffix("") if packed else path).suffix)
    return None if packed and kind == "parquet" else kind


def is_files(source: Any) -> bool:
    """Says whether a source names files and is no table."""
    parts = source if isinstance(source, list | tuple) else [source]
    return bool(parts) and all(isinstance(part, str | Path) for part in parts)


def find_files(source: str | Path | Sequence[str | Path], what: str) -> list[InputFiles]:
    """Finds the files of a source."""
    addresses = source if isinstance(source, list | tuple) else [source]
    parts = [_find(str(part), what) for part in addresses]
    if kinds := {files.kind for files in parts} - {parts[0].kind}:
        raise ValueError(
            f"The {what} files are {parts[0].kind} and {', '.join(sorted(kinds))}; give files of one kind at a time."
        )
    return parts


def check_files(
    parts: Sequence[InputFiles], what: str, columns: Sequence[str] = (), text: TextFormat | None = None
) -> list[str]:
    """Checks that all files have the same columns with the same types, and names the columns. An empty column fits any
    type."""
    kinds_by_column: dict[str, dict[str, str]] = {}  # by column and type the first file with it
    first = parts[0].paths[0]
    with ThreadPoolExecutor() as pool:  # a store answers slowly, so many files are read at once
        for files in parts:
            read = pool.map(lambda path, files=files: _columns(path, files, what, text), files.paths)
            for path, columns_of in zip(files.paths, read, strict=True):
                check_names([name for name, _ in columns_of], f"The {what} file {path}", columns)
                kinds = dict(columns_of)
                for name in dict.fromkeys([*kinds, *kinds_by_column]):
                    known = kinds_by_column.setdefault(name, {} if path == first else {ABSENT: first})
                    known.setdefault(kinds.get(name, ABSENT), path)
    for name, types in sorted(kinds_by_column.items()):
        types.pop(NULL, None)
        if len(types) > 1 and (not columns or name in columns):
            ways = " and ".join(f"{kind} in {path}" for kind, path in types.items())
            raise ValueError(
                f"Column {name!r} of the {what} files is {ways}: the files have different columns or types ({name}), "
                "and the schema of the log has changed; write them alike."
            )
    return list(kinds_by_column)


def _find(address: str, what: str) -> InputFiles:
    filesystem, path = fsspec.core.url_to_fs(address)
    if not filesystem.exists(path):
        raise FileNotFoundError(f"The {what} file {address} does not exist; check the path.")
    if not filesystem.isdir(path):
        kind = detect_kind(path)
        if kind is None:
            raise ValueError(
                f"The {what} file {address} is neither .parquet, .csv nor .tsv; convert it or pass an Ibis table."
            )
        return InputFiles(path, (_address(filesystem, path),), kind, filesystem)
    root = path.rstrip("/")
    inside = {file: PurePosixPath(file[len(root) + 1 :]).parts for file in sorted(filesystem.find(path))}
    kinds = {
        file: kind
        for file, parts in inside.items()
        if (kind := detect_kind(file)) and not any(part.startswith(("_", ".")) for part in parts)
    }
    if not kinds:
        raise ValueError(f"The {what} file {address} is empty; it needs at least one row in a .parquet or .csv file.")
    firsts = {kind: file for file, kind in reversed(kinds.items())}
    if len(firsts) > 1:
        raise ValueError(
            f"The {what} folder {address} holds files of several kinds, {' and '.join(sorted(firsts.values()))}; put "
            "those that are no part of the log elsewhere, or write all of them alike."
        )
    partitioned = any("=" in part for file in kinds for part in inside[file][:-1])
    paths = tuple(_address(filesystem, file) for file in kinds)
    return InputFiles(_address(filesystem, root), paths, next(iter(firsts)), filesystem, partitioned)


def _address(filesystem: Any, path: str) -> str:
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def _columns(path: str, files: InputFiles, what: str, text: TextFormat | None = None) -> list[tuple[str, str]]:
    """Names and types of the columns of a file and of its path. In a text file all columns are text."""
    if files.filesystem.size(path) == 0:
        raise ValueError(f"The {what} file {path} is empty; it needs at least one row.")
    path_columns = [(name, "string") for name in files.path_columns(path)]
    if files.kind != "parquet":
        names = heading(path, files.kind, files.filesystem, text or TextFormat(), what)
        return [(name, "string") for name in names] + path_columns
    try:
        with files.filesystem.open(path) as file:
            schema = pq.read_schema(file)
    except Exception as error:  # pyarrow raises ArrowInvalid or OSError, depending on where the file is cut
        raise ValueError(
            f"The {what} file {path} is not a whole Parquet file ({error}); it may be cut off: write it again."
        ) from error
    return [(field.name, _detect_kind(field.type)) for field in schema] + path_columns


def check_names(names: Sequence[str], where: str, columns: Sequence[str] = ()) -> None:
    """Checks that no two columns have the same name, or names that differ only in their case."""
    names_read = {name.casefold() for name in columns}
    counted = Counter(str(name).casefold() for name in names)
    for folded, number in counted.items():
        if number > 1 and (not columns or folded in names_read):
            same = [str(name) for name in names if str(name).casefold() == folded]
            raise ValueError(
                f"{where} has {number} columns {' and '.join(map(repr, same))}, which engines can't tell apart (a "
                "part of its path such as year=2024 is a column too); rename or remove one."
            )


def _detect_kind(kind: pa.DataType) -> str:
    """Name of a type; types that hold the same text have the same name."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return "string" if pa.types.is_large_string(kind) else str(kind)
