# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""LightGBM on hand-made features of offers: what fine-tuning has to beat. Needs LightGBM (the extra `gbdt`).

`offer_features` makes, from the same batches that MCM reads but with the whole history, what a careful analyst would:

- of the offer: how often the customer did what it asks (all the values of one of its rows), at three speeds of
  forgetting, how often with its token type too (bought with a coupon), in how many visits, how long ago, what was
  spent on it; by feature (department, type, manufacturer ...) how many events share a value with it,
  at the same speeds, and their share of all events; how broad it is, and its main value by feature;
- of the customer: events, visits, basket size, spend, recency, events of each token type (mailings, redemptions,
  purchases with a coupon ...), mean bins of numeric features, events by each value of coarse features, the profile;
- of the group: how many offers it has, and the sum and the maximum over them of what they share with the history.

`LightGBMOffers` is a classifier of groups for "who responds" and, for "which offer", a classifier or a lambdarank of
the offers of groups that take one, whichever is better on validation. `SEARCH` is the space of the search.

Shapes: G groups, N offers, F features of a customer and group, P features of an offer.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.evaluation.offers import OfferTruth, expected_takes, offer_metrics
from modeling_mcm.extras import needs
from modeling_mcm.times_mcm import SECONDS_PER_DAY

DECAYS = {"all": np.inf, "30": 30.0, "120": 120.0}  # half-lives in days
COARSE = 48  # a customer's events are counted by each value of a feature that has fewer
SEARCH: dict[str, tuple[Any, ...]] = {
    "num_leaves": (4, 8, 16, 31),
    "learning_rate": (0.02, 0.05, 0.1),
    "min_data_in_leaf": (5, 20, 60),
    "feature_fraction": (0.2, 0.5, 1.0),
    "lambda_l2": (0.0, 1.0, 10.0),
    "bagging_fraction": (0.7, 1.0),
}
TREES = (20, 40, 80, 160, 320)


@dataclass(frozen=True)
class OfferTable:
    """Features of groups, `(G, F)`, and of their offers, `(N, P)`, by name; NaN if a feature has no value.

    Group g has the offers from `offsets[g]` to before `offsets[g + 1]`.
    """

    offsets: NDArray[np.int64]
    groups: NDArray[np.float32]
    offers: NDArray[np.float32]
    group_names: list[str]
    offer_names: list[str]

    @property
    def joined(self) -> NDArray[np.float32]:
        """The features of the offers and of their groups, of shape `(N, P + F)`."""
        return np.concatenate([self.offers, np.repeat(self.groups, np.diff(self.offsets), axis=0)], axis=1)

    def of(self, groups: NDArray[np.int64]) -> "OfferTable":
        """Selects some of the groups."""
        sizes = np.diff(self.offsets)
        rows = np.concatenate([np.arange(self.offsets[group], self.offsets[group + 1]) for group in groups])
        offsets = np.concatenate([[0], np.cumsum(sizes[groups])])
        return OfferTable(offsets, self.groups[groups], self.offers[rows], self.group_names, self.offer_names)


def offer_features(extractor: Any, collator: Any, cases: Any, batch_size: int = 32) -> OfferTable:
    """Computes features of some groups of offers, from nothing but events before them.

    The collator's `max_events` must be above the longest history.
    """
    sizes, offers, groups = [0], [], []
    for start in logging.tqdm(range(0, len(cases), batch_size), desc="Features", unit="batch"):
        items = cases.__getitems__(list(range(start, min(start + batch_size, len(cases)))))
        batch = {name: value.numpy() for name, value in collator(items).items()}
        times = np.array([cases.offers.times[item["group"]] for item in items])
        latest = np.array([item["history"]["times"].max(initial=np.iinfo(np.int64).min) for item in items])
        days_until = np.where(latest > 0, (times - latest) / SECONDS_PER_DAY, np.nan)
        features = _OfferFeatures(extractor, batch, days_until)
        pair_features, customer_features = features.pair_features(), features.make()
        offered = batch["offered_actions"]
        cells = offered >= 0
        sizes += cells.sum(1).tolist()
        table = np.stack([values[np.nonzero(cells)[0], offered[cells]] for values in pair_features.values()], axis=1)
        offers.append(table.astype(np.float32))
        shared = [name for name in pair_features if name.startswith(("did_", "share_"))]
        for name in shared:
            inside = np.where(cells, np.take_along_axis(pair_features[name], np.maximum(offered, 0), 1), np.nan)
            customer_features[f"sum_{name}"] = np.nansum(inside, 1)
            customer_features[f"max_{name}"] = np.nanmax(inside, 1)
        customer_features["offers"] = cells.sum(1)
        groups.append(np.stack(list(customer_features.values()), axis=1).astype(np.float32))
    return OfferTable(
        np.cumsum(sizes), np.concatenate(groups), np.concatenate(offers), list(customer_features), list(pair_features)
    )


class HistoryFeatures:
    """Hand-made features of a padded batch of customers.

    `days_until`, of shape `(B,)`, are the days from each customer's last event to the time of the offers; NaN without
    events.
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


class _OfferFeatures(HistoryFeatures):
    """Besides, features of each pair of customer and offered action of the batch."""

    def __init__(self, extractor: Any, batch: Mapping[str, NDArray], days_until: NDArray):
        super().__init__(extractor, batch, days_until)
        self.actions = int(batch["offered_actions"].max()) + 1

    def make(self) -> dict[str, NDArray]:
        """Computes the features by name, each of shape `(B,)`, with the profile."""
        names = [feature["name"] for feature in self.extractor.features if feature.get("profile")]
        return super().make() | {name: self.ids[:, 0, self._index(name)] for name in names}

    def pair_features(self) -> dict[str, NDArray]:
        """Computes the features of pairs of customer and offered action by name, each of shape `(B, U)`."""
        offers: dict[str, NDArray] = {}
        customer, event, action = self.batch["action_matches"].T
        age = self.times.max(1)[customer] - self.times[customer, event] + np.nan_to_num(self.days_until)[customer]
        cell = customer * self.actions + action
        for name, half_life in DECAYS.items():
            total = np.bincount(cell, 0.5 ** (age / half_life), minlength=self.customers * self.actions)
            offers[f"did_{name}"] = total.reshape(self.customers, self.actions)
        offers |= self._more_of_matches(cell, customer, event, action, age)
        last = np.full(self.customers * self.actions, np.inf)
        np.minimum.at(last, cell, age)
        offers["days_since_did"] = np.where(np.isinf(last), np.nan, last).reshape(self.customers, self.actions)
        rows, weights = self.batch["action_rows"], self.batch["action_weights"]
        offers["rows"] = self._every(np.bincount(rows, minlength=self.actions))
        for feature in self._shared_features():
            size = self._size(feature)
            labels = self.batch["action_input_ids"][:, self._index(feature)]
            share = np.zeros((self.actions, size))
            np.add.at(share, (rows, labels), weights)
            share[:, :2] = 0  # missing, unknown
            offers[f"main_{feature}"] = self._every(np.where(share.any(1), share.argmax(1), np.nan))
            offers[f"values_{feature}"] = self._every((share > 0).sum(1))
            for name, half_life in DECAYS.items():
                counts = self._counts(feature, half_life)
                shared = counts @ (share > 0).T
                offers[f"share_{feature}_{name}"] = shared
                offers[f"of_all_{feature}_{name}"] = shared / np.maximum(counts.sum(1), 1e-9)[:, None]
        return offers

    def _more_of_matches(
        self, cell: NDArray, customer: NDArray, event: NDArray, action: NDArray, age: NDArray
    ) -> dict[str, NDArray]:
        """Counts events that did what an action asks: those of its token type, their visits, sums of numbers."""
        shape, token = (self.customers, self.actions), self._index(self.extractor.token_type_feature)
        offered = np.zeros((self.actions, self.extractor.vocabulary_sizes[token]), bool)
        offered[self.batch["action_rows"], self.batch["action_input_ids"][:, token]] = True
        same = offered[action, self.ids[customer, event, token]]
        result = {
            f"did_as_asked_{name}": np.bincount(cell[same], 0.5 ** (age[same] / half_life), np.prod(shape))
            for name, half_life in DECAYS.items()
        }
        visits = np.unique(cell * (self.visits.max() + 1) + self.visits[customer, event])
        result["visits_did"] = np.bincount(visits // (self.visits.max() + 1), minlength=np.prod(shape))
        for feature in self._numbers():
            values, _ = self._values(feature, self.ids[customer, event, self._index(feature)])
            result[f"sum_{feature}_did"] = np.bincount(cell, values, np.prod(shape))
        return {name: values.reshape(shape) for name, values in result.items()}

    def _every(self, values: NDArray) -> NDArray:
        return np.broadcast_to(values.astype(np.float64), (self.customers, self.actions))


class LightGBMOffers:
    """A classifier of groups, and a classifier or lambdarank of offers, tuned on validation.

    `trials` settings are drawn from `SEARCH` for each of the three models. `settings` holds for `responds` and `offer`
    the chosen parameters, number of trees and validation metric.
    """

    def __init__(self, trials: int = 20, seed: int = 0):
        self.trials, self.seed = trials, seed
        self.settings: dict[str, dict[str, Any]] = {}

    def search(self, train: OfferTable, train_truth: OfferTruth, valid: OfferTable, valid_truth: OfferTruth) -> None:
        """Chooses parameters: average precision decides for who responds, NDCG@10 for which offer."""
        once = np.ones((1, len(valid_truth.customer_ids)), np.int64)
        nothing = np.zeros(len(valid_truth.taken))

        def precision(scores: NDArray) -> float:
            return offer_metrics(valid_truth, nothing, scores, once)["average_precision"][0]

        def ndcg(scores: NDArray) -> float:
            return offer_metrics(valid_truth, scores, expected_takes(valid_truth.offsets, scores), once)["ndcg@10"][0]

        data = (train.groups, train_truth.responds, None)
        self.settings["responds"] = self._best("binary", data, valid.groups, precision)
        settings = [
            self._best(kind, self._offer_data(kind, train, train_truth), valid.joined, ndcg)
            for kind in ("binary", "lambdarank")
        ]
        self.settings["offer"] = max(settings, key=lambda setting: setting["validation"])

    def fit(self, table: OfferTable, truth: OfferTruth) -> None:
        """Fits both models with the parameters that the search chose."""
        kind = self.settings["offer"]["objective"]
        self.responds = self._train(self.settings["responds"], table.groups, truth.responds, None)
        self.offer = self._train(self.settings["offer"], *self._offer_data(kind, table, truth))

    def scores(self, table: OfferTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores the offers, of shape `(N,)`, and the groups, of shape `(G,)`."""
        return self.offer.predict(table.joined), self.responds.predict(table.groups)

    def _best(self, objective: str, data: tuple, features: NDArray, metric: Any) -> dict[str, Any]:
        space = list(itertools.product(*SEARCH.values()))
        drawn = np.random.default_rng(self.seed).permutation(len(space))[: self.trials]
        best: dict[str, Any] = {"validation": -np.inf}
        for index in logging.tqdm(drawn, desc=f"LightGBM {objective}"):
            setting = {"objective": objective, **dict(zip(SEARCH, space[index], strict=True))}
            booster = self._train({**setting, "trees": max(TREES)}, *data)
            for trees in TREES:
                value = metric(booster.predict(features, num_iteration=trees))
                if value > best["validation"]:
                    best = {**setting, "trees": trees, "validation": float(value)}
        return best

    def _offer_data(self, kind: str, table: OfferTable, truth: OfferTruth) -> tuple[NDArray, NDArray, NDArray | None]:
        """Only groups that take an offer tell which."""
        sizes = np.diff(table.offsets)
        responded = ~np.isnan(truth.taken) & np.repeat(truth.responds, sizes)
        group_sizes = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[responded], minlength=len(sizes))
        ranked = group_sizes[group_sizes > 0] if kind == "lambdarank" else None
        return table.joined[responded], truth.taken[responded], ranked

    def _train(self, setting: dict[str, Any], features: NDArray, labels: NDArray, sizes: NDArray | None) -> Any:
        with needs("gbdt"):
            import lightgbm
        parameters = {name: value for name, value in setting.items() if name not in ("trees", "validation")}
        parameters |= {"bagging_freq": 1, "seed": self.seed, "deterministic": True, "force_row_wise": True}
        parameters |= {"verbose": -1, "num_threads": 0}
        data = lightgbm.Dataset(features, labels.astype(np.int8), group=sizes, params=parameters)
        return lightgbm.train(parameters, data, setting["trees"])
