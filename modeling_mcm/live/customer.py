# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Live customers: events arrive one by one, and results are the same as if the whole history were read at once.

    live = LiveCustomer(model, feature_extractor)
    live.add([{"time": "2017-03-01T18:30:00", "item": "milk"}])
    live.scores(tasks=["item"], k=5)

The results are those of the whole history, however the events are split into calls of `add`. After `remove` they are
those of a customer who never had the event. A `LiveState` holds what the model needs of finished visits, so that a
result takes as long after a thousand visits as after ten. The last visit may still grow, and is read again. All events
are read again where an event belongs before the last visit, or where the history becomes longer than the model's input
(`first_kept`).

Shapes: S size of the customer embedding, V labels of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.action_inputs_mcm import EncodedActions, encode_actions
from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.candidates_mcm import CandidateSet
from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.events_mcm import events_before, to_text
from modeling_mcm.forecaster_mcm import MissingForecastsError
from modeling_mcm.live.explanations import Explanation, check_head, explain, has_head
from modeling_mcm.live.history import LiveHistory
from modeling_mcm.live.storage import FIX, checkpoint_digest, pack, unpack
from modeling_mcm.live.weights import find_reader, is_incremental
from modeling_mcm.live.window import LiveWindow
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor


@dataclass(frozen=True)
class Added:
    """Result of `LiveCustomer.add`.

    Attributes:
        events (`int`): Number of events that were added.
        late (`bool`): Whether some of them belong before the last visit. The state is then computed again from all
            events, which takes longer; the results are the same.
    """

    events: int
    late: bool


class LiveCustomer:
    """One customer whose events arrive one by one, with scores, embedding, forecasts and explanations at any time.

    The methods' `as_of` is a time: text, a datetime or a number of seconds; by default the time of the last event.
    They raise a `ValueError` if it is before the last event.

    Args:
        model ([`MCMForMultiTaskRecommendation`], [`MCMForCustomerPrediction`] or [`MCMForActionRecommendation`]): A
            trained model, in evaluation mode.
        profile (`dict`, *optional*): The customer's profile, as for the feature extractor.
        customer_id (*optional*): Id of the customer, as text in error messages and tables of what to exclude.

    Raises:
        ValueError: If model and feature extractor do not belong together, or the profile can't be encoded.
    """

    def __init__(
        self,
        model: MCMForMultiTaskRecommendation | MCMForCustomerPrediction | MCMForActionRecommendation,
        feature_extractor: MCMFeatureExtractor,
        profile: Mapping[str, Any] | None = None,
        customer_id: Any = None,
    ):
        feature_extractor.check_fits(model)
        self.model, self.feature_extractor = model, feature_extractor
        self.profile, self.customer_id = dict(profile or {}), to_text(customer_id)
        self._history = LiveHistory(feature_extractor, self.profile, self.customer_id)
        start_row = feature_extractor.pad([self._history.encode([])])["input_ids"][0]
        self._window: LiveWindow | None = None  # of a model whose results need the whole history each time
        if has_head(model, MCMForMultiTaskRecommendation) and is_incremental(model) and model.device.type == "cpu":
            self._window = LiveWindow(find_reader(model), self._history, start_row)

    # ------------------------------------------------------------------------------------------------ events in, out

    def add(self, events: Any, as_of: Any = None) -> Added:
        """Adds events, in any order; they may be older than present ones.

        Args:
            events: one event (`dict`), a list of events, a data frame or a dict of columns, as for the feature
                extractor.
            as_of (*optional*): Time of the call; no event may be later.

        Raises:
            ValueError: If an event has no time, is later than `as_of`, or can't be encoded. Nothing has changed then.
        """
        added = self._history.read(events)
        self._check_past(added, as_of)
        if self._window is not None:
            return Added(len(added), self._window.add(added))
        self._history.encode(added)  # raises before anything changes
        return Added(len(added), self._history.insert(added).late)

    def remove(self, event: Mapping[str, Any]) -> None:
        """Removes one event as it was added, of several equal ones the last. All later results are those of a customer
        who never had it. Raises `ValueError` if the customer has no such event."""
        (target,) = self._history.read([event])
        self._history.encode([target])
        if not self._history.remove(target):
            raise ValueError(
                f"{self._history.name} has no event {dict(event)!r}: give all columns of the event as they were added."
            )
        if self._window is not None:
            self._window.forget()

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events as dicts of plain values, ordered by visit."""
        return self._history.events

    # ---------------------------------------------------------------------------------------------------- questions

    @torch.inference_mode()
    def scores(
        self,
        as_of: Any = None,
        tasks: Sequence[str] | None = None,
        k: int = 10,
        candidates: Any = None,
        exclude: Any = None,
        per_group: tuple[str, int] | None = None,
        horizon_days: float | None = None,
    ) -> dict[str, list[dict[str, Any]]]:
        """By task (default: all tasks) the `k` labels that are likeliest to come in the next visit, or within
        `horizon_days`, best first, see [`CandidateSet.describe`]. `candidates`, `exclude` and `per_group` say which
        labels may be chosen, see [`CandidateSet`]; make a set once for a large table. Raises `ValueError` if a task is
        unknown, `k` is below 1, no candidate is left, or `as_of` is before the last event."""
        check_head(self.model, MCMForMultiTaskRecommendation)
        all_tasks = self.model.config.tasks
        tasks = list(all_tasks if tasks is None else tasks)
        if wrong := [task for task in tasks if task not in all_tasks]:
            raise ValueError(f"No tasks {wrong}: this checkpoint predicts {all_tasks}.")
        if k < 1:
            raise ValueError(f"`k` is {k}; ask for at least 1 label.")
        chosen = CandidateSet.of(self.model, self.feature_extractor, tasks, candidates, exclude, per_group)
        logits = self.logits(as_of, tasks, horizon_days)
        result, row = {}, self._history.encode(self.events) if chosen.needs_seen else None
        for task in tasks:
            seen = None if row is None else [row[f"task_{task}"]]
            (result[task],) = chosen.rank(task, logits[task][None], k, seen, [self.customer_id], horizon_days)
        return result

    def logits(
        self, as_of: Any = None, tasks: Sequence[str] | None = None, horizon_days: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Scores of all labels by task (default: all tasks), of shape `(V,)`, before the softmax."""
        check_head(self.model, MCMForMultiTaskRecommendation)
        seconds = self._read_as_of(as_of)
        if self._window is not None:
            return self._window.state().logits(self._window.reader, tasks, self._window.days(seconds), horizon_days)
        with torch.inference_mode():
            logits = self.model(**self._inputs(seconds), horizon_days=horizon_days, tasks=tasks, parts=()).logits
        return {task: logits[task][0] for task in (self.model.config.tasks if tasks is None else tasks)}

    def embedding(self, as_of: Any = None) -> NDArray[np.float32]:
        """The customer embedding, float32 of shape `(S,)`."""
        seconds = self._read_as_of(as_of)
        if self._window is not None:
            return self._window.state().embedding(self._window.reader, self._window.days(seconds)).numpy().copy()
        with torch.inference_mode():
            return (
                self.model.model(**self._inputs(seconds), parts=("embedding",)).pooler_output[0].float().cpu().numpy()
            )

    def forecast(self, as_of: Any = None, days: Sequence[float] | None = None) -> dict[str, float]:
        """Forecasts from `as_of` on by name, as [`CustomerForecastPipeline`] returns them. Raises
        [`MissingForecastsError`], a `ValueError`, if the checkpoint has no trained forecasts."""
        seconds, told = self._read_as_of(as_of), self.model.model.select_forecasts(days)
        if not told.are_trained:
            raise MissingForecastsError(self.model.name_or_path)
        if self._window is not None:
            forecasts = self._window.state().forecast(self._window.reader, self._window.days(seconds), days)
        else:
            with torch.inference_mode():
                outputs = self.model.model(**self._inputs(seconds), forecast_days=days, parts=("forecasts",))
            forecasts = cast(dict[str, torch.Tensor], outputs.forecasts)
        return {name: value.item() for name, value in forecasts.items()}

    def explain(self, task: str, label: Any = None, as_of: Any = None) -> Explanation:
        """Explains the score of a label (a value of the task's feature; default: the one with the highest score) by
        what it would be without each visit. Raises `ValueError` if the task or the label is unknown."""
        return explain(self.model, self.feature_extractor, self.history(as_of), task, label, as_of)

    def predict(self, as_of: Any = None) -> dict[str, float]:
        """What an [`MCMForCustomerPrediction`] was fine-tuned to: the probability of each class, or the number. As in
        training, events at `as_of` are not read. Raises [`MissingHeadError`], a `ValueError`, for another model."""
        model = check_head(self.model, MCMForCustomerPrediction)
        with torch.inference_mode():
            logits = model(**self._inputs(self._read_as_of(as_of), before=True)).logits
        return {name: value.item() for name, value in model.predictions(logits).items()}

    def offers(self, actions: Any, as_of: Any = None) -> list[dict[str, Any]]:
        """The outcomes of offers that are made at `as_of` (default: right after the last event), for each action a
        dict of `action_id` and each outcome's probability, in the order of the actions. As in training, events at
        `as_of` are not read. Raises [`MissingHeadError`], a `ValueError`, unless the model is an
        [`MCMForActionRecommendation`].

        Args:
            actions: dicts with `action_id` and columns of the event log, see [`ActionScoresPipeline`]; or what
                `encode_actions` makes of them, once for many customers.
        """
        model, seconds = check_head(self.model, MCMForActionRecommendation), self._read_as_of(as_of)
        if not isinstance(actions, EncodedActions):
            actions = encode_actions(self.feature_extractor, model.config, actions)
        row = self._history.encode(self.events)
        row = row if seconds is None else events_before(row, seconds)
        inputs = actions.batch([row], np.arange(len(actions.action_ids))[None], [seconds])
        with torch.inference_mode():
            logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
        outcomes, chances = model.config.action_outcomes, logits[0].float().sigmoid().tolist()
        return [
            {"action_id": name} | dict(zip(outcomes, of_action, strict=True))
            for name, of_action in zip(actions.action_ids, chances, strict=True)
        ]

    def history(self, as_of: Any = None) -> dict[str, Any]:
        """The customer's events and profile, as the feature extractor reads customers."""
        self._read_as_of(as_of)
        return self._history.customer(self.events)

    # -------------------------------------------------------------------------------------------------------- stored

    def to_bytes(self, caches: bool = True) -> bytes:
        """Stores the customer as a safetensors file in memory, with the digest of the checkpoint in its metadata.
        Without `caches`, the [`~live.state.LiveState`], it contains the events alone, and the first result after
        `from_bytes` takes the time to read the whole history."""
        values: dict[str, Any] = {"events": self.events, "profile": self.profile, "customer_id": self.customer_id}
        state: dict[str, torch.Tensor] = {}
        if caches and self._window is not None:
            values["state"], state = self._window.stored()
        return pack(values, state, checkpoint_digest(self.model, self.feature_extractor))

    @classmethod
    def from_bytes(cls, data: bytes, model: Any, feature_extractor: MCMFeatureExtractor) -> "LiveCustomer":
        """Restores a customer that `to_bytes` stored, with model and feature extractor of the same checkpoint. Raises
        `ValueError` if the bytes are damaged, or the customer was stored with another checkpoint."""
        values, state = unpack(data, model, feature_extractor)
        try:
            live = cls(model, feature_extractor, values["profile"], values["customer_id"])
            live._history.insert(values["events"])
            if "state" in values and live._window is not None:
                live._window.restore(values["state"], state)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"A stored state holds something else ({error!r}): {FIX}.") from error
        return live

    # ------------------------------------------------------------------------------------------------------- inside

    def _inputs(self, seconds: float | None, before: bool = False) -> dict[str, torch.Tensor]:
        row = self._history.encode(self.events)
        if before and seconds is not None:
            row = events_before(row, seconds)
        row = self.feature_extractor.readable(row, self.model.config.input_features)
        mask_next = self.model.config.augmentation == "masked_lm"
        inputs = self.feature_extractor.pad([row], mask_next=mask_next, as_of=None if seconds is None else [seconds])
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _check_past(self, events: Sequence[Mapping[str, Any]], as_of: Any) -> None:
        """Raises a `ValueError` if an event is later than `as_of`."""
        if as_of is None:
            return
        (seconds,) = self.feature_extractor._read_as_of(as_of, 1)
        for event in events:
            time = np.datetime64(event[str(self.feature_extractor.time)], "s")
            if time.astype(np.int64) > seconds:
                raise ValueError(
                    f"{self._history.name} has an event at {time}, which is after now, {_iso(seconds)}: check the "
                    "event's time and its time zone, or leave it out."
                )

    def _read_as_of(self, as_of: Any) -> float | None:
        """Seconds since 1970-01-01 of `as_of`; raises a `ValueError` if it is before the last event."""
        if as_of is None:
            return None
        (seconds,) = self.feature_extractor._read_as_of(as_of, 1)
        if self._history.visits and seconds < self._history.latest:
            raise ValueError(
                f"`as_of` is {_iso(seconds)}, and {self._history.name} has an event at {_iso(self._history.latest)}: "
                "the clock went back, or the event lies in the future. Ask at the last event or later."
            )
        return seconds


def _iso(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s"))
