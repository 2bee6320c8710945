# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that the files of a checkpoint are whole and belong together, and saves them together.

Weights mean something only with the settings and the vocabularies that they were trained with. So each file of weights
has these settings in its metadata, and vocabularies.json has those of the feature extractor: a file that was edited by
hand, or is of another save, is refused by the name of the field. The metadata also has a digest of the weights: a
damaged file is refused. Other tools that write weights, such as those that quantise or merge them, leave the metadata
out, and nothing is compared then.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, logging

from .files_mcm import flush, hold_part, name_place, read_json, some

logger = logging.get_logger(__name__)
VOCABULARIES_NAME, EXTRACTOR_NAME = "vocabularies.json", "preprocessor_config.json"
SETTINGS, DIGEST = "settings", "sha256"  # keys of the metadata of weights
BYTES_OF_LENGTH, ALIGNED = 8, 8  # of the header of a safetensors file
SHOWN = 80  # characters of a setting that a message shows
ACTION_HEAD = "action_head"  # weights of the head for offers; models without it leave them out
WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
ONE_SAVE = "from one and the same save"


class CheckpointError(ValueError):
    """A checkpoint can't be read. The message says what is wrong with it, and what to do."""


# ------------------------------------------------------------------------------------------------------------- saving


@contextmanager
def save_together(folder: str | Path, deciding: Collection[str]) -> Iterator[Path]:
    """Context manager that saves a checkpoint into a folder: it yields a temporary folder to save into. When the block
    ends, the settings of `deciding` are written into the weights, and every file takes its place, config.json last.
    Weights of earlier saves are removed. Raises `OSError` if the disk is full; the folder is then as it was."""
    target = Path(folder)
    with name_place(target), hold_part(target / "checkpoint") as part:
        try:
            yield part
            if deciding and (part / CONFIG_NAME).is_file():  # it is not in a folder of an adapter alone
                note_metadata(part, deciding)
        except SafetensorError as error:
            raise OSError(f"{target} can't be written ({error}), and is as it was: make room.") from error
        weights = [path for path in part.iterdir() if WEIGHT_FILES.fullmatch(path.name)]
        files = sorted((path for path in part.rglob("*") if path.is_file()), key=lambda path: path.name == CONFIG_NAME)
        for path in files:
            flush(path)
        for path in target.iterdir() if weights else ():
            if WEIGHT_FILES.fullmatch(path.name) and part / path.name not in weights:
                path.unlink()
        for path in files:
            place = target / path.relative_to(part)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def note_metadata(folder: Path, deciding: Collection[str]) -> None:
    """Writes the settings of a folder's config.json that decide what its weights mean, and a digest of the weights,
    into the weights' metadata."""
    config = read_json(folder / CONFIG_NAME)
    text = json.dumps({name: config[name] for name in deciding if name in config}, sort_keys=True)
    for path in folder.glob("*.safetensors"):
        metadata = {"format": "pt", SETTINGS: text, DIGEST: tensors_digest(load_file(path))}
        with open(path, "rb") as file, open(path.with_suffix(".new"), "wb") as out:
            header = json.loads(file.read(int.from_bytes(file.read(BYTES_OF_LENGTH), "little")))
            content = json.dumps(header | {"__metadata__": metadata}).encode()  # safetensors' own have a random order
            content += b" " * (-len(content) % ALIGNED)
            out.write(len(content).to_bytes(BYTES_OF_LENGTH, "little") + content)
            shutil.copyfileobj(file, out)
        os.replace(path.with_suffix(".new"), path)


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 digest of named tensors, in the order of their names: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def values_digest(stored: Mapping) -> str:
    """Digest (64 hexadecimal digits) of the vocabularies and bins of a checkpoint, which define the meaning of its
    ids. It depends on the order of values and edges, not on the order of features."""
    bins = {name: [float(edge) for edge in edges] for name, edges in dict(stored["bins"]).items()}
    text = json.dumps([dict(stored["vocabularies"]), bins], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------- checking


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
    except (OSError, ValueError, SafetensorError) as error:
        if not path.exists():
            return f"{path} is missing"
        return f"{path} has {path.stat().st_size:,} bytes and is cut or damaged ({error})"
    return None


def check_files(source: str | Path, subfolder: str = "") -> None:
    """Checks the files of a checkpoint folder; a name on the Hub is not checked. Raises `CheckpointError` if the
    folder, its config or its weights are missing, or a file is damaged."""
    path = Path(source, subfolder)
    if not path.is_dir():
        if Path(source).exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
            raise CheckpointError(
                f"{path} is no folder: give a checkpoint folder, or a name on the Hub such as org/name."
            )
        return
    weights = sorted(path.glob("*.safetensors"))
    for file in (path / CONFIG_NAME, *filter(Path.exists, [path / EXTRACTOR_NAME]), *weights):
        if fault := damage(file):
            raise CheckpointError(f"{fault}: copy it again, or give an earlier checkpoint.")
    if not weights:
        raise CheckpointError(f"{path} has no model.safetensors: give the folder that a training wrote.")


def check_metadata(folder: Path, deciding: Collection[str]) -> None:
    """Checks that weights are those that were saved, and that config.json beside them has the settings that they were
    saved with, if they say so. Raises `CheckpointError` if not, or if one of `deciding` differs."""
    config = read_json(folder / CONFIG_NAME)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if SETTINGS in metadata:
            check_same(json.loads(metadata[SETTINGS]), config, deciding, folder / CONFIG_NAME, path.name)
        if DIGEST in metadata and metadata[DIGEST] != tensors_digest(load_file(path)):
            raise CheckpointError(
                f"{path} was damaged or changed after it was saved: copy it again, or give an earlier checkpoint. "
                f"A tool that changes weights must leave {DIGEST!r} out of their metadata."
            )


def check_same(saved: Mapping, found: Mapping, deciding: Collection[str], path: str | Path, source: str) -> None:
    """Checks that settings of a file are those that `source` was saved with; raises `CheckpointError` if not."""
    for name in deciding:
        if saved.get(name) != found.get(name):
            raise CheckpointError(
                f"{path} has another `{name}` ({shorten(repr(found.get(name)), SHOWN)}) than {source} was saved with "
                f"({shorten(repr(saved.get(name)), SHOWN)}): take both {ONE_SAVE}. To change a setting, give it to "
                "`from_pretrained`, and save."
            )


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
            f"config.json and {VOCABULARIES_NAME} {ONE_SAVE}."
        )


def check_loaded(model: Any, source: str | Path | None, loading: Mapping, new: tuple[str, ...]) -> None:
    """Checks that a model has the weights of its checkpoint, all of them and no others. Weights whose names begin with
    one of `new`, such as those of a new head, may be missing. Raises `CheckpointError` if not."""
    name, fix = type(model).__name__, f"Take both {ONE_SAVE}."
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


def check_weights(model: Any, source: str | Path | None, folder: Path | None) -> None:
    """Checks that the weights of a loaded model are finite, and its config of one save with the vocabularies in its
    folder, if there is one. Raises `CheckpointError` if not."""
    state = {key: value for key, value in model.state_dict().items() if not hasattr(value, "__tensor_flatten__")}
    floats = {key: value for key, value in state.items() if value.is_floating_point() and not value.is_meta}
    if bad := [key for key, value in floats.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"{source} has NaN or infinite numbers in {len(bad)} weights: {some(bad)}. Its training diverged: give "
            "an earlier checkpoint."
        )
    if folder is not None and (folder / VOCABULARIES_NAME).is_file():
        try:
            values = values_digest(read_json(folder / VOCABULARIES_NAME))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # the feature extractor reports a damaged file
        check_values(model.config.values_digest, values, source)
