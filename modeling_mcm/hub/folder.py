# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The folder that is published: the parts of a checkpoint that may be public, and the code that reads them.

A checkpoint folder holds more than a model: optimizer state, a pickle of the training arguments, logs and paths.
Therefore only files of a list are copied, and of JSON files only the keys that MCM itself writes. The code that the
Auto classes and `pipeline` read (`trust_remote_code=True`) is added: the modules of their classes and what these
import, so that a reader needs transformers and torch, but not this package.

Values, and pairs of values, that few customers have are counted, and hidden if that is wanted. A checkpoint holds no
customer, but it lists every value that it knows, such as a brand that one household buys or a town that one customer
lives in. `min_count` of the event schema does not protect them: it counts events, and one customer can have many. A
customer is protected by the number of others with the same value (k-anonymity), which can only be counted in the
prepared data set. The scorer's tables list which labels go together, so that even a pair of frequent values can
reveal one customer: a pair is published if enough customers have both of its labels.

Further columns of a table of labels are not in that data set, so nobody knows how many customers have their values:
all texts are left out. So is what is known of days to come: it is a plan.

Not promised: that so many customers had the two labels close to each other or in an order, or that the other weights,
trained with the rare values too, tell nothing of a customer. That needs differential privacy.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from scipy.sparse import csr_array
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_mcm.calendar_mcm import Known, write_day
from modeling_mcm.checkpoint_mcm import damage, note_metadata
from modeling_mcm.configuration_mcm import DECIDING, FIRST_VALUE_ID, MCMConfig
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.dataset import END
from modeling_mcm.evaluation.cases import read_history
from modeling_mcm.feature_extraction_mcm import MISSING_LABEL, MCMFeatureExtractor
from modeling_mcm.files_mcm import read_json, write_json
from modeling_mcm.training.checkpoints import find_head, open_checkpoint
from modeling_mcm.training.forecaster.shop import SHARED_BY
from modeling_mcm.training.scorer.counts import measure_rarity

CONFIG_NAME, CARD_NAME = "config.json", "README.md"
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
PREPROCESSOR_AUTO_MAP = {"AutoFeatureExtractor": "feature_extraction_mcm.MCMFeatureExtractor"}
AUTO_MAP = {"AutoConfig": "configuration_mcm.MCMConfig", **PREPROCESSOR_AUTO_MAP}
PIPELINE_MODULE = "pipeline_mcm"
RARE_BELOW = 5  # customers: a value of fewer is rare in the card, if `min_customers` does not say otherwise
PAIR = 2**32  # a pair of ids as one number: the first times this, plus the second
LABELS_AT_ONCE = 1024  # whose pairs are counted at a time
# Of the weights those that tell of single labels: the tables of a task, by kind, and the values of its labels
LABEL_PARTS = re.compile(r"(?:.+\.)?(?:scorer\.tables\.(?P<table>\d+)\.(?P<kind>\w+)|label_values_(?P<values>\d+))")
COLUMN_WEIGHTS = "prediction_head.state.weight"
UNLIMITED = 1e9  # visits, or an amount, that nobody reaches
Tensors = dict[str, torch.Tensor]


class Exposure(NamedTuple):
    """How many customers have the values of the vocabularies, as counted on the training data.

    Args:
        min_customers (`int`): Number k of customers; a value of fewer is rare.
        rare (`Mapping[str, int]`): Number of rare values of each categorical feature.
        hidden (`bool`): Whether rare values are published as placeholders.
        pairs (`int`): Number of weights of rare pairs of labels that were left out.
    """

    min_customers: int
    rare: Mapping[str, int]
    hidden: bool
    pairs: int = 0


def read_values(rows: Dataset, extractor: MCMFeatureExtractor, name: str) -> csr_array:
    """Which customers have each value of a categorical feature in the log, as 0 and 1 of shape `(V, C)`. `rows` are
    those of the data set that the checkpoint was trained on (`check_vocabularies`), to the end of the log."""
    if name in (spec.name for spec in extractor.schema.profile):
        customers = np.flatnonzero(np.asarray(rows["validation_end"]))
        ids = np.asarray(rows[f"profile_{name}"], np.int64)[customers]
    else:
        events = read_history(rows, name, kind="feature")
        customers, ids = events.customer, events.label
    shape = FIRST_VALUE_ID + len(extractor.vocabularies[name]), len(rows)
    has = csr_array((np.ones(len(ids), np.int64), (ids, customers)), shape)
    has.data[:] = 1  # however often
    return has


def rare_values(rows: Dataset, extractor: MCMFeatureExtractor, min_customers: int) -> dict[str, list[str]]:
    """Selects the values of each categorical feature that fewer than `min_customers` customers have, without the token
    types that MCM adds itself. Features that share the values of a column are counted together, because each of them
    tells that the customer has the value. `rows` are as in [`read_values`]."""
    shared, has = extractor.schema.shared_vocabularies, dict[str, csr_array]()
    for name in extractor.vocabularies:
        has[shared[name]] = read_values(rows, extractor, name) + has.get(shared[name], 0)
    rare = {}
    for name, values in extractor.vocabularies.items():
        few = np.flatnonzero((has[shared[name]] > 0).sum(1) < min_customers)
        rare[name] = [values[index - FIRST_VALUE_ID] for index in np.setdiff1d(few, extractor.own_ids(name))]
    return rare


def hide_values(
    vocabularies: Mapping[str, Sequence[str]], hidden: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Replaces hidden values of the vocabularies by placeholders, so that ids and weights stay as they are. A hidden
    value of a customer's event is then read as unknown, and a score of it has the name of the placeholder. Raises
    `ValueError` if a placeholder is already there."""
    result = {}
    for name, values in vocabularies.items():
        gone = {*hidden[name]}
        result[name] = [
            f"[hidden {index}]" if value in gone else value for index, value in enumerate(values, FIRST_VALUE_ID)
        ]
        if len({*result[name]}) < len(values):
            raise ValueError(f"{name!r} has a value such as '[hidden {FIRST_VALUE_ID}]': rename it in the log.")
    return result


def shared_pairs(rows: Dataset, extractor: MCMFeatureExtractor, min_customers: int) -> Tensors:
    """Selects for each task the pairs of labels of which at least `min_customers` customers have both in the log; a
    label and itself are a pair, too. `rows` are as in [`read_values`]. A pair is one number, label
    times `PAIR` plus label, and both directions are there."""
    shared = {}
    for task in extractor.tasks:
        has, pairs = read_values(rows, extractor, task), []
        for start in range(0, has.shape[0], LABELS_AT_ONCE):
            first, second = (has[start : start + LABELS_AT_ONCE] @ has.T >= min_customers).nonzero()
            pairs.append((first.astype(np.int64) + start) * PAIR + second)
        shared[task] = torch.from_numpy(np.concatenate(pairs))
    return shared


def hide_weights(weights: Tensors, config: Mapping, shared: Tensors, min_customers: int) -> int:
    """Removes from weights what too few customers share: pairs of labels that are not in `shared`, which
    [`shared_pairs`] gives, without any trace, from the scorer's tables; the counts, attributes and values of labels;
    the most that the forecaster expects; and from the calendar's counts the days of fewer visits, which are then not
    read. Returns the number of weights of pairs that are hidden."""
    names: dict[int, dict[str, str]] = {}
    number = 0
    for name, value in [*weights.items()]:
        if match := LABEL_PARTS.fullmatch(name):
            names.setdefault(int(match["table"] or match["values"]), {})[match["kind"] or "values"] = name
        elif name.endswith("forecaster.most") and min_customers > SHARED_BY:
            weights[name] = torch.full_like(value, UNLIMITED)
        elif name.endswith("calendar.counts"):
            weights[name] = value.masked_fill((value[:, :1] > 0) & (value[:, :1] < min_customers), 0)
    for index, parts in names.items():
        pairs = shared[config["tasks"][index]]
        by_label = [parts[kind] for kind in ("attributes", "values") if kind in parts]  # (V, any)
        labels = torch.arange(len(weights[by_label[0]]))
        few = ~torch.isin(labels * PAIR + labels, pairs)  # (V,)
        weights |= {name: weights[name].masked_fill(few[:, None], 0) for name in by_label}
        if "neighbours" not in parts:
            continue
        gone = ~torch.isin(labels[:, None] * PAIR + weights[parts["neighbours"]], pairs)  # (4, V, K)
        number += int((gone & (weights[parts["weights"]] != 0)).sum())
        order = gone.int().argsort(stable=True)  # a gap would tell of a pair
        for name in (parts["neighbours"], parts["weights"]):
            weights[name] = weights[name].masked_fill(gone, 0).gather(2, order)
        weights[parts["counts"]] = weights[parts["counts"]].masked_fill(few, 0)
        first = weights[parts["first"]]  # (V,), logarithms: hidden labels are as rare as the rarest one shown
        shown = first[~few]
        weights[parts["first"]] = first.masked_fill(few, shown.min() if len(shown) else 0)
        rarity = measure_rarity(weights[parts["attributes"]].numpy())  # which told of hidden labels, too
        weights[parts["rarity"]] = torch.from_numpy(rarity).to(weights[parts["rarity"]].dtype)
    return number


def hide_columns(weights: Tensors, config: Mapping) -> int:
    """Removes texts from `MCMConfig.label_columns`, with their weights: a customer with one is then read as one with
    none of them. Returns their number."""
    columns, left = config.get("label_columns", {}), list[bool]()
    for name, means in columns.items():
        columns[name] = {value: mean for value, mean in means.items() if value in ("", MISSING_LABEL)}
        left += [value in columns[name] for value in means]
    if not all(left):
        weight, start = weights[COLUMN_WEIGHTS], config["state_size"]  # (C, S + K + E)
        parts = weight[:, :start], weight[:, start:][:, : len(left)][:, left], weight[:, start + len(left) :]
        weights[COLUMN_WEIGHTS] = torch.cat(parts, 1)
    return left.count(False)


def past_days(known: Known, calendar: Sequence[int]) -> dict[str, list]:
    """What is known of the days that a calendar counts, from its first day and their number."""
    end = write_day(sum(calendar) - 1) if calendar else ""
    past = {
        name: [[first, min(last, end), value] for first, last, value in rows if str(first) <= end]
        for name, rows in known.items()
    }
    return {name: rows for name, rows in past.items() if rows}


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
        rows, least, pairs = PreparedData(data, END).rows, min_customers or RARE_BELOW, 0
        rare = rare_values(rows, extractor, least)
        counts = {name: len(values) for name, values in rare.items()}
        if min_customers is not None:
            shared = shared_pairs(rows, extractor, least)
            pairs = hide_weights(weights, config, shared, least)
            counts["label_columns"] = hide_columns(weights, config)
            config["known"] = past_days(config.get("known", {}), config.get("calendar", ()))
            extractor.vocabularies = hide_values(extractor.vocabularies, rare)
            if config.get("values_digest") is not None:
                config["values_digest"] = extractor.values_digest  # placeholders are other values
        exposure = Exposure(least, counts, min_customers is not None, pairs)
    # Keys are sorted as transformers does, but not those of vocabularies.
    write_json(target / CONFIG_NAME, config, sort_keys=True)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, target / WEIGHTS_NAME, metadata={"format": "pt"}
    )
    note_metadata(target, DECIDING)
    extractor.save_pretrained(target)
    for path in code_files():
        shutil.copyfile(path, target / path.name)
    # Once from the written files: what would not load is not published.
    MCMFeatureExtractor.from_pretrained(target)
    return exposure
