# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Model cards, whose numbers all come from files that the commands wrote. The text is in `templates/`."""

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data.schema import example_values
from modeling_mcm.evaluation.comparison import with_half_interval
from modeling_mcm.evaluation.metrics import CONFIDENCE
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor

from .folder import ACTION_HEAD, Exposure, read_object

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.jinja"
TAGS = ["mcm", "customer-model", "recommendation", "personalization", "sequential-recommendation"]
# Of a command line: options with secrets, with their values; and paths, but for files of the project, whose names
# reveal nothing
SECRETS = re.compile(r"(?<!\S)(-[^\s=]*(?:token|secret|password|key)[^\s=]*)(?:=\S*)?(?: (?!-)\S+)*")
PATHS = re.compile(r"(?<!\S)((?:-[^\s=]*=)?+)(?!(?:configuration|training|examples)/(?!\S*\.\.))\S*[/\\]\S*")
# The metrics that a card shows, of next visits, of visits within a horizon, and of offers.
HEADLINES = ["next_visit_ndcg", "next_visit_recall", "next_event_ndcg"]
HEADLINES += ["horizon_ndcg", "horizon_recall", "average_precision", "roc_auc", "ndcg", "recall"]
OWN_METHODS = ("MCM", "MCM fine-tuned")
DIGITS = 4


def scrub_command(command: str) -> str:
    """Removes folders outside of the project and values of options with secrets from a command line. A path is
    replaced completely: if a folder's name has a space, even its last part may be a private name."""
    return PATHS.sub(r"\1...", SECRETS.sub(r"\1=...", " ".join(command.split())))


def _cell(text: object) -> str:
    """Escapes a text of the data for Markdown."""
    return re.sub(r"([\\|`*<\[])", r"\\\1", str(text)).replace("\n", " ")


def result_rows(evaluation: Mapping) -> list[dict]:
    """Selects a card's results from the file of `mcm evaluate --output_file`: `results` by method, task (or outcome of
    offers) and metric. Of each metric the longest list counts."""
    rows = []
    for method, by_task in evaluation.get("results", {}).items():
        for task, metrics in by_task.items():
            lengths = sorted((int(k or 0), name) for name, _, k in (key.partition("@") for key in metrics))
            longest = {name: k for k, name in lengths}
            for name in filter(longest.__contains__, HEADLINES):
                length = f"@{longest[name]}" if longest[name] else ""
                row = {"method": method, "task": task, "metric": name, "k": longest[name]}
                row["words"] = f"{name.replace('_', ' ')} {length}".strip()
                rows.append(row | metrics[name + length])
    return rows


def _read_first(folder: str | Path | None, *names: str) -> dict:
    paths = (Path(folder, name) for name in names if folder)
    return next((read_object(path) for path in paths if path.is_file()), {})


def model_card(
    folder: str | Path, repo_id: str, checkpoint: str | Path | None = None, exposure: Exposure | None = None
) -> ModelCard:
    """Writes the model card of a folder of `write_upload_folder`, with metadata that the Hub's client has validated.

    Args:
        checkpoint (`str`, *optional*): Folder of the checkpoint, whose finetuning.json or pretraining.json says how it
            was trained, and whose evaluation.json (`mcm evaluate --output_file`) how good it is.
        exposure ([`Exposure`], *optional*): Without it the card says that rare values were not counted.

    Raises:
        OSError: If a file of the folder is missing.
        ValueError: If a file is damaged.
    """
    training = _read_first(checkpoint, "finetuning.json", "pretraining.json")
    evaluation = _read_first(checkpoint, "evaluation.json")
    config = MCMConfig.from_pretrained(folder)
    extractor = MCMFeatureExtractor.from_pretrained(folder)
    results = result_rows(evaluation)
    data = evaluation.get("data") or training.get("data") or extractor.name
    name = repo_id.split("/")[-1]
    actions = ACTION_HEAD in (config.architectures or ())
    order, visit = extractor.schema.order_column, extractor.schema.visit_column
    event = {order: "2024-02-10 18:00" if extractor.time else 1} if order else {}
    event |= {visit: "1"} if visit else {}
    table: dict[str, dict[str, dict[str, str]]] = {}
    for row in results:
        table.setdefault(row["task"], {}).setdefault(row["method"], {})[row["words"]] = with_half_interval(row)
    own = [  # the model's own results in the form that the Hub reads; the interval is among the metric's arguments
        EvalResult(
            task_type="other",
            task_name=f"{'offers:' if actions else 'next'} {row['task']}",
            dataset_type=data,
            dataset_name=data,
            dataset_config=row["task"],  # the client takes results of one data set and config for one task
            dataset_split=evaluation.get("cutoff", "test"),
            metric_type=row["metric"],
            metric_name=row["words"],
            metric_value=round(row["mean"], DIGITS),
            metric_args={"confidence": CONFIDENCE}
            | {bound: round(row[bound], DIGITS) for bound in ("low", "high")}
            | {name: row[name] for name in ("customers", "k") if row[name]},
        )
        for row in results
        if row["method"] in OWN_METHODS
    ]
    return ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            tags=TAGS,
            model_name=name,
            eval_results=own or None,
        ),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        name=name,
        data=_cell(data),
        config=config,
        extractor=extractor,
        event=event | example_values(extractor),
        action={"action_id": "a"} | example_values(extractor),
        profile=example_values(extractor, profile=True),
        actions=actions,
        cell=_cell,
        training=training,
        command=scrub_command(training.get("command") or ""),
        evaluation=evaluation,
        results=table,
        columns=list(dict.fromkeys(row["words"] for row in results)),
        exposure=exposure,
    )
