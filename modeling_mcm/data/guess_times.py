# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Guesses how the times of a column are written, and cuts a log by them."""

import re
from collections.abc import Sequence
from datetime import UTC, timedelta, tzinfo
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types
from transformers.utils import logging

from modeling_mcm.events_mcm import (
    SECONDS_PER_DAY,
    TIME_PATTERN,
    BadValues,
    IntArray,
    as_column,
    read_values,
    read_zone,
    to_iso,
    to_moment,
)

logger = logging.get_logger(__name__)
HELD_OUT = {"validation": 0.15, "test": 0.07}  # share of the log's time after each cutoff
TIME_UNITS = {"s": 1e8, "ms": 1e11, "us": 1e14, "ns": 1e17}  # of times in numbers, with their least size
COMPACT = {"%Y%m%d": (1e7, 1e8), "%y%m%d": (1e5, 1e6)}  # of days without separators, and the numbers that they are
DAYS = [f"%{a}{mark}%{b}{mark}%{year}" for mark in "/-" for a, b in ("dm", "md") for year in "Yy"]
DAYS += ["%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%m %d, %Y", "%Y%m%d"]
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
SAME_DAY = 1.1  # events of a customer and day, on average, from which a day is a visit
USUAL = 0.999  # share of the events whose times are taken for right


class Clock(NamedTuple):
    """What is guessed of the times."""

    times: pd.Series = pd.Series(dtype="datetime64[ns]")  # of each event, on the clock of the log
    time_format: str | None = None
    keys: dict = {}  # of the schema
    words: str = "in the order of the rows"


def leave_out_no_times(events: pd.DataFrame, name: str) -> pd.DataFrame:
    """The events but those with a text that is no time, if most texts are times as a log has them."""
    bad: list[BadValues] = []
    read_values(name, as_column(events[name]), lambda value: isinstance(value, str) and to_moment(value, UTC), bad)
    return events[~bad[0].rows] if bad and bad[0].rows.mean() < 0.5 else events


def read_clock(events: pd.DataFrame, name: str, time_zone: str | None) -> Clock:
    """Reads the times of a column, and cuts the log by them."""
    time_format = find_time_format(events[name])
    times = parse_times(events[name], time_format)
    first = events[name].dropna().iloc[0], times.dropna().iloc[0]
    how = "" if time_format is None else " ({} is {:%d %B %Y})".format(*first)
    keys: dict = {}
    if times.dt.tz is not None:
        keys["time_zone"] = time_zone or _name_zone(times.dt.tz)
        times = times.dt.tz_convert(read_zone(keys["time_zone"])).dt.tz_localize(None)
    words = f"{name!r}{how}, {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}"
    return Clock(times, time_format, keys | {"cutoffs": _find_cutoffs(times)}, words)


def _name_zone(zone: tzinfo) -> str:
    """The name of a time zone as a schema has it, or its fixed offset; +00:00 where there is neither."""
    try:
        read_zone(str(zone))
        return str(zone)
    except ValueError:
        offset = zone.utcoffset(None) or timedelta()
        return f"{'-' if offset < timedelta() else '+'}{abs(offset)!s:0>8}"[:6]


def is_clock(values: pd.Series) -> bool:
    """Whether numbers can be times of a day, such as 1631."""
    numbers = pd.to_numeric(values, errors="coerce").dropna()
    return bool(numbers.between(0, 2359).all() and (numbers % 100 < 60).all())


def read_some_times(values: pd.Series) -> pd.Series:
    """The times of a column in nanoseconds, without zone; none if they can be read in several ways."""
    try:
        read = pd.to_datetime(parse_times(values, find_time_format(values)), utc=True)
    except ValueError:
        return pd.Series(pd.NaT, values.index)
    return read.dt.tz_localize(None)


def parse_times(values: pd.Series, time_format: str | None = None) -> pd.Series:
    """The times of a column: NaT where one is not written as the format says, and without a format as preparation
    reads them."""
    if types.is_datetime64_any_dtype(values):
        return values
    if time_format in TIME_UNITS:
        return pd.to_datetime(values, unit=time_format)
    if time_format is not None:
        texts = values.astype("Int64").astype("string") if types.is_numeric_dtype(values) else values
        return pd.to_datetime(texts, format=time_format, errors="coerce")
    try:
        return pd.to_datetime(values, format="mixed")
    except (ValueError, TypeError) as error:
        wrong = values[pd.to_datetime(values, format="mixed", errors="coerce", utc=True).isna() & values.notna()]
        if len(wrong):
            raise ValueError(
                f"Column {values.name!r} has {wrong.iloc[0]!r}, which is no time: correct it, or leave such rows out "
                "by schema={'on_bad_row': 'drop'}."
            ) from error
        fix = f"write events[{values.name!r}] = pd.to_datetime(events[{values.name!r}], utc=True)."
        raise ValueError(f"Column {values.name!r} has no times of one kind ({error}): {fix}") from error


def _read_texts(texts: pd.Series) -> dict[str, pd.Series]:
    """The times of texts by each format that reads all of them."""
    readings = {day + clock: texts for day in DAYS for clock in CLOCKS}
    for rows in (20, len(texts)):
        read = {each: parse_times(texts.head(rows), each) for each in readings}
        readings = {each: times for each, times in read.items() if times.notna().all()}
    return readings


def is_time(values: pd.Series) -> bool:
    """Whether a column has times, as such or as text."""
    known = values.dropna()
    kind = types.infer_dtype(known)
    if kind in ("date", "datetime", "datetime64"):
        return True
    if kind != "string" or not len(known):
        return False
    texts = known.drop_duplicates()
    return bool(texts.str.match(TIME_PATTERN).all() or {*_read_texts(texts)} - {*COMPACT})


def find_time_format(times: pd.Series) -> str | None:
    """How the times of a column are written; None if as those of a log are. Raises `ValueError` if they can't be read,
    or in two ways; the message says how to make some."""
    known, name = times.dropna().drop_duplicates(), times.name
    if not len(known):
        raise ValueError(f"Column {name!r} has no time: fill it, or give schema={{'time': 'COLUMN'}}.")
    if types.infer_dtype(known).startswith("timedelta"):
        raise ValueError(
            f"Column {name!r} has durations such as {known.iloc[0]}, expected times: add them to the time at which "
            f"they begin, as in events[{name!r}] = pd.Timestamp('2024-01-01') + events[{name!r}]."
        )
    fix = f"events[{name!r}] = pd.to_datetime(events[{name!r}]"
    if types.is_numeric_dtype(times):
        if form := find_number_format(known):
            return form
        raise ValueError(
            f"Column {name!r} has numbers such as {known.iloc[0]}, expected times: add them to the time at which they "
            f"begin, as in events[{name!r}] = pd.Timestamp('2024-01-01') + pd.to_timedelta(events[{name!r}], 'D')."
        )
    if types.infer_dtype(known) != "string" or known.str.match(TIME_PATTERN).all():
        return None
    formats: dict[tuple, str] = {}  # by what is read
    for time_format, read in _read_texts(known).items():
        formats.setdefault(tuple(read), time_format)
    if not formats:
        wrong = next(value for value in known if not re.match(TIME_PATTERN, value))
        raise ValueError(
            f"Column {name!r} has {wrong!r}, expected times such as 2024-03-01 12:30: write {fix}, format=...)."
        )
    if len(formats) > 1:
        ways = " or ".join(f"{read[0]:%d %B %Y} (format={each!r})" for read, each in formats.items())
        raise ValueError(
            f"Column {name!r} has {known.iloc[0]!r}, which is {ways}, and no row says which: write {fix}, format=...)."
        )
    return next(iter(formats.values()))


def find_number_format(numbers: pd.Series) -> str | None:
    """How times in numbers are written, if these are some: as days, or in a unit."""
    for form, (least, most) in COMPACT.items():
        if numbers.between(least, most, "left").all() and parse_times(numbers, form).notna().all():
            return form
    units = (unit for unit, least in TIME_UNITS.items() if numbers.between(least, 1000 * least, "left").all())
    return next(units, None)


def has_busy_days(customers: pd.Series, times: pd.Series) -> bool:
    """Whether customers have several events at different times of one day, as in a bank, so that a day is a visit."""
    keys = pd.DataFrame({"customer": customers.to_numpy(), "time": times.to_numpy()}).dropna().drop_duplicates()
    return len(keys) >= SAME_DAY * len(keys.assign(time=keys["time"].dt.floor("D")).drop_duplicates())


def _find_cutoffs(times: pd.Series) -> dict:
    """Times that leave the last parts of a log's time for validation and test."""
    last, span = times.max(), times.max() - times.min()
    if not span:
        raise ValueError(f"Column {times.name!r} has one time only, {last}: give a log of several days.")
    unit = "D" if span > pd.Timedelta(days=30) else "s"
    return {name: (last - share * span).floor(unit).to_pydatetime() for name, share in HELD_OUT.items()}


def warn_of_late_event(ids: Sequence[str], times: IntArray) -> None:
    """Warns if the latest time, in seconds, lies far after nearly all others: answers then count from it."""
    order = np.argsort(times, kind="stable")
    usual = times[order[min(len(order) - 2, int(USUAL * (len(order) - 1)))]] if len(order) > 1 else times.max()
    first, last = times[order[[0, -1]]]
    if last - usual > max(usual - first, 30 * SECONDS_PER_DAY):
        logger.warning(
            f"Customer {ids[order[-1]]!r} has an event at {to_iso(last)}, long after those of the others, which end "
            f"about {to_iso(usual)}: answers count from the latest event. Correct it, leave it out, or give `as_of`."
        )
