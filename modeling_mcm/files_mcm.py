# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes files whole or not at all, and checks that the files of a checkpoint belong together.

A file that is written in place is cut if the disk is full or the process is killed, and its earlier content is lost.
These functions write a temporary file in the same folder, flush it to the disk, and rename it. A digest of the
vocabularies ties weights, config and vocabularies of a checkpoint together, so that files of different saves are
noticed.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)
VOCABULARIES_NAME = "vocabularies.json"
ACTION_HEAD = "action_head", "action_vectors"  # weights of the head for offers; models without it leave them out
SHOWN = 3  # number of names that a message shows
# Errors that are due to the target's disk or folder. Other errors may come from reading a source.
OF_THE_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager that writes a file whole or not at all.

    It yields the path of a temporary file in the same folder. When the block ends, the temporary file is flushed to
    the disk and renamed to `path`. After an error the earlier file is unchanged and the temporary file is removed. If
    `path` is a symbolic link, the file that it points to is written. An existing file keeps its permissions.

    Args:
        path (`str` or `os.PathLike`): path of the file; its folder must exist.

    Raises:
        OSError: if the disk is full or the file may not be written; the message names the path.
    """
    place = Path(os.path.realpath(path))
    machine = re.sub(r"\W", "-", platform.node())  # several machines may write to one disk
    _remove_abandoned(place, machine)
    partial = place.with_name(f".{place.name}.{machine}.{os.getpid()}.partial")
    try:
        yield partial
        if place.exists():
            shutil.copymode(place, partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
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


def _remove_abandoned(place: Path, machine: str) -> None:
    """Removes temporary files beside a file that ended processes of this machine have left."""
    if os.name != "posix":  # on other systems os.kill(pid, 0) may end the process
        return
    name = re.compile(re.escape(f".{place.name}.{machine}.") + r"(\d+)\.partial")
    for partial in place.parent.glob(f".*.{machine}.*.partial"):
        if match := name.fullmatch(partial.name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                partial.unlink(missing_ok=True)
            except (PermissionError, OverflowError):  # another user's process, or no process id
                continue


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see [`atomic_write`].

    Args:
        path (`str` or `os.PathLike`): path of the file.
        text (`str`): content of the file.
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], values: Any, indent: int = 2, **options: Any) -> None:
    """Writes a JSON file, whole or not at all; see [`atomic_write`].

    Args:
        path (`str` or `os.PathLike`): path of the file.
        values: content of the file.
        indent (`int`): number of spaces of a level.
        options: further arguments of `json.dumps`.
    """
    write_text(path, json.dumps(values, indent=indent, **options) + "\n")


def values_digest(stored: Mapping[str, Any]) -> str:
    """Digest of the vocabularies and bins of a checkpoint, which define the meaning of its ids.

    Args:
        stored (`Mapping[str, Any]`): content of vocabularies.json: `vocabularies` and `bins` by feature. The digest
            depends on the order of values and edges, not on the order of features.

    Returns:
        `str` of 64 hexadecimal digits.
    """
    bins = {name: [float(edge) for edge in edges] for name, edges in dict(stored["bins"]).items()}
    text = json.dumps([dict(stored["vocabularies"]), bins], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_values(digest: str | None, values: str, source: Any) -> None:
    """Checks that a checkpoint's vocabularies are those that its weights were trained with.

    Args:
        digest (`str`, *optional*): digest in the model's config; `None` if unknown, which gives a warning once.
        values (`str`): digest of vocabularies.json or of a feature extractor; see [`values_digest`].
        source (`str` or `os.PathLike`): name of the checkpoint, for messages.

    Raises:
        ValueError: if the digests differ.
    """
    if digest is None:
        logger.warning_once(
            f"{source} does not say which values its weights were trained with, as earlier versions did not: make "
            f"sure that weights, config.json and {VOCABULARIES_NAME} are of one and the same save."
        )
    elif digest != values:
        raise ValueError(
            f"{source} has other values, or in another order, in {VOCABULARIES_NAME} (digest {values[:8]}) than its "
            f"weights were trained with ({digest[:8]}): labels would be called by each other's names. Take weights, "
            f"config.json and {VOCABULARIES_NAME} from one and the same save."
        )


def unplaced(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Weights of a checkpoint that a model has no place for, without those of the head for offers.

    Args:
        model ([`MCMPreTrainedModel`]): the model that was loaded.
        unexpected (`Iterable[str]`): names of weights that the loader left out.

    Returns:
        `list[str]`: names in alphabetical order. A model without the head for offers may leave its weights out.
    """
    heads = tuple(f"{name}." for name in ACTION_HEAD) if not hasattr(model, ACTION_HEAD[0]) else ()
    return [key for key in sorted(unexpected) if not key.startswith(heads)]


def some(names: list[str]) -> str:
    """The first three names as text, with "..." if there are more.

    Args:
        names (`list[str]`): names to show.
    """
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"


def check_loaded(model: Any, source: Any, unexpected: Iterable[str] = (), subfolder: str = "") -> None:
    """Checks that a model was loaded whole, and from files of one save.

    Args:
        model ([`MCMPreTrainedModel`]): the model that was loaded.
        source (`str` or `os.PathLike`): the checkpoint, a folder or a name on the Hub.
        unexpected (`Iterable[str]`): names of weights that the loader left out.
        subfolder (`str`): folder of the model inside the checkpoint.

    Raises:
        ValueError: if weights were left out, or weights, config and vocabularies are not of one save.
    """
    if names := unplaced(model, unexpected):
        raise ValueError(
            f"{source} has {len(names)} weights that {type(model).__name__} has no place for by its config, and would "
            f"leave out: {some(names)}. Take both from one and the same save."
        )
    digest_bytes = model.base_model.embeddings.values_digest
    weights = None if digest_bytes.is_meta or not digest_bytes.any() else bytes(digest_bytes.tolist()).hex()
    if weights is not None and model.config.values_digest not in (None, weights):
        raise ValueError(
            f"{source} has weights that were trained with other values (digest {weights[:8]}) than its config.json "
            f"says ({model.config.values_digest[:8]}): take both from one and the same save."
        )
    model.config.values_digest = model.config.values_digest or weights
    path = None if source is None else Path(source, subfolder, VOCABULARIES_NAME)
    if path is not None and path.is_file():
        try:
            values = values_digest(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError):  # the feature extractor reports a damaged file
            return
        check_values(model.config.values_digest, values, source)
