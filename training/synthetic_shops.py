# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic shops: a prior over logs of visits, from which the forecaster learns.

A shop is drawn in four steps, each with parameters of its own: when the shop's customers first come and whether they
leave, how often and how regularly each one visits, how busy the shop is on each day, and what a visit is worth. All
times are shares of the window that a forecast reads: it lies between 0 and 1, and the horizons follow it.

Shapes: N customers of a shop, E visits of a shop, B blocks of time.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BUDGET = 9000  # visits of a shop, roughly
BLOCKS = 32  # of the paths along which the rates of single customers move
MOST_GAPS = 2500  # of a customer
LONGEST_SIMULATED = 2.2  # the longest horizon, as a multiple of the window


class Shop(NamedTuple):
    """The log of a synthetic shop, ordered by customer and time."""

    window: float  # days
    ratios: NDArray[np.float64]  # horizons, as multiples of the window
    customers: NDArray[np.int64]  # (E,)
    times: NDArray[np.float64]  # (E,): days from the start of the window
    amounts: NDArray[np.float64]  # (E,)


def draw_shop(rng: np.random.Generator, num_ratios: int = 4) -> Shop:
    """Draws a shop; the same generator gives the same shop. It may have few visits, or none."""
    window = _log_uniform(rng, 30, 1100)
    ratios = np.sort(np.exp(rng.uniform(math.log(0.03), math.log(LONGEST_SIMULATED), num_ratios)))
    end = 1 + ratios[-1]
    mean_rate = _log_uniform(rng, 0.1, 80)
    number = int(np.clip(BUDGET / (mean_rate * (1 + ratios[-1]) * 0.7 + 1.5), 100, _log_uniform(rng, 150, 3000)))
    factors = _factors(rng, number)
    rates = np.minimum(mean_rate * factors, 600)
    start, arrivals = _arrivals(rng, number, end)
    leaves, most_visits = _departures(rng, factors)
    paths, grid = _paths(rng, arrivals, start, end)
    begun = _along(paths, grid, arrivals)  # a customer's own clock, on which the rate is constant
    lasting = np.minimum(arrivals + leaves, end)
    expected = rates * (_along(paths, grid, lasting) - begun)
    regularity = np.clip(
        _log_uniform(rng, 0.35, 6) * np.exp(rng.normal(0, 0.4, number) * (rng.random() < 0.5)), 0.25, 30
    )
    gaps = np.ceil(1.2 * expected + 4 * np.sqrt(expected / regularity) + 5)
    gaps = np.clip(np.minimum(gaps, most_visits), 1, MOST_GAPS).astype(np.int64)
    customers = np.repeat(np.arange(number), gaps)
    firsts = np.cumsum(gaps) - gaps
    steps = rng.standard_gamma(regularity[customers]) / (regularity * rates)[customers]
    if rng.random() < 0.35:  # some gaps are breaks
        steps *= np.where(rng.random(len(steps)) < rng.uniform(0, 0.1), rng.uniform(3, 20), 1)
    steps[firsts] = 0
    clock = np.cumsum(steps)
    clock += (begun - clock[firsts])[customers]
    times = _invert(paths, grid, customers, clock)
    keep = (times < end) & (times <= (arrivals + leaves)[customers])
    level, days = _level(rng, window, start, end)
    times = np.interp(times, level, days / window, right=np.inf)
    keep &= (times >= 0) & (times < end)
    customers, times = customers[keep], times[keep] * window
    amounts = _amounts(rng, customers, times / window, factors)
    customers, times, amounts = _recorded(rng, customers, times, amounts)
    return Shop(window, ratios, customers, times, amounts)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _factors(rng: np.random.Generator, number: int) -> NDArray[np.float64]:
    """Rate of each customer, as a multiple of the shop's mean."""
    kind = rng.random()
    if kind < 0.6:
        shape = _log_uniform(rng, 0.12, 5)
        factors = rng.gamma(shape, 1 / shape, number)
    else:
        std = rng.uniform(0.2, 1.6)
        factors = np.exp(rng.normal(-(std**2) / 2, std, number))
    if kind > 0.9:  # two kinds of customers
        factors *= np.where(rng.random(number) < rng.uniform(0.1, 0.9), _log_uniform(rng, 0.05, 0.5), 1)
    return np.maximum(factors, 1e-3)


def _arrivals(rng: np.random.Generator, number: int, end: float) -> tuple[float, NDArray[np.float64]]:
    """Time before the window from which customers come, and when each first comes: before the window, within some
    part of it, or all along."""
    earlier = float(rng.choice([0.0, 1.0, rng.random()], p=[0.3, 0.2, 0.5]))
    start = -_log_uniform(rng, 0.2, 3)
    kind = rng.random()
    last = rng.uniform(0.1, 1) if kind < 0.35 else 1.0 if kind < 0.75 else end
    first, second = rng.uniform(0.6, 2.5, 2)
    within = last * rng.beta(first, second, number)
    return start, np.where(rng.random(number) < earlier, start * rng.random(number), within)


def _departures(rng: np.random.Generator, factors: NDArray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How long each customer stays, and the number of visits after which each one leaves. A shop has none, one or
    several of three reasons: time, visits, and a first visit without a second one."""
    number = len(factors)
    stays, visits = np.full(number, np.inf), np.full(number, MOST_GAPS)
    if rng.random() < 0.25:
        return stays, visits
    by_time, by_visit, after_first = rng.random(3) < (0.4, 0.4, 0.3)
    if by_time:
        shape, related = _log_uniform(rng, 0.15, 3), rng.choice([0.0, -0.4, 0.4], p=[0.5, 0.25, 0.25])
        hazard = _log_uniform(rng, 0.03, 2) * rng.gamma(shape, 1 / shape, number) * factors**related
        stays = rng.exponential(1, number) / np.maximum(hazard, 1e-6)
    if by_visit:
        mean, weight = _log_uniform(rng, 0.003, 0.35), _log_uniform(rng, 0.4, 20)
        chance = rng.beta(mean * weight, (1 - mean) * weight, number)
        visits = np.minimum(rng.geometric(np.clip(chance, 1e-6, 0.999)), MOST_GAPS)
    if after_first:
        visits = np.where(rng.random(number) < rng.uniform(0.05, 0.7), 1, visits)
    return stays, visits


def _paths(rng: np.random.Generator, arrivals: NDArray, start: float, end: float) -> tuple[NDArray, NDArray]:
    """Each customer's own clock at the edges of blocks, of shape `(N, B + 1)`, and these edges. Its speed wanders, may
    have a trend, and may fall for good some time after the first visit."""
    number = len(arrivals)
    grid = np.linspace(start, end, BLOCKS + 1)
    step = grid[1] - grid[0]
    speed = np.zeros((number, BLOCKS))
    if rng.random() < 0.6:
        std, decay = rng.uniform(0.1, 0.9), math.exp(-step / _log_uniform(rng, 0.05, 2))
        noise = rng.standard_normal((number, BLOCKS))
        for block in range(1, BLOCKS):
            noise[:, block] = decay * noise[:, block - 1] + math.sqrt(1 - decay**2) * noise[:, block]
        speed += std * noise - std**2 / 2
    if rng.random() < 0.35:
        slopes = rng.normal(rng.normal(0, 0.15), abs(rng.normal(0, 0.4)), number)
        speed += np.clip(slopes[:, None] * (grid[:-1] - 0.5), -1.5, 1.5)
    if rng.random() < 0.25:  # after a while most customers come more rarely, and a few more often
        change = arrivals + rng.exponential(_log_uniform(rng, 0.05, 2), number)
        factor = rng.normal(rng.uniform(-2, 0.3), rng.uniform(0.1, 1), number)
        speed += factor[:, None] * (grid[:-1] >= change[:, None])
    paths = np.concatenate([np.zeros((number, 1)), np.cumsum(np.exp(speed) * step, 1)], 1)
    return paths, grid


def _along(paths: NDArray, grid: NDArray, times: NDArray) -> NDArray[np.float64]:
    """Each customer's clock at one time of each, of shape `(N,)`."""
    offsets = np.arange(len(paths)) * 2 * (grid[-1] - grid[0])  # so that the grids of all customers are one
    return np.interp(times + offsets, (grid + offsets[:, None]).ravel(), paths.ravel())


def _invert(paths: NDArray, grid: NDArray, customers: NDArray, clock: NDArray) -> NDArray[np.float64]:
    """Times at which the clocks of customers `(E,)` show `clock`; infinite after the end of a path."""
    offset = paths[:, -1].max() + 1  # so that the paths of all customers make one rising line
    rows = np.arange(len(paths))[:, None] * offset
    inside = np.minimum(clock, paths[customers, -1])
    times = np.interp(inside + customers * offset, (paths + rows).ravel(), np.tile(grid, len(paths)))
    return np.where(clock > paths[customers, -1], np.inf, times)


def _level(rng: np.random.Generator, window: float, start: float, end: float) -> tuple[NDArray, NDArray]:
    """The shop's clock at the edges of days, as shares of the window, and these edges. It is fast on busy days:
    weekdays, the year, a trend, a walk and single busy weeks."""
    days = np.arange(math.floor(start * window) - 1, math.ceil(end * window) + 2)
    log_level, year = np.zeros(len(days) - 1), 2 * np.pi * days[:-1] / 365.25
    if rng.random() < 0.55:
        log_level += rng.normal(0, 0.2) * np.clip(days[:-1] / window, -1, 3)
    if rng.random() < 0.6:
        for times, most in ((1, 0.3), (2, 0.15)):
            log_level += rng.uniform(0, most) * np.cos(times * year + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        log_level += _log_uniform(rng, 0.003, 0.02) * np.cumsum(rng.normal(size=len(log_level)))
    if rng.random() < 0.3:
        for _ in range(rng.integers(1, 4)):
            first = rng.integers(0, len(log_level))
            log_level[first : first + rng.integers(2, 30)] += rng.uniform(-1, 1)
    weekdays = rng.normal(0, rng.uniform(0, 0.6), 7)
    log_level = np.clip(log_level, -1.5, 1.5) + weekdays[(np.arange(len(log_level)) + rng.integers(7)) % 7]
    level = np.exp(log_level)
    level /= level[(days[:-1] >= 0) & (days[:-1] < window)].mean()
    clock = np.concatenate([[0.0], np.cumsum(level)]) / window
    return clock - np.interp(0.0, days, clock), days


def _amounts(rng: np.random.Generator, customers: NDArray, times: NDArray, factors: NDArray) -> NDArray[np.float64]:
    """Amount of each visit: money, a number of items, or always 1."""
    kind = rng.random()
    if kind < 0.08:
        return np.ones(len(customers))
    between, within = rng.uniform(0.05, 1.0), rng.uniform(0.1, 1.3)
    related = rng.choice([0.0, -0.3, 0.3], p=[0.5, 0.2, 0.3])
    means = rng.normal(0, between, len(factors)) + related * np.log(factors)
    means = means[customers] + (rng.normal(0, 0.15) * times if rng.random() < 0.4 else 0)
    logs = means + rng.normal(0, within, len(customers))
    if kind < 0.3:  # a number of items
        return 1.0 + rng.poisson(np.exp(np.clip(logs, -5, 5) + rng.normal(0.5, 1)))
    amounts = np.exp(logs)
    if rng.random() < 0.2:  # visits for nothing, or goods brought back
        amounts *= rng.random(len(amounts)) > rng.uniform(0, 0.1)
    return amounts


def _recorded(rng: np.random.Generator, customers: NDArray, times: NDArray, amounts: NDArray) -> tuple[NDArray, ...]:
    """How the log was written: whole days with one visit each, or times of day; perhaps of frequent customers only."""
    if rng.random() < 0.65 and len(times):
        key = customers * 2**24 + np.floor(times).astype(np.int64)
        _, first, place = np.unique(key, return_index=True, return_inverse=True)
        amounts, customers, times = np.bincount(place, amounts), customers[first], np.floor(times[first])
    if rng.random() < 0.12:
        frequent = np.bincount(customers, minlength=1)[customers] >= rng.integers(2, 8)
        customers, times, amounts = customers[frequent], times[frequent], amounts[frequent]
    return customers, times, amounts
