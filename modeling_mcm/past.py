# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A model at times of its log's past: the same weights, with the counts of then.

What tells how good an answer was (errors of totals, what changed, chances looked back on, days that are watched) asks
here, so that the answer knew nothing of what came after it.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers.utils import logging

from .calendar_mcm import Known
from .data import PreparedData
from .data.cases import to_batch
from .data.dataset import END
from .evaluation.totals import GroupTotal, total_of_rows
from .evaluation.watch import watch_days
from .events_mcm import SECONDS_PER_DAY
from .feature_extraction_mcm import MCMFeatureExtractor
from .inputs_mcm import CUSTOMER
from .predictor_mcm import Predictor
from .training.counting import Counts

logger = logging.get_logger(__name__)
KEPT = 8  # times whose counts stay in memory


class Past:
    """A model and the log of its counts.

    Args:
        model ([`MCMPreTrainedModel`]), extractor ([`MCMFeatureExtractor`]): Of one checkpoint.
        data ([`PreparedData`]): The log that it counts, at any time.
    """

    def __init__(self, model: Any, extractor: MCMFeatureExtractor, data: PreparedData):
        self.now, self.data = Predictor(model, extractor), data
        self.at = functools.lru_cache(KEPT)(self._count)

    def _count(self, as_of: int, state: bool = False, shop_alone: bool = False) -> Predictor:
        """The model with the counts of the events until a time, in seconds since 1970-01-01, that time included.

        Args:
            state (`bool`): Whether the scale of the state is counted, too; a head reads the one it was fitted to.
            shop_alone (`bool`): Whether forecasts alone are asked for, which saves time.
        """
        if not self.now.knows_later(as_of):
            return self.now
        counts, model, extractor = Counts.of(self.data, as_of + 1), self.now.model, self.now.extractor
        if shop_alone:
            return Predictor(counts.give_shop(model), extractor)
        return Predictor(*counts.give(model, extractor, state=state))


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
        [`GroupTotal`]: the total, and `past`, latest first: the forecasts that the same weights would have made at
        times `days` apart, with the counts of then, of customers with an event before each.

    Raises:
        ValueError: If the log ends less than `days` after the validation cutoff, so that the error can't be known; if
            the quantity or a customer is unknown, or the horizon is too long.
    """
    cutoff, data = data.schema.cutoff_seconds("validation"), data.at(END)
    sizes = dict(zip(model.config.features, model.config.vocabulary_sizes, strict=True))  # it may be older than these
    rows = to_batch(data.rows.with_format("arrow")[:]).known(sizes)
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
    at = functools.partial(Past(model, data.extractor.until(sizes), data).at, shop_alone=True)
    return total_of_rows(at, rows, cutoff, int(times.max()), quantity, days, batch_size, known)


@functools.lru_cache(4)
def read_cutoff(folder: str) -> int:
    """The validation cutoff of a prepared log. Raises `ValueError` if it is not split at dates."""
    return PreparedData(folder).schema.cutoff_seconds("validation")


@functools.lru_cache(1)
def _open(model: Any, extractor: MCMFeatureExtractor, folder: str) -> Past:
    return Past(model, extractor, PreparedData(folder))


def total_of_group(
    model: Any,
    extractor: MCMFeatureExtractor,
    folder: str,
    rows: Sequence[Mapping],
    end: int,
    quantity: str,
    days: float,
) -> GroupTotal:
    """[`~evaluation.totals.total_of_rows`] of customers whose rows are at hand, by counts of the prepared log in a
    folder, which stay in memory for the next group."""
    at = functools.partial(_open(model, extractor, folder).at, shop_alone=True)
    return total_of_rows(at, rows, read_cutoff(folder), end, quantity, days)


def watch(model: Any, extractor: MCMFeatureExtractor, data: PreparedData, since: int) -> pd.DataFrame:
    """Compares the days after a model with the eight weeks before, see [`~evaluation.watch.watch_days`].

    Args:
        model ([`MCMPreTrainedModel`]): The model, which knows the log until `since`.
        extractor ([`MCMFeatureExtractor`]): Its feature extractor.
        data ([`PreparedData`]): The log with the new days, prepared with its values, as `mcm refresh` does.
        since (`int`): Time of the last event that is not new, in seconds since 1970-01-01. Later days are judged, and
            must be whole.
    """
    return watch_days(Past(model, extractor, data).at, data, since)
