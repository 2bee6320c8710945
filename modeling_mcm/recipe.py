# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How a log is learned from: one rule from what preparation measured to the choices of pre-training.

A log of repeats (groceries) and a catalogue of single items (reviews, films) want different models. What decides is
measured once, in preparation (`modeling_mcm.preparation.counts.measure`), and this file is the one place that reads
it. Every choice comes with the sentence that `run_pretrain` prints, and can be overridden there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Shares of visits with a label that was met before, from which on repeats are remembered; and from which on they rule.
SOME_REPEATS, MANY_REPEATS = 0.05, 0.3
# Share of customers with a single visit, from which on the next visit is no target, for most customers have none.
ONE_VISIT = 0.5
# Target events of a moment and of a visit on average, above which a visit is read as a set, or as one unit.
SET, SEVERAL = 2.0, 1.5
MOST_RELATED = 10_000  # labels of a task whose relations are solved
MANY_LABELS, SAMPLE = 8_000, 2_000  # labels from which on a sample of so many is scored in training
STATE_SIZE = 128
# Evaluations in a row without a better NDCG that end the training. Where repeats do not rule, NDCG grows slowly, over
# many epochs, and its noise would end the training early.
PATIENCE, PATIENCE_WITHOUT_REPEATS = 2, 4
# What is read. A visit says how long ago the one before was, so its place in the history says nothing more.
VISITS: dict[str, Any] = {"encoder_unit": "visit", "max_position_embeddings": None, "attention_window": 64}
# Of events there are positions, as many as the longest input has: `run_pretrain` puts the number of the data here.
EVENTS: dict[str, Any] = {"encoder_unit": "event", "max_position_embeddings": 300, "attention_window": None}


@dataclass(frozen=True)
class Recipe:
    """What pre-training does where nobody said otherwise.

    Attributes:
        config: fields of `MCMConfig`.
        training: options of `run_pretrain`.
        reasons: why, a sentence each.
    """

    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def recipe_for(measures: Mapping[str, Any], label_sizes: Mapping[str, int], features: Sequence[str] = ()) -> Recipe:
    """Chooses by the measures of a data set.

    Args:
        measures: of the manifest, as `measure` in `modeling_mcm.preparation.counts` says; empty for a data set that
            was prepared before there were measures, for which nothing is chosen.
        label_sizes: for each task its number of label ids.
        features: categorical features of events besides the token type, which labels may decide.

    Returns:
        The choices, with a sentence for each group of them.
    """
    if not measures or not measures["moments"]:
        return Recipe(reasons=["The data set has no measures, so nothing is chosen by them: prepare it again."])
    tasks = {task: found for task, found in measures["tasks"].items() if found["met"] and task in label_sizes}
    shares = {task: found["repeats"] / found["met"] for task, found in tasks.items()}
    repeats = sum(found["repeats"] for found in tasks.values()) / max(sum(found["met"] for found in tasks.values()), 1)
    a_moment, a_visit = measures["targets"] / measures["moments"], measures["targets"] / measures["visits"]
    alone = measures["one_visit"] / measures["customers"]
    labels = max((label_sizes[task] for task in tasks), default=0)
    visits = (a_moment > SET or a_visit > SEVERAL) and alone < ONE_VISIT
    rules = repeats >= MANY_REPEATS

    config: dict[str, Any] = {"augmentation": "all_prefixes"}
    reasons = []
    config |= VISITS if visits else EVENTS
    reasons.append(
        f"A visit has {a_visit:.1f} events to predict and {alone:.0%} of the customers have one visit: "
        + ("visits are read, and the next visit is predicted." if visits else "events are read and predicted.")
    )
    remembers = repeats >= SOME_REPEATS
    config |= {"repeat_memory": remembers, "readout": "attentional" if remembers else "last"}
    reasons.append(
        f"{repeats:.0%} of what is met in a visit was met before: "
        + ("a repeat memory counts it." if remembers else "no repeat memory; the last events decide.")
    )
    config |= {
        "event_dropout_prob": 0.2 if rules else 0.0,
        "hidden_dropout_prob": 0.1 if rules else 0.3,
        "attention_probs_dropout_prob": 0.0 if rules else 0.1,
    }
    reasons.append(
        "Repeats rule: the order of the best labels is trained too, and the last months most."
        if rules
        else "Repeats do not rule: cross-entropy alone, all times alike, and more dropout."
    )
    followers = [task for task in tasks if a_moment <= SET]
    related = [
        task for task, share in shares.items() if share >= MANY_REPEATS and tasks[task]["labels"] <= MOST_RELATED
    ]
    config |= {"follower_tasks": followers, "related_tasks": related if visits else []}
    if followers:
        reasons.append(
            f"Events follow each other one by one: what follows a label is counted, for {_named(followers)}."
        )
    if config["related_tasks"]:
        reasons.append(f"Habits and what goes together are solved for {_named(config['related_tasks'])}.")
    if features and not rules:
        config["label_features"] = list(features)
        reasons.append("A label's embedding also has what it decides, such as an item's category.")
    training: dict[str, Any] = {
        "ranking_loss_weight": 1.0 if rules else 0.0,
        "target_half_life_days": 30.0 if rules else 0.0,
    }
    if labels > MANY_LABELS and not rules:
        training["sampled_labels"] = SAMPLE
        reasons.append(f"{labels:,} labels: a training step scores those that matter and {SAMPLE:,} others.")
    config["state_size"] = STATE_SIZE
    reasons.append(f"The customer embedding is a state of {STATE_SIZE} numbers, trained last, with forecasts.")
    training |= {"learning_rate": 0.001, "ema_decay": 0.99}
    training |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    training |= {"early_stopping_patience": PATIENCE if rules else PATIENCE_WITHOUT_REPEATS}
    training |= {"save_total_limit": 2, "load_best_model_at_end": True}
    if rules:
        training |= {"lr_scheduler_type": "constant_with_warmup", "num_train_epochs": 6.0 if visits else 12.0}
        training |= {"per_device_train_batch_size": 16}
    else:
        training |= {"lr_scheduler_type": "constant_with_warmup", "num_train_epochs": 60.0}
        training |= {"per_device_train_batch_size": 64 if measures["targets"] < 50 * measures["customers"] else 32}
    reasons.append(
        f"At most {training['num_train_epochs']:g} epochs; {training['early_stopping_patience']} in a row without a "
        "better NDCG on validation end the training."
    )
    return Recipe(config, training, reasons)


def _named(tasks: list[str]) -> str:
    return f"{', '.join(tasks[:-1])} and {tasks[-1]}" if len(tasks) > 1 else tasks[0]
