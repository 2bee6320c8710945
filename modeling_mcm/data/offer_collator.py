# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From prepared rows and offers to a batch: the history before the offers, the offered actions, their outcomes.

Shapes: B groups of offers, K offers of the largest group, O outcomes. The other shapes are those that
`action_inputs_mcm.py` names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from modeling_mcm.action_inputs_mcm import NOT_OFFERED, EncodedActions
from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data.collator import IGNORED, PreparedRows
from modeling_mcm.data.offers import Offers
from modeling_mcm.events_mcm import events_before
from modeling_mcm.processing_mcm import MCMFeatureExtractor


class OfferGroups(Dataset):
    """Groups of offers, each with its customer's history **before** the offers were made.

    Raises:
        ValueError: If a customer is not in the prepared data set. A customer without events before the offers is no
            error: the model then reads the profile and the start row alone.
    """

    def __init__(self, rows: datasets.Dataset, offers: Offers, groups: ArrayLike | None = None):
        self.offers = offers
        self.groups = np.arange(len(offers.group_ids)) if groups is None else np.asarray(groups)
        indices = {customer: index for index, customer in enumerate(rows["customer_id"])}
        customer_ids = offers.customer_ids[self.groups]
        if missing := sorted({customer for customer in customer_ids if customer not in indices}):
            raise ValueError(
                f"{len(missing)} customers of the offers are not in the prepared data set, such as {missing[0]!r}; "
                "prepare the log with their events, or leave their offers out."
            )
        self.rows = PreparedRows(rows, [indices[customer] for customer in customer_ids])

    def costs(self, max_events: int) -> NDArray[np.int64]:
        """Estimates what the time of a step grows with: the number of events, each of which is embedded, plus ten
        times the number of visits, each of which every label of every task reads."""
        estimates = np.zeros(len(self), np.int64)
        for start in range(0, len(self), 256):
            items = self.__getitems__(list(range(start, min(start + 256, len(self)))))
            visits = [item["history"]["visits"][-max_events:] for item in items]
            estimates[start : start + 256] = [len(v) + 10 * (v[-1] - v[0] + 1) if len(v) else 0 for v in visits]
        return estimates

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Reads some groups with their histories."""
        groups = self.groups[indices]
        return [
            {"history": events_before(row, self.offers.times[group]), "group": int(group)}
            for row, group in zip(self.rows.__getitems__(indices), groups, strict=True)
        ]


class OfferCollator:
    """Turns groups of offers into inputs of `MCMForActionRecommendation`.

    Args:
        groups (`ArrayLike` of shape `(groups,)`, *optional*): Indices of the groups whose actions are checked.
            Default: all groups.
        max_events (`int`, *optional*): Largest number of events in an input, the start row included. Default:
            `max_events` of the feature extractor.

    Raises:
        ValueError: where `EncodedActions` raises it. Where features are the embedding of an action, also if an action
            of these groups has no value in any feature. Where each action has a vector of its own, also if an action
            has none.
    """

    def __init__(
        self,
        extractor: MCMFeatureExtractor,
        config: MCMConfig,
        offers: Offers,
        groups: ArrayLike | None = None,
        max_events: int | None = None,
    ):
        self.extractor, self.config, self.offers = extractor, config, offers
        self.max_events = extractor.max_events if max_events is None else max_events
        actions = (offers.action_ids, offers.columns, offers.row_offsets, offers.weights)
        self.actions = EncodedActions(extractor, config, *actions)
        groups = np.arange(len(offers.group_ids)) if groups is None else groups
        self.actions.check(np.unique(offers.actions[offers.indices(groups)]))

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch: the histories as `MCMFeatureExtractor.pad` gives them, the actions as `EncodedActions.inputs`
        gives them, `days_to_offers` float32 `(B,)` from the last event to the offers, and `labels` float32
        `(B, K, O)`: 0 or 1 for each outcome, -100 where it is not known."""
        groups = [item["group"] for item in items]
        sizes = np.diff(self.offers.offsets)[groups]
        cells, indices = np.arange(sizes.max()) < sizes[:, None], self.offers.indices(groups)
        offered = np.full(cells.shape, NOT_OFFERED)
        offered[cells] = self.offers.actions[indices]
        histories, times = [item["history"] for item in items], self.offers.times[groups].tolist()
        batch = self.actions.batch(histories, offered, times, self.max_events)
        return batch | {"labels": torch.from_numpy(self._labels(indices, cells))}

    def _labels(self, indices: NDArray, cells: NDArray[np.bool_]) -> NDArray[np.float32]:
        labels = np.full((*cells.shape, len(self.config.action_outcomes)), IGNORED, np.float32)
        for outcome, name in enumerate(self.config.action_outcomes):
            if name in self.offers.outcomes:
                values = self.offers.outcomes[name][indices]
                labels[cells, outcome] = np.where(np.isnan(values), IGNORED, values)
        return labels
