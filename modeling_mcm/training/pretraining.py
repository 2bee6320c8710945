# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training: the choice of a model by the data, the rows that it reads, the training, and a comparison with
counting baselines."""

import os
import platform
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from transformers import set_seed
from transformers.utils import logging

from modeling_mcm import __version__
from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data import PreparedData, read_known
from modeling_mcm.data.cases import CUTOFFS, load_columns
from modeling_mcm.data.collator import MCMCollator, PreparedRows, unit_counts
from modeling_mcm.data.dataset import END, MANIFEST_FILE
from modeling_mcm.evaluation.cases import cases_at, tasks_without_repeats
from modeling_mcm.evaluation.comparison import baseline_warnings, compare_with_counting, mean_values, read_cases
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.features_mcm import COUNTED
from modeling_mcm.files_mcm import write_json
from modeling_mcm.folders import file_digest
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import NEXT_VISIT, QUESTIONS, LabelScorer, ScoreNetwork

from .checkpoints import save_checkpoint
from .counting import Counts
from .encoder.recipe import Recipe, make_config, recipe_for
from .encoder.trainer import MCMTrainer
from .labels import categorical_features, fill_label_values, popularity
from .memory import return_freed_memory
from .options import AUTO, NONE, SHIPPED_NETWORK, ModelOptions, PretrainingArguments
from .resuming import (
    PRETRAINING,
    Facts,
    begin_run,
    check_processes,
    command_line,
    deciding_options,
    is_finished,
    last_whole_checkpoint,
    name_log,
    output_folder_lock,
    step_size,
)
from .scorer.calibrate import calibrate
from .scorer.counts import CountedLog, count_log
from .scorer.examples import Examples, draw_examples
from .scorer.features import compute_features
from .scorer.fit import ScoredCases, fit_network, fit_several
from .scorer.judge import judge_encoder, measure_encoder, score_by_counts
from .scorer.shipped import SHIPPED

logger = logging.get_logger(__name__)
# Options that say when the recipe evaluates, saves and ends. They belong together: if the command line sets one of
# them, except for the two numbers in HOW_MUCH, the recipe sets none of the others.
WHEN = {"eval_strategy", "save_strategy", "early_stopping_patience", "save_total_limit", "load_best_model_at_end"}
HOW_MUCH = {"early_stopping_patience", "save_total_limit"}
METRIC = "next_visit_ndcg@10"  # of the comparison with baselines
HOW_LONG = {"max_steps", "eval_steps", "save_steps", "eval_delay"}
# Config of a model without an encoder.
COUNTS_ALONE = {
    "scorer": True,
    "num_hidden_layers": 0,
    "hidden_size": 16,
    "num_attention_heads": 1,
    "readout_bias": False,
    "label_features": [],
}


def chosen_recipe(options: ModelOptions, named: Collection[str]) -> Recipe:
    """Chooses the recipe for a prepared data set; what the command line sets is not in it."""
    if options.recipe == NONE:
        return Recipe()
    data = PreparedData(options.data)
    extractor, manifest = data.extractor, data.manifest
    sizes = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True))
    largest = max(extractor.tasks, key=sizes.__getitem__)
    repeats = options.encoder == NONE or not tasks_without_repeats(data.rows, [largest])
    recipe = recipe_for(manifest.measures, sizes[largest], categorical_features(extractor), repeats)
    left_out = {*named}
    nothing_to_evaluate = manifest.counts.get("validation_cases") == 0
    if nothing_to_evaluate:
        logger.warning(f"{options.data} has no validation case, so nothing is evaluated and no epoch is the best.")
    if nothing_to_evaluate or left_out & (WHEN - HOW_MUCH | HOW_LONG):
        left_out |= WHEN
    if "fsdp" in named or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        left_out.add("ema_decay")
    training = {name: value for name, value in recipe.training.items() if name not in left_out}
    reasons = recipe.reasons
    if options.encoder == NONE:
        reasons = ["No encoder is trained, nor are options of its training read: scores come from counts alone."]
    if options.network == SHIPPED_NETWORK:
        reasons += ["Nothing is fitted to the log: its counts are scored by the network that ships with the package."]
    return replace(recipe, training=training, reasons=reasons)


def read_config(options: ModelOptions, extractor: MCMFeatureExtractor, recipe: Recipe) -> MCMConfig:
    """Makes the model's config. Overrides go before the recipe's choices, and these before the named config. Raises
    `ValueError` if an override is no field of `MCMConfig`."""
    overrides, known = {}, MCMConfig().to_dict()
    for override in options.config_overrides:
        name, separator, value = override.partition("=")
        if not separator or name not in known:
            raise ValueError(f"config_overrides: {override!r} is not name=value with a field of MCMConfig.")
        overrides[name] = yaml.safe_load(value)
    values = make_config(recipe.size if options.config == AUTO else options.config) | recipe.config
    values |= COUNTS_ALONE if options.encoder == NONE else {}
    values |= {
        "kind_feature": extractor.token_type_feature,
        "target_types": {extractor.token_type_feature: sorted(extractor.layout.targets)},
        "features": extractor.feature_names,
        "vocabulary_sizes": extractor.vocabulary_sizes,
        "values_digest": extractor.values_digest,
    }
    values["tasks"] = values.get("tasks") or extractor.tasks
    values["max_events"] = extractor.max_events if options.max_events is None else options.max_events
    if values.get("max_position_embeddings"):
        values["max_position_embeddings"] = values["max_events"]
    if values.get("state_size", MCMConfig.state_size):
        values |= {"state_features": None, "summed_features": extractor.summed_features}
    values |= {} if options.known is None else {"known": read_known(options.known)}
    config = MCMConfig(**(values | overrides))
    if config.state_features is None:  # what it counts by default, but for the profile, which is no event
        config.state_features = [name for name in config.counted_features.few if name not in extractor.layout.profile]
    return config


def read_rows(data: PreparedData, config: MCMConfig, ends: NDArray | None = None) -> PreparedRows:
    """Reads the rows to train on. `ends` `(rows,)` are the numbers of events to train on, by default all before the
    validation cutoff. Raises `ValueError` if no customer has two of them."""
    ends = np.asarray(data.rows["validation_end"]) if ends is None else ends
    several = np.flatnonzero(ends > 1)
    if not len(several):
        raise ValueError(
            f"None of the {len(ends)} customers has two events before the validation cutoff, so there is nothing to "
            "train on: move the cutoff dates of the event schema."
        )
    units = unit_counts(load_columns(data.rows, ["visits"]), ends, config)
    return PreparedRows(data.rows, several, units[several], ends)


@torch.no_grad()
def measure_loss(data: PreparedData, size: int, model: MCMForMultiTaskRecommendation) -> float:
    """Mean loss of the encoder's readout on all validation cases, in batches of some size."""
    cases, total = cases_at(data, "validation"), 0.0
    for chosen, batch in read_cases(model.config, data.extractor, data.rows, cases, size):
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        total += model(**inputs, parts=()).loss.item() * len(chosen)
    return total / len(cases)


def pretrain(options: ModelOptions, training: PretrainingArguments, recipe: Recipe) -> None:
    """Trains a model, or resumes an interrupted run, and saves the model with its feature extractor. Raises `RunError`
    if the output folder holds another run, or the data lack a table that the model needs."""
    set_seed(training.seed)
    # Where nothing is learned, nothing is held out
    data = PreparedData(options.data, END if options.network == SHIPPED_NETWORK else CUTOFFS[0])
    extractor = data.extractor
    config = read_config(options, extractor, recipe)
    for reason in recipe.reasons:
        logger.info(reason)
    model = MCMForMultiTaskRecommendation(config)
    model.sampled_labels = options.sampled_labels
    if config.readout_bias:
        model.initialize_from_popularity(popularity(data, config))
    names = "encoder", "network", "ema_decay", "target_half_life_days", "sampled_labels"
    own = {name: getattr(options, name) for name in names}
    run = {"data": file_digest(data.folder / MANIFEST_FILE), "options": deciding_options(training, config, own)}
    output = Path(str(training.output_dir))
    with output_folder_lock(output, training.should_save):
        check_processes(run)
        with training.main_process_first(local=False):
            finished = is_finished(output, PRETRAINING, run)
            if training.should_save and not finished:
                begin_run(output, PRETRAINING, run)
            checkpoint = None if finished else last_whole_checkpoint(output)
        if not finished:
            facts = {"recipe": recipe.reasons} | _train(options, training, data, model, checkpoint)
            if training.should_save:
                write_json(output / PRETRAINING, facts)


class CountsFit(NamedTuple):
    """What the fit of a scorer by counts alone leaves to its fit with an encoder.

    Attributes:
        log ([`CountedLog`]), examples ([`Examples`]): The log, and the examples of it.
        generator (`torch.Generator`): Of the draws of candidates.
        scored (`list[ScoredCases]`): Candidates of the validation cases by task.
    """

    log: CountedLog
    examples: Examples
    generator: torch.Generator
    scored: list[ScoredCases]


def fit_counts(model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int = 0) -> CountsFit:
    """Fits a model's scorer by counts alone, step by step. Raises `ValueError` if the training period has no example,
    or no target of any example is a candidate."""
    config, scorer, device = model.config, cast(LabelScorer, model.scorer), model.device
    generator, log = torch.Generator().manual_seed(seed), count_log(data, config, seed)
    examples = draw_examples(data, seed, bool(config.num_hidden_layers))
    return_freed_memory()
    draws = [compute_features(log, drawn, generator, device) for drawn in (examples.training, *examples.further)]
    return_freed_memory()
    for table, counts in zip(scorer.tables, log.counts, strict=True):
        table.load_state_dict(counts.make_tables().state_dict())
    validation = compute_features(log, examples.validation, generator, device, scorer)
    return_freed_memory()
    if examples.further:
        config.scorer_networks = len(draws)
        scorer.of_counts = ScoreNetwork(len(config.tasks), COUNTED, len(draws)).to(device)
        fit_several(scorer.of_counts, draws, len(np.unique(examples.training.row)), seed, device)
    else:
        fit_network(scorer.of_counts, draws[0], validation, seed, device, log.without_repeats)
    pairs = product(range(len(config.tasks)), range(QUESTIONS))
    calibrate(scorer, validation, pairs, examples.questions, device)
    scorer.fitted.fill_(True)
    scored = score_by_counts(scorer.of_counts, validation, log.without_repeats)
    return CountsFit(log, examples, generator, scored)


def fit_encoder(model: MCMForMultiTaskRecommendation, counted: CountsFit, seed: int = 0) -> None:
    """Fits the network of a model's scorer that reads the trained encoder, too, and lets the tasks and questions read
    it that gain by it."""
    log, examples, generator, _ = counted
    scorer, device = cast(LabelScorer, model.eval().scorer), model.device
    if examples.validation is None or examples.held_out is None:
        logger.warning("Without validation cases nobody knows what the encoder is worth, so it is not used.")
        return
    network, held_out = cast(ScoreNetwork, scorer.of_readout), examples.held_out
    training = compute_features(log, held_out, generator, device, encoder=model) if len(held_out.row) else []
    if not any(bool(table.is_target[:, NEXT_VISIT].any()) for table in training):
        logger.warning(
            f"{len(held_out.row)} visits were held out to fit scores that read the encoder, too few to say what it is "
            "worth, so it is not used: move the cutoffs of the event schema, or lower min_history."
        )
        return
    validation = compute_features(log, examples.validation, generator, device, scorer, model)
    fit_network(network, training, validation, seed, device, log.without_repeats, scorer.of_counts)
    pairs = judge_encoder(model, log, examples)
    for pair in pairs:
        scorer.reads[pair] = True
    calibrate(scorer, validation, pairs, examples.questions, device)


def _train(
    options: ModelOptions,
    training: PretrainingArguments,
    data: PreparedData,
    model: MCMForMultiTaskRecommendation,
    checkpoint: str | None,
) -> Facts:
    """Trains a model, saves it, compares it with baselines on the validation cases, and warns of tasks on which it is
    worse. Returns the facts of the run."""
    is_shipped = options.network == SHIPPED_NETWORK
    config, evaluates, seconds = model.config, training.eval_strategy != "no" and not is_shipped, 0.0
    counted = None if is_shipped or model.scorer is None else fit_counts(model, data, training.seed)
    measure = partial(measure_loss, data, training.per_device_eval_batch_size)
    if config.num_hidden_layers and counted is not None and counted.examples.validation is not None:
        cases = counted.examples.validation
        measure = partial(measure_encoder, log=counted.log, examples=cases, scored=counted.scored)
    if evaluates:
        cases_at(data, "validation")  # which raises where there is none
    train_rows = read_rows(data, config, counted.examples.ends if counted else None)
    if not config.num_hidden_layers:
        counted = None  # which an encoder alone goes on with, and which is large
    return_freed_memory()
    if checkpoint is None and config.label_features:
        for task, decided in fill_label_values(model, data.rows).items():
            logger.info(f"A label of {task} determines: {', '.join(decided) or 'no other feature'}.")
    trainer = MCMTrainer(
        model=model,
        args=training,
        train_dataset=train_rows,
        processing_class=data.extractor,
        train_collator=MCMCollator(
            data.extractor, config, "train", seed=training.seed, half_life=options.target_half_life_days
        ),
        measure=measure,
        ema_decay=options.ema_decay if config.num_hidden_layers else None,
    )
    start = f"going on from {checkpoint}" if checkpoint else "starting anew"
    logger.info(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_rows):,} customers, {start}")
    if model.scorer is not None:
        model.scorer.requires_grad_(False)
    if config.num_hidden_layers:
        seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
        if trainer.is_fsdp_enabled:
            model = trainer.gather_model()
        if counted is not None:
            fit_encoder(model, counted, training.seed)
    means = {}
    if evaluates and trainer.is_world_process_zero():
        results = compare_with_counting(model.eval(), data.extractor, data, "validation")
        means = {name: values.dropna().to_dict() for name, values in mean_values(results, METRIC).iterrows()}
        for method, by_task in means.items():
            words = ", ".join(f"{task} {mean:.4f}" for task, mean in by_task.items())
            logger.info(f"{METRIC} on validation, {method}: {words}")
        for warning in baseline_warnings(results, METRIC):
            logger.warning(warning)
    return_freed_memory()
    # What was judged was learned until the validation cutoff; what is used counts the log to its end
    model.config.learned = {**SHIPPED} if is_shipped else Counts(data).describe()
    if training.should_save:
        counts = Counts.of(data, END)
        deployed, extractor = counts.give(model, data.extractor, forecasts=True, seed=training.seed)
        save_checkpoint(str(training.output_dir), deployed, extractor)
        name_log(Path(str(training.output_dir)), data.folder)
    trainer.save_state()
    # Only parameters that had a gradient: tasks and features that are not in use have tables, too.
    optimized = trainer.optimizer.state if trainer.optimizer else ()
    return {
        "validation": means,
        "seconds": seconds,
        "customers": len(train_rows),
        "steps": trainer.state.global_step,
        "parameters": sum(parameter.numel() for parameter in optimized),
        "batch_size": step_size(training),
        "seed": training.seed,
        "command": command_line(),
        "data": data.schema.name,
        "versions": data.manifest.versions | {"modeling-mcm": __version__, "torch": torch.__version__},
        "machine": {
            "threads": torch.get_num_threads(),
            "processes": training.world_size,
            "architecture": platform.machine(),
            "device": torch.cuda.get_device_name() if training.device.type == "cuda" else training.device.type,
        },
    }
