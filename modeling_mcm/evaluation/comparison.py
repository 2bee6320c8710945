# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where a model is under a baseline: by how much, whether that is more than noise, and what to try. Needs numpy "
"alone."""

from collections.abc import Mapping

from numpy.typing import NDArray

from modeling_mcm.evaluation.metrics import Interval, paired_difference

LONGER = "train longer (`--num_train_epochs`, `--max_seconds`)"
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
    """One metric of results by method, task and metric: method -> task -> one value a case, where it was measured."""
    return {
        method: {task: metrics[metric] for task, metrics in by_task.items() if metric in metrics}
        for method, by_task in results.items()
    }


def title_of(metric: str) -> str:
    """A metric's name in words: `next_visit_ndcg@10` is "next-visit NDCG@10"."""
    target, _, name = metric.rpartition("_")
    return f"{target.replace('_', '-')} {name.upper()}".strip()


def baseline_warnings(
    values: Mapping[str, Mapping[str, NDArray]], metric: str = "next_visit_ndcg@10", model: str = "MCM"
) -> list[str]:
    """Says for each baseline that a model does not pass in which tasks that is, and what to try.

    The difference of two means is taken over the same customers, and so is its 95% bootstrap interval. The model is
    *under* a baseline where the whole interval is below 0, and *level* with it where its mean is lower and the
    interval holds 0. Tasks in which no customer has a value of both are passed over.

    Args:
        values (method -> task -> array of shape `(cases,)`): one metric's value of each case, NaN for a case without a
            target, the same cases in the same order for all methods; `values_of` takes them out of results.
        metric (str): the metric's name, to be named in the sentences.
        model (str): which of the methods is the model; all others are baselines.

    Returns:
        One text a baseline that the model is under or level with; none where the model passes all.

    Raises:
        ValueError: if the model is not among the methods, or values differ in their number of cases.
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
            if ours.shape == theirs.shape and not ((ours == ours) & (theirs == theirs)).any():  # NaN is not itself
                continue
            difference = paired_difference(ours, theirs).absolute
            if difference.mean < 0:
                place = f"{task} by {-difference.mean:.4f} {_interval(difference)}"
                (under if difference.high < 0 else level).append(place)
        if under:
            also = f" (level, within noise, on {' and '.join(level)})" if level else ""
            said = f"{model} is under {baseline}, beyond noise, on {' and '.join(under)}{also}"
        elif level:
            said = f"{model} is level with {baseline}: lower within noise on {' and '.join(level)}"
        else:
            continue
        warnings.append(f"{said}. Measured: {title_of(metric)}. What to try: {ADVICE.get(baseline, LONGER)}.")
    return warnings


def _interval(difference: Interval) -> str:
    """The interval of how far a model is under, and of how many customers it is."""
    return f"[{-difference.high:.4f}, {-difference.low:.4f}] ({difference.customers:,} customers)"
