# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe: chooses model and training settings of pre-training from measures of the log.

A log with many repeats (groceries) and a log of single items (reviews, films) need different models. Preparation
computes the measures (`modeling_mcm.preparation.counts.measure`), and only this file reads them. `mcm pretrain` prints
a sentence for every choice; its options override the choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Share of repeats (labels of a visit that occurred before) from which a model has a repeat memory, and from which
# repeats are frequent.
SOME_REPEATS, MANY_REPEATS = 0.05, 0.3
# Share of customers with a single visit from which the next visit is no target, because most customers have none.
ONE_VISIT = 0.5
# Mean number of target events of a moment above which a visit is read as a set, and of a visit above which it is one
# unit.
SET, SEVERAL = 2.0, 1.5
MOST_RELATED = 10_000  # largest number of labels of a task for which related labels are computed
MANY_LABELS, SAMPLE = 8_000, 2_000  # number of labels from which training samples labels, and size of the sample
STATE_SIZE = 128
# Number of evaluations without a better NDCG after which training ends. With few repeats NDCG grows slowly, over many
# epochs, and noise would end the training too early.
PATIENCE, PATIENCE_WITHOUT_REPEATS = 2, 4
# Config of models that read visits. They need no positions: a feature gives the days since the visit before.
VISITS: dict[str, Any] = {"encoder_unit": "visit", "max_position_embeddings": None, "attention_window": 64}
# Config of models that read events. `mcm pretrain` replaces 300 by the longest input of the data.
EVENTS: dict[str, Any] = {"encoder_unit": "event", "max_position_embeddings": 300, "attention_window": None}


@dataclass(frozen=True)
class Recipe:
    """Default settings of pre-training for a data set."""

    config: dict[str, Any] = field(default_factory=dict)  # fields of `MCMConfig`
    training: dict[str, Any] = field(default_factory=dict)  # options of `mcm pretrain`
    reasons: list[str] = field(default_factory=list)  # a sentence on the reason of each group of settings


def recipe_for(measures: Mapping[str, Any], label_sizes: Mapping[str, int], features: Sequence[str] = ()) -> Recipe:
    """Chooses the settings of pre-training by the measures in a data set's manifest; without any, nothing is chosen.
    `features` are candidates for `label_features`: categorical features of events without the token type."""
    if not measures or not measures["moments"]:
        return Recipe(reasons=["The data set has no measures, so nothing is chosen by them: prepare it again."])
    log, recipe = _Log(measures, label_sizes, features), Recipe({"augmentation": "all_prefixes"})
    first = (_choose_unit, _choose_memory, _choose_objective, _choose_label_relations)
    for choose in (*first, _choose_sampling, _choose_state, _choose_schedule):
        choices = choose(log)
        recipe.config.update(choices.config)
        recipe.training.update(choices.training)
        recipe.reasons.extend(choices.reasons)
    return recipe


class _Log:
    """What the choices depend on."""

    def __init__(self, measures: Mapping[str, Any], label_sizes: Mapping[str, int], features: Sequence[str]):
        self.features = list(features)
        self.tasks = {task: n for task, n in measures["tasks"].items() if n["met"] and task in label_sizes}
        self.labels = max((label_sizes[task] for task in self.tasks), default=0)
        met = sum(counts["met"] for counts in self.tasks.values())
        self.repeats = sum(counts["repeats"] for counts in self.tasks.values()) / max(met, 1)
        targets = measures["targets"]
        self.targets_of_moment, self.targets_of_visit = targets / measures["moments"], targets / measures["visits"]
        self.one_visit = measures["one_visit"] / measures["customers"]
        self.has_short_histories = targets < 50 * measures["customers"]

    @property
    def reads_visits(self) -> bool:
        """Whether a visit is one unit."""
        are_sets = self.targets_of_moment > SET or self.targets_of_visit > SEVERAL
        return are_sets and self.one_visit < ONE_VISIT

    @property
    def repeats_often(self) -> bool:
        return self.repeats >= MANY_REPEATS


def _choose_unit(log: _Log) -> Recipe:
    reason = (
        f"A visit has {log.targets_of_visit:.1f} events to predict and {log.one_visit:.0%} of the customers have one "
        "visit: "
    )
    if log.reads_visits:
        return Recipe(VISITS, reasons=[reason + "visits are read, and the next visit is predicted."])
    return Recipe(EVENTS, reasons=[reason + "events are read and predicted."])


def _choose_memory(log: _Log) -> Recipe:
    reason = f"{log.repeats:.0%} of the labels in a visit occurred in an earlier visit: "
    if log.repeats >= SOME_REPEATS:
        config = {"repeat_memory": True, "readout": "attentional"}
        return Recipe(config, reasons=[reason + "a repeat memory counts it."])
    config = {"repeat_memory": False, "readout": "last"}
    return Recipe(config, reasons=[reason + "no repeat memory; the last events decide."])


def _choose_objective(log: _Log) -> Recipe:
    """Dropout, and what the loss consists of."""
    if log.repeats_often:
        dropped = 0.2 if log.reads_visits else 0.0  # events that are units are never dropped
        return Recipe(
            {"event_dropout_prob": dropped, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0},
            {"ranking_loss_weight": 1.0, "target_half_life_days": 30.0},
            ["Repeats are frequent: the order of the best labels is trained too, and the last months weigh most."],
        )
    return Recipe(
        {"event_dropout_prob": 0.0, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.1},
        {"ranking_loss_weight": 0.0, "target_half_life_days": 0.0},
        ["Repeats are not frequent: cross-entropy alone, equal weights for all times, and more dropout."],
    )


def _choose_label_relations(log: _Log) -> Recipe:
    """Followers, related labels, and the features that a label's embedding includes."""
    followers = [task for task in log.tasks if log.targets_of_moment <= SET]
    related = [
        task
        for task, counts in log.tasks.items()
        if counts["repeats"] / counts["met"] >= MANY_REPEATS and counts["labels"] <= MOST_RELATED
    ]
    choices = Recipe({"follower_tasks": followers, "related_tasks": related if log.reads_visits else []})
    if followers:
        choices.reasons.append(
            f"Events follow each other one by one: the followers of each label are counted, for {_words(followers)}."
        )
    if choices.config["related_tasks"]:
        choices.reasons.append(f"Habits and related labels are computed for {_words(related)}.")
    if log.features and not log.repeats_often:
        choices.config["label_features"] = log.features
        choices.reasons.append(
            "A label's embedding includes the features that it determines, such as an item's category."
        )
    return choices


def _choose_sampling(log: _Log) -> Recipe:
    if log.labels <= MANY_LABELS or log.repeats_often:
        return Recipe()
    reason = f"{log.labels:,} labels: a training step scores those of its batch and {SAMPLE:,} others."
    return Recipe(training={"sampled_labels": SAMPLE}, reasons=[reason])


def _choose_state(log: _Log) -> Recipe:
    reason = f"The customer embedding is a state of {STATE_SIZE} numbers, trained last, with forecasts."
    return Recipe({"state_size": STATE_SIZE}, reasons=[reason])


def _choose_schedule(log: _Log) -> Recipe:
    """Learning rate, batch size, and when training evaluates, saves and ends."""
    training: dict[str, Any] = {"learning_rate": 0.001, "ema_decay": 0.99}
    training |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    training |= {"early_stopping_patience": PATIENCE if log.repeats_often else PATIENCE_WITHOUT_REPEATS}
    training |= {"save_total_limit": 2, "load_best_model_at_end": True}
    training |= {"lr_scheduler_type": "constant_with_warmup"}
    if log.repeats_often:
        training |= {"num_train_epochs": 6.0 if log.reads_visits else 12.0, "per_device_train_batch_size": 16}
    else:
        training |= {"num_train_epochs": 60.0, "per_device_train_batch_size": 64 if log.has_short_histories else 32}
    reason = (
        f"At most {training['num_train_epochs']:g} epochs; {training['early_stopping_patience']} in a row without a "
        "better NDCG on validation end the training."
    )
    return Recipe(training=training, reasons=[reason])


def _words(tasks: list[str]) -> str:
    """Names of tasks as words: "a, b and c"."""
    return f"{', '.join(tasks[:-1])} and {tasks[-1]}" if len(tasks) > 1 else tasks[0]
