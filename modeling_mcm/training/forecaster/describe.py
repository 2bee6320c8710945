# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Describes the shop of a log to the forecaster: what the training period's visits say, and nothing after it."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from modeling_mcm.calendar_mcm import MOST_DAYS, Calendar, write_day
from modeling_mcm.data.cases import deciding_tasks, load_columns
from modeling_mcm.data.collator import PreparedRows, batches_by_length
from modeling_mcm.events_mcm import SECONDS_PER_DAY, IntArray
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import VisitForecaster, Visits, find_broken
from modeling_mcm.modeling_mcm import MCMModel

from ..state import HISTORY, pad_past
from .shop import load_weights, set_shop

logger = logging.get_logger(__name__)
SHOP_CUSTOMERS, READ_AT_ONCE = 2**15, 128  # customers whose visits describe the shop, and of whom so many are padded
SHOP_VISITS = 2_000  # latest visits of each of them that are read
EARLIEST = 1e-3  # share of the visits before the window, which begins there: a wrong date must not stretch it


@torch.no_grad()
def describe_shop(model: MCMModel, extractor: MCMFeatureExtractor, rows: PreparedRows, cutoff: float | None) -> None:
    """Makes the forecaster, with the shipped weights and the statistics of the shop in the training period: those of
    all customers, or of `SHOP_CUSTOMERS` of them. A log without times, or with less than a day of visits, has no
    forecaster, and a warning says why. Horizons that are too long are left out of the config.

    Args:
        rows ([`PreparedRows`]): The customers with an event in the training period.
        cutoff (`float`, *optional*): Its end, in seconds since 1970. `None`: each customer's last visits are held out.
    """
    config, token = model.config, extractor.token_type_feature
    config.target_features = deciding_tasks(config.tasks, token)
    config.target_types = {token: sorted(extractor.layout.targets)}
    config.forecast_window = 1.0  # so that there is a forecaster, which reads visits; its length follows
    config.calendar = []
    model.make_forecaster()
    forecaster = cast(VisitForecaster, model.forecaster)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:SHOP_CUSTOMERS])
    lengths = load_columns(rows.rows, ["validation_end"]).column("validation_end")[rows.indices[chosen]]
    kept: dict[int, Visits] = {}  # of each customer
    for batch in batches_by_length(lengths, READ_AT_ONCE):
        times, inputs = pad_past(extractor, rows.__getitems__(chosen[batch].tolist()), config.input_features)
        visits = forecaster.read(*(inputs.get(name) for name in HISTORY))  # type: ignore[arg-type]
        starts = torch.from_numpy(np.array([events[0] for events in times]) / SECONDS_PER_DAY)
        visits = visits._replace(times=visits.times + starts[:, None])
        for row, customer in enumerate(batch.tolist()):
            kept[customer] = Visits(*(column[row, visits.is_visit[row]][-SHOP_VISITS:] for column in visits))
    columns = [[kept[customer][index] for customer in range(len(chosen))] for index in range(len(Visits._fields))]
    if not len(chosen):
        columns = [[torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0)]]
    visits = Visits(*(pad_sequence(column, batch_first=True) for column in columns))
    days, window = visits.times[visits.is_visit], 0.0
    if len(days) and extractor.order is None:
        end = float(days.max()) if cutoff is None else cutoff / SECONDS_PER_DAY
        window = end - float(days.sort().values[int(EARLIEST * len(days))])
    if window < 1:
        config.forecast_window, config.forecast_days = 0.0, []
        model.make_forecaster()
        reason = f"the training period has {24 * window:.1f} hours, no whole day"
        if extractor.order is not None:
            reason = "the log has no times: name its `time` in the event schema"
        logger.warning(f"There are no forecasts, because {reason}.")
        return
    load_weights(forecaster)
    calendar = forecaster.calendar = count_days(visits, end - window, end)
    config.calendar = [calendar.first, len(calendar.counts)]
    now = torch.full((len(chosen),), end, dtype=torch.float64)
    moved = calendar.bend(visits.times, now, [1.0], window, config.known)[0]
    set_shop(forecaster, visits._replace(times=moved.float()), torch.zeros(len(chosen)), window)
    _warn_of_broken(visits, forecaster.most[1:], rows, chosen, model.customer_forecasts.quantities[1:])
    forecaster.to(model.device)  # it was made, and reads visits, on the CPU
    config.forecast_window = window
    config.forecast_days = model.customer_forecasts.days


def _warn_of_broken(
    visits: Visits, most: Tensor, rows: PreparedRows, chosen: IntArray, quantities: Sequence[str]
) -> None:
    """Warns of amounts that can't be right, and names the first one."""
    is_broken, largest = find_broken(visits.amounts * visits.is_visit[..., None], most)
    for row, place, number in is_broken.nonzero()[:1].tolist():
        amount, read = float(visits.amounts[row, place, number]), float(largest[row, 0, number])
        logger.warning_once(
            f"Customer {rows[chosen[row]]['customer_id']!r} has {quantities[number]!r} {amount:g} on "
            f"{write_day(int(visits.times[row, place]))}, {abs(amount) / read:,.0f} times what several others reach, "
            f"and only once: forecasts read {read:g}. Of {is_broken.sum()} such amounts correct those that are wrong."
        )


def count_days(visits: Visits, start: float, end: float) -> Calendar:
    """Counts the whole days of a shop between two times, at most the last `MOST_DAYS`; all times are in days since
    1970-01-01."""
    days = torch.where(visits.is_visit, visits.times, math.inf).floor()  # (B, P)
    first, last = days.amin(1), math.floor(end)
    start = max(math.floor(start), last - MOST_DAYS)
    comes_back = days[(days > first[:, None]) & (days >= start) & (days < last)]
    calendar = Calendar(start, max(last - start, 0))
    calendar.counts[:, 0] = torch.bincount((comes_back - start).long(), minlength=len(calendar.counts))
    calendar.counts[:, 1] = torch.searchsorted(first.sort().values, torch.arange(start, last, dtype=first.dtype))
    return calendar
