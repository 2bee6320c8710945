# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How every command reads a checkpoint: with all of its weights, or not at all.

If a checkpoint lacks weights, `from_pretrained` only warns and draws them at random; weights that the model does not
have are left out. That is right for a new head and wrong for everything else, because the evaluation of a model with
random weights looks like that of a bad model.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from modeling_mcm.files_mcm import damage, some, unplaced


class CheckpointError(ValueError):
    """A checkpoint can't be read. The message says what is wrong with it, and what to do."""


CONFIG, EXTRACTOR = "config.json", "preprocessor_config.json"


def check_files(folder: str) -> None:
    """Checks the files of a checkpoint folder. A name on the Hub is not checked. Raises `CheckpointError` if the
    folder or a file of it is missing, incomplete or damaged."""
    path = Path(folder)
    if not path.is_dir():
        if path.exists() or folder.startswith((".", "/", "~")) or folder.count("/") > 1:
            raise CheckpointError(
                f"{folder} is no folder: give a checkpoint folder, or a name on the Hub such as org/name."
            )
        return
    weights = sorted(path.glob("*.safetensors"))
    jsons = [path / CONFIG, *([path / EXTRACTOR] if (path / EXTRACTOR).exists() else [])]
    for file in (*jsons, *weights):
        if fault := damage(file):
            raise CheckpointError(f"{fault}: copy it again, or give an earlier checkpoint.")
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    if (choice := config.get("hidden_act", "gelu")) not in ACT2FN:
        raise CheckpointError(
            f"{path / CONFIG} has hidden_act {choice!r}, which is no activation; one of {', '.join(sorted(ACT2FN))}."
        )
    if not weights and not [*path.glob("pytorch_model*.bin"), *path.glob("adapter_model*")]:
        raise CheckpointError(f"{folder} has no model.safetensors: give the folder that a training wrote.")


def read_checkpoint(model_class: type[PreTrainedModel], folder: str, new: tuple[str, ...] = (), **options: Any) -> Any:
    """Reads a model, and checks that the weights of the checkpoint and of the model are the same.

    Args:
        new (`tuple[str]`): Beginnings of the names of weights that the checkpoint may lack, such as those of a new
            head.

    Raises:
        CheckpointError: If a file is missing or damaged, or if a weight is missing, of another shape, unknown to the
            model, NaN or infinite.
    """
    check_files(folder)
    name = model_class.__name__
    try:
        loaded: Any = model_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        hint = "" if Path(folder).is_dir() else " It is no folder here either: check the path or the name."
        raise CheckpointError(f"{folder} can't be read as {name} ({type(error).__name__}: {reason}).{hint}") from error
    model, loading = loaded
    missing = [key for key in sorted(loading["missing_keys"]) if not key.startswith(new)]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {name}, which would start at random: {some(missing)}. It was "
            "saved as another class or by another version: give the folder that a training of this version wrote."
        )
    if mismatched := sorted(weight for weight in loading["mismatched_keys"] if not weight[0].startswith(new)):
        sizes = [f"{key} is {list(stored)} and {list(shape)} was expected" for key, stored, shape in mismatched]
        raise CheckpointError(
            f"{len(mismatched)} weights of {folder} have other sizes than {CONFIG} says: {some(sizes)}. Take both "
            "from one and the same save."
        )
    if unexpected := unplaced(model, loading["unexpected_keys"]):
        raise CheckpointError(
            f"{folder} has {len(unexpected)} weights that {name} has no place for by {CONFIG}, and would leave out: "
            f"{some(unexpected)}. Take both from one and the same save."
        )
    plain = {key: value for key, value in model.state_dict().items() if not hasattr(value, "__tensor_flatten__")}
    if bad := [key for key, value in plain.items() if value.is_floating_point() and not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"{folder} has NaN or infinite numbers in {len(bad)} weights: {some(bad)}. Its training diverged: give "
            "an earlier checkpoint."
        )
    return model
