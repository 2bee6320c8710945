# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Model cards, whose numbers all come from files that the commands wrote. The text is in `templates/`."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data.examples import example_values
from modeling_mcm.evaluation.metrics import CONFIDENCE
from modeling_mcm.evaluation.reports import with_half_interval
from modeling_mcm.processing_mcm import MCMFeatureExtractor

from .folder import ACTION_HEAD, read_object
from .privacy import Exposure

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.jinja"
TAGS = ["mcm", "customer-model", "recommendation", "personalization", "sequential-recommendation"]
PUBLIC = re.compile(r"(?:configuration|training|examples)/")  # files of the project, so their names reveal nothing
SECRETS = ("token", "secret", "password", "key")
LEFT_OUT = "..."
# The metrics that a card shows, of next visits, of visits within a horizon, and of offers.
HEADLINES = ["next_visit_ndcg", "next_visit_recall", "next_event_ndcg"]
HEADLINES += ["horizon_ndcg", "horizon_recall", "average_precision", "roc_auc", "ndcg", "recall"]
OWN_METHODS = ("MCM", "MCM fine-tuned")
DIGITS = 4


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


def _cell(text: object) -> str:
    """Escapes a text of the data for Markdown."""
    return re.sub(r"([\\|`*<\[])", r"\\\1", str(text)).replace("\n", " ")


def result_rows(evaluation: Mapping) -> list[dict]:
    """Selects a card's results from the file of `mcm evaluate --output_file`: `results` by method, task (or outcome of
    offers) and metric. Of each metric the longest list counts. Raises `ValueError` if it is another file."""
    rows = []
    try:
        for method, by_task in evaluation["results"].items() if evaluation else ():
            for task, metrics in by_task.items():
                for name in HEADLINES:
                    lengths = [int(key.partition("@")[2] or 0) for key in metrics if key.partition("@")[0] == name]
                    k = max(lengths, default=0)
                    key = f"{name}@{k}" if k else name
                    if lengths and math.isfinite(metrics[key]["mean"]):  # there was a case
                        row = {"method": method, "task": task, "metric": name, "k": k}
                        row |= {"words": name.replace("_", " ") + f" @{k}" * bool(k)}
                        row |= {bound: float(metrics[key][bound]) for bound in ("mean", "low", "high")}
                        rows.append(row | {"customers": int(metrics[key]["customers"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The evaluation is not what `mcm evaluate` writes with --output_file ({type(error).__name__}: {error}); "
            "evaluate again."
        ) from error
    return rows


def _evaluation_metadata(rows: Sequence[Mapping], data: str, split: str, prefix: str) -> list[EvalResult]:
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
            metric_name=row["words"],
            metric_value=round(row["mean"], DIGITS),
            metric_args={"confidence": CONFIDENCE}
            | {bound: round(row[bound], DIGITS) for bound in ("low", "high")}
            | {name: row[name] for name in ("customers", "k") if row[name]},
        )
        for row in rows
        if row["method"] in OWN_METHODS
    ]


def _read_first(folder: str | Path | None, *names: str) -> dict:
    paths = [Path(folder, name) for name in names] if folder else []
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
        ValueError: If a file is damaged, or the evaluation is of another kind.
    """
    training = _read_first(checkpoint, "finetuning.json", "pretraining.json")
    evaluation = _read_first(checkpoint, "evaluation.json")
    config = MCMConfig.from_pretrained(folder)
    extractor = MCMFeatureExtractor.from_pretrained(folder)
    results = result_rows(evaluation)
    data = evaluation.get("data") or training.get("data") or extractor.name
    name = repo_id.split("/")[-1]
    actions = ACTION_HEAD in (config.architectures or ())
    command = training.get("command") or ""
    if not isinstance(command, str):
        raise ValueError(f"`command` of the training is {command!r}, expected a text: take it from the training.")
    order = extractor.schema.order_column
    event = {order: "2024-02-10 18:00" if extractor.time else 1} if order else {}
    event |= {extractor.visit: "1"} if extractor.visit else {}
    table: dict[str, dict[str, dict[str, str]]] = {}
    for row in results:
        of_method = table.setdefault(row["task"], {}).setdefault(row["method"], {})
        of_method[row["words"]] = with_half_interval(row)
    return ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            tags=TAGS,
            model_name=name,
            eval_results=_evaluation_metadata(
                results, data, evaluation.get("cutoff", "test"), "offers: " if actions else "next "
            )
            or None,
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
        command=scrub_command(command),
        evaluation=evaluation,
        results=table,
        columns=list(dict.fromkeys(row["words"] for row in results)),
        exposure=exposure,
    )
