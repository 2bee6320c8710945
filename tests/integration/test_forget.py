# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers who ask to be forgotten are in no file any more, and the command says so only where it is true."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corner_shop import SCHEMA, make_profile

from modeling_mcm.commands import predict
from modeling_mcm.data import EventSchema, load_prepared
from modeling_mcm.files_mcm import locked
from modeling_mcm.preparation import prepare

ROOT = Path(__file__).resolve().parents[2]
THEY = ["c05", "c21"]


EVERYWHERE = ("--data", "data", "--events", "log", "--profile", "profile.parquet")


def prepare_log(place, **options):
    options |= {"profile": place / "profile.parquet", "rows_per_shard": 20}
    return prepare(place / "log", EventSchema.from_dict(SCHEMA), place / "data", **options)


@pytest.fixture
def place(tmp_path, event_log, monkeypatch):
    """A folder with a log of two files, its data set, a loaded copy in the cache, and a list of two customers."""
    (tmp_path / "log" / "late").mkdir(parents=True)
    for name, part in (("a", event_log["when"] < "2017-06-01"), ("late/b", event_log["when"] >= "2017-06-01")):
        kinds = {"who": "category"} if name == "a" else {}  # ids may be one
        event_log[part].astype(kinds).to_parquet(tmp_path / "log" / f"{name}.parquet")
    make_profile(event_log).to_parquet(tmp_path / "profile.parquet")
    prepare_log(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_prepared(tmp_path / "data", cache_dir=tmp_path / "cache")
    (tmp_path / "ids.txt").write_text("\n".join([*THEY, ""]))
    return tmp_path


@pytest.fixture
def forget(place, command):
    """A function that runs the script on folders of the place; `fails` is what it must say at its end."""

    def call(*options, fails=None):
        words = [f"--{word[2:]}" if word.startswith("--") else str(place / word) for word in options]
        words = [word.removeprefix(f"{place}/=") for word in words]
        return command("modeling_mcm.commands.forget", "--customers", place / "ids.txt", *words, fails=fails)

    return call


def customers(folder):
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*customers*.parquet"))])["customer_id"]


def still_there(place):
    """Who of the two customers is in the data set or the log."""
    return {*THEY} & {*customers(place / "data"), *pd.read_parquet(place / "log")["who"]}


def rows(folder):
    return [row for path in sorted(folder.glob("customers*")) for row in pq.read_table(path).to_pylist()]


def test_they_are_gone_from_data_predictions_log_and_cache(place, forget, save):
    options = {"model": save(extended=True), "data": str(place / "data"), "output_dir": str(place / "scores")}
    predict.run(predict.PredictionOptions(**options, rows_per_file=5), predict.EngineOptions())
    before = rows(place / "data")
    everywhere = (*EVERYWHERE, "--predictions", "scores")
    said = forget(*everywhere, "--check_only", "=true", fails="not proven that the customers are gone")
    assert said.count("1 of the customers") == 4
    cached = list((place / "cache").rglob("*.arrow"))
    (place / "data" / "page.parquet").write_bytes(b"scores of all")
    assert forget(*everywhere).endswith("none of the customers is there\n")
    left = [row["customer_id"] for row in before if row["customer_id"] not in THEY]
    assert customers(place / "scores").tolist() == left and len(left) == 32
    for raw in ("log", "profile.parquet"):
        assert set(pd.read_parquet(place / raw)["who"]) == set(left)
    assert cached and not any(path.exists() for path in [*cached, place / "data" / "page.parquet"])
    assert load_prepared(place / "data", cache_dir=place / "cache")["customer_id"][:] == left
    assert rows(place / "data") == [row for row in before if row["customer_id"] not in THEY]
    files = bytes_of(place)
    assert "'c21' (deleted before, or misspelt)" in forget(*everywhere, fails="found nowhere: 'c05'")
    assert bytes_of(place) == files
    assert forget(*everywhere, "--check_only", "=true").endswith("none of the customers is there\n")


LEFT = {
    "scores/old/x.parquet": "x.parquet: can't be read",
    "scores/.customers-0.parquet.7.partial": "7.partial: neither Parquet",
    "scores/backup.zip": "backup.zip: neither Parquet",
    "scores/old/hidden.parquet": "hidden.parquet: 1 of the customers",
}


def test_what_is_left_is_named(place, forget):
    for folder in ("scores", "scores/old"):
        (place / folder).mkdir()
        pq.write_table(pa.table({"customer_id": ["c05", "c06"]}), place / folder / "hidden.parquet")
    for name in LEFT:
        if not (place / name).exists():
            (place / name).write_bytes(b"PAR1 cut")
    said = forget("--predictions", "scores", fails="not proven that the customers are gone")
    assert [reason for reason in LEFT.values() if reason not in said] == []


def test_bad_options_are_refused(place, forget):
    forget("--events", "log", fails="Give --data or --predictions")
    forget("--data", "data", fails="Give --data and --events together")
    forget("--predictions", "log", fails="has no column 'customer_id'")


def bytes_of(place):
    """Every file of the log, the data set and the profile, with links followed."""
    names = ("log", "data", "profile.parquet", "scores")
    files = [path for name in names for path in [place / name, *(place / name).rglob("*")] if path.is_file()]
    return {path: path.read_bytes() for path in files}


def test_an_id_with_spaces_and_commas_of_its_own_is_found(tmp_path, forget):
    rows = {"customer_id": [" a, b", "a, b", 'say "c"', "d"]}
    pq.write_table(pa.table(rows), tmp_path / "scores.parquet")
    pq.write_table(pa.table({"customer_id": [7.0, 8.0, None]}), tmp_path / "numbers.parquet")
    (tmp_path / "ids.txt").write_bytes(b'\xef\xbb\xbf a, b\r\n\r\nsay "c"\r\n7\r\nC21')
    said = forget("--predictions", "scores.parquet", "numbers.parquet", fails="found nowhere: 'C21'")
    assert "'7'" not in said
    assert pq.read_table(tmp_path / "scores.parquet")["customer_id"].to_pylist() == ["a, b", "d"]
    assert pq.read_table(tmp_path / "numbers.parquet")["customer_id"].to_pylist() == [8.0, None]


UNREADABLE = {
    "Latin-1": (b"Zo\xeb\n", r"save it as UTF-8, one id a line\."),
    "nothing": (b" \n\n", r"ids\.txt holds no id; write one a line\."),
}


@pytest.mark.parametrize(("content", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_ids_file_that_cannot_be_read_is_refused(place, forget, content, said):
    before = bytes_of(place)
    (place / "ids.txt").write_bytes(content)
    assert re.search(said, forget(*EVERYWHERE, fails="forget: "))
    assert bytes_of(place) == before


LINKED = ["data", "log", "profile.parquet", "log/a.parquet", "scores", "scores/customers-0.parquet"]


@pytest.mark.parametrize("name", LINKED)
def test_symbolic_links_stay_and_what_they_name_is_changed(place, forget, name):
    (place / "scores").mkdir()
    pq.write_table(pa.table({"customer_id": ["c05", "c06"]}), place / "scores" / "customers-0.parquet")
    (place / "elsewhere").mkdir()
    real = place / "elsewhere" / Path(name).name
    (place / name).rename(real)
    (place / name).symlink_to(real)
    assert "none of the customers is there" in forget(*EVERYWHERE, "--predictions", "scores")
    assert (place / name).is_symlink() and (place / name).resolve() == real
    for path in [*place.rglob("*.parquet"), *real.rglob("*.parquet")]:
        table = pq.read_table(path)
        for column in {"customer_id", "who"} & {*table.column_names}:
            assert not {*THEY} & {*table[column].to_pylist()}, path
    assert not [*place.rglob(".*.lock")]


OTHER = pd.DataFrame({"other": [1]}).to_parquet()


def damage_a_shard(place):
    shard = sorted((place / "data").glob("customers*"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[:60] + bytes(20) + content[80:])


def name_everyone(place):
    (place / "ids.txt").write_text("\n".join(sorted(customers(place / "data"))))


def write(name, content):
    """A function that writes a file of a place."""
    return lambda place: (place / name).write_bytes(content)


def rename(name, other):
    return lambda place: (place / name).rename(place / other)


SPOILED = {
    "a CSV in the log": (write("log/more.csv.gz", b"who"), "files of several kinds"),
    "everyone": (name_everyone, "Nothing was changed"),
    "a cut file of the log": (write("log/late/b.parquet", b"PAR1 cut"), "b.parquet is not a whole Parquet file"),
    "a damaged shard": (damage_a_shard, "does not have the bytes and the digest that the manifest lists"),
    "a file without the customers' column": (write("log/a.parquet", OTHER), "a.parquet has no column 'who'"),
    "another log": (rename("log/a.parquet", "log/z.parquet"), "was prepared from a.parquet, late/b.parquet, and"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED)
def test_what_stands_against_a_deletion_is_said_before_anything_is_touched(place, forget, spoil, said):
    spoil(place)
    before = bytes_of(place)
    assert re.search(said, forget(*EVERYWHERE, fails="forget: "))
    assert bytes_of(place) == before
    assert [path.name for path in place.glob(".*")] == []


KILLED = """
import os, runpy, signal, sys
moment, done = int(sys.argv.pop(1)), 0
def counted(call):
    def wrapper(*args, **options):
        global done
        done += 1
        if done == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapper
os.replace, os.rename = counted(os.replace), counted(os.rename)  # those of pathlib end here too
runpy.run_module("modeling_mcm.commands.forget", run_name="__main__")
"""


def test_what_is_no_parquet_is_refused(place, forget):
    pd.read_parquet(place / "log").drop(columns="late", errors="ignore").to_csv(place / "log.csv", index=False)
    prepare(place / "log.csv", EventSchema.from_dict(SCHEMA), place / "text", profile=place / "profile.parquet")
    words = ("--data", "text", "--events", "log.csv", "--profile", "profile.parquet")
    forget(*words, fails="log.csv is a text file, and customers are deleted from")
    forget("--data", "data", "--events", "log", fails="and --profile has nothing")


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 11))
def test_a_killed_deletion_is_finished_by_the_same_command(place, forget, moment):
    words = [word if word.startswith("--") else str(place / word) for word in ("--customers", "ids.txt", *EVERYWHERE)]
    words = [sys.executable, "-c", KILLED, str(moment), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(place / "home")}
    killed = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "none of the customers is there" in forget(*EVERYWHERE)
    assert not still_there(place) and len(customers(place / "data")) == 32
    assert [path.name for path in place.glob(".*")] == []


def test_a_deletion_waits_for_whoever_changes_the_same(place, forget):
    runs = threading.Thread(target=forget, args=EVERYWHERE)
    with locked(place / "data"):
        runs.start()
        runs.join(1)
        assert runs.is_alive() and "c05" in {*pd.read_parquet(place / "log")["who"]}
    runs.join(60)
    assert "c05" not in {*pd.read_parquet(place / "log")["who"]} and not [*place.rglob(".*.lock")]
