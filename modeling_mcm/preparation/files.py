# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The files of an input table: a file, a folder, an address that fsspec knows, or a list of these; found and checked.

Below a folder, parts of a path such as `year=2024` are columns of the table ("hive partitions"), read as text. Names
that begin with `_` or `.` are passed over, as every engine does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.data.dataset import sha256_of
from modeling_mcm.preparation.text_files import TextFormat, heading

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv"}
PACKED = (".gz", ".bz2", ".xz", ".zst")  # what may follow the suffix of a text file
ABSENT, NULL = "absent", "null"  # in the place of a type: no such column; one that holds nothing


@dataclass(frozen=True)
class InputFiles:
    """Some files of one kind that an engine reads at once.

    Args:
        root (`str`): What was given: the folder, or the file.
        paths (`tuple[str]`): The files, local paths or addresses, in the order of their names.
        kind (`str`): `parquet`, `csv` or `tsv`.
        filesystem: Of fsspec; null where only the engine can look at the address.
        partitioned (`bool`): Whether parts of the paths below the root are columns.
    """

    root: str
    paths: tuple[str, ...]
    kind: str
    filesystem: Any
    partitioned: bool = False

    def empty_columns(self) -> dict[str, frozenset[str]]:
        """Of each Parquet file the columns of the type null: they hold nothing, whatever they hold elsewhere."""
        if self.kind != "parquet":
            return {path: frozenset() for path in self.paths}
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda path: _columns(path, self, "input"), self.paths)
            return {
                path: frozenset(name for name, kind in columns if kind == NULL)
                for path, columns in zip(self.paths, read, strict=True)
            }

    @property
    def name(self) -> str:
        """Of the folder or the file, for a manifest."""
        return PurePosixPath(self.root).name

    def digests(self) -> dict[str, str]:
        """Per file what tells it from another version: the digest of a local file, what the store says of others."""
        inside = len(self.root) + 1
        names = {path: path[inside:] or PurePosixPath(path).name for path in self.paths}
        if is_local(self.filesystem):
            return {name: sha256_of(path) for path, name in names.items()}
        return {name: str(self.filesystem.checksum(path)) for path, name in names.items()}


def describe(source: Any) -> dict[str, Any] | None:
    """Names of the files and what tells them from others; None for a table, or files that only the engine reaches."""
    if not is_files(source):
        return None
    try:
        found = find_files(source, "input")
    except (ValueError, OSError, ImportError):  # opening says what is wrong, where the engine can't reach them either
        return None
    digests = [files.digests() for files in found]
    if len(found) > 1:
        digests = [{f"{place}/{name}": digest for name, digest in each.items()} for place, each in enumerate(digests)]
    return {
        "name": ", ".join(files.name for files in found),
        "files": {name: digest for each in digests for name, digest in each.items()},
    }


def is_local(filesystem: Any) -> bool:
    """Whether files lie on this machine."""
    return isinstance(filesystem, fsspec.implementations.local.LocalFileSystem)


def kind_of(name: str) -> str | None:
    """`parquet`, `csv` or `tsv` by the end of a file's name, None for others; .csv.gz is csv."""
    path = PurePosixPath(name.lower())
    packed = path.suffix in PACKED
    kind = SUFFIXES.get((path.with_suffix("") if packed else path).suffix)
    return None if packed and kind == "parquet" else kind


def is_files(source: Any) -> bool:
    """Whether a source names files, and is no table."""
    each = source if isinstance(source, list | tuple) else [source]
    return bool(each) and all(isinstance(part, str | Path) for part in each)


def find_files(source: str | Path | Sequence[str | Path], what: str) -> list[InputFiles]:
    """Finds the files of a source.

    Args:
        source: a file, a folder of them, an address such as `gs://bucket/log`, or a list of these.
        what: `event` or `profile`, for messages.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown file type, or an empty folder.
        ImportError: What the address needs is not installed; the message says what to install.
    """
    given = source if isinstance(source, list | tuple) else [source]
    found = [_find(str(part), what) for part in given]
    if kinds := {files.kind for files in found} - {found[0].kind}:
        raise ValueError(
            f"The {what} files are {found[0].kind} and {', '.join(sorted(kinds))}; give files of one kind at a time."
        )
    return found


def check_files(
    found: Sequence[InputFiles], what: str, columns: Sequence[str] = (), text: TextFormat | None = None
) -> None:
    """Looks into every file, and raises where they do not have the same columns, of the same types.

    A column that holds nothing in a file is of any type there.

    Args:
        found: of `find_files`.
        what: `event` or `profile`, for messages.
        columns: those that every file must have, in the same type, if one has it; all if none are given.
        text: how text files are written.

    Raises:
        ValueError: An empty file or a damaged one, or a column that some files have in another type or not at all.
    """
    seen: dict[str, dict[str, str]] = {}  # column -> type -> the first file that has it so
    first = found[0].paths[0]
    with ThreadPoolExecutor() as pool:  # a store answers slowly, and many at once
        for files in found:
            read = pool.map(lambda path, files=files: _columns(path, files, what, text), files.paths)
            for path, columns_of in zip(files.paths, read, strict=True):
                check_names([name for name, _ in columns_of], f"The {what} file {path}", columns)
                kinds = dict(columns_of)
                for name in {*kinds, *seen}:
                    known = seen.setdefault(name, {} if path == first else {ABSENT: first})
                    known.setdefault(kinds.get(name, ABSENT), path)
    for name, types in sorted(seen.items()):
        types.pop(NULL, None)
        if len(types) > 1 and (not columns or name in columns):
            ways = " and ".join(f"{kind} in {path}" for kind, path in types.items())
            raise ValueError(
                f"Column {name!r} of the {what} files is {ways}: the files have different columns or types ({name}), "
                "and the schema of the log has changed; write them alike."
            )


def _find(address: str, what: str) -> InputFiles:
    filesystem, path = fsspec.core.url_to_fs(address)
    if not filesystem.exists(path):
        raise FileNotFoundError(f"The {what} file {address} does not exist; check the path.")
    if not filesystem.isdir(path):
        kind = kind_of(path)
        if kind is None:
            raise ValueError(
                f"The {what} file {address} is neither .parquet, .csv nor .tsv; convert it or pass an Ibis table."
            )
        return InputFiles(path, (_address(filesystem, path),), kind, filesystem)
    root = path.rstrip("/")
    inside = {each: PurePosixPath(each[len(root) + 1 :]).parts for each in sorted(filesystem.find(path))}
    kinds = {
        each: kind
        for each, parts in inside.items()
        if (kind := kind_of(each)) and not any(part.startswith(("_", ".")) for part in parts)
    }
    if not kinds:
        raise ValueError(f"The {what} file {address} is empty; it needs at least one row in a .parquet or .csv file.")
    firsts = {kind: each for each, kind in reversed(kinds.items())}
    if len(firsts) > 1:
        raise ValueError(
            f"The {what} folder {address} holds files of several kinds, {' and '.join(sorted(firsts.values()))}; put "
            "those that are no part of the log elsewhere, or write all of them alike."
        )
    partitioned = any("=" in part for each in kinds for part in inside[each][:-1])
    paths = tuple(_address(filesystem, each) for each in kinds)
    return InputFiles(_address(filesystem, root), paths, next(iter(firsts)), filesystem, partitioned)


def merged(found: list[InputFiles]) -> list[InputFiles]:
    """The same files, with those that have no columns in their paths as one, for an engine reads them at once."""
    merged: dict[Any, InputFiles] = {}
    for place, files in enumerate(found):
        key = place if files.partitioned else (files.kind, id(files.filesystem))
        earlier = merged.get(key)
        merged[key] = replace(earlier, paths=earlier.paths + files.paths) if earlier else files
    return list(merged.values())


def _address(filesystem: Any, path: str) -> str:
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def _columns(path: str, files: InputFiles, what: str, text: TextFormat | None = None) -> list[tuple[str, str]]:
    """Columns and types of a file, with those that its path has; in a text file all are text."""
    if files.filesystem.size(path) == 0:
        raise ValueError(f"The {what} file {path} is empty; it needs at least one row.")
    inside = PurePosixPath(path).parts[:-1] if files.partitioned else ()
    of_path = [(part.partition("=")[0], "string") for part in inside if "=" in part]
    if files.kind != "parquet":
        names = heading(path, files.kind, files.filesystem, text or TextFormat(), what)
        return [(name, "string") for name in names] + of_path
    try:
        with files.filesystem.open(path) as file:
            schema = pq.read_schema(file)
    except Exception as error:  # pyarrow raises ArrowInvalid or OSError, depending on where the file is cut
        raise ValueError(
            f"The {what} file {path} is not a whole Parquet file ({error}); it may be cut off: write it again."
        ) from error
    return [(field.name, _kind_of(field.type)) for field in schema] + of_path


def check_names(names: Sequence[str], where: str, columns: Sequence[str] = ()) -> None:
    """Raises `ValueError` where two columns have one name, or names that differ in their case alone.

    Args:
        names: Columns of a table.
        where: The table, for the message.
        columns: Those that are read; all if none are given.
    """
    wanted = {name.casefold() for name in columns}
    counted = Counter(str(name).casefold() for name in names)
    for folded, number in counted.items():
        if number > 1 and (not columns or folded in wanted):
            same = [str(name) for name in names if str(name).casefold() == folded]
            raise ValueError(
                f"{where} has {number} columns {' and '.join(map(repr, same))}, which engines can't tell apart (a "
                "part of its path such as year=2024 is a column too); rename or remove one."
            )


def _kind_of(kind: pa.DataType) -> str:
    """A type's name; those that hold the same text are the same."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return "string" if pa.types.is_large_string(kind) else str(kind)
