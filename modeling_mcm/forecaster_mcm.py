# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Forecasts for any horizon with intervals, by a small network that was trained on synthetic shops.

The network reads the visits of the last `window` days before the prediction time, and statistics of the shop. All
times are divided by the window, and amounts by the shop's mean amount of a visit, so it needs no training on a log:
training on a log only fills in the window and the statistics of the shop, from the training period. The weights ship
with the package (`forecaster.safetensors`; `training/run_pretrain_forecaster.py` makes them).

Shapes: B customers, P places for visits, Q amounts (events and summed features), C shop statistics, D horizons.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import logging

from .calendar_mcm import CLOSED, YEAR, Calendar, Known, read_day, write_day
from .configuration_mcm import MCMConfig
from .state_mcm import Exact, decay_weights, find_events

logger = logging.get_logger(__name__)
CHANCE, DAYS_TO_VISIT, ALIVE = "visit_probability", "days_to_next_visit", "alive_probability"
LONGEST_RATIO = 2.0  # the longest horizon that is told, as a multiple of the window
TRAINED_RATIO = 2.2  # the longest horizon of training, as a multiple of the window
LEVELS = (80, 95)  # of the intervals, in percent
WINDOW_HALF_LIVES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the decayed counts, as shares of the window
SHOP_STATISTICS = 77  # numbers, see [`~training.forecaster.set_shop`]
POINTS = 128  # points on which the distribution of the number of visits is computed
VISIT_HIDDEN, AMOUNT_HIDDEN = 104, 60
LEAST_AMOUNT = 0.02  # added to amounts, in means of a visit, before the logarithm
USUAL_SHARE = 0.99  # of a shop's visits whose amounts are usual
BROKEN = 100  # times what several customers, and the customer's other visits, reach: a wrong number
# Visits of the average customer that are added to those of each one, where amounts are above the usual ones
RARE_VISITS = 70
LEAST_TIME = 1e-3  # a thousandth of the window
# Horizons in days at which forecasts are made to rise; each is about a third later than the one before. Between two of
# them, forecasts rise in `STEPS` equal steps
EDGES = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 21.0, 30.0, 45.0, 60.0, 90.0, 135.0, 180.0, 270.0, 365.0)
STEPS = 9
DISCOUNT_DAYS = 30  # of a step in which what comes is worth the same
# Silences of a customer whose next visit is overdue, as multiples of the longest gap that is usual
OVERDUE = (1.0, 2.0, 4.0)


class MissingForecastsError(ValueError):
    """Raised where forecasts are requested from a checkpoint that has no trained forecasts."""

    def __init__(self, name: str | None):
        super().__init__(
            f"{name or 'The model'} has no trained forecasts: they would be made up. Pre-train a checkpoint with a "
            "customer state (mcm pretrain)."
        )


class Visits(NamedTuple):
    """The visits of some customers. Places may be empty, and need not be in the order of time."""

    times: Tensor  # (B, P): days
    is_visit: Tensor  # (B, P): whether a place holds a visit
    amounts: Tensor  # (B, P, Q): amounts of each visit, such as its number of events and its sum of prices


class Distribution(NamedTuple):
    """Parameters of the number of visits in a horizon: 0 with probability `never`, else negative binomial with mean
    `mean` and variance `mean + mean^2 / size`. All of shape `(...)`."""

    log_mean: Tensor
    log_size: Tensor
    never: Tensor  # logit

    @property
    def expected(self) -> Tensor:
        """The expected number of visits."""
        return torch.sigmoid(-self.never) * self.log_mean.exp()

    def log_probability(self, number: Tensor) -> Tensor:
        """Logarithm of the probability of numbers of visits."""
        logits = self.log_mean - self.log_size
        counts = torch.distributions.NegativeBinomial(self.log_size.exp(), logits=logits, validate_args=False)
        some = counts.log_prob(number) + F.logsigmoid(-self.never)
        return torch.where(number == 0, torch.logaddexp(F.logsigmoid(self.never), some), some)

    @property
    def log_none(self) -> Tensor:
        """Logarithm of the probability of no visit."""
        return self.log_probability(torch.zeros_like(self.log_mean)).clamp(max=-1e-7)

    @property
    def log_comes(self) -> Tensor:
        """Logarithm of the probability of a visit."""
        return torch.log(-torch.expm1(self.log_none))

    def quantiles(self) -> Tensor:
        """The median, and the lowest and highest number of each of `LEVELS`, of shape `(..., 1 + 2 levels)`.

        An interval holds as nearly as whole numbers can the share of its level. Below it lies at most half of the
        rest; where 0 is likelier than that, the interval begins at 0 and all of the rest lies above it.
        """
        mean, size = self.log_mean.exp(), self.log_size.exp()
        step = ((mean + 6 * (mean + mean.square() / size).sqrt()) / POINTS).clamp(min=1).ceil()  # 1 for most customers
        step, points = step[..., None], torch.arange(POINTS, dtype=mean.dtype, device=mean.device)
        wide = Distribution(*(value[..., None] for value in self))
        shares = wide.log_probability(points * step).exp() * torch.where(points > 0, step, 1.0)
        cumulative = shares.cumsum(-1) / shares.sum(-1, keepdim=True).clamp(min=1e-30)
        found = [(cumulative < 0.5).sum(-1, keepdim=True).clamp(max=POINTS - 1)]
        for level in LEVELS:
            low = (cumulative <= (1 - level / 100) / 2).sum(-1, keepdim=True).clamp(max=POINTS - 1)
            below = F.pad(cumulative, (1, 0)).gather(-1, low)
            differs = (cumulative - below - level / 100).abs() + 2.0 * (points < low)
            found += [low, differs.argmin(-1, keepdim=True)]
        return torch.cat(found, -1) * step


class VisitHistory(NamedTuple):
    """What is counted of each customer's visits of the window; times are ages, as shares of the window."""

    ages: Tensor  # (B, P): ascending; an empty place has the age of the first visit
    is_visit: Tensor  # (B, P): in the same order
    amounts: Tensor  # (B, P, Q): in the same order
    number: Tensor  # (B,): visits
    first: Tensor  # (B,): age of the first visit
    last: Tensor  # (B,): age of the last visit
    mean_gap: Tensor  # (B,)
    longest_gap: Tensor  # (B,)
    irregularity: Tensor  # (B,): coefficient of variation of the gaps; 1 where there are fewer than two

    def find_most(self) -> Tensor:
        """The number of visits of each customer, and the largest amounts of one of them, `(B, 1 + Q)`."""
        return torch.cat([self.number[:, None], self.amounts.amax(1)], 1)

    def without_broken(self, most: Tensor) -> "VisitHistory":
        """The history with the largest amount that may be right in place of those that can't be."""
        is_broken, largest = find_broken(self.amounts, most)
        return self._replace(amounts=torch.where(is_broken, largest.copysign(self.amounts), self.amounts))


def find_broken(amounts: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Which amounts of visits `(B, P, Q)` can't be right, likewise, and the largest ones that may be, `(B, 1, Q)`: one
    visit would decide the mean of the shop. `most` are the amounts that several customers reach, `(Q,)`. Who pays much
    more than others is believed from the second time on."""
    largest = most.maximum(F.pad(amounts.abs(), (0, 0, 0, 1)).topk(2, 1).values[:, 1:])
    return (amounts.abs() > BROKEN * largest) & (most > 0), largest


def select_visits(visits: Visits, as_of: Tensor, window: Tensor | float) -> VisitHistory:
    """Selects the visits of the window before `as_of`, of shape `(B,)`. A silence longer than the window counts as one
    of its length."""
    # Of visits of one age, the later is the newer one; and there may be no place at all
    places = [torch.cat([value.flip(1), value.new_zeros(value.shape[0], 1, *value.shape[2:])], 1) for value in visits]
    times, is_visit, amounts = places
    is_visit = is_visit & (times <= as_of[:, None])
    latest = torch.where(is_visit, times, -math.inf).amax(1)
    ages = (torch.minimum(as_of, latest + 0.999 * window)[:, None] - times) / window
    is_visit = is_visit & (ages <= 1 + 1e-6)  # the first second of the window belongs to it
    ages, order = torch.where(is_visit, ages, 2.0).sort(dim=1, stable=True)  # in each batch the same
    is_visit = is_visit.gather(1, order)
    amounts = amounts.gather(1, order[..., None].expand_as(amounts)) * is_visit[..., None]
    number = is_visit.sum(1).to(ages.dtype)
    last = ages[:, 0].clamp(max=1)
    first = torch.where(number > 0, torch.where(is_visit, ages, 0.0).amax(1), 1.0)
    ages = torch.where(is_visit, ages, first[:, None])
    gaps = ages.diff(dim=1)
    repeats = (number - 1).clamp(min=0)
    mean_gap = (first - last) / repeats.clamp(min=1)
    variance = gaps.square().sum(1) / repeats.clamp(min=1) - mean_gap.square()
    irregularity = variance.clamp(min=0).sqrt() / mean_gap.clamp(min=1e-6)
    irregularity = torch.where(repeats >= 2, irregularity, 1.0)
    longest = F.pad(gaps, (1, 0)).amax(1)
    return VisitHistory(ages, is_visit, amounts, number, first, last, mean_gap, longest, irregularity)


def smooth_rate(history: VisitHistory, mean_rate: Tensor) -> Tensor:
    """Visits a window of each customer, smoothed by the shop's mean rate."""
    return history.number.clamp(min=1) / (history.first + 1 / mean_rate)


def _describe_customers(history: VisitHistory, mean_rate: Tensor) -> Tensor:
    """What is known of each customer, of shape `(B, numbers)`, whatever the horizon."""
    repeats, first, last = (history.number - 1).clamp(min=0), history.first.clamp(min=1e-4), history.last
    half_lives = torch.tensor(WINDOW_HALF_LIVES, device=first.device)
    kept = history.is_visit.to(first.dtype)
    decayed = decay_weights(history.ages, WINDOW_HALF_LIVES, history.is_visit).sum(1)  # (B, half-lives)
    exposure = half_lives / math.log(2) * (1 - torch.exp2(-first[:, None] / half_lives))
    gaps, is_gap = history.ages.diff(dim=1), kept[:, 1:]
    longer = (((gaps > last[:, None]) * is_gap).sum(1) + 0.5) / (repeats + 1)
    latest = gaps[:, :1].sum(1)
    log_gaps = (gaps + LEAST_TIME).log() * is_gap
    mean_log = log_gaps.sum(1) / repeats.clamp(min=1)
    std_of_logs = (((log_gaps - mean_log[:, None]) * is_gap).square().sum(1) / repeats.clamp(min=1)).sqrt()
    several, mean_gap = (repeats > 1).to(first.dtype), history.mean_gap
    numbers = [
        repeats.log1p(),
        (repeats / first).log1p(),
        smooth_rate(history, mean_rate).log(),
        last,
        first,
        last / first,
        (last + LEAST_TIME).log(),
        (mean_gap + 0.01).log(),
        history.irregularity.clamp(max=8),
        std_of_logs,
        (history.longest_gap / mean_gap.clamp(min=LEAST_TIME)).log1p() * several,
        (latest / mean_gap.clamp(min=LEAST_TIME)).log1p() * several,
        (repeats * last / (first - last).clamp(min=LEAST_TIME)).log1p(),
        (last / history.longest_gap.clamp(min=LEAST_TIME)).log1p() * (repeats > 0),
        longer.log(),
        ((history.ages < first[:, None] / 2) * kept).sum(1).log1p(),
        ((history.ages < 0.25) * kept).sum(1).log1p(),
        (repeats == 0).to(first.dtype),
    ]
    return torch.cat([torch.stack(numbers, 1), decayed.log1p(), (decayed / exposure.clamp(min=1e-4)).log1p()], 1)


def _describe_amounts(history: VisitHistory, statistics: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """What is known of each customer's amounts, in means of a visit: of shape `(B, Q, numbers)`; and the logarithm of
    the customer's mean amount, smoothed by the shop's, of shape `(B, Q)`.

    What is above the largest usual amount is smoothed by many more visits: after a single large purchase it says
    little of the next one, and most of a forecast's squared error would be of such customers.
    """
    mean, within, between, related = statistics.unbind(-1)
    largest, mean_usual = usual.unbind(-1)  # (Q,)
    kept, number = history.is_visit.to(mean.dtype)[..., None], history.number[:, None]
    amounts = history.amounts.clamp(min=0) / mean  # (B, P, Q)
    usual_sum = amounts.minimum(largest).sum(1)  # (B, Q)
    rare_sum = amounts.sum(1) - usual_sum
    prior = within.square() / between.square()
    smoothed = (usual_sum + prior * mean_usual) / (number + prior)
    smoothed = (smoothed + (rare_sum + RARE_VISITS * (1 - mean_usual)) / (number + RARE_VISITS)).log()
    logs = (amounts + LEAST_AMOUNT).log() * kept
    customer = logs.sum(1) / number.clamp(min=1)
    decayed = (amounts * decay_weights(history.ages, [0.25], history.is_visit)).sum(1)
    own = [smoothed, customer, logs[:, 0], decayed.log1p(), prior.log().expand_as(customer)]
    own += [value.expand_as(customer) for value in (within, between, related)]
    return torch.stack(own, -1), smoothed


class InputRange(nn.Module):
    """Standardises inputs, and clips them to the range that training had."""

    def __init__(self, size: int):
        super().__init__()
        self.mean, self.std = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.ones(size))
        self.low, self.high = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Of shape `(..., size)`, like the inputs."""
        return (inputs.clamp(self.low, self.high) - self.mean) / self.std


class _Network(nn.Module):
    """Two hidden layers beside a linear one, whose outputs are added; all outputs start at 0."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.range = InputRange(inputs)
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.output, self.linear = nn.Linear(hidden, outputs), nn.Linear(inputs, outputs, bias=False)
        for layer in (self.output, self.linear):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Of shape `(..., outputs)`."""
        z = self.range(inputs)
        hidden = F.gelu(self.first(z))
        hidden = hidden + F.gelu(self.second(hidden))
        return self.output(hidden) + self.linear(z)


class Inputs(NamedTuple):
    """What the networks read of customers, and what their outputs start from."""

    visits: Tensor  # (B, D, numbers)
    base: Tensor  # (B, D): logarithm of the rate times the horizon
    amounts: Tensor  # (B, D, Q, numbers): those of amounts alone; the network reads those of visits before them
    mean_amounts: Tensor  # (B, D, Q): logarithm of a customer's mean amount of a visit, in means of the shop


class VisitForecaster(Exact):
    """Distributions of visits and amounts within horizons; see the module.

    Args:
        num_amounts (`int`): Number of amounts Q.
        deciding (sequence of `int`): Indices of the features whose values make an event a target.
        types (`dict[int, list[int]]`, *optional*): By index of a feature, the ids of which target events have one.
        calendar (sequence of `int`): Those of [`~calendar_mcm.Calendar`].
    """

    def __init__(
        self,
        num_amounts: int = 1,
        deciding: Sequence[int] = (),
        types: Mapping[int, Sequence[int]] | None = None,
        calendar: Sequence[int] = (),
    ):
        super().__init__()
        self.deciding, self.types = list(deciding), dict(types or {})
        customer = 18 + 2 * len(WINDOW_HALF_LIVES)
        inputs = customer + 4 + SHOP_STATISTICS
        self.visit_network = _Network(inputs, VISIT_HIDDEN, 3)
        self.amount_network = _Network(inputs + 2 + 8, AMOUNT_HIDDEN, 3)
        self.window = nn.Buffer(torch.ones(()))  # days
        self.statistics = nn.Buffer(torch.zeros(SHOP_STATISTICS))
        self.mean_rate = nn.Buffer(torch.ones(()))
        self.amount_statistics = nn.Buffer(torch.ones(num_amounts, 4))
        # The largest usual amount of a visit, and the mean of amounts that are cut there, in means of a visit
        self.usual = nn.Buffer(torch.ones(num_amounts, 2))
        # What is left of amounts above 0 after those below, which are returns, as a share
        self.net = nn.Buffer(torch.ones(num_amounts))
        # Visits in the window, and amounts of a visit, that several customers reach
        self.most = nn.Buffer(torch.ones(1 + num_amounts))
        self.calendar = Calendar(*calendar)

    def reset_parameters(self) -> None:
        """Sets the statistics of the shop, and the ranges of inputs, to untrained."""
        for name, value in self.named_buffers():
            is_zero = name == "statistics" or name.endswith((".mean", ".low", ".high"))
            (init.zeros_ if is_zero else init.ones_)(value)

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visit_ids: Tensor,
        event_times: Tensor,
        event_values: Tensor | None,
    ) -> Visits:
        """Collects visits from the inputs of [`MCMModel`]. A visit counts if one of its events is a target, and begins
        with its first one. Returns a place for each visit; the first amount is the number of target events."""
        is_event = find_events(attention_mask)
        is_target = is_event & (input_ids[..., self.deciding] > 0).any(-1)
        for index, ids in self.types.items():
            is_target = is_target & torch.isin(input_ids[..., index], torch.tensor(ids, device=input_ids.device))
        values = [is_target.float()[..., None]]
        if event_values is not None:
            values.append(event_values.float() * is_event[..., None])
        amounts = torch.cat(values, -1)  # (B, L, Q)
        times = torch.where(is_target, event_times.float(), math.inf)
        places = visit_ids.shape[1] if torch.compiler.is_exporting() else int(visit_ids.max()) + 1
        first = times.new_full((times.shape[0], places), math.inf).scatter_reduce(1, visit_ids, times, "amin")
        sums = amounts.new_zeros(*first.shape, amounts.shape[2])
        amounts = sums.scatter_add(1, visit_ids[..., None].expand_as(amounts), amounts)  # (B, P, Q)
        is_visit = first < math.inf
        return Visits(torch.where(is_visit, first, 0.0), is_visit, amounts)

    def select(self, visits: Visits, as_of: Tensor) -> VisitHistory:
        """The visits of the window before `as_of`, of shape `(B,)`, with amounts that may be right."""
        return select_visits(visits, as_of.float(), self.window).without_broken(self.most[1:])

    def inputs(self, visits: Visits, as_of: Tensor, days: Tensor | Sequence[float]) -> Inputs:
        """What the networks read at `as_of`, of shape `(B,)`, in days on the clock of the visits. Later visits are not
        read. Horizons may be of each customer, `(B, D)`."""
        history = self.select(visits, as_of)
        customer = _describe_customers(history, self.mean_rate)
        rate = smooth_rate(history, self.mean_rate)
        is_known = history.number > 0
        # Nothing is known of a customer without visits, who is therefore the average one.
        customer = torch.where(is_known[:, None], customer, self.visit_network.range.mean[: customer.shape[1]])
        rate = torch.where(is_known, rate, self.mean_rate)[:, None]
        gap = torch.where(history.number > 1, history.mean_gap, 1 / rate[:, 0])[:, None].clamp(min=LEAST_TIME)
        ends = torch.as_tensor(days, dtype=torch.float32, device=rate.device)
        ratios = (ends / self.window).clamp(max=TRAINED_RATIO)
        base = (rate * ratios).log()
        numbers = torch.broadcast_tensors(base, ratios.log(), ratios, (ratios / gap).log1p())
        shape = *base.shape, -1
        known = [customer[:, None].expand(shape), torch.stack(numbers, -1), self.statistics.expand(shape)]
        amounts, mean_amounts = _describe_amounts(history, self.amount_statistics, self.usual)
        amounts = amounts[:, None].expand(*base.shape, *amounts.shape[1:])
        return Inputs(torch.cat(known, -1), base, amounts, mean_amounts[:, None].expand(amounts.shape[:-1]))

    def distribution(self, inputs: Inputs) -> Distribution:
        """The distribution of the number of visits, each parameter of shape `(B, D)`."""
        shift, size, never = self.visit_network(inputs.visits).unbind(-1)
        log_mean = (inputs.base + shift).clamp(-12, 8)
        return Distribution(log_mean, size.clamp(-4, 5), (never - 2).clamp(-12, 12))

    def amounts(self, inputs: Inputs, visits: Distribution) -> "AmountDistribution":
        """The distributions of the amounts, each parameter of shape `(B, D, Q)`, in means of a visit. What is expected
        are the expected visits times the customer's mean amount, so that it adds up; the network says how it spreads,
        and its first output is not read."""
        expected, comes = visits.expected.log(), visits.log_comes
        known = torch.cat([inputs.visits, torch.stack([expected, comes], -1)], -1)
        known = known[..., None, :].expand(*inputs.amounts.shape[:-1], -1)
        _, shift, raw_std = self.amount_network(torch.cat([known, inputs.amounts], -1)).unbind(-1)
        log_expected = (expected[..., None] + inputs.mean_amounts).clamp(-14, 14)
        log_std = F.softplus(raw_std + 0.5) + 0.02
        comes = comes[..., None].expand_as(log_expected)
        log_mean = log_expected - comes - log_std.square() / 2 + shift
        return AmountDistribution(log_expected, log_mean, log_std, comes)

    def limit_by_silence(self, visits: Visits, as_of: Tensor, days: Tensor) -> tuple[Tensor, Tensor]:
        """What is expected at most of customers who have been silent for long: the number of visits, and the
        probability of one, both of the shape of `days`, `(B, D)`, infinite where the next visit is not overdue.

        They are the least of what was expected at `OVERDUE`, while the customer's visits were in the window. Later
        they leave it, and the network reads a customer with one old visit: in a small shop whose customers all come
        often it never learned of such a one, and would expect nearly what the average customer does.
        """
        is_known = visits.is_visit & (visits.times <= as_of[:, None])
        latest = torch.where(is_known, visits.times, -math.inf).amax(1)
        latest = torch.where(is_known.any(1), latest, as_of.float())
        history = select_visits(visits, latest, self.window)
        due = history.longest_gap.maximum(1 / smooth_rate(history, self.mean_rate))
        silences = (due[:, None] * due.new_tensor(OVERDUE)).clamp(max=0.999) * self.window  # (B, S)
        row, place = (silences < (as_of - latest)[:, None]).nonzero(as_tuple=True)
        limits = due.new_full((2, *silences.shape, days.shape[1]), math.inf)  # (2, B, S, D)
        overdue = Visits(*(value[row] for value in visits))
        inputs = self.inputs(overdue, latest[row] + silences[row, place], days[row])
        distribution = self.distribution(inputs)
        limits[:, row, place] = torch.stack([distribution.expected, -torch.expm1(distribution.log_none)])
        visits_limit, comes_limit = limits.amin(2)
        return visits_limit, comes_limit


class AmountDistribution(NamedTuple):
    """Parameters of a sum of amounts, which is 0 without a visit and lognormal with one. All of shape `(...)`."""

    log_expected: Tensor  # logarithm of the expected sum
    log_mean: Tensor  # mean of the logarithm of a sum that is not 0
    log_std: Tensor  # standard deviation of that logarithm
    log_comes: Tensor  # logarithm of the probability of a visit

    def quantiles(self) -> Tensor:
        """The median, and the lowest and highest sum of each of `LEVELS`, of shape `(..., 1 + 2 levels)`; as in
        `Distribution.quantiles`."""
        none = 1 - self.log_comes.exp()
        shares = [torch.full_like(none, 0.5)]  # of customers who spend less
        for level in LEVELS:
            rest = 1 - level / 100
            from_none = none > rest / 2
            shares += [torch.where(from_none, 0.0, rest / 2), torch.where(from_none, 1 - rest, 1 - rest / 2)]
        visitor_shares = (torch.stack(shares, -1) - none[..., None]) / (1 - none).clamp(min=1e-6)[..., None]
        visitor_shares = visitor_shares.clamp(0.0, 1 - 1e-6)
        deviations = torch.special.ndtri(visitor_shares.clamp(5e-7, 1 - 5e-7))
        log = self.log_mean[..., None] + self.log_std[..., None] * deviations
        return torch.where(visitor_shares > 0, log.clamp(max=40).exp(), 0.0)


class CustomerForecasts:
    """All forecasts of a checkpoint for some horizons.

    No forecast falls with the horizon: neither a mean, nor an end of an interval, nor the probability of a visit. All
    are therefore computed at the same times, whichever horizons are asked for, made to rise over these, and
    interpolated between them. No customer is expected to come more often, in a time as long as the window, than the
    customer or several others of the shop did, nor to spend more in a visit.

    Args:
        config ([`MCMConfig`]): The checkpoint's config.
        forecaster ([`VisitForecaster`], *optional*): The network; `None`: there are no forecasts.
        days (sequence of `float`, *optional*): horizons. Default: those of the config that can be told.

    Raises:
        ValueError: If a horizon of `days` is longer than the checkpoint can tell, or no number of days.
    """

    def __init__(self, config: MCMConfig, forecaster: VisitForecaster | None, days: Sequence[float] | None = None):
        if isinstance(days, str | Real):
            raise ValueError(f"`days` is {days!r}; give a list of numbers of days, as in days=[{days}].")
        self.forecaster = forecaster
        self.longest = longest = config.forecast_window * LONGEST_RATIO
        self.usual = sorted(float(day) for day in config.forecast_days if day <= longest)
        self.days = self.usual if days is None else sorted({float(day) for day in days})
        if wrong := [day for day in self.days if not 0 < day <= longest]:
            raise ValueError(
                f"No forecast for {wrong[0]:g} days: this checkpoint tells those of up to {longest:g} days, twice the "
                "training period of its log. Ask for a positive number of at most so many days, or train on a longer "
                "log that has times."
            )
        if days is not None and not self.days:
            raise ValueError("`days` is empty: give numbers of days such as [30, 365], or leave it out.")
        self.quantities = ["visits", "events", *config.summed_features]
        self.known = config.known

    @property
    def are_trained(self) -> bool:
        """Whether there are forecasts."""
        return self.forecaster is not None and bool(self.days)

    def names(self) -> list[str]:
        """Names of the numbers that are told, in the order of `compute`."""
        names, ends = [], [f"_{end}{level}" for level in LEVELS for end in ("low", "high")]
        for day in self.days:
            names += [f"{each}_{day:g}d{end}" for each in self.quantities for end in ("", "_median", *ends)]
            names.append(f"{CHANCE}_{day:g}d")
        return [*names, DAYS_TO_VISIT, ALIVE] if self.days else []

    def steps(self) -> list[float]:
        """The horizons, and the ends of steps until the last one, in each of which what comes is worth the same."""
        return sorted({*self.days, *map(float, range(DISCOUNT_DAYS, math.ceil(self.days[-1]), DISCOUNT_DAYS))})

    def discount(self, told: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
        """What expected numbers are worth now, `NAME_discounted` of shape `(B,)`, from those that are told of `steps`:
        what comes in a step counts as of the middle of it."""
        steps = self.steps()
        days = torch.tensor([0.0, *steps], dtype=torch.float64)
        worth = (1 + rate) ** (-(days[1:] + days[:-1]) / 2 / YEAR)  # (S,)
        found: dict[str, Tensor] = {}
        for quantity in self.quantities:
            expected = torch.stack([told[f"{quantity}_{day:g}d"] for day in steps], 1).double().cpu()  # (B, S), rising
            values = (F.pad(expected, (1, 0)).diff() * worth).cumsum(1)
            found |= {f"{quantity}_{day:g}d_discounted": values[:, steps.index(day)] for day in self.days}
        return found

    def _warn_of_days(self, known: Known, as_of: float) -> None:
        """Warns if a name of the config is not known on all days of the forecasts of a time."""
        end, missing = math.ceil(as_of + self.days[-1]) - 1, []
        for name in self.known:
            until = max((read_day(last) for _, last, _ in known.get(name, ())), default=0)
            if until < end and name != CLOSED:  # the shop is open unless it is known not to be
                missing.append(f"{name!r} is known until {write_day(until)}")
        if missing:
            logger.warning_once(
                f"{', '.join(missing)}: later days are forecast as ordinary ones. Give their rows as `known` to "
                "`forecast`, or to `refresh` if they are to stay."
            )

    def find_busy(self, as_of: float) -> list[float]:
        """How many times as many visits the calendar gives a day of each horizon from `as_of` on, in days since
        1970-01-01, as a day of the window before it."""
        if self.forecaster is None:
            return []
        at = torch.tensor([as_of], dtype=torch.float64, device=self.forecaster.calendar.counts.device)
        _, ends, _ = self.forecaster.calendar.bend(
            at[:, None], at, self.days, float(self.forecaster.window), self.known
        )
        return (ends[0] / ends.new_tensor(self.days)).tolist()

    def compute(
        self, visits: Visits, as_of: Tensor, as_of_days: Tensor | None = None, known: Known | None = None
    ) -> dict[str, Tensor]:
        """Computes all forecasts.

        Args:
            visits (`Visits`): The customers' visits.
            as_of (`torch.FloatTensor` of shape `(B,)`): Prediction times on the clock of the visits.
            as_of_days (`torch.DoubleTensor` of shape `(B,)`, *optional*): The same in days since 1970-01-01. Without
                them the calendar is not read.
            known (`dict`, *optional*): What is known of days. Default: that of the config.

        Returns:
            `dict[str, torch.FloatTensor]`: by `names`, each of shape `(B,)`: for each quantity and horizon, such as
            visits in 7 days, the expected number `visits_7d`, the median `visits_7d_median`, and the ends of the
            intervals, such as `visits_7d_low80`; `visit_probability_7d`; the median number of days to the next visit,
            at most, and the probability of a visit in, the longest time that can be told.
        """
        if self.forecaster is None or not self.days:
            return {}
        edges, inner = self.horizons()
        times = sorted({*edges, *inner})
        ends = as_of.new_tensor(times).expand(as_of.shape[0], -1)  # (B, T): of the horizons
        if as_of_days is not None:
            known, at = self.known if known is None else known, as_of_days.double()
            self._warn_of_days(known, float(at.max()))
            # A visit at `as_of` is no later one, whatever the rounding
            moments, window = at[:, None] + (visits.times.double() - as_of[:, None]), float(self.forecaster.window)
            bent, ends, errors = (
                each.float() for each in self.forecaster.calendar.bend(moments, at, times, window, known)
            )
            visits, as_of, variance = visits._replace(times=bent), torch.zeros_like(as_of), errors.square()
        inputs = self.forecaster.inputs(visits, as_of, ends)
        distribution = self.forecaster.distribution(inputs)
        amounts = self.forecaster.amounts(inputs, distribution)
        if as_of_days is not None:  # the calendar's own error
            size = -torch.logaddexp(-distribution.log_size, (variance + 1e-9).log())
            distribution = distribution._replace(log_size=size)
            amounts = amounts._replace(log_std=(amounts.log_std.square() + variance[..., None]).sqrt())
        most_visits, most_comes = self.forecaster.limit_by_silence(visits, as_of, ends)
        comes = rise((-torch.expm1(distribution.log_none)).minimum(most_comes), times, edges)  # (B, T)
        scales = torch.cat([comes.new_ones(1), self.forecaster.amount_statistics[:, 0] * self.forecaster.net])
        means = torch.cat([distribution.expected[..., None], amounts.log_expected.exp()], -1) * scales  # (B, T, 1 + Q)
        limited = means * (most_visits / distribution.expected).clamp(max=1)[..., None]
        own = self.forecaster.select(visits, as_of).find_most()
        most = self.forecaster.most.maximum(own)[:, None]  # (B, 1, 1 + Q)
        windows = (ends / self.forecaster.window).clamp(min=1)[..., None]  # (B, T, 1)
        number = limited[..., :1].minimum(windows * most[..., :1])  # (B, T, 1)
        expected = rise(torch.cat([number, limited[..., 1:].minimum(number * most[..., 1:])], -1), times, edges)
        expected[..., 1] = expected[..., 1].maximum(expected[..., 0])  # a visit has at least one event
        moved = (expected / means.clamp(min=1e-9)).log()
        # Intervals take most of the time: they are computed up to the first edge that no horizon is beyond
        end = times.index(edges[bisect_left(edges, self.days[-1])]) + 1
        distribution = Distribution(*(value[:, :end] for value in distribution))
        distribution = distribution._replace(log_mean=distribution.log_mean + moved[:, :end, 0])
        amounts = AmountDistribution(*(value[:, :end] for value in amounts))
        amounts = amounts._replace(log_mean=amounts.log_mean + moved[:, :end, 1:])
        quantiles = torch.cat([distribution.quantiles()[:, :, None], amounts.quantiles()], 2) * scales[:, None]
        levels = torch.cat([expected[:, :end, :, None], rise(quantiles, times[:end], edges)], -1)  # (B, T, 1 + Q, N)
        levels = interpolate(levels, times, self.days)
        levels[:, :, 0, 1:] = levels[:, :, 0, 1:].round()  # numbers of visits
        told = torch.cat([levels.flatten(2), interpolate(comes[..., None], times, self.days)], -1)
        absent = 1 - comes[:, [times.index(edge) for edge in edges]]
        days_to_visit = median_days(absent, edges)
        return dict(zip(self.names(), [*told.flatten(1).unbind(1), days_to_visit, comes[:, -1]], strict=True))

    def horizons(self) -> tuple[list[float], list[float]]:
        """The edges between which forecasts rise, the same for all questions; and the steps between the two edges on
        either side of each horizon that is no edge."""
        edges = [*EDGES]
        while edges[-1] < self.longest:
            edges.append(2 * edges[-2])
        edges = sorted({*(edge for edge in edges if edge < self.longest), *self.usual, self.longest})
        inner: list[float] = []
        for day in sorted({*self.days} - {*edges}):
            place = bisect_left(edges, day)
            low, high = edges[place - 1] if place else 0.0, edges[place]
            inner += [low + (high - low) * step / STEPS for step in range(1, STEPS)]
        return edges, inner


def rise(values: Tensor, times: Sequence[float], edges: Sequence[float]) -> Tensor:
    """Makes values `(B, T, ...)` of some times, in order, rise: at an edge, to the highest of it and the edges before
    it; between two edges, to the highest of the times before, but not above the later edge."""
    at_edges = values[:, [place for place, time in enumerate(times) if time in edges]].cummax(1)[0]
    limits = at_edges[:, [bisect_left(edges, time) for time in times]]
    return values.minimum(limits).cummax(1)[0]


def interpolate(values: Tensor, times: Sequence[float], days: Sequence[float]) -> Tensor:
    """Interpolates values `(B, T, ...)` of some times, in order, at some days: `(B, D, ...)`; 0 at the time 0."""
    values, times = F.pad(values.movedim(1, -1), (1, 0)).movedim(-1, 1), [0.0, *times]
    ends = [bisect_left(times, day) for day in days]
    shares = [(day - times[end - 1]) / (times[end] - times[end - 1]) for day, end in zip(days, ends, strict=True)]
    weights = values.new_tensor(shares).view(-1, *[1] * (values.ndim - 2))
    return torch.lerp(values[:, [end - 1 for end in ends]], values[:, ends], weights)


def median_days(absent: Tensor, ends: Sequence[float]) -> Tensor:
    """Median days to the next visit: where the probability of none, `absent` of shape `(..., intervals)`, falls to a
    half, by linear interpolation between the ends of intervals; at most the last end."""
    edges = torch.tensor([0.0, *ends], device=absent.device)
    shares = torch.cat([torch.ones_like(absent[..., :1]), absent], -1)
    index = (shares > 0.5).sum(-1).clamp(max=len(ends))[..., None]  # the first edge at a half or less
    high, low = shares.gather(-1, index - 1), shares.gather(-1, index)
    part = ((high - 0.5) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return torch.lerp(edges[index - 1], edges[index], part)[..., 0]
