# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customer state, a vector that describes a customer at a time.

The state is computed from decayed counts: the numbers of visits, events and feature values that a customer had, where
older ones weigh less. Such counts describe a customer better than the encoder's last vector does, and they are
defined for any time `as_of`, also long after the last event. Nothing of it is trained: means, standard deviations and
principal directions are those of a sample of the log (`modeling_mcm.training.state`).

Shapes: B customers, L events, J features, M times of a customer, N summed features, K half-lives (the infinite one
included), V values of a feature, S size of the state.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_mcm import MISSING_ID, MCMConfig

# Half-life, in days, of the counts of features with many values; they are also counted undecayed.
PROJECTED_HALF_LIFE = 30.0
COMPONENTS = 32  # largest number of whitened principal components in the state
POWER_ITERATIONS = 4  # of randomised singular value decompositions
STATE_HALF_LIVES = (7.0, 30.0, 90.0)  # half-lives of the other counts; they are also counted undecayed
MIN_STD, LARGEST_Z = 0.01, 30.0  # smallest standard deviation, and largest absolute value, of standardised counts
ANY_SILENCE = 1e9  # days: the longest silence before training; a finite number, because infinite weights are refused
WHITENED, ROTATED = "component_", "direction_"  # first parts of the names of the state's components
GAPS = ("days_since_last", "days_since_first", "days_since_last_in_gaps", "mean_gap")


def decay_weights(ages: Tensor, half_lives: Sequence[float], is_counted: Tensor) -> Tensor:
    """Weights 2^(-age / half-life) of shape `(..., K)`, of ages of shape `(...)` in any unit; a negative age counts as
    0. They are 0 where `is_counted` `(...)` is False."""
    scales = torch.tensor([*half_lives], dtype=ages.dtype, device=ages.device)
    return torch.exp2(-ages.clamp(min=0)[..., None] / scales) * is_counted[..., None]


def sum_by_value(ids: Tensor, weights: Tensor, size: int) -> Tensor:
    """Sums of weights of events `(B, L, ...)` over the events with each value id, of shape `(B, size, ...)`; `ids` are
    of shape `(B, L)`."""
    customers = ids.shape[0]  # not len(ids), which an export takes for a constant
    rows = ids + size * torch.arange(customers, device=ids.device)[:, None]
    sums = weights.new_zeros(customers * size, *weights.shape[2:])
    return sums.index_add_(0, rows.flatten(), weights.flatten(0, 1)).unflatten(0, (customers, size))


def find_events(attention_mask: Tensor) -> Tensor:
    """Says of each place `(B, L)` whether it is an event: neither the start row nor padding."""
    is_event = attention_mask > 0
    is_event[:, 0] = False
    return is_event


class Exact(nn.Module):
    """A module that keeps its types when the model is cast: in half precision, counts would be wrong."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def move(value: Tensor) -> Tensor:
            moved = fn(value)
            return moved if moved.dtype == value.dtype else value.to(moved.device)

        return super()._apply(move, recurse)


class ZeroLinear(nn.Linear):
    """A linear layer of a head that starts at 0: all customers, or offers, get the same prediction."""


class CustomerState(Exact):
    """The state of a customer at a time t:

        n_{x,k} = sum over events i until t of  x_i 2^(-(t - t_i) / T_k)
        z = (log(1 + n) - mean) / std
        state = [plain counts, D z]

    For each channel x, x_i is 1 for every event, 1 for the first event of each visit, the value of a summed feature,
    or 1 where a feature has one certain value. One of the half-lives T_k is infinite: that count does not decay.
    `state_features`, which have few values, are counted at every half-life. Tasks among the other features, which have
    many values, are counted at one half-life and undecayed (see `MCMConfig.counted_features`). z also contains the
    logarithms of `GAPS`. The start row is no event, so the profile is no part of the state. The plain counts are the z
    of `plain_counts`, which a linear model of visits or spend would otherwise miss. The first rows of D give the
    whitened principal components of the undecayed z of many values, and of the most frequent labels of larger tasks,
    which nothing else reads: what customers take together says who they are. The others give
    the principal components of the rest of z, shrunk ([`find_directions`]).

    A time later than `longest_silence` days after the last event counts as that late, because the sample has no longer
    silence.
    """

    def __init__(self, config: MCMConfig):
        super().__init__()
        self.half_lives = list(STATE_HALF_LIVES)
        self.sums = list(config.summed_features)
        # By index of a feature the number of its ids that are counted
        self.few, self.many, self.frequent = (
            {config.features.index(name): size for name, size in part.items()} for part in config.counted_features
        )
        self.size, kernels = config.state_size, len(self.half_lives) + 1
        # Sizes of the parts of z: events, visits, sums, features with few values, and gaps; and a block a feature of
        # many values, which `find_directions` reads, too
        channels = 2 + len(self.sums) + sum(self.few.values())
        self.num_few = kernels * channels + len(GAPS)
        self.blocks = [self.num_few, *(2 * size for size in self.many.values())]
        # Indices in z of the counts that the state holds unchanged, at most half as many as it has numbers
        gaps = range(self.num_few - len(GAPS), self.num_few)
        events, others = range(kernels), range(kernels, kernels * (2 + len(self.sums)))
        self.plain_counts = [*gaps, *others, *events][: self.size // 2]
        rotated, numbers = self.size - len(self.plain_counts), sum(self.blocks) + sum(self.frequent.values())
        undecayed = sum(self.many.values()) + sum(self.frequent.values())
        self.components = min(COMPONENTS, self.size // 3, undecayed, rotated)  # whitened ones
        self.mean, self.std = nn.Buffer(torch.zeros(numbers)), nn.Buffer(torch.ones(numbers))
        self.longest_silence = nn.Buffer(torch.tensor(ANY_SILENCE))
        self.directions = nn.Buffer(torch.zeros(rotated, numbers))  # D

    def reset_parameters(self) -> None:
        """Sets the buffers: mean 0, standard deviation 1, no directions, a silence of any length."""
        init.zeros_(self.mean)
        init.zeros_(self.directions)
        init.ones_(self.std)
        init.constant_(self.longest_silence, ANY_SILENCE)

    @property
    def names(self) -> list[str]:
        """Names of the numbers of the state: what a plain count counts with its half-life in days (`inf`: undecayed),
        the whitened components, the most important first, and the rotated ones, which have no order."""
        days = [f"{day:g}d" for day in (*self.half_lives, math.inf)]
        plain = [f"{name}_{day}" for name in ("events", "visits", *self.sums) for day in days]
        named = [*plain, *[""] * (self.num_few - len(GAPS) - len(plain)), *GAPS]
        learned = [f"{WHITENED}{index}" for index in range(self.components)]
        learned += [f"{ROTATED}{index}" for index in range(len(self.directions) - self.components)]
        return [*(named[index] for index in self.plain_counts), *learned]

    @property
    def undecayed(self) -> Tensor:
        """Indices in z of the undecayed counts of many values, and of frequent labels."""
        index = torch.arange(len(self.mean), device=self.mean.device)
        return torch.cat([index[self.num_few + 1 : sum(self.blocks) : 2], index[sum(self.blocks) :]])

    @torch.no_grad()
    def find_directions(self, z: Tensor) -> None:
        """Sets the other rows of D to principal directions of the z `(R, numbers)` of a sample of times, which are
        overwritten, as they may be many. In the directions each of the `blocks` has the same weight. A component of
        variance v, in means of all of them, is scaled by v / (v + 1): what many numbers say together stays, and what
        few say is mostly noise. The components are rotated at random, because a model that standardises its inputs
        would undo that scale."""
        scale = torch.cat([torch.full((size,), size**-0.5) for size in self.blocks])
        rows = self.directions[self.components :]
        number = min(len(rows), len(z), len(scale))
        if number:
            z = z[:, : len(scale)].mul_(scale)
            _, sizes, directions = torch.svd_lowrank(z.sub_(z.mean(0)), number, niter=POWER_ITERATIONS)
            variances = sizes**2 / len(z)
            mean = variances.mean().clamp(min=1e-12)
            shrunk = directions * (variances / (variances + mean) / mean.sqrt())
            rotation = torch.linalg.qr(torch.randn(number, number)).Q
            rows.zero_()
            rows[:number, : len(scale)] = rotation @ shrunk.T * scale

    @torch.no_grad()
    def counts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visit_ids: Tensor,
        event_times: Tensor,
        event_values: Tensor | None,
        as_of: Tensor,
    ) -> Tensor:
        """log(1 + n) and the logarithms of the gaps, not standardised.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event, the start row first.
            attention_mask (`torch.Tensor` of shape `(B, L)`): 1 where an event is real.
            visit_ids (`torch.LongTensor` of shape `(B, L)`): Visit of each event.
            event_times (`torch.FloatTensor` of shape `(B, L)`): Days from the customer's first event to each event.
            event_values (`torch.FloatTensor` of shape `(B, L, N)`, *optional*): Values of the summed features; may be
                `None` if there are no summed features.
            as_of (`torch.FloatTensor` of shape `(B, M)`): Times, in days on the clock of `event_times`. Events after
                a time are not counted. A time after `longest_silence` counts as the end of that silence.

        Returns:
            `torch.FloatTensor` of shape `(B, M, numbers)`, where numbers are those of `mean`. A customer without
            events until a time has the average counts of the training, because nothing is known of the customer.

        Raises:
            ValueError: If there are summed features and no `event_values`.
        """
        is_event = find_events(attention_mask)
        opens = is_event & (visit_ids != F.pad(visit_ids, (1, 0), value=-1)[:, :-1])
        times, days = event_times[..., None], [*self.half_lives, math.inf]
        past = (times <= as_of[:, None, :]) & is_event[..., None]  # (B, L, M)
        first, last = torch.where(past, times, math.inf).amin(1), torch.where(past, times, -math.inf).amax(1)
        as_of = torch.minimum(as_of, last + self.longest_silence)
        weights = decay_weights(as_of[:, None, :] - times, days, past)  # (B, L, M, K)
        if self.sums and event_values is None:
            raise ValueError("The customer state sums values: `event_values` of MCMFeatureExtractor are missing.")
        channels = [is_event.to(weights.dtype), opens.to(weights.dtype)]
        channels += [] if event_values is None else list(event_values[..., : len(self.sums)].unbind(-1))
        sums = [torch.einsum("blmk,bl->bmk", weights, channel) for channel in channels]

        undecayed, projected = weights[..., [-1]], weights[..., [days.index(PROJECTED_HALF_LIFE), -1]]
        values = []  # sums of weights by the first ids of features, each of shape (B, M, ids of all half-lives)
        for sizes, kept in ((self.few, weights), (self.many, projected), (self.frequent, undecayed)):
            for feature, size in sizes.items():
                ids = input_ids[..., feature]
                by_value = sum_by_value(torch.where(ids < size, ids, MISSING_ID), kept, size)
                by_value[:, MISSING_ID] = 0.0
                values.append(by_value.transpose(1, 2).flatten(2))
        since_last, since_first = as_of - last, as_of - first
        visits = sums[1][..., -1]  # the undecayed number of visits
        gap = (since_first - since_last) / (visits - 1).clamp(min=1)
        gaps = torch.stack([since_last, since_first, since_last / (gap + 0.5), gap], -1)
        few = len(self.few)
        counts = torch.cat([*sums, *values[:few], gaps, *values[few:]], -1).clamp_(min=0).log1p_()
        return torch.where(past.any(1)[..., None], counts, self.mean)

    def standardised(self, counts: Tensor) -> Tensor:
        """Standardises counts: z = (counts - mean) / std, clipped."""
        std = self.std.clamp(min=MIN_STD)
        return (counts - self.mean).div_(std).clamp_(-LARGEST_Z, LARGEST_Z)  # in place: there may be many thousands

    def forward(self, counts: Tensor) -> Tensor:
        """Computes the state, of shape `(..., S)`, from counts of shape `(..., numbers)`."""
        z = self.standardised(counts)
        return torch.cat([z[..., self.plain_counts], F.linear(z, self.directions)], -1)
