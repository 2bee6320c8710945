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
from synthetic_log import check_rows, load_extractor, make_log, make_profile, profiles_of, read_rows, run, schema_with

from modeling_mcm.data import EventSchema
from modeling_mcm.preparation.engine import open_engine
from modeling_mcm.preparation.events import normalise_events
from modeling_mcm.preparation.tables import open_table
from modeling_mcm.preparation.times import offset_steps
from modeling_mcm.times_mcm import read_zone, to_seconds

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
    "1911-05-05T05:05:05": "1911-05-05T05:05:05",
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


def seconds_of(text):
    return int(np.datetime64(text, "s").astype(np.int64))


def normalised(source, schema, folder, engine="duckdb"):
    """The rows that preparation makes of a log, in an order of their own."""
    with open_engine(engine, folder) as opened:
        table = normalise_events(open_table(source, opened, "event"), schema).to_pyarrow()
    return table.sort_by([(name, "ascending") for name in table.column_names])


def prepared_seconds(texts, folder, engine):
    """What preparation reads of each text; an error where it is refused."""
    log = pa.table({"user": [f"{place:03}" for place in range(len(texts))], "at": texts})
    others = {"session": pa.string(), "kind": pa.string(), "item": pa.int64(), "group": pa.string()}
    for name, kind in (others | {"flag": pa.bool_(), "price": pa.float64()}).items():
        log = log.append_column(name, pa.nulls(len(log), kind))
    pq.write_table(log, folder / "log.parquet")
    found = normalised(folder / "log.parquet", schema_with(time_zone=BERLIN), folder, engine)
    return found["second"].to_pylist()


def test_preparation_converts_text(tmp_path):
    found = prepared_seconds(list(READ), tmp_path, "duckdb")
    assert dict(zip(READ, found, strict=True)) == {text: seconds_of(local) for text, local in READ.items()}


@pytest.mark.parametrize("text", REFUSED)
def test_preparation_refuses_what_it_would_have_to_guess(text, tmp_path):
    with pytest.raises(
        ValueError, match="'at' has 1 values that cannot be read, such as .*a zone as Z, UTC or an off"
    ):
        prepared_seconds(["2024-07-10", text], tmp_path, "duckdb")


def test_spark_reads_and_refuses_the_same(spark, tmp_path):
    found = prepared_seconds(list(READ), tmp_path, "spark")
    assert dict(zip(READ, found, strict=True)) == {text: seconds_of(local) for text, local in READ.items()}
    with pytest.raises(ValueError, match=f"'at' has {len(REFUSED)} values that cannot be read"):
        prepared_seconds(["2024-07-10", *REFUSED], tmp_path, "spark")


@pytest.mark.parametrize(("text", "local"), READ.items())
def test_the_extractor_converts_text(text, local):
    assert to_seconds(text, read_zone(BERLIN)) == seconds_of(local)


@pytest.mark.parametrize("text", REFUSED)
def test_the_extractor_refuses_what_preparation_refuses(text):
    with pytest.raises(ValueError, match="which is no time; .*a zone as Z, UTC or an offset"):
        to_seconds(text, read_zone(BERLIN))


@pytest.mark.parametrize(
    "zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Monrovia"]
)
def test_moments_are_those_of_the_time_zone_database(zone):
    """The steps of the offset that SQL gets, and the extractor's conversion, at random seconds and at each step."""
    first, last = seconds_of("1965-01-01"), seconds_of("2030-01-01")
    steps = offset_steps(ZoneInfo(zone), [(first, last)])
    generator = np.random.default_rng(0)
    near = [start + shift for start, _ in steps[1:] for shift in (-1, 0, 1)]
    for second in [*generator.integers(first, last, 200).tolist(), *near]:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
        local = seconds_of(moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None).isoformat())
        assert second + sum(change for start, change in steps if second >= start) == local
        for value in (moment, pd.Timestamp(moment), moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S} UTC"):
            assert to_seconds(value, ZoneInfo(zone)) == local


def texts_without_offset(times, mixed):
    """Times as text: all without an offset, or every third with Z, every third with that of Moscow."""
    texts = times.dt.strftime("%Y-%m-%d %H:%M:%S")
    if mixed:
        texts = texts.mask(times.index % 3 == 1, texts + "Z").mask(times.index % 3 == 2, texts + "+03:00")
    return texts


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "with Z and an offset"])
def test_a_log_of_text_is_prepared_as_the_extractor_reads_it(tmp_path, mixed):
    log = make_log()
    local = log["at"] + pd.Timedelta(days=60)  # from March to July: the clocks change in it
    log["at"] = texts_without_offset(local, mixed)
    run(tmp_path, log, schema_with(time_zone=BERLIN, cutoffs={"validation": "2024-05-01", "test": "2024-06-01"}))
    expected = local.copy()
    if mixed:
        utc = local.mask(log.index % 3 == 2, local - pd.Timedelta(hours=3)).dt.tz_localize("UTC")
        converted = utc.dt.tz_convert(BERLIN).dt.tz_localize(None)
        expected = local.where(log.index % 3 == 0, converted)
    hours = []
    for row in check_rows(tmp_path, log, profiles_of(make_profile())).values():
        hours += [hour for hour, price in zip(row["feature_hour"], row["feature_Type"], strict=True) if price]
    assert sorted(hours) == sorted(2 + expected.dt.hour)


@pytest.mark.parametrize("year", [1969, 1955, 1899, 1600, 3])
def test_before_1970_hour_and_weekday_are_those_of_the_calendar(tmp_path, year):
    times = [datetime(year, 1, 1) + timedelta(hours=int(7.3 * place)) for place in range(60)]
    log = pa.table({"who": ["a", "b"] * 30, "when": pa.array(times, pa.timestamp("us")), "item": ["x", "y", "z"] * 20})
    schema = EventSchema.from_dict(
        {
            "customer": "who",
            "time": "when",
            "features": [{"name": "item"}, {"name": "hour", "kind": "hour"}, {"name": "day", "kind": "weekday"}],
            "tasks": ["item"],
            "cutoffs": "leave_one_out",
        }
    )
    run(tmp_path, log, schema)
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
    run(tmp_path, log, name="now")
    assert "which is not yet" not in caplog.text
    log.loc[3, "at"] = late
    run(tmp_path, log, schema_with(time_zone=BERLIN), name="late")
    assert "which is not yet" in caplog.text


KINDS = {
    f"{unit} {zone or 'without zone'}": pa.timestamp(unit, zone)
    for unit in ("s", "ms", "us", "ns")
    for zone in (None, "UTC", BERLIN, "+05:30")
}


def with_times(log, kind):
    """The log as an Arrow table whose times are moments of UTC in a type."""
    table = pa.Table.from_pandas(log, preserve_index=False)
    return table.set_column(1, "at", pa.array(log["at"].astype("datetime64[ns]")).cast(pa.timestamp("ns")).cast(kind))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_type_of_time_in_parquet_is_read(tmp_path, kind):
    """What pandas writes by default is nanoseconds with a zone; Arrow's `cast` keeps the moment."""
    log = make_log()
    pq.write_table(with_times(log, kind), tmp_path / "log.parquet")
    schema = schema_with(time_zone=BERLIN)
    local = (
        log["at"] if kind.tz is None else log["at"].dt.tz_localize("UTC").dt.tz_convert(BERLIN).dt.tz_localize(None)
    )
    found = normalised(tmp_path / "log.parquet", schema, tmp_path)
    assert found == normalised(log.assign(at=local), schema, tmp_path)


def test_a_frame_with_a_zone_is_read_as_it_says(tmp_path):
    log = make_log()
    schema = schema_with(time_zone=BERLIN)
    zoned = log.assign(at=log["at"].dt.tz_localize(BERLIN, ambiguous=True, nonexistent="shift_forward"))
    assert normalised(zoned, schema, tmp_path) == normalised(log, schema, tmp_path)


def test_the_zone_of_a_session_does_not_count(tmp_path):
    """An Ibis table of a DuckDB whose session is in New York."""
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


@pytest.mark.parametrize("place", ["item", "group", "price", "flag", "session"])
@pytest.mark.parametrize("form", ["file", "some of the files", "frame"])
def test_a_column_without_any_value_is_missing_everywhere(tmp_path, place, form):
    log = make_log()
    table = pa.Table.from_pandas(log, preserve_index=False)
    index = table.column_names.index(place)
    empty = table.set_column(index, place, pa.nulls(len(table)))
    half = len(table) // 2
    cut = half if form == "some of the files" else len(table)
    expected = pa.concat_tables(
        [table.slice(0, cut).set_column(index, place, pa.nulls(cut, table.schema.field(index).type)), table.slice(cut)]
    )
    source = empty
    if form != "frame":
        source = tmp_path / "log"
        source.mkdir()
        pq.write_table(empty.slice(0, cut), source / "a.parquet")
        pq.write_table(table.slice(cut), source / "b.parquet")
        if form == "file":
            (source / "b.parquet").unlink()
    assert normalised(source, schema_with(), tmp_path) == normalised(expected, schema_with(), tmp_path)


@pytest.mark.parametrize("order", [["full", "empty"], ["empty", "full"]])
def test_spark_reads_files_of_which_some_hold_nothing(spark, tmp_path, order):
    table = pa.Table.from_pandas(make_log().astype({"at": "datetime64[us]"}), preserve_index=False)
    empty = table
    for place in ("item", "group", "price", "session"):
        empty = empty.set_column(empty.column_names.index(place), place, pa.nulls(len(table)))
    for name, rows in zip(order, (table, empty) if order[0] == "full" else (empty, table), strict=True):
        (tmp_path / "log").mkdir(exist_ok=True)
        pq.write_table(rows, tmp_path / "log" / f"{order.index(name)}.parquet")
    found = [normalised(tmp_path / "log", schema_with(), tmp_path, engine) for engine in ("duckdb", "spark")]
    assert found[0].to_pylist() == found[1].to_pylist() and len(found[0]) == 2 * len(table)


@pytest.mark.parametrize(
    ("place", "message"), [("user", "'user' is null in"), ("at", "'at' is null in"), ("kind", "kind")]
)
def test_a_column_that_must_have_values_and_has_none_is_refused(tmp_path, place, message):
    table = pa.Table.from_pandas(make_log(), preserve_index=False)
    pq.write_table(
        table.set_column(table.column_names.index(place), place, pa.nulls(len(table))), tmp_path / "log.parquet"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="Every event was dropped" if place != "kind" else "kind"):
        run(tmp_path, tmp_path / "log.parquet", schema_with(on_null="drop"))
