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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from .configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from .data import PreparedData
from .data.cases import find_targets, to_batch
from .events_mcm import EPOCH, SECONDS_PER_DAY, run_starts
from .feature_extraction_mcm import MCMFeatureExtractor
from .forecaster_mcm import CHANCE
from .inputs_mcm import Customers
from .predictor_mcm import CHANCES, RANKING, Predictor, Questions

ALPHA = 0.005  # probability of a false alarm on a day
WEEKS, DAYS = 4, 28  # what is usual is of the same weekdays, or of these days; and how usual it is
SPANS = (1, 3)  # days that are judged together
FEWEST = 14  # days that say how far from the expected a day usually is
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


def watch(model: Any, extractor: MCMFeatureExtractor, data: PreparedData, since: int) -> pd.DataFrame:
    """Compares the days after a model with the eight weeks before.

    Args:
        model ([`MCMPreTrainedModel`]): The model, which knows the log until `since`.
        extractor ([`MCMFeatureExtractor`]): Its feature extractor.
        data ([`PreparedData`]): The log with the new days, prepared with its values, as `mcm refresh` does.
        since (`int`): Time of the last event that is not new, in seconds since 1970-01-01. Later days are judged, and
            must be whole.

    Returns:
        `pd.DataFrame`: a row for each day and check, with what was the least likely: `day`, `check`, `of`, `observed`
        and `expected`, `trials`, `p`, the probability of a difference so large, and `alarm`.

    Raises:
        ValueError: If there is no new day, or less than six weeks before.
    """
    rows = to_batch(data.rows.with_format("arrow")[:])
    columns = {name: rows.column(name) for name in rows.columns}
    for name, size in extractor.layout.sizes.items():  # what the model does not know
        for column in {f"feature_{name}", f"task_{name}"} & columns.keys():
            columns[column] = np.where(columns[column] < size, columns[column], UNKNOWN_ID)
    rows = Customers(columns, rows.lengths)
    days = rows.column("times") // SECONDS_PER_DAY
    end, last = int(days.max()) + 1, since // SECONDS_PER_DAY + 1
    start = max(int(days.min()), last - 2 * DAYS)
    if end == last or last - start < DAYS + FEWEST:
        raise ValueError(
            f"The log has {end - last} whole days after {EPOCH + pd.Timedelta(seconds=since)} and {last - start} until "
            f"then, expected 1 and {DAYS + FEWEST} or more: give the events of later days."
        )
    log = _Log(rows, extractor, days - start, end - start, start)
    first_day = max(last - start - DAYS - INTERVAL, 0)
    checks = [*log.count(), *log.ask(Predictor(model, extractor), first_day)]
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
        yield Check("count", ["events", "customers"], counts := np.column_stack([events, customers[:, 0]]), np.full_like(counts, MANY, float))
        for name in (spec.name for spec in self.extractor.schema.features if spec.columns):
            values = self.extractor.vocabularies.get(name) or range(layout.sizes[name] - FIRST_VALUE_ID)
            ids = rows.column(f"feature_{name}")
            missing = np.bincount(day[ids[real] == MISSING_ID], minlength=self.number)
            yield Check("missing", [name], missing[:, None], events[:, None])
            first = np.full(int(ids.max()) + 1, self.number)
            np.minimum.at(first, ids, self.days)
            is_new = (ids[real] == UNKNOWN_ID) | (first[ids[real]] == day) & (ids[real] != MISSING_ID)
            new = self._customers(real[is_new], np.zeros(is_new.sum(), int), 1)
            yield Check("unknown", [name], new, customers)
            known = real[ids[real] > UNKNOWN_ID]
            counts = self._customers(known, ids[known] - FIRST_VALUE_ID, len(values))
            yield Check("label", [f"{name}: {value}" for value in values], counts, customers)

    def _customers(self, events: NDArray, ids: NDArray, size: int) -> NDArray:
        """Numbers of customers by day and id, `(D, size)`."""
        key = (self.rows.row[events] * self.number + self.days[events]) * size + ids
        key = np.unique(key) % (self.number * size)
        return np.bincount(key, minlength=self.number * size).reshape(self.number, size)

    def ask(self, predictor: Predictor, first_day: int) -> Iterator[Check]:
        """Asks the model before each day from `first_day` on, and counts what came of it."""
        tasks = predictor.model.config.tasks if predictor.head == RANKING else []
        sample = np.random.default_rng(0).permutation(len(self.rows))[:SAMPLE]
        first, size = self.days[self.rows.starts], len(EDGES) + 1
        told, came, chances = np.zeros((3, self.number, size))
        asked, missed = np.zeros((2, self.number, 1))
        listed, hits, hit_chances = np.zeros((3, self.number, len(tasks)))
        for day in range(first_day, self.number):
            known = sample[first[sample] < day]
            if predictor.tells_who_comes and len(known):
                forecast = self._ask(predictor, known, day, forecasts=True, days=[WITHIN, INTERVAL])
                chance = forecast[f"{CHANCE}_{WITHIN}d"]
                bins = np.searchsorted(EDGES, chance)
                told[day], chances[day] = np.bincount(bins, minlength=size), np.bincount(bins, chance, size)
                came[day] = np.bincount(bins, self.visits[day, known] > 0, size)
                if (last := day + INTERVAL - 1) < self.number:
                    number = self.visits[day : last + 1, known].sum(0)
                    low, high = (forecast[f"visits_{INTERVAL}d_{end}80"] for end in ("low", "high"))
                    asked[last], missed[last] = len(known), ((number < low) | (number > high)).sum()
            guests = known[self.visits[day, known] > 0]
            if tasks and len(guests):
                answers = self._ask(predictor, guests, day, tasks=tasks, k=TOP_K)
                for index, task in enumerate(tasks):
                    labels, chance = answers[task], answers.get(task + CHANCES)  # (B, k)
                    if chance is not None:
                        is_listed = labels > 0
                        listed[day, index], hit_chances[day, index] = is_listed.sum(), chance[is_listed].sum()
                        hits[day, index] = (self._had(task, day, guests, labels) & is_listed).sum()
        bounds = [0.0, *EDGES, 1.0]
        ranges = [f"{low:g} to {high:g}" for low, high in zip(bounds, bounds[1:], strict=False)]
        everybody = told.sum(1, keepdims=True)
        yield Check("chances of a visit", ranges, told, np.broadcast_to(everybody, told.shape))
        came, told, chances = (np.column_stack([each, each.sum(1)]) for each in (came, told, chances))
        yield Check("who came, by chance", [*ranges, "all"], came, told, chances)
        yield Check("outside of an interval", [f"visits_{INTERVAL}d"], missed, asked)
        for index, task in enumerate(tasks):
            values = (each[:, index : index + 1] for each in (hits, listed, hit_chances))
            yield Check("labels that came, by chance", [task], *values)

    def _ask(self, predictor: Predictor, customers: NDArray, day: int, **questions: Any) -> dict[str, NDArray]:
        """What the model says of customers right before a day."""
        as_of, parts = (self.start + day) * SECONDS_PER_DAY, []
        asked = predictor.check(Questions(as_of - 1, **questions))
        for chosen in np.split(customers, range(AT_ONCE, len(customers), AT_ONCE)):
            batch = self.rows.take(chosen).before([as_of] * len(chosen), self.extractor.layout)
            parts.append(predictor.ask(batch, asked))
        return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}

    def _had(self, task: str, day: int, customers: NDArray, labels: NDArray) -> NDArray:
        """Whether customers had labels `(B, k)` on a day."""
        size = self.extractor.layout.sizes[task]
        events = np.flatnonzero((self.days == day) & self.is_target)
        had = self.rows.row[events] * size + self.rows.column(f"task_{task}")[events]
        return np.isin(customers[:, None] * size + labels, had)


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
        p = 2 * t.sf(np.abs(above_span) / np.sqrt(spread), number.clip(min=1))
        p = np.where(is_known & (number >= FEWEST), p * p.shape[1] * len(SPANS), np.nan)  # of so many, one may be small
        best = np.where(np.isnan(p), np.inf, p).argmin(1)[:, None]
        columns = {name: _sum_before(each, span, 1) for name, each in
                   (("observed", k), ("expected", expected), ("trials", n))} | {"p": p.clip(max=1)}
        table = pd.DataFrame({name: np.take_along_axis(each, best, 1)[:, 0] for name, each in columns.items()})
        table.insert(0, "of", np.array(check.of, object)[best[:, 0]])
        tables.append(table.assign(day=table.index, days=span, check=check.name)[first_new:])
    table = pd.concat(tables).sort_values("p", kind="stable").groupby("day").head(1)
    return table


def _sum_before(values: NDArray, days: int = DAYS, shift: int = 0) -> NDArray:
    """Sums over the days before each, `(D, V)`; with `shift` 1 over days that end with it."""
    total = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
    ends = np.maximum(np.arange(len(values)) + shift, 0)
    return total[ends] - total[np.maximum(ends - days, 0)]


def _angle(k: NDArray, n: NDArray) -> NDArray:
    """Turns a share into an angle whose variance is 1 / 4n, whatever the share is (Anscombe 1948)."""
    return np.arcsin(np.sqrt(((k + 3 / 8) / (n + 3 / 4)).clip(max=1)))
