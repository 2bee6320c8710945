# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The folder that is published: what of a checkpoint may leave the house, and the code that reads it elsewhere.

A checkpoint folder holds more than a model: optimizer state, a pickle of the training arguments, logs, paths. So
nothing is copied but what a list names, and of the JSON files only the keys that MCM itself writes. The package's flat
`*_mcm.py` files go beside it, with the entries by which the Auto classes and `pipeline` find them
(`trust_remote_code=True`), so that a reader needs transformers and torch and not this package.
"""

import json
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MCMConfig
from modeling_mcm.embeddings_mcm import digest_bytes
from modeling_mcm.files_mcm import check_values, values_digest, write_json
from modeling_mcm.hub.privacy import COUNTED, HiddenPairs, hide_pairs, hide_values
from modeling_mcm.processing_mcm import VOCABULARIES_NAME, MCMFeatureExtractor

CONFIG_NAME, PREPROCESSOR_NAME, CARD_NAME = "config.json", "preprocessor_config.json", "README.md"
RESULTS_FOLDER = ".eval_results"  # where the Hub reads results from; `model-index` in the card is its older form
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
WEIGHTS_NAME, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
CODE = "*_mcm.py"
PACKAGE = Path(__file__).resolve().parents[1]

BASE, HEAD, ACTION_HEAD = "MCMModel", "MCMForMultiTaskRecommendation", "MCMForActionRecommendation"
PREDICTION_HEAD = "MCMForCustomerPrediction"
PREPROCESSOR_AUTO_MAP = {"AutoFeatureExtractor": "processing_mcm.MCMFeatureExtractor"}
# Auto class -> where its class is. `register_for_auto_class` knows one class a name and would change what a plain
# `save_pretrained` writes; names of one's own are not possible, so the heads take those of transformers' that fit.
AUTO_MAP = {
    "AutoConfig": "configuration_mcm.MCMConfig",
    "AutoModel": f"modeling_mcm.{BASE}",
    **PREPROCESSOR_AUTO_MAP,
}
HEAD_AUTO_MAP = {"AutoModelForPreTraining": f"modeling_mcm.{HEAD}"}
ACTION_AUTO_MAP = {"AutoModelForSequenceClassification": f"action_mcm.{ACTION_HEAD}"}
PREDICTION_AUTO_MAP = {"AutoModelForSequenceClassification": f"customer_mcm.{PREDICTION_HEAD}"}
# task -> its pipeline, and the Auto class that loads its model
PIPELINES = {"customer-embedding": ("CustomerEmbeddingPipeline", "AutoModel")}
HEAD_PIPELINES = {"preference-scores": ("PreferenceScoresPipeline", "AutoModelForPreTraining")}
ACTION_PIPELINES = {"action-scores": ("ActionScoresPipeline", "AutoModelForSequenceClassification")}
PREDICTION_PIPELINES = {"customer-prediction": ("CustomerPredictionPipeline", "AutoModelForSequenceClassification")}
FEATURE_KEYS = ("name", "kind", "column", "profile")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}, {what}; give the folder that a training wrote.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); write it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object; write it again.")
    return found


def published_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it is published: MCM's own keys, the entries of the Auto classes and of the pipelines.

    Args:
        config: what config.json of a checkpoint holds.

    Raises:
        ValueError: if the checkpoint is of another model, or says no class of its own.
    """
    architectures = config.get("architectures") or []
    known_heads = (BASE, HEAD, ACTION_HEAD, PREDICTION_HEAD)
    if config.get("model_type") != MCMConfig.model_type or not set(known_heads) & set(architectures):
        raise ValueError(
            f"The config has model_type {config.get('model_type')!r} and architectures {architectures}, expected "
            f"{MCMConfig.model_type!r} and one of {', '.join(known_heads)}; save the model with save_pretrained."
        )
    auto_map, pipelines = dict(AUTO_MAP), dict(PIPELINES)
    if PREDICTION_HEAD in architectures:
        auto_map |= PREDICTION_AUTO_MAP
        pipelines |= PREDICTION_PIPELINES
    elif BASE not in architectures:
        auto_map |= HEAD_AUTO_MAP
        pipelines |= HEAD_PIPELINES
    if ACTION_HEAD in architectures:
        auto_map |= ACTION_AUTO_MAP
        pipelines |= ACTION_PIPELINES
    known = {*MCMConfig().to_dict(), "architectures", "dtype", "transformers_version"}
    kept = {key: value for key, value in config.items() if key in known and not key.startswith("_")}
    custom = {
        task: {"impl": f"pipeline_mcm.{name}", "pt": [auto], "type": "multimodal"}
        for task, (name, auto) in pipelines.items()
    }
    return kept | {"auto_map": auto_map, "custom_pipelines": custom}


def published_preprocessor(values: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json as it is published: the feature extractor's own keys and its Auto class.

    Raises:
        ValueError: if a feature reads the customer column, whose values are customer ids.
    """
    known = MCMFeatureExtractor().to_dict()
    kept = {key: value for key, value in values.items() if key in known}
    kept["features"] = [
        {key: feature[key] for key in FEATURE_KEYS if key in feature} for feature in values.get("features", [])
    ]
    for feature in kept["features"]:
        if (feature.get("column") or feature.get("name")) == values.get("customer"):
            raise ValueError(
                f"Feature {feature.get('name')!r} reads the customer column {values.get('customer')!r}, so its "
                "vocabulary is a list of customer ids; leave the feature out of the schema, prepare and train again."
            )
    return kept | {"auto_map": dict(PREPROCESSOR_AUTO_MAP)}


def check_weights(path: Path) -> None:
    """Raises a `ValueError` if a file is not in the safetensors format, or says more than which library wrote it."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        whole = 0 < length <= path.stat().st_size - 8
        try:
            header = json.loads(file.read(length)) if whole else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file; save the model again with save_pretrained.")
    if extra := sorted(set(header.get("__metadata__", {})) - {"format"}):
        raise ValueError(f"{path} has notes {extra} in its header, which would be public; save the model again.")


class UploadFolder(NamedTuple):
    """What was written to be published.

    Attributes:
        files (`list[Path]`): Sorted by name.
        hidden_pairs (`HiddenPairs`): What of the counted memory was left out of the weights.
    """

    files: list[Path]
    hidden_pairs: HiddenPairs


def _hide_pairs(
    weights: Sequence[Path],
    target: Path,
    config: Mapping[str, Any],
    shared: Mapping[str, torch.Tensor] | None,
    ids: Mapping[str, Sequence[int]],
) -> HiddenPairs:
    """Copies files of weights, without pairs of labels that too few customers have."""
    tables: dict[str, torch.Tensor] = {}
    digests: set[str] = set()
    for path in weights:
        with safe_open(path, framework="pt") as file:
            tables |= {name: file.get_tensor(name) for name in file.keys() if COUNTED.fullmatch(name)}
            digests |= {name for name in file.keys() if name.endswith("values_digest")}
    if tables and shared is None:
        raise ValueError(
            "The weights hold which labels came together, and it is not known how many customers have each pair: give "
            "the data set that the checkpoint was trained on, with its followers.parquet, or prepare it again."
        )
    changed, number = hide_pairs(tables, config["tasks"], shared or {}, ids)
    changed = dict(changed) | {name: digest_bytes(config.get("values_digest")) for name in digests}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys()) & set(changed)
        if names:
            save_file(
                load_file(path) | {name: changed[name].contiguous() for name in names},
                target / path.name,
                metadata={"format": "pt"},
            )
        else:
            shutil.copyfile(path, target / path.name)
    return number


def write_upload_folder(
    checkpoint: str | Path,
    folder: str | Path,
    hidden: Mapping[str, Sequence[str]] | None = None,
    shared: Mapping[str, torch.Tensor] | None = None,
) -> UploadFolder:
    """Writes what is published of a checkpoint, all but the card.

    Args:
        checkpoint: folder that a training or `save_pretrained` wrote; nothing in it changes.
        folder: made if it is not there; must be empty.
        hidden: of each feature the values that are published as placeholders, as `rare_values` finds them. Where it
            is given, the weights are published without pairs of labels that too few customers have.
        shared: the pairs that stay, as `shared_pairs` finds them; needed with `hidden` for a checkpoint with a
            counted memory.

    Returns:
        The files, and how many pairs were hidden.

    Raises:
        FileNotFoundError: if the checkpoint lacks weights, config or feature extractor.
        FileExistsError: if the folder is not empty.
        ValueError: if a file is damaged, of another model, or would publish customer ids, or pairs of labels of which
            it is not known how many customers have them.
    """
    source, target = Path(checkpoint), Path(folder)
    weights = sorted(path for path in source.glob("*") if WEIGHTS.fullmatch(path.name))
    if source / WEIGHTS_NAME in weights:  # which is then what loads; parts beside it are an older save's
        weights = [source / WEIGHTS_NAME]
    if not weights:
        raise FileNotFoundError(
            f"{source} has no {WEIGHTS_NAME}; give the folder that a training or save_pretrained wrote."
        )
    config = published_config(read_json(source / CONFIG_NAME, "the model's config"))
    preprocessor = published_preprocessor(read_json(source / PREPROCESSOR_NAME, "the feature extractor's config"))
    stored = read_json(source / VOCABULARIES_NAME, "the values of the features")
    if missing := {"vocabularies", "bins"} - set(stored):
        raise ValueError(f"{source / VOCABULARIES_NAME} has no {sorted(missing)}; save the feature extractor again.")
    known = stored["vocabularies"]
    vocabularies = {"vocabularies": hide_values(known, hidden or {}), "bins": stored["bins"]}
    check_values(config.get("values_digest"), values_digest(stored), source)
    if config.get("values_digest") is not None:
        config["values_digest"] = values_digest(vocabularies)  # placeholders are other values
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty, and everything in it would be published; give a new folder.")
    target.mkdir(parents=True, exist_ok=True)
    for path in weights:
        check_weights(path)
    number = HiddenPairs(0, 0)
    if hidden is None:
        for path in weights:
            shutil.copyfile(path, target / path.name)
    else:
        places = {name: {value: place for place, value in enumerate(known[name])} for name in hidden}
        ids = {name: [FIRST_VALUE_ID + places[name][value] for value in hidden[name]] for name in hidden}
        number = _hide_pairs(weights, target, config, shared, ids)
    if len(weights) > 1:
        index = read_json(source / WEIGHTS_INDEX, "which names the file of each weight")
        write_json(target / WEIGHTS_INDEX, {key: index[key] for key in ("metadata", "weight_map")}, sort_keys=True)
    # Keys are sorted as transformers does, but not those of vocabularies.
    write_json(target / CONFIG_NAME, config, sort_keys=True)
    write_json(target / PREPROCESSOR_NAME, preprocessor, sort_keys=True)
    write_json(target / VOCABULARIES_NAME, vocabularies, indent=1)
    for path in sorted(PACKAGE.glob(CODE)):
        shutil.copyfile(path, target / path.name)
    # Once from the written files: what would not load is not published.
    MCMFeatureExtractor.from_pretrained(str(target))
    return UploadFolder(sorted(target.iterdir()), number)


__all__ = ["UploadFolder", "write_upload_folder"]
