# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A log means the same wherever it is read: as a file or a frame, when a schema is guessed, prepared and encoded."""

from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from synthetic_log import check_rows, read_rows

from modeling_mcm.data import EventSchema
from modeling_mcm.data.guess_times import find_time_format, warn_of_late_event
from modeling_mcm.data.guessing import FrameReader
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.events_mcm import to_text, write_times
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


@pytest.mark.parametrize("text", ["1.234,56", "EUR 5", "1,234.56 $", "Rs. 7", "-12,5 €"])
def test_an_amount_in_text_is_told(text):
    events = make_busy(amount=text, note=np.arange(ROWS) % 3)
    words = FrameReader.guess(events.assign(amount=[text, text.replace("5", "6")] * (ROWS // 2))).lines[2]
    assert words == f"Amount:   none: 'amount' is text such as {text!r}: make it numbers to count it"


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
