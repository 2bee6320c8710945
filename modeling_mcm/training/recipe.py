# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe: chooses model and training settings of pre-training from measures of the log.

A log with many repeats (groceries) and a log of single items (reviews, films) need different models. Preparation
computes the measures (`modeling_mcm.preparation.counts.measure`), and only this file reads them. `run_pretrain` prints
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
# Config of models that read events. `run_pretrain` replaces 300 by the longest input of the data.
EVENTS: dict[str, Any] = {"encoder_unit": "event", "max_position_embeddings": 300, "attention_window": None}


@dataclass(frozen=True)
class Recipe:
    """Default settings of pre-training for a data set.

    Attributes:
        config (`dict[str, Any]`): fields of `MCMConfig`.
        training (`dict[str, Any]`): options of `run_pretrain`.
        reasons (`list[str]`): a sentence on the reason of each group of settings.
    """

    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def recipe_for(measures: Mapping[str, Any], label_sizes: Mapping[str, int], features: Sequence[str] = ()) -> Recipe:
    """Chooses the settings of pre-training by the measures of a data set.

    Args:
        measures (`Mapping[str, Any]`): measures in the manifest of the data set, as
            `modeling_mcm.preparation.counts.measure` returns them. Empty for data sets of earlier versions, for which
            nothing is chosen.
        label_sizes (`Mapping[str, int]`): by task the number of label ids.
        features (`Sequence[str]`): categorical features of events without the token type; candidates for
            `label_features`.

    Returns:
        [`Recipe`].
    """
    if not measures or not measures["moments"]:
        return Recipe(reasons=["The data set has no measures, so nothing is chosen by them: prepare it again."])
    tasks = {task: counts for task, counts in measures["tasks"].items() if counts["met"] and task in label_sizes}
    shares = {task: counts["repeats"] / counts["met"] for task, counts in tasks.items()}
    met = sum(counts["met"] for counts in tasks.values())
    repeats = sum(counts["repeats"] for counts in tasks.values()) / max(met, 1)
    a_moment, a_visit = measures["targets"] / measures["moments"], measures["targets"] / measures["visits"]
    share_of_one_visit = measures["one_visit"] / measures["customers"]
    labels = max((label_sizes[task] for task in tasks), default=0)
    reads_visits = (a_moment > SET or a_visit > SEVERAL) and share_of_one_visit < ONE_VISIT
    repeats_are_frequent = repeats >= MANY_REPEATS

    config: dict[str, Any] = {"augmentation": "all_prefixes"}
    reasons = []
    config |= VISITS if reads_visits else EVENTS
    reasons.append(
        f"A visit has {a_visit:.1f} events to predict and {share_of_one_visit:.0%} of the customers have one visit: "
        + ("visits are read, and the next visit is predicted." if reads_visits else "events are read and predicted.")
    )
    has_memory = repeats >= SOME_REPEATS
    config |= {"repeat_memory": has_memory, "readout": "attentional" if has_memory else "last"}
    reasons.append(
        f"{repeats:.0%} of the labels in a visit occurred in an earlier visit: "
        + ("a repeat memory counts it." if has_memory else "no repeat memory; the last events decide.")
    )
    config |= {
        "event_dropout_prob": 0.2 if repeats_are_frequent else 0.0,
        "hidden_dropout_prob": 0.1 if repeats_are_frequent else 0.3,
        "attention_probs_dropout_prob": 0.0 if repeats_are_frequent else 0.1,
    }
    reasons.append(
        "Repeats are frequent: the order of the best labels is trained too, and the last months weigh most."
        if repeats_are_frequent
        else "Repeats are not frequent: cross-entropy alone, equal weights for all times, and more dropout."
    )
    followers = [task for task in tasks if a_moment <= SET]
    related = [
        task for task, share in shares.items() if share >= MANY_REPEATS and tasks[task]["labels"] <= MOST_RELATED
    ]
    config |= {"follower_tasks": followers, "related_tasks": related if reads_visits else []}
    if followers:
        reasons.append(
            f"Events follow each other one by one: the followers of each label are counted, for {_words(followers)}."
        )
    if config["related_tasks"]:
        reasons.append(f"Habits and related labels are computed for {_words(config['related_tasks'])}.")
    if features and not repeats_are_frequent:
        config["label_features"] = list(features)
        reasons.append("A label's embedding includes the features that it determines, such as an item's category.")
    training: dict[str, Any] = {
        "ranking_loss_weight": 1.0 if repeats_are_frequent else 0.0,
        "target_half_life_days": 30.0 if repeats_are_frequent else 0.0,
    }
    if labels > MANY_LABELS and not repeats_are_frequent:
        training["sampled_labels"] = SAMPLE
        reasons.append(f"{labels:,} labels: a training step scores those of its batch and {SAMPLE:,} others.")
    config["state_size"] = STATE_SIZE
    reasons.append(f"The customer embedding is a state of {STATE_SIZE} numbers, trained last, with forecasts.")
    training |= {"learning_rate": 0.001, "ema_decay": 0.99}
    training |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    training |= {"early_stopping_patience": PATIENCE if repeats_are_frequent else PATIENCE_WITHOUT_REPEATS}
    training |= {"save_total_limit": 2, "load_best_model_at_end": True}
    if repeats_are_frequent:
        training |= {"lr_scheduler_type": "constant_with_warmup", "num_train_epochs": 6.0 if reads_visits else 12.0}
        training |= {"per_device_train_batch_size": 16}
    else:
        training |= {"lr_scheduler_type": "constant_with_warmup", "num_train_epochs": 60.0}
        training |= {"per_device_train_batch_size": 64 if measures["targets"] < 50 * measures["customers"] else 32}
    reasons.append(
        f"At most {training['num_train_epochs']:g} epochs; {training['early_stopping_patience']} in a row without a "
        "better NDCG on validation end the training."
    )
    return Recipe(config, training, reasons)


def _words(tasks: list[str]) -> str:
    """Names of tasks as words: "a, b and c"."""
    return f"{', '.join(tasks[:-1])} and {tasks[-1]}" if len(tasks) > 1 else tasks[0]
