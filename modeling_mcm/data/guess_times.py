# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads times as people write them: guesses how those of a column are written, and cuts a log by them."""

import math
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

from .schema import NO_CUTOFFS

logger = logging.get_logger(__name__)
HELD_OUT = {"validation": 0.15, "test": 0.07}  # share of the log's time after each cutoff
SPREADSHEET = "1899-12-30"  # from which spreadsheets count days
# Times in numbers: days without separators, days of a spreadsheet, and units since 1970; the numbers that they are
NUMBERS = {"%Y%m%d": (1e7, 1e8), "%y%m%d": (1e5, 1e6), "D": (36_526, 54_789)}
NUMBERS |= {unit: (least, 1000 * least) for unit, least in (("s", 1e8), ("ms", 1e11), ("us", 1e14), ("ns", 1e17))}
DAYS = [f"%{a}{mark}%{b}{mark}%{year}" for mark in "/-" for a, b in ("dm", "md") for year in "Yy"]
DAYS += ["%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%m %d, %Y", "%Y%m%d"]
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
SAME_DAY = 1.1  # events of a customer and day, on average, from which a day is a visit
USUAL = 0.999  # share of the events whose times are taken for right
NEAR = 0.5  # of the time of these events: what lies farther from them does not count


class Clock(NamedTuple):
    """What is guessed of the times."""

    times: pd.Series = pd.Series(dtype="datetime64[ns]")  # of each event, on the clock of the log
    time_format: str | None = None
    keys: dict = {}  # of the schema
    words: str = "in the order of the rows"


def leave_out_no_times(times: pd.Series) -> pd.Series:
    """The times of a column without texts that are none, if most texts are times as a log has them."""
    bad: list[BadValues] = []
    read_values("", as_column(times), lambda value: isinstance(value, str) and to_moment(value, UTC), bad)
    return times.mask(bad[0].rows) if bad and bad[0].rows.mean() < 0.5 else times


def read_clock(written: pd.Series, time_zone: str | None) -> Clock:
    """Reads the times of a column."""
    time_format, name = find_time_format(written), written.name
    times = parse_times(written, time_format)
    if (wrong := times.isna() & written.notna()).any():
        raise ValueError(
            f"Column {name!r} has {written[wrong].iloc[0]!r}, which is no time: correct it, or leave such rows out by "
            "schema={'on_bad_row': 'drop'}."
        )
    first = written.dropna().iloc[0], times.dropna().iloc[0]
    how = "" if time_format is None else " ({} is {:%d %B %Y})".format(*first)
    keys: dict = {}
    if times.dt.tz is not None:
        keys["time_zone"] = time_zone or _name_zone(times.dt.tz)
        times = times.dt.tz_convert(read_zone(keys["time_zone"])).dt.tz_localize(None)
    return Clock(times, time_format, keys, f"{name!r}{how}, {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}")


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
    """The times of a column, in UTC; none if they can be read in several ways."""
    try:
        return read_clock(values, "UTC").times
    except ValueError:
        return pd.Series(pd.NaT, values.index)


def parse_times(values: pd.Series, time_format: str | None = None) -> pd.Series:
    """The times of a column: NaT where one is not written as the format says, and without a format as preparation
    reads them."""
    if types.is_datetime64_any_dtype(values):
        return values
    if time_format == "D":
        return pd.to_datetime(values, unit="D", origin=SPREADSHEET).dt.round("s")
    if time_format is not None and "%" not in time_format:
        return pd.to_datetime(values, unit=time_format)
    if time_format is not None:
        texts = values.astype("Int64").astype("string") if types.is_numeric_dtype(values) else values
        return pd.to_datetime(texts, format=time_format, errors="coerce")
    try:
        return pd.to_datetime(values, format="mixed", errors="coerce")
    except (ValueError, TypeError) as error:
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
    return bool(texts.str.match(TIME_PATTERN).all() or {*_read_texts(texts)} - {*NUMBERS})


def find_time_format(times: pd.Series, table: str = "events") -> str | None:
    """How the times of a table's column are written; None if as those of a log are. Raises `ValueError` if they can't
    be read, or in two ways; the message says how to make some."""
    known, name = times.dropna().drop_duplicates(), times.name
    if not len(known):
        raise ValueError(f"Column {name!r} has no time: fill it, or give schema={{'time': 'COLUMN'}}.")
    if types.infer_dtype(known).startswith("timedelta"):
        raise ValueError(
            f"Column {name!r} has durations such as {known.iloc[0]}, expected times: add them to the time at which "
            f"they begin, as in {table}[{name!r}] = pd.Timestamp('2024-01-01') + {table}[{name!r}]."
        )
    fix = f"{table}[{name!r}] = pd.to_datetime({table}[{name!r}]"
    if types.is_numeric_dtype(times):
        if form := find_number_format(known):
            return form
        raise ValueError(
            f"Column {name!r} has numbers such as {known.iloc[0]}, expected times: add them to the time at which they "
            f"begin, as in {table}[{name!r}] = pd.Timestamp('2024-01-01') + pd.to_timedelta({table}[{name!r}], 'D')."
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
    """How times in numbers are written, if these are some: a key of `NUMBERS`."""
    for form, (least, most) in NUMBERS.items():
        if numbers.between(least, most, "left").all() and parse_times(numbers, form).notna().all():
            return form
    return None


def has_busy_days(customers: pd.Series, times: pd.Series) -> bool:
    """Whether customers have several events at different times of one day, as in a bank, so that a day is a visit."""
    return bool(times.groupby([customers, times.dt.floor("D")], observed=True).nunique().mean() >= SAME_DAY)


def find_cutoffs(times: pd.Series) -> dict:
    """Times that leave the last parts of a log's time for validation and test. A time far from nearly all others does
    not count. Of a log that is so short that a part has no event the last of its times are held out; if there are
    less than three, nothing is."""
    known = times.dropna().dt.floor("s").sort_values(ignore_index=True)
    distinct = known.drop_duplicates(ignore_index=True)
    if len(distinct) < 3:
        return NO_CUTOFFS
    beyond = max(1, int((1 - USUAL) * len(known)))
    low, high = known[beyond], known[len(known) - 1 - beyond]
    near = known[known.between(low - NEAR * (high - low), high + NEAR * (high - low))]
    last, span = near.iloc[-1], near.iloc[-1] - near.iloc[0]
    unit = "D" if span > pd.Timedelta(days=30) else "s"
    cutoffs = [(last - share * span).floor(unit) for share in HELD_OUT.values()]
    validation, test = known.searchsorted(cutoffs)
    if not 0 < validation < test < len(known):
        held_out = zip((2, 1), HELD_OUT.values(), strict=True)
        cutoffs = [distinct.iloc[-max(least, math.ceil(share * len(distinct)))] for least, share in held_out]
    return dict(zip(HELD_OUT, cutoffs, strict=True))


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
