# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Times of a log: the same second in preparation, on Spark and in the feature extractor, or refused by all of them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_log import load_extractor, make_log, read_rows, run, schema_with

from modeling_mcm.data import EventSchema
from modeling_mcm.events_mcm import read_zone, to_seconds
from modeling_mcm.preparation.engine import open_engine
from modeling_mcm.preparation.events import normalise_events
from modeling_mcm.preparation.tables import open_table
from modeling_mcm.preparation.times import offset_steps

BERLIN = "Europe/Berlin"
# A time as text -> the time in Berlin. January: an hour ahead of UTC; July: two.
READ = {
    "2024-01-10 10:00:00": "2024-01-10T10:00:00",
    "2024-07-10T10:00:00": "2024-07-10T10:00:00",
    "2024-07-10": "2024-07-10T00:00:00",
    "2024-07-10 10:00": "2024-07-10T10:00:00",
    "2024-7-1 9:05:07": "2024-07-01T09:05:07",
    "2024/07/10 10:00:00": "2024-07-10T10:00:00",
    "  2024-07-10 10:00:00  ": "2024-07-10T10:00:00",
    "2024-01-10 10:00:00 UTC": "2024-01-10T11:00:00",
    "2024-07-10 10:00:00 UTC": "2024-07-10T12:00:00",
    "2024-07-10 10:00:00UTC": "2024-07-10T12:00:00",
    "2024-07-10 10:00:00.123456 UTC": "2024-07-10T12:00:00",
    "2024-07-10 10:00:00 utc": "2024-07-10T12:00:00",
    "2024-01-10 10:00:00 GMT": "2024-01-10T11:00:00",
    "2024-07-10T10:00:00Z": "2024-07-10T12:00:00",
    "2024-07-10t10:00:00z": "2024-07-10T12:00:00",
    "2024-07-10T10:00Z": "2024-07-10T12:00:00",
    "2024-07-10T10:00:00.999999999Z": "2024-07-10T12:00:00",
    "2024-07-10T10:00:00,5Z": "2024-07-10T12:00:00",
    "2024-07-10T10:00:00+02:00": "2024-07-10T10:00:00",
    "2024-07-10T10:00:00 +0200": "2024-07-10T10:00:00",
    "2024-07-10 10:00:00+02": "2024-07-10T10:00:00",
    "2024-07-10 10:00:00-05:30": "2024-07-10T17:30:00",
    "1890-07-10 10:00:00-00:00:30": "1890-07-10T11:00:30",
    "2024-03-31T00:59:59Z": "2024-03-31T01:59:59",  # the last second of winter
    "2024-03-31T01:00:00Z": "2024-03-31T03:00:00",  # the first of summer
    "2024-03-31T02:30:00": "2024-03-31T02:30:00",  # there is no such time, and it stays what it says
    "2024-10-27T00:30:00Z": "2024-10-27T02:30:00",  # the hour that happens twice
    "2024-10-27T01:30:00Z": "2024-10-27T02:30:00",
    "2024-10-27T02:30:00+02:00": "2024-10-27T02:30:00",
    "2024-10-27T02:30:00+01:00": "2024-10-27T02:30:00",
    "1969-12-31T23:59:59.5": "1969-12-31T23:59:59",
    "1969-12-31T23:30:00Z": "1970-01-01T00:30:00",
    "0001-01-01": "0001-01-01T00:00:00",
    "9999-12-31T23:59:59": "9999-12-31T23:59:59",
    "12024-01-10T10:00:00": "12024-01-10T10:00:00",
    "12024-01-10T10:00:00Z": "12024-01-10T11:00:00",
}
REFUSED = [
    text
    for line in """
2024-07-10 10:00:00 Europe/Berlin ; 2024-07-10T10:00:00+02:00[Europe/Berlin] ; 2024-07-10 10:00:00 CEST
2024-07-10 10:00:00 EST ; 2024-07-10 10:00:00 UTC+2 ; 2024-07-10 10:00:00 GMT+02:00 ; 2024-07-10 10:00:00 PM
2024-07-10 10:00:00+2 ; 2024-07-10 10:00:00+25:00 ; 2024-07-10 10:00:00 +02:00 UTC ; 2024-07-10+02:00 ; 2024-07-10Z
2024-02-30 10:00:00 ; 2023-02-29 ; 2024-13-01 ; 2024-00-10 ; 2024-07-10 24:00:00 ; 2024-07-10 10:60:00
2024-07-10 10:00:60 ; 2024-07-10T ; 2024-07-10T10 ; 20240710 ; 20240710T100000 ; 2024-W28-3 ; 2024-192
10.07.2024 10:00 ; 07/10/2024 10:00 ; 24-07-10 ; -2024-07-10 ; 44-03-15 (BC) ; infinity ; epoch ; now ; today
1720605600 ; 1.7206056e9 ; 12:30 ; gestern ; ٢٠٢٤-07-10
""".strip().splitlines()
    for text in line.split(" ; ")
]


def express_seconds(text):
    return int(np.datetime64(text, "s").astype(np.int64))


def normalised(source, schema, folder, engine="duckdb"):
    """The rows that preparation makes of a log, in an order of their own."""
    with open_engine(engine, folder) as opened:
        table = normalise_events(open_table(source, opened, "event"), schema).to_pyarrow()
    return table.sort_by([(name, "ascending") for name in table.column_names])


def prepared_seconds(texts, folder, engine):
    """What preparation reads of each text; an error where it is refused."""
    log = pa.table({"user": [f"{place:03}" for place in range(len(texts))], "at": texts})
    for name in ("session", "kind", "item", "group", "flag", "price"):
        log = log.append_column(name, pa.nulls(len(log), pa.float64() if name == "price" else pa.string()))
    pq.write_table(log, folder / "log.parquet")
    found = normalised(folder / "log.parquet", schema_with(time_zone=BERLIN), folder, engine)
    return found["second"].to_pylist()


def test_preparation_converts_text(tmp_path):
    found = prepared_seconds(list(READ), tmp_path, "duckdb")
    assert dict(zip(READ, found, strict=True)) == {text: express_seconds(local) for text, local in READ.items()}


@pytest.mark.parametrize("text", REFUSED)
def test_preparation_refuses_what_it_would_have_to_guess(text, tmp_path):
    with pytest.raises(ValueError, match="'at' has 1 values that cannot be read, such as .*a zone as Z, UTC or an"):
        prepared_seconds(["2024-07-10", text], tmp_path, "duckdb")


def test_spark_reads_and_refuses_the_same(spark, tmp_path):
    found = prepared_seconds(list(READ), tmp_path, "spark")
    assert dict(zip(READ, found, strict=True)) == {text: express_seconds(local) for text, local in READ.items()}
    with pytest.raises(ValueError, match=f"'at' has {len(REFUSED)} values that cannot be read"):
        prepared_seconds(["2024-07-10", *REFUSED], tmp_path, "spark")


@pytest.mark.parametrize(("text", "local"), READ.items())
def test_the_extractor_converts_text(text, local):
    assert to_seconds(text, read_zone(BERLIN)) == express_seconds(local)


@pytest.mark.parametrize("text", REFUSED)
def test_the_extractor_refuses_what_preparation_refuses(text):
    with pytest.raises(ValueError, match="which is no time; .*a zone as Z, UTC or an offset"):
        to_seconds(text, read_zone(BERLIN))


ZONES = [BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Monrovia"]


@pytest.mark.parametrize("zone", ZONES)
def test_moments_are_those_of_the_time_zone_database(zone):
    first, last = express_seconds("1965-01-01"), express_seconds("2030-01-01")
    steps = offset_steps(ZoneInfo(zone), [(first, last)])
    generator = np.random.default_rng(0)
    near = [start + shift for start, _ in steps[1:] for shift in (-1, 0, 1)]
    for second in [*generator.integers(first, last, 200).tolist(), *near]:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
        local = express_seconds(moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None).isoformat())
        assert second + sum(change for start, change in steps if second >= start) == local
        for value in (moment, pd.Timestamp(moment), moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S} UTC"):
            assert to_seconds(value, ZoneInfo(zone)) == local


@pytest.mark.parametrize("year", [1969, 1955, 1899, 1600, 3])
def test_before_1970_hour_and_weekday_are_those_of_the_calendar(tmp_path, year):
    times = [datetime(year, 1, 1) + timedelta(hours=int(7.3 * place)) for place in range(60)]
    log = pa.table({"who": ["a", "b"] * 30, "when": pa.array(times, pa.timestamp("us")), "item": ["x", "y", "z"] * 20})
    schema = {"customer": "who", "time": "when", "tasks": ["item"], "cutoffs": "leave_one_out"}
    schema["features"] = [{"name": "item"}, {"name": "hour", "kind": "hour"}, {"name": "day", "kind": "weekday"}]
    run(tmp_path, log, EventSchema.from_dict(schema))
    extractor = load_extractor(tmp_path)
    for customer, row in read_rows(tmp_path).items():
        own = times["ab".index(customer) :: 2]
        assert row["feature_hour"] == [2 + time.hour for time in own]
        assert row["feature_day"] == [2 + time.weekday() for time in own]
        encoded = extractor.encode({"events": [{"when": time, "item": "x"} for time in own]})
        assert list(encoded["feature_hour"]) == row["feature_hour"] and list(encoded["times"]) == row["times"]


@pytest.mark.parametrize("late", ["12024-05-02 10:00:00", "9999-12-31 10:00:00", "2124-05-02 10:00:00Z"])
def test_a_time_of_the_future_is_told(tmp_path, caplog, late):
    log = make_log()
    log["at"] = log["at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    run(tmp_path, log, name="as_of")
    assert "which is not yet" not in caplog.text
    log.loc[3, "at"] = late
    run(tmp_path, log, schema_with(time_zone=BERLIN), name="late")
    assert "which is not yet" in caplog.text


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
    expected = normalised(log.assign(at=local), schema, tmp_path)
    assert normalised(tmp_path / "log.parquet", schema, tmp_path) == expected
    if kind.tz:
        zoned = log.assign(at=log["at"].dt.tz_localize("UTC").dt.tz_convert(kind.tz))
        assert normalised(zoned, schema, tmp_path) == expected


def test_the_zone_of_a_session_does_not_count(tmp_path):
    log = make_log()
    moments = with_times(log, pa.timestamp("us", "UTC"))
    texts = moments.set_column(1, "at", pa.array(log["at"].dt.strftime("%Y-%m-%d %H:%M:%S")))
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone='America/New_York'")
    for name, source in (("moments", moments), ("texts", texts)):
        pq.write_table(source, tmp_path / f"{name}.parquet")
        with open_engine(connection, tmp_path):
            table = open_table(connection.read_parquet(tmp_path / f"{name}.parquet"), connection, "event")
            found = normalise_events(table, schema_with()).to_pyarrow()
        found = found.sort_by([(name, "ascending") for name in found.column_names])
        assert found == normalised(log, schema_with(), tmp_path)
    assert connection.raw_sql("SELECT current_setting('TimeZone')").fetchone() == ("America/New_York",)


def without(table, *places, kind=None):
    """The table without any value in some of its columns."""
    for place in places:
        table = table.set_column(table.column_names.index(place), place, pa.nulls(len(table), kind or pa.null()))
    return table


@pytest.mark.parametrize("place", ["item", "group", "price", "flag", "session"])
@pytest.mark.parametrize("form", ["file", "some of the files", "frame"])
def test_a_column_without_any_value_is_missing_everywhere(tmp_path, place, form):
    table = pa.Table.from_pandas(make_log(), preserve_index=False)
    cut = len(table) // 2 if form == "some of the files" else len(table)
    first, second, kind = table.slice(0, cut), table.slice(cut), table.schema.field(place).type
    source, expected = without(first, place), pa.concat_tables([without(first, place, kind=kind), second])
    if form != "frame":
        (tmp_path / "log").mkdir()
        pq.write_table(source, tmp_path / "log" / "a.parquet")
        if len(second):
            pq.write_table(second, tmp_path / "log" / "b.parquet")
        source = tmp_path / "log"
    assert normalised(source, schema_with(), tmp_path) == normalised(expected, schema_with(), tmp_path)


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_spark_reads_files_of_which_some_hold_nothing(spark, tmp_path, names):
    table = pa.Table.from_pandas(make_log().astype({"at": "datetime64[us]"}), preserve_index=False)
    (tmp_path / "log").mkdir()
    for name, rows in zip(names, (table, without(table, "item", "group", "price", "session")), strict=True):
        pq.write_table(rows, tmp_path / "log" / f"{name}.parquet")
    found = [normalised(tmp_path / "log", schema_with(), tmp_path, engine) for engine in ("duckdb", "spark")]
    assert found[0].to_pylist() == found[1].to_pylist() and len(found[0]) == 2 * len(table)


@pytest.mark.parametrize("place", ["user", "at", "kind"])
def test_a_column_that_must_have_values_and_has_none_is_refused(tmp_path, place):
    pq.write_table(without(pa.Table.from_pandas(make_log(), preserve_index=False), place), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="kind" if place == "kind" else f"'{place}' is null in"):
        run(tmp_path, tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="Every event was dropped" if place != "kind" else "kind"):
        run(tmp_path, tmp_path / "log.parquet", schema_with(on_null="drop"))
