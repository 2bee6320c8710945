# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training: the choice of a model by the data, the rows that it reads, the training, and a comparison with
counting baselines."""

import os
import platform
import sys
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from transformers import set_seed
from transformers.utils import logging

from modeling_mcm import __version__
from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length, unit_counts
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.evaluation.cases import cases_at, comparison_cases, tasks_without_repeats
from modeling_mcm.evaluation.comparison import (
    FIRST_BASELINES,
    STRONG_BASELINES,
    baseline_warnings,
    collect_values,
    counting_baselines,
)
from modeling_mcm.evaluation.model import model_values
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.losses_mcm import Objective
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.fitting import describe_customers, fill_label_values, popularity, trainable
from modeling_mcm.training.options import AUTO, NONE, ModelOptions, PretrainingArguments
from modeling_mcm.training.recipe import Recipe, recipe_for
from modeling_mcm.training.resuming import (
    PRETRAINING,
    Start,
    deciding_options,
    find_start,
    output_folder_lock,
    step_size,
)
from modeling_mcm.training.scorer import ScorerFit
from modeling_mcm.training.sizes import make_config
from modeling_mcm.training.trainer import MCMTrainer

logger = logging.get_logger(__name__)
# Options that say when the recipe evaluates, saves and ends. They belong together: if the command line sets one of
# them, except for the two numbers in HOW_MUCH, the recipe sets none of the others.
WHEN = {"eval_strategy", "save_strategy", "early_stopping_patience", "save_total_limit", "load_best_model_at_end"}
HOW_MUCH = {"early_stopping_patience", "save_total_limit"}
METRIC = "next_visit_ndcg@10"  # of the comparison with baselines
HOW_LONG = {"max_steps", "eval_steps", "save_steps", "eval_delay"}
# Config of a model without an encoder.
COUNTS_ALONE: dict[str, Any] = {"scorer": True, "num_hidden_layers": 0, "hidden_size": 16, "num_attention_heads": 1}
COUNTS_ALONE |= {"readout_bias": False, "label_features": []}
# Options that decide the weights, besides those of the Trainer and of the model's config.
PRETRAINING_OPTIONS = ("encoder", "ema_decay")


def chosen_recipe(options: ModelOptions, named: Collection[str]) -> Recipe:
    """Chooses the recipe for a prepared data set; what the command line sets is not in it."""
    if options.recipe == NONE:
        return Recipe()
    data = PreparedData(str(options.data))
    extractor, manifest = data.extractor, data.manifest
    sizes = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True))
    own = {feature["name"] for feature in extractor.features if feature.get("profile")} | {
        extractor.token_type_feature
    }
    features = [name for name in extractor.feature_names if name in extractor.vocabularies and name not in own]
    labels = {task: sizes[task] for task in extractor.tasks}
    repeats = options.encoder == NONE or not tasks_without_repeats(data.rows, [max(labels, key=labels.__getitem__)])
    recipe = recipe_for(manifest.measures, labels, features, repeats)
    training = {name: value for name, value in recipe.training.items() if name not in named}
    nothing_to_evaluate = manifest.counts.get("validation_cases") == 0
    if nothing_to_evaluate:
        logger.warning(f"{options.data} has no validation case, so nothing is evaluated and no epoch is the best.")
    if nothing_to_evaluate or any(name in named for name in (WHEN - HOW_MUCH) | HOW_LONG):
        training = {name: value for name, value in training.items() if name not in WHEN}
    if "fsdp" in named or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        training.pop("ema_decay", None)
    reasons = ["No encoder is trained: scores come from counts alone."] if options.encoder == NONE else recipe.reasons
    return Recipe(recipe.size, recipe.config, training, reasons)


def read_config(options: ModelOptions, extractor: MCMFeatureExtractor, recipe: Recipe | None = None) -> MCMConfig:
    """Makes the model's config. Overrides go before the recipe's choices, and these before the named config. Raises
    `ValueError` if an override is no field of `MCMConfig`."""
    values: dict[str, Any] = {}
    known = MCMConfig().to_dict()
    for override in options.config_overrides:
        name, separator, value = override.partition("=")
        if not separator or name not in known:
            raise ValueError(f"config_overrides: {override!r} is not name=value with a field of MCMConfig.")
        values[name] = yaml.safe_load(value)
    config = (
        make_config((recipe or Recipe()).size if options.config == AUTO else options.config)
        | (recipe.config if recipe else {})
        | (COUNTS_ALONE if options.encoder == NONE else {})
        | {
            "kind_feature": extractor.token_type_feature,
            "features": extractor.feature_names,
            "vocabulary_sizes": extractor.vocabulary_sizes,
            "values_digest": extractor.values_digest,
        }
    )
    config["tasks"] = config.get("tasks") or extractor.tasks
    if config.get("max_position_embeddings"):
        config["max_position_embeddings"] = extractor.max_events  # as many as events are read
    if config.get("state_size", MCMConfig.state_size):
        profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
        bare = MCMConfig(features=extractor.feature_names, vocabulary_sizes=extractor.vocabulary_sizes)
        few = [name for name in bare.counted_features["state_features"] if name not in profile]
        config |= {
            "state_features": few,
            "projected_features": None,
            "component_features": None,
            "summed_features": extractor.summed_features,
        }
    return MCMConfig(**(config | values))


def read_rows(data: PreparedData, config: MCMConfig, ends: NDArray | None = None) -> PreparedRows:
    """Reads the rows to train on. `ends` `(rows,)` are the numbers of events to train on, by default all before the
    validation cutoff."""
    rows = data.rows
    ends = np.asarray(rows["validation_end"]) if ends is None else ends
    several = trainable(ends)
    return PreparedRows(rows, several, unit_counts(rows, ends, config, data.extractor.max_events)[several], ends)


@torch.no_grad()
def measure_loss(data: PreparedData, size: int, model: MCMForMultiTaskRecommendation) -> float:
    """Mean loss of the encoder's readout on all validation cases, in batches of some size."""
    config, as_of = model.config, data.schema.scoring_time("validation")
    collator = MCMCollator(data.extractor, config, "evaluate", cutoff="validation", as_of=as_of)
    rows = PreparedRows(data.rows, cases_at(data, "validation").rows)
    units, total = unit_counts(data.rows, data.rows["validation_end"], config, data.extractor.max_events), 0.0
    for chosen in batches_by_length(units[rows.indices], size):
        batch = collator(rows.__getitems__(chosen.tolist()))
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        total += model(**inputs, parts=()).loss.item() * len(chosen)
    return total / len(rows)


def _compare(data: PreparedData, model: MCMForMultiTaskRecommendation) -> dict[str, dict[str, float]]:
    """Compares the trained model with baselines on the validation cases, and warns of tasks on which it is worse."""
    rows, cases = data.rows, comparison_cases(data, "validation")
    sizes = {task: size for task, size in model.config.label_sizes.items() if task in cases.targets}
    names = [*FIRST_BASELINES, *STRONG_BASELINES]
    try:
        results: Any = counting_baselines(rows, cases, sizes, names)
    except ImportError as error:
        logger.warning(f"The model is not compared with counting: {error}")
        return {}
    results["MCM"] = model_values(model.eval(), data.extractor, rows, cases, list(sizes))
    means: dict[str, dict[str, float]] = {}
    for method, by_task in results.items():
        values = {task: metrics[METRIC] for task, metrics in by_task.items()}
        means[method] = {task: float(np.nanmean(each)) for task, each in values.items() if not np.isnan(each).all()}
        words = ", ".join(f"{task} {mean:.4f}" for task, mean in means[method].items())
        logger.info(f"{METRIC} on validation, {method}: {words}")
    for warning in baseline_warnings(collect_values(results, METRIC)):
        logger.warning(warning)
    return means


def pretrain(options: ModelOptions, objective: Objective, training: PretrainingArguments, recipe: Recipe) -> None:
    """Trains a model, or resumes an interrupted run, and saves the model with its feature extractor. Raises `RunError`
    if the output folder holds another run, or the data lack a table that the model needs."""
    set_seed(training.seed)
    data = PreparedData(str(options.data))
    extractor = data.extractor
    if options.max_events is not None:
        extractor.max_events = options.max_events
    config = read_config(options, extractor, recipe)
    for reason in recipe.reasons:
        logger.info(reason)
    model = MCMForMultiTaskRecommendation(config)
    model.objective = objective
    model.initialize_from_popularity(popularity(data, config))
    own = {name: getattr(options, name) for name in PRETRAINING_OPTIONS} | {"max_events": extractor.max_events}
    own |= asdict(objective)
    run = {"data": file_digest(data.folder / MANIFEST_FILE), "options": deciding_options(training, config, own)}
    with output_folder_lock(str(training.output_dir), training.should_save):
        start = find_start(training, PRETRAINING, run)
        if not start.is_finished:
            _train(options, training, data, model, recipe, start)


def _train(
    options: ModelOptions,
    training: PretrainingArguments,
    data: PreparedData,
    model: MCMForMultiTaskRecommendation,
    recipe: Recipe,
    start: Start,
) -> None:
    """Trains a model, compares it with baselines, and writes it with the record of the run, pretraining.json."""
    config = model.config
    fit = None if model.scorer is None else ScorerFit(model, data, training.seed)
    train_rows = read_rows(data, config, fit.ends if fit else None)
    trainer = _make_trainer(options, training, data, model, train_rows, fit)
    logger.info(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_rows):,} customers, {start}")
    if fit is not None:
        fit.scorer.requires_grad_(False)
        words = ", ".join(f"{task} {value:.4f}" for task, value in zip(config.tasks, fit.counted, strict=True))
        logger.info(
            f"Counts alone rank validation cases with an NDCG@10 of {words}. Targets are the labels that training "
            "knows; the comparison at the end counts the others, too, as missed."
        )
    if config.num_hidden_layers:
        if start.checkpoint is None and config.label_features:
            for task, decided in fill_label_values(model, data.rows).items():
                logger.info(f"A label of {task} determines: {', '.join(decided) or 'no other feature'}.")
        trainer.train(resume_from_checkpoint=start.checkpoint)
        if trainer.is_fsdp_enabled:
            model = trainer.gather_model()
        if fit is not None:
            fit.model = model
            fit.finish()
    if model.model.state is not None:
        describe_customers(model, data, training.seed)
    trainer.save_model()
    trainer.save_state()
    is_compared = training.eval_strategy != "no" and trainer.is_world_process_zero()
    validation = _compare(data, model) if is_compared else {}
    facts = {"recipe": recipe.reasons, "validation": validation} | _facts_of_run(options, data, trainer)
    trainer.finish(PRETRAINING, facts)


def _make_trainer(
    options: ModelOptions,
    training: PretrainingArguments,
    data: PreparedData,
    model: MCMForMultiTaskRecommendation,
    rows: PreparedRows,
    fit: ScorerFit | None,
) -> MCMTrainer:
    """Makes the trainer of a model for the rows to train on. Raises `ValueError` if there is nothing to evaluate, and
    evaluations were asked for."""
    extractor, config = data.extractor, model.config
    measure = fit.measure_encoder if fit else partial(measure_loss, data, training.per_device_eval_batch_size)
    evaluates = training.eval_strategy != "no"
    if evaluates:
        cases_at(data, "validation")  # which raises where there is none
    return MCMTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        processing_class=extractor,
        train_collator=MCMCollator(extractor, config, "train", seed=training.seed, objective=model.objective),
        measure=measure if evaluates else None,
        ema_decay=options.ema_decay if config.num_hidden_layers else None,
    )


def _facts_of_run(options: ModelOptions, data: PreparedData, trainer: MCMTrainer) -> dict[str, Any]:
    """What the record of a run says of its training, data and machine."""
    training: Any = trainer.args
    train_rows: Any = trainer.train_dataset
    # Only parameters that had a gradient: tasks and features that are not in use have tables, too.
    trained_parameters: Any = trainer.optimizer.state if trainer.optimizer else ()
    return {
        "seconds": trainer.clock.seconds,
        "customers": len(train_rows),
        "steps": trainer.state.global_step,
        "targets": trainer.clock.targets,
        "parameters": sum(parameter.numel() for parameter in trained_parameters),
        "batch_size": step_size(training),
        "max_events": data.extractor.max_events,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": data.schema.name,
        "versions": data.manifest.versions | {"modeling-mcm": __version__, "torch": torch.__version__},
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": training.world_size,
            "architecture": platform.machine(),
            "device": torch.cuda.get_device_name() if training.device.type == "cuda" else training.device.type,
        },
    }
