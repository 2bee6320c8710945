# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A log means the same wherever it is read: as a file or a frame, when a schema is guessed, prepared and encoded."""

from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from synthetic_log import check_rows, read_rows

from modeling_mcm.data import EventSchema, read_known
from modeling_mcm.data.guess_times import find_time_format, warn_of_late_event
from modeling_mcm.data.guessing import FrameReader
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.events_mcm import to_id, to_text, write_times
from modeling_mcm.frames import read_frame
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.sources import SourceTable

ROWS = 120
# Fields of a column
COLUMNS = f"""
NA null NULL nan N/A None #N/A x EMPTY
1234567890123456781 1234567890123456782 EMPTY
{"1" * 30} {"1" * 29}2
1e5 100000 2
1.5 1.50 2
007 7 -0
true True false
1 -2.5 1e-07 EMPTY
""".strip().splitlines()


@pytest.mark.parametrize("line", COLUMNS)
def test_every_reader_of_a_csv_file_keeps_what_it_says(tmp_path, line):
    fields = line.replace("EMPTY", "").split(" ")
    path = tmp_path / "log.csv"
    path.write_text("id,value\n" + "".join(f"{place},{field}\n" for place, field in enumerate(fields)))
    expected = [field or None for field in fields]
    table = SourceTable(path, "event")
    assert [value for block in table.blocks(["value"]) for value in block["value"].to_pylist()] == expected
    for frame in (read_frame(path), read_frame([str(path)]), read_table_file(path)):
        assert [*map(to_text, frame["value"])] == expected


def test_whole_numbers_beside_a_missing_one_are_exact_in_every_table(tmp_path):
    table = pa.table({"code": [2**62 + 1, None, 2**62 + 2]})
    pa.parquet.write_table(table, tmp_path / "codes.parquet")
    for frame in (read_frame(table), read_frame(tmp_path), read_table_file(tmp_path / "codes.parquet")):
        assert frame["code"].dropna().tolist() == [2**62 + 1, 2**62 + 2]


def make_busy(**columns):
    """Events of five customers, several a day, some of a night; at each time with a fraction that orders two."""
    generator = np.random.default_rng(0)
    seconds = np.sort(generator.integers(0, 40 * 86400, ROWS // 2)).repeat(2)
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(seconds * 1000 + np.tile([100, 900], ROWS // 2), unit="ms")
    user = generator.integers(0, 5, ROWS // 2).repeat(2)
    return pd.DataFrame({"user": user, "at": times, "item": np.tile(["y", "x"], ROWS // 2)} | columns)


FORMS = {
    "aware": lambda times: times,
    "text": lambda times: times.map(datetime.isoformat),
    "objects": lambda times: times.astype(object),
    "Arrow": lambda times: times.astype(
        pd.ArrowDtype(pa.timestamp("us", str(times.dt.tz).removeprefix("UTC") or "UTC"))
    ),
}


@pytest.mark.parametrize("zone", ["+05:30", "-03:00", "Europe/Berlin", "UTC"])
@pytest.mark.parametrize("form", FORMS)
def test_days_and_the_order_within_a_second_are_the_same_at_every_entrance(tmp_path, zone, form):
    log = make_busy()
    local = log["at"].dt.tz_localize(zone)
    log["at"] = FORMS[form](local).sample(frac=1, random_state=0)
    shuffled = log.sample(frac=1, random_state=0)
    reader = FrameReader.guess(shuffled)
    schema = reader.schema
    is_text = form == "text" and zone == "Europe/Berlin"  # which says nothing but its offset
    assert schema.time_zone == ("+01:00" if is_text else zone) and schema.visit == "visit_day"
    prepare(reader.read(shuffled), schema, tmp_path / "out")
    prepare(shuffled, schema, tmp_path / "raw")  # which has no column of days
    rows = check_rows(tmp_path, shuffled)
    assert rows == read_rows(tmp_path, "raw")
    for user, times in local.dt.floor("s").groupby(log["user"]):
        row = rows[str(user)]
        assert row["times"] == ((times.dt.tz_localize(None) - pd.Timestamp(0)) // pd.Timedelta(seconds=1)).tolist()
        assert row["visits"][-1] + 1 == times.dt.date.nunique()
        items = np.array(row["feature_item"]).reshape(-1, 2)
        assert len({*items[:, 0]}) == len({*items[:, 1]}) == 1 and (items[:, 0] != items[:, 1]).all()  # y before x
    written = write_times(log["at"], schema.time_zone)
    assert pd.to_datetime(written, format="ISO8601").tolist() == local.dt.tz_localize(None).tolist()


def test_rows_that_are_left_out_are_left_out_of_the_frame_too(tmp_path, caplog):
    log = make_busy(price=1.5).astype({"at": str, "user": object, "price": object})
    log.loc[3, "at"], log.loc[5, "user"], log.loc[7, "at"], log.loc[9, "price"] = "gestern", None, "2024-02-30", "dear"
    given = {"on_bad_row": "drop", "on_null": "drop", "visit": None, "tasks": ["item"]}
    features = [{"name": "item"}, {"name": "price", "kind": "numeric"}]
    reader = FrameReader.guess(log, given | {"features": features})
    read = reader.read(log)
    assert [*log.index.difference(read.index)] == [3, 5, 7, 9]
    assert "4 rows are left out" in caplog.text and "column 'price' found 'dear'" in caplog.text
    raw, kept = (prepare(frame, reader.schema, tmp_path / name) for frame, name in ((log, "raw"), (read, "out")))
    assert raw.counts["events"] == kept.counts["events"] == 116
    check_rows(tmp_path, read)


def test_an_event_of_a_far_future_is_told_with_its_customer(caplog):
    days = np.arange(1000) * 86400
    for times, is_told in ((days, False), (np.append(days, days[-1] + 3000 * 86400), True), (days[:1], False)):
        caplog.clear()
        warn_of_late_event([f"c{place}" for place in range(len(times))], times)
        assert ("Customer 'c1000' has an event at 1980-" in caplog.text) == is_told


MONEY = {
    "1.234,56": 1234.56,
    "EUR 5": 5,
    "1,234.56 $": 1234.56,
    "Rs. 7": 7,
    "-12,5 €": -12.5,
    "($2.78)": -2.78,
    "-$2.78": -2.78,
    "US$1'250": 1250,
    "$.50": 0.5,
    "1\xa0234,5 zł": 1234.5,
}


@pytest.mark.parametrize("text", MONEY)
@pytest.mark.parametrize("name", ["amount", "Net Sales"])
def test_money_in_text_is_read_and_told(text, name):
    texts = [text, text.replace("5", "6").replace("7", "8")] * (ROWS // 2)
    log = make_busy(item=np.arange(ROWS) % 30, **{name: texts})
    reader = FrameReader.guess(log)
    assert name not in reader.schema.tasks and f"({text!r} is {MONEY[text]:.10g})" in reader.lines[2]
    again = FrameReader.from_dict(reader.to_dict())
    assert again.read(log)[name].head(1).tolist() == [MONEY[text]]
    if not reader.paid:
        assert again.read(log.assign(**{name: "dear"}))[name].tolist() == ["dear"] * ROWS  # which preparation refuses


def test_money_that_can_be_read_in_two_ways_is_asked_and_other_texts_stay():
    log = make_busy(item=np.arange(ROWS) % 30)
    with pytest.raises(ValueError, match="Column 'price' has '1,234', whose mark may be .*no row says which"):
        FrameReader.guess(log.assign(price=["1,234", "7"] * (ROWS // 2)))
    for texts in (["T1", "T2"], ["3 of 4", "4 of 4"], ["2024-03-01", "-"]):
        assert not FrameReader.guess(log.assign(price=texts * (ROWS // 2))).money


def test_what_comes_late_in_a_long_log_decides_too(monkeypatch):
    """Refunds that are negative are not turned into payments because the first rows have none."""
    log = make_busy(item=np.arange(ROWS) % 30, amount=5.0 + np.arange(ROWS) % 2, type="sale")
    monkeypatch.setattr("modeling_mcm.data.guessing.ROWS_READ", ROWS // 4)
    monkeypatch.setattr("modeling_mcm.data.guessing.ROWS_OF_BLOCK", 5)
    late = log.assign(type=np.where(log.index > ROWS - 4, "refund", "sale"))
    late["amount"] *= np.where(late["type"] == "sale", 1, -1)
    reader = FrameReader.guess(late)
    assert reader.lines[2] == "Amount:   'amount'; what is below 0, in 3 rows, was paid back"
    assert reader.read(late)[reader.schema.amount].tolist() == late["amount"].tolist()
    reader = FrameReader.guess(late.assign(amount=log["amount"]))  # the kind alone says so
    assert reader.paid["signs"] == {"refund": -1}


@pytest.mark.parametrize("written", ["1007.0", "1007.00", 1007.0, 1007])
def test_a_customer_is_the_same_however_the_number_is_written(tmp_path, written):
    log = make_busy().assign(user=lambda log: log["user"] + 1005)
    expected = make_busy().assign(user=lambda log: (log["user"] + 1005).astype(str))
    log["user"] = log["user"].map(lambda number: written if number == 1007 else f"{number}")
    log.to_csv(tmp_path / "log.csv", index=False)
    expected.to_csv(tmp_path / "expected.csv", index=False)
    schema = FrameReader.guess(expected).schema
    for place, events in enumerate((expected, log, tmp_path / "log.csv")):
        prepare(events, schema, tmp_path / str(place))
    assert read_rows(tmp_path, "1") == read_rows(tmp_path, "0") == read_rows(tmp_path, "2")
    assert [to_id("007"), to_id("007.0"), to_id("1.5"), to_id(""), to_id("-1.0")] == [
        "007",
        "007.0",
        "1.5",
        None,
        "-1",
    ]


@pytest.mark.parametrize("nobody", [0, -1, "guest", "UNKNOWN", "NULL", 0.0])
def test_a_customer_with_very_many_rows_is_asked_about_and_the_advice_works(nobody):
    number = np.arange(ROWS * 10)
    log = pd.concat([make_busy()] * 10, ignore_index=True).assign(user=number % 49 + 1, item=number % 30)
    assert len(FrameReader.guess(log).lines) == 5
    log = log.assign(user=log["user"].astype(object).where(number % 6 > 0, nobody))
    if isinstance(nobody, float):
        log["user"] = log["user"].astype(float)
    line = FrameReader.guess(log).lines[5]
    assert f"Is {to_text(nobody)!r} one customer? 200 of 1,200 rows are read as such." in line
    events = log
    exec(line[line.index("events = ") :].rstrip("."), scope := {"events": events})
    assert len(scope["events"]) == 1000 and len(FrameReader.guess(scope["events"]).lines) == 5


def test_ids_of_what_one_customer_has_are_no_tasks():
    number = np.arange(20 * ROWS)
    log = pd.concat([make_busy()] * 20, ignore_index=True).assign(userId=number * 7 % 200, item=number % 90)
    log = log.drop(columns="user").assign(
        anonymousId=[f"a{user}" for user in log.index * 7 % 200],
        subscription_id=[f"s{user}-{row % 3}" for row, user in enumerate(log.index * 7 % 200)],
    )
    reader = FrameReader.guess(log)
    assert reader.schema.customer == "userId" and reader.schema.tasks == ("item",)


def test_frames_of_arrow_types_mean_the_same():
    log = make_busy(price=np.arange(ROWS) / 7, code=pd.array([1, None] * (ROWS // 2), "Int64"), paid_at="2024-01-01")
    arrow = log.convert_dtypes(dtype_backend="pyarrow")
    plain, found = (FrameReader.guess(events) for events in (log, arrow))
    assert str(found) == str(plain) and found.schema == plain.schema
    assert found.read(arrow).map(to_text).equals(plain.read(log).map(to_text))


def test_times_beside_texts_of_times_are_read():
    log = make_busy()
    log["at"] = log["at"].astype(object).where(log.index % 3 > 0, log["at"].astype(str))
    zoned = make_busy()["at"].dt.tz_localize("+02:00")
    mixed = zoned.astype(object).where(log.index % 3 > 0, zoned.map(str))
    for times, zone in ((log["at"], "UTC"), (mixed, "+02:00")):
        reader = FrameReader.guess(log.assign(at=times))
        assert write_times(reader.read(log.assign(at=times))["at"], zone) == write_times(make_busy()["at"], "UTC")


DAYS = pd.to_datetime(["2024-03-04", "2024-03-25", "2024-12-01"])
WRITTEN = {
    "numbers": DAYS.strftime("%Y%m%d").astype(int),
    "texts of numbers": DAYS.strftime("%Y%m%d"),
    "seconds": DAYS.astype("datetime64[s]").astype(int),
    "milliseconds": DAYS.astype("datetime64[ms]").astype(int),
    "days of a spreadsheet": [45355, 45376, 45627],
    "day first": DAYS.strftime("%d/%m/%Y"),
    "dates": DAYS.date,
    "a zone": DAYS.tz_localize("America/Lima"),
    "times and texts": [DAYS[0], "2024-03-25", "2024-12-01 00:00:00"],
}


@pytest.mark.parametrize("days", WRITTEN.values(), ids=WRITTEN)
def test_days_that_are_known_are_read_as_the_times_of_a_log_are(tmp_path, days):
    expected = {"sale": [[f"{day:%Y-%m-%d}", f"{day:%Y-%m-%d}", 1.0] for day in DAYS]}
    table = pd.DataFrame({"date": days, "name": "sale"})
    table.to_csv(tmp_path / "known.csv", index=False)
    two = table.rename(columns={"date": "from"}).assign(to=table["date"])
    for known in (table, two, two.to_dict("records"), tmp_path / "known.csv"):
        assert read_known(known) == expected
    events = pd.DataFrame({"user": [1, 2, 1], "date": days})
    reader = FrameReader.guess(events)
    assert [*pd.to_datetime(write_times(reader.read(events)["date"], reader.schema.time_zone))] == [*DAYS]


@pytest.mark.parametrize("columns", [["date"], ["from"], ["to"]])
@pytest.mark.parametrize("days", WRITTEN.values(), ids=WRITTEN)
def test_a_day_of_known_that_is_null_is_told_with_its_row(columns, days):
    table = pd.DataFrame({name: days for name in ("from", "to", *columns)}).assign(name="sale")
    for name in columns:
        table[name] = table[name].where(table.index != 2)
    with pytest.raises(ValueError, match="`known`, row 3: found .*expected a first and a last day.*leave the row out"):
        read_known(table)


def test_days_that_can_be_read_in_two_ways_are_asked():
    with pytest.raises(ValueError, match="`known`: Column 'date' has '04/03/2024', which is 04 March .* or 03 April"):
        read_known([{"date": "04/03/2024", "name": "sale"}])


def make_shop(days=400, seed=0):
    generator = np.random.default_rng(seed)
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(generator.uniform(0, days, 900)), unit="D")
    return pd.DataFrame({"user": generator.integers(0, 60, 900), "at": times, "item": generator.integers(0, 40, 900)})


@pytest.mark.parametrize("odd", [["2034-01-01"], ["1970-01-01"], ["1970-01-01", "2034-01-01"]])
def test_a_time_that_is_wrong_moves_no_cutoff(odd):
    log = make_shop()
    cutoffs = FrameReader.guess(log).schema.cutoffs
    wrong = log.tail(len(odd)).assign(at=pd.to_datetime(odd))
    assert FrameReader.guess(pd.concat([log, wrong], ignore_index=True)).schema.cutoffs == cutoffs


@pytest.mark.parametrize("rows", [3, 4, 7, 20, 60])
@pytest.mark.parametrize("odd", [None, "2034-01-01", "1970-01-01"])
@pytest.mark.parametrize("bursts", [False, True])
def test_each_part_of_a_log_has_events_however_short_it_is(rows, odd, bursts):
    log = make_shop().iloc[:: 900 // rows].head(rows).copy()
    log["user"] = np.arange(rows) % 2
    if bursts:
        log.loc[log.index[: rows // 2], "at"] -= pd.Timedelta(days=3000)
    if odd:
        log.loc[log.index[1], "at"] = pd.Timestamp(odd)
    cutoffs = FrameReader.guess(log).schema.cutoffs
    parts = (log["at"] >= cutoffs["validation"]).astype(int) + (log["at"] >= cutoffs["test"])
    assert {*parts} == {0, 1, 2}


def test_cutoffs_are_those_of_rows_that_count():
    log = make_shop()
    nobody = log.tail(300).assign(user=None, at=log["at"].tail(300) + pd.Timedelta(days=900))
    cutoffs = FrameReader.guess(log).schema.cutoffs
    assert FrameReader.guess(pd.concat([log, nobody], ignore_index=True)).schema.cutoffs == cutoffs


BAD_TIMES = {"numbers": [5, 6, 7], "floats": [5.5, 6, 7], "durations": pd.to_timedelta([5, 6, 7], unit="D")}
BAD_TIMES |= {"zones": ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00+02:00", "2024-01-02T00:00:00Z"]}


@pytest.mark.parametrize("times", BAD_TIMES.values(), ids=BAD_TIMES)
def test_what_is_said_of_times_that_can_not_be_read_works(times):
    events = pd.DataFrame({"user": [1, 2, 3], "at": times})
    with pytest.raises(ValueError, match="Column 'at' has") as raised:
        FrameReader.guess(events)
    exec(str(raised.value)[str(raised.value).index("events['at'] =") :].rstrip("."))
    assert find_time_format(events["at"]) is None


ODD = {
    "more than 64 bits": [10**20, 10**20 + 1, 7],
    "several kinds": [1, "1", True, 2.5, "x"],
    "truth and numbers": [True, 1, 2],
    "decimals and text": [0.1, "0.1", "y"],
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
@pytest.mark.parametrize("column", ["user", "item"])
def test_values_that_arrow_has_no_type_for_are_ids(tmp_path, values, column):
    log = make_busy(**{column: pd.Series([values[place % len(values)] for place in range(ROWS)], dtype=object)})
    schema = {"customer": "user", "time": "at", "features": [{"name": "item"}], "tasks": ["item"], "min_history": 1}
    schema = EventSchema.from_dict(schema | {"cutoffs": {"validation": "2024-01-20", "test": "2024-02-01"}})
    prepare(log, schema, tmp_path / "out")
    reader = FrameReader.guess(log)
    prepare(reader.read(log), schema, tmp_path / "read")
    assert read_rows(tmp_path) == read_rows(tmp_path, "read")
    ids = [*read_rows(tmp_path)] if column == "user" else reader.read(log)["item"].map(to_text).unique()
    assert {*ids} == {*map(to_text, values)}


def test_complex_numbers_and_amounts_that_no_sum_holds_are_refused_by_name(tmp_path):
    log = make_busy()
    with pytest.raises(ValueError, match=r"Column 'item' has values that are neither text nor numbers \(complex\)"):
        FrameReader.guess(log.assign(item=1j))
    schema = {"customer": "user", "time": "at", "tasks": ["item"], "cutoffs": "leave_one_out", "amount": "price"}
    schema = EventSchema.from_dict(schema | {"features": [{"name": "item"}, {"name": "price", "kind": "numeric"}]})
    with pytest.raises(ValueError, match="Column 'item' of the event table: found 1j"):
        prepare(log.assign(item=1j, price=1.0), schema, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"Column 'price' has an amount of 1e\+37, and the largest that can be summed"
    ):
        prepare(log.assign(price=1e37), schema, tmp_path / "out")
