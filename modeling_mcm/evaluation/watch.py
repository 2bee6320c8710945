# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Watches the days that come after a model: is the log as it was, and does what the model said come true?

Each check counts something on each day, such as customers with a label, or those who came of whom a tenth were
expected. What is expected is known before the day: the same weekday of four weeks, the share of the last 28 days, or
what the model says of the histories until then. How far days usually are from it, over 28 days, is the unit of what is
unusual: where days vary for their own reasons, however many customers there are, only more than that is an alarm.

Shapes: D days, V counts of a check (labels, bins), B customers, E events.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, MOST_IDS, UNKNOWN_ID
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import find_targets, to_batch
from modeling_mcm.events_mcm import SECONDS_PER_DAY, run_starts
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import CHANCE
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.predictor_mcm import CHANCES, RANKING, Predictor, Questions

from .totals import PredictorAt

ALPHA = 0.005  # probability of a false alarm on a day
WEEK, WEEKS, DAYS = 7, 4, 28  # what is usual is of the same weekdays, or of these days; and how usual it is
SPANS = (1, 3)  # days that are judged together
FEWEST = 14  # days that say how far from the expected a day usually is
OFTEN, RARELY = 0.9, 0.02  # what is exceeded on more than a tenth of the days, and should be on fewer, is no news
LEAST_CHANGE = 0.1  # of what is expected, which is worth an alarm
MANY = 1e12  # trials, where a number has no upper end
SAMPLE, TOP_K, AT_ONCE = 1000, 10, 256
WITHIN, INTERVAL = 1, 7  # days in which a chance, or an interval, is told to hold
EDGES = (0.02, 0.05, 0.1, 0.2, 0.4)  # between chances that are judged together


class Check(NamedTuple):
    """What is counted on each day."""

    name: str
    of: list[str]  # (V,)
    observed: NDArray  # (D, V)
    trials: NDArray  # (D, V): how many there could be
    expected: NDArray | None = None  # (D, V). Default: by what was observed before


def watch_days(at: PredictorAt, data: PreparedData, since: int) -> pd.DataFrame:
    """Compares the days after a model with the eight weeks before. Each day is asked of counts that end before its
    week, so that none has read what it is judged by.

    Args:
        at: The predictor for a time in seconds since 1970-01-01, whose counts hold no later event.
        data, since: as in [`~past.watch`].

    Returns:
        `pd.DataFrame`: a row for each day and check, with what was the least likely: `day`; `days` that end with it
        and are counted together; `check`; `of`, the label, value or bin; `observed` and `expected`, of `trials`;
        `p`, the probability of a difference so large; and `alarm`.

    Raises:
        ValueError: If there is no new day, or less than six weeks before.
    """
    extractor = at(since).extractor
    rows = to_batch(data.rows.with_format("arrow")[:]).known(extractor.layout.sizes)
    days = rows.column("times") // SECONDS_PER_DAY
    end, last = int(days.max()) + 1, since // SECONDS_PER_DAY + 1
    start = max(int(days.min()), last - 2 * DAYS)
    if end == last or last - start < DAYS + FEWEST:
        raise ValueError(
            f"Found {end - last} days after those of the model, and {last - start} before; expected 1 and "
            f"{DAYS + FEWEST} or more: give the events of later days."
        )
    log = _Log(rows, extractor, days - start, end - start, start)
    checks = [*log.count(), *log.ask(at, last - start)]
    table = pd.concat([_judge(check, last - start) for check in checks], ignore_index=True)
    table["day"] = pd.to_datetime((table["day"] + start) * SECONDS_PER_DAY, unit="s")
    tested = table.dropna(subset="p").groupby("day")["p"].transform("size").reindex(table.index)
    change = (table["observed"] - table["expected"]).abs()
    usual = table[["expected"]].assign(rest=table["trials"] - table["expected"]).min(axis=1)
    table["alarm"] = (table["p"] < ALPHA / tested) & (change > LEAST_CHANGE * usual)
    return table.sort_values(["day", "p"], ignore_index=True)


class _Log:
    """The events of customers by day."""

    def __init__(self, rows: Customers, extractor: MCMFeatureExtractor, days: NDArray, number: int, start: int):
        self.rows, self.extractor, self.days, self.number, self.start = rows, extractor, days, number, start
        row, visits = rows.row, rows.column("visits")
        self.is_target = find_targets(rows, extractor.tasks, extractor.token_type_feature)
        targets = np.flatnonzero(self.is_target)
        begins = targets[run_starts(row[targets], visits[targets])]  # as the forecaster reads visits
        begins = begins[days[begins] >= 0]
        self.visits = np.zeros((number, len(rows)), np.int32)  # (D, B)
        np.add.at(self.visits, (days[begins], row[begins]), 1)

    def count(self) -> Iterator[Check]:
        """Counts events, customers, and values of columns."""
        rows, layout = self.rows, self.extractor.layout
        token = rows.column(f"feature_{[*layout.sizes][layout.start[0]]}")
        real = np.flatnonzero((self.days >= 0) & (token != layout.closing))
        day = self.days[real]
        events = np.bincount(day, minlength=self.number)
        customers = self._customers(real, np.zeros(len(real), int), 1)
        totals = np.column_stack([events, customers])
        yield Check("count", ["events", "customers"], totals, np.full(totals.shape, MANY))
        for name in (spec.name for spec in self.extractor.schema.features if spec.columns):
            size, ids = layout.sizes[name], rows.column(f"feature_{name}")
            first = np.full(size, self.number)
            np.minimum.at(first, ids, self.days)
            ids = ids[real]
            ids = np.where((first[ids] == day) & (ids != MISSING_ID), UNKNOWN_ID, ids)  # so it was before the day
            counts = self._customers(real, ids, size)
            labels = self.extractor.vocabularies.get(name) or range(size - FIRST_VALUE_ID)
            yield Check("value", [f"{name}: missing", f"{name}: unknown"], counts[:, :FIRST_VALUE_ID], customers)
            yield Check("label", [f"{name}: {label}" for label in labels], counts[:, FIRST_VALUE_ID:], customers)

    def _customers(self, events: NDArray, ids: NDArray, size: int) -> NDArray:
        """Numbers of customers by day and id, `(D, size)`."""
        key = (self.rows.row[events] * self.number + self.days[events]) * size + ids
        key = np.unique(key) % (self.number * size)
        return np.bincount(key, minlength=self.number * size).reshape(self.number, size)

    def ask(self, at: PredictorAt, first_new: int) -> Iterator[Check]:
        """Asks the model before each new day and those of weeks before, and counts what came of it."""
        now, weeks = at((self.start + first_new) * SECONDS_PER_DAY - 1), -(-(DAYS + INTERVAL) // WEEK)
        tasks = now.model.config.tasks if now.head == RANKING else []
        sample = np.random.default_rng(0).permutation(len(self.rows))[:SAMPLE]
        first, is_target = self.days[self.rows.starts], np.flatnonzero(self.is_target)
        ranges = [f"{low:g} to {high:g}" for low, high in pairwise([0.0, *EDGES, 1.0])] + ["all"]
        told, came, chances = np.zeros((3, self.number, len(ranges)))
        asked, missed = np.zeros((2, self.number, 1))
        listed, hits, hit_chances = np.zeros((3, self.number, len(tasks)))
        for day in range(max(first_new - weeks * WEEK, 0), self.number):
            begin = first_new - max(-(-(first_new - day) // WEEK), 0) * WEEK  # of the week; of new days the first one
            predictor = at((self.start + max(begin, 0)) * SECONDS_PER_DAY - 1)
            known = sample[first[sample] < day]
            if predictor.tells(INTERVAL) and len(known):
                forecast = self._ask(predictor, known, day, forecasts=True, days=[WITHIN, INTERVAL])
                chance = forecast[f"{CHANCE}_{WITHIN}d"]
                is_in = np.searchsorted(EDGES, chance)[:, None] == np.arange(len(ranges))  # (B, V)
                is_in[:, -1] = True
                told[day], chances[day], came[day] = (
                    is_in.sum(0),
                    chance @ is_in,
                    (self.visits[day, known] > 0) @ is_in,
                )
                if (last := day + INTERVAL - 1) < self.number:
                    number = self.visits[day : last + 1, known].sum(0)
                    low, high = (forecast[f"visits_{INTERVAL}d_{end}80"] for end in ("low", "high"))
                    asked[last], missed[last] = len(known), ((number < low) | (number > high)).sum()
            guests = known[self.visits[day, known] > 0]
            answers = self._ask(predictor, guests, day, tasks=tasks, k=TOP_K) if tasks and len(guests) else {}
            events = is_target[self.days[is_target] == day]
            for index, task in enumerate(task for task in tasks if task + CHANCES in answers):
                labels = answers[task]  # (B, k), 0 where there are fewer
                had = self.rows.row[events] * MOST_IDS + self.rows.column(f"task_{task}")[events]
                came_true = np.isin(guests[:, None] * MOST_IDS + labels, had) & (labels > 0)
                listed[day, index], hits[day, index] = (labels > 0).sum(), came_true.sum()
                hit_chances[day, index] = answers[task + CHANCES][labels > 0].sum()
        yield Check("chances of a visit", ranges, told, told[:, -1:])
        yield Check("who came, by chance", ranges, came, told, chances)
        yield Check("outside of an interval", [f"visits_{INTERVAL}d"], missed, asked)
        for index, task in enumerate(tasks):
            values = (each[:, index : index + 1] for each in (hits, listed, hit_chances))
            yield Check("labels that came, by chance", [task], *values)

    def _ask(self, predictor: Predictor, customers: NDArray, day: int, **questions: Any) -> dict[str, NDArray]:
        """What the model says of customers right before a day."""
        as_of, parts = (self.start + day) * SECONDS_PER_DAY, []
        asked = predictor.check(Questions(as_of - 1, **questions))
        for chosen in np.split(customers, range(AT_ONCE, len(customers), AT_ONCE)):
            layout = predictor.extractor.layout
            batch = self.rows.take(chosen).before([as_of] * len(chosen), layout).known(layout.sizes)
            parts.append(predictor.ask(batch, asked))
        return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def _judge(check: Check, first_new: int) -> pd.DataFrame:
    """The least likely number of each day from `first_new` on, and of the days that end with it."""
    k, n = check.observed.astype(float), np.broadcast_to(check.trials, check.observed.shape).astype(float)
    if check.expected is not None:
        expected, is_known = check.expected, n > 0
    elif (n == MANY).all():
        same = np.sum([np.roll(k, 7 * week, 0) for week in range(1, WEEKS + 1)], 0)
        level = _sum_before(k, 7, 1 - SPANS[-1])  # of a week that ended before the days that are judged together
        expected = level * same / _sum_before(k).clip(min=1)
        is_known = np.repeat(np.arange(len(k))[:, None] >= 7 * WEEKS, k.shape[1], 1)
    else:
        expected = n * _sum_before(k) / _sum_before(n).clip(min=1)
        is_known = (n > 0) & (_sum_before(n > 0) >= 7)
    # The variance of this is 1 where nothing but chance makes days differ, if numbers are small and large
    above = np.where(is_known, 2 * np.sqrt(n) * (_angle(k, n) - _angle(expected, n)), 0)  # (D, V)
    number, spread, tables = _sum_before(is_known), 1.0, []
    for span in SPANS:
        above_span = _sum_before(above, span, 1) / np.sqrt(span)
        spread = np.maximum(_sum_before(above_span**2) / number.clip(min=1), spread)
        far = np.where(is_known & (number >= FEWEST), np.abs(above_span) / np.sqrt(spread), np.nan)
        # Where labels come in bursts, the farthest one of a day is often far
        farthest = np.fmax.reduce(far, 1)
        usual = [np.nanquantile([0.0, *farthest[max(day - DAYS, 0) : day]], OFTEN) for day in range(len(k))]
        bursts = np.maximum(usual / t.isf(RARELY / 2 / k.shape[1], DAYS), 1)
        p = 2 * t.sf(far / bursts[:, None], number.clip(min=1))
        p *= k.shape[1] * len(SPANS)  # of so many, one may be small
        best = np.where(np.isnan(p), np.inf, p).argmin(1)[:, None]
        counts = {"observed": k, "expected": expected, "trials": n}
        columns = {name: _sum_before(values, span, 1) for name, values in counts.items()} | {"p": p.clip(max=1)}
        table = pd.DataFrame({name: np.take_along_axis(each, best, 1)[:, 0] for name, each in columns.items()})
        about = {"day": table.index, "days": span, "check": check.name, "of": np.array(check.of, object)[best[:, 0]]}
        tables.append(pd.DataFrame(about).join(table)[first_new:])
    return pd.concat(tables).sort_values("p", kind="stable").groupby("day").head(1)


def _sum_before(values: NDArray, days: int = DAYS, shift: int = 0) -> NDArray:
    """Sums over the days before each, `(D, V)`; with `shift` 1 over days that end with it."""
    total = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
    ends = np.maximum(np.arange(len(values)) + shift, 0)
    return total[ends] - total[np.maximum(ends - days, 0)]


def _angle(k: NDArray, n: NDArray) -> NDArray:
    """Turns a share into an angle whose variance is 1 / 4n, whatever the share is (Anscombe 1948)."""
    return np.arcsin(np.sqrt(((k + 3 / 8) / (n + 3 / 4)).clip(max=1)))
