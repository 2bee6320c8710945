# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customer state, a vector that describes a customer at a time.

The state is computed from decayed counts: the numbers of visits, events and feature values that a customer had, where
older ones weigh less. Such counts describe a customer better than the encoder's last vector does, and they are
defined for any time `as_of`, also long after the last event. The state is trained to predict what followed random
times and to reconstruct the counts (`modeling_mcm.training.moments`).

Shapes: B customers, L events, J features, M times of a customer, N summed features, K half-lives (the infinite one
included), V values of a feature, S size of the state.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_mcm import MISSING_ID, MCMConfig

# Half-life, in days, of the counts of features with many values; they are also counted undecayed.
PROJECTED_HALF_LIFE = 30.0
PROJECTION_SIZE, MLP_HIDDEN = 128, 256  # rows of P (see CustomerState), and hidden size of the network
COMPONENTS = 32  # largest number of principal components in the state
STATE_DROPOUT = 0.3  # dropout probability on z
STATE_HALF_LIVES = (7.0, 30.0, 90.0)  # half-lives of the other counts; they are also counted undecayed
MIN_STD, LARGEST_Z = 0.05, 8.0  # smallest standard deviation, and largest absolute value, of standardised counts
ANY_SILENCE = 1e9  # days: the longest silence before training; a finite number, because infinite weights are refused
GAPS = ("days since the last event", "days since the first", "the ratio to the mean gap", "the mean gap")


def decay_weights(ages: torch.Tensor, half_lives: Sequence[float], is_counted: torch.Tensor) -> torch.Tensor:
    """Weights 2^(-age / half-life) of shape `(..., K)`, of ages of shape `(...)` in any unit; a negative age counts as
    0. They are 0 where `is_counted` `(...)` is False."""
    scales = torch.tensor([*half_lives], dtype=ages.dtype, device=ages.device)
    return torch.exp2(-ages.clamp(min=0)[..., None] / scales) * is_counted[..., None]


def sum_by_value(ids: torch.Tensor, weights: torch.Tensor, size: int) -> torch.Tensor:
    """Sums of weights of events `(B, L, ...)` over the events with each value id, of shape `(B, size, ...)`; `ids` are
    of shape `(B, L)`."""
    rows = ids + size * torch.arange(len(ids), device=ids.device)[:, None]
    weights_by_event = weights.flatten(2).flatten(0, 1)
    sums = weights_by_event.new_zeros(len(ids) * size, weights_by_event.shape[1])
    return sums.index_add_(0, rows.flatten(), weights_by_event).view(len(ids), size, *weights.shape[2:])


class CustomerState(nn.Module):
    """The state of a customer at a time t:

        n_{x,k} = sum over events i until t of  x_i 2^(-(t - t_i) / T_k)
        z = (log(1 + n) - mean) / std
        learned = A z' + C gelu(D z'),  z' = [z of few values, P z of many values]
        state = [plain counts, components, learned]

    For each channel x, x_i is 1 for every event, 1 for the first event of each visit, the value of a summed feature,
    or 1 where a feature has one certain value. One of the half-lives T_k is infinite: that count does not decay.
    `state_features`, which have few values, are counted at every half-life. Tasks among the other features, which have
    many values, are counted at one half-life and undecayed (see `MCMConfig.counted_features`). z also contains the
    logarithms of `GAPS`. The start row is no event, so the profile is no part of the state. The plain counts are the z
    of `plain_counts`, which a linear model of visits or spend would otherwise miss. The components are the whitened
    principal components of the undecayed z of many values, and of the most frequent labels of larger tasks, which
    nothing else reads: what customers take together says who they are.

    A time later than `longest_silence` days after the last event counts as that late, because training saw no longer
    silence.
    """

    def __init__(self, config: MCMConfig):
        super().__init__()
        self.sizes = list(config.vocabulary_sizes)
        self.half_lives = list(STATE_HALF_LIVES)
        self.num_sums = len(config.summed_features)
        counted = config.counted_features
        self.few = [config.features.index(name) for name in counted["state_features"]]
        self.many = [config.features.index(name) for name in counted["projected_features"]]
        self.frequent = {config.features.index(name): size for name, size in counted["component_features"].items()}
        numbers = self.num_few + self.num_many + sum(self.frequent.values())
        self.mean, self.std = nn.Buffer(torch.zeros(numbers)), nn.Buffer(torch.ones(numbers))
        self.longest_silence = nn.Buffer(torch.tensor(ANY_SILENCE))
        self.size = config.state_size
        undecayed = numbers - self.num_few - self.num_many // 2
        self.components = min(COMPONENTS, self.size // 3, undecayed)
        self.directions = nn.Buffer(torch.zeros(self.components, undecayed))
        # None if all features have few values.
        self.item_projection = nn.Linear(self.num_many, PROJECTION_SIZE, bias=False) if self.many else None
        inputs = self.num_few + (PROJECTION_SIZE if self.many else 0)
        learned = self.size - len(self.plain_counts) - self.components
        self.linear = nn.Linear(inputs, learned)
        self.mlp_in = nn.Linear(inputs, MLP_HIDDEN)
        self.mlp_out = nn.Linear(MLP_HIDDEN, learned, bias=False)

    def reset_parameters(self) -> None:
        """Sets the buffers: mean 0, standard deviation 1, no components, a silence of any length. Weights start as in
        transformers."""
        init.zeros_(self.mean)
        init.zeros_(self.directions)
        init.ones_(self.std)
        init.constant_(self.longest_silence, ANY_SILENCE)

    @property
    def num_few(self) -> int:
        """Size of the first part of z: events, visits, sums, features with few values, and gaps."""
        channels = 2 + self.num_sums + sum(self.sizes[j] for j in self.few)
        return (len(self.half_lives) + 1) * channels + len(GAPS)

    @property
    def plain_counts(self) -> list[int]:
        """Indices in z of the counts that the state holds unchanged: gaps, visits, sums and events. There are at most
        half as many as the state has numbers; the first of this order come first."""
        kernels = len(self.half_lives) + 1
        gaps = list(range(self.num_few - len(GAPS), self.num_few))
        events, others = list(range(kernels)), list(range(kernels, kernels * (2 + self.num_sums)))
        return [*gaps, *others, *events][: self.size // 2]

    def undecayed(self, z: torch.Tensor) -> torch.Tensor:
        """The undecayed z of many values, and of frequent labels, of shape `(..., undecayed)`."""
        return torch.cat([z[..., self.num_few + 1 : self.num_few + self.num_many : 2], z[..., sum(self.blocks) :]], -1)

    @torch.no_grad()
    def find_components(self, undecayed: torch.Tensor) -> torch.Tensor:
        """Principal directions of the `undecayed` numbers `(R, undecayed)` of a sample of customers, scaled so that
        each component has variance 1, of shape `(components, undecayed)`."""
        result = torch.zeros_like(self.directions)
        if self.components:
            _, sizes, directions = torch.pca_lowrank(undecayed, min(self.components, *undecayed.shape), niter=4)
            scales = len(undecayed) ** 0.5 / sizes.clamp(min=1e-3 * sizes.max())
            result[: len(sizes)] = (directions * scales).T
        return result

    @torch.no_grad()
    def shrink_directions(self, states: torch.Tensor) -> torch.Tensor:
        """Scales the principal directions of the learned numbers, which come last, of the states `(R, S)` of a sample
        of times, and returns their new states `(R, S)`. A direction of variance v is scaled by
        v / (v + 1). The learned numbers are standardised, so 1 is the mean variance. What many numbers say together
        stays; what few say is mostly noise to a model that reads the state."""
        learned = slice(states.shape[1] - self.linear.out_features, None)
        numbers = states[:, learned].double()
        mean, std = numbers.mean(0), numbers.std(0).clamp(min=1e-6)
        z = (numbers - mean) / std
        variances, directions = torch.linalg.eigh(z.T @ z / len(z))
        shrinking = directions * (variances / (variances + 1)) @ directions.T
        weights = (std[:, None] * shrinking / std).to(states.dtype)  # of shape (learned, learned)
        mean = mean.to(states.dtype)
        self.linear.weight.copy_(weights @ self.linear.weight)
        self.mlp_out.weight.copy_(weights @ self.mlp_out.weight)
        self.linear.bias.copy_(mean + weights @ (self.linear.bias - mean))
        return torch.cat([states[:, : learned.start], mean + (states[:, learned] - mean) @ weights.T], 1)

    @property
    def num_many(self) -> int:
        """Size of the second part of z: features with many values."""
        return 2 * sum(self.sizes[j] for j in self.many)

    @property
    def blocks(self) -> list[int]:
        """Sizes of the blocks of z that learned numbers read: the first part, and a block a feature of many values."""
        return [self.num_few, *(2 * self.sizes[j] for j in self.many)]

    @torch.no_grad()
    def counts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        visit_ids: torch.Tensor | None,
        event_times: torch.Tensor,
        event_values: torch.Tensor | None,
        as_of: torch.Tensor,
    ) -> torch.Tensor:
        """log(1 + n) and the logarithms of the gaps, not standardised.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event, the start row first.
            attention_mask (`torch.Tensor` of shape `(B, L)`): 1 where an event is real.
            visit_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Visit of each event; `None`: each event is a
                visit.
            event_times (`torch.FloatTensor` of shape `(B, L)`): Days from the customer's first event to each event.
            event_values (`torch.FloatTensor` of shape `(B, L, N)`, *optional*): Values of the summed features; may be
                `None` if there are no summed features.
            as_of (`torch.FloatTensor` of shape `(B, M)`): Times, in days on the clock of `event_times`. Events after
                a time are not counted. A time after `longest_silence` counts as the end of that silence.

        Returns:
            `torch.FloatTensor` of shape `(B, M, numbers)`, where numbers are those of `mean`.

        Raises:
            ValueError: If there are summed features and no `event_values`.
        """
        is_event = attention_mask.bool() & (torch.arange(input_ids.shape[1], device=as_of.device) > 0)
        opens = is_event
        if visit_ids is not None:
            opens = is_event & (visit_ids != F.pad(visit_ids, (1, 0), value=-1)[:, :-1])
        past = (event_times[..., None] <= as_of[:, None, :]) & is_event[..., None]  # (B, L, M)
        is_known = past.any(1)
        last = torch.where(is_known, torch.where(past, event_times[..., None], -math.inf).amax(1), as_of)
        first = torch.where(is_known, torch.where(past, event_times[..., None], math.inf).amin(1), as_of)
        as_of = torch.minimum(as_of, last + self.longest_silence)
        ages = as_of[:, None, :] - event_times[..., None]
        days = [*self.half_lives, math.inf]
        weights = decay_weights(ages, days, past)  # (B, L, M, K)
        if self.num_sums and event_values is None:
            raise ValueError("The customer state sums values: `event_values` of MCMFeatureExtractor are missing.")
        channels = [is_event.to(weights.dtype), opens.to(weights.dtype)]
        channels += [] if event_values is None else list(event_values[..., : self.num_sums].unbind(-1))
        sums = [torch.einsum("blmk,bl->bmk", weights, channel) for channel in channels]

        def by_value(sizes: Mapping[int, int], event_weights: torch.Tensor) -> list[torch.Tensor]:
            """Sums of event weights `(B, L, M, k)` by the first ids of features, each of shape `(B, M, ids k)`."""
            parts = []
            for feature, size in sizes.items():
                ids = input_ids[..., feature]
                sums = sum_by_value(torch.where(ids < size, ids, MISSING_ID), event_weights, size)
                sums[:, MISSING_ID] = 0.0
                parts.append(sums.transpose(1, 2).flatten(2))
            return parts

        nearest = min(range(len(days)), key=lambda k: abs(days[k] - PROJECTED_HALF_LIFE))
        few, many = ({j: self.sizes[j] for j in features} for features in (self.few, self.many))
        values = [*by_value(many, weights[..., [nearest, -1]]), *by_value(self.frequent, weights[..., [-1]])]
        since_last, since_first = as_of - last, as_of - first
        visits = sums[1][..., -1]  # the undecayed number of visits
        gap = (since_first - since_last) / (visits - 1).clamp(min=1)
        gaps = torch.stack([since_last, since_first, since_last / (gap + 0.5), gap], -1)
        return torch.cat([*sums, *by_value(few, weights), gaps, *values], -1).clamp_(min=0).log1p_()

    def standardised(self, counts: torch.Tensor, indices: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Standardises counts: z = (counts - mean) / std, clipped."""
        mean, std = self.mean[indices], self.std[indices].clamp(min=MIN_STD)
        return (counts - mean).div_(std).clamp_(-LARGEST_Z, LARGEST_Z)  # in place: there may be many thousand counts

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Computes the state, of shape `(..., S)`, from counts of shape `(..., numbers)`."""
        return self.from_standardised(self.standardised(counts))

    def from_standardised(self, z: torch.Tensor) -> torch.Tensor:
        """Computes the state, of shape `(..., S)`, from z as `standardised` returns it, of shape `(..., numbers)`."""
        z = z.to(self.linear.weight.dtype)
        if self.training:
            z = self._with_dropout(z)
        few, many = z[..., : self.num_few], z[..., self.num_few : sum(self.blocks)]
        read = few if self.item_projection is None else torch.cat([few, self.item_projection(many)], -1)
        learned = self.linear(read) + self.mlp_out(F.gelu(self.mlp_in(read)))
        return torch.cat([z[..., self.plain_counts], F.linear(self.undecayed(z), self.directions), learned], -1)

    def _with_dropout(self, z: torch.Tensor) -> torch.Tensor:
        """Dropout on z but for `plain_counts`, which a head reads directly."""
        least, size = round(256 * STATE_DROPOUT), z.numel()
        numbers = torch.empty(-(-size // 8), dtype=torch.int64, device=z.device).random_(-(2**63), None)
        factors = (numbers.view(torch.uint8)[:size].view(z.shape) >= least).to(z.dtype).mul_(256 / (256 - least))
        factors[..., self.plain_counts] = 1.0
        return factors.mul_(z)

    @torch.no_grad()
    def grow(self, feature: int, number: int) -> None:
        """Appends new values to a feature (an index). Their weights are 0, so the state stays until fine-tuning."""
        if feature not in (*self.few, *self.many):
            self.sizes[feature] += number
            return
        kernels, is_few = len(self.half_lives) + 1, feature in self.few
        counted, width = (self.few, kernels) if is_few else (self.many, 2)
        # Index behind the feature's last value; the counts of one value stand side by side.
        values = sum(self.sizes[j] for j in counted[: counted.index(feature) + 1])
        index = width * values + (kernels * (2 + self.num_sums) if is_few else self.num_few)
        columns = width * number
        self.mean = nn.Buffer(_inserted(self.mean, index, columns, 0.0))
        self.std = nn.Buffer(_inserted(self.std, index, columns, 1.0))
        layers = (self.linear, self.mlp_in) if is_few else (cast(nn.Linear, self.item_projection),)
        if not is_few:
            index -= self.num_few
            self.directions = nn.Buffer(_inserted(self.directions, index // 2, number, 0.0))
        for layer in layers:
            layer.weight = nn.Parameter(_inserted(layer.weight, index, columns, 0.0))
            layer.in_features += columns
        self.sizes[feature] += number


def _inserted(values: torch.Tensor, index: int, number: int, value: float) -> torch.Tensor:
    """Inserts `number` elements of one value before the element `index` of the last axis."""
    new = values.new_full((*values.shape[:-1], number), value)
    return torch.cat([values[..., :index], new, values[..., index:]], -1)
