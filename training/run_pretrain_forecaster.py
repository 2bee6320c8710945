#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the forecaster that ships with the package, on synthetic shops: minutes on a CPU, and no log is read.

    python training/run_pretrain_forecaster.py                     writes modeling_mcm/forecaster.safetensors
    python training/run_pretrain_forecaster.py --output mine.safetensors --shops 500 --epochs 4

The same seed gives the same shops, with any number of processes, and on one machine the same weights. Afterwards
`benchmarks/forecasts.py` judges the weights on real logs.

Shapes: R examples (a customer of a shop at the end of the window, and a horizon).
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from synthetic_shops import Shop, draw_shop
from transformers.utils import logging

from modeling_mcm.commands.arguments import command
from modeling_mcm.events_mcm import pad_groups
from modeling_mcm.files_mcm import atomic_write
from modeling_mcm.forecaster_mcm import Distribution, InputRange, Inputs, VisitForecaster, Visits
from modeling_mcm.option import option
from modeling_mcm.training.descent import make_descent
from modeling_mcm.training.forecaster.shop import SHIPPED_WEIGHTS, set_shop

EXAMPLE_CUSTOMERS, HORIZONS = 24, 3  # and horizons of a shop that examples are made of
STATISTICS_CUSTOMERS = 500  # of a synthetic shop whose visits make its statistics
LEAST_VISITS, LEAST_CUSTOMERS = 60, 30  # of a shop; another one is drawn in place of a smaller one
STEP_EXAMPLES, FORECASTER_LR, FORECASTER_DECAY, WARM_UP = 1024, 3e-3, 0.02, 0.1
VALIDATION_SHARE = 0.06  # share of the shops that validate
AMOUNTS_WEIGHT = 0.5


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


def make_examples(seed: int, index: int) -> list[NDArray]:
    """Draws the shop `index`, and makes the columns of [`Examples`] of some of its customers. Raises nothing: a shop
    with few visits is drawn again."""
    rng = np.random.default_rng([seed, index])
    while True:
        shop = draw_shop(rng, HORIZONS)
        past = shop.times < shop.window
        known, rows = np.unique(shop.customers[past], return_inverse=True)
        if past.sum() >= LEAST_VISITS and len(known) >= LEAST_CUSTOMERS and past.sum() > len(known):
            break
    forecaster = VisitForecaster()
    order = rng.permutation(len(known))
    statistics_rows = np.sort(order[:STATISTICS_CUSTOMERS])
    # Half of them frequent ones, who are few. A choice by what the network reads biases nothing.
    shares = np.bincount(rows) / len(rows)
    chosen = rng.choice(len(known), EXAMPLE_CUSTOMERS // 2, p=shares)
    chosen = np.unique(np.concatenate([order[: EXAMPLE_CUSTOMERS // 2], chosen]))
    visits = _select_customers(rows, shop, past, statistics_rows)
    set_shop(forecaster, visits, torch.full(visits.times.shape[:1], shop.window), shop.window)
    visits = _select_customers(rows, shop, past, chosen)
    scale = float(forecaster.amount_statistics[0, 0])
    place = np.minimum(np.searchsorted(known, shop.customers), len(known) - 1)
    with torch.no_grad():
        as_of = torch.full(visits.times.shape[:1], shop.window)
        inputs = forecaster.inputs(visits, as_of, (shop.ratios * shop.window).tolist())
    targets = []
    for ratio in shop.ratios:
        follows = ~past & (shop.times < (1 + ratio) * shop.window) & (known[place] == shop.customers)
        number = np.bincount(place[follows], minlength=len(known))
        total = np.bincount(place[follows], shop.amounts[follows], minlength=len(known)) / scale
        usual = np.broadcast_to([number.mean(), total.mean()], (len(chosen), 2))
        targets.append([number[chosen], total[chosen], usual, np.full(len(chosen), index)])
    columns = [np.stack(column, 1).astype(np.float32) for column in zip(*targets, strict=True)]
    columns = [*(column.numpy() for column in inputs), *columns]
    return [column.reshape(-1, *column.shape[2:]) for column in columns]


def _select_customers(rows: NDArray, shop: Shop, past: NDArray, chosen: NDArray) -> Visits:
    """The visits before the end of the window of some customers."""
    place = np.minimum(np.searchsorted(chosen, rows), len(chosen) - 1)
    keep = chosen[place] == rows
    return pad_visits(place[keep], shop.times[past][keep], shop.amounts[past][keep], len(chosen))


def pad_visits(customers: NDArray, times: NDArray, amounts: NDArray, number: int) -> Visits:
    """Pads flat visits, ordered by customer and time, to one row for each of `number` customers; `amounts` is of shape
    `(E,)` or `(E, Q)`."""
    amounts = amounts.reshape(len(times), -1)
    sizes = np.bincount(customers, minlength=number)
    columns = times.astype(np.float32), np.ones(len(times), bool), amounts.astype(np.float32)
    return Visits(*(torch.from_numpy(pad_groups(values, sizes)) for values in columns))


def draw_examples(shops: int, seed: int, processes: int = 1) -> Examples:
    """Makes examples of a number of synthetic shops. They do not depend on the number of processes."""
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = pool.map(make_examples, [seed] * shops, range(shops), chunksize=25)
        watched = logging.tqdm(parts, total=shops, desc="Synthetic shops", unit="shop")
        return Examples(*(torch.from_numpy(np.concatenate(column)) for column in zip(*watched, strict=True)))


def compute_losses(forecaster: VisitForecaster, examples: Examples) -> dict[str, torch.Tensor]:
    """Mean losses of examples by name: of distributions, their negative log-likelihood; of expected numbers and
    amounts, that of a Poisson distribution, divided by the shop's mean so that large shops do not weigh more."""
    inputs = Inputs(*examples[:4])
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
        _learn_range(forecaster.visit_network.range, training.visits)
        with torch.no_grad():
            start = forecaster.distribution(Inputs(*training[:4]))
        known = torch.stack([start.expected.log(), start.log_comes], 1)
        read = torch.cat([training.visits, known, training.amounts[:, 0]], 1)
        _learn_range(forecaster.amount_network.range, read)
        steps = max(1, len(training.shop) // STEP_EXAMPLES)
        descend = make_descent(forecaster, FORECASTER_LR, FORECASTER_DECAY, epochs * steps, WARM_UP)
        for _ in logging.tqdm(range(epochs), desc="Forecaster", unit="epoch"):
            for part in torch.randperm(len(training.shop)).split(STEP_EXAMPLES)[:steps]:
                losses = compute_losses(forecaster, Examples(*(column[part] for column in training)))
                descend(torch.stack([*losses.values()]).sum())
    with torch.no_grad():
        return forecaster.eval(), {name: float(value) for name, value in compute_losses(forecaster, held_out).items()}


@torch.no_grad()
def _learn_range(limits: InputRange, inputs: torch.Tensor) -> None:
    """Sets the range to that of a sample of inputs `(R, size)`, but for a thousandth on either side."""
    skipped = len(inputs) // 1000
    limits.low.copy_(inputs.kthvalue(1 + skipped, 0).values)
    limits.high.copy_(inputs.kthvalue(len(inputs) - skipped, 0).values)
    clipped = inputs.clamp(limits.low, limits.high)
    limits.mean.copy_(clipped.mean(0))
    limits.std.copy_(clipped.std(0).clamp(min=1e-2))


@dataclass
class ForecasterOptions:
    """How many shops are drawn, and where the weights are written to."""

    output: str = option("File of the weights.", str(SHIPPED_WEIGHTS))
    shops: int = option("Number of synthetic shops.", 16_000)
    epochs: int = option("Number of passes over their examples.", 10)
    seed: int = option("Seed of the shops and of the training.", 0)
    processes: int = option("Number of processes that draw shops, by default one for each core.", os.cpu_count() or 1)


@command(__doc__, ForecasterOptions)
def main(options: ForecasterOptions) -> None:
    """Trains, writes the weights and prints the losses on shops that were left out."""
    begun = time.monotonic()
    torch.set_num_threads(1)  # so that the weights do not depend on the number of cores
    examples = draw_examples(options.shops, options.seed, options.processes)
    forecaster, losses = train_forecaster(examples, options.epochs, options.seed)
    # What does not depend on a shop: the weights of both networks, and the ranges of their inputs
    weights = {name: value.contiguous() for name, value in forecaster.state_dict().items() if "_network." in name}
    with atomic_write(options.output) as partial:
        save_file(weights, partial)
    words = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    print(f"{options.output}: {time.monotonic() - begun:.0f} s. Losses on shops that were left out: {words}.")


if __name__ == "__main__":
    main()
