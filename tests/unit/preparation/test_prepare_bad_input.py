# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation of bad input, on a full disk and when killed: clear words, and nothing that looks whole."""

import hashlib

import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic_log import SCHEMA, TEST, VALIDATION, make_log, make_profile, run, schema_with

from modeling_mcm.data import PreparedManifest, load_prepared
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation import rows as rows_module
from modeling_mcm.preparation.complete_journey import build_complete_journey


def test_rows_without_customer_or_time_are_an_error_or_dropped(tmp_path):
    log = make_log()
    log["user"] = log.user.astype("Int64")
    log.loc[0, "user"] = pd.NA
    log.loc[1, "at"] = pd.NaT
    with pytest.raises(ValueError, match="'user' is null in 1 of .*on_null: drop"):
        run(tmp_path, log)
    with pytest.raises(ValueError, match="'at' is null in 1 of"):
        run(tmp_path, log.drop(index=0))
    assert not list(tmp_path.iterdir())
    manifest = run(tmp_path, log, schema_with(on_null="drop"))
    assert manifest.counts["dropped_null"] == 2 and manifest.counts["events"] == len(log) - 2


def test_duplicates_are_counted_and_dropped_only_when_asked(tmp_path):
    log = make_log().drop_duplicates()
    twice = pd.concat([log, log.head(7)])
    kept = run(tmp_path, twice, name="kept").counts
    dropped = run(tmp_path, twice, schema_with(on_duplicate="drop"), name="dropped").counts
    assert (kept["duplicates"], kept["events"]) == (7, len(log) + 7)
    assert (dropped["dropped_duplicates"], dropped["events"]) == (7, len(log))


BAD_LOGS = {
    "missing column": (lambda log: log.drop(columns="item").assign(itm=1), "no column 'item'.*'itm'"),
    "no rows": (lambda log: log.head(0), "empty"),
    "time is a number": (lambda log: log.assign(at=5), "'at'.*int64.*timestamp"),
    "time cannot be read": (lambda log: log.assign(at=["gestern", *log["at"].astype(str)[1:]]), "1 values.*gestern"),
    "number cannot be read": (lambda log: log.assign(price="dear"), "'price'.*dear"),
    "number is a time": (lambda log: log.assign(price=log["at"]), "'price'.*timestamp"),
    "value is a list": (lambda log: log.assign(item=[[1]] * len(log)), "'item'.*array"),
    "no target": (lambda log: log.assign(kind="view"), "target_token_types.*buy.*'kind'"),
    "reserved token type": (lambda log: log.assign(kind=["end_of_visit", *log.kind[1:]]), "end_of_visit.*rename"),
    "nothing to train on": (lambda log: log[log["at"] >= VALIDATION], "No target event is before.*the log runs from"),
    "nothing to validate on": (
        lambda log: log[(log["at"] < VALIDATION) | (log["at"] >= TEST)],
        "No event is between.*move the cutoffs",
    ),
    "nothing to test on": (lambda log: log[log["at"] < TEST], "on or after `cutoffs: test`"),
}


@pytest.mark.parametrize(("change", "message"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_bad_log_is_refused_and_leaves_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, change(make_log()))
    assert not list(tmp_path.iterdir())


def test_an_event_without_any_value_is_refused(tmp_path):
    schema = schema_with(features=SCHEMA["features"][:4])
    log = make_log().astype({"flag": object})
    log.loc[3, ["kind", "item", "group", "flag"]] = None
    with pytest.raises(ValueError, match="1 events have no value in any feature"):
        run(tmp_path, log, schema)


def test_bad_files_are_named(tmp_path):
    whole, cut, empty = (tmp_path / f"{name}.parquet" for name in ("whole", "cut", "empty"))
    make_log().to_parquet(whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    empty.touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "log.xlsx").write_text("x")
    for path, error, message in (
        (cut, ValueError, "cut.parquet is not a whole Parquet file"),
        (empty, ValueError, "empty.parquet is empty"),
        (tmp_path / "empty.csv", ValueError, "empty.csv is empty"),
        (tmp_path / "log.xlsx", ValueError, "neither .parquet, .csv"),
        (tmp_path / "none.parquet", FileNotFoundError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            run(tmp_path, path)
    assert not (tmp_path / "out").exists()


def test_bad_profile_is_refused(tmp_path):
    profile = make_profile()
    for table, message in (
        (None, "no profile table"),
        (pd.concat([profile, profile.head(1)]), "several rows for the customer '0'"),
        (profile.drop(columns="age"), "profile table has no column 'age'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(make_log(), schema_with(), tmp_path / "out", profile=table)


def test_full_disk_leaves_no_data_set(tmp_path, monkeypatch):
    write, written = pq.write_table, []

    def fail_at_the_third_file(*args, **kwargs):
        written.append(args)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(pq, "write_table", fail_at_the_third_file)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, rows_per_shard=5)
    assert len(written) == 3 and not list(tmp_path.iterdir())


def test_what_a_lost_worker_left_is_not_in_the_data_set(tmp_path, monkeypatch):
    write = rows_module.write_shard

    def after_another(table, path):
        path.with_name(f".{path.name}.7.partial").touch()
        return write(table, path)

    monkeypatch.setattr(rows_module, "write_shard", after_another)
    run(tmp_path)
    assert not list((tmp_path / "out").glob(".*"))


def test_killed_preparation_leaves_no_data_set_and_keeps_the_old_one(tmp_path, monkeypatch):
    run(tmp_path)
    before = digests(tmp_path / "out")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreparedManifest, "save", killed)
    for name in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, make_log(seed=1), name=name, overwrite=True)
    assert digests(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_a_folder_without_manifest_is_no_data_set(tmp_path):
    run(tmp_path)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="not a .finished. prepared data set"):
        load_prepared(tmp_path / "out")
    with pytest.raises(FileExistsError, match="is no prepared data set"):
        run(tmp_path, overwrite=True)


def test_damaged_shards_are_found(tmp_path):
    run(tmp_path, rows_per_shard=5)
    first, second, _ = sorted((tmp_path / "out").glob("customers-*.parquet"))
    whole = first.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 1
    for damaged, message in ((whole[:-50], "bytes"), (bytes(flipped), "digest")):
        first.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            load_prepared(tmp_path / "out", cache_dir=tmp_path / "cache", verify=True)
    first.write_bytes(whole)
    second.unlink()
    with pytest.raises(ValueError, match="missing.*prepare the data again"):
        load_prepared(tmp_path / "out", cache_dir=tmp_path / "cache")


def test_existing_data_set_is_reused_or_replaced_only_when_asked(tmp_path):
    log, other, profile = (tmp_path / f"{name}.parquet" for name in ("log", "other", "profile"))
    make_log().to_parquet(log)
    make_log(seed=1).to_parquet(other)
    make_profile().to_parquet(profile)
    out = tmp_path / "out"
    manifest = prepare(log, schema_with(), out, profile=profile)
    modified = (out / "manifest.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="overwrite"):
        prepare(log, schema_with(), out, profile=profile)
    assert prepare(log, schema_with(), out, profile=profile, reuse=True) == manifest
    for source, schema, reason in (
        (other, schema_with(), "another input"),
        (log, schema_with(max_events=9), "schema"),
    ):
        with pytest.raises(FileExistsError, match=reason):
            prepare(source, schema, out, profile=profile, reuse=True)
    assert (out / "manifest.json").stat().st_mtime_ns == modified
    replaced = prepare(other, schema_with(), out, profile=profile, reuse=True, overwrite=True)
    assert replaced.shards != manifest.shards and PreparedManifest.load(out) == replaced


@pytest.mark.parametrize("is_there", [True, False], ids=["a data set", "nothing yet"])
def test_a_symbolic_link_stays_and_what_it_names_is_replaced(tmp_path, is_there):
    real = tmp_path / "disk" / "out"
    if is_there:
        run(tmp_path / "disk")
    (tmp_path / "out").symlink_to(real)
    made = run(tmp_path, make_log(seed=1), overwrite=True)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "out").resolve() == real
    assert PreparedManifest.load(real) == made
    left = [path for folder in (tmp_path, tmp_path / "disk") for path in folder.iterdir() if path.name != "out"]
    assert left == [tmp_path / "disk"]


def test_demo_log_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"modeling-mcm\[demo\]"):
        build_complete_journey(tmp_path)
