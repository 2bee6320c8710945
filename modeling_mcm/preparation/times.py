# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The times of a log as whole seconds since 1970-01-01, as Ibis expressions: events_mcm.py reads one value."""

from collections.abc import Iterable
from datetime import datetime, timedelta, tzinfo

from modeling_mcm.data.schema import EventSchema
from modeling_mcm.events_mcm import EPOCH, SECONDS_PER_DAY, TIME_PATTERN, read_zone, zone_offset
from modeling_mcm.extras import needs

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.expressions import total
    from modeling_mcm.preparation.spark import SPARK

BLOCK = 10 * SECONDS_PER_DAY  # seconds in which a time zone's offset changes at most once


def express_seconds(table: ir.Table, name: str, time_zone: str) -> ir.IntegerValue:
    """Whole seconds of the time column. Times with a zone go to the schema's zone, other times stay as they are.
    Returns seconds since 1970-01-01, null where a text is no time."""
    column = table[name]
    kind = column.type()
    if kind.is_date():
        column, kind = column.cast("timestamp"), ibis.dtype("timestamp")
    if kind.is_string():
        seconds, has_zone = _seconds_of_text(column)
    elif kind.is_timestamp():
        seconds, has_zone = column.truncate("s").epoch_seconds().cast("int64"), ibis.literal(kind.timezone is not None)
    else:
        raise ValueError(
            f"Column {name!r} (time) has type {kind}; it needs timestamps, dates or ISO 8601 text. "
            "Convert numbers to timestamps first."
        )
    if time_zone == "UTC" or (kind.is_timestamp() and kind.timezone is None):
        return seconds
    blocks = table.select(block=ibis.ifelse(has_zone, seconds // BLOCK, ibis.null("int64"))).distinct().to_pyarrow()
    starts = [block * BLOCK for block in sorted(blocks["block"].drop_null().to_pylist())]
    steps = offset_steps(read_zone(time_zone), [(start, start + BLOCK) for start in starts])
    if not steps:
        return seconds
    shift = total([(seconds >= start).cast("int64") * change for start, change in steps[1:]], steps[0][1])
    return ibis.ifelse(has_zone, seconds + shift, seconds)


def _seconds_of_text(column: ir.StringValue) -> tuple[ir.IntegerValue, ir.BooleanValue]:
    """Reads times as events_mcm.py does."""
    day, clock, zone = (column.re_extract(TIME_PATTERN, group) for group in (1, 2, 3))
    text = day.replace("/", "-") + " " + ibis.ifelse(clock == "", "00:00", clock)
    text = ibis.ifelse(column.re_search(TIME_PATTERN), text, ibis.null("string"))
    if column.get_backend().name == SPARK:  # Spark's times are moments, and its session is in UTC
        moment = text.try_cast(ibis.dtype("timestamp('UTC')")).cast("timestamp")
    else:
        moment = text.try_cast("timestamp")
    seconds = moment.truncate("s").epoch_seconds().cast("int64")
    sign, digits = zone.substr(0, 1), zone.replace(":", "")
    has_offset = sign.isin(["+", "-"])
    hours, minutes, rest = (
        ibis.ifelse(has_offset & (digits.length() > start), digits.substr(start, 2), "0").cast("int64")
        for start in (1, 3, 5)
    )
    ahead = hours * 3600 + minutes * 60 + rest
    return seconds - ibis.ifelse(sign == "-", -ahead, ahead), zone != ""


def offset_steps(zone: tzinfo, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Finds when a time zone's offset to UTC changes within some ranges of time: the second of each change, and the
    change in seconds; the first entry has the offset itself. A change between two ranges counts at the start of the
    second, so a log of a few years with one time in another century needs few steps."""
    steps: list[tuple[int, int]] = []
    offset = 0
    for first, last in ranges:
        for start in range(first, last, SECONDS_PER_DAY):
            if (new := zone_offset(start, zone)) != offset or not steps:
                steps.append((start, new - offset))
                offset = new
            end = min(start + SECONDS_PER_DAY, last)
            if zone_offset(end, zone) != offset:
                low, high = start, end
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if zone_offset(middle, zone) == offset else (low, middle)
                steps.append((high, zone_offset(end, zone) - offset))
                offset += steps[-1][1]
    return steps


def epoch_seconds(time: datetime) -> int:
    """Whole seconds, rounded down, from 1970-01-01 to a time without a zone."""
    return (time - EPOCH) // timedelta(seconds=1)


def moment_text(moment: ir.IntegerValue, schema: EventSchema) -> ir.StringValue:
    """Writes a time as text, or the number of an event in a log without times."""
    return (moment.as_timestamp("s") if schema.order is None else moment).cast("string")
