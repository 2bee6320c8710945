# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts of a customer's events that match an action: how often, how long ago, and which share of all events.

A softmax average can't count, and counts predict best which customer takes which offer. They are inputs of the head;
nothing here is trained.

Shapes: B customers, L events, J features, N summed features; A actions of the batch, R action rows, M matches (events
that did what an action asks for); D half-lives, the infinite one of unfaded counts included; V values of a feature.
"""

import math

import torch
import torch.nn.functional as F

from .configuration_mcm import FIRST_LABEL, MCMConfig

# Half-lives of the counts, in days; matches are also counted unfaded.
HALF_LIVES_DAYS = (14.0, 60.0, 365.0)
NEVER = 10_000.0  # number of days since an event that never happened
LEAST_SHARE = 1e-3  # added to shares of a customer's events before the logarithm


def counted_features(config: MCMConfig) -> list[str]:
    """Features whose values an action shares with a history, and that are counted.

    Args:
        config ([`MCMConfig`]): configuration of the model.

    Returns:
        `config.action_features`, or all tasks if it is `None`.
    """
    return list(config.tasks if config.action_features is None else config.action_features)


def count_names(config: MCMConfig) -> tuple[list[str], list[str]]:
    """Names of the numeric features of [`ActionCounts`].

    Args:
        config ([`MCMConfig`]): configuration of the model.

    Returns:
        Names for the last axis of `ActionCounts.of_offers`, and for that of `ActionCounts.of_customers`.
    """
    fading = [*(f"{days:g}d" for days in HALF_LIVES_DAYS), "all"]
    kinds = ["did", "visits", *(f"{name} of did" for name in config.summed_features)]
    kinds += ["did as asked"] if config.action_history_feature else []
    names = [f"{kind} {each}" for kind in kinds for each in fading] + ["days since did"]
    for feature in counted_features(config):
        names += [f"{kind} {feature} {each}" for kind in ("shared", "share of") for each in fading]
        names += [f"days since {feature}", f"values of {feature}"]
    of_customers = [f"all visits {each}" for each in fading] + ["days since any"]
    if (kind_of_event := config.action_history_feature) is not None:
        size = config.vocabulary_sizes[config.features.index(kind_of_event)]
        ids = range(FIRST_LABEL, size)
        of_customers += [f"{kind_of_event} {value} {each}" for value in ids for each in fading]
        of_customers += [f"days since {feature} {value}" for value in ids]
    return names, of_customers


class ActionCounts:
    """Fading counts of a batch of histories at the time of the offers; every count n is returned as log(1 + n).

    Args:
        config ([`MCMConfig`]): configuration of the model.
        input_ids (`torch.LongTensor` of shape `(B, L, J)`): feature ids of each event, the start row first.
        visit_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): visit of each event; `None`: each event is a
            visit.
        ages (`torch.FloatTensor` of shape `(B, L)`): days from each event to the offers, infinite on padding.
        event_values (`torch.FloatTensor` of shape `(B, L, N)`, *optional*): values of the summed features; may be
            `None` if there are no summed features.

    Raises:
        ValueError: if there are summed features and no `event_values`.
    """

    def __init__(
        self,
        config: MCMConfig,
        input_ids: torch.Tensor,
        visit_ids: torch.Tensor | None,
        ages: torch.Tensor,
        event_values: torch.Tensor | None,
    ):
        if config.summed_features and event_values is None:
            raise ValueError("The head for offers sums values: `event_values` of MCMFeatureExtractor are missing.")
        self.config, self.input_ids, self.ages, self.event_values = config, input_ids, ages, event_values
        self.is_event = ages.isfinite()
        self.visits = torch.arange(ages.shape[1], device=ages.device).expand_as(ages)
        if visit_ids is not None:
            self.visits = visit_ids
        half_lives = ages.new_tensor([*HALF_LIVES_DAYS, math.inf])
        days = ages.clamp(min=0, max=NEVER)[..., None]
        self.weights = torch.exp2(-days / half_lives) * self.is_event[..., None]  # (B, L, D)

    def of_values(self, feature: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts of each value of a feature.

        Args:
            feature (`str`): name of the feature.

        Returns:
            Counts n of shape `(B, V, D)`, and days since the latest event with the value, of shape `(B, V)`.
        """
        index = self.config.features.index(feature)
        ids, size = self.input_ids[..., index], self.config.vocabulary_sizes[index]
        counts = self.weights.new_zeros(len(ids), size, self.weights.shape[-1])
        counts.scatter_add_(1, ids[..., None].expand_as(self.weights), self.weights)
        days = self.ages.new_full((len(ids), size), NEVER)
        days.scatter_reduce_(1, ids, self.ages.clamp(max=NEVER), "amin")
        return counts, days

    def of_customers(self) -> torch.Tensor:
        """Counts that do not depend on the action.

        Returns:
            `torch.FloatTensor` of shape `(B, numbers)`; the second list of `count_names` names the numbers.
        """
        opens = self.is_event & (self.visits != F.pad(self.visits, (1, 0), value=-1)[:, :-1])
        last = self.ages.clamp(max=NEVER).amin(1, keepdim=True)
        numbers = [torch.einsum("bld,bl->bd", self.weights, opens.to(self.weights.dtype)).log1p(), last.log1p()]
        if self.config.action_history_feature is not None:
            counts, days = self.of_values(self.config.action_history_feature)
            numbers += [counts[:, FIRST_LABEL:].log1p().flatten(1), days[:, FIRST_LABEL:].log1p()]
        return torch.cat(numbers, -1)

    def of_offers(self, action_ids: torch.Tensor, rows: torch.Tensor, matches: torch.Tensor, count: int):
        """Counts of the events that match each action, and of the values that action and history share.

        Args:
            action_ids (`torch.LongTensor` of shape `(R, J)`): feature ids of each action row.
            rows (`torch.LongTensor` of shape `(R,)`): index of each row's action.
            matches (`torch.LongTensor` of shape `(M, 3)`): index of customer, event and action of each match.
            count (`int`): A, the number of actions.

        Returns:
            `torch.FloatTensor` of shape `(B, A, numbers)`; the first list of `count_names` names the numbers.
        """
        numbers = self._of_matches(action_ids, rows, matches, count)
        for feature in counted_features(self.config):
            index = self.config.features.index(feature)
            actions, labels = self.labels_of(index, action_ids, rows)
            size = torch.bincount(actions, minlength=count).to(self.weights.dtype)
            counts, days = self.of_values(feature)
            counts[:, :FIRST_LABEL] = 0
            shared = counts.new_zeros(len(counts), count, counts.shape[-1]).index_add(1, actions, counts[:, labels])
            share = shared / counts.sum(1)[:, None].clamp(min=LEAST_SHARE)
            last = days.new_full((len(days), count), NEVER)
            last = last.scatter_reduce(1, actions.expand(len(days), -1), days[:, labels], "amin")
            numbers += [shared.log1p(), (share + LEAST_SHARE).log(), last[..., None].log1p()]
            numbers.append(size.log1p()[None, :, None].expand(len(counts), -1, -1))
        return torch.cat(numbers, -1)

    def labels_of(self, index: int, action_ids: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distinct values of a feature in each action.

        Args:
            index (`int`): index of the feature in `config.features`.
            action_ids (`torch.LongTensor` of shape `(R, J)`): feature ids of each action row.
            rows (`torch.LongTensor` of shape `(R,)`): index of each row's action.

        Returns:
            Two `torch.LongTensor` with one element for each distinct pair: index of the action, and value id.
        """
        values = self.config.vocabulary_sizes[index]
        pairs = (rows * values + action_ids[:, index]).unique()
        pairs = pairs[pairs % values >= FIRST_LABEL]
        return pairs // values, pairs % values

    def _of_matches(self, action_ids: torch.Tensor, rows: torch.Tensor, matches: torch.Tensor, count: int):
        """Counts, visits, sums and age of the matches of each customer and action, each of shape `(B, A, ...)`."""
        batch, length = self.ages.shape
        owners, events, actions = matches.T
        cells, weights = owners * count + actions, self.weights[owners, events]

        def total_of(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            """log(1 + sum) over each customer and action, of shape `(B, A, D)`."""
            zeros = values.new_zeros(batch * count, values.shape[-1])
            return zeros.index_add(0, indices, values).view(batch, count, -1).clamp(min=0).log1p()

        keys, visit_of = (cells * length + self.visits[owners, events]).unique(return_inverse=True)
        once = weights.new_zeros(len(keys), weights.shape[-1])
        once = once.scatter_reduce(0, visit_of[:, None].expand_as(weights), weights, "amax")
        numbers = [total_of(weights, cells), total_of(once, keys // length)]
        if self.event_values is not None:
            values = self.event_values[owners, events]
            numbers += [
                total_of(weights * values[:, [index]], cells) for index in range(len(self.config.summed_features))
            ]
        if self.config.action_history_feature is not None:
            kind = self.config.features.index(self.config.action_history_feature)
            kinds = torch.zeros(count, self.config.vocabulary_sizes[kind], dtype=torch.bool, device=rows.device)
            kinds[rows, action_ids[:, kind]] = True
            same = kinds[actions, self.input_ids[owners, events, kind]]
            numbers.append(total_of(weights[same], cells[same]))
        last = self.ages.new_full((batch * count,), NEVER).scatter_reduce(0, cells, self.ages[owners, events], "amin")
        return [*numbers, last.view(batch, count, 1).clamp(min=0).log1p()]
