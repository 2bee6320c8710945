# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Model cards and data set cards, whose numbers all come from files that the commands wrote.

The text is in `templates/`. The facts come from the upload folder, from the records of training and evaluation, and
from counts of the prepared data set.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MCMConfig
from modeling_mcm.evaluation.metrics import CONFIDENCE
from modeling_mcm.evaluation.reports import with_half_interval
from modeling_mcm.files_mcm import write_json, write_text
from modeling_mcm.hub.folder import (
    ACTION_HEAD,
    CONFIG_NAME,
    PREDICTION_HEAD,
    PREPROCESSOR_NAME,
    RESULTS_FOLDER,
    VOCABULARIES_NAME,
    read_json,
)

TEMPLATES = Path(__file__).with_name("templates")
LICENSE = "apache-2.0"
TAGS = ["mcm", "customer-model", "recommendation", "personalization", "sequential-recommendation"]
PUBLIC = re.compile(r"(?:configuration|training|examples)/")  # files of the project, so their names reveal nothing
SECRETS = ("token", "secret", "password", "key")
HIDDEN = "..."
# What the metadata say of a task; the page's table shows the same.
HEADLINES = ("next_visit_ndcg", "next_visit_recall", "next_visit_mrr", "next_event_ndcg")
HORIZON_HEADLINES = ("horizon_ndcg", "horizon_recall", "horizon_mrr")
OFFER_HEADLINES = ("average_precision", "roc_auc", "ndcg", "recall")
OWN_METHODS = ("MCM", "MCM fine-tuned")
MINUTE, HOUR, DIGITS = 60, 3600, 4


@dataclass(frozen=True)
class Footprint:
    """Assumptions of the estimated emissions.

    Args:
        watts (`float`): Power of the machine in training, in watts.
        grams_per_kwh (`float`): Carbon dioxide equivalent of one kilowatt-hour of the power grid, in grams.
    """

    watts: float = 65.0
    grams_per_kwh: float = 450.0

    def __post_init__(self) -> None:
        if self.watts <= 0 or self.grams_per_kwh < 0:
            raise ValueError(
                f"Found {self.watts} watts and {self.grams_per_kwh} g/kWh; watts must be above 0 and grams at least 0."
            )

    def grams(self, seconds: float) -> float:
        """Estimates the emissions of a training, in grams of carbon dioxide equivalent.

        Args:
            seconds (`float`): Duration of the training.
        """
        return seconds / HOUR * self.watts / 1000 * self.grams_per_kwh


@dataclass(frozen=True)
class Exposure:
    """How many customers have the values of the vocabularies, as counted on the training data.

    Args:
        min_customers (`int`): Number k of customers; a value of fewer is rare.
        rare (`Mapping[str, int]`): Number of rare values of each categorical feature.
        hidden (`bool`): Whether rare values are published as placeholders.
        pairs (`int`): Number of rare pairs of labels that were left out of the weights.
    """

    min_customers: int
    rare: Mapping[str, int]
    hidden: bool
    pairs: int = 0


def scrub_command(command: str) -> str:
    """Removes private parts of a command line: folders outside of the project, and values of options with secrets.

    Args:
        command (`str`): The command line.
    """
    words, skipping = [], False
    for word in command.split():
        if skipping and not word.startswith("-"):
            continue
        option, separator, value = word.partition("=") if word.startswith("-") else ("", "", word)
        skipping = any(part in option for part in SECRETS)
        words.append(f"{option}={HIDDEN}" if skipping else option + separator + _scrub_path(value))
    return " ".join(words)


def _scrub_path(word: str) -> str:
    """Replaces a path completely: if a folder's name has a space, even its last part may be a private name."""
    parts = re.split(r"[/\\]", word)
    public = PUBLIC.match(word) and ".." not in parts
    return word if len(parts) == 1 or public else HIDDEN


def _cell(text: Any) -> str:
    """Escapes a text of the data for a cell of a Markdown table."""
    return re.sub(r"([\\|`*<\[])", r"\\\1", str(text)).replace("\n", " ")


def _duration(seconds: float) -> str:
    exact = f"{seconds:,.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"
    if seconds < 2 * MINUTE:
        return exact
    larger = f"{seconds / MINUTE:.0f} minutes" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} hours"
    return f"{larger} ({exact})"


@dataclass(frozen=True)
class CardFacts:
    """The facts of a checkpoint that its model card is written from, as values for JSON.

    Args:
        repo_id (`str`): Name on the Hub.
        config (`Mapping[str, Any]`): Config of the model.
        extractor (`Mapping[str, Any]`): Config of the feature extractor, without its vocabularies.
        values (`Mapping[str, int]`): Number of values of each categorical feature.
        bins (`Mapping[str, int]`): Number of bins of each numeric feature.
        training (`Mapping[str, Any]`): Content of pretraining.json or finetuning.json, its command without private
            parts; empty if nothing is known.
        evaluation (`Mapping[str, Any]`): `data`, `cutoff` and `cases` of the evaluation, what was ranked (`protocol`),
            and whether it is of `offers`; empty without an evaluation.
        results (`Sequence[Mapping[str, Any]]`): The metrics, from [`result_rows`].
        exposure (`Exposure`, *optional*): Number of rare values. Without it the card says that they were not counted.
        footprint (`Footprint`): Assumptions of the estimated emissions.
    """

    repo_id: str
    config: Mapping[str, Any]
    extractor: Mapping[str, Any]
    values: Mapping[str, int]
    bins: Mapping[str, int]
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()
    exposure: Exposure | None = None
    footprint: Footprint = Footprint()

    @classmethod
    def gather(
        cls,
        folder: str | Path,
        repo_id: str,
        training: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        exposure: Exposure | None = None,
        footprint: Footprint | None = None,
    ) -> "CardFacts":
        """Collects the facts of a checkpoint. The arguments without a description are those of the class.

        Args:
            folder (`Path`): Folder that [`write_upload_folder`] wrote.
            training (`dict`, *optional*): Content of pretraining.json or finetuning.json of the checkpoint.
            evaluation (`dict`, *optional*): Content of the file that `mcm evaluate --output_file` wrote.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, or the evaluation is of another kind.
        """
        vocabularies = read_json(Path(folder) / VOCABULARIES_NAME, "the values of the features")
        training, known = dict(training or {}), evaluation or {}
        for name in ("run", "finished"):  # which options and data a run goes on with; nobody else needs them
            training.pop(name, None)
        if training.get("command"):
            training["command"] = scrub_command(training["command"])
        described = {name: known[name] for name in ("data", "cutoff", "cases", "protocol") if name in known}
        return cls(
            repo_id=repo_id,
            config=read_json(Path(folder) / CONFIG_NAME, "the model's config"),
            extractor=read_json(Path(folder) / PREPROCESSOR_NAME, "the feature extractor's config"),
            values={name: len(values) for name, values in vocabularies["vocabularies"].items()},
            bins={name: len(edges) + 1 for name, edges in vocabularies["bins"].items()},
            training=training,
            evaluation=described | {"offers": "results" not in known} if known else {},
            results=result_rows(evaluation),
            exposure=exposure,
            footprint=footprint or Footprint(),
        )

    @classmethod
    def load(cls, path: str | Path) -> "CardFacts":
        """Reads facts that [`save`] wrote.

        Args:
            path (`str` or `Path`): The JSON file.

        Raises:
            ValueError: If the file holds something else.
        """
        content = read_json(Path(path), "the facts of a card")
        try:
            exposure = content["exposure"] and Exposure(**content["exposure"])
            return cls(**content | {"exposure": exposure, "footprint": Footprint(**content["footprint"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no facts of a card ({error!r}): write it with --card again.") from error

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, from which the card can be written without the checkpoint.

        Args:
            path (`str` or `Path`): The file.
        """
        write_json(path, asdict(self), indent=1)


def _schema_rows(facts: CardFacts) -> list[dict[str, str]]:
    """Rows of features: name, kind, number of values, whether it is a profile's or a task, and rare values."""
    rows, rare = [], facts.exposure.rare if facts.exposure else {}
    for feature in facts.extractor["features"]:
        name = feature["name"]
        size = f"{facts.values[name]:,} values" if name in facts.values else "calendar"
        rows.append(
            {
                "name": _cell(name),
                "kind": feature.get("kind", "categorical").replace("_", " "),
                "size": f"{facts.bins[name]} bins" if name in facts.bins else size,
                "of": "customer" if feature.get("profile") else "event",
                "task": "yes" if name in facts.extractor["tasks"] else "",
                "rare": f"{rare[name]:,}" if name in rare else "",
            }
        )
    return rows


def _headline_metrics(metrics: Mapping[str, Mapping[str, float]], headlines: Sequence[str]) -> list[tuple[str, int]]:
    """Selects the metrics that the card shows, each with its largest length of the list, or 0."""
    parts = [(name.partition("@")[0], int(name.partition("@")[2] or 0)) for name in metrics]
    longest = {name: max(k for other, k in parts if other == name) for name, _ in parts}
    return [(name, longest[name]) for name in headlines if name in longest]


def result_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Reads the results that `mcm evaluate --output_file` wrote, as one entry for each method, task and metric of the
    card.

    Args:
        evaluation (`Mapping[str, Any]`, *optional*): Content of the file, of a pre-trained model (`results` by method,
            task and metric) or of one that was fine-tuned to offers (by outcome and method, then metric).

    Raises:
        ValueError: If it is neither.
    """
    if evaluation is None:
        return []
    try:
        if "results" in evaluation:
            headlines: Sequence[str] = HEADLINES + HORIZON_HEADLINES
            entries = [
                (method, task, metrics, headlines)
                for method, by_task in evaluation["results"].items()
                for task, metrics in by_task.items()
            ]
        else:
            entries = [
                (key.partition(": ")[2], key.partition(": ")[0], metrics, OFFER_HEADLINES)
                for key, metrics in evaluation.items()
            ]
        return [
            {
                "method": method,
                "task": task,
                "metric": name,
                "k": k,
                **{key: float(metrics[f"{name}@{k}" if k else name][key]) for key in ("mean", "low", "high")},
                "customers": int(metrics[f"{name}@{k}" if k else name]["customers"]),
            }
            for method, task, metrics, headlines in entries
            for name, k in _headline_metrics(metrics, headlines)
            if math.isfinite(metrics[f"{name}@{k}" if k else name]["mean"])  # there was a case
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The evaluation is not what `mcm evaluate` writes with --output_file ({type(error).__name__}: {error}); "
            "evaluate again."
        ) from error


def _evaluation_metadata(facts: CardFacts) -> list[EvalResult]:
    """The model's own results in the form that the Hub reads. The interval is among the metric's arguments."""
    return [
        EvalResult(
            task_type="other",
            task_name=f"offers: {row['task']}" if facts.evaluation["offers"] else f"next {row['task']}",
            dataset_type=_data_of(facts),
            dataset_name=_data_of(facts),
            dataset_config=row["task"],  # the client takes results of one data set and config for one task
            dataset_split=facts.evaluation.get("cutoff", "test"),
            metric_type=row["metric"],
            metric_name=row["metric"].replace("_", " ") + _at(row["k"], " @"),
            metric_value=round(row["mean"], DIGITS),
            metric_args={
                "confidence": CONFIDENCE,
                "low": round(row["low"], DIGITS),
                "high": round(row["high"], DIGITS),
                "customers": row["customers"],
            }
            | ({"k": row["k"]} if row["k"] else {}),
        )
        for row in facts.results
        if row["method"] in OWN_METHODS
    ]


def write_results(facts: CardFacts, folder: str | Path) -> Path | None:
    """Writes the model's own results to `.eval_results/*.yaml`, where the Hub reads them.

    Args:
        facts (`CardFacts`): The facts of the card.
        folder (`Path`): Folder that is published.

    Returns:
        `Path`: The file, or `None` if there are no results.
    """
    split = facts.evaluation.get("cutoff", "test")
    entries = [
        {
            "dataset": {"id": _data_of(facts), "task_id": f"{row['task']}_{row['metric']}{_at(row['k'], '@')}"},
            "value": round(row["mean"], DIGITS),
            "notes": f"{split} cases, {row['customers']} customers, {CONFIDENCE:.0%} interval "
            f"{round(row['low'], DIGITS)} to {round(row['high'], DIGITS)}",
        }
        for row in facts.results
        if row["method"] in OWN_METHODS
    ]
    if not entries:
        return None
    name = re.sub(r"[^\w.-]+|^[.]+", "-", _data_of(facts), flags=re.ASCII)
    path = Path(folder, RESULTS_FOLDER, f"{name}.yaml")
    path.parent.mkdir(exist_ok=True)
    write_text(path, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    return path


def _at(k: int, sign: str) -> str:
    return f"{sign}{k}" if k else ""


def _data_of(facts: CardFacts) -> str:
    return facts.evaluation.get("data") or facts.training.get("data") or facts.extractor["name"]


def _results_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes the columns, and by task the rows, of the card's table of results."""
    metrics = list(dict.fromkeys((row["metric"], row["k"]) for row in rows))
    tasks: dict[str, dict[str, dict]] = {}
    for row in rows:
        cell = with_half_interval(row)
        tasks.setdefault(row["task"], {}).setdefault(row["method"], {})[(row["metric"], row["k"])] = cell
    return {
        "columns": [name.replace("_", " ") + (f" @{k}" if k else "") for name, k in metrics],
        "lines": [
            (_cell(task), _cell(method), [cells.get(metric, "") for metric in metrics])
            for task, methods in tasks.items()
            for method, cells in methods.items()
        ],
    }


def model_card(facts: CardFacts) -> ModelCard:
    """Writes the model card of a checkpoint, with metadata that the Hub's client has validated.

    Args:
        facts (`CardFacts`): The facts of the card.
    """
    config, extractor, training, footprint = facts.config, facts.extractor, facts.training, facts.footprint
    name, actions = facts.repo_id.split("/")[-1], ACTION_HEAD in config["architectures"]
    is_tuned = bool({ACTION_HEAD, PREDICTION_HEAD} & set(config["architectures"]))
    seconds = training.get("seconds")
    grams = None if seconds is None else footprint.grams(seconds)
    metadata: dict[str, Any] = {}
    if grams is not None:
        metadata["co2_eq_emissions"] = {
            "emissions": round(grams, 2),
            "source": f"estimate: seconds of training x {footprint.watts:g} W x {footprint.grams_per_kwh:g} g/kWh",
            "training_type": "fine-tuning" if is_tuned else "pre-training",
        }
    card_data = ModelCardData(
        license=LICENSE,
        library_name="transformers",
        tags=TAGS,
        model_name=name,
        eval_results=_evaluation_metadata(facts) or None,
        **metadata,
    )
    event_features = [feature for feature in extractor["features"] if not feature.get("profile")]
    shape = MCMConfig.from_dict(dict(config))
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / "model_card.md.jinja"),
        repo_id=facts.repo_id,
        name=name,
        data=_cell(_data_of(facts)),
        config=config,
        attention=shape.encoder_attention,
        target=shape.target,
        extractor=extractor,
        example={feature.get("column") or feature["name"]: "..." for feature in event_features if _is_raw(feature)},
        actions=actions,
        features=_schema_rows(facts),
        tasks=[_cell(task) for task in config["tasks"]],
        number_of_values=sum(facts.values.values()),
        training=training,
        duration=None if seconds is None else _duration(seconds),
        evaluation=facts.evaluation,
        results=_results_table(facts.results) if facts.results else None,
        exposure=facts.exposure,
        footprint=footprint,
        grams=None if grams is None else f"{grams:.3g}",
    )


def _is_raw(feature: Mapping[str, Any]) -> bool:
    return feature.get("kind", "categorical") in ("categorical", "numeric")


def dataset_card(manifest: Any, exposure: Exposure | None = None) -> DatasetCard:
    """Writes a card of a prepared data set, to keep with it.

    A prepared data set holds customers' histories with their ids. Nothing in this package publishes one.

    Args:
        manifest (`PreparedManifest`): The manifest of the data set.
        exposure (`Exposure`, *optional*): Number of rare values. Without it the card says that they were not counted.
    """
    schema, counts = manifest.schema, manifest.counts
    features = [{"of": "event", **spec} for spec in schema["features"]]
    features += [{"of": "customer", **spec} for spec in schema.get("profile", [])]
    rows = [
        {
            "name": _cell(spec["name"]),
            "kind": spec.get("kind", "categorical").replace("_", " "),
            "of": spec["of"],
            "task": "yes" if spec["name"] in schema["tasks"] else "",
            "unknown": f"{counts.get('unknown', {}).get(spec['name'], 0):,}",
            "missing": f"{counts.get('missing', {}).get(spec['name'], 0):,}",
            "rare": f"{exposure.rare[spec['name']]:,}" if exposure and spec["name"] in exposure.rare else "",
            "min_count": spec.get("min_count", ""),
        }
        for spec in features
    ]
    return DatasetCard.from_template(
        DatasetCardData(tags=TAGS, pretty_name=schema["name"], task_categories=["other"]),
        template_path=str(TEMPLATES / "dataset_card.md.jinja"),
        name=_cell(schema["name"]),
        schema=schema,
        counts={key: f"{value:,}" for key, value in counts.items() if isinstance(value, int)},
        features=rows,
        shards=len(manifest.shards),
        versions=manifest.versions,
        exposure=exposure,
        first_id=FIRST_VALUE_ID,
    )
