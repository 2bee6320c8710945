# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training: which model the data ask for, which rows it reads, the training, a comparison with counting."""

import os
import platform
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import set_seed
from transformers.utils import logging

from modeling_mcm import __version__
from modeling_mcm.configuration_mcm import FEW_VALUES, MCMConfig
from modeling_mcm.data import PreparedManifest, load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows, unit_counts
from modeling_mcm.data.dataset import (
    FEATURE_EXTRACTOR_FOLDER,
    MANIFEST_FILE,
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
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.recipe import Recipe, recipe_for
from modeling_mcm.training.callbacks import FirstComparison
from modeling_mcm.training.fitting import count, learn_state, popularity, sampled_rows, trainable, weigh
from modeling_mcm.training.options import AUTO, NONE, ModelOptions, PretrainingArguments
from modeling_mcm.training.resuming import PRETRAINING, Start, alone, deciding_options, find_start
from modeling_mcm.training.sizes import config_of
from modeling_mcm.training.trainer import BEST_METRIC, MCMTrainer

logger = logging.get_logger(__name__)
# When the recipe evaluates, saves and ends. Of options that belong together: where one is given, but for the two that
# only say how much, the recipe says nothing about the others.
WHEN = {"eval_strategy", "save_strategy", "early_stopping_patience", "save_total_limit", "load_best_model_at_end"}
HOW_MUCH = {"early_stopping_patience", "save_total_limit"}
HOW_LONG = {"max_seconds", "max_steps", "eval_steps", "save_steps", "eval_delay", "metric_for_best_model"}
# What decides the weights besides the Trainer's options and the model's config.
DECIDING = ("scalar_lr_factor", "ema_decay", "max_seconds", "streaming", "streaming_window", "streaming_eval_shards")


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
    if nothing_to_evaluate or any(name in given for name in (WHEN - HOW_MUCH) | HOW_LONG):
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
        of_this_version(config_of(options.config))
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


def pretrain(options: ModelOptions, objective: Objective, training: PretrainingArguments, recipe: Recipe) -> None:
    """Trains or goes on training, and saves the model with its feature extractor.

    Args:
        options (`ModelOptions`): What is trained, on what.
        objective (`Objective`): What the loss weighs, and how targets are drawn.
        training (`PretrainingArguments`): How it is trained, with what the recipe chose.
        recipe (`Recipe`): From [`chosen_recipe`].

    Raises:
        RunError: The output folder holds another run, or the data lack what the model counts.
    """
    set_seed(training.seed)
    data = str(options.data)
    manifest = PreparedManifest.load(data)
    extractor = MCMFeatureExtractor.from_pretrained(Path(data) / FEATURE_EXTRACTOR_FOLDER)
    if options.max_events is not None:
        extractor.max_events = options.max_events
    config = read_config(options, extractor, recipe)
    for reason in recipe.reasons:
        logger.warning(reason)
    model = MCMForMultiTaskRecommendation(config)
    model.objective = objective
    model.initialize_from_popularity(popularity(data, config))
    own = {name: getattr(options, name) for name in DECIDING} | {"max_events": extractor.max_events}
    own |= asdict(objective)
    own["batch size"] = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    run = {"data": sha256_of(Path(data) / MANIFEST_FILE), "options": deciding_options(training) | own}
    with alone(str(training.output_dir), training.should_save):
        start = find_start(str(training.output_dir), PRETRAINING, run, config)
        if start.is_finished:
            logger.warning(f"{training.output_dir} holds this run, which is finished: nothing is left to train.")
        else:
            train(options, training, extractor, model, manifest, recipe, run, start)


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
