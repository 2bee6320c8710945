# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Live customers: events arrive one by one, and results are the same as if the whole history were read at once.

    live = LiveCustomer(model, feature_extractor)
    live.add([{"time": "2017-03-01T18:30:00", "item": "milk"}])
    live.scores(tasks=["item"], k=5)

A customer is their events. A question reads the latest ones, as many as the model reads, and asks the [`Predictor`]
as pipelines do. So it does not matter how the events are split into calls of `add`, and after `remove` the answers are
those of a customer who never had the event.

Shapes: S size of the customer embedding, V labels of a task.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.action_inputs_mcm import EncodedActions
from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.events_mcm import Time
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import (
    EMBEDDING,
    LABEL_COLUMNS,
    Columns,
    Predictor,
    RankedLabel,
    describe_labels,
    describe_offers,
)
from modeling_mcm.processing_mcm import MCMFeatureExtractor

from .explanations import Explanation, explain
from .history import LiveHistory

Heads = MCMForMultiTaskRecommendation | MCMForCustomerPrediction | MCMForActionRecommendation
FORMAT = "mcm-live-6"  # of stored customers


class LiveCustomer(LiveHistory):
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
        model: Heads,
        feature_extractor: MCMFeatureExtractor,
        profile: Mapping | None = None,
        customer_id: object = None,
    ):
        feature_extractor.check_fits(model)
        super().__init__(feature_extractor, profile, customer_id)
        self.model, self._predictor = model, Predictor(model, feature_extractor)

    # ---------------------------------------------------------------------------------------------------- questions

    def scores(
        self,
        as_of: Time = None,
        tasks: Sequence[str] | None = None,
        k: int = 10,
        candidates: object = None,
        exclude: object = None,
        per_group: tuple[str, int] | None = None,
        horizon_days: float | None = None,
    ) -> dict[str, list[RankedLabel]]:
        """By task (default: all tasks) the `k` labels that are likeliest to come in the next visit, or within
        `horizon_days`, see [`~predictor_mcm.describe_labels`]. `candidates`, `exclude` and `per_group` say which of
        them may be chosen, see [`CandidateSet`]; make a set once for a large table. Raises `ValueError` if a task is
        unknown, `k` is below 1, or `as_of` is before the last event."""
        tasks = self._predictor.tasks(tasks)
        chosen = self._predictor.candidates(tasks, candidates, exclude, per_group)
        columns = self._ask(as_of, tasks=tasks, k=k, candidates=chosen, horizon_days=horizon_days)
        return describe_labels(columns, tasks, chosen)

    def embedding(self, as_of: Time = None) -> NDArray[np.float32]:
        """The customer embedding, float32 of shape `(S,)`."""
        return self._ask(as_of, embedding=True)[EMBEDDING][0].numpy()

    def forecast(self, as_of: Time = None, days: Sequence[float] | None = None) -> dict[str, float]:
        """Forecasts from `as_of` on by name, as [`CustomerForecastPipeline`] returns them. Raises
        [`MissingForecastsError`], a `ValueError`, if the checkpoint has no trained forecasts."""
        return {name: value.item() for name, value in self._ask(as_of, forecasts=True, days=days).items()}

    def explain(self, task: str, label: object = None, as_of: Time = None) -> Explanation:
        """Explains the score of a label (a value of the task's feature; default: the one with the highest score) by
        what it would be without each visit. Raises `ValueError` if the task or the label is unknown."""
        self.read_as_of(as_of)
        return explain(self.model, self.feature_extractor, self.row, task, label, as_of)

    def predict(self, as_of: Time = None, label_columns: Mapping | None = None) -> dict[str, float]:
        """What an [`MCMForCustomerPrediction`] was fine-tuned to: the probability of each class, or the number. As in
        training, events at `as_of` are not read. `label_columns` are the customer's further columns; of those that
        are not given the means are read. Raises [`MissingHeadError`], a `ValueError`, for another model."""
        columns = self._predictor.predict([{**self.row, LABEL_COLUMNS: label_columns}], self.read_as_of(as_of))
        return {name: value.item() for name, value in columns.items()}

    def offers(self, actions: object, as_of: Time = None) -> list[dict[str, str | float]]:
        """The outcomes of offers that are made at `as_of` (default: right after the last event), for each action a
        dict of `action_id` and each outcome's probability, in the order of the actions. As in training, events at
        `as_of` are not read. Raises [`MissingHeadError`], a `ValueError`, unless the model is an
        [`MCMForActionRecommendation`].

        Args:
            actions: dicts with `action_id` and columns of the event log, see [`ActionScoresPipeline`]; or what
                [`EncodedActions`] makes of them, once for many customers.
        """
        seconds = self.read_as_of(as_of)
        if not isinstance(actions, EncodedActions):
            actions = EncodedActions(self.feature_extractor, self.model.config, actions, seconds)
        columns = self._predictor.score_offers([self.row], actions, seconds)
        return describe_offers(columns, actions.action_ids)

    def _ask(self, as_of: Time, **questions: Any) -> Columns:
        return self._predictor.ask([self.row], self.read_as_of(as_of), **questions)

    # -------------------------------------------------------------------------------------------------------- stored

    def to_bytes(self) -> bytes:
        """Stores the customer, which is their events and profile, as compressed JSON."""
        values = {"format": FORMAT, "events": self.events, "profile": self.profile, "customer_id": self.customer_id}
        return zlib.compress(json.dumps(values, separators=(",", ":"), allow_nan=False).encode())

    @classmethod
    def from_bytes(cls, data: bytes, model: Heads, feature_extractor: MCMFeatureExtractor) -> "LiveCustomer":
        """Restores a customer that `to_bytes` stored, with any checkpoint of the same log. Raises `ValueError` if the
        bytes are damaged, or hold no customer of this log."""
        try:
            values = json.loads(zlib.decompress(data))
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, expected {FORMAT!r}")
            live = cls(model, feature_extractor, values["profile"], values["customer_id"])
            live.add(values["events"])
        except (ValueError, LookupError, TypeError, AttributeError, zlib.error) as error:
            raise ValueError(
                f"A stored customer of {len(data):,} bytes is cut, damaged or of another log ({error!r}): add the "
                "customer's events to a new LiveCustomer."
            ) from error
        return live
