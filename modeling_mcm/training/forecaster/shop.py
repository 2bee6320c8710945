# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the forecaster's weights that ship with the package, and measures a shop.

Shapes: B customers, Q amounts, P places for visits.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from modeling_mcm.forecaster_mcm import (
    LEAST_AMOUNT,
    USUAL_SHARE,
    VisitForecaster,
    VisitHistory,
    Visits,
    select_visits,
    smooth_rate,
)

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[2] / "forecaster.safetensors"
BACK_TESTS = (0.3, 0.5, 0.75)  # shares of the window after which the shop's own past is tested
SHARED_BY = 5  # customers who reach what is said to be the most of the shop: it tells nothing of a single one
BINS = 8  # of the profiles of visits and of first visits over the window


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
    most = history.find_most().sort(dim=0, descending=True).values  # (B, 1 + Q)
    forecaster.most.copy_(most[min(SHARED_BY, len(most)) - 1])
    history = history.without_broken(forecaster.most[1:])
    kept, repeats = history.is_visit.float(), history.number - 1
    mean_rate = repeats.sum().clamp(min=0.5) / history.first.sum().clamp(min=1e-3)
    log_rate = smooth_rate(history, mean_rate).log()
    centred = log_rate - log_rate.mean()
    std = centred.square().mean().sqrt().clamp(min=1e-3)
    visit_bins, first_bins = (((1 - ages) * BINS).long().clamp(0, BINS - 1) for ages in (history.ages, history.first))
    profile = torch.bincount(visit_bins.flatten(), kept.flatten(), BINS) + 1
    arrivals = torch.bincount(first_bins, minlength=BINS) / len(log_rate)
    several = (repeats >= 3).float()
    prior = 1 / (several.sum() + 1)
    weight = several * prior
    gap = history.mean_gap.clamp(min=1e-4)
    dispersion = (repeats.var(correction=0) / repeats.mean().clamp(min=1e-3)).log1p()
    numbers = [
        torch.tensor(float(window)).log(),
        (repeats == 0).float().mean(),
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
        (history.irregularity * weight).sum() + prior,
        ((history.longest_gap / gap).sqrt() * weight).sum() + 2 * prior,
        ((history.last / gap > 3) * weight).sum() + 0.3 * prior,
        *(number for share in BACK_TESTS for number in _test_past(history, share)),
    ]
    amounts = torch.stack([_measure_amounts(history, column, log_rate) for column in history.amounts.unbind(-1)])
    forecaster.window.fill_(window)
    forecaster.statistics.copy_(torch.stack([number.float() for number in numbers]))
    forecaster.mean_rate.copy_(mean_rate)
    forecaster.amount_statistics.copy_(amounts)
    forecaster.usual.copy_(_find_usual(history, forecaster.most[1:]) / amounts[:, :1])
    sums = history.amounts.sum((0, 1)), history.amounts.clamp(min=0).sum((0, 1))
    forecaster.net.copy_(torch.where(sums[1] > 0, sums[0] / sums[1], 1.0).clamp(min=0))


def _test_past(history: VisitHistory, share: float) -> list[torch.Tensor]:
    """How customers who came in the first `share` of the window behaved in the rest of it: their visits beside
    their rate before, and how many came, of all and by what was known of them; smoothed where they are few."""
    kept = history.is_visit.float()
    is_before = (history.ages > 1 - share) * kept
    before, after = is_before.sum(1), ((history.ages <= 1 - share) * kept).sum(1)
    is_seen = (before > 0).float()
    exposure = (history.first - (1 - share)).clamp(min=0)
    silence = torch.where(is_before > 0, history.ages, math.inf).amin(1).clamp(max=1) - (1 - share)
    repeats = (before - 1).clamp(min=0)
    mean = repeats.sum().clamp(min=0.5) / (exposure * is_seen).sum().clamp(min=1e-3)
    usual = (repeats + 1) / (exposure + 1 / mean) * (1 - share)
    comes, late = (after > 0).float(), silence / exposure.clamp(min=1e-4) > 0.4
    overall = ((comes * is_seen).sum() + 1) / (is_seen.sum() + 2)
    some = repeats > 0
    groups = (~some, some & (repeats <= 2), (repeats > 2) & (repeats <= 7), repeats > 7, some & late, some & ~late)
    weights = torch.stack([is_seen, before * is_seen, *(is_seen * group for group in groups)])
    excess = (weights @ after + 3).log() - (weights @ usual + 3).log()
    shares = (weights[2:] @ comes + 3 * overall) / (weights[2:].sum(1) + 3)
    return [excess[0], overall, excess[1], *torch.stack([excess[2:], shares], 1).flatten()]


def _measure_amounts(history: VisitHistory, amounts: torch.Tensor, log_rate: torch.Tensor) -> torch.Tensor:
    """Of one amount `(B, P)`: its mean in a visit; the standard deviations of its logarithm within and between
    customers; and the correlation of a customer's mean logarithm with the logarithm of the rate."""
    kept = history.is_visit.float()
    mean = (amounts.clamp(min=0) * kept).sum() / kept.sum()
    mean = torch.where(mean > 0, mean, 1.0)
    logs = (amounts.clamp(min=0) / mean + LEAST_AMOUNT).log() * kept
    customer = logs.sum(1) / history.number
    within = (((logs - customer[:, None]) * kept).square().sum() + 0.1) / (kept.sum() - len(kept) + 1)
    between = (customer.var(correction=0) - (within / history.number).mean()).clamp(min=1e-3)
    centred = [each - each.mean() for each in (customer, log_rate)]
    scale = centred[0].square().mean().sqrt() * centred[1].square().mean().sqrt()
    return torch.stack([mean, within.sqrt(), between.sqrt(), (centred[0] * centred[1]).mean() / (scale + 1e-6)])


def _find_usual(history: VisitHistory, most: torch.Tensor) -> torch.Tensor:
    """The largest amount of `USUAL_SHARE` of the visits, but at most `most`, of shape `(Q,)`, which tells nothing of a
    single customer; and the mean of the amounts that are cut there: of shape `(Q, 2)`."""
    amounts = history.amounts[history.is_visit].clamp(min=0)  # (visits, Q)
    largest = amounts.kthvalue(math.ceil(USUAL_SHARE * len(amounts)), 0).values.minimum(most.clamp(min=0))
    return torch.stack([largest, amounts.minimum(largest).mean(0)], -1)


def load_weights(forecaster: VisitForecaster) -> None:
    """Reads the weights of the forecaster that ships with the package."""
    forecaster.load_state_dict(load_file(SHIPPED_WEIGHTS), strict=False)  # all but the shop
