# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The folder that is published: the parts of a checkpoint that may be public, and the code that reads them.

A checkpoint folder holds more than a model: optimizer state, a pickle of the training arguments, logs and paths.
Therefore only files of a list are copied, and of JSON files only the keys that MCM itself writes. The code that the
Auto classes and `pipeline` read (`trust_remote_code=True`) is added: the modules of their classes and what these
import, so that a reader needs transformers and torch, but not this package.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data import check_vocabularies, load_prepared
from modeling_mcm.files_mcm import damage, note_digests, read_json, write_json
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.checkpoints import find_head, open_checkpoint

from .privacy import Exposure, hide_pairs, hide_values, rare_values, shared_pairs

CONFIG_NAME, PREPROCESSOR_NAME, CARD_NAME = "config.json", "preprocessor_config.json", "README.md"
WEIGHTS_NAME = "model.safetensors"
CODE_ENDING = "_mcm.py"
PACKAGE = Path(__file__).resolve().parents[1]

BASE, HEAD, ACTION_HEAD = "MCMModel", "MCMForMultiTaskRecommendation", "MCMForActionRecommendation"
PREDICTION_HEAD = "MCMForCustomerPrediction"
# Class -> its module and Auto class, task and class of its pipeline. `register_for_auto_class` knows one class a name
# and would change what a plain `save_pretrained` writes; names of one's own are not possible, so the heads take those
# of transformers' that fit.
HEADS = {
    BASE: ("modeling_mcm", "AutoModel", "customer-embedding", "CustomerEmbeddingPipeline"),
    HEAD: ("modeling_mcm", "AutoModelForPreTraining", "preference-scores", "PreferenceScoresPipeline"),
    ACTION_HEAD: ("action_mcm", "AutoModelForSequenceClassification", "action-scores", "ActionScoresPipeline"),
    PREDICTION_HEAD: (
        "customer_mcm",
        "AutoModelForSequenceClassification",
        "customer-prediction",
        "CustomerPredictionPipeline",
    ),
}
PREPROCESSOR_AUTO_MAP = {"AutoFeatureExtractor": "processing_mcm.MCMFeatureExtractor"}
AUTO_MAP = {"AutoConfig": "configuration_mcm.MCMConfig", **PREPROCESSOR_AUTO_MAP}
PIPELINE_MODULE = "pipeline_mcm"
RARE_BELOW = 5  # customers: a value of fewer is rare in the card, if `min_customers` does not say otherwise


def code_files() -> list[Path]:
    """The package's files that a published checkpoint needs: the entry points and what they import."""
    entries = [PACKAGE / f"{name}.py" for name in (PIPELINE_MODULE, *(module for module, *_ in HEADS.values()))]
    return sorted({path for entry in entries for path in (entry, *map(Path, get_relative_import_files(entry)))})


def read_object(path: Path) -> dict:
    """Reads a JSON object from a file. Raises `ValueError` if there is no such file, or it holds no JSON object."""
    if fault := damage(path):
        raise ValueError(f"{fault}; write it again.")
    return read_json(path)


def _published_config(config: Mapping, head: str) -> dict:
    """Selects what is published of a config: MCM's own keys, and the entries of the Auto classes and of the pipelines.
    Raises `ValueError` if the checkpoint is of another model."""
    if config.get("model_type") != MCMConfig.model_type:
        raise ValueError(f"The config has model_type {config.get('model_type')!r}, expected {MCMConfig.model_type!r}.")
    auto_map, pipelines = dict(AUTO_MAP), {}
    for name in {BASE, head, HEAD if head == ACTION_HEAD else head}:
        module, auto, task, pipeline = HEADS[name]
        auto_map[auto] = f"{module}.{name}"
        pipelines[task] = {"impl": f"{PIPELINE_MODULE}.{pipeline}", "pt": [auto], "type": "multimodal"}
    if config.get("forecast_window") and config.get("state_size"):
        impl = f"{PIPELINE_MODULE}.CustomerForecastPipeline"
        pipelines["customer-forecast"] = {"impl": impl, "pt": [HEADS[BASE][1]], "type": "multimodal"}
    known = {*MCMConfig().to_dict(), "architectures", "dtype", "transformers_version"}
    published = {key: value for key, value in config.items() if key in known and not key.startswith("_")}
    return published | {"auto_map": auto_map, "custom_pipelines": pipelines}


def _published_extractor(extractor: MCMFeatureExtractor) -> MCMFeatureExtractor:
    """The feature extractor with its own settings alone, and its Auto class."""
    schema = extractor.schema
    for spec in schema.specs.values():
        if schema.customer in spec.columns:
            raise ValueError(
                f"Feature {spec.name!r} reads the customer column {schema.customer!r}, so its vocabulary is a list of "
                "customer ids; leave the feature out of the schema, prepare and train again."
            )
    published = MCMFeatureExtractor.from_schema(schema, extractor.vocabularies, extractor.bins)
    vars(published)["auto_map"] = PREPROCESSOR_AUTO_MAP
    return published


def write_upload_folder(
    checkpoint: str | Path, folder: str | Path, data: str | Path | None = None, min_customers: int | None = None
) -> Exposure | None:
    """Writes what is published of a checkpoint, except for the card.

    Args:
        data (`str`, *optional*): The prepared data set of the training, in which the customers of each value are
            counted. The result says how many values few customers have, for the card.
        min_customers (`int`, *optional*): Values that fewer customers have are published as placeholders, and the
            weights without pairs of labels that fewer customers have; needs `data`.

    Raises:
        CheckpointError: If the checkpoint can't be read; see [`open_checkpoint`].
        FileExistsError: If the folder is not empty.
        ValueError: If the config is damaged or of another model, or if customer ids would be published.
    """
    source, target = str(checkpoint), Path(folder)
    head = find_head(source)
    config = _published_config(read_object(Path(source, CONFIG_NAME)), head.__name__)
    model, extractor = open_checkpoint(head, source)
    extractor = _published_extractor(extractor)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty, and everything in it would be published; give a new folder.")
    weights, exposure = model.state_dict(), None
    if data is not None:
        check_vocabularies(data, extractor)
        rows, least, pairs = load_prepared(data), min_customers or RARE_BELOW, 0
        rare = rare_values(rows, extractor, least)
        if min_customers is not None:
            changed, pairs = hide_pairs(weights, config["tasks"], shared_pairs(rows, extractor, least))
            weights |= {name: table.contiguous() for name, table in changed.items()}
            extractor.vocabularies = hide_values(extractor.vocabularies, rare)
            if config.get("values_digest") is not None:
                config["values_digest"] = extractor.values_digest  # placeholders are other values
        counts = {name: len(values) for name, values in rare.items()}
        exposure = Exposure(least, counts, min_customers is not None, pairs)
    # Keys are sorted as transformers does, but not those of vocabularies.
    write_json(target / CONFIG_NAME, config, sort_keys=True)
    save_file(weights, target / WEIGHTS_NAME, metadata={"format": "pt"})
    note_digests(target)
    extractor.save_pretrained(target)
    for path in code_files():
        shutil.copyfile(path, target / path.name)
    # Once from the written files: what would not load is not published.
    MCMFeatureExtractor.from_pretrained(target)
    return exposure
