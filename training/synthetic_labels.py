# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic shops with labels: a prior over logs, because open logs are few.

Customers have habits, some of which come in cycles, and tastes for groups of labels; labels follow each other, come
into fashion and go, and in some shops nobody has one twice. In others a visit is a session of clicks, which may end in
a purchase. How strong each of these is differs from shop to shop.

Shapes: N customers of a shop, V labels, G groups of labels, H habits of a customer, L labels of a basket.
"""

import numpy as np
from numpy.typing import NDArray
from shops_of_labels import LEAST_HORIZON, MOST_HORIZON, LabelLog

from modeling_mcm.events_mcm import SECONDS_PER_DAY

EVENTS = 60_000  # of a shop, about at most
HABITS, SUCCESSORS, BLOCKS, TRIES = 30, 6, 40, 4
START = 1_600_000_000  # seconds since 1970


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


class _Shop:
    """What the customers of a synthetic shop choose from, and how."""

    def __init__(self, rng: np.random.Generator, customers: int):
        self.rng = rng
        self.size = int(_log_uniform(rng, 12, 4000))
        self.repeats = rng.random() > 0.25
        groups = int(np.clip(_log_uniform(rng, 2, 200), 2, self.size / 3))
        exponent = rng.uniform(0.2, 1.4)
        self.popularity = rng.permutation((1.0 + np.arange(self.size)) ** -exponent)
        self.group = rng.integers(0, groups, self.size)
        self.brand = rng.integers(0, max(int(self.size / rng.uniform(3, 40)), 2), self.size)
        # Labels come into fashion in a block of time, and go
        moves = rng.random() < 0.5
        birth = np.where(rng.random(self.size) < rng.uniform(0, 0.8), rng.uniform(-0.5, 1, self.size), -9)
        age = np.linspace(0, 1, BLOCKS)[:, None] - birth  # (BLOCKS, V)
        life = _log_uniform(rng, 0.03, 2)
        level = (
            np.where(age < 0, 1e-3, np.where(birth > -9, np.exp(-age / life) + 0.02, 1.0)) if moves else 1 + 0 * age
        )
        self.levels = np.cumsum(level * self.popularity, 1)  # (BLOCKS, V)
        # Of each group the cumulative popularity of its labels
        self.by_group = np.argsort(self.group, kind="stable")
        self.sums = np.cumsum(self.popularity[self.by_group])
        ends = np.searchsorted(self.group[self.by_group], np.arange(groups + 1))
        self.edges = np.append(0, self.sums)[ends]  # (G + 1,)
        near = rng.random() < 0.5  # successors are of the same group
        self.successors = rng.integers(0, self.size, (self.size, SUCCESSORS))
        if near:
            self.successors = self._of_groups(np.repeat(self.group[:, None], SUCCESSORS, 1))
        # Tastes: of each customer some groups, and habits, each with a weight and a cycle in days
        taste, most = _log_uniform(rng, 0.03, 1.0), min(8, groups)
        self.tastes = rng.integers(0, groups, (customers, most))
        weights = rng.gamma(taste, 1.0, (customers, most)) + 1e-9
        self.tastes_sums = np.cumsum(weights / weights.sum(1, keepdims=True), 1)
        self.habits = np.where(
            rng.random((customers, HABITS)) < 0.6,
            self._of_groups(self._groups_of(np.repeat(np.arange(customers)[:, None], HABITS, 1))),
            self._popular(np.zeros((customers, HABITS), int)),
        )
        self.weights = rng.gamma(_log_uniform(rng, 0.1, 2), 1.0, (customers, HABITS)) + 1e-9
        self.cycles = np.exp(rng.normal(np.log(_log_uniform(rng, 2, 90)), rng.uniform(0.2, 1), (customers, HABITS)))
        self.cyclic = rng.choice([0.0, rng.uniform(0, 1), 1.0])
        self.regular = _log_uniform(rng, 1, 5)
        strengths = rng.gamma(np.array([1.0, 0.5, 0.5, 0.5, 0.4]), 1.0) + [1e-3] * 5
        if not self.repeats:
            strengths[0] = 0
        # Shares of habits, tastes, successors, popularity, and the group of the last label
        self.shares = np.cumsum(strengths / strengths.sum())

    def _of_groups(self, group: NDArray) -> NDArray:
        """Labels of groups by popularity, of the same shape."""
        low, high = self.edges[group], self.edges[group + 1]
        at = np.searchsorted(self.sums, low + self.rng.random(group.shape) * (high - low), "right")
        return self.by_group[np.minimum(at, self.size - 1)]

    def _groups_of(self, customers: NDArray) -> NDArray:
        place = (self.rng.random(customers.shape)[..., None] > self.tastes_sums[customers]).sum(-1)
        return self.tastes[customers, np.minimum(place, self.tastes.shape[1] - 1)]

    def _popular(self, block: NDArray) -> NDArray:
        """Labels by their popularity in a block of time."""
        at = np.empty(block.shape, int)
        for number in np.unique(block):
            own, sums = block == number, self.levels[number]
            at[own] = np.searchsorted(sums, self.rng.random(own.sum()) * sums[-1])
        return np.minimum(at, self.size - 1)

    def choose(self, customers: NDArray, day: NDArray, last: NDArray, bought: NDArray, share: NDArray) -> NDArray:
        """A label for each of some customers `(M,)`, at days that are shares of the period, after their last labels
        `(M,)` and the days on which they had their habits `(M, H)`."""
        rng, number = self.rng, len(customers)
        weights = self.weights[customers]
        due = 1 - np.exp(-(((day[:, None] - bought) / self.cycles[customers]) ** self.regular))
        weights = weights * (1 - self.cyclic + self.cyclic * due) + 1e-12
        sums = np.cumsum(weights, 1)
        place = (rng.random(number)[:, None] * sums[:, -1:] > sums).sum(1)
        block = np.clip((share * BLOCKS).astype(int), 0, BLOCKS - 1)
        successor = self.successors[last, np.minimum(rng.geometric(0.4, number) - 1, SUCCESSORS - 1)]
        options = np.stack(
            [
                self.habits[customers, place],
                self._of_groups(self._groups_of(customers)),
                successor,
                self._popular(block),
                self._of_groups(self.group[last]),
            ]
        )
        which = np.minimum(np.searchsorted(self.shares, rng.random(number)), 4)
        return options[which, np.arange(number)]


def draw_log(rng: np.random.Generator) -> LabelLog:
    """Draws a synthetic shop; the same generator gives the same shop."""
    sessions = rng.random() < 0.3
    basket = _log_uniform(rng, 1, 8) if rng.random() < 0.7 else 1.0
    mean_visits = _log_uniform(rng, 2, 60)
    most = max(min(EVENTS / (mean_visits * basket * (1.5 if sessions else 1)), 8000), 40)
    customers = int(_log_uniform(rng, 25, most))
    shop = _Shop(rng, customers)
    days = _log_uniform(rng, 40, 900)
    spread = rng.uniform(0.2, 1.2)
    visits = np.clip(np.exp(rng.normal(np.log(mean_visits), spread, customers)), 1, 200).astype(int) + 1
    first = np.where(rng.random(customers) < rng.uniform(0.2, 1), 0.0, rng.uniform(0, 0.9, customers))
    stays = np.where(rng.random(customers) < rng.uniform(0, 0.7), rng.uniform(0.1, 1, customers), 1.0)
    gap = (stays * (1 - first) * days / visits).clip(min=0.02)
    day = first * days + rng.exponential(1, customers) * gap
    regular = _log_uniform(rng, 0.5, 4)
    last, bought = shop._popular(np.zeros(customers, int)), np.full((customers, HABITS), -1e4)
    had = np.zeros((customers, shop.size), bool) if not shop.repeats else None
    parts: list[tuple[NDArray, ...]] = []
    buys = rng.uniform(0.05, 0.9)  # share of the sessions that end in a purchase
    back = rng.uniform(0, 0.5)  # share of the clicks that go back to a label of the session
    for step in range(int(visits.max())):
        active = np.flatnonzero((visits > step) & (day < days))
        if not len(active):
            break
        number = np.minimum(1 + rng.poisson(basket - 1 + 1e-9, len(active)), 40)
        clicked = [last[active]]
        for place in range(int(number.max())):
            own = number > place
            chosen = active[own]
            label = shop.choose(chosen, day[chosen], last[chosen], bought[chosen], day[chosen] / days)
            if sessions and place:
                earlier = np.stack([each[own] for each in clicked[1:]])[rng.integers(0, place), np.arange(len(chosen))]
                label = np.where(rng.random(len(chosen)) < back, earlier, label)
            if had is not None:
                for _ in range(TRIES):
                    again = had[chosen, label]
                    if not again.any():
                        break
                    some = chosen[again]
                    label[again] = shop.choose(some, day[some], last[some], bought[some], day[some] / days)
                kept = ~had[chosen, label]
                had[chosen, label] = True
            else:
                kept = np.ones(len(chosen), bool)
            last[chosen] = label
            rows, habit = np.nonzero(shop.habits[chosen] == label[:, None])
            bought[chosen[rows], habit] = day[chosen[rows]]
            time = day[chosen] + (place * rng.exponential(0.001, len(chosen)) if sessions else 0)
            parts.append((chosen[kept], np.full(kept.sum(), step), time[kept], np.zeros(kept.sum(), int), label[kept]))
            seen = clicked[-1].copy()
            seen[own] = label
            clicked.append(seen)
        if sessions:
            ends = rng.random(len(active)) < buys
            chosen = active[ends]
            label = np.stack(clicked[1:])[-1][ends]
            parts.append((chosen, np.full(len(chosen), step), day[chosen] + 0.05, np.ones(len(chosen), int), label))
        day[active] += rng.gamma(regular, 1 / regular, len(active)) * gap[active] + 0.06
    customer, visit, time, kind, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not sessions and rng.random() < 0.7:
        time = np.floor(time)
    order = np.lexsort((time, visit, customer))
    customer, visit, time, kind, label = (column[order] for column in (customer, visit, time, kind, label))
    labels = {"item": label + 1, "group": shop.group[label] + 1, "brand": shop.brand[label] + 1}
    tasks = ("item", "group") if rng.random() < 0.6 else ("item",)
    if rng.random() < 0.4:
        labels = {name: labels[name] for name in tasks}
    seconds = (START + time * SECONDS_PER_DAY).astype(np.int64)
    horizon = min(rng.uniform(LEAST_HORIZON, MOST_HORIZON), 0.25 * days)
    end = days - horizon - rng.uniform(0, 0.3) * days
    cutoffs = int(START + end * SECONDS_PER_DAY), int(START + (end + horizon) * SECONDS_PER_DAY)
    visit = np.cumsum(np.append(0, (np.diff(customer) != 0) | (np.diff(visit) != 0)))
    is_target = (kind > 0) if sessions and rng.random() < 0.3 else np.ones(len(label), bool)
    return LabelLog(
        customer, visit, seconds, kind, is_target, labels, tasks, True, cutoffs, int(rng.choice([1, 2, 4]))
    )
