# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers who ask to be forgotten are in no file any more, and the command says so only where it is true."""

import gc
import re
import shutil
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corner_shop import SCHEMA, make_profile
from forked_runs import kill_at
from in_process import call

from modeling_mcm.commands import predict
from modeling_mcm.data import EventSchema, PreparedData, load_prepared
from modeling_mcm.folders import locked
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.refresh import add_events

FORGET = "modeling_mcm.commands.forget"
THEY = ["c05", "c21"]
EVERYWHERE = "--data data --events log --profile profile.parquet"
GONE = "none of the customers is there"


@pytest.fixture(scope="module")
def original(event_log, tmp_path_factory):
    """A folder with a log of two files, its data set, and a list of two customers."""
    place = tmp_path_factory.mktemp("original")
    (place / "log" / "late").mkdir(parents=True)
    early = event_log["when"] < "2017-06-01"
    event_log[early].astype({"who": "category"}).to_parquet(place / "log" / "a.parquet")  # ids may be one
    event_log[~early].to_parquet(place / "log" / "late" / "b.parquet")
    make_profile(event_log).to_parquet(place / "profile.parquet")
    options = {"profile": place / "profile.parquet", "rows_per_shard": 20}
    prepare(place / "log", EventSchema.from_dict(SCHEMA), place / "data", **options)
    (place / "ids.txt").write_text("\n".join([*THEY, ""]))
    return place


@pytest.fixture
def place(original, tmp_path):
    return shutil.copytree(original, tmp_path / "place")


def find_words(place, options):
    """The words of the command, whose files are those of the place."""
    words = f"--customers ids.txt {options}".split()
    return [word if word.startswith("--") or word == "true" else str(place / word) for word in words]


@pytest.fixture
def forget(place, command):
    """A function that runs the script on files of the place; `fails` is what it must say at its end."""
    return lambda options, fails=None: command(FORGET, *find_words(place, options), fails=fails)


def rows(folder):
    return [row for path in sorted(folder.glob("customers*")) for row in pq.read_table(path).to_pylist()]


def customers(folder):
    return [row["customer_id"] for row in rows(folder)]


def bytes_of(place):
    """Every file of the log, the data set and the profile, with links followed."""
    names = ("log", "data", "profile.parquet", "scores")
    files = [path for name in names for path in [place / name, *(place / name).rglob("*")] if path.is_file()]
    return {path: path.read_bytes() for path in files}


def write_scores(place, *names):
    """Predictions of one of the two customers and of another one."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"customer_id": ["c05", "c06"]}), place / name)


def test_they_are_gone_from_data_predictions_log_and_cache(place, forget, save, monkeypatch):
    monkeypatch.setattr("modeling_mcm.data.dataset.ROWS_COPY", place / "cache" / "rows")
    read_before = load_prepared(place / "data")
    options = {"model": save(extended=True), "data": str(place / "data"), "output_dir": str(place / "scores")}
    predict.run(predict.PredictionOptions(**options, rows_per_file=5), predict.EngineOptions())
    before = rows(place / "data")
    everywhere = f"{EVERYWHERE} --predictions scores"
    said = forget(f"{everywhere} --check_only true", fails="not proven that the customers are gone")
    assert said.count("1 of the customers") == 4
    assert read_before["customer_id"][:] != []
    del read_before  # with the rows goes their copy
    gc.collect()
    assert not [*(place / "cache").rglob("*.*")]
    (place / "data" / "page.parquet").write_bytes(b"scores of all")
    assert forget(everywhere).endswith(f"{GONE}\n")
    left = [row["customer_id"] for row in before if row["customer_id"] not in THEY]
    assert customers(place / "scores") == left and len(left) == 32
    for raw in ("log", "profile.parquet"):
        assert set(pd.read_parquet(place / raw)["who"]) == set(left)
    assert not (place / "data" / "page.parquet").exists()
    assert load_prepared(place / "data")["customer_id"][:] == left
    assert rows(place / "data") == [row for row in before if row["customer_id"] not in THEY]
    files = bytes_of(place)
    assert "'c21' (deleted before, or misspelt)" in forget(everywhere, fails="found nowhere: 'c05'")
    assert bytes_of(place) == files
    assert forget(f"{everywhere} --check_only true").endswith(f"{GONE}\n")


# A file in scores/, what it holds, and what is said of it
LEFT = """
old/x.parquet -> PAR1 cut -> can't be read
.customers-0.parquet.7.partial -> c05 -> neither Parquet
backup.zip -> c05 -> neither Parquet
a.lock -> c05 -> neither Parquet
a.json -> {"notes": [{"c05": 1}]} -> 1 of the customers
b.json -> ["c21", {"of": "c05"}] -> 2 of the customers
c.json -> {"id": 1234} -> 1 of the customers
d.json -> {"id": "c05" -> can't be read
e.json -> DEEP -> can't be read
""".strip().splitlines()


def test_what_is_left_is_named(place, forget):
    write_scores(place, "scores/hidden.parquet", "scores/old/hidden.parquet")
    (place / "ids.txt").write_text("\n".join([*THEY, "1234"]))
    (place / "scores" / "f.json").write_text('{"c06": [1, null, true]}')
    left = [line.split(" -> ") for line in LEFT]
    for name, text, _ in left:
        (place / "scores" / name).write_text(text.replace("DEEP", "[" * 10**5))
    said = forget("--predictions scores", fails="not proven that the customers are gone")
    assert "scores/old/hidden.parquet: 1 of the customers" in said and "f.json" not in said
    assert [name for name, _, reason in left if f"scores/{name}: {reason}" not in said] == []


def test_numbers_and_values_of_features_are_no_customers_but_values_of_the_customers_column_are(place, forget):
    log = pd.concat(map(pd.read_parquet, [place / "log" / "a.parquet", place / "log" / "late" / "b.parquet"]))
    numbers = {name: str(index) for index, name in enumerate(sorted(log["who"].unique()))}
    for path in (place / "log" / "a.parquet", place / "log" / "late" / "b.parquet", place / "profile.parquet"):
        pd.read_parquet(path).assign(who=lambda frame: frame["who"].astype(str).map(numbers)).to_parquet(path)
    (place / "ids.txt").write_text("20\n34")  # the manifest has such numbers, and neither is a customer then
    schemas = {"data": SCHEMA, "other": SCHEMA | {"features": [*SCHEMA["features"], {"name": "who"}]}}
    for name, schema in schemas.items():
        prepare(
            place / "log",
            EventSchema.from_dict(schema),
            place / name,
            profile=place / "profile.parquet",
            rows_per_shard=20,
            overwrite=True,
        )
    said = forget(f"{EVERYWHERE} --data data other", fails="found nowhere: '34'")
    assert "other/feature_extractor: 1 of the customers are values of a feature" in said and "data/" not in said


def test_an_id_with_spaces_and_commas_of_its_own_is_found(place, forget):
    pq.write_table(pa.table({"customer_id": [" a, b", "a, b", 'say "c"', "d"]}), place / "scores.parquet")
    pq.write_table(pa.table({"customer_id": [7.0, 8.0, None]}), place / "numbers.parquet")
    (place / "ids.txt").write_bytes(b'\xef\xbb\xbf a, b\r\n\r\nsay "c"\r\n7\r\nC21')
    said = forget("--predictions scores.parquet numbers.parquet", fails="found nowhere: 'C21'")
    assert "'7'" not in said
    assert pq.read_table(place / "scores.parquet")["customer_id"].to_pylist() == ["a, b", "d"]
    assert pq.read_table(place / "numbers.parquet")["customer_id"].to_pylist() == [8.0, None]


@pytest.mark.parametrize("names", ["data log profile.parquet scores", "log/a.parquet scores/customers-0.parquet"])
def test_symbolic_links_stay_and_what_they_name_is_changed(place, forget, names):
    write_scores(place, "scores/customers-0.parquet")
    (place / "elsewhere").mkdir()
    for name in names.split():
        (place / name).symlink_to((place / name).rename(place / "elsewhere" / Path(name).name))
    assert GONE in forget(f"{EVERYWHERE} --predictions scores")
    for name in names.split():
        assert (place / name).readlink() == place / "elsewhere" / Path(name).name
    for path in bytes_of(place):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            for column in {"customer_id", "who"} & {*table.column_names}:
                assert not {*THEY} & {*table[column].to_pylist()}, path
    assert not [*place.rglob(".*.lock")]


def damage_a_shard(place):
    shard = sorted((place / "data").glob("customers*"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[:60] + bytes(20) + content[80:])


def name_everyone(place):
    (place / "ids.txt").write_text("\n".join(sorted(customers(place / "data"))))


def write(name, content):
    """A function that writes a file of a place."""
    return lambda place: (place / name).write_bytes(content)


OTHER = pd.DataFrame({"other": [1]}).to_parquet()
SPOILED = {
    "ids in Latin-1": (write("ids.txt", b"Zo\xeb\n"), r"save it as UTF-8, one id a line\."),
    "ids in UTF-16": (write("ids.txt", "c05\n".encode("utf-16-le")), r"save it as UTF-8, one id a line\."),
    "no ids": (write("ids.txt", b" \n\n"), r"ids\.txt holds no id; write one a line\."),
    "a CSV in the log": (write("log/more.csv.gz", b"who"), "files of several kinds"),
    "everyone": (name_everyone, "Nothing was changed"),
    "a cut file of the log": (write("log/late/b.parquet", b"PAR1 cut"), "b.parquet is not a whole Parquet file"),
    "a damaged shard": (damage_a_shard, "is missing or not the file of the manifest"),
    "a file without the customers' column": (write("log/a.parquet", OTHER), "a.parquet has no column 'who'"),
    "another log": (
        lambda place: pd.read_parquet(place / "log/a.parquet").iloc[1:].to_parquet(place / "log/a.parquet"),
        "was prepared from a.parquet, late/b.parquet, and --events has a.parquet, b.parquet, with other rows",
    ),
    "a file more": (
        lambda place: shutil.copy(place / "log/a.parquet", place / "log/c.parquet"),
        "with other rows: give",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED)
def test_what_stands_against_a_deletion_is_said_before_anything_is_touched(place, forget, spoil, said):
    spoil(place)
    before = bytes_of(place)
    assert re.search(said, forget(EVERYWHERE, fails="forget: "))
    assert bytes_of(place) == before
    assert [path.name for path in place.glob(".*")] == []


def test_what_is_no_parquet_is_refused(place, forget):
    pd.read_parquet(place / "log").drop(columns="late", errors="ignore").to_csv(place / "log.csv", index=False)
    prepare(place / "log.csv", EventSchema.from_dict(SCHEMA), place / "text", profile=place / "profile.parquet")
    words = "--data text --events log.csv --profile profile.parquet"
    forget(words, fails="log.csv is a text file, and customers are deleted from")
    forget("--data data --events log", fails="and --profile has nothing")


def test_a_data_set_that_days_were_added_to_loses_no_event_of_others(place, forget):
    """Files of the days have one name in folders of their own."""
    late = pd.read_parquet(place / "log" / "late" / "b.parquet")
    days = [late[late["when"] < "2017-12-01"], *(day for _, day in late[late["when"] >= "2017-12-01"].groupby("when"))]
    for number, day in enumerate(days[:3]):
        (place / f"day={number}").mkdir()
        day.to_parquet(place / f"day={number}" / "events.parquet")
    (place / "day=1" / "events.parquet").rename(place / "day=1" / "renamed.parquet")
    options = {"profile": place / "profile.parquet", "overwrite": True}
    prepare([place / "log" / "a.parquet", place / "day=0"], EventSchema.from_dict(SCHEMA), place / "data", **options)
    for number in (1, 2):
        (place / f"scratch-{number}").mkdir()
        source = [str(path) for path in (place / f"day={number}").iterdir()]
        add_events(PreparedData(place / "data"), source, place / "next", place / f"scratch-{number}")
        shutil.rmtree(place / "data")
        (place / "next").rename(place / "data")
    assert len(PreparedData(place / "data").manifest.input["events"]["files"]) == 4
    before, expected = bytes_of(place), [name for name in customers(place / "data") if name not in THEY]
    (place / "day=3").mkdir()
    days[3].to_parquet(place / "day=3" / "events.parquet")
    everything = ["log/a.parquet", "day=0", "day=1", "day=2"]
    lacks = [everything[:place_] + everything[place_ + 1 :] for place_ in range(4)]
    for events in (*lacks, [*everything[:3], "day=3"], [*everything, "day=3"]):
        options = f"--data data --profile profile.parquet --events {' '.join(events)}"
        forget(options, fails="with other rows: give all that it was prepared from")
        assert bytes_of(place) == before
    whole = PreparedData(place / "data").rows.to_list()
    options = f"--data data --profile profile.parquet --events {' '.join(everything)}"
    kill_at(2, ["os.replace", "os.rename"], call, FORGET, *find_words(place, options))
    assert GONE in forget(options)
    assert customers(place / "data") == expected
    assert PreparedData(place / "data").rows.to_list() == [row for row in whole if row["customer_id"] not in THEY]
    assert GONE in forget(options.replace("--data", "--check_only true --data"))


@pytest.mark.parametrize("moment", range(1, 10))
def test_a_killed_deletion_is_finished_by_the_same_command(place, forget, moment):
    renames = ["os.replace", "os.rename"]  # those of pathlib end here too
    kill_at(moment, renames, call, FORGET, *find_words(place, EVERYWHERE))
    assert GONE in forget(EVERYWHERE)
    assert len(customers(place / "data")) == 32
    assert not {*THEY} & {*customers(place / "data"), *pd.read_parquet(place / "log")["who"]}
    assert [path.name for path in place.glob(".*")] == []


def test_a_deletion_waits_for_whoever_changes_the_same(place, forget):
    runs = threading.Thread(target=forget, args=[EVERYWHERE])
    with locked(place / "data"):
        runs.start()
        runs.join(1)
        assert runs.is_alive() and "c05" in {*pd.read_parquet(place / "log")["who"]}
    runs.join(60)
    assert "c05" not in {*pd.read_parquet(place / "log")["who"]} and not [*place.rglob(".*.lock")]
