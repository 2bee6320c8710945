# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The shop's calendar: which days are busy, by weekday, month and year, and by what is known of days beforehand.

A Poisson regression reads how often customers came back on each day, with the logarithm of their number as offset, and
a level that walks at random for all that lasts. Each group of effects is shrunk as much as its own size says, down to
none where there is nothing to find. A forecast's effects are those of the days before it.

Forecasts pass through a clock on which busy days are long and closed ones short. The shop is even on it, so visits,
amounts, silences and horizons fit together.

Shapes: N days, P columns, B customers, E places for visits, T horizons.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .state_mcm import Exact

EPOCH_ORDINAL, WEEK = date(1970, 1, 1).toordinal(), 7
MONTH, YEAR = 30.436875, 365.2425  # days
# Length, first and last harmonic, and the least number of days that say something of them: months, seasons and feasts
WAVES = ((MONTH, 1, 3, 122), (YEAR, 1, 2, 366), (YEAR, 3, 6, 366))
LEAST_DAYS, MOST_DAYS, LEAST_VISITS, LEVEL_DAYS = 56, 1461, 100, 28  # that are read; of a step of the level
LEAST_STD = 0.02  # of the effects of a group: smaller ones are none
CLOSED, LEAST_OPEN = "closed", 1e-3  # the known name of days without visits, whose effect is not learned
ITERATIONS = 50
Known = Mapping[str, Sequence[Sequence[str | float]]]  # by name: first day, last day, value


def join_known(*parts: Known) -> dict[str, list]:
    """What several tables know of days; the later ones decide."""
    return {name: [row for part in parts for row in part.get(name, ())] for part in parts for name in part}


class Effects(NamedTuple):
    """The weights of the columns of a day in the logarithm of its visits, `(P,)`, and their covariance `(P, P)`."""

    weights: Tensor
    covariance: Tensor


def read_day(day: object) -> int:
    """Days from 1970-01-01 to a date, as ISO text."""
    return date.fromisoformat(str(day)).toordinal() - EPOCH_ORDINAL


def write_day(day: int) -> str:
    """ISO text of a number of days from 1970-01-01."""
    return date.fromordinal(day + EPOCH_ORDINAL).isoformat()


def describe_days(days: Tensor, known: Known) -> tuple[list[Tensor], Tensor]:
    """Columns of days since 1970-01-01 `(N,)` by group, each `(N, columns)`; and the share of the day that the shop is
    open, `(N,)`. What is known has 0 on days without a row."""
    groups = [F.one_hot((days.long() + 3) % WEEK, WEEK).to(days.dtype)]
    for length, low, high, _ in WAVES:
        angles = (days / length)[:, None] * torch.arange(low, high + 1, device=days.device) * 2 * math.pi
        groups.append(torch.cat([angles.sin(), angles.cos()], 1))
    is_open = torch.ones_like(days)
    for name, rows in known.items():
        values = torch.zeros_like(days)
        for first, last, value in rows:
            values[(days >= read_day(first)) & (days <= read_day(last))] = float(value)
        if name == CLOSED:
            is_open = (1 - values).clamp(min=LEAST_OPEN)
        else:
            groups.append(values[:, None])
    return groups, is_open


def fit_effects(visits: Tensor, customers: Tensor, days: Tensor, known: Known) -> Effects | None:
    """Fits the effects of days `(N,)` to their numbers of visits `(N,)` of the customers who were there before, whose
    number is `customers` `(N,)`. None: there are none."""
    groups, is_open = describe_days(days, known)
    is_read = (customers > 0) & (is_open > 0.5)
    if int(is_read.sum()) < LEAST_DAYS or visits[is_read].sum() < LEAST_VISITS:
        return None
    for place, (_, _, _, least) in enumerate(WAVES, 1):
        groups[place] = groups[place] * (len(days) >= least)
    since = (days - days[0])[:, None]  # (N, 1)
    steps = torch.arange(LEVEL_DAYS, max(len(days) - LEVEL_DAYS // 2, LEVEL_DAYS), LEVEL_DAYS, device=days.device)
    level = ((since - steps) / LEVEL_DAYS).clamp(0, 1)
    trend = torch.cat([torch.ones_like(since), since / len(days)], 1)
    sizes = [group.shape[1] for group in (*groups, level)]
    x, y = torch.cat([*groups, level, trend], 1)[is_read], visits[is_read]
    offset = (customers * is_open)[is_read].log()
    weights = x.new_zeros(x.shape[1])
    weights[-2] = (y.sum() / offset.exp().sum()).log()
    precision, spread = x.new_full(weights.shape, 100.0), y.new_ones(())
    precision[-2:] = 1e-4
    for _ in range(ITERATIONS):
        mean = (x @ weights + offset).clamp(max=20).exp()
        covariance = torch.linalg.inv((x.T * mean / spread) @ x + precision.diag())
        weights = weights + (covariance @ (x.T @ (y - mean) / spread - precision * weights)).clamp(-1, 1)
        free = 1 - precision * covariance.diagonal()  # (P,): how much of each weight the visits say
        errors = (y - mean).square() / mean.clamp(min=0.01)
        spread = (errors.sum() / (len(y) - free.sum()).clamp(min=1)).clamp(min=1)
        squares = [part.square().sum().clamp(min=1e-9) for part in weights[:-2].split(sizes)]
        freedom = [part.sum().clamp(min=1e-3) for part in free[:-2].split(sizes)]
        shrunk = [(f / s).clamp(0.1, 1e6).expand(n) for f, s, n in zip(freedom, squares, sizes, strict=True)]
        precision = torch.cat([*shrunk, precision[-2:]])
    is_effect = precision[: -2 - sizes[-1]] < LEAST_STD**-2
    if not bool(is_effect.any()):
        return None
    number = len(is_effect)
    return Effects(weights[:number] * is_effect, covariance[:number, :number] * is_effect * is_effect[:, None])


class Calendar(Exact):
    """What is counted of a shop's days.

    Args:
        first (`int`): The first day, since 1970-01-01.
        number (`int`): Number of days; 0: the calendar is not known.
    """

    def __init__(self, first: int = 0, number: int = 0):
        super().__init__()
        self.first = first
        # Visits of customers who were there before, and their number
        self.counts = nn.Buffer(torch.zeros(number, 2), persistent=number > 0)
        self._fitted: dict[tuple[int, str], Effects | None] = {}

    def find_effects(self, number: int, known: Known) -> Effects | None:
        """The effects by the first days."""
        key = number, json.dumps(known)
        if key not in self._fitted:
            counts = self.counts[:number].double()
            days = torch.arange(self.first, self.first + number, dtype=counts.dtype, device=counts.device)
            self._fitted[key] = fit_effects(counts[:, 0], counts[:, 1], days, known) if number >= LEAST_DAYS else None
        return self._fitted[key]

    def bend(
        self, times: Tensor, as_of: Tensor, days: Sequence[float], window: float, known: Known
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Times and horizons on the clock of the calendar, on which the window before `as_of` is as long as it was.

        Args:
            times (`torch.DoubleTensor` of shape `(B, E)`): Of visits, in days since 1970-01-01.
            as_of (`torch.DoubleTensor` of shape `(B,)`): Prediction times, likewise.
            days (sequence of T `float`): Horizons.

        Returns:
            Times from `as_of` on, `(B, E)`; horizons `(B, T)`; and standard errors of their logarithms `(B, T)`.
        """
        ends = as_of[:, None] + as_of.new_tensor([-window, 0.0, *days])  # (B, 2 + T)
        late = ((self.first + len(self.counts) - as_of) / WEEK).ceil().clamp(min=0)
        bent = times - as_of[:, None], ends[:, 2:] - as_of[:, None], torch.zeros_like(ends[:, 2:])
        for weeks in late.unique().tolist():
            row = late == weeks
            effects = self.find_effects(max(len(self.counts) - WEEK * int(weeks), 0), known)
            if effects is None and CLOSED not in known:
                continue
            start, end = math.floor(ends[row].min()), math.ceil(ends[row].max())
            groups, is_open = describe_days(torch.arange(start, end, dtype=times.dtype, device=times.device), known)
            columns = torch.cat(groups, 1)  # (N, P)
            if effects is None:
                effects = Effects(columns.new_zeros(columns.shape[1]), columns.new_zeros([columns.shape[1]] * 2))
            lengths = (columns @ effects.weights).exp() * is_open
            slopes = torch.cat([lengths[:, None], lengths[:, None] * columns], 1)
            table = F.pad(slopes.cumsum(0), (0, 0, 1, 0))  # (N + 1, 1 + P): the clock, and its slopes by the weights

            def read(moments: Tensor, table: Tensor = table, start: int = start) -> Tensor:
                place = (moments - start).floor().clamp(0, len(table) - 2).long()
                return torch.lerp(table[place], table[place + 1], (moments - start - place)[..., None])

            marks = read(ends[row])
            now = marks[:, 1:2]  # (B, 1, 1 + P)
            ahead, past = marks[:, 2:] - now, now - marks[:, :1]
            scale = window / past[..., 0]  # (B, 1)
            bent[0][row] = (read(times[row])[..., 0] - now[..., 0]) * scale
            bent[1][row] = ahead[..., 0] * scale
            slope = ahead[..., 1:] / ahead[..., :1] - past[..., 1:] / past[..., :1]  # (B, T, P)
            bent[2][row] = torch.einsum("btp,pq,btq->bt", slope, effects.covariance, slope).clamp(min=0).sqrt()
        return bent
