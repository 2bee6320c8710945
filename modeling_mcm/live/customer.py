# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Live customers: events arrive one by one, and results are the same as if the whole history were read at once.

    live = LiveCustomer(model, feature_extractor)
    live.add([{"time": "2017-03-01T18:30:00", "item": "milk"}])
    live.scores(tasks=["item"], k=5)

A customer is [`Customers`] of one, to whom events are added, and the raw events. A question asks the [`Predictor`] as
pipelines do. So it does not matter how the events are split into calls of `add`, and after `remove` the answers are
those of a customer who never had the event.

Shapes: S size of the customer embedding, V labels of a task.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.events_mcm import (
    RawEvent,
    Time,
    as_list,
    is_missing,
    naming,
    read_columns,
    read_times,
    to_id,
    to_iso,
    to_text,
    write_times,
)
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.predictor_mcm import (
    EMBEDDING,
    LABEL_COLUMNS,
    CheckedQuestions,
    Columns,
    Predictor,
    Questions,
    RankedLabel,
    describe_labels,
    describe_numbers,
    describe_offers,
)

from .explanations import Explanation, explain

BEFORE_ALL = -(2**63)  # before every time
COLUMNS = np.ndarray, list, tuple


class LiveHistory:
    """A customer's profile and raw events. Events may arrive in any order.

    Attributes:
        events (`list[dict]`): The events as dicts of plain values, in the order in which they arrived.
        customers ([`Customers`]): The one customer, encoded.
    """

    def __init__(self, feature_extractor: MCMFeatureExtractor, profile: Mapping | None, customer_id: object):
        self.feature_extractor, self.profile = feature_extractor, dict(profile or {})
        self.customer_id = to_id(customer_id)
        self._start([])  # raises if the profile can't be encoded

    def _start(self, events: Sequence[RawEvent]) -> None:
        """Begins with these events."""
        self.events = [*events]
        customer = {"events": self.events, "profile": self.profile, "customer_id": self.customer_id}
        with naming(self.name):
            self.customers = Customers.encode_one(self.feature_extractor, customer)

    @property
    def row(self) -> dict:
        """The events as `MCMFeatureExtractor.encode` returns them. Its arrays never change."""
        return self.customers[0]

    @property
    def name(self) -> str:
        """The customer in error messages."""
        return "Customer without id" if self.customer_id is None else f"Customer {self.customer_id!r}"

    @property
    def latest(self) -> int:
        """Time of the latest event, in seconds since 1970-01-01; `BEFORE_ALL` without one."""
        return self.customers.column("times").max(initial=BEFORE_ALL)

    @property
    def last_time(self) -> str | None:
        """Time of the latest event in ISO 8601; None without one, or in a log without times."""
        return None if self.feature_extractor.time is None or not self.events else to_iso(self.latest)

    def add(self, events: object, as_of: Time = None) -> bool:
        """Adds events, in any order; they may be older than present ones. Returns whether some of them belong before
        the last visit.

        Args:
            events: one event (`dict`), a list of events, a data frame or a dict of columns, as for the feature
                extractor.
            as_of (*optional*): Time of the call; no event may be later.

        Raises:
            ValueError: If an event has no time, is later than `as_of`, or can't be encoded. Nothing has changed then.
        """
        added, now = self._read(events), self.feature_extractor.read_as_of(as_of)
        with naming(self.name):
            customers = self.customers.add(added)
        if now is not None and added:
            extractor = self.feature_extractor
            latest = read_times([event[str(extractor.time)] for event in added], extractor.time_zone).max()
            if latest > now:
                raise ValueError(
                    f"{self.name} has an event at {to_iso(latest)}, which is after now, {to_iso(now)}: check the "
                    "event's time and its time zone, or leave it out."
                )
        self.customers, self.events = customers, [*self.events, *added]
        return bool(np.any(customers.late))

    def remove(self, event: Mapping) -> None:
        """Removes one event as it was added, of several equal ones the last. All later results are those of a customer
        who never had it. Raises `ValueError` if the customer has no such event."""
        (target,), events = self._read([event]), [*self.events]
        if target not in events:
            raise ValueError(
                f"{self.name} has no event {dict(event)!r}: give all columns of the event as they were added."
            )
        del events[len(events) - 1 - events[::-1].index(target)]
        self._start(events)

    def read_as_of(self, as_of: Time) -> float | None:
        """Seconds since 1970-01-01 of `as_of`; raises a `ValueError` if it is before the last event."""
        seconds = self.feature_extractor.read_as_of(as_of)
        if seconds is not None and seconds < self.latest:
            raise ValueError(
                f"`as_of` is {to_iso(seconds)}, and {self.name} has an event at {to_iso(self.latest)}: the clock went "
                "back, or the event lies in the future. Ask at the last event or later."
            )
        return seconds

    def _read(self, events: object) -> list[RawEvent]:
        """Converts events to dicts of plain values that JSON can hold. Raises `ValueError` if an event has no time, or
        a value that can't be read."""
        extractor = self.feature_extractor
        with naming(self.name):
            if isinstance(events, Mapping):  # one event, or columns
                kinds = {hasattr(value, "to_numpy") or isinstance(value, COLUMNS) for value in events.values()}
                events = events if kinds == {True} else [events]
            columns, count = read_columns(events, extractor._encoding.schema.event_columns)
        plain: dict[str, list] = {}
        for name, column in columns.items():
            with naming(f"{self.name}: column {name!r}"):
                if name == extractor.time:
                    plain[name] = write_times(column, extractor.time_zone)
                else:
                    plain[name] = list(map(_to_plain, as_list(column)))
        return [
            {name: values[place] for name, values in plain.items() if values[place] is not None}
            for place in range(count)
        ]


def _to_plain(value: object) -> object:
    """Converts a raw value for JSON: text, numbers, booleans and lists of them stay, other values become text."""
    if isinstance(value, COLUMNS):
        return [_to_plain(each) for each in as_list(value)]
    if is_missing(value):
        return None
    if isinstance(value, np.generic) and value.dtype.kind not in "mM":
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)  # JSON has no infinity; as text it is read as the same number
    return value if isinstance(value, str | int | float) else to_text(value)


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

    def refresh(self, model: Heads, feature_extractor: MCMFeatureExtractor) -> None:
        """Goes on with another model of the same log, such as `mcm refresh` makes it: the events are read again, and
        labels that are new in it are known. Raises `ValueError` if the two do not belong together."""
        feature_extractor.check_fits(model)
        self.model, self._predictor = model, Predictor(model, feature_extractor)
        self.feature_extractor = feature_extractor
        self._start(self.events)

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
        questions = Questions(as_of, tasks, k, candidates, exclude, per_group, horizon_days)
        return describe_labels(*self._ask(questions))

    def embedding(self, as_of: Time = None) -> NDArray[np.float32]:
        """The customer embedding, float32 of shape `(S,)`."""
        return self._ask(Questions(as_of, embedding=True))[0][EMBEDDING][0].numpy()

    def forecast(
        self,
        as_of: Time = None,
        days: Sequence[float] | None = None,
        known: object = None,
        discount_rate: float | None = None,
    ) -> dict[str, float]:
        """Forecasts from `as_of` on by name, as [`CustomerForecastPipeline`] returns them, whose options these are.
        Raises [`MissingForecastsError`], a `ValueError`, if the checkpoint has no trained forecasts."""
        questions = Questions(as_of, forecasts=True, days=days, known=known, discount_rate=discount_rate)
        return describe_numbers(self._ask(questions)[0])

    def explain(self, task: str, label: object = None, as_of: Time = None) -> Explanation:
        """Explains the score of a label (a value of the task's feature; default: the one with the highest score) by
        what it would be without each visit. Raises `ValueError` if the task or the label is unknown."""
        return explain(self.model, self.feature_extractor, self.row, task, label, self.read_as_of(as_of))

    def predict(self, as_of: Time = None, label_columns: Mapping | None = None) -> dict[str, float]:
        """What an [`MCMForCustomerPrediction`] was fine-tuned to: the probability of each class, or the number. As in
        training, events at `as_of` are not read. `label_columns` are the customer's further columns; of those that
        are not given the means are read. Raises [`MissingHeadError`], a `ValueError`, for another model."""
        return describe_numbers(self._ask(Questions(as_of, label=True), label_columns)[0])

    def offers(self, actions: object, as_of: Time = None) -> list[dict[str, str | float]]:
        """The outcomes of offers that are made at `as_of` (default: right after the last event), for each action a
        dict of `action_id` and each outcome's probability, in the order of the actions. As in training, events at
        `as_of` are not read. Raises [`MissingHeadError`], a `ValueError`, unless the model is an
        [`MCMForActionRecommendation`].

        Args:
            actions: dicts with `action_id` and columns of the event log, see [`ActionScoresPipeline`]; or what
                [`EncodedActions`] makes of them, once for many customers.
        """
        return describe_offers(*self._ask(Questions(as_of, offers=actions)))

    def _ask(self, asked: Questions, label_columns: Mapping | None = None) -> tuple[Columns, CheckedQuestions]:
        asked = replace(asked, as_of=self.read_as_of(asked.as_of), later_counts=True)
        questions = self._predictor.check(asked)
        customers = replace(self.customers, columns=self.customers.columns | {LABEL_COLUMNS: [label_columns]})
        return self._predictor.ask(customers, questions), questions

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
