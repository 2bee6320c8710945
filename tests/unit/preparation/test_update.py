# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""An updated data set is the one that a full preparation of the same log gives, with the same vocabularies."""

import errno
import os
import re
import shutil
import stat
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from folders import content
from synthetic_log import SCHEMA, TEST, VALIDATION, check_same_counts, make_log, make_profile, schema_with

from modeling_mcm.data import NO_CUTOFFS, PreparedData, PreparedManifest
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.forget import forget_in_prepared
from modeling_mcm.preparation.update import update
from modeling_mcm.processing_mcm import MCMFeatureExtractor

START = TEST + timedelta(days=14)  # the data set's last day, in the test period


class Shop:
    """A log of daily files in the folder log/, and the data set data/ of those that were there at first."""

    def __init__(self, folder):
        self.folder, self.log, self.data = folder, folder / "log", folder / "data"
        self.log.mkdir()
        self.profile = folder / "profile.parquet"
        make_profile().to_parquet(self.profile)

    def write(self, events, name="{:%Y-%m}.parquet"):
        for month, part in events.groupby(events["at"].dt.to_period("M")):
            path = self.log / name.format(month.to_timestamp())
            path.parent.mkdir(exist_ok=True)
            part.to_parquet(path)

    def prepare(self, schema=None, **options):
        self.schema = schema or schema_with()
        options = {"rows_per_shard": 5, "profile": self.profile} | options
        return prepare(self.log, self.schema, self.data, **options)

    def start(self):
        """Prepares what is before the start; gives the whole log."""
        log = make_log()
        self.write(log[log["at"] < START])
        self.prepare()
        return log

    def update(self, **options):
        return update(self.data, self.log, self.profile, **options)

    def extractor(self, folder=None):
        return MCMFeatureExtractor.from_pretrained(str((folder or self.data) / "feature_extractor"))

    def check(self):
        """The data set against a full preparation."""
        full = self.folder / "full"
        known = {"feature_extractor": self.extractor(), "overwrite": True, "rows_per_shard": 5}
        expected = prepare(self.log, self.schema, full, profile=self.profile, **known)
        found = PreparedManifest.load(self.data)
        assert rows(self.data) == rows(full)
        assert found.input == expected.input
        check_same_counts(found, expected, self.data, full)
        PreparedData(self.data).check()
        files = {shard["file"] for shard in found.shards}
        assert files == {path.name for path in self.data.glob("customers-*")}
        assert all(0 < shard["rows"] < 10 for shard in found.shards)
        assert sorted(path.name for path in self.folder.glob(".*")) == []
        return expected.counts


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def rows(folder):
    shards = [pq.read_table(folder / shard["file"]) for shard in PreparedManifest.load(folder).shards]
    assert len({str(shard.schema) for shard in shards}) == 1
    return [row for shard in shards for row in shard.to_pylist()]


FEW = {"max_events": 6, "max_events_per_customer": 6}
CHOICES = [{}, {"visit": None, "end_of_visit": None, "on_duplicate": "drop"} | FEW]
CHOICES += [{"tasks": ["token_type"], "target_token_types": []}, {"cutoffs": NO_CUTOFFS}]
PLACES = {"time": None, "order": "place", "cutoffs": "leave_one_out", "features": SCHEMA["features"][:5]}
CHOICES += [{"cutoffs": "leave_one_out"}, PLACES]


@pytest.mark.parametrize(("seed", "choices"), enumerate(CHOICES))
def test_updates_give_the_rows_of_a_full_preparation(shop, seed, choices):
    generator = np.random.default_rng(seed)
    log = make_log(seed=seed, customers=14)
    log["at"] += pd.to_timedelta(generator.integers(0, 1 + 400_000 * seed, len(log)), unit="s")  # visits that overlap
    log.loc[generator.random(len(log)) < 0.05, "kind"] = None
    log["place"] = (log["at"] - log["at"].min()).dt.days
    log = pd.concat([log, log.sample(20, random_state=seed)])  # duplicates, some of them days apart in the files
    late = generator.random(len(log)) < 0.1  # arrives after its day
    newcomer = log["user"].isin([3, 13])
    first = (log["at"] < START) & ~late & ~newcomer
    shop.write(log[first])
    shop.prepare(schema_with(**choices))
    shop.write(log[~first & (log["at"] < TEST)], "late-{:%Y-%m}.parquet")
    done = shop.update()
    assert done.customers <= 14 and done.added == {} and done.files == sorted(p.name for p in shop.log.glob("late*"))
    shop.write(log[~first & (log["at"] >= TEST)], "later-{:%Y-%m}.parquet")
    assert shop.update().manifest.options == {"rows_per_shard": 5, "updates": 2}
    assert bool(shop.check()["dropped_excess"]) == ("max_events_per_customer" in choices)
    assert len(rows(shop.data)) == 14


@pytest.mark.parametrize("choices", CHOICES)
def test_after_a_deletion_the_counts_are_those_of_the_others(tmp_path, choices):
    log, schema = make_log(), schema_with(**choices)
    log = log.assign(place=log["at"].rank(method="dense").astype(int))
    log.loc[log["user"] == 2, "group"] = "of one alone"
    for name, part in (("data", log), ("others", log[log["user"] != 2])):
        prepare(part, schema, tmp_path / name, profile=make_profile(), rows_per_shard=4)
    before = PreparedManifest.load(tmp_path / "data")
    assert forget_in_prepared(tmp_path / "data", {"2"}) == 1
    tables = [pq.read_table(tmp_path / name / "popularity.parquet").to_pylist() for name in ("data", "others")]
    by_value = [{(row["feature"], row["value"]): row["target_count"] for row in table} for table in tables]
    assert by_value[0] == by_value[1] and "of one alone" not in {value for _, value in by_value[0]}
    after, expected = (PreparedManifest.load(tmp_path / name) for name in ("data", "others"))
    assert after.measures == expected.measures != before.measures or schema.cutoffs == NO_CUTOFFS


@pytest.mark.parametrize("closes", [True, False], ids=["times", "places"])
def test_the_measures_are_those_of_a_loop(tmp_path, closes):
    log = make_log()
    log = log.assign(place=log["session"].fillna(99).astype(int))
    targets = log[log["kind"] == "buy"].dropna(subset=["item", "group"], how="all")
    schema = schema_with(profile=[])
    if closes:
        targets = targets[targets["at"] < VALIDATION]
        own = targets["at"].astype(str).where(targets["session"].isna(), targets["session"].astype(str))
    else:  # the last two visits with a target are held out
        schema = schema_with(profile=[], **PLACES, visit=None)
        last = targets.groupby("user")["place"].transform(lambda of_user: sorted(set(of_user))[-2])
        targets = targets[targets["place"] < last]
        own = targets["place"]
    targets = targets[targets["item"].notna() | targets["group"].notna()].assign(own=own)
    visits = targets.groupby("user")["own"].nunique()
    moments = targets.groupby(["user", "own", *(["at"] if closes else [])]).ngroups
    expected = {"customers": len(visits), "one_visit": int((visits == 1).sum()), "visits": int(visits.sum())}
    assert prepare(log, schema, tmp_path / "data").measures == expected | {"moments": moments, "targets": len(targets)}


@pytest.mark.parametrize("change", ["update", "forget"])
def test_scores_of_the_page_do_not_outlive_a_change(shop, change):
    log = shop.start()
    (shop.data / "page.parquet").write_bytes(b"of before")
    (shop.data / "notes.parquet").write_bytes(b"a person's own")
    assert len(PreparedData(shop.data).rows) == 12
    shop.write(log[log["at"] >= START], "new-{:%Y-%m}.parquet")
    CHANGES[change](shop)
    assert not (shop.data / "page.parquet").exists()
    assert (shop.data / "notes.parquet").exists() == (change == "forget")


CHANGES = {
    "prepare": lambda shop: shop.prepare(overwrite=True),
    "update": lambda shop: shop.update(),
    "forget": lambda shop: forget_in_prepared(shop.data, {"1", "4"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_fills_up_leaves_all_as_it_was_and_names_the_file(shop, monkeypatch, change):
    log = shop.start()
    shop.write(log[log["at"] >= START], "new-{:%Y-%m}.parquet")
    if change == "forget":
        shop.update()
    before, sync, named, room = content(shop.folder), os.fsync, [], []

    def fsync(file):
        if not room:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:  # a new file: others are linked, and written
                os.ftruncate(file, status.st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        room.pop()
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for files in range(100):
            room[:] = [None] * files
            try:
                CHANGES[change](shop)
                break
            except OSError as error:
                path = re.search(r"(\S+) can't be written \(No space left on device\)", str(error))[1]
                named.append(Path(path).name)
            assert content(shop.folder) == before
    assert len(named) >= 5 and {"manifest.json", "popularity.parquet"} <= {*named}
    assert any(name.endswith(".parquet") and name[0] in "c0123456789" for name in named)  # a shard
    assert content(shop.folder) != before


def test_shards_without_a_new_event_are_the_same_files(shop):
    log = make_log()
    shop.write(log[log["at"] < START])
    before = {shard["file"]: shard for shard in shop.prepare().shards}
    inodes = {name: (shop.data / name).stat().st_ino for name in before}
    shop.write(log[(log["at"] >= START) & (log["user"] == 1)], "new-{:%Y-%m}.parquet")
    done = shop.update()
    assert (done.customers, done.shards) == (1, 1)
    after = {shard["file"]: (shop.data / shard["file"]).stat().st_ino for shard in done.manifest.shards}
    assert [name for name, inode in after.items() if inode in inodes.values()] == [*before][1:]
    assert shop.update().files == []  # nothing new, nothing done
    with pytest.raises(FileExistsError, match="another options made it"):  # a full preparation is something else
        shop.prepare(reuse=True)
    shop.check()


def test_a_day_is_read_from_the_last_visit_before_it(shop):
    log = make_log()
    is_new = log["at"] >= START
    shop.write(log[~is_new])
    shop.prepare()
    before = rows(shop.data)
    shop.write(log[is_new], "new-{:%Y-%m}.parquet")
    done = shop.update()
    assert done.customers == 12 and is_new.sum() < done.events < is_new.sum() + 12 * 9  # visits have at most 4 events
    for old, new in zip(before, rows(shop.data), strict=True):
        assert new["times"][: len(old["times"])] == old["times"]
    shop.check()


def test_a_shard_that_grows_is_divided(shop):
    log = make_log(customers=12)
    shop.write(log[log["user"] < 6])
    shop.prepare()
    shop.write(log[log["user"] >= 6], "new-{:%Y-%m}.parquet")
    shop.update()
    assert len(PreparedManifest.load(shop.data).shards) == 2
    shop.check()


def test_corrected_and_removed_files_need_what_was_read(shop, tmp_path):
    log = shop.start()
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(shop.log / "2024-02.parquet", old / "any name.parquet")
    february = log[(log["at"] >= "2024-02-01") & (log["at"] < "2024-03-01")]
    kept = february[~february["user"].isin([5, 6])].assign(item=3.0)  # two have no event any more, others other items
    kept.to_parquet(shop.log / "2024-02.parquet")
    with pytest.raises(ValueError, match=r"2024-02.parquet of .* changed or is gone.*--corrected"):
        shop.update()
    assert shop.update(corrected=[old]).customers == february["user"].nunique()
    shop.check()
    shutil.move(shop.log / "2024-01.parquet", old)
    assert shop.update(corrected=old.glob("*")).files == ["2024-01.parquet"]
    shop.check()


def test_vocabularies_grow_when_asked(shop):
    log = make_log()
    log.loc[log.index[:3], "item"] = [500.0, 501.0, 501.0]  # the first is too rare to be known
    log.loc[log.index[:3], "at"] = START - timedelta(days=100)
    shop.write(log[log["at"] < START])
    shop.prepare()
    old = shop.extractor()
    new = log[(log["at"] >= START) & log["user"].isin([1, 2])].copy()
    new["item"] = [500.0, 777.0, 888.0, *[777.0, 888.0] * len(new)][: len(new)]
    new["kind"] = ["return", *new["kind"][1:]]
    shop.write(new, "new-{:%Y-%m}.parquet")
    frozen = shop.data.with_name("frozen")
    shutil.copytree(shop.data, frozen)
    update(frozen, shop.log, shop.profile)
    assert shop.extractor(frozen).vocabularies == old.vocabularies
    done = shop.update(grow_vocabularies=1)
    grown = shop.extractor()
    assert done.added == {"token_type": ["return"], "type": ["777", "888", "500"]}
    for name, values in old.vocabularies.items():
        assert grown.vocabularies[name] == values + done.added.get(name, [])
    assert done.customers > 2 or log.index[0] in new.index  # who met 500 before knows it now
    shop.check()
    assert done.manifest.counts["unknown"]["type"] < PreparedManifest.load(frozen).counts["unknown"]["type"]


def test_a_vocabulary_grows_up_to_its_bound(shop):
    log = make_log()
    shop.write(log[log["at"] < START])
    of_items = [{**spec, "max_values": 13} if spec["name"] == "type" else spec for spec in SCHEMA["features"]]
    shop.prepare(schema_with(features=of_items))
    assert len(shop.extractor().vocabularies["type"]) == 12
    new = log[log["at"] >= START].head(5).assign(item=[777.0, 777.0, 888.0, 888.0, 888.0])
    new.to_parquet(shop.log / "new.parquet")
    assert shop.update(grow_vocabularies=1).added == {"type": ["888"]}
    shop.check()


def test_a_log_in_folders_is_followed(shop, tmp_path):
    log = make_log()
    shop.write(log[log["at"] < START], "month={:%m}/a.parquet")
    shop.prepare(schema_with(features=[*SCHEMA["features"], {"name": "month"}]))
    shop.write(log[log["at"] >= START], "month={:%m}/b.parquet")
    assert shop.update().files == ["month=04/b.parquet", "month=05/b.parquet"]
    shop.check()
    old = tmp_path / "old" / "month=02"
    old.mkdir(parents=True)
    moved = shutil.move(shop.log / "month=02" / "a.parquet", tmp_path)
    with pytest.raises(ValueError, match="'month' of the event files is string in .* and absent in .*/a.parquet"):
        shop.update(corrected=[moved])
    shutil.move(moved, old)
    assert shop.update(corrected=[old.parent]).files == ["month=02/a.parquet"]
    shop.check()


def test_a_new_profile_table_reaches_everyone(shop):
    shop.start()
    assert shop.update().files == []
    make_profile().assign(age=["young", None, "old"] * 2).to_parquet(shop.profile)
    done = shop.update()
    assert (done.customers, done.shards) == (0, 3)
    shop.check()


def test_what_cannot_be_updated_is_refused_and_stays(shop):
    log = shop.start()
    before = rows(shop.data)
    new = log[log["at"] >= START]
    second = sorted(shop.data.glob("customers-*"))[1]
    for bad, message in (
        (new.assign(kind="end_of_visit"), "rename them in the log"),
        (new.assign(item="text"), "Column 'item' of the event files is .*schema of the log has changed"),
        (new.drop(columns="price"), "'price' of the event files is .*absent in .*new"),
        (new.assign(user=None), "'user'"),
    ):
        bad.to_parquet(shop.log / "new.parquet")
        with pytest.raises(ValueError, match=message):
            shop.update()
    new.to_parquet(shop.log / "new.parquet")
    with pytest.raises(ValueError, match="no profile table"):
        update(shop.data, shop.log)
    with pytest.raises(ValueError, match="is no folder"):
        update(shop.data, shop.log / "new.parquet", shop.profile)
    whole = second.read_bytes()
    for place, message in ((100, "does not have the digest"), (len(whole) - 20, "is no whole Parquet file")):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        second.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=f"{second.name} {message}"):
            shop.update()
    second.write_bytes(whole)
    assert rows(shop.data) == before and os.listdir(shop.folder).count("data") == 1
    shop.update()
    shop.check()


def test_the_command_says_what_it_did(shop, command):
    log = shop.start()
    log[log["at"] >= START].assign(group="new").to_parquet(shop.log / "later.parquet")
    words = ["--data", shop.data, "--events", shop.log, "--profile", shop.profile, "--grow_vocabularies", 3]
    said = command("modeling_mcm.commands.update", *words)
    assert "12 customers and" in said and "1 new, changed or gone: later.parquet" in said
    assert "Added       a.b: 1, such as 'new'" in said
    (shop.log / "2024-01.parquet").unlink()
    assert "changed or is gone" in command("modeling_mcm.commands.update", *words, fails="update: 2024-01.parquet of ")
