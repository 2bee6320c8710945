# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations of a label's score: what its chance would be if a visit had not happened.

The model reads the history again without each visit, so a change is exact, whatever the score is computed from.
Changes do not add up: each of nine visits with a label can be left out without much loss, all nine can't.

Shapes: B histories, N visits, V labels of a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.encoding_mcm import days_between
from modeling_mcm.events_mcm import SECONDS_PER_DAY, BoolArray, Row, Time, select_events, to_iso
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.features_mcm import COUNTED, FEATURES
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.modeling_mcm import MCMPreTrainedModel
from modeling_mcm.predictor_mcm import Predictor, Rows
from modeling_mcm.schema_mcm import DAYS_SINCE_VISIT

EVENTS_AT_ONCE = 2**13  # number of events in a batch of histories
LEFT_OUT_VISITS = 48  # number of visits that are left out, one at a time


@dataclass(frozen=True)
class VisitEffect:
    """What a visit does to the chance of a label.

    Attributes:
        time (`str`): Time of the visit's first event, ISO 8601.
        without (`float`, *optional*): Chance of the label if the visit is left out; `None` if it was not tried.
        has_label (`bool`): Whether an event of the visit has the label.
        events (`list[dict[str, str]]`): Value of each categorical feature of each event of the visit.
    """

    time: str
    without: float | None
    has_label: bool
    events: list[dict[str, str]] = field(repr=False)


@dataclass(frozen=True)
class Explanation:
    """Explanation of a label's score by visits.

    Attributes:
        task (`str`): Name of the task.
        label (`str`): The explained label, a value of the task's feature.
        chance (`float`): Chance that the label is in the next visit; in a checkpoint that had no validation case, the
            probability of the label among the task's labels.
        baseline (`float`): The same for a customer with this profile and no history.
        visits (`list[VisitEffect]`): The visits. The one without which the label is least likely comes first, those
            that were not tried come last.
        words (`str`): How often and when the label occurred, such as "9 times, every 12 days, last 14 days ago".
        groups (`dict[str, float]`): By group of the numbers that are counted of a label (docs/how_it_works.md), the
            chance if all labels had the mean ones; empty in a checkpoint without a fitted scorer.
    """

    task: str
    label: str
    chance: float
    baseline: float
    visits: list[VisitEffect] = field(repr=False)
    words: str
    groups: dict[str, float] = field(repr=False)


def explain(
    model: MCMPreTrainedModel,
    feature_extractor: MCMFeatureExtractor,
    customer: Row,
    task: str,
    label: object = None,
    as_of: Time = None,
    most_visits: int | None = LEFT_OUT_VISITS,
) -> Explanation:
    """Explains the score of a label.

    The model reads the history again for every visit that is left out, so the time grows with the history;
    `most_visits` limits it.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): A trained model, in evaluation mode.
        customer (`dict`): A customer with `events` and `profile`, as for the feature extractor, or a row as its
            `encode` returns it.
        label (*optional*): The label to explain, a value of the task's feature. Default: the label with the highest
            score.
        as_of (*optional*): Time of the score: text, a datetime or a number of seconds, as for the feature extractor.
            Later events are not read, and a warning says so. Default: the time of the last event.
        most_visits (`int`, *optional*): Number of visits to try: the latest ones with the label first, then the latest
            others. `None`: all visits.

    Raises:
        ValueError: If the task or the label is unknown, the customer can't be encoded, or `as_of` is given for a log
            without times.
    """
    predictor = Predictor(model, feature_extractor)
    predictor.tasks([task])
    if most_visits is not None and (not isinstance(most_visits, int) or most_visits < 0):
        raise ValueError(f"`most_visits` is {most_visits!r}: give a whole number from 0 on, or None for all.")
    row = customer if "visits" in customer else feature_extractor.encode(customer)
    seconds = feature_extractor.read_as_of(as_of)
    if seconds is not None:
        (row,) = Customers.of([row]).until([seconds], feature_extractor.layout)
    row = feature_extractor.readable(row, model.config.input_features)
    if seconds is None and len(row["times"]):
        seconds = float(row["times"].max())  # one time for all variants: without the last visit, too
    visits = row["visits"]

    def score(rows: Rows, left_out: Sequence[str] = ()) -> torch.Tensor:
        """Scores of the task's labels, of shape `(B, labels)`, each history without a group of numbers if `left_out`
        names them."""
        return predictor.run(predictor.inputs(rows, seconds), tasks=[task], parts=(), left_out=left_out).logits[task]

    def chances(rows: Rows, left_out: Sequence[str] = ()) -> list[float]:
        """Chance of the label for each history; see [`Explanation`]."""
        result: list[float] = []
        size = max(1, EVENTS_AT_ONCE // (1 + len(visits)))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            log_p = score(rows[part], left_out[part]).double().log_softmax(-1)[:, label_id]
            known = predictor.model.chances({task: log_p[:, None]})  # each (B, 1)
            result += known.get(task, log_p.exp()).flatten().tolist()
        return result

    if label is None:
        scores = score([row])[0].clone()
        scores[feature_extractor.own_ids(task)] = -torch.inf
        label_id = int(scores.argmax())
    else:
        label_id = find_label(feature_extractor, task, label)
    number, has_label = int(visits.max(initial=-1)) + 1, row[f"feature_{task}"] == label_id
    with_label = np.isin(np.arange(number), visits[has_label])
    tried = np.lexsort((-np.arange(number), ~with_label))[:most_visits]
    rows = [row, _leave_out(row, visits >= 0, feature_extractor)]
    rows += [_leave_out(row, visits == visit, feature_extractor) for visit in tried]
    chance, baseline, *left_out_chances = chances(rows)
    without, values = dict(zip(tried.tolist(), left_out_chances, strict=True)), _read_values(row, feature_extractor)
    effects = []
    for visit in sorted(range(number), key=lambda visit: (without.get(visit, 2.0), -visit)):
        events = np.flatnonzero(visits == visit)
        told = [values[event] for event in events if values[event]]
        effects.append(VisitEffect(to_iso(row["times"][events[0]]), without.get(visit), bool(with_label[visit]), told))
    scorer = predictor.model.scorer
    is_counted = scorer is not None and scorer.fitted
    groups = list(dict.fromkeys(feature.group for feature in FEATURES[:COUNTED])) if is_counted else []
    return Explanation(
        task=task,
        label=feature_extractor.decode_labels(task, [label_id])[0],
        chance=chance,
        baseline=baseline,
        visits=effects,
        words=_say_when(row, has_label, seconds),
        groups=dict(zip(groups, chances([row] * len(groups), groups), strict=True)),
    )


def find_label(feature_extractor: MCMFeatureExtractor, task: str, label: object) -> int:
    """Id of a label that can be explained. Raises `ValueError` if the task or the label is unknown."""
    label_id = int(feature_extractor.label_ids(task, [label])[0])
    if label_id in feature_extractor.own_ids(task):
        raise ValueError(f"Task {task!r} has no label {label!r}: the training period did not have it.")
    return label_id


def visit_rhythm(row: Row, is_counted: BoolArray) -> tuple[int, float, float]:
    """Of the visits of a row of the feature extractor that have a counted event: their number, mean days from one to
    the next, and time of the last one in seconds. For the mean, visits of one day are one: two baskets at one till are
    no rhythm. NaN where there are too few."""
    _, first = np.unique(row["visits"][is_counted], return_index=True)
    times = np.sort(row["times"][is_counted][first])
    days = np.unique(times // SECONDS_PER_DAY)
    gap = float(days[-1] - days[0]) / (len(days) - 1) if len(days) > 1 else np.nan
    return len(times), gap, float(times[-1]) if len(times) else np.nan


def _say_when(row: Row, has_label: BoolArray, as_of: float | None) -> str:
    """How often and when a label occurred, in words."""
    number, gap, last = visit_rhythm(row, has_label)
    words = f"{number} times" if number > 1 else "once" if number else "never yet"
    if np.isfinite(gap):
        words += f", every {_say_days(gap)}"
    if number and as_of is not None:
        days = (as_of - last) / SECONDS_PER_DAY
        ago = f"{_say_days(days)} ago" if days >= 1 else "less than a day ago"
        words += f", {'last ' * (number > 1)}{ago}"
    return words


def _say_days(number: float) -> str:
    days = round(number) if number >= 2 else round(number, 1)
    return "1 day" if days == 1 else f"{days:g} days"


def _leave_out(row: Row, gone: BoolArray, extractor: MCMFeatureExtractor) -> dict:
    """The row without the visits whose events are marked by `gone` `(events,)`; visits and the days between them are
    computed again."""
    row = select_events(row, ~gone)
    _, first, visits = np.unique(row["visits"], return_index=True, return_inverse=True)
    row["visits"] = visits.astype(np.int32)
    days, encoding = days_between(row["times"][first])[visits], extractor._encoding
    for feature in encoding.event_features:
        if encoding.specs[feature].kind == DAYS_SINCE_VISIT:
            row[f"feature_{feature}"] = encoding.derived_ids(feature, row["times"], days)
    return row


def _read_values(row: Row, extractor: MCMFeatureExtractor) -> list[dict[str, str]]:
    """By event its values by feature, without unknown ones; empty for an event that MCM added."""
    values: list[dict[str, str]] = [{} for _ in row["times"]]
    for feature, vocabulary in extractor.vocabularies.items():
        if feature in extractor._encoding.event_features:
            own = extractor.own_ids(feature)
            for named, value in zip(values, row[f"feature_{feature}"].tolist(), strict=True):
                if value not in own:
                    named[feature] = vocabulary[value - FIRST_LABEL]
    return values
