# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The total of a group of customers, with the errors that the same forecast made on the log's own past.

Intervals of customers must not be added up: a season or a campaign moves all of them together, and no customer's
history says by how much. So the same model forecasts the same group from earlier times, and its totals are compared
with what came. No time is before the validation cutoff, because training has read what came before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.calendar_mcm import Known
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import find_targets, to_batch
from modeling_mcm.data.collator import batches_by_length
from modeling_mcm.data.dataset import END
from modeling_mcm.events_mcm import EPOCH, SECONDS_PER_DAY, run_starts
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import MissingForecastsError
from modeling_mcm.inputs_mcm import CUSTOMER, Customers
from modeling_mcm.predictor_mcm import Predictor, Questions

logger = logging.get_logger(__name__)
MOST_PAST = 12  # times of the past that are tried


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


def forecast_total(
    model: Any,
    data: PreparedData,
    quantity: str = "visits",
    days: float = 30,
    customers: Iterable[str] | None = None,
    batch_size: int = 64,
    known: Known | None = None,
) -> GroupTotal:
    """Forecasts what a group of customers will do in the days after a log's end.

    Args:
        model ([`MCMModel`] or a model with a head): A checkpoint that was trained on the data set.
        data ([`PreparedData`]): A data set whose log has times and was split at dates.
        quantity (`str`): Visits, events, or the amount.
        days (`float`): horizon.
        customers (`Iterable[str]`, *optional*): Ids of the group. Default: all customers.
        batch_size (`int`): Number of customers in one batch of the model.
        known (`dict`, *optional*): More of what is known of days; see [`Questions`].

    Returns:
        [`GroupTotal`]: the total, and `past`, latest first: the same forecast from times `days` apart, of customers
        with an event before each.

    Raises:
        ValueError: If the log ends less than `days` after the validation cutoff, so that the error can't be known; if
            the quantity or a customer is unknown, or the horizon is too long.
    """
    cutoff, data = data.schema.cutoff_seconds("validation"), data.at(END)
    rows = to_batch(data.rows.with_format("arrow")[:])
    times = rows.column("times")
    if customers is not None:
        names = np.array([*dict.fromkeys(map(str, customers))], object)
        places = pd.Index(rows.column(CUSTOMER)).get_indexer(names)
        if len(unknown := names[places < 0]):
            raise ValueError(
                f"No customer {unknown[0]!r} in the data set, nor {len(unknown) - 1} others of the group."
            )
        if not len(names):
            raise ValueError("`customers` is empty: give ids, or leave it out for all customers.")
        rows = rows.take(places)
    weeks = np.unique((times.max() - times) // (7 * SECONDS_PER_DAY))
    if missing := int(weeks[-1]) + 1 - len(weeks):
        logger.warning(
            f"The log has no event in {missing} weeks: forecasts read them as weeks without visits, and the errors of "
            "the past may be too small or too large."
        )
    return total_of_rows(model, data.extractor, rows, cutoff, int(times.max()), quantity, days, batch_size, known)


def total_of_rows(
    model: Any,
    extractor: MCMFeatureExtractor,
    rows: Sequence[Mapping],
    cutoff: int,
    end: int,
    quantity: str = "visits",
    days: float = 30,
    batch_size: int = 64,
    known: Known | None = None,
) -> GroupTotal:
    """Forecasts the total of the customers of some rows, of a prepared data set or of `MCMFeatureExtractor.encode`.
    `cutoff` is the validation cutoff, and `end` the end of the log, in seconds since 1970-01-01. The result, its
    errors and the other arguments are those of [`forecast_total`]. Times of the past are before the customers' last
    event: nothing that came after it is known."""
    batch = Customers.of(rows)
    row, times = batch.row, batch.column("times")
    starts = past_starts(model, int(times.max()), cutoff, end, quantity, days)
    first, step = times[batch.starts], days * SECONDS_PER_DAY
    predictor = Predictor(model, extractor)
    amounts = sum_visits(batch, extractor, quantity)

    def expect(as_of: int) -> float:
        """Sum of the forecast at a time over the customers with an event until then."""
        there, total = np.flatnonzero(first <= as_of), 0.0
        asked = predictor.check(Questions(as_of, forecasts=True, days=[days], known=known))
        for chosen in batches_by_length(batch.lengths[there], batch_size):
            columns = predictor.ask(batch.take(there[chosen]), asked)
            total += float(columns[f"{quantity}_{days:g}d"].double().sum())
        return total

    def count(start: float) -> float:
        """What came after a time, within the horizon, of the customers with an event until then."""
        within = (first[row] <= start) & (times > start) & (times <= start + step)
        return float(amounts[within].sum(dtype=np.float64))

    past = [PastTotal(_date(start), expect(round(start)), count(start)) for start in starts]
    return GroupTotal(_date(end), expect(end), tuple(past))


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
