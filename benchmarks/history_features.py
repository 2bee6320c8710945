# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts of a customer's history that a careful analyst would make by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DECAYS = {"all": np.inf, "30": 30.0, "120": 120.0}  # half-lives in days
COARSE = 48  # a customer's events are counted by each value of a feature that has fewer


class HistoryFeatures:
    """Hand-made features of a padded batch of customers.

    `days_until`, of shape `(B,)`, are the days from each customer's last event to a moment; NaN without events.
    """

    def __init__(self, extractor: Any, batch: Mapping[str, NDArray], days_until: NDArray):
        self.extractor, self.batch = extractor, batch
        self.ids, self.times, self.visits = (batch[name] for name in ("input_ids", "event_times", "visit_ids"))
        real = batch["attention_mask"].astype(bool)
        real[:, 0] = False  # the start row
        self.owner, self.event_index = np.nonzero(real)
        self.customers = len(real)
        self.age = self.times.max(1)[self.owner] - self.times[real] + np.nan_to_num(days_until)[self.owner]
        self.days_until = days_until
        self.events = np.bincount(self.owner, minlength=self.customers)

    def make(self) -> dict[str, NDArray]:
        """Computes the features by name, each of shape `(B,)`, without the profile."""
        result = self._history()
        for feature in self._shared_features():
            if self._size(feature) <= COARSE:
                for name, half_life in DECAYS.items():
                    counts, values = self._counts(feature, half_life), self.extractor.vocabularies[feature]
                    result |= {f"{feature} {value} {name}": counts[:, 2 + index] for index, value in enumerate(values)}
        return result

    def _shared_features(self) -> list[str]:
        token = self.extractor.token_type_feature
        events = [feature for feature in self.extractor.features if not feature.get("profile")]
        names = [each["name"] for each in events if each.get("kind", "categorical") == "categorical"]
        return [name for name in names if name != token]

    def _index(self, feature: str) -> int:
        return self.extractor.feature_names.index(feature)

    def _size(self, feature: str) -> int:
        return self.extractor.vocabulary_sizes[self._index(feature)]

    def _counts(self, feature: str, half_life: float) -> NDArray:
        size = self._size(feature)
        cell = self.owner * size + self.ids[self.owner, self.event_index, self._index(feature)]
        total = np.bincount(cell, 0.5 ** (self.age / half_life), minlength=self.customers * size)
        return total.reshape(self.customers, size)

    def _history(self) -> dict[str, NDArray]:
        extractor, events, most = self.extractor, np.maximum(self.events, 1), self.visits.max() + 1
        token = extractor.token_type_feature
        result = {
            "events": self.events,
            "days_since_event": self.days_until,
            "days_of_history": self.times.max(1) + self.days_until,
            "visits": self.visits.max(1),
            "events_a_visit": self.events / np.maximum(self.visits.max(1), 1),
        }
        for days in (30, 90):
            recent = self.age < days
            keys = np.unique(self.owner[recent] * most + self.visits[self.owner, self.event_index][recent])
            result[f"visits_{days}"] = np.bincount(keys // most, minlength=self.customers)
            result[f"events_{days}"] = np.bincount(self.owner, recent, minlength=self.customers)
        for name, half_life in DECAYS.items():
            counts = self._counts(token, half_life)
            for index, value in enumerate(extractor.vocabularies[token]):
                result[f"{value}_{name}"] = counts[:, 2 + index]
                result[f"{value}_share_{name}"] = counts[:, 2 + index] / np.maximum(counts.sum(1), 1e-9)
        tokens = self.ids[self.owner, self.event_index, self._index(token)]
        for index, value in enumerate(extractor.vocabularies[token]):
            last = np.full(self.customers, np.inf)
            same = tokens == 2 + index
            np.minimum.at(last, self.owner[same], self.age[same])
            result[f"days_since_{value}"] = np.where(np.isinf(last), np.nan, last)
        for feature in self._numbers():
            values, known = self._values(feature, self.ids[self.owner, self.event_index, self._index(feature)])
            result[f"sum_{feature}"] = total = np.bincount(self.owner, values, minlength=self.customers)
            result[f"mean_{feature}"] = total / np.maximum(np.bincount(self.owner, known, minlength=self.customers), 1)
            result[f"sum_{feature}_30"] = np.bincount(self.owner, values * (self.age < 30), minlength=self.customers)
        result["events_a_day"] = self.events / np.maximum(result["days_of_history"], 1)
        result["share_of_recent"] = result["events_30"] / events
        return result

    def _numbers(self) -> list[str]:
        """Numeric features of events."""
        events = [feature["name"] for feature in self.extractor.features if not feature.get("profile")]
        return [name for name in events if len(self.extractor.bins.get(name, ()))]

    def _values(self, feature: str, bins: NDArray) -> tuple[NDArray, NDArray[np.bool_]]:
        """The middle of each bin, 0 where there is none, and where there is one."""
        edges, known = self.extractor.bins[feature], bins >= 2
        middles = np.interp(np.arange(len(edges) + 1), np.arange(len(edges)) + 0.5, edges)
        return np.where(known, middles[np.maximum(bins - 2, 0)], 0.0), known
