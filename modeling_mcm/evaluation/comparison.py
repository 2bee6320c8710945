# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of a model with baselines: where it is worse, whether that is more than noise, and what to try."""

from collections.abc import Mapping

from numpy.typing import NDArray

from modeling_mcm.evaluation.metrics import Interval, paired_difference

LONGER = "train longer (`--num_train_epochs`)"
MEMORY = "turn on the repeat memory where it is off (`repeat_memory`)"
NOT_LEARNED = (
    f"the model has hardly learned yet: look whether the training loss falls, {LONGER}, change the learning rate"
)
HABITS = f"the customers' own habits have too little weight: {MEMORY}, {LONGER}"
LIKE_OTHERS = f"what customers share has too little weight: {LONGER}, take a larger model (`hidden_size`), {MEMORY}"
ORDER = (
    "what comes next depends on the latest events: read events one by one (`encoder_unit=event`) and the last hidden "
    f"vector (`readout=last`), {LONGER}"
)
ADVICE = {
    "most_popular": NOT_LEARNED,
    "recent_popular": NOT_LEARNED,
    "personal_frequency": HABITS,
    "recency_weighted_frequency": HABITS,
    "visit_frequency": HABITS,
    "nearest_households": LIKE_OTHERS,
    "markov": ORDER,
    "transitions": ORDER,
    "lightgbm": f"regularity and rank have too little weight: {MEMORY}, `--ranking_loss_weight 1`, {LONGER}",
}


def values_of(
    results: Mapping[str, Mapping[str, Mapping[str, NDArray]]], metric: str
) -> dict[str, dict[str, NDArray]]:
    """Selects one metric from the results of an evaluation.

    Args:
        results (`dict`): Values of every case, by method, task and metric.
        metric (`str`): Name of the metric.

    Returns:
        `dict[str, dict[str, numpy.ndarray]]`: The metric's values by method and task, for tasks that have it.
    """
    return {
        method: {task: metrics[metric] for task, metrics in by_task.items() if metric in metrics}
        for method, by_task in results.items()
    }


def title_of(metric: str) -> str:
    """Writes the name of a metric in words: `next_visit_ndcg@10` is "next-visit NDCG@10"."""
    target, _, name = metric.rpartition("_")
    return f"{target.replace('_', '-')} {name.upper()}".strip()


def baseline_warnings(
    values: Mapping[str, Mapping[str, NDArray]], metric: str = "next_visit_ndcg@10", model: str = "MCM"
) -> list[str]:
    """Writes a sentence for each baseline that a model is not better than: on which tasks, and what to try.

    Means and their 95% bootstrap intervals are of paired differences, over the same customers. The model is *under* a
    baseline if the whole interval of the difference is below 0. It is *level* with the baseline if its mean is lower
    and the interval contains 0. Tasks in which no customer has a value of both are left out.

    Args:
        values (`dict[str, dict[str, numpy.ndarray]]`): One metric by method and task, in arrays of shape `(cases,)`,
            from [`values_of`]. All methods have the same cases in the same order; NaN means a case without a target.
        metric (`str`): Name of the metric, for the sentences.
        model (`str`): The method that is the model. All others are baselines.

    Raises:
        ValueError: If the model is not among the methods, or arrays have different numbers of cases.
    """
    if model not in values:
        raise ValueError(f"Found values of {', '.join(values) or 'no method'}; expected {model!r} among them.")
    warnings = []
    for baseline, by_task in values.items():
        under: list[str] = []
        level: list[str] = []
        for task, theirs in by_task.items():
            ours = values[model].get(task)
            if baseline == model or ours is None:
                continue
            both = (ours == ours) & (theirs == theirs) if ours.shape == theirs.shape else None
            if both is not None and not both.any():  # NaN is not equal to itself
                continue
            difference = paired_difference(ours, theirs).absolute
            if difference.mean < 0:
                phrase = f"{task} by {-difference.mean:.4f} {_interval(difference)}"
                (under if difference.high < 0 else level).append(phrase)
        if under:
            also = f" (level, within noise, on {' and '.join(level)})" if level else ""
            summary = f"{model} is under {baseline}, beyond noise, on {' and '.join(under)}{also}"
        elif level:
            summary = f"{model} is level with {baseline}: lower within noise on {' and '.join(level)}"
        else:
            continue
        warnings.append(f"{summary}. Measured: {title_of(metric)}. What to try: {ADVICE.get(baseline, LONGER)}.")
    return warnings


def _interval(difference: Interval) -> str:
    """Writes the interval of how far a model is under a baseline, and the number of customers."""
    return f"[{-difference.high:.4f}, {-difference.low:.4f}] ({difference.customers:,} customers)"
