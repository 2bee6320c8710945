# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The meaning of times in a log: a datetime, a date or text becomes whole seconds since 1970-01-01."""

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from .events_mcm import is_missing, map_distinct

SECONDS_PER_DAY, SECONDS_PER_HOUR = 86_400, 3600
EPOCH = datetime(1970, 1, 1)
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
# A time as text: a day, a time of the day, and a zone as Z, UTC, GMT or an offset. Names of zones are not accepted,
# because they are ambiguous in the hour that daylight saving time repeats. SQL engines use the same pattern, so it
# has only syntax that all their regular expressions share.
TIME_PATTERN = (
    r"(?i)^\s*([0-9]{4,6}[-/][0-9]{1,2}[-/][0-9]{1,2})"
    r"(?:[T ]\s*((?:[01]?[0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?)(?:[.,][0-9]*)?"
    r"\s*(Z|UTC|GMT|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9](?::?[0-5][0-9])?)?)?)?\s*$"
)
TIME_ADVICE = "ISO 8601 text such as 2017-10-01T12:30:00, and a zone as Z, UTC or an offset such as +02:00"
# Offsets of a zone are looked up within these years; earlier and later times get the first and the last offset.
ZONE_YEARS = (1900, 2200)


def to_seconds(value: Any, zone: tzinfo) -> int:
    """Converts a time to whole seconds since 1970-01-01. Raises `ValueError` if it is missing, a number or no time."""
    fix = f"give a datetime or {TIME_ADVICE}"
    if is_missing(value):
        raise ValueError(f"found no time ({value!r}); {fix}, or leave the event out")
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[s]").astype(np.int64))
    if isinstance(value, str):
        try:
            seconds, has_zone = _read_time_text(value)
        except ValueError:
            raise ValueError(f"found {value!r}, which is no time; {fix}") from None
        return seconds + zone_offset(seconds, zone) if has_zone else seconds
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"found {value!r} ({type(value).__name__}), expected a time; {fix}")
    elapsed = value - (EPOCH if value.tzinfo is None else EPOCH.replace(tzinfo=UTC))
    seconds = elapsed.days * SECONDS_PER_DAY + elapsed.seconds
    return seconds if value.tzinfo is None else seconds + zone_offset(seconds, zone)


def to_moment(value: Any, zone: tzinfo) -> float:
    """Converts a moment to seconds since 1970-01-01. Raises `ValueError` if the value is no time."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return float(value) if is_number else to_seconds(value, zone)


def read_times(column: Any, zone: tzinfo) -> NDArray[np.int64]:
    """Converts a column of times to whole seconds since 1970-01-01; see [`to_seconds`]. Raises
    `ValueError` if a value is no time."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "M" and not np.isnat(column).any():
        return column.astype("datetime64[s]").astype(np.int64)
    return map_distinct(column, lambda value: to_seconds(value, zone), np.int64)


def _read_time_text(text: str) -> tuple[int, bool]:
    """Whole seconds since 1970-01-01 of a text of the form `TIME_PATTERN`, and whether it has a zone."""
    match = re.match(TIME_PATTERN, text)
    if match is None:
        raise ValueError(f"{text!r} is no time")
    day, clock, zone = match.groups()
    year, month, day_of_month = map(int, re.split("[-/]", day))
    hour, minute, second = map(int, f"{clock or '0:00'}:00".split(":")[:3])
    # A year may have five digits, which `datetime` does not take.
    moment = np.datetime64(f"{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}", "s")
    seconds = int(moment.astype(np.int64))
    if zone and zone[0] in "+-":
        parts = zone[1:].replace(":", "").ljust(6, "0")
        ahead = int(parts[:2]) * 3600 + int(parts[2:4]) * 60 + int(parts[4:])
        seconds -= ahead if zone[0] == "+" else -ahead
    return seconds, zone is not None


def read_zone(name: str) -> tzinfo:
    """Finds a time zone. Raises `ValueError` if there is no such time zone."""
    if name == "UTC":  # the one zone that needs no time zone database
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"`time_zone` is {name!r}; give an IANA name such as Europe/Berlin.") from None


def zone_offset(seconds: int, zone: tzinfo) -> int:
    """Number of seconds that a time zone is ahead of UTC."""
    first, last = (datetime(year, 1, 1, tzinfo=UTC) for year in ZONE_YEARS)
    moment = EPOCH.replace(tzinfo=UTC) + timedelta(
        seconds=min(max(seconds, int(first.timestamp())), int(last.timestamp()) - 1)
    )
    return int((moment.astimezone(zone).utcoffset() or timedelta()).total_seconds())
