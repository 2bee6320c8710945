# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The total of a group of customers, with the errors that the same forecast made on the log's own past.

Intervals of customers must not be added up: a season or a campaign moves all of them together, and no customer's
history says by how much. So the same weights forecast the same group from earlier times, each with the counts of then,
and their totals are compared with what came. No time is before the validation cutoff: training has read what came
before it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.calendar_mcm import Known
from modeling_mcm.data.cases import find_targets
from modeling_mcm.data.collator import batches_by_length
from modeling_mcm.events_mcm import EPOCH, SECONDS_PER_DAY, run_starts
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import MissingForecastsError
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.predictor_mcm import Predictor, Questions

MOST_PAST = 12  # times of the past that are tried
PredictorAt = Callable[[int], Predictor]  # for a time in seconds since 1970-01-01


class PastTotal(NamedTuple):
    """A total that was forecast at a time of the past, and what came."""

    as_of: datetime
    expected: float
    actual: float

    @property
    def error(self) -> float:
        """Error as a share of what came; -0.2 means that a fifth too little was expected."""
        return self.expected / self.actual - 1 if self.actual else float("inf")


class GroupTotal(NamedTuple):
    """The expected total of a group from a time on, and totals of its past."""

    as_of: datetime
    expected: float
    past: tuple[PastTotal, ...]


def total_of_rows(
    at: PredictorAt,
    rows: Sequence[Mapping],
    cutoff: int,
    end: int,
    quantity: str = "visits",
    days: float = 30,
    batch_size: int = 64,
    known: Known | None = None,
    later_counts: bool = False,
) -> GroupTotal:
    """Forecasts the total of the customers of some rows, of a prepared data set or of `MCMFeatureExtractor.encode`.

    Args:
        at: The predictor for a time in seconds since 1970-01-01, whose counts should hold no later event.
        cutoff, end (`int`): The validation cutoff, and the end of the log, likewise.
        later_counts (`bool`): As in [`Questions`].

    The result, its errors and the other arguments are those of [`~past.forecast_total`]. Times of the past are
    before the customers' last event. One whose counts can't tell the horizon is left out.
    """
    batch, now = Customers.of(rows), at(end)
    row, times = batch.row, batch.column("times")
    starts = past_starts(now.model, int(times.max()), cutoff, end, quantity, days)
    first, step = times[batch.starts], days * SECONDS_PER_DAY
    amounts = sum_visits(batch, now.extractor, quantity)

    def expect(predictor: Predictor, as_of: int) -> float:
        """Sum of the forecast at a time over the customers with an event until then."""
        there, total = np.flatnonzero(first <= as_of), 0.0
        lengths = np.bincount(row[times <= as_of], minlength=len(batch))
        questions = Questions(as_of, forecasts=True, days=[days], known=known, later_counts=later_counts)
        asked = predictor.check(questions)
        for chosen in batches_by_length(lengths[there], batch_size):
            columns = predictor.ask(batch.take(there[chosen]), asked)
            total += float(columns[f"{quantity}_{days:g}d"].double().sum())
        return total

    def count(start: float) -> float:
        """What came after a time, within the horizon, of the customers with an event until then."""
        within = (first[row] <= start) & (times > start) & (times <= start + step)
        return float(amounts[within].sum(dtype=np.float64))

    past = []
    for start in starts:
        then = at(round(start))
        if days <= then.model.base_model.customer_forecasts.longest:
            past.append(PastTotal(_date(start), expect(then, round(start)), count(start)))
    return GroupTotal(_date(end), expect(now, end), tuple(past))


def sum_visits(batch: Customers, extractor: MCMFeatureExtractor, quantity: str) -> NDArray[np.float64]:
    """What is counted of each visit, at the event that it begins with: 0 at all others, `(events,)`. As the forecaster
    reads visits: one counts if it has a target event, as a whole, at the time of the first one."""
    row, visits = batch.row, batch.column("visits")
    is_target = find_targets(batch, extractor.tasks, extractor.token_type_feature)
    targets = np.flatnonzero(is_target)
    begins = targets[run_starts(row[targets], visits[targets])]
    visit = np.cumsum(run_starts(row, visits)) - 1  # (events,)
    values = is_target if quantity in ("visits", "events") else batch.column(f"value_{quantity}")
    amounts = np.zeros(len(row))
    amounts[begins] = 1.0 if quantity == "visits" else np.bincount(visit, values)[visit[begins]]
    return amounts


def past_starts(model: Any, latest: int, cutoff: int, end: int, quantity: str, days: float) -> list[float]:
    """Times of the past from which the total of [`total_of_rows`] is forecast, latest first; `latest` is the time of
    the last event. Raises `ValueError`, as [`forecast_total`] does, and [`MissingForecastsError`]."""
    if isinstance(days, str) or not days >= 1:  # nor NaN
        raise ValueError(f"`days` is {days!r}: a total is of 1 day or more, as a number.")
    forecasts = model.base_model.select_forecasts([days])
    if not forecasts.are_trained:
        raise MissingForecastsError(model.name_or_path)
    if quantity not in forecasts.quantities:
        raise ValueError(f"No forecasts of {quantity!r}: this checkpoint has those of {forecasts.quantities}.")
    step = days * SECONDS_PER_DAY
    starts = [end - step * number for number in range(1, MOST_PAST + 1)]
    starts = [start for start in starts if cutoff <= start < latest]
    if not starts:
        raise ValueError(
            f"The log ends {(latest - cutoff) / SECONDS_PER_DAY:.1f} days after the validation cutoff, so the error "
            f"of {days:g} days until {_date(end):%Y-%m-%d} can't be known: ask for fewer days or an earlier time, or "
            "prepare and train with an earlier cutoff."
        )
    return starts


def _date(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=round(seconds))
