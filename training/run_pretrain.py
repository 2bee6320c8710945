#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-trains MCM on a prepared data set.

    accelerate launch training/run_pretrain.py --data data/prepared --config configuration/mcm-tiny
    accelerate launch training/run_pretrain.py configuration/recipes/quickstart.yaml --output_dir runs/quickstart
    accelerate launch --multi_gpu --num_processes 2 training/run_pretrain.py ...        two processes, on CPUs too

Data that do not fit are read from their shards as they are needed (`--streaming true`). Settings for one CPU, several
GPUs and several machines are in configuration/accelerate/; docs/training_at_scale.md says more.

Started again with the same options it goes on from its last whole checkpoint. All options of `TrainingArguments` work;
a YAML file may hold any of them, and flags win over it.

Equal compute: `--max_seconds 600` ends the run after 600 seconds of training, evaluation and saving not counted. The
learning rate follows the clock instead of the steps, and `--num_train_epochs` only bounds the run. How far it gets
depends on the machine, so it can't be resumed to the same bits, and trying to is an error: start it anew.
"""

import os
import platform
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
import yaml
from accelerate import PartialState
from numpy.typing import NDArray
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForMultiTaskRecommendation, __version__
from modeling_mcm.commands.arguments import given_options, parse_options
from modeling_mcm.configuration_mcm import FEW_VALUES
from modeling_mcm.counting import (
    CASES,
    fill_followers,
    fill_label_values,
    fill_related,
    fit_followers,
    fit_scales,
    training_labels,
)
from modeling_mcm.data import PreparedManifest, load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows, unit_counts
from modeling_mcm.data.dataset import (
    FEATURE_EXTRACTOR_FOLDER,
    FOLLOWERS_FILE,
    MANIFEST_FILE,
    POPULARITY_FILE,
    sha256_of,
)
from modeling_mcm.data.streaming import StreamedRows
from modeling_mcm.earlier_configs_mcm import REMOVED, of_this_version
from modeling_mcm.evaluation.baseline_cache import FOLDER as BASELINES_FOLDER
from modeling_mcm.evaluation.baseline_cache import BaselineCache
from modeling_mcm.evaluation.cases import find_cases
from modeling_mcm.evaluation.comparison import baseline_warnings, values_of
from modeling_mcm.evaluation.counting import FIRST_BASELINES, STRONG_BASELINES, counting_baselines
from modeling_mcm.losses_mcm import Objective
from modeling_mcm.model_evaluation import model_values
from modeling_mcm.recipe import Recipe, recipe_for
from modeling_mcm.training.callbacks import FirstComparison
from modeling_mcm.training.memory import keep_freed_memory
from modeling_mcm.training.moments import train_state
from modeling_mcm.training.resuming import PRETRAINING, RunError, Start, alone, deciding_options, find_start
from modeling_mcm.training.trainer import BEST_METRIC, MCMTrainer

logger = logging.get_logger("run_pretrain")

AUTO, NONE = "auto", "none"
# Options that belong together: where one is given, the recipe says nothing about the others.
WHEN = {"eval_strategy", "save_strategy", "early_stopping_patience", "save_total_limit", "load_best_model_at_end"}
HOW_LONG = {"max_seconds", "max_steps", "eval_steps", "save_steps", "eval_delay", "metric_for_best_model"}
# What decides the weights besides the Trainer's options and the model's config.
DECIDING = ("scalar_lr_factor", "ema_decay", "max_seconds", "streaming", "streaming_window", "streaming_eval_shards")
FIT_BATCH = 32  # customers of a batch that gains are learned on


@dataclass
class ModelOptions:
    """What is trained."""

    data: str | None = field(default=None, metadata={"help": "Folder of a prepared data set (prepare_data.py)."})
    config: str = field(
        default="configuration/mcm-base",
        metadata={
            "help": "Folder with a config.json; features and sizes come from the data, tasks where it names none."
        },
    )
    config_overrides: list[str] = field(
        default_factory=list, metadata={"help": "Fields of MCMConfig, as name=value: hidden_size=64 readout=last."}
    )
    recipe: str = field(
        default=AUTO,
        metadata={
            "help": "auto: what preparation measured decides about units, target, losses, memories, sampling and "
            "epochs, where no option or config_overrides does, and the log says why; none: the config as it is.",
            "choices": [AUTO, NONE],
        },
    )
    max_events: int | None = field(
        default=None, metadata={"help": "Longest input in events, start row included. Default: the event schema's."}
    )
    scalar_lr_factor: float = field(
        default=20.0, metadata={"help": "Factor on the learning rate of the readout's and the memory's scalars."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, which is evaluated and saved; e.g. 0.99."},
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "End after this many seconds of training; the learning rate follows them."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the Parquet shards while training instead of keeping an Arrow copy."}
    )
    streaming_window: int = field(default=4, metadata={"help": "Shards whose customers are mixed at a time."})
    streaming_lanes: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Two numbers that, with seed and batch size, fix the order: parts of a step that come from shards "
            "of their own, and steps in a row that do. Default: processes and dataloader workers; give the same two "
            "when a run goes on with other numbers of those."
        },
    )
    streaming_eval_shards: int = field(
        default=16, metadata={"help": "Shards, spread evenly, whose customers are evaluated when streaming."}
    )

    def __post_init__(self):
        if self.streaming_lanes and len(self.streaming_lanes) != 2:
            raise ValueError(f"Found streaming_lanes {self.streaming_lanes}; expected two numbers, or none.")


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults that suit MCM."""

    output_dir: str | None = field(default="runs/mcm", metadata={"help": "Where checkpoints and the model go."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Customers a step and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Customers a step and device."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of the matrices; embeddings and biases have none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: a share of the steps under 1, else steps."})
    num_train_epochs: float = field(default=6.0, metadata={"help": "Passes over the customers."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    save_strategy: str = field(default="epoch", metadata={"help": "When a checkpoint is written."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    report_to: str | None = field(default="tensorboard", metadata={"help": "Loggers."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator reads all."})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Must stay on: ranks are kept, never logits."})
    use_cpu: bool = field(
        default=not torch.cuda.is_available(), metadata={"help": "Train on CPUs; the default without a GPU."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End after this many evaluations in a row without a better metric_for_best_model, and keep the "
            f"best model; pre-training's is {BEST_METRIC}, the mean over its tasks."
        },
    )
    best_metric: ClassVar[str] = BEST_METRIC  # where none is named

    def __post_init__(self):
        self.label_names = ["labels"]
        if self.resume_from_checkpoint is not None:
            raise ValueError(
                "--resume_from_checkpoint is not read: a run goes on by itself from the last whole checkpoint of its "
                "output_dir. Leave it out."
            )
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1 or self.eval_strategy == "no":
                raise ValueError(
                    f"Found early_stopping_patience {self.early_stopping_patience} with eval_strategy "
                    f"{self.eval_strategy!r}; expected 1 or more, and evaluations: set eval_strategy and "
                    "save_strategy to epoch or steps."
                )
            self.load_best_model_at_end = True
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = self.best_metric
        super().__post_init__()


def check_launch(world_size: int) -> None:
    """Refuses to run alone when `accelerate launch` was asked for several processes and, as on CPUs, started one.

    Raises:
        RuntimeError: with the launch line that works.
    """
    words = psutil.Process(os.getppid()).cmdline()
    if not any(Path(word).name.startswith("accelerate") for word in words[:3]):
        return
    asked = 1
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes" or name == "-n":
            asked = int(value or words[place + 1])
    if asked > world_size:
        raise RuntimeError(
            f"{asked} processes were asked for and {world_size} runs: `accelerate launch --cpu` starts only one. Use "
            f"`accelerate launch --multi_gpu --num_processes {asked}` (it works on CPUs too) or `torchrun`."
        )


def chosen_recipe(options: ModelOptions, given: Collection[str]) -> Recipe:
    """What the data decide, less what the options say about how long and when."""
    if options.recipe == NONE:
        return Recipe()
    extractor = MCMFeatureExtractor.from_pretrained(Path(str(options.data)) / FEATURE_EXTRACTOR_FOLDER)
    sizes = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True))
    manifest = PreparedManifest.load(str(options.data))
    own = {feature["name"] for feature in extractor.features if feature.get("profile")} | {
        extractor.token_type_feature
    }
    features = [name for name in extractor.feature_names if name in extractor.vocabularies and name not in own]
    recipe = recipe_for(manifest.measures, {task: sizes[task] for task in extractor.tasks}, features)
    training = {name: value for name, value in recipe.training.items() if name not in given}
    nothing_to_evaluate = manifest.counts.get("validation_cases") == 0
    if nothing_to_evaluate:
        logger.warning(f"{options.data} has no validation case, so nothing is evaluated and no epoch is the best.")
    if nothing_to_evaluate or any(name in given for name in WHEN | HOW_LONG):
        training = {name: value for name, value in training.items() if name not in WHEN}
    if "max_seconds" in given:
        training.pop("lr_scheduler_type", None)
    if "fsdp" in given or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        training.pop("ema_decay", None)
    return Recipe(recipe.config, training, recipe.reasons)


def read_config(options: ModelOptions, extractor: MCMFeatureExtractor, recipe: Recipe | None = None) -> MCMConfig:
    """The chosen config with the data's features, what the recipe chose, and the overrides on top.

    Raises:
        ValueError: for an override that is no field of the config.
    """
    values: dict[str, Any] = {}
    known = MCMConfig().to_dict()
    for override in options.config_overrides:
        name, separator, value = override.partition("=")
        if not separator or name not in known:
            hint = f": {REMOVED[name]}" if name in REMOVED else ""
            raise ValueError(f"config_overrides: {override!r} is not name=value with a field of MCMConfig{hint}.")
        values[name] = yaml.safe_load(value)
    config = (
        of_this_version(MCMConfig.get_config_dict(options.config)[0])
        | (recipe.config if recipe else {})
        | {
            "features": extractor.feature_names,
            "vocabulary_sizes": extractor.vocabulary_sizes,
            "values_digest": extractor.values_digest,
        }
    )
    config["tasks"] = config.get("tasks") or extractor.tasks
    if config.get("max_position_embeddings"):
        config["max_position_embeddings"] = extractor.max_events  # the window decides how many
    if config.get("state_size", MCMConfig.state_size):
        sizes = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True))
        profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
        few = [name for name, size in sizes.items() if size <= FEW_VALUES and name not in profile]
        config |= {"state_features": few, "summed_features": extractor.numeric_features}
    return MCMConfig(**(config | values))


def trainable(ends: NDArray) -> NDArray[np.int64]:
    """The customers with two events or more in the training period.

    Raises:
        ValueError: if there are none.
    """
    several = np.flatnonzero(ends > 1)
    if not len(several):
        raise ValueError(
            f"None of the {len(ends)} customers has two events before the validation cutoff, so there is nothing to "
            "train on: move the cutoff dates of the event schema."
        )
    return several


def read_rows(
    options: ModelOptions, config: MCMConfig, max_events: int, evaluate: bool, min_history: int
) -> tuple[Any, Any]:
    """The rows to train on, and those to evaluate on or None: all of them, or streamed and some."""
    data = str(options.data)
    train_rows: Any = None
    shards: Any = None
    if options.streaming:
        train_rows = StreamedRows(data)
        ends = train_rows.column("validation_end")
        several = trainable(ends)
        # In events, which one small column tells; visits would take a pass over all rows.
        train_rows.keep(several, np.minimum(ends[several] + 1, max_events))
        number = len(train_rows.shards)
        shards = np.unique(np.linspace(0, number - 1, min(number, options.streaming_eval_shards)).astype(int))
        if not evaluate:
            return train_rows, None
    rows: Any = load_prepared(data, shards=shards, verify=True)
    ends = np.asarray(rows["validation_end"])
    units = unit_counts(rows, ends, config, max_events)
    if train_rows is None:
        several = trainable(ends)
        train_rows = PreparedRows(rows, several, units[several])
    if not evaluate:
        return train_rows, None
    cases = find_cases(rows, "validation", min_history)
    return train_rows, PreparedRows(rows, cases.rows[np.argsort(units[cases.rows], kind="stable")])  # pads little


def popularity(data: str, config: MCMConfig) -> dict[str, torch.Tensor]:
    """How often each label was a target in the training period."""
    table = pq.read_table(Path(data) / POPULARITY_FILE).to_pandas()
    counts = {}
    for task, size in config.label_sizes.items():
        of_task = table[table["feature"] == task]
        counts[task] = torch.zeros(size)
        counts[task][torch.as_tensor(of_task["id"].to_numpy().copy())] = torch.as_tensor(
            of_task["target_count"].to_numpy().copy(), dtype=torch.float32
        )
    return counts


def sampled_rows(options: ModelOptions) -> Any:
    """The rows that tables and gains are learned from: all, or when streaming those of some shards."""
    number = len(PreparedManifest.load(str(options.data)).shards)
    shards = np.unique(np.linspace(0, number - 1, min(number, options.streaming_eval_shards)).astype(int)).tolist()
    return load_prepared(str(options.data), shards=shards if options.streaming else None)


def count(model: MCMForMultiTaskRecommendation, options: ModelOptions, seed: int) -> None:
    """Fills the counted memory's tables, and learns what followers are worth."""
    config, data = model.config, Path(str(options.data))
    rows = sampled_rows(options)
    if config.label_features:
        for task, decided in fill_label_values(model, rows).items():
            logger.warning(f"Labels of {task} decide: {', '.join(decided) or 'no other feature'}.")
    if config.related_tasks:
        logger.warning(f"Solving what goes together, of {', '.join(config.related_tasks)}.")
        fill_related(model, training_labels(rows, config.tasks))
    if config.follower_tasks:
        if not (data / FOLLOWERS_FILE).is_file():
            raise SystemExit(
                f"{data} has no {FOLLOWERS_FILE}: prepare it again (training/prepare_data.py --overwrite)."
            )
        fill_followers(model, pq.read_table(data / FOLLOWERS_FILE), pq.read_table(data / POPULARITY_FILE))
        extractor = MCMFeatureExtractor.from_pretrained(data / FEATURE_EXTRACTOR_FOLDER)
        extractor.max_events = options.max_events or extractor.max_events
        collator = MCMCollator(extractor, config, "train", seed=seed, objective=model.objective)
        customers = PreparedRows(rows, trainable(np.asarray(rows["validation_end"])))
        order = np.random.default_rng(seed).permutation(len(customers)).tolist()
        batches = (
            collator(customers.__getitems__(order[at : at + FIT_BATCH])) for at in range(0, len(order), FIT_BATCH)
        )
        for task, losses in fit_followers(model, batches, popularity(str(data), config), seed).items():
            words = f"{losses['before']:.3f} before and {losses['after']:.3f} after their gains were learned"
            logger.warning(f"Followers of {task}: {words} (loss a target).")


def weigh(model: MCMForMultiTaskRecommendation, collator: MCMCollator, rows: PreparedRows) -> None:
    """Learns on validation cases how much each part of a score counts, and says so."""
    order = np.sort(
        np.random.default_rng(0).permutation(len(rows))[:CASES]
    ).tolist()  # rows are by length: pads little
    batches = (collator(rows.__getitems__(order[at : at + FIT_BATCH])) for at in range(0, len(order), FIT_BATCH))
    for task, scales in fit_scales(model, batches).items():
        named = ", ".join(f"{name} {value:.3g}" for name, value in scales.items())
        logger.warning(f"What the scores of {task} are made of, learned on validation cases: {named}.")


def counted(config: MCMConfig, extractor: MCMFeatureExtractor, options: ModelOptions, min_history: int, names: Any):
    """Rows, validation cases, and the values of counting baselines on them; none where SciPy is missing."""
    rows, data = sampled_rows(options), Path(str(options.data))
    cases = find_cases(rows, "validation", min_history, extractor.token_type_feature)
    sizes = config.label_sizes
    cache = None
    if not options.streaming:
        cache = BaselineCache(data / BASELINES_FOLDER, sha256_of(data / MANIFEST_FILE))
    try:
        return rows, cases, counting_baselines(rows, cases, sizes, names, cache=cache)
    except ImportError as error:
        logger.warning(f"The model is not compared with counting: {error}")
        return rows, cases, {}


def learn_state(
    model: MCMForMultiTaskRecommendation, extractor: MCMFeatureExtractor, options: ModelOptions, seed: int
) -> None:
    """Trains the customer state and its forecasts on moments of the training period."""
    rows = sampled_rows(options)
    ends = np.asarray(rows["validation_end"])
    several = trainable(ends)
    schema = PreparedManifest.load(str(options.data)).event_schema
    cutoff = None
    if not schema.leaves_one_out:
        cutoff = float(np.datetime64(schema.cutoff("validation"), "s").astype(np.int64))
    wanted = sorted(model.config.forecast_days)
    losses = train_state(model.model, extractor, PreparedRows(rows, several, ends[several]), cutoff, seed)
    words = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
    learned = model.config.forecast_days = model.model.config.forecast_days
    named = ", ".join(f"{day:g}" for day in learned) or "no"
    logger.warning(f"Customer state: losses {words}; forecasts for {named} days.")
    if missed := [f"{day:g}" for day in wanted if day not in learned]:
        logger.warning(
            f"Forecasts for {', '.join(missed)} days have not been learned: the training period is too short. "
            "Move the validation cutoff, or name shorter horizons (--config_overrides 'forecast_days=[7,30]')."
        )


def means_of(results: Any) -> dict[str, dict[str, float]]:
    """Of each method and task the mean of `BEST_METRIC`, of tasks in which a case has a target."""
    return {
        method: {
            task: float(np.nanmean(found[BEST_METRIC]))
            for task, found in by_task.items()
            if not np.isnan(found[BEST_METRIC]).all()
        }
        for method, by_task in results.items()
    }


def compare(
    model: MCMForMultiTaskRecommendation, extractor: MCMFeatureExtractor, options: ModelOptions, min_history: int
) -> dict[str, Any]:
    """Compares the trained model with counting on validation cases; warns where it is under, and returns the means."""
    names = [*FIRST_BASELINES, *STRONG_BASELINES]
    rows, cases, results = counted(model.config, extractor, options, min_history, names)
    if not results:
        return {}
    tasks = list(model.config.tasks)
    results["MCM"] = model_values(model.eval(), extractor, rows, cases, tasks)
    means = means_of(results)
    for method, by_task in means.items():
        logger.warning(
            f"{BEST_METRIC} on validation, {method}: " + ", ".join(f"{t} {v:.4f}" for t, v in by_task.items())
        )
    for warning in baseline_warnings(values_of(results, BEST_METRIC)):
        logger.warning(warning)
    return means


def main() -> None:
    """Reads the options, trains or goes on training, and saves the model with its feature extractor."""
    keep_freed_memory()
    options, _, training = parse_options(ModelOptions, Objective, PretrainingArguments, description=__doc__)
    check_launch(training.world_size)
    if options.data is None:
        raise SystemExit("--data is missing: the folder that training/prepare_data.py wrote.")
    recipe = chosen_recipe(options, given_options())
    options, objective, training = parse_options(
        ModelOptions, Objective, PretrainingArguments, description=__doc__, defaults=recipe.training
    )
    set_seed(training.seed)
    manifest = PreparedManifest.load(options.data)
    extractor = MCMFeatureExtractor.from_pretrained(Path(options.data) / FEATURE_EXTRACTOR_FOLDER)
    if options.max_events is not None:
        extractor.max_events = options.max_events
    config = read_config(options, extractor, recipe)
    for reason in recipe.reasons:
        logger.warning(reason)
    model = MCMForMultiTaskRecommendation(config)
    model.objective = objective
    model.initialize_from_popularity(popularity(options.data, config))
    own = {name: getattr(options, name) for name in DECIDING} | {"max_events": extractor.max_events}
    own |= asdict(objective)
    own["batch size"] = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    run = {"data": sha256_of(Path(options.data) / MANIFEST_FILE), "options": deciding_options(training) | own}
    try:
        with alone(training.output_dir, training.should_save):
            start = find_start(training.output_dir, PRETRAINING, run, config)
            if start.is_finished:
                logger.warning(f"{training.output_dir} holds this run, which is finished: nothing is left to train.")
            else:
                train(options, training, extractor, model, manifest, recipe, run, start)
    except RunError as error:
        raise SystemExit(f"run_pretrain: {error}") from error
    PartialState().destroy_process_group()  # whose threads would now and then abort the process at its end


def train(
    options: ModelOptions,
    training: PretrainingArguments,
    extractor: MCMFeatureExtractor,
    model: MCMForMultiTaskRecommendation,
    manifest: PreparedManifest,
    recipe: Recipe,
    run: dict[str, Any],
    start: Start,
) -> None:
    """Trains from where the run starts, compares with counting, and writes the model and its record."""
    config, min_history = model.config, manifest.event_schema.min_history
    train_rows, eval_rows = read_rows(
        options, config, extractor.max_events, training.eval_strategy != "no", min_history
    )
    trainer = MCMTrainer(
        model=model,
        args=training,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=extractor,
        train_collator=MCMCollator(extractor, config, "train", seed=training.seed, objective=model.objective),
        eval_collator=MCMCollator(extractor, config, "evaluate", cutoff="validation"),
        scalar_lr_factor=options.scalar_lr_factor,
        ema_decay=options.ema_decay,
        max_seconds=options.max_seconds,
        patience=training.early_stopping_patience,
        data_version=run["data"],
        window=options.streaming_window,
        lanes=options.streaming_lanes,
        run_options=run["options"],
    )
    if start.faults:
        logger.warning(
            f"Interrupted while they were written, or damaged since, so not used: {'; '.join(start.faults)}."
        )
    logger.warning(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_rows):,} customers, "
        + (f"going on from {start.checkpoint}" if start.checkpoint else "starting anew")
    )
    if eval_rows is not None and trainer.is_world_process_zero():
        found = counted(config, extractor, options, min_history, FIRST_BASELINES)[2]
        for popular in means_of(found).values():
            trainer.add_callback(FirstComparison(popular, BEST_METRIC, logger.warning))
    if start.checkpoint is None and (model.counted_memory is not None or config.label_features):
        count(model, options, training.seed)
    trainer.train(resume_from_checkpoint=start.checkpoint)
    # those that a gradient reached: a task or a feature that is not in use has tables too
    trained_parameters: Any = trainer.optimizer.state if trainer.optimizer else ()
    clock = trainer.clock
    if options.max_seconds is not None and clock.seconds < options.max_seconds:
        logger.warning(
            f"num_train_epochs or max_steps ended the run after {clock.seconds:.0f} of {options.max_seconds:g} "
            "seconds, before the learning rate had come down: raise --num_train_epochs."
        )
    is_weighed = options.recipe == AUTO or model.counted_memory is not None
    if is_weighed and eval_rows is not None and not trainer.is_fsdp_enabled:
        weigh(model, MCMCollator(extractor, config, "evaluate", cutoff="validation"), eval_rows)
    if model.model.state is not None:
        if trainer.is_fsdp_enabled:
            logger.warning("The customer state is not trained under FSDP: pre-train it in a run without FSDP.")
        else:
            learn_state(model, extractor, options, training.seed)
    facts: dict[str, Any] = {
        "run": run,
        "recipe": recipe.reasons,
        "validation": {},
        "seconds": clock.seconds,
        "max_seconds": options.max_seconds,
        "customers": len(train_rows),
        "steps": trainer.state.global_step,
        "targets": clock.targets,
        "parameters": sum(parameter.numel() for parameter in trained_parameters),
        "batch_size": training.train_batch_size * training.world_size * training.gradient_accumulation_steps,
        "max_events": extractor.max_events,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": manifest.event_schema.name,
        "versions": manifest.versions | {"modeling-mcm": __version__, "torch": torch.__version__},
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": training.world_size,
            "architecture": platform.machine(),
            "device": torch.cuda.get_device_name() if training.device.type == "cuda" else training.device.type,
        },
    }
    trainer.finish(PRETRAINING, facts)
    if trainer.is_world_process_zero():
        if eval_rows is not None and not trainer.is_fsdp_enabled:
            facts["validation"] = compare(model, extractor, options, min_history)
        trainer.write_record(PRETRAINING, facts, is_finished=True)


if __name__ == "__main__":
    main()
