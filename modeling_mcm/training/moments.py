# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of the customer state, on moments of the training period and what followed them.

A moment is a customer and a time t. The state at t is computed from the events up to t. From the state, linear heads
predict the visits, events and sums of values of the next days, when the next visit comes, which labels of small tasks
follow, and the counts that the state was computed from. None of the heads is kept. Nothing after the validation cutoff
is read, and a horizon that ends after it, or that too few moments observe, is no target.

Shapes: B customers, M moments a customer, R = B M moments, D horizons, Q quantities, I intervals of hazards.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from transformers.utils import logging

from modeling_mcm.data.cases import deciding_tasks
from modeling_mcm.data.collator import LengthGroupedSampler
from modeling_mcm.events_mcm import SECONDS_PER_DAY, select_events
from modeling_mcm.forecaster_mcm import interval_edges
from modeling_mcm.modeling_mcm import MCMModel
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.state_mcm import GAPS, CustomerState

MOMENTS, STEP_CUSTOMERS = 16, 32  # moments of a customer, and customers of a step
PASSES, LEAST_STEPS, MOST_STEPS = 4, 40, 1500  # passes over all customers, within these numbers of steps
MOST_COUNTS = 2**24  # largest number of steps times counts of a moment: minutes on one core for 12,000 items
MOMENTS_LR, MOMENTS_DECAY, WARM_UP, LONGEST_GRADIENT = 4e-3, 0.01, 0.1, 1.0
RECONSTRUCTION, FUTURE, HAZARD, SETS = 3.0, 0.3, 0.1, 6.0  # weights of the losses
MOST_SET_LABELS = 512  # tasks with more labels have no head that predicts the labels of the next days
STANDARD_CUSTOMERS = 512  # customers whose moments give the mean and std that standardise the counts
COMPONENT_CUSTOMERS, COMPONENT_COUNTS = 2**14, 2**26  # whose counts give the components; largest number of counts
# Of the moments whose states say which directions of the learned numbers are noise: customers, moments of each, and
# their days as a multiple of the longest horizon, of which at least a share must see a horizon's end to be a target.
LATE_CUSTOMERS, LATE_MOMENTS, LATE_DAYS, LEAST_OBSERVED = 2048, 4, 4 / 3, 1 / 8
NO_NEXT_VISIT = 2**62  # seconds: the time of a next visit that did not come


@dataclass
class Moments:
    """Moments and what followed them."""

    counts: torch.Tensor  # (R, numbers): counts of each history, from [`CustomerState.counts`]
    amounts: torch.Tensor  # (R, D, Q): visits, events and sums of values from one horizon to the next
    is_observed: torch.Tensor  # (R, D): whether the days up to a horizon lie in the training period
    next_visit: torch.Tensor  # (R,): days to the next visit; infinite if the training period has none
    observed: torch.Tensor  # (R,): days from the moment to the end of the training period
    followed: torch.Tensor  # (R, labels): 1 for each label of small tasks that came before the middle horizon, else 0


class MomentSampler:
    """Draws moments of customers, with what followed each."""

    def __init__(
        self,
        model: MCMModel,
        extractor: MCMFeatureExtractor,
        cutoff: float | None,
        days: Sequence[float],
        seed: int = 0,
    ):
        config = model.config
        self.state, self.extractor, self.cutoff = cast(CustomerState, model.state), extractor, cutoff
        self.read, self.sums = config.input_features, config.summed_features
        self.days = sorted(float(day) for day in days)
        self.middle = len(self.days) // 2  # the horizon for sets of labels
        self.generator = np.random.default_rng(seed)
        token = extractor.token_type_feature
        self.deciding = [f"task_{task}" for task in deciding_tasks(config.tasks, token)]
        sizes = config.label_sizes
        self.set_tasks = [task for task in config.tasks if sizes[task] <= MOST_SET_LABELS and task != token]
        self.set_sizes = [sizes[task] for task in self.set_tasks]

    def draw(self, rows: Sequence[Mapping[str, Any]], number: int, last_days: float | None = None) -> Moments:
        """Draws moments of some customers.

        Args:
            rows (sequence of `dict`): Prepared rows as of `PreparedRows`, each with an event before its
                `validation_end`.
            number (`int`): Number of moments of each customer. They lie between the first event that is read and the
                end of the training period. Without `last_days` half of them are drawn from the second half of that
                time.
            last_days (`float`, *optional*): All moments are drawn from so many last days of that time.

        Returns:
            `Moments`: The moments, those of one customer after the other.
        """
        longest = self.extractor.max_events - 1  # the start row takes one position
        histories = [latest_events(row, longest) for row in rows]
        times, followed = [], []
        for history in histories:
            first, end = self._period(history)
            if last_days is None:
                starts = np.where(np.arange(number) < number // 2, first, (first + end) / 2)
            else:
                starts = np.full(number, max(first, end - last_days * SECONDS_PER_DAY))
            moments = self.generator.uniform(starts, max(end, first + 1))
            times.append(moments)
            followed.append(self._followed(history, moments, end))
        batch = self.extractor.pad([self.extractor.readable(history, self.read) for history in histories])
        starts = np.array([history["times"][0] for history in histories])
        as_of = torch.from_numpy(((np.stack(times) - starts[:, None]) / SECONDS_PER_DAY).astype(np.float32))
        names = ("input_ids", "attention_mask", "visit_ids", "event_times", "event_values")
        counts = self.state.counts(**{name: batch.get(name) for name in names}, as_of=as_of)  # type: ignore[arg-type]
        columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*followed, strict=True)]
        return Moments(counts.flatten(0, 1), *columns)

    def observed_horizons(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Horizons, in days, that the training period of these customers is long enough to learn from. A moment
        observes a horizon that ends before the training period does. The horizon can be learned if on average at least
        `LEAST_OBSERVED` of a customer's last days, `LATE_DAYS` times the horizon, observe it."""
        periods = [self._period(latest_events(row, self.extractor.max_events - 1)) for row in rows]
        days = np.array([(end - first) / SECONDS_PER_DAY for first, end in periods]).clip(min=1e-6)
        latest = np.minimum(days, LATE_DAYS * np.array(self.days)[:, None])  # (D, customers)
        shares = ((latest - np.array(self.days)[:, None]) / latest).clip(min=0).mean(1)
        return [day for day, share in zip(self.days, shares, strict=True) if share >= LEAST_OBSERVED]

    def _period(self, history: Mapping[str, Any]) -> tuple[float, float]:
        """Time of the first event and end of the training period, in seconds since 1970."""
        first, last = float(history["times"].min()), float(history["times"].max())
        return first, max(last if self.cutoff is None else self.cutoff, first)

    def _followed(self, history: Mapping[str, Any], moments: NDArray, end: float) -> tuple[NDArray, ...]:
        """Computes what followed the moments of one customer: the fields of `Moments` after the counts."""
        if np.any(np.diff(history["times"]) < 0):  # the events of visits that overlap
            history = select_events(history, np.argsort(history["times"], kind="stable"))
        is_target = np.any([history[column] > 0 for column in self.deciding], axis=0)
        times, visits = history["times"][is_target], history["visits"][is_target]
        _, opening = np.unique(visits, return_index=True)
        visit_times = np.sort(times[opening])
        ends = moments[:, None] + np.array([0.0, *self.days]) * SECONDS_PER_DAY  # (M, D + 1)
        amounts = [np.diff(np.searchsorted(series, ends, "right"), axis=1) for series in (visit_times, times)]
        for name in self.sums:
            values, at = history[f"value_{name}"], history["times"]
            total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
            amounts.append(np.diff(total[np.searchsorted(at, ends, "right")], axis=1))
        number = np.searchsorted(visit_times, moments, "right")
        following = np.append(visit_times, NO_NEXT_VISIT)[number].astype(np.float64)
        to_next = np.where(following < NO_NEXT_VISIT, (following - moments) / SECONDS_PER_DAY, np.inf)
        last = min(self.middle + 1, len(self.days))
        from_event, to_event = (np.searchsorted(times, ends[:, index], "right") for index in (0, last))
        sets = np.zeros((len(moments), sum(self.set_sizes)), np.float32)
        start = 0
        for task, size in zip(self.set_tasks, self.set_sizes, strict=True):
            labels = history[f"task_{task}"][is_target]
            for row, (begin, end_index) in enumerate(zip(from_event, to_event, strict=True)):
                sets[row, start + labels[begin:end_index]] = 1
            sets[:, start] = 0  # id 0 means that the label is missing
            start += size
        return (
            np.stack(amounts, -1).clip(min=0).astype(np.float32),
            (ends[:, 1:] <= end) & (moments < end)[:, None],
            to_next.astype(np.float32),
            ((end - moments) / SECONDS_PER_DAY).astype(np.float32),
            sets,
        )


def latest_events(row: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Takes the latest events before the validation cutoff, at most `longest`."""
    latest = slice(max(0, row["validation_end"] - longest), row["validation_end"])
    return select_events(row, latest)


def _amounts_loss(log_amounts: torch.Tensor, moments: Moments) -> torch.Tensor:
    """Mean smooth L1 loss between logarithms of the expected and the actual amounts up to each horizon."""
    weights = moments.is_observed.float()[..., None].expand_as(log_amounts)
    expected = log_amounts.clamp(max=20).exp().cumsum(1).log1p()
    actual = moments.amounts.cumsum(1).log1p()
    losses = F.smooth_l1_loss(expected, actual, reduction="none") * weights
    return losses.sum() / weights.sum().clamp(min=1)


def _blockwise_squared_error(predicted: torch.Tensor, actual: torch.Tensor, state: CustomerState) -> torch.Tensor:
    """Mean squared error of counts, in which every block of counts has the same weight, whatever its size."""
    actual = actual[..., : sum(state.blocks)]
    blocks = zip(predicted.split(state.blocks, -1), actual.split(state.blocks, -1), strict=True)
    return torch.stack([F.mse_loss(*block) for block in blocks]).mean()


def _hazard_loss(hazards: torch.Tensor, moments: Moments, edges: Sequence[float]) -> torch.Tensor:
    """Cross-entropy of a visit within each interval, for moments without an earlier one; summed over intervals."""
    ends = torch.tensor(edges)
    starts = torch.cat([torch.zeros(1), ends[:-1]])
    days = moments.next_visit[:, None]
    comes = (days > starts) & (days <= ends)
    # A visit doesn't count in an interval that ends after the training period, because its absence would not be seen.
    at_risk = (days > starts) & (moments.observed[:, None] >= ends)
    losses = F.binary_cross_entropy_with_logits(hazards, comes.float(), reduction="none") * at_risk
    return losses.sum() / len(hazards)


def train_state(
    model: MCMModel,
    extractor: MCMFeatureExtractor,
    rows: Any,
    cutoff: float | None,
    seed: int = 0,
    most: int = MOST_STEPS,
) -> dict[str, float]:
    """Trains the customer state, and nothing else of the model.

    Args:
        cutoff (`float`, *optional*): End of the training period of all customers, in seconds since 1970. `None` if
            each customer's last visits are held out.
        most (`int`): Largest number of steps.

    Returns:
        `dict[str, float]`: Mean losses of the last tenth of the steps, by name.
    """
    state = cast(CustomerState, model.state)
    device = state.linear.weight.device
    cast(nn.Module, model).cpu()  # counting takes many small steps, which a GPU would not make faster
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = _batches(rows, STEP_CUSTOMERS, seed)
        customers = [next(batches) for _ in range(math.ceil(min(len(rows), STANDARD_CUSTOMERS) / STEP_CUSTOMERS))]
        sampler = MomentSampler(model, extractor, cutoff, model.config.forecast_days, seed)
        _standardise(state, (sampler.draw(batch, MOMENTS) for batch in customers))
        days = sampler.observed_horizons([row for batch in customers for row in batch])
        number = min(COMPONENT_CUSTOMERS, COMPONENT_COUNTS // max(1, state.directions.shape[1]))
        whole = _late_moments(MomentSampler(model, extractor, cutoff, days, seed + 2), rows, seed, number, 1, 0.0)
        undecayed = [state.undecayed(state.standardised(moments.counts)) for moments in whole]
        directions = state.find_components(torch.cat(undecayed))
        losses = _train(model, MomentSampler(model, extractor, cutoff, days, seed), batches, len(rows), most)
        # Only now, so that the learned numbers do not depend on the components: they would say less of the rest.
        state.directions.copy_(directions)
        last_days = LATE_DAYS * max(days) if days else None
        sampler = MomentSampler(model, extractor, cutoff, days, seed + 1)
        late = _late_moments(sampler, rows, seed, LATE_CUSTOMERS, LATE_MOMENTS, last_days)
        with torch.no_grad():
            state.shrink_directions(torch.cat([state(moments.counts) for moments in late]))
    cast(nn.Module, model).to(device)
    return losses


def _batches(rows: Any, size: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Yields batches of customers in a new random order in every epoch, without end."""
    lengths = np.ones(len(rows)) if rows.lengths is None else rows.lengths
    epoch = torch.zeros((), dtype=torch.int64)
    sampler = LengthGroupedSampler(lengths, size, seed, epoch)
    while True:
        order = list(sampler)
        for start in range(0, len(order), size):
            yield rows.__getitems__(order[start : start + size])
        epoch += 1


def _standardise(state: CustomerState, parts: Iterable[Moments]) -> None:
    """Sets the mean and std of the counts, and the longest silence, to those of a sample."""
    number, longest = 0, 0.0
    since_last = state.num_few - len(GAPS)
    totals, squares = state.mean.new_zeros(2, len(state.mean), dtype=torch.float64)
    for moments in parts:
        number += len(moments.counts)
        totals += moments.counts.sum(0, dtype=torch.float64)
        squares += moments.counts.square().sum(0, dtype=torch.float64)
        longest = max(longest, moments.counts[:, since_last].max().expm1().item())
    mean = totals / number
    state.mean.copy_(mean)
    state.std.copy_((squares / number - mean**2).clamp(min=0).sqrt())
    state.longest_silence.fill_(longest)


def _train(
    model: MCMModel, sampler: MomentSampler, batches: Iterator[list[dict[str, Any]]], customers: int, most: int
) -> dict[str, float]:
    state, size, days = cast(CustomerState, model.state), model.config.state_size, sampler.days
    heads = nn.ModuleDict({"counts": nn.Linear(size, sum(state.blocks))})
    edges = interval_edges(days) if days else []
    if days:
        quantities = 2 + len(sampler.sums)  # visits, events and sums
        heads.update({"amounts": nn.Linear(size, len(days) * quantities), "hazards": nn.Linear(size, len(edges))})
        for name in ("amounts", "hazards"):
            nn.init.normal_(cast(nn.Linear, heads[name]).weight, std=size**-0.5)
            nn.init.zeros_(cast(nn.Linear, heads[name]).bias)
        if sampler.set_sizes:
            heads["sets"] = nn.Linear(size, sum(sampler.set_sizes))
    parameters = [*state.parameters(), *heads.parameters()]
    usual = max(min(MOST_STEPS, MOST_COUNTS // len(state.mean)), LEAST_STEPS)
    steps = min(max(math.ceil(PASSES * customers / STEP_CUSTOMERS), LEAST_STEPS), usual, most)
    optimizer = torch.optim.AdamW(parameters, lr=MOMENTS_LR, weight_decay=MOMENTS_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MOMENTS_LR, total_steps=steps, pct_start=WARM_UP)
    state.train()
    history: list[dict[str, float]] = []
    for _ in logging.tqdm(range(steps), desc="Customer state", unit="step"):
        moments = sampler.draw(next(batches), MOMENTS)
        standardised = state.standardised(moments.counts)
        states = state.from_standardised(standardised)
        losses = {"counts": RECONSTRUCTION * _blockwise_squared_error(heads["counts"](states), standardised, state)}
        if days:
            log_amounts = heads["amounts"](states).unflatten(-1, (len(days), -1))
            losses["amounts"] = FUTURE * _amounts_loss(log_amounts, moments)
            losses["hazards"] = HAZARD * _hazard_loss(heads["hazards"](states), moments, edges)
        if "sets" in heads:
            is_observed = moments.is_observed[:, sampler.middle, None].float()
            entropies = F.binary_cross_entropy_with_logits(heads["sets"](states), moments.followed, reduction="none")
            losses["sets"] = SETS * (entropies * is_observed).mean()
        optimizer.zero_grad()
        cast(torch.Tensor, sum(losses.values())).backward()
        nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        history.append({name: value.item() for name, value in losses.items()})
    state.eval()
    last = history[-max(1, steps // 10) :]
    return {name: float(np.mean([step_losses[name] for step_losses in last])) for name in history[0]}


def _late_moments(
    sampler: MomentSampler, rows: Any, seed: int, customers: int, number: int, last_days: float | None
) -> Iterator[Moments]:
    """Draws `number` moments of each customer of a sample, from so many last days of the training period."""
    batches = _batches(rows, STEP_CUSTOMERS, seed + 1)
    for _ in range(math.ceil(min(len(rows), customers) / STEP_CUSTOMERS)):
        yield sampler.draw(next(batches), number, last_days)
