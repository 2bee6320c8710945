# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Times of a log: the same second from text, typed columns and Python values, or refused."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade_extractor import make, seconds
from synthetic_log import make_log, read_log, run, schema_with

from modeling_mcm.data import EventSchema
from modeling_mcm.events_mcm import read_zone, to_seconds, to_text
from modeling_mcm.preparation.rows import RowReader, read_distinct

BERLIN = "Europe/Berlin"
SCHEMA = {"customer": "user", "time": "at", "features": [{"name": "item"}], "tasks": ["item"]}
SCHEMA |= {"cutoffs": "leave_one_out"}
# A time as text -> the time in Berlin. January: an hour ahead of UTC; July: two.
READ = """
2024-01-10 10:00:00 -> 2024-01-10T10:00:00
2024-07-10T10:00:00 -> 2024-07-10T10:00:00
2024-07-10 -> 2024-07-10T00:00:00
2024-07-10 10:00 -> 2024-07-10T10:00:00
2024-7-1 9:05:07 -> 2024-07-01T09:05:07
2024/07/10 10:00:00 -> 2024-07-10T10:00:00
  2024-07-10 10:00:00   -> 2024-07-10T10:00:00
2024-01-10 10:00:00 UTC -> 2024-01-10T11:00:00
2024-07-10 10:00:00 UTC -> 2024-07-10T12:00:00
2024-07-10 10:00:00UTC -> 2024-07-10T12:00:00
2024-07-10 10:00:00.123456 UTC -> 2024-07-10T12:00:00
2024-07-10 10:00:00 utc -> 2024-07-10T12:00:00
2024-01-10 10:00:00 GMT -> 2024-01-10T11:00:00
2024-07-10T10:00:00Z -> 2024-07-10T12:00:00
2024-07-10t10:00:00z -> 2024-07-10T12:00:00
2024-07-10T10:00Z -> 2024-07-10T12:00:00
2024-07-10T10:00:00.999999999Z -> 2024-07-10T12:00:00
2024-07-10T10:00:00,5Z -> 2024-07-10T12:00:00
2024-07-10T10:00:00+02:00 -> 2024-07-10T10:00:00
2024-07-10T10:00:00 +0200 -> 2024-07-10T10:00:00
2024-07-10 10:00:00+02 -> 2024-07-10T10:00:00
2024-07-10 10:00:00-05:30 -> 2024-07-10T17:30:00
1890-07-10 10:00:00-00:00:30 -> 1890-07-10T10:53:58  # the time of Berlin's sun, 53 minutes and 28 seconds ahead
2024-03-31T00:59:59Z -> 2024-03-31T01:59:59  # the last second of winter
2024-03-31T01:00:00Z -> 2024-03-31T03:00:00  # the first of summer
2024-03-31T02:30:00 -> 2024-03-31T02:30:00  # there is no such time, and it stays what it says
2024-10-27T00:30:00Z -> 2024-10-27T02:30:00  # the hour that happens twice
2024-10-27T01:30:00Z -> 2024-10-27T02:30:00
2024-10-27T02:30:00+02:00 -> 2024-10-27T02:30:00
2024-10-27T02:30:00+01:00 -> 2024-10-27T02:30:00
1969-12-31T23:59:59.5 -> 1969-12-31T23:59:59
1969-12-31T23:30:00Z -> 1970-01-01T00:30:00
0001-01-01 -> 0001-01-01T00:00:00
0001-01-01T00:00:00Z -> 0001-01-01T00:53:28
9999-12-31T23:59:59 -> 9999-12-31T23:59:59
"""
REFUSED = """
2024-07-10 10:00:00 Europe/Berlin ; 2024-07-10T10:00:00+02:00[Europe/Berlin] ; 2024-07-10 10:00:00 CEST
2024-07-10 10:00:00 EST ; 2024-07-10 10:00:00 UTC+2 ; 2024-07-10 10:00:00 GMT+02:00 ; 2024-07-10 10:00:00 PM
2024-07-10 10:00:00+2 ; 2024-07-10 10:00:00+25:00 ; 2024-07-10 10:00:00 +02:00 UTC ; 2024-07-10+02:00 ; 2024-07-10Z
2024-02-30 10:00:00 ; 2023-02-29 ; 2024-13-01 ; 2024-00-10 ; 2024-07-10 24:00:00 ; 2024-07-10 10:60:00
2024-07-10 10:00:60 ; 2024-07-10T ; 2024-07-10T10 ; 20240710 ; 20240710T100000 ; 2024-W28-3 ; 2024-192
10.07.2024 10:00 ; 07/10/2024 10:00 ; 24-07-10 ; -2024-07-10 ; 44-03-15 (BC) ; infinity ; epoch ; now ; today
12024-07-10 ; 9999-12-31T23:59:59Z ; 1720605600 ; 1.7206056e9 ; 12:30 ; gestern ; ٢٠٢٤-07-10
"""


@pytest.mark.parametrize("line", READ.strip("\n").splitlines())
def test_text_is_converted(line):
    text, local = line.split("  #")[0].split(" -> ")
    assert to_seconds(text, read_zone(BERLIN)) == seconds(local)


@pytest.mark.parametrize("text", REFUSED.strip().replace("\n", " ; ").split(" ; "))
def test_what_would_have_to_be_guessed_is_refused(text):
    with pytest.raises(ValueError, match="which is no time; .*a zone as Z, UTC or an offset"):
        to_seconds(text, read_zone(BERLIN))


@pytest.mark.parametrize(
    "zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Monrovia"]
)
def test_times_with_a_zone_are_those_of_the_time_zone_database(zone):
    hours = [datetime(1968, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in range(7 * 8766)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    changes = [
        after for after, (one, other) in zip(hours[1:], itertools.pairwise(offsets), strict=True) if one != other
    ]
    times = [hour + timedelta(seconds=shift) for hour in changes for shift in (-1800, -1, 0, 1, 1800)]
    random = np.random.default_rng(0).integers(-(10**8), 2 * 10**9, 100).tolist()
    times += [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second) for second in random]
    clocks = [time.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for time in times]
    expected = [seconds(clock.isoformat()) for clock in clocks]
    for form in (list, pd.to_datetime, lambda times: [time.isoformat() for time in times]):
        assert [to_seconds(value, ZoneInfo(zone)) for value in form(times)] == expected
    schema = EventSchema.from_dict(SCHEMA | {"time_zone": zone})
    batch = pa.record_batch({"user": times, "at": pa.array(times, pa.timestamp("us", "UTC")), "item": times})
    (read,) = RowReader(schema).read([batch])
    assert read["second"].to_pylist() == expected


@pytest.mark.parametrize("year", [1969, 1955, 1899, 1600, 3])
def test_before_1970_hour_and_weekday_are_those_of_the_calendar(year):
    times = [datetime(year, 1, 1) + timedelta(hours=int(7.3 * place)) for place in range(60)]
    row = make().encode({"events": {"when": times, "action": ["click"] * 60}})
    assert row["feature_hour"].tolist() == [2 + time.hour for time in times]
    assert row["feature_weekday"].tolist() == [2 + time.weekday() for time in times]


@pytest.mark.parametrize("late", ["9999-12-31 10:00:00", "2124-05-02 10:00:00Z"])
def test_a_time_of_the_future_is_told(tmp_path, caplog, late):
    log = make_log()
    log["at"] = log["at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    run(tmp_path, log, name="as_of")
    assert "which is not yet" not in caplog.text
    log.loc[3, ["user", "at"]] = 3, late
    run(tmp_path, log, schema_with(time_zone=BERLIN), name="late")
    assert re.search("Customer '3' has an event of .*, which is not yet", caplog.text)


def with_times(log, kind):
    """The log as an Arrow table whose times are moments of UTC in a type: Arrow's `cast` keeps the moment."""
    table = pa.Table.from_pandas(log, preserve_index=False)
    return table.set_column(1, "at", pa.array(log["at"].astype("datetime64[ns]")).cast(pa.timestamp("ns")).cast(kind))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", BERLIN, "+05:30"])
def test_every_type_of_time_in_parquet_is_read(tmp_path, unit, zone):
    kind = pa.timestamp(unit, zone)
    log = make_log()
    pq.write_table(with_times(log, kind), tmp_path / "log.parquet")
    schema = schema_with(time_zone=BERLIN)
    local = log["at"].dt.tz_localize("UTC").dt.tz_convert(BERLIN).dt.tz_localize(None) if kind.tz else log["at"]
    expected = read_log(log.assign(at=local), schema, tmp_path)
    assert read_log(tmp_path / "log.parquet", schema, tmp_path) == expected
    if kind.tz:
        zoned = log.assign(at=log["at"].dt.tz_localize("UTC").dt.tz_convert(kind.tz))
        assert read_log(zoned, schema, tmp_path) == expected


def without(table, *places, kind=None):
    """The table without any value in some of its columns."""
    for place in places:
        table = table.set_column(table.column_names.index(place), place, pa.nulls(len(table), kind or pa.null()))
    return table


@pytest.mark.parametrize("place", ["item", "group", "price", "flag", "session"])
@pytest.mark.parametrize("share", [0.5, 1], ids=["some of the files", "all"])
def test_a_column_without_any_value_is_missing_everywhere(tmp_path, place, share):
    table = pa.Table.from_pandas(make_log(), preserve_index=False)
    cut = int(len(table) * share)
    first, second, kind = table.slice(0, cut), table.slice(cut), table.schema.field(place).type
    source, expected = without(first, place), pa.concat_tables([without(first, place, kind=kind), second])
    (tmp_path / "log").mkdir()
    pq.write_table(source, tmp_path / "log" / "a.parquet")
    if len(second):
        pq.write_table(second, tmp_path / "log" / "b.parquet")
    assert read_log(tmp_path / "log", schema_with(), tmp_path) == read_log(expected, schema_with(), tmp_path)


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_spark_reads_files_of_which_some_hold_nothing(spark, tmp_path, names):
    table = pa.Table.from_pandas(make_log().astype({"at": "datetime64[us]"}), preserve_index=False)
    (tmp_path / "log").mkdir()
    for name, rows in zip(names, (table, without(table, "item", "group", "price", "session")), strict=True):
        pq.write_table(rows, tmp_path / "log" / f"{name}.parquet")
    found = [read_log(tmp_path / "log", schema_with(), tmp_path, engine)[0] for engine in ("duckdb", "spark")]
    assert found[0].to_pylist() == found[1].to_pylist() and len(found[0]) == 2 * len(table)


def test_times_are_the_same_category_in_every_form():
    moment = datetime(2024, 1, 1, 10, 0, 0, 250_000)
    plain = pa.array([moment, moment.replace(microsecond=0)])
    for kind, texts in (
        (pa.timestamp("us", BERLIN), ["2024-01-01 10:00:00.25", "2024-01-01 10:00:00"]),
        (pa.timestamp("ns"), ["2024-01-01 10:00:00.25", "2024-01-01 10:00:00"]),
        (pa.date32(), ["2024-01-01"]),
    ):
        array = plain.cast(kind, safe=False)
        for values in (read_distinct(array).values, array.to_pylist(), array.to_pandas().tolist()):
            assert [*dict.fromkeys(map(to_text, values))] == texts
