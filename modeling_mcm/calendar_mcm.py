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
from datetime import date, datetime
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .state_mcm import Exact

logger = logging.get_logger(__name__)
EPOCH_ORDINAL, WEEK = date(1970, 1, 1).toordinal(), 7
MONTH, YEAR = 30.436875, 365.2425  # days
# Length, first and last harmonic, and the least number of days that say something of them: months, seasons and feasts
WAVES = ((MONTH, 1, 3, 122), (YEAR, 1, 2, 366), (YEAR, 3, 6, 366))
LEAST_DAYS, MOST_DAYS, LEAST_VISITS, LEVEL_DAYS = 56, 1461, 100, 28  # that are read; of a step of the level
LEAST_STD = 0.02  # of the effects of a group: smaller ones are none
CLOSED, LEAST_OPEN = "closed", 1e-3  # the known name of days without visits, whose effect is not learned
ITERATIONS, TOLERANCE = 500, 1e-6  # of the regression's weights
Known = Mapping[str, Sequence[Sequence[str | float]]]  # by name: first day, last day, value


def join_known(*parts: Known) -> dict[str, list]:
    """What several tables know of days; the later ones decide."""
    return {name: [row for part in parts for row in part.get(name, ())] for part in parts for name in part}


class Scale(NamedTuple):
    """How the values of a known name are read, by those of the days that are learned from: in the unit of the largest
    deviation from the usual value, so that neither unit nor height matters."""

    usual: float  # of days without a row
    low: float  # the least value that is learned from
    high: float

    @classmethod
    def measure(cls, values: Tensor) -> "Scale":
        """The scale of the values of days `(N,)`, not a number without a row. A flag, a discount and whatever most
        days have no row of is usually 0; what changes and is there on most days, such as a price, is its median."""
        given = values[~values.isnan()]
        is_level = 2 * len(given) > len(values) and bool(given.amin() < given.amax())
        usual = float(given.median()) if is_level else 0.0
        read = values.nan_to_num(usual)
        return cls(usual, float(read.min()), float(read.max()))

    def read(self, values: Tensor, name: str = "") -> Tensor:
        """Values from -1 to 1, 0 without a row. Those that were not learned are the nearest of those that were."""
        values = values.nan_to_num(self.usual)
        clipped = values.clamp(self.low, self.high)
        if len(unseen := values[values != clipped]):
            logger.warning_once(
                f"`known` has {unseen[0]:g} of {name!r}, and effects were learned of values from {self.low:g} to "
                f"{self.high:g}: the nearest of them is read."
            )
        return (clipped - self.usual) / (max(self.high - self.usual, self.usual - self.low) or 1.0)


class Effects(NamedTuple):
    """The weights of the columns of a day in the logarithm of its visits, `(P,)`, and their covariance `(P, P)`; and
    by known name how its values are read."""

    weights: Tensor
    covariance: Tensor
    scales: dict[str, Scale]


def read_day(day: object) -> int:
    """Days from 1970-01-01 to a day or a time of it, as ISO text. Raises `ValueError` if it is none."""
    try:
        return datetime.fromisoformat(str(day)).toordinal() - EPOCH_ORDINAL
    except ValueError:
        raise ValueError(f"found {day!r}, expected a day such as 2024-03-01; write it so") from None


def write_day(day: int) -> str:
    """ISO text of a number of days from 1970-01-01."""
    return date.fromordinal(day + EPOCH_ORDINAL).isoformat()


def find_values(days: Tensor, rows: Sequence[Sequence[str | float]]) -> Tensor:
    """The known value of each day since 1970-01-01 `(N,)`, not a number without a row."""
    values = torch.full_like(days, math.nan)
    for first, last, value in rows:
        values[(days >= read_day(first)) & (days <= read_day(last))] = float(value)
    return values


def find_open(days: Tensor, known: Known) -> Tensor:
    """The share of each day `(N,)` that the shop is open."""
    return (1 - find_values(days, known.get(CLOSED, ())).nan_to_num(0)).clamp(min=LEAST_OPEN)


def describe_days(days: Tensor, known: Known, scales: Mapping[str, Scale]) -> list[Tensor]:
    """Columns of days since 1970-01-01 `(N,)` by group, each `(N, columns)`."""
    groups = [F.one_hot((days.long() + 3) % WEEK, WEEK).to(days.dtype)]
    for length, low, high, _ in WAVES:
        angles = (days / length)[:, None] * torch.arange(low, high + 1, device=days.device) * 2 * math.pi
        groups.append(torch.cat([angles.sin(), angles.cos()], 1))
    return groups + [
        scale.read(find_values(days, known.get(name, ())), name)[:, None] for name, scale in scales.items()
    ]


def fit_effects(visits: Tensor, customers: Tensor, days: Tensor, known: Known) -> Effects:
    """Fits the effects of days `(N,)` to their numbers of visits `(N,)` of the customers who were there before, whose
    number is `customers` `(N,)`. Where nothing can be said, P is 0."""
    nothing = Effects(visits.new_zeros(0), visits.new_zeros(0, 0), {})
    is_open = find_open(days, known)
    is_read = (customers > 0) & (is_open > 0.5)
    if int(is_read.sum()) < LEAST_DAYS or visits[is_read].sum() < LEAST_VISITS:
        return nothing
    scales = {name: Scale.measure(find_values(days[is_read], known[name])) for name in known if name != CLOSED}
    groups = describe_days(days, known, scales)
    for place, (_, _, _, least) in enumerate(WAVES, 1):
        groups[place] = groups[place] * (len(days) >= least)
    since = (days - days[0])[:, None]  # (N, 1)
    steps = torch.arange(LEVEL_DAYS, max(len(days) - LEVEL_DAYS // 2, LEVEL_DAYS), LEVEL_DAYS, device=days.device)
    level = ((since - steps) / LEVEL_DAYS).clamp(0, 1)
    trend = torch.cat([torch.ones_like(since), since / len(days)], 1)
    x, offset = torch.cat([*groups, level, trend], 1), (customers * is_open).log()
    sizes = torch.tensor([group.shape[1] for group in (*groups, level, trend)], device=days.device)
    group = torch.arange(len(sizes), device=days.device).repeat_interleave(sizes)
    fitted = _fit_poisson(x[is_read], visits[is_read], offset[is_read], group)
    if fitted is None:
        return nothing
    number = len(group) - int(sizes[-2:].sum())
    weights, covariance, precision = fitted[0][:number], fitted[1][:number, :number], fitted[2][:number]
    is_effect = precision < LEAST_STD**-2
    return Effects(weights * is_effect, covariance * is_effect * is_effect[:, None], scales)


def _fit_poisson(x: Tensor, y: Tensor, offset: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Fits a Poisson regression of numbers `(N,)` on columns `(N, P)` of some groups `(P,)`, the last two a level and
    a trend. Newton steps alternate with what the weights of a group say of the size of its effects.

    Returns the weights `(P,)`, their covariance `(P, P)` and the precisions of their priors `(P,)`, or None, with a
    warning, if they don't settle.
    """
    is_in = F.one_hot(group).to(x.dtype)  # (P, groups)
    weights, precision, spread = x.new_zeros(x.shape[1]), x.new_full(x.shape[1:], 100.0), y.new_ones(())
    weights[-2] = (y.sum() / offset.exp().sum()).log()
    precision[-2:] = 1e-4
    for _ in range(ITERATIONS):
        mean = (x @ weights + offset).clamp(max=20).exp()
        covariance = torch.linalg.inv_ex((x.T * mean / spread) @ x + precision.diag()).inverse
        step = (covariance @ (x.T @ (y - mean) / spread - precision * weights)).clamp(-1, 1)
        weights = weights + step
        free = 1 - precision * covariance.diagonal()  # (P,): how much of each weight the numbers say
        errors = (y - mean).square() / mean.clamp(min=0.01)
        spread = (errors.sum() / (len(y) - free.sum()).clamp(min=1)).clamp(min=1)
        shrunk = (free @ is_in).clamp(min=1e-3) / (weights.square() @ is_in).clamp(min=1e-9)  # (groups,)
        precision[:-2] = shrunk.clamp(0.1, 1e6)[group[:-2]]
        if step.abs().max() < TOLERANCE:
            return weights, covariance, precision
    logger.warning_once(
        f"The calendar's regression did not settle in {ITERATIONS} steps, so forecasts take all days for ordinary "
        "ones: look for days with far too many visits, or leave `known` out."
    )
    return None


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
        self._fitted: dict[tuple[int, str], Effects] = {}

    def find_effects(self, number: int, known: Known) -> Effects:
        """The effects by the first days."""
        key = number, json.dumps(known)
        if key not in self._fitted:
            counts = self.counts[:number].double()
            days = torch.arange(self.first, self.first + number, dtype=counts.dtype, device=counts.device)
            self._fitted[key] = fit_effects(counts[:, 0], counts[:, 1], days, known)
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
            if not bool(effects.weights.any()) and CLOSED not in known:
                continue
            start, end = math.floor(ends[row].min()), math.ceil(ends[row].max())
            span = torch.arange(start, end, dtype=times.dtype, device=times.device)
            columns = torch.cat(describe_days(span, known, effects.scales), 1)[:, : len(effects.weights)]  # (N, P)
            lengths = (columns @ effects.weights).exp() * find_open(span, known)
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
