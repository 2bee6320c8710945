# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How every command reads a checkpoint: with all of its weights, or not at all.

`from_pretrained` draws the weights of a head that the checkpoint lacks at random, with a warning. The evaluation of a
model with random weights looks like that of a bad model, so commands allow it only for a head that they train.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers.utils import logging

from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.checkpoint_mcm import CheckpointError, check_loaded, save_together, tensors_digest
from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMModel

COMMANDS_OF: dict[type[PreTrainedModel], str] = {
    MCMForMultiTaskRecommendation: "`mcm predict`, `mcm evaluate`, `mcm serve` and `mcm app`",
    MCMForCustomerPrediction: "`mcm predict`, `mcm serve` and `mcm app --tuned`",
    MCMForActionRecommendation: "`mcm predict --actions`, `mcm evaluate --offers`, `mcm serve` and `mcm app --tuned`",
    MCMModel: "`mcm predict`",
}  # the commands that take each


def open_checkpoint(model_class: type[PreTrainedModel], folder: str) -> tuple[Any, MCMFeatureExtractor]:
    """Reads a model in evaluation mode, as [`read_checkpoint`] does, and the feature extractor that was saved with it.
    Raises [`CheckpointError`] if one of them can't be read, it is a model of another class, or they do not belong
    together."""
    head = find_head(folder)
    if model_class in COMMANDS_OF and head is not model_class:
        raise CheckpointError(
            f"{folder} is an {head.__name__}, for {COMMANDS_OF[head]}; this needs an {model_class.__name__}, such "
            "as the checkpoint that it was fine-tuned from."
        )
    model = read_checkpoint(model_class, folder).eval()
    with reading(folder, MCMFeatureExtractor.__name__):
        extractor = MCMFeatureExtractor.from_pretrained(folder)
        extractor.check_fits(model)
    return model, extractor


def find_head(folder: str) -> type[PreTrainedModel]:
    """The class of the model that a folder says it holds, if that is one of `COMMANDS_OF`; else, also if the folder
    can't be read, [`MCMForMultiTaskRecommendation`]. Raises [`CheckpointError`] if it is no folder and the Hub has no
    such model."""
    _check_place(folder)
    try:
        architectures = MCMConfig.from_pretrained(folder).architectures
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, StrictDataclassError):
        architectures = None
    heads = (head for head in COMMANDS_OF if [head.__name__] == architectures)
    return next(heads, MCMForMultiTaskRecommendation)


def _check_place(folder: str) -> None:
    """Raises [`CheckpointError`] if a name is no folder, and no model of the Hub that is here or can be reached now:
    to read it would try five times."""
    if Path(folder).is_dir():
        return
    try:
        if not isinstance(try_to_load_from_cache(folder, "config.json"), str):
            HfApi().model_info(folder, timeout=5)
    except Exception as error:  # of the Hub's client, which depends on its version
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} is no folder, and no model of the Hugging Face Hub ({type(error).__name__}: {reason}): check "
            "the path or the name."
        ) from error


def save_checkpoint(folder: str | Path, model: PreTrainedModel, feature_extractor: MCMFeatureExtractor) -> None:
    """Saves a model and its feature extractor, both or none; who reads the folder meanwhile finds one and the same
    save but for the moment of renaming. Raises `OSError` if the disk is full."""
    with save_together(folder, ()) as part:
        model.save_pretrained(part)
        feature_extractor.save_pretrained(part)


@contextmanager
def reading(folder: str, name: str) -> Iterator[None]:
    """Context manager that makes a [`CheckpointError`] of what is raised where a file holds other values than they
    expect who read it; `name` says what is read."""
    try:
        yield
    except CheckpointError:
        raise
    # RecursionError is a RuntimeError
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} can't be read as {name} ({type(error).__name__}: {reason}).") from error


def read_checkpoint(model_class: type[PreTrainedModel], folder: str, new: tuple[str, ...] = (), **options: Any) -> Any:
    """Reads a model, and checks that the weights of the checkpoint and of the model are the same.

    Args:
        new (`tuple[str]`): Beginnings of the names of weights that the checkpoint may lack, such as those of a new
            head.

    Raises:
        CheckpointError: If a file is missing or damaged, or if a weight is missing, of another shape, unknown to the
            model, NaN or infinite.
    """
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # transformers reports what `check_loaded` checks
        with reading(folder, model_class.__name__):
            loaded: Any = model_class.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    finally:
        logging.set_verbosity(verbosity)
    model, loading = loaded
    check_loaded(model, folder, loading, new)
    return model


def checkpoint_digest(model: PreTrainedModel, feature_extractor: MCMFeatureExtractor) -> str:
    """Digest of a model's weights and of its feature extractor's settings."""
    values = {"vocabularies": feature_extractor.vocabularies, "bins": feature_extractor.bins}
    settings = json.dumps(feature_extractor.to_dict() | values, sort_keys=True, default=str)
    return hashlib.sha256(f"{tensors_digest(model.state_dict())} {settings}".encode()).hexdigest()
