# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations of a label's score: by the parts of the score, and by the visits and events of the history.

An explanation splits the log-probability of a label among those of its task, so that a share says by which factor it
makes the label more or less likely. There are two splits, and the shares of each add up:

- By part: the readout, the label's bias, the memories, and `others`, the logarithm of the softmax's denominator.
- By visit: log p(label) - log p(label for a customer without history, with the same profile).

A visit's share comes from deletion: the loss of log-probability when the model reads the history without the visit.
The weights of the readout can't replace it, because they know nothing of the memories. Deletions alone do not add up:
each of nine visits with a label can be deleted without much loss, all nine can't. The rest R is distributed over the
visits in proportion to their deletions (where R is negative: to the deletions that raise the log-probability), so the
order of the shares is the order of the deletions.

Shapes: B histories, N visits, P parts, V labels of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL
TIE_SHARE = 1.0
from modeling_mcm.events_mcm import Timeline
from modeling_mcm.inputs_mcm import first_kept, until
PARTS = ()
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import DAYS_SINCE_VISIT
from modeling_mcm.times_mcm import SECONDS_PER_DAY

# Parts whose sum is a log-probability. The last one is the softmax's normalisation.
NAMES = (*PARTS, "habits", "new", "others")
EVENTS_AT_ONCE = 2**13  # number of events in a batch of histories with deletions
MOST_VISITS = 48  # number of visits that are deleted, one at a time
VISITS_WITH_EVENTS = 3  # number of visits whose single events are deleted too
DUE = 0.8  # a label is due after this share of its usual gap


@dataclass(frozen=True)
class EventShare:
    """Share of an event in the log-probability of a label.

    Attributes:
        time (`str`): time of the event, ISO 8601.
        values (`dict[str, str]`): the event's value of each categorical feature.
        share (`float`): share in units of log-probability; the shares of a visit's events add up to the visit's.
    """

    time: str
    values: dict[str, str]
    share: float


@dataclass(frozen=True)
class VisitShare:
    """Share of a visit in the log-probability of a label.

    Attributes:
        visit (`int`): number of the visit in the history, from 0.
        time (`str`): time of the visit's first event, ISO 8601.
        share (`float`): share in units of log-probability; positive if the visit makes the label more likely.
        deletion (`float`, *optional*): loss of log-probability when the visit is deleted; `None` if it was not
            deleted, and the share is 0.
        parts (`dict[str, float]`): the share by part of the score; the parts add up to the share.
        has_label (`bool`): whether an event of the visit has the label.
        events (`list[EventShare]`): shares of the visit's events in their order; they add up to the visit's share.
    """

    visit: int
    time: str
    share: float
    deletion: float | None
    parts: dict[str, float]
    has_label: bool
    events: list[EventShare]


@dataclass(frozen=True)
class Explanation:
    """Explanation of a label's score by parts and by visits.

    Attributes:
        task (`str`): name of the task.
        label (`str`): the explained label, a value of the task's feature.
        probability (`float`): probability of the label among the task's labels.
        score (`float`): logarithm of the probability.
        baseline (`float`): log-probability of the label for a customer with this profile and no history.
        parts (`dict[str, float]`): parts of the score by name; they add up to it.
        baseline_parts (`dict[str, float]`): parts of the baseline by name; they add up to it.
        visits (`list[VisitShare]`): shares of the visits, largest first; they add up to score - baseline.
        words (`str`): how often and when the label occurred, such as "9 times, every 12 days, last 14 days ago; due".
    """

    task: str
    label: str
    probability: float
    score: float
    baseline: float
    parts: dict[str, float]
    baseline_parts: dict[str, float]
    visits: list[VisitShare] = field(repr=False)
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Converts the explanation to nested dicts and lists, for JSON."""
        return asdict(self)


def explain(
    model: MCMForMultiTaskRecommendation,
    feature_extractor: MCMFeatureExtractor,
    customer: Mapping[str, Any],
    task: str,
    label: Any = None,
    now: Any = None,
    most_visits: int | None = MOST_VISITS,
    visits_with_events: int = VISITS_WITH_EVENTS,
) -> Explanation:
    """Explains the score of a label.

    The model reads the history again for every deleted visit, so the time grows with the history; `most_visits` limits
    it.

    Args:
        customer (`dict`): a customer with `events` and `profile`, as for the feature extractor, or a row as its
            `encode` returns it.
        label (*optional*): the label to explain, a value of the task's feature. Default: the label with the highest
            score.
        now (*optional*): moment of the score: text, a datetime or a number of seconds, as for the feature extractor.
            Later events are not read, and a warning says so. Default: the time of the last event.
        most_visits (`int`, *optional*): number of visits to delete: the latest ones with the label first, then the
            latest others. The remaining visits get a share of 0. `None`: all visits.
        visits_with_events (`int`): number of visits, those with the largest shares, whose single events are deleted
            too. In other visits the events with the label share the visit's share equally, or all events if none has
            the label.

    Raises:
        ValueError: if the task or the label is unknown, the customer can't be encoded, or `now` is given for a log
            without times.
    """
    if task not in model.config.tasks:
        raise ValueError(f"No task {task!r}: this checkpoint predicts {model.config.tasks}.")
    row = customer if "visits" in customer else feature_extractor.encode(customer)
    moment = None
    if now is not None:
        (moment,) = feature_extractor._read_now(now, 1)
        (row,) = until([row], [moment])
    row = _read_part(feature_extractor.readable(row, model.config.input_features), feature_extractor.max_events)
    history = _History(model, feature_extractor, row, moment)
    label_id = history.best(task) if label is None else int(feature_extractor.label_ids(task, [label])[0])
    if label_id < FIRST_LABEL:
        raise ValueError(f"Task {task!r} has no label {label!r}: the training period did not have it.")
    return history.explanation(task, label_id, most_visits, visits_with_events)


class _History:
    """A customer's history and its variants without some events, with the model's log-probabilities for them."""

    def __init__(self, model, feature_extractor, row: Mapping[str, Any], moment: float | None):
        self.model, self.extractor, self.row, self.moment = model, feature_extractor, dict(row), moment
        self.visits = row["visits"]
        self.columns = [name for name, value in row.items() if isinstance(value, np.ndarray) and value.ndim]

    def best(self, task: str) -> int:
        """Id of the task's label with the highest score."""
        inputs = self._inputs([self.row])
        with torch.inference_mode():
            return int(self.model(**inputs).logits[task][0].argmax())

    def explanation(self, task: str, label: int, most_visits: int | None, visits_with_events: int) -> Explanation:
        """Explains a label, by its id; the other arguments are those of [`explain`]."""
        number = int(self.visits[-1]) + 1 if len(self.visits) else 0
        has_label = self._has_label(task, label)
        with_label = np.isin(np.arange(number), self.visits[has_label])
        deleted = np.sort(np.lexsort((-np.arange(number), ~with_label))[:most_visits])
        rows = [self.row, self._without(np.ones(len(self.visits), bool))]
        rows += [self._without(self.visits == visit) for visit in deleted]
        parts = self.parts(rows, task, label)  # (2 + N, P)
        whole, nothing = parts[0], parts[1]
        deletions, shares = np.full((number, len(NAMES)), np.nan), np.zeros((number, len(NAMES)))
        deletions[deleted] = whole - parts[2:]
        shares[deleted] = _shared(whole - nothing, deletions[deleted])
        totals = shares.sum(1)
        order = np.argsort(-totals, kind="stable").tolist()
        events = self._event_shares(task, label, whole, totals, order[:visits_with_events])
        values = self._values()
        visits = []
        for visit in order:
            indices = np.flatnonzero(self.visits == visit).tolist()
            deletion = float(deletions[visit].sum())
            of_events = [EventShare(_iso(self.row["times"][at]), values[at], float(events[at])) for at in indices]
            visits.append(
                VisitShare(
                    visit=visit,
                    time=_iso(self.row["times"][indices[0]]),
                    share=float(totals[visit]),
                    deletion=None if np.isnan(deletion) else deletion,
                    parts=dict(zip(NAMES, shares[visit].tolist(), strict=True)),
                    has_label=bool(has_label[indices].any()),
                    events=of_events,
                )
            )
        return Explanation(
            task=task,
            label=self.extractor.decode_labels(task, [label])[0],
            probability=float(np.exp(whole.sum())),
            score=float(whole.sum()),
            baseline=float(nothing.sum()),
            parts=dict(zip(NAMES, whole.tolist(), strict=True)),
            baseline_parts=dict(zip(NAMES, nothing.tolist(), strict=True)),
            visits=visits,
            words=self.words(task, label),
        )

    def words(self, task: str, label: int) -> str:
        """How often and when the label occurred, in words, from the times of the visits that have it."""
        indices = np.flatnonzero(self._has_label(task, label))
        if not len(indices):
            return "never yet"
        _, first = np.unique(self.visits[indices], return_index=True)
        times = np.sort(self.row["times"][indices[first]])
        last = int(self.row["times"].max()) if self.moment is None else self.moment
        ago = (last - int(times[-1])) / SECONDS_PER_DAY
        if len(times) == 1:
            return f"once, {_ago(ago)}"
        gap = int(times[-1] - times[0]) / SECONDS_PER_DAY / (len(times) - 1)
        return f"{len(times)} times, every {_days(gap)}, last {_ago(ago)}" + "; due" * (ago >= DUE * gap > 0)

    def parts(self, rows: Sequence[Mapping[str, Any]], task: str, label: int) -> NDArray[np.float64]:
        """Parts of the label's log-probability, of shape `(B, P)`, for histories of any lengths."""
        lengths = np.array([len(row["times"]) + 1 for row in rows])
        parts = np.empty((len(rows), len(NAMES)))
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            size = max(1, EVENTS_AT_ONCE // int(lengths[order[0]]))
            batch, order = order[:size], order[size:]
            parts[batch] = _label_parts(self.model, self._inputs([rows[at] for at in batch]), task, label)
        return parts

    def _inputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        mask_next = self.model.config.augmentation == "masked_lm"
        moments = None if self.moment is None else [self.moment] * len(rows)
        inputs = self.extractor.pad(rows, mask_next=mask_next, now=moments)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _without(self, gone: NDArray[np.bool_]) -> dict[str, Any]:
        """The row without the events marked by `gone` `(events,)`; visits and the days between them are computed
        again."""
        extractor = self.extractor
        token = self.row[f"feature_{extractor.token_type_feature}"]
        gone = gone.copy()
        if extractor.end_of_visit:  # a visit without a target has no end-of-visit event
            closing = token == extractor.vocabularies[extractor.token_type_feature].index(extractor.end_of_visit) + 2
            is_target = ~closing & ~gone
            if extractor.target_token_types:
                targets = extractor._encoding.value_ids(extractor.token_type_feature, extractor.target_token_types)
                is_target &= np.isin(token, targets)
            gone |= closing & ~np.isin(self.visits, self.visits[is_target])
        row = {name: value[~gone] if name in self.columns else value for name, value in self.row.items()}
        distinct, row["visits"] = np.unique(row["visits"], return_inverse=True)
        row["visits"] = row["visits"].astype(np.int32)
        first = np.searchsorted(row["visits"], np.arange(len(distinct)))
        timeline = Timeline(first, first[:0], row["times"], row["visits"], row["times"][first])
        for feature in extractor._encoding.event_features:
            if extractor._encoding.specs[feature].kind == DAYS_SINCE_VISIT:
                row[f"feature_{feature}"] = extractor._encoding.derived_ids(feature, timeline)
        return row

    def _event_shares(
        self, task: str, label: int, whole: NDArray, totals: NDArray, visits: Sequence[int]
    ) -> NDArray[np.float64]:
        """Share of each event: by deletion in the given visits, in other visits by which events have the label."""
        has_label = self._has_label(task, label)
        shares = np.zeros(len(self.visits))
        for visit, total in enumerate(totals):
            indices = np.flatnonzero(self.visits == visit)
            indices = indices[has_label[indices]] if has_label[indices].any() else indices
            shares[indices] = total / len(indices)
        deleted = np.flatnonzero(np.isin(self.visits, visits))
        if len(deleted):
            rows = [self._without(np.arange(len(self.visits)) == index) for index in deleted]
            differences = (whole - self.parts(rows, task, label)).sum(1)
            for visit in visits:
                of_visit = self.visits[deleted] == visit
                shares[deleted[of_visit]] = _shared(totals[[visit]], differences[of_visit][:, None])[:, 0]
        return shares

    def _has_label(self, task: str, label: int) -> NDArray[np.bool_]:
        return self.row[f"feature_{task}"] == label

    def _values(self) -> list[dict[str, str]]:
        extractor = self.extractor
        values: list[dict[str, str]] = [{} for _ in self.visits]
        for feature, vocabulary in extractor.vocabularies.items():
            if feature in extractor._encoding.event_features:
                for index, value in enumerate(self.row[f"feature_{feature}"].tolist()):
                    if value:
                        values[index][feature] = vocabulary[value - FIRST_LABEL] if value > 1 else "[unknown]"
        return values


@torch.inference_mode()
def _label_parts(
    model: MCMForMultiTaskRecommendation, inputs: Mapping[str, torch.Tensor], task: str, label: int
) -> NDArray[np.float64]:
    """Parts of the log-probability of a label, of shape `(B, P)`, in the order of `NAMES`."""
    index = model.config.tasks.index(task)
    parts = model.score_parts([task], **inputs)[task]
    log_probability = model.joined_scores(index, parts).double().log_softmax(-1)[:, label]
    scales = model.score_scales[index].double()
    memory = model.counted_memory
    related = memory is not None and "met" in parts
    if related:
        related = bool(cast(Any, memory).new_gain[index] != 0) or bool(cast(Any, memory).habit_gain[index] != 0)
    met = parts["met"][:, label] if related else torch.ones_like(log_probability, dtype=torch.bool)
    worth = torch.where(met, 1.0, TIE_SHARE).double()
    values = {}
    for name, scale in zip(PARTS, scales, strict=True):
        if name in parts:
            values[name] = worth * scale * parts[name][:, label].double()
    if related:
        gains = cast(Any, memory)
        values["habits"] = met * gains.habit_gain[index].double() * parts["habits"][:, label].double()
        values["new"] = ~met * gains.new_gain[index].double() * parts["new"][:, label].double()
    values["others"] = log_probability - cast(torch.Tensor, sum(values.values()))
    zeros = torch.zeros_like(log_probability)
    return torch.stack([values.get(name, zeros) for name in NAMES], 1).cpu().numpy()


def _shared(whole: NDArray, deletions: NDArray) -> NDArray[np.float64]:
    """Shares of visits `(N, P)` in totals of parts `(P,)`, in the order of the visits' deletions."""
    if not len(deletions):
        return deletions
    rest = whole - deletions.sum(0)
    weights = np.maximum(deletions.sum(1) * (1.0 if rest.sum() >= 0 else -1.0), 0)
    total = weights.sum()
    weights = weights / total if total > 0 else np.full(len(deletions), 1 / len(deletions))
    return deletions + weights[:, None] * rest


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
