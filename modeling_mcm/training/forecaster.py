# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the forecaster on synthetic shops, reads the weights that ship with the package, and measures a shop.

Shapes: B customers, Q amounts, P places for visits, R examples (a customer of a shop at the end of the window, and a
horizon).
"""

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from modeling_mcm.files_mcm import atomic_write
from modeling_mcm.forecaster_mcm import (
    LEAST_AMOUNT,
    Distribution,
    InputRange,
    Inputs,
    VisitForecaster,
    VisitHistory,
    Visits,
    select_visits,
    smooth_rate,
)
from modeling_mcm.training.synthetic_shops import Shop, draw_shop

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "forecaster.safetensors"
EXAMPLE_CUSTOMERS, HORIZONS = 24, 3  # and horizons of a shop that examples are made of
STATISTICS_CUSTOMERS = 500  # of a synthetic shop whose visits make its statistics
LEAST_VISITS, LEAST_CUSTOMERS = 60, 30  # of a shop; another one is drawn in place of a smaller one
STEP_EXAMPLES, FORECASTER_LR, FORECASTER_DECAY, WARM_UP = 1024, 3e-3, 0.02, 0.1
VALIDATION_SHARE = 0.06  # share of the shops that validate
AMOUNTS_WEIGHT = 0.5
BACK_TESTS = (0.3, 0.5, 0.75)  # shares of the window after which the shop's own past is tested
BINS = 8  # of the profiles of visits and of first visits over the window


class Examples(NamedTuple):
    """Inputs of the networks, and what followed."""

    visits: torch.Tensor  # (R, numbers)
    base: torch.Tensor  # (R,)
    amounts: torch.Tensor  # (R, 1, numbers)
    mean_amounts: torch.Tensor  # (R, 1)
    number: torch.Tensor  # (R,): visits in the horizon
    total: torch.Tensor  # (R,): amount in the horizon, in means of a visit
    usual: torch.Tensor  # (R, 2): means of number and total over the customers of the shop, at the same horizon
    shop: torch.Tensor  # (R,): index of the shop


@torch.no_grad()
def set_shop(forecaster: VisitForecaster, visits: Visits, as_of: torch.Tensor, window: float) -> None:
    """Fills in the window, in days, and the statistics of the shop, computed from its customers' visits in the window
    before `as_of`, of shape `(B,)`. Customers without a visit in the window do not count. Raises `ValueError` if no
    customer has one."""
    history = select_visits(visits, as_of, window)
    is_known = history.number > 0
    if not bool(is_known.any()):
        raise ValueError("No customer has a visit in the training period, so there is nothing to forecast from.")
    history = VisitHistory(*(value[is_known] for value in history))
    kept, repeats = history.is_visit.to(history.ages.dtype), history.number - 1
    mean_rate = repeats.sum().clamp(min=0.5) / history.first.sum().clamp(min=1e-3)
    log_rate = smooth_rate(history, mean_rate).log()
    centred = log_rate - log_rate.mean()
    std = centred.square().mean().sqrt().clamp(min=1e-3)
    places = ((1 - history.ages) * BINS).long().clamp(0, BINS - 1)
    profile = torch.zeros(BINS).scatter_add(0, places.flatten(), kept.flatten()) + 1
    arrivals = torch.bincount(((1 - history.first) * BINS).long().clamp(0, BINS - 1), minlength=BINS) / len(log_rate)
    several = (repeats >= 3).to(kept.dtype)
    weight = several / (several.sum() + 1)
    gap = history.mean_gap.clamp(min=1e-4)
    dispersion = (repeats.var(correction=0) / repeats.mean().clamp(min=1e-3)).log1p()
    numbers = [
        torch.tensor(float(window)).log(),
        (repeats == 0).to(kept.dtype).mean(),
        repeats.mean().log1p(),
        mean_rate.log(),
        std,
        (centred / std).pow(3).mean(),
        dispersion,
        *(profile / profile.mean()).log(),
        *arrivals,
        *((((history.ages < share) * kept).sum(1) > 0).float().mean() for share in (0.05, 0.1, 0.25)),
        history.last.mean(),
        history.last.median(),
        several.mean(),
        (history.irregularity * weight).sum() + 1 / (several.sum() + 1),
        ((history.longest_gap / gap).sqrt() * weight).sum() + 2 / (several.sum() + 1),
        ((history.last / gap > 3) * weight).sum() + 0.3 / (several.sum() + 1),
        *(number for share in BACK_TESTS for number in _test_past(history, share)),
    ]
    amounts = torch.stack([_measure_amounts(history, column, log_rate) for column in history.amounts.unbind(-1)])
    forecaster.window.fill_(window)
    forecaster.statistics.copy_(torch.stack([number.float() for number in numbers]))
    forecaster.mean_rate.copy_(mean_rate)
    forecaster.amount_statistics.copy_(amounts)
    forecaster.most.copy_(torch.cat([history.number.max()[None], history.amounts.flatten(0, 1).amax(0)]))


def _test_past(history: VisitHistory, share: float) -> list[torch.Tensor]:
    """How customers who came in the first `share` of the window behaved in the rest of it: their visits beside
    their rate before, and how many came, of all and by what was known of them; smoothed where they are few."""
    kept = history.is_visit.to(history.ages.dtype)
    is_before = (history.ages > 1 - share) * kept
    before, after = is_before.sum(1), ((history.ages <= 1 - share) * kept).sum(1)
    is_seen = (before > 0).to(kept.dtype)
    exposure = (history.first - (1 - share)).clamp(min=0)
    silence = torch.where(is_before > 0, history.ages, math.inf).amin(1).clamp(max=1) - (1 - share)
    repeats = (before - 1).clamp(min=0)
    mean = repeats.sum().clamp(min=0.5) / (exposure * is_seen).sum().clamp(min=1e-3)
    usual = (repeats + 1) / (exposure + 1 / mean) * (1 - share)
    comes, late = (after > 0).to(kept.dtype), silence / exposure.clamp(min=1e-4) > 0.4
    overall = ((comes * is_seen).sum() + 1) / (is_seen.sum() + 2)
    numbers = [((after * is_seen).sum() + 3).log() - ((usual * is_seen).sum() + 3).log(), overall]
    heavy = before * is_seen
    numbers.append(((after * heavy).sum() + 3).log() - ((usual * heavy).sum() + 3).log())
    some = repeats > 0
    groups = (~some, some & (repeats <= 2), (repeats > 2) & (repeats <= 7), repeats > 7, some & late, some & ~late)
    for group in groups:
        member = is_seen * group
        numbers.append(((after * member).sum() + 3).log() - ((usual * member).sum() + 3).log())
        numbers.append(((comes * member).sum() + 3 * overall) / (member.sum() + 3))
    return numbers


def _measure_amounts(history: VisitHistory, amounts: torch.Tensor, log_rate: torch.Tensor) -> torch.Tensor:
    """Of one amount `(B, P)`: its mean in a visit; the standard deviations of its logarithm within and between
    customers; and the correlation of a customer's mean logarithm with the logarithm of the rate."""
    kept = history.is_visit.to(amounts.dtype)
    mean = (amounts.clamp(min=0) * kept).sum() / kept.sum()
    mean = torch.where(mean > 0, mean, 1.0)
    logs = (amounts.clamp(min=0) / mean + LEAST_AMOUNT).log() * kept
    customer = logs.sum(1) / history.number
    within = (((logs - customer[:, None]) * kept).square().sum() + 0.1) / (kept.sum() - len(kept) + 1)
    between = (customer.var(correction=0) - (within / history.number).mean()).clamp(min=1e-3)
    centred = [each - each.mean() for each in (customer, log_rate)]
    scale = centred[0].square().mean().sqrt() * centred[1].square().mean().sqrt()
    return torch.stack([mean, within.sqrt(), between.sqrt(), (centred[0] * centred[1]).mean() / (scale + 1e-6)])


def pad_visits(customers: NDArray, times: NDArray, amounts: NDArray, number: int) -> Visits:
    """Pads flat visits, ordered by customer and time, to one row for each of `number` customers; `amounts` is of shape
    `(E,)` or `(E, Q)`."""
    amounts = amounts.reshape(len(times), -1)
    counts = np.bincount(customers, minlength=number)
    places = np.arange(len(customers)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = number, max(int(counts.max(initial=0)), 1)
    rows = [np.zeros((*shape, *more), kind) for kind, *more in (("f4",), ("?",), ("f4", amounts.shape[1]))]
    for row, values in zip(rows, (times, True, amounts), strict=True):
        row[customers, places] = values
    return Visits(*map(torch.from_numpy, rows))


def make_examples(seed: int, index: int, forecaster: VisitForecaster | None = None) -> Examples:
    """Draws the shop `index`, and makes examples of some of its customers. Raises nothing: a shop with few visits is
    drawn again."""
    rng = np.random.default_rng([seed, index])
    while True:
        shop = draw_shop(rng, HORIZONS)
        past = shop.times < shop.window
        known, rows = np.unique(shop.customers[past], return_inverse=True)
        if past.sum() >= LEAST_VISITS and len(known) >= LEAST_CUSTOMERS and past.sum() > len(known):
            break
    forecaster = VisitForecaster() if forecaster is None else forecaster
    order = rng.permutation(len(known))
    of_statistics = np.sort(order[:STATISTICS_CUSTOMERS])
    # Half of them frequent ones, who are few. A choice by what the network reads biases nothing.
    shares = np.bincount(rows) / len(rows)
    chosen = rng.choice(len(known), EXAMPLE_CUSTOMERS // 2, p=shares)
    chosen = np.unique(np.concatenate([order[: EXAMPLE_CUSTOMERS // 2], chosen]))
    visits = _select_customers(rows, shop, past, of_statistics)
    set_shop(forecaster, visits, _ends(shop, visits), shop.window)
    visits = _select_customers(rows, shop, past, chosen)
    scale = float(forecaster.amount_statistics[0, 0])
    place = np.minimum(np.searchsorted(known, shop.customers), len(known) - 1)
    with torch.no_grad():
        inputs = forecaster.inputs(visits, _ends(shop, visits), (shop.ratios * shop.window).tolist())
    targets = []
    for ratio in shop.ratios:
        follows = ~past & (shop.times < (1 + ratio) * shop.window) & (known[place] == shop.customers)
        number = np.bincount(place[follows], minlength=len(known))
        total = np.bincount(place[follows], shop.amounts[follows], minlength=len(known)) / scale
        usual = np.broadcast_to([number.mean(), total.mean()], (len(chosen), 2))
        targets.append([number[chosen], total[chosen], usual, np.full(len(chosen), index)])
    columns = [torch.from_numpy(np.stack(column, 1).astype(np.float32)) for column in zip(*targets, strict=True)]
    return Examples(*(column.flatten(0, 1) for column in (*inputs, *columns)))


def _ends(shop: Shop, visits: Visits) -> torch.Tensor:
    return torch.full((len(visits.times),), shop.window)


def _select_customers(rows: NDArray, shop: Shop, past: NDArray, chosen: NDArray) -> Visits:
    """The visits before the end of the window of some customers."""
    place = np.minimum(np.searchsorted(chosen, rows), len(chosen) - 1)
    keep = chosen[place] == rows
    return pad_visits(place[keep], shop.times[past][keep], shop.amounts[past][keep], len(chosen))


def _make_part(task: tuple[int, range]) -> Examples:
    torch.set_num_threads(1)
    forecaster = VisitForecaster()
    parts = [make_examples(task[0], index, forecaster) for index in task[1]]
    return Examples(*(torch.cat(column) for column in zip(*parts, strict=True)))


def draw_examples(shops: int, seed: int, processes: int = 1) -> Examples:
    """Makes examples of a number of synthetic shops. They do not depend on the number of processes."""
    tasks = [(seed, range(start, min(start + 25, shops))) for start in range(0, shops, 25)]
    bar = logging.tqdm(total=shops, desc="Synthetic shops", unit="shop")

    def watched(results: Iterator[Examples]) -> list[Examples]:
        parts = []
        for task, part in zip(tasks, results, strict=True):
            parts.append(part)
            bar.update(len(task[1]))
        return parts

    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            parts = watched(pool.map(_make_part, tasks))
    else:
        parts = watched(map(_make_part, tasks))
    bar.close()
    return Examples(*(torch.cat(column) for column in zip(*parts, strict=True)))


def compute_losses(forecaster: VisitForecaster, examples: Examples) -> dict[str, torch.Tensor]:
    """Mean losses of examples by name: of distributions, their negative log-likelihood; of expected numbers and
    amounts, that of a Poisson distribution, divided by the shop's mean so that large shops do not weigh more."""
    inputs = Inputs(examples.visits, examples.base, examples.amounts, examples.mean_amounts)
    visits = forecaster.distribution(inputs)
    expected = visits.expected
    number, usual = examples.number, examples.usual
    fixed = Distribution(*(value.detach() for value in visits))
    log_total, log_mean, log_std, _ = (value[:, 0] for value in forecaster.amounts(inputs, fixed))
    came = ((number > 0) & (examples.total > 0)).float()
    score = (examples.total.clamp(min=1e-6).log() - log_mean) / log_std
    total = log_total.exp()
    return {
        "visits": -visits.log_probability(number).mean(),
        "mean visits": ((expected - number * expected.log()) / (usual[:, 0] + 0.1)).mean(),
        "mean amounts": AMOUNTS_WEIGHT * ((total - examples.total * log_total) / (usual[:, 1] + 0.1)).mean(),
        "amounts": AMOUNTS_WEIGHT * ((score.square() / 2 + log_std.log()) * came).sum() / came.sum().clamp(min=1),
    }


def train_forecaster(examples: Examples, epochs: int, seed: int = 0) -> tuple[VisitForecaster, dict[str, float]]:
    """Trains a forecaster.

    Args:
        examples (`Examples`): Of synthetic shops; those of the last shops validate.
        epochs (`int`): Passes over the others.

    Returns:
        `tuple[VisitForecaster, dict[str, float]]`: The forecaster, without a shop, and its losses on the shops that
        validate.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        forecaster = VisitForecaster()
        first = examples.shop.max() * (1 - VALIDATION_SHARE)
        training, held_out = (
            Examples(*(column[part] for column in examples))
            for part in (examples.shop <= first, examples.shop > first)
        )
        _learn_ranges(forecaster, training)
        steps = max(1, len(training.shop) // STEP_EXAMPLES)
        optimizer = torch.optim.AdamW(forecaster.parameters(), FORECASTER_LR, weight_decay=FORECASTER_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, FORECASTER_LR, total_steps=epochs * steps + 1, pct_start=WARM_UP
        )
        bar = logging.tqdm(total=epochs * steps, desc="Forecaster", unit="step")
        for _ in range(epochs):
            order = torch.randperm(len(training.shop))
            for step in range(steps):
                part = order[step * STEP_EXAMPLES : (step + 1) * STEP_EXAMPLES]
                losses = compute_losses(forecaster, Examples(*(column[part] for column in training)))
                loss = torch.stack([*losses.values()]).sum()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(forecaster.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
        bar.close()
    with torch.no_grad():
        return forecaster.eval(), {name: float(value) for name, value in compute_losses(forecaster, held_out).items()}


def _learn_ranges(forecaster: VisitForecaster, examples: Examples) -> None:
    inputs = Inputs(examples.visits, examples.base, examples.amounts, examples.mean_amounts)
    _learn_range(forecaster.visit_network.range, examples.visits)
    with torch.no_grad():
        start = forecaster.distribution(inputs)
    known = torch.stack([start.expected.log(), start.log_comes], 1)
    _learn_range(forecaster.amount_network.range, torch.cat([examples.visits, known, examples.amounts[:, 0]], 1))


@torch.no_grad()
def _learn_range(limits: InputRange, inputs: torch.Tensor) -> None:
    """Sets the range to that of a sample of inputs `(R, size)`, but for a thousandth on either side."""
    skipped = len(inputs) // 1000
    limits.low.copy_(inputs.kthvalue(1 + skipped, 0).values)
    limits.high.copy_(inputs.kthvalue(len(inputs) - skipped, 0).values)
    clipped = inputs.clamp(limits.low, limits.high)
    limits.mean.copy_(clipped.mean(0))
    limits.std.copy_(clipped.std(0).clamp(min=1e-2))


def save_weights(forecaster: VisitForecaster, path: str | Path) -> None:
    """Writes what does not depend on a shop: the weights of both networks, and the ranges of their inputs."""
    weights = {name: value.contiguous() for name, value in forecaster.state_dict().items() if "_network." in name}
    with atomic_write(path) as partial:
        save_file(weights, partial)


def load_weights(forecaster: VisitForecaster, path: str | Path = SHIPPED_WEIGHTS) -> None:
    """Reads the weights that `save_weights` wrote. Raises `ValueError` if they are of another network."""
    weights = load_file(path)
    own = {name: value.shape for name, value in forecaster.state_dict().items() if "_network." in name}
    if own != {name: value.shape for name, value in weights.items()}:
        raise ValueError(
            f"{path} holds weights of another network: train it again (training/run_pretrain_forecaster.py)."
        )
    forecaster.load_state_dict(weights, strict=False)
