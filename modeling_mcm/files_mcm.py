# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes files and folders whole or not at all, locks them, and checks that they are whole and belong together.

A file that is written in place is cut if the disk is full or the process is killed, and its earlier content is lost.
So a temporary file or folder in the same place is written, flushed to the disk and renamed. config.json has digests
of the vocabularies and of each file of weights beside it, so that files of different saves, and a bit that flipped
since, are noticed.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, logging

logger = logging.get_logger(__name__)
VOCABULARIES_NAME = "vocabularies.json"
DIGESTS = "weights_sha256"  # key of config.json: by file of weights its size and digest; other origins have none
ACTION_HEAD = "action_head"  # weights of the head for offers; models without it leave them out
LOCK_SUFFIX = ".lock"  # of hidden files, which readers of folders skip
Tensors = dict[str, torch.Tensor]
SHOWN = 3  # number of names that a message shows
# Errors that are due to the target's disk or folder. Other errors may come from reading a source.
OF_THE_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class CheckpointError(ValueError):
    """A checkpoint can't be read. The message says what is wrong with it, and what to do."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Context manager that writes a file whole or not at all.

    It yields the path of a temporary file in the same folder, which is made if there is none. When the block ends,
    the temporary file is flushed to the disk and renamed to `path`. After an error the earlier file is unchanged and
    the temporary file is removed. If `path` is a symbolic link, the file that it points to is written. An existing
    file keeps its permissions. Raises `OSError` if the disk is full or the file may not be written; the message names
    the path.
    """
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place)
    partial = _beside(place, "partial")
    try:
        yield partial
        if place.exists():
            shutil.copymode(place, partial)
        _flush(partial)
        os.replace(partial, place)
    except OSError as error:
        if error.errno in OF_THE_PLACE:
            before = "what was there before is as it was" if place.exists() else "nothing is left of it"
            raise OSError(
                error.errno, f"{path} can't be written ({error.strerror}), and {before}: make room, or choose another"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _beside(place: Path, state: str, process: int | str = "") -> Path:
    machine = re.sub(r"\W", "-", platform.node())  # several machines may write to one disk
    return place.with_name(f".{place.name}.{machine}.{process or os.getpid()}.{state}")


def remove_abandoned(place: Path) -> None:
    """Removes what ended processes of this machine left beside a file or folder, and puts a folder back that one of
    them had set aside and not replaced."""
    if os.name != "posix":  # on other systems os.kill(pid, 0) may end the process
        return
    for state in ("replaced", "partial"):
        name = re.compile(re.escape(_beside(place, state, "*").name).replace(r"\*", r"(\d+)"))
        for path in [path for path in place.parent.glob(f".*.{state}") if name.fullmatch(path.name)]:
            try:
                os.kill(int(path.name.split(".")[-2]), 0)
            except ProcessLookupError:
                if state == "replaced" and not place.exists():
                    path.rename(place)
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            except (PermissionError, OverflowError):  # another user's process, or no process id
                continue


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """Context manager that writes a folder whole or not at all.

    When the block ends, the filled folder replaces `path`. After an error `path` is as it was. If `path` is a symbolic
    link, the folder that it points to is replaced.

    Yields:
        `tuple[Path, Path]`: an empty folder to fill, and a scratch folder, which is removed at the end.

    Raises `OSError` if a folder can't be made or renamed.
    """
    place = Path(path).resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place)
    partial = _beside(place, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name in ("data", "scratch"):
            (partial / name).mkdir(parents=True)
        yield partial / "data", partial / "scratch"
        for path in [*filter(Path.is_file, (partial / "data").rglob("*")), partial / "data"]:
            try:
                _flush(path)
            except OSError as error:
                raise OSError(error.errno, f"{path} can't be written ({error.strerror}): make room.") from error
        replaced = _beside(place, "replaced")
        try:
            if place.exists():
                place.rename(replaced)
            (partial / "data").rename(place)
        finally:
            if replaced.exists() and not place.exists():
                replaced.rename(place)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(*paths: Path, wait: bool = True) -> Iterator[None]:
    """Context manager for changes of files or folders, which keeps out other processes that change the same. A lock
    ends with its process, however that ends, and forked processes do not keep it. The lock of a prepared data set,
    which is replaced as a folder, is beside it. Any other lock is inside its folder. Raises `OSError` if the file of a
    lock can't be made. Raises `filelock.Timeout` if another process holds a lock, and `wait` is false."""
    with ExitStack() as locks:
        for path in sorted({_lock_file(path) for path in paths}):  # one order for all, so that none waits forever
            if wait and path.exists():
                logger.info(f"Waiting until no other run changes what {path} locks.")
            locks.enter_context(FileLock(path, timeout=-1 if wait else 0))
            # Before the lock is released, so that a process that has the removed file open takes a new one
            locks.callback(path.unlink, missing_ok=True)
        yield


def _lock_file(path: Path) -> Path:
    if (path / "manifest.json").is_file() or not path.exists():
        return path.with_name(f".{path.name}{LOCK_SUFFIX}")
    return (path if path.is_dir() else path.parent) / f".changes{LOCK_SUFFIX}"


def damage(path: Path) -> str | None:
    """Says what is wrong with a file of a checkpoint (JSON object or safetensors), in a phrase that begins with the
    path; `None` if it is whole."""
    try:
        if path.suffix == ".json":
            if not isinstance(read_json(path), dict):
                return f"{path} holds no JSON object"
        else:
            with safe_open(path, "pt"):
                pass
            noted, size = _noted_digests(path.parent).get(path.name, ""), f"{path.stat().st_size} "
            if noted.startswith(size) and noted != size + file_digest(path):  # of another size it is another save's
                return (
                    f"{path} is not the file whose digest {CONFIG_NAME} has ({DIGESTS}), so it is damaged, edited or "
                    "not from one and the same save"
                )
    except (OSError, ValueError, RecursionError, SafetensorError) as error:  # nested too deeply
        if not path.exists():
            return f"{path} is missing"
        return f"{path} has {path.stat().st_size:,} bytes and is cut or damaged ({error})"
    return None


def _noted_digests(folder: Path) -> Mapping[str, str]:
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        return dict(read_json(folder / CONFIG_NAME)[DIGESTS])
    return {}


def note_digests(folder: str | Path) -> None:
    """Writes size and digest of each file of weights of a folder into its config.json, where [`damage`] finds them. A
    file of another size was put in the place of the one that was saved, and is checked by its weights alone."""
    path = Path(folder, CONFIG_NAME)
    digests = {file.name: f"{file.stat().st_size} {file_digest(file)}" for file in path.parent.glob("*.safetensors")}
    write_json(path, read_json(path) | {DIGESTS: digests}, sort_keys=True)


def file_digest(path: str | Path) -> str:
    """SHA-256 digest of a file's bytes, which are read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 digest of named tensors, in the order of their names: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see [`atomic_write`]."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: object, indent: int | None = 2, **options: Any) -> None:
    """Writes a JSON file, whole or not at all, with options of `json.dumps`; see [`atomic_write`]."""
    write_text(path, json.dumps(values, indent=indent, **options) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file in UTF-8."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def values_digest(stored: Mapping) -> str:
    """Digest (64 hexadecimal digits) of the vocabularies and bins of a checkpoint, which define the meaning of its
    ids. It depends on the order of values and edges, not on the order of features."""
    bins = {name: [float(edge) for edge in edges] for name, edges in dict(stored["bins"]).items()}
    text = json.dumps([dict(stored["vocabularies"]), bins], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_values(digest: str | None, values: str, source: str | Path | None) -> None:
    """Checks that a checkpoint's vocabularies are those that its weights were trained with; an unknown digest (`None`)
    gives a warning once. Raises `CheckpointError` if the digests differ."""
    if digest is None:
        logger.warning_once(
            f"{source} does not say which values its weights were trained with: make "
            f"sure that weights, config.json and {VOCABULARIES_NAME} are of one and the same save."
        )
    elif digest != values:
        raise CheckpointError(
            f"{source} has other values, or in another order, in {VOCABULARIES_NAME} (digest {values[:8]}) than its "
            f"weights were trained with ({digest[:8]}): labels would be called by each other's names. Take weights, "
            f"config.json and {VOCABULARIES_NAME} from one and the same save."
        )


def some(names: list[str]) -> str:
    """The first three names as text, with "..." if there are more."""
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"


def check_files(folder: str | Path) -> None:
    """Checks the files of a checkpoint folder; a name on the Hub is not checked. Raises `CheckpointError` if the
    folder, its config or its weights are missing, or a file is damaged."""
    path = Path(folder)
    if not path.is_dir():
        if path.exists() or str(folder).startswith((".", "/", "~")) or str(folder).count("/") > 1:
            raise CheckpointError(
                f"{folder} is no folder: give a checkpoint folder, or a name on the Hub such as org/name."
            )
        return
    weights = sorted(path.glob("*.safetensors"))
    extractor = path / "preprocessor_config.json"
    for file in (path / CONFIG_NAME, *filter(Path.exists, [extractor]), *weights):
        if fault := damage(file):
            raise CheckpointError(f"{fault}: copy it again, or give an earlier checkpoint.")
    if not weights:
        raise CheckpointError(f"{folder} has no model.safetensors: give the folder that a training wrote.")


def check_loaded(model: Any, source: str | Path | None, loading: Mapping, new: tuple[str, ...]) -> None:
    """Checks that a model has the weights of its checkpoint, all of them and no others. Weights whose names begin with
    one of `new`, such as those of a new head, may be missing. Raises `CheckpointError` if not."""
    name, fix = type(model).__name__, "Take both from one and the same save."
    missing = [key for key in sorted(loading["missing_keys"]) if not key.startswith(new)]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights of {name}, which would start at random: {some(missing)}. It was "
            "saved as another class or by another version: give the folder that a training of this version wrote."
        )
    if mismatched := sorted(weight for weight in loading["mismatched_keys"] if not weight[0].startswith(new)):
        sizes = [f"{key} is {list(stored)} and {list(shape)} was expected" for key, stored, shape in mismatched]
        raise CheckpointError(
            f"{len(mismatched)} weights of {source} have other sizes than config.json says: {some(sizes)}. {fix}"
        )
    # A model without the head for offers may leave its weights out.
    heads = () if hasattr(model, ACTION_HEAD) else (f"{ACTION_HEAD}.",)
    if unexpected := [key for key in sorted(loading["unexpected_keys"]) if not key.startswith(heads)]:
        raise CheckpointError(
            f"{source} has {len(unexpected)} weights that {name} has no place for by config.json, and would leave "
            f"out: {some(unexpected)}. {fix}"
        )


def check_weights(model: Any, source: str | Path | None, subfolder: str = "") -> None:
    """Checks that the weights of a loaded model are finite, and its config of one save with its vocabularies. Raises
    `CheckpointError` if not."""
    state = {key: value for key, value in model.state_dict().items() if not hasattr(value, "__tensor_flatten__")}
    floats = {key: value for key, value in state.items() if value.is_floating_point() and not value.is_meta}
    if bad := [key for key, value in floats.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"{source} has NaN or infinite numbers in {len(bad)} weights: {some(bad)}. Its training diverged: give "
            "an earlier checkpoint."
        )
    path = None if source is None else Path(source, subfolder, VOCABULARIES_NAME)
    if path is not None and path.is_file():
        try:
            values = values_digest(read_json(path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # the feature extractor reports a damaged file
        check_values(model.config.values_digest, values, source)
