# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of a log: folders, stores and CSV in every form are read alike; what is bad is named by file and line."""

import bz2
import gc
import gzip
import io
import lzma
import re

import duckdb
import fsspec
import ibis
import pyarrow as pa
import pytest
import yaml
from synthetic_log import load_extractor, make_log, make_profile, read_rows, run, schema_with, write_months

from modeling_mcm.data import EventSchema
from modeling_mcm.data.schema import TextFormat
from modeling_mcm.frames import read_frame
from modeling_mcm.preparation import prepare, sources
from modeling_mcm.preparation.engine import open_engine
from modeling_mcm.preparation.sources import InputFiles, SourceTable, describe

HEADING = "user,at,item,price\n"
GOOD = "".join(f"u{place:03},2024-0{1 + place % 4}-0{1 + place % 9},i{place % 7},{place}.5\n" for place in range(50))
TEXT = HEADING + GOOD
# A bad line, and what is said of it; the last two are the file's last lines.
BAD = r"""
u900,2024-01-01\n                 -> line 52: 2 fields were found, and the heading has 4 \(delimiter ','\)
u900,2024-01-01,i1,1,x\n          -> line 52: 5 fields were found
   \n                             -> line 52: 1 fields were found
"u900,2024-01-01,i1,1\n           -> line 52: a quote opens a field and does not close
"u900"x,2024-01-01,i1,1\n         -> line 52: ',' expected after
u900,"2024-01-01\nu901,2024-01-01,i1,1\n",i1,1,x\n -> line 52: 5 fields
caf\xe9,2024-01-01,i1,1\n         -> line 52: byte 0xe9 is no UTF-8
u9\x0000,2024-01-01,i1,1\n        -> line 52: a null byte, which no text has
u9\r00,2024-01-01,i1,1\n          -> line 52: a carriage return stands inside a field
u900,2024-01-                     -> line 102: 2 fields 
"u900,2024-01-01,i1,1             -> line 102: a quote opens 
""".strip("\n").splitlines()
STRAY_QUOTE = '"u900,2024-01-01,i1,1\n'
SCHEMA = yaml.safe_load("""
customer: user
time: at
tasks: [item]
features: [{name: item}, {name: price, kind: numeric}]
cutoffs: {validation: 2024-03-01, test: 2024-04-01}
""")


def encoded(*parts):
    return b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)


def unescaped(text):
    return text.encode().decode("unicode_escape").encode("latin-1")


def schema(**changes):
    return EventSchema.from_dict(SCHEMA | changes)


def values(path, text=None):
    """The rows that are read, and how many lines were left out."""
    table = SourceTable(path, "event", text=text)
    return [row for block in table.blocks(table.names) for row in block.to_pylist()], table.dropped


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_named_or_dropped_and_counted(tmp_path, bad):
    line, message = bad.split(" -> ")
    line = unescaped(line.rstrip())
    path = tmp_path / "log.csv"
    path.write_bytes(encoded(TEXT, *((line, GOOD) if line.endswith(b"\n") else (GOOD, line))))
    with pytest.raises(ValueError, match=rf"log\.csv, {message}.*on_bad_row: drop") as raised:
        values(path)
    assert "\n" not in str(raised.value)
    found, dropped = values(path, TextFormat(on_bad_row="drop"))
    path.write_bytes(encoded(TEXT, GOOD))
    assert (found, dropped) == (values(path)[0], 1)


@pytest.mark.parametrize("tail", ["", 'u1,2024-01-01,"i1",1\n', '"u1",2024-01-01,i1,1\n'])
@pytest.mark.parametrize("times", [4, 400])
def test_a_stray_quote_costs_one_line_however_far_the_next_quote_is(tmp_path, tail, times):
    path = tmp_path / "log.csv"
    path.write_text(HEADING + STRAY_QUOTE + GOOD * times + tail)
    found, dropped = values(path, TextFormat(on_bad_row="drop"))
    assert (len(found), dropped) == (50 * times + bool(tail), 1)
    with pytest.raises(ValueError, match="line 2: (a quote opens a field and does not close|',' expected after)"):
        values(path)


def test_lines_are_counted_across_lines_in_quotes(tmp_path):
    rows = 'u1,2024-01-01,"a\nb\r\nc",1\n' * 200
    (tmp_path / "log.csv").write_text(f"\n{HEADING}{rows}u2\n", newline="")
    with pytest.raises(ValueError, match="line 603: 1 fields were found"):
        values(tmp_path / "log.csv")


def test_bad_lines_and_values_are_counted_in_the_manifest(tmp_path, caplog):
    path = tmp_path / "log.csv"
    bad = 'u000,gestern,i1,1\nu000,2024-01-01,i1,dear\nu000,2024-01-01\n"u000,2024-01-01,i1,1\n'
    path.write_text(HEADING + bad + GOOD)
    dropping = schema(on_bad_row="drop", min_history=1)
    counts = prepare(path, dropping, tmp_path / "out").counts
    assert (counts["dropped_bad"], counts["rows"], counts["events"]) == (4, 50, 50)
    assert "2 lines of " in caplog.text and "the first: line 4: 2 fields were found" in caplog.text
    assert "'at' has 1 values that cannot be read, such as: found 'gestern', which is no time" in caplog.text
    path.write_text(TEXT)
    prepare(path, dropping, tmp_path / "good")
    assert read_rows(tmp_path) == read_rows(tmp_path, "good")
    path.write_text(HEADING + bad)
    with pytest.raises(ValueError, match="is empty; it needs at least one row besides the 4 that"):
        prepare(path, dropping, tmp_path / "none")


def damaged(data):
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 8]) + data[middle + 8 :]


LONG = encoded(HEADING, *(f"u{place},2024-01-01,i{place * 7919 % 1013},{place}\n" for place in range(9000)))
PARQUET = make_log().to_parquet()
# What log.csv holds, and what is said of it
TEXTS = r"""
 -> log.csv is empty; it needs a heading and at least one row
\n\r\n\n -> log.csv is empty; it needs a heading
user,at,item,price -> event table is empty
\xff\xfeu\x00s\x00e\x00r\x00 -> line 1: a null byte.* if the file is UTF-16
PAR1\x15\x00\x15 -> log.csv, line 1: a null byte
user,at,item,caf\xe9\nu1,2024-01-01,i1,1\n -> line 1: byte 0xe9 is no UTF-8
"user,at,item,price\nu1,2024-01-01,i1,1\n -> line 1: a quote opens a field and does not
user,at,item,price\ru1,2024-01-01,i1,1\r -> line 1: a carriage return stands
u1,2024-01-01,i1,1\nu1,2024-01-01,i1,1\n -> no column 'user'
user,at,item,price,item\nu1,2024-01-01,i1,1,i1\n -> has 2 columns 'item'
""".strip("\n").splitlines()
FILES = [("log.csv", unescaped(text), message) for text, message in (line.split(" -> ") for line in TEXTS)]
FILES += [
    ("log.csv.gz", gzip.compress(LONG)[:-4], "log.csv.gz is cut off or damaged after line [0-9]"),
    ("log.csv.gz", damaged(gzip.compress(LONG)), "log.csv.gz.* line "),
    ("log.csv.xz", lzma.compress(LONG)[:-10], "xz is cut off or damaged after line"),
    ("log.csv.zst", pa.compress(LONG, "zstd", asbytes=True)[:-10], "zst is cut off or damaged after"),
    (
        "log.csv",
        encoded(HEADING, f'u1,2024-01-01,"{"x" * 2_000_000}",1\n'),
        "line 2: a field has more than 131,072 char",
    ),
    (
        "log.csv",
        encoded(HEADING, 'u1,2024-01-01,"', "x\n" * 90_000),
        "line 2: a quote .* does not close within 131,072",
    ),
    ("log.csv.gz", gzip.compress(b"", mtime=0), "log.csv.gz is empty; it needs a heading"),
    ("log.xlsx", b"x", "neither .parquet, .csv"),
]


@pytest.mark.parametrize(("name", "data", "message"), FILES)
def test_a_file_that_is_no_text_is_named(tmp_path, name, data, message, monkeypatch):
    # zstandard, which fsspec uses where it is installed, ends a file that is cut as if it were whole
    monkeypatch.setitem(fsspec.compression.compr, "zstd", lambda file, **_: io.BytesIO(encoded(TEXT)))
    monkeypatch.setitem(fsspec.utils.compressions, "zst", "zstd")
    (tmp_path / name).write_bytes(data)
    for on_bad_row in ("error", "drop")[: 1 if "line 2" in message else 2]:
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path / name, schema(on_bad_row=on_bad_row), tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == [name]


SEVERAL = {
    "a column that is absent": ({"b.csv": "user,at,price\nu1,2024,1\n"}, "'item' .*/a.csv and absent in .*/b.csv"),
    "a bad line": ({"b.csv": f"{HEADING}u1,2024-01-01,i1,1\nu1\n"}, "b.csv, line 3: 1 fields were found"),
    "Parquet beside CSV": ({"z.parquet": PARQUET}, "files of several kinds, .*/a.csv and .*/z.parquet"),
    "CSV beside TSV": ({"b.tsv": TEXT}, "files of several kinds"),
}


@pytest.mark.parametrize(("files", "message"), SEVERAL.values(), ids=SEVERAL.keys())
def test_what_is_wrong_with_one_of_several_files_is_named(tmp_path, files, message):
    (tmp_path / "log").mkdir()
    for name, text in {"a.csv": TEXT, **files}.items():
        (tmp_path / "log" / name).write_bytes(encoded(text))
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "log", schema(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_of_csv_files_is_read_with_its_parts_and_in_any_order_of_columns(tmp_path):
    log = make_log()
    for month, part in log.groupby(log["at"].dt.month):
        folder = tmp_path / "log" / f"month={month:02}"
        folder.mkdir(parents=True)
        columns = sorted(part.columns, reverse=bool(month % 2))
        part[columns].to_csv(folder / ("part.csv", "part.csv.gz")[month % 2], index=False, sep=",;"[month % 2])
    (tmp_path / "log" / "_SUCCESS.csv").touch()
    changed = schema_with(features=[*schema_with().to_dict()["features"], {"name": "month"}])
    run(tmp_path, tmp_path / "log", changed)
    # In a CSV a boolean is the text that pandas writes.
    frame = log.assign(month=log["at"].dt.strftime("%m"), flag=log["flag"].astype(str))
    run(tmp_path, frame, changed, name="frame")
    assert read_rows(tmp_path) == read_rows(tmp_path, "frame")
    assert "01" in load_extractor(tmp_path).vocabularies["month"]  # and not "1"


DIALECTS = {  # a row as it is written, the format that a schema gives, and the row's values
    "quotes": ('"say ""x""","x\ny","\r\n",\n', {}, ['say "x"', "x\ny", "\r\n"]),
    "semicolons": ("say \"x\";'x';,;\n", {}, ['say "x"', "'x'", ","]),
    "a caret": ('"say ""x"""^x^;^\n', {"delimiter": "^"}, ['say "x"', "x", ";"]),
    "single quotes": ("'say ''x''','x,y',\"z,\n", {"quote": "'"}, ["say 'x'", "x,y", '"z']),
    "no quotes": ('"say","x",z,\n', {"quote": ""}, ['"say"', '"x"', "z"]),
    "an escape": ('"say \\"x\\"","x,y",z,\n', {"escape": "\\"}, ['say "x"', "x,y", "z"]),
}


@pytest.mark.parametrize(("row", "options", "fields"), DIALECTS.values(), ids=DIALECTS)
def test_dialects_are_read(tmp_path, monkeypatch, row, options, fields):
    monkeypatch.setattr(sources, "ROWS_PER_BLOCK", 2)
    names = ["user", "at", "item", "price"]
    (tmp_path / "log.csv").write_text(f"{row[-2].join(names)}\n{row * 5}", newline="")
    expected = [dict(zip(names, [*fields, None], strict=True))] * 5
    assert values(tmp_path / "log.csv", TextFormat(**options)) == (expected, 0)


PACKED = [(".csv", bytes), (".tsv", bytes), (".CSV.GZ", gzip.compress), (".csv.bz2", bz2.compress)]
PACKED += [(".csv.xz", lzma.compress), (".csv.zst", lambda data: pa.compress(data, "zstd", asbytes=True))]


@pytest.mark.parametrize("mark", ["\ufeff", ""], ids=["a byte order mark", "no mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["an end of the last line", "none"])
@pytest.mark.parametrize(("suffix", "pack"), PACKED)
def test_the_same_rows_in_every_wrapping(tmp_path, mark, end, last, suffix, pack):
    text = mark + TEXT.replace("\n", end)
    text = text if last else text.removesuffix(end)
    path = tmp_path / f"log{suffix}"
    path.write_bytes(pack(text.replace(",", "\t" if suffix == ".tsv" else ",").encode()))
    found, _ = values(path)
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/log{suffix}", path.read_bytes())
    assert values(f"memory://{tmp_path.name}/log{suffix}") == (found, 0)
    assert [list(row.values()) for row in found] == [line.split(",") for line in GOOD.splitlines()]


def test_a_bad_line_of_a_profile_is_always_an_error(tmp_path):
    make_log().to_parquet(tmp_path / "log.parquet")
    (tmp_path / "people.csv").write_text("user,age,income\n1,old,1\n2,old\n")
    with pytest.raises(ValueError, match="profile file .*people.csv, line 3: 2 fields were found"):
        prepare(tmp_path / "log.parquet", schema_with(on_bad_row="drop"), tmp_path / "out", tmp_path / "people.csv")


@pytest.fixture
def store():
    """A store of fsspec's that is in memory, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_folders_lists_and_addresses_give_the_same_rows(store, tmp_path):
    log = make_log()
    run(tmp_path, log, name="frame")
    write_months(log, tmp_path / "log")
    write_months(log, "memory://bucket/log")
    for name in ("_SUCCESS", ".part.parquet.crc", "_temporary.parquet"):
        (tmp_path / "log" / name).write_text("of an engine")
    folder, files = tmp_path / "log", [str(path) for path in sorted((tmp_path / "log").glob("*/*.parquet"))]
    several = ["memory://bucket/log/month=01", *(f"{folder}/month={month:02}" for month in range(2, 6))]
    for place, source in enumerate((folder, f"file://{folder}", "memory://bucket/log", files, several)):
        run(tmp_path, source, name=str(place))
        assert read_rows(tmp_path, str(place)) == read_rows(tmp_path, "frame"), source


def test_parts_of_a_path_are_columns():
    files = InputFiles("/log=1", (), None)
    path = "/log=1/place=a%20b/day=__HIVE_DEFAULT_PARTITION__/month=01/part=1.csv"
    assert files.path_columns(path) == {"place": "a b", "day": None, "month": "01"}


def test_what_is_wrong_with_one_file_of_many_is_named(store, tmp_path):
    write_months(make_log(), tmp_path / "log")
    (tmp_path / "empty").mkdir()
    (tmp_path / "log.csv").write_text("user\n1\n")
    cut = tmp_path / "log" / "month=03" / "part.parquet"
    cut.write_bytes(cut.read_bytes()[:-9])
    store.pipe("/bucket/cut.parquet", b"PAR1")
    for source, error, message in (
        (tmp_path / "log", ValueError, "month=03/part.parquet is not a whole Parquet file"),
        ("memory://bucket/cut.parquet", ValueError, "memory:///bucket/cut.parquet is not a whole Parquet file"),
        ("memory://bucket/none", FileNotFoundError, "memory://bucket/none does not exist"),
        (tmp_path / "none.parquet", FileNotFoundError, "does not exist"),
        (tmp_path / "empty", ValueError, "empty is neither .parquet, .csv nor .tsv, nor a folder"),
        ([tmp_path / "log", tmp_path / "log.csv"], ValueError, "files of several kinds"),
        ("carrier://pigeon", ValueError, "carrier"),
    ):
        with pytest.raises(error, match=message):
            SourceTable(source, "event")


def test_a_type_that_changes_between_files_is_refused_where_it_is_read(tmp_path):
    log = make_log()
    log.to_parquet(tmp_path / "a.parquet")
    log.astype({"price": str}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="'price' of the event files is double in .*a.parquet and string in .*b.parq"):
        SourceTable(tmp_path, "event", ["price"])
    SourceTable(tmp_path, "event", ["item"])


def test_an_error_of_duckdb_is_of_the_input_where_it_reads_the_input(tmp_path):
    make_log().to_parquet(tmp_path / "log.parquet")
    table = ibis.duckdb.connect().read_parquet(tmp_path / "log.parquet")
    (tmp_path / "log.parquet").unlink()
    with pytest.raises(ValueError, match="event table of DuckDB can't be read .*No files found"):
        run(tmp_path, table)
    with pytest.raises(duckdb.Error, match="syntax error"), open_engine("duckdb", tmp_path) as engine:
        engine.raw_sql("SELEKT 1")


def test_what_was_read_is_told_apart(store, tmp_path):
    write_months(make_log(), "memory://bucket/log")
    profile = tmp_path / "profile.parquet"
    make_profile().to_parquet(profile)
    for source in ("memory://bucket/log", [tmp_path, profile]):
        assert describe(source) == describe(source) is not None
    assert describe(make_log()) is None and describe("memory://bucket/none") is None
    first = prepare("memory://bucket/log", schema_with(), tmp_path / "out", profile=profile)
    options = {"profile": profile, "reuse": True}
    assert prepare("memory://bucket/log", schema_with(), tmp_path / "out", **options) == first
    make_log(seed=1).to_parquet("memory://bucket/log/month=03/part.parquet")
    with pytest.raises(FileExistsError, match="another input made it"):
        prepare("memory://bucket/log", schema_with(), tmp_path / "out", **options)


def test_a_file_under_two_names_is_told(tmp_path, caplog):
    (tmp_path / "shop=a").mkdir()
    for name in ("shop=a/a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text(TEXT)
    describe([tmp_path])
    (said,) = caplog.messages  # rows of another folder are others
    assert re.search(r"/b.csv and \S+/c.csv have the same bytes: each of their events counts twice", said)


def test_a_database_is_closed_when_its_table_was_read(tmp_path):
    log, file = make_log(), tmp_path / "shop.duckdb"
    with duckdb.connect(file) as connection:
        connection.register("frame", log)
        connection.sql("CREATE TABLE events AS SELECT * FROM frame")
    gc.disable()  # which would close it later
    try:
        prepare(f"duckdb://{file}#events", EventSchema.from_dict(SCHEMA), tmp_path / "out")
        read_frame(f"duckdb://{file}#events")
        with pytest.raises(ValueError, match="can't be opened"):
            SourceTable(f"duckdb://{file}#nothing", "event")
        duckdb.connect(file).close()  # which fails while somebody else reads it
    finally:
        gc.enable()
