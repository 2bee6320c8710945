# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations of a label's score: what its chance would be if a visit had not happened.

The model reads the history again without each visit, so a change is exact, whatever the score is computed from.
Changes do not add up: each of nine visits with a label can be left out without much loss, all nine can't.

Shapes: B histories, N visits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.encoding_mcm import days_between
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.features_mcm import COUNTED, FEATURES
from modeling_mcm.inputs_mcm import first_kept, until
from modeling_mcm.predictor_mcm import Predictor
from modeling_mcm.processing_mcm import MCMFeatureExtractor
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

    def to_dict(self) -> dict[str, Any]:
        """Converts the explanation to nested dicts and lists, for JSON."""
        return asdict(self)


def explain(
    model: Any,
    feature_extractor: MCMFeatureExtractor,
    customer: Mapping[str, Any],
    task: str,
    label: Any = None,
    as_of: Any = None,
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
    seconds = None
    if as_of is not None:
        (seconds,) = feature_extractor._read_as_of(as_of, 1)
        (row,) = until([row], [seconds], feature_extractor.layout)
    whole = feature_extractor.readable(row, model.config.input_features)
    if seconds is None and len(whole["times"]):
        seconds = float(whole["times"].max())  # one time for all variants: without the last visit, too
    row = _read_part(whole, feature_extractor.max_events)
    history = _History(predictor, row, seconds, is_part=len(row["times"]) < len(whole["times"]))
    label_id = history.best(task) if label is None else int(feature_extractor.label_ids(task, [label])[0])
    if label_id in feature_extractor.own_ids(task):
        raise ValueError(f"Task {task!r} has no label {label!r}: the training period did not have it.")
    return history.explanation(task, label_id, most_visits)


def visit_rhythm(row: Mapping[str, Any], is_counted: NDArray[np.bool_]) -> tuple[int, float, float]:
    """Of the visits of a row of the feature extractor that have a counted event: their number, mean days from one to
    the next, and time of the last one in seconds. For the mean, visits of one day are one: two baskets at one till are
    no rhythm. NaN where there are too few."""
    _, first = np.unique(row["visits"][is_counted], return_index=True)
    times = np.sort(row["times"][is_counted][first])
    days = np.unique(times // SECONDS_PER_DAY)
    gap = float(days[-1] - days[0]) / (len(days) - 1) if len(days) > 1 else np.nan
    return len(times), gap, float(times[-1]) if len(times) else np.nan


class _History:
    """A customer's history and its variants without a visit, with the model's scores for them."""

    def __init__(self, predictor: Predictor, row: Mapping[str, Any], as_of: float | None, is_part: bool):
        self.predictor, self.row, self.as_of = predictor, dict(row), as_of
        self.model, self.extractor = predictor.model, predictor.extractor
        self.is_part = is_part  # of a history that is longer than the model's window
        self.visits = row["visits"]
        self.columns = [name for name, value in row.items() if isinstance(value, np.ndarray) and value.ndim]

    def best(self, task: str) -> int:
        """Id of the task's label with the highest score."""
        scores = self.scores([self.row], task)[0].clone()
        scores[self.extractor.own_ids(task)] = -torch.inf
        return int(scores.argmax())

    def explanation(self, task: str, label: int, most_visits: int | None) -> Explanation:
        """Explains a label, by its id; the other arguments are those of [`explain`]."""
        number = int(self.visits[-1]) + 1 if len(self.visits) else 0
        with_label = np.isin(np.arange(number), self.visits[self.row[f"feature_{task}"] == label])
        tried = np.lexsort((-np.arange(number), ~with_label))[:most_visits]
        rows = [self.row, self._without(np.ones(len(self.visits), bool))]
        rows += [self._without(self.visits == visit) for visit in tried]
        chance, baseline, *of_visits = self.chances(rows, task, label).tolist()
        without = dict(zip(tried.tolist(), of_visits, strict=True))
        values, visits = self._values(), []
        for visit in sorted(range(number), key=lambda visit: (without.get(visit, 2.0), -visit)):
            events = np.flatnonzero(self.visits == visit).tolist()
            effect = VisitEffect(
                time=_iso(self.row["times"][events[0]]),
                without=without.get(visit),
                has_label=bool(with_label[visit]),
                events=[values[event] for event in events if values[event]],
            )
            visits.append(effect)
        return Explanation(
            task=task,
            label=self.extractor.decode_labels(task, [label])[0],
            chance=chance,
            baseline=baseline,
            visits=visits,
            words=self.words(task, label),
            groups=self.groups(task, label),
        )

    def groups(self, task: str, label: int) -> dict[str, float]:
        """Chance of the label without each group of numbers."""
        if self.model.scorer is None or not self.model.scorer.fitted:
            return {}
        names = [*dict.fromkeys(each.group for each in FEATURES[:COUNTED])]
        chances = self.chances([self.row] * len(names), task, label, names)
        return dict(zip(names, chances.tolist(), strict=True))

    def words(self, task: str, label: int) -> str:
        """How often and when the label occurred, in words."""
        number, gap, last = visit_rhythm(self.row, self.row[f"feature_{task}"] == label)
        words = f"{number} times" if number > 1 else "once" if number else "never yet"
        if np.isfinite(gap):
            words += f", every {_days(gap)}"
        if number and self.as_of is not None:
            words += f", {'last ' * (number > 1)}{_ago((self.as_of - last) / SECONDS_PER_DAY)}"
        return words + f" (in the latest {len(self.visits):,} events)" * self.is_part

    def chances(
        self, rows: Sequence[Mapping[str, Any]], task: str, label: int, left_out: Sequence[str] = ()
    ) -> NDArray[np.float64]:
        """Chance of the label, of shape `(B,)`, for histories of any lengths, each without a group of numbers if
        `left_out` names them; see [`Explanation`]."""
        lengths = np.array([len(row["times"]) + 1 for row in rows])
        result = np.empty(len(rows))
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            size = max(1, EVENTS_AT_ONCE // int(lengths[order[0]]))
            batch, order = order[:size], order[size:]
            groups = [left_out[at] for at in batch] if left_out else ()
            log_p = self.scores([rows[at] for at in batch], task, groups).double().log_softmax(-1)[:, label]
            chances = self.model.chances(task, log_p)
            result[batch] = (log_p.exp() if chances is None else chances).cpu().numpy()
        return result

    def scores(self, rows: Sequence[Mapping[str, Any]], task: str, left_out: Sequence[str] = ()) -> torch.Tensor:
        """Scores of the task's labels, of shape `(B, labels)`."""
        inputs = self.predictor.inputs(rows, self.as_of)
        return self.predictor.run(inputs, tasks=[task], parts=(), left_out=left_out).logits[task]

    def _without(self, gone: NDArray[np.bool_]) -> dict[str, Any]:
        """The row without the visits whose events are marked by `gone` `(events,)`; visits and the days between them
        are computed again."""
        extractor = self.extractor
        row = {name: value[~gone] if name in self.columns else value for name, value in self.row.items()}
        distinct, row["visits"] = np.unique(row["visits"], return_inverse=True)
        row["visits"] = row["visits"].astype(np.int32)
        first = np.searchsorted(row["visits"], np.arange(len(distinct)))
        days = days_between(row["times"][first])[row["visits"]]
        for feature in extractor._encoding.event_features:
            if extractor._encoding.specs[feature].kind == DAYS_SINCE_VISIT:
                row[f"feature_{feature}"] = extractor._encoding.derived_ids(feature, row["times"], days)
        return row

    def _values(self) -> list[dict[str, str]]:
        """By event its values by feature, without unknown ones; empty for an event that MCM added."""
        extractor = self.extractor
        values: list[dict[str, str]] = [{} for _ in self.visits]
        for feature, vocabulary in extractor.vocabularies.items():
            if feature in extractor._encoding.event_features:
                own = extractor.own_ids(feature)
                for index, value in enumerate(self.row[f"feature_{feature}"].tolist()):
                    if value not in own:
                        values[index][feature] = vocabulary[value - FIRST_LABEL]
        return values


def _read_part(row: Mapping[str, Any], max_events: int) -> dict[str, Any]:
    """The part of a row that the model reads: its latest events, with visits counted from 0."""
    start = first_kept(len(row["times"]), max_events - 1)
    part = {
        name: value[start:] if isinstance(value, np.ndarray) and value.ndim else value for name, value in row.items()
    }
    if start:
        part["visits"] = part["visits"] - part["visits"][:1]
    return part


def _iso(seconds: Any) -> str:
    return str(np.datetime64(int(seconds), "s"))


def _ago(days: float) -> str:
    return f"{_days(days)} ago" if days >= 1 else "less than a day ago"


def _days(number: float) -> str:
    days = round(number) if number >= 2 else round(number, 1)
    return "1 day" if days == 1 else f"{days:g} days"
