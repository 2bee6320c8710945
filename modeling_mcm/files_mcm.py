# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Files that are there whole or not at all, and that belong together.

A file that is written in place is cut where the disk is full or the process is killed, and what was there before is
lost. Here it is written beside its place, flushed to the disk, and renamed. Weights,
config and vocabularies of a checkpoint are tied by a digest of the values, so that none is of another save.
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
ACTION_HEAD = "action_head", "action_vectors"  # what a model without the head for offers leaves out
SHOWN = 3
# What the place is to blame for; other errors may be of what is read to be written.
OF_THE_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a name beside a path to write a file to, which takes its place when all of it is on the disk.

    An error inside leaves what was there before, and no trace. A symbolic link stays: the file that it names is
    written. A file that is there keeps its permissions.

    Args:
        path (`str` or `os.PathLike`): where the file shall be; its folder must be there.

    Raises:
        OSError: naming the path, if its disk is full or it may not be written.
    """
    place = Path(os.path.realpath(path))
    machine = re.sub(r"\W", "-", platform.node())  # workers of several may write to one disk
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
    """Removes what processes of this machine that are gone have left beside a file."""
    if os.name != "posix":  # elsewhere a process can't be asked for without harm
        return
    name = re.compile(re.escape(f".{place.name}.{machine}.") + r"(\d+)\.partial")
    for left in place.parent.glob(f".*.{machine}.*.partial"):
        if found := name.fullmatch(left.name):
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)
            except (PermissionError, OverflowError):  # it runs under another name, or is no process
                continue


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see [`atomic_write`]."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], values: Any, indent: int = 2, **options: Any) -> None:
    """Writes a JSON file, whole or not at all; `options` are of `json.dumps`. See [`atomic_write`]."""
    write_text(path, json.dumps(values, indent=indent, **options) + "\n")


def values_digest(stored: Mapping[str, Any]) -> str:
    """What tells the values behind the ids of a checkpoint from others: 64 hexadecimal digits.

    Args:
        stored (`Mapping[str, Any]`): `vocabularies` and `bins` by feature, as vocabularies.json holds them. The order
            of the features says nothing, the order of values and edges everything.
    """
    bins = {name: [float(edge) for edge in edges] for name, edges in dict(stored["bins"]).items()}
    text = json.dumps([dict(stored["vocabularies"]), bins], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_values(digest: str | None, found: str, source: Any) -> None:
    """Compares the values that weights were trained with with those that are read beside them.

    Args:
        digest (`str`, *optional*): of the model's config; `None` where it is not known, which is said once.
        found (`str`): of vocabularies.json, or of a feature extractor.
        source (`Any`): the checkpoint, for messages.

    Raises:
        ValueError: they are not the same.
    """
    if digest is None:
        logger.warning_once(
            f"{source} does not say which values its weights were trained with, as earlier versions did not: make "
            f"sure that weights, config.json and {VOCABULARIES_NAME} are of one and the same save."
        )
    elif digest != found:
        raise ValueError(
            f"{source} has other values, or in another order, in {VOCABULARIES_NAME} (digest {found[:8]}) than its "
            f"weights were trained with ({digest[:8]}): labels would be called by each other's names. Take weights, "
            f"config.json and {VOCABULARIES_NAME} from one and the same save."
        )


def unplaced(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Weights of a checkpoint that a model has no place for; those of a head that it does not have are left out."""
    heads = tuple(f"{name}." for name in ACTION_HEAD) if not hasattr(model, ACTION_HEAD[0]) else ()
    return [key for key in sorted(unexpected) if not key.startswith(heads)]


def some(names: list[str]) -> str:
    """The first few of some names."""
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"


def check_loaded(model: Any, source: Any, unexpected: Iterable[str] = (), subfolder: str = "") -> None:
    """Raises a `ValueError` where a model was not read whole, or not from files of one save.

    Args:
        model (`MCMPreTrainedModel`): what was read.
        source (`str` or `os.PathLike`): the checkpoint, a folder or a name on the Hub.
        unexpected (`Iterable[str]`): names of weights that were left out.
        subfolder (`str`): of the checkpoint.
    """
    if left := unplaced(model, unexpected):
        raise ValueError(
            f"{source} has {len(left)} weights that {type(model).__name__} has no place for by its config, and would "
            f"leave out: {some(left)}. Take both from one and the same save."
        )
    stored = model.base_model.embeddings.values_digest
    weights = None if stored.is_meta or not stored.any() else bytes(stored.tolist()).hex()
    if weights is not None and model.config.values_digest not in (None, weights):
        raise ValueError(
            f"{source} has weights that were trained with other values (digest {weights[:8]}) than its config.json "
            f"says ({model.config.values_digest[:8]}): take both from one and the same save."
        )
    model.config.values_digest = model.config.values_digest or weights
    path = None if source is None else Path(source, subfolder, VOCABULARIES_NAME)
    if path is not None and path.is_file():
        try:
            found = values_digest(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError):  # the feature extractor says what is wrong with it
            return
        check_values(model.config.values_digest, found, source)
