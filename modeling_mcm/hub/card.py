# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Model cards, whose numbers all come from files that the commands wrote. The text is in `templates/`."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.evaluation.metrics import CONFIDENCE
from modeling_mcm.evaluation.reports import with_half_interval
from modeling_mcm.hub.folder import ACTION_HEAD, CONFIG_NAME, PREPROCESSOR_NAME, VOCABULARIES_NAME, read_json

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.jinja"
TAGS = ["mcm", "customer-model", "recommendation", "personalization", "sequential-recommendation"]
PUBLIC = re.compile(r"(?:configuration|training|examples)/")  # files of the project, so their names reveal nothing
SECRETS = ("token", "secret", "password", "key")
LEFT_OUT = "..."
FIRST_EVENT = {"time": "2024-02-10 18:00", "order": 1, "visit": "1"}  # of the example
# The metrics that a card shows, of next visits, of visits within a horizon, and of offers.
HEADLINES = ["next_visit_ndcg", "next_visit_recall", "next_event_ndcg"]
HEADLINES += ["horizon_ndcg", "horizon_recall", "average_precision", "roc_auc", "ndcg", "recall"]
OWN_METHODS = ("MCM", "MCM fine-tuned")
DIGITS = 4


@dataclass(frozen=True)
class Exposure:
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


def scrub_command(command: str) -> str:
    """Removes folders outside of the project and values of options with secrets from a command line."""
    words, skipping = [], False
    for word in command.split():
        if skipping and not word.startswith("-"):
            continue
        option, separator, value = word.partition("=") if word.startswith("-") else ("", "", word)
        skipping = any(part in option for part in SECRETS)
        words.append(f"{option}={LEFT_OUT}" if skipping else option + separator + _scrub_path(value))
    return " ".join(words)


def _scrub_path(word: str) -> str:
    """Replaces a path completely: if a folder's name has a space, even its last part may be a private name."""
    parts = re.split(r"[/\\]", word)
    public = PUBLIC.match(word) and ".." not in parts
    return word if len(parts) == 1 or public else LEFT_OUT


def _cell(text: Any) -> str:
    """Escapes a text of the data for a cell of a Markdown table."""
    return re.sub(r"([\\|`*<\[])", r"\\\1", str(text)).replace("\n", " ")


def _example(extractor: Mapping[str, Any], stored: Mapping[str, Any], profile: bool = False) -> dict[str, Any]:
    """A value that the model knows for each column of an event, or of a customer's profile."""
    example = {}
    for feature in extractor["features"]:
        kind, column = feature.get("kind", "categorical"), feature.get("column") or feature["name"]
        if bool(feature.get("profile")) == profile and kind in ("categorical", "numeric"):
            values = stored["vocabularies"].get(feature["name"], ())
            if column == extractor["token_type"]:
                values = extractor["target_token_types"]
            example[column] = next((value for value in values if not value.startswith("[hidden ")), 1)
    return example


def _headline_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Name in the file, name and k of each metric that a card shows: of the longest list, or 0 without a list."""
    longest: dict[str, int] = {}
    for key in metrics:
        name, _, k = key.partition("@")
        longest[name] = max(longest.get(name, 0), int(k or 0))
    shown = [(name, longest[name]) for name in HEADLINES if name in longest]
    return [(f"{name}@{k}" if k else name, name, k) for name, k in shown]


def _metric_name(row: Mapping[str, Any]) -> str:
    return row["metric"].replace("_", " ") + (f" @{row['k']}" if row["k"] else "")


def result_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Selects a card's results from the file of `mcm evaluate --output_file`: `results` by method, task and metric, or
    metrics by "outcome: method" of a model that was fine-tuned to offers. Raises `ValueError` if it is neither."""
    if evaluation is None:
        return []
    try:
        if "results" in evaluation:
            by_method = evaluation["results"].items()
            entries = [(method, task, metrics) for method, tasks in by_method for task, metrics in tasks.items()]
        else:
            entries = [(*key.split(": ", 1)[::-1], metrics) for key, metrics in evaluation.items()]
        return [
            {"method": method, "task": task, "metric": name, "k": k, "customers": int(metrics[key]["customers"])}
            | {bound: float(metrics[key][bound]) for bound in ("mean", "low", "high")}
            for method, task, metrics in entries
            for key, name, k in _headline_metrics(metrics)
            if math.isfinite(metrics[key]["mean"])  # there was a case
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The evaluation is not what `mcm evaluate` writes with --output_file ({type(error).__name__}: {error}); "
            "evaluate again."
        ) from error


def _evaluation_metadata(rows: Sequence[Mapping[str, Any]], data: str, split: str, prefix: str) -> list[EvalResult]:
    """The model's own results in the form that the Hub reads. The interval is among the metric's arguments."""
    return [
        EvalResult(
            task_type="other",
            task_name=f"{prefix}{row['task']}",
            dataset_type=data,
            dataset_name=data,
            dataset_config=row["task"],  # the client takes results of one data set and config for one task
            dataset_split=split,
            metric_type=row["metric"],
            metric_name=_metric_name(row),
            metric_value=round(row["mean"], DIGITS),
            metric_args={"confidence": CONFIDENCE}
            | {bound: round(row[bound], DIGITS) for bound in ("low", "high")}
            | {name: row[name] for name in ("customers", "k") if row[name]},
        )
        for row in rows
        if row["method"] in OWN_METHODS
    ]


def _results_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes the columns, and by task and method the cells, of the card's table of results."""
    columns = list(dict.fromkeys(map(_metric_name, rows)))
    table: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        cells = table.setdefault(row["task"], {}).setdefault(row["method"], {})
        cells[_metric_name(row)] = with_half_interval(row)
    lines = [
        (_cell(task), _cell(method), [cells.get(column, "") for column in columns])
        for task, methods in table.items()
        for method, cells in methods.items()
    ]
    return {"columns": columns, "lines": lines}


def model_card(
    folder: str | Path,
    repo_id: str,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    exposure: Exposure | None = None,
) -> ModelCard:
    """Writes the model card of a checkpoint, with metadata that the Hub's client has validated. `training` is the
    content of pretraining.json or finetuning.json, `evaluation` that of the file of `mcm evaluate --output_file`.
    Without `exposure` the card says that rare values were not counted. Raises `FileNotFoundError` if a file is
    missing, and `ValueError` if one is damaged or the evaluation is of another kind."""
    config = read_json(Path(folder) / CONFIG_NAME, "the model's config")
    extractor = read_json(Path(folder) / PREPROCESSOR_NAME, "the feature extractor's config")
    stored = read_json(Path(folder) / VOCABULARIES_NAME, "the values of the features")
    training, results = training or {}, result_rows(evaluation)
    known = evaluation if evaluation and "results" in evaluation else {}  # that of offers says nothing of its data
    data = known.get("data") or training.get("data") or extractor["name"]
    name, shape = repo_id.split("/")[-1], MCMConfig.from_dict(dict(config))
    prefix = "next " if known else "offers: "
    command = training.get("command") or ""
    if not isinstance(command, str):
        raise ValueError(f"`command` of the training is {command!r}, expected a text: take it from the training.")
    event = {extractor[name]: value for name, value in FIRST_EVENT.items() if extractor.get(name)}
    return ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            tags=TAGS,
            model_name=name,
            eval_results=_evaluation_metadata(results, data, known.get("cutoff", "test"), prefix) or None,
        ),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        name=name,
        data=_cell(data),
        config=config,
        shape=shape,
        extractor=extractor,
        event=event | _example(extractor, stored),
        action={"action_id": "a"} | _example(extractor, stored),
        profile=_example(extractor, stored, profile=True),
        actions=ACTION_HEAD in config["architectures"],
        stored=stored,
        cell=_cell,
        tasks=[_cell(task) for task in config["tasks"]],
        number_of_values=sum(map(len, stored["vocabularies"].values())),
        training=training,
        command=scrub_command(command),
        evaluation=known,
        results=_results_table(results) if results else None,
        exposure=exposure,
    )
